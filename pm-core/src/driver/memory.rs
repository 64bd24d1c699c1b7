//! A link in memory: the transport of in-process mode and of tests.
//!
//! Two bounded pipes, each with an async end for the manager and a blocking end for the worker.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framed::FramedLink;
use crate::transport::{Accept, Connect, Identity, Offer, Transport, TransportError};
use crate::worker::link::WorkerLink;

/// What one direction holds, like the kernel's pipes and sockets: 64 KiB.
const CAPACITY: usize = 64 << 10;

/// The variable by which the worker's half is found.
const VARIABLE: &str = "PM_MEMORY_LINK";

/// The manager's half of a link in memory.
pub type MemoryLink = FramedLink<ReadEnd, WriteEnd>;

/// Links in memory. The worker is a thread of the same process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory;

/// Waits for nothing: both halves exist from the start.
#[derive(Debug)]
pub struct MemoryAccept(MemoryLink);

/// The worker's half is forgotten with this, where nobody took it.
#[derive(Debug)]
struct Offered(u64);

impl Drop for Offered {
    fn drop(&mut self) {
        let taken = offers().remove(&self.0);
        drop(taken);
    }
}

/// A pair of halves.
pub(crate) fn pair() -> (MemoryLink, MemoryWorker) {
    pair_of(None)
}

fn pair_of(offered: Option<Offered>) -> (MemoryLink, MemoryWorker) {
    let (to_worker, to_manager) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
    let link = FramedLink::new(ReadEnd(to_manager.clone(), offered), WriteEnd(to_worker.clone()));
    (link, MemoryWorker { read: to_worker, write: to_manager })
}

impl Transport for Memory {
    type Link = MemoryLink;
    type Accept = MemoryAccept;

    fn scheme(&self) -> &'static str {
        "memory"
    }

    fn offer(&self) -> Result<(Offer, MemoryAccept), TransportError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (link, worker) = pair_of(Some(Offered(number)));
        offers().insert(number, worker);
        let offer = Offer { env: vec![(VARIABLE.to_string(), number.to_string().into())], ..Offer::default() };
        Ok((offer, MemoryAccept(link)))
    }
}

impl Accept<MemoryLink> for MemoryAccept {
    fn accept(self, _: &Identity) -> impl Future<Output = Result<MemoryLink, TransportError>> + Send {
        std::future::ready(Ok(self.0))
    }
}

impl Memory {
    /// The worker's half of an offer, which can be taken once.
    pub fn take(offer: &Offer) -> Option<MemoryWorker> {
        let (_, number) = offer.env.iter().find(|(name, _)| name == VARIABLE)?;
        offers().remove(&number.to_str()?.parse().ok()?)
    }
}

fn offers() -> MutexGuard<'static, HashMap<u64, MemoryWorker>> {
    static OFFERS: OnceLock<Mutex<HashMap<u64, MemoryWorker>>> = OnceLock::new();
    OFFERS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory is not shared between processes, so no process finds such a link in its environment.
impl Connect for Memory {
    fn scheme(&self) -> &'static str {
        "memory"
    }

    fn connect(&self) -> io::Result<Box<dyn WorkerLink>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a link in memory does not reach into another process"))
    }
}

/// The worker's half of a link in memory.
#[derive(Debug)]
pub struct MemoryWorker {
    read: Arc<Pipe>,
    write: Arc<Pipe>,
}

/// The manager's reading end. The offer of the worker's half stands as long as it.
#[derive(Debug)]
pub struct ReadEnd(Arc<Pipe>, #[expect(dead_code, reason = "it is there for its drop")] Option<Offered>);

/// The manager's writing end.
#[derive(Debug)]
pub struct WriteEnd(Arc<Pipe>);

#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: VecDeque<u8>,
    closed: bool,
    waker: Option<Waker>,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends an operation that made bytes or room.
    fn moved(&self, mut state: MutexGuard<'_, PipeState>) {
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl AsyncRead for ReadEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        if state.bytes.is_empty() && !state.closed {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = into.remaining().min(state.bytes.len());
        let (first, second) = state.bytes.as_slices();
        let split = count.min(first.len());
        into.put_slice(&first[..split]);
        into.put_slice(&second[..count - split]);
        state.bytes.drain(..count);
        self.0.moved(state);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        if state.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = from.len().min(CAPACITY - state.bytes.len());
        if count == 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes.extend(&from[..count]);
        self.0.moved(state);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for MemoryWorker {
    fn drop(&mut self) {
        self.read.close();
        self.write.close();
    }
}

impl WorkerLink for MemoryWorker {
    fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut state = self.read.state();
        while state.bytes.is_empty() && !state.closed {
            state = self.read.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let count = state.bytes.len();
        let (first, second) = state.bytes.as_slices();
        buffer.extend_from_slice(first);
        buffer.extend_from_slice(second);
        state.bytes.clear();
        self.read.moved(state);
        Ok(count)
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.read.state();
        while state.bytes.is_empty() && !state.closed {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.read.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Ok(false),
                Some(left) => self.read.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        Ok(true)
    }

    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut state = self.write.state();
            while state.bytes.len() >= CAPACITY && !state.closed {
                state = self.write.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let count = bytes.len().min(CAPACITY - state.bytes.len());
            state.bytes.extend(&bytes[..count]);
            bytes = &bytes[count..];
            self.write.moved(state);
        }
        Ok(())
    }
}
