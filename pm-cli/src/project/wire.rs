//! What passes over the socket of a project: one question in JSON on a line, and one or more answers, each on a line.

use std::io;
use std::time::Duration;

use pm::ExitStatus;
use pm::core::units::rounded;
use pm::service::{Condition, Event, Gauge, Happening, Info, Measured, ProbeInfo, Sample, State, Stopped};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use super::reload::Reloaded;

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
    Output { last_bytes: u64 },
    /// Answered by [`Answer::Reloaded`] as soon as it is decided what comes and goes, or [`Answer::Refused`].
    Reload,
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
    Reloaded(Reloaded),
    /// The file of the project cannot be used, and nothing was changed.
    Refused {
        message: String,
    },
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
    /// What its health probe says.
    #[serde(default)]
    pub readiness: Option<ProbeRow>,
    /// What its liveness probe says.
    #[serde(default)]
    pub liveness: Option<ProbeRow>,
    /// What was measured last, where it has `metrics`.
    #[serde(default)]
    pub metrics: Option<MetricsRow>,
}

/// What a probe says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Whether the last answer was a success; none before the first.
    pub ok: Option<bool>,
    /// What the last answer said, where it was none.
    pub said: Option<String>,
    /// The time since then.
    pub ago_ms: Option<u64>,
    /// How many of the last answers were failures.
    pub failures: u32,
    /// The time until the next question; none while it is asked, and where it is not asked any more.
    pub next_ms: Option<u64>,
}

impl From<ProbeInfo> for ProbeRow {
    fn from(probe: ProbeInfo) -> Self {
        ProbeRow {
            ok: probe.last.as_ref().map(|last| last.result.is_ok()),
            ago_ms: probe.last.as_ref().map(|last| millis(last.ago)),
            said: probe.last.and_then(|last| last.result.err()),
            failures: probe.failures,
            next_ms: probe.next_in.map(millis),
        }
    }
}

/// What a process and all that it has started used when that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Processor time since the sample before, in hundredths of one core.
    pub cpu_percent: f64,
    /// Bytes that are resident.
    pub rss_bytes: u64,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Open descriptors.
    pub fds: u32,
    /// How long the process had lived.
    pub uptime_ms: u64,
    /// The time since it was measured.
    #[serde(default)]
    pub ago_ms: u64,
}

impl From<Measured> for MetricsRow {
    fn from(measured: Measured) -> Self {
        MetricsRow { ago_ms: millis(measured.ago), ..measured.sample.into() }
    }
}

impl From<Sample> for MetricsRow {
    fn from(sample: Sample) -> Self {
        MetricsRow {
            // To a tenth: the kernel counts in hundredths of a second.
            cpu_percent: (sample.cpu_percent() * 10.0).round() / 10.0,
            rss_bytes: sample.usage.rss_bytes,
            processes: sample.usage.processes,
            threads: sample.usage.threads,
            fds: sample.usage.fds,
            uptime_ms: millis(sample.uptime),
            ago_ms: 0,
        }
    }
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
            readiness: info.readiness.map(Into::into),
            liveness: info.liveness.map(Into::into),
            metrics: info.metrics.map(Into::into),
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
    /// What was measured, where that is the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsRow>,
}

impl EventRow {
    /// Whether it is a sample: they come without end, and people look at the last one.
    pub fn is_sample(&self) -> bool {
        self.event == "metrics"
    }
}

impl From<&Happening> for EventRow {
    fn from(happening: &Happening) -> Self {
        let pid = match &happening.event {
            Event::Started { pid, .. } | Event::Adopted { pid, .. } | Event::Left { pid } => Some(*pid),
            Event::Unkillable { pid } => *pid,
            _ => None,
        };
        EventRow {
            time: humantime::format_rfc3339_millis(happening.at).to_string(),
            service: happening.label.to_string(),
            event: word(&happening.event).into(),
            text: text(&happening.event),
            pid,
            metrics: match &happening.event {
                Event::Metrics { sample } => Some((*sample).into()),
                _ => None,
            },
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
        Event::Adopted { .. } => "adopted",
        Event::Left { .. } => "left",
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
        Event::Metrics { .. } => "metrics",
        Event::UsageHigh { .. } => "usage_high",
        Event::UsageNormal { .. } => "usage_normal",
        Event::PortTaken(_) => "port_taken",
        Event::Changed { .. } => "changed",
        Event::Note { .. } => "note",
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
        Event::Left { pid } => format!("left running (pid {pid}); the next pm up takes it over"),
        Event::Adopted { pid, lived } => format!("taken over (pid {pid}, up for {})", rounded(*lived)),
        Event::Running => "running".into(),
        Event::Healthy { after } => format!("healthy after {}", rounded(*after)),
        Event::Unhealthy { reason } => format!("unhealthy: {reason}"),
        Event::Stopping { cause: pm::ExitCause::Requested } => "stopping".into(),
        Event::Stopping { cause } => format!("stopping: {cause}"),
        Event::Stopped { status: None } => "stopped".into(),
        Event::Stopped { status: Some(status) } => format!("stopped ({status})"),
        Event::Completed { status, restart: None } => format!("completed ({status})"),
        Event::Completed { status, restart: Some(after) } => {
            format!("completed ({status}); starts again in {}", rounded(*after))
        }
        Event::Crashed { cause, lived, restart, restarts, max } => {
            let lived = match cause {
                pm::ExitCause::NotStarted { .. } | pm::ExitCause::NotReady { .. } => String::new(),
                _ => format!(" after {}", rounded(*lived)),
            };
            let next = match (restart, max) {
                (None, _) => String::new(),
                (Some(after), Some(max)) => format!("; restart {restarts} of {max} in {}", rounded(*after)),
                (Some(after), None) => format!("; restarts in {}", rounded(*after)),
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
        Event::Metrics { sample } => usage(&(*sample).into()),
        Event::UsageHigh { gauge, value, above } => {
            format!("high {}: {}, above {}", what(*gauge), amount(*gauge, *value), amount(*gauge, *above))
        }
        Event::UsageNormal { gauge, value, above } => {
            format!(
                "normal {} again: {}; the threshold is {}",
                what(*gauge),
                amount(*gauge, *value),
                amount(*gauge, *above)
            )
        }
        Event::PortTaken(taken) => taken.to_string(),
        Event::Changed { what } => format!("restart: {what} changed"),
        Event::Note { text } => text.clone(),
        Event::Removed => "removed".into(),
        other => format!("{other:?}"),
    }
}

/// A gauge in words for people.
fn what(gauge: Gauge) -> &'static str {
    match gauge {
        Gauge::Cpu => "CPU",
        Gauge::Rss => "memory",
        Gauge::Fds => "number of descriptors",
    }
}

/// The value of a gauge with its unit.
fn amount(gauge: Gauge, value: u64) -> String {
    match gauge {
        Gauge::Cpu => format!("{value} %"),
        Gauge::Rss => memory(value),
        Gauge::Fds => value.to_string(),
    }
}

/// A sample in words for people.
pub fn usage(sample: &MetricsRow) -> String {
    let MetricsRow { cpu_percent, rss_bytes, processes, threads, fds, .. } = sample;
    let memory = memory(*rss_bytes);
    format!("{cpu_percent:.1} % CPU, {memory}, {processes} processes, {threads} threads, {fds} fds")
}

/// Memory for people.
pub fn memory(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
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
