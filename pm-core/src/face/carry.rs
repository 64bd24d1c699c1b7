//! A query on its way, as its caller sees it: a future that sends a call and waits for its outcome.

use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::error::QueryError;
use super::pool::Handle;
use crate::codec::Codec;
use crate::driver::call::Call;
use crate::driver::clock;
use crate::driver::pool::{Sending, Sent};
use crate::machine::payload::Payload;
use crate::machine::time::Time;

/// Sends a call, and waits for its outcome. Whoever drops it before has lost interest in the call, which is then cancelled.
pub(super) struct Carry<H: Deref<Target = Handle>> {
    handle: H,
    stage: Stage,
}

enum Stage {
    /// It was not sent, and its time has not begun.
    New(Arc<Call>),
    /// Its time runs, and it was not sent: its caller has given way to the other tasks of its thread.
    Yielded(Arc<Call>),
    /// It was not sent, for there is no room.
    Full,
    /// It was sent.
    Sent(Arc<Call>),
    /// It has its output.
    Answered(Arc<Call>, Payload),
    /// It has an error.
    Failed(Box<QueryError>),
    Over,
}

/// The encoded output of a call.
pub(super) struct Answer {
    call: Arc<Call>,
    output: Payload,
}

impl Answer {
    pub(super) fn decode<O, C: Codec<O>>(self, codec: &C) -> Result<O, QueryError> {
        let decoded = codec.decode(&self.output);
        self.call.reuse(self.output);
        decoded.map_err(|error| QueryError::Decode { codec: codec.name(), message: error.to_string() })
    }
}

impl<H: Deref<Target = Handle>> Carry<H> {
    /// A call that is sent when this is first polled; or the reason why there is none.
    pub(super) fn new(handle: H, call: Result<Arc<Call>, QueryError>) -> Self {
        let stage = call.map_or_else(|error| Stage::Failed(Box::new(error)), Stage::New);
        Carry { handle, stage }
    }

    /// A call that was sent.
    pub(super) fn sent(handle: H, call: Arc<Call>) -> Self {
        Carry { handle, stage: Stage::Sent(call) }
    }

    /// Sends the call, if it was not. Ready once that is over, whatever came of it: see [`is_full`](Self::is_full). `if_room` says that it is sent only
    /// where a worker or the queue has room for it.
    pub(super) fn poll_send(&mut self, if_room: bool, cx: &mut Context<'_>) -> Poll<()> {
        let now = clock::now();
        let (call, gave_way) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::New(call) => {
                call.begin(now);
                (call, false)
            }
            Stage::Yielded(call) => (call, true),
            other => {
                self.stage = other;
                return Poll::Ready(());
            }
        };
        match self.handle.pool.send(now, call, Sending { if_room, gave_way }, cx.waker()) {
            Sent::Answered(call, output) => self.stage = Stage::Answered(call, output),
            Sent::Look(call) => self.stage = Stage::Sent(call),
            Sent::Full => self.stage = Stage::Full,
            Sent::Asleep(call) => {
                self.stage = Stage::Sent(call);
                return Poll::Pending;
            }
            Sent::Yield(call) => {
                self.stage = Stage::Yielded(call);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// The call, where it was not sent, for [`AnyPool::submit_many`]. Its time begins.
    pub(super) fn unsent(&self, now: Time) -> Option<&Arc<Call>> {
        match &self.stage {
            Stage::New(call) => {
                call.begin(now);
                Some(call)
            }
            _ => None,
        }
    }

    /// It was sent.
    pub(super) fn was_sent(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::New(call) => Stage::Sent(call),
            other => other,
        };
    }

    /// Sends the call, if it was not, without a look at its answer.
    pub(super) fn submit(&mut self, now: Time) {
        if let Some(call) = self.unsent(now) {
            self.handle.pool.submit(now, call);
            self.was_sent();
        }
    }

    /// Whether the call could not be sent, for there was no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.stage, Stage::Full)
    }
}

impl<H: Deref<Target = Handle> + Unpin> Future for Carry<H> {
    type Output = Result<Answer, QueryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if matches!(self.stage, Stage::New(_) | Stage::Yielded(_)) {
            ready!(self.poll_send(false, cx));
        }
        let outcome = match &self.stage {
            Stage::Sent(call) => Some(ready!(call.poll(cx))),
            _ => None,
        };
        Poll::Ready(match (std::mem::replace(&mut self.stage, Stage::Over), outcome) {
            (Stage::Sent(call), Some(outcome)) => outcome.map(|output| Answer { call, output }),
            (Stage::Answered(call, output), _) => Ok(Answer { call, output }),
            (Stage::Failed(error), _) => Err(*error),
            _ => panic!("a query was polled after it had its outcome"),
        })
    }
}

impl<H: Deref<Target = Handle>> Drop for Carry<H> {
    fn drop(&mut self) {
        if let Stage::Sent(call) = &self.stage
            && !call.is_over()
        {
            self.handle.pool.abandon(call);
        }
    }
}

/// The same, with the output decoded.
pub(super) struct Decoded<O, C> {
    carry: Carry<Arc<Handle>>,
    codec: C,
    output: PhantomData<fn() -> O>,
}

impl<O, C> Decoded<O, C> {
    pub(super) fn new(carry: Carry<Arc<Handle>>, codec: C) -> Self {
        Decoded { carry, codec, output: PhantomData }
    }
}

// The codec is never pinned.
impl<O, C> Unpin for Decoded<O, C> {}

impl<O, C: Codec<O>> Future for Decoded<O, C> {
    type Output = Result<O, QueryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.carry).poll(cx))?;
        Poll::Ready(answer.decode(&self.codec))
    }
}
