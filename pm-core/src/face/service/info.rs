//! What is told of services.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::machine::exit::ExitStatus;
use crate::machine::id::Incarnation;
use crate::machine::metrics::Sample;
use crate::machine::service::{Event, ServiceId, State};

/// One process of a service, as it is now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// Which process of all.
    pub id: ServiceId,
    /// The service.
    pub name: String,
    /// The name, with the number of the replica where it is not the first.
    pub label: Arc<str>,
    /// Which replica, from 1.
    pub replica: u32,
    /// What it is doing.
    pub state: State,
    /// Why, where that needs words.
    pub why: Option<String>,
    /// Its process, where it has one.
    pub pid: Option<u32>,
    /// Which life it is in.
    pub incarnation: Incarnation,
    /// How often it was started again by itself.
    pub restarts: u64,
    /// How long its process has lived, or had when it ended.
    pub lived: Duration,
    /// How its last process ended.
    pub exit: Option<ExitStatus>,
    /// What it says that it is doing (STATUS= of sd_notify(3)).
    pub status: Option<String>,
    /// What its health probe says; none where it has none, or had no process yet.
    pub readiness: Option<ProbeInfo>,
    /// The same of its liveness probe, which is asked from when it is ready on.
    pub liveness: Option<ProbeInfo>,
    /// What its process used when that was measured last; none where it is not measured, or was not yet.
    pub metrics: Option<Measured>,
}

/// What is known of a probe in this life of a process, or in its last one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeInfo {
    /// The last answer; none before the first.
    pub last: Option<Answered>,
    /// How many of its last answers were failures, also before it was well.
    pub failures: u32,
    /// The time until it is asked again; none while it is being asked, and where the process has ended or is to end.
    pub next_in: Option<Duration>,
}

/// An answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answered {
    /// Well, or what it said.
    pub result: Result<(), String>,
    /// The time since then.
    pub ago: Duration,
}

/// A sample, and its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// What was measured.
    pub sample: Sample,
    /// The time since then.
    pub ago: Duration,
}

/// Something that happened to a process of a service.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Happening {
    /// When.
    pub at: SystemTime,
    /// Which process.
    pub id: ServiceId,
    /// Its name, with the number of the replica where it is not the first.
    pub label: Arc<str>,
    /// What.
    pub event: Event,
}

/// A process of a service that has outlived the program that started it, and that no service of this one has taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftBehind {
    /// The service, with the number of the replica where it is not the first.
    pub label: Arc<str>,
    /// Its process.
    pub pid: u32,
    /// How long that has lived.
    pub lived: Duration,
}

/// How a process of a service ended on request, and what had to be killed for that.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stopped {
    /// The service, with the number of the replica where it is not the first.
    pub label: Arc<str>,
    /// How it ended; none where it had no process.
    pub exit: Option<ExitStatus>,
    /// It had not ended by itself at its limit.
    pub was_killed: bool,
    /// Processes that it had started, that outlived it and were killed: 32 of them at most.
    pub swept: Vec<u32>,
    /// Processes that could not be killed within 5 s: 32 of them at most.
    pub survivors: Vec<u32>,
}

impl Stopped {
    /// Whether it ended by itself, with all that it had started.
    pub fn is_clean(&self) -> bool {
        !self.was_killed && self.swept.is_empty() && self.survivors.is_empty()
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.label)?;
        match self.exit {
            None if !self.survivors.is_empty() => f.write_str("has not ended")?,
            None => f.write_str("was not running")?,
            Some(_) if self.was_killed => f.write_str("killed: it did not stop in time")?,
            Some(exit) => write!(f, "{exit}")?,
        }
        if !self.swept.is_empty() {
            write!(f, "; killed what it left behind: {}", list(&self.swept))?;
        }
        if !self.survivors.is_empty() {
            write!(f, "; could not be killed: {}", list(&self.survivors))?;
        }
        Ok(())
    }
}

fn list(pids: &[u32]) -> String {
    pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
