//! The worker's outbox: answers that are given and not yet written to the link, in memory that outlives the worker.
//!
//! A system call for each answer would cost more than a small call itself. A worker that gathered its answers in memory of its own
//! would lose them when the next call kills it, and calls that were done would count as lost. So they lie in a memfd that the manager
//! holds too: it reads the rest there after the worker's death.
//!
//! ```text
//! 0           8            16          24
//! ┌───────────┬────────────┬───────────┬────────────────────────────┐
//! │ len: u64  │ begun: u64 │ sent: u64 │ whole frames, len bytes …  │
//! └───────────┴────────────┴───────────┴────────────────────────────┘
//! ```
//!
//! `sent` is how many bytes had been put on the link since READY before these. A worker that dies between putting them there and forgetting them here leaves
//! them in both places: the manager takes no more of them from here than what has not come over the link.
//!
//! `begun` counts the calls that the worker has begun with, in the order in which they came. So a call that only lay in the socket when
//! the worker died is known not to have run, and goes to another one.
//!
//! Only the worker writes, and the manager reads only when the worker is dead. What the manager reads is hostile all the same: it
//! copies it once and takes it for frames of the link.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pread;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The three fields.
const HEADER: usize = 24;

/// What `begun` says until a worker has taken the outbox: a worker that does without leaves no word of what it has begun.
const NO_WORD: u64 = u64::MAX;

/// Where `begun` stands.
const BEGUN: usize = 8;

/// Where `sent` stands.
const SENT: usize = 16;

/// Bytes of frames. As much as a socket takes at a time; beyond it gathering saves nothing.
const CAPACITY: usize = 64 << 10;

/// An empty outbox, to be given to a worker.
///
/// # Errors
/// Where the kernel or a filter refuses a memfd; the worker then does without.
pub(crate) fn create() -> io::Result<OwnedFd> {
    let fd = memfd_create(c"pm-outbox", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, (HEADER + CAPACITY) as u64)?;
    rustix::io::pwrite(&fd, &NO_WORD.to_ne_bytes(), BEGUN as u64)?;
    Ok(fd)
}

/// What a dead worker left in its outbox.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Answers that may not have come over the link.
    pub(crate) frames: Vec<u8>,
    /// How many calls it had begun with, where it left word of that.
    pub(crate) begun: Option<u64>,
    /// Bytes that it had put on the link before them.
    pub(crate) sent: u64,
}

/// Reads it. None where it cannot be read.
pub(crate) fn left_in(fd: &OwnedFd) -> Option<Left> {
    let mut bytes = vec![0; HEADER + CAPACITY];
    let mut have = 0;
    while let Ok(count @ 1..) = pread(fd, &mut bytes[have..], have as u64) {
        have += count;
    }
    let (length, rest) = bytes[..have].split_first_chunk::<8>()?;
    let (begun, rest) = rest.split_first_chunk::<8>()?;
    let (sent, frames) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_ne_bytes(*length)).unwrap_or(usize::MAX).min(frames.len());
    let begun = Some(u64::from_ne_bytes(*begun)).filter(|begun| *begun != NO_WORD);
    Some(Left { frames: frames[..length].to_vec(), begun, sent: u64::from_ne_bytes(*sent) })
}

/// The worker's side of an outbox.
#[derive(Debug)]
pub(crate) struct Outbox {
    map: NonNull<u8>,
    length: usize,
}

// SAFETY: The mapping belongs to this value alone in this process, and is written only through `&mut self`.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Maps the outbox that this worker was given.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` where the file is no outbox.
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Self> {
        let size = rustix::fs::fstat(fd.as_fd())?.st_size;
        if size != (HEADER + CAPACITY) as i64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice touches no memory of this process.
        let map = unsafe { mmap(ptr::null_mut(), HEADER + CAPACITY, protection, MapFlags::SHARED, fd, 0) }?;
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut outbox = Outbox { map, length: 0 };
        outbox.begin(0);
        Ok(outbox)
    }

    /// Adds a frame, or gives false where it does not fit.
    pub(crate) fn add(&mut self, header: &[u8], payload: &[u8]) -> bool {
        let frame = header.len() + payload.len();
        if frame > CAPACITY - self.length {
            return false;
        }
        // SAFETY: `length + frame` is within CAPACITY, so both copies stay within the mapping, which nobody else in this
        // process refers to; the sources are other memory.
        unsafe {
            let at = self.map.as_ptr().add(HEADER + self.length);
            ptr::copy_nonoverlapping(header.as_ptr(), at, header.len());
            ptr::copy_nonoverlapping(payload.as_ptr(), at.add(header.len()), payload.len());
        }
        self.set_length(self.length + frame);
        true
    }

    /// The frames that are in it.
    pub(crate) fn frames(&self) -> &[u8] {
        // SAFETY: `length` bytes behind the header were written by `add`, within the mapping, and change only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(HEADER), self.length) }
    }

    /// Forgets the frames, which are on the link now.
    pub(crate) fn clear(&mut self) {
        let sent = self.length as u64;
        self.set_length(0);
        self.note_sent(sent);
    }

    /// So many bytes were put on the link beside those that lay here.
    pub(crate) fn note_sent(&mut self, bytes: u64) {
        debug_assert_eq!(self.length, 0, "what is here would count as sent after them");
        let sent = self.field(SENT);
        sent.store(sent.load(Ordering::Relaxed) + bytes, Ordering::Release);
    }

    /// What is put on the link counts from here on.
    pub(crate) fn begin_count(&mut self) {
        self.field(SENT).store(0, Ordering::Release);
    }

    /// Notes that the worker begins with its `number`-th call, counted from 1.
    pub(crate) fn begin(&mut self, number: u64) {
        // In the order of the program before the call's own effects. Nobody reads it before this process is dead, and all its stores are there.
        self.field(BEGUN).store(number, Ordering::Release);
    }

    fn set_length(&mut self, length: usize) {
        self.length = length;
        // The frame must be there before the length says so: whoever reads after the death of this process sees stores in
        // an order that the compiler may not change here.
        self.field(0).store(length as u64, Ordering::Release);
    }

    fn field(&self, at: usize) -> &AtomicU64 {
        // SAFETY: A mapping begins at a page, and all fields lie within its first 24 bytes at multiples of 8; in this process they
        // are only used as these atomics, for as long as `self` lives.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(at).cast()) }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // SAFETY: The mapping was made by `map` with this length, and no reference into it outlives this value.
        let _ = unsafe { munmap(self.map.as_ptr().cast::<c_void>(), HEADER + CAPACITY) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_by_the_other_side() {
        let fd = create().unwrap();
        assert_eq!(left_in(&fd), Some(Left::default()), "nobody has taken it");
        let mut outbox = Outbox::map(&fd).unwrap();
        assert!(outbox.add(b"head", b"body") && outbox.add(b"more", b""));
        assert_eq!(outbox.frames(), b"headbodymore");
        outbox.begin(3);
        assert_eq!(left_in(&fd), Some(Left { frames: b"headbodymore".to_vec(), begun: Some(3), sent: 0 }));
        outbox.clear();
        outbox.note_sent(5);
        assert_eq!(left_in(&fd), Some(Left { frames: Vec::new(), begun: Some(3), sent: 17 }));
        outbox.begin_count();
        assert!(!outbox.add(b"head", &[0; CAPACITY]), "it has room for less");
        assert!(outbox.add(b"", &[1; CAPACITY]));
        assert_eq!(left_in(&fd).unwrap().frames.len(), CAPACITY);
    }

    #[test]
    fn a_hostile_outbox_is_harmless() {
        let fd = create().unwrap();
        rustix::io::pwrite(&fd, &u64::MAX.to_ne_bytes(), 0).unwrap();
        assert_eq!(left_in(&fd).unwrap().frames.len(), CAPACITY);
        ftruncate(&fd, 26).unwrap();
        assert_eq!(left_in(&fd).unwrap().frames.len(), 2);
        ftruncate(&fd, 3).unwrap();
        assert_eq!(left_in(&fd), None);
        assert!(Outbox::map(&fd).is_err());
    }
}
