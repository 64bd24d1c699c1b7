//! Listeners of services: bound once, accepted from by all replicas in all their lives.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use libtest_mimic::Trial;
use pm::service::{Orchestrator, Service, StartError, State};
use pm::{ListenAddress, Spec};

use super::ports::is_free;
use super::{RESTS, numbers, orchestrator, printed, state};
use crate::kits::Kit;
use crate::support::{Scratch, contains, one, within};

/// So many connections are made, by so many clients at the same time.
const CONNECTIONS: usize = 200;
const CLIENTS: usize = 4;

pub fn tests() -> Vec<Trial> {
    [
        one("services::listeners::a_restart_loses_no_connection", a_restart_loses_no_connection),
        one("services::listeners::all_replicas_share_one_and_it_ends_with_the_service", all_replicas_share_one),
        one("services::listeners::they_are_given_as_systemd_does", they_are_given_as_systemd_does),
        one("services::listeners::an_address_in_use_says_by_whom", an_address_in_use_says_by_whom),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn local() -> ListenAddress {
    ListenAddress::Tcp(([127, 0, 0, 1], 0).into())
}

/// Says on which port it was given, and answers each connection with its pid. Asked to end, it does so between two of them.
const SERVER: &str = r#"
import os, select, signal, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
door = socket.socket(fileno=3)
door.setblocking(False)
heard, tell = os.pipe2(os.O_NONBLOCK)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.set_wakeup_fd(tell)
print(door.getsockname()[1])
print("up")
while True:
    ready, _, _ = select.select([door, heard], [], [])
    if heard in ready:
        break
    try:
        client, _ = door.accept()
    except BlockingIOError:
        continue
    with client:
        client.sendall(str(os.getpid()).encode())
"#;

fn server(name: &str) -> Option<pm::service::ServiceBuilder> {
    let interpreter = Kit::Python.is_installed().then(|| Kit::Python.interpreter())??;
    let spec = Spec::program(interpreter).arg("-u").arg("-c").arg(SERVER).listen(local());
    Some(Service::new(name, spec.build().expect("a Spec")).ready_line("up"))
}

/// The port of its listener, as the first line of each life says.
async fn port(orchestrator: &Orchestrator, name: &str) -> u16 {
    numbers(&printed(orchestrator, name, 2).await)[0] as u16
}

async fn a_restart_loses_no_connection() {
    let orchestrator = orchestrator();
    let Some(server) = server("a") else { return };
    within(orchestrator.start_many([server.build().unwrap()])).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port(&orchestrator, "a").await));
    let client = move || {
        let mut pids = Vec::new();
        for _ in 0..CONNECTIONS / CLIENTS {
            let mut answer = String::new();
            TcpStream::connect(address).expect("a connection").read_to_string(&mut answer).expect("an answer");
            pids.push(answer.parse::<u32>().expect("a pid"));
        }
        pids
    };
    // The first are answered, others wait for the next life, and so on.
    let mut clients: Vec<_> = (1..CLIENTS).map(|_| tokio::task::spawn_blocking(client)).collect();
    within(orchestrator.restart("a")).await.unwrap();
    clients.push(tokio::task::spawn_blocking(client));
    within(orchestrator.restart("a")).await.unwrap();
    let mut answered = 0;
    for client in clients {
        answered += within(client).await.expect("none is refused, and none is cut off").len();
    }
    assert_eq!(answered, CONNECTIONS);
    let ports = numbers(&printed(&orchestrator, "a", 6).await);
    assert!(ports.len() == 3 && ports.iter().all(|port| *port == u32::from(address.port())), "{ports:?}");
    // Nobody is there, and still a connection is not refused: it waits for the next life.
    within(orchestrator.stop("a")).await.unwrap();
    let waits = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        TcpStream::connect(address).expect("a connection").read_to_string(&mut answer).expect("an answer");
        answer.parse::<u32>().expect("a pid")
    });
    within(orchestrator.start_service("a")).await.unwrap();
    assert_eq!(within(waits).await.unwrap(), super::pid(&orchestrator, "a").await);
}

async fn all_replicas_share_one() {
    let orchestrator = orchestrator();
    let Some(server) = server("a") else { return };
    within(orchestrator.start_many([server.replicas(2).build().unwrap()])).await.unwrap();
    let ports = numbers(&printed(&orchestrator, "a", 4).await);
    assert!(ports.len() == 2 && ports[0] == ports[1], "{ports:?}");
    let address = SocketAddr::from(([127, 0, 0, 1], ports[0] as u16));
    within(orchestrator.scale("a", 0)).await.unwrap();
    TcpStream::connect(address).expect("it is kept while there is no process");
    within(orchestrator.scale("a", 1)).await.unwrap();
    assert_eq!(port(&orchestrator, "a").await, address.port());
    within(orchestrator.remove("a")).await.unwrap();
    // It ends with the service.
    is_free(address.port()).await;
}

async fn they_are_given_as_systemd_does() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("s");
    let script = format!(
        "echo \"$LISTEN_FDS $LISTEN_FDNAMES $([ \"$LISTEN_PID\" = $$ ] && echo mine)\"; ls -l /proc/$$/fd | sed -n 's/.* \\([0-9]*\\) -> \\(socket\\).*/\\1 \\2/p'; {RESTS}"
    );
    let spec = Spec::program("sh").args(["-c", &script]).listen_as("http", local()).listen(path.as_path());
    // What this program was given itself would not be meant for its services.
    let spec = spec.env("LISTEN_PID", "1").env("LISTEN_FDS", "7").build().unwrap();
    within(orchestrator.start_many([Service::new("a", spec).build().unwrap()])).await.unwrap();
    assert_eq!(printed(&orchestrator, "a", 3).await, ["2 http:unknown mine", "3 socket", "4 socket"]);
    UnixStream::connect(&path).expect("a connection");
    within(orchestrator.remove("a")).await.unwrap();
    assert!(!path.exists(), "it ends with the service");
}

async fn an_address_in_use_says_by_whom() {
    let orchestrator = orchestrator();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let spec = Spec::program("sh").args(["-c", RESTS]).listen(address).build().unwrap();
    let error = within(orchestrator.start_many([Service::new("a", spec).build().unwrap()])).await.unwrap_err();
    let StartError::Listen { service, address: on, source, holder: Some(holder) } = &error else { panic!("{error:?}") };
    assert_eq!((service.as_str(), on, source.kind()), ("a", &address.into(), std::io::ErrorKind::AddrInUse));
    assert_eq!(holder.pid, Some(std::process::id()));
    let by = format!(", by process {} (", std::process::id());
    contains(error.to_string(), &format!("a cannot listen on {address}: "));
    contains(error.to_string(), &by);
    contains(error.to_string(), "choose another address");
    let a = super::info(&orchestrator, "a").await;
    assert_eq!(a.state, State::Failed);
    contains(a.why.unwrap(), &by);
    // The next start tries again.
    drop(taken);
    is_free(address.port()).await;
    within(orchestrator.start_service("a")).await.unwrap();
    assert!(state(&orchestrator, "a").await.is_up());
    assert!(TcpListener::bind(address).is_err(), "the service has it");
}
