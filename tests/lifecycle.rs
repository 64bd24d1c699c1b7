//! The life of a pool and its workers: more of them and fewer, others in their place, and every sort of end. Rows Q2, Q4, Q8, Q12, Q13, Q23.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Budget, Event, ExitCause, ExitStatus, Incarnation, QueryErrorKind, StartError, WorkerId};
use rustix::process::Signal as Kill;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::query::listening;
use crate::roles::{EARLY, Job, Said};
use crate::support::{
    Gate, LIMIT, LONG, MARK, Pool, Scratch, calls_wait, contains, error, event, eventually, gone_within, jobs, kill,
    lost, mark, marked, over_all, pids, replaced, within,
};

pub fn tests() -> Vec<Trial> {
    [
        over_all("lifecycle::scale_up_and_down", scale_up_and_down),
        over_all("lifecycle::the_idlest_are_drained", the_idlest_are_drained),
        over_all("lifecycle::one_more_and_one_less", one_more_and_one_less),
        over_all(
            "lifecycle::unspawned_pools_refuse_until_they_are_scaled",
            unspawned_pools_refuse_until_they_are_scaled,
        ),
        over_all("lifecycle::the_first_query_starts_a_worker", the_first_query_starts_a_worker),
        over_all("lifecycle::a_first_worker_that_cannot_start", a_first_worker_that_cannot_start),
        over_all("lifecycle::settings_that_make_no_sense", settings_that_make_no_sense),
        over_all("lifecycle::respawns_lose_no_query", respawns_lose_no_query),
        over_all("lifecycle::changes_of_size_lose_no_query", changes_of_size_lose_no_query),
        over_all("lifecycle::a_respawn_waits_for_what_is_under_way", a_respawn_waits_for_what_is_under_way),
        over_all("lifecycle::the_drain_deadline_kills", the_drain_deadline_kills),
        over_all(
            "lifecycle::a_respawn_that_cannot_start_leaves_the_old_ones",
            a_respawn_that_cannot_start_leaves_the_old_ones,
        ),
        over_all("lifecycle::events_come_in_order", events_come_in_order),
        over_all("lifecycle::a_slow_listener_is_told_of_its_gap", a_slow_listener_is_told_of_its_gap),
        over_all("lifecycle::revived", revived),
        over_all("lifecycle::survivors_of_a_pool_that_gave_up", survivors_of_a_pool_that_gave_up),
    ]
    .into_iter()
    .flatten()
    .collect()
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
    // The pool takes its link out first, and counts it then.
    eventually("it is counted", || pool.info().workers.releasing == 1).await;
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
    calls_wait(&pool, 21).await;
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

async fn settings_that_make_no_sense(transport: AnyTransport) {
    let failed = jobs(transport).workers(5000).start().await.unwrap_err();
    contains(failed.to_string(), "workers is 5000");
    let failed = jobs(transport).queue(0).start().await.unwrap_err();
    contains(failed.to_string(), "queue is 0");
    let failed = jobs(transport).spec(|spec| spec.arg("a\0b")).start().await.unwrap_err();
    contains(failed.to_string(), "NUL");
}

// --- helpers

/// What has been told so far.
fn told(events: &mut broadcast::Receiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// Askers who never stop, and who must never be disappointed.
pub struct Load {
    stop: Arc<AtomicBool>,
    askers: Vec<JoinHandle<usize>>,
}

impl Load {
    pub fn on(pool: &Pool, askers: u32) -> Self {
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

    pub async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for asker in self.askers {
            total += within(asker).await.unwrap();
        }
        total
    }
}
