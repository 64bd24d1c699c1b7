//! Where a project that is up is reached: a socket for its user alone, which has the same place for each command that is given the same file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use pm::core::driver::socket_path::{SocketPath, bind_private};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::config::{self, ConfigError};
use crate::error::CliError;

/// The file of the project, absolute: the one that is named, or the first that [`config::find`] finds.
///
/// # Errors
/// There is none.
pub fn file(named: Option<&Path>) -> Result<PathBuf, CliError> {
    let named = config::find(named).map_err(CliError::Config)?;
    // Both ways to one directory lead to one project. A file that is linked into several is several projects: their directories differ.
    let found = || -> io::Result<PathBuf> {
        fs::metadata(&named)?;
        let path = std::path::absolute(&named)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(path.parent().unwrap_or(Path::new("/")).canonicalize()?.join(name))
    };
    found().map_err(|source| CliError::Config(ConfigError::Unreadable { path: named, source }))
}

/// The socket at which the project of this file is reached.
///
/// Where its usual place is empty, the lock beside the file may name another one: a project that was started with another environment, by cron for
/// one, has its socket in another directory.
///
/// # Errors
/// The directory of sockets cannot be made, or belongs to somebody else.
pub fn socket(file: &Path) -> Result<PathBuf, CliError> {
    Ok(choose(usual_socket(file)?, named(file), |path| UnixStream::connect(path).is_ok()))
}

/// The socket at which the services of a project wait that have outlived their pm. It stands beside the file, where each environment finds it and nobody removes it at
/// the end of a session.
pub fn kept(file: &Path) -> PathBuf {
    beside(file, ".keep")
}

/// Of two places the one where somebody is. What a dead one has left may stand at the other.
fn choose(usual: PathBuf, named: Option<PathBuf>, is_alive: impl Fn(&Path) -> bool) -> PathBuf {
    match named.filter(|named| *named != usual) {
        Some(named) if !usual.exists() || !is_alive(&usual) => named,
        _ => usual,
    }
}

/// The socket that the lock beside the file names.
fn named(file: &Path) -> Option<PathBuf> {
    let path = PathBuf::from(OsString::from_vec(fs::read(lock_path(file)).ok()?));
    (path.is_absolute() && path.exists()).then_some(path)
}

/// Where the socket of the project of this file is made in this environment.
fn usual_socket(file: &Path) -> Result<PathBuf, CliError> {
    let digest = Sha256::digest(file.as_os_str().as_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(directory()?.join(format!("{name}.sock")))
}

/// The lock that says that a project is up, beside its file.
fn lock_path(file: &Path) -> PathBuf {
    beside(file, ".lock")
}

/// What pm has of a project, in its directory.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    file.parent().unwrap_or(Path::new("/")).join(".pm").join(name)
}

/// The directory of this user's sockets: `$XDG_RUNTIME_DIR/pm`, or `/tmp/pm-UID`.
fn directory() -> Result<PathBuf, CliError> {
    let uid = rustix::process::getuid().as_raw();
    // That of somebody else is met after sudo and su.
    let is_own = |dir: &std::ffi::OsString| fs::metadata(dir).is_ok_and(|found| found.is_dir() && found.uid() == uid);
    let path = match std::env::var_os("XDG_RUNTIME_DIR").filter(is_own) {
        Some(runtime) => PathBuf::from(runtime).join("pm"),
        None => PathBuf::from(format!("/tmp/pm-{uid}")),
    };
    let refused = |source| CliError::Meeting { path: path.clone(), source };
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(refused(error)),
    }
    // In a directory where everybody may make things, somebody else may have made this one.
    let found = fs::symlink_metadata(&path).map_err(refused)?;
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
        let problem = "it is not a directory of this user that nobody else may enter (chmod 700 makes one of yours so)";
        return Err(refused(io::Error::new(io::ErrorKind::PermissionDenied, problem)));
    }
    Ok(path)
}

/// The place of a project that is up, which is free again when this is dropped.
#[derive(Debug)]
pub struct Held {
    _socket: SocketPath,
    /// None where the directory of the project cannot be written to.
    _lock: Option<File>,
}

/// Takes the place of a project. Of those who want it one wins; what a dead one left is taken over.
///
/// # Errors
/// [`CliError::AlreadyUp`] where the project is up.
pub fn take(file: &Path) -> Result<(UnixListener, Held), CliError> {
    let path = usual_socket(file)?;
    // Where it cannot be written there is no lock.
    let _ = config::make_place(file);
    let lock = lock(&lock_path(file), &path)?;
    let (listener, socket) = bind_private(&path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => CliError::AlreadyUp,
        _ => CliError::Meeting { path, source },
    })?;
    Ok((listener, Held { _socket: socket, _lock: lock }))
}

/// Locks the file beside a project, and notes in it where the project is reached. The file stays: to remove it would let two have it.
fn lock(path: &Path, socket: &Path) -> Result<Option<File>, CliError> {
    let open = || -> io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    };
    let Ok(mut file) = open() else { return Ok(None) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(CliError::AlreadyUp),
        // Some file systems have no locks. Then the socket alone decides.
        Err(_) => return Ok(None),
    }
    // Who cannot write it is found at the usual place.
    let _ = file.set_len(0).and_then(|()| file.write_all(socket.as_os_str().as_bytes()));
    Ok(Some(file))
}
