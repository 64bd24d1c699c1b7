//! How many workers a pool should have, by its load.
//!
//! The load of a pool is the calls that its workers have and those that wait. What counts is its mean over a [window](Autoscale::window) for each worker: above one
//! threshold there should be one worker more, below another one less, and after each step the pool has time to show what came of it.
//!
//! ```text
//!             stir                    the mean asks for a step, cool-down over
//!   Asleep ─────────▶ Looking ─────────────────────────────────────────────────▶ step: Looking, from anew
//!     ▲                  │ ▲
//!     └──────────────────┘ └── more of the window to see
//!       at the least size, and no more to do than that can bear
//! ```
//!
//! Nothing is looked at while a pool has its least size and bears its load: that state only ends by a call, and whoever makes one says so
//! ([`Scaling::stir`]). So an idle pool costs nothing.
//!
//! It does not swing. A step down is taken only where those that are left would not ask for the step up again at the load of now; and where one had
//! to be taken back all the same, since what the fewer could not serve piled up, the load at which that happened is remembered: at the size above
//! it the next step down waits for a load clearly below that one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use thiserror::Error;

use super::time::Time;

/// So often a window is looked at.
const LOOKS: u32 = 8;

/// No more often than this, however short the window is.
const SHORTEST: Duration = Duration::from_millis(1);

/// The longest window, where nothing else is said.
const WINDOW: Duration = Duration::from_secs(1);

/// Where a step down had to be taken back, the load must fall below this part of what it was before the next one. So a load that stays what it is can make a pool
/// swing only a few times: each time at less than half the load of the time before.
const CLEARLY_BELOW: f64 = 0.5;

/// When a pool gets more workers, and fewer: by default from 1 to 8, one more above a mean of 5 calls for each worker, one less below 2, and 30 s between two
/// steps.
///
/// ```
/// use std::time::Duration;
/// use pm_core::machine::scaling::{Autoscale, BadAutoscale};
///
/// let quick = Autoscale::new().between(2, 16).up_above(3.0).down_below(1.0).cool_down(Duration::from_secs(5));
/// assert_eq!(quick.check(), Ok(()));
/// assert_eq!(Autoscale::new().between(4, 2).check(), Err(BadAutoscale::Bounds { min: 4, max: 2 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Autoscale {
    min: u32,
    max: u32,
    up_above: f64,
    down_below: f64,
    cool_down: Duration,
    window: Option<Duration>,
}

/// Settings that make no sense together.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum BadAutoscale {
    /// The least is not at least 1, or the most is not at least the least.
    #[error("from {min} to {max} workers; there must be at least one, and no fewer at most than at least")]
    Bounds {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// The thresholds are no numbers above 0, or the lower one is not below the upper one.
    #[error("up above {up_above}, down below {down_below}; both must be positive, and the second below the first")]
    Thresholds {
        /// The upper one.
        up_above: f64,
        /// The lower one.
        down_below: f64,
    },
    /// No time.
    #[error("{what} is {value:?}; it must be longer than nothing")]
    NoTime {
        /// Which time.
        what: &'static str,
        /// Its value.
        value: Duration,
    },
}

impl Autoscale {
    /// The defaults.
    pub const fn new() -> Self {
        Autoscale { min: 1, max: 8, up_above: 5.0, down_below: 2.0, cool_down: Duration::from_secs(30), window: None }
    }

    /// The fewest and the most workers; 1 and 8 by default.
    pub const fn between(self, min: u32, max: u32) -> Self {
        Autoscale { min, max, ..self }
    }

    /// One more worker where the mean load of each is above this; 5 by default.
    pub const fn up_above(self, load: f64) -> Self {
        Autoscale { up_above: load, ..self }
    }

    /// One less where the mean load of each is below this; 2 by default.
    pub const fn down_below(self, load: f64) -> Self {
        Autoscale { down_below: load, ..self }
    }

    /// How long a pool is left alone after a step; 30 s by default.
    pub const fn cool_down(self, time: Duration) -> Self {
        Autoscale { cool_down: time, ..self }
    }

    /// How long the load must be such in the mean; 1 s by default, or the cool-down where that is shorter. What is over sooner changes nothing.
    pub const fn window(self, time: Duration) -> Self {
        Autoscale { window: Some(time), ..self }
    }

    /// The fewest workers.
    pub const fn min(&self) -> u32 {
        self.min
    }

    /// The most workers.
    pub const fn max(&self) -> u32 {
        self.max
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`BadAutoscale`] says what does not.
    pub fn check(&self) -> Result<(), BadAutoscale> {
        let Autoscale { min, max, up_above, down_below, cool_down, .. } = *self;
        if min == 0 || max < min {
            return Err(BadAutoscale::Bounds { min, max });
        }
        // Of no number every comparison is false.
        let is_sound = down_below > 0.0 && up_above > down_below && up_above.is_finite();
        if !is_sound {
            return Err(BadAutoscale::Thresholds { up_above, down_below });
        }
        for (what, value) in [("the cool-down", cool_down), ("the window", self.the_window())] {
            if value.is_zero() {
                return Err(BadAutoscale::NoTime { what, value });
            }
        }
        Ok(())
    }

    fn the_window(&self) -> Duration {
        self.window.unwrap_or(WINDOW.min(self.cool_down))
    }
}

impl Default for Autoscale {
    fn default() -> Self {
        Autoscale::new()
    }
}

/// What a pool looks like at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its workers, those included that start or wait for their next start.
    pub workers: u32,
    /// Calls that these have, and calls that wait.
    pub load: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// How many workers there were.
    pub from: u32,
    /// How many there should be: one more or one less, or the least number.
    pub to: u32,
    /// The mean load of the pool over the window; 0 where it does not matter.
    pub load: f64,
}

/// Decides on the number of workers. See the [module](self).
#[derive(Clone, Debug)]
pub struct Scaling {
    settings: Autoscale,
    window: Duration,
    /// Loads, oldest first, each from its time to the next one's. Not more than [`LOOKS`] and those at both ends.
    loads: VecDeque<(Time, u64)>,
    workers: u32,
    /// No step before.
    rests_until: Time,
    /// The next look; none while it sleeps.
    next: Option<Time>,
    last: Option<Step>,
    /// For a number of workers, the load at which one less turned out to be too few.
    needed_at: BTreeMap<u32, f64>,
}

impl Scaling {
    /// For a pool that has no workers yet.
    ///
    /// # Errors
    /// [`BadAutoscale`] where the settings make no sense.
    pub fn new(settings: Autoscale) -> Result<Self, BadAutoscale> {
        settings.check()?;
        Ok(Scaling {
            settings,
            window: settings.the_window(),
            loads: VecDeque::new(),
            workers: 0,
            rests_until: Time::ZERO,
            next: None,
            last: None,
            needed_at: BTreeMap::new(),
        })
    }

    /// The fewest and the most workers.
    pub fn bounds(&self) -> (u32, u32) {
        (self.settings.min, self.settings.max)
    }

    /// How many workers there were when it looked last, or should be since then.
    pub fn workers(&self) -> u32 {
        self.workers
    }

    /// When to [look](Scaling::look); none where not before somebody [stirs](Scaling::stir).
    pub fn poll_timeout(&self) -> Option<Time> {
        self.next
    }

    /// A call came, or the number of workers may have changed: it is to look from now on. Does nothing where it does so already. The first look is not at once:
    /// a pool that is busy and bears it would be looked at with each call.
    pub fn stir(&mut self, now: Time) {
        let first = now + self.period();
        self.next.get_or_insert(first);
    }

    fn period(&self) -> Duration {
        (self.window / LOOKS).max(SHORTEST)
    }

    /// Takes a look at a pool that serves, and says what is to be done. The step counts as taken.
    pub fn look(&mut self, now: Time, sample: Sample) -> Option<Step> {
        let Sample { workers, load } = sample;
        if workers != self.workers {
            // Somebody else changed it. That is left alone for a while as well, and what was learned may have been about something else.
            if self.workers != 0 {
                self.rests_until = now + self.settings.cool_down;
            }
            self.begin_anew(workers);
            self.needed_at.clear();
            self.last = None;
        }
        self.note(now, load);
        let step = self.step(now);
        if let Some(step) = step {
            self.take(now, step);
        }
        let bears_all = self.loads.iter().all(|&(_, load)| self.bears(load as f64));
        let is_asleep = step.is_none() && workers == self.settings.min && bears_all;
        // Until the next call nothing can happen that counts. What was before it does not matter then, for nobody looked.
        self.next = (!is_asleep).then(|| now + self.period());
        if is_asleep {
            self.loads.clear();
        }
        step
    }

    fn note(&mut self, now: Time, load: u64) {
        self.loads.push_back((now, load));
        // One that is older than the window says what the load was at its beginning.
        let beginning = now - self.window;
        while self.loads.get(1).is_some_and(|&(at, _)| at <= beginning) {
            self.loads.pop_front();
        }
    }

    /// The mean of the load over the window; none where it was not seen for so long.
    fn mean(&self, now: Time) -> Option<f64> {
        let (oldest, _) = *self.loads.front()?;
        if now.since(oldest) < self.window {
            return None;
        }
        let beginning = now - self.window;
        let ends = self.loads.iter().skip(1).map(|&(at, _)| at).chain([now]);
        // In whole numbers: a load that stays on a threshold must not come out a little beside it.
        let weighted = self.loads.iter().zip(ends).map(|(&(from, load), to)| {
            let time = to.since(from.max(beginning));
            u128::from(load) * time.as_nanos()
        });
        Some(weighted.sum::<u128>() as f64 / self.window.as_nanos() as f64)
    }

    fn step(&self, now: Time) -> Option<Step> {
        let (from, settings) = (self.workers, &self.settings);
        let load = self.mean(now);
        // What is outside the bounds comes back into them whatever its load is: at once where there are too few.
        let to = match load {
            _ if from < settings.min => settings.min,
            _ if now < self.rests_until => return None,
            _ if from > settings.max => from - 1,
            Some(load) if !self.bears(load) && from < settings.max => from + 1,
            Some(load) if from > settings.min && self.can_spare(load) => from - 1,
            _ => return None,
        };
        Some(Step { from, to, load: load.unwrap_or_default() })
    }

    /// Whether so many workers are enough for this load.
    fn bears(&self, load: f64) -> bool {
        load <= self.settings.up_above * f64::from(self.workers)
    }

    /// Whether one less would be enough for it.
    fn can_spare(&self, load: f64) -> bool {
        let (fewer, settings) = (f64::from(self.workers - 1), &self.settings);
        let is_low = load < settings.down_below * f64::from(self.workers) && load <= settings.up_above * fewer;
        let is_new = self.needed_at.get(&self.workers).is_none_or(|needed| load < needed * CLEARLY_BELOW);
        is_low && is_new
    }

    fn take(&mut self, now: Time, step: Step) {
        // Where there were fewer calls than workers that were left, those could have served them all: then it is the load that has changed since.
        let was_too_far = |last: &Step| last.to < last.from && last.from == step.to && last.load >= f64::from(last.to);
        if let Some(last) = self.last.filter(was_too_far) {
            self.needed_at.insert(last.from, last.load);
        }
        self.last = Some(step);
        self.rests_until = now + self.settings.cool_down;
        self.begin_anew(step.to);
    }

    /// What was seen of another number of workers says nothing of this one.
    fn begin_anew(&mut self, workers: u32) {
        self.workers = workers;
        self.loads.clear();
    }
}

#[cfg(test)]
mod tests;
