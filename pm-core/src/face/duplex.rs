//! One end of a stream, as programs hold it: the same in a manager and in a worker.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream as Messages;
use futures_sink::Sink;

use super::error::{QueryError, StreamError, encoded};
use crate::codec::{Codec, CodecError};
use crate::driver::flow::{Content, Flow, NUMBER, Taken, Writer};
use crate::machine::frame::flag;
use crate::machine::id::WorkerId;
use crate::worker::role::Answer;

/// One end of a stream that sends messages of type `S` and receives those of type `R`.
///
/// [`write`](Self::write), [`next`](Self::next), [`end`](Self::end) and [`close`](Self::close) are all that most streams need.
/// [`split`](Self::split) gives the halves, a futures `Sink` and a `Stream`, which can be used from two tasks.
///
/// # Backpressure
/// A write waits until the peer has room for the message: it has granted credit, in messages and in bytes, for what it will hold unread, and grants more as its
/// program reads. So a slow reader suspends the writer, memory holds one window and one message for each stream at most, and other streams go on.
///
/// # Dropping
/// To drop the sending half is to [`end`](Self::end) it. To drop the receiving half is to say that nothing more is read: the peer's writes fail with
/// [`StreamError::Ended`] from then on. What was written before still arrives. [`cancel`](Self::cancel) ends the stream at once.
pub struct Duplex<S, R> {
    sender: StreamSender<S, R>,
    receiver: StreamReceiver<S, R>,
}

/// The sending half of a [`Duplex`]: a futures `Sink`.
pub struct StreamSender<S, R> {
    end: End<S, R>,
    buffer: Vec<u8>,
    /// A message that the sink took, and that has not gone.
    taken: Vec<u8>,
    has_taken: bool,
    writer: Writer,
}

/// The receiving half of a [`Duplex`]: a futures `Stream`.
pub struct StreamReceiver<S, R> {
    end: End<S, R>,
    taken: Taken,
}

/// Something that came, where calls are told from messages.
#[derive(Debug)]
pub enum Incoming<S, R> {
    /// A message.
    Message(R),
    /// A call, which wants an answer.
    Call(R, Reply<S, R>),
}

/// The right to answer a call, once. To drop it is to leave the call unanswered.
pub struct Reply<S, R> {
    end: End<S, R>,
    number: u64,
    is_open: bool,
}

pub(super) struct End<S, R> {
    pub(super) flow: Arc<Flow>,
    pub(super) codec: Arc<dyn Both<S, R>>,
}

/// A codec for what is sent and what is received.
pub(crate) trait Both<S, R>: Send + Sync {
    fn name(&self) -> &'static str;
    fn encode(&self, value: &S, payload: &mut Vec<u8>) -> Result<(), CodecError>;
    fn decode(&self, payload: &[u8]) -> Result<R, StreamError>;
}

impl<S, R, C: Codec<S> + Codec<R>> Both<S, R> for C {
    fn name(&self) -> &'static str {
        crate::codec::Format::name(self)
    }

    fn encode(&self, value: &S, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        Codec::<S>::encode(self, value, payload)
    }

    fn decode(&self, payload: &[u8]) -> Result<R, StreamError> {
        match Codec::<R>::decode(self, payload) {
            Ok(value) => Ok(value),
            Err(error) => {
                let codec = crate::codec::Format::name(self);
                Err(QueryError::Decode { codec, message: error.to_string() }.into())
            }
        }
    }
}

impl<S, R> Duplex<S, R> {
    pub(crate) fn new(flow: Arc<Flow>, codec: Arc<dyn Both<S, R>>) -> Self {
        let end = End { flow, codec };
        let sender = StreamSender {
            writer: Writer::new(end.flow.clone()),
            end: end.clone(),
            buffer: Vec::new(),
            taken: Vec::new(),
            has_taken: false,
        };
        Duplex { sender, receiver: StreamReceiver::new(end) }
    }

    /// What the stream is about, as whoever opened it says. Empty where nothing was said.
    pub fn name(&self) -> &str {
        self.receiver.end.flow.name()
    }

    /// The worker that serves the stream: what [`Pool::workers`](super::pool::Pool::workers) lists, and `unspawn_one` takes. None in the worker itself.
    pub fn worker(&self) -> Option<WorkerId> {
        self.receiver.end.flow.worker()
    }

    /// The halves.
    pub fn split(self) -> (StreamSender<S, R>, StreamReceiver<S, R>) {
        (self.sender, self.receiver)
    }

    /// Sends a message, and waits until the peer has room for it. See [`StreamSender::write`].
    ///
    /// # Cancel safety
    /// A write that is dropped before it is ready has sent nothing.
    ///
    /// # Errors
    /// As [`StreamSender::write`].
    pub fn write(&mut self, message: &S) -> impl Future<Output = Result<(), StreamError>> + Send + use<'_, S, R> {
        self.sender.write(message)
    }

    /// The next message of the peer; none once it has sent its last.
    ///
    /// An error is an item like a message: after one that is not [final](StreamError::is_final) the stream goes on, after any other nothing follows.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<R, StreamError>> {
        self.receiver.next().await
    }

    /// The same, with calls told from messages.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next_incoming(&mut self) -> Option<Result<Incoming<S, R>, StreamError>> {
        self.receiver.next_incoming().await
    }

    /// Sends a message as a call, and waits for the answer to it. See [`StreamSender::call`].
    ///
    /// # Errors
    /// As [`StreamSender::call`].
    ///
    /// # Cancel safety
    /// As [`StreamSender::call`].
    pub fn call(&self, message: &S) -> impl Future<Output = Result<R, StreamError>> + Send + use<S, R> {
        self.sender.call(message)
    }

    /// Sends an error, after which the stream goes on. See [`StreamSender::write_error`].
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub async fn write_error(&mut self, error: impl fmt::Display + fmt::Debug) -> Result<(), StreamError> {
        self.sender.write_error(error).await
    }

    /// Says that this end sends nothing more. It can still read. Never waits.
    pub fn end(&mut self) {
        self.sender.end();
    }

    /// Ends this side, drops what comes, and waits for the end of the stream. In a manager that is when the handler of the worker has returned; in the handler
    /// itself, when the manager has ended its side too.
    ///
    /// # Errors
    /// What the stream ended with. Errors after which it went on are dropped with the messages.
    ///
    /// # Cancel safety
    /// This end is dropped.
    pub async fn close(mut self) -> Result<(), StreamError> {
        self.end();
        while poll_fn(|cx| self.receiver.poll_skip(cx)).await {}
        let flow = self.receiver.end.flow.clone();
        poll_fn(|cx| flow.poll_end(cx)).await
    }

    /// Ends the stream at once. A handler that is a future is dropped at its next await; another one finds out when it reads or writes.
    pub fn cancel(self) {
        self.receiver.end.flow.cancel();
    }
}

impl<S, R> StreamSender<S, R> {
    /// Sends a message, and waits until the peer has room for it. It is encoded at once.
    ///
    /// # Cancel safety
    /// A write that is dropped before it is ready has sent nothing.
    ///
    /// # Errors
    /// [`StreamError`]: the stream is over, or the message cannot be encoded, after which it goes on. A peer that fails says first that it reads no more, and then
    /// why: a write between the two gives [`StreamError::Ended`], and whoever reads on learns the reason.
    pub fn write(&mut self, message: &S) -> impl Future<Output = Result<(), StreamError>> + Send + use<'_, S, R> {
        self.buffer.clear();
        let encoded = self.end.encode(message, &mut self.buffer);
        self.write_encoded(0, encoded)
    }

    /// Sends an error, after which the stream goes on: the peer reads it as [`StreamError::Sent`].
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub async fn write_error(&mut self, error: impl fmt::Display + fmt::Debug) -> Result<(), StreamError> {
        self.buffer = described(error);
        self.write_encoded(flag::ERROR, Ok(())).await
    }

    async fn write_encoded(&mut self, flags: u8, encoded: Result<(), StreamError>) -> Result<(), StreamError> {
        encoded?;
        let waiting = Waiting(self);
        poll_fn(|cx| {
            let sender = &mut *waiting.0;
            ready!(sender.poll_taken(cx))?;
            sender.writer.poll(flags, &sender.buffer, cx)
        })
        .await
    }

    /// Sends a message as a call, and waits for the answer to it. Any number of calls may wait, and their answers come in any order, between messages.
    ///
    /// # Cancel safety
    /// A call that is dropped is not answered to anybody. The peer may have it already.
    ///
    /// # Errors
    /// [`StreamError::Sent`] with an error that is its answer, [`StreamError::Unanswered`] where the peer leaves it without one; otherwise as
    /// [`write`](Self::write).
    pub fn call(&self, message: &S) -> impl Future<Output = Result<R, StreamError>> + Send + use<S, R> {
        let call = PendingCall { number: self.end.flow.begin_call(), end: self.end.clone() };
        let mut payload = call.number.to_be_bytes().to_vec();
        let encoded = call.end.encode(message, &mut payload);
        async move {
            encoded?;
            call.answer(payload).await
        }
    }

    /// Says that this end sends nothing more. Never waits. A message that the sink has taken and not sent is dropped: close the sink to send it.
    pub fn end(&mut self) {
        self.end.flow.finish();
    }

    /// What the sink took goes.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.has_taken {
            let written = ready!(self.writer.poll(0, &self.taken, cx));
            self.has_taken = false;
            return Poll::Ready(written);
        }
        Poll::Ready(Ok(()))
    }
}

/// A write that waits, and no longer does so when this is dropped.
struct Waiting<'a, S, R>(&'a mut StreamSender<S, R>);

impl<S, R> Drop for Waiting<'_, S, R> {
    fn drop(&mut self) {
        self.0.writer.give_up();
    }
}

struct PendingCall<S, R> {
    end: End<S, R>,
    number: u64,
}

impl<S, R> PendingCall<S, R> {
    async fn answer(self, payload: Vec<u8>) -> Result<R, StreamError> {
        self.end.write_once(flag::CALL, payload).await?;
        match poll_fn(|cx| self.end.flow.poll_call(self.number, cx)).await? {
            Ok(reply) => self.end.codec.decode(reply.get(NUMBER..).unwrap_or_default()),
            Err(Some(error)) => Err(StreamError::Sent(error)),
            Err(None) => Err(StreamError::Unanswered),
        }
    }
}

impl<S, R> Drop for PendingCall<S, R> {
    fn drop(&mut self) {
        self.end.flow.end_call(self.number);
    }
}

impl<S, R> StreamReceiver<S, R> {
    pub(super) fn new(end: End<S, R>) -> Self {
        StreamReceiver { end, taken: Taken::default() }
    }

    /// The next message of the peer; none once it has sent its last. See [`Duplex::next`]. A call comes as a message here, and is left unanswered.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<R, StreamError>> {
        poll_fn(|cx| self.poll_next_value(cx)).await
    }

    /// The same, with calls told from messages.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next_incoming(&mut self) -> Option<Result<Incoming<S, R>, StreamError>> {
        poll_fn(|cx| self.poll_next_incoming(cx)).await
    }

    fn poll_next_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming<S, R>, StreamError>>> {
        self.poll_read(cx, |end, content, value| match content {
            Content::Plain => Ok(Incoming::Message(end.codec.decode(value)?)),
            Content::Call(number) => {
                let reply = Reply { end: end.clone(), number, is_open: true };
                Ok(Incoming::Call(end.codec.decode(value)?, reply))
            }
            Content::Error(error) => Err(StreamError::Sent(error)),
        })
    }

    fn poll_next_value(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, StreamError>>> {
        self.poll_read(cx, |end, content, value| match content {
            Content::Plain => end.codec.decode(value),
            Content::Call(number) => {
                end.flow.leave_unanswered(number);
                end.codec.decode(value)
            }
            Content::Error(error) => Err(StreamError::Sent(error)),
        })
    }

    fn poll_read<V>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&End<S, R>, Content, &[u8]) -> Result<V, StreamError>,
    ) -> Poll<Option<Result<V, StreamError>>> {
        let StreamReceiver { end, taken } = self;
        match ready!(end.flow.poll_next(taken, cx)) {
            Some(Ok(())) => {
                let value = taken.pop().map(|(content, value)| read(end, content, value));
                end.flow.note_read(taken);
                Poll::Ready(value)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(None),
        }
    }

    /// Drops a message, or an error. False at the end.
    fn poll_skip(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let next = ready!(self.end.flow.poll_next(&mut self.taken, cx));
        if let Some((Content::Call(number), _)) = self.taken.pop() {
            self.end.flow.leave_unanswered(number);
        }
        self.end.flow.note_read(&mut self.taken);
        Poll::Ready(next.is_some())
    }
}

impl<S, R> Reply<S, R> {
    /// Answers. Waits only where the link has no room: an answer needs no credit.
    ///
    /// # Cancel safety
    /// An answer that is dropped before it is ready leaves the call unanswered.
    ///
    /// # Errors
    /// [`StreamError`]: the stream is over, or the answer cannot be encoded; then the call is left unanswered.
    pub fn answer(self, value: &S) -> impl Future<Output = Result<(), StreamError>> + Send + use<S, R> {
        let mut payload = self.number.to_be_bytes().to_vec();
        let encoded = self.end.encode(value, &mut payload);
        async move {
            encoded?;
            self.send(flag::REPLY, payload).await
        }
    }

    /// Answers with an error, which the caller gets as [`StreamError::Sent`].
    ///
    /// # Cancel safety
    /// As [`answer`](Self::answer).
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub async fn fail(self, error: impl fmt::Display + fmt::Debug) -> Result<(), StreamError> {
        let mut payload = self.number.to_be_bytes().to_vec();
        payload.extend(described(error));
        self.send(flag::REPLY | flag::ERROR, payload).await
    }

    async fn send(mut self, flags: u8, payload: Vec<u8>) -> Result<(), StreamError> {
        self.end.write_once(flags, payload).await?;
        self.is_open = false;
        Ok(())
    }
}

impl<S, R> End<S, R> {
    pub(super) fn encode(&self, value: &S, payload: &mut Vec<u8>) -> Result<(), StreamError> {
        let result = self.codec.encode(value, payload);
        Ok(encoded(self.codec.name(), result, payload.len())?)
    }

    /// Sends a frame beside those of the sending half.
    pub(super) async fn write_once(&self, flags: u8, payload: Vec<u8>) -> Result<(), StreamError> {
        let mut writer = Writer::new(self.flow.clone());
        poll_fn(|cx| writer.poll(flags, &payload, cx)).await
    }
}

/// An error as the payload of a frame.
fn described(error: impl fmt::Display + fmt::Debug) -> Vec<u8> {
    match Answer::<()>::into_answer(Err::<(), _>(error)) {
        Ok(()) => Vec::new(),
        Err(error) => error.to_payload(),
    }
}

impl<S, R> Clone for End<S, R> {
    fn clone(&self) -> Self {
        End { flow: self.flow.clone(), codec: self.codec.clone() }
    }
}

impl<S, R> Drop for StreamSender<S, R> {
    fn drop(&mut self) {
        self.end.flow.finish();
    }
}

impl<S, R> Drop for StreamReceiver<S, R> {
    fn drop(&mut self) {
        self.end.flow.stop(&mut self.taken);
    }
}

impl<S, R> Drop for Reply<S, R> {
    fn drop(&mut self) {
        if self.is_open {
            self.end.flow.leave_unanswered(self.number);
        }
    }
}

/// A sink that waits for credit where it has taken a message that could not go: `poll_flush` is ready once the message is on its way.
impl<S, R> Sink<S> for StreamSender<S, R> {
    type Error = StreamError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_taken(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: S) -> Result<(), StreamError> {
        let StreamSender { end, taken, has_taken, .. } = &mut *self;
        taken.clear();
        end.encode(&message, taken)?;
        *has_taken = true;
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_taken(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(self.poll_taken(cx))?;
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl<S, R> Messages for StreamReceiver<S, R> {
    type Item = Result<R, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_next_value(cx)
    }
}

impl<S, R> Sink<S> for Duplex<S, R> {
    type Error = StreamError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.sender).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: S) -> Result<(), StreamError> {
        Pin::new(&mut self.sender).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.sender).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.sender).poll_close(cx)
    }
}

impl<S, R> Messages for Duplex<S, R> {
    type Item = Result<R, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_next_value(cx)
    }
}

// Nothing in them is pinned.
impl<S, R> Unpin for StreamSender<S, R> {}
impl<S, R> Unpin for StreamReceiver<S, R> {}
impl<S, R> Unpin for Duplex<S, R> {}

impl<S, R> fmt::Debug for Duplex<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplex").finish_non_exhaustive()
    }
}

impl<S, R> fmt::Debug for StreamSender<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSender").finish_non_exhaustive()
    }
}

impl<S, R> fmt::Debug for StreamReceiver<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReceiver").finish_non_exhaustive()
    }
}

impl<S, R> fmt::Debug for Reply<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("number", &self.number).finish_non_exhaustive()
    }
}
