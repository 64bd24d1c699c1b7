//! A pool at virtual time: the real machines under a simulated driver, with simulated workers, links, callers and operators.
//!
//! The machines decide ([`pool`](crate::machine::pool), [`unit`](crate::machine::unit), [`session`](crate::machine::session),
//! [`window`](crate::machine::window), [`dispatch`](crate::machine::dispatch), [`retry`](crate::machine::retry),
//! [`budget`](crate::machine::budget)); everything else follows from one seed: how long calls take, which crash their worker or never
//! end, when links are cut, workers die, somebody scales, respawns, cancels or shuts down. Frames of one link keep their order, as a
//! transport promises; everything else may come in any order. A year of such a life takes milliseconds, and the same seed gives the
//! same life.
//!
//! [`run`] lives one such life and checks after every step that
//! - each call resolves exactly once, and none is left when the pool is closed;
//! - no call is begun by a worker more often than its retry policy allows: at most once without one;
//! - nothing is submitted to a worker that drains or has gone;
//! - what a session counts is what is on its link and in its worker;
//! - no timer fires twice for the same moment: the driver never spins;
//! - the pool gives up exactly where its budget says so, and has as many workers as it should once things are calm.
//!
//! [`load`] plays honest calls without faults, and measures how long they and their workers wait.

mod checks;
mod life;
pub mod load;
mod process;
#[cfg(test)]
mod tests;
mod world;

pub use life::{Failure, Life, Totals, run, sweep};
pub use world::Outcome;
