//! The link: its two halves share a [`Translator`], and the lines go through whatever there is to read from and to write to.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use atomic_waker::AtomicWaker;
use pm_core::machine::frame::{Frame, Header, MAX_PAYLOAD};
use pm_core::machine::payload::Lent;
use pm_core::transport::{Link, LinkError, LinkRx, LinkTx};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::dialect::Dialect;
use crate::translator::Translator;

/// What is read at a time.
const CHUNK: usize = 16 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The manager's half of a link to a program that does not speak the protocol.
pub struct ForeignLink<D> {
    tx: ForeignTx<D>,
    rx: ForeignRx<D>,
}

/// The sending half.
pub struct ForeignTx<D> {
    shared: Arc<Shared<D>>,
    /// None once nothing more can be written.
    write: Option<Writer>,
    /// Nothing ever passes.
    is_silent: bool,
    buffer: Vec<u8>,
    /// How much of the buffer has gone.
    sent: usize,
}

/// The receiving half.
pub struct ForeignRx<D> {
    shared: Arc<Shared<D>>,
    /// None where nothing comes, or nothing more.
    read: Option<Reader>,
    buffer: Vec<u8>,
    /// How much of the buffer was heard.
    heard: usize,
    /// How far it was searched for the end of a line.
    searched: usize,
    has_ended: bool,
    payload: Vec<u8>,
}

struct Shared<D> {
    translator: Mutex<Translator<D>>,
    /// The receiving half, where it waits for something that the sending half brings about.
    receiver: AtomicWaker,
}

impl<D: Dialect> Shared<D> {
    fn translator(&self) -> MutexGuard<'_, Translator<D>> {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Dialect> ForeignLink<D> {
    /// `codec` is what all payloads have to be in, where that is so.
    pub(crate) fn new(dialect: D, codec: Option<&'static str>, read: Option<Reader>, write: Option<Writer>) -> Self {
        let translator = Mutex::new(Translator::new(dialect, codec));
        let shared = Arc::new(Shared { translator, receiver: AtomicWaker::new() });
        let rx = ForeignRx {
            shared: shared.clone(),
            read,
            buffer: Vec::new(),
            heard: 0,
            searched: 0,
            has_ended: false,
            payload: Vec::new(),
        };
        ForeignLink { tx: ForeignTx { shared, is_silent: write.is_none(), write, buffer: Vec::new(), sent: 0 }, rx }
    }
}

impl<D: Dialect> Link for ForeignLink<D> {
    type Tx = ForeignTx<D>;
    type Rx = ForeignRx<D>;

    fn split(self) -> (ForeignTx<D>, ForeignRx<D>) {
        (self.tx, self.rx)
    }
}

impl<D: Dialect> LinkTx for ForeignTx<D> {
    fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(LinkError::TooLarge { size: payload.len(), limit: MAX_PAYLOAD });
        }
        if self.sent > 0 && self.sent * 2 >= self.buffer.len() {
            self.buffer.drain(..std::mem::take(&mut self.sent));
        }
        let mut translator = self.shared.translator();
        let is_taken = translator.say(header, payload, self.buffer.len() - self.sent);
        match self.write {
            Some(_) => self.buffer.append(translator.lines()),
            None => translator.lines().clear(),
        }
        if self.is_silent && translator.is_finished() {
            // Where nothing passes there is nothing to wait for.
            translator.over();
        }
        let has_news = translator.has_frame() || translator.can_hear();
        drop(translator);
        if has_news {
            self.shared.receiver.wake();
        }
        Ok(is_taken)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let Some(write) = &mut self.write else { return Poll::Ready(Ok(())) };
        while self.sent < self.buffer.len() {
            let count = ready!(Pin::new(&mut *write).poll_write(cx, &self.buffer[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.sent += count;
        }
        self.buffer.clear();
        self.sent = 0;
        if self.shared.translator().is_finished() {
            // To close it is how the program hears of it.
            self.write = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<D: Dialect> LinkRx for ForeignRx<D> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.shared.receiver.register(cx.waker());
        let translator = self.shared.translator();
        let (has_frame, can_hear) = (translator.has_frame(), translator.can_hear());
        drop(translator);
        // A whole line may lie there already, that could not be heard before.
        if has_frame || can_hear && self.has_line() {
            return Poll::Ready(Ok(()));
        }
        // What waits for credit comes before the end.
        if self.has_ended && self.shared.translator().has_said_all() {
            return Poll::Ready(Err(LinkError::Closed));
        }
        let Some(read) = self.read.as_mut().filter(|_| can_hear) else { return Poll::Pending };
        if self.heard > 0 {
            self.buffer.drain(..self.heard);
            self.searched -= std::mem::take(&mut self.heard);
        }
        self.buffer.reserve(CHUNK);
        if ready!(poll_read_buf(Pin::new(read), cx, &mut self.buffer))? == 0 {
            self.end()?;
            let translator = self.shared.translator();
            match translator.has_frame() {
                true => {}
                false if translator.has_said_all() => return Poll::Ready(Err(LinkError::Closed)),
                false => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        loop {
            let mut translator = self.shared.translator();
            if let Some((header, payload)) = translator.next_frame() {
                self.payload = payload;
                return Ok(Some(Frame { header, payload: Lent::from(&self.payload[..]) }));
            }
            let can_hear = translator.can_hear();
            drop(translator);
            let Some(end) = self.line_end().filter(|_| can_hear) else { break };
            self.hear(end)?;
            self.heard = end + 1;
        }
        if self.buffer.len() - self.heard > MAX_PAYLOAD {
            return Err(LinkError::Corrupt("a line of more than 64 MiB"));
        }
        Ok(None)
    }
}

impl<D: Dialect> ForeignRx<D> {
    fn has_line(&mut self) -> bool {
        self.line_end().is_some()
    }

    /// Where the next line ends.
    fn line_end(&mut self) -> Option<usize> {
        self.searched = self.searched.max(self.heard);
        let end = memchr::memchr(b'\n', &self.buffer[self.searched..]);
        self.searched = end.map_or(self.buffer.len(), |end| self.searched + end);
        end.map(|_| self.searched)
    }

    /// Takes the line that ends here.
    fn hear(&self, end: usize) -> Result<(), LinkError> {
        let heard = self.shared.translator().hear(&self.buffer[self.heard..end]);
        heard.map_err(|why| LinkError::Io(io::Error::new(io::ErrorKind::InvalidData, why)))
    }

    /// Nothing more comes. A last line needs no newline.
    fn end(&mut self) -> Result<(), LinkError> {
        self.read = None;
        self.has_ended = true;
        if self.heard < self.buffer.len() {
            self.hear(self.buffer.len())?;
            self.heard = self.buffer.len();
        }
        self.shared.translator().over();
        Ok(())
    }
}

impl<D> fmt::Debug for ForeignLink<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignLink").finish_non_exhaustive()
    }
}

impl<D> fmt::Debug for ForeignTx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignTx").field("unsent", &(self.buffer.len() - self.sent)).finish_non_exhaustive()
    }
}

impl<D> fmt::Debug for ForeignRx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignRx").field("unheard", &(self.buffer.len() - self.heard)).finish_non_exhaustive()
    }
}
