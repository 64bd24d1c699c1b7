//! Whether a worker that is to end a stream still lives.
//!
//! A worker with many streams is not killed because it does not end one of them: the others may be well. But one whose handler never gives way serves none of them. The
//! two are told apart by asking: while a cancelled stream has not ended, the worker gets a PING each grace, and one that says nothing at all for a whole grace after it is stuck.

use std::time::Duration;

use super::time::Time;

/// A look that comes so much after it was due says more about the manager than about the worker.
const LATE: Duration = Duration::from_millis(50);

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    /// None where nobody asks.
    grace: Option<Duration>,
    /// When the worker last said something.
    heard: Time,
    /// When it was last asked.
    asked: Option<Time>,
    /// When to look again, while a cancelled stream has not ended.
    due: Option<Time>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Fine,
    /// The worker is asked.
    Ask,
    /// It has said nothing for this long after it was asked.
    Unresponsive(Duration),
}

impl Pulse {
    /// For a worker that was just started. `grace` none: nobody asks.
    pub fn new(grace: Option<Duration>) -> Self {
        Pulse { grace, heard: Time::ZERO, asked: None, due: None }
    }

    /// A stream was cancelled.
    pub fn expect(&mut self, now: Time) {
        if self.due.is_none() {
            self.due = self.grace.map(|grace| now + grace);
        }
    }

    /// The worker said something.
    pub fn heard(&mut self, now: Time) {
        self.heard = now;
    }

    /// When [`look`](Self::look) has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.due
    }

    /// `is_waiting` says whether a cancelled stream has not ended.
    pub fn look(&mut self, now: Time, is_waiting: impl FnOnce() -> bool) -> Look {
        let Some(grace) = self.grace.filter(|_| self.due.is_some_and(|due| due <= now)) else { return Look::Fine };
        if !is_waiting() {
            (self.asked, self.due) = (None, None);
            return Look::Fine;
        }
        // Whoever looks late was itself held up, or frozen with the worker: the answer may lie there unread.
        let is_late = self.due.is_some_and(|due| now.since(due) > LATE.max(grace / 4));
        // What came at the very moment of the question may be no answer to it, but a worker that is stuck says nothing more after that.
        if !is_late && self.asked.is_some_and(|asked| self.heard < asked) {
            return Look::Unresponsive(grace);
        }
        (self.asked, self.due) = (Some(now), Some(now + grace));
        Look::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::budget::SplitMix;

    const GRACE: Duration = Duration::from_millis(500);

    fn at(hundredths: u64) -> Time {
        Time::ZERO + Duration::from_millis(10 * hundredths)
    }

    #[test]
    fn a_silent_worker_is_asked_once_and_then_stuck() {
        let mut pulse = Pulse::new(Some(GRACE));
        assert_eq!((pulse.look(at(1000), || true), pulse.poll_timeout()), (Look::Fine, None), "nothing was cancelled");
        pulse.heard(at(1000));
        pulse.expect(at(1000));
        pulse.expect(at(1040));
        assert_eq!((pulse.look(at(1049), || true), pulse.poll_timeout()), (Look::Fine, Some(at(1050))));
        assert_eq!(pulse.look(at(1050), || true), Look::Ask);
        assert_eq!(pulse.look(at(1099), || true), Look::Fine);
        assert_eq!(pulse.look(at(1100), || true), Look::Unresponsive(GRACE));
    }

    #[test]
    fn one_that_says_anything_is_asked_on_and_on_until_its_streams_have_ended() {
        let mut pulse = Pulse::new(Some(GRACE));
        pulse.expect(at(0));
        for round in 1..100 {
            assert_eq!(pulse.look(at(50 * round), || true), Look::Ask);
            pulse.heard(at(50 * round + round % 50));
        }
        assert_eq!((pulse.look(at(5000), || false), pulse.poll_timeout()), (Look::Fine, None));
    }

    #[test]
    fn whoever_looks_late_asks_again() {
        let mut pulse = Pulse::new(Some(GRACE));
        pulse.expect(at(0));
        assert_eq!(pulse.look(at(50), || true), Look::Ask);
        assert_eq!(pulse.look(at(500), || true), Look::Ask, "the manager was held up, not the worker");
        assert_eq!(pulse.look(at(555), || true), Look::Unresponsive(GRACE));
    }

    #[test]
    fn without_a_grace_nobody_asks() {
        let mut pulse = Pulse::new(None);
        pulse.expect(at(0));
        assert_eq!((pulse.poll_timeout(), pulse.look(at(1 << 40), || true)), (None, Look::Fine));
    }

    /// A worker that answers within the grace is never stuck, and one that falls silent is within two.
    #[test]
    fn whoever_answers_lives_and_whoever_does_not_is_found_out() {
        for seed in 0..1000 {
            let mut random = SplitMix(seed);
            let mut pulse = Pulse::new(Some(GRACE));
            let (mut now, mut answer) = (0, None);
            let dies = 200 + random.below(2000);
            pulse.expect(at(0));
            let found = loop {
                now += 1 + random.below(7);
                if answer.is_some_and(|due| due <= now) {
                    pulse.heard(at(now));
                    answer = None;
                }
                match pulse.look(at(now), || true) {
                    Look::Fine => {}
                    Look::Ask if now < dies => answer = Some(now + random.below(40)),
                    Look::Ask => {}
                    Look::Unresponsive(_) => break now,
                }
                assert!(now < dies + 200, "seed {seed}: not found out by {now}, it died at {dies}");
            };
            assert!(found >= dies, "seed {seed}: stuck at {found}, and lives until {dies}");
        }
    }
}
