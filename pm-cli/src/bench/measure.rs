//! Measuring: one after another, and many at the same time.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

/// Of many queries at the same time one in so many is timed: all would wait for each other at the histogram.
const TIMED: u64 = 16;

/// What the command line of a bench asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Only whether all works: `--test`, which `cargo test` gives.
    pub is_test: bool,
    /// How long a figure is measured: so many seconds, which is the other argument.
    pub time: Duration,
}

/// Reads it; `seconds` where it says nothing of time, and `in_test` in a test.
pub fn asked(seconds: f64, in_test: Duration) -> Asked {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let said =
        std::env::args().filter_map(|arg| arg.parse().ok()).find_map(|said| Duration::try_from_secs_f64(said).ok());
    Asked { is_test, time: if is_test { in_test } else { said.unwrap_or(Duration::from_secs_f64(seconds)) } }
}

/// The middle of some figures.
///
/// # Panics
/// Where there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Nanoseconds.
    pub p50: u64,
    /// Nanoseconds.
    pub p99: u64,
    /// Nanoseconds.
    pub p999: u64,
    /// Nanoseconds.
    pub mean: f64,
    /// Calls per second.
    pub rate: f64,
    /// Nanoseconds of processor time for each call, of this process.
    pub cpu_manager: f64,
    /// The same of the other process.
    pub cpu_worker: f64,
}

/// Times one call after another, after a warm-up of a tenth of the time.
#[derive(Debug)]
pub struct Recorder {
    histogram: Histogram<u64>,
    warm: Instant,
    end: Instant,
    began: Option<Instant>,
    peer: Option<u32>,
    /// Once it is warm.
    start: Option<Start>,
}

impl Recorder {
    /// For so long. What `peer` burns is measured too: another process, or else a thread of this one.
    pub fn new(time: Duration, peer: Option<u32>) -> Self {
        let warm = Instant::now() + time / 10;
        Recorder { histogram: histogram(), warm, end: warm + time, began: None, peer, start: None }
    }

    /// Notes the call that was just made, and says whether another one is to be made.
    pub fn goes_on(&mut self) -> bool {
        let now = Instant::now();
        if let Some(began) = self.began
            && self.start.is_some()
        {
            self.histogram.saturating_record((now - began).as_nanos() as u64);
        }
        self.began = Some(now);
        self.warm_up(now);
        now < self.end || self.histogram.is_empty()
    }

    /// Notes a time that was measured elsewhere, in place of that since the last call.
    pub fn record(&mut self, time: Duration) {
        self.began = None;
        if self.start.is_some() {
            self.histogram.saturating_record(time.as_nanos() as u64);
        }
        self.warm_up(Instant::now());
    }

    fn warm_up(&mut self, now: Instant) {
        if now > self.warm && self.start.is_none() {
            self.start = Some(Start::now(self.peer));
        }
    }

    /// What came of it.
    pub fn finish(self) -> Measured {
        let start = self.start.unwrap_or_else(|| Start::now(self.peer));
        start.measured(&self.histogram, self.histogram.len())
    }
}

/// Keeps `at_once` calls under way for `time`, each in a task of its own, after a warm-up of a tenth of the time.
pub async fn many<C, F>(at_once: usize, time: Duration, peer: Option<u32>, call: C) -> Measured
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    rounds(at_once, time / 10, &Arc::new(Mutex::new(histogram())), &call).await;
    let times = Arc::new(Mutex::new(histogram()));
    let start = Start::now(peer);
    let count = rounds(at_once, time, &times, &call).await;
    start.measured(&times.lock().unwrap_or_else(PoisonError::into_inner), count)
}

async fn rounds<C, F>(at_once: usize, time: Duration, times: &Arc<Mutex<Histogram<u64>>>, call: &C) -> u64
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (call, times) = (call.clone(), times.clone());
        tasks.spawn(async move {
            let mut stopwatch = Stopwatch::new(end);
            while stopwatch.goes_on(&times) {
                call().await;
            }
            stopwatch.count
        });
    }
    let mut total = 0;
    while let Some(count) = tasks.join_next().await {
        total += count.expect("no call panics");
    }
    total
}

/// The same with threads that block.
pub fn many_threads<C>(at_once: usize, time: Duration, peer: Option<u32>, call: C) -> Measured
where
    C: Fn() + Sync,
{
    let run = |time: Duration, times: &Mutex<Histogram<u64>>| -> u64 {
        let end = Instant::now() + time;
        let serve = || {
            let mut stopwatch = Stopwatch::new(end);
            while stopwatch.goes_on(times) {
                call();
            }
            stopwatch.count
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once)
                .map(|_| {
                    std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, serve).expect("a thread")
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no call panics")).sum()
        })
    };
    run(time / 10, &Mutex::new(histogram()));
    let times = Mutex::new(histogram());
    let start = Start::now(peer);
    let count = run(time, &times);
    start.measured(&times.into_inner().unwrap_or_else(PoisonError::into_inner), count)
}

/// Counts the calls of one of many callers, and times some.
struct Stopwatch {
    end: Instant,
    began: Instant,
    count: u64,
    is_new: bool,
}

impl Stopwatch {
    fn new(end: Instant) -> Self {
        Stopwatch { end, began: end, count: 0, is_new: true }
    }

    fn goes_on(&mut self, times: &Mutex<Histogram<u64>>) -> bool {
        let now = Instant::now();
        if !std::mem::take(&mut self.is_new) {
            if self.count.is_multiple_of(TIMED) {
                let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                times.saturating_record((now - self.began).as_nanos() as u64);
            }
            self.count += 1;
        }
        self.began = now;
        now < self.end
    }
}

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds are right")
}

/// The start of what is measured: the time, and what this process and its peer had burnt by then.
#[derive(Clone, Copy, Debug)]
struct Start {
    peer: Option<u32>,
    began: Instant,
    burnt: Burnt,
}

/// Processor time of this process, or thread, and of its peer.
#[derive(Clone, Copy, Debug)]
struct Burnt {
    ours: Duration,
    theirs: Duration,
}

impl Start {
    fn now(peer: Option<u32>) -> Self {
        Start { peer, began: Instant::now(), burnt: Burnt::until_now(peer) }
    }

    /// What came of so many calls since.
    fn measured(self, times: &Histogram<u64>, count: u64) -> Measured {
        let (took, burnt) = (self.began.elapsed(), Burnt::until_now(self.peer));
        let each = |now: Duration, then: Duration| now.saturating_sub(then).as_nanos() as f64 / count.max(1) as f64;
        Measured {
            p50: times.value_at_quantile(0.5),
            p99: times.value_at_quantile(0.99),
            p999: times.value_at_quantile(0.999),
            mean: times.mean(),
            rate: count as f64 / took.as_secs_f64(),
            cpu_manager: each(burnt.ours, self.burnt.ours),
            cpu_worker: each(burnt.theirs, self.burnt.theirs),
        }
    }
}

impl Burnt {
    fn until_now(peer: Option<u32>) -> Self {
        let all = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
        match peer {
            Some(peer) => Burnt { ours: all, theirs: burnt_by(peer) },
            // Threads of one process that share its work.
            None => Burnt { ours: all / 2, theirs: all / 2 },
        }
    }
}

/// What the threads of another process have burnt, as the scheduler counts it. Zero where the kernel does not tell.
fn burnt_by(pid: u32) -> Duration {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let burnt = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    });
    burnt.sum()
}

/// 64 bytes that serde takes for what they are, and not for as many numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block(pub [u8; 64]);

impl serde::Serialize for Block {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Block {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl serde::de::Visitor<'_> for Bytes {
            type Value = Block;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("64 bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Block, E> {
                bytes.try_into().map(Block).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}
