//! What can be seen of a pool and its workers at a moment.

use std::sync::Arc;
use std::time::Duration;

use crate::driver::link::LinkShared;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::Counts;
use crate::transport::LinkTx;

/// A worker as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its number in the pool.
    pub id: WorkerId,
    /// Which life of it this is.
    pub incarnation: Incarnation,
    /// Its process.
    pub pid: u32,
    /// Calls that it has not answered; of a raw worker what the program says.
    pub load: u32,
}

impl WorkerInfo {
    pub(super) fn of<Tx: LinkTx>(link: &LinkShared<Tx>) -> Self {
        WorkerInfo { id: link.worker, incarnation: link.incarnation, pid: link.pid, load: link.load() }
    }
}

/// What the registry shows of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its name.
    pub name: Arc<str>,
    /// How many workers there are of each sort.
    pub workers: Counts,
    /// How many ended so far without having been told to: they died, or pm had to kill them.
    pub crashes: u64,
    /// How long ago the last one did.
    pub last_crash: Option<Duration>,
    /// Queries that wait for a worker.
    pub queued: usize,
    /// Queries that workers have.
    pub load: usize,
    /// Queries that workers have answered so far, with a result or an error of their own.
    pub answered: u64,
    /// Frames of workers that were dropped so far: of kinds that pm does not know, and of queries that had ended.
    pub dropped_frames: u64,
}
