//! Latencies, counted in buckets whose width grows with what they count.
//!
//! Up to 512 ns a bucket is 16 ns wide, and above that each octave has 32 of them: what is read from one is at most 1/64 off, 1.6 %. Up to 4.9 hours that takes
//! 1,152 buckets, 9 KiB for each pool; what took longer counts as that. One relaxed addition notes a latency: the number of all, their mean and their longest
//! come from the buckets too.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The width of the narrowest buckets is 2 to the power of this, in nanoseconds.
const UNIT: u32 = 4;

/// An octave has 2 to the power of this many buckets.
const PARTS: u32 = 5;

/// The last octave begins at 2 to the power of this many units.
const LAST_OCTAVE: u32 = 39;

const BUCKETS: usize = ((LAST_OCTAVE - PARTS + 2) << PARTS) as usize;

/// The bucket of a latency in nanoseconds.
fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT;
    let octave = (units | 1 << PARTS).ilog2() - PARTS;
    let bucket = ((octave as usize) << PARTS) + (units >> octave) as usize;
    bucket.min(BUCKETS - 1)
}

/// Where a bucket begins, in nanoseconds. That of the next one is where it ends.
fn beginning(bucket: usize) -> u64 {
    let octave = (bucket >> PARTS).saturating_sub(1);
    ((bucket - (octave << PARTS)) as u64) << octave << UNIT
}

/// What stands for all latencies of a bucket: the middle of it.
fn middle(bucket: usize) -> u64 {
    (beginning(bucket) + beginning(bucket + 1)) / 2
}

pub(super) struct Histogram(Box<[AtomicU64; BUCKETS]>);

impl Histogram {
    pub(super) fn new() -> Self {
        Histogram(Box::new([const { AtomicU64::new(0) }; BUCKETS]))
    }

    pub(super) fn record(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn snapshot(&self) -> Latencies {
        Latencies(self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect())
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// How long calls took, from when they were made to their answers, retries and the wait for a worker included; of streams from their opening to their end. What
/// is said of them is at most 2 % off, from 512 ns up.
#[derive(Clone, PartialEq, Eq)]
pub struct Latencies(Box<[u64]>);

impl Latencies {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        let nanos: f64 = self.buckets().map(|(bucket, count)| middle(bucket) as f64 * count as f64).sum();
        Duration::from_secs_f64(nanos / 1e9)
    }

    /// Their mean; zero where there are none.
    pub fn mean(&self) -> Duration {
        match self.count() {
            0 => Duration::ZERO,
            count => self.sum().div_f64(count as f64),
        }
    }

    /// The latency that this part of them does not exceed, from 0 to 1; zero where there are none.
    pub fn quantile(&self, part: f64) -> Duration {
        let rank = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        Duration::from_nanos(found.map_or(0, |(bucket, _)| middle(bucket)))
    }

    /// The one that half of them do not exceed.
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The one that 99 of 100 do not exceed.
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.quantile(1.0)
    }

    /// How many took less than this: exactly so for powers of two of nanoseconds, from 16 ns up.
    pub fn below(&self, limit: Duration) -> u64 {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.buckets().take_while(|(bucket, _)| beginning(bucket + 1) <= limit).map(|(_, count)| count).sum()
    }

    /// Those that are not empty.
    fn buckets(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("count", &self.count())
            .field("mean", &self.mean())
            .field("p50", &self.p50())
            .field("p99", &self.p99())
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::budget::SplitMix;

    #[test]
    fn buckets_lie_side_by_side() {
        assert_eq!(beginning(0), 0);
        for at in 0..BUCKETS {
            let (from, to) = (beginning(at), beginning(at + 1));
            assert!(from < to);
            assert_eq!((bucket(from), bucket(to - 1)), (at, at));
            if from >= 512 {
                assert!((to - from) as f64 / 2.0 / from as f64 <= 1.0 / 64.0, "bucket {at} is too wide");
            }
        }
        assert_eq!(beginning(BUCKETS), 1 << 44);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(size_of::<[AtomicU64; BUCKETS]>() <= 9 << 10);
    }

    #[test]
    fn quantiles_are_those_of_the_latencies() {
        for seed in 0..50 {
            let mut random = SplitMix(seed);
            let histogram = Histogram::new();
            // Over all orders of magnitude, evenly in their logarithm, or close together.
            let (low, high) = if seed % 2 == 0 { (6.3, 30.0) } else { (8.0, 10.0) };
            let mut exact: Vec<f64> = (0..1 + random.below(5_000))
                .map(|_| (low + (high - low) * random.unit()).exp().round())
                .inspect(|nanos| histogram.record(Duration::from_nanos(*nanos as u64)))
                .collect();
            exact.sort_unstable_by(f64::total_cmp);
            let latencies = histogram.snapshot();
            let is_about = |what: &str, found: Duration, exact: f64| {
                let found = found.as_nanos() as f64;
                assert!((found / exact - 1.0).abs() <= 0.02, "{what}: {found} is not about {exact}, seed {seed}");
            };
            for part in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let rank = ((part * exact.len() as f64).ceil() as usize).max(1);
                is_about(&format!("{part}"), latencies.quantile(part), exact[rank - 1]);
            }
            is_about("mean", latencies.mean(), exact.iter().sum::<f64>() / exact.len() as f64);
            is_about("max", latencies.max(), exact[exact.len() - 1]);
            assert_eq!((latencies.count(), histogram.count()), (exact.len() as u64, exact.len() as u64));
            for power in 4..44 {
                let limit = 1_u64 << power;
                let below = exact.iter().filter(|nanos| **nanos < limit as f64).count() as u64;
                assert_eq!(latencies.below(Duration::from_nanos(limit)), below, "2^{power}, seed {seed}");
            }
        }
    }

    #[test]
    fn of_nothing_all_is_zero() {
        let none = Histogram::new().snapshot();
        assert_eq!(
            (none.count(), none.mean(), none.p50(), none.max()),
            (0, Duration::ZERO, Duration::ZERO, Duration::ZERO)
        );
        let histogram = Histogram::new();
        histogram.record(Duration::MAX);
        assert!(histogram.snapshot().max() > Duration::from_secs(4 * 3600), "it counts as the longest there is");
    }
}
