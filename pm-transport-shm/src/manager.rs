//! The manager's half of a link.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use pm_core::driver::framed::FramedTx;
use pm_core::machine::frame::{Decoder, Frame, Header, MAX_PAYLOAD};
use pm_core::transport::{Link, LinkError, LinkRx, LinkTx};
use rustix::thread::futex;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, Interest};
use tokio::task::coop;

use crate::bell::{Rung, Sleep};
use crate::claims;
use crate::memory::{Field, Mapping, Part, closed};
use crate::ring::{Consumer, NO_CPU, Producer, Words};
use crate::spin::{Spin, Spinner, Token, WORKERS, Wake, site};

/// What one fill takes in, but for the rest of its last chunk.
const FILL: usize = 64 << 10;

/// The manager's half of a link.
#[derive(Debug)]
pub struct ShmLink {
    shared: Arc<Shared>,
}

/// What both halves of the half need.
#[derive(Debug)]
struct Shared {
    memory: Memory,
    /// The worker writes it where the manager sleeps. The manager never reads it: each write is an event.
    bell: AsyncFd<OwnedFd>,
    /// A socket whose other end the worker holds until it ends.
    life: AsyncFd<OwnedFd>,
    /// The processor on which the worker ran when it wrote the last chunk.
    peer_cpu: AtomicU32,
}

/// Both mappings, as the manager holds them. When they are dropped, wherever the link has come to by then, the worker sees its end.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What the manager writes.
    pub(crate) ours: Arc<Mapping>,
    /// What the worker writes.
    pub(crate) theirs: Arc<Mapping>,
    wake: Wake,
    /// The worker's leave to spin, where there was one left.
    _token: Option<Token>,
}

impl Memory {
    pub(crate) fn new(ours: Arc<Mapping>, theirs: Arc<Mapping>, wake: Wake) -> Self {
        let token = WORKERS.take();
        ours.field(Field::Wake).store(wake.to_word(), Ordering::Relaxed);
        ours.field(Field::MaySpin).store(token.is_some().into(), Ordering::Relaxed);
        Memory { ours, theirs, wake, _token: token }
    }

    fn ring_worker(&self) {
        let bell = self.ours.bell();
        bell.fetch_add(1, Ordering::SeqCst);
        // Nobody may wait; then the new value keeps the worker from sleeping.
        let _ = futex::wake(bell, futex::Flags::empty(), i32::MAX as u32);
    }

    fn close(&self, side: u64) {
        self.ours.field(Field::Closed).fetch_or(side, Ordering::SeqCst);
        self.ring_worker();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.close(closed::SENDING | closed::READING);
    }
}

/// The sending half.
#[derive(Debug)]
pub struct ShmTx {
    frames: FramedTx<ShmWriter>,
    claims: Part,
}

impl LinkTx for ShmTx {
    fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
        self.frames.push(header, payload)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.frames.poll_flush(cx)
    }

    fn reclaim(&mut self, number: u64) -> Option<bool> {
        Some(claims::recall(self.claims.words(), number))
    }
}

impl ShmLink {
    pub(crate) fn new(memory: Memory, bell: OwnedFd, life: OwnedFd) -> io::Result<Self> {
        Ok(ShmLink {
            shared: Arc::new(Shared {
                memory,
                bell: events(bell)?,
                life: events(life)?,
                peer_cpu: AtomicU32::new(NO_CPU),
            }),
        })
    }
}

/// Both halves wait on it: the reader for readability, the writer for writability, so that each has a waker of its own. Every
/// event brings both.
#[expect(unsafe_code, reason = "tokio cannot know that an OwnedFd stays open")]
fn events(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: An OwnedFd is open for as long as it lives, and always the same descriptor; it goes where the AsyncFd goes.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
    registered.map_err(|error| error.into_parts().1)
}

impl Link for ShmLink {
    type Tx = ShmTx;
    type Rx = ShmRx;

    fn split(self) -> (ShmTx, ShmRx) {
        let shared = self.shared;
        let producer = Producer::new(Part::ring(&shared.memory.ours), Part::field(&shared.memory.theirs, Field::Read));
        let consumer = Consumer::new(Part::ring(&shared.memory.theirs), Part::field(&shared.memory.ours, Field::Read));
        let claims = Part::claims(&shared.memory.theirs);
        let writer = ShmWriter {
            producer,
            rung: Rung::default(),
            is_silent: false,
            sleep: Sleep::default(),
            shared: shared.clone(),
        };
        let rx = ShmRx {
            consumer,
            decoder: Decoder::new(MAX_PAYLOAD),
            rung: Rung::default(),
            sleep: Sleep::default(),
            spin: Spin::new(shared.memory.wake, Spinner::Manager),
            is_over: false,
            shared,
        };
        (ShmTx { frames: FramedTx::new(writer), claims }, rx)
    }
}

impl Shared {
    /// Whether the worker has closed its half, or its process has ended.
    fn poll_over(&self, cx: &mut Context<'_>, is_reader: bool) -> Poll<io::Result<()>> {
        // The worker never writes here, so whatever is ready is the end.
        match is_reader {
            true => self.life.poll_read_ready(cx).map_ok(drop),
            false => {
                // A socket is writable all along; its end is an event all the same.
                loop {
                    match self.life.poll_write_ready(cx)? {
                        Poll::Ready(guard) if guard.ready().is_write_closed() => return Poll::Ready(Ok(())),
                        Poll::Ready(mut guard) => guard.clear_ready(),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
    }
}

/// The writing end, a byte stream.
#[derive(Debug)]
struct ShmWriter {
    producer: Producer<Part>,
    rung: Rung,
    /// Something was written for which the worker may have to be woken: on the same processor it would only get in the way of the rest.
    is_silent: bool,
    sleep: Sleep,
    shared: Arc<Shared>,
}

impl ShmWriter {
    /// Wakes the worker, if it sleeps and something was written since it was woken.
    fn ring(&mut self) {
        let memory = &self.shared.memory;
        if std::mem::take(&mut self.is_silent) && self.rung.is_due(memory.theirs.field(Field::AsleepForNews)) {
            memory.ring_worker();
        }
    }
}

impl AsyncWrite for ShmWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let writer = self.get_mut();
        loop {
            let ShmWriter { producer, sleep, shared, .. } = &mut *writer;
            if shared.memory.theirs.field(Field::Closed).load(Ordering::Relaxed) & closed::READING != 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let site = site(shared.peer_cpu.load(Ordering::Relaxed));
            let written = producer.write(bytes, site)?;
            if written > 0 {
                sleep.end(shared.memory.ours.field(Field::AsleepForRoom));
                writer.is_silent = true;
                if site.is_far {
                    writer.ring();
                }
                return Poll::Ready(Ok(written));
            }
            writer.ring();
            let ShmWriter { producer, sleep, shared, .. } = &mut *writer;
            sleep.begin(shared.memory.ours.field(Field::AsleepForRoom));
            if producer.has_room()? {
                continue;
            }
            match shared.bell.poll_write_ready(cx)? {
                Poll::Ready(mut guard) => {
                    guard.clear_ready();
                    sleep.renew();
                    continue;
                }
                Poll::Pending => {}
            }
            return match shared.poll_over(cx, false)? {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Poll::Pending => Poll::Pending,
            };
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().ring();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.memory.close(closed::SENDING);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ShmWriter {
    fn drop(&mut self) {
        self.shared.memory.close(closed::SENDING);
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct ShmRx {
    consumer: Consumer<Part>,
    decoder: Decoder,
    rung: Rung,
    sleep: Sleep,
    spin: Spin,
    /// The worker has ended: what lies in the ring is all there will be.
    is_over: bool,
    shared: Arc<Shared>,
}

impl ShmRx {
    /// Takes in the chunks that are there, up to [`FILL`].
    fn take(&mut self) -> Result<bool, LinkError> {
        let buffer = self.decoder.buffer();
        let before = buffer.len();
        while buffer.len() - before < FILL {
            match self.consumer.read(buffer) {
                Ok(Some(chunk)) => self.shared.peer_cpu.store(chunk.cpu, Ordering::Relaxed),
                Ok(None) => break,
                // What came before it counts; the next one who looks meets it again.
                Err(_) if buffer.len() > before => break,
                Err(corrupt) => return Err(LinkError::Corrupt(corrupt.what())),
            }
        }
        let has_come = buffer.len() > before;
        if has_come {
            self.sleep.end(self.shared.memory.ours.field(Field::AsleepForNews));
            if self.consumer.should_publish() {
                self.give_room();
            }
        }
        Ok(has_come)
    }

    fn give_room(&mut self) {
        if self.consumer.publish() && self.rung.is_due(self.shared.memory.theirs.field(Field::AsleepForRoom)) {
            self.shared.memory.ring_worker();
        }
    }
}

impl LinkRx for ShmRx {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        // A worker that never stops writing must not keep this thread from other tasks.
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            if self.take()? {
                budget.made_progress();
                return Poll::Ready(Ok(()));
            }
            if self.is_over {
                self.decoder.finish()?;
                return Poll::Ready(Err(LinkError::Closed));
            }
            self.give_room();
            if self.spin.wake() == Wake::Busy {
                // Not asleep but last in line: others of this runtime go first.
                cx.waker().wake_by_ref();
            } else {
                self.sleep.begin(self.shared.memory.ours.field(Field::AsleepForNews));
            }
            if self.consumer.has_chunk() {
                continue;
            }
            if let Poll::Ready(mut guard) = self.shared.bell.poll_read_ready(cx).map_err(LinkError::from)? {
                guard.clear_ready();
                self.sleep.renew();
                continue;
            }
            if self.shared.poll_over(cx, true).map_err(LinkError::from)?.is_pending() {
                return Poll::Pending;
            }
            self.is_over = true;
        }
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        Ok(self.decoder.next()?)
    }

    fn unread(&self) -> &[u8] {
        self.decoder.unread()
    }

    fn is_hot(&self) -> bool {
        self.spin.wake() != Wake::Park
    }

    fn spin(&mut self) -> bool {
        self.sleep.end(self.shared.memory.ours.field(Field::AsleepForNews));
        let peer = self.shared.peer_cpu.load(Ordering::Relaxed);
        self.spin.until(peer, || self.consumer.has_chunk())
    }

    fn try_fill(&mut self) -> Result<bool, LinkError> {
        self.take()
    }

    fn expect_arm(&mut self) {
        if self.spin.wake() != Wake::Busy {
            self.sleep.announce(self.shared.memory.ours.field(Field::AsleepForNews));
        }
    }

    fn arm(&mut self) -> bool {
        self.give_room();
        // The task of a busy link never sleeps.
        if self.spin.wake() != Wake::Busy {
            self.sleep.begin(self.shared.memory.ours.field(Field::AsleepForNews));
        }
        self.consumer.has_chunk()
    }
}

impl Drop for ShmRx {
    fn drop(&mut self) {
        self.shared.memory.close(closed::READING);
    }
}
