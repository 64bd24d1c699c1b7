//! Lines as messages on many streams: each line goes to the stream of its key, and what comes back is written as it comes.
//!
//! ```text
//!  stdin ─▶ intake ─▶ sorter ─▶ a task for each key ⇄ StreamManager
//!           thread                │ results
//!                                 └─▶ thread that writes
//! ```
//!
//! The sorter waits for nobody but for memory: lines that wait for their streams have so much together. So a key that is slow, or whose stream has not begun,
//! holds up no other until then. Which streams end so that others begin, [`keys`](super::keys) says; how long one may be silent, [`patience`](super::patience).

use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::ProgressBar;
use pm::core::driver::signal::Heard;
use pm::{Duplex, QueryError, QueryErrorKind, StreamError, StreamManager, Verbatim};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::board::Tally;
use super::format::{Format, Sink};
use super::intake::{self, Batch, Line};
use super::job::{Failed, JobError, payload};
use super::keys::{Inbox, Keys, Order};
use super::patience::Patience;
use super::progress::Progress;
use super::run::{LAST_WRITE, LEAVE, builder, cannot_start};
use super::talk::{Alarm, Talk, Turn};
use super::watch::{Random, tick};
use super::writer::{Target, write_results};
use crate::cli::Input;
use crate::error::{CliError, code, say};
use crate::plan::{Plan, Streams, Wire};

/// Memory that lines have which wait for their streams, at most; and what each of them takes beside its bytes, with what its key takes.
const WAITING: usize = 16 << 20;
const ASIDE: usize = 256;

/// Results that wait to be written, how many bytes they have at most, and how many bytes of them are written at once.
const RESULTS: usize = 1024;
const RESULT_BYTES: usize = 16 << 20;
const WRITE_AT_ONCE: usize = 64 << 10;

/// How long a stream waits for room in a worker before another one makes some.
const ROOM_AFTER: Duration = Duration::from_millis(100);

/// A message that finds its stream ended begins another one. So many streams may end without having taken it.
const MOST_BEGINNINGS: u32 = 2;

/// A line on its way, with what it takes of the memory for those.
struct Message {
    payload: Bytes,
    _waiting: OwnedSemaphorePermit,
}

/// A result on its way, with what it takes of the memory for those.
struct Written {
    sink: Sink,
    memory: Option<OwnedSemaphorePermit>,
}

/// What sorter, streams, writer and the one who watches them share.
struct Shared {
    state: Mutex<State>,
    /// Something of it has changed that ends the run, or may.
    news: Notify,
}

struct State {
    keys: Keys<Message>,
    /// Tasks of keys that have not ended, and the sorter.
    tasks: usize,
    messages: u64,
    opened: u64,
    written: Tally,
    input_failure: Option<io::Error>,
    output_failure: Option<io::Error>,
    gave_up: Option<String>,
}

struct Run {
    shared: Arc<Shared>,
    manager: StreamManager<Bytes, Vec<u8>, Verbatim>,
    format: Format,
    input: Input,
    wire: Wire,
    streams: Streams,
    /// How long a stream may be silent while something is expected of it.
    timeout: Option<Duration>,
    results: mpsc::Sender<Written>,
    result_memory: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Carries the plan out, and says how it went by its exit code.
///
/// # Errors
/// What keeps it from beginning.
pub(super) async fn run(plan: &Plan, streams: &Streams, signals: &mut Heard) -> Result<u8, CliError> {
    let manager = tokio::select! {
        manager = builder(plan).streams().start() => manager.map_err(|error| cannot_start(&error, &plan.worker))?,
        signal = signals.next() => return Ok(code::by(signal)),
    };
    let progress = Progress::new(plan.progress);
    let shared = Arc::new(Shared::new(streams.most));
    let (results, to_write) = mpsc::channel(RESULTS);
    let writer = start_writer(shared.clone(), to_write, progress.bar()).map_err(CliError::Runtime)?;
    let lines = intake::start(plan.delimiter, plan.max_line).map_err(CliError::Runtime)?;
    let run = Arc::new(Run {
        shared: shared.clone(),
        manager: manager.clone(),
        format: Format::of(plan),
        input: plan.input,
        wire: plan.worker.wire,
        streams: streams.clone(),
        timeout: plan.timeout,
        results,
        result_memory: Arc::new(Semaphore::new(RESULT_BYTES)),
        waiting: Arc::new(Semaphore::new(WAITING)),
    });
    let sorter = tokio::spawn(run.sort(lines)).abort_handle();
    let ending = watch(&shared, &manager, plan, &progress, signals, &sorter).await;
    sorter.abort();
    shared.lock().keys.close();
    let limit = if ending.is_killed { Duration::ZERO } else { LEAVE };
    let last = async {
        manager.shutdown_within(Some(limit)).await;
        // All results were sent once the tasks are over, and with that their channel is.
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
    };
    if ending.is_killed {
        let _ = tokio::time::timeout(LAST_WRITE, last).await;
    } else {
        // A second signal ends this wait as well.
        tokio::select! {
            () = last => {}
            signal = signals.next() => return Ok(code::by(signal)),
        }
    }
    let state = shared.lock();
    Ok(conclude(&state, &progress, manager.info().crashes, ending))
}

/// How it ends.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    /// The exit code, where a signal says what it is.
    code: Option<u8>,
    is_killed: bool,
}

/// Until all streams are over, or it is to end before.
async fn watch(
    shared: &Shared,
    manager: &pm::Pool,
    plan: &Plan,
    progress: &Progress,
    signals: &mut Heard,
    sorter: &AbortHandle,
) -> Ending {
    let mut chaos =
        plan.chaos.map(|interval| tokio::time::interval_at(tokio::time::Instant::now() + interval, interval));
    let mut frames = progress.interval().map(tokio::time::interval);
    let mut random = Random::new();
    let mut ending = Ending::default();
    loop {
        {
            let state = shared.lock();
            if state.output_failure.is_some() || state.gave_up.is_some() {
                return Ending { is_killed: true, ..ending };
            }
            if state.tasks == 0 {
                return ending;
            }
        }
        tokio::select! {
            () = shared.news.notified() => {}
            signal = signals.next() => {
                let code = code::by(signal);
                if ending.code.is_some() {
                    return Ending { is_killed: true, ..ending };
                }
                ending.code = Some(code);
                sorter.abort();
                shared.lock().keys.close();
                say("stopping: streams come to their ends; once more to kill them");
            }
            () = tick(&mut chaos) => manager.chaos(random.next()),
            () = tick(&mut frames) => progress.show(shared.lock().written, None, manager.info().crashes),
        }
    }
}

fn conclude(state: &State, progress: &Progress, lost: u64, ending: Ending) -> u8 {
    if let Some(failure) = &state.output_failure {
        if failure.kind() == io::ErrorKind::BrokenPipe {
            return code::CLOSED;
        }
        say(format_args!("error: standard output cannot be written: {failure}"));
        return code::FAILED;
    }
    progress.end_streams(state.opened, state.messages, state.written, lost);
    if let Some(failure) = &state.input_failure {
        say(format_args!("error: standard input cannot be read: {failure}"));
        return ending.code.unwrap_or(code::FAILED);
    }
    if let Some(cause) = &state.gave_up {
        say(format_args!("error: {cause}"));
        return ending.code.unwrap_or(code::GAVE_UP);
    }
    ending.code.unwrap_or(if state.written.failed == 0 { 0 } else { code::FAILED })
}

impl Shared {
    fn new(places: usize) -> Self {
        let state = State {
            keys: Keys::new(places),
            tasks: 0,
            messages: 0,
            opened: 0,
            written: Tally::default(),
            input_failure: None,
            output_failure: None,
            gave_up: None,
        };
        Shared { state: Mutex::new(state), news: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tally(&mut self, done: u64, failed: u64) {
        self.written.done += done;
        self.written.failed += failed;
    }
}

impl Run {
    /// Brings each line to the task of its key, until there are no more.
    fn sort(self: Arc<Self>, mut lines: mpsc::Receiver<Batch>) -> impl Future<Output = ()> + Send {
        // Counted from here on, so that nobody takes the beginning for the end.
        let sorting = Task::begin(&self.shared);
        async move {
            let mut number = 0;
            while let Some(batch) = lines.recv().await {
                match batch {
                    Ok(lines) => {
                        for line in lines {
                            self.take(number, line).await;
                            number += 1;
                        }
                    }
                    Err(error) => self.shared.lock().input_failure = Some(error),
                }
            }
            self.shared.lock().keys.close();
            drop(sorting);
        }
    }

    async fn take(self: &Arc<Self>, number: u64, line: Line) {
        let found = self.streams.key.of(&line).and_then(|key| Ok((key, payload(&line, self.input, self.wire)?)));
        let (key, payload) = match found {
            Ok(found) => found,
            Err(error) => {
                let mut sink = Sink::default();
                self.format.error(number, &line, &error, &mut sink);
                return self.write(sink, 0, 1).await;
            }
        };
        let size = (payload.len() + ASIDE).min(WAITING) as u32;
        let Ok(waiting) = self.waiting.clone().acquire_many_owned(size).await else { return };
        // What was read together with it is not kept for its sake.
        let message = Message { payload: Bytes::copy_from_slice(&payload), _waiting: waiting };
        let mut state = self.shared.lock();
        state.messages += 1;
        let begun = state.keys.deliver(&key, message);
        drop(state);
        if let Some((key, inbox)) = begun {
            let task = Task::begin(&self.shared);
            let run = self.clone();
            tokio::spawn(async move {
                run.serve(&key, inbox).await;
                drop(task);
            });
        }
    }

    /// Has one stream after another for a key, while there are messages for it: mostly one.
    async fn serve(&self, key: &str, mut inbox: Inbox<Message>) {
        let mut next = None;
        let mut beginnings = 0;
        loop {
            while next.is_none() {
                if self.shared.lock().keys.leave(key) {
                    return;
                }
                match inbox.recv().await {
                    Some(Order::Take(message)) => next = Some(message),
                    // It ended by itself before it knew.
                    Some(Order::End) => {}
                    None => return,
                }
            }
            let was_taken = match self.open(key).await {
                Ok(stream) => {
                    beginnings += 1;
                    self.pass_on(key, stream, &mut next, &mut inbox).await
                }
                Err(error) => {
                    next = None;
                    self.shared.lock().keys.fail(key);
                    self.fail(key, error).await;
                    continue;
                }
            };
            self.shared.lock().keys.ended(key);
            if was_taken {
                beginnings = 0;
            } else if beginnings >= MOST_BEGINNINGS && next.take().is_some() {
                self.shared.lock().keys.took(key);
                let message = format!("{MOST_BEGINNINGS} streams in a row ended without taking this message");
                self.report(key, JobError::untried("not_taken", message)).await;
            }
        }
    }

    /// Takes a place and opens a stream. The place is taken even if this fails.
    async fn open(&self, key: &str) -> Result<Duplex<Bytes, Vec<u8>>, StreamError> {
        let place = self.shared.lock().keys.place();
        if let Some(place) = place {
            // Whoever gives it is here for as long as this is.
            let _ = place.await;
        }
        let mut opening = pin!(self.manager.create_stream_named(key));
        let stream = match tokio::time::timeout(ROOM_AFTER, &mut opening).await {
            Ok(stream) => stream,
            Err(_) => {
                self.shared.lock().keys.find_no_room();
                let stream = opening.await;
                self.shared.lock().keys.need_no_room();
                stream
            }
        }?;
        let mut state = self.shared.lock();
        state.opened += 1;
        state.keys.opened(key);
        Ok(stream)
    }

    /// Sends the messages of a key on a stream, and writes what comes, until the stream is over or has been silent for too long. Whether it took a message; the
    /// one that it has not taken is in `next` still.
    async fn pass_on(
        &self,
        key: &str,
        stream: Duplex<Bytes, Vec<u8>>,
        next: &mut Option<Message>,
        inbox: &mut Inbox<Message>,
    ) -> bool {
        let mut talk = Talk::new(stream);
        let (mut was_taken, mut is_closed) = (false, false);
        let mut patience = Patience::new(self.timeout);
        let mut alarm = Alarm::default();
        loop {
            if is_closed || next.is_some() {
                patience.expect(Instant::now());
            }
            alarm.set(patience.end());
            tokio::select! {
                biased;
                turn = poll_fn(|cx| talk.poll(cx, next.as_ref().map(|message| &message.payload))) => {
                    match turn {
                        Turn::Came(Some(Ok(answer))) => self.answer(key, &answer).await,
                        Turn::Came(Some(Err(error))) => {
                            let is_final = error.is_final();
                            self.fail(key, error).await;
                            if is_final {
                                return was_taken;
                            }
                        }
                        Turn::Came(None) => return was_taken,
                        Turn::Went => {
                            *next = None;
                            was_taken = true;
                            self.shared.lock().keys.took(key);
                        }
                    }
                    patience.heard();
                }
                message = inbox.recv(), if next.is_none() && !is_closed => match message {
                    Some(Order::Take(message)) => *next = Some(message),
                    Some(Order::End) | None => {
                        is_closed = true;
                        talk.end();
                    }
                },
                () = alarm.ring() => {
                    if patience.end().is_some_and(|end| end <= Instant::now()) {
                        talk.cancel();
                        self.report(key, silent(self.timeout.unwrap_or_default(), is_closed)).await;
                        return was_taken;
                    }
                }
            }
        }
    }

    async fn answer(&self, key: &str, answer: &[u8]) {
        let mut sink = Sink::default();
        match self.format.message(key, answer, &mut sink) {
            Ok(()) => self.write(sink, 1, 0).await,
            Err(error) => self.report(key, error).await,
        }
    }

    async fn fail(&self, key: &str, error: StreamError) {
        let error = match error {
            StreamError::Failed(error) if error.kind() == QueryErrorKind::GaveUp => {
                self.shared.lock().gave_up.get_or_insert(error.to_string());
                return self.shared.news.notify_one();
            }
            StreamError::Failed(error) => match Failed::new(error, self.wire) {
                Failed::Lost(error) | Failed::TimedOut(error) | Failed::Error(error) => error,
                // pm itself ends it.
                Failed::NotRun => return,
            },
            StreamError::Sent(error) => match Failed::new(QueryError::Handler(error), self.wire) {
                Failed::Error(error) => error,
                _ => return,
            },
            StreamError::Ended => return,
            error => JobError::untried("stream", error.to_string()),
        };
        self.report(key, error).await;
    }

    async fn report(&self, key: &str, error: JobError) {
        let mut sink = Sink::default();
        self.format.stream_error(key, &error, &mut sink);
        self.write(sink, 0, 1).await;
    }

    /// Has it written. Waits where results are read slowly, and with that the stream.
    async fn write(&self, sink: Sink, done: u64, failed: u64) {
        self.shared.lock().tally(done, failed);
        let size = (sink.out.len() + sink.err.len()).min(RESULT_BYTES) as u32;
        let memory = self.result_memory.clone().acquire_many_owned(size).await.ok();
        // Where they cannot be written the run is about to end.
        let _ = self.results.send(Written { sink, memory }).await;
    }
}

/// Why a stream was cancelled.
fn silent(limit: Duration, is_closed: bool) -> JobError {
    let what = if is_closed {
        "did not end, though nothing more comes for it"
    } else {
        "took none of the lines that wait for it"
    };
    let message =
        format!("the stream was cancelled: it {what}, and said nothing for {limit:?}; --timeout gives it longer");
    JobError::untried("timed_out", message)
}

/// One of those whose ends the run waits for.
struct Task(Arc<Shared>);

impl Task {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.lock().tasks += 1;
        Task(shared.clone())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.lock().tasks -= 1;
        self.0.news.notify_one();
    }
}

/// Starts the thread that writes. It ends with the last of those who send.
fn start_writer(
    shared: Arc<Shared>,
    mut results: mpsc::Receiver<Written>,
    bar: Option<ProgressBar>,
) -> io::Result<JoinHandle<()>> {
    let write = move || {
        while let Some(Written { sink: Sink { mut out, mut err }, memory }) = results.blocking_recv() {
            let mut memory = vec![memory];
            while out.len() < WRITE_AT_ONCE
                && let Ok(more) = results.try_recv()
            {
                out.extend_from_slice(&more.sink.out);
                err.extend_from_slice(&more.sink.err);
                memory.push(more.memory);
            }
            if !err.is_empty() {
                // A closed standard error has nobody to tell.
                let tell = || drop(io::stderr().write_all(&err));
                bar.as_ref().map_or_else(tell, |bar| bar.suspend(tell));
            }
            if let Err(error) = write_results(&Target::Stdout, &out) {
                shared.lock().output_failure = Some(error);
                return shared.news.notify_one();
            }
        }
    };
    std::thread::Builder::new().name("pm-writer".into()).stack_size(256 << 10).spawn(write)
}
