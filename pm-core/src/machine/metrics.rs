//! What a process uses: when that is measured, and which figures are said to be high.
//!
//! ```text
//!            due                        above its threshold
//!  Waiting ───────▶ Measuring   Normal ─────────────────────▶ High
//!     ▲                │           ▲                            │
//!     └─── measured ───┘           └──── below 90 % of it ──────┘
//! ```
//!
//! A figure that lies about its threshold is said to be high once, and not with each sample. Processes that start together are not measured
//! together: the first sample of each comes after half an interval to one and a half, and its interval goes on from there, also after a time in which
//! nothing was measured.

use std::fmt;
use std::time::Duration;

use super::time::Time;

/// The shortest interval. The kernel counts processor time in hundredths of a second, so a share of a shorter one says little.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// A figure is normal again below so many hundredths of its threshold.
const NORMAL_BELOW: u128 = 90;

/// How often a process and its descendants are measured, and what is much for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// From one sample to the next: 10 s by default, and at least [`SHORTEST_INTERVAL`].
    pub interval: Duration,
    /// More processor time than so many hundredths of one core, within an interval, is high.
    pub cpu_above: Option<u64>,
    /// More resident bytes than this are high.
    pub rss_above: Option<u64>,
    /// More open descriptors than this are high.
    pub fds_above: Option<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { interval: Duration::from_secs(10), cpu_above: None, rss_above: None, fds_above: None }
    }
}

/// What a process and all that descends from it use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeUsage {
    /// Bytes that are resident. What processes share counts for each.
    pub rss_bytes: u64,
    /// Processor time, with that of their threads, and of their children that have ended and that they have waited for.
    pub cpu: Duration,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Open descriptors.
    pub fds: u32,
}

/// What a process and its descendants use, as it was measured once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// All of it.
    pub usage: TreeUsage,
    /// The processor time that they had within the last [`Sample::over`].
    pub recent_cpu: Duration,
    /// The time since the sample before this one; for the first, since the start of the process.
    pub over: Duration,
    /// How long the process has lived.
    pub uptime: Duration,
}

impl Sample {
    /// The processor time since the sample before, in hundredths of one core: 250 is two and a half cores.
    pub fn cpu_percent(&self) -> f64 {
        if self.over.is_zero() { 0.0 } else { 100.0 * self.recent_cpu.as_secs_f64() / self.over.as_secs_f64() }
    }
}

/// A figure that can have a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gauge {
    /// Processor time, in hundredths of one core.
    Cpu,
    /// Resident memory, in bytes.
    Rss,
    /// Open descriptors.
    Fds,
}

impl Gauge {
    /// All of them.
    pub const ALL: [Gauge; 3] = [Gauge::Cpu, Gauge::Rss, Gauge::Fds];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Gauge::Cpu => "cpu",
            Gauge::Rss => "rss",
            Gauge::Fds => "fds",
        }
    }
}

impl fmt::Display for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A figure that has become high, or normal again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Which.
    pub gauge: Gauge,
    /// Its value, in the unit of its gauge.
    pub value: u64,
    /// Its threshold.
    pub above: u64,
    /// Whether it is high now.
    pub is_high: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting {
        until: Time,
    },
    /// The next one is due then.
    Measuring {
        then: Time,
    },
}

/// The samples of one process, from its start on. See the [module](self).
#[derive(Clone, Debug)]
pub struct Watch {
    metrics: Metrics,
    began: Time,
    state: State,
    last: Option<(Time, Sample)>,
    /// Those that are high.
    high: Vec<Gauge>,
}

impl Watch {
    /// Of a process that starts now. `phase` is from 0 to 1, another one for each process, and puts their samples apart.
    pub fn new(metrics: Metrics, now: Time, phase: f64) -> Self {
        let metrics = Metrics { interval: metrics.interval.max(SHORTEST_INTERVAL), ..metrics };
        let first = metrics.interval / 2 + Duration::from_nanos((phase * nanos(metrics.interval) as f64) as u64);
        Watch { metrics, began: now, state: State::Waiting { until: now + first }, last: None, high: Vec::new() }
    }

    /// The last sample, and when it was taken.
    pub fn last(&self) -> Option<(Time, Sample)> {
        self.last
    }

    /// When [`Watch::measure`] says yes.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Measuring { .. } => None,
        }
    }

    /// Whether it is to be measured now. [`Watch::measured`] must follow.
    pub fn measure(&mut self, now: Time) -> bool {
        let State::Waiting { until } = self.state else { return false };
        if until > now {
            return false;
        }
        // Those that were missed are not made up for, and after a late one the next is half an interval away at least: a share of less says little.
        let interval = nanos(self.metrics.interval);
        let missed = nanos(now.since(until)).saturating_add(interval / 2) / interval;
        let then = until + Duration::from_nanos(interval.saturating_mul(missed.saturating_add(1)));
        self.state = State::Measuring { then };
        true
    }

    /// Takes what was measured at that time, none where the process was gone; gives it as a sample, and what has become high or normal by it.
    pub fn measured(&mut self, at: Time, usage: Option<TreeUsage>) -> Option<(Sample, Vec<Crossing>)> {
        let State::Measuring { then } = self.state else { return None };
        self.state = State::Waiting { until: then };
        let usage = usage?;
        let (since, had) = self.last.map_or((self.began, Duration::ZERO), |(at, last)| (at, last.usage.cpu));
        let sample = Sample {
            usage,
            // Of one that has ended, and that nobody has waited for, the time is gone.
            recent_cpu: usage.cpu.saturating_sub(had),
            over: at.since(since),
            uptime: at.since(self.began),
        };
        self.last = Some((at, sample));
        Some((sample, Gauge::ALL.into_iter().filter_map(|gauge| self.crossing(gauge, &sample)).collect()))
    }

    fn crossing(&mut self, gauge: Gauge, sample: &Sample) -> Option<Crossing> {
        let (value, above) = match gauge {
            Gauge::Cpu => (sample.cpu_percent().round() as u64, self.metrics.cpu_above?),
            Gauge::Rss => (sample.usage.rss_bytes, self.metrics.rss_above?),
            Gauge::Fds => (sample.usage.fds.into(), self.metrics.fds_above?),
        };
        let was_high = self.high.contains(&gauge);
        let is_normal = u128::from(value) * 100 < u128::from(above) * NORMAL_BELOW;
        let is_high = value > above || was_high && !is_normal;
        if is_high == was_high {
            return None;
        }
        match is_high {
            true => self.high.push(gauge),
            false => self.high.retain(|other| *other != gauge),
        }
        Some(Crossing { gauge, value, above, is_high })
    }
}

/// A time in nanoseconds: those that are longer than 584 years are that long.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::budget::SplitMix;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn usage(cpu: Duration, rss_bytes: u64, fds: u32) -> Option<TreeUsage> {
        Some(TreeUsage { cpu, rss_bytes, fds, processes: 1, threads: 1 })
    }

    /// The events of samples with these values, one a second: `+` where one is high, `-` where it is normal again.
    fn crossings(metrics: Metrics, values: &[u64], usage: impl Fn(u64) -> Option<TreeUsage>) -> String {
        let mut watch = Watch::new(Metrics { interval: SECOND, ..metrics }, Time::ZERO, 0.5);
        let crossing = |value: &u64| {
            let now = watch.poll_timeout().unwrap();
            assert!(watch.measure(now) && !watch.measure(now));
            let (_, crossings) = watch.measured(now, usage(*value)).unwrap();
            assert!(crossings.iter().all(|one| one.value == *value));
            crossings.iter().map(|one| if one.is_high { '+' } else { '-' }).next().unwrap_or('.')
        };
        values.iter().map(crossing).collect()
    }

    #[test]
    fn a_figure_about_its_threshold_is_said_once() {
        let memory = |above| Metrics { rss_above: Some(above), ..Metrics::default() };
        let of = |above, values: &[u64]| crossings(memory(above), values, |value| usage(Duration::ZERO, value, 0));
        assert_eq!(of(100, &[100, 101, 99, 101, 90, 101, 89, 100, 101]), ".+....-.+");
        assert_eq!(of(1, &[0, 1, 2, 1, 0]), "..+.-");
        assert_eq!(of(u64::MAX, &[u64::MAX, 0]), "..");
        let files = Metrics { fds_above: Some(10), ..Metrics::default() };
        let fds = |value: u64| usage(Duration::ZERO, u64::MAX, value as u32);
        assert_eq!(crossings(files, &[11, 12, 9, 8, 8], fds), "+..-.");
        assert_eq!(crossings(Metrics::default(), &[u64::MAX, 0], |value| usage(Duration::ZERO, value, 1)), "..");
    }

    #[test]
    fn the_share_of_the_processor_is_that_since_the_sample_before() {
        let metrics = Metrics { interval: SECOND, cpu_above: Some(100), ..Metrics::default() };
        let mut watch = Watch::new(metrics, at(0), 0.5);
        let mut sample = |now, cpu| {
            assert!(watch.measure(at(now)));
            let (sample, crossings) = watch.measured(at(now), usage(Duration::from_millis(cpu), 0, 0)).unwrap();
            assert_eq!(watch.last(), Some((at(now), sample)));
            (sample.cpu_percent().round() as u64, crossings.first().map(|one| (one.value, one.is_high)))
        };
        assert_eq!(sample(1000, 500), (50, None));
        assert_eq!(sample(2000, 2500), (200, Some((200, true))));
        // A second of a process that nobody has waited for is gone.
        assert_eq!(sample(4000, 1500), (0, Some((0, false))));
        assert_eq!(sample(5000, 2000), (50, None));
    }

    /// Whatever it stands still for, samples of many come at the same rate throughout.
    #[test]
    fn samples_of_many_are_spread_and_stay_so() {
        let mut random = SplitMix(1);
        let mut watches: Vec<Watch> = (0..1000).map(|_| Watch::new(Metrics::default(), at(0), random.unit())).collect();
        let firsts = watches.iter().filter_map(Watch::poll_timeout);
        assert!(firsts.clone().all(|first| (at(5_000)..=at(15_000)).contains(&first)), "{:?}", firsts.max());
        let mut counts = [0; 10];
        // From here on for one interval, second by second.
        let stall = 100_000;
        for watch in &mut watches {
            assert!(watch.measure(at(stall)));
            assert!(watch.measured(at(stall), usage(SECOND, 0, 0)).is_some());
            let next = watch.poll_timeout().unwrap();
            assert!(!watch.measure(next - Duration::from_nanos(1)));
            assert!((at(stall + 5_000)..=at(stall + 15_000)).contains(&next), "{next:?}");
            counts[next.since(at(stall)).as_secs() as usize % 10] += 1;
        }
        assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    }

    #[test]
    fn one_that_is_gone_has_no_sample_and_is_asked_again() {
        let metrics = Metrics { interval: Duration::ZERO, ..Metrics::default() };
        let mut watch = Watch::new(metrics, at(0), 0.0);
        assert!(!watch.measure(at(49)) && watch.measured(at(49), usage(SECOND, 0, 0)).is_none());
        assert!(watch.measure(at(50)));
        assert!(watch.poll_timeout().is_none() && watch.measured(at(60), None).is_none());
        assert_eq!((watch.last(), watch.poll_timeout()), (None, Some(at(150))));
    }
}
