//! One worker, without a pool around it.

use std::fmt;
use std::ops::Deref;

use tokio::sync::broadcast;

use super::duplex::Duplex;
use super::error::{QueryError, StreamError};
use super::pool::{Pool, WorkerInfo};
use super::query::QueryManager;
use super::raw::{RawManager, RawWorker};
use super::stream::StreamManager;
use crate::codec::Codec;
use crate::machine::event::Event;

/// One worker that is not replaced when it ends. Made by [`PoolBuilder::start_worker`](super::builder::PoolBuilder::start_worker); killed when the
/// last clone is dropped. `M` is the manager of a pool of one.
#[derive(Clone)]
pub struct Worker<M> {
    manager: M,
}

impl<M: Deref<Target = Pool>> Worker<M> {
    pub(super) fn new(manager: M) -> Self {
        Worker { manager }
    }

    /// Its process and load; none once it has ended.
    pub fn info(&self) -> Option<WorkerInfo> {
        self.manager.acquire()
    }

    /// What happens to it from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.manager.events()
    }

    /// Lets it finish what it has, for at most 30 s, and ends it. Returns once it is gone.
    ///
    /// # Cancel safety
    /// A release that has begun goes on without its caller.
    pub async fn release(&self) {
        self.manager.shutdown().await;
    }
}

impl<I, O, C> Worker<QueryManager<I, O, C>>
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
        self.manager.query(input)
    }
}

impl<I, O, C> Worker<StreamManager<I, O, C>>
where
    C: Codec<I> + Codec<O>,
{
    /// Opens a stream.
    ///
    /// # Cancel safety
    /// As [`StreamManager::create_stream`].
    ///
    /// # Errors
    /// As [`StreamManager::create_stream`]; [`QueryError::GaveUp`] with the cause of its end once it has ended.
    pub async fn create_stream(&self) -> Result<Duplex<I, O>, StreamError> {
        self.manager.create_stream().await
    }
}

impl<I, O> Worker<RawManager<I, O>> {
    /// The conversation with it; none once it has ended.
    pub fn raw(&self) -> Option<RawWorker<I, O>> {
        self.manager.least_loaded()
    }
}

impl<M: Deref<Target = Pool>> fmt::Debug for Worker<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.manager.name()).finish_non_exhaustive()
    }
}
