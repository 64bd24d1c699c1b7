//! The worker's half of a link.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pm_core::worker::link::WorkerLink;
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::thread::futex;

use crate::bell::{Rung, Sleep};
use crate::claims;
use crate::memory::{Field, Mapping, Part, closed};
use crate::ring::{Consumer, NO_CPU, Producer, Words};
use crate::spin::{Spin, Spinner, Wake, is_elsewhere, site};

/// Bytes of answers that gather.
const GATHER: usize = 4 << 10;

/// The worker's half of a link.
#[derive(Debug)]
pub(crate) struct ShmWorker {
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    claims: Part,
    shared: Shared,
    /// The manager sees its end as the worker's.
    _life: OwnedFd,
}

#[derive(Debug)]
struct Shared {
    ours: Arc<Mapping>,
    theirs: Arc<Mapping>,
    /// The manager's eventfd.
    bell: OwnedFd,
    /// The processor on which the manager wrote the last chunk.
    peer_cpu: AtomicU32,
}

#[derive(Debug)]
struct Reader {
    consumer: Consumer<Part>,
    rung: Rung,
    sleep: Sleep,
    spin: Spin,
}

#[derive(Debug)]
struct Writer {
    producer: Producer<Part>,
    rung: Rung,
    /// Something was written for which the manager may have to be woken.
    is_silent: bool,
    sleep: Sleep,
}

impl ShmWorker {
    /// # Errors
    /// `InvalidData` where the manager says nothing that makes sense of how to wait.
    pub(crate) fn new(ours: Arc<Mapping>, theirs: Arc<Mapping>, bell: OwnedFd, life: OwnedFd) -> io::Result<Self> {
        let word = theirs.field(Field::Wake).load(Ordering::Relaxed);
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, format!("a way to wait of the number {word}"));
        let wake = Wake::from_word(word).ok_or_else(unknown)?;
        let may_spin = theirs.field(Field::MaySpin).load(Ordering::Relaxed) != 0;
        let reader = Reader {
            consumer: Consumer::new(Part::ring(&theirs), Part::field(&ours, Field::Read)),
            rung: Rung::default(),
            sleep: Sleep::default(),
            spin: Spin::new(wake, Spinner::Worker(may_spin)),
        };
        let writer = Writer {
            producer: Producer::new(Part::ring(&ours), Part::field(&theirs, Field::Read)),
            rung: Rung::default(),
            is_silent: false,
            sleep: Sleep::default(),
        };
        let claims = Part::claims(&ours);
        let shared = Shared { ours, theirs, bell, peer_cpu: AtomicU32::new(NO_CPU) };
        Ok(ShmWorker { reader: Mutex::new(reader), writer: Mutex::new(writer), claims, shared, _life: life })
    }
}

impl Shared {
    fn ring_manager(&self) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.bell, &1_u64.to_ne_bytes()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn has_closed(&self, side: u64) -> bool {
        let closed = self.theirs.field(Field::Closed).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        closed & side != 0
    }

    /// Sleeps until the manager rings, unless it has since `bell` was read. False where the time is over.
    fn sleep(&self, bell: u32, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
        match futex::wait(self.theirs.bell(), futex::Flags::empty(), bell, timeout.as_ref()) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(Errno::TIMEDOUT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn bell(&self) -> u32 {
        let bell = self.theirs.bell().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        bell
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    fn give_room(&mut self, shared: &Shared) -> io::Result<()> {
        if self.consumer.publish() && self.rung.is_due(shared.theirs.field(Field::AsleepForRoom)) {
            shared.ring_manager()?;
        }
        Ok(())
    }

    /// Waits for a chunk, or the end. False where the time is over.
    fn wait(&mut self, shared: &Shared, timeout: Option<Duration>) -> io::Result<bool> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let peer = shared.peer_cpu.load(Ordering::Relaxed);
            let Reader { consumer, spin, .. } = self;
            if spin.until(peer, || consumer.has_chunk()) {
                return Ok(true);
            }
            // An attendant, which waits for so long and no longer, is not the one that calls come to.
            let goes_on = timeout.is_none() && spin.wake() == Wake::Busy && is_elsewhere(peer);
            self.give_room(shared)?;
            if !goes_on || shared.has_closed(closed::SENDING) {
                break;
            }
        }
        loop {
            let bell = shared.bell();
            self.sleep.renew();
            self.sleep.begin(shared.ours.field(Field::AsleepForNews));
            if self.consumer.has_chunk() || shared.has_closed(closed::SENDING) {
                break;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                self.sleep.end(shared.ours.field(Field::AsleepForNews));
                return Ok(false);
            }
            shared.sleep(bell, left)?;
        }
        self.sleep.end(shared.ours.field(Field::AsleepForNews));
        Ok(true)
    }
}

impl WorkerLink for ShmWorker {
    fn recv(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut guard = lock(&self.reader);
        let reader = &mut *guard;
        loop {
            // The order matters: what was sent before the end is there once the end is seen.
            let is_over = self.shared.has_closed(closed::SENDING);
            if let Some(chunk) = reader.consumer.read(buffer)? {
                self.shared.peer_cpu.store(chunk.cpu, Ordering::Relaxed);
                if reader.consumer.should_publish() {
                    reader.give_room(&self.shared)?;
                }
                return Ok(chunk.length);
            }
            if is_over {
                return Ok(0);
            }
            reader.wait(&self.shared, None)?;
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        lock(&self.reader).wait(&self.shared, timeout)
    }

    fn gather(&self) -> usize {
        GATHER
    }

    fn claim(&self, number: u64) -> bool {
        claims::take(self.claims.words(), number)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.send_frame(&[], bytes)
    }

    fn send_frame(&self, header: &[u8], payload: &[u8]) -> io::Result<()> {
        let mut guard = lock(&self.writer);
        for part in [header, payload] {
            guard.write(&self.shared, part)?;
        }
        guard.ring(&self.shared)
    }
}

impl Writer {
    /// Writes all of these bytes; waits for room. On the processor of the manager that is not woken before there is none: it would only get in the
    /// way of the rest.
    fn write(&mut self, shared: &Shared, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if shared.has_closed(closed::READING) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let site = site(shared.peer_cpu.load(Ordering::Relaxed));
            let written = self.producer.write(bytes, site)?;
            bytes = &bytes[written..];
            self.is_silent |= written > 0;
            if written == 0 || site.is_far {
                self.ring(shared)?;
            }
            if written > 0 {
                continue;
            }
            let bell = shared.bell();
            self.sleep.renew();
            self.sleep.begin(shared.ours.field(Field::AsleepForRoom));
            if !self.producer.has_room()? && !shared.has_closed(closed::READING) {
                shared.sleep(bell, None)?;
            }
            self.sleep.end(shared.ours.field(Field::AsleepForRoom));
        }
        Ok(())
    }

    /// Wakes the manager, if it sleeps and something was written since it was woken.
    fn ring(&mut self, shared: &Shared) -> io::Result<()> {
        if std::mem::take(&mut self.is_silent) && self.rung.is_due(shared.theirs.field(Field::AsleepForNews)) {
            shared.ring_manager()?;
        }
        Ok(())
    }
}

impl Drop for ShmWorker {
    fn drop(&mut self) {
        self.shared.ours.field(Field::Closed).fetch_or(closed::SENDING | closed::READING, Ordering::SeqCst);
    }
}
