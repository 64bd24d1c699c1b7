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
    format: Format,
    halt: Halt,
    finished: Option<Finished>,
    /// In order: the jobs that were taken and not written, the oldest first. Their numbers start at `first`.
    window: Option<VecDeque<Slot>>,
    first: u64,
    lines: VecDeque<Line>,
    next_number: u64,
    next_seq: u64,
    ended: bool,
    halted: Option<Halt>,
    in_flight: usize,
    /// Bytes of jobs that were taken, and of results that wait for their turn.
    held: usize,
    sink: Sink,
    /// Bytes that the writer has taken and not written.
    writing: usize,
    tally: Tally,
    latency: Latency,
}

#[derive(Debug)]
enum Slot {
    Pending,
    Ready(Sink),
}

impl Board {
    /// `concurrency` is how many jobs the workers run at once, where that is known.
    pub(super) fn new(format: Format, halt: Halt, ordered: bool, finished: Option<Finished>, concurrency: Option<usize>) -> Self {
        Board {
            format,
            halt,
            finished,
            window: ordered.then(VecDeque::new),
            first: 0,
            lines: VecDeque::new(),
            next_number: 0,
            next_seq: 0,
            ended: false,
            halted: None,
            in_flight: 0,
            held: 0,
            sink: Sink::default(),
            writing: 0,
            tally: Tally::default(),
            latency: Latency::new(concurrency),
        }
    }

    /// More lines.
    pub(super) fn add(&mut self, lines: Vec<Line>) {
        if self.halted.is_none() {
            self.lines.extend(lines);
        }
    }

    /// There are no more lines.
    pub(super) fn end_input(&mut self) {
        self.ended = true;
    }

    /// Takes no further job.
    pub(super) fn stop(&mut self, how: Halt) {
        self.halted = match (self.halted, how) {
            (Some(Halt::Now(n)), _) => Some(Halt::Now(n)),
            _ => Some(how),
        };
        self.lines.clear();
    }

    /// Whether and how it stopped early.
    pub(super) fn stopped(&self) -> Option<Halt> {
        self.halted
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
                && finished.has(number, &line, &self.format)
            {
                self.tally.skipped += 1;
                continue;
            }
            let payload = payload(&line, self.format.input, self.format.wire);
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
        (self.ended || self.halted.is_some()) && self.lines.is_empty() && self.in_flight == 0
    }

    /// The job of this lane is tried again.
    pub(super) fn again(&mut self, now: Instant, lane: usize) {
        self.tally.retried += 1;
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
        let Some(window) = &mut self.window else {
            return render(&self.format, job, outcome, &mut self.sink, &mut self.tally, self.halt, &mut self.halted, &mut self.lines);
        };
        if job.seq == self.first {
            window.pop_front();
            self.first += 1;
            render(&self.format, job, outcome, &mut self.sink, &mut self.tally, self.halt, &mut self.halted, &mut self.lines);
            while let Some(Slot::Ready(_)) = window.front()
                && let Some(Slot::Ready(ready)) = window.pop_front()
            {
                self.first += 1;
                self.held -= ready.out.len() + ready.err.len();
                self.sink.out.extend_from_slice(&ready.out);
                self.sink.err.extend_from_slice(&ready.err);
            }
        } else {
            let mut sink = Sink::default();
            render(&self.format, job, outcome, &mut sink, &mut self.tally, self.halt, &mut self.halted, &mut self.lines);
            self.held += sink.out.len() + sink.err.len();
            window[(job.seq - self.first) as usize] = Slot::Ready(sink);
        }
    }

    /// Hands over what is to be written. `empty` is used in its place.
    pub(super) fn take_output(&mut self, empty: Sink) -> (Sink, Tally) {
        let full = std::mem::replace(&mut self.sink, empty);
        self.writing = full.out.len() + full.err.len();
        (full, self.tally)
    }

    /// What was handed over is written.
    pub(super) fn written(&mut self) {
        self.writing = 0;
    }

    /// How jobs came out so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally
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

#[expect(clippy::too_many_arguments, reason = "these are the fields of the board that may change while another one is borrowed")]
fn render(
    format: &Format,
    job: &Job,
    outcome: Outcome,
    sink: &mut Sink,
    tally: &mut Tally,
    halt: Halt,
    halted: &mut Option<Halt>,
    lines: &mut VecDeque<Line>,
) {
    let error = match outcome {
        Outcome::NotRun => {
            tally.not_run += 1;
            return;
        }
        Outcome::Answer(answer, tries) => match format.result(job.number, &job.line, &answer, tries, sink) {
            Ok(()) => {
                tally.done += 1;
                return;
            }
            Err(error) => error,
        },
        Outcome::Error(error) => error,
    };
    tally.failed += 1;
    format.error(job.number, &job.line, &error, sink);
    if let Halt::Soon(limit) | Halt::Now(limit) = halt
        && tally.failed >= limit
        && halted.is_none()
    {
        *halted = Some(halt);
        lines.clear();
    }
}
