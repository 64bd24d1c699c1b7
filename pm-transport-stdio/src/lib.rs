//! Links over two pipes. The worker finds them as its standard input and output, so that any program that can read and write can be one.
//!
//! A worker keeps private copies of both and gives the numbers away: descriptor 0 becomes `/dev/null` and descriptor 1 its standard error, so that
//! what it prints never reaches the wire.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use pm_core::driver::framed::FramedLink;
use pm_core::transport::{Accept, Connect, Identity, Offer, Place, Transport, TransportError};
use pm_core::worker::link::{FdLink, WorkerLink};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe::{Receiver, Sender};

const SCHEME: &str = "stdio";

/// The transport over pipes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdio;

/// The manager's half of a link.
pub type StdioLink = FramedLink<Receiver, Sender>;

/// Waits for nothing: the pipes are there from the start.
#[derive(Debug)]
pub struct StdioAccept {
    read: OwnedFd,
    write: OwnedFd,
}

impl Transport for Stdio {
    type Link = StdioLink;
    type Accept = StdioAccept;

    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn offer(&self) -> Result<(Offer, StdioAccept), TransportError> {
        let (stdin, write) = pipe()?;
        let (read, stdout) = pipe()?;
        for end in [&read, &write] {
            rustix::io::ioctl_fionbio(end, true).map_err(|error| refused("make a pipe non-blocking", error.into()))?;
        }
        let offer = Offer { fds: vec![(Place::Standard(0), stdin), (Place::Standard(1), stdout)], ..Offer::default() };
        Ok((offer, StdioAccept { read, write }))
    }
}

impl Accept<StdioLink> for StdioAccept {
    async fn accept(self, _: &Identity) -> Result<StdioLink, TransportError> {
        let watch = |error| refused("watch a pipe", error);
        let read = Receiver::from_owned_fd(self.read).map_err(watch)?;
        let write = Sender::from_owned_fd(self.write).map_err(watch)?;
        Ok(FramedLink::new(read, write))
    }
}

impl Connect for Stdio {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn connect(&self) -> io::Result<Box<dyn WorkerLink>> {
        let read = io::stdin().as_fd().try_clone_to_owned()?;
        let write = io::stdout().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        rustix::stdio::dup2_stdout(io::stderr())?;
        Ok(Box::new(FdLink::pipes(read, write)))
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), TransportError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| refused("make a pipe", error.into()))
}

fn refused(action: &'static str, source: io::Error) -> TransportError {
    TransportError::Io { scheme: SCHEME, action, source }
}
