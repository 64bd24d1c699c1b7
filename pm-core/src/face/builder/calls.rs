//! What a pool serves: queries, streams, or the conversations of raw workers. Each has settings of its own, and makes the manager that programs hold.

#![expect(private_interfaces, reason = "nobody outside can name the trait, whose methods are for the builder alone")]

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::super::config::PoolConfig;
use super::super::error::StartError;
use super::super::pool::Pool;
use super::super::query::{QueryManager, Recipe, TimeoutFrom};
use super::super::raw::{RawManager, Roster};
use super::super::stream::StreamManager;
use super::{DEFAULT_CANCEL_GRACE, DEFAULT_QUEUE, DEFAULT_STREAM_GRACE, DEFAULT_TIMEOUT, LINK_CAPACITY};
use crate::codec::Codec;
use crate::driver::call::Terms;
use crate::driver::link::LinkSettings;
use crate::driver::pool::Hooks;
use crate::machine::retry::Retry;
use crate::machine::stream::Grant;
use crate::worker::role::STREAM_WINDOW;

/// The settings of a pool that serves queries.
#[derive(Clone, Debug)]
pub struct Queries {
    pub(super) queue: usize,
    pub(super) terms: Terms,
    pub(super) cancel_grace: Option<Duration>,
}

/// The settings of a pool that serves streams.
#[derive(Clone, Debug)]
pub struct Streams {
    pub(super) window: Grant,
    pub(super) cancel_grace: Option<Duration>,
}

/// The settings of a pool of raw workers.
#[derive(Clone, Debug)]
pub struct Raw {
    pub(super) window: Grant,
}

/// What a pool serves.
pub trait Calls<I, O, C>: Send + 'static {
    /// What a program holds of such a pool.
    type Manager: Deref<Target = Pool>;

    fn link(&self) -> LinkSettings;

    /// Does what a configuration says of them.
    fn configure(&mut self, config: &PoolConfig) -> Result<(), StartError> {
        config.without_queries()
    }

    /// So many that wait for a worker are a full queue.
    fn queue(&self) -> usize;

    /// What a call is about, by what it was opened with.
    fn summary(codec: &C, opening: &[u8]) -> String;

    /// Says how the manager is made. It may follow the pool from the beginning on.
    fn manage(&self, codec: &C, hooks: &mut Hooks) -> Manage<Self::Manager>;
}

/// Makes the manager of a pool that was started.
type Manage<M> = Box<dyn FnOnce(Pool, Arc<Recipe>) -> M + Send>;

impl<I: 'static, O: 'static, C: Codec<I> + Codec<O>> Calls<I, O, C> for Queries {
    type Manager = QueryManager<I, O, C>;

    fn link(&self) -> LinkSettings {
        LinkSettings {
            cancel_grace: self.cancel_grace,
            capacity: LINK_CAPACITY,
            streams: None,
            is_raw: false,
            worn_after: u64::MAX,
        }
    }

    fn configure(&mut self, config: &PoolConfig) -> Result<(), StartError> {
        let Terms { timeout, retry, .. } = &mut self.terms;
        *timeout = config.timeout.unwrap_or(*timeout);
        *retry = config.retries.map_or(*retry, |retries| retry.up_to(retries));
        self.cancel_grace = config.cancel_grace.unwrap_or(self.cancel_grace);
        self.queue = config.queue.unwrap_or(self.queue);
        Ok(())
    }

    fn queue(&self) -> usize {
        self.queue
    }

    fn summary(codec: &C, opening: &[u8]) -> String {
        codec.summary(opening)
    }

    fn manage(&self, codec: &C, _: &mut Hooks) -> Manage<Self::Manager> {
        let (codec, terms) = (codec.clone(), self.terms);
        Box::new(move |pool, recipe| QueryManager { pool, codec, terms, recipe, types: PhantomData })
    }
}

impl<I: 'static, O: 'static, C: Codec<I> + Codec<O>> Calls<I, O, C> for Streams {
    type Manager = StreamManager<I, O, C>;

    fn link(&self) -> LinkSettings {
        LinkSettings {
            cancel_grace: self.cancel_grace,
            capacity: 0,
            streams: Some(self.window),
            is_raw: false,
            worn_after: u64::MAX,
        }
    }

    fn configure(&mut self, config: &PoolConfig) -> Result<(), StartError> {
        self.cancel_grace = config.cancel_grace.unwrap_or(self.cancel_grace);
        config.without_queries()
    }

    /// Whoever opens a stream waits for it.
    fn queue(&self) -> usize {
        usize::MAX
    }

    fn summary(_: &C, opening: &[u8]) -> String {
        match opening {
            [] => "a stream without a name".to_string(),
            name => format!("the stream {:?}", String::from_utf8_lossy(name)),
        }
    }

    fn manage(&self, codec: &C, _: &mut Hooks) -> Manage<Self::Manager> {
        let codec = Arc::new(codec.clone());
        Box::new(move |pool, _| StreamManager { pool, codec, types: PhantomData })
    }
}

impl<I: 'static, O: 'static, C: Codec<I> + Codec<O>> Calls<I, O, C> for Raw {
    type Manager = RawManager<I, O>;

    /// Without a grace: the one stream of a worker ends with it.
    fn link(&self) -> LinkSettings {
        LinkSettings { cancel_grace: None, capacity: 0, streams: Some(self.window), is_raw: true, worn_after: u64::MAX }
    }

    fn configure(&mut self, config: &PoolConfig) -> Result<(), StartError> {
        if let Some(grace) = config.cancel_grace {
            let value = format!("{:?}", grace.unwrap_or_default());
            let why = "a raw worker has none: its one stream ends with it";
            return Err(StartError::Setting { setting: "cancel_grace", value, why });
        }
        config.without_queries()
    }

    /// The pool itself opens what there is.
    fn queue(&self) -> usize {
        usize::MAX
    }

    fn summary(_: &C, _: &[u8]) -> String {
        "its conversation".to_string()
    }

    fn manage(&self, codec: &C, hooks: &mut Hooks) -> Manage<Self::Manager> {
        let roster = Roster::new(Arc::new(codec.clone()));
        hooks.follower = Some(roster.clone());
        Box::new(move |pool, _| RawManager { pool, roster })
    }
}

impl Default for Queries {
    fn default() -> Self {
        Queries {
            queue: DEFAULT_QUEUE,
            terms: Terms { timeout: Some(DEFAULT_TIMEOUT), timeout_from: TimeoutFrom::Query, retry: Retry::NEVER },
            cancel_grace: Some(DEFAULT_CANCEL_GRACE),
        }
    }
}

impl Default for Streams {
    fn default() -> Self {
        Streams { window: STREAM_WINDOW, cancel_grace: Some(DEFAULT_STREAM_GRACE) }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Raw { window: STREAM_WINDOW }
    }
}
