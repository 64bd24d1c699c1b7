//! Many starts and many services: what is left of them, and what becomes of all when their manager is killed.

use std::fs::File;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::Spec;
use pm::core::driver::launch::LaunchError;
use pm::service::{Condition, LogFile, Need, Orchestrator, Restart, Service, StartError, State, WaitError, When};
use pm::{ExitCause, ExitStatus, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{DEAF, Events, RESTS, at_once, orchestrator, pid, sh, shell, state, wait, while_there};
use crate::support::{
    LIMIT, LONG, MARK, Scratch, alone, descriptors, eventually, gone_within, keeper, kill, mark, marked, one, resident,
    run, within, zombies,
};

pub fn tests() -> Vec<Trial> {
    let mut trials = one("services::crowds::a_hundred_start_and_stop_together", a_hundred_start_and_stop_together);
    trials.extend(one("services::crowds::requests_all_at_once_are_all_answered", requests_all_at_once));
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

/// Several who know nothing of each other ask for anything, of services that need each other and fail. Each is answered, and what is stopped
/// at last stays so.
async fn requests_all_at_once() {
    const ASKERS: u32 = 6;
    const REQUESTS: u32 = 40;
    let (orchestrator, mark) = (orchestrator(), mark());
    let marked_shell = |name: &str, script: &str| {
        let spec = Spec::program("sh").arg("-c").arg(script).env(MARK, &mark).build().expect("a Spec");
        Service::new(name, spec).stop_limit(Duration::from_millis(50)).restart(Restart {
            max: Some(3),
            delay: Duration::from_millis(5),
            ..Restart::when(When::Always)
        })
    };
    let restarts = |on: &str, condition| Need { restart: true, ..Need::new(on, condition) };
    let services = [
        marked_shell("db", "echo up; exec sleep 1000").ready_line("up"),
        marked_shell("api", RESTS).need(restarts("db", Condition::Healthy)),
        marked_shell("web", "echo up; sleep 0.05; exit 1")
            .ready_line("up")
            .needs("api", Condition::Started)
            .replicas(2),
        marked_shell("deaf", DEAF).ready_line("deaf").need(restarts("db", Condition::Healthy)),
    ];
    orchestrator.add(services.map(|one| one.build().expect("a service"))).await.expect("services");
    let askers = (0..ASKERS).map(|asker| {
        let orchestrator = orchestrator.clone();
        tokio::spawn(async move {
            // Any sequence will do, as long as no two have the same.
            let mut state = asker + 1;
            let mut below = |bound: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) % bound
            };
            for _ in 0..REQUESTS {
                let name = ["db", "api", "web", "deaf"][below(4) as usize];
                let what = below(9);
                let asked = async {
                    match what {
                        0 | 1 => drop(orchestrator.start_service(name).await),
                        2 => drop(orchestrator.stop(name).await),
                        3 => drop(orchestrator.restart(name).await),
                        4 => drop(orchestrator.scale(name, 1 + below(3)).await),
                        5 => drop(orchestrator.start_all().await),
                        6 => drop(orchestrator.stop_all(Some(Duration::from_millis(20))).await),
                        7 => drop(orchestrator.signal(name, Signal::KILL).await),
                        _ => drop(orchestrator.stop_within([name], Some(Duration::ZERO)).await),
                    }
                };
                let answered = tokio::time::timeout(LIMIT, asked).await;
                assert!(answered.is_ok(), "{what} of {name} is not answered: {:#?}", orchestrator.list().await);
            }
        })
    });
    for asker in askers.collect::<Vec<_>>() {
        asker.await.expect("all are answered");
    }
    within(orchestrator.stop_all(None)).await;
    let left = orchestrator.list().await;
    assert!(left.iter().all(|info| info.pid.is_none() && info.state.is_over()), "{left:#?}");
    assert!(marked(&mark).is_empty());
    within(orchestrator.start_named(["api"], true)).await.expect("it starts as ever");
    assert_eq!(
        within(orchestrator.stop_all(None)).await.len(),
        orchestrator.info("api").await.unwrap().len() + orchestrator.info("db").await.unwrap().len()
    );
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

/// What a manager keeps that is to be killed: at least nine processes beside it and its keeper.
pub async fn to_be_killed() -> Orchestrator {
    let orchestrator = orchestrator();
    let never = Scratch::new().path("never");
    let stray = "(setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' &); echo up; exec sleep 1000";
    let services = [
        shell("rests", RESTS).build(),
        shell("stray", stray).ready_line("up").build(),
        shell("deaf", DEAF).ready_line("deaf").build(),
        shell("terminal", &format!("trap '' HUP; {DEAF}")).terminal().ready_line("deaf").build(),
        shell("starts", RESTS).health(while_there(&never)).build(),
        shell("flaps", "exit 1").restart(Restart { max: None, ..at_once(When::Always) }).build(),
        Service::new("floods", Spec::program("yes").build().expect("a Spec")).build(),
    ];
    orchestrator.add(services.map(|one| one.expect("a service"))).await.expect("services");
    let _ = within(orchestrator.start_named(["rests", "stray", "deaf", "terminal", "flaps", "floods"], true)).await;
    let _ = tokio::time::timeout(Duration::from_millis(1), orchestrator.start_service("starts")).await;
    wait(&orchestrator, "starts", Condition::Started).await;
    assert_eq!(state(&orchestrator, "starts").await, State::Starting);
    orchestrator
}
