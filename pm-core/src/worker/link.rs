//! The worker's half of a link, as the worker's runtime uses it.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Bytes that are asked for at a time.
const READ_CHUNK: usize = 64 << 10;

/// Whoever receives less than this from a descriptor has emptied it: there is room for as much at least.
pub(super) const SHORT: usize = READ_CHUNK / 2;

/// A blocking byte stream to the manager.
///
/// Two threads of a worker use it: the one that runs the handler, and its attendant, which looks after the link while a handler
/// computes; or the one on which async handlers run, and another one that waits for it where it cannot. They never receive or wait at the same time.
pub trait WorkerLink: Send + Sync {
    /// Appends bytes that came; waits for the first. 0 is the end of the stream.
    ///
    /// # Errors
    /// What the operating system says.
    fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<usize>;

    /// Waits until [`recv`](WorkerLink::recv) would not wait, for at most this long, or for as long as it takes. False where the time is over. Whoever
    /// sets no time is the reader, which has nothing else to do.
    ///
    /// # Errors
    /// What the operating system says.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<bool>;

    /// A descriptor that becomes readable when something has come, for a thread that waits for other things as well. None where there is none such: then another
    /// thread waits here.
    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes a call, by its number: REQ frames are counted from 1. False where the manager has taken it back; then it is passed over.
    fn claim(&self, number: u64) -> bool {
        let _ = number;
        true
    }

    /// How many bytes of answers may gather before they are sent, while more calls wait: the more, the less each one costs; the fewer, the
    /// sooner the manager has something to do. By default as many as go in one system call.
    fn gather(&self) -> usize {
        64 << 10
    }

    /// Sends all of these bytes; waits where the manager is slow.
    ///
    /// # Errors
    /// What the operating system says; the manager is gone.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// Sends a header and its payload, which is large. The same as to send one after the other, at less cost where the link knows a way.
    ///
    /// # Errors
    /// As [`send`](WorkerLink::send).
    fn send_frame(&self, header: &[u8], payload: &[u8]) -> io::Result<()> {
        self.send(header)?;
        self.send(payload)
    }
}

/// A link over one or two blocking descriptors: a socket, or a pair of pipes.
#[derive(Debug)]
pub struct FdLink {
    read: OwnedFd,
    write: Option<OwnedFd>,
}

impl FdLink {
    /// Over a connected stream socket.
    pub fn socket(socket: OwnedFd) -> Self {
        FdLink { read: socket, write: None }
    }

    /// Over two pipes.
    pub fn pipes(read: OwnedFd, write: OwnedFd) -> Self {
        FdLink { read, write: Some(write) }
    }
}

impl WorkerLink for FdLink {
    fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        buffer.reserve(READ_CHUNK.saturating_sub(buffer.capacity() - buffer.len()).min(SHORT));
        loop {
            match rustix::io::read(&self.read, rustix::buffer::spare_capacity(buffer)) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            match poll(&mut [PollFd::new(&self.read, PollFlags::IN)], left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.read.as_fd())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.send_frame(&[], bytes)
    }

    fn send_frame(&self, mut header: &[u8], mut payload: &[u8]) -> io::Result<()> {
        let write = self.write.as_ref().unwrap_or(&self.read);
        while !header.is_empty() || !payload.is_empty() {
            let written = match header {
                [] => rustix::io::write(write, payload),
                header => rustix::io::writev(write, &[IoSlice::new(header), IoSlice::new(payload)]),
            };
            match written {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let of_header = count.min(header.len());
                    header = &header[of_header..];
                    payload = &payload[count - of_header..];
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
