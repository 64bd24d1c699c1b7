//! Work in other processes that feels like calling an async function.

#![forbid(unsafe_code)]

pub use pm_core as core;
pub use pm_core::codec::{self, Codec, Json, Postcard, Verbatim};
pub use pm_core::face::error::{
    HandlerError, HandlerErrorKind, QueryError, QueryErrorKind, StartError, TryQueryError, WorkerLost,
};
pub use pm_core::face::query::{
    PoolBuilder, PoolInfo, QueryManager, QueryOptions, SlowQuery, TimeoutFrom, WorkerInfo,
};
pub use pm_core::face::worker::Worker;
pub use pm_core::face::{registry, spawning};
pub use pm_core::machine::budget::Budget;
pub use pm_core::machine::cause::ExitCause;
pub use pm_core::machine::event::Event;
pub use pm_core::machine::exit::{ExitStatus, Signal};
pub use pm_core::machine::id::{Incarnation, WorkerId};
pub use pm_core::machine::retry::{Delay, Failure, Retry};
pub use pm_core::machine::spec::{Inherit, Resource, Spec, SpecBuilder, Stderr};
pub use pm_core::transport::Transport;
pub use pm_core::worker::context::{cancelled, notice, on_cancel, time_left};
pub use pm_core::worker::role::{ByteQuery, Role};

#[cfg(feature = "stdio")]
pub use pm_transport_stdio::Stdio;
#[cfg(feature = "uds")]
pub use pm_transport_uds::Uds;

#[cfg(any(feature = "stdio", feature = "uds"))]
mod any;
#[cfg(any(feature = "stdio", feature = "uds"))]
pub use any::{AnyTransport, UnknownTransport};

/// A query that this program can serve, in pools over Unix sockets unless they say otherwise.
#[cfg(feature = "uds")]
pub type Query<I, O> = pm_core::Query<I, O, Uds>;

/// The worker's halves of the transports that this build has.
const CONNECTS: &[&dyn pm_core::transport::Connect] = &[
    #[cfg(feature = "stdio")]
    &Stdio,
    #[cfg(feature = "uds")]
    &Uds,
];

/// Says which queries this program can serve. Call it first in a plain `main`, before any runtime, logger or thread: in a worker's process it
/// serves and never returns, in every other one it returns at once.
///
/// ```no_run
/// static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
///
/// fn main() {
///     pm::roles([&DOUBLE]);
///     // the program itself
/// }
/// ```
pub fn roles<const N: usize>(roles: [&'static dyn Role; N]) {
    pm_core::worker::roles_over(&roles, CONNECTS);
}

/// Serves one role in a program that is nothing but a worker, and never returns.
///
/// # Errors
/// A text that says why it cannot: most often that the program was started by hand.
pub fn serve(role: &'static dyn Role) -> Result<std::convert::Infallible, String> {
    pm_core::worker::serve_over(role, CONNECTS)
}
