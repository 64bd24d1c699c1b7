//! The words about services: what they need of each other, what state one is in, what happened to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::cause::ExitCause;
use super::exit::ExitStatus;
use super::id::Incarnation;
use super::metrics::{Gauge, Metrics, Sample};
use super::probe::Timing;
use super::restart::Restart;

/// One process of a service, from its first start until it is removed. A service with several replicas has as many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// What a process of a service is called: the name of the service, with the number of the replica where it is not the first.
pub fn label(name: &str, replica: u32) -> String {
    if replica == 1 { name.into() } else { format!("{name}#{replica}") }
}

/// What another service must have come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Its process was made.
    Started,
    /// It has lived for a second, or is ready.
    Running,
    /// Its readiness probe has passed, and it is well now.
    #[default]
    Healthy,
    /// It printed the line that says that it is ready.
    LogReady,
    /// It has ended, however that was.
    Completed,
    /// It has ended with an exit code that is a success.
    CompletedSuccessfully,
}

impl Condition {
    /// All of them.
    pub const ALL: [Condition; 6] = [
        Condition::Started,
        Condition::Running,
        Condition::Healthy,
        Condition::LogReady,
        Condition::Completed,
        Condition::CompletedSuccessfully,
    ];

    /// The word for it in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Condition::Started => "started",
            Condition::Running => "running",
            Condition::Healthy => "healthy",
            Condition::LogReady => "log_ready",
            Condition::Completed => "completed",
            Condition::CompletedSuccessfully => "completed_successfully",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that is no condition.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no condition: write started, running, healthy, log_ready, completed or completed_successfully")]
pub struct UnknownCondition(pub String);

/// The words of [`Condition::name`], with `_` or `-`.
impl FromStr for Condition {
    type Err = UnknownCondition;

    fn from_str(text: &str) -> Result<Self, UnknownCondition> {
        let word = text.replace('-', "_");
        Condition::ALL.into_iter().find(|one| one.name() == word).ok_or_else(|| UnknownCondition(text.to_owned()))
    }
}

/// What a service needs of another one before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The other one.
    pub on: String,
    /// What it must have come to.
    pub condition: Condition,
    /// Whether this service is started anew whenever the other one is.
    pub restart: bool,
}

impl Need {
    /// The other one must be in this condition; its restarts do not matter.
    pub fn new(on: impl Into<String>, condition: Condition) -> Self {
        Need { on: on.into(), condition, restart: false }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.on, self.condition)
    }
}

/// How it is known that a service is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// By nothing: it is as ready as its process exists.
    #[default]
    Spawned,
    /// It says so itself: by a line that it prints, or by sd_notify(3).
    Told {
        /// Whether a line says it, which is what [`Condition::LogReady`] asks for.
        by_line: bool,
    },
    /// It is asked, and goes on being asked whether it is well.
    Asked(Timing),
}

/// What the machines have to know of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What must be so before it starts.
    pub needs: Vec<Need>,
    /// How it is known that it is ready.
    pub readiness: Readiness,
    /// What has not become ready by then has failed. Never a limit to its life: 60 s by default.
    pub start_limit: Duration,
    /// Whether it is started anew when its readiness probe says that it is not well any more.
    pub restart_unhealthy: bool,
    /// A second probe, from when it is ready on. When it fails the service is started anew.
    pub liveness: Option<Timing>,
    /// It must say within this time, again and again, that it lives (WATCHDOG=1 of sd_notify(3)); or it is started anew.
    pub watchdog: Option<Duration>,
    /// How often it is measured what it uses; never by default.
    pub metrics: Option<Metrics>,
    /// What follows from its end.
    pub restart: Restart,
    /// From the signal that asks it to stop to the kill: 10 s by default.
    pub stop_limit: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            needs: Vec::new(),
            readiness: Readiness::Spawned,
            start_limit: Duration::from_secs(60),
            restart_unhealthy: false,
            liveness: None,
            watchdog: None,
            metrics: None,
            restart: Restart::default(),
            stop_limit: Duration::from_secs(10),
        }
    }
}

/// What a service is doing, in one word.
///
/// | state | its unit ([`unit::Phase`](super::unit::Phase)) | means |
/// |---|---|---|
/// | `Idle` | Idle | it was never started |
/// | `Waiting` | Idle or Down | what it needs is not there yet |
/// | `Starting` | Starting, or Ready for less than a second | its process is being made, or is not ready |
/// | `Running` | Ready | it lives, and has no probe |
/// | `Healthy` | Ready | its readiness probe has passed |
/// | `Unhealthy` | Ready | its readiness probe fails, after it had passed |
/// | `Stopping` | Draining or Stopping | it was asked to end |
/// | `Stopped` | Down | it has ended on request |
/// | `Completed` | Down | it has ended by itself, with a success |
/// | `Failed` | Down | it has ended otherwise, or could not be started |
/// | `Backoff` | Backoff | it will be started again |
/// | `GaveUp` | Down | it has ended once too often |
/// | `Skipped` | Idle or Down | what it needs can no longer be |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the table above says what each means")]
pub enum State {
    Idle,
    Waiting,
    Starting,
    Running,
    Healthy,
    Unhealthy,
    Stopping,
    Stopped,
    Completed,
    Failed,
    Backoff,
    GaveUp,
    Skipped,
}

impl State {
    /// Whether it has a process, or is about to have one.
    pub const fn is_up(self) -> bool {
        matches!(
            self,
            State::Starting | State::Running | State::Healthy | State::Unhealthy | State::Stopping | State::Backoff
        )
    }

    /// Whether nothing will happen to it until somebody asks for it.
    pub const fn is_over(self) -> bool {
        !self.is_up() && !matches!(self, State::Waiting)
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Running => "running",
            State::Healthy => "healthy",
            State::Unhealthy => "unhealthy",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Completed => "completed",
            State::Failed => "failed",
            State::Backoff => "backoff",
            State::GaveUp => "gave up",
            State::Skipped => "skipped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Who holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortHolder {
    /// A process that has it open; none where it may not be looked at.
    pub pid: Option<u32>,
    /// What that process calls itself.
    pub command: Option<String>,
    /// The service that it is of, where it is one of the same orchestrator.
    pub service: Option<String>,
    /// The user who opened it.
    pub uid: Option<u32>,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.uid) {
            (Some(pid), _) => write!(f, "process {pid}")?,
            (None, Some(uid)) => write!(f, "a process of user {uid} that cannot be looked at")?,
            (None, None) => f.write_str("a process that cannot be looked at")?,
        }
        if let Some(command) = &self.command {
            write!(f, " ({command})")?;
        }
        if let Some(service) = &self.service {
            write!(f, " of the service {service}")?;
        }
        Ok(())
    }
}

/// Somebody else holds the port that a service is probed at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTaken {
    /// The port.
    pub port: u16,
    /// Who holds it.
    pub by: PortHolder,
    /// It was so before the service started, so that its probe may be answered by somebody else. Otherwise it was so when the service had ended.
    pub before_start: bool,
}

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} is held by {}", self.port, self.by)?;
        if self.before_start { f.write_str(", who may answer its probe") } else { Ok(()) }
    }
}

/// Something that happened to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It is to start as soon as what it needs is there.
    Waiting {
        /// What it waits for.
        reason: String,
    },
    /// What it needs can no longer be, so it is not started.
    Skipped {
        /// What is missing, and why.
        reason: String,
    },
    /// Its process is being made.
    Starting {
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// Its process was made.
    Started {
        /// Which life of it.
        incarnation: Incarnation,
        /// Its process.
        pid: u32,
    },
    /// It has outlived the manager that started it, and is this one's from here on.
    Adopted {
        /// Its process.
        pid: u32,
        /// How long that has lived.
        lived: Duration,
    },
    /// Its process lives on, and is not this manager's any more.
    Left {
        /// Its process.
        pid: u32,
    },
    /// It has lived for a second, or is ready.
    Running,
    /// Its readiness probe passed: for the first time in this life, or again.
    Healthy {
        /// From the start of the process to the answer that said so.
        after: Duration,
    },
    /// Its readiness probe failed so often that it is not well any more.
    Unhealthy {
        /// What the probe said last.
        reason: String,
    },
    /// It was asked to end.
    Stopping {
        /// Why.
        cause: ExitCause,
    },
    /// It has ended on request.
    Stopped {
        /// How; none where there was no process.
        status: Option<ExitStatus>,
    },
    /// It has ended by itself, with a success.
    Completed {
        /// How.
        status: ExitStatus,
        /// The delay to its next start, where one follows.
        restart: Option<Duration>,
    },
    /// It has ended otherwise, or could not be started.
    Crashed {
        /// Why.
        cause: ExitCause,
        /// How long it lived.
        lived: Duration,
        /// The delay to its next start, where one follows.
        restart: Option<Duration>,
        /// How many restarts count against the limit.
        restarts: usize,
        /// The limit; none is no end.
        max: Option<u32>,
    },
    /// Its process was made again after an end.
    Restarted {
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// It has ended more often than its restart policy allows.
    GaveUp {
        /// How many restarts there were in the window.
        restarts: usize,
    },
    /// It was killed and is still there.
    Unkillable {
        /// Its process.
        pid: Option<u32>,
    },
    /// Processes that it had started outlived it, and were killed: 32 of them at most.
    Swept {
        /// Their numbers.
        pids: Vec<u32>,
    },
    /// What follows from an event, as the program or its configuration says, has failed.
    HookFailed {
        /// Which.
        hook: &'static str,
        /// Why.
        error: String,
    },
    /// Lines of its log could not be written. It is said once, and again when there are more after some that could.
    LogLost {
        /// What the kernel said.
        error: String,
    },
    /// It says what it is doing (STATUS= of sd_notify(3)).
    Status {
        /// What it says.
        text: String,
    },
    /// It was measured what it uses.
    Metrics {
        /// What that is.
        sample: Sample,
    },
    /// What it uses has become more than its threshold. It is said once, until it is normal again or another life begins.
    UsageHigh {
        /// Of what.
        gauge: Gauge,
        /// How much, in the unit of the gauge.
        value: u64,
        /// The threshold.
        above: u64,
    },
    /// What it uses was more than its threshold, and is less than 90 % of that now.
    UsageNormal {
        /// Of what.
        gauge: Gauge,
        /// How much, in the unit of the gauge.
        value: u64,
        /// The threshold.
        above: u64,
    },
    /// Somebody else holds the port that its probe asks: said before it starts, or before it is said that it has failed.
    PortTaken(PortTaken),
    /// It is started anew, because something that it is made of has changed.
    Changed {
        /// What.
        what: String,
    },
    /// Something that the program that keeps it has to say of it.
    Note {
        /// What it says.
        text: String,
    },
    /// It does not exist any more.
    Removed,
}

/// Whether a [`Condition`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Holds,
    /// It may hold later. The text says what is so now.
    NotYet(String),
    /// It cannot, unless somebody intervenes. The text says why.
    Never(String),
}
