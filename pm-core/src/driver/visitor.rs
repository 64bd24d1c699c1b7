//! Workers that pm did not start: they connect to the socket of their pool, and are workers like any other from then on, but for their ends. pm ends their
//! links, and never processes that are not its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::socket_path::{self, SocketPath};
use super::start::{Life, Started, Starter};
use crate::face::error::StartError;
use crate::machine::exit::ExitStatus;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::spec::{ListenAddress, Spec, Stderr};
use crate::machine::unit::{Farewell, Times};
use crate::sys::inherited;
use crate::transport::{Transport, TransportError};

/// A visitor may come at any time: some hundred years are no limit.
const ANY_TIME: Duration = Duration::from_secs(u32::MAX as u64);

/// After an accept that failed for want of something, mostly of descriptors.
const AGAIN: Duration = Duration::from_millis(100);

/// The socket of a pool: 0600, and closed and removed with this.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
    path: PathBuf,
    _held: SocketPath,
}

/// Whether visitors can come over this transport. Called in a runtime.
///
/// # Errors
/// [`TransportError::Unsupported`] where not.
pub(crate) fn check_transport(transport: &impl Transport) -> Result<(), StartError> {
    let refused = |error: TransportError| StartError::Transport(Arc::new(error));
    let pair = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    );
    let (one, _other) = pair.map_err(|error| {
        refused(TransportError::Io {
            scheme: transport.scheme(),
            action: "make a pair of sockets",
            source: error.into(),
        })
    })?;
    transport.adopt(one).map(drop).map_err(refused)
}

impl Door {
    /// Opens it. Its directory is made where it is missing, for its owner alone.
    pub(crate) fn open(path: &Path) -> Result<Self, StartError> {
        let refused = |source: io::Error| StartError::Listen {
            address: ListenAddress::Unix(path.to_owned()),
            source: Arc::new(source),
        };
        let (listener, held) = socket_path::bind_private(path).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let listener = UnixListener::from_std(listener).map_err(refused)?;
        Ok(Door { listener, path: path.to_owned(), _held: held })
    }

    /// The next one of this user, with its process.
    async fn next(&self) -> (UnixStream, Pid) {
        loop {
            let accepted = self.listener.accept().await.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
            match accepted {
                Ok((peer, stream)) if peer.uid() == rustix::process::geteuid().as_raw() => {
                    if let Some(pid) = peer.pid().and_then(Pid::from_raw) {
                        return (stream, pid);
                    }
                }
                Ok((peer, _)) => {
                    let path = self.path.display();
                    tracing::warn!(target: "pm::pool", %path, uid = peer.uid(), "a visitor of another user was turned away");
                }
                Err(error) => {
                    tracing::warn!(target: "pm::pool", path = %self.path.display(), %error, "no visitor can be taken");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Takes visitors.
pub(crate) struct VisitorStarter<T> {
    pub(crate) spec: Spec,
    pub(crate) transport: T,
    pub(crate) door: Mutex<Option<Arc<Door>>>,
}

impl<T> VisitorStarter<T> {
    fn door(&self) -> MutexGuard<'_, Option<Arc<Door>>> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Transport> Starter for VisitorStarter<T> {
    type Link = T::Link;

    async fn start(&self, _: WorkerId, _: Incarnation) -> Result<Started<T::Link>, StartError> {
        let door = self.door().clone().ok_or(StartError::ShuttingDown)?;
        loop {
            let (stream, pid) = door.next().await;
            // One that is gone already is nobody.
            let Ok(visitor) = Visitor::new(&stream, pid) else { continue };
            let io = |action| {
                move |source| StartError::from(TransportError::Io { scheme: self.transport.scheme(), action, source })
            };
            let socket = stream.into_std().map_err(io("take a socket"))?;
            let link = self.transport.adopt(socket.into())?;
            let life = Life::Visitor(visitor);
            return Ok(Started { life, link, outbox: None, stderr: None, farewell: Farewell::Link });
        }
    }

    fn times(&self) -> Times {
        Times { start: ANY_TIME, ..self.spec.times() }
    }

    fn stderr(&self) -> Stderr {
        Stderr::Quiet
    }

    fn role(&self) -> Option<String> {
        self.spec.role_to_serve().map(Into::into)
    }

    fn makes_something(&self) -> bool {
        false
    }

    fn handshake_limit(&self) -> Option<Duration> {
        Some(self.spec.times().start)
    }

    fn close(&self) {
        drop(self.door().take());
    }
}

/// A process that came by itself.
pub(crate) struct Visitor {
    pid: Pid,
    end: AsyncFd<OwnedFd>,
    socket: OwnedFd,
    cut: watch::Sender<bool>,
}

impl Visitor {
    fn new(stream: &UnixStream, pid: Pid) -> io::Result<Self> {
        let end = inherited::watch(pidfd_open(pid, PidfdFlags::empty())?.as_fd())?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        Ok(Visitor { pid, end, socket, cut: watch::Sender::new(false) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Ends its link. What it does then is its own affair.
    pub(crate) fn cut(&self) {
        // One that has no peer any more needs no end.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        self.cut.send_replace(true);
    }

    /// Waits until it has ended, or pm has let go of it. Cancel safe, and gives the same again.
    pub(crate) async fn ended(&self) -> ExitStatus {
        let mut cut = self.cut.subscribe();
        tokio::select! {
            // The sender lives as long as this.
            _ = cut.wait_for(|cut| *cut) => {}
            _ = self.end.readable() => {}
        }
        ExitStatus::Lost
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.cut();
    }
}
