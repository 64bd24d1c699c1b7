//! How calls come to a link: several at a time under one lock, and on to the worker at once or with others.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use super::LinkShared;
use super::locked::{Aboard, Core};
use crate::driver::call::Call;
use crate::machine::time::Time;
use crate::transport::LinkTx;

/// So many calls go to the worker before all others have joined: while it computes, the next ones are encoded. Fewer would pay for more
/// system calls and wake-ups than that gains, where each call wakes a task of its own.
pub(super) const FLUSH_AT: u32 = 128;

/// The same where a write costs no system call, or the calls are those of one task, which boards no more at a time.
pub(crate) const FLUSH_AT_CHEAP: u32 = 32;

/// What a caller wants of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// That its worker has nothing else to do: it was chosen for that.
    IfIdle,
    /// A place in the window.
    IfRoom,
    /// This worker and no other, so that its window does not matter.
    Always,
}

/// What [`LinkShared::submit`] did with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submit {
    /// It is on its way to the worker.
    Sent,
    /// It is on the link, and goes to the worker with others.
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

/// Calls on their way to a link, whose core is locked.
pub(super) struct Boarding<'a, Tx> {
    link: &'a Arc<LinkShared<Tx>>,
    pub(super) core: MutexGuard<'a, Core<Tx>>,
    /// Calls that were aboard before.
    before: usize,
    admission: Admission,
    /// The task has something to see to.
    kick: bool,
}

impl<Tx: LinkTx> Boarding<'_, Tx> {
    /// Why no further call is taken, where none is.
    pub(super) fn refusal(&self) -> Option<Submit> {
        if !self.link.accepting.load(Ordering::Relaxed) || self.core.draining {
            return Some(Submit::Closed);
        }
        let unanswered = self.core.session.unanswered();
        match self.admission {
            Admission::IfIdle if unanswered > 0 => Some(Submit::Busy),
            Admission::IfRoom if unanswered >= self.core.window.size() as usize => Some(Submit::Full),
            _ => None,
        }
    }

    fn board(&mut self, now: Time, call: &Arc<Call>, sleeper: &mut Option<Waker>) -> Submit {
        if let Some(refusal) = self.refusal() {
            return refusal;
        }
        let core = &mut *self.core;
        let Some(boarding) = call.board() else { return Submit::Over };
        let id = match core.open(now, boarding.limit(now), call) {
            Ok(Some(id)) => id,
            // What fills the link may be nothing that anybody else would flush; and the task meets the same error, and settles the others.
            unsent => {
                self.kick = true;
                return if unsent.is_ok() { Submit::Full } else { Submit::Closed };
            }
        };
        boarding.done(self.link.worker, self.link.incarnation, id, sleeper);
        if let Some(flow) = &call.flow {
            core.streams.open(flow, self.link.clone(), id);
        }
        core.seat(id, Aboard { call: call.clone(), sent: now });
        Submit::Taken
    }

    /// There are calls aboard that were not there before: they go to the worker with others, or at once. True where they are on their way.
    pub(super) fn leave(self, now: Time, flush_at: u32) -> bool {
        let Boarding { link, core: mut guard, before, mut kick, .. } = self;
        let core = &mut *guard;
        link.publish_load(core);
        if before == 0 {
            core.window.began(now);
        }
        // Nothing is under way, and calls come one at a time: waiting for others to join would only cost time. Of streams nobody waits for an answer to their
        // opening: it goes with what is written next.
        let is_alone = before == 0 && core.last_batch <= 1 && !core.streams.is_any();
        let flushes = is_alone || core.unsent >= flush_at;
        // Where this makes room for calls that wait for some, the task has to say so.
        kick |= core.is_backed_up;
        let is_gone =
            flushes && matches!(core.poll_flush(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
        kick |= !(is_alone && is_gone) || core.is_due_sooner();
        drop(guard);
        if kick {
            link.kick();
        }
        is_gone
    }

    /// There are none.
    fn give_up(self) {
        let Boarding { link, core, kick, .. } = self;
        drop(core);
        if kick {
            link.kick();
        }
    }
}

impl<Tx: LinkTx> LinkShared<Tx> {
    pub(super) fn boarding(self: &Arc<Self>, admission: Admission) -> Boarding<'_, Tx> {
        let core = self.core();
        Boarding { link: self, before: core.session.unanswered(), core, admission, kick: false }
    }

    /// Puts a call on the link. Where it is taken, so is `sleeper`: the waker of its caller, which then sleeps. The caller of a stream has slept until
    /// now, and `sleeper` is its waker then.
    pub(crate) fn submit(
        self: &Arc<Self>,
        now: Time,
        call: &Arc<Call>,
        admission: Admission,
        sleeper: &mut Option<Waker>,
    ) -> Submit {
        let mut boarding = self.boarding(admission);
        match boarding.board(now, call, sleeper) {
            Submit::Taken => match boarding.leave(now, if self.is_hot { FLUSH_AT_CHEAP } else { FLUSH_AT }) {
                true => Submit::Sent,
                false => Submit::Taken,
            },
            other => {
                boarding.give_up();
                other
            }
        }
    }

    /// Puts the first of these calls on the link, as many as it has room for, and says how many that were. Those that are over count too.
    pub(crate) fn submit_many(self: &Arc<Self>, now: Time, calls: &mut dyn Iterator<Item = &Arc<Call>>) -> usize {
        let mut boarding = self.boarding(Admission::IfRoom);
        let is_aboard = |call| matches!(boarding.board(now, call, &mut None), Submit::Taken | Submit::Over);
        let count = calls.map(is_aboard).take_while(|is_aboard| *is_aboard).count();
        if count > 0 {
            boarding.leave(now, FLUSH_AT_CHEAP);
        } else {
            boarding.give_up();
        }
        count
    }
}
