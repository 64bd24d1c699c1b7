//! Hot links: a caller that waits for the only answer takes it out of the link itself.
//!
//! The inbox of a link belongs to whoever holds its lock: the task of the worker, or a caller. A caller spins with it for some microseconds,
//! delivers what comes, for all, and gives the link back armed, so that the task is woken for whatever comes later. The task never waits
//! for a caller: where it finds the lock taken it says that it missed something, and the caller wakes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::boarding::{Admission, FLUSH_AT_CHEAP};
use super::inbox::Inbox;
use super::solo::End;
use super::{LinkEnd, LinkShared, Yard};
use crate::driver::call::Call;
use crate::machine::payload::Payload;
use crate::machine::time::Time;
use crate::transport::LinkTx;

/// After so many calls a caller gives way to the other tasks of its thread before it waits again: they may have calls that could go with
/// its own. Without it, callers that never have to wait would keep all others waiting.
const YIELD_AFTER: u32 = 64;

/// So many of those to whom a caller gave way send their calls together. Then its return is not waited for any more: it may have gone.
const GATHER_AFTER_YIELD: u32 = 64;

/// How often a caller takes in more before it leaves the rest to the task.
const FILLS: usize = 64;

/// What came of a call that its caller would have sent and seen answered at once.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// It was not sent: this is no time for it.
    No(Arc<Call>),
    /// It was not sent: it goes with others that follow, and its caller does not wait for it in the way of those.
    Gather(Arc<Call>),
    /// It was not sent: the caller lets others run, and comes again.
    Yield(Arc<Call>),
    /// It has its output.
    Answered(Arc<Call>, Payload),
    /// It takes longer, or came to some other end.
    Aboard(Arc<Call>),
}

impl<Tx: LinkTx> LinkShared<Tx> {
    /// Whoever gave way to others is back.
    pub(crate) fn came_back(&self) {
        self.gathering.store(0, Ordering::Relaxed);
    }

    /// Sends a call that nobody else has yet, if it is the only one, and spins for its answer. See [`solo`](super::solo).
    pub(crate) fn exchange(self: &Arc<Self>, now: Time, call: Arc<Call>, yard: &dyn Yard) -> Exchange {
        if !self.is_hot || self.load() != 0 {
            return Exchange::No(call);
        }
        let gathering = self.gathering.load(Ordering::Relaxed);
        if gathering > 0 {
            self.gathering.store(gathering - 1, Ordering::Relaxed);
            return Exchange::Gather(call);
        }
        let solos = self.solos_since_yield.load(Ordering::Relaxed);
        if solos >= YIELD_AFTER {
            self.solos_since_yield.store(0, Ordering::Relaxed);
            self.gathering.store(GATHER_AFTER_YIELD, Ordering::Relaxed);
            return Exchange::Yield(call);
        }
        let Some(mut inbox) = self.try_inbox() else { return Exchange::No(call) };
        let begun = if inbox.end.is_some() { Err(call) } else { self.begin_solo(now, call) };
        let is_gone = match begun {
            Ok(is_gone) => is_gone,
            Err(call) => {
                self.give_back(inbox);
                return Exchange::No(call);
            }
        };
        inbox.after.solo_is_over = false;
        // Where some of it is left, this thread may be the one that has to write it.
        inbox.end = inbox.spin(self, yard, |inbox| !is_gone || inbox.after.solo_is_over);
        // Before anybody else has the inbox, who could begin another one, or deliver to this.
        let end = self.core().end_of_solo();
        self.give_back(inbox);
        self.solos_since_yield.store(solos + 1, Ordering::Relaxed);
        match end {
            End::Answered(call, at, output) => {
                if yard.is_slow(call.made(), at) {
                    yard.was_slow(self.worker, call.made(), &call.input, at);
                }
                Exchange::Answered(call, output)
            }
            End::Aboard(call) => Exchange::Aboard(call),
        }
    }

    /// Puts the call on the link, if there is no other, and gives it back otherwise. True where all of it is on its way.
    fn begin_solo(self: &Arc<Self>, now: Time, call: Arc<Call>) -> Result<bool, Arc<Call>> {
        let mut boarding = self.boarding(Admission::IfIdle);
        if boarding.refusal().is_some() || boarding.core.last_batch > 1 {
            return Err(call);
        }
        let core = &mut *boarding.core;
        let limit = call.terms.limit(now, call.terms.until(call.made()));
        // An error is met again by the way that all others take.
        let Ok(Some(id)) = core.open(now, limit, &call) else { return Err(call) };
        core.solo.begin(id, call);
        Ok(boarding.leave(now, FLUSH_AT_CHEAP))
    }

    /// Spins for the answer of a call that was just sent over this link, if it is the only one and that pays. False where it does not: then
    /// nobody has looked for its answer.
    pub(crate) fn assist(&self, call: &Call, yard: &dyn Yard) -> bool {
        if !self.is_hot || self.load() != 1 {
            return false;
        }
        let Some(mut inbox) = self.try_inbox() else { return false };
        inbox.end = inbox.spin(self, yard, |_| call.is_over());
        self.give_back(inbox);
        self.solos_since_yield.fetch_add(1, Ordering::Relaxed);
        true
    }
}

impl Inbox {
    /// Spins until it is over or that pays no more, and arms the link. What ends the link is for the task.
    fn spin<Tx: LinkTx>(
        &mut self,
        shared: &LinkShared<Tx>,
        yard: &dyn Yard,
        is_over: impl Fn(&Inbox) -> bool,
    ) -> Option<LinkEnd> {
        if self.end.is_some() {
            return self.end.take();
        }
        let mut fills = 0;
        while !is_over(self) && self.rx.spin() {
            match self.rx.try_fill() {
                Ok(_) => {
                    self.rx.expect_arm();
                    if let Err(end) = self.deliver(shared, yard) {
                        return Some(end);
                    }
                }
                Err(error) => return Some(shared.end_of(error)),
            }
            fills += 1;
            if fills == FILLS {
                break;
            }
        }
        if self.rx.arm() {
            // The task is armed, but for this it is not woken.
            shared.task.wake();
        }
        None
    }
}
