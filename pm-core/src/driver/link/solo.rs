//! The call of a caller that waits for its answer with the inbox in its hands, and lets go of the inbox only when it has taken what became of the
//! call. So there is one at most, and nobody else delivers to it.
//!
//! Most such calls are answered within a microsecond or two. Then they never become a [`Call`], which others can find, hold and wake:
//! there is nobody else. What a Call would be made of lies in the link meanwhile, and whatever wants to do more with it than answer it
//! (a deadline, the death of the worker, a caller that waits no longer) has it made first.

use std::sync::Arc;

use super::locked::{Aboard, Core};
use crate::driver::call::{Call, Terms};
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::time::Time;
use crate::transport::LinkTx;

/// A larger input is not worth a copy.
pub(super) const MOST: usize = 4096;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Solo {
    worker: WorkerId,
    incarnation: Incarnation,
    /// None where there is no such call, or no more.
    id: Option<CallId>,
    terms: Terms,
    made: Time,
    input: Vec<u8>,
    output: Vec<u8>,
    end: End,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing yet.
    Waiting,
    /// It has its output, since this time.
    Answered(Time),
    /// A call like any other.
    Became(Arc<Call>),
}

impl Solo {
    pub(super) fn new(worker: WorkerId, incarnation: Incarnation) -> Self {
        let (input, output) = (Vec::new(), Vec::new());
        Solo {
            worker,
            incarnation,
            id: None,
            terms: Terms::default(),
            made: Time::ZERO,
            input,
            output,
            end: End::Waiting,
        }
    }

    /// It is on the link now.
    pub(super) fn begin(&mut self, id: CallId, terms: Terms, made: Time, input: &[u8]) {
        (self.id, self.terms, self.made, self.end) = (Some(id), terms, made, End::Waiting);
        self.input.clear();
        self.input.extend_from_slice(input);
    }

    /// Whether it is on the link and has no end yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.id.is_some()
    }

    pub(super) fn is(&self, id: CallId) -> bool {
        self.id == Some(id)
    }

    /// Gives it its output. When it was made.
    pub(super) fn answer(&mut self, now: Time, payload: &[u8]) -> Time {
        self.id = None;
        self.end = End::Answered(now);
        self.output.clear();
        self.output.extend_from_slice(payload);
        self.made
    }
}

impl<Tx: LinkTx> Core<Tx> {
    /// Takes the call with this id off the link.
    pub(super) fn take(&mut self, id: CallId) -> Option<Aboard> {
        if self.solo.is(id) {
            self.materialize();
        }
        self.calls[id.slot()].take()
    }

    /// Makes the solo call, if there is one, a call like any other.
    pub(super) fn materialize(&mut self) {
        let Solo { worker, incarnation, terms, made, .. } = self.solo;
        let Some(id) = self.solo.id.take() else { return };
        let call = Call::new(std::mem::take(&mut self.solo.input), terms, made);
        // Nobody else knows it yet, so that nobody can have ended it.
        let boarded = call.board(worker, incarnation, id);
        debug_assert!(boarded, "a call that was just made waits");
        self.calls[id.slot()] = Some(Aboard { call: call.clone(), sent: made });
        self.solo.end = End::Became(call);
    }

    /// What became of it, for its caller, which waits no longer. The output is exchanged for the caller's buffer.
    pub(super) fn end_of_solo(&mut self, output: &mut Vec<u8>) -> End {
        self.materialize();
        let end = std::mem::replace(&mut self.solo.end, End::Waiting);
        if let End::Answered(_) = end {
            std::mem::swap(output, &mut self.solo.output);
        }
        end
    }
}
