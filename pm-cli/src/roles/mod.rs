//! What `pm` serves as its own worker.

use pm::{HandlerError, HandlerErrorKind, Role};

use crate::bench::work;

pub mod builtin;
pub mod exec;
pub mod filter;

/// The codec of those that `pm pool` uses: payloads are bytes as they are.
pub const CODEC: &str = "bytes";

/// For `pm::roles`.
pub const ALL: [&dyn Role; 9] = [
    &builtin::ECHO,
    &builtin::ECHO_STREAM,
    &builtin::COUNT,
    &builtin::SHA256,
    &builtin::WC,
    &exec::EXEC,
    &filter::FILTER,
    &work::BLOCK,
    &work::BYTES,
];

/// An error of one of these roles. `what` says which, for the manager: see [`Fault`](exec::Fault).
fn error(what: impl Into<String>, message: impl Into<String>, trace: impl Into<String>) -> HandlerError {
    HandlerError {
        kind: HandlerErrorKind::Error,
        type_name: what.into(),
        message: message.into(),
        trace: trace.into(),
        tries: 0,
    }
}
