//! The calls of one worker on its link: who submits, who drains, who is woken.
//!
//! Callers put their calls on the link themselves, under the lock of its [`Core`], and write them to the worker where calls come one at a time, or
//! where many have gathered; else the task of the worker does, after all who are ready to run have had the chance to add to them. Whoever holds
//! the [`Inbox`] receives and delivers for all: the task, or, on a hot link, a caller that spins.
//!
//! Under the lock nobody calls user code, wakes a task or drops a waker: that is gathered in an [`After`] and done after it.
//! Lock order: the inbox of a link, then the pool's backlog, then its links that leave, then the core of a link, then a call.

mod boarding;
mod hot;
mod inbox;
mod locked;
mod solo;
mod streams;
mod task;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;

use super::call::Call;
use super::clock;
use crate::face::error::{QueryError, QueryErrorKind, StreamError, WorkerLost};
use crate::machine::cause::ExitCause;
use crate::machine::dispatch;
use crate::machine::frame::{Header, Kind};
use crate::machine::handshake::Ready;
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::retry::Failure;
use crate::machine::session::{Fate, Session, Word};
use crate::machine::stream::Grant;
use crate::machine::time::Time;
use crate::machine::window::Window;
use crate::transport::{LinkRx, LinkTx};
pub(crate) use boarding::{Admission, FLUSH_AT_CHEAP, Submit};
pub(crate) use hot::Exchange;
use inbox::Inbox;
use locked::{Aboard, After, Core};
use solo::Solo;
use streams::Streams;
pub(crate) use task::LinkDriver;

/// Times are looked at this coarsely: a timeout may come so much late, never early.
const COARSE: Duration = Duration::from_millis(4);

/// What all links of a pool have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkSettings {
    /// Of queries: how long a worker may take to end a cancelled one. Of streams: how long it may say nothing meanwhile. None for ever.
    pub(crate) cancel_grace: Option<Duration>,
    /// How many calls a worker may have when they name it.
    pub(crate) capacity: usize,
    /// The calls are streams, and a worker may send so much on each before it is read. None where they are queries.
    pub(crate) streams: Option<Grant>,
    /// Each worker has one stream, for as long as it lives, and its load is what the program says.
    pub(crate) is_raw: bool,
    /// After so many answers the pool wants to hear of it.
    pub(crate) worn_after: u64,
}

/// What a link asks of its pool. None of it is called under the core of the link, but for what counts, `is_slow`, `has_others` and `has_idle`, which
/// take no lock; whoever delivers has the inbox.
pub(crate) trait Yard: Send + Sync {
    /// A worker sent a notice.
    fn notice(&self, worker: WorkerId, text: &str);
    /// A call that was made at this time is answered now. Before its caller can know: whoever has an answer finds it counted.
    fn answered(&self, made: Time, now: Time);
    /// So many calls were answered together.
    fn answered_together(&self, now: Time, answers: u32);
    /// A call ends with such an error. Before its caller can know.
    fn failed(&self, kind: QueryErrorKind);
    /// A call was tried in vain, and will be again.
    fn retried(&self);
    /// Whether somebody wants to be told of a call that was made at this time, and is answered now.
    fn is_slow(&self, made: Time, now: Time) -> bool;
    /// Such a call was answered.
    fn was_slow(&self, worker: WorkerId, made: Time, input: &[u8], now: Time);
    /// So many frames of a worker meant nothing.
    fn dropped(&self, frames: u64);
    /// A call goes to the front of the queue, or waits for a delay first.
    fn requeue(&self, call: Arc<Call>, delay: Duration);
    /// A call is quarantined.
    fn poisoned(&self, summary: &str);
    /// What the input of a call says, in short.
    fn describe(&self, input: &[u8]) -> String;
    /// The error of those whose worker was ended because the pool shuts down; none where it does not.
    fn shutting_down(&self) -> Option<QueryError>;
    /// A link has room: calls that wait can go.
    fn dispatch(&self);
    /// The worker finished its first call.
    fn first_answer(&self, worker: WorkerId, incarnation: Incarnation);
    /// A worker has answered everything: a shutdown may wait for that.
    fn idle(&self);
    /// A worker has answered as many calls as wear one out.
    fn is_worn(&self);
    /// Whether there are other workers.
    fn has_others(&self) -> bool;
    /// Whether another worker has nothing to do: it could take calls that this one is slow to start.
    fn has_idle(&self, but: WorkerId) -> bool;
}

/// Why the task of a link came to its end.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The link is lost.
    Lost(String),
    /// The worker broke the protocol.
    Violation(String),
    /// The worker did not yield to a cancel.
    Stuck(Duration),
    /// The worker said nothing while it had not ended a cancelled stream.
    Unresponsive(Duration),
}

/// A link with its calls, shared by callers and the task of its worker.
#[derive(Debug)]
pub(crate) struct LinkShared<Tx> {
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) pid: u32,
    /// Since when it serves.
    pub(crate) since: Time,
    /// Calls that it has answered. Written under the lock of the core.
    answered: AtomicU64,
    worn_after: u64,
    unanswered: AtomicU32,
    /// The load of a raw worker, as the program says. None where the load is what the worker has not answered.
    stated_load: Option<AtomicU32>,
    window: AtomicU32,
    /// Whether calls of the queue come here.
    refills: AtomicBool,
    /// Nanoseconds per answer.
    service: AtomicU64,
    accepting: AtomicBool,
    kicked: AtomicBool,
    task: AtomicWaker,
    core: Mutex<Core<Tx>>,
    /// Whether callers may take their answers out of the link themselves.
    is_hot: bool,
    inbox: Mutex<Inbox>,
    /// The task found the inbox in the hands of a caller.
    missed: AtomicBool,
    /// Calls whose callers waited for them with the inbox, since the last of these gave way to others.
    solos_since_yield: AtomicU32,
    /// A caller gave way to others, and is not back yet (here, or at another worker's link): so many of those that come meanwhile do not wait for
    /// their answers one by one.
    gathering: AtomicU32,
}

impl<Tx: LinkTx> LinkShared<Tx> {
    pub(crate) fn new(
        worker: WorkerId,
        incarnation: Incarnation,
        pid: u32,
        tx: Tx,
        rx: Box<dyn LinkRx>,
        ready: &Ready,
        settings: LinkSettings,
    ) -> Self {
        let windows = settings.streams.zip(ready.streams);
        let window = match windows {
            Some(_) => Window::of_streams(ready.concurrency),
            None => Window::new(ready.concurrency, ready.ahead),
        };
        let capacity = settings.capacity.max(window.size() as usize);
        let (grace, silence) = match windows {
            None => (settings.cancel_grace, None),
            Some(_) => (None, settings.cancel_grace),
        };
        let session = Session::new(capacity, ready.ahead as usize, grace);
        LinkShared {
            worker,
            incarnation,
            pid,
            since: clock::now(),
            answered: AtomicU64::new(0),
            worn_after: settings.worn_after,
            unanswered: AtomicU32::new(0),
            stated_load: settings.is_raw.then(AtomicU32::default),
            window: AtomicU32::new(window.size()),
            refills: AtomicBool::new(true),
            service: AtomicU64::new(window.service().as_nanos() as u64),
            accepting: AtomicBool::new(true),
            kicked: AtomicBool::new(false),
            task: AtomicWaker::new(),
            core: Mutex::new(Core {
                session,
                window,
                tx: Some(tx),
                calls: Vec::new(),
                due: None,
                word: Word::Nothing,
                last_batch: 0,
                unsent: 0,
                unsent_bytes: 0,
                is_backed_up: false,
                returning: 0,
                draining: false,
                answered_any: false,
                last_notice: None,
                received: 0,
                solo: Solo::new(worker, incarnation),
                streams: Streams::new(windows, silence),
                unsaid: VecDeque::new(),
            }),
            is_hot: rx.is_hot(),
            inbox: Mutex::new(Inbox { rx, after: After::default(), end: None }),
            missed: AtomicBool::new(false),
            solos_since_yield: AtomicU32::new(0),
            gathering: AtomicU32::new(0),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core<Tx>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that the worker has not answered; of a raw worker what the program says.
    pub(crate) fn load(&self) -> u32 {
        self.stated_load.as_ref().unwrap_or(&self.unanswered).load(Ordering::SeqCst)
    }

    /// Calls that the worker has answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Counts answers, under the lock of the core. Whether the worker is worn out by them.
    fn count_answers(&self, answers: u32) -> bool {
        let before = self.answered.load(Ordering::Relaxed);
        let answered = before + u64::from(answers);
        self.answered.store(answered, Ordering::Relaxed);
        before < self.worn_after && answered >= self.worn_after
    }

    /// Says the load of a raw worker.
    pub(crate) fn set_load(&self, load: u32) {
        if let Some(stated) = &self.stated_load {
            stated.store(load, Ordering::Relaxed);
        }
    }

    /// The last notice that the worker sent.
    pub(crate) fn last_notice(&self) -> Option<String> {
        self.core().last_notice.clone()
    }

    /// What a further call would cost here, in nanoseconds, and the load; none where there is no room. A hint:
    /// [`LinkShared::submit`] decides. `waited` says that the call has been in the queue.
    pub(crate) fn cost(&self, waited: bool) -> Option<(u64, u32)> {
        if !self.accepting.load(Ordering::Relaxed) || waited && !self.refills.load(Ordering::Relaxed) {
            return None;
        }
        let (load, window) = (self.unanswered.load(Ordering::Relaxed), self.window.load(Ordering::Relaxed));
        let cost = dispatch::cost(load, window, self.service.load(Ordering::Relaxed), waited)?;
        Some((cost, load))
    }

    /// The caller of this call has gone.
    pub(crate) fn cancel(&self, id: CallId) {
        let now = clock::now();
        let mut guard = self.core();
        let dropped = guard.give_up(now, id);
        let mut wakers = Vec::new();
        if let Some(Aboard { call, .. }) = dropped.as_ref().filter(|aboard| aboard.call.flow.is_some()) {
            call.end_stream(Err(StreamError::Ended), &mut wakers);
        }
        drop(guard);
        drop(dropped);
        wakers.into_iter().for_each(Waker::wake);
        self.kick();
    }

    /// Takes no more calls, asks those back that the worker has not started, and tells it that none follow.
    pub(crate) fn drain(&self) {
        self.accepting.store(false, Ordering::SeqCst);
        let mut core = self.core();
        if !std::mem::replace(&mut core.draining, true) {
            core.recall_all();
            core.say(Header::new(Kind::Drain));
        }
        drop(core);
        self.kick();
    }

    /// Takes no more calls.
    pub(crate) fn refuse(&self) {
        self.accepting.store(false, Ordering::SeqCst);
    }

    /// Closes this side of the link: the worker reads what was sent, DRAIN last, and then its end. What it says in return is still heard.
    pub(crate) fn close(&self) {
        self.accepting.store(false, Ordering::SeqCst);
        let mut core = self.core();
        let _ = core.poll_flush(&mut Context::from_waker(Waker::noop()));
        let tx = core.tx.take();
        drop(core);
        drop(tx);
    }

    /// Whether the worker was told to drain, and has answered everything.
    pub(crate) fn is_drained(&self) -> bool {
        let core = self.core();
        core.draining && core.session.unanswered() == 0
    }

    /// Whether a raw worker has ended its conversation, though nobody has told it to leave.
    pub(crate) fn has_returned(&self) -> bool {
        let core = self.core();
        self.stated_load.is_some() && !core.draining && !core.calls.is_empty() && core.session.unanswered() == 0
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
            open.into_iter().rev().filter_map(|(id, fate)| Some((core.take(id)?.call, fate))).collect();
        let left: Vec<_> = core.calls.iter_mut().filter_map(Option::take).collect();
        let tx = core.tx.take();
        let is_requested = core.streams.is_any() && *cause == ExitCause::Requested;
        drop(guard);
        drop((left, tx));
        // Streams that a shutdown waited for are told of that, and not of a worker that did nothing wrong.
        let shutting_down = if is_requested { yard.shutting_down() } else { None };
        let mut after = After::default();
        for (call, fate) in aboard {
            if let Some(ended) = &shutting_down {
                yard.failed(ended.kind());
                call.resolve(Err(ended.clone()), &mut after.wakers);
                continue;
            }
            if fate == Fate::Unstarted && call.flow.is_none() {
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
            after.failed(now, call, Failure::of_death(cause), yard, |tries, poisoned| {
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
        // Whoever has changed something has had the lock of the core since; where this is true by then, the task has not yet looked.
        if !self.kicked.load(Ordering::Relaxed) && !self.kicked.swap(true, Ordering::SeqCst) {
            self.task.wake();
        }
    }

    fn publish(&self, core: &mut Core<Tx>) {
        self.window.store(core.window.size(), Ordering::Relaxed);
        self.service.store(core.window.service().as_nanos() as u64, Ordering::Relaxed);
        self.publish_load(core);
    }

    fn publish_load(&self, core: &mut Core<Tx>) {
        let load = core.load();
        core.window.note_load(load);
        self.refills.store(core.window.refills(), Ordering::Relaxed);
        // What comes of it for the queue is ordered by the fence in `Yard::dispatch`.
        self.unanswered.store(load, Ordering::Release);
    }

    /// Does what was gathered under the lock, and dispatches. `is_idle` says that the worker had no call left by then.
    fn carry_out(&self, after: &mut After, yard: &dyn Yard, now: Time, is_idle: bool) {
        after.run(self, yard, now);
        let has_returned = after.counted > 0;
        if has_returned {
            // What was going back to the queue is there.
            let mut core = self.core();
            core.returning -= std::mem::take(&mut after.counted);
            self.publish(&mut core);
        }
        if is_idle || has_returned {
            yard.idle();
        }
        yard.dispatch();
    }
}
