//! The core of pm: work in other processes that feels like calling an async function.
//!
//! This crate holds the state machines, the driver that carries out what they decide, and the faces that programs use. It is generic
//! over a [`Transport`](transport::Transport); the crates `pm-transport-*` are such transports, and the facade `pm` joins all.
//! Without its default feature `driver` this crate is the [machines](machine) alone: no tokio, no operating system.
//!
//! A query goes this way: [`face::query`] encodes it into a call; `driver::pool` finds a link for it, or queues it; `driver::link` puts it
//! on the [`Link`](transport::Link) of a worker; in the worker's process [`worker`] takes it from the link, runs the handler and answers; the
//! task of the link delivers the answer to the call, whose future decodes it.

#![deny(unsafe_code)]

#[cfg(all(feature = "driver", not(target_os = "linux")))]
compile_error!("pm-core drives processes on Linux only; without the feature `driver` its machines build everywhere");

pub mod machine;
pub mod units;

#[cfg(feature = "driver")]
pub mod codec;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "driver")]
pub mod face;
#[cfg(feature = "driver")]
#[expect(unsafe_code, reason = "the operating system: processes, descriptors, shared memory")]
mod sys;
#[cfg(any(feature = "testing", all(test, feature = "driver")))]
pub mod testing;
#[cfg(feature = "driver")]
pub mod transport;
#[cfg(feature = "driver")]
pub mod worker;

#[cfg(feature = "driver")]
pub use worker::role::{Query, Stream};
