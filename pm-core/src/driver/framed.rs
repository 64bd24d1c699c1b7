//! A link over any byte stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::machine::frame::{Decoder, Frame, HEADER, Header, MAX_PAYLOAD};
use crate::machine::payload;
use crate::transport::{Link, LinkError, LinkRx, LinkTx};

/// A link that has this much to send has no room. So much is two full sockets; more would only wait in the wrong place.
const SEND_LIMIT: usize = 128 << 10;

/// Room beyond that for frames without payload: two for each of the queries that a link can have, and more.
const CONTROL_RESERVE: usize = 128 << 10;

/// A payload from this size on goes to the stream from where it lies, as far as the stream takes it in pieces of this size at least.
const THROUGH: usize = 16 << 10;

/// But no more than so much at a time: whoever pushes holds up others.
const THROUGH_MOST: usize = 1 << 20;

/// A link over the two halves of a byte stream.
#[derive(Debug)]
pub struct FramedLink<R, W> {
    tx: FramedTx<W>,
    rx: FramedRx<R>,
}

/// The sending half of a [`FramedLink`].
#[derive(Debug)]
pub struct FramedTx<W> {
    io: W,
    buffer: Vec<u8>,
    /// How much of the buffer has gone.
    sent: usize,
    max_payload: usize,
    /// What ended it: a frame that can never leave must not be taken.
    failed: Option<(io::ErrorKind, String)>,
}

/// The receiving half of a [`FramedLink`].
#[derive(Debug)]
pub struct FramedRx<R> {
    io: R,
    decoder: Decoder,
}

impl<R, W> FramedLink<R, W> {
    /// A link that reads from one and writes to the other, with payloads of at most 64 MiB.
    pub fn new(read: R, write: W) -> Self {
        FramedLink { tx: FramedTx::new(write), rx: FramedRx { io: read, decoder: Decoder::new(MAX_PAYLOAD) } }
    }
}

impl<R, W> Link for FramedLink<R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    type Tx = FramedTx<W>;
    type Rx = FramedRx<R>;

    fn split(self) -> (Self::Tx, Self::Rx) {
        (self.tx, self.rx)
    }
}

impl<W> FramedTx<W> {
    /// A sending half that writes there, with payloads of at most 64 MiB.
    pub fn new(write: W) -> Self {
        FramedTx { io: write, buffer: Vec::new(), sent: 0, max_payload: MAX_PAYLOAD, failed: None }
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> LinkTx for FramedTx<W> {
    fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
        self.has_failed()?;
        if payload.len() > self.max_payload {
            return Err(LinkError::TooLarge { size: payload.len(), limit: self.max_payload });
        }
        // Frames without payload control calls that are aboard already; they must not wait.
        if self.buffer.len() - self.sent >= if payload.is_empty() { SEND_LIMIT + CONTROL_RESERVE } else { SEND_LIMIT } {
            return Ok(false);
        }
        if self.sent > SEND_LIMIT {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
        let header = header.encode(payload.len());
        let gone = if payload.len() < THROUGH { 0 } else { self.write_through(&header, payload)? };
        self.buffer.extend_from_slice(&header[gone.min(HEADER)..]);
        self.buffer.extend_from_slice(&payload[gone.saturating_sub(HEADER)..]);
        Ok(true)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.has_failed()?;
        let written = ready!(self.poll_write_all(cx)).map_err(|error| self.fail(error));
        self.sent = 0;
        self.buffer.clear();
        payload::trim(&mut self.buffer);
        Poll::Ready(written.map_err(LinkError::from))
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> FramedTx<W> {
    /// The error that it ended with, again.
    fn has_failed(&self) -> io::Result<()> {
        match &self.failed {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        self.failed = Some((error.kind(), error.to_string()));
        error
    }

    /// Writes what can go at once of a frame, if nothing else has to go before it, and says how many bytes of it went.
    fn write_through(&mut self, header: &[u8], payload: &[u8]) -> Result<usize, LinkError> {
        // Whoever flushes the rest waits for it.
        let cx = &mut Context::from_waker(Waker::noop());
        if self.poll_flush(cx)?.is_pending() {
            return Ok(0);
        }
        let mut gone = 0;
        while gone < (header.len() + payload.len()).min(THROUGH_MOST) {
            let parts = [&header[gone.min(header.len())..], &payload[gone.saturating_sub(header.len())..]];
            let wanted = if gone < header.len() { header.len() - gone } else { parts[1].len().min(THROUGH) };
            match Pin::new(&mut self.io).poll_write_vectored(cx, &parts.map(IoSlice::new)) {
                Poll::Ready(Ok(0)) => return Err(self.fail(io::ErrorKind::WriteZero.into()).into()),
                Poll::Ready(Ok(count)) => {
                    gone += count;
                    // It takes little at a time: whoever waits for room may as well do the rest.
                    if count < wanted {
                        break;
                    }
                }
                Poll::Ready(Err(error)) => return Err(self.fail(error).into()),
                Poll::Pending => break,
            }
        }
        Ok(gone)
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        // Sockets and pipes have nothing to flush; a stream with a buffer of its own has.
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<R: AsyncRead + Unpin + Send + 'static> LinkRx for FramedRx<R> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let count = ready!(poll_read_buf(Pin::new(&mut self.io), cx, self.decoder.buffer()))?;
        if count == 0 {
            self.decoder.finish()?;
            return Poll::Ready(Err(LinkError::Closed));
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        Ok(self.decoder.next()?)
    }

    fn unread(&self) -> &[u8] {
        self.decoder.unread()
    }
}
