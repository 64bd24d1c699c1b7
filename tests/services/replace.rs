//! Services in place of others: what did not change goes on with its process, what changed begins anew, what goes is gone with all that it has started, and
//! what cannot be changes nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{
    BadService, Condition, Event, LogFile, Moment, Need, Orchestrator, Probe, ReplaceError, Replaced, Service,
    ServiceBuilder, State, When,
};
use tokio::sync::mpsc;

use super::{DEAF, Events, RESTS, at_once, info, numbers, orchestrator, pid, printed, sh, shell, state, wait};
use crate::processes::has;
use crate::support::{MARK, Scratch, contains, gone_within, mark, marked, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::replace::what_did_not_change_keeps_its_process", what_did_not_change_keeps_its_process),
        one("services::replace::who_goes_is_gone_with_its_children", who_goes_is_gone_with_its_children),
        one("services::replace::one_that_cannot_be_changes_nothing", one_that_cannot_be_changes_nothing),
        one("services::replace::a_process_ends_as_it_was_and_begins_as_it_is", a_process_ends_as_it_was),
        one("services::replace::each_thing_that_is_said_counts", each_thing_that_is_said_counts),
        one("services::replace::a_log_is_opened_anew_where_it_is_another", a_log_is_opened_anew),
        one("services::replace::replacements_without_pause_leave_one_process", replacements_without_pause),
        one("services::replace::what_is_named_is_started_with_it", what_is_named_is_started_with_it),
        one("services::replace::who_waits_is_answered", who_waits_is_answered),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn rests(name: &str) -> ServiceBuilder {
    shell(name, RESTS)
}

async fn replace(orchestrator: &Orchestrator, services: impl IntoIterator<Item = ServiceBuilder>) -> Replaced {
    let services: Vec<Service> = services.into_iter().map(|one| one.build().unwrap()).collect();
    within(orchestrator.replace(services)).await.expect("services that can be")
}

fn replaced(added: &[&str], changed: &[&str], removed: &[&str]) -> Replaced {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    Replaced { added: names(added), changed: names(changed), removed: names(removed) }
}

async fn what_did_not_change_keeps_its_process() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let web = || rests("web").needs("api", Condition::Started);
    let api = |seconds: u32| shell("api", &format!("exec sleep {seconds}")).needs("db", Condition::Started);
    within(orchestrator.start_many([web(), api(1000), rests("db")].map(|one| one.build().unwrap()))).await.unwrap();
    let pids = [events.started("db").await, events.started("api").await, events.started("web").await];
    assert!(replace(&orchestrator, [web(), api(1000), rests("db")]).await.is_empty());
    // Also in another order.
    assert_eq!(replace(&orchestrator, [rests("db"), web(), api(2000)]).await, replaced(&[], &["api"], &[]));
    let again = events.started("api").await;
    assert_ne!(again, pids[1]);
    gone_within(pids[1], Duration::ZERO);
    assert_eq!([pid(&orchestrator, "db").await, pid(&orchestrator, "web").await], [pids[0], pids[2]]);
    assert_eq!(pid(&orchestrator, "api").await, again);
    // Those that want to be started anew with it are.
    let along = || rests("along").need(Need { restart: true, ..Need::new("api", Condition::Started) });
    assert_eq!(replace(&orchestrator, [rests("db"), web(), api(2000), along()]).await, replaced(&["along"], &[], &[]));
    assert_eq!(state(&orchestrator, "along").await, State::Idle);
    within(orchestrator.start_service("along")).await.unwrap();
    let along_before = events.started("along").await;
    replace(&orchestrator, [rests("db"), web(), api(3000), along()]).await;
    assert_ne!(events.started("along").await, along_before);
    assert_eq!([pid(&orchestrator, "db").await, pid(&orchestrator, "web").await], [pids[0], pids[2]]);
}

async fn who_goes_is_gone_with_its_children() {
    if !has("setsid") {
        return;
    }
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let mark = mark();
    let tree =
        format!("setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & sh -c 'echo $$; exec sleep 1000' & {RESTS}");
    let spec = pm::Spec::program("sh").arg("-c").arg(tree).env(MARK, &mark).build().unwrap();
    let db = Service::new("db", spec).stop_limit(Duration::from_millis(300));
    let api = || shell("api", DEAF).ready_line("deaf").needs("db", Condition::Started);
    let services = [db, api().stop_limit(Duration::from_millis(300)), rests("stays")];
    within(orchestrator.start_many(services.map(|one| one.build().unwrap()))).await.unwrap();
    let [api, stays] = [pid(&orchestrator, "api").await, pid(&orchestrator, "stays").await];
    let children = numbers(&printed(&orchestrator, "db", 2).await);
    assert_eq!(children.len(), 2, "{children:?}");
    assert_eq!(replace(&orchestrator, [rests("stays")]).await, replaced(&[], &[], &["db", "api"]));
    // In order, and each with all that it has started.
    let is_removed = |event: &Event| (*event == Event::Removed).then_some(());
    events.next("api", is_removed).await;
    gone_within(api, Duration::ZERO);
    events.next("db", is_removed).await;
    children.iter().for_each(|pid| gone_within(*pid, Duration::ZERO));
    assert!(marked(&mark).is_empty());
    let left = orchestrator.list().await;
    assert!(left.len() == 1 && left[0].pid == Some(stays), "{left:?}");
    // The name is free, for what is added by itself as well.
    within(orchestrator.start_many([rests("db").build().unwrap()])).await.unwrap();
}

async fn one_that_cannot_be_changes_nothing() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([rests("a"), rests("b")].map(|one| one.build().unwrap()))).await.unwrap();
    wait(&orchestrator, "a", Condition::Running).await;
    wait(&orchestrator, "b", Condition::Running).await;
    events.words();
    let before: Vec<_> = orchestrator.list().await.into_iter().map(|info| (info.label, info.pid)).collect();
    let refused = async |services: Vec<ServiceBuilder>| {
        let services: Vec<Service> = services.into_iter().map(|one| one.build().unwrap()).collect();
        let error = within(orchestrator.replace(services)).await.unwrap_err();
        assert!(matches!(error, ReplaceError::Bad(BadService::Needs(_))), "{error:?}");
        error.to_string()
    };
    let other = || shell("b", "exec sleep 2000");
    contains(refused(vec![rests("a").needs("c", Condition::Started), other()]).await, "\"c\", which does not exist");
    contains(refused(vec![rests("a"), other(), rests("a")]).await, "\"a\" is named twice");
    let round = vec![rests("a").needs("b", Condition::Started), other().needs("a", Condition::Started)];
    contains(refused(round).await, "a cycle of needs");
    contains(refused(vec![rests("a").needs("b", Condition::Healthy), other()]).await, "give it a probe");
    let after: Vec<_> = orchestrator.list().await.into_iter().map(|info| (info.label, info.pid)).collect();
    assert_eq!(after, before);
    assert_eq!(events.words(), [""; 0]);
}

/// A stop signal, a stop limit and a hook of then; a probe, a variable and a hook of now.
async fn a_process_ends_as_it_was() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let (sender, mut hooks) = mpsc::channel(16);
    let hook = move |which: &'static str| {
        let sender = sender.clone();
        move |_| {
            let sender = sender.clone();
            async move { sender.send(which).await.map_err(|error| error.to_string()) }
        }
    };
    let said = scratch.path("said");
    let script = |signal: &str| {
        format!("trap 'echo {signal} >> {}; exit' {signal}; echo up; while :; do sleep 0.01; done", said.display())
    };
    let old = shell("a", &script("INT")).ready_line("up").stop_signal(pm::Signal::INT).hook(Moment::Stop, hook("old"));
    within(orchestrator.start_many([old.build().unwrap()])).await.unwrap();
    let there = scratch.path("there");
    let probe = Probe::command(sh(&format!("test -e {}", there.display()))).interval(Duration::from_millis(20));
    let new = || shell("a", &script("TERM")).health(probe.clone());
    replace(&orchestrator, [new().hook(Moment::Stop, hook("new"))]).await;
    assert_eq!(within(hooks.recv()).await, Some("old"));
    let mut events = Events::of(&orchestrator);
    events.started("a").await;
    assert_eq!(fs::read_to_string(&said).unwrap(), "INT\n");
    assert_eq!(state(&orchestrator, "a").await, State::Starting);
    fs::write(&there, "").unwrap();
    wait(&orchestrator, "a", Condition::Healthy).await;
    // A shell that has not set its trap yet dies of the signal itself.
    printed(&orchestrator, "a", 2).await;
    within(orchestrator.stop("a")).await.unwrap();
    assert_eq!(within(hooks.recv()).await, Some("new"));
    assert_eq!(fs::read_to_string(&said).unwrap(), "INT\nTERM\n");
}

async fn each_thing_that_is_said_counts() {
    let orchestrator = orchestrator();
    let env = |value: &str| Service::new("a", pm::Spec::program("sleep").arg("1000").env("A", value).build().unwrap());
    let along: [fn(ServiceBuilder) -> ServiceBuilder; 5] = [
        |one| one,
        |one| one.stop_limit(Duration::from_secs(3)),
        |one| one.health(Probe::command(sh("true"))),
        |one| one.hook_command(Moment::Crash, sh("true")),
        |one| one.restart(at_once(When::OnFailure)),
    ];
    within(orchestrator.start_many([env("0").build().unwrap()])).await.unwrap();
    let mut events = Events::of(&orchestrator);
    for (at, change) in along.into_iter().enumerate() {
        let make = || change(env(if at == 0 { "1" } else { "2" }));
        let before = pid(&orchestrator, "a").await;
        assert_eq!(replace(&orchestrator, [make()]).await, replaced(&[], &["a"], &[]), "{at}");
        let after = events.started("a").await;
        assert_ne!(after, before, "{at}");
        // What it is called is nothing that runs.
        assert!(replace(&orchestrator, [make().title("another")]).await.is_empty(), "{at}");
        assert_eq!(pid(&orchestrator, "a").await, after, "{at}");
    }
    // One that was built once is the same, with the code that it has; built again it is not.
    let with_code = || rests("a").hook(Moment::Stop, |_| async { Ok(()) }).build().unwrap();
    let service = with_code();
    within(orchestrator.replace([service.clone()])).await.unwrap();
    assert!(within(orchestrator.replace([service])).await.unwrap().is_empty());
    assert_eq!(within(orchestrator.replace([with_code()])).await.unwrap(), replaced(&[], &["a"], &[]));
}

async fn a_log_is_opened_anew() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let records = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let records = text.lines().map(|line| line.split_once(' ').unwrap().1.to_string());
        // The shell itself may say of its sleep that it was terminated.
        records.filter(|record| record.starts_with("stdout")).collect::<Vec<_>>()
    };
    let [first, second] = ["first.log", "second.log"].map(|name| scratch.path(name));
    let a = |word: &str| {
        let script = format!("trap 'echo end of {word}; exit' TERM; echo {word}; while :; do sleep 0.01; done");
        shell("a", &script).ready_line(word)
    };
    let logged = |word: &str, path: &Path| a(word).log(LogFile::new(path));
    within(orchestrator.start_many([logged("one", &first).build().unwrap()])).await.unwrap();
    let mut events = Events::of(&orchestrator);
    for service in [logged("two", &first), logged("three", &second), a("four"), logged("five", &first)] {
        replace(&orchestrator, [service]).await;
        events.healthy("a").await;
    }
    let line = |text: &str| format!("stdout F {text}");
    assert_eq!(records(&first), ["one", "end of one", "two", "end of two", "five"].map(line));
    assert_eq!(records(&second), ["three", "end of three"].map(line));
}

async fn replacements_without_pause() {
    let (orchestrator, mark) = (orchestrator(), mark());
    let a = |n: u32, replicas: u32| {
        let spec = pm::Spec::program("sh").arg("-c").arg(format!("exec sleep {}", 1000 + n)).env(MARK, &mark);
        Service::new("a", spec.build().unwrap()).replicas(replicas).restart(at_once(When::Always))
    };
    within(orchestrator.start_many([a(0, 3).build().unwrap()])).await.unwrap();
    for n in 1..=20 {
        let services = if n % 5 == 0 { vec![rests("b")] } else { vec![a(n, 1 + n % 3), rests("b")] };
        replace(&orchestrator, services).await;
        // Somewhere in the midst of the one before.
        if n % 3 == 0 {
            within(orchestrator.start_named(["b"], true)).await.unwrap();
        }
    }
    let last = a(100, 2).build().unwrap();
    within(orchestrator.replace_and_start([last, rests("b").build().unwrap()], ["a"], true)).await.unwrap();
    wait(&orchestrator, "a", Condition::Running).await;
    let info = within(orchestrator.info("a")).await.unwrap();
    let mut pids: Vec<u32> = info.iter().filter_map(|one| one.pid).collect();
    let mut found = marked(&mark);
    pids.sort();
    found.sort();
    assert_eq!((pids.len(), found), (2, pids.clone()), "{info:?}");
    for pid in pids {
        contains(crate::support::command_line(pid), "1100");
    }
    within(orchestrator.stop_all(None)).await;
    assert!(marked(&mark).is_empty());
}

async fn what_is_named_is_started_with_it() {
    let orchestrator = orchestrator();
    within(orchestrator.start_many([rests("a"), rests("b")].map(|one| one.build().unwrap()))).await.unwrap();
    within(orchestrator.stop("a")).await.unwrap();
    within(orchestrator.stop("b")).await.unwrap();
    let job = shell("job", "true");
    let services =
        [rests("a"), shell("b", "exec sleep 2000"), rests("c").needs("job", Condition::Completed), rests("d"), job];
    let services = services.map(|one| one.build().unwrap());
    let names = ["a", "b", "c", "nobody"];
    let came = within(orchestrator.replace_and_start(services, names, true)).await.unwrap();
    assert_eq!(came, replaced(&["c", "d", "job"], &["b"], &[]));
    wait(&orchestrator, "b", Condition::Running).await;
    wait(&orchestrator, "c", Condition::Running).await;
    let states = [state(&orchestrator, "a").await, state(&orchestrator, "d").await];
    assert_eq!(states, [State::Stopped, State::Idle], "a did not change, and nobody named d");
    assert_eq!(info(&orchestrator, "job").await.state, State::Completed);
}

/// Of a service that is replaced while somebody waits for it to start, to be in a condition, or to have so many processes.
async fn who_waits_is_answered() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let never = scratch.path("never");
    let a = |replicas: u32| shell("a", RESTS).health(super::while_there(&never)).replicas(replicas);
    orchestrator.add([a(1), rests("b")].map(|one| one.build().unwrap())).await.unwrap();
    let mut events = Events::of(&orchestrator);
    let asked = |name: &'static str| {
        let orchestrator = orchestrator.clone();
        tokio::spawn(async move { orchestrator.start_service(name).await })
    };
    let start = asked("a");
    events.started("a").await;
    let scale = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.scale("a", 2).await }
    });
    events.started("a#2").await;
    let waits = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.wait("a", Condition::Healthy).await }
    });
    // Another number is wanted, and it still starts.
    assert_eq!(replace(&orchestrator, [a(3), rests("b")]).await, replaced(&[], &["a"], &[]));
    contains(within(scale).await.unwrap().unwrap_err().to_string(), "a was scaled again, or removed");
    // It is another one, which comes up: whoever waits for it is glad.
    replace(&orchestrator, [shell("a", "echo up; exec sleep 1000").ready_line("up"), rests("b")]).await;
    within(start).await.unwrap().unwrap();
    within(waits).await.unwrap().unwrap();
    // One that goes does not come up any more.
    replace(&orchestrator, [a(1), rests("b")]).await;
    let start = asked("a");
    events.started("a").await;
    replace(&orchestrator, [rests("b")]).await;
    let error = within(start).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("there is no service \"a\"") || error.contains("a was stopped"), "{error}");
}
