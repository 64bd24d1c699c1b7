//! How a pool comes to be: its settings, their defaults, and its start.

mod calls;

use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::{PoolConfig, Workers};
use super::error::StartError;
use super::pool::{Handle, Pool, begin};
use super::query::{Recipe, SlowQuery, TimeoutFrom};
use super::worker::Worker;
use super::{registry, spawning};
use crate::codec::{Codec, Format, Postcard};
use crate::driver::inprocess::ThreadStarter;
use crate::driver::listeners::Listeners;
use crate::driver::pool::{self, AnyPool, Command, Hooks, Policies, Settings};
use crate::driver::start::ProcessStarter;
use crate::driver::visitor::{self, Door, VisitorStarter};
use crate::machine::budget::Budget;
use crate::machine::id::WorkerId;
use crate::machine::pool::Input;
use crate::machine::recycle::{Recycle, Recycling};
use crate::machine::retry::Retry;
use crate::machine::scaling::{Autoscale, Scaling};
use crate::machine::spec::{Program, Spec, SpecBuilder};
use crate::machine::stream::Grant;
use crate::machine::unit::Times;
use crate::transport::Transport;
use crate::worker::role::{Query, Role, Stream};
use calls::Calls;
pub use calls::{Queries, Raw, Streams};

/// The timeout of a query where nothing else is said: 15 minutes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How many queries may wait for a worker where nothing else is said.
pub const DEFAULT_QUEUE: usize = 4096;

/// How long a worker may take to end a cancelled call where nothing else is said.
pub const DEFAULT_CANCEL_GRACE: Duration = Duration::from_secs(1);

/// How long a worker that has not ended a cancelled stream may say nothing where nothing else is said: longer than for a query, since it has others.
pub const DEFAULT_STREAM_GRACE: Duration = Duration::from_secs(10);

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

impl<I, O, T> Stream<I, O, T>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    T: Transport + Default,
{
    /// A pool of workers that serve this stream: processes of this very program.
    pub fn pool(&'static self) -> PoolBuilder<I, O, Postcard, T, Streams> {
        PoolBuilder::role(self, T::default(), Postcard).streams()
    }
}

/// A pool in the making. `M` says which calls it serves: [`Queries`], [`Streams`], or the conversations of [`Raw`] workers.
#[must_use = "a builder does nothing until it is started"]
pub struct PoolBuilder<I, O, C, T, M = Queries> {
    name: Arc<str>,
    spec: SpecBuilder,
    role: Option<&'static dyn Role>,
    transport: T,
    codec: C,
    /// None where nothing was said.
    workers: Option<Workers>,
    calls: M,
    budget: Budget,
    autoscale: Option<Autoscale>,
    recycle: Recycle,
    /// What is wrong with its configuration.
    misfit: Option<StartError>,
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

    /// A pool of workers that pm does not start: whoever connects to the Unix socket at `path`, and is of this user, is a worker, as many at the same time as the pool
    /// has workers; others wait. A program that calls `pm::roles` or `pm::serve`, or uses one of the kits, connects where `PM_SOCKET` names the socket; how others do it is
    /// in docs/PROTOCOL.md. One with several roles serves what `.spec(|spec| spec.serving("NAME"))` here or `PM_ROLE` there names. `transport` has to be one over
    /// sockets, as `pm::Uds` is: with another one the start fails.
    ///
    /// The start of such a pool waits for nobody, and it never gives up. The socket is made for this user alone (0600, in a directory of 0700 where there was none), and
    /// removed with the pool. A visitor that pm would have to kill loses its link; its process is left alone, and what is known of its end is only that it came.
    pub fn visitors(name: impl Into<Arc<str>>, path: impl Into<PathBuf>, transport: T, codec: C) -> Self {
        Self::new(name.into(), Spec::visitor(path), None, transport, codec).budget(Budget::ENDLESS)
    }

    /// The same pool, but its workers serve streams.
    pub fn streams(self) -> PoolBuilder<I, O, C, T, Streams> {
        self.exchange(|transport, codec, _| (transport, codec, Streams::default()))
    }

    /// The same pool, but its workers are raw: each serves one stream, which the pool opens with it. See
    /// [`RawManager`](super::raw::RawManager).
    pub fn raw(self) -> PoolBuilder<I, O, C, T, Raw> {
        self.streams().raw()
    }

    fn new(name: Arc<str>, spec: SpecBuilder, role: Option<&'static dyn Role>, transport: T, codec: C) -> Self {
        PoolBuilder {
            name,
            spec,
            role,
            transport,
            codec,
            workers: None,
            calls: Queries::default(),
            budget: Budget::default(),
            autoscale: None,
            recycle: Recycle::new(),
            misfit: None,
            in_process: false,
            force: false,
            hooks: Hooks::default(),
            types: PhantomData,
        }
    }
}

impl<I, O, C, T, M> PoolBuilder<I, O, C, T, M> {
    /// The name of the pool in events, errors and the registry. The role's or program's by default.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// How many workers it starts with: a number, or a preset of [`Workers`]. 1 by default, or the least number of its [autoscaling](Self::autoscale). With 0 the first
    /// query starts one.
    pub fn workers(mut self, workers: impl Into<Workers>) -> Self {
        self.workers = Some(workers.into());
        self
    }

    /// Has the load decide how many workers there are. Without it only the program does.
    ///
    /// The load is the calls that workers have and those that wait for one; of stream pools the open streams, of raw pools what the program says. Workers that
    /// start, or wait for their next start after a crash, count as workers. The idlest are the ones that go, and they finish what they have. Each step is an
    /// [`Event::Scaled`](crate::machine::event::Event::Scaled).
    ///
    /// A program may still [scale](super::pool::Pool::scale) within the bounds: that is where the load decides from, after a cool-down. `scale(0)` and `unspawn` send
    /// all away, and nobody comes back before the program scales again.
    pub fn autoscale(mut self, autoscale: Autoscale) -> Self {
        self.autoscale = Some(autoscale);
        self
    }

    /// How often workers may die before the pool gives up; 5 crash loops in 30 minutes by default.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// When workers are replaced while they are well; never by default. One at a time, by a new one that serves before the old one drains, so that no query is
    /// lost and the capacity stays what it is. Each is an [`Event::Recycled`](crate::machine::event::Event::Recycled), and counts against no budget. A new one that
    /// cannot be started leaves the old one serving, and is tried again after a while.
    pub fn recycle(mut self, recycle: Recycle) -> Self {
        self.recycle = recycle;
        self
    }

    /// Changes how the processes are started: environment, working directory, limits, user.
    pub fn spec(mut self, change: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Self {
        self.spec = change(self.spec);
        self
    }

    /// Uses another transport.
    pub fn transport<U>(self, transport: U) -> PoolBuilder<I, O, C, U, M> {
        self.exchange(|_, codec, calls| (transport, codec, calls))
    }

    /// Uses another codec.
    pub fn codec<D>(self, codec: D) -> PoolBuilder<I, O, D, T, M> {
        self.exchange(|transport, _, calls| (transport, codec, calls))
    }

    /// The same pool with other parts where its type depends on them.
    fn exchange<U, D, N>(self, parts: impl FnOnce(T, C, M) -> (U, D, N)) -> PoolBuilder<I, O, D, U, N> {
        let (transport, codec, calls) = parts(self.transport, self.codec, self.calls);
        PoolBuilder {
            transport,
            codec,
            calls,
            name: self.name,
            spec: self.spec,
            role: self.role,
            workers: self.workers,
            budget: self.budget,
            autoscale: self.autoscale,
            recycle: self.recycle,
            misfit: self.misfit,
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
}

impl<I, O, C, T> PoolBuilder<I, O, C, T> {
    /// So many queries that wait for a worker are a full queue, into which [`try_query`](super::query::QueryManager::try_query) adds none; 4,096 by default. Whoever
    /// awaits a [`query`](super::query::QueryManager::query) waits in turn however many there are: it is the program that bounds how many it makes.
    pub fn queue(mut self, queries: usize) -> Self {
        self.calls.queue = queries;
        self
    }

    /// How long a query may take; 15 minutes by default, none for as long as it likes. With retries it is the limit of each try.
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.calls.terms.timeout = limit.into();
        self
    }

    /// Since when the time of a query counts: since it was made (the default), or since a worker can have started it.
    pub fn timeout_from(mut self, from: TimeoutFrom) -> Self {
        self.calls.terms.timeout_from = from;
        self
    }

    /// When queries are tried again; never by default. Only for work that may run twice.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.calls.terms.retry = retry;
        self
    }

    /// How long a worker may take to end a call that was cancelled or timed out, before it is killed; 1 s by default, none for ever.
    pub fn cancel_grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.calls.cancel_grace = grace.into();
        self
    }

    /// Is told of every query that took at least this long.
    pub fn on_slow(mut self, threshold: Duration, hook: impl Fn(SlowQuery) + Send + Sync + 'static) -> Self {
        self.hooks.slow = Some((threshold, Box::new(hook)));
        self
    }
}

impl<I, O, C, T> PoolBuilder<I, O, C, T, Streams> {
    /// The same pool, but its workers are raw: each serves one stream, which the pool opens with it. See
    /// [`RawManager`](super::raw::RawManager).
    pub fn raw(self) -> PoolBuilder<I, O, C, T, Raw> {
        self.exchange(|transport, codec, Streams { window, .. }| (transport, codec, Raw { window }))
    }

    /// How many messages, and bytes in them, this program holds of each stream that it has not read: 1024 and 256 KiB by default. Both from 1 to 2^31 - 1. What the
    /// worker holds is for its role to say.
    pub fn window(mut self, messages: u32, bytes: u32) -> Self {
        self.calls.window = Grant { messages, bytes }.within_limits();
        self
    }

    /// How long a worker that was told to end a stream, and has not, may say nothing at all before it is killed with all of its streams; 10 s by default, none for ever. Until
    /// then it is asked once for each such time whether it lives, so one whose handler never gives way is found out within twice the grace, and one that only takes long to end
    /// a stream is left alone. A foreign program is never found out: its link answers for it.
    pub fn cancel_grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.calls.cancel_grace = grace.into();
        self
    }
}

impl<I, O, C, T> PoolBuilder<I, O, C, T, Raw> {
    /// How many messages, and bytes in them, this program holds of each conversation that it has not read: 1024 and 256 KiB by default. Both from 1 to 2^31 - 1.
    pub fn window(mut self, messages: u32, bytes: u32) -> Self {
        self.calls.window = Grant { messages, bytes }.within_limits();
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
}

impl<I, O, C, T, M> PoolBuilder<I, O, C, T, M>
where
    I: 'static,
    O: 'static,
    C: Codec<I> + Codec<O>,
    T: Transport + Clone,
    M: Calls<I, O, C>,
{
    /// Does what a configuration says. What it says counts instead of what was said before, and what is said afterwards counts instead of it. A configuration that
    /// speaks of queries, where the pool serves something else, is an error of the start.
    pub fn configure(mut self, config: &PoolConfig) -> Self {
        self.workers = config.workers.or(self.workers);
        if let Some(limit) = config.start_timeout {
            self.spec = self.spec.start_timeout(limit.unwrap_or(Duration::MAX));
        }
        if let Some(grace) = config.stop_grace {
            self.spec = self.spec.stop_grace(grace);
        }
        if let Some(autoscale) = &config.autoscale {
            self.autoscale = Some(autoscale.change(self.autoscale.unwrap_or_default()));
        }
        if let Some(recycle) = &config.recycle {
            self.recycle = recycle.change(self.recycle);
        }
        if let Some(budget) = &config.budget {
            self.budget = budget.change(self.budget);
        }
        if let Err(misfit) = self.calls.configure(config) {
            self.misfit.get_or_insert(misfit);
        }
        self
    }

    /// Starts the pool, and returns once all its workers are ready. What it returns depends on what the workers serve: a [`QueryManager`](super::query::QueryManager), a
    /// [`StreamManager`](super::stream::StreamManager) or a [`RawManager`](super::raw::RawManager).
    ///
    /// # Errors
    /// [`StartError`]: the first worker that cannot be started says why. Nothing is left running then.
    ///
    /// # Cancel safety
    /// A start that is dropped leaves nothing running.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers.
    pub async fn start(mut self) -> Result<M::Manager, StartError> {
        let manage = self.calls.manage(&self.codec, &mut self.hooks);
        let (pool, recipe) = start_pool(self).await?;
        Ok(manage(pool, recipe))
    }

    /// Starts one worker that is not replaced when it ends: a pool of one.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    /// As [`start`](Self::start).
    pub async fn start_worker(mut self) -> Result<Worker<M::Manager>, StartError> {
        (self.autoscale, self.recycle) = (None, Recycle::new());
        Ok(Worker::new(self.workers(1).budget(Budget::NEVER).start().await?))
    }
}

/// Starts a pool, and says how to start another one of its sort.
async fn start_pool<I: 'static, O: 'static, C: Format, T: Transport + Clone, M: Calls<I, O, C>>(
    mut builder: PoolBuilder<I, O, C, T, M>,
) -> Result<(Pool, Arc<Recipe>), StartError> {
    if let Some(misfit) = builder.misfit {
        return Err(misfit);
    }
    let scaling = builder.autoscale.map(Scaling::new).transpose()?;
    let recycling = Recycling::new(builder.recycle, pool::seed())?;
    let bounds = scaling.as_ref().map(Scaling::bounds);
    let workers = builder.workers.map_or(bounds.map_or(1, |(min, _)| min), Workers::count);
    let workers = within_limits(workers, bounds)?;
    if builder.calls.queue() == 0 {
        let why = "a pool needs room for at least one query; `try_query` never waits";
        return Err(StartError::Setting { setting: "queue", value: "0".to_string(), why });
    }
    let (policies, force) = (Policies { budget: builder.budget, scaling, recycling }, builder.force);
    let hooks = std::mem::take(&mut builder.hooks);
    let spec = std::mem::replace(&mut builder.spec, Spec::role("")).build()?;
    // What holds them is the pool itself: they are closed when it ends.
    let listeners = Arc::new(Listeners::bind(spec.listeners())?);
    let addresses = listeners.addresses();
    let door = match spec.what() {
        Program::Visitor(path) => {
            visitor::check_transport(&builder.transport)?;
            Some(Door::open(path)?)
        }
        Program::Role(_) | Program::Path(_) => None,
    };
    let takes_visitors = door.is_some();
    let recipe = recipe(builder, spec, Arc::downgrade(&listeners), Mutex::new(door));
    let handle = Arc::new(Handle { pool: recipe(policies, force, hooks)?, addresses });
    drop(listeners);
    if takes_visitors {
        let scale = Command::Input(Input::Scale { workers, idlest: Vec::new() });
        // A pool that has just begun has room for a command.
        let _ = handle.pool.commands().send(scale).await;
    } else if workers > 0
        && let Err(error) = begin(&handle.pool, workers).await
    {
        registry::shut_down(handle.pool.clone(), Some(Duration::ZERO)).await;
        return Err(error);
    }
    registry::add(&handle.pool);
    let recipe: Arc<Recipe> = Arc::new(move |budget, force| recipe(Policies::only(budget), force, Hooks::default()));
    Ok((Pool { handle }, recipe))
}

/// How to start pools of this sort: with these policies and these hooks, in processes even where spawning is disabled if it is forced to.
fn recipe<I, O, C: Format, T: Transport + Clone, M: Calls<I, O, C>>(
    builder: PoolBuilder<I, O, C, T, M>,
    spec: Spec,
    listeners: Weak<Listeners>,
    door: Mutex<Option<Door>>,
) -> impl Fn(Policies, bool, Hooks) -> Result<Arc<dyn AnyPool>, StartError> + Send + Sync {
    let codec = builder.codec;
    let (name, queue, role, transport) = (builder.name, builder.calls.queue(), builder.role, builder.transport);
    let mut link = builder.calls.link();
    link.worn_after = builder.recycle.call_limit().unwrap_or(u64::MAX);
    let in_process = builder.in_process;
    move |policies: Policies, force: bool, mut hooks: Hooks| -> Result<Arc<dyn AnyPool>, StartError> {
        let summary = codec.clone();
        hooks.describe.get_or_insert_with(|| Box::new(move |opening| M::summary(&summary, opening)));
        let settings = Settings { name: name.clone(), codec: codec.name().to_string(), queue, policies, link, hooks };
        let threads = !force && (in_process || !spawning::is_enabled());
        if let Program::Visitor(_) = spec.what() {
            if in_process {
                let why = "visitors are processes, which nobody here starts";
                return Err(StartError::Setting { setting: "in-process mode", value: "on".to_string(), why });
            }
            // The first pool has it, and no other one ever.
            let Some(door) = door.lock().unwrap_or_else(PoisonError::into_inner).take() else {
                let why = "a visitor comes by itself, and cannot be started for one query";
                return Err(StartError::Setting { setting: "a worker of its own", value: "wanted".to_string(), why });
            };
            let (spec, transport) = (spec.clone(), transport.clone());
            return Ok(pool::spawn(
                VisitorStarter { spec, transport, door: Mutex::new(Some(Arc::new(door))) },
                settings,
            ));
        }
        match role {
            Some(_) if threads && !spec.listeners().is_empty() => {
                let why = "listeners are given to processes; `.force()` spawns them all the same";
                Err(StartError::Setting { setting: "in-process mode", value: "on".to_string(), why })
            }
            Some(role) if threads => Ok(pool::spawn(ThreadStarter { role, times: Times::default() }, settings)),
            None if threads => {
                let why = "another program cannot serve in this process; `.force()` spawns it all the same";
                Err(StartError::Setting { setting: "in-process mode", value: "on".to_string(), why })
            }
            _ => {
                let (spec, transport) = (spec.clone(), transport.clone());
                let listeners = Mutex::new(listeners.upgrade().unwrap_or_default());
                Ok(pool::spawn(ProcessStarter { pool: name.clone(), spec, transport, listeners }, settings))
            }
        }
    }
}

/// As many workers as a pool may have, and this one where it has bounds. It may always have none.
pub(super) fn within_limits(workers: u32, bounds: Option<(u32, u32)>) -> Result<u32, StartError> {
    let (value, why) = match bounds {
        _ if workers > MAX_WORKERS => (workers.to_string(), "a pool has at most 4096 workers"),
        Some((min, max)) if workers > 0 && !(min..=max).contains(&workers) => {
            (format!("{workers}, not from {min} to {max}"), "these are the bounds of its autoscaling")
        }
        _ => return Ok(workers),
    };
    Err(StartError::Setting { setting: "workers", value, why })
}
