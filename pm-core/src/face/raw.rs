//! Raw workers: each has one conversation with the program, for as long as it lives, in a protocol of the program's own.

mod roster;

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::duplex::{Both, End, StreamReceiver};
use super::error::{StartError, StreamError};
use super::pool::{Pool, WorkerInfo};
use crate::driver::flow::Flow;
use crate::driver::pool::AnyPool;
use crate::machine::cause::ExitCause;
use crate::machine::id::{Incarnation, WorkerId};
pub(super) use roster::Roster;
pub use roster::{RawEvent, RawEvents};

/// A pool of raw workers. Made by a [`PoolBuilder`](super::builder::PoolBuilder) after [`raw`](super::builder::PoolBuilder::raw).
///
/// A raw worker is not asked and opened: from its READY on it has one conversation with the program, of messages both ways, and what these mean is for the
/// program and its worker to agree on. How much a worker has to do only they know, so the program says it: [`RawWorker::set_load`].
///
/// A worker that is to leave (it is released, replaced or shut down) is told so at once: `pm::draining` is ready in it. Once its load is zero its conversation is
/// half closed: its handler reads the end, finishes what it has, and returns. What has not ended by the deadline is killed. A handler that returns while nobody
/// has released it, or a process that dies, is a crash: the worker is replaced within the budget of the pool.
///
/// It is cheap to clone, and every clone is the same pool. When the last clone is dropped, the workers are killed. All that has to do with the pool itself is in
/// [`Pool`], which it derefs to.
pub struct RawManager<I, O> {
    pub(super) pool: Pool,
    pub(super) roster: Arc<Roster<I, O>>,
}

impl<I, O> RawManager<I, O> {
    /// The workers that serve now, by their numbers.
    pub fn raw_workers(&self) -> Vec<RawWorker<I, O>> {
        self.roster.workers()
    }

    /// The worker with this number, if it serves now.
    pub fn raw_worker(&self, worker: WorkerId) -> Option<RawWorker<I, O>> {
        self.roster.worker(worker)
    }

    /// The worker with the smallest load; of several the one with the lowest number.
    pub fn least_loaded(&self) -> Option<RawWorker<I, O>> {
        self.raw_workers().into_iter().min_by_key(|worker| (worker.load(), worker.id()))
    }

    /// Workers as they come and go: first those that serve already, then all others. Any number of subscribers may listen. Nothing is queued for them: each compares
    /// what it has said with what is, so one that is slow misses only workers that came and went meanwhile, and never one of the two.
    pub fn subscribe(&self) -> RawEvents<I, O> {
        self.roster.subscribe()
    }
}

/// One life of a raw worker: its process, and the conversation with it. Cheap to clone, and usable from any task. It does not keep its pool alive.
pub struct RawWorker<I, O> {
    inner: Arc<Inner<I, O>>,
}

struct Inner<I, O> {
    info: WorkerInfo,
    end: End<I, O>,
    pool: Weak<dyn AnyPool>,
    state: Mutex<State<I, O>>,
    ended: watch::Sender<Option<ExitCause>>,
}

struct State<I, O> {
    load: u32,
    is_leaving: bool,
    receiver: Option<StreamReceiver<I, O>>,
}

impl<I, O> RawWorker<I, O> {
    pub(super) fn new(info: &WorkerInfo, flow: Arc<Flow>, codec: Arc<dyn Both<I, O>>, pool: Weak<dyn AnyPool>) -> Self {
        let end = End { flow, codec };
        let state = State { load: 0, is_leaving: false, receiver: Some(StreamReceiver::new(end.clone())) };
        let inner = Inner { info: info.clone(), end, pool, state: Mutex::new(state), ended: watch::Sender::new(None) };
        RawWorker { inner: Arc::new(inner) }
    }

    /// Its number in the pool. A worker that dies and is replaced keeps it; no other worker of the pool ever has it.
    pub fn id(&self) -> WorkerId {
        self.inner.info.id
    }

    /// Which life of the worker this is.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.info.incarnation
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.inner.info.pid
    }

    /// Its load, as [`set_load`](Self::set_load) has said it; 0 at first.
    pub fn load(&self) -> u32 {
        self.state().load
    }

    /// Says how much the worker has to do, in whatever unit: connections, battles. By it the idlest are found, and a worker that is to leave is waited for until
    /// it is 0.
    pub fn set_load(&self, load: u32) {
        self.change_load(|_| load);
    }

    /// Adds to the load, or takes away from it, and gives what it is then.
    pub fn add_load(&self, change: i32) -> u32 {
        self.change_load(|load| load.saturating_add_signed(change))
    }

    fn change_load(&self, change: impl FnOnce(u32) -> u32) -> u32 {
        self.update(|state| {
            state.load = change(state.load);
            // Under the lock, so that of two changes the last one stands.
            if let Some(pool) = self.inner.pool.upgrade() {
                pool.set_load(self.id(), self.incarnation(), state.load);
            }
            state.load
        })
    }

    /// Changes its state. One that is to leave and has no load any more is told that nothing follows.
    fn update<T>(&self, change: impl FnOnce(&mut State<I, O>) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        let is_over = state.is_leaving && state.load == 0;
        drop(state);
        if is_over {
            self.inner.end.flow.finish();
        }
        result
    }

    /// Whether it was told to leave, or has ended.
    pub fn is_leaving(&self) -> bool {
        self.state().is_leaving
    }

    /// Sends a message. Waits until the worker has room for it, as a [`Duplex`](super::duplex::Duplex) does. Messages of one task arrive in the order in which it
    /// sends them.
    ///
    /// # Cancel safety
    /// A message whose sending is dropped before it is ready was not sent.
    ///
    /// # Errors
    /// [`StreamError`]: the worker has ended or was told to leave and has no load any more, or the message cannot be encoded.
    pub fn send(&self, message: &I) -> impl Future<Output = Result<(), StreamError>> + Send + use<I, O> {
        let mut payload = Vec::new();
        let encoded = self.inner.end.encode(message, &mut payload);
        let end = self.inner.end.clone();
        async move {
            encoded?;
            end.write_once(0, payload).await
        }
    }

    /// What the worker sends: for one reader, so it is given once. Until somebody reads, the worker can send as much as the window takes, and waits then.
    pub fn take_receiver(&self) -> Option<StreamReceiver<I, O>> {
        self.state().receiver.take()
    }

    /// Waits until its process has ended, and says why.
    ///
    /// # Cancel safety
    /// Nothing is lost; it may be called again, and then gives the same.
    pub async fn ended(&self) -> ExitCause {
        let mut ended = self.inner.ended.subscribe();
        // The sender lives as long as this does.
        ended.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone()).unwrap_or(ExitCause::Requested)
    }

    /// Has the pool let this worker go: see [`RawManager`]. Returns once it is gone; with a limit, what is left of it then is killed. Of a worker that has
    /// ended there is nothing to let go: one that was started in its place stays.
    ///
    /// # Cancel safety
    /// A release that has begun goes on without its caller.
    ///
    /// # Errors
    /// [`StartError::ShuttingDown`]: the pool is gone.
    pub async fn release(&self, limit: Option<Duration>) -> Result<(), StartError> {
        let pool = self.inner.pool.upgrade().ok_or(StartError::ShuttingDown)?;
        super::pool::release(&pool, self.id(), self.incarnation(), limit).await
    }

    /// It was told to leave.
    fn leave(&self) {
        self.update(|state| state.is_leaving = true);
    }

    /// Its process has ended.
    fn note_end(&self, cause: &ExitCause) {
        self.inner.ended.send_replace(Some(cause.clone()));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<I, O>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its pool: what it is doing, how many workers it has, its end.
impl<I, O> Deref for RawManager<I, O> {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl<I, O> Clone for RawManager<I, O> {
    fn clone(&self) -> Self {
        RawManager { pool: self.pool.clone(), roster: self.roster.clone() }
    }
}

impl<I, O> Clone for RawWorker<I, O> {
    fn clone(&self) -> Self {
        RawWorker { inner: self.inner.clone() }
    }
}

impl<I, O> fmt::Debug for RawManager<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawManager").field("name", &self.pool.name()).finish_non_exhaustive()
    }
}

impl<I, O> fmt::Debug for RawWorker<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load();
        f.debug_struct("RawWorker").field("info", &self.inner.info).field("load", &load).finish_non_exhaustive()
    }
}
