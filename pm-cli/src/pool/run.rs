//! Carries a [`Plan`] out: starts the pool, feeds it, and stops in order.

use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pm::core::driver::signal::{ENDINGS, Heard};
use pm::{
    AnyTransport, Budget, ExitCause, ExitStatus, PoolBuilder, QueryError, QueryManager, StartError, Stderr,
    TimeoutFrom, Verbatim,
};
use tokio::sync::mpsc;

use super::board::{Board, Flush, Next, Outcome};
use super::format::Format;
use super::intake::{self, Batch};
use super::job::{Failed, Job};
use super::log;
use super::progress::Progress;
use super::streams;
use super::watch::{Random, tick};
use super::writer::{self, Shared, State, Target};
use crate::error::{CliError, chain, code, say};
use crate::plan::{Halt, Plan, Program, Retry, Wire, Worker};
use crate::roles::{self, filter};

/// How often workers may die before they are ready, or while they have nothing to do, until the pool gives up: far more often than by
/// chance, and still within two seconds where nothing works.
const BUDGET: Budget =
    Budget::spare_calls(10, Duration::from_secs(60)).backoff(Duration::from_millis(20), Duration::from_millis(200));

/// Jobs that are handed to the pool for each worker: as many as a worker's link can take.
const LANES_PER_WORKER: usize = 512;

/// All jobs that are handed to the pool: as many as its queue can take.
const MAX_LANES: usize = 2048;

/// How long results may gather while more are on their way.
const GATHER: Duration = Duration::from_millis(1);

/// What a reader that does not read may cost at a stop that cannot wait.
pub(super) const LAST_WRITE: Duration = Duration::from_millis(500);

/// How long workers may take to leave, once all jobs are done: a filter says why it was ended, if it must be.
pub(super) const LEAVE: Duration = filter::END.saturating_add(Duration::from_secs(2));

/// The pool behind it.
type Manager = QueryManager<Bytes, Vec<u8>, Verbatim>;

/// Carries the plan out.
///
/// # Errors
/// What keeps it from beginning. From then on the exit code says how it went.
pub fn run(plan: Plan) -> Result<ExitCode, CliError> {
    let (target, finished) = match &plan.log {
        None => (Target::Stdout, None),
        Some(log) => {
            let (file, finished) = log::open(log)?;
            (Target::File(file, log.sync), finished)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let code = runtime.block_on(async {
        let mut signals = Heard::of(&ENDINGS).map_err(CliError::Runtime)?;
        if let Some(streams) = &plan.streams {
            return streams::run(&plan, streams, &mut signals).await;
        }
        let manager = tokio::select! {
            manager = start(&plan) => manager?,
            signal = signals.next() => return Ok(code::by(signal)),
        };
        let format = Format::of(&plan);
        let concurrency = plan.worker.one_at_a_time.then_some(plan.workers as usize);
        let board = Board::new(format, plan.halt, plan.ordered, finished, concurrency);
        let run = Run {
            shared: Shared::new(board),
            manager,
            wire: plan.worker.wire,
            retry: plan.retry,
            lanes: MAX_LANES.min(LANES_PER_WORKER * plan.workers as usize),
        };
        Arc::new(run).drive(&plan, target, &mut signals).await
    })?;
    // A thread that waits for input that never comes, or for a reader that does not read, ends with the process.
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

async fn start(plan: &Plan) -> Result<Manager, CliError> {
    let worker = &plan.worker;
    let queries = builder(plan)
        .queue(MAX_LANES)
        .timeout(plan.timeout)
        .timeout_from(TimeoutFrom::Start)
        .cancel_grace(worker.cancel_grace);
    queries.start().await.map_err(|error| cannot_start(&error, worker))
}

/// The pool, whatever its workers serve.
pub(super) fn builder(plan: &Plan) -> PoolBuilder<Bytes, Vec<u8>, Verbatim, AnyTransport> {
    let worker = &plan.worker;
    let codec = if matches!(worker.program, Program::Role(..)) { roles::CODEC } else { "json" };
    let builder: PoolBuilder<Bytes, Vec<u8>, Verbatim, AnyTransport> = match &worker.program {
        Program::Role(role, args) => {
            PoolBuilder::role(*role, plan.transport, Verbatim(codec)).spec(|spec| spec.args(args.iter().cloned()))
        }
        Program::Other(spec) => {
            PoolBuilder::program(worker.name.as_str(), (**spec).clone(), plan.transport, Verbatim(codec))
        }
    };
    builder
        .name(worker.name.as_str())
        .spec(|spec| spec.start_timeout(plan.start_timeout).stop_grace(LEAVE).stderr(Stderr::Forward))
        .workers(plan.workers)
        .budget(BUDGET)
}

pub(super) fn cannot_start(error: &StartError, worker: &Worker) -> CliError {
    CliError::Start(explain(error, worker.speaks_protocol))
}

/// Why the first workers could not be started, and what to do.
fn explain(error: &StartError, speaks_protocol: bool) -> String {
    let hint = "; a program that does not speak pm's protocol is run with {} among its words, or with --as filter";
    let hint = if speaks_protocol { hint } else { "" };
    match error {
        StartError::Died { cause, stderr } => {
            // A worker that cannot serve what it was started for ends with 64, and has said why.
            let hint = if matches!(cause, ExitCause::Exited(ExitStatus::Code(64))) { "" } else { hint };
            // Its lines were passed on as they came.
            let last = if stderr.trim().is_empty() {
                "it wrote nothing to its standard error"
            } else {
                "what it wrote stands above"
            };
            format!("the worker ended before it was ready ({cause}), and {last}{hint}")
        }
        StartError::Handshake { mismatch, .. } => mismatch.to_string(),
        error => chain(error),
    }
}

struct Run {
    shared: Arc<Shared>,
    manager: Manager,
    wire: Wire,
    retry: Retry,
    /// How many lanes there may be.
    lanes: usize,
}

impl Run {
    async fn drive(self: Arc<Self>, plan: &Plan, target: Target, signals: &mut Heard) -> Result<u8, CliError> {
        let progress = Progress::new(plan.progress);
        let writer = writer::start(self.shared.clone(), target, progress.bar()).map_err(CliError::Runtime)?;
        let lines = intake::start(plan.delimiter, plan.max_line).map_err(CliError::Runtime)?;
        tokio::spawn(self.clone().fetch(lines));
        tokio::spawn(self.clone().gather());
        let ending = self.watch(plan, &progress, signals).await;
        if let Ending::Killed(_) | Ending::Closed(_) = ending {
            self.manager.shutdown_within(Some(Duration::ZERO)).await;
        } else {
            self.manager.shutdown_within(Some(LEAVE)).await;
        }
        writer::close(&self.shared);
        let is_patient = !matches!(ending, Ending::Killed(_));
        let written = tokio::task::spawn_blocking(move || writer.join());
        if is_patient {
            // A second signal ends this wait as well.
            tokio::select! {
                _ = written => {}
                signal = signals.next() => return Ok(code::by(signal)),
            }
        } else {
            let _ = tokio::time::timeout(LAST_WRITE, written).await;
        }
        Ok(self.conclude(plan, &progress, ending))
    }

    /// Until all jobs are over, or it is to end before.
    async fn watch(self: &Arc<Self>, plan: &Plan, progress: &Progress, signals: &mut Heard) -> Ending {
        let mut chaos =
            plan.chaos.map(|interval| tokio::time::interval_at(tokio::time::Instant::now() + interval, interval));
        let mut frames = progress.interval().map(tokio::time::interval);
        let mut random = Random::new();
        let mut ending = Ending::Over;
        let mut stopping = false;
        loop {
            {
                let state = self.shared.lock();
                if state.failure.is_some() {
                    return Ending::Closed(ending.code());
                }
                match state.board.stopped() {
                    Some(Halt::Now(_)) => return Ending::Killed(ending.code()),
                    Some(_) if !stopping => {
                        stopping = true;
                        // Workers finish what they have; what waits for a worker is not begun.
                        let manager = self.manager.clone();
                        tokio::spawn(async move { manager.unspawn().await });
                    }
                    _ => {}
                }
                if state.board.is_over() {
                    return ending;
                }
            }
            tokio::select! {
                () = self.shared.news.notified() => {}
                signal = signals.next() => {
                    let code = code::by(signal);
                    let mut state = self.shared.lock();
                    if let Ending::Stopped(first) = ending {
                        return Ending::Killed(Some(first));
                    }
                    ending = Ending::Stopped(code);
                    state.board.stop(Halt::Soon(0));
                    drop(state);
                    say("stopping: jobs that have begun are finished; once more to kill them");
                }
                () = tick(&mut chaos) => self.manager.chaos(random.next()),
                () = tick(&mut frames) => {
                    let lost = self.manager.info().crashes;
                    let state = self.shared.lock();
                    progress.show(state.written, state.board.total(), lost);
                }
            }
        }
    }

    fn conclude(&self, plan: &Plan, progress: &Progress, ending: Ending) -> u8 {
        let state = self.shared.lock();
        let lost = self.manager.info().crashes;
        if let Some(failure) = &state.failure {
            if failure.kind() == io::ErrorKind::BrokenPipe {
                return code::CLOSED;
            }
            let (what, hint) = match &plan.log {
                Some(log) => (format!("{:?}", log.path), "; --resume does the jobs that are not in it"),
                None => ("standard output".to_string(), ""),
            };
            say(format_args!("error: {what} cannot be written: {failure}{hint}"));
            return code::FAILED;
        }
        progress.end(&state.board, lost);
        if ending != Ending::Over || state.board.stopped().is_some() {
            let tally = state.board.tally();
            let hint = if plan.log.is_some() { "; --resume does the rest" } else { "" };
            say(format_args!("stopped early, with {} jobs done and {} failed{hint}", tally.done, tally.failed));
        }
        let failed_before = state.board.failed_before();
        if failed_before > 0 {
            say(format_args!("{failed_before} jobs failed in earlier runs; --retry-failed does them again"));
        }
        if let Some(failure) = &state.input_failure {
            say(format_args!("error: standard input cannot be read: {failure}"));
            return ending.code().unwrap_or(code::FAILED);
        }
        if let Some(cause) = &state.gave_up {
            say(format_args!("error: {cause}"));
            return ending.code().unwrap_or(code::GAVE_UP);
        }
        let all_well = state.board.tally().failed + failed_before == 0;
        ending.code().unwrap_or(if all_well { 0 } else { code::FAILED })
    }

    /// Brings lines to the board.
    async fn fetch(self: Arc<Self>, mut lines: mpsc::Receiver<Batch>) {
        loop {
            let batch = lines.recv().await;
            if self.take(batch) {
                return;
            }
            while !self.shared.lock().board.is_hungry() {
                self.shared.hungry.notified().await;
            }
        }
    }

    /// Takes what was read, and has as many lanes as there is work for. True at the end of the input.
    fn take(self: &Arc<Self>, batch: Option<Batch>) -> bool {
        let mut state = self.shared.lock();
        let is_last = !matches!(batch, Some(Ok(_)));
        match batch {
            Some(Ok(lines)) => state.board.add(lines),
            Some(Err(error)) => state.input_failure = Some(error),
            None => {}
        }
        if is_last {
            state.board.end_input();
        }
        // Those that are awake take a job each before they sleep.
        let idle = state.parked;
        self.shared.wake_lanes(&mut state);
        let more = state.board.room().saturating_sub(idle).min(self.lanes - state.lanes);
        for _ in 0..more {
            let lane = state.lanes;
            state.lanes += 1;
            tokio::spawn(self.clone().lane(lane));
        }
        if state.board.is_over() {
            self.shared.news.notify_one();
        }
        is_last
    }

    /// Lets results gather for a moment while more are on their way.
    async fn gather(self: Arc<Self>) {
        loop {
            self.shared.dirty.notified().await;
            tokio::time::sleep(GATHER).await;
            self.shared.flush_soon();
        }
    }

    /// Takes one job after another, and brings its outcome to the board.
    async fn lane(self: Arc<Self>, lane: usize) {
        while let Some(job) = self.job(lane).await {
            let outcome = self.carry(lane, &job).await;
            let mut state = self.shared.lock();
            let flush = state.board.complete(Instant::now(), lane, &job, outcome);
            drop(job);
            self.after(&mut state, flush);
        }
    }

    async fn job(&self, lane: usize) -> Option<Job> {
        loop {
            // Most often there is one.
            if let Some(next) = self.next(lane, false) {
                return next;
            }
            let mut work = pin!(self.shared.work.notified());
            // From here on no job is missed.
            work.as_mut().enable();
            if let Some(next) = self.next(lane, true) {
                return next;
            }
            work.await;
        }
    }

    /// A job, or none where no more come; nothing where it has to wait.
    fn next(&self, lane: usize, park: bool) -> Option<Option<Job>> {
        let mut state = self.shared.lock();
        let next = state.board.next(Instant::now(), lane);
        let flush = state.board.flush();
        // What was wrong with a line is written now.
        if !matches!(next, Next::Job(_)) {
            self.after(&mut state, flush);
        }
        if state.board.is_hungry() {
            self.shared.hungry.notify_one();
        }
        match next {
            Next::Job(job) => Some(Some(job)),
            Next::End => Some(None),
            Next::Wait => {
                state.parked += usize::from(park);
                None
            }
        }
    }

    fn after(&self, state: &mut State, flush: Flush) {
        self.shared.flush(state, flush);
        self.shared.wake_lanes(state);
        if state.board.is_over() || state.board.stopped().is_some() {
            self.shared.news.notify_one();
        }
    }

    /// Has the pool do a job, as often as its failures allow.
    async fn carry(&self, lane: usize, job: &Job) -> Outcome {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.manager.query(&job.payload).await {
                Ok(answer) => return Outcome::Answer(answer, tries),
                Err(error) => error,
            };
            if let QueryError::GaveUp { .. } = &error {
                let mut state = self.shared.lock();
                if state.gave_up.is_none() {
                    state.gave_up = Some(error.to_string());
                    state.board.stop(Halt::Soon(0));
                }
            }
            let (covered, mut error) = match Failed::new(error, self.wire) {
                Failed::NotRun => return Outcome::NotRun,
                Failed::Lost(error) => (self.retry.lost, error),
                Failed::TimedOut(error) => (self.retry.timeout, error),
                Failed::Error(error) => (self.retry.error, error),
            };
            error.tries = tries;
            if !covered || tries > self.retry.times {
                return Outcome::Error(error);
            }
            let mut state = self.shared.lock();
            if state.board.stopped().is_some() {
                return Outcome::NotRun;
            }
            state.board.again(Instant::now(), lane);
        }
    }
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// All that was to be done is.
    Over,
    /// After a signal.
    Stopped(u8),
    /// By a second one, or by --halt now.
    Killed(Option<u8>),
    /// Results cannot be written.
    Closed(Option<u8>),
}

impl Ending {
    /// The exit code, where a signal says what it is.
    fn code(self) -> Option<u8> {
        match self {
            Ending::Over => None,
            Ending::Stopped(code) => Some(code),
            Ending::Killed(code) | Ending::Closed(code) => code,
        }
    }
}
