//! Why a worker ended.

use std::fmt;
use std::time::Duration;

use super::exit::ExitStatus;

/// Why a worker ended, as far as pm knows. What pm did itself comes before what the exit status says: a worker that pm
/// killed because a call timed out ended by [`ExitCause::Stuck`], not by SIGKILL.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitCause {
    /// pm was asked to stop, drain or replace it.
    Requested,
    /// It ended by itself, or by somebody else's signal.
    Exited(ExitStatus),
    /// A call was cancelled or had timed out, and the worker did not yield within the cancel grace.
    Stuck {
        /// The grace that it had.
        grace: Duration,
    },
    /// A cancelled stream had not ended, and the worker said nothing at all for this long after it was asked whether it lives.
    Unresponsive {
        /// The grace that it had.
        grace: Duration,
    },
    /// It did not say READY in time.
    StartTimeout {
        /// The time that it had.
        limit: Duration,
    },
    /// It was a service, and was not ready in time.
    NotReady {
        /// The time that it had.
        limit: Duration,
        /// What its probe said last, or what it has not said.
        said: String,
    },
    /// It was a service, and was not well any more.
    Unhealthy {
        /// What the probe said.
        reason: String,
    },
    /// It closed its link and went on living.
    LinkLost {
        /// What the link said.
        reason: String,
    },
    /// It broke the protocol.
    Protocol {
        /// How.
        violation: String,
    },
    /// It was a raw worker, and its handler returned while it was still wanted.
    Returned {
        /// What the handler failed with, or said when it panicked: 4 KiB of it at most. None where it returned without an error.
        error: Option<String>,
    },
    /// It never became a process.
    NotStarted {
        /// Why not.
        reason: String,
    },
    /// It was killed on purpose, to see what happens.
    Chaos,
}

impl ExitCause {
    /// Whether pm ended it for reasons of its own. Then it counts towards no budget, and no call that it had is suspected of killing
    /// workers.
    ///
    /// ```
    /// use pm_core::machine::cause::ExitCause;
    /// use pm_core::machine::exit::ExitStatus;
    ///
    /// assert!(ExitCause::Chaos.is_ordered());
    /// assert!(!ExitCause::Exited(ExitStatus::Code(1)).is_ordered());
    /// ```
    pub const fn is_ordered(&self) -> bool {
        matches!(
            self,
            ExitCause::Requested | ExitCause::Stuck { .. } | ExitCause::Unresponsive { .. } | ExitCause::Chaos
        )
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::Requested => f.write_str("stopped on request"),
            ExitCause::Exited(status) => write!(f, "{status}"),
            ExitCause::Stuck { grace } => write!(f, "killed: it did not yield within {grace:?} of a cancel"),
            ExitCause::Unresponsive { grace } => {
                write!(
                    f,
                    "killed: a cancelled stream had not ended, and it said nothing for {grace:?} after it was asked"
                )
            }
            ExitCause::StartTimeout { limit } => write!(f, "killed: it did not say READY within {limit:?}"),
            ExitCause::NotReady { limit, said } => write!(f, "not ready within {limit:?}: {said}"),
            ExitCause::Unhealthy { reason } => write!(f, "not well any more: {reason}"),
            ExitCause::LinkLost { reason } => write!(f, "killed: its link was lost ({reason})"),
            ExitCause::Protocol { violation } => write!(f, "killed: it broke the protocol ({violation})"),
            ExitCause::Returned { error: None } => {
                f.write_str("killed: its handler returned, though nobody had released it")
            }
            ExitCause::Returned { error: Some(error) } => {
                write!(f, "killed: its handler returned, though nobody had released it: {error}")
            }
            ExitCause::NotStarted { reason } => write!(f, "not started: {reason}"),
            ExitCause::Chaos => f.write_str("killed by chaos"),
        }
    }
}
