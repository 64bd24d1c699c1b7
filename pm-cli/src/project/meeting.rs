//! Where a project that is up is reached: a socket for its user alone, which has the same place for each command that is given the same file.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use pm::core::driver::socket_path::{SocketPath, bind_private};
use sha2::{Digest, Sha256};

use crate::config::{ConfigError, FILES};
use crate::error::CliError;

/// The file of the project, absolute: the one that is named, or the first of [`FILES`] that is in the working directory.
///
/// # Errors
/// There is none.
pub fn file(named: Option<&Path>) -> Result<PathBuf, CliError> {
    let found = named.map(Path::to_owned).or_else(|| FILES.iter().map(PathBuf::from).find(|path| path.exists()));
    let named = found.ok_or(CliError::Config(ConfigError::NoFile))?;
    // Both ways to one directory lead to one project. A file that is linked into several is several projects: their directories differ.
    let found = || -> io::Result<PathBuf> {
        fs::metadata(&named)?;
        let path = std::path::absolute(&named)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(path.parent().unwrap_or(Path::new("/")).canonicalize()?.join(name))
    };
    found().map_err(|source| CliError::Config(ConfigError::Unreadable { path: named, source }))
}

/// The socket of the project of this file.
///
/// # Errors
/// The directory of sockets cannot be made, or belongs to somebody else.
pub fn socket(file: &Path) -> Result<PathBuf, CliError> {
    use std::os::unix::ffi::OsStrExt;

    let digest = Sha256::digest(file.as_os_str().as_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(directory()?.join(format!("{name}.sock")))
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

/// Takes the socket of a project. Of those who want it one wins; what a dead one left is taken over.
///
/// # Errors
/// [`CliError::AlreadyUp`] where the project is up.
pub fn take(path: &Path) -> Result<(UnixListener, SocketPath), CliError> {
    bind_private(path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => CliError::AlreadyUp,
        _ => CliError::Meeting { path: path.to_owned(), source },
    })
}
