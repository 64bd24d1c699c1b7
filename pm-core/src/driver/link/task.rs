//! The part of a worker's task that looks after its link: receives, delivers, flushes, and keeps deadlines.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::inbox::{Inbox, deliver_from};
use super::locked::{Aboard, After};
use super::{LinkEnd, LinkShared, Yard};
use crate::driver::clock;
use crate::face::error::QueryError;
use crate::machine::frame::{Decoder, Frame, Header, Kind};
use crate::machine::id::CallId;
use crate::machine::pulse::Look;
use crate::machine::retry::Failure;
use crate::machine::session::Word;
use crate::transport::{LinkError, LinkRx, LinkTx};

/// How often the task of a link takes in more before it lets others run.
const FILLS_A_TURN: usize = 8;

/// The frames of a worker that is dead.
pub(super) struct Leftovers(pub(super) Decoder);

impl LinkRx for Leftovers {
    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        Poll::Ready(Err(LinkError::Closed))
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        Ok(self.0.next()?)
    }
}

/// The part of a worker's task that looks after its link.
pub(crate) struct LinkDriver<Tx> {
    shared: Arc<LinkShared<Tx>>,
    yard: Arc<dyn Yard>,
    after: After,
    expired: Vec<CallId>,
    sleep: std::pin::Pin<Box<tokio::time::Sleep>>,
    /// Frames may have come together with READY.
    is_new: bool,
    /// The others have had the chance to add to what is flushed next.
    gathered: bool,
    /// Something was pushed that has not gone.
    unflushed: bool,
    /// Turns in a row in which nothing came, though answers are due.
    idle_turns: u32,
}

impl<Tx: LinkTx> LinkDriver<Tx> {
    pub(crate) fn new(shared: Arc<LinkShared<Tx>>, yard: Arc<dyn Yard>) -> Self {
        LinkDriver {
            shared,
            yard,
            after: After::default(),
            expired: Vec::new(),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            is_new: true,
            gathered: false,
            unflushed: false,
            idle_turns: 0,
        }
    }

    /// Receives, delivers, flushes and keeps deadlines, until the link ends. Cancel safe.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        self.shared.task.register(cx.waker());
        let shared = self.shared.clone();
        if let Some(mut inbox) = shared.inbox_of_the_task()
            && let Poll::Ready(end) = self.receive(&mut inbox, cx)
        {
            return Poll::Ready(end);
        }
        if let Err(end) = self.flush(cx) {
            return Poll::Ready(end);
        }
        self.keep_time(cx).map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes in and delivers what has come. Where it is pending, the task is woken for what comes.
    fn receive(&mut self, inbox: &mut Inbox, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        if let Some(end) = inbox.end.take() {
            return Poll::Ready(end);
        }
        if std::mem::take(&mut self.is_new)
            && let Err(end) = self.deliver(inbox)
        {
            return Poll::Ready(end);
        }
        for _ in 0..FILLS_A_TURN {
            let filled = match self.fill_hot(inbox, cx) {
                Some(filled) => filled,
                None => inbox.rx.poll_fill(cx),
            };
            match filled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    self.idle_turns = 0;
                    if let Err(end) = self.deliver(inbox) {
                        return Poll::Ready(end);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(self.shared.end_of(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// On a hot link whose worker has calls: lets callers run first, who may have more for it, then spins. None where that brought nothing, and
    /// the link is to be armed.
    fn fill_hot(&mut self, inbox: &mut Inbox, cx: &mut Context<'_>) -> Option<Poll<Result<(), LinkError>>> {
        if !self.shared.is_hot {
            return None;
        }
        match inbox.rx.try_fill() {
            Ok(true) => return Some(Poll::Ready(Ok(()))),
            Ok(false) => {}
            Err(error) => return Some(Poll::Ready(Err(error))),
        }
        if self.shared.load() == 0 {
            self.idle_turns = 0;
            return None;
        }
        self.idle_turns += 1;
        if self.idle_turns == 1 {
            cx.waker().wake_by_ref();
            return Some(Poll::Pending);
        }
        self.idle_turns = 0;
        // What callers have pushed meanwhile is what there is to wait for.
        match self.flush(cx) {
            // Others may add to it first.
            Ok(()) if self.gathered => Some(Poll::Pending),
            Ok(()) if !self.unflushed && inbox.rx.spin() => Some(inbox.rx.try_fill().map(|_| ()).into()),
            _ => None,
        }
    }

    /// Delivers the complete frames that a dead worker left in its link. Ready once there are no more.
    pub(crate) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = self.shared.clone();
        // Callers leave the link of a dead worker alone, but one of them may have it still.
        let mut inbox = shared.inbox();
        for _ in 0..FILLS_A_TURN {
            match inbox.rx.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    if self.deliver(&mut inbox).is_err() {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.shared.end_of(error);
                    return Poll::Ready(());
                }
            }
        }
        // What a dead worker left is bounded, but an heir of its memory may write on and on.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Delivers the frames that a dead worker left in its outbox.
    /// `begun` is how many calls it had begun with, and `sent` how many bytes it had put on the link before these: what came over the link is not taken again.
    pub(crate) fn recover(&mut self, frames: &[u8], begun: Option<u64>, sent: u64) {
        let mut core = self.shared.core();
        if let Some(begun) = begun {
            core.word = Word::Begun(begun);
        }
        let came = core.received.checked_sub(sent);
        // Of streams nothing is read that lies behind a gap.
        let is_whole = came.is_some() || !core.streams.is_any();
        drop(core);
        let came = came.and_then(|came| usize::try_from(came).ok()).unwrap_or(0);
        let frames = frames.get(came..).filter(|_| is_whole).unwrap_or_default();
        let mut decoder = Decoder::new(frames.len());
        decoder.buffer().extend_from_slice(frames);
        // It is dead; whatever else it left there does not matter any more.
        let _ = deliver_from(&mut Leftovers(decoder), &self.shared, &*self.yard, &mut self.after);
    }

    fn deliver(&self, inbox: &mut Inbox) -> Result<(), LinkEnd> {
        inbox.deliver(&self.shared, &*self.yard)
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
            let flushed = self.shared.core().flush_all(cx, &mut self.after.wakers);
            self.after.wakers.drain(..).for_each(Waker::wake);
            match flushed {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    // A link that was full has room again, and a caller may have met it full only a moment ago.
                    self.yard.dispatch();
                }
                Poll::Ready(Err(error)) => {
                    // Whoever looks again meets it again.
                    self.unflushed = true;
                    return Err(self.shared.end_of(error));
                }
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
                let Some(Aboard { call, .. }) = core.take(id) else { continue };
                let limit = call.terms.timeout.unwrap_or_default();
                let worker = (!core.withdraw(now, id)).then_some(self.shared.worker);
                let error = |tries, _| QueryError::TimedOut { limit, worker, tries };
                self.after.failed(now, call, Failure::TimedOut, &*self.yard, error);
            }
            let stalled = others
                && core.session.unanswered() > core.session.started()
                && core.window.stall_at(core.session.unanswered() as u32).is_some_and(|at| at <= now);
            let mut end = stuck.then(|| LinkEnd::Stuck(core.session.grace().unwrap_or_default()));
            match core.streams.pulse.look(now, || core.session.has_cancelled()) {
                Look::Fine => {}
                Look::Ask => core.say(Header::new(Kind::Ping)),
                Look::Unresponsive(grace) => end = Some(LinkEnd::Unresponsive(grace)),
            }
            let waiting = core.session.unanswered() - core.session.started();
            if stalled && let Some(keep) = core.window.look(now, waiting, self.yard.has_idle(self.shared.worker)) {
                core.recall_but(now, keep, &mut self.expired, &mut self.after);
            }
            // What did not change is for others to publish: a call may be on its way to the queue, and counts until it is there.
            self.after.count_returning(core);
            self.shared.publish(core);
            let is_idle = core.session.unanswered() == 0;
            let flushed = core.poll_flush(cx);
            let is_all = core.unsaid.is_empty();
            drop(guard);
            self.unflushed |= !is_all || !matches!(flushed, Poll::Ready(Ok(())));
            if !is_all {
                cx.waker().wake_by_ref();
            }
            self.shared.carry_out(&mut self.after, &*self.yard, now, is_idle);
            if end.is_some() {
                return end;
            }
        }
    }
}
