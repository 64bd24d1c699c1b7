//! How services start: what they are given, and why they cannot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::core::driver::launch::LaunchError;
use pm::service::{BadService, Condition, Orchestrator, Service, StartError, State, Stdin, WaitError};
use pm::{ExitCause, ExitStatus, Spec, SpecBuilder};

use super::{Events, RESTS, info, orchestrator, pid, printed, sh, shell, state, wait, while_there};
use crate::support::{LONG, Scratch, contains, eventually, gone_within, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::start::a_chain_starts_in_order_and_stops_in_reverse", a_chain),
        one("services::start::a_missing_program_is_an_error", a_missing_program),
        one("services::start::a_program_that_may_not_run_is_an_error", a_program_that_may_not_run),
        one("services::start::a_bad_working_directory_is_an_error", a_bad_working_directory),
        one("services::start::a_name_that_is_unknown_or_taken_is_an_error", a_name_that_is_unknown_or_taken),
        one("services::start::an_end_before_it_is_ready_is_told_with_its_last_lines", an_end_before_it_is_ready),
        one(
            "services::start::an_error_is_told_with_the_lines_of_its_own_life",
            an_error_is_told_with_the_lines_of_its_own_life,
        ),
        one("services::start::an_end_of_one_without_a_probe_is_told_by_events_and_waits", an_end_without_a_probe),
        one("services::start::arguments_reach_a_service_unchanged", arguments_reach_a_service_unchanged),
        one("services::start::what_is_up_is_not_started_again", what_is_up_is_not_started_again),
        one("services::start::started_again_after_each_sort_of_end", started_again_after_each_sort_of_end),
        one("services::start::a_dropped_start_goes_on", a_dropped_start_goes_on),
        one("services::start::it_is_told_who_it_is", it_is_told_who_it_is),
        one("services::start::it_has_three_descriptors", it_has_three_descriptors),
        one("services::start::the_shared_orchestrator_is_one", the_shared_orchestrator_is_one),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn a_chain() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let db = shell("db", "echo up; exec sleep 1000").ready_line("^up$").build().unwrap();
    let api = shell("api", RESTS).needs("db", Condition::Healthy).build().unwrap();
    within(orchestrator.start_many([api, db])).await.unwrap();
    assert_eq!(
        [state(&orchestrator, "db").await, state(&orchestrator, "api").await],
        [State::Healthy, State::Starting]
    );
    wait(&orchestrator, "api", Condition::Running).await;
    assert_eq!(state(&orchestrator, "api").await, State::Running);
    let stopped = within(orchestrator.stop_all(None)).await;
    assert!(stopped.iter().all(|one| one.is_clean()), "{stopped:?}");
    assert_eq!(stopped.iter().map(|one| &*one.label).collect::<Vec<_>>(), ["api", "db"]);
    let seen: Vec<String> = events.words();
    let seen: Vec<&str> =
        seen.iter().map(String::as_str).filter(|word| word.contains("Start") || word.contains("Stop")).collect();
    assert_eq!(
        seen,
        [
            "db Starting",
            "db Started",
            "api Starting",
            "api Started",
            "api Stopping",
            "api Stopped",
            "db Stopping",
            "db Stopped"
        ]
    );
}

/// The error of a service of this name and Spec, which does not start.
async fn refused(orchestrator: &Orchestrator, name: &str, spec: SpecBuilder) -> StartError {
    let service = Service::new(name, spec.build().unwrap()).build().unwrap();
    within(orchestrator.start_many([service])).await.unwrap_err()
}

/// The typed reason why no process could be made.
#[track_caller]
fn launch_error(error: &StartError) -> &LaunchError {
    match error {
        StartError::Launch { error, .. } => error,
        other => panic!("StartError::Launch was expected, {other:?} came"),
    }
}

async fn a_missing_program() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let began = Instant::now();
    let error = refused(&orchestrator, "a", Spec::program("/no/such/program")).await;
    assert!(matches!(launch_error(&error), LaunchError::NotFound { .. }), "{error:?}");
    contains(error.to_string(), "a could not be started: ");
    contains(error.to_string(), "/no/such/program");
    assert!(began.elapsed() < Duration::from_secs(5));
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.pid), (State::Failed, None));
    contains(a.why.unwrap(), "/no/such/program");
    assert_eq!(events.words(), ["a Starting", "a Crashed"]);
    // It is there nevertheless, and what is wrong may have been mended.
    let error = within(orchestrator.start_service("a")).await.unwrap_err();
    assert!(matches!(launch_error(&error), LaunchError::NotFound { .. }), "{error:?}");
}

async fn a_program_that_may_not_run() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let script = scratch.path("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o600)).unwrap();
    let error = refused(&orchestrator, "a", Spec::program(&script)).await;
    assert!(matches!(launch_error(&error), LaunchError::PermissionDenied { .. }), "{error:?}");
    contains(error.to_string(), "chmod +x");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let error = refused(&orchestrator, "b", Spec::program(&script)).await;
    assert!(matches!(launch_error(&error), LaunchError::BadInterpreter { .. }), "{error:?}");
}

async fn a_bad_working_directory() {
    let orchestrator = orchestrator();
    let error = refused(&orchestrator, "a", Spec::program("true").cwd("/no/such/directory")).await;
    assert!(matches!(launch_error(&error), LaunchError::BadWorkingDirectory { .. }), "{error:?}");
    contains(error.to_string(), "create it, or choose another");
}

async fn a_name_that_is_unknown_or_taken() {
    let orchestrator = orchestrator();
    let a = || shell("a", RESTS).build().unwrap();
    orchestrator.add([a()]).await.unwrap();
    let error = orchestrator.start_service("b").await.unwrap_err();
    assert!(matches!(&error, StartError::NotFound(_)), "{error:?}");
    assert_eq!(error.to_string(), "there is no service \"b\"; there are a");
    let error = orchestrator.add([shell("b", RESTS).build().unwrap(), a()]).await.unwrap_err();
    assert!(matches!(error, StartError::Bad(BadService::Needs(_))), "{error:?}");
    contains(error.to_string(), "\"a\"");
    assert_eq!(orchestrator.list().await.len(), 1, "none of them was added");
    assert_eq!(orchestrator.stop("b").await.unwrap_err().known, ["a"]);
    assert!(orchestrator.info("b").await.is_err() && orchestrator.last_lines("b", 1).await.is_err());
    assert!(matches!(orchestrator.wait("b", Condition::Started).await, Err(WaitError::NotFound(_))));
    assert_eq!(state(&orchestrator, "a").await, State::Idle);
}

async fn an_end_before_it_is_ready() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let script = "echo one; echo two >&2; printf 'no port\\033[31m'; exit 1";
    let probed = shell("a", script).health(while_there(&scratch.path("never"))).build().unwrap();
    let error = within(orchestrator.start_many([probed])).await.unwrap_err();
    let StartError::Failed { service, cause, why, output } = &error else { panic!("{error:?}") };
    assert_eq!((service.as_str(), cause), ("a", &Some(ExitCause::Exited(ExitStatus::Code(1)))));
    contains(why, "1");
    assert_eq!(output.len(), 3, "{output:?}");
    // The two streams are read on their own, so which was first is not known.
    for line in ["one", "two", "no port\\u{1b}[31m"] {
        assert!(output.iter().any(|printed| printed == line), "{output:?}");
        contains(error.to_string(), &format!("\n  | {line}"));
    }
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.exit, a.pid), (State::Failed, Some(ExitStatus::Code(1)), None));
}

/// What an earlier life printed is no reason why this one failed.
async fn an_error_is_told_with_the_lines_of_its_own_life() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let tried = scratch.path("tried");
    let script = format!("test -e {0} && exit 2; echo > {0}; echo alas; exit 1", tried.display());
    orchestrator.add([shell("a", &script).health(while_there(&scratch.path("never"))).build().unwrap()]).await.unwrap();
    for expected in [&["alas"][..], &[]] {
        let error = within(orchestrator.start_service("a")).await.unwrap_err();
        let StartError::Failed { output, .. } = &error else { panic!("{error:?}") };
        assert_eq!(output, expected);
    }
    assert_eq!(orchestrator.last_lines("a", 10).await.unwrap(), ["alas"], "whoever looks at it sees all of them");
}

/// Nothing says when such a service is ready, so it is up as soon as there is a process; what becomes of it is told later.
async fn an_end_without_a_probe() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    orchestrator.add([shell("a", "echo alas; exit 3").build().unwrap()]).await.unwrap();
    match within(orchestrator.start_service("a")).await {
        Ok(()) | Err(StartError::Failed { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(events.crashed("a").await, (ExitCause::Exited(ExitStatus::Code(3)), false));
    let error = within(orchestrator.wait("a", Condition::Running)).await.unwrap_err();
    let WaitError::Never { why, .. } = &error else { panic!("{error:?}") };
    contains(why, "a failed");
    wait(&orchestrator, "a", Condition::Completed).await;
    assert!(orchestrator.wait("a", Condition::CompletedSuccessfully).await.is_err());
    assert_eq!(orchestrator.last_lines("a", 5).await.unwrap(), ["alas"]);
}

async fn arguments_reach_a_service_unchanged() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("arguments");
    let given = ["-n", "--help", "two\nlines", "$(echo evil)", "`echo evil`", "a  b", "", "*", "ä'\"\\", "; exit 9"];
    let spec = Spec::program("sh")
        .arg("-c")
        .arg("for argument; do printf '%s\\0' \"$argument\"; done > \"$0\"")
        .arg(&file)
        .args(given);
    let service = Service::new("a", spec.build().unwrap()).build().unwrap();
    within(orchestrator.start_many([service])).await.unwrap();
    wait(&orchestrator, "a", Condition::CompletedSuccessfully).await;
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.split_terminator('\0').collect::<Vec<_>>(), given);
}

async fn what_is_up_is_not_started_again() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([shell("a", RESTS).build().unwrap()])).await.unwrap();
    let first = events.started("a").await;
    within(orchestrator.start_service("a")).await.unwrap();
    within(orchestrator.start_all()).await.unwrap();
    assert_eq!(pid(&orchestrator, "a").await, first);
    assert!(!events.words().contains(&"a Starting".to_string()));
}

async fn started_again_after_each_sort_of_end() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("fails");
    let script = format!("test -e {0} && exit 1; test -e {0}-not && exit 0; echo up; {RESTS}", file.display());
    orchestrator.add([shell("a", &script).ready_line("up").build().unwrap()]).await.unwrap();
    let start = || within(orchestrator.start_service("a"));
    start().await.unwrap();
    within(orchestrator.stop("a")).await.unwrap();
    assert_eq!(state(&orchestrator, "a").await, State::Stopped);
    start().await.unwrap();
    within(orchestrator.stop("a")).await.unwrap();
    fs::write(&file, "").unwrap();
    assert!(matches!(start().await, Err(StartError::Failed { .. })));
    fs::rename(&file, scratch.path("fails-not")).unwrap();
    start().await.unwrap();
    assert_eq!(state(&orchestrator, "a").await, State::Completed);
    fs::remove_file(scratch.path("fails-not")).unwrap();
    start().await.unwrap();
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.incarnation.0, a.restarts), (State::Healthy, 5, 0));
}

async fn a_dropped_start_goes_on() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let ready = scratch.path("ready");
    let mut events = Events::of(&orchestrator);
    orchestrator.add([shell("a", RESTS).health(while_there(&ready)).build().unwrap()]).await.unwrap();
    let first = tokio::time::timeout(Duration::from_millis(20), orchestrator.start_service("a")).await;
    assert!(first.is_err(), "it is not ready");
    events.started("a").await;
    fs::write(&ready, "").unwrap();
    events.healthy("a").await;
}

async fn it_is_told_who_it_is() {
    let orchestrator = orchestrator();
    let script = "echo $PM_SERVICE $PM_REPLICA; cat; echo $?; exec sleep 1000";
    within(orchestrator.start_many([shell("who", script).title("Who?").build().unwrap()])).await.unwrap();
    // Its standard input is empty, and not that of this program.
    assert_eq!(printed(&orchestrator, "who", 2).await, ["who 1", "0"]);
}

/// And its standard input is that of this program, where it is to be.
async fn it_has_three_descriptors() {
    let orchestrator = orchestrator();
    let with = shell("with", RESTS).stdin(Stdin::Inherit).build().unwrap();
    within(orchestrator.start_many([with, shell("without", RESTS).build().unwrap()])).await.unwrap();
    let own = fs::read_link("/proc/self/fd/0").unwrap();
    for (name, stdin) in [("with", own), ("without", "/dev/null".into())] {
        let directory = format!("/proc/{}/fd", pid(&orchestrator, name).await);
        // A shell has more of them while it reads a script.
        eventually("it rests", || fs::read_dir(&directory).is_ok_and(|fds| fds.count() == 3)).await;
        assert_eq!(fs::read_link(format!("{directory}/0")).unwrap(), stdin);
    }
}

async fn the_shared_orchestrator_is_one() {
    let (one, other) = (pm::service::orchestrator().unwrap(), pm::service::orchestrator().unwrap());
    let pid = {
        let mut events = Events::of(&other);
        within(one.start_many([Service::new("shared", sh(RESTS)).start_limit(LONG).build().unwrap()])).await.unwrap();
        events.started("shared").await
    };
    drop(one);
    assert!(other.is_running("shared").await);
    let removed = within(other.remove("shared")).await.unwrap();
    assert_eq!(removed.len(), 1, "{removed:?}");
    gone_within(pid, Duration::ZERO);
    assert!(other.list().await.iter().all(|info| info.name != "shared"));
}
