//! Stream pools: many messages in and out, in another process.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::duplex::Duplex;
use super::error::{QueryError, StreamError, encoded};
use super::pool::{Handle, Pool};
use crate::codec::{Codec, Postcard};
use crate::driver::call::Call;
use crate::driver::clock;
use crate::driver::flow::{Flow, Writer};

/// The longest name of a stream, in bytes.
pub const MAX_NAME: usize = 4096;

/// A pool of workers that serve streams. Made by a [`PoolBuilder`](super::builder::PoolBuilder).
///
/// A stream lives in one worker, the one with the fewest when it was opened, beside thousands of others. It ends when its handler in the worker returns; if the
/// worker dies, each of its streams ends with the error that says why.
///
/// It is cheap to clone, and every clone is the same pool. When the last clone is dropped, the workers are killed;
/// [`shutdown`](Pool::shutdown) lets the streams come to their ends first. All that has to do with its workers is in [`Pool`], which it derefs to.
pub struct StreamManager<I, O, C = Postcard> {
    pub(super) pool: Pool,
    pub(super) codec: Arc<C>,
    pub(super) types: PhantomData<fn(I) -> O>,
}

impl<I, O, C: Codec<I> + Codec<O>> StreamManager<I, O, C> {
    /// Opens a stream on the worker that has the fewest, and returns once it has one. Where every worker has as many as it takes, it waits, in turn.
    ///
    /// # Cancel safety
    /// A stream whose opening is dropped is ended.
    ///
    /// # Errors
    /// [`StreamError::Failed`]: the pool has given up, has no workers or is shutting down.
    pub async fn create_stream(&self) -> Result<Duplex<I, O>, StreamError> {
        self.create_stream_named("").await
    }

    /// The same with a name: what the stream is about, of at most 4,096 bytes, for errors and for the worker.
    ///
    /// # Cancel safety
    /// As [`create_stream`](Self::create_stream).
    ///
    /// # Errors
    /// As [`create_stream`](Self::create_stream); [`QueryError::TooLarge`] for a longer name.
    pub fn create_stream_named(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<Duplex<I, O>, StreamError>> + Send + use<I, O, C> {
        let flow = match name.len() {
            size if size > MAX_NAME => Err(QueryError::TooLarge { size, limit: MAX_NAME }),
            _ => Ok(Flow::new(name)),
        };
        let (handle, codec) = (self.pool.handle.clone(), self.codec.clone());
        async move {
            let flow = flow?;
            let opening = Opening { call: Call::stream(flow.clone()), handle, is_open: false };
            opening.wait(&flow).await?;
            Ok(Duplex::new(flow, codec))
        }
    }
}

impl<I, O, C: Codec<I>> StreamManager<I, O, C> {
    /// Sends a message on every stream that is open now. To each as soon as it has room: streams that read wait for none that do not. Returns how many it went to,
    /// once the others have ended.
    ///
    /// # Cancel safety
    /// Those that have no room until this is dropped go without.
    ///
    /// # Errors
    /// [`StreamError::Failed`] where the message cannot be encoded; then it goes to none.
    pub fn broadcast(&self, message: &I) -> impl Future<Output = Result<usize, StreamError>> + Send + use<I, O, C> {
        let mut payload = Vec::new();
        let result = self.codec.encode(message, &mut payload);
        let encoded = encoded(self.codec.name(), result, payload.len()).map(|()| payload);
        let handle = self.pool.handle.clone();
        async move {
            let payload = encoded?;
            let waiting = handle.pool.streams().into_iter().map(Writer::new).collect();
            let mut broadcast = Broadcast { waiting, sent: 0 };
            Ok(poll_fn(|cx| broadcast.poll(&payload, cx)).await)
        }
    }
}

/// Streams to which a message goes as soon as they have room.
struct Broadcast {
    waiting: Vec<Writer>,
    sent: usize,
}

impl Broadcast {
    fn poll(&mut self, payload: &[u8], cx: &mut Context<'_>) -> Poll<usize> {
        self.waiting.retain_mut(|writer| match writer.poll(0, payload, cx) {
            Poll::Ready(written) => {
                self.sent += usize::from(written.is_ok());
                false
            }
            Poll::Pending => true,
        });
        if self.waiting.is_empty() { Poll::Ready(self.sent) } else { Poll::Pending }
    }
}

/// A stream that waits for a worker, and is ended when this is dropped before it has one.
struct Opening {
    call: Arc<Call>,
    handle: Arc<Handle>,
    is_open: bool,
}

impl Opening {
    async fn wait(mut self, flow: &Flow) -> Result<(), StreamError> {
        let mut is_sent = false;
        poll_fn(|cx| {
            if let Poll::Ready(opened) = flow.poll_open() {
                return Poll::Ready(opened);
            }
            // Whoever opens or ends it takes the waker; so it is looked at again after that is there.
            drop(self.call.sleep(cx.waker().clone()));
            if !std::mem::replace(&mut is_sent, true) {
                let now = clock::now();
                self.call.begin(now);
                self.handle.pool.submit(now, &self.call);
            }
            flow.poll_open()
        })
        .await?;
        self.is_open = true;
        Ok(())
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_open && !self.call.is_over() {
            self.handle.pool.abandon(&self.call);
        }
    }
}

/// Its pool: what it is doing, how many workers it has, its end.
impl<I, O, C> Deref for StreamManager<I, O, C> {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl<I, O, C> Clone for StreamManager<I, O, C> {
    fn clone(&self) -> Self {
        StreamManager { pool: self.pool.clone(), codec: self.codec.clone(), types: PhantomData }
    }
}

impl<I, O, C> fmt::Debug for StreamManager<I, O, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamManager").field("name", &self.pool.name()).finish_non_exhaustive()
    }
}
