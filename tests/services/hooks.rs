//! What follows from an event, as the program or its configuration says, and what becomes of hooks that fail.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::service::{Condition, Event, Moment, Occasion, Restart, State, When};
use tokio::sync::mpsc;

use super::{Events, RESTS, at_once, orchestrator, sh, shell, state, wait};
use crate::support::{Scratch, contains, eventually, kill, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::hooks::code_hears_of_each_moment", code_hears_of_each_moment),
        one("services::hooks::commands_have_it_in_their_environment", commands_have_it_in_their_environment),
        one("services::hooks::one_that_fails_is_an_event", one_that_fails_is_an_event),
        one("services::hooks::one_that_panics_is_an_event", one_that_panics_is_an_event),
        one("services::hooks::one_that_hangs_delays_no_stop", one_that_hangs_delays_no_stop),
        one("services::hooks::those_that_hang_do_not_pile_up", those_that_hang_do_not_pile_up),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const MOMENTS: [Moment; 4] = [Moment::Start, Moment::Stop, Moment::Restart, Moment::Crash];

async fn code_hears_of_each_moment() {
    let orchestrator = orchestrator();
    let (told, mut heard) = mpsc::unbounded_channel::<Occasion>();
    let mut builder = shell("a", RESTS).restart(at_once(When::OnFailure)).replicas(2);
    for moment in MOMENTS {
        let told = told.clone();
        builder = builder.hook(moment, move |occasion| {
            let told = told.clone();
            async move { told.send(occasion).map_err(|error| error.to_string()) }
        });
    }
    within(orchestrator.start_many([builder.build().unwrap()])).await.unwrap();
    // Which of both is first is not known.
    let mut first = [within(heard.recv()).await.unwrap(), within(heard.recv()).await.unwrap()];
    first.sort_by(|a, b| a.service.cmp(&b.service));
    assert_eq!(first.each_ref().map(|one| (&*one.service, one.moment)), [("a", Moment::Start), ("a#2", Moment::Start)]);
    assert!(first[0].cause.is_none());
    let mut next_of =
        async |moment| within(heard.recv()).await.filter(|one| one.moment == moment).expect("that moment");
    kill(first[0].pid.unwrap(), rustix::process::Signal::KILL);
    let crash = next_of(Moment::Crash).await;
    assert_eq!((&*crash.service, crash.pid), ("a", first[0].pid));
    contains(crash.cause.unwrap(), "SIGKILL");
    // Start and Restart are tasks of their own, and either may be first.
    let both = [within(heard.recv()).await.unwrap(), within(heard.recv()).await.unwrap()];
    assert!(both.iter().all(|one| one.pid != first[0].pid && &*one.service == "a"), "{both:?}");
    let mut moments = both.map(|one| one.moment.name());
    moments.sort_unstable();
    assert_eq!(moments, ["restart", "start"]);
    within(orchestrator.stop("a")).await.unwrap();
    for _ in 0..2 {
        let stop = within(heard.recv()).await.unwrap();
        assert_eq!(stop.moment, Moment::Stop);
        contains(stop.cause.unwrap(), "SIGTERM");
    }
}

async fn commands_have_it_in_their_environment() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("said");
    let command = |moment: Moment| {
        sh(&format!(
            "echo \"$PM_SERVICE $PM_EVENT $PM_PID ${{PM_CAUSE-none}}\" > {0}-{1}.new && mv {0}-{1}.new {0}-{1}",
            file.display(),
            moment.name()
        ))
    };
    let said = |moment: Moment| fs::read_to_string(scratch.path(format!("said-{}", moment.name()))).ok();
    let mut builder = shell("a", RESTS).restart(Restart { max: Some(1), ..at_once(When::OnFailure) });
    for moment in MOMENTS {
        builder = builder.hook_command(moment, command(moment));
    }
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([builder.build().unwrap()])).await.unwrap();
    let first = events.started("a").await;
    eventually("it is told", || said(Moment::Start).is_some()).await;
    assert_eq!(said(Moment::Start).unwrap(), format!("a start {first} none\n"));
    kill(first, rustix::process::Signal::KILL);
    eventually("it is told", || said(Moment::Crash).is_some() && said(Moment::Restart).is_some()).await;
    let second = events.started("a").await;
    assert_eq!(said(Moment::Restart).unwrap(), format!("a restart {second} none\n"));
    let crash = said(Moment::Crash).unwrap();
    contains(&crash, &format!("a crash {first} "));
    contains(&crash, "SIGKILL");
    within(orchestrator.stop("a")).await.unwrap();
    eventually("it is told", || said(Moment::Stop).is_some()).await;
    contains(said(Moment::Stop).unwrap(), &format!("a stop {second} "));
    assert_eq!(events.all(|one| matches!(one.event, Event::HookFailed { .. }).then_some(())), []);
}

/// The event of a hook that failed: which, and why.
async fn failed(events: &mut Events) -> (&'static str, String) {
    events
        .next("a", |event| match event {
            Event::HookFailed { hook, error } => Some((*hook, error.clone())),
            _ => None,
        })
        .await
}

async fn one_that_fails_is_an_event() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", RESTS)
        .hook(Moment::Start, async |_| Err("no such table".into()))
        .hook_command(Moment::Stop, sh("echo no route >&2; exit 4"))
        .hook_command(Moment::Stop, pm::Spec::program("/no/such/hook").build().unwrap());
    within(orchestrator.start_many([a.build().unwrap()])).await.unwrap();
    assert_eq!(failed(&mut events).await, ("start", "no such table".into()));
    wait(&orchestrator, "a", Condition::Running).await;
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert!(stopped[0].is_clean(), "{stopped:?}");
    let both = [failed(&mut events).await, failed(&mut events).await];
    assert!(both.iter().all(|(hook, _)| *hook == "stop"), "{both:?}");
    let text = format!("{both:?}");
    contains(&text, "(no route)");
    contains(&text, "/no/such/hook");
}

async fn one_that_panics_is_an_event() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", RESTS).hook(Moment::Start, async |occasion| panic!("not of {}", occasion.service));
    within(orchestrator.start_many([a.build().unwrap()])).await.unwrap();
    let (hook, error) = failed(&mut events).await;
    assert_eq!(hook, "start");
    contains(error, "not of a");
    assert_eq!(state(&orchestrator, "a").await, State::Starting);
}

async fn one_that_hangs_delays_no_stop() {
    let orchestrator = orchestrator();
    let mut builder = shell("a", RESTS).restart(at_once(When::Always));
    for moment in MOMENTS {
        builder = builder.hook(moment, |_| std::future::pending()).hook_command(moment, sh(RESTS));
    }
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([builder.build().unwrap()])).await.unwrap();
    kill(events.started("a").await, rustix::process::Signal::KILL);
    events.started("a").await;
    let began = Instant::now();
    within(orchestrator.restart("a")).await.unwrap();
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert!(stopped[0].is_clean(), "{stopped:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// A service that crashes again and again has hooks that take long: there is a bound to how many of them are there, and it is said.
async fn those_that_hang_do_not_pile_up() {
    let orchestrator = orchestrator();
    let restart = Restart { max: None, ..at_once(When::Always) };
    let a = shell("a", "exit 1").restart(restart).hook(Moment::Crash, |_| std::future::pending());
    let mut events = Events::of(&orchestrator);
    orchestrator.add([a.build().unwrap()]).await.unwrap();
    let _ = within(orchestrator.start_service("a")).await;
    let (hook, error) = failed(&mut events).await;
    assert_eq!(hook, "crash");
    contains(error, "was not run");
    within(orchestrator.stop("a")).await.unwrap();
}
