//! Ends: of pools, of starts, of the runtime and of the keeper, and that nothing is left behind by them. Rows Q2, Q13, Q23; faults 3, 8, 33.

use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use pm::{AnyTransport, Budget, ExitCause, QueryErrorKind, StartError};
use rustix::process::Signal as Kill;

use crate::query::listening;
use crate::roles::{EARLY, Job, Said};
use crate::support::{
    MARK, Pool, Scratch, alone, both, both_alone, contains, descriptors, error, eventually, gone_within, jobs, keeper,
    kill, lost, mark, marked, pids, run, zombies,
};

const LONG: Duration = Duration::from_secs(1000);

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        both("ends::a_first_worker_that_cannot_start", a_first_worker_that_cannot_start),
        both("ends::shutdown_serves_what_was_taken", shutdown_serves_what_was_taken),
        both("ends::shutdown_kills_at_the_deadline", shutdown_kills_at_the_deadline),
        both("ends::shutdown_twice_and_of_many_callers", shutdown_twice_and_of_many_callers),
        both("ends::a_slow_listener_is_told_of_its_gap", a_slow_listener_is_told_of_its_gap),
        both("ends::a_start_that_is_dropped_leaves_nothing", a_start_that_is_dropped_leaves_nothing),
        both("ends::settings_that_make_no_sense", settings_that_make_no_sense),
        both_alone("ends::a_hundred_pools_leave_nothing", a_hundred_pools_leave_nothing),
        both_alone("ends::the_keeper_is_killed", the_keeper_is_killed),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(alone("ends::the_runtime_ends_first", the_runtime_ends_first));
    trials
}

async fn a_first_worker_that_cannot_start(transport: AnyTransport) {
    let budget = Budget::crash_loops(2, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    let pool =
        jobs(transport).workers(0).budget(budget).spec(|spec| spec.env(EARLY, "complain")).start().await.unwrap();
    let failed = error(pool.query(&Job::Pid).await);
    assert_eq!(failed.kind(), QueryErrorKind::GaveUp);
    contains(failed.to_string(), "cannot find the configuration");
    let failed = pool.scale(1).await.unwrap_err();
    assert!(matches!(failed, StartError::Died { .. }), "{failed:?}");
    let failed = pool.revive().await.unwrap_err();
    assert!(matches!(failed, StartError::Died { .. }), "{failed:?}");
}

async fn shutdown_serves_what_was_taken(transport: AnyTransport) {
    let scratch = Scratch::new();
    let file = scratch.path("end");
    let (pool, begun) = listening(jobs(transport).workers(1)).await;
    let mut queries = vec![tokio::spawn(pool.query(&Job::Until(file.clone())))];
    begun.wait();
    queries.extend((0..100).map(|_| tokio::spawn(pool.query(&Job::Pid))));
    eventually("all are aboard or queued", || pool.info().load + pool.info().queued == 101).await;
    let pid = pids(&pool)[0];
    let shutdown = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.shutdown().await })
    };
    // The first one that is refused shows that the shutdown has begun.
    let refused = loop {
        let query = pool.query(&Job::Pid);
        let mut query = Box::pin(query);
        let polled =
            std::future::poll_fn(|cx| std::task::Poll::Ready(std::future::Future::poll(query.as_mut(), cx))).await;
        match polled {
            std::task::Poll::Ready(answer) => break error(answer),
            std::task::Poll::Pending => queries.push(tokio::spawn(query)),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(refused.kind(), QueryErrorKind::ShuttingDown);
    assert!(!shutdown.is_finished());
    std::fs::write(&file, "").unwrap();
    for query in queries {
        query.await.unwrap().unwrap();
    }
    shutdown.await.unwrap();
    gone_within(pid, Duration::ZERO);
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    assert!(matches!(pool.scale(1).await, Err(StartError::ShuttingDown)));
    assert!(matches!(pool.respawn().await, Err(StartError::ShuttingDown)));
    assert_eq!(pool.workers(), []);
    assert_eq!(pool.info().crashes, 0);
}

async fn shutdown_kills_at_the_deadline(transport: AnyTransport) {
    for job in [Job::Spin, Job::Sleep(LONG), Job::Both(Job::IgnoreTerm.into(), Job::Sleep(LONG).into())] {
        let (pool, begun) = listening(jobs(transport).workers(2)).await;
        let aboard: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&job))).collect();
        (0..2).for_each(|_| begun.wait());
        let queued: Vec<_> = (0..10).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
        eventually("all are aboard or queued", || pool.info().load + pool.info().queued == 12).await;
        let all = pids(&pool);
        let begun = Instant::now();
        pool.shutdown_within(Some(Duration::from_millis(200))).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        all.iter().for_each(|pid| gone_within(*pid, Duration::ZERO));
        for query in aboard {
            assert_eq!(lost(query.await.unwrap()).cause, ExitCause::Requested);
        }
        for query in queued {
            assert_eq!(error(query.await.unwrap()).kind(), QueryErrorKind::ShuttingDown);
        }
    }
}

async fn shutdown_twice_and_of_many_callers(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).start().await.unwrap();
    let all: Vec<_> = (0..8)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.shutdown().await })
        })
        .collect();
    for shutdown in all {
        shutdown.await.unwrap();
    }
    pool.shutdown().await;
    assert_eq!(pool.workers(), []);
}

async fn a_slow_listener_is_told_of_its_gap(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).start().await.unwrap();
    let mut events = pool.events();
    for _ in 0..130 {
        // Each makes eight events: two are spawned, ready, draining, gone.
        pool.respawn().await.unwrap();
    }
    use tokio::sync::broadcast::error::TryRecvError;
    assert!(matches!(events.try_recv(), Err(TryRecvError::Lagged(missed)) if missed > 0));
}

async fn a_start_that_is_dropped_leaves_nothing(transport: AnyTransport) {
    let mark = mark();
    for _ in 0..5 {
        let builder = jobs(transport).workers(3).spec(|spec| spec.env(EARLY, "hang").env(MARK, &mark));
        let starting = tokio::spawn(async move { builder.start().await.map(drop) });
        eventually("they are being started", || !marked(&mark).is_empty()).await;
        starting.abort();
        eventually("they are gone", || marked(&mark).is_empty()).await;
    }
}

async fn settings_that_make_no_sense(transport: AnyTransport) {
    let failed = jobs(transport).workers(5000).start().await.unwrap_err();
    contains(failed.to_string(), "workers is 5000");
    let failed = jobs(transport).queue(0).start().await.unwrap_err();
    contains(failed.to_string(), "queue is 0");
    let failed = jobs(transport).spec(|spec| spec.arg("a\0b")).start().await.unwrap_err();
    contains(failed.to_string(), "NUL");
}

/// Pools that end in every way, and the program is as it was.
async fn a_hundred_pools_leave_nothing(transport: AnyTransport) {
    let first = jobs(transport).start().await.unwrap();
    first.query(&Job::Pid).await.unwrap();
    first.shutdown().await;
    let keeper = keeper().unwrap();
    let count = || (descriptors(std::process::id()), descriptors(keeper));
    let before = count();
    for round in 0..100 {
        let pool: Pool = jobs(transport).workers(2).start().await.unwrap();
        pool.query(&Job::Pid).await.unwrap();
        match round % 4 {
            0 => pool.shutdown().await,
            1 => drop(pool),
            2 => {
                kill(pids(&pool)[0], Kill::KILL);
                drop(pool);
            }
            _ => {
                let _ = pool.query(&Job::Segv).await;
                pool.unspawn().await.unwrap();
            }
        }
    }
    eventually("no zombie is left", || zombies().is_empty()).await;
    eventually("no descriptor is leaked", || {
        let now = count();
        now.0 <= before.0 && now.1 <= before.1
    })
    .await;
}

/// A runtime that shuts down takes its pools with it: those who wait elsewhere get their answers, and no process is left.
fn the_runtime_ends_first() -> Result<(), Failed> {
    for transport in crate::support::TRANSPORTS {
        let mark = mark();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (pool, begun) = runtime.block_on(listening(jobs(transport).workers(2).spec(|spec| spec.env(MARK, &mark))));
        let waits = {
            let pool = pool.clone();
            std::thread::spawn(move || run(async move { pool.query(&Job::Sleep(LONG)).await }))
        };
        begun.wait();
        runtime.shutdown_timeout(Duration::from_secs(5));
        let failed = waits.join().expect("no panic").unwrap_err();
        assert!(matches!(failed.kind(), QueryErrorKind::WorkerLost | QueryErrorKind::ShuttingDown), "{failed}");
        run(eventually("no process is left", || marked(&mark).is_empty()));
        assert_eq!(error(run(pool.query(&Job::Pid))).kind(), QueryErrorKind::ShuttingDown);
    }
    Ok(())
}

/// The keeper is killed, and with it every worker; the pool starts another one and goes on.
async fn the_keeper_is_killed(transport: AnyTransport) {
    let budget = Budget::crash_loops(1000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    let pool = jobs(transport).workers(2).budget(budget).start().await.unwrap();
    for _ in 0..3 {
        let (first, all) = (keeper().unwrap(), pids(&pool));
        kill(first, Kill::KILL);
        eventually("its workers are replaced", || {
            let now = pids(&pool);
            now.len() == 2 && now.iter().all(|pid| !all.contains(pid))
        })
        .await;
        assert_ne!(keeper(), Some(first));
        assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
    }
}
