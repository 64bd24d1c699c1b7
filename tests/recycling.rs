//! Workers that are replaced while they are well. Row Q16.

use std::collections::BTreeSet;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Event, ExitCause, QueryErrorKind, Recycle, RecycleReason, StartError, StreamManager, WorkerId,
};
use rustix::process::Signal as Kill;
use tokio::sync::broadcast;

use crate::lifecycle::Load;
use crate::query::listening;
use crate::raw::{DESK, Order, Report};
use crate::roles::{EARLY, Job, Said};
use crate::streams::{Heard, Say, TALK};
use crate::support::{
    Gate, LIMIT, LONG, MARK, Scratch, calls_wait, contains, error, event, eventually, gone_within, jobs, kill, lost,
    mark, marked, over_all, pids, pool_of, within,
};

pub fn tests() -> Vec<Trial> {
    [
        over_all("recycling::after_so_many_calls", after_so_many_calls),
        over_all("recycling::at_an_age", at_an_age),
        over_all("recycling::on_a_schedule", on_a_schedule),
        over_all("recycling::one_that_has_grown", one_that_has_grown),
        over_all("recycling::calls_aboard_are_finished", calls_aboard_are_finished),
        over_all("recycling::streams_stay_where_they_are", streams_stay_where_they_are),
        over_all("recycling::loads_stay_where_they_are", loads_stay_where_they_are),
        over_all("recycling::the_drain_has_a_limit", the_drain_has_a_limit),
        over_all("recycling::a_new_one_that_cannot_start", a_new_one_that_cannot_start),
        over_all("recycling::with_everything_else", with_everything_else),
        over_all("recycling::a_shutdown_ends_it", a_shutdown_ends_it),
        over_all("recycling::settings_that_make_no_sense", settings_that_make_no_sense),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Waits for the next replacement, and says who was replaced, and why.
async fn recycled(events: &mut broadcast::Receiver<Event>) -> (WorkerId, RecycleReason) {
    let recycled = event(events, |event| match event {
        Event::Recycled { worker, reason, .. } => Some((*worker, *reason)),
        _ => None,
    });
    recycled.await
}

/// Under a load, so many are replaced for this reason, none of them twice; no query is lost, nobody else is left, and nothing was a crash.
async fn under_load(transport: AnyTransport, settings: Recycle, reason: RecycleReason, count: usize) {
    let mark = mark();
    let budget = Budget::crash_loops(0, LONG);
    let builder = jobs(transport).workers(2).recycle(settings).budget(budget).spec(|spec| spec.env(MARK, &mark));
    let pool = builder.start().await.unwrap();
    let mut events = pool.events();
    let load = Load::on(&pool, 8);
    let mut replaced = BTreeSet::new();
    while replaced.len() < count {
        let (worker, why) = recycled(&mut events).await;
        assert_eq!(why, reason);
        assert!(replaced.insert(worker), "{worker} twice");
        assert!(pool.workers().len() >= 2, "the capacity stays what it is");
        assert!(marked(&mark).len() <= 4, "two, one that comes and one that goes");
    }
    assert!(load.stop().await > 0);
    let info = pool.info();
    assert_eq!((info.crashes, info.load, info.queued), (0, 0, 0));
    within(pool.shutdown()).await;
    eventually("nobody is left", || marked(&mark).is_empty()).await;
}

async fn after_so_many_calls(transport: AnyTransport) {
    under_load(transport, Recycle::new().after_calls(40), RecycleReason::Calls, 6).await;
    // Not before: each has had its calls.
    let pool = jobs(transport).recycle(Recycle::new().after_calls(5)).start().await.unwrap();
    let mut events = pool.events();
    let old = pids(&pool)[0];
    for _ in 0..5 {
        assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(old));
    }
    assert_eq!(recycled(&mut events).await, (WorkerId(1), RecycleReason::Calls));
    gone_within(old, LIMIT);
}

async fn at_an_age(transport: AnyTransport) {
    under_load(transport, Recycle::new().after_age(Duration::from_millis(200)), RecycleReason::Age, 4).await;
}

async fn on_a_schedule(transport: AnyTransport) {
    under_load(transport, Recycle::new().every(Duration::from_millis(200)), RecycleReason::Schedule, 4).await;
}

async fn one_that_has_grown(transport: AnyTransport) {
    let settings = Recycle::new().above_rss(160 << 20).sample_every(Duration::from_millis(10));
    let pool = jobs(transport).workers(2).recycle(settings).start().await.unwrap();
    let mut events = pool.events();
    let [small, large] = pool.workers().try_into().unwrap();
    assert_eq!(pool.query_on(large.id, &Job::Leak(200 << 20)).await.unwrap(), Said::Done);
    assert_eq!(recycled(&mut events).await, (large.id, RecycleReason::Memory));
    gone_within(large.pid, LIMIT);
    let now = pids(&pool);
    assert!(now.len() == 2 && now.contains(&small.pid), "{now:?}");
}

async fn calls_aboard_are_finished(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport)).await;
    let old = pids(&pool)[0];
    let under_way = tokio::spawn(pool.query(&gate.wait()));
    begun.wait();
    let behind: Vec<_> = (0..20).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    calls_wait(&pool, 21).await;
    let recycling = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.recycle().await })
    };
    for query in behind {
        assert!(matches!(within(query).await.unwrap(), Ok(Said::Pid(pid)) if pid != old), "they go to the new one");
    }
    // The pool may be told other things meanwhile, and nobody waits for the old one.
    within(pool.scale(2)).await.unwrap();
    assert!(!under_way.is_finished() && !recycling.is_finished());
    assert_eq!(pool.info().workers.releasing, 1);
    gate.open(1);
    assert_eq!(within(under_way).await.unwrap().unwrap(), Said::Number(1));
    within(recycling).await.unwrap().unwrap();
    gone_within(old, LIMIT);
    assert_eq!(pids(&pool).len(), 2);
}

async fn streams_stay_where_they_are(transport: AnyTransport) {
    let pool: StreamManager<Say, Heard> = pool_of(&TALK, transport).streams().start().await.unwrap();
    let old = pids(&pool)[0];
    let mut open = within(pool.create_stream()).await.unwrap();
    open.write(&Say::Pid).await.unwrap();
    assert_eq!(within(open.next()).await.unwrap().unwrap(), Heard::Number(old.into()));
    let recycling = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.recycle().await })
    };
    eventually("another one serves", || pids(&pool).iter().all(|pid| *pid != old) && !pids(&pool).is_empty()).await;
    let mut new = within(pool.create_stream()).await.unwrap();
    for (stream, is_old) in [(&mut open, true), (&mut new, false)] {
        stream.write(&Say::Pid).await.unwrap();
        let Some(Ok(Heard::Number(pid))) = within(stream.next()).await else { panic!() };
        assert_eq!(pid == u64::from(old), is_old);
    }
    assert!(!recycling.is_finished());
    within(open.close()).await.unwrap();
    within(recycling).await.unwrap().unwrap();
    gone_within(old, LIMIT);
    within(new.close()).await.unwrap();
}

async fn loads_stay_where_they_are(transport: AnyTransport) {
    let pool = pool_of::<Order, Report>(&DESK, transport).raw().start().await.unwrap();
    let old = pool.raw_workers().remove(0);
    old.set_load(1);
    let recycling = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.recycle().await })
    };
    eventually("it is to leave", || old.is_leaving()).await;
    assert!(pool.raw_workers().iter().any(|worker| worker.pid() != old.pid()), "another one serves before");
    assert!(!recycling.is_finished());
    old.set_load(0);
    within(recycling).await.unwrap().unwrap();
    assert_eq!(within(old.ended()).await, ExitCause::Requested);
}

async fn the_drain_has_a_limit(transport: AnyTransport) {
    let settings = Recycle::new().drain(Duration::from_millis(100));
    let (pool, begun) = listening(jobs(transport).recycle(settings)).await;
    let old = pids(&pool)[0];
    let stuck = tokio::spawn(pool.query(&Job::Sleep(LONG)));
    begun.wait();
    within(pool.recycle()).await.unwrap();
    let died = lost(within(stuck).await.unwrap());
    assert_eq!((died.pid, died.cause), (old, ExitCause::Requested));
    gone_within(old, LIMIT);
    assert_eq!((pids(&pool).len(), pool.info().crashes), (1, 0));
}

async fn a_new_one_that_cannot_start(transport: AnyTransport) {
    let scratch = Scratch::new();
    let token = scratch.path("token");
    std::fs::write(&token, "").unwrap();
    let early = format!("exit@{}", token.display());
    let settings = Recycle::new().backoff(Duration::from_millis(20), Duration::from_millis(50));
    let builder = jobs(transport).recycle(settings).budget(Budget::crash_loops(0, LONG));
    let pool = builder.spec(|spec| spec.env(EARLY, early)).start().await.unwrap();
    let mut events = pool.events();
    let before = pids(&pool);
    std::fs::remove_file(&token).unwrap();
    let failed = within(pool.recycle()).await.unwrap_err();
    assert!(matches!(failed, StartError::Died { .. }), "{failed:?}");
    let died = event(&mut events, |event| match event {
        Event::Crashed { worker, will_restart, .. } => Some((*worker, *will_restart)),
        _ => None,
    });
    assert_eq!(died.await, (WorkerId(2), false));
    // The token is taken: the next one comes up. Until it does, the old one serves.
    let answer = pool.query(&Job::Pid).await.unwrap();
    assert!(matches!(answer, Said::Pid(pid) if pid == before[0] || pids(&pool) == [pid]), "{answer:?}");
    assert_eq!(recycled(&mut events).await, (WorkerId(1), RecycleReason::Requested));
    gone_within(before[0], LIMIT);
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(pid)) if pid != before[0]));
}

async fn with_everything_else(transport: AnyTransport) {
    let settings = Recycle::new().after_calls(60).after_age(Duration::from_millis(300));
    let pool = jobs(transport).workers(2).recycle(settings).start().await.unwrap();
    let load = Load::on(&pool, 8);
    for n in 0..6 {
        let recycling = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.recycle().await })
        };
        match n % 3 {
            0 => within(pool.scale(3)).await.unwrap(),
            1 => within(pool.respawn()).await.unwrap(),
            _ => within(pool.scale(1)).await.unwrap(),
        }
        within(recycling).await.unwrap().unwrap();
    }
    assert!(load.stop().await > 0);
    assert_eq!((pids(&pool).len(), pool.info().crashes), (1, 0));
    // A crash in the middle of it costs what it always does. It comes in whatever state the pool is.
    for _ in 0..5 {
        let recycling = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.recycle().await })
        };
        for pid in pids(&pool) {
            kill(pid, Kill::KILL);
        }
        // A successor that was killed is a failure, and another one follows.
        drop(within(recycling).await.unwrap());
        assert!(matches!(within(pool.query(&Job::Pid)).await, Ok(Said::Pid(_))));
    }
}

async fn a_shutdown_ends_it(transport: AnyTransport) {
    let mark = mark();
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(2).spec(|spec| spec.env(MARK, &mark))).await;
    let mut events = pool.events();
    let under_way: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
    begun.wait();
    begun.wait();
    let recycling = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.recycle().await })
    };
    recycled(&mut events).await;
    let shut = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.shutdown().await })
    };
    drop(crate::support::refused(&pool).await);
    gate.open(2);
    for query in under_way {
        assert_eq!(within(query).await.unwrap().unwrap(), Said::Number(1));
    }
    within(shut).await.unwrap();
    // It may have been done just before.
    drop(within(recycling).await.unwrap());
    eventually("nobody is left", || marked(&mark).is_empty()).await;
    assert!(matches!(pool.recycle().await, Err(StartError::ShuttingDown)));
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    // With nobody there is nobody to replace.
    let pool = jobs(transport).workers(0).start().await.unwrap();
    within(pool.recycle()).await.unwrap();
}

async fn settings_that_make_no_sense(transport: AnyTransport) {
    let failed = jobs(transport).recycle(Recycle::new().after_calls(0)).start().await.unwrap_err();
    contains(failed.to_string(), "recycling after calls: 0");
    assert!(matches!(failed, StartError::Recycle(_)));
}
