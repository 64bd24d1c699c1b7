//! How a pool comes to be: its settings, their defaults, and its start.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StartError;
use super::query::{Handle, QueryManager, Recipe, SlowQuery, TimeoutFrom, begin};
use super::worker::Worker;
use super::{registry, spawning};
use crate::codec::{Codec, Postcard};
use crate::driver::call::Terms;
use crate::driver::inprocess::ThreadStarter;
use crate::driver::link::LinkSettings;
use crate::driver::pool::{self, AnyPool, Hooks, Settings};
use crate::driver::start::ProcessStarter;
use crate::machine::budget::Budget;
use crate::machine::id::WorkerId;
use crate::machine::retry::Retry;
use crate::machine::spec::{Spec, SpecBuilder};
use crate::machine::unit::Times;
use crate::transport::Transport;
use crate::worker::role::{Query, Role};

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

    /// So many queries that wait for a worker are a full queue, into which [`try_query`](QueryManager::try_query) adds none; 4,096 by default. Whoever
    /// awaits a [`query`](QueryManager::query) waits in turn however many there are: it is the program that bounds how many it makes.
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
        self.exchange(|_, codec| (transport, codec))
    }

    /// Uses another codec.
    pub fn codec<D>(self, codec: D) -> PoolBuilder<I, O, D, T> {
        self.exchange(|transport, _| (transport, codec))
    }

    /// The same pool with other parts where its type depends on them.
    fn exchange<U, D>(self, parts: impl FnOnce(T, C) -> (U, D)) -> PoolBuilder<I, O, D, U> {
        let (transport, codec) = parts(self.transport, self.codec);
        PoolBuilder {
            transport,
            codec,
            name: self.name,
            spec: self.spec,
            role: self.role,
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

/// As many workers as a pool may have.
pub(super) fn within_limits(workers: u32) -> Result<u32, StartError> {
    if workers <= MAX_WORKERS {
        return Ok(workers);
    }
    let why = "a pool has at most 4096 workers";
    Err(StartError::Setting { setting: "workers", value: workers.to_string(), why })
}
