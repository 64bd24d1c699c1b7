//! Raw workers: one conversation each, loads that the program says, subscribers. Rows R1, R2, R4 and Q18; faults 1, 12.

use std::pin::pin;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Duplex, Event, ExitCause, ExitStatus, Incarnation, Json, PoolBuilder, QueryErrorKind, Raw,
    RawEvent, RawEvents, RawManager, RawWorker, StartError, StreamError, StreamReceiver,
};
use rustix::process::Signal as Kill;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kits::{Kit, each};
use crate::support::{LONG, contains, event, gone_within, kill, one, over_all, pids, pool_of, within};

pub static DESK: pm::Stream<Order, Report> = pm::Stream::new("desk", &desk).concurrency(1);

/// Returns as soon as it is there.
pub static HASTY: pm::Stream<Order, Report> = pm::Stream::new("hasty-desk", &hasty).concurrency(1);

/// What a raw worker is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    Echo(String),
    Pid,
    /// Says what this variable holds.
    Env(String),
    /// Sends so many numbers.
    Count(u64),
    /// Never leaves, whatever it is told.
    Stay,
    Return,
    Fail(String),
    Abort,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    Text(String),
    Number(u64),
    Variable(Option<String>),
    /// It is to leave.
    Draining,
    /// Nothing more will come.
    End,
}

async fn desk(mut program: Duplex<Report, Order>) -> Result<(), String> {
    let gone = |error: StreamError| error.to_string();
    let mut draining = pin!(pm::draining());
    let mut is_told = false;
    loop {
        let order = tokio::select! {
            () = &mut draining, if !is_told => {
                is_told = true;
                assert!(pm::is_draining());
                program.write(&Report::Draining).await.map_err(gone)?;
                continue;
            }
            order = program.next() => match order {
                Some(order) => order.map_err(gone)?,
                None => break,
            },
        };
        let report = match order {
            Order::Echo(text) => Report::Text(text),
            Order::Pid => Report::Number(std::process::id().into()),
            Order::Env(name) => Report::Variable(std::env::var(name).ok()),
            Order::Count(numbers) => {
                for number in 0..numbers {
                    program.write(&Report::Number(number)).await.map_err(gone)?;
                }
                continue;
            }
            Order::Stay => std::future::pending().await,
            Order::Return => return Ok(()),
            Order::Fail(why) => return Err(why),
            Order::Abort => std::process::abort(),
        };
        program.write(&report).await.map_err(gone)?;
    }
    program.write(&Report::End).await.map_err(gone)
}

async fn hasty(_: Duplex<Report, Order>) -> Result<(), StreamError> {
    Ok(())
}

type Builder = PoolBuilder<Order, Report, pm::Postcard, AnyTransport, Raw>;
type Manager = RawManager<Order, Report>;
type Worker = RawWorker<Order, Report>;

fn desks(transport: AnyTransport) -> Builder {
    pool_of(&DESK, transport).raw()
}

pub fn tests() -> Vec<Trial> {
    [
        over_all("raw::each_worker_has_its_conversation", each_worker_has_its_conversation),
        over_all("raw::subscribers_hear_of_all_that_come_and_go", subscribers_hear_of_all_that_come_and_go),
        over_all("raw::the_program_says_the_load", the_program_says_the_load),
        over_all("raw::a_release_waits_for_the_load", a_release_waits_for_the_load),
        over_all("raw::a_release_has_a_deadline", a_release_has_a_deadline),
        over_all("raw::a_respawn_leaves_loads_where_they_are", a_respawn_leaves_loads_where_they_are),
        over_all("raw::a_death_ends_one_conversation", a_death_ends_one_conversation),
        over_all("raw::a_worker_that_returns_is_replaced", a_worker_that_returns_is_replaced),
        over_all("raw::those_that_always_return_are_given_up", those_that_always_return_are_given_up),
        over_all("raw::what_nobody_reads_holds_up_nobody_else", what_nobody_reads_holds_up_nobody_else),
        over_all("raw::a_shutdown_waits_for_loads_until_its_deadline", a_shutdown_waits_for_loads_until_its_deadline),
        over_all("raw::dropping_the_manager_kills", dropping_the_manager_kills),
        over_all("raw::the_environment_is_merged_or_replaced", the_environment_is_merged_or_replaced),
        over_all("raw::one_worker_alone", one_worker_alone),
        one("raw::in_process", in_process),
        each("kits::raw_workers", in_kits),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Reports = StreamReceiver<Order, Report>;

async fn next(reports: &mut Reports) -> Report {
    within(reports.next()).await.expect("it goes on").unwrap()
}

async fn ask(worker: &Worker, reports: &mut Reports, order: Order) -> Report {
    within(worker.send(&order)).await.unwrap();
    next(reports).await
}

/// The next worker that comes, or goes.
async fn spawned(events: &mut RawEvents<Order, Report>) -> Worker {
    match within(events.next()).await {
        Some(RawEvent::Serves(worker)) => worker,
        other => panic!("{other:?}"),
    }
}

async fn unspawned(events: &mut RawEvents<Order, Report>) -> Worker {
    match within(events.next()).await {
        Some(RawEvent::Leaves(worker)) => worker,
        other => panic!("{other:?}"),
    }
}

fn only(pool: &Manager) -> (Worker, Reports) {
    let [worker] = <[_; 1]>::try_from(pool.raw_workers()).expect("one worker");
    let reports = worker.take_receiver().expect("nobody else reads");
    (worker, reports)
}

async fn each_worker_has_its_conversation(transport: AnyTransport) {
    let pool = desks(transport).workers(3).start().await.unwrap();
    let workers = pool.raw_workers();
    assert_eq!(workers.iter().map(|worker| worker.id().0).collect::<Vec<_>>(), [1, 2, 3]);
    for worker in &workers {
        let mut reports = worker.take_receiver().unwrap();
        assert!(worker.take_receiver().is_none(), "there is one reader");
        assert_eq!(ask(worker, &mut reports, Order::Pid).await, Report::Number(worker.pid().into()));
        let number = Report::Variable(Some(worker.id().0.to_string()));
        assert_eq!(ask(worker, &mut reports, Order::Env("PM_WORKER".into())).await, number);
        for text in ["", "a\nb\0c", &"x".repeat(100_000)] {
            worker.send(&Order::Echo(text.to_string())).await.unwrap();
        }
        for text in ["", "a\nb\0c", &"x".repeat(100_000)] {
            assert_eq!(next(&mut reports).await, Report::Text(text.to_string()));
        }
    }
    assert_eq!(pids(&pool), workers.iter().map(Worker::pid).collect::<Vec<_>>());
    within(pool.shutdown()).await;
}

async fn subscribers_hear_of_all_that_come_and_go(transport: AnyTransport) {
    let pool = desks(transport).workers(0).start().await.unwrap();
    let mut early = pool.subscribe();
    within(pool.scale(2)).await.unwrap();
    let (first, second) = (spawned(&mut early).await, spawned(&mut early).await);
    assert_eq!((first.id().0, second.id().0), (1, 2));
    let mut late = pool.subscribe();
    assert_eq!(spawned(&mut late).await.pid(), first.pid());
    assert_eq!(spawned(&mut late).await.pid(), second.pid());

    kill(second.pid(), Kill::KILL);
    for events in [&mut early, &mut late] {
        let gone = unspawned(events).await;
        assert_eq!((gone.pid(), gone.is_leaving()), (second.pid(), true));
        let next = spawned(events).await;
        assert_eq!((next.id(), next.incarnation()), (second.id(), Incarnation(2)));
    }
    let cause = within(second.ended()).await;
    assert_eq!(cause, ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false }));

    // Of one that comes and goes unseen nothing is said.
    within(pool.scale(3)).await.unwrap();
    within(pool.scale(2)).await.unwrap();
    within(pool.unspawn_one(first.id())).await.unwrap();
    assert_eq!(unspawned(&mut late).await.id(), first.id());
    assert_eq!(within(first.ended()).await, ExitCause::Requested);
    within(pool.shutdown()).await;
    assert_eq!(unspawned(&mut late).await.id(), second.id());
    assert!(within(late.next()).await.is_none());
}

async fn the_program_says_the_load(transport: AnyTransport) {
    let pool = desks(transport).workers(3).start().await.unwrap();
    let workers = pool.raw_workers();
    assert_eq!(pool.info().load, 0, "a conversation is no load");
    for (worker, load) in workers.iter().zip([5, 2, 3]) {
        worker.set_load(load);
    }
    assert_eq!(workers[0].add_load(-3), 2);
    assert_eq!(workers[0].add_load(5), 7);
    let loads: Vec<_> = pool.workers().iter().map(|worker| worker.load).collect();
    assert_eq!((loads, pool.info().load), (vec![7, 2, 3], 12));
    assert_eq!(pool.least_loaded().unwrap().id(), workers[1].id());
    // The idlest goes.
    workers[1].set_load(0);
    within(pool.scale(2)).await.unwrap();
    assert_eq!(pool.raw_workers().iter().map(Worker::id).collect::<Vec<_>>(), [workers[0].id(), workers[2].id()]);
    assert_eq!(workers[1].add_load(-1), 0, "a load is never negative");
    within(pool.shutdown_within(Some(Duration::ZERO))).await;
}

async fn a_release_waits_for_the_load(transport: AnyTransport) {
    let pool = desks(transport).start().await.unwrap();
    let (worker, mut reports) = only(&pool);
    worker.set_load(1);
    let mut events = pool.subscribe();
    spawned(&mut events).await;
    let release = tokio::spawn({
        let worker = worker.clone();
        async move { worker.release(None).await }
    });
    // The worker knows at once, and the conversation goes on.
    assert_eq!(next(&mut reports).await, Report::Draining);
    assert_eq!(unspawned(&mut events).await.id(), worker.id());
    assert_eq!(ask(&worker, &mut reports, Order::Pid).await, Report::Number(worker.pid().into()));
    assert!(!release.is_finished() && worker.is_leaving());
    assert!(pool.raw_workers().is_empty());
    worker.set_load(0);
    assert_eq!(next(&mut reports).await, Report::End);
    assert!(within(reports.next()).await.is_none());
    within(release).await.unwrap().unwrap();
    assert_eq!(worker.ended().await, ExitCause::Requested);
    gone_within(worker.pid(), Duration::ZERO);
    assert!(matches!(worker.send(&Order::Pid).await, Err(StreamError::Ended)));
    within(pool.shutdown()).await;
}

async fn a_release_has_a_deadline(transport: AnyTransport) {
    let pool = desks(transport).workers(3).start().await.unwrap();
    let workers = pool.raw_workers();
    // One whose load stays, and one that does not listen.
    workers[0].set_load(1);
    within(workers[1].send(&Order::Stay)).await.unwrap();
    for worker in &workers[..2] {
        let begun = Instant::now();
        within(worker.release(Some(Duration::from_millis(100)))).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));
        assert_eq!(worker.ended().await, ExitCause::Requested);
        gone_within(worker.pid(), Duration::ZERO);
    }
    let mut reports = workers[2].take_receiver().unwrap();
    assert_eq!(ask(&workers[2], &mut reports, Order::Pid).await, Report::Number(workers[2].pid().into()));
    within(pool.shutdown()).await;
}

async fn a_respawn_leaves_loads_where_they_are(transport: AnyTransport) {
    let pool = desks(transport).workers(2).start().await.unwrap();
    let old = pool.raw_workers();
    let mut reports = old[0].take_receiver().unwrap();
    old[0].set_load(1);
    let respawn = tokio::spawn({
        let pool = pool.clone();
        async move { pool.respawn().await }
    });
    assert_eq!(within(old[1].ended()).await, ExitCause::Requested);
    assert_eq!(next(&mut reports).await, Report::Draining);
    // The new ones serve beside it.
    let new = pool.raw_workers();
    assert_eq!(new.iter().map(|worker| worker.id().0).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(ask(&old[0], &mut reports, Order::Pid).await, Report::Number(old[0].pid().into()));
    assert!(!respawn.is_finished());
    old[0].set_load(0);
    within(respawn).await.unwrap().unwrap();
    within(pool.shutdown()).await;
}

async fn a_death_ends_one_conversation(transport: AnyTransport) {
    let pool = desks(transport).workers(2).start().await.unwrap();
    let workers = pool.raw_workers();
    let (mut of_first, mut of_second) = (workers[0].take_receiver().unwrap(), workers[1].take_receiver().unwrap());
    let mut events = pool.events();
    workers[0].set_load(4);
    within(workers[0].send(&Order::Abort)).await.unwrap();
    // The reader has its error without a write.
    let error = within(of_first.next()).await.unwrap().unwrap_err();
    assert_eq!(error.failed().map(|error| error.kind()), Some(QueryErrorKind::WorkerLost));
    let (load, will_restart) = event(&mut events, |event| match event {
        Event::Crashed { load, will_restart, .. } => Some((*load, *will_restart)),
        _ => None,
    })
    .await;
    assert_eq!((load, will_restart), (4, true));
    assert!(matches!(within(workers[0].ended()).await, ExitCause::Exited(ExitStatus::Signal { signal: 6, .. })));
    assert!(matches!(workers[0].send(&Order::Pid).await, Err(StreamError::Failed(_) | StreamError::Ended)));
    // What is said of it now hits nobody.
    workers[0].set_load(9);
    assert_eq!(ask(&workers[1], &mut of_second, Order::Pid).await, Report::Number(workers[1].pid().into()));
    let mut events = pool.subscribe();
    let next = loop {
        let worker = spawned(&mut events).await;
        if worker.id() == workers[0].id() {
            break worker;
        }
    };
    assert_eq!((next.incarnation(), next.load()), (Incarnation(2), 0));
    // Nor does it hit who has come in its place.
    within(workers[0].release(Some(Duration::ZERO))).await.unwrap();
    let mut of_next = next.take_receiver().unwrap();
    assert_eq!(ask(&next, &mut of_next, Order::Pid).await, Report::Number(next.pid().into()));
    assert_eq!(pool.raw_workers().len(), 2);
    within(pool.shutdown()).await;
}

async fn a_worker_that_returns_is_replaced(transport: AnyTransport) {
    let pool = desks(transport).start().await.unwrap();
    let mut events = pool.subscribe();
    let worker = spawned(&mut events).await;
    within(worker.send(&Order::Return)).await.unwrap();
    assert!(within(worker.take_receiver().unwrap().next()).await.is_none());
    assert_eq!(within(worker.ended()).await, ExitCause::Returned { error: None });
    assert_eq!(unspawned(&mut events).await.pid(), worker.pid());
    // With an error its reader has that, and whoever looks at its end.
    let worker = spawned(&mut events).await;
    within(worker.send(&Order::Fail("no more paper".to_string()))).await.unwrap();
    let error = within(worker.take_receiver().unwrap().next()).await.unwrap().unwrap_err();
    contains(error.to_string(), "no more paper");
    let ExitCause::Returned { error: Some(error) } = within(worker.ended()).await else { panic!("an error") };
    contains(error, "no more paper");
    assert_eq!(unspawned(&mut events).await.pid(), worker.pid());
    assert_eq!(spawned(&mut events).await.incarnation(), Incarnation(3));
    within(pool.shutdown()).await;
}

async fn those_that_always_return_are_given_up(transport: AnyTransport) {
    let hasty: Builder = pool_of(&HASTY, transport).raw();
    let pool = hasty.budget(Budget::crash_loops(2, LONG)).workers(0).start().await.unwrap();
    let mut events = pool.events();
    // It may have been there for a moment.
    let _ = within(pool.scale(1)).await;
    let cause = event(&mut events, |event| match event {
        Event::GaveUp { cause, .. } => Some(cause.clone()),
        _ => None,
    });
    assert_eq!(cause.await, ExitCause::Returned { error: None });
    assert!(matches!(within(pool.scale(2)).await, Err(StartError::Died { cause: ExitCause::Returned { .. }, .. })));
    within(pool.shutdown()).await;
}

async fn what_nobody_reads_holds_up_nobody_else(transport: AnyTransport) {
    let pool = desks(transport).workers(2).window(16, 1 << 16).start().await.unwrap();
    let workers = pool.raw_workers();
    within(workers[0].send(&Order::Count(100_000))).await.unwrap();
    let mut of_second = workers[1].take_receiver().unwrap();
    for _ in 0..100 {
        assert_eq!(ask(&workers[1], &mut of_second, Order::Pid).await, Report::Number(workers[1].pid().into()));
    }
    // All of it is there for who reads late.
    let mut of_first = workers[0].take_receiver().unwrap();
    for number in 0..100_000 {
        assert_eq!(next(&mut of_first).await, Report::Number(number));
    }
    within(pool.shutdown()).await;
}

async fn a_shutdown_waits_for_loads_until_its_deadline(transport: AnyTransport) {
    let pool = desks(transport).start().await.unwrap();
    let (worker, mut reports) = only(&pool);
    worker.set_load(1);
    let shutdown = tokio::spawn({
        let pool = pool.clone();
        async move { pool.shutdown_within(Some(LONG)).await }
    });
    assert_eq!(next(&mut reports).await, Report::Draining);
    assert!(!shutdown.is_finished());
    worker.set_load(0);
    assert_eq!(next(&mut reports).await, Report::End);
    within(shutdown).await.unwrap();

    let pool = desks(transport).start().await.unwrap();
    let (worker, mut reports) = only(&pool);
    worker.set_load(1);
    within(pool.shutdown_within(Some(Duration::from_millis(50)))).await;
    gone_within(worker.pid(), Duration::ZERO);
    let last = loop {
        match within(reports.next()).await {
            Some(Ok(report)) => assert_eq!(report, Report::Draining),
            last => break last,
        }
    };
    let error = last.expect("it did not end by itself").unwrap_err();
    assert_eq!(error.failed().map(|error| error.kind()), Some(QueryErrorKind::ShuttingDown));
}

async fn dropping_the_manager_kills(transport: AnyTransport) {
    let pool = desks(transport).start().await.unwrap();
    let (worker, mut reports) = only(&pool);
    let mut events = pool.subscribe();
    spawned(&mut events).await;
    worker.set_load(1);
    drop(pool);
    gone_within(worker.pid(), crate::support::LIMIT);
    assert_eq!(within(worker.ended()).await, ExitCause::Requested);
    assert!(within(reports.next()).await.is_some_and(|last| last.is_err()));
    assert_eq!(unspawned(&mut events).await.pid(), worker.pid());
    assert!(within(events.next()).await.is_none());
    worker.set_load(2);
    assert!(within(worker.release(None)).await.is_err());
}

async fn the_environment_is_merged_or_replaced(transport: AnyTransport) {
    let variable = |name: &str| Order::Env(name.to_string());
    let holds = |value: &str| Report::Variable(Some(value.to_string()));
    for is_replaced in [false, true] {
        let change = move |spec: pm::SpecBuilder| {
            let spec = spec.env("DESK", "oak");
            if is_replaced { spec.replace_env() } else { spec }
        };
        let pool = desks(transport).spec(change).start().await.unwrap();
        let (worker, mut reports) = only(&pool);
        assert_eq!(ask(&worker, &mut reports, variable("DESK")).await, holds("oak"));
        assert_eq!(ask(&worker, &mut reports, variable("PM_WORKER")).await, holds("1"));
        let path = std::env::var("PATH").ok().filter(|_| !is_replaced);
        assert_eq!(ask(&worker, &mut reports, variable("PATH")).await, Report::Variable(path));
        within(pool.shutdown()).await;
    }
}

async fn one_worker_alone(transport: AnyTransport) {
    let alone = desks(transport).start_worker().await.unwrap();
    let worker = alone.raw().unwrap();
    let mut reports = worker.take_receiver().unwrap();
    assert_eq!(ask(&worker, &mut reports, Order::Pid).await, Report::Number(worker.pid().into()));
    kill(worker.pid(), Kill::KILL);
    within(worker.ended()).await;
    assert!(alone.raw().is_none());
    within(alone.release()).await;

    let alone = desks(transport).start_worker().await.unwrap();
    let worker = alone.raw().unwrap();
    within(alone.release()).await;
    assert_eq!(worker.ended().await, ExitCause::Requested);
}

async fn in_process() {
    let pool = DESK.pool().raw().in_process().workers(2).start().await.unwrap();
    let workers = pool.raw_workers();
    let mut reports = workers[0].take_receiver().unwrap();
    let pid = Report::Number(std::process::id().into());
    assert_eq!(ask(&workers[0], &mut reports, Order::Pid).await, pid);
    workers[0].set_load(1);
    let release = tokio::spawn({
        let worker = workers[0].clone();
        async move { worker.release(None).await }
    });
    assert_eq!(next(&mut reports).await, Report::Draining);
    workers[0].set_load(0);
    assert_eq!(next(&mut reports).await, Report::End);
    within(release).await.unwrap().unwrap();
    within(pool.shutdown()).await;
}

/// Tells what it hears, and that it is to leave.
const PYTHON: &str = r#"
import threading

def desk(stream):
    def leave():
        pm_worker.draining.wait()
        stream.write("draining")
    threading.Thread(target=leave, daemon=True).start()
    for message in stream: stream.write(message)
    stream.write("end")

pm_worker.serve(pm_worker.streams(desk))
"#;

const NODE: &str = r#"
const { streams, draining } = require('KIT/pm_worker.js');

serve(streams(async stream => {
  draining.then(() => stream.write('draining'));
  for await (const message of stream) await stream.write(message);
  await stream.write('end');
}));
"#;

async fn in_kits(kit: Kit, transport: AnyTransport) {
    let code = if kit == Kit::Python { PYTHON } else { NODE };
    let builder: PoolBuilder<Value, Value, Json, _> =
        PoolBuilder::program(kit.to_string(), kit.spec(code), transport, Json);
    let pool = builder.raw().start().await.unwrap();
    let worker = pool.raw_workers().remove(0);
    let mut messages = worker.take_receiver().unwrap();
    let mut next = async || within(messages.next()).await.transpose().unwrap();
    worker.set_load(1);
    within(worker.send(&json!({"to": "desk"}))).await.unwrap();
    assert_eq!(next().await, Some(json!({"to": "desk"})));
    let release = tokio::spawn({
        let worker = worker.clone();
        async move { worker.release(None).await }
    });
    assert_eq!(next().await, Some(json!("draining")));
    within(worker.send(&json!(1))).await.unwrap();
    assert_eq!(next().await, Some(json!(1)));
    worker.set_load(0);
    assert_eq!(next().await, Some(json!("end")));
    assert_eq!(next().await, None);
    within(release).await.unwrap().unwrap();
    assert_eq!(worker.ended().await, ExitCause::Requested);
    within(pool.shutdown()).await;
}
