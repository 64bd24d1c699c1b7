//! The restart budget: how many deaths in a window are a crash loop, and how long to wait between restarts.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Time;

/// At what point of its life a worker died. It decides whether the death counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Before READY.
    Starting,
    /// With calls aboard, before any worker of the pool had finished a call since the last death that counted.
    FirstCall,
    /// With calls aboard: the call is to blame, and has its own limit.
    Aboard,
    /// With nothing to do.
    Idle,
    /// By pm's own hand: a stop, a timeout, chaos.
    Ordered,
}

/// Which deaths count against a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that say that the worker itself is broken: before READY, before the first finished call, idle.
    CrashLoops,
    /// Those before READY and while idle. For callers whose every call may kill a worker.
    SpareCalls,
    /// Every death that pm did not order.
    EveryCrash,
    /// Every death.
    EveryEnd,
}

/// How often a unit may die before pm gives up on it: by default 5 times in 30 minutes.
///
/// ```
/// use std::time::Duration;
/// use pm_core::machine::budget::Budget;
///
/// let strict = Budget::every_crash(5, Duration::from_secs(30 * 60));
/// let patient = Budget::crash_loops(50, Duration::from_secs(60)).backoff(Duration::from_millis(10), Duration::from_secs(1));
/// assert_ne!(strict, patient);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    limit: u32,
    window: Duration,
    scope: Scope,
    first_delay: Duration,
    longest_delay: Duration,
}

impl Budget {
    /// Gives up at the first death, whatever it was: the worker never comes back.
    pub const NEVER: Budget = Budget { scope: Scope::EveryEnd, ..Budget::crash_loops(0, Duration::from_secs(1)) };

    /// Never gives up: whoever goes may come back, or another one. What goes again and again waits for up to a second in between.
    pub const ENDLESS: Budget = Budget::spare_calls(u32::MAX, Duration::from_secs(10))
        .backoff(Duration::from_millis(1), Duration::from_secs(1));

    /// Gives up at more than `limit` crash loops within `window`.
    pub const fn crash_loops(limit: u32, window: Duration) -> Self {
        Budget {
            limit,
            window,
            scope: Scope::CrashLoops,
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(10),
        }
    }

    /// Gives up at more than `limit` deaths of any kind within `window`, those aside that pm ordered.
    pub const fn every_crash(limit: u32, window: Duration) -> Self {
        Budget { scope: Scope::EveryCrash, ..Self::crash_loops(limit, window) }
    }

    /// Counts only deaths before READY and while idle; deaths with calls aboard are those calls' own.
    pub const fn spare_calls(limit: u32, window: Duration) -> Self {
        Budget { scope: Scope::SpareCalls, ..Self::crash_loops(limit, window) }
    }

    /// The delay before the first restart that counts, doubled for each further one in the window, up to `longest`; each
    /// with a jitter of a quarter in either direction. 100 ms and 10 s by default. A death that does not count has no delay.
    pub const fn backoff(self, first: Duration, longest: Duration) -> Self {
        Budget { first_delay: first, longest_delay: longest, ..self }
    }

    /// The same at more than so many deaths.
    pub const fn deaths(self, limit: u32) -> Self {
        Budget { limit, ..self }
    }

    /// The same within another time.
    pub const fn within(self, window: Duration) -> Self {
        Budget { window, ..self }
    }

    /// The same for other deaths.
    pub const fn counting(self, scope: Scope) -> Self {
        Budget { scope, ..self }
    }

    /// The first delay, and the longest.
    pub const fn delays(&self) -> (Duration, Duration) {
        (self.first_delay, self.longest_delay)
    }

    const fn counts(&self, death: Death) -> bool {
        match death {
            Death::Starting | Death::Idle => true,
            Death::FirstCall => !matches!(self.scope, Scope::SpareCalls),
            Death::Aboard => matches!(self.scope, Scope::EveryCrash | Scope::EveryEnd),
            Death::Ordered => matches!(self.scope, Scope::EveryEnd),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::crash_loops(5, Duration::from_secs(30 * 60))
    }
}

/// What follows from a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this delay.
    Restart(Duration),
    /// The budget is spent.
    GiveUp,
}

/// No delay is longer, whatever is asked for: 100 years.
const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);

/// So many deaths are remembered where there is no limit to them.
const ENOUGH: usize = 64;

/// The deaths that count, as time goes by.
#[derive(Clone, Debug)]
pub struct Deaths {
    budget: Budget,
    /// When each death that counted happened, oldest first, and whether it was one of [`Death::FirstCall`].
    recent: VecDeque<(Time, bool)>,
    random: SplitMix,
}

impl Deaths {
    /// No death yet. `seed` is where the jitter comes from.
    pub fn new(budget: Budget, seed: u64) -> Self {
        Deaths { budget, recent: VecDeque::new(), random: SplitMix(seed) }
    }

    /// Notes a death and says what follows.
    pub fn record(&mut self, now: Time, death: Death) -> Verdict {
        if !self.budget.counts(death) {
            return Verdict::Restart(Duration::ZERO);
        }
        let oldest = now - self.budget.window;
        while self.recent.front().is_some_and(|&(at, _)| at < oldest) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.budget.limit as usize {
            return Verdict::GiveUp;
        }
        // Without an end only the delay depends on how many there were, and that no longer grows.
        if self.budget.limit == u32::MAX && self.recent.len() >= ENOUGH {
            self.recent.pop_front();
        }
        self.recent.push_back((now, death == Death::FirstCall));
        Verdict::Restart(self.delay())
    }

    /// Notes that a call finished: what died in its first call before was no loop.
    pub fn progress(&mut self) {
        self.recent.retain(|&(_, first_call)| !first_call);
    }

    /// Forgets every death.
    pub fn reset(&mut self) {
        self.recent.clear();
    }

    /// How many deaths count now.
    pub fn count(&self) -> usize {
        self.recent.len()
    }

    fn delay(&mut self) -> Duration {
        let doublings = (self.recent.len() as u32).saturating_sub(1).min(20);
        let longest = self.budget.longest_delay.min(FAR);
        let delay = self.budget.first_delay.saturating_mul(1 << doublings).min(longest);
        delay.mul_f64(0.75 + 0.5 * self.random.unit())
    }
}

/// A small generator whose whole state is its seed (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014). Good enough for jitter; nothing here is secret.
#[derive(Clone, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of 0 or more, below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn restarts(deaths: &mut Deaths, now: Time, death: Death) -> bool {
        matches!(deaths.record(now, death), Verdict::Restart(_))
    }

    #[test]
    fn five_in_thirty_minutes_and_the_window_slides() {
        let mut deaths = Deaths::new(Budget::default(), 1);
        for second in 0..5 {
            assert!(restarts(&mut deaths, at(second), Death::Starting));
        }
        assert_eq!(deaths.record(at(6), Death::Idle), Verdict::GiveUp);
        assert!(restarts(&mut deaths, at(30 * 60 + 1), Death::Idle), "the first one is out of the window");
        assert_eq!(deaths.record(at(30 * 60 + 1), Death::Idle), Verdict::GiveUp);
        deaths.reset();
        assert!(restarts(&mut deaths, at(30 * 60 + 2), Death::Idle));
    }

    #[test]
    fn each_scope_counts_its_own_deaths() {
        let long = Duration::from_secs(3600);
        let all = [Death::Starting, Death::FirstCall, Death::Aboard, Death::Idle, Death::Ordered];
        for (budget, counted) in [
            (Budget::crash_loops(1, long), [true, true, false, true, false]),
            (Budget::spare_calls(1, long), [true, false, false, true, false]),
            (Budget::every_crash(1, long), [true, true, true, true, false]),
        ] {
            for (death, counts) in all.into_iter().zip(counted) {
                let mut deaths = Deaths::new(budget, 1);
                assert!(restarts(&mut deaths, at(0), death));
                assert_eq!(!restarts(&mut deaths, at(1), death), counts, "{death:?} in {budget:?}");
                assert_eq!(Deaths::new(Budget::NEVER, 1).record(at(0), death), Verdict::GiveUp);
            }
        }
    }

    #[test]
    fn a_finished_call_ends_a_streak_of_first_calls_but_forgives_nothing_else() {
        let mut deaths = Deaths::new(Budget::default(), 1);
        for second in 0..1000 {
            assert!(restarts(&mut deaths, at(second), Death::FirstCall), "death {second}");
            deaths.progress();
        }
        for second in 0..4 {
            assert!(restarts(&mut deaths, at(1000 + 2 * second), Death::FirstCall));
            assert!(restarts(&mut deaths, at(1001 + 2 * second), Death::Idle));
            deaths.progress();
            assert_eq!(
                deaths.count(),
                1 + second as usize,
                "a first call is forgiven even where another death came after it"
            );
        }
        assert!(restarts(&mut deaths, at(1010), Death::Idle));
        assert_eq!(deaths.record(at(1011), Death::Idle), Verdict::GiveUp);
    }

    #[test]
    fn delays_double_to_the_longest_and_differ_by_seed() {
        let budget = Budget::crash_loops(20, Duration::from_secs(3600));
        let delays = |seed| {
            let mut deaths = Deaths::new(budget, seed);
            (0..12).map(|_| deaths.record(at(0), Death::Starting)).collect::<Vec<_>>()
        };
        for (n, verdict) in delays(7).into_iter().enumerate() {
            let Verdict::Restart(delay) = verdict else { panic!("gave up at {n}") };
            let ideal = (100 << n.min(20)).min(10_000) as f64 / 1000.0;
            assert!((0.75..1.25).contains(&(delay.as_secs_f64() / ideal)), "{delay:?} is not about {ideal} s");
        }
        let far = Budget::crash_loops(20, Duration::MAX).backoff(Duration::MAX, Duration::MAX);
        assert!(restarts(&mut Deaths::new(far, 1), at(0), Death::Starting), "and no panic");
        assert_eq!(delays(7), delays(7));
        assert_ne!(delays(7), delays(8));
        let mut deaths = Deaths::new(budget, 1);
        assert_eq!(deaths.record(at(0), Death::Aboard), Verdict::Restart(Duration::ZERO));
    }
}
