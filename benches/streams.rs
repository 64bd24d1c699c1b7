//! Streams beside a bare framed socket and Node's fork channel: 200 bytes there and back, one at a time and 256 under way on one stream; streams opened, used and closed;
//! and what the rest costs: idle streams, a slow reader, a worker that dies. Three rounds one after another, medians. `cargo bench --bench streams [-- SECONDS]`.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use pm::{AnyTransport, Bytes, Duplex, StreamError};
use pm_cli::bench::limits::Peer;
use pm_cli::bench::measure::{Asked, asked, many, median};
use pm_cli::bench::place::{Place, VARIABLE, pin_from_environment};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// What is sent: bytes as they are in a chat, or a step of a game.
const SIZE: usize = 200;

/// Messages under way on one stream.
const OUTSTANDING: usize = 256;

/// Streams that nobody uses.
const IDLE: usize = 10_000;

static ECHO: pm::Stream<Bytes, Bytes> = pm::Stream::new("echo", &echo);

/// Sends so many messages of so many bytes.
static POUR: pm::Stream<(u32, u32), Bytes> = pm::Stream::new("pour", &pour);

async fn echo(mut peer: Duplex<Bytes, Bytes>) -> Result<(), StreamError> {
    while let Some(message) = peer.next().await {
        peer.write(&black_box(message?)).await?;
    }
    Ok(())
}

async fn pour(mut peer: Duplex<Bytes, (u32, u32)>) -> Result<(), StreamError> {
    while let Some(message) = peer.next().await {
        let (count, size) = message?;
        let message = Bytes::from(vec![7; size as usize]);
        for _ in 0..count {
            peer.write(&message).await?;
        }
    }
    Ok(())
}

/// The variable that makes this program the peer of a framed socket, which is its standard input.
const FRAMED: &str = "PM_BENCH_FRAMED";

fn main() {
    pin_from_environment();
    serve_if_framed();
    pm::roles([&ECHO, &POUR]);
    let Asked { is_test, time } = asked(1.0, Duration::from_millis(50));
    let rounds = if is_test { 1 } else { 3 };
    let places = [Place::TwoCores, Place::OneCore];
    for place in places.into_iter().filter(|place| place.is_here()) {
        place.enter();
        let runtime = runtime();
        println!("{place}: {SIZE} bytes there and back");
        println!("{:<24}{:>14}{:>16}{:>18}", "", "one at a time", "256 under way", "streams a second");
        let mut table: Vec<(String, [Vec<f64>; 3])> = Vec::new();
        for _ in 0..rounds {
            let mut row = |name: &str, values: [f64; 3]| {
                let at = table.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                    table.push((name.to_string(), Default::default()));
                    table.len() - 1
                });
                for (all, value) in table[at].1.iter_mut().zip(values) {
                    all.push(value);
                }
            };
            row("framed socket", runtime.block_on(framed(place, time)));
            for scheme in AnyTransport::SCHEMES {
                row(scheme, runtime.block_on(ours(scheme, place, time)));
            }
            if let Some(values) = node(time) {
                row("Node.js fork (unpinned)", values);
            }
        }
        for (name, values) in table {
            let [alone, crowd, opened] = values.map(median);
            let opened = if opened > 0.0 { format!("{opened:.0}/s") } else { String::new() };
            println!("{name:<24}{:>11.1} µs{crowd:>14.0}/s{opened:>18}", 1e6 / alone);
        }
    }
    Place::Unpinned.enter();
    let runtime = runtime();
    for scheme in AnyTransport::SCHEMES {
        runtime.block_on(other_costs(scheme, is_test));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn message() -> Bytes {
    Bytes::from(vec![b'x'; SIZE])
}

/// Messages per second one at a time and with many under way, and streams per second.
async fn ours(scheme: &str, place: Place, time: Duration) -> [f64; 3] {
    let transport: AnyTransport = scheme.parse().expect("a transport of this build");
    let pool = ECHO.pool().transport(transport).spec(|spec| spec.env(VARIABLE, place.variable()));
    let pool = pool.start().await.expect("a pool");
    let message = message();
    // In a task, as programs do it: the thread of `block_on` is another one.
    let mut stream = pool.create_stream().await.expect("a stream");
    let (alone, crowd) = tokio::spawn(async move {
        let mut alone = Rate::new(time);
        while alone.goes_on() {
            stream.write(&message).await.expect("it lives");
            assert_eq!(stream.next().await.expect("it goes on").expect("it lives").len(), SIZE);
        }
        for _ in 0..OUTSTANDING {
            stream.write(&message).await.expect("it lives");
        }
        let mut crowd = Rate::new(time);
        while crowd.goes_on() {
            assert_eq!(stream.next().await.expect("it goes on").expect("it lives").len(), SIZE);
            stream.write(&message).await.expect("it lives");
        }
        stream.close().await.expect("it ends well");
        (alone.each_second(), crowd.each_second())
    })
    .await
    .expect("no panic");
    let streams = pool.clone();
    let message = self::message();
    let opened = many(OUTSTANDING, time, None, move || {
        let (streams, message) = (streams.clone(), message.clone());
        async move {
            let mut stream = streams.create_stream().await.expect("a stream");
            stream.write(&message).await.expect("it lives");
            assert_eq!(stream.next().await.expect("it goes on").expect("it lives").len(), SIZE);
            stream.close().await.expect("it ends well");
        }
    })
    .await;
    pool.shutdown().await;
    [alone, crowd, opened.rate]
}

/// The same over a bare socket with frames.
async fn framed(place: Place, time: Duration) -> [f64; 3] {
    let (ours, theirs) = StdStream::pair().expect("a pair of sockets");
    let mut peer = Command::new("/proc/self/exe");
    peer.env(FRAMED, "1").env(VARIABLE, place.variable()).stdin(OwnedFd::from(theirs));
    let _peer = Peer::start(&mut peer);
    ours.set_nonblocking(true).expect("a flag");
    let mut socket = Framed::new(UnixStream::from_std(ours).expect("a runtime"), LengthDelimitedCodec::new());
    let message = message();
    tokio::spawn(async move {
        let mut alone = Rate::new(time);
        while alone.goes_on() {
            socket.send(message.clone()).await.expect("the peer lives");
            assert_eq!(socket.next().await.expect("the peer lives").expect("a frame").len(), SIZE);
        }
        for _ in 0..OUTSTANDING {
            socket.feed(message.clone()).await.expect("the peer lives");
        }
        SinkExt::<Bytes>::flush(&mut socket).await.expect("the peer lives");
        let mut crowd = Rate::new(time);
        while crowd.goes_on() {
            assert_eq!(next(&mut socket).await.expect("the peer lives").len(), SIZE);
            socket.feed(message.clone()).await.expect("the peer lives");
        }
        [alone.each_second(), crowd.each_second(), 0.0]
    })
    .await
    .expect("no panic")
}

/// The next frame. Before it is waited for, what was written goes: so that those that come together are answered together.
async fn next(socket: &mut Framed<UnixStream, LengthDelimitedCodec>) -> Option<Bytes> {
    if let std::task::Poll::Ready(frame) = futures_util::poll!(StreamExt::next(socket)) {
        return Some(frame?.ok()?.freeze());
    }
    SinkExt::<Bytes>::flush(socket).await.ok()?;
    Some(StreamExt::next(socket).await?.ok()?.freeze())
}

/// Echoes frames, where the environment says that this process is such a peer.
fn serve_if_framed() {
    if std::env::var_os(FRAMED).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        use std::os::fd::AsFd;
        let socket = StdStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("a socket"));
        socket.set_nonblocking(true).expect("a flag");
        let mut socket = Framed::new(UnixStream::from_std(socket).expect("a runtime"), LengthDelimitedCodec::new());
        while let Some(message) = next(&mut socket).await {
            if socket.feed(black_box(message)).await.is_err() {
                return;
            }
        }
    });
    std::process::exit(0)
}

/// Messages per second, one at a time and with many under way. None where there is no Node.js.
fn node(time: Duration) -> Option<[f64; 3]> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("languages/fork.js");
    let rate = |outstanding: usize| {
        let mut command = Command::new("taskset");
        command.args(["-c", "0-1", "node"]).arg(&script);
        command.args([&time.as_secs_f64().to_string(), "1", &outstanding.to_string(), &SIZE.to_string()]);
        let output = command.stderr(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    Some([rate(1)?, rate(OUTSTANDING)?, 0.0])
}

/// How many times a second something is done, after a warm-up of a tenth of the time.
struct Rate {
    warm: Instant,
    time: Duration,
    began: Option<Instant>,
    count: u64,
    took: Duration,
}

impl Rate {
    fn new(time: Duration) -> Self {
        Rate { warm: Instant::now() + time / 10, time, began: None, count: 0, took: Duration::ZERO }
    }

    /// Counts one, and says whether another one is to be done. Looks at the clock now and then.
    fn goes_on(&mut self) -> bool {
        self.count += 1;
        if !self.count.is_multiple_of(16) {
            return true;
        }
        let now = Instant::now();
        match self.began {
            None if now < self.warm => {}
            None => (self.began, self.count) = (Some(now), 0),
            Some(began) => {
                self.took = now - began;
                return self.took < self.time;
            }
        }
        true
    }

    fn each_second(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

/// Memory of idle streams and of a slow reader, and the time until all readers of a dead worker know.
async fn other_costs(scheme: &str, is_test: bool) {
    let transport: AnyTransport = scheme.parse().expect("a transport of this build");
    let idle = if is_test { 100 } else { IDLE };
    let pool = ECHO.pool().transport(transport).start().await.expect("a pool");
    let before = resident();
    let mut streams = Vec::new();
    for _ in 0..idle {
        streams.push(pool.create_stream().await.expect("a stream"));
    }
    let held = resident().saturating_sub(before);
    println!("{scheme}: {idle} idle streams: {:.1} MB in the manager (target: 20)", held as f64 / 1e6);
    drop(streams);
    pool.shutdown().await;

    let pool = POUR.pool().transport(transport).start().await.expect("a pool");
    let mut slow = pool.create_stream().await.expect("a stream");
    let before = resident();
    slow.write(&(100_000, 1024)).await.expect("it lives");
    // By then it has sent what it may.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let grown = resident().saturating_sub(before);
    println!(
        "{scheme}: 100,000 messages of 1 KiB to a slow reader: {:.1} MB more (target: window + 10)",
        grown as f64 / 1e6
    );
    pool.shutdown_within(Some(Duration::ZERO)).await;

    let pool = POUR.pool().transport(transport).start().await.expect("a pool");
    let mut one = pool.create_stream().await.expect("a stream");
    let rounds = if is_test { 100 } else { 20_000 };
    let alone = p99(&mut one, rounds).await;
    let mut stalled = Vec::new();
    for _ in 0..16 {
        let mut stream = pool.create_stream().await.expect("a stream");
        stream.write(&(u32::MAX, 1024)).await.expect("it lives");
        stalled.push(stream);
    }
    let beside = p99(&mut one, rounds).await;
    println!("{scheme}: p99 of one stream {alone:.0} µs, beside 16 that nobody reads {beside:.0} µs (target: 2 x)");
    pool.shutdown_within(Some(Duration::ZERO)).await;

    let mut times = Vec::new();
    for _ in 0..if is_test { 1 } else { 5 } {
        let pool = ECHO.pool().transport(transport).start().await.expect("a pool");
        let mut readers = Vec::new();
        for _ in 0..100 {
            let mut stream = pool.create_stream().await.expect("a stream");
            readers.push(tokio::spawn(async move {
                assert!(stream.next().await.expect("an error").is_err());
                Instant::now()
            }));
        }
        tokio::task::yield_now().await;
        let began = Instant::now();
        pool.chaos(0);
        let mut last = began;
        for reader in readers {
            last = last.max(reader.await.expect("no panic"));
        }
        times.push((last - began).as_secs_f64() * 1e3);
        pool.shutdown().await;
    }
    println!(
        "{scheme}: a worker killed with 100 streams: all readers know after {:.1} ms (target: 100)",
        median(times)
    );
}

/// Of so many messages that are asked for one at a time, in microseconds.
async fn p99(stream: &mut Duplex<(u32, u32), Bytes>, rounds: usize) -> f64 {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        stream.write(&(1, 64)).await.expect("it lives");
        stream.next().await.expect("it goes on").expect("it lives");
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10
}
