//! What a link guards by its lock: the calls aboard, and what frames mean to them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::solo::Solo;
use super::streams::Streams;
use super::{COARSE, LinkShared, Yard};
use crate::driver::call::Call;
use crate::face::error::{HandlerError, QueryError};
use crate::machine::frame::{Frame, Header, Kind, MAX_NOTICE, MAX_PING, Remaining, flag};
use crate::machine::id::CallId;
use crate::machine::payload::Lent;
use crate::machine::retry::{Failure, Verdict as RetryVerdict};
use crate::machine::session::{Answer, Cancel, Limit, Session, Verdict, Word};
use crate::machine::time::Time;
use crate::machine::window::Window;
use crate::transport::{LinkError, LinkTx};

/// Bytes that are kept of what a handler failed with.
const MAX_ERROR_KEPT: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Core<Tx> {
    pub(super) session: Session,
    pub(super) window: Window,
    /// None once the link takes nothing more.
    pub(super) tx: Option<Tx>,
    /// By slot of the session.
    pub(super) calls: Vec<Option<Aboard>>,
    /// When the timer of the worker's task is to fire; none where it has none.
    pub(super) due: Option<Time>,
    /// What is known of the calls of the worker, once it is gone.
    pub(super) word: Word,
    /// How many answers came together last.
    pub(super) last_batch: u32,
    /// Frames that were pushed since the last flush.
    pub(super) unsent: u32,
    /// Bytes of their payloads.
    pub(super) unsent_bytes: usize,
    /// The last flush left something.
    pub(super) is_backed_up: bool,
    /// Calls that are on no link any more and not in the queue yet: they count as unanswered until they are, so that whoever looks for calls
    /// finds each in one of them.
    pub(super) returning: u32,
    pub(super) draining: bool,
    pub(super) answered_any: bool,
    pub(super) last_notice: Option<String>,
    /// Bytes of the frames that came since READY.
    pub(super) received: u64,
    pub(super) solo: Solo,
    pub(super) streams: Streams,
    /// CANCEL of calls, and DRAIN, that found no room on the link.
    pub(super) unsaid: VecDeque<Header>,
}

#[derive(Debug)]
pub(super) struct Aboard {
    pub(super) call: Arc<Call>,
    pub(super) sent: Time,
}

/// What is to be done once the lock is gone.
#[derive(Default)]
pub(super) struct After {
    pub(super) wakers: Vec<Waker>,
    pub(super) slow: Vec<Arc<Call>>,
    pub(super) requeue: Vec<(Arc<Call>, Duration)>,
    /// How many of these the core counts as returning.
    pub(super) counted: u32,
    pub(super) poisoned: Vec<Arc<Call>>,
    pub(super) notices: Vec<String>,
    pub(super) first_answer: bool,
    /// The worker has answered as many calls as wear one out.
    pub(super) is_worn: bool,
    /// There is no solo call that waits: its caller, if there is one, sees to the rest.
    pub(super) solo_is_over: bool,
}

impl<Tx: LinkTx> Core<Tx> {
    pub(super) fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
        self.unsent += 1;
        self.unsent_bytes += payload.len();
        match &mut self.tx {
            Some(tx) => tx.push(header, payload),
            None => Err(LinkError::Closed),
        }
    }

    /// Begins a call of so much time, and puts it on the link. None where there is no room for it.
    pub(super) fn open(
        &mut self,
        now: Time,
        (limit, left): (Limit, Option<Duration>),
        call: &Call,
    ) -> Result<Option<CallId>, LinkError> {
        let Ok(id) = self.session.open(now, limit) else { return Ok(None) };
        let kind = if call.flow.is_some() { Kind::Open } else { Kind::Req };
        let header = Header { remaining: Remaining::new(left), ..Header::call(kind, id.to_wire()) };
        let pushed = self.push(header, &call.input);
        if !matches!(pushed, Ok(true)) {
            self.session.retract(id);
        }
        Ok(pushed?.then_some(id))
    }

    /// Notes that a call is aboard.
    pub(super) fn seat(&mut self, id: CallId, aboard: Aboard) {
        // Slots are taken one by one.
        if self.calls.len() <= id.slot() {
            self.calls.resize_with(id.slot() + 1, || None);
        }
        self.calls[id.slot()] = Some(aboard);
    }

    /// What this link counts as its own.
    pub(super) fn load(&self) -> u32 {
        self.session.unanswered() as u32 + self.returning
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        (self.unsent, self.unsent_bytes) = (0, 0);
        let flushed = match &mut self.tx {
            Some(tx) => tx.poll_flush(cx),
            None => Poll::Ready(Ok(())),
        };
        self.is_backed_up = flushed.is_pending();
        flushed
    }

    pub(super) fn next_due(&self, others: bool) -> Option<Time> {
        let expiry = self.session.poll_timeout().map(|at| at + COARSE);
        let waiting = self.session.unanswered() > self.session.started();
        let stall = if others && waiting { self.window.stall_at(self.session.unanswered() as u32) } else { None };
        let pulse = self.streams.pulse.poll_timeout().map(|at| at + COARSE);
        Time::earliest(Time::earliest(expiry, stall), pulse)
    }

    /// Whether the task sleeps for longer than it should.
    pub(super) fn is_due_sooner(&self) -> bool {
        match (self.next_due(true), self.due) {
            (Some(needed), Some(armed)) => needed + COARSE < armed,
            (needed, None) => needed.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// Asks those calls back that the worker has not started, but for those that may not go elsewhere.
    pub(super) fn recall_all(&mut self) {
        let mut unstarted = Vec::new();
        self.unstarted(0, &mut unstarted);
        for id in unstarted {
            let _ = self.push(Header::call(Kind::Recall, id.to_wire()), &[]);
        }
    }

    /// The same for all but the `keep` oldest of them. Where the link can tell that the worker has not begun with one, that needs no answer of the
    /// worker. `room` is for the ids.
    pub(super) fn recall_but(&mut self, now: Time, keep: usize, room: &mut Vec<CallId>, after: &mut After) {
        self.unstarted(keep, room);
        for &id in &*room {
            match self.reclaim(id) {
                Some(true) => {
                    // An open call that was asked back goes to the queue.
                    if let Ok(Some(aboard)) = self.end(now, id, Answer::NotStarted, &mut Batch::default())
                        && aboard.call.leave()
                    {
                        after.requeue.push((aboard.call, Duration::ZERO));
                    }
                }
                Some(false) => {}
                None => {
                    let _ = self.push(Header::call(Kind::Recall, id.to_wire()), &[]);
                }
            }
        }
    }

    /// Tells the worker that nobody waits for a call any more, which the session has given up. True where it waited behind others, and the worker has not begun
    /// with it and never will: then nobody has to be told. One that the worker should have begun with is not taken back: a worker that does nothing is
    /// known by that.
    pub(super) fn withdraw(&mut self, now: Time, id: CallId) -> bool {
        if !self.session.is_started(id) && self.reclaim(id) == Some(true) {
            self.session.answered(now, id, Answer::NotStarted);
            return true;
        }
        self.tell_cancelled(now, id);
        false
    }

    /// Takes a call back, where the link can tell whether the worker has begun with it.
    fn reclaim(&mut self, id: CallId) -> Option<bool> {
        let number = self.session.number(id);
        self.tx.as_mut()?.reclaim(number)
    }

    /// Ends a call for its caller, and tells the worker. None where it has ended: then its slot may have another one.
    pub(super) fn give_up(&mut self, now: Time, id: CallId) -> Option<Aboard> {
        if self.session.cancel(now, id) == Cancel::Gone {
            return None;
        }
        self.tell_cancelled(now, id);
        self.take(id)
    }

    /// Says something that must be said, now or with the next flush that has room for it.
    pub(super) fn say(&mut self, header: Header) {
        if !self.unsaid.is_empty() || matches!(self.push(header, &[]), Ok(false)) {
            self.unsaid.push_back(header);
        }
    }

    /// Says what had no room. False where it still has none.
    pub(super) fn say_unsaid(&mut self) -> bool {
        while let Some(&header) = self.unsaid.front() {
            if matches!(self.push(header, &[]), Ok(false)) {
                return false;
            }
            self.unsaid.pop_front();
        }
        true
    }

    /// Tells the worker that nobody waits for a call any more.
    pub(super) fn tell_cancelled(&mut self, now: Time, id: CallId) {
        self.streams.pulse.expect(now);
        self.say(Header::call(Kind::Cancel, id.to_wire()));
    }

    /// Picks the calls that the worker has not started, but for the `keep` oldest and those that may not go elsewhere.
    fn unstarted(&mut self, keep: usize, room: &mut Vec<CallId>) {
        room.clear();
        let calls = &self.calls;
        let may_go = |id: CallId| calls[id.slot()].as_ref().is_some_and(|aboard| aboard.call.may_move());
        self.session.recall(keep, may_go, room);
    }

    /// Takes one frame of the worker, which is of no open stream.
    pub(super) fn receive(
        &mut self,
        now: Time,
        frame: Frame<'_>,
        yard: &dyn Yard,
        after: &mut After,
        batch: &mut Batch,
    ) -> Result<(), String> {
        let Frame { header, payload } = frame;
        let id = CallId::from_wire(header.id);
        match Kind::from_wire(header.kind) {
            Some(Kind::Resp) if self.solo.is(id) => match self.session.answered(now, id, Answer::Outcome) {
                Verdict::Violation(violation) => return Err(format!("{violation} (call {})", id.to_wire())),
                _ => {
                    let made = self.solo.answer(now, payload);
                    yard.answered(made, now);
                    batch.answered(made);
                    after.solo_is_over = true;
                }
            },
            Some(Kind::Resp) => {
                if let Some(aboard) = self.end(now, id, Answer::Outcome, batch)? {
                    yard.answered(aboard.call.made(), now);
                    batch.answered(aboard.sent);
                    after.resolve(&aboard.call, Ok(payload));
                    after.note_slow(now, aboard.call, yard);
                }
            }
            Some(Kind::Err) if header.flags & (flag::NOT_STARTED | flag::CANCELLED) != 0 => {
                let answer = if header.flags & flag::NOT_STARTED != 0 { Answer::NotStarted } else { Answer::Cancelled };
                if let Some(aboard) = self.end(now, id, answer, batch)?
                    && aboard.call.leave()
                {
                    after.requeue.push((aboard.call, Duration::ZERO));
                }
            }
            Some(Kind::Err) => {
                let error: HandlerError =
                    serde_json::from_slice(&payload).map_err(|error| format!("an ERR that cannot be read: {error}"))?;
                if let Some(aboard) = self.end(now, id, Answer::Outcome, batch)? {
                    yard.answered(aboard.call.made(), now);
                    batch.answered(aboard.sent);
                    if aboard.call.flow.is_some() {
                        let text = error.to_string();
                        let kept = &text[..text.floor_char_boundary(MAX_ERROR_KEPT)];
                        self.streams.last_error = Some(kept.to_owned());
                    }
                    after.failed(now, aboard.call.clone(), Failure::Handler, yard, |tries, _| {
                        QueryError::Handler(Box::new(HandlerError { tries, ..error }))
                    });
                    after.note_slow(now, aboard.call, yard);
                }
            }
            Some(Kind::Notice) => {
                if payload.len() > MAX_NOTICE {
                    return Err(format!("a NOTICE of {} bytes; at most {MAX_NOTICE} are allowed", payload.len()));
                }
                let text = String::from_utf8_lossy(&payload).into_owned();
                self.last_notice = Some(text.clone());
                after.notices.push(text);
            }
            Some(Kind::Ping) => {
                if payload.len() > MAX_PING {
                    return Err(format!("a PING of {} bytes; at most {MAX_PING} are allowed", payload.len()));
                }
                let _ = self.push(Header::new(Kind::Pong), &payload);
                batch.replied = true;
            }
            // After BYE comes the end of the process, and that is what counts.
            Some(Kind::Pong | Kind::Bye) => {}
            Some(kind) => return Err(format!("a frame of the kind {kind:?}, which no worker sends now")),
            None if header.flags & flag::CRITICAL != 0 => {
                return Err(format!("a critical frame of the unknown kind {}", header.kind));
            }
            None => batch.dropped += 1,
        }
        Ok(())
    }

    /// Ends a call by an answer of the worker. None where nobody waits for it.
    pub(super) fn end(
        &mut self,
        now: Time,
        id: CallId,
        answer: Answer,
        batch: &mut Batch,
    ) -> Result<Option<Aboard>, String> {
        match self.session.answered(now, id, answer) {
            Verdict::Deliver | Verdict::Requeue => Ok(self.take(id)),
            Verdict::Late => {
                batch.dropped += 1;
                Ok(None)
            }
            Verdict::Violation(violation) => Err(format!("{violation} (call {})", id.to_wire())),
        }
    }
}

/// What came in one turn.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) answers: u32,
    pub(super) oldest: Option<Time>,
    /// Messages of streams.
    pub(super) messages: u32,
    /// Something was pushed that must not wait for the next call.
    pub(super) replied: bool,
    /// Frames that mean nothing: of kinds that pm does not know, and of calls that have ended.
    pub(super) dropped: u64,
}

impl Batch {
    /// An answer to a call that was sent at this time.
    pub(super) fn answered(&mut self, sent: Time) {
        self.answers += 1;
        self.oldest = Time::earliest(self.oldest, Some(sent));
    }
}

impl After {
    pub(super) fn resolve(&mut self, call: &Call, outcome: Result<Lent<'_>, QueryError>) {
        call.resolve(outcome, &mut self.wakers);
    }

    /// A call was answered. Lets go of it before its caller is woken, who then uses its memory again.
    fn note_slow(&mut self, now: Time, call: Arc<Call>, yard: &dyn Yard) {
        if yard.is_slow(call.made(), now) {
            self.slow.push(call);
        }
    }

    /// A try of a call failed: it is tried again, or its caller gets the error.
    pub(super) fn failed(
        &mut self,
        now: Time,
        call: Arc<Call>,
        failure: Failure,
        yard: &dyn Yard,
        error: impl FnOnce(u32, bool) -> QueryError,
    ) {
        let (verdict, tries) = call.record_failure(now, failure);
        if let RetryVerdict::Again(delay) = verdict {
            if call.leave() {
                yard.retried();
                self.requeue.push((call, delay));
            }
            return;
        }
        let is_poisoned = verdict == RetryVerdict::Poisoned;
        let error = error(tries, is_poisoned);
        if !call.is_over() {
            yard.failed(error.kind());
        }
        self.resolve(&call, Err(error));
        if is_poisoned {
            self.poisoned.push(call);
        }
    }

    /// Has the core count what goes back to the queue. Before its lock is given up.
    pub(super) fn count_returning<Tx>(&mut self, core: &mut Core<Tx>) {
        let all = self.requeue.len() as u32;
        core.returning += all - std::mem::replace(&mut self.counted, all);
    }

    /// Passes on what the worker said.
    pub(super) fn tell<Tx>(&mut self, link: &LinkShared<Tx>, yard: &dyn Yard) {
        for text in self.notices.drain(..) {
            yard.notice(link.worker, &text);
        }
    }

    pub(super) fn run<Tx>(&mut self, link: &LinkShared<Tx>, yard: &dyn Yard, now: Time) {
        self.tell(link, yard);
        self.wakers.drain(..).for_each(Waker::wake);
        if std::mem::take(&mut self.first_answer) {
            yard.first_answer(link.worker, link.incarnation);
        }
        if std::mem::take(&mut self.is_worn) {
            yard.is_worn();
        }
        for call in self.slow.drain(..) {
            yard.was_slow(link.worker, call.made(), &call.input, now);
        }
        for (call, delay) in self.requeue.drain(..) {
            yard.requeue(call, delay);
        }
        for call in self.poisoned.drain(..) {
            yard.poisoned(&yard.describe(&call.input));
        }
    }
}
