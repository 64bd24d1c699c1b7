//! What a worker was given to accept connections from: the listeners of its Spec.

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, PoisonError};

use rustix::net::AddressFamily;

use crate::driver::listeners::{FIRST_LISTENER, LISTEN_VARIABLES};
use crate::machine::spec::MAX_LISTENERS;
use crate::sys::inherited;

static GIVEN: Mutex<Vec<Listener>> = Mutex::new(Vec::new());

/// A socket that the manager listens on, and that this worker accepts from, beside the others of its pool.
///
/// Whether it blocks is a property of the socket, and not of this worker: `set_nonblocking` changes it for all.
#[derive(Debug)]
pub struct Listener {
    name: String,
    fd: OwnedFd,
}

/// The listeners that this worker was given, in the order of its Spec: see [`SpecBuilder::listen`](crate::machine::spec::SpecBuilder::listen). Each is
/// given once; empty where there are none, or this is no worker.
///
/// ```no_run
/// # fn accept() -> std::io::Result<()> {
/// for listener in pm_core::worker::listeners::take_listeners() {
///     let listener = listener.tcp()?;
///     let (connection, peer) = listener.accept()?;
/// }
/// # Ok(()) }
/// ```
pub fn take_listeners() -> Vec<Listener> {
    std::mem::take(&mut GIVEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Takes them out of the reach of children. Called once, before anything else of this process runs.
pub(super) fn inherit() {
    let [count, pid, names] = LISTEN_VARIABLES.map(|name| env::var(name).ok());
    // Those of a process that started this one are not meant for it.
    if pid.and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return;
    }
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(0).min(MAX_LISTENERS);
    let names = names.unwrap_or_default();
    let given = (FIRST_LISTENER..).zip(names.split(':')).take(count).filter_map(|(number, name)| {
        let fd = inherited::take_descriptor(number).ok()?;
        Some(Listener { name: name.to_string(), fd })
    });
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner).extend(given);
}

impl Listener {
    /// Its name, as the Spec has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As a TCP listener.
    ///
    /// # Errors
    /// `InvalidInput` where it is none.
    pub fn tcp(self) -> io::Result<TcpListener> {
        self.of(&[AddressFamily::INET, AddressFamily::INET6], "no TCP listener").map(TcpListener::from)
    }

    /// As a listener of Unix sockets.
    ///
    /// # Errors
    /// `InvalidInput` where it is none.
    pub fn unix(self) -> io::Result<UnixListener> {
        self.of(&[AddressFamily::UNIX], "no listener of Unix sockets").map(UnixListener::from)
    }

    fn of(self, families: &[AddressFamily], otherwise: &str) -> io::Result<OwnedFd> {
        let family = rustix::net::getsockname(self.fd.as_fd())?.address_family();
        if families.contains(&family) {
            return Ok(self.fd);
        }
        let Listener { name, .. } = self;
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the listener {name:?} is {otherwise}")))
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.fd
    }
}
