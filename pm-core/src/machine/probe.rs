//! When something is asked whether it is well, and what the answers mean.
//!
//! ```text
//!            due                      passed                    `retries` failed in a row
//!  Waiting ───────▶ Asking   Unknown ───────▶ Healthy ───────────────────────────────▶ Unhealthy
//!     ▲               │                          ▲                                        │
//!     └── answered ───┘                          └───────────────── passed ───────────────┘
//! ```
//!
//! Before the first success nobody knows how long a start takes, so it is asked often: after [`FIRST_PAUSE`], and then whenever an
//! eighth of the time since the start has passed. What is ready is known to be so an eighth too late at most, and the questions of a long start are
//! few. Failures do not count until then: how long a start may take is for its owner to say.

use std::time::Duration;

use super::time::Time;

/// How soon it is asked again at first.
pub const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// How often and how patiently it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From an answer to the next question, once it was well: 10 s by default.
    pub interval: Duration,
    /// What has not answered by then has failed: 5 s by default.
    pub timeout: Duration,
    /// So many failures in a row are no longer chance: 3 by default, and at least 1.
    pub retries: u32,
    /// So many successes in a row make it well: 1 by default, and at least 1.
    pub successes: u32,
    /// From the start to the first question: 0 by default.
    pub initial_delay: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            retries: 3,
            successes: 1,
            initial_delay: Duration::ZERO,
        }
    }
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is well: for the first time, or again.
    Healthy,
    /// It is not well any more.
    Unhealthy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Time },
    Asking,
}

/// The questions to one process, from its start on. See the [module](self).
#[derive(Clone, Debug)]
pub struct Schedule {
    timing: Timing,
    began: Time,
    state: State,
    /// None before the first success.
    is_well: Option<bool>,
    /// Answers in a row that say the opposite of `is_well`.
    streak: u32,
    asked: u64,
    last: Option<Result<(), String>>,
    answered_at: Option<Time>,
    /// Failures in a row, also before the first success.
    failures: u32,
}

impl Schedule {
    /// Of something that starts now.
    pub fn new(timing: Timing, now: Time) -> Self {
        let state = State::Waiting { until: now + timing.initial_delay };
        Schedule {
            timing,
            began: now,
            state,
            is_well: None,
            streak: 0,
            asked: 0,
            last: None,
            answered_at: None,
            failures: 0,
        }
    }

    /// Of something that is known to be well now. It is asked after the initial delay, and failures count at once.
    pub fn of_well(timing: Timing, now: Time) -> Self {
        Schedule { is_well: Some(true), ..Schedule::new(timing, now) }
    }

    /// Whether it was well ever, and is now.
    pub fn is_well(&self) -> Option<bool> {
        self.is_well
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// What it said last.
    pub fn last(&self) -> Option<&Result<(), String>> {
        self.last.as_ref()
    }

    /// When it said that.
    pub fn answered_at(&self) -> Option<Time> {
        self.answered_at
    }

    /// How many of its last answers were failures, also before it was well.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When [`Schedule::ask`] has a question.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Asking => None,
        }
    }

    /// Whether it is to be asked now. [`Schedule::answered`] must follow, with a failure where the timeout has passed.
    pub fn ask(&mut self, now: Time) -> bool {
        let is_due = matches!(self.state, State::Waiting { until } if until <= now);
        if is_due {
            self.state = State::Asking;
            self.asked += 1;
        }
        is_due
    }

    /// Takes an answer.
    pub fn answered(&mut self, now: Time, answer: Result<(), String>) -> Option<Change> {
        if self.state != State::Asking {
            return None;
        }
        let passed = answer.is_ok();
        self.answered_at = Some(now);
        self.failures = if passed { 0 } else { self.failures.saturating_add(1) };
        self.last = Some(answer);
        let needed = if passed { self.timing.successes } else { self.timing.retries };
        let change = match self.is_well {
            // Nothing to lose yet.
            None if !passed => {
                self.streak = 0;
                None
            }
            Some(well) if well == passed => {
                self.streak = 0;
                None
            }
            _ => {
                self.streak += 1;
                (self.streak >= needed).then_some(if passed { Change::Healthy } else { Change::Unhealthy })
            }
        };
        if change.is_some() {
            self.streak = 0;
            self.is_well = Some(passed);
        }
        let pause = match self.is_well {
            Some(_) => self.timing.interval,
            None => (now.since(self.began) / 8).max(FIRST_PAUSE).min(self.timing.interval),
        };
        self.state = State::Waiting { until: now + pause };
        change
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::SplitMix;
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn failed() -> Result<(), String> {
        Err("refused".into())
    }

    /// Asks until it passes at `ready`, where each question takes no time; gives when it was known, and the number of questions.
    fn known(timing: Timing, ready: Time) -> (Time, u64) {
        let mut schedule = Schedule::new(timing, Time::ZERO);
        loop {
            let now = schedule.poll_timeout().unwrap();
            assert!(schedule.ask(now) && !schedule.ask(now));
            let answer = if now >= ready { Ok(()) } else { failed() };
            if schedule.answered(now, answer) == Some(Change::Healthy) {
                return (now, schedule.asked());
            }
        }
    }

    #[test]
    fn a_start_is_noticed_an_eighth_too_late_at_most() {
        for ready in [0, 5, 10, 99, 100, 1000, 10_000, 60_000, 3_600_000] {
            let (noticed, asked) = known(Timing::default(), at(ready));
            let late = noticed.since(at(ready));
            assert!(late <= (at(ready).since(Time::ZERO) / 8).max(FIRST_PAUSE), "{ready} ms: {late:?} late");
            assert!(late <= Timing::default().interval);
            assert!(asked <= 80 + ready / 10_000, "{ready} ms: {asked} questions");
        }
        let slow = Timing { initial_delay: Duration::from_secs(2), ..Timing::default() };
        assert_eq!(known(slow, at(0)), (at(2000), 1));
    }

    /// Against a model: after the first success, `retries` failures in a row make it unhealthy and `successes` healthy again.
    #[test]
    fn streaks_decide() {
        for seed in 0..1000 {
            let mut random = SplitMix(seed);
            let timing = Timing {
                retries: 1 + random.below(4) as u32,
                successes: 1 + random.below(3) as u32,
                ..Timing::default()
            };
            let mut schedule = Schedule::new(timing, Time::ZERO);
            let (mut well, mut history, mut failures) = (None, Vec::new(), 0);
            for _ in 0..50 {
                let now = schedule.poll_timeout().unwrap();
                assert!(schedule.ask(now));
                let passed = random.below(3) > 0;
                history.push(passed);
                let run = history.iter().rev().take_while(|one| **one == passed).count() as u32;
                let enough = run >= if passed { timing.successes } else { timing.retries };
                let expected = match (well, passed) {
                    (None | Some(false), true) if enough => Some(Change::Healthy),
                    (Some(true), false) if enough => Some(Change::Unhealthy),
                    _ => None,
                };
                if expected.is_some() {
                    well = Some(passed);
                    history.clear();
                }
                let answer = if passed { Ok(()) } else { failed() };
                assert_eq!(schedule.answered(now, answer), expected, "seed {seed}");
                assert_eq!(schedule.is_well(), well);
                failures = if passed { 0 } else { failures + 1 };
                assert_eq!((schedule.failures(), schedule.answered_at()), (failures, Some(now)));
                let pause = schedule.poll_timeout().unwrap().since(now);
                assert!(well.is_none() || pause == timing.interval);
            }
        }
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_dropped() {
        let mut schedule = Schedule::new(Timing::default(), Time::ZERO);
        assert_eq!(schedule.answered(at(0), Ok(())), None);
        assert_eq!((schedule.is_well(), schedule.last()), (None, None));
    }
}
