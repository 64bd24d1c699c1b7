//! What a worker accepts as its link.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::manager::Memory;
use crate::memory::{self, Owner, SIZE};
use crate::{Wake, connect_over, send_descriptors};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
}

fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// A memory file of this size with these seals.
fn file(size: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, size).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn connect(requests: BorrowedFd<'_>, responses: BorrowedFd<'_>) -> Result<(), ErrorKind> {
    let (ours, theirs) = pair();
    send_descriptors(ours.as_fd(), &[requests, responses, bell().as_fd()]).unwrap();
    connect_over(theirs).map(drop).map_err(|error| error.kind())
}

#[test]
fn memory_that_is_not_sealed_or_has_another_size_is_refused() {
    let kept = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let (requests, ours) = memory::create(Owner::Manager).unwrap();
    let (responses, theirs) = memory::create(Owner::Worker).unwrap();
    let (requests, responses) = (requests.as_fd(), responses.as_fd());
    assert_eq!(connect(requests, responses), Err(ErrorKind::InvalidData), "it does not say how to wait");
    let _memory = Memory::new(ours, theirs, Wake::Adaptive);
    assert_eq!(connect(requests, responses), Ok(()));
    let size = SIZE as u64;
    for wrong in [
        file(size, SealFlags::empty()),
        file(size, SealFlags::SHRINK),
        file(size, SealFlags::GROW | SealFlags::SEAL | SealFlags::FUTURE_WRITE),
        file(size - 1, kept | SealFlags::FUTURE_WRITE),
        file(size + 1, kept | SealFlags::FUTURE_WRITE),
        file(0, kept | SealFlags::FUTURE_WRITE),
    ] {
        assert_eq!(connect(wrong.as_fd(), responses), Err(ErrorKind::InvalidData));
        assert_eq!(connect(requests, wrong.as_fd()), Err(ErrorKind::InvalidData));
    }
    // The manager's memory must be the manager's alone.
    assert_eq!(connect(file(size, kept).as_fd(), responses), Err(ErrorKind::InvalidData));
    // No memory file at all.
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(connect(null.as_fd(), responses).is_err());
    assert!(connect(requests, bell().as_fd()).is_err());
}

#[test]
fn the_memory_cannot_be_truncated_and_the_managers_not_written() {
    for owner in [Owner::Manager, Owner::Worker] {
        let (fd, _mapping) = memory::create(owner).unwrap();
        for size in [0, SIZE as u64 - 1, SIZE as u64 + 1] {
            assert_eq!(ftruncate(&fd, size), Err(Errno::PERM), "{owner:?} to {size}");
        }
        assert!(fcntl_add_seals(&fd, SealFlags::WRITE).is_err(), "more seals");
        let written = rustix::io::pwrite(&fd, b"x", 0);
        assert_eq!(written.is_err(), owner == Owner::Manager, "{owner:?}: {written:?}");
    }
}

#[test]
fn another_message_is_no_link() {
    let (ours, theirs) = pair();
    rustix::io::write(&ours, b"pm-shm 9").unwrap();
    assert_eq!(connect_over(theirs).map(drop).unwrap_err().kind(), ErrorKind::InvalidData);
    let (ours, theirs) = pair();
    rustix::io::write(&ours, crate::LAYOUT).unwrap();
    let error = connect_over(theirs).map(drop).unwrap_err();
    assert!(error.to_string().contains("0 descriptors"), "{error}");
    let (ours, theirs) = pair();
    drop(ours);
    assert!(connect_over(theirs).is_err());
}
