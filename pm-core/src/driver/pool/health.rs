//! How a pool is doing: what it counts, and what its workers use.

use std::sync::Arc;
use std::time::Duration;

use super::{AnyPool, Pool, PoolInfo, lock};
use crate::driver::clock;
use crate::driver::link::LinkShared;
use crate::driver::meter::{Errors, Latencies};
use crate::driver::usage;
use crate::machine::health::{Signs, Status};
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::Counts;
use crate::machine::time::Time;
use crate::transport::LinkTx;

/// How a pool is doing. All counts are of the life of the pool.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Health {
    /// Its name.
    pub name: Arc<str>,
    /// Its number among the pools of this program, which no other one ever has.
    pub number: u64,
    /// Whether it is well, and what is wrong where it is not.
    pub status: Status,
    /// Since it was started.
    pub uptime: Duration,
    /// Queries that workers have answered, with a result or an error of their own, and streams that have ended so.
    pub answered: u64,
    /// How many were answered in the last minute; of a younger pool how many that would be.
    pub per_minute: f64,
    /// How long they took.
    pub latency: Latencies,
    /// Those that ended with an error.
    pub errors: Errors,
    /// Further tries of calls.
    pub retries: u64,
    /// Those whose callers went before they had ended.
    pub cancelled: u64,
    /// Those that wait for a worker.
    pub queued: usize,
    /// Those that workers have.
    pub load: usize,
    /// How many workers there are of each sort.
    pub counts: Counts,
    /// Workers that ended without having been told to: they died, or pm had to kill them.
    pub crashes: u64,
    /// How long ago the last one did.
    pub last_crash: Option<Duration>,
    /// Frames of workers that were dropped: of kinds that pm does not know, and of calls that had ended.
    pub dropped_frames: u64,
    /// The workers that serve, and those that finish what they have, by their numbers.
    pub workers: Vec<WorkerHealth>,
}

/// How a worker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerHealth {
    /// Its number in the pool.
    pub id: WorkerId,
    /// Which life of it this is.
    pub incarnation: Incarnation,
    /// Its process.
    pub pid: u32,
    /// Whether it only finishes what it has.
    pub is_leaving: bool,
    /// Since it serves.
    pub uptime: Duration,
    /// Calls that it has not answered; of a raw worker what the program says.
    pub load: u32,
    /// Calls that it has answered.
    pub answered: u64,
    /// Bytes that its process has resident. None where it is a thread of this process, or has just ended.
    pub rss: Option<u64>,
    /// Processor time that its process has had, its threads included. None as for `rss`.
    pub cpu: Option<Duration>,
}

impl<Tx: LinkTx> Pool<Tx> {
    pub(super) fn examine(&self) -> Health {
        let now = clock::now();
        let PoolInfo { name, workers: counts, crashes, last_crash, queued, load, dropped_frames, .. } = self.info();
        let serving = self.links.load_full();
        let leaving = lock(&self.leaving).clone();
        let is_new = |link: &&Arc<LinkShared<Tx>>| !serving.iter().any(|known| Arc::ptr_eq(known, link));
        let mut workers: Vec<_> = serving.iter().map(|link| WorkerHealth::of(link, now, false)).collect();
        workers.extend(leaving.iter().filter(is_new).map(|link| WorkerHealth::of(link, now, true)));
        workers.sort_unstable_by_key(|worker| worker.id);
        let size = lock(&self.shared.state).size as usize;
        let backlog = self.backlog();
        let (phase, is_closing) = (backlog.phase.clone(), backlog.closing);
        drop(backlog);
        let queue = self.shared.queue_limit;
        let signs = Signs { phase, is_closing, size, serving: serving.len(), crashed: counts.crashed, queued, queue };
        let meter = &self.shared.meter;
        let (retries, cancelled) = meter.retries_and_cancels();
        let (uptime, latency) = (now.since(self.shared.born), meter.latencies());
        Health {
            name,
            number: self.shared.number,
            status: signs.status(),
            uptime,
            answered: latency.count(),
            per_minute: meter.per_minute(now, uptime),
            latency,
            errors: meter.errors(),
            retries,
            cancelled,
            queued,
            load,
            counts,
            crashes,
            last_crash,
            dropped_frames,
            workers,
        }
    }
}

impl WorkerHealth {
    fn of<Tx: LinkTx>(link: &LinkShared<Tx>, now: Time, is_leaving: bool) -> Self {
        let process = (link.pid != std::process::id()).then_some(link.pid);
        WorkerHealth {
            id: link.worker,
            incarnation: link.incarnation,
            pid: link.pid,
            is_leaving,
            uptime: now.since(link.since),
            load: link.load(),
            answered: link.answered(),
            rss: process.and_then(usage::resident),
            cpu: process.and_then(usage::cpu_time),
        }
    }
}
