//! Which raw workers there are: written by the task of the pool, read by whoever asks or subscribes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::RawWorker;
use crate::driver::call::Call;
use crate::driver::clock;
use crate::driver::flow::Flow;
use crate::driver::pool::{AnyPool, Follower, WorkerInfo};
use crate::face::duplex::Both;
use crate::machine::cause::ExitCause;
use crate::machine::id::{Incarnation, WorkerId};

/// A raw worker came or went.
#[derive(Debug)]
pub enum RawEvent<I, O> {
    /// It serves.
    Serves(RawWorker<I, O>),
    /// It was told to leave, or has ended: it gets nothing new. [`RawWorker::ended`] tells when its process is gone, and why.
    Leaves(RawWorker<I, O>),
}

/// The workers of a pool as they come and go. Made by [`RawManager::subscribe`](super::RawManager::subscribe). It does not keep the pool alive.
pub struct RawEvents<I, O> {
    roster: Arc<Roster<I, O>>,
    changed: watch::Receiver<()>,
    /// Those that it has told of.
    known: Serving<I, O>,
    ready: VecDeque<RawEvent<I, O>>,
}

/// See the [module](self).
pub(crate) struct Roster<I, O> {
    codec: Arc<dyn Both<I, O>>,
    state: Mutex<State<I, O>>,
    changed: watch::Sender<()>,
}

/// No worker serves in two incarnations at the same time, but one that leaves may live on beside the next one of its number.
type Serving<I, O> = BTreeMap<(WorkerId, Incarnation), RawWorker<I, O>>;

struct State<I, O> {
    serving: Serving<I, O>,
    leaving: Serving<I, O>,
    is_closed: bool,
}

impl<I, O> Roster<I, O> {
    pub(crate) fn new(codec: Arc<dyn Both<I, O>>) -> Arc<Self> {
        let state = State { serving: BTreeMap::new(), leaving: BTreeMap::new(), is_closed: false };
        Arc::new(Roster { codec, state: Mutex::new(state), changed: watch::Sender::new(()) })
    }

    pub(super) fn workers(&self) -> Vec<RawWorker<I, O>> {
        self.state().serving.values().cloned().collect()
    }

    pub(super) fn worker(&self, id: WorkerId) -> Option<RawWorker<I, O>> {
        let lives = (id, Incarnation(0))..=(id, Incarnation(u32::MAX));
        self.state().serving.range(lives).next_back().map(|(_, worker)| worker.clone())
    }

    pub(super) fn subscribe(self: &Arc<Self>) -> RawEvents<I, O> {
        let changed = self.changed.subscribe();
        RawEvents { roster: self.clone(), changed, known: BTreeMap::new(), ready: VecDeque::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<I, O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes those who listen.
    fn change<T>(&self, change: impl FnOnce(&mut State<I, O>) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_replace(());
        result
    }
}

impl<I: 'static, O: 'static> Follower for Roster<I, O> {
    fn serves(&self, pool: &Arc<dyn AnyPool>, worker: &WorkerInfo) {
        let flow = Flow::new("");
        let call = Call::stream(flow.clone()).named();
        call.begin(clock::now());
        let raw = RawWorker::new(worker, flow, self.codec.clone(), Arc::downgrade(pool));
        // Whoever hears of the worker can speak with it.
        if let Err(error) = pool.submit_to(worker.id, &call) {
            call.fail(error);
        }
        self.change(|state| state.serving.insert((worker.id, worker.incarnation), raw));
    }

    fn leaves(&self, worker: WorkerId, incarnation: Incarnation) {
        let key = (worker, incarnation);
        let Some(raw) = self.state().serving.get(&key).cloned() else { return };
        // Whoever hears that it goes finds that it is so.
        raw.leave();
        self.change(|state| {
            state.serving.remove(&key);
            state.leaving.insert(key, raw);
        });
    }

    fn ended(&self, worker: WorkerId, incarnation: Incarnation, cause: &ExitCause) {
        let key = (worker, incarnation);
        let mut state = self.state();
        let raw = state.leaving.remove(&key).or_else(|| state.serving.get(&key).cloned());
        drop(state);
        if let Some(raw) = raw {
            raw.leave();
            // Whoever hears of its end finds it nowhere any more.
            self.change(|state| state.serving.remove(&key));
            raw.note_end(cause);
        }
    }

    fn closed(&self) {
        self.change(|state| state.is_closed = true);
    }
}

impl<I, O> RawEvents<I, O> {
    /// The next one; none once the pool is closed and all is told.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<RawEvent<I, O>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // What changes from here on is seen in the next turn.
            self.changed.mark_unchanged();
            let is_closed = self.compare();
            // The sender lives as long as the roster that this holds.
            if self.ready.is_empty() && (is_closed || self.changed.changed().await.is_err()) {
                return None;
            }
        }
    }

    /// Notes what has changed since it was asked last. True where nothing will change any more.
    fn compare(&mut self) -> bool {
        let state = self.roster.state();
        let gone = self.known.extract_if(.., |key, _| !state.serving.contains_key(key));
        self.ready.extend(gone.map(|(_, worker)| RawEvent::Leaves(worker)));
        for (key, worker) in &state.serving {
            if !self.known.contains_key(key) {
                self.known.insert(*key, worker.clone());
                self.ready.push_back(RawEvent::Serves(worker.clone()));
            }
        }
        state.is_closed
    }
}

impl<I, O> fmt::Debug for RawEvents<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<_> = self.known.keys().collect();
        f.debug_struct("RawEvents").field("known", &known).finish_non_exhaustive()
    }
}
