//! Who holds the port of a service, where that is somebody else.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{Event, PortTaken, Probe, ServiceBuilder, StartError, State, WaitError};

use super::{Events, RESTS, info, orchestrator, python, shell};
use crate::support::{contains, eventually, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::ports::a_port_that_is_taken_is_said_before_the_start", a_port_that_is_taken_is_said_before),
        one("services::ports::a_failed_bind_names_who_holds_the_port", a_failed_bind_names_who_holds_the_port),
        one("services::ports::what_is_not_ready_in_time_names_who_holds_the_port", what_is_not_ready_in_time),
        one("services::ports::another_service_is_named", another_service_is_named),
        one("services::ports::a_port_of_its_own_is_not_spoken_of", a_port_of_its_own_is_not_spoken_of),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A process that listens and never answers.
struct Holder(Child);

impl Holder {
    fn start() -> (Self, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut sleep = Command::new("sleep");
        let child = sleep.arg("1000").stdin(Stdio::from(OwnedFd::from(listener))).spawn().expect("sleep");
        (Holder(child), port)
    }

    /// What is said of it.
    fn words(&self, port: u16) -> String {
        format!("port {port} is held by process {} (sleep)", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks a port in a way that one who only listens does not answer.
fn asked(service: ServiceBuilder, port: u16) -> ServiceBuilder {
    service.health(Probe::http(format!("http://127.0.0.1:{port}/")).timeout(Duration::from_secs(30)))
}

/// Waits until nobody listens on a port. A child that another test makes at this moment has what this program has closed until it executes its program.
pub async fn is_free(port: u16) {
    eventually("nobody listens there", || TcpStream::connect(("127.0.0.1", port)).is_err()).await;
}

fn taken(event: &Event) -> Option<PortTaken> {
    match event {
        Event::PortTaken(taken) => Some(taken.clone()),
        _ => None,
    }
}

async fn a_port_that_is_taken_is_said_before() {
    let orchestrator = orchestrator();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", RESTS).health(Probe::tcp(port)).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    let said = events.next("a", |event| match event {
        Event::Started { .. } => panic!("it was started before that was said"),
        event => taken(event),
    });
    let said = said.await;
    assert_eq!((said.port, said.by.pid, said.before_start), (port, Some(std::process::id()), true));
    // This program answers its probe, and whoever looks is told so.
    let a = info(&orchestrator, "a").await;
    assert_eq!(a.state, State::Healthy);
    let words = a.why.unwrap();
    contains(&words, &format!("port {port} is held by process {} (", std::process::id()));
    contains(&words, "who may answer its probe");
    // It is looked at anew for each life.
    drop(listener);
    is_free(port).await;
    let restarting = orchestrator.restart("a");
    let failed = async {
        events.started("a").await;
        within(orchestrator.stop("a")).await.unwrap();
    };
    let _ = within(async { tokio::join!(restarting, failed) }).await;
    assert!(events.all(|happening| taken(&happening.event)).is_empty());
}

async fn a_failed_bind_names_who_holds_the_port() {
    let orchestrator = orchestrator();
    let (holder, port) = Holder::start();
    let bind = format!("import socket; socket.socket().bind(('127.0.0.1', {port}))");
    let Some(a) = python("a", &bind) else { return };
    let mut events = Events::of(&orchestrator);
    let error = within(orchestrator.start_many([asked(a, port).build().unwrap()])).await.unwrap_err();
    let StartError::Failed { why, .. } = &error else { panic!("{error:?}") };
    contains(why, "exit code 1 after");
    contains(why, &holder.words(port));
    contains(error.to_string(), "Address already in use");
    let before = events.next("a", taken).await;
    assert!(before.before_start);
    let after = events.next("a", |event| match event {
        Event::Crashed { .. } => panic!("it was said only then that it has failed"),
        event => taken(event),
    });
    let after = after.await;
    assert_eq!((after.port, after.by.pid, after.before_start), (port, Some(holder.0.id()), false));
    events.crashed("a").await;
    contains(info(&orchestrator, "a").await.why.unwrap(), &holder.words(port));
    let Err(WaitError::Never { why, .. }) = orchestrator.wait("a", pm::service::Condition::Healthy).await else {
        panic!("it is not healthy")
    };
    contains(why, &holder.words(port));
}

async fn what_is_not_ready_in_time() {
    let orchestrator = orchestrator();
    let (holder, port) = Holder::start();
    let a = asked(shell("a", RESTS), port).start_limit(Duration::from_millis(200)).build().unwrap();
    let error = within(orchestrator.start_many([a])).await.unwrap_err();
    let StartError::Timeout { port: Some(taken), said: None, .. } = &error else { panic!("{error:?}") };
    assert_eq!(taken.by.pid, Some(holder.0.id()));
    contains(error.to_string(), &holder.words(port));
    contains(info(&orchestrator, "a").await.why.unwrap(), &holder.words(port));
}

async fn another_service_is_named() {
    let orchestrator = orchestrator();
    let listens = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1]); print('up'); time.sleep(1000)";
    let Some(first) = python("first", listens) else { return };
    within(orchestrator.start_many([first.ready_line("up").build().unwrap()])).await.unwrap();
    let port = super::numbers(&super::printed(&orchestrator, "first", 2).await)[0] as u16;
    let holder = super::pid(&orchestrator, "first").await;
    let mut events = Events::of(&orchestrator);
    let second = asked(shell("second", "exit 1"), port).build().unwrap();
    let error = within(orchestrator.start_many([second])).await.unwrap_err();
    // Before the start it was nobody from outside.
    let said = events.next("second", taken).await;
    assert_eq!((said.before_start, said.by.pid, said.by.service.as_deref()), (false, Some(holder), Some("first")));
    contains(error.to_string(), &format!("port {port} is held by process {holder} ("));
    contains(error.to_string(), ") of the service first");
}

async fn a_port_of_its_own_is_not_spoken_of() {
    let orchestrator = orchestrator();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    is_free(port).await;
    let serves =
        format!("import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('up'); time.sleep(1000)");
    let Some(a) = python("a", &serves) else { return };
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a.health(Probe::tcp(port)).build().unwrap()])).await.unwrap();
    within(orchestrator.restart("a")).await.unwrap();
    assert_eq!(info(&orchestrator, "a").await.why, None);
    within(orchestrator.signal("a", pm::Signal(9))).await.unwrap();
    let crashed = events.next("a", |event| match event {
        Event::PortTaken(taken) => panic!("{taken}"),
        event => matches!(event, Event::Crashed { .. }).then_some(()),
    });
    crashed.await;
    let why = info(&orchestrator, "a").await.why.unwrap();
    assert!(why.starts_with("killed by SIGKILL") && !why.contains("port"), "{why}");
}
