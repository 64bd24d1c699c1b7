//! How services end on request: in time, with all that they have started, and with an answer that says what had to be killed.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::service::{Condition, Event, Orchestrator, Restart, StartError, State, When};
use pm::{ExitStatus, Signal};

use super::{DEAF, Events, RESTS, at_once, info, numbers, orchestrator, pid, printed, sh, shell, state, while_there};
use crate::processes::has;
use crate::support::{LONG, MARK, Scratch, contains, eventually, gone_within, mark, marked, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::stop::who_ignores_sigterm_is_killed_at_its_limit", who_ignores_sigterm_is_killed_at_its_limit),
        one("services::stop::who_is_stopped_hears_that_it_should_end", who_is_stopped_hears_that_it_should_end),
        one("services::stop::grandchildren_that_left_are_swept", grandchildren_that_left_are_swept),
        one("services::stop::a_child_that_takes_its_time_is_let_end", a_child_that_takes_its_time_is_let_end),
        one("services::stop::grandchildren_of_one_that_ended_are_swept", grandchildren_of_one_that_ended_are_swept),
        one("services::stop::who_holds_the_output_delays_nothing", who_holds_the_output_delays_nothing),
        one("services::stop::other_signals_and_commands_ask_as_well", other_signals_and_commands_ask_as_well),
        one("services::stop::a_stop_command_that_hangs_delays_nothing", a_stop_command_that_hangs_delays_nothing),
        one("services::stop::a_stop_command_dies_with_the_orchestrator", a_stop_command_dies_with_the_orchestrator),
        one("services::stop::stop_during_start", stop_during_start),
        one("services::stop::start_during_stop", start_during_stop),
        one("services::stop::stop_of_a_start_that_only_begins", stop_of_a_start_that_only_begins),
        one("services::stop::a_second_stop_with_less_time_counts", a_second_stop_with_less_time_counts),
        one("services::stop::all_have_one_deadline", all_have_one_deadline),
        one("services::stop::what_does_not_run_is_not_spoken_of", what_does_not_run_is_not_spoken_of),
        one("services::stop::a_removed_one_is_told_of_and_gone", a_removed_one_is_told_of_and_gone),
        one("services::stop::dropping_the_last_handle_kills_everything", dropping_the_last_handle_kills_everything),
        one("services::stop::signals_reach_the_whole_group", signals_reach_the_whole_group),
        one("services::stop::a_flood_of_signals_stands_in_no_ones_way", a_flood_of_signals_stands_in_no_ones_way),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn who_ignores_sigterm_is_killed_at_its_limit() {
    let orchestrator = orchestrator();
    let limit = Duration::from_millis(300);
    let deaf = shell("deaf", DEAF).ready_line("deaf").stop_limit(limit).restart(at_once(When::Always)).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([deaf])).await.unwrap();
    let began = Instant::now();
    let stopped = within(orchestrator.stop("deaf")).await.unwrap();
    let took = began.elapsed();
    assert!(took >= limit && took < limit + Duration::from_secs(5), "{took:?}");
    let [one] = &stopped[..] else { panic!("{stopped:?}") };
    assert!(one.was_killed && !one.is_clean(), "{one:?}");
    assert_eq!(one.exit, Some(ExitStatus::Signal { signal: 9, core: false }));
    assert_eq!(one.swept.len(), 1, "its sleep: {one:?}");
    contains(one.to_string(), "deaf: killed: it did not stop in time; killed what it left behind: ");
    assert_eq!(state(&orchestrator, "deaf").await, State::Stopped);
    assert!(!events.words().contains(&"deaf Restarted".into()));
}

async fn who_is_stopped_hears_that_it_should_end() {
    let orchestrator = orchestrator();
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").stop_limit(LONG).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let pid = pid(&orchestrator, "a").await;
    eventually("it is no shell any more", || crate::support::command_line(pid).starts_with("sleep")).await;
    orchestrator.signal("a", Signal::STOP).await.unwrap();
    eventually("it stands still", || crate::support::state(pid).is_some_and(|(state, _)| state == 'T')).await;
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert!(stopped[0].is_clean(), "{stopped:?}");
}

/// Prints the pids of grandchildren: in the group, in a group of its own, and in one that has left by a session of its own and has lost its parent. The last
/// two do not hear SIGTERM, and all hold the pipe.
const TREE: &str = "sh -c 'echo $$; exec sleep 1000' & setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & \
                    (setsid sh -c 'trap \"\" TERM; sh -c \"echo \\$\\$; exec sleep 1000\" &' &); ";

async fn grandchildren_that_left_are_swept() {
    if !has("setsid") {
        return;
    }
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let mark = mark();
    let spec = pm::Spec::program("sh").arg("-c").arg(format!("{TREE} {RESTS}")).env(MARK, &mark).build().unwrap();
    let limit = Duration::from_millis(300);
    let a = pm::service::Service::new("a", spec).stop_limit(limit).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let own = events.started("a").await;
    let pids = numbers(&printed(&orchestrator, "a", 3).await);
    assert_eq!(pids.len(), 3, "{pids:?}");
    let began = Instant::now();
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    let took = began.elapsed();
    assert!(
        took >= limit && took < limit + Duration::from_secs(5),
        "they had until its limit, and no longer: {took:?}"
    );
    assert!(marked(&mark).is_empty(), "nothing is left");
    let [one] = &stopped[..] else { panic!("{stopped:?}") };
    assert!(one.was_killed && one.survivors.is_empty(), "{one:?}");
    assert_eq!(one.exit, Some(ExitStatus::Signal { signal: 15, core: false }), "the service itself had ended");
    // The one in the group had the signal too, and has ended by that.
    assert_eq!(one.swept.len(), 2, "{pids:?}: {one:?}");
    assert!(one.swept.iter().all(|pid| pids.contains(pid)) && !one.swept.contains(&own), "{pids:?}: {one:?}");
    pids.iter().for_each(|pid| gone_within(*pid, Duration::ZERO));
    let swept = events.next("a", |event| match event {
        Event::Swept { pids } => Some(pids.clone()),
        _ => None,
    });
    assert_eq!(swept.await, one.swept);
}

/// A stop is for all of the tree: the service itself ends at once, and its child a little later, with what it has to do.
async fn a_child_that_takes_its_time_is_let_end() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let done = scratch.path("done");
    let script = format!(
        "sh -c 'trap \"sleep 0.3; echo > {0}; exit 0\" TERM; echo up; while :; do sleep 0.01; done' & \
         trap 'exit 0' TERM; while :; do sleep 0.01; done",
        done.display()
    );
    let a = shell("a", &script).ready_line("up").stop_limit(LONG).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert_eq!((stopped[0].is_clean(), stopped[0].exit), (true, Some(ExitStatus::Code(0))), "{stopped:?}");
    assert!(done.exists(), "it has done what it had to");
}

async fn grandchildren_of_one_that_ended_are_swept() {
    if !has("setsid") {
        return;
    }
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let mark = mark();
    // It ends once all of its grandchildren are there.
    let (scratch, script) = (Scratch::new(), format!("{TREE} until test -e \"$GO\"; do sleep 0.01; done; exit 5"));
    let go = scratch.path("go");
    let spec = pm::Spec::program("sh").arg("-c").arg(script).env(MARK, &mark).env("GO", &go).build().unwrap();
    let service = pm::service::Service::new("a", spec).build().unwrap();
    within(orchestrator.start_many([service])).await.unwrap();
    let pids = numbers(&printed(&orchestrator, "a", 3).await);
    fs::write(&go, "").unwrap();
    let swept = events
        .next("a", |event| match event {
            Event::Swept { pids } => Some(pids.clone()),
            _ => None,
        })
        .await;
    events.crashed("a").await;
    assert!(marked(&mark).is_empty(), "nothing is left");
    for pid in pids {
        assert!(swept.contains(&pid), "{pid}: {swept:?}");
    }
}

/// Whoever has the other end of the pipe and is not of the service's tree keeps it open.
async fn who_holds_the_output_delays_nothing() {
    let orchestrator = orchestrator();
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").stop_limit(LONG).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let pid = pid(&orchestrator, "a").await;
    let held: Vec<fs::File> = [1, 2]
        .map(|fd| fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/{fd}")).expect("its pipe"))
        .into();
    let began = Instant::now();
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(stopped[0].is_clean(), "{stopped:?}");
    within(orchestrator.start_service("a")).await.unwrap();
    drop(held);
}

async fn other_signals_and_commands_ask_as_well() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let script = "trap 'exit 9' INT; trap '' TERM; echo up; while :; do sleep 0.01; done";
    let by_signal = shell("signal", script).ready_line("up").stop_signal(Signal::INT).stop_limit(LONG).build().unwrap();
    let go = scratch.path("go");
    let script = format!("trap '' TERM; echo up; until test -e {}; do sleep 0.01; done; exit 8", go.display());
    let command = sh(&format!("echo $PM_PID > {0}.new; mv {0}.new {0}; exit 1", go.display()));
    let by_command = shell("command", &script).ready_line("up").stop_command(command).stop_limit(LONG);
    within(orchestrator.start_many([by_signal, by_command.build().unwrap()])).await.unwrap();
    let pid = pid(&orchestrator, "command").await;
    let stopped = within(orchestrator.stop_within(["signal", "command"], None)).await.unwrap();
    let exits: Vec<_> = stopped.iter().map(|one| (one.label.to_string(), one.exit)).collect();
    for expected in
        [("signal".to_string(), Some(ExitStatus::Code(9))), ("command".to_string(), Some(ExitStatus::Code(8)))]
    {
        assert!(exits.contains(&expected), "{stopped:?}");
    }
    assert!(stopped.iter().all(|one| !one.was_killed), "{stopped:?}");
    assert_eq!(fs::read_to_string(go).unwrap().trim(), pid.to_string());
}

async fn a_stop_command_that_hangs_delays_nothing() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("pid");
    let command = sh(&format!("echo $$ > {}; exec sleep 1000", file.display()));
    let limit = Duration::from_millis(500);
    let a = shell("a", RESTS).stop_command(command).stop_limit(limit).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let began = Instant::now();
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert!(began.elapsed() < limit + Duration::from_secs(5));
    assert!(stopped[0].was_killed, "{stopped:?}");
    if let Ok(pid) = fs::read_to_string(&file).unwrap_or_default().trim().parse() {
        gone_within(pid, Duration::from_secs(5));
    }
}

async fn a_stop_command_dies_with_the_orchestrator() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("pid");
    let command = sh(&format!("echo $$ > {}; exec sleep 1000", file.display()));
    let a = shell("a", RESTS).stop_command(command).stop_limit(LONG).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let stop = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.stop("a").await }
    });
    eventually("it is asked", || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))).await;
    stop.abort();
    let _ = stop.await;
    drop(orchestrator);
    gone_within(fs::read_to_string(&file).unwrap().trim().parse().unwrap(), Duration::from_secs(5));
}

async fn stop_during_start() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let mut events = Events::of(&orchestrator);
    let slow = shell("slow", RESTS).health(while_there(&scratch.path("never"))).start_limit(LONG);
    let next = shell("next", RESTS).needs("slow", Condition::Healthy).build().unwrap();
    orchestrator.add([slow.restart(at_once(When::Always)).build().unwrap(), next]).await.unwrap();
    let starts = ["slow", "next"].map(|name| {
        let orchestrator = orchestrator.clone();
        tokio::spawn(async move { orchestrator.start_service(name).await })
    });
    let pid = events.started("slow").await;
    within(async {
        while state(&orchestrator, "next").await != State::Waiting {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let stopped = within(orchestrator.stop("slow")).await.unwrap();
    assert_eq!(stopped[0].exit, Some(ExitStatus::Signal { signal: 15, core: false }));
    gone_within(pid, Duration::ZERO);
    let [slow, next] = starts;
    let error = within(slow).await.unwrap().unwrap_err();
    assert!(matches!(&error, StartError::Stopped { service } if service == "slow"), "{error:?}");
    let error = within(next).await.unwrap().unwrap_err();
    let StartError::DependencyFailed { path, why, .. } = &error else { panic!("{error:?}") };
    assert_eq!(path, &["next", "slow"]);
    contains(why, "slow was stopped");
    assert_eq!(
        [state(&orchestrator, "slow").await, state(&orchestrator, "next").await],
        [State::Stopped, State::Skipped]
    );
}

/// The stop is answered when what it was asked for is done, and the start when that is.
async fn start_during_stop() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let go = scratch.path("go");
    let script = format!(
        "trap 'until test -e {}; do sleep 0.01; done; exit 6' TERM; echo up; while :; do sleep 0.01; done",
        go.display()
    );
    let a = shell("a", &script).ready_line("up").stop_limit(LONG).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a])).await.unwrap();
    let first = events.started("a").await;
    let stop = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.stop("a").await }
    });
    events.next("a", |event| matches!(event, Event::Stopping { .. }).then_some(())).await;
    let start = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.start_service("a").await }
    });
    assert_eq!(state(&orchestrator, "a").await, State::Stopping);
    fs::write(&go, "").unwrap();
    let stopped = within(stop).await.unwrap().unwrap();
    assert_eq!((stopped.len(), stopped[0].exit), (1, Some(ExitStatus::Code(6))), "{stopped:?}");
    within(start).await.unwrap().unwrap();
    let second = pid(&orchestrator, "a").await;
    assert_ne!(first, second);
    assert_eq!(state(&orchestrator, "a").await, State::Healthy);
}

async fn stop_of_a_start_that_only_begins() {
    let orchestrator = orchestrator();
    orchestrator.add([shell("a", RESTS).build().unwrap()]).await.unwrap();
    for _ in 0..20 {
        let (started, stopped) = tokio::join!(within(orchestrator.start_service("a")), within(orchestrator.stop("a")));
        assert!(matches!(started, Ok(()) | Err(StartError::Stopped { .. })), "{started:?}");
        assert_eq!(stopped.unwrap().len(), 1);
        let a = info(&orchestrator, "a").await;
        assert_eq!((a.state, a.pid), (State::Stopped, None));
    }
}

async fn a_second_stop_with_less_time_counts() {
    let orchestrator = orchestrator();
    let deaf = shell("deaf", DEAF).ready_line("deaf").stop_limit(LONG).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([deaf])).await.unwrap();
    let first = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.stop("deaf").await }
    });
    events.next("deaf", |event| matches!(event, Event::Stopping { .. }).then_some(())).await;
    let began = Instant::now();
    let second = within(orchestrator.stop_within(["deaf"], Some(Duration::ZERO))).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(second[0].was_killed, "{second:?}");
    assert_eq!(within(first).await.unwrap().unwrap(), second);
}

async fn all_have_one_deadline() {
    let orchestrator = orchestrator();
    let deaf = |name: &str| shell(name, DEAF).ready_line("deaf").stop_limit(LONG);
    let chain = [
        deaf("db").build().unwrap(),
        deaf("api").needs("db", Condition::Healthy).build().unwrap(),
        deaf("web").needs("api", Condition::Healthy).build().unwrap(),
    ];
    within(orchestrator.start_many(chain)).await.unwrap();
    let began = Instant::now();
    let stopped = within(orchestrator.stop_all(Some(Duration::from_millis(300)))).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(stopped.len(), 3, "{stopped:?}");
    assert!(stopped.iter().all(|one| one.was_killed && one.exit.is_some()), "{stopped:?}");
    // The deadline is over, and the next start has nothing to do with it.
    within(orchestrator.start_all()).await.unwrap();
    within(orchestrator.stop_all(Some(Duration::ZERO))).await;
}

async fn what_does_not_run_is_not_spoken_of() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    orchestrator
        .add([
            shell("never", RESTS).build().unwrap(),
            shell("ended", "exit 4").build().unwrap(),
            shell("stopped", RESTS).build().unwrap(),
        ])
        .await
        .unwrap();
    let _ = within(orchestrator.start_named(["ended", "stopped"], true)).await;
    events.crashed("ended").await;
    within(orchestrator.stop("stopped")).await.unwrap();
    let stopped = within(orchestrator.stop_all(None)).await;
    assert_eq!(stopped, []);
    assert_eq!(within(orchestrator.stop("ended")).await.unwrap(), []);
    // An end is no stop, and stays what it was.
    let ended = info(&orchestrator, "ended").await;
    assert_eq!((ended.state, ended.exit), (State::Failed, Some(ExitStatus::Code(4))));
}

async fn a_removed_one_is_told_of_and_gone() {
    let orchestrator = orchestrator();
    let limit = Duration::from_millis(100);
    let deaf = || shell("deaf", DEAF).ready_line("deaf").stop_limit(limit).build().unwrap();
    let mut events = Events::of(&orchestrator);
    for _ in 0..2 {
        within(orchestrator.start_many([deaf()])).await.unwrap();
        let pid = events.started("deaf").await;
        let removed = within(orchestrator.remove("deaf")).await.unwrap();
        assert!(removed.len() == 1 && removed[0].was_killed, "{removed:?}");
        gone_within(pid, Duration::ZERO);
        events.next("deaf", |event| (*event == Event::Removed).then_some(())).await;
        assert_eq!(orchestrator.list().await, []);
    }
}

/// So is everything: what starts, what stops, what waits for its restart, and the grandchildren.
async fn dropping_the_last_handle_kills_everything() {
    let (orchestrator, mark) = (orchestrator(), mark());
    let marked_shell = |name: &str, script: &str| {
        let spec = pm::Spec::program("sh").arg("-c").arg(script).env(MARK, &mark).build().unwrap();
        pm::service::Service::new(name, spec)
    };
    let never = Scratch::new().path("never");
    let restart = Restart { max: None, ..at_once(When::Always) };
    let services = [
        marked_shell("rests", RESTS).build().unwrap(),
        marked_shell("tree", &format!("{} {RESTS}", if has("setsid") { TREE } else { "" })).build().unwrap(),
        marked_shell("starts", RESTS).health(while_there(&never)).build().unwrap(),
        marked_shell("stops", DEAF).ready_line("deaf").stop_limit(LONG).build().unwrap(),
        marked_shell("flaps", "exit 1").restart(restart).build().unwrap(),
    ];
    let mut events = Events::of(&orchestrator);
    orchestrator.add(services).await.unwrap();
    let _ = within(orchestrator.start_named(["rests", "tree", "stops", "flaps"], true)).await;
    let _ = tokio::time::timeout(Duration::from_millis(1), orchestrator.start_service("starts")).await;
    events.started("starts").await;
    let _ = tokio::time::timeout(Duration::from_millis(1), orchestrator.stop("stops")).await;
    events.next("stops", |event| matches!(event, Event::Stopping { .. }).then_some(())).await;
    assert!(marked(&mark).len() >= 4);
    let other = orchestrator.clone();
    drop(orchestrator);
    assert!(other.is_running("rests").await, "another handle is there");
    drop(other);
    let dropped = Instant::now();
    eventually("all are gone", || marked(&mark).is_empty()).await;
    assert!(dropped.elapsed() < Duration::from_secs(5), "{:?}", dropped.elapsed());
}

async fn signals_reach_the_whole_group() {
    let orchestrator = orchestrator();
    let script = "trap 'echo parent' USR1; sh -c 'trap \"echo child\" USR1; echo up; while :; do sleep 0.01; done' & \
                  while :; do sleep 0.01; done";
    // The second replica has one as well.
    let a = shell("a", script).ready_line("up").replicas(2).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    assert_eq!(orchestrator.signal("a", Signal::USR1).await.unwrap(), 2);
    // The sleeps that end by it are spoken of as well.
    for word in ["parent", "child"] {
        within(async {
            while orchestrator.last_lines("a", 100).await.unwrap().iter().filter(|line| *line == word).count() < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
    within(orchestrator.stop("a")).await.unwrap();
    assert_eq!(orchestrator.signal("a", Signal::USR1).await.unwrap(), 0);
}

async fn a_flood_of_signals_stands_in_no_ones_way() {
    let orchestrator: Orchestrator = orchestrator();
    let a = shell("a", "trap : USR1; echo up; while :; do sleep 0.01; done").ready_line("up").stop_limit(LONG);
    orchestrator.add([a.build().unwrap()]).await.unwrap();
    for _ in 0..5 {
        // As many as there are, while its process is being made and takes none.
        let start = tokio::time::timeout(Duration::from_micros(1), orchestrator.start_service("a")).await;
        if start.is_err() {
            for _ in 0..100 {
                orchestrator.signal("a", Signal::CONT).await.unwrap();
            }
        }
        let began = Instant::now();
        within(orchestrator.stop("a")).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
