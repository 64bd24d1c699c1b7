//! What can go wrong with services. Each message says what, with which value, and what to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::service::MOST_REPLICAS;
use crate::driver::launch::LaunchError;
use crate::driver::worker::chain;
use crate::face::error::another;
use crate::machine::cause::ExitCause;
use crate::machine::metrics::SHORTEST_INTERVAL;
use crate::machine::service::{Condition, PortHolder, PortTaken};
use crate::machine::spec::ListenAddress;
use crate::machine::supervisor;

/// A service that cannot be: found when it is built, or when it is added.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadService {
    /// Its name cannot be the name of a file.
    #[error(
        "{0:?} cannot be the name of a service: it is 1 to 64 letters, digits, `_`, `-` and `.`, and begins with a letter, a digit or `_`"
    )]
    Name(String),
    /// A number that must not be zero.
    #[error("{what} is zero; it is at least 1")]
    Zero {
        /// Which number.
        what: &'static str,
    },
    /// More processes of one service than anybody means.
    #[error("{0} replicas; a service has {MOST_REPLICAS} at most")]
    Replicas(u32),
    /// It would be measured more often than that says anything.
    #[error(
        "metrics every {0:?}; {SHORTEST_INTERVAL:?} is the shortest interval, for processor time is counted in steps of 10 ms"
    )]
    Interval(Duration),
    /// A probe has a URL, or what goes with it, that cannot be asked.
    #[error("the probe of {url:?} cannot be carried out: {problem}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// A pattern for a line is no regular expression.
    #[error("{pattern:?} is no regular expression: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        problem: String,
    },
    /// More than one thing would say when it is ready.
    #[error("both {0} and {1} would say when it is ready; name one of them")]
    TwoReadinesses(&'static str, &'static str),
    /// A terminal is what it reads.
    #[error("it has a terminal, which is its standard input; say nothing else of that")]
    TerminalAndStdin,
    /// Something that is at odds with the others, or with itself.
    #[error(transparent)]
    Needs(#[from] supervisor::BadService),
}

/// There is no service of that name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no service {name:?}{}", there_are(.known))]
pub struct NoService {
    /// The name.
    pub name: String,
    /// Those that there are.
    pub known: Vec<String>,
}

fn there_are(names: &[String]) -> String {
    if names.is_empty() { "; there is none at all".into() } else { format!("; there are {}", names.join(", ")) }
}

/// A service that was to start is not up.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is none of that name.
    #[error(transparent)]
    NotFound(#[from] NoService),
    /// Its process could not be made.
    #[error("{service} could not be started: {error}", error = chain(.error))]
    Launch {
        /// The service.
        service: String,
        /// Why not.
        error: Arc<LaunchError>,
    },
    /// An address of its Spec cannot be listened on: most often another process does.
    #[error("{service} cannot listen on {address}: {source}{}{}", held(.holder.as_ref()), another(.source))]
    Listen {
        /// The service.
        service: String,
        /// The address.
        address: ListenAddress,
        /// Why not.
        source: Arc<io::Error>,
        /// Who holds its port, where that is the reason.
        holder: Option<PortHolder>,
    },
    /// It was not ready in time.
    #[error(
        "{service} was not ready within {limit:?}{}{}{}",
        last(.said.as_deref()), taken(.port.as_ref()), printed(.output)
    )]
    Timeout {
        /// The service.
        service: String,
        /// The time that it had.
        limit: Duration,
        /// What its probe said last.
        said: Option<String>,
        /// Somebody else holds the port that its probe asks.
        port: Option<PortTaken>,
        /// The last lines that it printed.
        output: Vec<String>,
    },
    /// It ended before it was ready.
    #[error("{service} failed: {why}{}", printed(.output))]
    Failed {
        /// The service.
        service: String,
        /// Why it ended.
        cause: Option<ExitCause>,
        /// The same in words.
        why: String,
        /// The last lines that it printed.
        output: Vec<String>,
    },
    /// Something that it needs failed.
    #[error("{} was not started: {why}{}", .path.join(" → "), printed(.output))]
    DependencyFailed {
        /// From the service to the one that failed, each needing the next.
        path: Vec<String>,
        /// What it needs, and why that cannot be.
        why: String,
        /// The last lines that the one that failed printed.
        output: Vec<String>,
    },
    /// Another number of its processes was asked for before there were so many.
    #[error("{service} was scaled again, or removed, before that was done")]
    Overtaken {
        /// The service.
        service: String,
    },
    /// It was stopped meanwhile.
    #[error("{service} was stopped before it was ready")]
    Stopped {
        /// The service.
        service: String,
    },
    /// It cannot be added.
    #[error(transparent)]
    Bad(#[from] BadService),
    /// The orchestrator is gone.
    #[error("the orchestrator has ended, and its services with it")]
    Gone,
}

/// What was waited for cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// There is none of that name.
    #[error(transparent)]
    NotFound(#[from] NoService),
    /// It cannot come to that any more, unless somebody intervenes.
    #[error("{service} will not be {condition}: {why}{}{}", along(.path), printed(.output))]
    Never {
        /// The service.
        service: String,
        /// What it was to be.
        condition: Condition,
        /// Why not.
        why: String,
        /// From the service to the one that failed, each needing the next; the service alone where it failed itself.
        path: Vec<String>,
        /// The last lines that the one that failed printed.
        output: Vec<String>,
    },
    /// The orchestrator is gone.
    #[error("the orchestrator has ended, and its services with it")]
    Gone,
}

/// A service cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// There is none of that name.
    #[error(transparent)]
    NotFound(#[from] NoService),
    /// Others need it.
    #[error("{service} cannot be removed: {} needs it; remove that first", .by.join(", "))]
    Needed {
        /// The service.
        service: String,
        /// Who needs it.
        by: Vec<String>,
    },
}

/// Services cannot take the place of those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// One of them cannot be, and nothing was changed.
    #[error(transparent)]
    Bad(#[from] BadService),
    /// The orchestrator is gone.
    #[error("the orchestrator has ended, and its services with it")]
    Gone,
}

/// The path, where it says more than the reason does.
fn along(path: &[String]) -> String {
    if path.len() > 2 { format!(" ({})", path.join(" → ")) } else { String::new() }
}

fn last(said: Option<&str>) -> String {
    said.map(|said| format!("; its probe said last: {said}")).unwrap_or_default()
}

fn taken(port: Option<&PortTaken>) -> String {
    port.map(|taken| format!("; {taken}")).unwrap_or_default()
}

fn held(holder: Option<&PortHolder>) -> String {
    holder.map(|holder| format!(", by {holder}")).unwrap_or_default()
}

fn printed(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |text, line| text + "\n  | " + line)
}
