//! One worker, without a pool around it.

use std::fmt;

use tokio::sync::broadcast;

use super::error::QueryError;
use super::query::{QueryManager, WorkerInfo};
use crate::codec::Codec;
use crate::machine::event::Event;

/// One worker that is not replaced when it ends. Made by [`PoolBuilder::start_worker`](super::builder::PoolBuilder::start_worker); killed when the
/// last clone is dropped.
pub struct Worker<I, O, C> {
    pool: QueryManager<I, O, C>,
}

impl<I, O, C> Worker<I, O, C> {
    pub(super) fn new(pool: QueryManager<I, O, C>) -> Self {
        Worker { pool }
    }

    /// Its process and load; none once it has ended.
    pub fn info(&self) -> Option<WorkerInfo> {
        self.pool.acquire()
    }

    /// What happens to it from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.pool.events()
    }

    /// Lets it finish what it has, for at most 30 s, and ends it. Returns once it is gone.
    ///
    /// # Cancel safety
    /// A release that has begun goes on without its caller.
    pub async fn release(&self) {
        self.pool.shutdown().await;
    }
}

impl<I, O, C> Worker<I, O, C>
where
    C: Codec<I> + Codec<O>,
{
    /// Sends it a query, and waits for the answer.
    ///
    /// # Cancel safety
    /// As [`QueryManager::query`].
    ///
    /// # Errors
    /// [`QueryError`]: as for a pool; [`QueryError::GaveUp`] with the cause of its end once it has ended.
    pub fn query(&self, input: &I) -> impl Future<Output = Result<O, QueryError>> + Send + use<I, O, C> {
        self.pool.query(input)
    }
}

impl<I, O, C: Clone> Clone for Worker<I, O, C> {
    fn clone(&self) -> Self {
        Worker { pool: self.pool.clone() }
    }
}

impl<I, O, C> fmt::Debug for Worker<I, O, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.pool.name()).finish_non_exhaustive()
    }
}
