//! Hot links: a caller that waits for the only answer takes it out of the link itself.
//!
//! The inbox of a link belongs to whoever holds its lock: the task of the worker, or a caller. A caller spins with it for some microseconds,
//! delivers what comes, for all, and gives the link back armed, so that the task is woken for whatever comes later. The task never waits
//! for a caller: where it finds the lock taken it says that it missed something, and the caller wakes it.

use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::task::deliver_from;
use super::{Inbox, LinkEnd, LinkShared, Yard};
use crate::driver::call::Call;
use crate::machine::frame::BadFrame;
use crate::machine::session::Word;
use crate::transport::{LinkError, LinkTx};

/// After so many answers in a row a caller lets the other tasks of its thread run before it waits: they may have calls that could go with
/// its own. Without it, callers that never have to wait would take turns, one call at a time.
const SOLOS: u32 = 16;

/// How often a caller takes in more before it leaves the rest to the task.
const FILLS: usize = 8;

/// What a caller should do that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Assist {
    /// See whether the answer is there, and sleep if it is not.
    Look,
    /// Let others run, and come again.
    Yield,
}

impl Inbox {
    /// Delivers the frames that have come.
    pub(super) fn deliver<Tx: LinkTx>(&mut self, shared: &LinkShared<Tx>, yard: &dyn Yard) -> Result<(), LinkEnd> {
        let Inbox { rx, after, .. } = self;
        deliver_from(&mut **rx, shared, yard, after).map_err(LinkEnd::Violation)
    }
}

impl<Tx: LinkTx> LinkShared<Tx> {
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_inbox(&self) -> Option<MutexGuard<'_, Inbox>> {
        match self.inbox.try_lock() {
            Ok(inbox) => Some(inbox),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The inbox, for the task of the worker. None where a caller has it, which then wakes the task.
    pub(super) fn inbox_of_the_task(&self) -> Option<MutexGuard<'_, Inbox>> {
        if !self.is_hot {
            return Some(self.inbox());
        }
        self.try_inbox().or_else(|| {
            self.missed.store(true, Ordering::Relaxed);
            // Pairs with the fence in `give_back`: the caller sees the store, or this sees that it has let go.
            fence(Ordering::SeqCst);
            let inbox = self.try_inbox()?;
            self.missed.store(false, Ordering::Relaxed);
            Some(inbox)
        })
    }

    /// Waits for the answer of a call that was just put on this link, if it is the only one and that pays.
    pub(crate) fn assist(&self, call: &Call, yard: &dyn Yard, has_yielded: bool) -> Assist {
        if !self.is_hot || self.load() != 1 {
            return Assist::Look;
        }
        let solos = self.solos.load(Ordering::Relaxed);
        if solos >= SOLOS && !has_yielded {
            self.solos.store(0, Ordering::Relaxed);
            return Assist::Yield;
        }
        if let Some(mut inbox) = self.try_inbox() {
            let end = inbox.spin(self, call, yard);
            if end.is_some() {
                inbox.end = end;
                drop(inbox);
                self.task.wake();
            } else {
                self.give_back(inbox);
            }
            self.solos.store(solos + 1, Ordering::Relaxed);
        }
        Assist::Look
    }

    fn give_back(&self, inbox: MutexGuard<'_, Inbox>) {
        drop(inbox);
        // Pairs with the fence in `inbox_of_the_task`.
        fence(Ordering::SeqCst);
        if self.missed.load(Ordering::Relaxed) && self.missed.swap(false, Ordering::Relaxed) {
            self.task.wake();
        }
    }

    /// What the end of the stream of frames means.
    pub(super) fn ended(&self, error: LinkError) -> LinkEnd {
        if matches!(error, LinkError::Closed) {
            self.core().word = Word::Answers;
        }
        match error {
            // A worker that dies while it writes is no liar: its exit status says more.
            LinkError::BadFrame(BadFrame::Truncated { .. }) => LinkEnd::Lost(error.to_string()),
            LinkError::BadFrame(_) | LinkError::Corrupt(_) => LinkEnd::Violation(error.to_string()),
            error => LinkEnd::Lost(error.to_string()),
        }
    }
}

impl Inbox {
    /// Spins until the call has its answer or that pays no more, and arms the link. What ends the link is for the task.
    fn spin<Tx: LinkTx>(&mut self, shared: &LinkShared<Tx>, call: &Call, yard: &dyn Yard) -> Option<LinkEnd> {
        if self.end.is_some() {
            return self.end.take();
        }
        let mut fills = 0;
        while !call.is_over() && self.rx.spin() {
            match self.rx.try_fill() {
                Ok(_) => {
                    if let Err(end) = self.deliver(shared, yard) {
                        return Some(end);
                    }
                }
                Err(error) => return Some(shared.ended(error)),
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
