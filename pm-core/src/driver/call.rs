//! One call on its way: from the caller to a worker and back, however many workers that takes. A query, or a stream, which stays with the first one.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::flow::Flow;
use super::spare;
use crate::face::error::{QueryError, StreamError};
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::line::Waits;
use crate::machine::payload::{Lent, Payload};
use crate::machine::retry::{Failure, Retry, Tries, Verdict};
use crate::machine::session::Limit;
use crate::machine::time::Time;

/// What came of a call: the encoded output, or why there is none.
pub(crate) type Outcome = Result<Payload, QueryError>;

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

/// One call. The caller's future, the pool's queue and the link that has it aboard share it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) input: Vec<u8>,
    pub(crate) terms: Terms,
    /// What makes it a stream; none where it is a query.
    pub(crate) flow: Option<Arc<Flow>>,
    /// Its caller chose the worker: it goes to no other one.
    pub(crate) is_named: bool,
    /// When it was sent first, in nanoseconds.
    made: AtomicU64,
    /// Where it stands in the line of the pool, whose lock guards this; [`NO_SEAT`] elsewhere.
    seat: AtomicI64,
    /// Whether it has its outcome, or its caller has gone: then no worker needs to see it. It never changes back.
    is_over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    place: Place,
    tries: Tries,
    /// When a further try times out, where that counts from the query.
    until: Option<Time>,
    waker: Option<Waker>,
    /// What came of it; an output lies in `output`.
    outcome: Option<Result<(), Box<QueryError>>>,
    output: Payload,
}

impl State {
    /// When the try that goes on times out, where that counts from the query.
    fn until(&self, call: &Call) -> Option<Time> {
        self.until.or_else(|| call.terms.until(call.made()))
    }
}

const NO_SEAT: i64 = i64::MIN;

/// The buffers of a new call: most payloads fit, and none has to grow byte by byte.
const ROOM: usize = 128;

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
    /// A call that was not sent yet, whose input `encode` appends to the buffer that it is given.
    pub(crate) fn new<E>(terms: Terms, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Arc<Self>, E> {
        let mut call = spare::take_call().unwrap_or_else(|| Arc::new(Call::blank()));
        let fields = Arc::get_mut(&mut call).expect("a spare call has no other owner");
        fields.terms = terms;
        encode(&mut fields.input)?;
        spare::fit_input(&mut fields.input);
        Ok(call)
    }

    /// A stream that is on no link yet.
    pub(crate) fn stream(flow: Arc<Flow>) -> Arc<Self> {
        let mut call = Call::blank();
        call.input = flow.name().as_bytes().to_vec();
        call.state_mut().output = Payload::default();
        call.flow = Some(flow);
        Arc::new(call)
    }

    /// Whether it may go to another worker, where this one has not begun with it.
    pub(crate) fn may_move(&self) -> bool {
        !self.is_named && self.flow.is_none()
    }

    /// The same call for one worker and no other. It has one try, for whatever would repeat it might be another worker.
    pub(crate) fn named(mut self: Arc<Self>) -> Arc<Self> {
        if let Some(fields) = Arc::get_mut(&mut self) {
            fields.is_named = true;
            fields.terms.retry = Retry::NEVER;
        }
        self
    }

    fn blank() -> Self {
        let state = State {
            place: Place::Waiting,
            tries: Tries::default(),
            until: None,
            waker: None,
            outcome: None,
            output: Payload::with_capacity(ROOM),
        };
        Call {
            input: Vec::with_capacity(ROOM),
            terms: Terms::default(),
            flow: None,
            is_named: false,
            made: AtomicU64::new(0),
            seat: AtomicI64::new(NO_SEAT),
            is_over: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// Takes the buffer of its output, which comes back with [`reuse`](Self::reuse). For a call that nobody else has.
    pub(crate) fn lend_buffer(mut self: Arc<Self>) -> (Arc<Self>, Payload) {
        let buffer = Arc::get_mut(&mut self).map(|fields| std::mem::take(&mut fields.state_mut().output));
        (self, buffer.unwrap_or_default())
    }

    /// Gives back the output that was taken from a call that is over, so that the next call of this thread needs no new memory.
    pub(crate) fn reuse(mut self: Arc<Self>, output: Payload) {
        // Whoever delivered it may hold it for a moment longer.
        let Some(fields) = Arc::get_mut(&mut self) else { return };
        spare::strip(&mut fields.input);
        let state = fields.state_mut();
        let mut output = output.into_buffer();
        spare::strip(&mut output);
        state.output = Payload::from(output);
        (state.place, state.tries, state.until) = (Place::Waiting, Tries::default(), None);
        (state.waker, state.outcome) = (None, None);
        (fields.is_named, *fields.is_over.get_mut()) = (false, false);
        let bytes = fields.capacity();
        spare::give_call(self, bytes);
    }

    /// Bytes of its buffers.
    pub(super) fn capacity(&mut self) -> usize {
        self.input.capacity() + self.state_mut().output.capacity()
    }

    /// Its time begins.
    pub(crate) fn begin(&self, now: Time) {
        // Whoever else looks at it has had it from the hands of the caller, by way of a lock.
        self.made.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// When it was sent first.
    pub(crate) fn made(&self) -> Time {
        Time::from_nanos(self.made.load(Ordering::Relaxed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same where nobody else has the call.
    fn state_mut(&mut self) -> &mut State {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its caller has gone, or it was answered: then no worker needs to see it.
    pub(crate) fn is_over(&self) -> bool {
        // Pairs with the Release of `resolve` and `abandon`. What comes of it is behind the lock.
        self.is_over.load(Ordering::Acquire)
    }

    /// When it times out while it waits.
    pub(crate) fn until(&self) -> Option<Time> {
        self.state().until(self)
    }

    /// Takes it to a link, unless it is over. Nobody can end it meanwhile.
    pub(crate) fn board(&self) -> Option<Boarding<'_>> {
        let state = self.state();
        (state.place == Place::Waiting).then_some(Boarding { call: self, state })
    }

    /// Its caller sleeps from here on, until this waker is called. Gives the one that was there: for a call that nobody else has yet, none.
    pub(crate) fn sleep(&self, waker: Waker) -> Option<Waker> {
        self.state().waker.replace(waker)
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
    pub(crate) fn record_failure(&self, now: Time, failure: Failure) -> (Verdict, u32) {
        let mut state = self.state();
        let verdict = state.tries.record(&self.terms.retry, failure);
        if let Verdict::Again(delay) = verdict {
            state.until = self.terms.until(now + delay);
        }
        (verdict, state.tries.failed())
    }

    /// Gives it its outcome, and adds the wakers of those who wait, to be called after all locks are gone. The first outcome stands.
    pub(crate) fn resolve(&self, outcome: Result<Lent<'_>, QueryError>, wakers: &mut Vec<Waker>) {
        if self.flow.is_some() {
            return self.end_stream(outcome.map(drop).map_err(StreamError::Failed), wakers);
        }
        let mut state = self.state();
        if matches!(state.place, Place::Done | Place::Abandoned) {
            return;
        }
        state.place = Place::Done;
        state.outcome = Some(match outcome {
            Ok(output) => {
                spare::receive(output, &mut state.output);
                Ok(())
            }
            Err(error) => Err(Box::new(error)),
        });
        self.is_over.store(true, Ordering::Release);
        wakers.extend(state.waker.take());
    }

    /// The same for a stream.
    pub(crate) fn end_stream(&self, outcome: Result<(), StreamError>, wakers: &mut Vec<Waker>) {
        let mut state = self.state();
        if state.place != Place::Abandoned {
            state.place = Place::Done;
        }
        self.is_over.store(true, Ordering::Release);
        wakers.extend(state.waker.take());
        drop(state);
        if let Some(flow) = &self.flow {
            flow.end(outcome, wakers);
        }
    }

    /// Gives it this error, and wakes its caller: where no lock is held.
    pub(crate) fn fail(&self, error: QueryError) {
        let mut wakers = Vec::new();
        self.resolve(Err(error), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The caller waits.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.state();
        if let Some(outcome) = state.outcome.take() {
            return Poll::Ready(match outcome {
                Ok(()) => Ok(std::mem::take(&mut state.output)),
                Err(error) => Err(*error),
            });
        }
        if state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let before = state.waker.replace(cx.waker().clone());
        drop(state);
        // It may be the last that its executor has of a task, which drops whatever that has.
        drop(before);
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

impl Waits for Arc<Call> {
    fn seat(&self) -> Option<i64> {
        let seat = self.seat.load(Ordering::Relaxed);
        (seat != NO_SEAT).then_some(seat)
    }

    fn sit(&self, seat: Option<i64>) {
        self.seat.store(seat.unwrap_or(NO_SEAT), Ordering::Relaxed);
    }

    fn until(&self) -> Option<Time> {
        Call::until(self)
    }
}

/// A call on its way to a link.
#[derive(Debug)]
pub(crate) struct Boarding<'a> {
    call: &'a Call,
    state: MutexGuard<'a, State>,
}

impl Boarding<'_> {
    /// The limit for the session, and the time left for the worker to know.
    pub(crate) fn limit(&self, now: Time) -> (Limit, Option<Duration>) {
        self.call.terms.limit(now, self.state.until(self.call))
    }

    /// It is on this link now, and its caller sleeps, if it has a sleeper. Otherwise it waits on. The caller of a stream has waited for this: its waker is
    /// what `sleeper` holds then.
    pub(crate) fn done(mut self, worker: WorkerId, incarnation: Incarnation, id: CallId, sleeper: &mut Option<Waker>) {
        self.state.place = Place::Aboard(worker, incarnation, id);
        if sleeper.is_some() || self.call.flow.is_some() {
            std::mem::swap(&mut self.state.waker, sleeper);
        }
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
