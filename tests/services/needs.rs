//! Services that need each other, and services of several processes.

use std::fs;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{BadService, Condition, Event, Need, RemoveError, StartError, State, When};
use pm::{ExitCause, ExitStatus};

use super::{Events, RESTS, at_once, info, orchestrator, pid, printed, shell, state, wait, while_there};
use crate::support::{LONG, Scratch, contains, gone_within, kill, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::needs::who_needs_one_that_failed_is_skipped", who_needs_one_that_failed_is_skipped),
        one("services::needs::each_condition_holds_back_until_it_is_so", each_condition_holds_back_until_it_is_so),
        one("services::needs::one_that_had_to_complete_and_failed", one_that_had_to_complete_and_failed),
        one("services::needs::cycles_and_unknown_ones_are_refused", cycles_and_unknown_ones_are_refused),
        one("services::needs::without_needs_it_starts_alone", without_needs_it_starts_alone),
        one("services::needs::a_dependent_is_restarted_where_it_wants_that", a_dependent_is_restarted_where_it_wants),
        one("services::needs::a_crash_restarts_dependents_that_want_that", a_crash_restarts_dependents_that_want_that),
        one("services::needs::a_stop_leaves_dependents_alone", a_stop_leaves_dependents_alone),
        one("services::needs::what_is_needed_is_not_removed", what_is_needed_is_not_removed),
        one("services::needs::up_and_down_in_numbers", up_and_down_in_numbers),
        one("services::needs::numbers_of_one_that_is_not_up", numbers_of_one_that_is_not_up),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn who_needs_one_that_failed_is_skipped() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let mut events = Events::of(&orchestrator);
    let db = shell("db", "echo no disk; exit 1").health(while_there(&scratch.path("never"))).build().unwrap();
    let api = shell("api", RESTS).needs("db", Condition::Healthy).build().unwrap();
    let web = shell("web", RESTS).needs("api", Condition::Started).build().unwrap();
    let other = shell("other", RESTS).build().unwrap();
    orchestrator.add([web, api, db, other]).await.unwrap();
    let error = within(orchestrator.start_service("web")).await.unwrap_err();
    let StartError::DependencyFailed { path, why, output } = &error else { panic!("{error:?}") };
    assert_eq!((path.join(" "), output.join(" ")), ("web api db".into(), "no disk".into()));
    contains(why, "needs api (started)");
    contains(error.to_string(), "web → api → db was not started: ");
    contains(error.to_string(), "\n  | no disk");
    let reason = |event: &Event| match event {
        Event::Skipped { reason } => Some(reason.clone()),
        _ => None,
    };
    contains(events.next("api", reason).await, "needs db (healthy); db failed: ");
    contains(events.next("web", reason).await, "needs api (started); api was skipped");
    for (name, expected) in
        [("db", State::Failed), ("api", State::Skipped), ("web", State::Skipped), ("other", State::Idle)]
    {
        assert_eq!(state(&orchestrator, name).await, expected, "{name}");
    }
    // The others go on.
    assert!(within(orchestrator.start_all()).await.is_err());
    wait(&orchestrator, "other", Condition::Running).await;
    within(orchestrator.stop_all(None)).await;
}

async fn each_condition_holds_back_until_it_is_so() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let go = scratch.path("go");
    let waits = format!("until test -e {}; do sleep 0.01; done;", go.display());
    let mut events = Events::of(&orchestrator);
    let services = [
        shell("line", &format!("{waits} echo up; {RESTS}")).ready_line("up").build().unwrap(),
        shell("probe", RESTS).health(while_there(&go)).build().unwrap(),
        shell("ends", &format!("{waits} exit 0")).build().unwrap(),
        shell("fails", &format!("{waits} exit 2")).build().unwrap(),
        shell("lives", RESTS).build().unwrap(),
    ];
    orchestrator.add(services).await.unwrap();
    let needs = [
        ("line", Condition::LogReady),
        ("line", Condition::Healthy),
        ("probe", Condition::Healthy),
        ("ends", Condition::Completed),
        ("ends", Condition::CompletedSuccessfully),
        ("fails", Condition::Completed),
        ("lives", Condition::Running),
    ];
    let after = needs
        .map(|(on, condition)| shell(&format!("after-{on}-{condition}"), RESTS).needs(on, condition).build().unwrap());
    let names: Vec<String> = after.iter().map(|service| service.name().to_string()).collect();
    let started = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.start_many(after).await }
    });
    for name in &names {
        events.next(name, |event| matches!(event, Event::Waiting { .. }).then_some(())).await;
    }
    for name in names.iter().filter(|name| !name.contains("lives")) {
        let one = info(&orchestrator, name).await;
        assert_eq!((one.state, one.pid), (State::Waiting, None), "{name}");
        contains(one.why.unwrap(), "needs ");
    }
    fs::write(&go, "").unwrap();
    within(started).await.unwrap().unwrap();
    let after_a_second =
        info(&orchestrator, "lives").await.lived - info(&orchestrator, "after-lives-running").await.lived;
    assert!(after_a_second >= Duration::from_millis(950), "{after_a_second:?}");
    within(orchestrator.stop_all(None)).await;
}

async fn one_that_had_to_complete_and_failed() {
    let orchestrator = orchestrator();
    let migrate = shell("migrate", "echo no table >&2; exit 3").build().unwrap();
    let app = shell("app", RESTS).needs("migrate", Condition::CompletedSuccessfully).build().unwrap();
    orchestrator.add([migrate, app]).await.unwrap();
    let error = within(orchestrator.start_service("app")).await.unwrap_err();
    let StartError::DependencyFailed { path, output, .. } = &error else { panic!("{error:?}") };
    assert_eq!((path.join(" "), output.join(" ")), ("app migrate".into(), "no table".into()));
}

async fn cycles_and_unknown_ones_are_refused() {
    let orchestrator = orchestrator();
    let needs = |name: &str, on: &str| shell(name, RESTS).needs(on, Condition::Started).build().unwrap();
    let error = orchestrator.add([needs("a", "b"), needs("b", "c"), needs("c", "a")]).await.unwrap_err();
    assert!(matches!(error, StartError::Bad(BadService::Needs(_))), "{error:?}");
    for name in ["a", "b", "c"] {
        contains(error.to_string(), name);
    }
    let error = orchestrator.add([needs("a", "nobody")]).await.unwrap_err();
    contains(error.to_string(), "nobody");
    let healthy = shell("b", RESTS).needs("a", Condition::Healthy).build().unwrap();
    let error = orchestrator.add([shell("a", RESTS).build().unwrap(), healthy]).await.unwrap_err();
    contains(error.to_string(), "nothing says when it is");
    assert_eq!(orchestrator.list().await, []);
}

async fn without_needs_it_starts_alone() {
    let orchestrator = orchestrator();
    let db = shell("db", RESTS).build().unwrap();
    let api = shell("api", RESTS).needs("db", Condition::Started).build().unwrap();
    orchestrator.add([db, api]).await.unwrap();
    within(orchestrator.start_named(["api"], false)).await.unwrap();
    assert!(orchestrator.is_running("api").await && !orchestrator.is_running("db").await);
}

/// A service, one that is restarted with it, and one that is not.
async fn three(orchestrator: &pm::service::Orchestrator) -> [u32; 3] {
    let up = |name: &str| shell(name, "echo up; exec sleep 1000").ready_line("up").restart(at_once(When::Always));
    let with = Need { restart: true, ..Need::new("db", Condition::Healthy) };
    let services = [
        up("db").build().unwrap(),
        up("with").need(with).build().unwrap(),
        up("without").needs("db", Condition::Healthy).build().unwrap(),
    ];
    within(orchestrator.start_many(services)).await.unwrap();
    pids(orchestrator).await
}

async fn pids(orchestrator: &pm::service::Orchestrator) -> [u32; 3] {
    [pid(orchestrator, "db").await, pid(orchestrator, "with").await, pid(orchestrator, "without").await]
}

async fn a_dependent_is_restarted_where_it_wants() {
    let orchestrator = orchestrator();
    let before = three(&orchestrator).await;
    let mut events = Events::of(&orchestrator);
    within(orchestrator.restart("db")).await.unwrap();
    events.healthy("with").await;
    let after = pids(&orchestrator).await;
    assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2], "{before:?}, {after:?}");
    assert_eq!(info(&orchestrator, "with").await.restarts, 0, "it did not fail");
}

async fn a_crash_restarts_dependents_that_want_that() {
    let orchestrator = orchestrator();
    let before = three(&orchestrator).await;
    let mut events = Events::of(&orchestrator);
    kill(before[0], rustix::process::Signal::KILL);
    let (cause, _) = events.crashed("db").await;
    assert_eq!(cause, ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false }));
    events.healthy("with").await;
    let after = pids(&orchestrator).await;
    assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2], "{before:?}, {after:?}");
}

async fn a_stop_leaves_dependents_alone() {
    let orchestrator = orchestrator();
    let before = three(&orchestrator).await;
    within(orchestrator.stop("db")).await.unwrap();
    assert!(orchestrator.is_running("with").await && orchestrator.is_running("without").await);
    within(orchestrator.start_service("db")).await.unwrap();
    let after = pids(&orchestrator).await;
    assert!(before[0] != after[0] && before[1..] == after[1..], "{before:?}, {after:?}");
}

async fn what_is_needed_is_not_removed() {
    let orchestrator = orchestrator();
    let before = three(&orchestrator).await;
    let error = within(orchestrator.remove("db")).await.unwrap_err();
    let RemoveError::Needed { service, by } = &error else { panic!("{error:?}") };
    assert_eq!((service.as_str(), by.join(" ")), ("db", "with without".into()));
    contains(error.to_string(), "remove that first");
    assert_eq!(pids(&orchestrator).await, before, "nothing was done");
    for name in ["with", "without", "db"] {
        let removed = within(orchestrator.remove(name)).await.unwrap();
        assert!(removed.len() == 1 && removed[0].is_clean(), "{removed:?}");
    }
    assert!(matches!(orchestrator.remove("db").await, Err(RemoveError::NotFound(_))));
    before.into_iter().for_each(|pid| gone_within(pid, Duration::ZERO));
}

/// Waits until these are gone, whichever goes first.
async fn removed(events: &mut Events, labels: &[&str]) {
    let mut gone = Vec::new();
    while gone.len() < labels.len() {
        let happening = within(events.0.recv()).await.unwrap();
        gone.extend((happening.event == Event::Removed).then(|| happening.label.to_string()));
    }
    gone.sort();
    assert_eq!(gone, labels);
}

async fn up_and_down_in_numbers() {
    let orchestrator = orchestrator();
    let script = "echo $PM_SERVICE $PM_REPLICA; exec sleep 1000";
    within(orchestrator.start_many([shell("a", script).ready_line("^a").replicas(2).build().unwrap()])).await.unwrap();
    let labels = async || {
        let all = orchestrator.info("a").await.unwrap();
        all.iter().map(|one| format!("{} {}", one.label, one.state)).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(labels().await, "a healthy, a#2 healthy");
    within(orchestrator.scale("a", 4)).await.unwrap();
    assert_eq!(labels().await, "a healthy, a#2 healthy, a#3 healthy, a#4 healthy");
    assert_eq!(printed(&orchestrator, "a", 4).await, ["a 1", "a#2 2", "a#3 3", "a#4 4"]);
    let before: Vec<u32> = orchestrator.info("a").await.unwrap().iter().map(|one| one.pid.unwrap()).collect();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.scale("a", 1)).await.unwrap();
    removed(&mut events, &["a#2", "a#3", "a#4"]).await;
    assert_eq!(labels().await, "a healthy");
    assert_eq!(pid(&orchestrator, "a").await, before[0]);
    before[1..].iter().for_each(|pid| gone_within(*pid, Duration::ZERO));
    within(orchestrator.scale("a", 2)).await.unwrap();
    assert_eq!(labels().await, "a healthy, a#2 healthy");
    within(orchestrator.scale("a", 0)).await.unwrap();
    removed(&mut events, &["a", "a#2"]).await;
    assert_eq!(orchestrator.info("a").await.unwrap(), [], "it is there, without a process");
    within(orchestrator.scale("a", 1)).await.unwrap();
    assert_eq!(labels().await, "a healthy");
    // One that is still on its way out comes back with its number.
    within(orchestrator.scale("a", 3)).await.unwrap();
    within(orchestrator.scale("a", 1)).await.unwrap();
    within(orchestrator.scale("a", 3)).await.unwrap();
    assert_eq!(labels().await, "a healthy, a#2 healthy, a#3 healthy");
    assert_eq!(within(orchestrator.stop("a")).await.unwrap().len(), 3);
}

/// It has so many when it is started.
async fn numbers_of_one_that_is_not_up() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    orchestrator.add([shell("a", RESTS).stop_limit(LONG).build().unwrap()]).await.unwrap();
    within(orchestrator.scale("a", 3)).await.unwrap();
    assert_eq!(orchestrator.info("a").await.unwrap().len(), 3);
    assert_eq!(events.words(), [""; 0]);
    within(orchestrator.start_service("a")).await.unwrap();
    assert!(orchestrator.info("a").await.unwrap().iter().all(|one| one.pid.is_some()));
    within(orchestrator.stop("a")).await.unwrap();
    within(orchestrator.scale("a", 1)).await.unwrap();
    assert_eq!(orchestrator.info("a").await.unwrap().len(), 1);
    within(orchestrator.remove("a")).await.unwrap();
}
