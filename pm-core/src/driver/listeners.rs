//! The listeners of a Spec: bound once by the manager, and accepted from by all its processes.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::socket_path::{SocketPath, bind_path};
use crate::face::error::StartError;
use crate::machine::spec::ListenAddress;
use crate::sys::command::Command;

/// The variables by which a process learns of its listeners: how many, for whom, and what they are called.
pub(crate) const LISTEN_VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The number of the first listener in a process, as in systemd.
pub(crate) const FIRST_LISTENER: i32 = 3;

/// Connections that wait to be accepted, at most. While the workers of a pool are replaced it is here that they wait; the kernel cuts it to
/// net.core.somaxconn.
pub(super) const WAITING: i32 = 4096;

/// The listeners of one pool. They are closed, and their sockets removed, with the last of those that hold this.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Vec<Bound>);

#[derive(Debug)]
struct Bound {
    name: String,
    address: ListenAddress,
    fd: Arc<OwnedFd>,
    /// What stands in the file system.
    _path: Option<SocketPath>,
}

/// An address cannot be listened on.
#[derive(Debug)]
pub(crate) struct NotBound {
    pub(crate) address: ListenAddress,
    pub(crate) source: Arc<io::Error>,
}

impl From<NotBound> for StartError {
    fn from(NotBound { address, source }: NotBound) -> Self {
        StartError::Listen { address, source }
    }
}

impl Listeners {
    /// Binds all of them.
    pub(crate) fn bind(listeners: &[(String, ListenAddress)]) -> Result<Self, NotBound> {
        let bind = |(name, on): &(String, ListenAddress)| {
            let refused = |source| NotBound { address: on.clone(), source: Arc::new(source) };
            let (address, fd, path) = bind(on).map_err(refused)?;
            Ok(Bound { name: name.clone(), address, fd: Arc::new(fd), _path: path })
        };
        listeners.iter().map(bind).collect::<Result<_, _>>().map(Listeners)
    }

    /// The addresses, with the ports that the kernel chose.
    pub(crate) fn addresses(&self) -> Arc<[ListenAddress]> {
        self.0.iter().map(|bound| bound.address.clone()).collect()
    }

    /// Gives them to a process.
    pub(crate) fn pass_to(&self, command: &mut Command) {
        if self.0.is_empty() {
            return;
        }
        command.fds.extend((FIRST_LISTENER..).zip(&self.0).map(|(number, bound)| (number, bound.fd.clone())));
        command.listens = true;
        let names: Vec<_> = self.0.iter().map(|bound| bound.name.as_str()).collect();
        command.env.retain(|(name, _)| !LISTEN_VARIABLES.iter().any(|known| name == known));
        command.env.push((LISTEN_VARIABLES[0].into(), self.0.len().to_string().into()));
        command.env.push((LISTEN_VARIABLES[2].into(), names.join(":").into()));
    }
}

fn bind(on: &ListenAddress) -> io::Result<(ListenAddress, OwnedFd, Option<SocketPath>)> {
    let (address, fd, path) = match on {
        ListenAddress::Tcp(address) => {
            let listener = TcpListener::bind(address)?;
            (ListenAddress::Tcp(listener.local_addr()?), OwnedFd::from(listener), None)
        }
        ListenAddress::Unix(path) => {
            let (listener, held) = bind_path(path)?;
            (on.clone(), OwnedFd::from(listener), Some(held))
        }
    };
    rustix::net::listen(&fd, WAITING)?;
    Ok((address, fd, path))
}
