//! Services with real processes: how they start, are watched, and end. Rows P1 to P13.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::Spec;
use pm::service::{Condition, Event, Orchestrator, Probe, Service, ServiceBuilder, StartError, State};

use crate::support::{contains, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::a_chain_starts_in_order_and_stops_in_reverse", a_chain_starts_in_order_and_stops_in_reverse),
        one("services::a_missing_program_is_an_error", a_missing_program_is_an_error),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A service that is a line of shell.
fn shell(name: &str, script: &str) -> ServiceBuilder {
    Service::new(name, Spec::program("sh").arg("-c").arg(script).build().expect("a Spec"))
}

fn orchestrator() -> Orchestrator {
    Orchestrator::start().expect("an orchestrator")
}

async fn state(orchestrator: &Orchestrator, name: &str) -> State {
    orchestrator.info(name).await.expect("a service")[0].state
}

async fn a_chain_starts_in_order_and_stops_in_reverse() {
    let orchestrator = orchestrator();
    let mut events = orchestrator.events();
    let db = shell("db", "echo up; exec sleep 1000").ready_line("^up$").build().unwrap();
    let api = shell("api", "exec sleep 1000").needs("db", Condition::Healthy).build().unwrap();
    within(orchestrator.start_many([api, db])).await.unwrap();
    assert_eq!(
        [state(&orchestrator, "db").await, state(&orchestrator, "api").await],
        [State::Healthy, State::Starting]
    );
    within(orchestrator.wait("api", Condition::Running)).await.unwrap();
    let stopped = within(orchestrator.stop_all(None)).await;
    assert!(stopped.iter().all(|one| one.is_clean()), "{stopped:?}");
    let mut seen = Vec::new();
    while let Ok(happening) = events.try_recv() {
        if matches!(happening.event, Event::Started { .. } | Event::Stopping { .. } | Event::Stopped { .. }) {
            seen.push(format!("{} {:?}", happening.label, happening.event).split(" {").next().unwrap().to_string());
        }
    }
    assert_eq!(seen, ["db Started", "api Started", "api Stopping", "api Stopped", "db Stopping", "db Stopped"]);
}

async fn a_missing_program_is_an_error() {
    let orchestrator = orchestrator();
    let missing = Service::new("a", Spec::program("/no/such/program").build().unwrap()).build().unwrap();
    let began = Instant::now();
    let error = within(orchestrator.start_many([missing])).await.unwrap_err();
    assert!(matches!(error, StartError::Launch { .. }), "{error:?}");
    contains(error.to_string(), "a could not be started: ");
    contains(error.to_string(), "/no/such/program");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(state(&orchestrator, "a").await, State::Failed);
    let _ = Probe::tcp(1);
}
