//! One end of a stream, as its halves and its link share it: what came and was not read, who waits, and what is owed to the peer.
//!
//! It is the same in the manager and in the worker. What carries its frames is a [`Carrier`]: the link of a worker there, the desk here. Messages go out at once, by
//! whoever writes them, under the lock of the carrier. All else that is to be said (credit, FIN, RST, that a call has no reply) is owed: noted here, and sent with
//! the next flush, so that nobody has to wait for room to say it.
//!
//! Lock order: the carrier, then the flow.

mod batch;
mod lease;
mod receiving;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::face::error::{HandlerError, StreamError};
use crate::machine::frame::{Header, Kind, flag};
use crate::machine::id::WorkerId;
use crate::machine::payload::Payload;
use crate::machine::stream::{Grant, Stream};
use batch::Batch;
pub(crate) use batch::{Content, NUMBER, Taken};
use lease::Lease;
pub(crate) use receiving::Came;
pub(crate) use writer::Writer;

/// What carries the frames of streams.
pub(crate) trait Carrier: Send + Sync {
    /// Lets `act` put frames on the link, under its lock. What was put there is on its way soon after.
    fn with(&self, act: &mut dyn FnMut(&mut dyn Outlet));

    /// The stream with this id owes something to its peer. `is_known` says that the carrier has heard of it and waits for room for its messages: what it owes
    /// besides may have some.
    fn owe(&self, id: u64, is_known: bool);

    /// Nobody here wants the stream with this id any more.
    fn cancel(&self, id: u64);

    /// The worker at the other end, where there is one.
    fn worker(&self) -> Option<WorkerId> {
        None
    }

    /// Whether a stream ends when its handler on this side returns.
    fn has_handlers(&self) -> bool {
        false
    }
}

/// A link whose lock is held.
pub(crate) trait Outlet {
    /// Puts a frame on the link. `NoRoom` where there is no room, and `Closed` where it takes nothing more: then the end of the stream follows.
    fn push(&mut self, header: Header, payload: &[u8]) -> Pushed;

    /// The stream with this id found no room: see [`Flow::attend`].
    fn remember(&mut self, id: u64);
}

/// What came of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Taken,
    NoRoom,
    Closed,
}

/// See the [module](self).
pub(crate) struct Flow {
    /// What it is about, as whoever opened it says.
    name: Box<str>,
    /// Once it is on a link.
    carrier: OnceLock<(Arc<dyn Carrier>, u64)>,
    lease: Lease,
    state: Mutex<State>,
}

struct State {
    /// None until it is on a link.
    stream: Option<Stream>,
    inbox: Batch,
    reader: Option<Waker>,
    /// The reader knows of the end.
    has_told: bool,
    /// Those who wait for credit or room, by their tickets.
    writers: Vec<(u64, Waker)>,
    next_ticket: u64,
    /// Calls that wait for their replies, by their numbers.
    calls: BTreeMap<u64, Asked>,
    next_call: u64,
    owed: Owed,
    /// What came of it.
    end: Option<Result<(), StreamError>>,
}

/// A call that waits, or has its reply.
#[derive(Default)]
struct Asked {
    waker: Option<Waker>,
    reply: Option<Reply>,
}

/// The output of a call, encoded, behind its number; or the error of the handler. None where it left the call unanswered.
pub(crate) type Reply = Result<Payload, Option<Box<HandlerError>>>;

/// What is to be said, and was not yet.
#[derive(Default)]
struct Owed {
    grant: Option<Grant>,
    fin: bool,
    rst: bool,
    /// The numbers of calls that have no reply.
    unanswered: Vec<u64>,
    /// A writer found no room.
    room: bool,
    /// The carrier knows that there is something.
    is_known: bool,
}

impl Flow {
    /// A stream that is on no link yet.
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Flow {
            name: name.into(),
            carrier: OnceLock::new(),
            lease: Lease::default(),
            state: Mutex::new(State {
                stream: None,
                inbox: Batch::default(),
                reader: None,
                has_told: false,
                writers: Vec::new(),
                next_ticket: 0,
                calls: BTreeMap::new(),
                next_call: 0,
                owed: Owed::default(),
                end: None,
            }),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- for the carrier, under its lock

    /// It is on a link from here on. `window` is what the peer may send, and `credit` what this side may.
    pub(crate) fn open(&self, carrier: Arc<dyn Carrier>, id: u64, window: Grant, credit: Grant) {
        // A stream is opened once.
        if self.carrier.set((carrier, id)).is_ok() {
            self.state().stream = Some(Stream::new(window, credit));
        }
    }

    /// Says what is owed, as far as there is room, and where the link `has_room` wakes those who wait for some. True once all of that is done.
    pub(crate) fn attend(&self, out: &mut dyn Outlet, has_room: bool, wakers: &mut Vec<Waker>) -> bool {
        let Some(&(_, id)) = self.carrier.get() else { return true };
        let mut state = self.state();
        if !state.pay(id, out) || state.owed.room && !has_room {
            return false;
        }
        state.owed.is_known = false;
        if std::mem::take(&mut state.owed.room) {
            state.wake_writers(wakers);
        }
        true
    }

    /// The stream is over: with this error, if it has one. What came before can still be read. The first end stands.
    pub(crate) fn end(&self, result: Result<(), StreamError>, wakers: &mut Vec<Waker>) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        if let Some(stream) = &mut state.stream {
            stream.end();
        }
        self.lease.shut();
        state.end = Some(result);
        state.owed = Owed::default();
        state.wake_readers(wakers);
        state.wake_writers(wakers);
    }

    // --- for the halves

    /// The worker that it is on. None before it is on one, and in the worker itself.
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        self.carrier.get().and_then(|(carrier, _)| carrier.worker())
    }

    /// Whether it is on a link, or why it never will be.
    pub(crate) fn poll_open(&self) -> Poll<Result<(), StreamError>> {
        let state = self.state();
        match (&state.stream, &state.end) {
            // If it has ended since, its reader is told.
            (Some(_), _) => Poll::Ready(Ok(())),
            (None, Some(Err(error))) => Poll::Ready(Err(error.clone())),
            (None, _) => Poll::Pending,
        }
    }

    /// Whether the worker may send nothing before somebody reads here.
    pub(crate) fn holds_up_peer(&self) -> bool {
        self.state().stream.as_ref().is_some_and(Stream::holds_up_peer)
    }

    /// Ready once there is a next message, which is in `taken` then. None at the end, which an error may have come before.
    pub(crate) fn poll_next(&self, taken: &mut Taken, cx: &mut Context<'_>) -> Poll<Option<Result<(), StreamError>>> {
        if !taken.batch.is_empty() {
            return Poll::Ready(Some(Ok(())));
        }
        let mut guard = self.state();
        let state = &mut *guard;
        state.report(taken);
        taken.clear();
        if !state.inbox.is_empty() {
            std::mem::swap(&mut state.inbox, &mut taken.batch);
            state.inbox.expect(&taken.batch);
            self.tell(guard);
            return Poll::Ready(Some(Ok(())));
        }
        taken.batch.trim();
        state.inbox.trim();
        if let Some(end) = &state.end {
            let told = std::mem::replace(&mut state.has_told, true);
            return Poll::Ready(end.as_ref().err().filter(|_| !told).cloned().map(Err));
        }
        // What is over without an end has one in a moment, which says more.
        if state.stream.as_ref().is_some_and(Stream::peer_has_finished) {
            return Poll::Ready(None);
        }
        let before = match &state.reader {
            Some(waker) if waker.will_wake(cx.waker()) => None,
            _ => state.reader.replace(cx.waker().clone()),
        };
        self.tell(guard);
        // It may be the last that its executor has of a task.
        drop(before);
        Poll::Pending
    }

    /// Reports what was read, if that is due.
    pub(crate) fn note_read(&self, taken: &mut Taken) {
        if taken.is_due() {
            let mut state = self.state();
            state.report(taken);
            self.tell(state);
        }
    }

    /// What came of the stream, once it is over. A handler, whose return is the end of it, waits for the end of its peer.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let has_handlers = self.carrier.get().is_some_and(|(carrier, _)| carrier.has_handlers());
        let mut state = self.state();
        if let Some(end) = &state.end {
            return Poll::Ready(end.clone());
        }
        if has_handlers && state.stream.as_ref().is_some_and(Stream::peer_has_finished) {
            return Poll::Ready(Ok(()));
        }
        let before = state.reader.replace(cx.waker().clone());
        drop(state);
        drop(before);
        Poll::Pending
    }

    /// This side writes nothing more, nor do those that wait to.
    pub(crate) fn finish(&self) {
        self.lease.shut();
        let mut state = self.state();
        state.owed.fin |= state.stream.as_mut().is_some_and(Stream::finish);
        let mut wakers = Vec::new();
        state.wake_writers(&mut wakers);
        self.tell(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// This side reads nothing more.
    pub(crate) fn stop(&self, taken: &mut Taken) {
        let mut state = self.state();
        state.owed.rst |= state.stream.as_mut().is_some_and(Stream::stop);
        let unread = [std::mem::take(&mut taken.batch), std::mem::take(&mut state.inbox)];
        state.owed.unanswered.extend(unread.iter().flat_map(Batch::calls));
        self.tell(state);
        drop(unread);
    }

    /// Nobody here wants it any more: the peer is told to end it.
    pub(crate) fn cancel(&self) {
        if let Some((carrier, id)) = self.carrier.get() {
            carrier.cancel(*id);
        }
    }

    /// A number for a call whose reply is waited for.
    pub(crate) fn begin_call(&self) -> u64 {
        let mut state = self.state();
        state.next_call += 1;
        let number = state.next_call;
        state.calls.insert(number, Asked::default());
        number
    }

    /// The reply to a call.
    pub(crate) fn poll_call(&self, number: u64, cx: &mut Context<'_>) -> Poll<Result<Reply, StreamError>> {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(call) = state.calls.get_mut(&number) else { return Poll::Ready(Err(StreamError::Ended)) };
        if let Some(reply) = call.reply.take() {
            return Poll::Ready(Ok(reply));
        }
        if state.end.is_some() || state.stream.as_ref().is_some_and(Stream::peer_has_finished) {
            return Poll::Ready(Err(state.why_closed()));
        }
        let before = call.waker.replace(cx.waker().clone());
        drop(guard);
        drop(before);
        Poll::Pending
    }

    /// Nobody waits for this call any more.
    pub(crate) fn end_call(&self, number: u64) {
        let mut state = self.state();
        let call = state.calls.remove(&number);
        drop(state);
        drop(call);
    }

    /// The call with this number has no reply.
    pub(crate) fn leave_unanswered(&self, number: u64) {
        let mut state = self.state();
        if state.end.is_none() {
            state.owed.unanswered.push(number);
        }
        self.tell(state);
    }

    /// Unlocks it, and tells the carrier if something is owed that it does not know of, or that need not wait for room.
    fn tell(&self, mut state: MutexGuard<'_, State>) {
        if state.end.is_some() || !state.owed.is_anything() {
            return;
        }
        let is_known = std::mem::replace(&mut state.owed.is_known, true);
        if is_known && !state.owed.room {
            return;
        }
        drop(state);
        if let Some((carrier, id)) = self.carrier.get() {
            carrier.owe(*id, is_known);
        }
    }
}

impl State {
    /// Adds the wakers of those who wait for credit or room.
    fn wake_writers(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.writers.drain(..).map(|(_, waker)| waker));
    }

    /// Adds the wakers of those who wait for something to come.
    fn wake_readers(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.reader.take());
        wakers.extend(self.calls.values_mut().filter_map(|call| call.waker.take()));
    }

    /// Takes note of what was read.
    fn report(&mut self, taken: &mut Taken) {
        let Some(stream) = &mut self.stream else { return };
        let (count, bytes) = (std::mem::take(&mut taken.count), std::mem::take(&mut taken.bytes));
        if let Some(grant) = stream.take(count, bytes) {
            self.owed.grant.get_or_insert(Grant::NONE).add(grant);
        }
        taken.report_at = stream.until_worth();
    }

    fn why_closed(&self) -> StreamError {
        match &self.end {
            Some(Err(error)) => error.clone(),
            _ => StreamError::Ended,
        }
    }

    /// Says what is owed, until there is no room.
    fn pay(&mut self, id: u64, out: &mut dyn Outlet) -> bool {
        if self.end.is_some() {
            return true;
        }
        if !self.owed.fin && self.stream.as_ref().is_some_and(Stream::has_finished) {
            // The peer expects no answers after the end.
            self.owed.unanswered.clear();
        }
        let mut push = |kind, flags, payload: &[u8]| {
            out.push(Header { flags, ..Header::call(kind, id) }, payload) != Pushed::NoRoom
        };
        if let Some(grant) = self.owed.grant {
            if !push(Kind::Credit, 0, &grant.encode()) {
                return false;
            }
            self.owed.grant = None;
        }
        while let Some(number) = self.owed.unanswered.last() {
            if !push(Kind::Data, flag::REPLY | flag::ERROR, &number.to_be_bytes()) {
                return false;
            }
            self.owed.unanswered.pop();
        }
        for (is_owed, kind) in [(&mut self.owed.fin, Kind::Fin), (&mut self.owed.rst, Kind::Rst)] {
            if *is_owed && !push(kind, 0, &[]) {
                return false;
            }
            *is_owed = false;
        }
        true
    }
}

impl Owed {
    fn is_anything(&self) -> bool {
        self.grant.is_some() || self.fin || self.rst || !self.unanswered.is_empty()
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").finish_non_exhaustive()
    }
}
