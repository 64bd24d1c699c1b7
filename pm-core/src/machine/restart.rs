//! Whether a service that ended is started again.

use std::time::Duration;

use super::budget::{Budget, Death, Deaths, Verdict};
use super::exit::ExitStatus;
use super::time::Time;

/// Which ends of a service are followed by another start. A stop that was asked for never is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// None.
    #[default]
    Never,
    /// Those that are no success: a signal, a code that is not in [`Restart::success`], a start that took too long.
    OnFailure,
    /// All.
    Always,
}

/// When a service is started again, how often, and after which delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// After which ends: none by default.
    pub when: When,
    /// So many restarts within [`Restart::window`], then it gives up: 5 by default. 0 is none at all; no number is no end.
    pub max: Option<u32>,
    /// How far back restarts are counted: 30 minutes by default.
    pub window: Duration,
    /// The delay before the first restart, doubled for each further one in the window, each with a jitter of a quarter either way:
    /// 1 s by default. 0 is none.
    pub delay: Duration,
    /// The longest delay: 30 s by default.
    pub longest_delay: Duration,
    /// Who has been well for so long begins with a clean slate: 1 minute by default.
    pub stable: Duration,
    /// Exit codes that are a success: 0 by default.
    pub success: Vec<i32>,
}

impl Default for Restart {
    fn default() -> Self {
        Restart {
            when: When::Never,
            max: Some(5),
            window: Duration::from_secs(30 * 60),
            delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(30),
            stable: Duration::from_secs(60),
            success: vec![0],
        }
    }
}

impl Restart {
    /// The default, after these ends.
    pub fn when(when: When) -> Self {
        Restart { when, ..Restart::default() }
    }

    /// Whether a process that ended so has done what it should.
    pub fn is_success(&self, status: ExitStatus) -> bool {
        status.code().is_some_and(|code| self.success.contains(&code))
    }

    /// Whether a start follows from an end, where the limit allows it.
    pub(crate) fn follows(&self, is_success: bool) -> bool {
        match self.when {
            When::Never => false,
            When::OnFailure => !is_success,
            When::Always => true,
        }
    }

    /// Whether a service is started again however often it ends.
    pub(crate) fn never_ends(&self) -> bool {
        self.when == When::Always && self.max.is_none()
    }

    /// The restarts that are left, which begins full. `seed` is where the jitter comes from.
    pub(crate) fn begin(&self, seed: u64) -> Restarts {
        let budget = Budget::every_crash(self.max.unwrap_or(u32::MAX), self.window)
            .backoff(self.delay, self.longest_delay.max(self.delay));
        Restarts { deaths: Deaths::new(budget, seed), total: 0 }
    }
}

/// What was used of the restarts of a service.
#[derive(Clone, Debug)]
pub(crate) struct Restarts {
    deaths: Deaths,
    total: u64,
}

impl Restarts {
    /// Notes an end that is to be followed by a start: after this delay, or not any more.
    pub(crate) fn next(&mut self, now: Time) -> Option<Duration> {
        match self.deaths.record(now, Death::Idle) {
            Verdict::Restart(delay) => {
                self.total += 1;
                Some(delay)
            }
            Verdict::GiveUp => None,
        }
    }

    /// It was well for long enough, or somebody starts it anew.
    pub(crate) fn forgive(&mut self) {
        self.deaths.reset();
    }

    /// Those that count against the limit now.
    pub(crate) fn counted(&self) -> usize {
        self.deaths.count()
    }

    /// All that there were.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn zero_means_zero_and_no_number_no_end() {
        let none = Restart { max: Some(0), ..Restart::when(When::Always) };
        assert_eq!(none.begin(1).next(at(0)), None);
        let endless = Restart { max: None, delay: Duration::ZERO, ..Restart::when(When::Always) };
        let mut restarts = endless.begin(1);
        for n in 0..100_000 {
            assert_eq!(restarts.next(at(n / 1000)), Some(Duration::ZERO));
        }
        assert_eq!(restarts.total(), 100_000);
        assert!(restarts.counted() < 1000, "memory stays flat: {}", restarts.counted());
    }

    #[test]
    fn five_by_default_with_delays_that_double() {
        let mut restarts = Restart::when(When::OnFailure).begin(3);
        let delays: Vec<f64> = (0..5).map(|n| restarts.next(at(n)).unwrap().as_secs_f64()).collect();
        for (n, delay) in delays.iter().enumerate() {
            assert!((0.75..1.25).contains(&(delay / f64::from(1 << n))), "{delays:?}");
        }
        assert_eq!(restarts.next(at(6)), None);
        restarts.forgive();
        assert!(restarts.next(at(6)).is_some());
    }

    #[test]
    fn only_named_codes_are_a_success() {
        let restart = Restart { success: vec![0, 143], ..Restart::default() };
        assert!(restart.is_success(ExitStatus::Code(143)));
        assert!(!restart.is_success(ExitStatus::Code(1)));
        assert!(!restart.is_success(ExitStatus::Signal { signal: 15, core: false }));
        assert!(!restart.is_success(ExitStatus::Lost));
    }
}
