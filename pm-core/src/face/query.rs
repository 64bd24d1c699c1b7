//! Query pools: one input, one output, in another process.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, oneshot};

use super::error::{QueryError, StartError, TryQueryError};
use super::worker::Worker;
use super::{registry, spawning};
use crate::codec::{Codec, Postcard};
use crate::driver::call::{Call, Outcome, Terms};
use crate::driver::clock;
use crate::driver::inprocess::ThreadStarter;
use crate::driver::link::LinkSettings;
use crate::driver::pool::{self, AnyPool, Command, Hooks, Settings};
use crate::driver::start::ProcessStarter;
use crate::machine::budget::Budget;
use crate::machine::event::Event;
use crate::machine::frame::MAX_PAYLOAD;
use crate::machine::id::WorkerId;
use crate::machine::pool::Input;
use crate::machine::retry::Retry;
use crate::machine::spec::{Spec, SpecBuilder};
use crate::machine::unit::Times;
use crate::transport::Transport;
use crate::worker::role::{Query, Role};

pub use crate::driver::call::TimeoutFrom;
pub use crate::driver::pool::{PoolInfo, SlowQuery, WorkerInfo};

/// The timeout of a query where nothing else is said: 15 minutes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How many queries may wait for a worker where nothing else is said.
pub const DEFAULT_QUEUE: usize = 4096;

/// How long a worker may take to end a cancelled call where nothing else is said.
pub const DEFAULT_CANCEL_GRACE: Duration = Duration::from_secs(1);

/// The most workers that one pool may have.
pub const MAX_WORKERS: u32 = 4096;

/// How many calls one worker may have aboard, those included that name it.
const LINK_CAPACITY: usize = 512;

/// A pool of workers that answer queries. Made by [`Query::pool`] or [`PoolBuilder::program`].
///
/// It is cheap to clone, and every clone is the same pool. When the last clone is dropped, the workers are killed;
/// [`shutdown`](Self::shutdown) lets them finish first.
pub struct QueryManager<I, O, C = Postcard> {
    handle: Arc<Handle>,
    codec: C,
    terms: Terms,
    recipe: Arc<Recipe>,
    types: PhantomData<fn(I) -> O>,
}

/// Starts another pool of the same sort: with how many workers, and whether it must spawn.
type Recipe = dyn Fn(Budget, bool) -> Result<Arc<dyn AnyPool>, StartError> + Send + Sync;

/// What all clones of a manager share.
struct Handle {
    pool: Arc<dyn AnyPool>,
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
    /// Sends a query to the worker that is best placed for it, and waits for its answer. Waits for room first, where every worker has
    /// what it should have and the queue is full.
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
        let encoded = self.encode(input);
        let (codec, terms, handle) = (self.codec.clone(), self.terms.with(options), self.handle.clone());
        async move { decode(&codec, &carry(&handle, encoded?, terms).await?) }
    }

    /// Sends a query only if it can be taken now: to a worker, or into the queue.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    ///
    /// # Errors
    /// [`TryQueryError::Full`] gives the input back; otherwise as [`query`](Self::query).
    pub async fn try_query(&self, input: I) -> Result<O, TryQueryError<I>> {
        let encoded = self.encode(&input)?;
        let call = Call::new(encoded, self.terms, clock::now());
        let pool = &*self.handle.pool;
        if !pool.submit(call.made, &call) {
            return Err(TryQueryError::Full(input));
        }
        let guard = Guard { pool, call: &call };
        let answer = poll_fn(|cx| guard.call.poll(cx)).await?;
        Ok(decode(&self.codec, &answer)?)
    }

    /// Sends a query to this worker, whatever else it has. It goes to no other one, and is not tried again.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    ///
    /// # Errors
    /// [`QueryError::NoWorkers`] where it is gone, ends before it has started the query, or has 512 of them; otherwise as [`query`](Self::query).
    pub async fn query_on(&self, worker: WorkerId, input: &I) -> Result<O, QueryError> {
        let call = Call::named(self.encode(input)?, self.terms, clock::now());
        let pool = &*self.handle.pool;
        pool.submit_to(worker, &call)?;
        let guard = Guard { pool, call: &call };
        decode(&self.codec, &poll_fn(|cx| guard.call.poll(cx)).await?)
    }

    /// Sends the same query to each worker that serves now, as [`query_on`](Self::query_on) does: one answer, or error, from each.
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    pub async fn query_all(&self, input: &I) -> Vec<(WorkerId, Result<O, QueryError>)> {
        let mut calls = Vec::new();
        let pool = &*self.handle.pool;
        for worker in pool.workers() {
            let begun = self.encode(input).and_then(|encoded| {
                let call = Call::named(encoded, self.terms, clock::now());
                pool.submit_to(worker.id, &call).map(|()| call)
            });
            calls.push((worker.id, begun));
        }
        // Whoever drops this future has lost interest in all of them, not only in the one that it waits for.
        let guards: Vec<_> = calls.iter().map(|(_, begun)| begun.as_ref().map(|call| Guard { pool, call })).collect();
        let mut answers = Vec::new();
        for ((worker, _), guard) in calls.iter().zip(&guards) {
            let answer = match guard {
                Ok(guard) => poll_fn(|cx| guard.call.poll(cx)).await.and_then(|answer| decode(&self.codec, &answer)),
                Err(error) => Err(QueryError::clone(error)),
            };
            answers.push((*worker, answer));
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
        let encoded = self.encode(input)?;
        let gave_up = |error: &StartError| QueryError::GaveUp {
            pool: self.handle.pool.name().clone(),
            cause: crate::machine::cause::ExitCause::NotStarted { reason: crate::driver::worker::chain(error) },
            stderr: String::new(),
        };
        let handle = Arc::new(Handle { pool: (self.recipe)(Budget::NEVER, force).map_err(|error| gave_up(&error))? });
        begin(&handle.pool, 1).await.map_err(|error| gave_up(&error))?;
        let answer = carry(&handle, encoded, self.terms).await;
        registry::shut_down(handle.pool.clone(), Some(registry::SHUTDOWN_LIMIT)).await;
        decode(&self.codec, &answer?)
    }

    fn encode(&self, input: &I) -> Result<Vec<u8>, QueryError> {
        let mut encoded = Vec::new();
        self.codec
            .encode(input, &mut encoded)
            .map_err(|error| QueryError::Encode { codec: self.codec.name(), message: error.to_string() })?;
        if encoded.len() > MAX_PAYLOAD {
            return Err(QueryError::TooLarge { size: encoded.len(), limit: MAX_PAYLOAD });
        }
        Ok(encoded)
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

/// Carries a call to its outcome.
async fn carry(handle: &Handle, encoded: Vec<u8>, terms: Terms) -> Outcome {
    let pool = &*handle.pool;
    let call = Call::new(encoded, terms, clock::now());
    let guard = Guard { pool, call: &call };
    if !pool.submit(call.made, &call) {
        wait_for_room(pool, &call).await?;
    }
    poll_fn(|cx| guard.call.poll(cx)).await
}

async fn wait_for_room(pool: &dyn AnyPool, call: &Arc<Call>) -> Result<(), QueryError> {
    loop {
        let mut room = std::pin::pin!(pool.room().notified());
        // From here on no room is missed.
        room.as_mut().enable();
        if pool.submit(clock::now(), call) {
            // The call may have gone to a worker, and the room in the queue is there for the next who waits.
            pool.room().notify_one();
            return Ok(());
        }
        match call.until() {
            None => room.await,
            Some(until) => {
                if tokio::time::timeout_at(clock::instant(until), room).await.is_err() {
                    let limit = call.terms.timeout.unwrap_or_default();
                    return Err(QueryError::TimedOut { limit, worker: None, tries: call.tries() });
                }
            }
        }
    }
}

/// Whoever drops this before the call has its outcome has lost interest in it.
struct Guard<'a> {
    pool: &'a dyn AnyPool,
    call: &'a Call,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.call.is_over() {
            self.pool.abandon(self.call);
        }
    }
}

fn decode<O, C: Codec<O>>(codec: &C, answer: &[u8]) -> Result<O, QueryError> {
    codec.decode(answer).map_err(|error| QueryError::Decode { codec: codec.name(), message: error.to_string() })
}

async fn settle(pool: &Arc<dyn AnyPool>, input: Input) -> Result<(), StartError> {
    let (answer, settled) = oneshot::channel();
    // What could not be sent holds the answer's other end, and nobody would ever drop it while this waits.
    pool.commands().send(Command::Settle(input, answer)).await.map_err(|_| StartError::ShuttingDown)?;
    settled.await.unwrap_or(Err(StartError::ShuttingDown))
}

async fn begin(pool: &Arc<dyn AnyPool>, workers: u32) -> Result<(), StartError> {
    let (answer, started) = oneshot::channel();
    let command = Command::Start(Input::Scale { workers, idlest: Vec::new() }, answer);
    pool.commands().send(command).await.map_err(|_| StartError::ShuttingDown)?;
    started.await.unwrap_or(Err(StartError::ShuttingDown))
}

fn within_limits(workers: u32) -> Result<u32, StartError> {
    if workers <= MAX_WORKERS {
        return Ok(workers);
    }
    let why = "a pool has at most 4096 workers";
    Err(StartError::Setting { setting: "workers", value: workers.to_string(), why })
}

impl Terms {
    fn with(mut self, options: QueryOptions) -> Self {
        self.timeout = options.timeout.unwrap_or(self.timeout);
        self.retry = options.retry.unwrap_or(self.retry);
        self
    }
}

impl<I, O, T> Query<I, O, T>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    T: Transport + Default,
{
    /// A pool of workers that serve this query: processes of this very program.
    pub fn pool(&'static self) -> PoolBuilder<I, O, Postcard, T> {
        PoolBuilder::role(self, T::default(), Postcard)
    }
}

/// A pool in the making.
#[must_use = "a builder does nothing until it is started"]
pub struct PoolBuilder<I, O, C, T> {
    name: Arc<str>,
    spec: SpecBuilder,
    role: Option<&'static dyn Role>,
    transport: T,
    codec: C,
    workers: u32,
    queue: usize,
    terms: Terms,
    budget: Budget,
    cancel_grace: Option<Duration>,
    in_process: bool,
    force: bool,
    hooks: Hooks,
    types: PhantomData<fn(I) -> O>,
}

impl<I, O, C, T> PoolBuilder<I, O, C, T> {
    /// A pool of processes of this very program that serve `role`.
    pub fn role(role: &'static dyn Role, transport: T, codec: C) -> Self {
        Self::new(role.name().into(), Spec::role(role.name()), Some(role), transport, codec)
    }

    /// A pool of processes of another program, which speaks the protocol.
    pub fn program(name: impl Into<Arc<str>>, spec: SpecBuilder, transport: T, codec: C) -> Self {
        Self::new(name.into(), spec, None, transport, codec)
    }

    fn new(name: Arc<str>, spec: SpecBuilder, role: Option<&'static dyn Role>, transport: T, codec: C) -> Self {
        PoolBuilder {
            name,
            spec,
            role,
            transport,
            codec,
            workers: 1,
            queue: DEFAULT_QUEUE,
            terms: Terms { timeout: Some(DEFAULT_TIMEOUT), timeout_from: TimeoutFrom::Query, retry: Retry::NEVER },
            budget: Budget::default(),
            cancel_grace: Some(DEFAULT_CANCEL_GRACE),
            in_process: false,
            force: false,
            hooks: Hooks::default(),
            types: PhantomData,
        }
    }

    /// The name of the pool in events, errors and the registry. The role's or program's by default.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// How many workers it starts with; 1 by default. With 0 the first query starts one.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// How many queries may wait for a worker; 4,096 by default.
    pub fn queue(mut self, queries: usize) -> Self {
        self.queue = queries;
        self
    }

    /// How long a query may take; 15 minutes by default, none for as long as it likes. With retries it is the limit of each try.
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.terms.timeout = limit.into();
        self
    }

    /// Since when the time of a query counts: since it was made (the default), or since a worker can have started it.
    pub fn timeout_from(mut self, from: TimeoutFrom) -> Self {
        self.terms.timeout_from = from;
        self
    }

    /// When queries are tried again; never by default. Only for work that may run twice.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.terms.retry = retry;
        self
    }

    /// How often workers may die before the pool gives up; 5 crash loops in 30 minutes by default.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// How long a worker may take to end a call that was cancelled or timed out, before it is killed; 1 s by default, none for ever.
    pub fn cancel_grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.cancel_grace = grace.into();
        self
    }

    /// Changes how the processes are started: environment, working directory, limits, user.
    pub fn spec(mut self, change: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Self {
        self.spec = change(self.spec);
        self
    }

    /// Uses another transport.
    pub fn transport<U>(self, transport: U) -> PoolBuilder<I, O, C, U> {
        PoolBuilder {
            transport,
            name: self.name,
            spec: self.spec,
            role: self.role,
            codec: self.codec,
            workers: self.workers,
            queue: self.queue,
            terms: self.terms,
            budget: self.budget,
            cancel_grace: self.cancel_grace,
            in_process: self.in_process,
            force: self.force,
            hooks: self.hooks,
            types: PhantomData,
        }
    }

    /// Uses another codec.
    pub fn codec<D>(self, codec: D) -> PoolBuilder<I, O, D, T> {
        PoolBuilder {
            codec,
            name: self.name,
            spec: self.spec,
            role: self.role,
            transport: self.transport,
            workers: self.workers,
            queue: self.queue,
            terms: self.terms,
            budget: self.budget,
            cancel_grace: self.cancel_grace,
            in_process: self.in_process,
            force: self.force,
            hooks: self.hooks,
            types: PhantomData,
        }
    }

    /// Serves in threads of this process: for tests and debuggers. The same calls and errors, but a handler that does not return cannot be
    /// killed, and one that takes the process down takes it down.
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// Spawns processes even where [spawning] is disabled.
    pub fn force(mut self) -> Self {
        self.force = true;
        self
    }

    /// Is told of every notice that a worker sends.
    pub fn on_notice(mut self, hook: impl Fn(WorkerId, &str) + Send + Sync + 'static) -> Self {
        self.hooks.notice = Some(Box::new(hook));
        self
    }

    /// Is told of every query that took at least this long.
    pub fn on_slow(mut self, threshold: Duration, hook: impl Fn(SlowQuery) + Send + Sync + 'static) -> Self {
        self.hooks.slow = Some((threshold, Box::new(hook)));
        self
    }
}

impl<I, O, C, T> PoolBuilder<I, O, C, T>
where
    I: 'static,
    O: 'static,
    C: Codec<I> + Codec<O>,
    T: Transport + Clone,
{
    /// Says in errors and slow-query reports what an input is about. By default the first 200 bytes of text, or the length.
    pub fn describe(mut self, describe: impl Fn(&I) -> String + Send + Sync + 'static) -> Self {
        let codec = self.codec.clone();
        self.hooks.describe = Some(Box::new(move |payload| match Codec::<I>::decode(&codec, payload) {
            Ok(input) => describe(&input),
            Err(_) => codec.summary(payload),
        }));
        self
    }

    /// Starts the pool, and returns once all its workers are ready.
    ///
    /// # Errors
    /// [`StartError`]: the first worker that cannot be started says why. Nothing is left running then.
    ///
    /// # Cancel safety
    /// A start that is dropped leaves nothing running.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers.
    pub async fn start(mut self) -> Result<QueryManager<I, O, C>, StartError> {
        let workers = within_limits(self.workers)?;
        if self.queue == 0 {
            let why = "a pool needs room for at least one query; `try_query` never waits";
            return Err(StartError::Setting { setting: "queue", value: "0".to_string(), why });
        }
        let (codec, terms, budget, force) = (self.codec.clone(), self.terms, self.budget, self.force);
        let hooks = std::mem::take(&mut self.hooks);
        let recipe = self.recipe()?;
        let pool = recipe(budget, force, hooks)?;
        let handle = Arc::new(Handle { pool });
        if workers > 0
            && let Err(error) = begin(&handle.pool, workers).await
        {
            registry::shut_down(handle.pool.clone(), Some(Duration::ZERO)).await;
            return Err(error);
        }
        registry::add(&handle.pool);
        let recipe: Arc<Recipe> = Arc::new(move |budget, force| recipe(budget, force, Hooks::default()));
        Ok(QueryManager { handle, codec, terms, recipe, types: PhantomData })
    }

    /// Starts one worker that is not replaced when it ends: a pool of one.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_worker(self) -> Result<Worker<I, O, C>, StartError> {
        Ok(Worker::new(self.workers(1).budget(Budget::NEVER).start().await?))
    }

    fn recipe(
        self,
    ) -> Result<impl Fn(Budget, bool, Hooks) -> Result<Arc<dyn AnyPool>, StartError> + Send + Sync, StartError> {
        let spec = self.spec.build()?;
        let codec = self.codec;
        let (name, queue, role, transport) = (self.name, self.queue, self.role, self.transport);
        let link = LinkSettings { cancel_grace: self.cancel_grace, capacity: LINK_CAPACITY };
        let in_process = self.in_process;
        Ok(move |budget: Budget, force: bool, mut hooks: Hooks| -> Result<Arc<dyn AnyPool>, StartError> {
            let summary = codec.clone();
            hooks.describe.get_or_insert_with(|| Box::new(move |payload| summary.summary(payload)));
            let settings = Settings { name: name.clone(), codec: codec.name().to_string(), queue, budget, link, hooks };
            let threads = !force && (in_process || !spawning::is_enabled());
            match role {
                Some(role) if threads => Ok(pool::spawn(ThreadStarter { role, times: Times::default() }, settings)),
                None if threads => {
                    let why = "another program cannot serve in this process; `.force()` spawns it all the same";
                    Err(StartError::Setting { setting: "in-process mode", value: "on".to_string(), why })
                }
                _ => {
                    let (spec, transport) = (spec.clone(), transport.clone());
                    Ok(pool::spawn(ProcessStarter { pool: name.clone(), spec, transport }, settings))
                }
            }
        })
    }
}
