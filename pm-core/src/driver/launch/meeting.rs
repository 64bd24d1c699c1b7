//! Processes that outlive the manager that started them, and the next manager that takes them over.
//!
//! The meeting point is a socket in the file system on which the keeper listens. A lock beside it says which manager has it, so two that start at the same time do not
//! both take what is there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::oneshot;

use super::connection::Connection;
use super::connection::adoption::Adopted;
pub(crate) use super::connection::adoption::Kept;
use super::{Child, keeper};
use crate::driver::socket_path::Lock;
use crate::sys::keeper_wire::{Greeting, Holding};
use crate::sys::seqpacket;

/// When nothing lives any more of what was kept, its ends are remembered for so long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How often a keeper that ends in this moment is met, until it has.
const MOST_MEETINGS: u32 = 100;

/// This program has a meeting point, and may have one: its processes have one keeper.
static HAS_ONE: AtomicBool = AtomicBool::new(false);

/// How long a keeper may take to hear that all is to end.
const READ_LIMIT: Duration = Duration::from_secs(10);

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
    /// This program keeps its processes at another path already.
    #[error(
        "this program keeps services at another path already: one orchestrator of a program can keep its services, or take some over"
    )]
    Another,
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

/// Where this manager's processes are kept for the next one.
pub(crate) struct MeetingPoint {
    path: PathBuf,
    listener: OwnedFd,
    /// Nothing is kept any more. Held while something is, so that nothing comes after that.
    keeps_nothing: Mutex<bool>,
    _lock: Lock,
    _one: One,
}

/// The one meeting point of this program.
struct One;

impl One {
    fn take() -> Result<Self, KeepError> {
        // Acquire and Release: who takes it next sees what the last one has left behind.
        let was_free = HAS_ONE.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if was_free { Ok(One) } else { Err(KeepError::Another) }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        HAS_ONE.store(false, Ordering::Release);
    }
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
    let one = One::take()?;
    let meeting = |listener, one| MeetingPoint {
        path: path.clone(),
        listener,
        keeps_nothing: Mutex::new(false),
        _lock: lock,
        _one: one,
    };
    let mut meetings = 0;
    while let Some(socket) = connect(&path).map_err(refused)? {
        meetings += 1;
        match Connection::adopt(socket) {
            Ok(Adopted { connection, units, listener }) => {
                keeper::use_connection(connection);
                return Ok((meeting(listener, one), units));
            }
            // One that has nothing to keep was about to end. It does so in a moment.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && meetings < MOST_MEETINGS => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(source) => return Err(KeepError::NotAdopted { path: path.clone(), source }),
        }
    }
    let listener = listen(&path).map_err(refused)?;
    Ok((meeting(listener, one), Vec::new()))
}

/// Has all end that is kept at a path, at once, whatever the version of its keeper is.
///
/// # Errors
/// What the kernel says; that nothing is kept there is none.
pub fn end_kept(path: &Path) -> io::Result<()> {
    if let Some(socket) = connect(path)? {
        seqpacket::send(&socket, &Greeting::End.bytes(), &[])?;
        // Its end is that of the keeper, or that it has been heard.
        let limit = Timespec { tv_sec: READ_LIMIT.as_secs() as i64, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit));
    }
    Ok(())
}

/// Whether a keeper waits at a path for its next manager, or has one.
pub fn is_kept(path: &Path) -> bool {
    match connect(path) {
        Ok(socket) => socket.is_some(),
        // Others wait before this one.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl MeetingPoint {
    /// Lets a process outlive this one. What is given is told where it cannot be; none is that nothing is kept any more, or that it has no keeper.
    pub(crate) fn keep(
        &self,
        child: &Child,
        note: &[u8],
        held: &[(Holding, BorrowedFd<'_>)],
    ) -> Option<oneshot::Receiver<()>> {
        let keeps_nothing = self.lock();
        if *keeps_nothing {
            return None;
        }
        child.connection()?.stay(self.listener.as_fd(), self.path.as_os_str().as_bytes(), PATIENCE);
        child.keep(note, held)
    }

    /// From here on everything is as it is to be for the next manager: nothing further is kept, and what is stays that.
    pub(crate) fn close(&self) {
        *self.lock() = true;
    }

    /// Lets nothing outlive this process: also what was taken over does not any more.
    pub(crate) fn keep_nothing(&self) {
        let mut keeps_nothing = self.lock();
        if std::mem::replace(&mut *keeps_nothing, true) {
            return;
        }
        if let Some(connection) = keeper::connected() {
            connection.keep_nothing();
        }
        // Removed here, under the lock of the path: the keeper does it only where there is no manager.
        let _ = fs::remove_file(&self.path);
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.keeps_nothing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is dropped keeps nothing. Who is killed does not get to that.
impl Drop for MeetingPoint {
    fn drop(&mut self) {
        self.keep_nothing();
    }
}

/// The address of a socket at a path, which may lie deeper than an address is long (107 bytes).
struct Address {
    socket: SocketAddrUnix,
    /// What the address goes by.
    _directory: Option<OwnedFd>,
}

impl Address {
    fn of(path: &Path) -> io::Result<Self> {
        if let Ok(socket) = SocketAddrUnix::new(path) {
            return Ok(Address { socket, _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Address { socket: SocketAddrUnix::new(short)?, _directory: Some(directory) })
    }
}

/// Connects to a keeper of this user. None where nobody is.
fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = match Address::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        address => address?,
    };
    match rustix::net::connect(&socket, &address.socket) {
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
    let address = Address::of(path)?;
    match rustix::net::bind(&socket, &address.socket) {
        Err(Errno::ADDRINUSE) if !fs::symlink_metadata(path)?.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket stands there"));
        }
        Err(Errno::ADDRINUSE) => {
            fs::remove_file(path)?;
            rustix::net::bind(&socket, &address.socket)?;
        }
        bound => bound?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(socket)
}
