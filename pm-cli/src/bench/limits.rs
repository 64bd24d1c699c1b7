//! The limits: what the same work costs with nothing but the socket, the pipe or the channel.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use rustix::thread::futex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::place::{Place, VARIABLE};

/// The variable that makes a bench binary an echoing peer on its standard input and output.
const PEER: &str = "PM_BENCH_PEER";

/// The frame of 64 bytes that is echoed, with a header as long as pm's.
pub const FRAME: usize = 80;

/// What [`PEER`] says to a process that is to burn a processor.
const HOG: &str = "hog";

/// Echoes or burns a processor, where the environment says that this process is such a peer. Call it first in `main`.
pub fn serve_if_peer() {
    let Some(what) = std::env::var_os(PEER) else { return };
    if what == HOG {
        // Until nobody holds the other end any more.
        thread::spawn(|| while !black_box(false) {});
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    }
    let (mut input, mut output) = (std::io::stdin().lock(), std::fs::File::from(stdout()));
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count) = input.read(&mut buffer)
        && count > 0
    {
        if output.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    std::process::exit(0);
}

fn stdout() -> OwnedFd {
    use std::os::fd::AsFd;
    std::io::stdout().as_fd().try_clone_to_owned().expect("stdout is open")
}

/// A peer process, ended with this.
#[derive(Debug)]
pub struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Starts it.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        Peer(command.spawn().expect("the bench can start itself"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

fn peer(what: &str, cpu: &str, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Peer {
    let mut command = Command::new("/proc/self/exe");
    Peer::start(command.env(PEER, what).env(VARIABLE, cpu).stdin(stdin).stdout(stdout))
}

fn echo(place: Place, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Peer {
    peer("echo", &place.variable(), stdin, stdout)
}

/// The processes beside that a place asks for. They end with this.
pub fn hogs(place: Place) -> Vec<Peer> {
    let cpus: &[&str] = if place == Place::Hogs { &["0", "1"] } else { &[] };
    cpus.iter().map(|cpu| peer(HOG, cpu, Stdio::piped(), Stdio::null())).collect()
}

/// A bare tokio socket to an echoing process.
#[derive(Debug)]
pub struct BareSocket {
    stream: UnixStream,
    /// The other end.
    pub peer: Peer,
}

impl BareSocket {
    /// Starts the peer.
    pub fn new(place: Place) -> Self {
        let (ours, theirs) = StdStream::pair().expect("a pair of sockets");
        let theirs = OwnedFd::from(theirs);
        let peer = echo(place, theirs.try_clone().expect("a descriptor"), theirs);
        ours.set_nonblocking(true).expect("a flag");
        BareSocket { stream: UnixStream::from_std(ours).expect("a runtime"), peer }
    }

    /// One frame there and back.
    pub async fn round_trip(&mut self, frame: &mut [u8]) {
        self.stream.write_all(frame).await.expect("the peer lives");
        self.stream.read_exact(frame).await.expect("the peer lives");
    }
}

/// Two bare tokio pipes to an echoing process.
#[derive(Debug)]
pub struct BarePipe {
    read: pipe::Receiver,
    write: pipe::Sender,
    /// The other end.
    pub peer: Peer,
}

impl BarePipe {
    /// Starts the peer.
    pub fn new(place: Place) -> Self {
        let (stdin, write) = std::io::pipe().expect("a pipe");
        let (read, stdout) = std::io::pipe().expect("a pipe");
        let peer = echo(place, OwnedFd::from(stdin), OwnedFd::from(stdout));
        let write = pipe::Sender::from_owned_fd(write.into()).expect("a runtime");
        let read = pipe::Receiver::from_owned_fd(read.into()).expect("a runtime");
        BarePipe { read, write, peer }
    }

    /// One frame there and back.
    pub async fn round_trip(&mut self, frame: &mut [u8]) {
        self.write.write_all(frame).await.expect("the peer lives");
        self.read.read_exact(frame).await.expect("the peer lives");
    }
}

type Request = ([u8; FRAME], oneshot::Sender<[u8; FRAME]>);

/// A task that many callers give frames to, and have them back from.
#[derive(Clone, Debug)]
pub struct Echo(mpsc::Sender<Request>);

impl Echo {
    /// One frame there and back.
    pub async fn round_trip(&self, frame: [u8; FRAME]) -> [u8; FRAME] {
        let (answer, answered) = oneshot::channel();
        self.0.send((frame, answer)).await.expect("the task lives");
        answered.await.expect("the task lives")
    }

    /// In this process: what a query costs without any other one.
    pub fn channel() -> Self {
        let (sender, mut requests) = mpsc::channel::<Request>(1024);
        tokio::spawn(async move {
            while let Some((frame, answer)) = requests.recv().await {
                let _ = answer.send(frame);
            }
        });
        Echo(sender)
    }

    /// Over one socket, written by hand: the task gathers what waits in a channel into one write, and hands the answers of one read back by one-shot
    /// channels. With the process of the peer.
    pub fn mux(place: Place) -> (Self, u32) {
        let BareSocket { stream, peer } = BareSocket::new(place);
        let pid = peer.pid();
        let (sender, mut requests) = mpsc::channel::<Request>(1024);
        tokio::spawn(async move {
            let _peer = peer;
            let (mut read, mut write) = stream.into_split();
            let (mut waiting, mut batch) = (VecDeque::new(), Vec::new());
            let (mut out, mut input) = (Vec::new(), vec![0; 1 << 16]);
            let mut have = 0;
            loop {
                tokio::select! {
                    count = requests.recv_many(&mut batch, 256) => {
                        if count == 0 {
                            return;
                        }
                        out.clear();
                        for (frame, answer) in batch.drain(..) {
                            out.extend_from_slice(&frame);
                            waiting.push_back(answer);
                        }
                        write.write_all(&out).await.expect("the peer lives");
                    }
                    count = read.read(&mut input[have..]) => {
                        have += count.expect("the peer lives");
                        let whole = have / FRAME * FRAME;
                        for frame in input[..whole].chunks_exact(FRAME) {
                            let answer = waiting.pop_front().expect("each answer was asked for");
                            let _ = answer.send(frame.try_into().expect("a frame"));
                        }
                        input.copy_within(whole..have, 0);
                        have -= whole;
                    }
                }
            }
        });
        (Echo(sender), pid)
    }
}

/// 64 bytes and a word that says that they are there, over two cache lines each way, between two threads that never sleep: what the
/// caches can do.
#[derive(Debug)]
pub struct Spin {
    lines: Arc<[Lines; 2]>,
    turn: u64,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Lines([AtomicU64; 16]);

impl Lines {
    const OVER: u64 = u64::MAX;

    fn put(&self, turn: u64, payload: [u64; 8]) {
        for (word, value) in self.0[1..].iter().zip(payload) {
            word.store(value, Ordering::Relaxed);
        }
        self.0[0].store(turn, Ordering::Release);
    }

    /// Waits for a turn, or the end.
    fn take(&self, turn: u64) -> Option<[u64; 8]> {
        loop {
            match self.0[0].load(Ordering::Acquire) {
                Self::OVER => return None,
                now if now == turn => return Some(std::array::from_fn(|at| self.0[1 + at].load(Ordering::Relaxed))),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

impl Spin {
    /// With the other thread where a worker would run. On one processor nobody should wait like that.
    pub fn new(place: Place) -> Self {
        let lines: Arc<[Lines; 2]> = Arc::default();
        let other = lines.clone();
        let thread = thread::spawn(move || {
            place.enter_as_worker();
            let mut turn = 1;
            while let Some(payload) = other[0].take(turn) {
                other[1].put(turn, payload);
                turn += 1;
            }
        });
        Spin { lines, turn: 0, thread: Some(thread) }
    }

    /// There and back.
    pub fn round_trip(&mut self, payload: [u64; 8]) -> [u64; 8] {
        self.turn += 1;
        self.lines[0].put(self.turn, payload);
        self.lines[1].take(self.turn).unwrap_or_default()
    }
}

impl Drop for Spin {
    fn drop(&mut self) {
        self.lines[0].0[0].store(Lines::OVER, Ordering::Release);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// The same between two threads that sleep: a wake-up each way.
#[derive(Debug)]
pub struct Futex {
    words: Arc<[AtomicU32; 2]>,
    turn: u32,
    thread: Option<thread::JoinHandle<()>>,
}

/// The turn after which the other thread ends.
const OVER: u32 = u32::MAX;

fn ring(word: &AtomicU32, turn: u32) {
    word.store(turn, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1).expect("a futex");
}

/// Sleeps until it is the turn, or over.
fn sleep(word: &AtomicU32, turn: u32) -> bool {
    loop {
        match word.load(Ordering::Acquire) {
            OVER => return false,
            now if now == turn => return true,
            // Woken or not, it looks again.
            now => drop(futex::wait(word, futex::Flags::empty(), now, None)),
        }
    }
}

impl Futex {
    /// With the other thread where a worker would run.
    pub fn new(place: Place) -> Self {
        let words: Arc<[AtomicU32; 2]> = Arc::default();
        let other = words.clone();
        let thread = thread::spawn(move || {
            place.enter_as_worker();
            let mut turn = 1;
            while sleep(&other[0], turn) {
                ring(&other[1], turn);
                turn += 1;
            }
        });
        Futex { words, turn: 0, thread: Some(thread) }
    }

    /// There and back.
    pub fn round_trip(&mut self) {
        self.turn += 1;
        ring(&self.words[0], self.turn);
        sleep(&self.words[1], self.turn);
    }
}

impl Drop for Futex {
    fn drop(&mut self) {
        ring(&self.words[0], OVER);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
