//! How long jobs take, seen from outside of the workers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// The longest time that is told apart: a week.
const LONGEST: u64 = 7 * 24 * 3600 * 1_000_000;

/// The times of jobs, from the start of the last try to the answer.
///
/// The pool takes more jobs than run, so that no worker waits, and does not say when one starts. Where each worker is known to run one at a time,
/// that can be told all the same: as many run as there are workers, the oldest first.
#[derive(Debug)]
pub(super) struct Latency {
    /// How many jobs run at once; none where that is not known.
    concurrency: Option<usize>,
    running: usize,
    lanes: Vec<Option<Begun>>,
    waiting: VecDeque<(usize, u64)>,
    next: u64,
    histogram: Histogram<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    ticket: u64,
    submitted: Instant,
    started: Option<Instant>,
}

impl Latency {
    pub(super) fn new(concurrency: Option<usize>) -> Self {
        Latency {
            concurrency,
            running: 0,
            lanes: Vec::new(),
            waiting: VecDeque::new(),
            next: 0,
            // Two significant digits of microseconds are enough for people, and 30 KiB.
            histogram: Histogram::new_with_bounds(1, LONGEST, 2)
                .unwrap_or_else(|error| unreachable!("1 < {LONGEST}: {error}")),
        }
    }

    /// A job was handed to the pool by this lane.
    pub(super) fn submit(&mut self, now: Instant, lane: usize) {
        if self.lanes.len() <= lane {
            self.lanes.resize(lane + 1, None);
        }
        let ticket = self.next;
        self.next += 1;
        let runs = self.concurrency.is_none_or(|most| self.running < most);
        self.lanes[lane] = Some(Begun { ticket, submitted: now, started: runs.then_some(now) });
        if runs {
            self.running += 1;
        } else {
            self.waiting.push_back((lane, ticket));
        }
    }

    /// The job of this lane is over. `counts` says whether its time is one that people want to know.
    pub(super) fn finish(&mut self, now: Instant, lane: usize, counts: bool) {
        let Some(begun) = self.lanes.get_mut(lane).and_then(Option::take) else { return };
        if begun.started.is_some() {
            self.running -= 1;
            while let Some((lane, ticket)) = self.waiting.pop_front() {
                if let Some(Some(next)) = self.lanes.get_mut(lane)
                    && next.ticket == ticket
                {
                    next.started = Some(now);
                    self.running += 1;
                    break;
                }
            }
        }
        if counts {
            let took = now.saturating_duration_since(begun.started.unwrap_or(begun.submitted));
            let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST);
            self.histogram.saturating_record(micros.clamp(1, LONGEST));
        }
    }

    /// The time that so much of all jobs took at most, from 0 to 1. None where there was no job.
    pub(super) fn quantile(&self, quantile: f64) -> Option<Duration> {
        (!self.histogram.is_empty()).then(|| Duration::from_micros(self.histogram.value_at_quantile(quantile)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_waited_is_not_slow() {
        let mut latency = Latency::new(Some(2));
        assert_eq!(latency.quantile(0.5), None);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for lane in 0..6 {
            latency.submit(at(0), lane);
        }
        for (lane, ms) in [(0, 100), (1, 100), (2, 200), (3, 200), (5, 300), (4, 300)] {
            latency.finish(at(ms), lane, true);
        }
        for quantile in [0.5, 0.99] {
            let took = latency.quantile(quantile).unwrap();
            assert!((98..=102).contains(&took.as_millis()), "{took:?}");
        }
        assert!(latency.waiting.is_empty() && latency.running == 0);
    }
}
