//! One listener for many workers: bound by the manager, accepted from by all, and served on through every replacement. Row R3; faults 12, 13, 24, 25.

mod load;
#[path = "../examples/http_cluster/web.rs"]
mod web;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::foreign::Conversation;
use pm::{
    AnyTransport, Bytes, Duplex, ExitCause, ListenAddress, NodeChannel, PoolBuilder, RawManager, Resource, Silent,
    Spec, StartError, Stderr, Verbatim,
};
use rustix::process::Signal as Kill;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::kits::Kit;
use crate::processes::{PROCESS, helper_transport};
use crate::support::{
    LIMIT, LONG, Scratch, again, contains, eventually, gone_within, kill, one, over_all, pids, pool_of, within,
};
use load::{CLIENTS, Load, connect, get};
pub(crate) use web::WEB;

/// How often all workers are replaced under it.
const RESPAWNS: usize = 10;

pub fn tests() -> Vec<Trial> {
    let node = |name: &str, test: fn() -> Pin<Box<dyn Future<Output = ()>>>| {
        vec![Trial::test(name, move || {
            if Kit::Node.is_installed() {
                crate::support::run(test());
            }
            Ok(())
        })]
    };
    [
        over_all("cluster::respawns_under_load_lose_nothing", respawns_under_load_lose_nothing),
        node("cluster::node::respawns_under_load_lose_nothing", || Box::pin(node_respawns())),
        node("cluster::node::programs_that_know_socket_activation_work", || Box::pin(node_activated())),
        over_all("cluster::a_worker_killed_mid_request_costs_its_own", a_worker_killed_mid_request_costs_its_own),
        over_all("cluster::unix_sockets_are_removed_with_their_pool", unix_sockets_are_removed_with_their_pool),
        one("cluster::an_address_in_use_is_an_error", an_address_in_use_is_an_error),
        one("cluster::listeners_are_given_as_systemd_does", listeners_are_given_as_systemd_does),
        one("cluster::threads_have_no_listeners", threads_have_no_listeners),
        over_all("cluster::a_signal_during_a_respawn_ends_all", a_signal_during_a_respawn_ends_all),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn local() -> ListenAddress {
    ListenAddress::Tcp(([127, 0, 0, 1], 0).into())
}

fn webs(transport: AnyTransport, at: ListenAddress) -> PoolBuilder<(), u32, pm::Postcard, AnyTransport, pm::Raw> {
    pool_of(&WEB, transport).raw().workers(2).spec(|spec| spec.listen(at))
}

/// Waits until so many more requests are answered, by whoever it is.
async fn goes_on(load: &Load) {
    let goal = load.answers.load(Ordering::Relaxed) + 2 * CLIENTS as u64;
    eventually("requests are answered", || load.answers.load(Ordering::Relaxed) >= goal).await;
}

async fn respawn_under_load<I: 'static, O: 'static>(pool: &RawManager<I, O>) {
    let load = Load::on(&pool.addresses()[0]);
    goes_on(&load).await;
    for _ in 0..RESPAWNS {
        let old = pids(pool);
        within(pool.respawn_with(2, Some(LONG))).await.unwrap();
        assert!(pids(pool).iter().all(|pid| !old.contains(pid)), "all of them are new");
        old.into_iter().for_each(|pid| gone_within(pid, Duration::ZERO));
        goes_on(&load).await;
    }
    assert_eq!(pool.info().crashes, 0);
    let seen = within(load.end()).await.expect("not one request may fail");
    assert!(seen.connections > CLIENTS as u64, "connections were moved");
}

async fn respawns_under_load_lose_nothing(transport: AnyTransport) {
    let pool = webs(transport, local()).start().await.unwrap();
    tokio::spawn(web::follow_loads(pool.subscribe()));
    respawn_under_load(&pool).await;
    within(pool.shutdown()).await;
}

// --- Node.js

/// An HTTP server of Node's own that knows nothing of pm. LEAVE is how it hears that it should go, READY what it does once it listens.
const SERVER: &str = r#"
const http = require('http'), net = require('net');
let leaving = false;
const server = http.createServer((request, response) => {
  if (leaving) response.setHeader('Connection', 'close');
  response.end(String(process.pid));
});
server.keepAliveTimeout = 0;
server.listen({ fd: 3 }, () => { READY });
process.on(LEAVE, () => {
  leaving = true;
  // http's own close would also close connections on which a request is on its way.
  net.Server.prototype.close.call(server, () => process.exit());
  setTimeout(() => server.closeIdleConnections(), 1000);
});
"#;

fn node_server(leave: &str, ready: &str) -> pm::SpecBuilder {
    let node = Kit::Node.interpreter().expect("the interpreter was found before");
    let code = SERVER.replace("LEAVE", leave).replace("READY", ready);
    Spec::program(node).arg("-e").arg(code).stderr(Stderr::Quiet).limit(Resource::Core, 0).listen(local())
}

async fn node_respawns() {
    let spec = node_server("'disconnect'", "process.send('ready')");
    let channel = NodeChannel::speaking(Conversation::ready_on("\"ready\""));
    let builder: PoolBuilder<Bytes, Bytes, _, _> = PoolBuilder::program("node", spec, channel, Verbatim("json"));
    let pool = builder.raw().workers(2).start().await.unwrap();
    respawn_under_load(&pool).await;
    within(pool.shutdown()).await;
}

async fn node_activated() {
    let spec = node_server("'SIGTERM'", "");
    let builder: PoolBuilder<Bytes, Bytes, _, _> = PoolBuilder::program("node", spec, Silent, Verbatim("none"));
    let pool = builder.raw().workers(2).start().await.unwrap();
    // It has no way to say that it is ready, so requests wait until it is; and nobody sends it a signal before it listens for that.
    let address = pool.addresses()[0].clone();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let answer = within(get(&mut connect(&address).await.unwrap(), "/")).await.unwrap();
        assert_eq!(answer.status, 200);
        if !seen.contains(&answer.body) {
            seen.push(answer.body);
        }
    }
    let load = Load::on(&address);
    goes_on(&load).await;
    let old = pids(&pool);
    within(pool.respawn_with(2, Some(LONG))).await.unwrap();
    assert!(pids(&pool).iter().all(|pid| !old.contains(pid)));
    goes_on(&load).await;
    assert_eq!(pool.info().crashes, 0);
    within(load.end()).await.expect("not one request may fail");
    within(pool.shutdown()).await;
}

// --- faults

async fn a_worker_killed_mid_request_costs_its_own(transport: AnyTransport) {
    let pool = webs(transport, local()).start().await.unwrap();
    let address = pool.addresses()[0].clone();
    let mut events = pool.events();
    // One connection to each worker, found by asking; then both hang in a request.
    let mut connections = Vec::new();
    while connections.len() < 2 {
        let mut connection = connect(&address).await.unwrap();
        let pid: u32 = within(get(&mut connection, "/")).await.unwrap().body.parse().unwrap();
        if connections.iter().all(|(known, _)| *known != pid) {
            connections.push((pid, connection));
        }
    }
    let (killed, mut of_killed) = connections.remove(0);
    let (other, mut of_other) = connections.remove(0);
    // It has the request, or will never have it: it is stopped.
    kill(killed, Kill::STOP);
    let hanging = tokio::spawn(async move { get(&mut of_killed, "/").await.map(|answer| answer.status) });
    within(get(&mut of_other, "/")).await.unwrap();
    kill(killed, Kill::KILL);
    assert!(within(hanging).await.unwrap().is_err(), "its own request is lost");
    assert_eq!(within(get(&mut of_other, "/")).await.unwrap().body, other.to_string(), "and no other");
    let replaced = crate::support::replaced(&mut events).await;
    // The new one accepts from the same listener.
    loop {
        let answer = within(get(&mut connect(&address).await.unwrap(), "/")).await.unwrap();
        if answer.body == replaced.to_string() {
            break;
        }
    }
    within(pool.shutdown()).await;
}

/// Tells whoever connects which process it is.
pub static DOOR: pm::Stream<(), ()> = pm::Stream::new("door", &door).concurrency(1);

async fn door(_: Duplex<(), ()>) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let listener = pm::take_listeners().pop().ok_or("a door needs a listener")?;
    assert_eq!(listener.name(), "door");
    let listener = listener.unix().map_err(text)?;
    listener.set_nonblocking(true).map_err(text)?;
    let listener = UnixListener::from_std(listener).map_err(text)?;
    loop {
        tokio::select! {
            () = pm::draining() => return Ok(()),
            accepted = listener.accept() => {
                let pid = std::process::id().to_string();
                accepted.map_err(text)?.0.write_all(pid.as_bytes()).await.map_err(text)?;
            }
        }
    }
}

async fn unix_sockets_are_removed_with_their_pool(transport: AnyTransport) {
    let scratch = Scratch::new();
    let path = scratch.path("door.sock");
    let doors = || {
        let builder: PoolBuilder<(), (), _, _> = pool_of(&DOOR, transport);
        builder.raw().workers(2).spec(|spec| spec.listen_as("door", path.as_path()))
    };
    let knock = async || {
        let mut pid = String::new();
        UnixStream::connect(&path).await?.read_to_string(&mut pid).await?;
        pid.parse::<u32>().map_err(io::Error::other)
    };
    // What a dead process left is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let pool = doors().start().await.unwrap();
    assert_eq!(pool.addresses(), [ListenAddress::Unix(path.clone())]);
    assert!(pids(&pool).contains(&within(knock()).await.unwrap()));
    let Err(StartError::Listen { source, .. }) = doors().start().await else {
        panic!("two pools cannot have one address");
    };
    assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
    assert!(path.metadata().unwrap().file_type().is_socket());
    within(pool.respawn()).await.unwrap();
    assert!(pids(&pool).contains(&within(knock()).await.unwrap()));
    // A handle that is left does not keep it.
    within(pool.shutdown()).await;
    assert!(knock().await.is_err());
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    let next = doors().start().await.unwrap();
    assert!(pids(&next).contains(&within(knock()).await.unwrap()));
    within(next.shutdown()).await;
    drop(pool);
}

async fn an_address_in_use_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = ListenAddress::Tcp(taken.local_addr().unwrap());
    let error = webs(crate::support::TRANSPORTS[1], address.clone()).start().await.unwrap_err();
    let text = error.to_string();
    contains(&text, &format!("cannot listen on {address}"));
    contains(&text, "choose another address");
}

async fn listeners_are_given_as_systemd_does() {
    let scratch = Scratch::new();
    let script = "echo \"$LISTEN_FDS $LISTEN_FDNAMES $([ \"$LISTEN_PID\" = $$ ] && echo mine)\"; ls -l /proc/$$/fd | sed -n 's/.* \\([0-9]*\\) -> \\(socket\\).*/\\1 \\2/p'; exec cat";
    let unguarded = [false, true];
    for is_unguarded in unguarded {
        let spec = Spec::program("sh").args(["-c", script]).stderr(Stderr::Quiet);
        let spec = spec.listen_as("http", local()).listen(scratch.path("s").as_path());
        // What this program was given itself would not be meant for its workers.
        let spec = spec.env("LISTEN_PID", "1").env("LISTEN_FDS", "7");
        let spec = if is_unguarded { spec.unguarded() } else { spec };
        let builder: PoolBuilder<Bytes, Bytes, _, _> =
            PoolBuilder::program("sh", spec, pm::Lines::default(), Verbatim("text"));
        let pool = builder.raw().start().await.unwrap();
        let worker = pool.raw_workers().remove(0);
        let mut lines = worker.take_receiver().unwrap();
        for line in ["2 http:unknown mine", "3 socket", "4 socket"] {
            assert_eq!(within(lines.next()).await.unwrap().unwrap(), line);
        }
        within(worker.release(None)).await.unwrap();
        assert_eq!(worker.ended().await, ExitCause::Requested);
        assert!(within(lines.next()).await.is_none());
        within(pool.shutdown()).await;
    }
}

async fn threads_have_no_listeners() {
    let refused = WEB.pool().raw().spec(|spec| spec.listen(local())).in_process().start().await.unwrap_err();
    contains(refused.to_string(), "listeners are given to processes");
}

// --- a manager that gets a signal

/// What this binary is where it is a manager with a web server, which it replaces again and again until it is told to end.
pub fn helper() {
    if std::env::var(PROCESS).as_deref() != Ok("cluster") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let signal = runtime.expect("a runtime").block_on(async {
        let pool = webs(helper_transport(), local()).start().await.expect("a pool");
        tokio::spawn(web::follow_loads(pool.subscribe()));
        println!("{}", pool.addresses()[0]);
        let replacing = tokio::spawn({
            let pool = pool.clone();
            async move { while pool.respawn_with(2, Some(LONG)).await.is_ok() {} }
        });
        let signal = pm::registry::shutdown_on_signal(LIMIT).await.expect("signals");
        within(replacing).await.expect("it ends with the pool");
        signal
    });
    std::process::exit(128 + signal.0)
}

async fn a_signal_during_a_respawn_ends_all(transport: AnyTransport) {
    let mark = crate::support::mark();
    let mut manager = again()
        .env(PROCESS, "cluster")
        .env(crate::processes::TRANSPORT, transport.to_string())
        .env(crate::support::MARK, &mark)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(manager.stdout.take().unwrap()), &mut line).unwrap();
    let address: ListenAddress = line.trim_end().parse().unwrap();
    // A request that is under way is answered all the same; new ones are refused once the listener is gone.
    for _ in 0..5 {
        let mut connection = connect(&address).await.unwrap();
        assert_eq!(within(get(&mut connection, "/")).await.unwrap().status, 200);
    }
    kill(manager.id(), Kill::TERM);
    gone_within(manager.id(), LIMIT);
    assert_eq!(manager.wait().unwrap().code(), Some(143));
    eventually("nothing is left of it", || crate::support::marked(&mark).is_empty()).await;
    assert!(connect(&address).await.is_err());
}
