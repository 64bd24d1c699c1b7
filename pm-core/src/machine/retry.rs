//! Whether a call that failed is tried again.

use std::time::Duration;

use super::cause::ExitCause;

/// How a try of a call failed, as far as a retry policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Its worker died, and the call had started.
    Lost,
    /// pm killed its worker for another reason than this call, which had started. Policies take it for [`Failure::Lost`].
    Killed,
    /// It took too long.
    TimedOut,
    /// Its handler returned an error or panicked.
    Handler,
}

impl Failure {
    /// That of a call which had started when its worker died.
    pub const fn of_death(cause: &ExitCause) -> Self {
        if cause.is_ordered() { Failure::Killed } else { Failure::Lost }
    }
}

/// How the delay before a further try grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// The same each time.
    Constant(Duration),
    /// The n-th retry waits n times as long.
    Linear(Duration),
    /// Each retry waits twice as long as the one before, up to a longest.
    Exponential {
        /// Before the first retry.
        first: Duration,
        /// The longest.
        longest: Duration,
    },
}

impl Delay {
    /// The delay before retry `n`, counted from 1.
    pub fn before(self, n: u32) -> Duration {
        match self {
            Delay::Constant(delay) => delay,
            Delay::Linear(delay) => delay.saturating_mul(n),
            Delay::Exponential { first, longest } => {
                first.saturating_mul(1 << n.saturating_sub(1).min(20)).min(longest)
            }
        }
    }
}

/// When and how often a call is tried again. Only for work that may run twice.
///
/// ```
/// use std::time::Duration;
/// use pm_core::machine::retry::{Delay, Retry};
///
/// let retry = Retry::times(2).on_timeout().delay(Delay::Linear(Duration::from_millis(50)));
/// assert_eq!(retry.attempts(), 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    retries: u32,
    delay: Delay,
    lost: bool,
    timed_out: bool,
    handler: bool,
}

impl Retry {
    /// Every call is tried once.
    pub const NEVER: Retry =
        Retry { retries: 0, delay: Delay::Constant(Duration::ZERO), lost: false, timed_out: false, handler: false };

    /// Up to `n` further tries, at once, for calls whose worker died. Timeouts and errors of the handler are covered by
    /// [`Retry::on_timeout`] and [`Retry::on_error`]. A call that was aboard [`POISON`] workers when they died is tried no more, whatever `n` is.
    pub const fn times(n: u32) -> Self {
        Retry { retries: n, lost: true, ..Retry::NEVER }
    }

    /// The same up to `n` times. What was never tried again is from then on where its worker died, as with [`Retry::times`].
    pub const fn up_to(self, n: u32) -> Self {
        let covers_nothing = !self.lost && !self.timed_out && !self.handler;
        Retry { retries: n, lost: self.lost || covers_nothing, ..self }
    }

    /// Waits between the tries.
    pub const fn delay(self, delay: Delay) -> Self {
        Retry { delay, ..self }
    }

    /// Also after a timeout. Each try has the whole limit.
    pub const fn on_timeout(self) -> Self {
        Retry { timed_out: true, ..self }
    }

    /// Also after an error of the handler.
    pub const fn on_error(self) -> Self {
        Retry { handler: true, ..self }
    }

    /// For exactly these failures, in place of what was chosen before.
    pub fn on(self, failures: &[Failure]) -> Self {
        Retry {
            lost: failures.contains(&Failure::Lost) || failures.contains(&Failure::Killed),
            timed_out: failures.contains(&Failure::TimedOut),
            handler: failures.contains(&Failure::Handler),
            ..self
        }
    }

    /// How many tries there are at most, the first one included.
    pub const fn attempts(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    const fn covers(&self, failure: Failure) -> bool {
        match failure {
            Failure::Lost | Failure::Killed => self.lost,
            Failure::TimedOut => self.timed_out,
            Failure::Handler => self.handler,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry::NEVER
    }
}

/// What follows from a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after this delay.
    Again(Duration),
    /// The caller gets the error of this try.
    Fail,
    /// The call was aboard too many dying workers: the caller gets Poisoned.
    Poisoned,
}

/// How many dying workers a call may have been aboard before it counts as poison. Workers that pm killed do not count.
pub const POISON: u32 = 3;

/// The tries of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    failed: u32,
    deaths: u32,
}

impl Tries {
    /// Notes a failed try and says what follows.
    pub fn record(&mut self, policy: &Retry, failure: Failure) -> Verdict {
        self.failed += 1;
        if failure == Failure::Lost {
            self.deaths += 1;
            if self.deaths >= POISON {
                return Verdict::Poisoned;
            }
        }
        if policy.covers(failure) && self.failed <= policy.retries {
            Verdict::Again(policy.delay.before(self.failed))
        } else {
            Verdict::Fail
        }
    }

    /// How many tries failed.
    pub const fn failed(&self) -> u32 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_policy_every_failure_is_final() {
        for failure in [Failure::Lost, Failure::TimedOut, Failure::Handler] {
            assert_eq!(Tries::default().record(&Retry::NEVER, failure), Verdict::Fail);
        }
    }

    #[test]
    fn the_policy_chooses_failures_and_counts_tries() {
        let policy = Retry::times(2).on_error();
        let mut tries = Tries::default();
        assert_eq!(tries.record(&policy, Failure::Handler), Verdict::Again(Duration::ZERO));
        assert_eq!(tries.record(&policy, Failure::Lost), Verdict::Again(Duration::ZERO));
        assert_eq!(tries.record(&policy, Failure::Handler), Verdict::Fail);
        assert_eq!(tries.failed(), 3);
        assert_eq!(Tries::default().record(&policy, Failure::TimedOut), Verdict::Fail);
        assert_eq!(Tries::default().record(&policy.on(&[Failure::TimedOut]), Failure::Lost), Verdict::Fail);
    }

    #[test]
    fn three_dying_workers_make_poison_whatever_the_policy_allows() {
        let policy = Retry::times(100);
        let mut tries = Tries::default();
        assert!(matches!(tries.record(&policy, Failure::Lost), Verdict::Again(_)));
        assert!(matches!(tries.record(&policy, Failure::Lost), Verdict::Again(_)));
        assert_eq!(tries.record(&policy, Failure::Lost), Verdict::Poisoned);
    }

    #[test]
    fn workers_that_pm_killed_make_no_poison() {
        let policy = Retry::times(10);
        let mut tries = Tries::default();
        for _ in 0..10 {
            assert!(matches!(tries.record(&policy, Failure::of_death(&ExitCause::Chaos)), Verdict::Again(_)));
        }
        assert_eq!(tries.record(&policy, Failure::Killed), Verdict::Fail);
        assert_eq!(Tries::default().record(&Retry::NEVER, Failure::Killed), Verdict::Fail);
    }

    #[test]
    fn delays_grow_as_they_say() {
        let ms = Duration::from_millis;
        let grown = |delay: Delay| [1, 2, 3, 40].map(|n| delay.before(n));
        assert_eq!(grown(Delay::Constant(ms(5))), [ms(5); 4]);
        assert_eq!(grown(Delay::Linear(ms(5))), [ms(5), ms(10), ms(15), ms(200)]);
        assert_eq!(grown(Delay::Exponential { first: ms(5), longest: ms(1000) }), [ms(5), ms(10), ms(20), ms(1000)]);
    }
}
