//! What follows from the end of a service, and what never does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::service::{Condition, Event, Restart, StartError, State, WaitError, When};
use pm::{ExitCause, ExitStatus, Signal};

use super::{Events, RESTS, at_once, info, orchestrator, pid, shell, state, wait};
use crate::support::{Scratch, alone, contains, descriptors, kill, one, resident, run, within, zombies};

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        one("services::restart::a_success_starts_again_with_always", a_success_starts_again_with_always),
        one("services::restart::one_that_flaps_is_given_up", one_that_flaps_is_given_up),
        one("services::restart::zero_restarts_are_none", zero_restarts_are_none),
        one("services::restart::never_is_never", never_is_never),
        one("services::restart::a_requested_stop_never_restarts", a_requested_stop_never_restarts),
        one("services::restart::a_success_is_left_alone_by_on_failure", a_success_is_left_alone_by_on_failure),
        one("services::restart::codes_that_are_a_success", codes_that_are_a_success),
        one("services::restart::a_signal_is_a_failure", a_signal_is_a_failure),
        one("services::restart::a_stop_ends_the_wait_for_a_restart", a_stop_ends_the_wait_for_a_restart),
        one("services::restart::a_start_cuts_the_wait_for_a_restart_short", a_start_cuts_the_wait_short),
        one("services::restart::on_request_it_has_another_process", on_request_it_has_another_process),
        one("services::restart::one_that_is_stable_begins_anew", one_that_is_stable_begins_anew),
        one("services::restart::from_a_crash_to_running_again_is_soon", from_a_crash_to_running_again_is_soon),
        one("services::restart::a_program_that_vanishes_counts_as_a_crash", a_program_that_vanishes),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(alone("services::restart::crash_after_crash_leaves_nothing", || {
        run(crash_after_crash_leaves_nothing());
        Ok(())
    }));
    trials
}

/// A line of shell that adds a line to this file, so that its starts can be counted.
fn counted(file: &Path, then: &str) -> String {
    format!("echo start >> {}; {then}", file.display())
}

fn starts(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

async fn a_success_starts_again_with_always() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("starts");
    let script = counted(&file, &format!("test $(wc -l < {}) -ge 3 && exec sleep 1000; exit 0", file.display()));
    let mut events = Events::of(&orchestrator);
    orchestrator.add([shell("a", &script).restart(at_once(When::Always)).build().unwrap()]).await.unwrap();
    within(orchestrator.start_service("a")).await.unwrap();
    for _ in 0..2 {
        let restart = events.next("a", |event| match event {
            Event::Completed { status: ExitStatus::Code(0), restart } => Some(*restart),
            _ => None,
        });
        assert_eq!(restart.await, Some(Duration::ZERO));
        events.next("a", |event| matches!(event, Event::Restarted { .. }).then_some(())).await;
    }
    wait(&orchestrator, "a", Condition::Running).await;
    assert_eq!((starts(&file), info(&orchestrator, "a").await.restarts), (3, 2));
}

async fn one_that_flaps_is_given_up() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("starts");
    let restart = Restart { max: Some(4), ..at_once(When::Always) };
    let mut events = Events::of(&orchestrator);
    orchestrator
        .add([shell("a", &counted(&file, "echo alas; exit 7")).restart(restart).build().unwrap()])
        .await
        .unwrap();
    let error = within(orchestrator.start_service("a")).await;
    assert!(matches!(error, Ok(()) | Err(StartError::Failed { .. })), "{error:?}");
    let restarts = events.next("a", |event| match event {
        Event::GaveUp { restarts } => Some(*restarts),
        _ => None,
    });
    assert_eq!(restarts.await, 4);
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.restarts, a.exit), (State::GaveUp, 4, Some(ExitStatus::Code(7))));
    contains(a.why.unwrap(), "after 4 restarts");
    assert_eq!(starts(&file), 5, "once, and four times again");
    assert!(matches!(orchestrator.wait("a", Condition::Running).await, Err(WaitError::Never { .. })));
    // Somebody who asks for it gets another round.
    let _ = within(orchestrator.start_service("a")).await;
    events.next("a", |event| matches!(event, Event::GaveUp { .. }).then_some(())).await;
    assert_eq!(starts(&file), 10);
}

async fn zero_restarts_are_none() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("starts");
    let restart = Restart { max: Some(0), ..at_once(When::Always) };
    let mut events = Events::of(&orchestrator);
    orchestrator.add([shell("a", &counted(&file, "exit 1")).restart(restart).build().unwrap()]).await.unwrap();
    let _ = within(orchestrator.start_service("a")).await;
    assert!(!events.crashed("a").await.1);
    wait(&orchestrator, "a", Condition::Completed).await;
    assert_eq!((state(&orchestrator, "a").await, starts(&file)), (State::GaveUp, 1));
}

async fn never_is_never() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([shell("a", RESTS).build().unwrap()])).await.unwrap();
    kill(events.started("a").await, rustix::process::Signal::KILL);
    let (cause, returns) = events.crashed("a").await;
    assert_eq!(cause, ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false }));
    assert!(!returns);
    assert_eq!(state(&orchestrator, "a").await, State::Failed);
}

/// Whatever its policy says, and however it ends then.
async fn a_requested_stop_never_restarts() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    for (name, end) in [("zero", "trap 'exit 0' TERM"), ("one", "trap 'exit 1' TERM"), ("dies", "true")] {
        let script = format!("{end}; echo up; while :; do sleep 0.01; done");
        let service = shell(name, &script).ready_line("up").restart(at_once(When::Always)).build().unwrap();
        within(orchestrator.start_many([service])).await.unwrap();
        let stopped = within(orchestrator.stop(name)).await.unwrap();
        let expected = match name {
            "zero" => ExitStatus::Code(0),
            "one" => ExitStatus::Code(1),
            _ => ExitStatus::Signal { signal: 15, core: false },
        };
        assert_eq!(stopped[0].exit, Some(expected), "{stopped:?}");
        assert_eq!(state(&orchestrator, name).await, State::Stopped);
    }
    let words = events.words();
    assert_eq!(words.iter().filter(|word| word.ends_with(" Started")).count(), 3, "{words:?}");
    assert!(!words.iter().any(|word| word.ends_with("Restarted") || word.ends_with("Crashed")), "{words:?}");
}

async fn a_success_is_left_alone_by_on_failure() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([shell("a", "exit 0").restart(at_once(When::OnFailure)).build().unwrap()]))
        .await
        .unwrap();
    let restart = events.next("a", |event| match event {
        Event::Completed { restart, .. } => Some(*restart),
        _ => None,
    });
    assert_eq!(restart.await, None);
    assert_eq!(state(&orchestrator, "a").await, State::Completed);
    wait(&orchestrator, "a", Condition::CompletedSuccessfully).await;
}

async fn codes_that_are_a_success() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let restart = || Restart { success: vec![0, 3], max: Some(1), ..at_once(When::OnFailure) };
    let services = [("three", "exit 3"), ("four", "exit 4")]
        .map(|(name, script)| shell(name, script).restart(restart()).build().unwrap());
    orchestrator.add(services).await.unwrap();
    let _ = within(orchestrator.start_all()).await;
    wait(&orchestrator, "three", Condition::CompletedSuccessfully).await;
    assert!(events.crashed("four").await.1);
    assert!(!events.crashed("four").await.1);
    assert_eq!(state(&orchestrator, "four").await, State::GaveUp);
    // Without a zero in it, zero is none.
    let restart = Restart { success: vec![3], max: Some(0), ..at_once(When::OnFailure) };
    orchestrator.add([shell("zero", "exit 0").restart(restart).build().unwrap()]).await.unwrap();
    let _ = within(orchestrator.start_service("zero")).await;
    assert_eq!(events.crashed("zero").await, (ExitCause::Exited(ExitStatus::Code(0)), false));
}

async fn a_signal_is_a_failure() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").restart(at_once(When::OnFailure));
    within(orchestrator.start_many([a.build().unwrap()])).await.unwrap();
    events.healthy("a").await;
    assert_eq!(orchestrator.signal("a", Signal::TERM).await.unwrap(), 1);
    let (cause, returns) = events.crashed("a").await;
    assert_eq!((cause, returns), (ExitCause::Exited(ExitStatus::Signal { signal: 15, core: false }), true));
    events.healthy("a").await;
}

async fn a_stop_ends_the_wait_for_a_restart() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let restart = Restart { delay: crate::support::LONG, ..Restart::when(When::Always) };
    orchestrator.add([shell("a", "exit 1").restart(restart).build().unwrap()]).await.unwrap();
    let _ = within(orchestrator.start_service("a")).await;
    assert!(events.crashed("a").await.1);
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.pid), (State::Backoff, None));
    contains(a.why.unwrap(), "starts again in");
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert_eq!((stopped.len(), stopped[0].exit), (1, None), "it had no process: {stopped:?}");
    assert_eq!(state(&orchestrator, "a").await, State::Stopped);
}

async fn a_start_cuts_the_wait_short() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("starts");
    let mut events = Events::of(&orchestrator);
    let restart =
        Restart { delay: crate::support::LONG, longest_delay: crate::support::LONG, ..Restart::when(When::Always) };
    let script = counted(&file, &format!("test $(wc -l < {}) = 1 && exit 1; exec sleep 1000", file.display()));
    orchestrator.add([shell("a", &script).restart(restart).build().unwrap()]).await.unwrap();
    let _ = within(orchestrator.start_service("a")).await;
    assert!(events.crashed("a").await.1);
    within(orchestrator.start_service("a")).await.unwrap();
    wait(&orchestrator, "a", Condition::Running).await;
    assert_eq!(starts(&file), 2);
}

async fn on_request_it_has_another_process() {
    let orchestrator = orchestrator();
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let before = info(&orchestrator, "a").await;
    within(orchestrator.restart("a")).await.unwrap();
    let after = info(&orchestrator, "a").await;
    assert_eq!((after.state, after.incarnation.0), (State::Healthy, before.incarnation.0 + 1));
    assert_ne!(before.pid, after.pid);
    // What is not up is just started.
    within(orchestrator.stop("a")).await.unwrap();
    within(orchestrator.restart("a")).await.unwrap();
    assert_eq!(state(&orchestrator, "a").await, State::Healthy);
}

async fn one_that_is_stable_begins_anew() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let restart = Restart { max: Some(1), stable: Duration::from_millis(50), ..at_once(When::Always) };
    let a = shell("a", "echo up; sleep 0.3; exit 1").ready_line("up").restart(restart).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    for _ in 0..3 {
        assert!(events.crashed("a").await.1, "each was well for long enough");
    }
    within(orchestrator.stop("a")).await.unwrap();
}

async fn from_a_crash_to_running_again_is_soon() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let restart = Restart { max: None, ..at_once(When::Always) };
    within(orchestrator.start_many([shell("a", RESTS).restart(restart).build().unwrap()])).await.unwrap();
    let mut took = Vec::new();
    let mut pid = events.started("a").await;
    for _ in 0..21 {
        let began = Instant::now();
        kill(pid, rustix::process::Signal::KILL);
        pid = events.started("a").await;
        took.push(began.elapsed());
    }
    took.sort();
    println!("from a crash to its next process: {:?} in the median, {:?} at most", took[10], took[20]);
    assert!(took[10] < Duration::from_millis(200), "{took:?}");
}

/// It ran before, so this is bad luck, as during an upgrade, and not a mistake.
async fn a_program_that_vanishes() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let program = scratch.path("program");
    fs::copy("/bin/sleep", &program).unwrap();
    let spec = pm::Spec::program(&program).arg("1000").build().unwrap();
    let restart = Restart { max: Some(2), ..at_once(When::Always) };
    let a = pm::service::Service::new("a", spec).restart(restart).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a])).await.unwrap();
    fs::remove_file(&program).unwrap();
    kill(pid(&orchestrator, "a").await, rustix::process::Signal::KILL);
    assert!(events.crashed("a").await.1);
    let (cause, returns) = events.crashed("a").await;
    assert!(matches!(cause, ExitCause::NotStarted { .. }) && returns, "{cause:?}");
    assert!(!events.crashed("a").await.1);
    let a = info(&orchestrator, "a").await;
    assert_eq!(a.state, State::GaveUp);
    contains(a.why.unwrap(), "was not found");
}

async fn crash_after_crash_leaves_nothing() {
    const CYCLES: u64 = 300;
    let orchestrator = orchestrator();
    let restart = Restart { max: None, ..at_once(When::Always) };
    let a = shell("a", "echo alas; exit 1").restart(restart).build().unwrap();
    let me = std::process::id();
    let mut before = None;
    let mut events = Events::of(&orchestrator);
    orchestrator.add([a]).await.unwrap();
    let _ = within(orchestrator.start_service("a")).await;
    for cycle in 0..2 * CYCLES {
        events.crashed("a").await;
        if cycle == CYCLES {
            before = Some((descriptors(me), resident(me)));
        }
    }
    within(orchestrator.stop("a")).await.unwrap();
    assert!(info(&orchestrator, "a").await.restarts >= CYCLES);
    let (descriptors_before, resident_before) = before.unwrap();
    // It has a process less now than it had then.
    assert!(descriptors(me) <= descriptors_before, "{} after {descriptors_before}", descriptors(me));
    let grown = resident(me).saturating_sub(resident_before);
    assert!(grown <= 1 << 20, "{grown} bytes more after {CYCLES} crashes");
    assert!(zombies().is_empty(), "{:?}", zombies());
}
