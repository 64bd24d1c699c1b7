//! Measuring: one after another, and many at the same time.

use std::future::Future;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

/// What one run gave.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Nanoseconds.
    pub p50: u64,
    /// Nanoseconds.
    pub p99: u64,
    /// Nanoseconds.
    pub p999: u64,
    /// Nanoseconds.
    pub mean: f64,
}

/// Times one call after another, after a warm-up of a tenth of the time.
#[derive(Debug)]
pub struct Recorder {
    histogram: Histogram<u64>,
    warm: Instant,
    end: Instant,
    began: Option<Instant>,
}

impl Recorder {
    /// For so long.
    pub fn new(time: Duration) -> Self {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds are right");
        let warm = Instant::now() + time / 10;
        Recorder { histogram, warm, end: warm + time, began: None }
    }

    /// Notes the call that was just made, and says whether another one is to be made.
    pub fn goes_on(&mut self) -> bool {
        let now = Instant::now();
        if let Some(began) = self.began
            && now > self.warm
        {
            self.histogram.saturating_record((now - began).as_nanos() as u64);
        }
        self.began = Some(now);
        now < self.end || self.histogram.is_empty()
    }

    /// Notes a time that was measured elsewhere, in place of that since the last call.
    pub fn record(&mut self, time: Duration) {
        self.began = None;
        if Instant::now() > self.warm {
            self.histogram.saturating_record(time.as_nanos() as u64);
        }
    }

    /// What came of it.
    pub fn finish(self) -> Latency {
        Latency {
            p50: self.histogram.value_at_quantile(0.5),
            p99: self.histogram.value_at_quantile(0.99),
            p999: self.histogram.value_at_quantile(0.999),
            mean: self.histogram.mean(),
        }
    }
}

/// Keeps `at_once` calls under way for `time`, each in a task of its own, and gives calls per second.
pub async fn rate<C, F>(at_once: usize, time: Duration, call: C) -> f64
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let warm = Instant::now() + time / 10;
    let end = warm + time;
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let call = call.clone();
        tasks.spawn(async move {
            while Instant::now() < warm {
                call().await;
            }
            let mut count = 0u64;
            while Instant::now() < end {
                call().await;
                count += 1;
            }
            count
        });
    }
    let mut total = 0;
    while let Some(count) = tasks.join_next().await {
        total += count.expect("no call panics");
    }
    total as f64 / time.as_secs_f64()
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
