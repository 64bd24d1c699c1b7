//! A transport of one's own, over TCP on the loopback interface, written against `pm_core` alone.
//!
//! A transport is three things: an offer, made before the worker exists; an accept, which waits for the worker; and a connect,
//! which runs in the worker. That it keeps its promises is shown by `pm_core::testing::conformance`, see `tests/conformance.rs`.

use std::error::Error;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use pm_core::Query;
use pm_core::driver::framed::FramedLink;
use pm_core::transport::{Accept, Connect, Identity, Offer, Transport, TransportError};
use pm_core::worker::link::{FdLink, WorkerLink};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The variable that tells a worker where to connect, and what to say first.
const TICKET: &str = "PM_TCP_TICKET";

/// Links over TCP. Each has a listener of its own on a free port, which takes one connection.
///
/// Of what a link promises, TCP breaks one thing: when a worker dies that has not read everything, its last answers may be lost with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

/// Waits for the worker that holds the ticket.
#[derive(Debug)]
pub struct TcpAccept {
    listener: TcpListener,
    secret: u128,
}

impl Transport for Tcp {
    type Link = FramedLink<OwnedReadHalf, OwnedWriteHalf>;
    type Accept = TcpAccept;

    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn offer(&self) -> Result<(Offer, TcpAccept), TransportError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused("listen"))?;
        let address = listener.local_addr().map_err(refused("listen"))?;
        // Every program of this machine can connect to a port, so the worker shows that it is the one that was started.
        let secret = random().map_err(refused("draw a secret"))?;
        let ticket = format!("{address} {secret:032x}");
        let offer = Offer { env: vec![(TICKET.into(), ticket.into())], ..Offer::default() };
        Ok((offer, TcpAccept { listener, secret }))
    }
}

impl Accept<<Tcp as Transport>::Link> for TcpAccept {
    async fn accept(self, _: &Identity) -> Result<<Tcp as Transport>::Link, TransportError> {
        self.listener.set_nonblocking(true).map_err(refused("listen"))?;
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(refused("listen"))?;
        loop {
            let (mut stream, _) = listener.accept().await.map_err(refused("accept"))?;
            // A stranger may say something else, or nothing at all; the worker has its chance after that.
            let shown = tokio::time::timeout(Duration::from_millis(500), stream.read_u128()).await;
            if matches!(shown, Ok(Ok(secret)) if secret == self.secret) {
                stream.set_nodelay(true).map_err(refused("set up the connection"))?;
                let (read, write) = stream.into_split();
                return Ok(FramedLink::new(read, write));
            }
        }
    }
}

/// The worker's half.
impl Connect for Tcp {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn connect(&self) -> io::Result<Box<dyn WorkerLink>> {
        dial(&std::env::var(TICKET).map_err(io::Error::other)?)
    }
}

/// Connects to the manager that wrote this ticket.
pub fn dial(ticket: &str) -> io::Result<Box<dyn WorkerLink>> {
    let (address, secret) = ticket.split_once(' ').ok_or(io::ErrorKind::InvalidInput)?;
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let secret = u128::from_str_radix(secret, 16).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&secret.to_be_bytes())?;
    Ok(Box::new(FdLink::socket(stream.into())))
}

fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u128::from_be_bytes(bytes))
}

fn refused(action: &'static str) -> impl Fn(io::Error) -> TransportError {
    move |source| TransportError::Io { scheme: "tcp", action, source }
}

// From here on: a program that uses it.

static FACTORS: Query<u64, Vec<u64>, Tcp> = Query::new("factors", &factors);

/// Runs in a worker.
fn factors(mut n: u64) -> Vec<u64> {
    let mut found = Vec::new();
    let mut candidate = 2;
    while candidate * candidate <= n {
        while n.is_multiple_of(candidate) {
            found.push(candidate);
            n /= candidate;
        }
        candidate += 1;
    }
    found.extend((n > 1).then_some(n));
    found
}

fn main() -> Result<(), Box<dyn Error>> {
    pm_core::worker::roles_over(&[&FACTORS], &[&Tcp]);
    tokio::runtime::Runtime::new()?.block_on(app())
}

async fn app() -> Result<(), Box<dyn Error>> {
    let pool = FACTORS.pool().workers(2).start().await?;
    for worker in pool.workers() {
        println!("worker {} is process {}, over TCP", worker.id, worker.pid);
    }
    for n in [2026, 1_000_003, 600_851_475_143, u64::from(u32::MAX)] {
        let factors: Vec<_> = pool.query(&n).await?.iter().map(u64::to_string).collect();
        println!("{n} = {}", factors.join(" × "));
    }
    pool.shutdown().await;
    Ok(())
}
