//! What a process of a service prints, byte for byte, for those who are attached to it.
//!
//! Nobody waits for them: what one of them does not read in time is dropped for that one, the oldest first, and counted.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::driver::exec::OutputStream;

/// So many may be attached to one process of a service: each has a queue of its own.
pub const MOST_ATTACHED: usize = 64;

/// So many bytes wait for one who is slow: as much as is read of a service at once, and the same again.
const MOST_WAITING: usize = 512 << 10;

/// In so many pieces, for each costs memory beside its bytes.
const MOST_PIECES: usize = 1024;

/// What comes is added to the piece before it up to so many bytes.
const PIECE: usize = 64 << 10;

/// What a process printed, as it came: a part of a line, or many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// Where it printed. A terminal has standard output alone.
    pub stream: OutputStream,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// So many bytes that went before these were dropped, because whoever reads was too slow.
    pub missed: u64,
}

/// All who are attached to one process of a service.
#[derive(Default)]
pub(super) struct Taps(Mutex<Vec<Arc<Tap>>>);

/// What waits for one of them.
#[derive(Default)]
struct Tap {
    queue: Mutex<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Printed>,
    bytes: usize,
    missed: u64,
    is_over: bool,
}

/// Where one who is attached reads.
pub(crate) struct TapReader(Arc<Tap>);

impl Taps {
    /// One more. None where there are too many.
    pub(super) fn open(&self) -> Option<TapReader> {
        let mut taps = self.lock();
        // Those who have gone hold theirs no more.
        taps.retain(|tap| Arc::strong_count(tap) > 1);
        if taps.len() >= MOST_ATTACHED {
            return None;
        }
        let tap = Arc::new(Tap::default());
        taps.push(tap.clone());
        Some(TapReader(tap))
    }

    /// Takes what was read.
    pub(super) fn push(&self, stream: OutputStream, bytes: &[u8]) {
        let mut taps = self.lock();
        if taps.is_empty() || bytes.is_empty() {
            return;
        }
        taps.retain(|tap| Arc::strong_count(tap) > 1);
        for tap in &*taps {
            tap.lock().push(stream, bytes);
            tap.more.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tap>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for tap in &*self.lock() {
            tap.lock().is_over = true;
            tap.more.notify_one();
        }
    }
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.pieces.back_mut() {
            Some(last) if last.stream == stream && last.bytes.len() + bytes.len() <= PIECE => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => self.pieces.push_back(Printed { stream, bytes: bytes.to_vec(), missed: 0 }),
        }
        while (self.bytes > MOST_WAITING || self.pieces.len() > MOST_PIECES)
            && self.pieces.len() > 1
            && let Some(oldest) = self.pieces.pop_front()
        {
            self.bytes -= oldest.bytes.len();
            self.missed += oldest.bytes.len() as u64;
        }
    }

    fn pop(&mut self) -> Option<Printed> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.bytes.len();
        Some(Printed { missed: std::mem::take(&mut self.missed), ..piece })
    }
}

impl TapReader {
    /// What has come. None once there is no such service any more and all was read. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Printed> {
        loop {
            let is_over = {
                let mut queue = self.0.lock();
                if let Some(piece) = queue.pop() {
                    return Some(piece);
                }
                queue.is_over
            };
            if is_over {
                return None;
            }
            self.0.more.notified().await;
        }
    }

    /// The same, where nothing is waited for.
    pub(crate) fn take(&mut self) -> Option<Printed> {
        self.0.lock().pop()
    }
}

impl fmt::Debug for TapReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapReader").field("bytes", &self.0.lock().bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_is_slow_misses_the_oldest_and_is_told() {
        let taps = Taps::default();
        let (mut slow, mut quick) = (taps.open().unwrap(), taps.open().unwrap());
        let mut read = 0;
        for n in 0..100_u8 {
            taps.push(OutputStream::Stdout, &[n; 10_000]);
            while let Some(piece) = quick.take() {
                assert_eq!(piece.missed, 0);
                read += piece.bytes.len();
            }
        }
        assert_eq!(read, 1_000_000);
        let (mut bytes, mut missed, mut last) = (0, 0, Vec::new());
        while let Some(piece) = slow.take() {
            assert!(piece.missed == 0 || bytes == 0, "they are missing before all that is left");
            bytes += piece.bytes.len();
            missed += piece.missed;
            last = piece.bytes;
        }
        assert!(bytes <= MOST_WAITING && missed > 0);
        assert_eq!(bytes as u64 + missed, 1_000_000);
        assert_eq!(last.last(), Some(&99));
    }

    #[test]
    fn pieces_are_bounded_as_bytes_are() {
        let taps = Taps::default();
        let mut reader = taps.open().unwrap();
        for _ in 0..MOST_PIECES {
            taps.push(OutputStream::Stdout, b"a");
            taps.push(OutputStream::Stderr, b"b");
        }
        let first = reader.take().unwrap();
        assert_eq!((first.stream, first.missed), (OutputStream::Stdout, MOST_PIECES as u64));
        // Of one stream they go together.
        let mut reader = taps.open().unwrap();
        for _ in 0..3 {
            taps.push(OutputStream::Stdout, b"a");
        }
        assert_eq!(reader.take().unwrap().bytes, b"aaa");
        assert_eq!(reader.take(), None);
    }

    #[test]
    fn those_who_have_gone_make_room() {
        let taps = Taps::default();
        let mut all: Vec<_> = (0..MOST_ATTACHED).map(|_| taps.open().unwrap()).collect();
        assert!(taps.open().is_none());
        all.pop();
        assert!(taps.open().is_some());
    }
}
