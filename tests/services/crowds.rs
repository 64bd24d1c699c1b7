//! Many starts and many services: what is left of them, and what becomes of all when their manager is killed.

use std::fs::File;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::Spec;
use pm::core::driver::launch::LaunchError;
use pm::service::{Condition, LogFile, Orchestrator, Service, StartError, State, WaitError, When};
use pm::{ExitCause, ExitStatus};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{DEAF, Events, RESTS, at_once, orchestrator, pid, sh, shell, state, wait, while_there};
use crate::support::{
    LONG, Scratch, alone, descriptors, eventually, gone_within, keeper, kill, one, resident, run, within, zombies,
};

pub fn tests() -> Vec<Trial> {
    let mut trials = one("services::crowds::a_hundred_start_and_stop_together", a_hundred_start_and_stop_together);
    trials.push(alone("services::crowds::starts_and_stops_leave_nothing", || {
        run(starts_and_stops_leave_nothing());
        Ok(())
    }));
    trials.push(alone("services::crowds::no_room_for_more_descriptors_passes", || {
        run(no_room_for_more_descriptors_passes());
        Ok(())
    }));
    trials.push(alone("services::crowds::the_keeper_is_killed_and_services_return", || {
        run(the_keeper_is_killed_and_services_return());
        Ok(())
    }));
    trials.push(Trial::test("services::crowds::everything_ends_with_the_runtime", || {
        everything_ends_with_the_runtime();
        Ok(())
    }));
    trials
}

async fn a_hundred_start_and_stop_together() {
    let orchestrator = orchestrator();
    let services = (0..100).map(|n| {
        let one = shell(&format!("s{n}"), "echo up; exec sleep 1000").ready_line("up");
        // Each needs one before it, in chains of ten.
        let one = if n % 10 == 0 { one } else { one.needs(format!("s{}", n - 1), Condition::Healthy) };
        one.build().unwrap()
    });
    let began = Instant::now();
    within(orchestrator.start_many(services.collect::<Vec<_>>())).await.unwrap();
    let up = began.elapsed();
    assert!(orchestrator.list().await.iter().all(|info| info.state == State::Healthy));
    let stopped = within(orchestrator.stop_all(None)).await;
    println!("100 services were up after {up:?}, and stopped after {:?}", began.elapsed() - up);
    assert_eq!(stopped.len(), 100);
    assert!(stopped.iter().all(|one| one.is_clean() && one.exit.is_some()), "{stopped:?}");
}

/// Services of each sort, so that all that is opened for one is opened.
async fn starts_and_stops_leave_nothing() {
    const CYCLES: usize = 200;
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let me = std::process::id();
    let well = scratch.path("well");
    std::fs::write(&well, "").unwrap();
    let services = [
        shell("told", "echo up; exec sleep 1000").ready_line("up").log(LogFile::new(scratch.path("told.log"))),
        shell("asked", RESTS).health(while_there(&well).interval(Duration::from_millis(5))).stop_limit(LONG),
        shell("notified", RESTS).watchdog(LONG),
        shell("commanded", "trap 'exit 0' USR1; echo up; while :; do sleep 0.01; done")
            .ready_line("up")
            .stop_command(sh("kill -USR1 $PM_PID")),
    ];
    orchestrator.add(services.map(|one| one.build().unwrap())).await.unwrap();
    let mut before = None;
    for cycle in 0..CYCLES {
        within(orchestrator.start_all()).await.unwrap();
        within(orchestrator.stop_all(None)).await;
        if cycle == CYCLES / 4 {
            before = Some((descriptors(me), descriptors(keeper().unwrap()), resident(me)));
        }
    }
    let before = before.unwrap();
    // A probe that was given up is killed, and that takes a moment.
    eventually("the descriptors are closed", || {
        descriptors(me) <= before.0 && descriptors(keeper().unwrap()) <= before.1
    })
    .await;
    eventually("no zombies", || zombies().is_empty()).await;
    let grown = resident(me).saturating_sub(before.2);
    assert!(grown <= 1 << 20, "{grown} bytes more after {CYCLES} starts and stops");
    drop(orchestrator);
    eventually("the descriptors of the orchestrator are closed", || descriptors(me) < before.0).await;
}

async fn no_room_for_more_descriptors_passes() {
    let orchestrator = orchestrator();
    let up = |name: &str| shell(name, "echo up; exec sleep 1000").ready_line("up").build().unwrap();
    within(orchestrator.start_many([up("before")])).await.unwrap();
    let before = descriptors(std::process::id());
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(before as u64 + 9), maximum: limit.maximum }).unwrap();
    let mut fill: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    // One of its pipes finds room, and the other does not.
    fill.truncate(fill.len() - 2);
    let error = within(orchestrator.start_many([up("a")])).await.unwrap_err();
    drop(fill);
    setrlimit(Resource::Nofile, limit).unwrap();
    let StartError::Launch { error, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**error, LaunchError::TooManyFiles { .. }), "{error:?}");
    eventually("what was opened is closed", || descriptors(std::process::id()) <= before).await;
    within(orchestrator.start_service("a")).await.unwrap();
    within(orchestrator.stop_all(None)).await;
}

async fn the_keeper_is_killed_and_services_return() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").restart(at_once(When::OnFailure));
    let b = shell("b", "echo up; exec sleep 1000").ready_line("up");
    within(orchestrator.start_many([a.build().unwrap(), b.build().unwrap()])).await.unwrap();
    let before = [pid(&orchestrator, "a").await, pid(&orchestrator, "b").await];
    events.healthy("a").await;
    kill(keeper().unwrap(), rustix::process::Signal::KILL);
    let (cause, returns) = events.crashed("a").await;
    assert_eq!((cause, returns), (ExitCause::Exited(ExitStatus::Lost), true));
    events.healthy("a").await;
    before.into_iter().for_each(|pid| gone_within(pid, Duration::from_secs(5)));
    assert_eq!([state(&orchestrator, "a").await, state(&orchestrator, "b").await], [State::Healthy, State::Failed]);
    within(orchestrator.start_service("b")).await.unwrap();
    assert!(within(orchestrator.stop_all(None)).await.iter().all(pm::service::Stopped::is_clean));
}

/// Whoever still has a handle is told.
fn everything_ends_with_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (orchestrator, pid) = runtime.block_on(async {
        let orchestrator = orchestrator();
        within(orchestrator.start_many([shell("a", DEAF).ready_line("deaf").build().unwrap()])).await.unwrap();
        let pid = pid(&orchestrator, "a").await;
        (orchestrator, pid)
    });
    drop(runtime);
    gone_within(pid, Duration::from_secs(5));
    run(async {
        assert!(matches!(within(orchestrator.start_service("a")).await, Err(StartError::Gone)));
        assert!(matches!(within(orchestrator.wait("a", Condition::Started)).await, Err(WaitError::Gone)));
        assert_eq!(within(orchestrator.stop_all(None)).await, []);
    });
}

/// What a manager keeps that is to be killed: at least seven processes beside it and its keeper.
pub async fn to_be_killed() -> Orchestrator {
    let orchestrator = orchestrator();
    let never = Scratch::new().path("never");
    let stray = "(setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' &); echo up; exec sleep 1000";
    let services = [
        shell("rests", RESTS).build(),
        shell("stray", stray).ready_line("up").build(),
        shell("deaf", DEAF).ready_line("deaf").build(),
        shell("starts", RESTS).health(while_there(&never)).build(),
        shell("flaps", "exit 1").restart(pm::service::Restart { max: None, ..at_once(When::Always) }).build(),
        Service::new("floods", Spec::program("yes").build().expect("a Spec")).build(),
    ];
    orchestrator.add(services.map(|one| one.expect("a service"))).await.expect("services");
    let _ = within(orchestrator.start_named(["rests", "stray", "deaf", "flaps", "floods"], true)).await;
    let _ = tokio::time::timeout(Duration::from_millis(1), orchestrator.start_service("starts")).await;
    wait(&orchestrator, "starts", Condition::Started).await;
    assert_eq!(state(&orchestrator, "starts").await, State::Starting);
    orchestrator
}
