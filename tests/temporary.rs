//! Temporary workers, and workers without a pool. Rows Q4, Q18.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Event, ExitCause, ExitStatus, QueryError, QueryErrorKind};
use rustix::process::Signal as Kill;

use crate::roles::{EARLY, Job, Said};
use crate::support::{
    LIMIT, LONG, MARK, Scratch, error, event, eventually, gone_within, jobs, kill, lost, mark, marked, over_all, pids,
    within,
};

pub fn tests() -> Vec<Trial> {
    [
        over_all("temporary::a_temporary_worker_serves_once", a_temporary_worker_serves_once),
        over_all("temporary::a_temporary_worker_has_the_same_errors", a_temporary_worker_has_the_same_errors),
        over_all("temporary::a_dropped_temporary_query_leaves_nothing", a_dropped_temporary_query_leaves_nothing),
        over_all("temporary::a_worker_without_a_pool", a_worker_without_a_pool),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn a_temporary_worker_serves_once(transport: AnyTransport) {
    let mark = mark();
    let pool = jobs(transport).workers(1).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let own = pids(&pool);
    let mut seen = BTreeSet::new();
    for n in 0..6 {
        let answer = if n % 2 == 0 {
            pool.query_temporary(&Job::Pid).await
        } else {
            pool.query_temporary_forced(&Job::Pid).await
        };
        let Said::Pid(pid) = answer.unwrap() else { panic!() };
        assert!(pid != std::process::id() && !own.contains(&pid) && seen.insert(pid));
        gone_within(pid, Duration::ZERO);
        assert_eq!(pids(&pool), own);
    }
    eventually("only the pool's own is there", || marked(&mark) == own).await;
    // Many at the same time, beside a pool that has nobody.
    within(pool.unspawn()).await.unwrap();
    let all: Vec<_> = (0..6)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.query_temporary(&Job::Pid).await })
        })
        .collect();
    for query in all {
        let Said::Pid(pid) = within(query).await.unwrap().unwrap() else { panic!() };
        assert!(seen.insert(pid));
    }
    assert!(pool.workers().is_empty());
}

async fn a_temporary_worker_has_the_same_errors(transport: AnyTransport) {
    let mark = mark();
    let grace = Duration::from_millis(50);
    let limit = Duration::from_secs(2);
    let builder = jobs(transport).workers(0).timeout(limit).cancel_grace(grace).describe(|_| "it".into());
    let pool = builder.spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let QueryError::Handler(failed) = error(pool.query_temporary(&Job::Fail("rain".into())).await) else { panic!() };
    assert_eq!(failed.message, "unhappy about rain");
    let died = lost(pool.query_temporary(&Job::Both(Job::Print("alas".into()).into(), Job::Exit(6).into())).await);
    assert_eq!((died.cause, died.tries), (ExitCause::Exited(ExitStatus::Code(6)), 1));
    assert!(died.stderr.contains("alas"), "{:?}", died.stderr);
    let late = error(within(pool.query_temporary(&Job::Sleep(LONG))).await);
    assert!(matches!(late, QueryError::TimedOut { limit: had, worker: Some(_), tries: 1 } if had == limit), "{late:?}");
    eventually("nothing is left", || marked(&mark).is_empty()).await;
    // One that does not come up.
    let pool = jobs(transport).workers(0).spec(|spec| spec.env(EARLY, "complain")).start().await.unwrap();
    let failed = error(within(pool.query_temporary(&Job::Pid)).await);
    let QueryError::GaveUp { cause: ExitCause::NotStarted { reason }, .. } = &failed else { panic!("{failed:?}") };
    assert!(reason.contains("cannot find the configuration"), "{reason}");
    assert!(!failed.maybe_executed());
}

async fn a_dropped_temporary_query_leaves_nothing(transport: AnyTransport) {
    let scratch = Scratch::new();
    let file = scratch.path("begun");
    let mark = mark();
    let pool = jobs(transport).workers(0).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let query = {
        let (pool, job) = (pool.clone(), Job::Count(file.clone(), Job::Spin.into()));
        tokio::spawn(async move { pool.query_temporary(&job).await })
    };
    eventually("it has begun", || file.exists()).await;
    assert_eq!(marked(&mark).len(), 1);
    query.abort();
    eventually("nothing is left", || marked(&mark).is_empty()).await;
    // Before the worker is ready as well.
    let mut query = Box::pin(pool.query_temporary(&Job::Pid));
    assert!(poll_fn(|cx| Poll::Ready(query.as_mut().poll(cx).is_pending())).await);
    drop(query);
    eventually("nothing is left", || marked(&mark).is_empty()).await;
}

async fn a_worker_without_a_pool(transport: AnyTransport) {
    let worker = jobs(transport).workers(7).start_worker().await.unwrap();
    let info = worker.info().unwrap();
    assert_eq!(info.load, 0);
    for _ in 0..3 {
        assert_eq!(worker.query(&Job::Pid).await.unwrap(), Said::Pid(info.pid));
    }
    assert_eq!(error(worker.query(&Job::Fail("rain".into())).await).kind(), QueryErrorKind::Handler);
    worker.release().await;
    gone_within(info.pid, Duration::ZERO);
    assert_eq!(worker.info(), None);
    assert_eq!(error(worker.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    // One that is killed while idle is not replaced.
    let worker = jobs(transport).start_worker().await.unwrap();
    let clone = worker.clone();
    let mut events = worker.events();
    drop(worker);
    let pid = clone.info().unwrap().pid;
    kill(pid, Kill::KILL);
    let killed = ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false });
    let crashed = event(&mut events, |event| match event {
        Event::Crashed { cause, will_restart, .. } => Some((cause.clone(), *will_restart)),
        _ => None,
    });
    assert_eq!(crashed.await, (killed.clone(), false));
    event(&mut events, |event| matches!(event, Event::GaveUp { .. }).then_some(())).await;
    assert!(matches!(error(clone.query(&Job::Pid).await), QueryError::GaveUp { cause, .. } if cause == killed));
    assert_eq!(clone.info(), None);
    // Nor one that dies of its query.
    let worker = jobs(transport).start_worker().await.unwrap();
    let died = lost(worker.query(&Job::Exit(4)).await);
    let gave_up = error(within(worker.query(&Job::Pid)).await);
    assert!(matches!(&gave_up, QueryError::GaveUp { cause, .. } if *cause == died.cause), "{gave_up:?}");
    // Nor one that pm had to kill.
    let builder = jobs(transport).timeout(Duration::from_millis(50)).cancel_grace(Duration::from_millis(10));
    let worker = builder.start_worker().await.unwrap();
    let mut events = worker.events();
    assert_eq!(error(worker.query(&Job::Spin).await).kind(), QueryErrorKind::TimedOut);
    event(&mut events, |event| matches!(event, Event::GaveUp { .. }).then_some(())).await;
    let gave_up = error(within(worker.query(&Job::Pid)).await);
    assert!(matches!(&gave_up, QueryError::GaveUp { cause: ExitCause::Stuck { .. }, .. }), "{gave_up:?}");
    // Without a handle it is killed.
    let worker = jobs(transport).start_worker().await.unwrap();
    let pid = worker.info().unwrap().pid;
    drop(worker);
    gone_within(pid, LIMIT);
}
