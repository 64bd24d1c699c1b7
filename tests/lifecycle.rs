//! The life of a pool and its workers: more of them and fewer, others in their place, and every sort of end. Rows Q2, Q4, Q8, Q12, Q13, Q23.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Event, ExitCause, ExitStatus, Incarnation, QueryError, QueryErrorKind, QueryOptions, Signal,
    StartError, WorkerId, registry, spawning,
};
use rustix::process::Signal as Kill;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::query::listening;
use crate::roles::{EARLY, Job, Said};
use crate::support::{
    Gate, LIMIT, MARK, Pool, Scratch, TRANSPORTS, again, alone, both, both_alone, error, event, eventually,
    gone_within, jobs, kill, lost, mark, marked, pids, replaced, run, within,
};

const LONG: Duration = Duration::from_secs(1000);

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = [
        both("lifecycle::scale_up_and_down", scale_up_and_down),
        both("lifecycle::the_idlest_are_drained", the_idlest_are_drained),
        both("lifecycle::one_more_and_one_less", one_more_and_one_less),
        both("lifecycle::unspawned_pools_refuse_until_they_are_scaled", unspawned_pools_refuse_until_they_are_scaled),
        both("lifecycle::the_first_query_starts_a_worker", the_first_query_starts_a_worker),
        both("lifecycle::respawns_lose_no_query", respawns_lose_no_query),
        both("lifecycle::changes_of_size_lose_no_query", changes_of_size_lose_no_query),
        both("lifecycle::a_respawn_waits_for_what_is_under_way", a_respawn_waits_for_what_is_under_way),
        both("lifecycle::the_drain_deadline_kills", the_drain_deadline_kills),
        both(
            "lifecycle::a_respawn_that_cannot_start_leaves_the_old_ones",
            a_respawn_that_cannot_start_leaves_the_old_ones,
        ),
        both("lifecycle::shutdown_serves_what_is_queued", shutdown_serves_what_is_queued),
        both("lifecycle::shutdown_within_no_time_kills", shutdown_within_no_time_kills),
        both("lifecycle::shutdown_of_a_pool_without_workers", shutdown_of_a_pool_without_workers),
        both("lifecycle::dropping_the_last_handle_kills", dropping_the_last_handle_kills),
        both("lifecycle::a_clone_or_a_query_keeps_the_workers", a_clone_or_a_query_keeps_the_workers),
        both("lifecycle::a_temporary_worker_serves_once", a_temporary_worker_serves_once),
        both("lifecycle::a_temporary_worker_has_the_same_errors", a_temporary_worker_has_the_same_errors),
        both("lifecycle::a_dropped_temporary_query_leaves_nothing", a_dropped_temporary_query_leaves_nothing),
        both("lifecycle::a_worker_without_a_pool", a_worker_without_a_pool),
        both("lifecycle::events_come_in_order", events_come_in_order),
        both("lifecycle::revived", revived),
        both("lifecycle::survivors_of_a_pool_that_gave_up", survivors_of_a_pool_that_gave_up),
        both_alone("lifecycle::the_registry_knows_every_pool", the_registry_knows_every_pool),
        both_alone("lifecycle::shutdown_on_the_first_signal", shutdown_on_the_first_signal),
        both_alone("lifecycle::the_second_signal_kills", the_second_signal_kills),
        both_alone("lifecycle::spawning_disabled", spawning_disabled),
    ]
    .into_iter()
    .flatten()
    .collect();
    tests.push(in_process_by_the_environment());
    for transport in TRANSPORTS {
        tests.push(alone(format!("lifecycle::two_runtimes_after_another::{transport}"), move || {
            two_runtimes_after_another(transport);
            Ok(())
        }));
        tests.push(alone(format!("lifecycle::a_dropped_runtime_leaves_no_process::{transport}"), move || {
            a_dropped_runtime_leaves_no_process(transport);
            Ok(())
        }));
    }
    tests
}

// --- how many

async fn scale_up_and_down(transport: AnyTransport) {
    let mark = mark();
    let pool = jobs(transport).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let first = pids(&pool)[0];
    for workers in [4_usize, 2, 2, 5, 1] {
        let before: BTreeSet<_> = pids(&pool).into_iter().collect();
        within(pool.scale(workers as u32)).await.unwrap();
        let now: BTreeSet<_> = pids(&pool).into_iter().collect();
        assert_eq!(now.len(), workers);
        assert!(now.is_subset(&before) || before.is_subset(&now), "{before:?} became {now:?}");
        let counts = pool.info().workers;
        assert_eq!((counts.active, counts.releasing, counts.crashed), (workers, 0, 0));
        // Nobody whom the pool does not know is left, once the kernel has taken the last one away.
        eventually("the others are gone", || marked(&mark).into_iter().collect::<BTreeSet<_>>() == now).await;
        assert_eq!(pool.query_all(&Job::Pid).await.len(), workers);
    }
    assert_eq!(pids(&pool), [first], "among idle ones the youngest go");
    let too_many = pool.scale(5000).await.unwrap_err();
    assert!(matches!(too_many, StartError::Setting { setting: "workers", .. }), "{too_many:?}");
    assert_eq!(pids(&pool), [first]);
}

async fn the_idlest_are_drained(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(3)).await;
    let [busy, idle, busier] = pool.workers().try_into().unwrap();
    let named = |worker: WorkerId, job: Job| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.query_on(worker, &job).await })
    };
    let mut under_way = vec![(busy.pid, named(busy.id, gate.wait())), (busier.pid, named(busier.id, gate.wait()))];
    begun.wait();
    begun.wait();
    let behind = named(busier.id, Job::Pid);
    eventually("it has two", || pool.info().load == 3).await;
    within(pool.scale(2)).await.unwrap();
    assert_eq!(pids(&pool), [busy.pid, busier.pid]);
    gone_within(idle.pid, LIMIT);
    let mut events = pool.events();
    let scaled = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.scale(1).await })
    };
    let drains = event(&mut events, |event| match event {
        Event::Draining { worker, .. } => Some(*worker),
        _ => None,
    });
    assert_eq!(drains.await, busy.id, "it has less to do");
    eventually("it serves no more", || pids(&pool) == [busier.pid]).await;
    assert_eq!(pool.info().workers.releasing, 1);
    assert!(!scaled.is_finished(), "its query is under way");
    // What it has, it finishes.
    gate.open(2);
    for (_, query) in under_way.drain(..) {
        assert_eq!(query.await.unwrap().unwrap(), Said::Number(1));
    }
    assert_eq!(behind.await.unwrap().unwrap(), Said::Pid(busier.pid));
    within(scaled).await.unwrap().unwrap();
    gone_within(busy.pid, LIMIT);
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(busier.pid));
}

async fn one_more_and_one_less(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport)).await;
    within(pool.spawn_one()).await.unwrap();
    within(pool.spawn_one()).await.unwrap();
    let workers = pool.workers();
    assert_eq!(workers.iter().map(|worker| worker.id.0).collect::<Vec<_>>(), [1, 2, 3]);
    within(pool.unspawn_one(workers[1].id)).await.unwrap();
    assert_eq!(pids(&pool), [workers[0].pid, workers[2].pid]);
    gone_within(workers[1].pid, LIMIT);
    within(pool.unspawn_one(workers[1].id)).await.unwrap();
    assert_eq!(pids(&pool).len(), 2, "nobody goes in the place of one that has gone");
    // A busy one finishes what it has.
    let busy = {
        let (pool, job) = (pool.clone(), gate.wait());
        tokio::spawn(async move { pool.query_on(WorkerId(1), &job).await })
    };
    begun.wait();
    let less = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.unspawn_one(WorkerId(1)).await })
    };
    eventually("it serves no more", || pids(&pool) == [workers[2].pid]).await;
    assert!(!busy.is_finished() && !less.is_finished());
    gate.open(1);
    assert_eq!(busy.await.unwrap().unwrap(), Said::Number(1));
    within(less).await.unwrap().unwrap();
    // Without the last one there is nobody to serve.
    within(pool.unspawn_one(workers[2].id)).await.unwrap();
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::NoWorkers);
    within(pool.spawn_one()).await.unwrap();
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
}

async fn unspawned_pools_refuse_until_they_are_scaled(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(2)).await;
    let before = pids(&pool);
    let under_way: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
    begun.wait();
    begun.wait();
    let unspawned = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.unspawn().await })
    };
    eventually("nobody serves", || pool.workers().is_empty()).await;
    let refused = error(within(pool.query(&Job::Pid)).await);
    assert_eq!((refused.kind(), refused.maybe_executed()), (QueryErrorKind::NoWorkers, false));
    assert_eq!(pool.info().workers.releasing, 2);
    gate.open(2);
    for query in under_way {
        assert_eq!(query.await.unwrap().unwrap(), Said::Number(1));
    }
    within(unspawned).await.unwrap().unwrap();
    for pid in &before {
        gone_within(*pid, LIMIT);
    }
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::NoWorkers);
    assert!(pool.query_all(&Job::Pid).await.is_empty());
    assert_eq!(pool.acquire(), None);
    within(pool.respawn()).await.unwrap();
    assert!(pool.workers().is_empty(), "as many as there were: none");
    within(pool.scale(2)).await.unwrap();
    assert_eq!(pool.query_all(&Job::Pid).await.len(), 2);
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(pid)) if !before.contains(&pid)));
    // No workers is what `unspawn` is.
    within(pool.scale(0)).await.unwrap();
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::NoWorkers);
}

async fn the_first_query_starts_a_worker(transport: AnyTransport) {
    let mark = mark();
    let pool = jobs(transport).workers(0).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let mut events = pool.events();
    assert!(pool.workers().is_empty() && marked(&mark).is_empty());
    let queries: Vec<_> = (0..50).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    let mut served = BTreeSet::new();
    for query in queries {
        let Said::Pid(pid) = within(query).await.unwrap().unwrap() else { panic!() };
        served.insert(pid);
    }
    assert_eq!(served.into_iter().collect::<Vec<_>>(), pids(&pool), "one for all of them");
    assert!(matches!(events.recv().await, Ok(Event::Spawned { .. })));
    assert!(matches!(events.recv().await, Ok(Event::Ready { .. })));
    assert!(events.try_recv().is_err(), "and no other one");
}

// --- others in their place

async fn respawns_lose_no_query(transport: AnyTransport) {
    let respawns = if std::env::var_os("PM_SOAK").is_some() { 1000 } else { 50 };
    let mark = mark();
    let pool = jobs(transport).workers(2).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let load = Load::on(&pool, 8);
    for n in 0..respawns {
        let before = pids(&pool);
        let workers = if n % 5 == 4 { 1 + n / 5 % 3 } else { before.len() };
        if workers == before.len() {
            within(pool.respawn()).await.unwrap();
        } else {
            within(pool.respawn_with(workers as u32, None)).await.unwrap();
        }
        let after = pids(&pool);
        assert_eq!(after.len(), workers, "respawn {n}");
        assert!(after.iter().all(|pid| !before.contains(pid)), "respawn {n}: {before:?} became {after:?}");
        for pid in before {
            gone_within(pid, LIMIT);
        }
    }
    assert!(load.stop().await >= respawns, "there was a load");
    let info = pool.info();
    assert_eq!((info.crashes, info.load, info.queued), (0, 0, 0));
    eventually("only the last ones are there", || marked(&mark).len() == pids(&pool).len()).await;
}

async fn changes_of_size_lose_no_query(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).start().await.unwrap();
    let load = Load::on(&pool, 8);
    for n in 0..12 {
        within(pool.scale([4, 1, 3, 2][n % 4])).await.unwrap();
        within(pool.spawn_one()).await.unwrap();
        within(pool.unspawn_one(pool.workers()[0].id)).await.unwrap();
        assert_eq!(pids(&pool).len(), [4, 1, 3, 2][n % 4] as usize);
    }
    // Several changes at the same time: each is answered, and the last one counts.
    let all: Vec<_> = (1..=4)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move { if n % 2 == 0 { pool.respawn().await } else { pool.scale(n).await } })
        })
        .collect();
    for change in all {
        within(change).await.unwrap().unwrap();
    }
    within(pool.scale(2)).await.unwrap();
    assert_eq!(pids(&pool).len(), 2);
    assert!(load.stop().await > 0);
    assert_eq!(pool.info().crashes, 0);
}

async fn a_respawn_waits_for_what_is_under_way(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(1)).await;
    let old = pids(&pool)[0];
    let under_way = tokio::spawn(pool.query(&gate.wait()));
    begun.wait();
    let behind: Vec<_> = (0..20).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    eventually("they wait", || pool.info().load + pool.info().queued == 21).await;
    let respawned = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.respawn().await })
    };
    eventually("another one serves", || pids(&pool).iter().any(|pid| *pid != old)).await;
    assert!(matches!(within(pool.query(&Job::Pid)).await, Ok(Said::Pid(pid)) if pid != old), "it serves at once");
    assert!(!under_way.is_finished() && !respawned.is_finished());
    gate.open(1);
    assert_eq!(under_way.await.unwrap().unwrap(), Said::Number(1));
    for query in behind {
        assert!(matches!(within(query).await.unwrap(), Ok(Said::Pid(_))));
    }
    within(respawned).await.unwrap().unwrap();
    gone_within(old, LIMIT);
}

async fn the_drain_deadline_kills(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(1)).await;
    let mut events = pool.events();
    let old = pool.workers()[0].clone();
    let stuck = tokio::spawn(pool.query(&Job::Sleep(LONG)));
    begun.wait();
    within(pool.respawn_with(2, Some(Duration::from_millis(100)))).await.unwrap();
    let died = lost(within(stuck).await.unwrap());
    assert_eq!((died.pid, died.cause), (old.pid, ExitCause::Requested));
    gone_within(old.pid, LIMIT);
    let gone = event(&mut events, |event| match event {
        Event::Gone { worker, incarnation } => Some((*worker, *incarnation)),
        _ => None,
    });
    assert_eq!(gone.await, (old.id, old.incarnation));
    assert_eq!((pids(&pool).len(), pool.info().crashes), (2, 0));
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
}

async fn a_respawn_that_cannot_start_leaves_the_old_ones(transport: AnyTransport) {
    let scratch = Scratch::new();
    let token = scratch.path("token");
    std::fs::write(&token, "").unwrap();
    let early = format!("exit@{}", token.display());
    let budget = Budget::crash_loops(0, LONG);
    let pool = jobs(transport).budget(budget).spec(|spec| spec.env(EARLY, early)).start().await.unwrap();
    let before = pids(&pool);
    std::fs::remove_file(&token).unwrap();
    let failed = within(pool.respawn()).await.unwrap_err();
    let StartError::Died { cause, .. } = &failed else { panic!("{failed:?}") };
    assert_eq!(*cause, ExitCause::Exited(ExitStatus::Code(7)));
    assert_eq!(pids(&pool), before);
    // The token is taken again: the next ones come up.
    within(pool.revive()).await.unwrap();
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(pid)) if !before.contains(&pid)));
    gone_within(before[0], LIMIT);
}

// --- ends

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

async fn shutdown_within_no_time_kills(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(2)).await;
    let before = pids(&pool);
    let under_way: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&Job::Sleep(LONG)))).collect();
    begun.wait();
    begun.wait();
    let queued: Vec<_> = (0..20).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    eventually("they wait", || pool.info().load + pool.info().queued == 22).await;
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

// --- temporary workers, and workers without a pool

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
    // Without a handle it is killed.
    let worker = jobs(transport).start_worker().await.unwrap();
    let pid = worker.info().unwrap().pid;
    drop(worker);
    gone_within(pid, LIMIT);
}

// --- what is told

async fn events_come_in_order(transport: AnyTransport) {
    let pool = jobs(transport).workers(0).start().await.unwrap();
    let mut events = pool.events();
    within(pool.scale(1)).await.unwrap();
    let first = pids(&pool)[0];
    pool.query(&Job::Pid).await.unwrap();
    let died = lost(pool.query(&Job::Both(Job::Notice("I feel ill".into()).into(), Job::Exit(5).into())).await);
    assert_eq!(died.pid, first);
    let Said::Pid(second) = within(pool.query(&Job::Pid)).await.unwrap() else { panic!() };
    within(pool.unspawn()).await.unwrap();
    within(pool.shutdown()).await;
    let (worker, one, two) = (WorkerId(1), Incarnation(1), Incarnation(2));
    let crashed = Event::Crashed {
        worker,
        incarnation: one,
        pid: Some(first),
        cause: ExitCause::Exited(ExitStatus::Code(5)),
        load: 1,
        last_notice: Some("I feel ill".into()),
        will_restart: true,
    };
    let expected = [
        Event::Spawned { worker, incarnation: one, pid: first },
        Event::Ready { worker, incarnation: one, pid: first },
        crashed,
        Event::Spawned { worker, incarnation: two, pid: second },
        Event::Replaced { worker, incarnation: two, pid: second },
        Event::Draining { worker, incarnation: two },
        Event::Gone { worker, incarnation: two },
    ];
    assert_eq!(told(&mut events), expected);
    // A respawn: the old one drains when the new one serves.
    let pool = jobs(transport).start().await.unwrap();
    let mut events = pool.events();
    within(pool.respawn()).await.unwrap();
    let pid = pids(&pool)[0];
    let (old, new) = (WorkerId(1), WorkerId(2));
    let expected = [
        Event::Spawned { worker: new, incarnation: one, pid },
        Event::Ready { worker: new, incarnation: one, pid },
        Event::Draining { worker: old, incarnation: one },
        Event::Gone { worker: old, incarnation: one },
    ];
    assert_eq!(told(&mut events), expected);
    // Nobody is told of a worker that died by the last handle's end but that it is gone.
    drop(pool);
    let gone = within(events.recv()).await.unwrap();
    assert_eq!(gone, Event::Gone { worker: new, incarnation: one });
    assert!(matches!(within(events.recv()).await, Err(broadcast::error::RecvError::Closed)));
}

async fn revived(transport: AnyTransport) {
    let scratch = Scratch::new();
    let token = scratch.path("token");
    let early = format!("exit@{}", token.display());
    std::fs::write(&token, "").unwrap();
    let budget = Budget::crash_loops(1, LONG).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let pool = jobs(transport).workers(1).budget(budget).spec(|spec| spec.env(EARLY, early)).start().await.unwrap();
    for round in 0..3 {
        let mut events = pool.events();
        kill(pids(&pool)[0], Kill::KILL);
        replaced(&mut events).await;
        kill(pids(&pool)[0], Kill::KILL);
        let crashes = event(&mut events, |event| match event {
            Event::GaveUp { crashes, .. } => Some(*crashes),
            _ => None,
        });
        assert_eq!(crashes.await, 2, "round {round}");
        assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::GaveUp);
        assert!(pool.scale(3).await.is_err() && pool.spawn_one().await.is_err() && pool.respawn().await.is_err());
        assert!(pool.workers().is_empty());
        within(pool.revive()).await.unwrap();
        assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
        assert_eq!(pids(&pool).len(), 1);
    }
    // One that serves needs no revival, and has its budget back all the same.
    let mut events = pool.events();
    kill(pids(&pool)[0], Kill::KILL);
    replaced(&mut events).await;
    within(pool.revive()).await.unwrap();
    kill(pids(&pool)[0], Kill::KILL);
    replaced(&mut events).await;
    assert_eq!(pool.info().crashes, 8);
}

/// With the budget spent, queries fail, whoever may be left.
async fn survivors_of_a_pool_that_gave_up(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(2).budget(Budget::crash_loops(0, LONG))).await;
    let mut events = pool.events();
    let busy = tokio::spawn(pool.query(&gate.wait()));
    begun.wait();
    let victim = pool.workers().into_iter().find(|worker| worker.load == 0).unwrap();
    kill(victim.pid, Kill::KILL);
    event(&mut events, |event| matches!(event, Event::GaveUp { .. }).then_some(())).await;
    gate.open(1);
    assert_eq!(within(busy).await.unwrap().unwrap(), Said::Number(1), "what is under way is finished");
    for _ in 0..5 {
        assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::GaveUp);
    }
    within(pool.revive()).await.unwrap();
    assert_eq!(pool.query_all(&Job::Pid).await.len(), 2);
}

async fn the_registry_knows_every_pool(transport: AnyTransport) {
    assert!(registry::pools_info().is_empty());
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (first, begun) = listening(jobs(transport).workers(2).name("first")).await;
    let second = jobs(transport).name("second").start().await.unwrap();
    let third = jobs(transport).name("third").workers(0).start().await.unwrap();
    let names = || registry::pools_info().iter().map(|pool| pool.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(), ["first", "second", "third"]);
    let busy = tokio::spawn(first.query(&gate.wait()));
    begun.wait();
    let mut events = second.events();
    second.query(&Job::Pid).await.unwrap();
    lost(second.query(&Job::Exit(1)).await);
    replaced(&mut events).await;
    eventually("the replacement is counted", || registry::pools_info()[1].workers.active == 1).await;
    let [one, two, three] = registry::pools_info().try_into().unwrap();
    assert_eq!((one.workers.active, one.load, one.crashes, one.last_crash), (2, 1, 0, None));
    assert_eq!((two.workers.active, two.workers.crashed, two.load, two.crashes), (1, 0, 0, 1));
    assert!(two.last_crash.is_some());
    assert_eq!((three.workers.active, three.load), (0, 0));
    let leaving = {
        let first = first.clone();
        tokio::spawn(async move { first.unspawn().await })
    };
    eventually("one is releasing", || registry::pools_info()[0].workers.releasing == 1).await;
    // One that has no handle any more is not there either.
    drop(third);
    eventually("two are left", || names() == ["first", "second"]).await;
    // Temporary workers are nobody's pool.
    assert!(second.query_temporary(&Job::Pid).await.is_ok());
    assert_eq!(names().len(), 2);
    let pid = pids(&second)[0];
    let shut = tokio::spawn(registry::shutdown_all(LONG));
    drop(refused(&second).await);
    assert!(!shut.is_finished(), "the first one has a query under way");
    gate.open(1);
    assert_eq!(busy.await.unwrap().unwrap(), Said::Number(1));
    within(shut).await.unwrap();
    // The pool may be closed before this caller of its is told.
    drop(within(leaving).await);
    gone_within(pid, Duration::ZERO);
    assert!(registry::pools_info().is_empty());
    for pool in [&first, &second] {
        assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    }
    // With no time, and with nothing to do.
    let (pool, begun) = listening(jobs(transport)).await;
    let stuck = tokio::spawn(pool.query(&Job::Spin));
    begun.wait();
    within(registry::shutdown_all(Duration::ZERO)).await;
    assert_eq!(lost(stuck.await.unwrap()).cause, ExitCause::Requested);
    within(registry::shutdown_all(LONG)).await;
}

async fn shutdown_on_the_first_signal(transport: AnyTransport) {
    for (sent, came) in [(Kill::TERM, Signal::TERM), (Kill::INT, Signal::INT)] {
        let scratch = Scratch::new();
        let gate = Gate::new(&scratch);
        let (pool, begun) = listening(jobs(transport).workers(2)).await;
        let other = jobs(transport).start().await.unwrap();
        let all = [pids(&pool), pids(&other)].concat();
        let busy = tokio::spawn(pool.query(&gate.wait()));
        begun.wait();
        let shut = on_signal(LONG).await;
        assert!(!shut.is_finished() && pool.query(&Job::Pid).await.is_ok());
        kill(std::process::id(), sent);
        drop(refused(&pool).await);
        assert!(!shut.is_finished() && !busy.is_finished());
        gate.open(1);
        assert_eq!(within(busy).await.unwrap().unwrap(), Said::Number(1));
        assert_eq!(within(shut).await.unwrap(), came);
        for pid in all {
            gone_within(pid, Duration::ZERO);
        }
        assert!(registry::pools_info().is_empty());
    }
}

async fn the_second_signal_kills(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport)).await;
    let pid = pids(&pool)[0];
    let stuck = tokio::spawn(pool.query(&Job::Spin));
    begun.wait();
    let shut = on_signal(LONG).await;
    kill(std::process::id(), Kill::INT);
    drop(refused(&pool).await);
    assert!(!shut.is_finished() && !stuck.is_finished());
    kill(std::process::id(), Kill::TERM);
    assert_eq!(within(shut).await.unwrap(), Signal::INT, "the first one counts");
    assert_eq!(lost(within(stuck).await.unwrap()).cause, ExitCause::Requested);
    gone_within(pid, Duration::ZERO);
}

// --- in this process

async fn spawning_disabled(transport: AnyTransport) {
    let me = std::process::id();
    let before = jobs(transport).start().await.unwrap();
    assert!(spawning::is_enabled());
    spawning::disable();
    assert!(!spawning::is_enabled());
    let pool = jobs(transport).workers(2).start().await.unwrap();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(me));
    assert_eq!(pool.query_temporary(&Job::Pid).await.unwrap(), Said::Pid(me));
    let forced = |answer| matches!(answer, Ok(Said::Pid(pid)) if pid != me);
    assert!(forced(pool.query_temporary_forced(&Job::Pid).await));
    let died = lost(pool.query_temporary_forced(&Job::Abort).await);
    assert!(matches!(died.cause, ExitCause::Exited(status) if status.signal() == Some(Signal::ABRT)), "{died:?}");
    let by_force = jobs(transport).force().start().await.unwrap();
    assert!(forced(by_force.query(&Job::Pid).await));
    assert!(forced(before.query(&Job::Pid).await), "pools that had started go on as they are");
    spawning::enable();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(me));
    assert!(forced(jobs(transport).start().await.unwrap().query(&Job::Pid).await));
}

/// The environment is looked at once, so this takes a process that was started with it.
fn in_process_by_the_environment() -> Trial {
    let name = "lifecycle::in_process_by_the_environment";
    Trial::test(name, move || {
        if std::env::var_os(spawning::VARIABLE).is_some() {
            run(async {
                assert!(!spawning::is_enabled());
                let me = std::process::id();
                let pool = jobs(TRANSPORTS[0]).start().await.unwrap();
                assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(me));
                assert_eq!(pool.query_temporary(&Job::Pid).await.unwrap(), Said::Pid(me));
                let forced = pool.query_temporary_forced(&Job::Pid).await;
                assert!(matches!(forced, Ok(Said::Pid(pid)) if pid != me));
                spawning::enable();
                let pool = jobs(TRANSPORTS[1]).start().await.unwrap();
                assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(pid)) if pid != me));
            });
            return Ok(());
        }
        let output = again().args([name, "--exact", "--test-threads=1"]).env(spawning::VARIABLE, "1").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(said.into()) }
    })
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

// --- helpers

/// A query under way.
type Asked = Pin<Box<dyn Future<Output = Result<Said, QueryError>> + Send>>;

/// Polls a query once: what it has come to, if it has.
async fn poll_once(query: &mut Asked) -> Option<Result<Said, QueryError>> {
    poll_fn(|cx| match query.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Asks until the pool is shutting down, and gives the queries that were taken before it was.
async fn refused(pool: &Pool) -> Vec<Asked> {
    within(async {
        let mut taken = Vec::new();
        loop {
            let mut query: Asked = Box::pin(pool.query_with(&Job::Pid, QueryOptions::new()));
            match poll_once(&mut query).await {
                Some(Err(QueryError::ShuttingDown { .. })) => return taken,
                // A query is on its way before its first poll.
                Some(answer) => assert!(answer.is_ok(), "{answer:?}"),
                None => taken.push(query),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// Starts to listen for signals; they are caught when this returns.
async fn on_signal(limit: Duration) -> JoinHandle<Signal> {
    let mut shut = Box::pin(registry::shutdown_on_signal(limit));
    poll_fn(|cx| match shut.as_mut().poll(cx) {
        Poll::Ready(signal) => panic!("nobody sent {signal:?}"),
        Poll::Pending => Poll::Ready(()),
    })
    .await;
    tokio::spawn(async move { shut.await.unwrap() })
}

/// What has been told so far.
fn told(events: &mut broadcast::Receiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// Askers who never stop, and who must never be disappointed.
struct Load {
    stop: Arc<AtomicBool>,
    askers: Vec<JoinHandle<usize>>,
}

impl Load {
    fn on(pool: &Pool, askers: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = |asker: u32| {
            let (pool, stop) = (pool.clone(), stop.clone());
            async move {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let bytes = [asker.to_be_bytes(), (count as u32).to_be_bytes()].concat();
                    assert_eq!(pool.query(&Job::Echo(bytes.clone())).await.unwrap(), Said::Bytes(bytes));
                    count += 1;
                    // A steady load is no flood: on two cores, the workers that start need some time as well.
                    if count % 16 == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                count
            }
        };
        Load { askers: (0..askers).map(|asker| tokio::spawn(ask(asker))).collect(), stop }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for asker in self.askers {
            total += within(asker).await.unwrap();
        }
        total
    }
}
