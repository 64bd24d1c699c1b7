//! What passes over the socket of a project: one question in JSON on a line, and one or more answers, each on a line.

use std::io;
use std::time::Duration;

use pm::ExitStatus;
use pm::service::{Condition, Event, Happening, Info, State, Stopped};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

/// The longest question, in bytes.
pub const LONGEST_QUESTION: u64 = 256 << 10;

/// The longest answer, in bytes: the list of some thousands of services.
pub const LONGEST_ANSWER: u64 = 64 << 20;

/// What is asked of a project.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the commands and their options")]
pub enum Question {
    /// Answered by [`Answer::Services`].
    Ps,
    /// Answered by [`Answer::Done`] when they are up, or [`Answer::Failed`]. Without names: all that are not disabled.
    Start { names: Vec<String>, no_deps: bool },
    /// Answered by [`Answer::Stopped`].
    Stop { names: Vec<String>, limit_ms: Option<u64> },
    /// Answered by [`Answer::Done`] when they are up.
    Restart { names: Vec<String> },
    /// Answered by [`Answer::Done`] when they are up.
    Scale { name: String, replicas: u32 },
    /// Answered by [`Answer::Stopped`]; the project ends.
    Down { limit_ms: Option<u64> },
    /// Answered by [`Answer::Done`] when all are in the condition. Without one: healthy, running or completed with success, whichever they can come to.
    Wait { names: Vec<String>, condition: Option<String> },
    /// Answered by an [`Answer::Event`] for each, without end.
    Events,
    /// Answered by an [`Answer::Output`] for each piece of what they print, without end, and before that for the end of the log of each, of about
    /// so many bytes. Without names: of all.
    Output { names: Vec<String>, last_bytes: u64 },
    /// Answered by [`Answer::Attached`], and from there on by frames ([`attach::frame`](super::attach::frame)) both ways.
    Attach { label: String },
    /// Answered by [`Answer::Done`].
    Signal { names: Vec<String>, signal: i32 },
}

/// What a project answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Answer {
    Done,
    Services {
        services: Vec<Row>,
    },
    Stopped {
        stopped: Vec<StoppedRow>,
    },
    Event(EventRow),
    Output(OutputRow),
    /// Frames follow.
    Attached {
        is_terminal: bool,
        takes_input: bool,
    },
    /// It could not be done.
    Failed {
        message: String,
    },
}

/// One process of a service, in `pm ps --json` as well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The name, with the number of the replica where it is not the first.
    pub service: String,
    /// The name alone, by which it is started and stopped.
    #[serde(default)]
    pub name: String,
    /// Its state, in one word.
    pub state: String,
    /// Why, where that needs words.
    pub why: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started again by itself.
    pub restarts: u64,
    /// How long it has lived, or had when it ended.
    pub lived_ms: u64,
    /// The exit code of its last process.
    pub exit_code: Option<i32>,
    /// The signal that killed its last process.
    pub signal: Option<String>,
    /// What it says that it is doing.
    pub status: Option<String>,
    /// Bytes that its process has resident.
    pub rss_bytes: Option<u64>,
    /// The processor time that its process has had.
    pub cpu_ms: Option<u64>,
}

impl From<Info> for Row {
    fn from(info: Info) -> Self {
        let usage = info.pid.and_then(pm::service::usage_of);
        Row {
            service: info.label.to_string(),
            name: info.name,
            state: info.state.name().into(),
            why: info.why,
            pid: info.pid,
            restarts: info.restarts,
            lived_ms: millis(info.lived),
            exit_code: info.exit.and_then(ExitStatus::code),
            signal: info.exit.and_then(ExitStatus::signal).map(|signal| signal.to_string()),
            status: info.status,
            rss_bytes: usage.map(|usage| usage.rss_bytes),
            cpu_ms: usage.map(|usage| millis(usage.cpu)),
        }
    }
}

/// How a process of a service ended on request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoppedRow {
    /// The name, with the number of the replica where it is not the first.
    pub service: String,
    /// The whole of it in words.
    pub text: String,
    /// Nothing had to be killed.
    pub clean: bool,
    /// It did not stop in time.
    pub killed: bool,
    /// What it left behind, which was killed.
    pub swept: Vec<u32>,
    /// What could not be killed.
    pub survivors: Vec<u32>,
}

impl From<Stopped> for StoppedRow {
    fn from(stopped: Stopped) -> Self {
        StoppedRow {
            service: stopped.label.to_string(),
            text: stopped.to_string(),
            clean: stopped.is_clean(),
            killed: stopped.was_killed,
            swept: stopped.swept,
            survivors: stopped.survivors,
        }
    }
}

/// Something that happened, in `pm events --json` as well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventRow {
    /// When, as in RFC 3339.
    pub time: String,
    /// The name, with the number of the replica where it is not the first.
    pub service: String,
    /// What, in one word.
    pub event: String,
    /// What, in words for people.
    pub text: String,
    /// Its process, where the event has one.
    pub pid: Option<u32>,
}

impl From<&Happening> for EventRow {
    fn from(happening: &Happening) -> Self {
        let pid = match &happening.event {
            Event::Started { pid, .. } => Some(*pid),
            Event::Unkillable { pid } => *pid,
            _ => None,
        };
        EventRow {
            time: humantime::format_rfc3339_millis(happening.at).to_string(),
            service: happening.label.to_string(),
            event: word(&happening.event).into(),
            text: text(&happening.event),
            pid,
        }
    }
}

/// What a service printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRow {
    /// The name, with the number of the replica where it is not the first. Empty where something was missed and nobody knows of whom.
    pub service: String,
    /// It went to standard error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_stderr: bool,
    /// Lines, each with its line break; or a part of one that is too long, without. What is no UTF-8 is replaced.
    pub text: String,
    /// So many lines that went before these were dropped, because whoever reads was too slow.
    #[serde(default)]
    pub missed: u64,
}

/// An event in one word.
fn word(event: &Event) -> &'static str {
    match event {
        Event::Waiting { .. } => "waiting",
        Event::Skipped { .. } => "skipped",
        Event::Starting { .. } => "starting",
        Event::Started { .. } => "started",
        Event::Running => "running",
        Event::Healthy { .. } => "healthy",
        Event::Unhealthy { .. } => "unhealthy",
        Event::Stopping { .. } => "stopping",
        Event::Stopped { .. } => "stopped",
        Event::Completed { .. } => "completed",
        Event::Crashed { .. } => "crashed",
        Event::Restarted { .. } => "restarted",
        Event::GaveUp { .. } => "gave_up",
        Event::Unkillable { .. } => "unkillable",
        Event::Swept { .. } => "swept",
        Event::HookFailed { .. } => "hook_failed",
        Event::LogLost { .. } => "log_lost",
        Event::Status { .. } => "status",
        Event::Removed => "removed",
        _ => "other",
    }
}

/// An event in words for people.
pub fn text(event: &Event) -> String {
    match event {
        Event::Waiting { reason } => format!("waiting: {reason}"),
        Event::Skipped { reason } => format!("skipped: {reason}"),
        Event::Starting { .. } => "starting".into(),
        Event::Started { pid, .. } => format!("started (pid {pid})"),
        Event::Running => "running".into(),
        Event::Healthy { after } => format!("healthy after {}", seconds(*after)),
        Event::Unhealthy { reason } => format!("unhealthy: {reason}"),
        Event::Stopping { cause: pm::ExitCause::Requested } => "stopping".into(),
        Event::Stopping { cause } => format!("stopping: {cause}"),
        Event::Stopped { status: None } => "stopped".into(),
        Event::Stopped { status: Some(status) } => format!("stopped ({status})"),
        Event::Completed { status, restart: None } => format!("completed ({status})"),
        Event::Completed { status, restart: Some(after) } => {
            format!("completed ({status}); starts again in {}", seconds(*after))
        }
        Event::Crashed { cause, lived, restart, restarts, max } => {
            let lived = match cause {
                pm::ExitCause::NotStarted { .. } => String::new(),
                _ => format!(" after {}", seconds(*lived)),
            };
            let next = match (restart, max) {
                (None, _) => String::new(),
                (Some(after), Some(max)) => format!("; restart {restarts} of {max} in {}", seconds(*after)),
                (Some(after), None) => format!("; restarts in {}", seconds(*after)),
            };
            format!("failed: {cause}{lived}{next}")
        }
        Event::Restarted { incarnation } => format!("restarted (life {incarnation})"),
        Event::GaveUp { restarts } => format!("gave up after {restarts} restarts"),
        Event::Unkillable { pid: Some(pid) } => format!("process {pid} was killed and is still there"),
        Event::Unkillable { pid: None } => "was killed and is still there".into(),
        Event::Swept { pids } => {
            let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
            format!("left processes behind, which were killed: {}", pids.join(", "))
        }
        Event::HookFailed { hook, error } => format!("its hook for {hook} failed: {error}"),
        Event::LogLost { error } => format!("its log cannot be written, and lines are lost: {error}"),
        Event::Status { text } => format!("says: {text}"),
        Event::Removed => "removed".into(),
        other => format!("{other:?}"),
    }
}

/// A time for people.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..10.0 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// Milliseconds, for JSON.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a service can come to where nothing else is asked: healthy where something says when it is, otherwise running; or completed with success.
pub fn usual(readiness_is_told: bool) -> Condition {
    if readiness_is_told { Condition::Healthy } else { Condition::Running }
}

/// Whether a service in this state will not do anything any more, and that is not what it was started for.
pub fn is_bad_end(state: State) -> bool {
    matches!(state, State::Failed | State::GaveUp | State::Skipped)
}

/// Reads one message. None at the end.
///
/// # Errors
/// What the kernel says, and what is no such message.
pub async fn read<T: for<'de> Deserialize<'de>>(
    from: &mut (impl tokio::io::AsyncBufRead + Unpin),
    longest: u64,
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let count = from.take(longest).read_until(b'\n', &mut line).await?;
    if count == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is cut off, or too long"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Writes one message.
///
/// # Errors
/// What the kernel says.
pub async fn write(to: &mut (impl tokio::io::AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}
