//! Sockets with a path in the file system: one process has each, and knows it by a lock.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::listeners::WAITING;

/// A socket in the file system that this process listens on, and the file beside it whose lock says so. Both are removed when it is dropped.
#[derive(Debug)]
pub(super) struct SocketPath {
    path: PathBuf,
    lock: PathBuf,
    /// Locked for as long as it is open.
    _locked: OwnedFd,
}

/// Binds a path for this user alone: nobody else may connect, and the directory is made, where it is missing, so that nobody else may look into it.
pub(super) fn bind_private(path: &Path) -> io::Result<(UnixListener, SocketPath)> {
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
pub(super) fn bind_path(path: &Path) -> io::Result<(UnixListener, SocketPath)> {
    // The working directory may change before it is removed.
    let path = std::path::absolute(path)?;
    let mut lock = path.clone().into_os_string();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    let locked = take_lock(&lock)?;
    // From here on only strangers can come between, who would have to use this path without its lock.
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket stands there"));
        }
        Ok(_) => match UnixStream::connect(&path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(&path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(in_use()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&path)?;
    Ok((listener, SocketPath { path, lock, _locked: locked }))
}

/// Locks a file beside a socket: of those who want the same path, one wins.
fn take_lock(lock: &Path) -> io::Result<OwnedFd> {
    loop {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(lock, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use()),
            Err(error) => return Err(error.into()),
        }
        // Whoever had it may have removed it between the opening and the locking: then the lock of another file counts.
        let ours = File::from(file.as_fd().try_clone_to_owned()?).metadata()?;
        if fs::symlink_metadata(lock).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // The lock goes last. Whatever is left is taken over by the next one.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock);
    }
}

#[cfg(test)]
mod tests {
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
