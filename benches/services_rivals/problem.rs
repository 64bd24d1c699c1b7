//! Why there is no figure.

use std::time::Duration;

use thiserror::Error;

/// A tool did not do what was to be measured.
#[derive(Debug, Error)]
pub(crate) enum Problem {
    /// A file, a process or a terminal.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// What came of it.
        source: std::io::Error,
    },
    /// Services did not start.
    #[error("{said} of {wanted} services have said that they run within {limit:?}")]
    Silent {
        /// So many did.
        said: usize,
        /// So many should.
        wanted: usize,
        /// How long was waited.
        limit: Duration,
    },
    /// Services did not end.
    #[error("{0} services live {1:?} after the request to stop")]
    Alive(usize, Duration),
    /// It is gone, or was never there.
    #[error("the process of the tool is not there")]
    NoProcess,
    /// A command did not end.
    #[error("{0} did not end within {1:?}")]
    Late(String, Duration),
    /// A command failed.
    #[error("{0}: {1}")]
    Failed(String, String),
}

impl Problem {
    /// For `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Problem {
        let what = what.into();
        move |source| Problem::Io { what, source }
    }
}
