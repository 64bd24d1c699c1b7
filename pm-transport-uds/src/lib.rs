//! Links over a pair of connected Unix sockets. The worker finds its socket under the number that `PM_LINK_FD` holds.
//!
//! The pair has no name in the file system, so nothing stale can be found, and nobody else can connect.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use pm_core::driver::framed::FramedLink;
use pm_core::transport::{
    Accept, Connect, Identity, LINK_FD_VARIABLE, Offer, Place, SOCKET_VARIABLE, Transport, TransportError,
};
use pm_core::worker::inherited_link;
use pm_core::worker::link::{FdLink, WorkerLink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

const SCHEME: &str = "uds";

/// The transport over Unix sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uds;

/// The manager's half of a link.
pub type UdsLink = FramedLink<OwnedReadHalf, OwnedWriteHalf>;

/// Waits for nothing: a pair is connected from the start.
#[derive(Debug)]
pub struct UdsAccept(OwnedFd);

impl Transport for Uds {
    type Link = UdsLink;
    type Accept = UdsAccept;

    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn offer(&self) -> Result<(Offer, UdsAccept), TransportError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| refused("make a pair of sockets", error.into()))?;
        let offer = Offer { fds: vec![(Place::Variable(LINK_FD_VARIABLE), theirs)], ..Offer::default() };
        Ok((offer, UdsAccept(ours)))
    }

    fn adopt(&self, socket: OwnedFd) -> Result<UdsLink, TransportError> {
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|error| refused("make a socket non-blocking", error.into()))?;
        let stream = UnixStream::from_std(socket.into()).map_err(|error| refused("watch a socket", error))?;
        let (read, write) = stream.into_split();
        Ok(FramedLink::new(read, write))
    }
}

impl Accept<UdsLink> for UdsAccept {
    async fn accept(self, _: &Identity) -> Result<UdsLink, TransportError> {
        Uds.adopt(self.0)
    }
}

impl Connect for Uds {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn connect(&self) -> io::Result<Box<dyn WorkerLink>> {
        // A worker that pm did not start finds its pool by name.
        let socket = match std::env::var_os(SOCKET_VARIABLE) {
            Some(path) => std::os::unix::net::UnixStream::connect(path)?.into(),
            None => inherited_link()?,
        };
        Ok(Box::new(FdLink::socket(socket)))
    }
}

fn refused(action: &'static str, source: io::Error) -> TransportError {
    TransportError::Io { scheme: SCHEME, action, source }
}
