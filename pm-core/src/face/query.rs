//! Query pools: one input, one output, in another process.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::carry::{Carry, Decoded};
use super::error::{QueryError, StartError, TryQueryError, encoded};
use super::pool::{Handle, Pool, begin};
use super::registry;
use crate::codec::{Codec, Postcard};
use crate::driver::call::{Call, Terms};
use crate::driver::clock;
use crate::driver::pool::AnyPool;
use crate::machine::budget::Budget;
use crate::machine::id::WorkerId;
use crate::machine::retry::Retry;

pub use crate::driver::call::TimeoutFrom;
pub use crate::driver::pool::SlowQuery;

/// A pool of workers that answer queries. Made by a [`PoolBuilder`](super::builder::PoolBuilder).
///
/// It is cheap to clone, and every clone is the same pool. When the last clone is dropped, the workers are killed;
/// [`shutdown`](Pool::shutdown) lets them finish first. All that has to do with its workers is in [`Pool`], which it derefs to.
pub struct QueryManager<I, O, C = Postcard> {
    pub(super) pool: Pool,
    pub(super) codec: C,
    pub(super) terms: Terms,
    pub(super) recipe: Arc<Recipe>,
    pub(super) types: PhantomData<fn(I) -> O>,
}

/// Starts another pool of the same sort: with how many workers, and whether it must spawn.
pub(super) type Recipe = dyn Fn(Budget, bool) -> Result<Arc<dyn AnyPool>, StartError> + Send + Sync;

impl<I, O, C: Clone> Clone for QueryManager<I, O, C> {
    fn clone(&self) -> Self {
        QueryManager {
            pool: self.pool.clone(),
            codec: self.codec.clone(),
            terms: self.terms,
            recipe: self.recipe.clone(),
            types: PhantomData,
        }
    }
}

impl<I, O, C> fmt::Debug for QueryManager<I, O, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryManager").field("name", &self.pool.name()).finish_non_exhaustive()
    }
}

/// How one query is treated, where it should differ from the manager's other ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueryOptions {
    timeout: Option<Option<Duration>>,
    retry: Option<Retry>,
}

impl QueryOptions {
    /// As the manager says.
    pub const fn new() -> Self {
        QueryOptions { timeout: None, retry: None }
    }

    /// How long it may take; none for as long as it likes.
    pub const fn timeout(self, limit: Option<Duration>) -> Self {
        QueryOptions { timeout: Some(limit), ..self }
    }

    /// When it is tried again.
    pub const fn retry(self, retry: Retry) -> Self {
        QueryOptions { retry: Some(retry), ..self }
    }
}

impl<I, O, C> QueryManager<I, O, C>
where
    C: Codec<I> + Codec<O>,
{
    /// Sends a query to the worker that is best placed for it, and waits for its answer. Where every worker has
    /// what it should have, it waits in the queue, in turn.
    ///
    /// The input is encoded at once, and the query goes out when the future is first polled.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the query: one that has not started never will, and a handler that has is told, and killed with
    /// its worker if it does not yield within the cancel grace.
    ///
    /// # Errors
    /// [`QueryError`]; every query resolves exactly once.
    pub fn query(&self, input: &I) -> impl Future<Output = Result<O, QueryError>> + Send + use<I, O, C> {
        self.query_with(input, QueryOptions::new())
    }

    /// The same, with a timeout or retries of its own.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub fn query_with(
        &self,
        input: &I,
        options: QueryOptions,
    ) -> impl Future<Output = Result<O, QueryError>> + Send + use<I, O, C> {
        let call = self.call(input, self.terms.with(options));
        Decoded::new(Carry::new(self.pool.handle.clone(), call), self.codec.clone())
    }

    /// Sends a query only if it can be taken now: to a worker, or into the queue.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    ///
    /// # Errors
    /// [`TryQueryError::Full`] gives the input back; otherwise as [`query`](Self::query).
    pub async fn try_query(&self, input: I) -> Result<O, TryQueryError<I>> {
        let mut carry = Carry::new(&*self.pool.handle, self.call(&input, self.terms));
        poll_fn(|cx| carry.poll_send(true, cx)).await;
        if carry.is_full() {
            return Err(TryQueryError::Full(input));
        }
        Ok(carry.await?.decode(&self.codec)?)
    }

    /// Sends a query to this worker, whatever else it has. It goes to no other one, and is not tried again.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    ///
    /// # Errors
    /// [`QueryError::NoWorkers`] where it is gone, ends before it has started the query, or has 512 of them; otherwise as [`query`](Self::query).
    pub async fn query_on(&self, worker: WorkerId, input: &I) -> Result<O, QueryError> {
        self.send_to(worker, input)?.await?.decode(&self.codec)
    }

    /// Sends a query to this worker.
    fn send_to(&self, worker: WorkerId, input: &I) -> Result<Carry<&Handle>, QueryError> {
        let call = self.call(input, self.terms)?.named();
        call.begin(clock::now());
        self.pool.handle.pool.submit_to(worker, &call)?;
        Ok(Carry::sent(&*self.pool.handle, call))
    }

    /// Sends the same query to each worker that serves now, as [`query_on`](Self::query_on) does: one answer, or error, from each.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    pub async fn query_all(&self, input: &I) -> Vec<(WorkerId, Result<O, QueryError>)> {
        let workers = self.pool.workers().into_iter().map(|worker| worker.id);
        // All go out before the first one is waited for.
        let sent: Vec<_> = workers.map(|worker| (worker, self.send_to(worker, input))).collect();
        let mut answers = Vec::with_capacity(sent.len());
        for (worker, sent) in sent {
            let answer = match sent {
                Ok(carry) => carry.await.and_then(|answer| answer.decode(&self.codec)),
                Err(error) => Err(error),
            };
            answers.push((worker, answer));
        }
        answers
    }

    /// Starts a worker for this query alone, which is gone afterwards. In the mode of this pool: a process, or a thread.
    ///
    /// # Errors
    /// As [`query`](Self::query); a worker that cannot be started gives [`QueryError::GaveUp`].
    ///
    /// # Cancel safety
    /// As [`query`](Self::query): the worker is killed.
    pub async fn query_temporary(&self, input: &I) -> Result<O, QueryError> {
        self.temporary(input, false).await
    }

    /// The same in a process, even where spawning is disabled.
    ///
    /// # Errors
    /// As [`query_temporary`](Self::query_temporary).
    ///
    /// # Cancel safety
    /// As [`query`](Self::query): the worker is killed.
    pub async fn query_temporary_forced(&self, input: &I) -> Result<O, QueryError> {
        self.temporary(input, true).await
    }

    async fn temporary(&self, input: &I, force: bool) -> Result<O, QueryError> {
        let call = self.call(input, self.terms)?;
        let gave_up = |error: &StartError| QueryError::GaveUp {
            pool: self.pool.name().into(),
            cause: crate::machine::cause::ExitCause::NotStarted { reason: crate::driver::worker::chain(error) },
            stderr: String::new(),
        };
        let handle = Arc::new(Handle {
            pool: (self.recipe)(Budget::NEVER, force).map_err(|error| gave_up(&error))?,
            addresses: Arc::default(),
        });
        begin(&handle.pool, 1).await.map_err(|error| gave_up(&error))?;
        let answer = Carry::new(&*handle, Ok(call)).await;
        registry::shut_down(handle.pool.clone(), Some(registry::SHUTDOWN_LIMIT)).await;
        answer?.decode(&self.codec)
    }

    /// A call with this input.
    pub(super) fn call(&self, input: &I, terms: Terms) -> Result<Arc<Call>, QueryError> {
        Call::new(terms, |buffer| encoded(self.codec.name(), self.codec.encode(input, buffer), buffer.len()))
    }
}

/// Its pool: what it is doing, how many workers it has, its end.
impl<I, O, C> Deref for QueryManager<I, O, C> {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl Terms {
    pub(super) fn with(mut self, options: QueryOptions) -> Self {
        self.timeout = options.timeout.unwrap_or(self.timeout);
        self.retry = options.retry.unwrap_or(self.retry);
        self
    }
}
