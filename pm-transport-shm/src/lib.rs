//! Links in shared memory: the hot query path.
//!
//! | module | is |
//! |---|---|
//! | `memory` | two sealed memory files: one that the manager writes, one that the worker writes |
//! | `ring` | in each a byte stream: the same frames as over pipes and sockets |
//! | `checksum` | what is written at random is found out |
//! | `bulk` | copies of whole cache lines, by non-temporal stores |
//! | `spin` | whoever waits does not sleep at once, where that pays |
//! | `claims` | whose a call is, where the manager wants it back |
//! | `bell` | whoever sleeps is rung (an eventcount): the worker by a futex, the manager by an eventfd |
//! | `manager`, `worker` | the two halves of a link |
//!
//! A query between two busy processes needs no system call. The worker finds the files by a socket, whose number `PM_LINK_FD` holds; the end of the socket
//! tells the manager of the end of the worker. Linux 5.1 or later. A worker must be a Rust program: the layout of the memory is no part of
//! the protocol.

#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("pm-transport-shm needs Linux: memfd_create with seals, futex and eventfd; choose another transport");

mod bell;
// The limit that benches hold this transport against copies with it.
#[doc(hidden)]
pub mod bulk;
mod checksum;
mod claims;
mod manager;
#[expect(unsafe_code, reason = "mappings")]
mod memory;
mod ring;
mod spin;
mod sync;
#[cfg(test)]
mod tests;
mod worker;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pm_core::transport::{Accept, Connect, Identity, LINK_FD_VARIABLE, Offer, Place, Transport, TransportError};
use pm_core::worker::inherited_link;
use pm_core::worker::link::WorkerLink;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::Signal;

use manager::Memory;
pub use manager::{ShmLink, ShmRx, ShmTx};
use memory::{Mapping, Owner};
pub use spin::Wake;

const SCHEME: &str = "shm";

/// What the message with the descriptors says: which layout this is.
const LAYOUT: &[u8] = b"pm-shm 2";

/// The transport over shared memory.
///
/// ```
/// use pm_transport_shm::{Shm, Wake};
///
/// let usual = Shm::new();
/// let frugal = Shm::new().wake(Wake::Park);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Shm {
    wake: Wake,
}

impl Shm {
    /// With [`Wake::Adaptive`].
    pub const fn new() -> Self {
        Shm { wake: Wake::Adaptive }
    }

    /// What manager and worker do while they wait for each other.
    pub const fn wake(self, wake: Wake) -> Self {
        Shm { wake }
    }
}

/// Waits for nothing: the memory is there from the start.
#[derive(Debug)]
pub struct ShmAccept {
    memory: Memory,
    bell: OwnedFd,
    life: OwnedFd,
}

impl Transport for Shm {
    type Link = ShmLink;
    type Accept = ShmAccept;

    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn offer(&self) -> Result<(Offer, ShmAccept), TransportError> {
        let (life, theirs_life) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| refused("make a pair of sockets", error.into()))?;
        rustix::io::ioctl_fionbio(&life, true).map_err(|error| refused("make a socket non-blocking", error.into()))?;
        let memory =
            |owner| memory::create(owner).map_err(|error| unsupported("memfd_create", "make a memory file", error));
        let (requests, ours) = memory(Owner::Manager)?;
        let (responses, theirs) = memory(Owner::Worker)?;
        let memory = Memory::new(ours, theirs, self.wake);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| refused("make an eventfd", error.into()))?;
        probe_futex(&memory.ours)?;
        send_descriptors(life.as_fd(), &[requests.as_fd(), responses.as_fd(), bell.as_fd()])
            .map_err(|error| refused("send descriptors", error))?;
        let offer = Offer { fds: vec![(Place::Variable(LINK_FD_VARIABLE), theirs_life)], ..Offer::default() };
        Ok((offer, ShmAccept { memory, bell, life }))
    }
}

impl Accept<ShmLink> for ShmAccept {
    async fn accept(self, _: &Identity) -> Result<ShmLink, TransportError> {
        let ShmAccept { memory, bell, life } = self;
        ShmLink::new(memory, bell, life).map_err(|error| refused("watch a descriptor", error))
    }
}

impl Connect for Shm {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn connect(&self) -> io::Result<Box<dyn WorkerLink>> {
        let life = inherited_link()?;
        // A worker that waits for its bell does not see the end of the socket. Whatever started it ends with its manager, or is it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let mut fds = [PollFd::new(&life, PollFlags::RDHUP)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0 && fds[0].revents().contains(PollFlags::HUP) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the manager has ended"));
        }
        connect_over(life)
    }
}

/// The worker's half of an offer, by its socket: for tests in one process.
///
/// # Errors
/// `InvalidData` where what comes over the socket is not what [`Shm`] sends: other descriptors, or memory files of another size or
/// without their seals.
pub fn connect_over(life: OwnedFd) -> io::Result<Box<dyn WorkerLink>> {
    let [requests, responses, bell] = receive_descriptors(life.as_fd())?;
    let theirs = memory::open(requests.as_fd(), Owner::Manager)?;
    let ours = memory::open(responses.as_fd(), Owner::Worker)?;
    worker::ShmWorker::new(ours, theirs, bell, life).map(|worker| Box::new(worker) as Box<dyn WorkerLink>)
}

fn send_descriptors(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>; 3]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space is for three.
    let _ = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    let sent = sendmsg(socket, &[IoSlice::new(LAYOUT)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == LAYOUT.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn receive_descriptors(socket: BorrowedFd<'_>) -> io::Result<[OwnedFd; 3]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut layout = [0; LAYOUT.len()];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut layout)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if layout[..received.bytes] != *LAYOUT {
        return Err(invalid(format!(
            "the manager's memory has the layout {:?}, not {LAYOUT:?}",
            &layout[..received.bytes]
        )));
    }
    let count = descriptors.len();
    descriptors.try_into().map_err(|_| invalid(format!("{count} descriptors came; 3 were expected")))
}

/// A filter for system calls may refuse what a sleep needs; better now than in the middle of a query.
fn probe_futex(mapping: &Mapping) -> Result<(), TransportError> {
    rustix::thread::futex::wake(mapping.bell(), rustix::thread::futex::Flags::empty(), 1)
        .map(drop)
        .map_err(|error| unsupported("futex", "wake a worker", error.into()))
}

fn unsupported(what: &'static str, action: &'static str, source: io::Error) -> TransportError {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        // Before Linux 5.1 there is no seal against future writes.
        Some(Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {
            TransportError::Unsupported { scheme: SCHEME, what }
        }
        _ => refused(action, source),
    }
}

fn refused(action: &'static str, source: io::Error) -> TransportError {
    TransportError::Io { scheme: SCHEME, action, source }
}
