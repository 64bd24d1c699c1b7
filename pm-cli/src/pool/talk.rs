//! One stream, read and written by one task.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use pm::{Duplex, StreamError};
use tokio::time::Sleep;

/// A stream, and how far it is with the message that goes to it.
pub(super) struct Talk {
    stream: Duplex<Bytes, Vec<u8>>,
    /// The stream has the message, which waits for credit there.
    is_going: bool,
    is_writable: bool,
}

/// What there is of a stream.
pub(super) enum Turn {
    /// What came, or its end.
    Came(Option<Result<Vec<u8>, StreamError>>),
    /// The message has gone.
    Went,
}

impl Talk {
    pub(super) fn new(stream: Duplex<Bytes, Vec<u8>>) -> Self {
        Talk { stream, is_going: false, is_writable: true }
    }

    /// What comes next; meanwhile the message goes. It has to be the same one until it has gone.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, message: Option<&Bytes>) -> Poll<Turn> {
        if let Poll::Ready(came) = Pin::new(&mut self.stream).poll_next(cx) {
            return Poll::Ready(Turn::Came(came));
        }
        let Some(message) = message.filter(|_| self.is_writable) else { return Poll::Pending };
        match self.poll_write(cx, message) {
            Poll::Ready(Ok(())) => Poll::Ready(Turn::Went),
            Poll::Ready(Err(_)) => {
                // Its end is on its way, and says more.
                self.is_writable = false;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Nothing more goes. Not to be called while a message is on its way.
    pub(super) fn end(&mut self) {
        self.stream.end();
    }

    /// Ends the stream at once.
    pub(super) fn cancel(self) {
        self.stream.cancel();
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, message: &Bytes) -> Poll<Result<(), StreamError>> {
        let mut stream = Pin::new(&mut self.stream);
        if !self.is_going {
            ready!(stream.as_mut().poll_ready(cx))?;
            stream.as_mut().start_send(message.clone())?;
            self.is_going = true;
        }
        let gone = ready!(stream.poll_flush(cx));
        self.is_going = false;
        Poll::Ready(gone)
    }
}

/// A timer that is set once until it rings: a later time that it is set to meanwhile is left out, and whoever hears it looks again. So it is not moved with each message.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    pub(super) fn set(&mut self, at: Option<Instant>) {
        if let (None, Some(at)) = (&self.0, at) {
            self.0 = Some(Box::pin(tokio::time::sleep_until(at.into())));
        }
    }

    /// Once it has rung, it is not set.
    pub(super) async fn ring(&mut self) {
        match &mut self.0 {
            Some(sleep) => sleep.await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}
