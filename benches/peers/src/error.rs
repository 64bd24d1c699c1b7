//! Why a rival cannot be measured.

use std::fmt::Display;

use pm_cli::bench::work::BenchError;
use thiserror::Error;

/// A manager or a worker came to no end.
#[derive(Debug, Error)]
pub(crate) enum PeerError {
    /// A step failed, with what the rival says about it.
    #[error("cannot {step}: {problem}")]
    Step { step: &'static str, problem: String },
    /// An answer is not what was sent.
    #[error("a wrong answer")]
    Wrong,
    /// pm's own engine failed.
    #[error("pm: {0}")]
    Pm(#[from] BenchError),
    /// A role was started without its rival.
    #[error("this role is started by peers itself, with one name after --only")]
    NoRival,
}

/// Says which step failed.
pub(crate) trait Step<T> {
    /// The step, as in "cannot connect to the worker".
    fn step(self, step: &'static str) -> Result<T, PeerError>;
}

impl<T, E: Display> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, PeerError> {
        self.map_err(|problem| PeerError::Step { step, problem: problem.to_string() })
    }
}
