//! One query on its way: from the caller to a worker and back, however many workers that takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::face::error::QueryError;
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::retry::{Retry, Tries};
use crate::machine::session::Limit;
use crate::machine::time::Time;

/// What came of a call: the encoded output, or why there is none.
pub(crate) type Outcome = Result<Vec<u8>, QueryError>;

/// Since when the time of a call counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutFrom {
    /// Since the query was made: the caller's view.
    #[default]
    Query,
    /// Since a worker can have started it: the work's view.
    Start,
}

/// How a call is to be treated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) timeout: Option<Duration>,
    pub(crate) timeout_from: TimeoutFrom,
    pub(crate) retry: Retry,
}

impl Terms {
    /// The limit for the session, and the time left for the worker to know, of a try that times out at `until`, where that counts from the
    /// query.
    pub(crate) fn limit(&self, now: Time, until: Option<Time>) -> (Limit, Option<Duration>) {
        match (self.timeout, self.timeout_from) {
            (Some(limit), TimeoutFrom::Start) => (Limit::Running(limit), Some(limit)),
            (Some(_), TimeoutFrom::Query) => match until {
                Some(until) => (Limit::Until(until), Some(until.since(now))),
                None => (Limit::None, None),
            },
            (None, _) => (Limit::None, None),
        }
    }

    /// When the first try of a query that is made now times out, where that counts from the query.
    pub(crate) fn until(&self, now: Time) -> Option<Time> {
        match (self.timeout, self.timeout_from) {
            (Some(limit), TimeoutFrom::Query) => Some(now + limit),
            _ => None,
        }
    }
}

/// One query. The caller's future, the pool's queue and the link that has it aboard share it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) input: Vec<u8>,
    pub(crate) terms: Terms,
    pub(crate) made: Time,
    /// Its caller chose the worker: it goes to no other one.
    pub(crate) is_named: bool,
    /// Whether it has its outcome, or its caller has gone: then no worker needs to see it. It never changes back.
    is_over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    place: Place,
    tries: Tries,
    /// When this try times out, where that counts from the query.
    until: Option<Time>,
    waker: Option<Waker>,
    outcome: Option<Outcome>,
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the queue of the pool, or about to be.
    Waiting,
    /// On a link.
    Aboard(WorkerId, Incarnation, CallId),
    /// It has its outcome.
    Done,
    /// Its caller has gone.
    Abandoned,
}

impl Call {
    pub(crate) fn new(input: Vec<u8>, terms: Terms, now: Time) -> Arc<Self> {
        Self::make(input, terms, now, false)
    }

    /// A call for one worker and no other. It has one try, for whatever would repeat it might be another worker.
    pub(crate) fn named(input: Vec<u8>, terms: Terms, now: Time) -> Arc<Self> {
        Self::make(input, Terms { retry: Retry::NEVER, ..terms }, now, true)
    }

    fn make(input: Vec<u8>, terms: Terms, now: Time, is_named: bool) -> Arc<Self> {
        let state = State {
            place: Place::Waiting,
            tries: Tries::default(),
            until: terms.until(now),
            waker: None,
            outcome: None,
        };
        Arc::new(Call { input, terms, made: now, is_named, is_over: AtomicBool::new(false), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its caller has gone, or it was answered: then no worker needs to see it.
    pub(crate) fn is_over(&self) -> bool {
        // Pairs with the Release of `resolve` and `abandon`. What comes of it is behind the lock.
        self.is_over.load(Ordering::Acquire)
    }

    /// The link that has it.
    pub(crate) fn aboard(&self) -> Option<(WorkerId, Incarnation, CallId)> {
        self.state().place.aboard()
    }

    /// When it times out while it waits.
    pub(crate) fn until(&self) -> Option<Time> {
        self.state().until
    }

    /// The limit for the session, and the time left for the worker to know.
    pub(crate) fn limit(&self, now: Time) -> (Limit, Option<Duration>) {
        let until = match (self.terms.timeout, self.terms.timeout_from) {
            (Some(_), TimeoutFrom::Query) => self.state().until,
            _ => None,
        };
        self.terms.limit(now, until)
    }

    /// Notes that it is on a link now. False where it is over, and must be taken back.
    pub(crate) fn board(&self, worker: WorkerId, incarnation: Incarnation, id: CallId) -> bool {
        let mut state = self.state();
        let waits = state.place == Place::Waiting;
        if waits {
            state.place = Place::Aboard(worker, incarnation, id);
        }
        waits
    }

    /// Notes that it waits again. False where it is over.
    pub(crate) fn leave(&self) -> bool {
        let mut state = self.state();
        let goes_on = matches!(state.place, Place::Aboard(..) | Place::Waiting);
        if goes_on {
            state.place = Place::Waiting;
        }
        goes_on
    }

    /// Notes a failed try, and gives the verdict of its policy with the number of tries so far. A further try has the whole limit.
    pub(crate) fn failed(
        &self,
        now: Time,
        failure: crate::machine::retry::Failure,
    ) -> (crate::machine::retry::Verdict, u32) {
        let mut state = self.state();
        let verdict = state.tries.record(&self.terms.retry, failure);
        if let crate::machine::retry::Verdict::Again(delay) = verdict {
            state.until = self.terms.until(now + delay);
        }
        (verdict, state.tries.failed())
    }

    /// How many tries failed, the one included that is going on.
    pub(crate) fn tries(&self) -> u32 {
        self.state().tries.failed() + 1
    }

    /// Gives it its outcome, and the waker of the caller to be called after all locks are gone. The first outcome stands.
    #[must_use = "the caller sleeps until its waker is called"]
    pub(crate) fn resolve(&self, outcome: Outcome) -> Option<Waker> {
        let mut state = self.state();
        if matches!(state.place, Place::Done | Place::Abandoned) {
            return None;
        }
        state.place = Place::Done;
        self.is_over.store(true, Ordering::Release);
        state.outcome = Some(outcome);
        state.waker.take()
    }

    /// Gives it this error, and wakes its caller: where no lock is held.
    pub(crate) fn fail(&self, error: QueryError) {
        if let Some(waker) = self.resolve(Err(error)) {
            waker.wake();
        }
    }

    /// The caller waits.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.state();
        if let Some(outcome) = state.outcome.take() {
            return Poll::Ready(outcome);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The caller goes. Gives the place where somebody must be told.
    pub(crate) fn abandon(&self) -> Option<(WorkerId, Incarnation, CallId)> {
        let mut state = self.state();
        let place = std::mem::replace(&mut state.place, Place::Abandoned);
        self.is_over.store(true, Ordering::Release);
        let waker = state.waker.take();
        drop(state);
        drop(waker);
        place.aboard()
    }
}

impl Place {
    fn aboard(self) -> Option<(WorkerId, Incarnation, CallId)> {
        match self {
            Place::Aboard(worker, incarnation, id) => Some((worker, incarnation, id)),
            _ => None,
        }
    }
}
