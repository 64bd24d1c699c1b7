//! The calls of one worker on its link: who submits, who drains, who is woken.
//!
//! Callers put their call on the link themselves, under the lock of its [`Core`]; the task of the worker receives, delivers and
//! flushes. A call that finds the link empty is written to the worker at once, by its caller. Where calls are under way
//! already, the task writes what has gathered, after all who are ready to run have had the chance to add to it.
//!
//! Under the lock nobody calls user code, wakes a task or drops a waker: that is gathered in an [`After`] and done after it.
//! Lock order: the pool's backlog, then its links that leave, then the core of a link, then a call.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;

use super::call::{Call, Outcome};
use super::clock;
use crate::face::error::{HandlerError, QueryError, WorkerLost};
use crate::machine::cause::ExitCause;
use crate::machine::dispatch;
use crate::machine::frame::{BadFrame, Decoder, Frame, Header, Kind, MAX_NOTICE, MAX_PING, Remaining, flag};
use crate::machine::handshake::Ready;
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::retry::{Failure, Verdict as RetryVerdict};
use crate::machine::session::{Answer, Cancel, Fate, Session, Verdict, Word};
use crate::machine::time::Time;
use crate::machine::window::Window;
use crate::transport::{LinkError, LinkRx, LinkTx};

/// Times are looked at this coarsely: a timeout may come so much late, never early.
const COARSE: Duration = Duration::from_millis(4);

/// So many calls go to the worker before all others have joined: while it computes, the next ones are encoded. Fewer would pay for more
/// system calls and wake-ups than that gains.
const ENOUGH: u32 = 128;

/// How often the task of a link takes in more before it lets others run.
const FILLS_A_TURN: usize = 8;

/// What all links of a pool have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkSettings {
    pub(crate) cancel_grace: Option<Duration>,
    /// How many calls a worker may have when they name it.
    pub(crate) capacity: usize,
}

/// What a link asks of its pool. None of it is called under a lock of the link, but for `has_others` and `has_idle`, which take none.
pub(crate) trait Yard: Send + Sync {
    /// A worker sent a notice.
    fn notice(&self, worker: WorkerId, text: &str);
    /// A call was answered.
    fn answered(&self, worker: WorkerId, call: &Call, now: Time);
    /// So many frames of a worker meant nothing.
    fn dropped(&self, frames: u64);
    /// A call goes to the front of the queue, or waits for a delay first.
    fn requeue(&self, call: Arc<Call>, delay: Duration);
    /// A call is quarantined.
    fn poisoned(&self, summary: &str);
    /// What the input of a call says, in short.
    fn describe(&self, input: &[u8]) -> String;
    /// A link has room: calls that wait can go.
    fn dispatch(&self);
    /// The worker finished its first call.
    fn first_answer(&self, worker: WorkerId, incarnation: Incarnation);
    /// A worker has answered everything: a shutdown may wait for that.
    fn idle(&self);
    /// Whether there are other workers.
    fn has_others(&self) -> bool;
    /// Whether another worker has nothing to do: it could take calls that this one is slow to start.
    fn has_idle(&self, but: WorkerId) -> bool;
}

/// What a caller wants of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// That its worker has nothing else to do: it was chosen for that.
    Idle,
    /// A place in the window.
    Room,
    /// This worker and no other, so that its window does not matter.
    Named,
}

/// What [`LinkShared::submit`] did with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submit {
    /// It is on the link.
    Taken,
    /// Another caller was faster, and the worker is not idle any more.
    Busy,
    /// The link has no room for it now.
    Full,
    /// The link takes no more calls.
    Closed,
    /// The call was over already.
    Over,
}

/// Why the task of a link came to its end.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The link is lost.
    Lost(String),
    /// The worker broke the protocol.
    Violation(String),
    /// The worker did not yield.
    Stuck(Duration),
}

/// A link with its calls, shared by callers and the task of its worker.
#[derive(Debug)]
pub(crate) struct LinkShared<Tx> {
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) pid: u32,
    unanswered: AtomicU32,
    window: AtomicU32,
    /// Nanoseconds per answer.
    service: AtomicU64,
    accepting: AtomicBool,
    kicked: AtomicBool,
    task: AtomicWaker,
    core: Mutex<Core<Tx>>,
}

#[derive(Debug)]
struct Core<Tx> {
    session: Session,
    window: Window,
    /// None once the link is closed.
    tx: Option<Tx>,
    /// By slot of the session.
    calls: Vec<Option<Aboard>>,
    /// When the timer of the worker's task is to fire; none where it has none.
    due: Option<Time>,
    /// What is known of the calls of the worker, once it is gone.
    word: Word,
    /// How many answers came together last.
    last_batch: u32,
    /// Frames that were pushed since the last flush.
    unsent: u32,
    draining: bool,
    bye: bool,
    answered_any: bool,
    last_notice: Option<String>,
}

#[derive(Debug)]
struct Aboard {
    call: Arc<Call>,
    sent: Time,
}

/// What is to be done once the lock is gone.
#[derive(Default)]
struct After {
    wakers: Vec<Waker>,
    answered: Vec<Arc<Call>>,
    requeue: Vec<(Arc<Call>, Duration)>,
    poisoned: Vec<Arc<Call>>,
    notices: Vec<String>,
    first_answer: bool,
}

impl<Tx: LinkTx> LinkShared<Tx> {
    pub(crate) fn new(
        worker: WorkerId,
        incarnation: Incarnation,
        pid: u32,
        tx: Tx,
        ready: &Ready,
        settings: LinkSettings,
    ) -> Self {
        let window = Window::new(ready.concurrency);
        let capacity = settings.capacity.max(window.size() as usize);
        let session = Session::new(capacity, ready.ahead as usize, settings.cancel_grace);
        LinkShared {
            worker,
            incarnation,
            pid,
            unanswered: AtomicU32::new(0),
            window: AtomicU32::new(window.size()),
            service: AtomicU64::new(window.service().as_nanos() as u64),
            accepting: AtomicBool::new(true),
            kicked: AtomicBool::new(false),
            task: AtomicWaker::new(),
            core: Mutex::new(Core {
                session,
                window,
                tx: Some(tx),
                calls: (0..capacity).map(|_| None).collect(),
                due: None,
                word: Word::Nothing,
                last_batch: 0,
                unsent: 0,
                draining: false,
                bye: false,
                answered_any: false,
                last_notice: None,
            }),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core<Tx>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that the worker has not answered.
    pub(crate) fn load(&self) -> u32 {
        self.unanswered.load(Ordering::SeqCst)
    }

    /// The last notice that the worker sent.
    pub(crate) fn last_notice(&self) -> Option<String> {
        self.core().last_notice.clone()
    }

    /// What a further call would cost here, in nanoseconds, and the load; none where there is no room. A hint:
    /// [`LinkShared::submit`] decides. `waited` says that the call has been in the queue.
    pub(crate) fn cost(&self, waited: bool) -> Option<(u64, u32)> {
        if !self.accepting.load(Ordering::Relaxed) {
            return None;
        }
        let (load, window) = (self.unanswered.load(Ordering::Relaxed), self.window.load(Ordering::Relaxed));
        let cost = dispatch::cost(load, window, self.service.load(Ordering::Relaxed), waited)?;
        Some((cost, load))
    }

    /// Puts a call on the link.
    pub(crate) fn submit(&self, now: Time, call: &Arc<Call>, claim: Claim) -> Submit {
        let mut guard = self.core();
        let core = &mut *guard;
        if !self.accepting.load(Ordering::Relaxed) || core.draining {
            return Submit::Closed;
        }
        let before = core.session.unanswered();
        match claim {
            Claim::Idle if before > 0 => return Submit::Busy,
            Claim::Room if before >= core.window.size() as usize => return Submit::Full,
            _ => {}
        }
        let (limit, left) = call.limit(now);
        let Ok(id) = core.session.open(now, limit) else { return Submit::Full };
        if !call.board(self.worker, self.incarnation, id) {
            core.session.retract(id);
            return Submit::Over;
        }
        let header = Header { remaining: Remaining::new(left), ..Header::call(Kind::Req, id.to_wire()) };
        match core.push(header, &call.input) {
            Ok(true) => {}
            Ok(false) => {
                core.session.retract(id);
                let goes_on = call.leave();
                drop(guard);
                // What fills the link may be nothing that anybody else would flush.
                self.kick();
                return if goes_on { Submit::Full } else { Submit::Over };
            }
            Err(_) => {
                // The task meets the same error, and settles the others.
                core.session.retract(id);
                let goes_on = call.leave();
                drop(guard);
                self.kick();
                return if goes_on { Submit::Closed } else { Submit::Over };
            }
        }
        core.calls[id.slot()] = Some(Aboard { call: call.clone(), sent: now });
        self.unanswered.store(core.session.unanswered() as u32, Ordering::SeqCst);
        let mut kick = true;
        if before == 0 {
            core.window.began(now);
        }
        // Nothing is under way, and calls come one at a time: waiting for others to join would only cost time.
        let is_alone = before == 0 && core.last_batch <= 1;
        if is_alone || core.unsent >= ENOUGH {
            let flushed = core.poll_flush(&mut Context::from_waker(Waker::noop()));
            kick = !(is_alone && matches!(flushed, Poll::Ready(Ok(()))));
        }
        kick |= core.is_due_sooner();
        drop(guard);
        if kick {
            self.kick();
        }
        Submit::Taken
    }

    /// The caller of this call has gone.
    pub(crate) fn cancel(&self, id: CallId) {
        let now = clock::now();
        let mut guard = self.core();
        let core = &mut *guard;
        let mut dropped = None;
        if core.session.cancel(now, id) == Cancel::Tell {
            dropped = core.calls[id.slot()].take();
            // A link without room for this has a worker that reads nothing: its deadline or the grace ends it.
            let _ = core.push(Header::call(Kind::Cancel, id.to_wire()), &[]);
        }
        drop(guard);
        drop(dropped);
        self.kick();
    }

    /// Takes no more calls, and tells the worker that none follow.
    pub(crate) fn drain(&self) {
        self.accepting.store(false, Ordering::SeqCst);
        let mut core = self.core();
        if !std::mem::replace(&mut core.draining, true) {
            let _ = core.push(Header::new(Kind::Drain), &[]);
        }
        drop(core);
        self.kick();
    }

    /// Takes no more calls.
    pub(crate) fn refuse(&self) {
        self.accepting.store(false, Ordering::SeqCst);
    }

    /// Closes the link: the worker sees its end.
    pub(crate) fn close(&self) {
        self.accepting.store(false, Ordering::SeqCst);
        let tx = self.core().tx.take();
        drop(tx);
    }

    /// Whether the worker was told to drain, and has answered everything.
    pub(crate) fn is_drained(&self) -> bool {
        let core = self.core();
        core.draining && core.session.unanswered() == 0
    }

    /// The worker is dead: every call that it had is resolved or goes back to the queue.
    pub(crate) fn settle(&self, cause: &ExitCause, stderr: &str, yard: &dyn Yard) {
        self.accepting.store(false, Ordering::SeqCst);
        let now = clock::now();
        let mut guard = self.core();
        let core = &mut *guard;
        let mut open = Vec::new();
        core.session.lost(core.word, &mut open);
        let last_notice = core.last_notice.clone();
        // The requeue puts each in front of those before it, so the youngest goes first.
        let aboard: Vec<_> =
            open.into_iter().rev().filter_map(|(id, fate)| Some((core.calls[id.slot()].take()?.call, fate))).collect();
        let left: Vec<_> = core.calls.iter_mut().filter_map(Option::take).collect();
        let tx = core.tx.take();
        drop(guard);
        drop((left, tx));
        let mut after = After::default();
        for (call, fate) in aboard {
            if fate == Fate::Unstarted {
                if call.leave() {
                    after.requeue.push((call, Duration::ZERO));
                }
                continue;
            }
            let lost = WorkerLost {
                worker: self.worker,
                pid: self.pid,
                cause: cause.clone(),
                stderr: stderr.to_string(),
                last_notice: last_notice.clone(),
                input: yard.describe(&call.input),
                tries: 0,
            };
            after.failed(now, call, Failure::of_death(cause), |tries, poisoned| {
                let lost = Box::new(WorkerLost { tries, ..lost });
                if poisoned { QueryError::Poisoned(lost) } else { QueryError::WorkerLost(lost) }
            });
        }
        after.run(self, yard, now);
        self.unanswered.store(0, Ordering::SeqCst);
        yard.idle();
        yard.dispatch();
    }

    /// Tells the task that something changed.
    fn kick(&self) {
        if !self.kicked.swap(true, Ordering::SeqCst) {
            self.task.wake();
        }
    }

    fn publish(&self, core: &Core<Tx>) {
        self.window.store(core.window.size(), Ordering::Relaxed);
        self.service.store(core.window.service().as_nanos() as u64, Ordering::Relaxed);
        self.unanswered.store(core.session.unanswered() as u32, Ordering::SeqCst);
    }
}

impl<Tx: LinkTx> Core<Tx> {
    fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
        self.unsent += 1;
        match &mut self.tx {
            Some(tx) => tx.push(header, payload),
            None => Err(LinkError::Closed),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.unsent = 0;
        match &mut self.tx {
            Some(tx) => tx.poll_flush(cx),
            None => Poll::Ready(Err(LinkError::Closed)),
        }
    }

    fn next_due(&self, others: bool) -> Option<Time> {
        let expiry = self.session.poll_timeout().map(|at| at + COARSE);
        let waiting = self.session.unanswered() > self.session.started();
        let stall = if others && waiting { self.window.stall_at(self.session.unanswered() as u32) } else { None };
        Time::earliest(expiry, stall)
    }

    /// Whether the task sleeps for longer than it should.
    fn is_due_sooner(&self) -> bool {
        match (self.next_due(true), self.due) {
            (Some(needed), Some(armed)) => needed + COARSE < armed,
            (needed, None) => needed.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// Takes one frame of the worker.
    fn receive(&mut self, now: Time, frame: Frame<'_>, after: &mut After, drain: &mut Drained) -> Result<(), String> {
        let Frame { header, payload } = frame;
        let id = CallId::from_wire(header.id);
        match Kind::from_wire(header.kind) {
            Some(Kind::Resp) => {
                if let Some(aboard) = self.end(now, id, Answer::Outcome, drain)? {
                    drain.count(&aboard);
                    after.resolve(&aboard.call, Ok(payload.to_vec()));
                    after.answered.push(aboard.call);
                }
            }
            Some(Kind::Err) if header.flags & (flag::NOT_STARTED | flag::CANCELLED) != 0 => {
                let answer = if header.flags & flag::NOT_STARTED != 0 { Answer::NotStarted } else { Answer::Cancelled };
                if let Some(aboard) = self.end(now, id, answer, drain)?
                    && aboard.call.leave()
                {
                    after.requeue.push((aboard.call, Duration::ZERO));
                }
            }
            Some(Kind::Err) => {
                let error: HandlerError =
                    serde_json::from_slice(payload).map_err(|error| format!("an ERR that cannot be read: {error}"))?;
                if let Some(aboard) = self.end(now, id, Answer::Outcome, drain)? {
                    drain.count(&aboard);
                    after.failed(now, aboard.call.clone(), Failure::Handler, |tries, _| {
                        QueryError::Handler(Box::new(HandlerError { tries, ..error }))
                    });
                    after.answered.push(aboard.call);
                }
            }
            Some(Kind::Notice) => {
                if payload.len() > MAX_NOTICE {
                    return Err(format!("a NOTICE of {} bytes; at most {MAX_NOTICE} are allowed", payload.len()));
                }
                let text = String::from_utf8_lossy(payload).into_owned();
                self.last_notice = Some(text.clone());
                after.notices.push(text);
            }
            Some(Kind::Ping) => {
                if payload.len() > MAX_PING {
                    return Err(format!("a PING of {} bytes; at most {MAX_PING} are allowed", payload.len()));
                }
                let _ = self.push(Header::new(Kind::Pong), payload);
                drain.replied = true;
            }
            Some(Kind::Pong) => {}
            Some(Kind::Bye) => self.bye = true,
            Some(kind) => return Err(format!("a frame of the kind {kind:?}, which no worker sends now")),
            None if header.flags & flag::CRITICAL != 0 => {
                return Err(format!("a critical frame of the unknown kind {}", header.kind));
            }
            None => drain.dropped += 1,
        }
        Ok(())
    }

    /// Ends a call by an answer of the worker. None where nobody waits for it.
    fn end(&mut self, now: Time, id: CallId, answer: Answer, drain: &mut Drained) -> Result<Option<Aboard>, String> {
        match self.session.answered(now, id, answer) {
            Verdict::Deliver | Verdict::Requeue => Ok(self.calls[id.slot()].take()),
            Verdict::Late => {
                drain.dropped += 1;
                Ok(None)
            }
            Verdict::Violation(violation) => Err(format!("{violation} (call {})", id.to_wire())),
        }
    }
}

/// The answers of one turn, for the window.
#[derive(Default)]
struct Drained {
    count: u32,
    oldest: Option<Time>,
    /// Something was pushed that must not wait for the next call.
    replied: bool,
    /// Frames that mean nothing: of kinds that pm does not know, and of calls that have ended.
    dropped: u64,
}

impl Drained {
    fn count(&mut self, aboard: &Aboard) {
        self.count += 1;
        self.oldest = Time::earliest(self.oldest, Some(aboard.sent));
    }
}

impl After {
    fn resolve(&mut self, call: &Call, outcome: Outcome) {
        self.wakers.extend(call.resolve(outcome));
    }

    /// A try of a call failed: it is tried again, or its caller gets the error.
    fn failed(&mut self, now: Time, call: Arc<Call>, failure: Failure, error: impl FnOnce(u32, bool) -> QueryError) {
        match call.failed(now, failure) {
            (RetryVerdict::Again(delay), _) => {
                if call.leave() {
                    self.requeue.push((call, delay));
                }
            }
            (RetryVerdict::Fail, tries) => self.resolve(&call, Err(error(tries, false))),
            (RetryVerdict::Poisoned, tries) => {
                self.resolve(&call, Err(error(tries, true)));
                self.poisoned.push(call);
            }
        }
    }

    fn run<Tx>(&mut self, link: &LinkShared<Tx>, yard: &dyn Yard, now: Time) {
        // What a worker said before its answer is heard before it.
        for text in self.notices.drain(..) {
            yard.notice(link.worker, &text);
        }
        self.wakers.drain(..).for_each(Waker::wake);
        if std::mem::take(&mut self.first_answer) {
            yard.first_answer(link.worker, link.incarnation);
        }
        for call in self.answered.drain(..) {
            yard.answered(link.worker, &call, now);
        }
        for (call, delay) in self.requeue.drain(..) {
            yard.requeue(call, delay);
        }
        for call in self.poisoned.drain(..) {
            yard.poisoned(&yard.describe(&call.input));
        }
    }
}

/// Delivers the frames that have come, all under one lock, and wakes their callers after it.
fn deliver_from<Tx: LinkTx, Rx: LinkRx>(
    rx: &mut Rx,
    shared: &LinkShared<Tx>,
    yard: &dyn Yard,
    after: &mut After,
) -> Result<(), String> {
    let now = clock::now();
    let mut drained = Drained::default();
    let mut guard = shared.core();
    let core = &mut *guard;
    let result = loop {
        match rx.next() {
            Ok(None) => break Ok(()),
            Ok(Some(frame)) => {
                if let Err(violation) = core.receive(now, frame, after, &mut drained) {
                    break Err(violation);
                }
            }
            Err(error) => break Err(error.to_string()),
        }
    };
    if drained.count > 0 {
        core.last_batch = drained.count;
        let left = core.session.unanswered() as u32;
        core.window.answered(now, drained.count, left, drained.oldest.unwrap_or(now));
        after.first_answer = !std::mem::replace(&mut core.answered_any, true);
    }
    let goes_back = !after.requeue.is_empty();
    if !goes_back {
        shared.publish(core);
    }
    let is_idle = core.session.unanswered() == 0;
    drop(guard);
    if drained.replied {
        shared.kick();
    }
    if drained.dropped > 0 {
        yard.dropped(drained.dropped);
    }
    after.run(shared, yard, now);
    if goes_back {
        // A call counts here until the queue has it: whoever looks for calls finds it in one of them.
        shared.publish(&shared.core());
    }
    if is_idle {
        yard.idle();
    }
    yard.dispatch();
    result
}

/// The frames of a worker that is dead.
struct Leftovers(Decoder);

impl LinkRx for Leftovers {
    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        Poll::Ready(Err(LinkError::Closed))
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        Ok(self.0.next()?)
    }
}

/// The part of a worker's task that looks after its link.
pub(crate) struct LinkDriver<Tx, Rx> {
    shared: Arc<LinkShared<Tx>>,
    yard: Arc<dyn Yard>,
    rx: Rx,
    after: After,
    expired: Vec<CallId>,
    sleep: std::pin::Pin<Box<tokio::time::Sleep>>,
    /// Frames may have come together with READY.
    is_new: bool,
    /// The others have had the chance to add to what is flushed next.
    gathered: bool,
    /// Something was pushed that has not gone.
    unflushed: bool,
}

impl<Tx: LinkTx, Rx: LinkRx> LinkDriver<Tx, Rx> {
    pub(crate) fn new(shared: Arc<LinkShared<Tx>>, yard: Arc<dyn Yard>, rx: Rx) -> Self {
        LinkDriver {
            shared,
            yard,
            rx,
            after: After::default(),
            expired: Vec::new(),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            is_new: true,
            gathered: false,
            unflushed: false,
        }
    }

    /// Receives, delivers, flushes and keeps deadlines, until the link ends. Cancel safe.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        self.shared.task.register(cx.waker());
        let mut end = None;
        let mut more = true;
        if std::mem::take(&mut self.is_new)
            && let Err(violation) = self.deliver()
        {
            return Poll::Ready(LinkEnd::Violation(violation));
        }
        for _ in 0..FILLS_A_TURN {
            match self.rx.poll_fill(cx) {
                Poll::Pending => {
                    more = false;
                    break;
                }
                Poll::Ready(Ok(())) => {
                    if let Err(violation) = self.deliver() {
                        end = Some(LinkEnd::Violation(violation));
                        break;
                    }
                }
                Poll::Ready(Err(error)) => {
                    if matches!(error, LinkError::Closed) {
                        self.shared.core().word = Word::Answers;
                    }
                    end = Some(match error {
                        // A worker that dies while it writes is no liar: its exit status says more.
                        LinkError::BadFrame(BadFrame::Truncated { .. }) => LinkEnd::Lost(error.to_string()),
                        LinkError::BadFrame(_) | LinkError::Corrupt(_) => LinkEnd::Violation(error.to_string()),
                        error => LinkEnd::Lost(error.to_string()),
                    });
                    break;
                }
            }
        }
        if let Some(end) = end {
            return Poll::Ready(end);
        }
        if more {
            cx.waker().wake_by_ref();
        }
        if let Err(end) = self.flush(cx) {
            return Poll::Ready(end);
        }
        self.keep_time(cx).map_or(Poll::Pending, Poll::Ready)
    }

    /// Delivers the complete frames that a dead worker left in its link. Ready once there are no more.
    pub(crate) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.rx.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    if self.deliver().is_err() {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(Err(_)) => {
                    self.shared.core().word = Word::Answers;
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Delivers the answers that a dead worker left in its outbox. Those that had come over the link as well are late.
    /// `begun` is how many calls it had begun with.
    pub(crate) fn recover(&mut self, frames: &[u8], begun: Option<u64>) {
        if let Some(begun) = begun {
            self.shared.core().word = Word::Begun(begun);
        }
        let mut decoder = Decoder::new(frames.len());
        decoder.buffer().extend_from_slice(frames);
        // It is dead; whatever else it left there does not matter any more.
        let _ = deliver_from(&mut Leftovers(decoder), &self.shared, &*self.yard, &mut self.after);
    }

    fn deliver(&mut self) -> Result<(), String> {
        deliver_from(&mut self.rx, &self.shared, &*self.yard, &mut self.after)
    }

    /// Writes what callers have pushed. On a kick it first lets everybody run who is ready to, so that they go in one write.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEnd> {
        if self.shared.kicked.load(Ordering::SeqCst) || self.unflushed {
            if !self.gathered && !self.unflushed {
                self.gathered = true;
                cx.waker().wake_by_ref();
                return Ok(());
            }
            self.gathered = false;
            self.shared.kicked.store(false, Ordering::SeqCst);
            let flushed = self.shared.core().poll_flush(cx);
            match flushed {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    // A link that was full has room again, and a caller may have met it full only a moment ago.
                    self.yard.dispatch();
                }
                Poll::Ready(Err(error)) => return Err(LinkEnd::Lost(error.to_string())),
                Poll::Pending => self.unflushed = true,
            }
        }
        Ok(())
    }

    /// Ends calls whose time is over, and asks calls back that wait behind a slow one.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Option<LinkEnd> {
        let others = self.yard.has_others();
        loop {
            let mut guard = self.shared.core();
            let core = &mut *guard;
            let needed = core.next_due(others);
            let Some(needed) = needed else {
                core.due = None;
                return None;
            };
            let now = clock::now();
            if needed > now {
                let rearm = core.due.is_none_or(|due| needed < due || due <= now);
                if rearm {
                    core.due = Some(needed);
                }
                drop(guard);
                if rearm {
                    self.sleep.as_mut().reset(clock::instant(needed));
                }
                if self.sleep.as_mut().poll(cx).is_pending() {
                    return None;
                }
                // It slept for an earlier need; look at what is needed now.
                self.shared.core().due = None;
                continue;
            }
            core.due = None;
            self.expired.clear();
            let stuck = core.session.expire(now, &mut self.expired);
            for &id in &self.expired {
                let Some(Aboard { call, .. }) = core.calls[id.slot()].take() else { continue };
                let _ = core.push(Header::call(Kind::Cancel, id.to_wire()), &[]);
                let limit = call.terms.timeout.unwrap_or_default();
                let worker = Some(self.shared.worker);
                self.after.failed(now, call, Failure::TimedOut, |tries, _| QueryError::TimedOut {
                    limit,
                    worker,
                    tries,
                });
            }
            let stalled = others
                && core.session.unanswered() > core.session.started()
                && core.window.stall_at(core.session.unanswered() as u32).is_some_and(|at| at <= now);
            let waiting = core.session.unanswered() - core.session.started();
            if stalled && let Some(keep) = core.window.look(now, waiting, self.yard.has_idle(self.shared.worker)) {
                self.expired.clear();
                let calls = &core.calls;
                let may_go = |id: CallId| calls[id.slot()].as_ref().is_some_and(|aboard| !aboard.call.is_named);
                core.session.recall(keep, may_go, &mut self.expired);
                for &id in &self.expired {
                    let _ = core.push(Header::call(Kind::Recall, id.to_wire()), &[]);
                }
            }
            self.shared.publish(core);
            let flushed = core.poll_flush(cx);
            drop(guard);
            self.unflushed |= flushed.is_pending();
            self.after.run(&self.shared, &*self.yard, now);
            self.yard.dispatch();
            if stuck {
                return Some(LinkEnd::Stuck(core_grace(&self.shared)));
            }
        }
    }
}

fn core_grace<Tx: LinkTx>(shared: &LinkShared<Tx>) -> Duration {
    shared.core().session.grace().unwrap_or_default()
}
