//! Which workers are replaced while they are well, and when: after so many calls, at an age, where they have grown, or on a schedule.
//!
//! ```text
//!   serves ──▶ known ──── worn out, too old, too large, its turn, asked for ────▶ ordered, in a line
//!                ▲                                                                  │ it is first, and nobody is replaced now
//!                │ called off                                                       ▼
//!                └────────────────────────────────────────────────────────────── under way ──▶ done: its successor is known
//!                                                     failed: first in the line again, after a while ◀──┘
//! ```
//!
//! One worker of a pool is replaced at a time, by a new one that serves before the old one leaves: so the capacity never drops, nor doubles. How that is done is
//! for [`pool`](super::pool) to say; this machine says who is next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use thiserror::Error;

use super::budget::SplitMix;
use super::id::WorkerId;
use super::time::Time;

/// Workers that start together reach their age up to this part of it apart.
const APART: f64 = 0.1;

/// How often the memory of the workers is looked at, where nothing else is said.
const SAMPLE: Duration = Duration::from_secs(1);

/// When workers are replaced while they are well; never by default. Whatever comes first counts.
///
/// ```
/// use std::time::Duration;
/// use pm_core::machine::recycle::Recycle;
///
/// let leaky = Recycle::new().after_calls(10_000).above_rss(512 << 20).drain(Duration::from_secs(60));
/// let nightly = Recycle::new().every(Duration::from_secs(24 * 3600));
/// assert_ne!(leaky, nightly);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recycle {
    after_calls: Option<u64>,
    after_age: Option<Duration>,
    above_rss: Option<u64>,
    every: Option<Duration>,
    drain: Option<Duration>,
    sample: Duration,
    first_delay: Duration,
    longest_delay: Duration,
}

/// A setting that makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("recycling {what} {value}: it must be more than nothing")]
pub struct BadRecycle {
    /// Which setting.
    pub what: &'static str,
    /// Its value.
    pub value: String,
}

impl Recycle {
    /// Never, but where it is asked for.
    pub const fn new() -> Self {
        Recycle {
            after_calls: None,
            after_age: None,
            above_rss: None,
            every: None,
            drain: None,
            sample: SAMPLE,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
        }
    }

    /// A worker that has answered so many calls, or ended so many streams. It takes more until its successor serves.
    pub const fn after_calls(self, calls: u64) -> Self {
        Recycle { after_calls: Some(calls), ..self }
    }

    /// A worker that has served for so long, or up to a tenth less: those that started together do not reach it together.
    pub const fn after_age(self, age: Duration) -> Self {
        Recycle { after_age: Some(age), ..self }
    }

    /// A worker whose process has more than so many bytes resident. Threads of this process have no memory of their own: in-process mode takes no notice of it.
    pub const fn above_rss(self, bytes: u64) -> Self {
        Recycle { above_rss: Some(bytes), ..self }
    }

    /// All workers, one after the other, each time that so much time has passed.
    pub const fn every(self, time: Duration) -> Self {
        Recycle { every: Some(time), ..self }
    }

    /// How long an old worker may take to finish what it has, before it is killed. By default, and with none, as long as its calls take; until it is gone, no other worker is
    /// replaced. Pools of streams that go on for ever should say something.
    pub fn drain(self, limit: impl Into<Option<Duration>>) -> Self {
        Recycle { drain: limit.into(), ..self }
    }

    /// How often the memory of the workers is looked at; each second by default. Nobody looks where [`above_rss`](Self::above_rss) is not set.
    pub const fn sample_every(self, time: Duration) -> Self {
        Recycle { sample: time, ..self }
    }

    /// How long it takes until another try where the new worker could not be started, doubled for each further time, up to `longest`; each with a jitter of a quarter
    /// in either direction. 1 s and 1 min by default.
    pub const fn backoff(self, first: Duration, longest: Duration) -> Self {
        Recycle { first_delay: first, longest_delay: longest, ..self }
    }

    /// How many calls wear a worker out.
    pub const fn call_limit(&self) -> Option<u64> {
        self.after_calls
    }

    /// How long an old worker may take.
    pub const fn drain_limit(&self) -> Option<Duration> {
        self.drain
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`BadRecycle`] says what does not.
    pub fn check(&self) -> Result<(), BadRecycle> {
        for (what, number) in [("after calls:", self.after_calls), ("above bytes:", self.above_rss)] {
            if number == Some(0) {
                return Err(BadRecycle { what, value: "0".to_string() });
            }
        }
        let times = [
            ("after an age of", self.after_age),
            ("every", self.every),
            ("with samples every", Some(self.sample)),
            ("with a backoff of", Some(self.first_delay)),
        ];
        for (what, time) in times {
            if let Some(time) = time.filter(Duration::is_zero) {
                return Err(BadRecycle { what, value: format!("{time:?}") });
            }
        }
        Ok(())
    }
}

impl Default for Recycle {
    fn default() -> Self {
        Recycle::new()
    }
}

/// Why a worker that is well is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// It has answered so many calls.
    Calls,
    /// It has reached its age.
    Age,
    /// Its process has grown.
    Memory,
    /// The schedule says so.
    Schedule,
    /// The program asked for it.
    Requested,
}

/// What became of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The new worker serves, and the old one is gone.
    Done,
    /// The new one could not be started. The old one serves on.
    Failed,
    /// There is no point in it now: the old one leaves for another reason, or does not serve.
    CalledOff,
}

/// What happened to the workers of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A process of this worker serves from now on.
    Serves(WorkerId),
    /// It does no more.
    Left(WorkerId),
    /// It has answered so many calls.
    Answered(WorkerId, u64),
    /// Its process has so many bytes resident.
    Measured(WorkerId, u64),
    /// The program wants all that serve replaced.
    All,
    /// The replacement that was under way came to this end.
    Swapped(WorkerId, Swapped),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Replace this worker.
    Recycle {
        /// Which one.
        worker: WorkerId,
        /// Why.
        reason: Reason,
    },
    /// Look at the memory of all workers.
    Measure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    worker: WorkerId,
    reason: Reason,
}

/// Decides who is replaced. See the [module](self).
#[derive(Clone, Debug)]
pub struct Recycling {
    settings: Recycle,
    random: SplitMix,
    /// Those that serve, and when each reaches its age.
    workers: BTreeMap<WorkerId, Option<Time>>,
    /// In turn.
    orders: VecDeque<Order>,
    under_way: Option<Order>,
    next_round: Option<Time>,
    next_sample: Option<Time>,
    /// Since the last success.
    failures: u32,
    /// Nobody is replaced before.
    rests_until: Time,
    effects: VecDeque<Effect>,
}

impl Default for Recycling {
    /// Nobody is replaced unless it is asked for.
    fn default() -> Self {
        Recycling::of(Recycle::new(), 0)
    }
}

impl Recycling {
    /// For a pool that has no workers yet. `seed` is where the jitter comes from.
    ///
    /// # Errors
    /// [`BadRecycle`] where a setting makes no sense.
    pub fn new(settings: Recycle, seed: u64) -> Result<Self, BadRecycle> {
        settings.check()?;
        Ok(Recycling::of(settings, seed))
    }

    fn of(settings: Recycle, seed: u64) -> Self {
        Recycling {
            settings,
            random: SplitMix(seed),
            workers: BTreeMap::new(),
            orders: VecDeque::new(),
            under_way: None,
            next_round: None,
            next_sample: None,
            failures: 0,
            rests_until: Time::ZERO,
            effects: VecDeque::new(),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Recycle {
        &self.settings
    }

    /// Whether some of those are still to be replaced that the program asked for.
    pub fn is_pending(&self) -> bool {
        self.under_way.iter().chain(&self.orders).any(|order| order.reason == Reason::Requested)
    }

    /// Takes an input. [`Recycling::poll_effect`] then says what to do.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Serves(worker) => self.serves(now, worker),
            Input::Left(worker) => {
                self.workers.remove(&worker);
                self.orders.retain(|order| order.worker != worker);
            }
            Input::Answered(worker, calls) => {
                if self.settings.after_calls.is_some_and(|limit| calls >= limit) {
                    self.order(worker, Reason::Calls);
                }
            }
            Input::Measured(worker, bytes) => {
                if self.settings.above_rss.is_some_and(|limit| bytes > limit) {
                    self.order(worker, Reason::Memory);
                }
            }
            Input::All => self.order_all(Reason::Requested),
            Input::Swapped(worker, swapped) => self.swapped(now, worker, swapped),
        }
        self.advance(now);
    }

    /// When [`Recycling::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let oldest = self.workers.values().copied().flatten().min();
        let turn = (self.under_way.is_none() && !self.orders.is_empty()).then_some(self.rests_until);
        [oldest, turn, self.next_round, self.next_sample].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let is_due = |at: &Option<Time>| at.is_some_and(|at| at <= now);
        let old: Vec<_> = self.workers.iter().filter(|(_, at)| is_due(at)).map(|(worker, _)| *worker).collect();
        for worker in old {
            self.workers.insert(worker, None);
            self.order(worker, Reason::Age);
        }
        let has_workers = !self.workers.is_empty();
        if is_due(&self.next_round) {
            self.next_round = self.settings.every.filter(|_| has_workers).map(|every| now + every);
            self.order_all(Reason::Schedule);
        }
        if is_due(&self.next_sample) {
            self.next_sample = has_workers.then(|| now + self.settings.sample);
            self.effects.extend(has_workers.then_some(Effect::Measure));
        }
        self.advance(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn serves(&mut self, now: Time, worker: WorkerId) {
        let jitter = 1.0 - APART * self.random.unit();
        let old = self.settings.after_age.map(|age| now + age.mul_f64(jitter));
        self.workers.insert(worker, old);
        if let Some(every) = self.settings.every {
            self.next_round.get_or_insert(now + every);
        }
        if self.settings.above_rss.is_some() {
            self.next_sample.get_or_insert(now + self.settings.sample);
        }
    }

    fn order_all(&mut self, reason: Reason) {
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.order(worker, reason);
        }
    }

    /// Puts a worker into the line, if it serves and is not there. What the program asks for is a reason above all others, for it waits.
    fn order(&mut self, worker: WorkerId, reason: Reason) {
        if !self.workers.contains_key(&worker) {
            return;
        }
        match self.under_way.iter_mut().chain(&mut self.orders).find(|order| order.worker == worker) {
            Some(order) if reason == Reason::Requested => order.reason = reason,
            Some(_) => {}
            None => self.orders.push_back(Order { worker, reason }),
        }
    }

    fn swapped(&mut self, now: Time, worker: WorkerId, swapped: Swapped) {
        let Some(order) = self.under_way.take_if(|order| order.worker == worker) else { return };
        match swapped {
            Swapped::Done => self.failures = 0,
            // Most often the old one leaves, and there is nothing left to do. Where it serves on, there may be a point in it later.
            Swapped::CalledOff if !self.workers.contains_key(&worker) => {}
            Swapped::Failed | Swapped::CalledOff => {
                self.failures += 1;
                self.rests_until = now + self.delay();
                if self.workers.contains_key(&worker) {
                    self.orders.push_front(order);
                }
            }
        }
    }

    fn delay(&mut self) -> Duration {
        let Recycle { first_delay, longest_delay, .. } = self.settings;
        let delay = first_delay.saturating_mul(1 << (self.failures - 1).min(20)).min(longest_delay);
        delay.mul_f64(0.75 + 0.5 * self.random.unit())
    }

    fn advance(&mut self, now: Time) {
        if self.under_way.is_none()
            && now >= self.rests_until
            && let Some(order) = self.orders.pop_front()
        {
            self.under_way = Some(order);
            self.effects.push_back(Effect::Recycle { worker: order.worker, reason: order.reason });
        }
    }
}

#[cfg(test)]
mod tests;
