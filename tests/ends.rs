//! Ends: of pools, of starts, of runtimes and of the keeper, and that nothing is left behind by them. Rows Q2, Q13, Q23; faults 3, 8, 33.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::sync::mpsc;
use std::task::Poll;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::{AnyTransport, Budget, ExitCause, PoolBuilder, QueryError, QueryErrorKind, StartError, Verbatim, registry};
use rustix::process::Signal as Kill;

use crate::query::listening;
use crate::roles::{ASYNC_TIDY, EARLY, Job, Said, TIDY};
use crate::support::{
    ALL, Asked, Gate, LIMIT, LONG, MARK, Pool, Scratch, alone, calls_wait, descriptors, error, eventually, gone_within,
    jobs, keeper, kill, lost, mark, marked, over_all, over_all_alone, pids, poll_once, refused, run, within, zombies,
};

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = [
        over_all("ends::shutdown_serves_what_is_queued", shutdown_serves_what_is_queued),
        over_all("ends::a_worker_that_leaves_has_last_words", a_worker_that_leaves_has_last_words),
        over_all("ends::shutdown_survives_a_crash", shutdown_survives_a_crash),
        over_all("ends::shutdown_within_no_time_kills", shutdown_within_no_time_kills),
        over_all("ends::shutdown_of_a_pool_without_workers", shutdown_of_a_pool_without_workers),
        over_all("ends::shutdown_kills_at_the_deadline", shutdown_kills_at_the_deadline),
        over_all("ends::shutdown_twice_and_of_many_callers", shutdown_twice_and_of_many_callers),
        over_all("ends::dropping_the_last_handle_kills", dropping_the_last_handle_kills),
        over_all("ends::a_clone_or_a_query_keeps_the_workers", a_clone_or_a_query_keeps_the_workers),
        over_all("ends::a_start_that_is_dropped_leaves_nothing", a_start_that_is_dropped_leaves_nothing),
        over_all_alone("ends::a_hundred_pools_leave_nothing", a_hundred_pools_leave_nothing),
        over_all_alone("ends::the_keeper_is_killed", the_keeper_is_killed),
    ]
    .into_iter()
    .flatten()
    .collect();
    for transport in ALL {
        tests.push(alone(format!("ends::two_runtimes_after_another::{transport}"), move || {
            two_runtimes_after_another(transport);
            Ok(())
        }));
        tests.push(alone(format!("ends::a_dropped_runtime_leaves_no_process::{transport}"), move || {
            a_dropped_runtime_leaves_no_process(transport);
            Ok(())
        }));
    }
    tests
}

// --- shutdown

async fn shutdown_serves_what_is_queued(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(1)).await;
    let pid = pids(&pool)[0];
    let under_way = tokio::spawn(pool.query(&gate.wait()));
    begun.wait();
    let mut queued: Vec<Asked> = Vec::new();
    for _ in 0..20 {
        let mut query: Asked = Box::pin(pool.query(&Job::Pid));
        assert!(poll_once(&mut query).await.is_none());
        queued.push(query);
    }
    let shut: Vec<_> = (0..2)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.shutdown_within(None).await })
        })
        .collect();
    queued.extend(refused(&pool).await);
    assert!(shut.iter().all(|shut| !shut.is_finished()));
    gate.open(1);
    assert_eq!(under_way.await.unwrap().unwrap(), Said::Number(1));
    for query in queued {
        assert_eq!(within(query).await.unwrap(), Said::Pid(pid), "the one that had it in its queue served it");
    }
    for shut in shut {
        within(shut).await.unwrap();
    }
    gone_within(pid, Duration::ZERO);
    assert!(pool.workers().is_empty());
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    let refused = pool.try_query(Job::Pid).await.unwrap_err();
    assert!(matches!(refused, pm::TryQueryError::Failed(QueryError::ShuttingDown { .. })), "{refused:?}");
    for change in
        [pool.scale(1).await, pool.spawn_one().await, pool.respawn().await, pool.unspawn().await, pool.revive().await]
    {
        assert!(matches!(change, Err(StartError::ShuttingDown)), "{change:?}");
    }
    within(pool.shutdown()).await;
}

/// What was behind a worker that dies meanwhile is served all the same.
/// What a role holds is dropped before its worker ends, also where it never had a call, and the manager listens until then.
async fn a_worker_that_leaves_has_last_words(transport: AnyTransport) {
    for role in [&TIDY, &ASYNC_TIDY] {
        for calls in [0, 1] {
            let (heard, words) = mpsc::channel();
            let pool = PoolBuilder::<Vec<u8>, Vec<u8>, _, _>::role(role, transport, Verbatim("bytes"));
            let pool = pool.on_notice(move |_, text| heard.send(text.to_string()).unwrap_or_default());
            let pool = pool.workers(2).start().await.unwrap();
            for _ in 0..calls {
                assert_eq!(pool.query_all(&b"x".to_vec()).await.len(), 2);
            }
            within(pool.shutdown()).await;
            let mut words: Vec<_> = words.try_iter().collect();
            words.sort_unstable();
            assert_eq!(
                words,
                ["locked up", "locked up", "swept", "swept"],
                "{} after {calls} calls",
                pm::Role::name(role)
            );
        }
    }
}

async fn shutdown_survives_a_crash(transport: AnyTransport) {
    for _ in 0..10 {
        let (pool, begun) = listening(jobs(transport).workers(2)).await;
        let scratch = Scratch::new();
        let gate = Gate::new(&scratch);
        let under_way: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
        (0..2).for_each(|_| begun.wait());
        let behind: Vec<_> = (0..20).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
        eventually("all are aboard or queued", || pool.info().load + pool.info().queued == 22).await;
        let victim = pids(&pool)[0];
        let shutdown = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.shutdown_within(None).await })
        };
        drop(refused(&pool).await);
        kill(victim, Kill::KILL);
        gate.open(2);
        let mut lost_one = 0;
        for query in under_way {
            match within(query).await.unwrap() {
                Ok(answer) => assert!(matches!(answer, Said::Number(_))),
                Err(failed) => lost_one += usize::from(lost::<Said>(Err(failed)).pid == victim),
            }
        }
        assert_eq!(lost_one, 1);
        for query in behind {
            assert!(matches!(within(query).await.unwrap(), Ok(Said::Pid(pid)) if pid != victim));
        }
        within(shutdown).await.unwrap();
        assert!(pool.workers().is_empty());
    }
}

async fn shutdown_within_no_time_kills(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(2)).await;
    let before = pids(&pool);
    let under_way: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&Job::Sleep(LONG)))).collect();
    begun.wait();
    begun.wait();
    let queued: Vec<_> = (0..20).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    calls_wait(&pool, 22).await;
    within(pool.shutdown_within(Some(Duration::ZERO))).await;
    for pid in before {
        gone_within(pid, Duration::ZERO);
    }
    for query in under_way {
        assert_eq!(lost(within(query).await.unwrap()).cause, ExitCause::Requested);
    }
    for query in queued {
        let refused = error(within(query).await.unwrap());
        assert_eq!((refused.kind(), refused.maybe_executed()), (QueryErrorKind::ShuttingDown, false));
    }
    assert_eq!(pool.info().crashes, 0);
}

async fn shutdown_of_a_pool_without_workers(transport: AnyTransport) {
    // Never spawned.
    let pool = jobs(transport).workers(0).start().await.unwrap();
    within(pool.shutdown()).await;
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    // Unspawned.
    let pool = jobs(transport).start().await.unwrap();
    within(pool.unspawn()).await.unwrap();
    within(pool.shutdown()).await;
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    // A query that is to start the first worker is one that was taken.
    let pool = jobs(transport).workers(0).start().await.unwrap();
    let mut first: Asked = Box::pin(pool.query(&Job::Pid));
    assert!(poll_once(&mut first).await.is_none());
    within(pool.shutdown()).await;
    assert!(matches!(within(first).await, Ok(Said::Pid(_))));
    // Given up.
    let budget = Budget::every_crash(0, LONG);
    let pool = jobs(transport).budget(budget).start().await.unwrap();
    lost(pool.query(&Job::Exit(1)).await);
    within(pool.shutdown()).await;
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
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

// --- handles

async fn dropping_the_last_handle_kills(transport: AnyTransport) {
    let mark = mark();
    let build = || jobs(transport).workers(3).spec(|spec| spec.env(MARK, &mark));
    // Idle workers, and workers that compute for ever for a caller who has gone.
    let pool = build().start().await.unwrap();
    let before = pids(&pool);
    drop(pool);
    for pid in before {
        gone_within(pid, LIMIT);
    }
    let (pool, begun) = listening(build()).await;
    let before = pids(&pool);
    let mut queries: Vec<Asked> = Vec::new();
    for _ in 0..3 {
        let mut query: Asked = Box::pin(pool.query(&Job::Spin));
        assert!(poll_once(&mut query).await.is_none());
        queries.push(query);
        begun.wait();
    }
    drop(queries);
    drop(pool);
    for pid in before {
        gone_within(pid, LIMIT);
    }
    // One that had only begun to start.
    let mut starting = Box::pin(build().start());
    assert!(poll_fn(|cx| Poll::Ready(starting.as_mut().poll(cx).is_pending())).await);
    drop(starting);
    eventually("nothing is left", || marked(&mark).is_empty()).await;
}

async fn a_clone_or_a_query_keeps_the_workers(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport)).await;
    let pid = pids(&pool)[0];
    let clone = pool.clone();
    drop(pool);
    assert_eq!(clone.query(&Job::Pid).await.unwrap(), Said::Pid(pid));
    let query = tokio::spawn(clone.query(&gate.wait()));
    begun.wait();
    let unpolled = clone.query(&Job::Pid);
    drop(clone);
    gate.open(1);
    assert_eq!(within(query).await.unwrap().unwrap(), Said::Number(1));
    assert_eq!(within(unpolled).await.unwrap(), Said::Pid(pid));
    gone_within(pid, LIMIT);
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

// --- the keeper

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

// --- runtimes

fn two_runtimes_after_another(transport: AnyTransport) {
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        run(async {
            let pool = jobs(transport).workers(2).start().await.unwrap();
            assert!(pids(&pool).into_iter().all(|pid| seen.insert(pid)));
            lost(pool.query(&Job::Exit(1)).await);
            assert!(matches!(within(pool.query(&Job::Pid)).await, Ok(Said::Pid(_))));
            pool.shutdown().await;
        });
        assert!(registry::pools_info().is_empty());
    }
    // A pool belongs to the runtime on which it was started, whoever asks it.
    let (pool, kept) = {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        (runtime.block_on(jobs(transport).start()).unwrap(), runtime)
    };
    run(async { assert!(matches!(within(pool.query(&Job::Pid)).await, Ok(Said::Pid(_)))) });
    drop(kept);
}

fn a_dropped_runtime_leaves_no_process(transport: AnyTransport) {
    let mark = mark();
    for flavour in ["many threads", "one thread"] {
        let runtime = match flavour {
            "many threads" => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
            _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        };
        let runtime = runtime.unwrap();
        let (heard, begun) = mpsc::channel();
        let (pool, under_way) = runtime.block_on(async {
            let builder = jobs(transport).workers(3).spec(|spec| spec.env(MARK, &mark));
            let pool = builder.on_notice(move |_, _| heard.send(()).unwrap_or_default()).start().await.unwrap();
            // One spins, one sleeps, one has nothing to do; another call waits behind.
            let mut under_way: Vec<Asked> =
                vec![Box::pin(pool.query(&Job::Spin)), Box::pin(pool.query(&Job::Sleep(LONG)))];
            for query in &mut under_way {
                while let Err(mpsc::TryRecvError::Empty) = begun.try_recv() {
                    assert!(poll_once(query).await.is_none());
                    tokio::task::yield_now().await;
                }
            }
            (pool, under_way)
        });
        let before = pids(&pool);
        assert_eq!((before.len(), marked(&mark).len()), (3, 3));
        drop(runtime);
        for pid in before {
            gone_within(pid, LIMIT);
        }
        assert!(marked(&mark).is_empty());
        // The handle outlived its runtime: what it had resolves, and it takes no more.
        run(async {
            for query in under_way {
                assert_eq!(lost(within(query).await).cause, ExitCause::Requested);
            }
            assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::ShuttingDown);
            assert!(within(pool.scale(1)).await.is_err());
            within(pool.shutdown()).await;
            assert!(within(jobs(transport).start()).await.is_ok(), "others start all the same");
        });
    }
}
