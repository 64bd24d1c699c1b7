//! Why a worker cannot serve.

use std::ffi::OsString;
use std::io;

use thiserror::Error;

use crate::machine::frame::BadFrame;
use crate::machine::handshake::BadHello;
use crate::transport::LINK_VARIABLE;

/// A program cannot become the worker that it was started as. [`roles_over`](super::roles_over) prints it and exits with code 64.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No manager started this program.
    #[error("{LINK_VARIABLE} is not set: this program is a worker, and is started by a manager")]
    NoManager,
    /// The manager uses a transport that is not built in.
    #[error("the manager uses the transport {asked:?}; this program was built with {known:?}")]
    NoTransport {
        /// What `PM_LINK` says.
        asked: OsString,
        /// The transports that are.
        known: Vec<&'static str>,
    },
    /// The link cannot be opened.
    #[error("the link ({scheme}) cannot be opened: {source}")]
    Link {
        /// The transport.
        scheme: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The link was lost before READY.
    #[error("the manager is gone: {0}")]
    Lost(#[source] io::Error),
    /// The manager sent bytes that are no frame.
    #[error("the manager broke the protocol: {0}")]
    BadFrame(#[from] BadFrame),
    /// The manager began with something else than HELLO.
    #[error("the manager began with a frame of kind {kind}, not with HELLO")]
    NotHello {
        /// The kind.
        kind: u8,
    },
    /// HELLO cannot be read.
    #[error(transparent)]
    BadHello(#[from] BadHello),
    /// It is called in a runtime, as by `#[tokio::main]`: a worker has its own.
    #[error(
        "it is called in a tokio runtime, which is too late: call it first in `main`, and make the runtime after it"
    )]
    InRuntime,
    /// The manager names no role.
    #[error(
        "the manager names no role, and this program has {known:?}: name one by `.serving(…)` of the Spec, or by PM_ROLE for a worker that pm does not start"
    )]
    NoRoleNamed {
        /// The roles that it could have named.
        known: Vec<&'static str>,
    },
    /// The manager asks for a role that this program does not have.
    #[error("this program has no role {asked:?}: it is not in the list of pm::roles, which has {known:?}")]
    NoRole {
        /// What it asks for.
        asked: String,
        /// The roles that are there.
        known: Vec<&'static str>,
    },
    /// The manager uses a codec that the role does not speak.
    #[error("the manager uses the codec {asked:?}; the role {role:?} speaks {known:?}")]
    NoCodec {
        /// The role.
        role: &'static str,
        /// What the manager uses.
        asked: String,
        /// What the role speaks.
        known: Vec<&'static str>,
    },
    /// The system refuses a thread or a runtime.
    #[error("cannot start {what}: {source}")]
    Resources {
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
