//! Which jobs may go, and which results may be written: the state of a `pm pool`, without I/O and without a clock.

use std::collections::VecDeque;
use std::time::Instant;

use super::format::{Format, Sink};
use super::intake::Line;
use super::job::{Job, JobError, payload};
use super::latency::Latency;
use super::log::Finished;
use crate::plan::Halt;

/// Jobs that were taken and not written, in order: intake pauses behind a slow one.
const WINDOW: usize = 4096;

/// The same in bytes of inputs and results. With it pm stays below 15 MB, whatever jobs of up to 4 KiB come.
const WINDOW_BYTES: usize = 1 << 20;

/// What a job is taken to cost beside its bytes.
const JOB_BYTES: usize = 256;

/// Output that is worth a write at once.
const FULL_WRITE: usize = 64 << 10;

/// Lines at which more are fetched.
const FEW_LINES: usize = 256;

/// How jobs came out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// With a result.
    pub(super) done: u64,
    /// With an error.
    pub(super) failed: u64,
    /// Skipped, since the result file has them.
    pub(super) skipped: u64,
    /// Taken, and not done because pm stopped before.
    pub(super) not_run: u64,
    /// Further tries.
    pub(super) retried: u64,
}

/// The outcome of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The worker's answer, and in which try.
    Answer(Vec<u8>, u32),
    /// Why there is none.
    Error(JobError),
    /// pm stopped before.
    NotRun,
}

/// What a lane does next.
#[derive(Debug)]
pub(super) enum Next {
    /// This job.
    Job(Job),
    /// Wait until there is room or a line.
    Wait,
    /// There are no more jobs.
    End,
}

/// When what is to be written should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    /// There is nothing.
    No,
    /// Soon: more is on its way.
    Soon,
    /// Now: nothing else is on its way, or there is much.
    Now,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Board {
    ledger: Ledger,
    finished: Option<Finished>,
    /// In order: the jobs that were taken and not written, the oldest first. Their numbers start at `first`.
    window: Option<VecDeque<Slot>>,
    first: u64,
    lines: VecDeque<Line>,
    next_number: u64,
    next_seq: u64,
    ended: bool,
    in_flight: usize,
    /// Bytes of jobs that were taken, and of results that wait for their turn.
    held: usize,
    sink: Sink,
    /// Bytes that the writer has taken and not written.
    writing: usize,
    latency: Latency,
}

/// What came of the jobs.
#[derive(Debug)]
struct Ledger {
    format: Format,
    halt: Halt,
    /// Whether and how it stopped early.
    halted: Option<Halt>,
    tally: Tally,
}

#[derive(Debug)]
enum Slot {
    Pending,
    Ready(Sink),
}

impl Board {
    /// `concurrency` is how many jobs the workers run at once, where that is known.
    pub(super) fn new(
        format: Format,
        halt: Halt,
        ordered: bool,
        finished: Option<Finished>,
        concurrency: Option<usize>,
    ) -> Self {
        Board {
            ledger: Ledger { format, halt, halted: None, tally: Tally::default() },
            finished,
            window: ordered.then(VecDeque::new),
            first: 0,
            lines: VecDeque::new(),
            next_number: 0,
            next_seq: 0,
            ended: false,
            in_flight: 0,
            held: 0,
            sink: Sink::default(),
            writing: 0,
            latency: Latency::new(concurrency),
        }
    }

    /// More lines.
    pub(super) fn add(&mut self, lines: Vec<Line>) {
        if self.ledger.halted.is_none() {
            self.lines.extend(lines);
        }
    }

    /// There are no more lines.
    pub(super) fn end_input(&mut self) {
        self.ended = true;
    }

    /// Takes no further job.
    pub(super) fn stop(&mut self, how: Halt) {
        self.ledger.halted = match (self.ledger.halted, how) {
            (Some(Halt::Now(n)), _) => Some(Halt::Now(n)),
            _ => Some(how),
        };
        self.lines.clear();
    }

    /// Whether and how it stopped early.
    pub(super) fn stopped(&self) -> Option<Halt> {
        self.ledger.halted
    }

    /// Whether more lines should be fetched.
    pub(super) fn is_hungry(&self) -> bool {
        self.lines.len() < FEW_LINES
    }

    /// How many lanes could take a job now.
    pub(super) fn room(&self) -> usize {
        if self.is_full() {
            return 0;
        }
        let slots = self.window.as_ref().map_or(usize::MAX, |window| WINDOW - window.len());
        self.lines.len().min(slots)
    }

    fn is_full(&self) -> bool {
        let bytes = self.held + self.sink.out.len() + self.sink.err.len() + self.writing;
        self.window.as_ref().is_some_and(|window| window.len() >= WINDOW) || bytes > WINDOW_BYTES
    }

    /// The next job for this lane.
    pub(super) fn next(&mut self, now: Instant, lane: usize) -> Next {
        while !self.lines.is_empty() {
            if self.is_full() {
                return Next::Wait;
            }
            let Some(line) = self.lines.pop_front() else { break };
            let number = self.next_number;
            self.next_number += 1;
            if let Some(finished) = &self.finished
                && finished.has(number, &line, &self.ledger.format)
            {
                self.ledger.tally.skipped += 1;
                continue;
            }
            let payload = payload(&line, self.ledger.format.input, self.ledger.format.wire);
            let job = Job { number, seq: self.next_seq, line, payload: payload.as_ref().cloned().unwrap_or_default() };
            self.next_seq += 1;
            self.held += cost(&job);
            if let Some(window) = &mut self.window {
                window.push_back(Slot::Pending);
            }
            self.in_flight += 1;
            match payload {
                Ok(_) => {
                    self.latency.submit(now, lane);
                    return Next::Job(job);
                }
                Err(error) => {
                    self.settle(&job, Outcome::Error(error));
                }
            }
        }
        if self.is_over() { Next::End } else { Next::Wait }
    }

    /// Whether all jobs that there are have an outcome.
    pub(super) fn is_over(&self) -> bool {
        (self.ended || self.ledger.halted.is_some()) && self.lines.is_empty() && self.in_flight == 0
    }

    /// The job of this lane is tried again.
    pub(super) fn again(&mut self, now: Instant, lane: usize) {
        self.ledger.tally.retried += 1;
        self.latency.finish(now, lane, false);
        self.latency.submit(now, lane);
    }

    /// The job of this lane has its outcome.
    pub(super) fn complete(&mut self, now: Instant, lane: usize, job: &Job, outcome: Outcome) -> Flush {
        self.latency.finish(now, lane, matches!(outcome, Outcome::Answer(..)));
        self.settle(job, outcome);
        self.flush()
    }

    /// When what is to be written should be.
    pub(super) fn flush(&self) -> Flush {
        match self.sink.out.len() + self.sink.err.len() {
            0 => Flush::No,
            bytes if bytes >= FULL_WRITE || self.in_flight == 0 => Flush::Now,
            _ => Flush::Soon,
        }
    }

    fn settle(&mut self, job: &Job, outcome: Outcome) {
        self.in_flight -= 1;
        self.held -= cost(job);
        match &mut self.window {
            None => self.ledger.enter(job, outcome, &mut self.sink),
            Some(window) if job.seq == self.first => {
                self.ledger.enter(job, outcome, &mut self.sink);
                window.pop_front();
                self.first += 1;
                while let Some(Slot::Ready(ready)) = window.front_mut() {
                    let ready = std::mem::take(ready);
                    window.pop_front();
                    self.first += 1;
                    self.held -= ready.out.len() + ready.err.len();
                    self.sink.out.extend_from_slice(&ready.out);
                    self.sink.err.extend_from_slice(&ready.err);
                }
            }
            Some(window) => {
                let mut sink = Sink::default();
                self.ledger.enter(job, outcome, &mut sink);
                self.held += sink.out.len() + sink.err.len();
                window[(job.seq - self.first) as usize] = Slot::Ready(sink);
            }
        }
        if self.ledger.halted.is_some() {
            self.lines.clear();
        }
    }

    /// Hands over what is to be written. `empty` is used in its place.
    pub(super) fn take_output(&mut self, empty: Sink) -> (Sink, Tally) {
        let full = std::mem::replace(&mut self.sink, empty);
        self.writing = full.out.len() + full.err.len();
        (full, self.ledger.tally)
    }

    /// What was handed over is written.
    pub(super) fn written(&mut self) {
        self.writing = 0;
    }

    /// How many jobs failed in earlier runs and are not done again.
    pub(super) fn failed_before(&self) -> u64 {
        self.finished.as_ref().map_or(0, Finished::failed)
    }

    /// How jobs came out so far.
    pub(super) fn tally(&self) -> Tally {
        self.ledger.tally
    }

    /// How many jobs there are in all, once that is known.
    pub(super) fn total(&self) -> Option<u64> {
        self.ended.then(|| self.next_number + self.lines.len() as u64)
    }

    /// How long jobs take.
    pub(super) fn latency(&self) -> &Latency {
        &self.latency
    }
}

/// The payload may share its bytes with the line; the pool makes a copy of it.
fn cost(job: &Job) -> usize {
    let line = match &job.line {
        Line::Whole(bytes) => bytes.len(),
        Line::TooLong { .. } => 0,
    };
    JOB_BYTES + line + job.payload.len()
}

impl Ledger {
    /// Writes and counts the outcome of a job.
    fn enter(&mut self, job: &Job, outcome: Outcome, sink: &mut Sink) {
        let error = match outcome {
            Outcome::NotRun => {
                self.tally.not_run += 1;
                return;
            }
            Outcome::Answer(answer, tries) => match self.format.result(job.number, &job.line, &answer, tries, sink) {
                Ok(()) => {
                    self.tally.done += 1;
                    return;
                }
                Err(error) => error,
            },
            Outcome::Error(error) => error,
        };
        self.tally.failed += 1;
        self.format.error(job.number, &job.line, &error, sink);
        if let Halt::Soon(limit) | Halt::Now(limit) = self.halt
            && self.tally.failed >= limit
            && self.halted.is_none()
        {
            self.halted = Some(self.halt);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cli::{Input, Output};
    use crate::plan::Wire;

    fn board(ordered: bool, halt: Halt) -> Board {
        let format = Format { output: Output::Plain, input: Input::Lines, wire: Wire::Text, tag: false };
        Board::new(format, halt, ordered, None, Some(1))
    }

    fn lines(count: usize, length: usize) -> Vec<Line> {
        (0..count).map(|_| Line::Whole(Bytes::from(vec![b'x'; length]))).collect()
    }

    fn jobs(board: &mut Board) -> Vec<Job> {
        let now = Instant::now();
        let jobs = (0..).map_while(|lane| match board.next(now, lane) {
            Next::Job(job) => Some(job),
            Next::Wait | Next::End => None,
        });
        jobs.collect()
    }

    fn answer(board: &mut Board, jobs: &[Job], number: usize) -> Flush {
        let outcome = Outcome::Answer(number.to_string().into_bytes(), 1);
        board.complete(Instant::now(), number, &jobs[number], outcome)
    }

    fn output(board: &mut Board) -> String {
        let (sink, _) = board.take_output(Sink::default());
        board.written();
        String::from_utf8(sink.out).unwrap_or_default()
    }

    #[test]
    fn results_wait_for_their_turn() {
        let mut board = board(true, Halt::Never);
        board.add(lines(3, 1));
        let taken = jobs(&mut board);
        assert_eq!(answer(&mut board, &taken, 2), Flush::No);
        assert_eq!(answer(&mut board, &taken, 0), Flush::Soon);
        assert_eq!(output(&mut board), "0\n");
        assert_eq!(answer(&mut board, &taken, 1), Flush::Now, "nothing else is on its way");
        assert_eq!(output(&mut board), "1\n2\n");
        assert!(!board.is_over(), "more may come");
        board.end_input();
        assert!(board.is_over());
        assert_eq!(board.held, 0);
    }

    #[test]
    fn the_window_is_bounded_in_jobs_and_bytes() {
        let mut small = board(true, Halt::Never);
        small.add(lines(10_000, 0));
        assert_eq!(jobs(&mut small).len(), WINDOW);
        let mut large = board(true, Halt::Never);
        large.add(lines(1000, 4096));
        let taken = jobs(&mut large);
        assert!((100..200).contains(&taken.len()), "{}", taken.len());
        for number in 1..taken.len() {
            answer(&mut large, &taken, number);
        }
        assert!(large.room() > 0, "small results make room behind a slow job");
        let mut unordered = board(false, Halt::Never);
        unordered.add(lines(3, 0));
        let taken = jobs(&mut unordered);
        answer(&mut unordered, &taken, 2);
        answer(&mut unordered, &taken, 0);
        assert_eq!(output(&mut unordered), "2\n0\n");
        let mut huge = board(true, Halt::Never);
        huge.add(lines(2, 2 * WINDOW_BYTES));
        assert_eq!(jobs(&mut huge).len(), 1, "one at a time, and not none");
    }

    #[test]
    fn jobs_that_were_not_run_leave_no_gap() {
        let mut board = board(true, Halt::Soon(1));
        board.add(lines(5, 1));
        let taken = jobs(&mut board);
        let failed = Outcome::Error(JobError::default());
        board.complete(Instant::now(), 1, &taken[1], failed);
        assert_eq!(board.stopped(), Some(Halt::Soon(1)));
        board.add(lines(5, 1));
        for number in [0, 2] {
            board.complete(Instant::now(), number, &taken[number], Outcome::NotRun);
        }
        answer(&mut board, &taken, 4);
        answer(&mut board, &taken, 3);
        assert_eq!(output(&mut board), "3\n4\n");
        assert!(board.is_over());
        let expected = Tally { done: 2, failed: 1, not_run: 2, ..Tally::default() };
        assert_eq!(board.tally(), expected);
    }
}
