//! The memory of a link: two sealed memfds, and their mappings.
//!
//! The manager makes both and gives them to the worker. Nothing has a name, so nothing stale can be found. Each begins with a page of
//! words ([`Field`]); then come the [claims](crate::claims), of which those of the worker's memory are used, by both; then the ring. What only the
//! manager writes lies in one, which its seals let nobody else write; what the worker writes lies in the other. The seals also keep both from
//! shrinking, so no access can ever fault.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::claims::CLAIMS;
use crate::ring::{LINE, MAX_RING, Words};

/// Bytes of the ring of one direction. Two large socket buffers; a larger one would leave the second-level cache.
pub(crate) const RING: usize = 256 << 10;

/// Bytes before the claims.
const PAGE: usize = 4096;

/// Bytes before the ring.
const HEAD: usize = PAGE + CLAIMS * 8;

/// Bytes of a memfd.
pub(crate) const SIZE: usize = HEAD + RING;

const _: () = assert!(RING.is_power_of_two() && RING <= MAX_RING && HEAD.is_multiple_of(LINE));

/// The words of the first page, each on a line of its own.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(crate) enum Field {
    /// In the manager's memory: counts how often the worker was woken. The worker waits on it, as a futex.
    Bell = 0,
    /// How far this side has read from the peer's ring, in lines.
    Read = 1,
    /// Not zero while this side sleeps and waits for chunks; another number each time.
    AsleepForNews = 2,
    /// The same, while it waits for room in its own ring.
    AsleepForRoom = 3,
    /// See [`closed`].
    Closed = 4,
    /// In the manager's memory, and the same all along: how both wait, as [`Wake`](crate::Wake) says it in a word.
    Wake = 5,
    /// The same: not zero where the worker may spin for long.
    MaySpin = 6,
}

/// Bits of [`Field::Closed`].
pub(crate) mod closed {
    /// This side sends nothing more.
    pub(crate) const SENDING: u64 = 1;
    /// This side reads nothing more.
    pub(crate) const READING: u64 = 2;
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The manager writes, the worker reads.
    Manager,
    /// The worker writes, the manager reads; the claims in it are written by both.
    Worker,
}

impl Owner {
    fn seals(self) -> SealFlags {
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        match self {
            // Mappings that exist stay writable: the manager's own.
            Owner::Manager => all | SealFlags::FUTURE_WRITE,
            Owner::Worker => all,
        }
    }
}

/// A mapping of such a memfd.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
}

// SAFETY: The mapping is memory like any other, used only through atomics.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

/// Makes the memory of one direction: the descriptor for the worker, and the manager's mapping.
pub(crate) fn create(owner: Owner) -> io::Result<(OwnedFd, Arc<Mapping>)> {
    let fd = memfd_create(c"pm-shm", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, SIZE as u64)?;
    // In the worker's memory it writes the claims.
    let mapping = map(fd.as_fd(), true)?;
    fcntl_add_seals(&fd, owner.seals())?;
    Ok((fd, Arc::new(mapping)))
}

/// Maps the memory that a manager made, on the worker's side.
///
/// # Errors
/// `InvalidData` where it is not what [`create`] makes: another size, or without its seals.
pub(crate) fn open(fd: BorrowedFd<'_>, owner: Owner) -> io::Result<Arc<Mapping>> {
    let seals = fcntl_get_seals(fd)?;
    let size = fstat(fd)?.st_size;
    if size != SIZE as i64 || !seals.contains(owner.seals()) {
        let what = format!(
            "a memfd of {size} bytes with the seals {seals:?}; {SIZE} bytes and {:?} are needed",
            owner.seals()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    map(fd, owner == Owner::Worker).map(Arc::new)
}

fn map(fd: BorrowedFd<'_>, writable: bool) -> io::Result<Mapping> {
    let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    // SAFETY: A new mapping at an address of the kernel's choice touches no memory of this process.
    let start = unsafe { mmap(ptr::null_mut(), SIZE, protection, MapFlags::SHARED, fd, 0) }?;
    let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
    Ok(Mapping { start })
}

impl Mapping {
    /// A word of the first page. The side that does not own the memory must only load it.
    pub(crate) fn field(&self, field: Field) -> &AtomicU64 {
        &self.words()[field as usize * (LINE / 8)]
    }

    /// [`Field::Bell`] as a futex.
    pub(crate) fn bell(&self) -> &AtomicU32 {
        // SAFETY: The mapping has SIZE bytes for as long as `self` lives, it begins at a page, and it is only ever accessed by atomics.
        // Nobody accesses the bell as a 64-bit word.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast::<u32>().add(Field::Bell as usize * (LINE / 4))) }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: The mapping has SIZE bytes, aligned to a page, for as long as `self` lives: the seals keep the file from shrinking. All
        // of it is initialized (a memfd is made of zeros) and only ever accessed by atomics, here and in the peer; AtomicU64
        // has the layout of u64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<AtomicU64>(), SIZE / 8) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping was made by `map` with this size, and no reference into it outlives this value.
        let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), SIZE) };
    }
}

/// Words of a mapping that belong together, for the ring.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    mapping: Arc<Mapping>,
    start: usize,
    words: usize,
}

impl Part {
    /// The ring.
    pub(crate) fn ring(mapping: &Arc<Mapping>) -> Self {
        Part { mapping: mapping.clone(), start: HEAD / 8, words: RING / 8 }
    }

    /// The claims, in the memory of the worker.
    pub(crate) fn claims(mapping: &Arc<Mapping>) -> Self {
        Part { mapping: mapping.clone(), start: PAGE / 8, words: CLAIMS }
    }

    /// One word of the first page.
    pub(crate) fn field(mapping: &Arc<Mapping>, field: Field) -> Self {
        Part { mapping: mapping.clone(), start: field as usize * (LINE / 8), words: 1 }
    }
}

impl Words for Part {
    fn words(&self) -> &[AtomicU64] {
        &self.mapping.words()[self.start..self.start + self.words]
    }
}
