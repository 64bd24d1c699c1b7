//! Sockets with a path in the file system: one process has each, and knows it by a lock.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::listeners::WAITING;

/// A socket in the file system that this process listens on, removed when it is dropped.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Dropped after the socket was removed.
    _lock: Lock,
}

/// A file beside a socket, whose lock says who has the socket. It is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    /// Locked for as long as it is open.
    _file: OwnedFd,
}

/// Binds a path for this user alone: nobody else may connect, and the directory is made, where it is missing, so that nobody else may look into it.
///
/// # Errors
/// Those of [`bind_path`], and a directory that cannot be made.
pub fn bind_private(path: &Path) -> io::Result<(UnixListener, SocketPath)> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let bound = bind_path(path)?;
    // Until here others might connect, who are turned away when they are accepted.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&bound.0, WAITING)?;
    Ok(bound)
}

/// Binds a path. A socket that a dead process left there is taken over; one on which somebody listens, or anything else that stands there, is left alone.
///
/// # Errors
/// `AddrInUse` where another process listens there, `AlreadyExists` where something else stands there, and what the kernel says.
pub fn bind_path(path: &Path) -> io::Result<(UnixListener, SocketPath)> {
    // The working directory may change before it is removed.
    let path = std::path::absolute(path)?;
    let lock = Lock::take(&path)?;
    // From here on only strangers can come between, who would have to use this path without its lock.
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket stands there"));
        }
        Ok(_) if is_listened_on(&path)? => return Err(in_use()),
        Ok(_) => fs::remove_file(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&path)?;
    Ok((listener, SocketPath { path, _lock: lock }))
}

/// Whether somebody listens on a socket. Never waits, also where a full queue of those who wait to be accepted would have it do so.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Lock {
    /// Locks the file beside a socket: of those who want the same path, one wins.
    pub(super) fn take(socket: &Path) -> io::Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(in_use()),
                Err(error) => return Err(error.into()),
            }
            // Whoever had it may have removed it between the opening and the locking: then the lock of another file counts.
            let ours = rustix::fs::fstat(&file)?;
            let is_there = |there: fs::Metadata| (there.dev(), there.ino()) == (ours.st_dev, ours.st_ino);
            if fs::symlink_metadata(&path).is_ok_and(is_there) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // Whatever is left is taken over by the next one.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("pm-listen-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    fn is_refused(path: &Path, kind: io::ErrorKind) {
        assert_eq!(bind_path(path).unwrap_err().kind(), kind);
    }

    #[test]
    fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
        let directory = directory("stale");
        let path = directory.join("s");
        drop(UnixListener::bind(&path).unwrap());
        let held = bind_path(&path).unwrap();
        is_refused(&path, io::ErrorKind::AddrInUse);
        drop(held);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        let stranger = UnixListener::bind(&path).unwrap();
        is_refused(&path, io::ErrorKind::AddrInUse);
        drop(stranger);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = directory("other");
        let (path, link) = (directory.join("file"), directory.join("link"));
        fs::write(&path, "precious").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        is_refused(&path, io::ErrorKind::AlreadyExists);
        is_refused(&link, io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "and no lock is left beside it");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn of_many_that_race_one_wins() {
        let directory = directory("race");
        let path = directory.join("s");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    let path = path.clone();
                    std::thread::spawn(move || bind_path(&path))
                })
                .collect();
            let held: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
            assert_eq!(held.iter().filter(|held| held.is_ok()).count(), 1);
            assert!(UnixStream::connect(&path).is_ok());
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
