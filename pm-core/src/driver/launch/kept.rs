//! Processes that outlive the manager that started them, and the next manager that takes them over.
//!
//! The meeting point is a socket in the file system on which the keeper listens. A lock beside it says which manager has it, so two that start at the same time do not
//! both take what is there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::Connection;
use super::connection::adoption::Adopted;
use super::{Child, keeper};
use crate::driver::socket_path::Lock;
use crate::sys::keeper_wire::Holding;

/// When nothing lives any more of what was kept, its ends are remembered for so long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Managers that may wait for the keeper. There is one, which has the lock.
const WAITING: i32 = 4;

/// Why processes cannot be kept, or taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// Another program keeps its processes at this path.
    #[error("{path:?} is in use: another program keeps its services there")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There are processes of an earlier program, and they cannot be taken over.
    #[error("the services that an earlier program has left cannot be taken over at {path:?}")]
    NotAdopted {
        /// The path.
        path: PathBuf,
        /// What is wrong with their keeper.
        source: io::Error,
    },
    /// No socket can be made there.
    #[error("services cannot be kept at {path:?}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A process that was taken over.
pub(crate) struct Kept {
    pub(crate) child: Child,
    pub(crate) note: Vec<u8>,
    pub(crate) held: Vec<(Holding, OwnedFd)>,
    /// It has said that it is ready while nobody was there to hear it.
    pub(crate) is_ready: bool,
}

/// Where this manager's processes are kept for the next one.
pub(crate) struct MeetingPoint {
    path: PathBuf,
    listener: OwnedFd,
    _lock: Lock,
}

/// Takes over what waits at a path, if anything does. From then on it is kept no more.
///
/// # Errors
/// Those of [`meet`].
pub(crate) fn adopt(path: &Path) -> Result<Vec<Kept>, KeepError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(meet(path)?.1),
        // Nothing that could be kept there.
        Err(_) => Ok(Vec::new()),
    }
}

/// Has a meeting point at a path, and takes over what waits there.
///
/// # Errors
/// Another manager has it, or its keeper cannot be spoken to: what is kept goes on waiting.
pub(crate) fn meet(path: &Path) -> Result<(MeetingPoint, Vec<Kept>), KeepError> {
    let refused = |source: io::Error| KeepError::Path { path: path.to_owned(), source };
    // The working directory may change.
    let path = std::path::absolute(path).map_err(refused)?;
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(refused)?;
    }
    let lock = Lock::take(&path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => KeepError::InUse { path: path.clone() },
        _ => refused(source),
    })?;
    let Some(socket) = connect(&path).map_err(refused)? else {
        let listener = listen(&path).map_err(refused)?;
        return Ok((MeetingPoint { path, listener, _lock: lock }, Vec::new()));
    };
    let Adopted { connection, units, listener } =
        Connection::adopt(socket).map_err(|source| KeepError::NotAdopted { path: path.clone(), source })?;
    keeper::use_connection(connection);
    let units = units.into_iter().map(|unit| Kept {
        child: unit.child,
        note: unit.note,
        held: unit.held,
        is_ready: unit.is_ready,
    });
    let units = units.collect();
    Ok((MeetingPoint { path, listener, _lock: lock }, units))
}

/// Whether a keeper waits at a path for its next manager, or has one.
pub fn is_kept(path: &Path) -> bool {
    connect(path).is_ok_and(|socket| socket.is_some())
}

impl MeetingPoint {
    /// Lets a process outlive this one.
    pub(crate) fn keep(&self, child: &Child, note: &[u8], held: &[(Holding, BorrowedFd<'_>)]) {
        if let Some(connection) = child.connection() {
            connection.stay(self.listener.as_fd(), self.path.as_os_str().as_bytes(), PATIENCE);
            child.keep(note, held);
        }
    }

    /// Lets nothing outlive this process: also what was taken over does not any more.
    pub(crate) fn leave(&self) {
        if let Some(connection) = keeper::connected() {
            connection.leave();
        }
        // Removed here, under the lock: the keeper does it only where there is no manager.
        let _ = fs::remove_file(&self.path);
    }
}

/// What is dropped keeps nothing. Who is killed does not get to that.
impl Drop for MeetingPoint {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Connects to a keeper of this user. None where nobody is.
fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match rustix::net::sockopt::socket_peercred(&socket)?.uid == rustix::process::geteuid() {
        true => Ok(Some(socket)),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Listens at a path, for this user alone. What a dead keeper left there goes.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if !fs::symlink_metadata(path)?.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket stands there"));
        }
        Err(Errno::ADDRINUSE) => {
            fs::remove_file(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(socket)
}
