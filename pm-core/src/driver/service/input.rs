//! What a process of a service reads where that is a pipe or a terminal, through all its lives, and those who write there.
//!
//! Whoever writes does so itself, and waits where the process does not read: there is no queue between the two, so nothing that was taken can be left over
//! for another life, and nobody else waits.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::terminal::{self, WindowSize};
use crate::face::service::InputError;

/// The standard input of a process of a service. Dropped with the service, of which those who write then hear.
pub(super) struct Inlet {
    now: watch::Sender<Option<Arc<End>>>,
    /// What was asked for last: a further life begins with it.
    size: Arc<Mutex<WindowSize>>,
}

/// The end of one life that is written to.
pub(super) struct End {
    /// Held by the one whose turn it is, so that what is sent together stays together. None once it was closed.
    turn: tokio::sync::Mutex<Option<Writable>>,
    /// The terminal, for what is asked of it beside the writing.
    terminal: Option<OwnedFd>,
}

struct Writable {
    pipe: pipe::Sender,
    /// Nothing of a line was written yet that has no end.
    is_at_line_start: bool,
}

/// As long as this is there, a life has its standard input.
pub(super) struct Opened(Arc<Inlet>);

impl Inlet {
    pub(super) fn new() -> Self {
        Inlet { now: watch::Sender::new(None), size: Arc::default() }
    }

    /// How large a terminal of it is to be.
    pub(super) fn size(&self) -> WindowSize {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another life begins, which reads what is written to this end.
    pub(super) fn open(self: &Arc<Self>, end: End) -> Opened {
        if let Some(terminal) = &end.terminal {
            // Somebody may have asked for another size while it was being made. That the kernel refuses one is not known.
            let _ = terminal::resize(terminal, self.size());
        }
        self.now.send_replace(Some(Arc::new(end)));
        Opened(self.clone())
    }

    /// For one who writes.
    pub(super) fn writer(&self) -> Input {
        Input { now: self.now.subscribe(), size: self.size.clone() }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.now.send_replace(None);
    }
}

impl End {
    /// The end of a pipe.
    pub(super) fn of_pipe(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::new(fd, None)
    }

    /// The master of a terminal, which does not block.
    pub(super) fn of_terminal(master: &OwnedFd) -> io::Result<Self> {
        Self::new(master.try_clone()?, Some(master.try_clone()?))
    }

    fn new(fd: OwnedFd, terminal: Option<OwnedFd>) -> io::Result<Self> {
        // Unchecked, for a terminal is no pipe, and written to as one.
        let pipe = pipe::Sender::from_owned_fd_unchecked(fd)?;
        let turn = tokio::sync::Mutex::new(Some(Writable { pipe, is_at_line_start: true }));
        Ok(End { turn, terminal })
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), InputError> {
        let mut turn = self.turn.lock().await;
        let writable = turn.as_mut().ok_or(InputError::Closed)?;
        // It fails where the process has closed it, or its last reader has ended.
        writable.put(bytes).await.map_err(|_| InputError::Closed)
    }

    async fn close(&self) -> Result<(), InputError> {
        let mut turn = self.turn.lock().await;
        let Some(terminal) = &self.terminal else {
            return turn.take().map(drop).ok_or(InputError::Closed);
        };
        let writable = turn.as_mut().ok_or(InputError::Closed)?;
        // The modes that the process has set for its terminal: the master has them.
        let modes = tcgetattr(terminal).map_err(|_| InputError::Closed)?;
        let end_of_file = modes.special_codes[SpecialCodeIndex::VEOF];
        // In the midst of a line the first one only hands over what there is of it.
        let is_twice = modes.local_modes.contains(LocalModes::ICANON) && !writable.is_at_line_start;
        let ends = [end_of_file; 2];
        let ends = if is_twice { &ends[..] } else { &ends[..1] };
        writable.put(ends).await.map_err(|_| InputError::Closed)?;
        writable.is_at_line_start = true;
        Ok(())
    }
}

impl Writable {
    async fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let ready = self.pipe.ready(Interest::WRITABLE).await?;
            let count = match self.pipe.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                // A terminal that nobody has open any more takes nothing, and is ready to say so for ever.
                Err(error) if ready.is_write_closed() => return Err(error),
                // It has taken all that it has room for.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                written => written?,
            };
            self.is_at_line_start = matches!(bytes[count - 1], b'\n' | b'\r');
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

/// One who writes to whichever life there is.
#[derive(Clone)]
pub(crate) struct Input {
    now: watch::Receiver<Option<Arc<End>>>,
    size: Arc<Mutex<WindowSize>>,
}

impl Input {
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<(), InputError> {
        let end = self.end().await?;
        tokio::select! {
            biased;
            sent = end.send(bytes) => sent,
            () = self.is_over(&end) => Err(InputError::Ended),
        }
    }

    pub(crate) async fn close(&self) -> Result<(), InputError> {
        let end = self.end().await?;
        tokio::select! {
            biased;
            closed = end.close() => closed,
            () = self.is_over(&end) => Err(InputError::Ended),
        }
    }

    pub(crate) fn resize(&self, size: WindowSize) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = size;
        let now = self.now.borrow();
        if let Some(terminal) = now.as_ref().and_then(|end| end.terminal.as_ref()) {
            // A size that a terminal refuses there is none.
            let _ = terminal::resize(terminal, size);
        }
    }

    /// Waits for a life, and gives its end.
    async fn end(&self) -> Result<Arc<End>, InputError> {
        let mut now = self.now.clone();
        let end = now.wait_for(Option::is_some).await.map_err(|_| InputError::Gone)?;
        end.clone().ok_or(InputError::Gone)
    }

    /// Waits until that life is over.
    async fn is_over(&self, end: &Arc<End>) {
        let mut now = self.now.clone();
        let is_it = |now: &Option<Arc<End>>| now.as_ref().is_some_and(|now| Arc::ptr_eq(now, end));
        // An error says that the service itself is gone.
        let _ = now.wait_for(|now| !is_it(now)).await;
    }
}
