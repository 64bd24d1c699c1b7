//! Query pools: one input, one output, in another process.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};

use super::builder::within_limits;
use super::carry::{Carry, Decoded};
use super::error::{QueryError, StartError, TryQueryError};
use super::registry;
use crate::codec::{Codec, Postcard};
use crate::driver::call::{Call, Terms};
use crate::driver::clock;
use crate::driver::pool::{AnyPool, Command};
use crate::machine::budget::Budget;
use crate::machine::event::Event;
use crate::machine::frame::MAX_PAYLOAD;
use crate::machine::id::WorkerId;
use crate::machine::pool::Input;
use crate::machine::retry::Retry;

pub use crate::driver::call::TimeoutFrom;
pub use crate::driver::pool::{PoolInfo, SlowQuery, WorkerInfo};

/// A pool of workers that answer queries. Made by a [`PoolBuilder`](super::builder::PoolBuilder).
///
/// It is cheap to clone, and every clone is the same pool. When the last clone is dropped, the workers are killed;
/// [`shutdown`](Self::shutdown) lets them finish first.
pub struct QueryManager<I, O, C = Postcard> {
    pub(super) handle: Arc<Handle>,
    pub(super) codec: C,
    pub(super) terms: Terms,
    pub(super) recipe: Arc<Recipe>,
    pub(super) types: PhantomData<fn(I) -> O>,
}

/// Starts another pool of the same sort: with how many workers, and whether it must spawn.
pub(super) type Recipe = dyn Fn(Budget, bool) -> Result<Arc<dyn AnyPool>, StartError> + Send + Sync;

/// What all clones of a manager share.
pub(super) struct Handle {
    pub(super) pool: Arc<dyn AnyPool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pool.kill();
    }
}

impl<I, O, C: Clone> Clone for QueryManager<I, O, C> {
    fn clone(&self) -> Self {
        QueryManager {
            handle: self.handle.clone(),
            codec: self.codec.clone(),
            terms: self.terms,
            recipe: self.recipe.clone(),
            types: PhantomData,
        }
    }
}

impl<I, O, C> fmt::Debug for QueryManager<I, O, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryManager").field("name", self.handle.pool.name()).finish_non_exhaustive()
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
        Decoded::new(Carry::new(self.handle.clone(), call), self.codec.clone())
    }

    /// Sends a query only if it can be taken now: to a worker, or into the queue.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    ///
    /// # Errors
    /// [`TryQueryError::Full`] gives the input back; otherwise as [`query`](Self::query).
    pub async fn try_query(&self, input: I) -> Result<O, TryQueryError<I>> {
        let mut carry = Carry::new(&*self.handle, self.call(&input, self.terms));
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
        self.handle.pool.submit_to(worker, &call)?;
        Ok(Carry::sent(&*self.handle, call))
    }

    /// Sends the same query to each worker that serves now, as [`query_on`](Self::query_on) does: one answer, or error, from each.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    pub async fn query_all(&self, input: &I) -> Vec<(WorkerId, Result<O, QueryError>)> {
        let workers = self.handle.pool.workers().into_iter().map(|worker| worker.id);
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
            pool: self.handle.pool.name().clone(),
            cause: crate::machine::cause::ExitCause::NotStarted { reason: crate::driver::worker::chain(error) },
            stderr: String::new(),
        };
        let handle = Arc::new(Handle { pool: (self.recipe)(Budget::NEVER, force).map_err(|error| gave_up(&error))? });
        begin(&handle.pool, 1).await.map_err(|error| gave_up(&error))?;
        let answer = Carry::new(&*handle, Ok(call)).await;
        registry::shut_down(handle.pool.clone(), Some(registry::SHUTDOWN_LIMIT)).await;
        answer?.decode(&self.codec)
    }

    /// A call with this input.
    pub(super) fn call(&self, input: &I, terms: Terms) -> Result<Arc<Call>, QueryError> {
        let call = Call::new(terms, |buffer| self.codec.encode(input, buffer))
            .map_err(|error| QueryError::Encode { codec: self.codec.name(), message: error.to_string() })?;
        match call.input.len() {
            size if size > MAX_PAYLOAD => Err(QueryError::TooLarge { size, limit: MAX_PAYLOAD }),
            _ => Ok(call),
        }
    }
}

impl<I, O, C> QueryManager<I, O, C> {
    /// The name of the pool.
    pub fn name(&self) -> &str {
        self.handle.pool.name()
    }

    /// The workers that serve now.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.handle.pool.workers()
    }

    /// The worker with the fewest calls.
    pub fn acquire(&self) -> Option<WorkerInfo> {
        self.workers().into_iter().min_by_key(|worker| (worker.load, worker.id))
    }

    /// What the pool is doing.
    pub fn info(&self) -> PoolInfo {
        self.handle.pool.info()
    }

    /// Everything that happens in the pool from now on. A listener that is more than 1,024 events behind loses the oldest, and is told how many.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.handle.pool.events()
    }

    /// Has `workers` workers: starts what is missing, and drains the idlest of what is too many. Returns once that is so.
    ///
    /// # Cancel safety
    /// A change that has begun goes on without its caller. That holds for all that follow here.
    ///
    /// # Errors
    /// [`StartError`] where workers cannot be started, or the pool is shut down.
    pub async fn scale(&self, workers: u32) -> Result<(), StartError> {
        let workers = within_limits(workers)?;
        settle(&self.handle.pool, Input::Scale { workers, idlest: Vec::new() }).await
    }

    /// Starts one more worker.
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
        settle(&self.handle.pool, Input::UnspawnOne(worker)).await
    }

    /// Drains all workers: they finish what they have begun. Queries that wait, in the queue or in a worker, fail with
    /// [`QueryError::NoWorkers`], and so do all others until the pool is scaled again.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn unspawn(&self) -> Result<(), StartError> {
        settle(&self.handle.pool, Input::Unspawn).await
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

    /// The same with another number of workers, and a limit for the drain of the old ones: what is then left of them is killed.
    ///
    /// # Errors
    /// As [`respawn`](Self::respawn).
    ///
    /// # Cancel safety
    /// What was asked for goes on without its caller.
    pub async fn respawn_with(&self, workers: u32, drain: Option<Duration>) -> Result<(), StartError> {
        let workers = Some(within_limits(workers)?);
        settle(&self.handle.pool, Input::Respawn { workers, drain }).await
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

impl Terms {
    pub(super) fn with(mut self, options: QueryOptions) -> Self {
        self.timeout = options.timeout.unwrap_or(self.timeout);
        self.retry = options.retry.unwrap_or(self.retry);
        self
    }
}
