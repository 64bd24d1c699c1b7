//! What a link receives with. Whoever holds it delivers for all: the task of the worker, or a caller that spins.

use std::fmt;
use std::io::ErrorKind;
use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::locked::{After, Batch};
use super::task::Leftovers;
use super::{LinkEnd, LinkShared, Yard};
use crate::driver::clock;
use crate::machine::frame::{BadFrame, Decoder, Frame, HEADER, Kind};
use crate::machine::session::Word;
use crate::transport::{LinkError, LinkRx, LinkTx};

/// See the [module](self).
pub(super) struct Inbox {
    pub(super) rx: Box<dyn LinkRx>,
    pub(super) after: After,
    /// What a caller met that ends the link: the task looks here first.
    pub(super) end: Option<LinkEnd>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("end", &self.end).finish_non_exhaustive()
    }
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

    pub(super) fn try_inbox(&self) -> Option<MutexGuard<'_, Inbox>> {
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

    /// Lets go of the inbox. The task is woken where it met it taken, and where there is something for it to see to.
    pub(super) fn give_back(&self, inbox: MutexGuard<'_, Inbox>) {
        let has_ended = inbox.end.is_some();
        drop(inbox);
        // Pairs with the fence in `inbox_of_the_task`.
        fence(Ordering::SeqCst);
        let missed = self.missed.load(Ordering::Relaxed) && self.missed.swap(false, Ordering::Relaxed);
        if missed || has_ended {
            self.task.wake();
        }
    }

    /// The worker is dead and everything was read: lets go of what the link receives with, which whoever holds one of its streams would keep.
    pub(crate) fn close_inbox(&self) {
        let rx = std::mem::replace(&mut self.inbox().rx, Box::new(Leftovers(Decoder::new(0))));
        drop(rx);
    }

    /// What the end of the stream of frames means.
    pub(super) fn end_of(&self, error: LinkError) -> LinkEnd {
        // All that came before such an end was whole.
        if matches!(error, LinkError::Closed | LinkError::BadFrame(BadFrame::Truncated { .. })) {
            self.core().word = Word::Answers;
        }
        match error {
            // A worker that dies while it writes is no liar: its exit status says more.
            LinkError::BadFrame(BadFrame::Truncated { .. }) => LinkEnd::Lost(error.to_string()),
            LinkError::BadFrame(_) | LinkError::Corrupt(_) => LinkEnd::Violation(error.to_string()),
            LinkError::Io(error) if error.kind() == ErrorKind::InvalidData => LinkEnd::Violation(error.to_string()),
            error => LinkEnd::Lost(error.to_string()),
        }
    }
}

/// Delivers the frames that have come, all under one lock, and wakes their callers after it.
pub(super) fn deliver_from<Tx: LinkTx>(
    rx: &mut dyn LinkRx,
    shared: &LinkShared<Tx>,
    yard: &dyn Yard,
    after: &mut After,
) -> Result<(), String> {
    let now = clock::now();
    let mut batch = Batch::default();
    let mut guard = shared.core();
    guard.streams.pulse.heard(now);
    let mut next = rx.next();
    let result = loop {
        let mut frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.to_string()),
        };
        // What a worker said before its answer is heard before it, also by a caller that looks without being woken.
        if !after.notices.is_empty() && frame.header.kind != Kind::Notice as u8 {
            after.count_returning(&mut guard);
            drop(guard);
            after.tell(shared, yard);
            guard = shared.core();
        }
        guard.received += length_of(&frame);
        if !frame.is_of_stream() {
            if let Err(violation) = guard.receive(now, frame, yard, after, &mut batch) {
                break Err(violation);
            }
            next = rx.next();
            continue;
        }
        let id = frame.header.id;
        let flow = match guard.stream_of(frame.header) {
            Ok(Some(flow)) => flow,
            Ok(None) => {
                batch.dropped += 1;
                next = rx.next();
                continue;
            }
            Err(violation) => break Err(violation),
        };
        // The run is no function of its own: one could not give back the frame that ends it, which borrows the decoder.
        let mut receiving = flow.receive();
        next = loop {
            receiving.take(frame, &mut after.wakers);
            match rx.next() {
                Ok(Some(more)) if more.header.id == id && more.is_of_stream() => {
                    guard.received += length_of(&more);
                    frame = more;
                }
                other => break other,
            }
        };
        guard.stream_came(now, id, receiving.end(), after, &mut batch);
    };
    let core = &mut *guard;
    if batch.answers > 0 {
        core.last_batch = batch.answers;
        let left = core.session.unanswered() as u32;
        core.window.answered(now, batch.answers, left, batch.oldest.unwrap_or(now));
        after.first_answer = !std::mem::replace(&mut core.answered_any, true);
        after.is_worn = shared.count_answers(batch.answers);
        yard.answered_together(now, batch.answers);
    }
    if batch.messages > 0 {
        core.last_batch = batch.messages;
        core.streams.note_messages();
        // Of a raw worker no message is a call that it has finished: its deaths always count.
        after.first_answer |= !std::mem::replace(&mut core.answered_any, true) && shared.stated_load.is_none();
    }
    after.count_returning(core);
    shared.publish(core);
    let is_idle = core.session.unanswered() == 0;
    let is_drained = core.draining && is_idle;
    after.solo_is_over |= !core.solo.is_waiting();
    drop(guard);
    if is_drained {
        // A caller may have delivered the last answer, and the task looks for that.
        shared.task.wake();
    }
    if batch.replied {
        shared.kick();
    }
    if batch.dropped > 0 {
        yard.dropped(batch.dropped);
    }
    shared.carry_out(after, yard, now, is_idle);
    result
}

fn length_of(frame: &Frame<'_>) -> u64 {
    (HEADER + frame.payload.len()) as u64
}
