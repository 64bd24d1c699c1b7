//! What happened in a pool, for people and programs.

use super::cause::ExitCause;
use super::id::{Incarnation, WorkerId};
use super::recycle::Reason;

/// Something that happened in a pool. Each is also a `tracing` event with the target `pm::pool`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A worker's process was made.
    Spawned {
        /// Which worker.
        worker: WorkerId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Its process.
        pid: u32,
    },
    /// A worker said READY.
    Ready {
        /// Which worker.
        worker: WorkerId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Its process.
        pid: u32,
    },
    /// A worker ended without having been told to: it died, or pm had to kill it, as `cause` says.
    Crashed {
        /// Which worker.
        worker: WorkerId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Its process; none where it never became one.
        pid: Option<u32>,
        /// Why.
        cause: ExitCause,
        /// How many calls it had not answered.
        load: usize,
        /// The last notice that it sent.
        last_notice: Option<String>,
        /// Whether another incarnation follows.
        will_restart: bool,
    },
    /// Another incarnation of a worker that had crashed serves.
    Replaced {
        /// Which worker.
        worker: WorkerId,
        /// Its new life.
        incarnation: Incarnation,
        /// Its new process.
        pid: u32,
    },
    /// A worker that is well is replaced: a new one serves, and it drains.
    Recycled {
        /// Which worker.
        worker: WorkerId,
        /// Its last life.
        incarnation: Incarnation,
        /// The new one.
        by: WorkerId,
        /// Why.
        reason: Reason,
    },
    /// A worker finishes what it has, and gets no further call.
    Draining {
        /// Which worker.
        worker: WorkerId,
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// A worker that was asked to go is gone.
    Gone {
        /// Which worker.
        worker: WorkerId,
        /// Its last life.
        incarnation: Incarnation,
    },
    /// A worker's process was stopped from outside, by SIGSTOP for example, and may be continued.
    Stopped {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// A worker's process was killed and is still there.
    Unkillable {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: Option<u32>,
    },
    /// The load asks for another number of workers: see [`Autoscale`](super::scaling::Autoscale). What comes of it follows as events of its own.
    Scaled {
        /// How many workers there were.
        from: u32,
        /// How many there are to be.
        to: u32,
        /// The mean load of the pool that asks for it: calls that workers had and that waited, rounded.
        load: u64,
    },
    /// A call was aboard so many dying workers that it is not tried again.
    Poisoned {
        /// The summary of its input.
        input: String,
    },
    /// The restart budget is spent.
    GaveUp {
        /// How many deaths counted.
        crashes: usize,
        /// Why the last worker died.
        cause: ExitCause,
    },
}
