//! What can go wrong with a query, and with the start of a pool.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::CodecError;
use crate::driver::launch::LaunchError;
use crate::machine::cause::ExitCause;
use crate::machine::exit::ExitStatus;
use crate::machine::frame::MAX_PAYLOAD;
use crate::machine::handshake::Mismatch;
use crate::machine::id::WorkerId;
use crate::machine::recycle::BadRecycle;
use crate::machine::retry::POISON;
use crate::machine::scaling::BadAutoscale;
use crate::machine::spec::{BadSpec, ListenAddress};
use crate::machine::stream::Fault;
use crate::transport::TransportError;

/// A query has no result, and this is why. Every query resolves exactly once.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The handler returned an error or panicked, or could not read its input. The worker lives on.
    #[error("{0}")]
    Handler(Box<HandlerError>),
    /// It took too long.
    #[error("it took too long: more than {limit:?}{}{}", on(*.worker), attempts(*.tries))]
    TimedOut {
        /// The time that it had.
        limit: Duration,
        /// The worker that may have begun with it; none where it waited in the queue, or came back from a worker that had not.
        worker: Option<WorkerId>,
        /// How often it was tried.
        tries: u32,
    },
    /// The worker died while it had the query.
    #[error("{0}")]
    WorkerLost(Box<WorkerLost>),
    /// The query was aboard so many dying workers that it is not tried again.
    #[error("poisoned: {POISON} workers died with this query aboard; the last: {}", .0)]
    Poisoned(Box<WorkerLost>),
    /// Workers kept dying, more often than the pool's budget allows, and it gave up. `revive()` begins anew. Where queries may kill their workers, that
    /// is no reason to give up: see `Budget::spare_calls`.
    #[error("the pool {pool:?} gave up, for its workers kept dying (`revive` begins anew; `Budget::spare_calls` counts no death with a query aboard); \
        the last worker: {cause}{}", tail(.stderr))]
    GaveUp {
        /// The name of the pool.
        pool: Arc<str>,
        /// Why the last worker ended.
        cause: ExitCause,
        /// The tail of its standard error.
        stderr: String,
    },
    /// The pool is being shut down, or is gone.
    #[error("the pool {pool:?} is shutting down")]
    ShuttingDown {
        /// The name of the pool.
        pool: Arc<str>,
    },
    /// The pool was told to have no workers, or the worker that was named is gone.
    #[error("the pool {pool:?} has no such worker; `scale` gives it some")]
    NoWorkers {
        /// The name of the pool.
        pool: Arc<str>,
    },
    /// `query_blocking` was called within a runtime, which it would block.
    #[error(
        "query_blocking would block this runtime: await `query` of the pool {pool:?} here, or call it from a thread of its own"
    )]
    OnRuntime {
        /// The name of the pool.
        pool: Arc<str>,
    },
    /// The input could not be encoded.
    #[error("the input cannot be encoded as {codec}: {message}")]
    Encode {
        /// The codec.
        codec: &'static str,
        /// What it said.
        message: String,
    },
    /// The worker's answer could not be decoded.
    #[error("the answer cannot be decoded as {codec}: {message}")]
    Decode {
        /// The codec.
        codec: &'static str,
        /// What it said.
        message: String,
    },
    /// The input is too large for a frame.
    #[error("the input has {size} bytes; a frame takes at most {limit}")]
    TooLarge {
        /// Bytes of the encoded input.
        size: usize,
        /// The limit.
        limit: usize,
    },
}

/// What sort of error a [`QueryError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueryErrorKind {
    /// [`QueryError::Handler`].
    Handler,
    /// [`QueryError::TimedOut`].
    TimedOut,
    /// [`QueryError::WorkerLost`].
    WorkerLost,
    /// [`QueryError::Poisoned`].
    Poisoned,
    /// [`QueryError::GaveUp`].
    GaveUp,
    /// [`QueryError::ShuttingDown`].
    ShuttingDown,
    /// [`QueryError::NoWorkers`].
    NoWorkers,
    /// [`QueryError::OnRuntime`].
    OnRuntime,
    /// [`QueryError::Encode`], [`QueryError::TooLarge`].
    BadInput,
    /// [`QueryError::Decode`].
    BadAnswer,
}

impl QueryError {
    /// What sort of error this is.
    pub fn kind(&self) -> QueryErrorKind {
        match self {
            QueryError::Handler(_) => QueryErrorKind::Handler,
            QueryError::TimedOut { .. } => QueryErrorKind::TimedOut,
            QueryError::WorkerLost(_) => QueryErrorKind::WorkerLost,
            QueryError::Poisoned(_) => QueryErrorKind::Poisoned,
            QueryError::GaveUp { .. } => QueryErrorKind::GaveUp,
            QueryError::ShuttingDown { .. } => QueryErrorKind::ShuttingDown,
            QueryError::NoWorkers { .. } => QueryErrorKind::NoWorkers,
            QueryError::OnRuntime { .. } => QueryErrorKind::OnRuntime,
            QueryError::Encode { .. } | QueryError::TooLarge { .. } => QueryErrorKind::BadInput,
            QueryError::Decode { .. } => QueryErrorKind::BadAnswer,
        }
    }

    /// Whether the same query may well succeed if it is made again.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), QueryErrorKind::WorkerLost | QueryErrorKind::TimedOut)
    }

    /// Whether the handler may have run, wholly or in part.
    pub fn maybe_executed(&self) -> bool {
        match self {
            QueryError::Handler(error) => error.kind != HandlerErrorKind::Decode,
            QueryError::TimedOut { worker, .. } => worker.is_some(),
            QueryError::WorkerLost(_) | QueryError::Poisoned(_) | QueryError::Decode { .. } => true,
            _ => false,
        }
    }

    /// How often the query was tried.
    pub fn tries(&self) -> u32 {
        match self {
            QueryError::Handler(error) => error.tries,
            QueryError::TimedOut { tries, .. } => *tries,
            QueryError::WorkerLost(lost) | QueryError::Poisoned(lost) => lost.tries,
            _ => 0,
        }
    }
}

/// What came of encoding a value into so many bytes: none, or an error of the codec, or one that says that no frame takes them.
pub(super) fn encoded(codec: &'static str, result: Result<(), CodecError>, size: usize) -> Result<(), QueryError> {
    match result {
        Err(error) => Err(QueryError::Encode { codec, message: error.to_string() }),
        Ok(()) if size > MAX_PAYLOAD => Err(QueryError::TooLarge { size, limit: MAX_PAYLOAD }),
        Ok(()) => Ok(()),
    }
}

/// How a handler failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HandlerErrorKind {
    /// It returned or threw an error.
    #[default]
    Error,
    /// It panicked.
    Panic,
    /// It never ran: its input could not be decoded.
    Decode,
}

/// The error of a handler, as it came from the worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerError {
    /// How it failed.
    #[serde(default)]
    pub kind: HandlerErrorKind,
    /// The name of the error's type, in the worker's language.
    #[serde(rename = "type", default)]
    pub type_name: String,
    /// Its message.
    #[serde(default)]
    pub message: String,
    /// Where it came from: a stack trace, the location of a panic, or the chain of sources. May be empty.
    #[serde(default)]
    pub trace: String,
    /// How often the query was tried.
    #[serde(skip)]
    pub tries: u32,
}

/// Most programs that end before READY are plain programs; a worker that cannot serve what it was started for ends with 64, and has said why.
fn other_ways(cause: &ExitCause) -> &'static str {
    match cause {
        ExitCause::Exited(ExitStatus::Code(64)) => "",
        _ => {
            ". A program that does not speak the protocol is run over a transport of `pm::foreign`, which may wait for what `ready_on` says; in a shell by `pm pool -- PROGRAM {}` or \
             `pm pool --as filter -- PROGRAM`"
        }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            // Of a text that is an error the type says nothing.
            HandlerErrorKind::Error if matches!(&*self.type_name, "" | "alloc::string::String" | "&str") => {
                f.write_str(&self.message)?;
            }
            HandlerErrorKind::Error => write!(f, "{}: {}", self.type_name, self.message)?,
            HandlerErrorKind::Panic => write!(f, "the handler panicked: {}", self.message)?,
            HandlerErrorKind::Decode => write!(f, "the worker cannot decode the input: {}", self.message)?,
        }
        f.write_str(&attempts(self.tries))
    }
}

/// The most characters that each text of a handler's error takes along.
const MAX_TEXT: usize = 64 << 10;

impl HandlerError {
    /// As it stands in a frame. Its texts are cut, so that it fits into one.
    pub fn to_payload(&self) -> Vec<u8> {
        let cut = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
        let is_long = [&self.type_name, &self.message, &self.trace].iter().any(|text| text.len() > MAX_TEXT);
        let short = is_long.then(|| HandlerError {
            type_name: cut(&self.type_name),
            message: cut(&self.message),
            trace: cut(&self.trace),
            ..self.clone()
        });
        serde_json::to_vec(short.as_ref().unwrap_or(self)).unwrap_or_default()
    }
}

impl std::error::Error for HandlerError {}

/// A worker died with a query aboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerLost {
    /// Which worker.
    pub worker: WorkerId,
    /// Its process.
    pub pid: u32,
    /// Why it ended.
    pub cause: ExitCause,
    /// The tail of its standard error, which other calls may have written to as well. `Display` gives the last three lines of it.
    pub stderr: String,
    /// The last notice that it sent.
    pub last_notice: Option<String>,
    /// What the query was about.
    pub input: String,
    /// How often the query was tried.
    pub tries: u32,
}

impl fmt::Display for WorkerLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} (pid {}) was lost: {}; its input: {}", self.worker, self.pid, self.cause, self.input)?;
        if let Some(notice) = &self.last_notice {
            write!(f, "; its last notice: {notice}")?;
        }
        f.write_str(&last_words(&self.stderr))?;
        f.write_str(&attempts(self.tries))
    }
}

/// A query that could not be taken now. It gives the input back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TryQueryError<I> {
    /// Every worker has what it should have, and the queue is full.
    #[error("every worker is busy and the queue is full")]
    Full(I),
    /// The query was taken, and failed.
    #[error(transparent)]
    Failed(#[from] QueryError),
}

/// What goes wrong on a stream.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream has ended, or its peer reads no more: nothing can be written, and no call is answered.
    #[error("the stream has ended")]
    Ended,
    /// The peer sent an error, and the stream goes on. Or it is the answer to a call.
    #[error("{0}")]
    Sent(Box<HandlerError>),
    /// The peer took a call and did not answer it.
    #[error("the call was left without an answer")]
    Unanswered,
    /// The peer did what no honest one does. The stream is over; the worker and its other streams live on.
    #[error("the peer broke the rules of the stream: {0}")]
    Fault(Fault),
    /// As a query fails: the handler returned an error or panicked, the worker was lost, the pool is shutting down, a message cannot be encoded or decoded.
    #[error(transparent)]
    Failed(#[from] QueryError),
}

impl StreamError {
    /// Whether the stream is over.
    pub fn is_final(&self) -> bool {
        match self {
            StreamError::Sent(_) | StreamError::Unanswered => false,
            StreamError::Failed(error) => !matches!(error.kind(), QueryErrorKind::BadInput | QueryErrorKind::BadAnswer),
            StreamError::Ended | StreamError::Fault(_) => true,
        }
    }

    /// How the stream failed, where it failed as a query does.
    pub fn failed(&self) -> Option<&QueryError> {
        match self {
            StreamError::Failed(error) => Some(error),
            _ => None,
        }
    }
}

/// A pool could not be started.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The process could not be made.
    #[error(transparent)]
    Launch(Arc<LaunchError>),
    /// The link could not be made.
    #[error(transparent)]
    Transport(Arc<TransportError>),
    /// The worker is no worker, or does not fit.
    #[error("bad handshake: {mismatch}{}", tail(.stderr))]
    Handshake {
        /// What does not fit.
        mismatch: Mismatch,
        /// The tail of its standard error.
        stderr: String,
    },
    /// The worker ended before it was ready.
    #[error(
        "the worker ended before it said READY: {cause}{}{}",
        tail(.stderr),
        other_ways(.cause)
    )]
    Died {
        /// Why.
        cause: ExitCause,
        /// The tail of its standard error.
        stderr: String,
    },
    /// The Spec is wrong.
    #[error(transparent)]
    Spec(#[from] BadSpec),
    /// An address cannot be listened on: most often another process does.
    #[error("cannot listen on {address}: {source}{}", another(source))]
    Listen {
        /// The address.
        address: ListenAddress,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// A setting makes no sense.
    #[error("{setting} is {value}: {why}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would make sense.
        why: &'static str,
    },
    /// The settings of its autoscaling make no sense.
    #[error("autoscaling {0}")]
    Autoscale(#[from] BadAutoscale),
    /// A setting of its recycling makes no sense.
    #[error(transparent)]
    Recycle(#[from] BadRecycle),
    /// The pool was shut down before it had started.
    #[error("the pool was shut down before it had started")]
    ShuttingDown,
}

impl From<LaunchError> for StartError {
    fn from(error: LaunchError) -> Self {
        StartError::Launch(Arc::new(error))
    }
}

impl From<TransportError> for StartError {
    fn from(error: TransportError) -> Self {
        StartError::Transport(Arc::new(error))
    }
}

fn on(worker: Option<WorkerId>) -> String {
    worker.map_or_else(|| " (no worker had begun with it)".to_string(), |worker| format!(" (worker {worker})"))
}

fn attempts(tries: u32) -> String {
    if tries > 1 { format!(" (after {tries} tries)") } else { String::new() }
}

/// What to do about an address that cannot be had.
/// What to do where an address cannot be listened on.
pub(super) fn another(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; end that process, or choose another address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need privileges, and a path a directory that may be written to"
        }
        io::ErrorKind::NotFound => "; create its directory",
        _ => "",
    }
}

/// The last lines alone: what is above them may be about other calls.
fn last_words(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut words = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    if words.len() > LAST_BYTES {
        let from = words.ceil_char_boundary(words.len() - LAST_BYTES);
        words.replace_range(..from, "…");
    }
    tail(&words)
}

/// How much of what a lost worker said stands in the text of an error. All of it is in [`WorkerLost::stderr`].
const LAST_LINES: usize = 3;
const LAST_BYTES: usize = 400;

pub(super) fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; its last output: {}", stderr.trim_end()) }
}
