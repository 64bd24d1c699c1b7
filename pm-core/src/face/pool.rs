//! A pool of workers, whatever calls they serve: what it is doing, how many workers it has, and its end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};

use super::builder::within_limits;
use super::error::StartError;
use super::registry;
use crate::driver::clock;
use crate::driver::pool::{AnyPool, Command};
use crate::machine::event::Event;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::Input;
use crate::machine::spec::ListenAddress;
use crate::machine::time::Time;

pub use crate::driver::meter::{Errors, Latencies};
pub use crate::driver::pool::{Health, PoolInfo, WorkerHealth, WorkerInfo};

/// What all managers have in common: a pool of workers. A [`QueryManager`](super::query::QueryManager), a
/// [`StreamManager`](super::stream::StreamManager) and a [`RawManager`](super::raw::RawManager) are pools, by `Deref`, so that what is said here can be
/// asked of them.
///
/// It is cheap to clone, and every clone is the same pool. When the last clone of it and of its manager is dropped, the workers are killed.
#[derive(Clone)]
pub struct Pool {
    pub(super) handle: Arc<Handle>,
}

/// What all clones share.
pub(super) struct Handle {
    pub(super) pool: Arc<dyn AnyPool>,
    pub(super) addresses: Arc<[ListenAddress]>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pool.kill();
    }
}

impl Pool {
    /// The name of the pool.
    pub fn name(&self) -> &str {
        self.handle.pool.name()
    }

    /// What its workers listen on, in the order of the Spec, with the ports that the kernel chose. Empty where the Spec has no listeners.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.handle.addresses
    }

    /// The workers that serve now.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.handle.pool.workers()
    }

    /// The worker with the smallest load, as it is now. Takes nothing: it may have more a moment later.
    pub fn acquire(&self) -> Option<WorkerInfo> {
        self.workers().into_iter().min_by_key(|worker| (worker.load, worker.id))
    }

    /// What the pool is doing.
    pub fn info(&self) -> PoolInfo {
        self.handle.pool.info()
    }

    /// How the pool is doing: whether it is well, what it has counted, how long its calls took, and what its workers use. It looks at /proc for each worker.
    pub fn health(&self) -> Health {
        self.handle.pool.health()
    }

    /// Everything that happens in the pool from now on. A listener that is more than 1,024 events behind loses the oldest, and is told how many.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.handle.pool.events()
    }

    /// Has `workers` workers: starts what is missing, and drains the idlest of what is too many. Returns once that is so. A pool that
    /// [scales itself](super::builder::PoolBuilder::autoscale) takes numbers within its bounds, and 0; it goes on from there after a cool-down.
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    ///
    /// # Errors
    /// [`StartError`] where workers cannot be started, or the pool is shut down.
    pub async fn scale(&self, workers: u32) -> Result<(), StartError> {
        let workers = within_limits(workers, self.handle.pool.bounds())?;
        settle(&self.handle.pool, Input::Scale { workers, idlest: Vec::new() }).await
    }

    /// Starts one more worker. A pool that scales itself, and then has more than it should at most, sends one away after a cool-down.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn spawn_one(&self) -> Result<(), StartError> {
        settle(&self.handle.pool, Input::SpawnOne).await
    }

    /// Drains this worker, and has one less.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn unspawn_one(&self, worker: WorkerId) -> Result<(), StartError> {
        self.unspawn_one_within(worker, None).await
    }

    /// The same with a limit for the drain: if the worker has not left by then it is killed.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn unspawn_one_within(&self, worker: WorkerId, drain: Option<Duration>) -> Result<(), StartError> {
        settle(&self.handle.pool, Input::UnspawnOne { worker, deadline: by(drain) }).await
    }

    /// Drains all workers: they finish what they have begun. Queries that wait, in the queue or in a worker, fail with
    /// [`QueryError::NoWorkers`](super::error::QueryError::NoWorkers), and so do all others until the pool is scaled again.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn unspawn(&self) -> Result<(), StartError> {
        self.unspawn_within(None).await
    }

    /// The same with a limit for the drain: what is then left of the workers is killed.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn unspawn_within(&self, drain: Option<Duration>) -> Result<(), StartError> {
        settle(&self.handle.pool, Input::Unspawn { deadline: by(drain) }).await
    }

    /// Replaces all workers by as many new ones. The old ones drain as the new ones get ready; no query is lost.
    ///
    /// # Errors
    /// As [`scale`](Self::scale); where the new ones cannot be started, old ones may still serve.
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn respawn(&self) -> Result<(), StartError> {
        settle(&self.handle.pool, Input::Respawn { workers: None, drain: None }).await
    }

    /// The same with another number of workers, and a limit for the drain of the old ones: what is then left of them is killed. Workers that leave already get that limit as
    /// well, unless theirs ends sooner.
    ///
    /// # Errors
    /// As [`respawn`](Self::respawn).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn respawn_with(&self, workers: u32, drain: Option<Duration>) -> Result<(), StartError> {
        let workers = Some(within_limits(workers, self.handle.pool.bounds())?);
        settle(&self.handle.pool, Input::Respawn { workers, drain }).await
    }

    /// Replaces all workers that serve now, one after the other: each by a new one that serves before the old one drains. Returns once the old ones are gone; the
    /// number of workers stays what it is, where a [`respawn`](Self::respawn) has twice as many for a while. For a schedule of the program's own; see
    /// [`recycle`](super::builder::PoolBuilder::recycle) for one that the pool keeps. How long each may drain is said there as well.
    ///
    /// A worker that leaves for another reason meanwhile needs no replacement.
    ///
    /// # Errors
    /// [`StartError`]: a new worker cannot be started, or the pool is shut down. The old ones serve on, and it is tried again after a while.
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn recycle(&self) -> Result<(), StartError> {
        let (answer, recycled) = oneshot::channel();
        let command = Command::Recycle(answer);
        self.handle.pool.commands().send(command).await.map_err(|_| StartError::ShuttingDown)?;
        recycled.await.unwrap_or(Err(StartError::ShuttingDown))
    }

    /// Begins anew after the pool gave up.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn revive(&self) -> Result<(), StartError> {
        settle(&self.handle.pool, Input::Revive).await
    }

    /// Takes no further query, lets those finish that were taken, for at most 30 s, and ends all workers. Returns once they are gone.
    ///
    /// # Cancel safety
    /// A shutdown that has begun goes on without its caller.
    pub async fn shutdown(&self) {
        self.shutdown_within(Some(registry::SHUTDOWN_LIMIT)).await;
    }

    /// The same with another limit, or with none.
    ///
    /// # Cancel safety
    /// A shutdown that has begun goes on without its caller.
    pub async fn shutdown_within(&self, limit: Option<Duration>) {
        registry::shut_down(self.handle.pool.clone(), limit).await;
    }

    /// Kills one of the workers, picked by this number, to see what happens. It counts against no budget.
    pub fn chaos(&self, random: u64) {
        // A pool that is too busy for chaos has enough of it.
        let _ = self.handle.pool.commands().try_send(Command::Chaos(random));
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", self.handle.pool.name()).finish_non_exhaustive()
    }
}

/// Drains an incarnation of a worker, for at most so long.
pub(super) async fn release(
    pool: &Arc<dyn AnyPool>,
    worker: WorkerId,
    incarnation: Incarnation,
    drain: Option<Duration>,
) -> Result<(), StartError> {
    settle(pool, Input::Release { worker, incarnation, deadline: by(drain) }).await
}

/// So long from now.
fn by(limit: Option<Duration>) -> Option<Time> {
    limit.map(|limit| clock::now() + limit)
}

async fn settle(pool: &Arc<dyn AnyPool>, input: Input) -> Result<(), StartError> {
    let (answer, settled) = oneshot::channel();
    // What could not be sent holds the answer's other end, and nobody would ever drop it while this waits.
    pool.commands().send(Command::Settle(input, answer)).await.map_err(|_| StartError::ShuttingDown)?;
    settled.await.unwrap_or(Err(StartError::ShuttingDown))
}

pub(super) async fn begin(pool: &Arc<dyn AnyPool>, workers: u32) -> Result<(), StartError> {
    let (answer, started) = oneshot::channel();
    let command = Command::Start(Input::Scale { workers, idlest: Vec::new() }, answer);
    pool.commands().send(command).await.map_err(|_| StartError::ShuttingDown)?;
    started.await.unwrap_or(Err(StartError::ShuttingDown))
}
