//! The call of a caller that waits for its answer with the inbox in its hands, and lets go of the inbox only when it has taken what became of the
//! call. So there is one at most, and nobody else delivers to it.
//!
//! Most such calls are answered within a microsecond or two. Then they are never among the calls that others can find, and nobody has to
//! be woken. Meanwhile the call lies in the link, and whatever wants to do more with it than answer it (a deadline, the death of the
//! worker, a caller that waits no longer) makes it a call like any other first.

use std::sync::Arc;

use super::locked::{Aboard, Core};
use crate::driver::call::Call;
use crate::driver::spare;
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::payload::{Lent, Payload};
use crate::machine::time::Time;
use crate::transport::LinkTx;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Solo {
    worker: WorkerId,
    incarnation: Incarnation,
    /// Between its beginning and its caller's look at its end.
    call: Option<Arc<Call>>,
    /// None where there is no such call, or no more.
    id: Option<CallId>,
    /// When its output came.
    answered: Option<Time>,
    output: Payload,
}

/// What became of a solo call.
#[derive(Debug)]
pub(super) enum End {
    /// It has its output, since this time.
    Answered(Arc<Call>, Time, Payload),
    /// It is a call like any other.
    Aboard(Arc<Call>),
}

impl Solo {
    pub(super) fn new(worker: WorkerId, incarnation: Incarnation) -> Self {
        Solo { worker, incarnation, call: None, id: None, answered: None, output: Payload::default() }
    }

    /// It is on the link now.
    pub(super) fn begin(&mut self, id: CallId, call: Arc<Call>) {
        (self.call, self.id, self.answered) = (Some(call), Some(id), None);
    }

    /// Whether it is on the link and has no end yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.id.is_some()
    }

    pub(super) fn is(&self, id: CallId) -> bool {
        self.id == Some(id)
    }

    /// Gives it its output. When it was made.
    pub(super) fn answer(&mut self, now: Time, payload: Lent<'_>) -> Time {
        self.id = None;
        self.answered = Some(now);
        spare::receive(payload, &mut self.output);
        self.call.as_ref().map_or(now, |call| call.made())
    }
}

impl<Tx: LinkTx> Core<Tx> {
    /// Takes the call with this id off the link.
    pub(super) fn take(&mut self, id: CallId) -> Option<Aboard> {
        if self.solo.is(id) {
            self.materialize();
        }
        self.calls.get_mut(id.slot())?.take()
    }

    /// Makes the solo call, if there is one, a call like any other.
    pub(super) fn materialize(&mut self) {
        let Some(id) = self.solo.id.take() else { return };
        let Some(call) = self.solo.call.clone() else { return };
        // Nobody else knows it yet, so that nobody can have ended it.
        match call.board() {
            Some(boarding) => boarding.done(self.solo.worker, self.solo.incarnation, id, &mut None),
            None => debug_assert!(false, "a call that was just made waits"),
        }
        let sent = call.made();
        self.seat(id, Aboard { call, sent });
    }

    /// What became of it, for its caller, which has begun it and waits no longer.
    pub(super) fn end_of_solo(&mut self) -> End {
        self.materialize();
        let call = self.solo.call.take().expect("only its caller takes it, once");
        let Some(at) = self.solo.answered.take() else { return End::Aboard(call) };
        let (call, buffer) = call.lend_buffer();
        End::Answered(call, at, std::mem::replace(&mut self.solo.output, buffer))
    }
}
