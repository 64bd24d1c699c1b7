//! The way in: which launcher starts a command, and what both of them check first.

use std::io;
use std::path::Path;

use super::child::Child;
use super::error::LaunchError;
use super::{connection, unguarded};
pub use crate::machine::spec::Guard;
use crate::sys::command::{Command, MAX_DESCRIPTORS, Packed};

/// The largest number that a descriptor may be given. Limits of open files are seldom above it.
const MOST_NUMBER: i32 = 65_535;

/// Starts `command` under `guard`. When this returns, the program is executing.
///
/// Cancel safe: a launch that is dropped kills what it had started. It needs no runtime of a certain kind, and the child
/// may outlive the runtime that launched it. The descriptors of `command` are closed here when it returns, unless the caller
/// holds them as well.
pub async fn launch(guard: Guard, command: Command) -> Result<Child, LaunchError> {
    if command.fds.len() > MAX_DESCRIPTORS {
        return Err(LaunchError::too_many_descriptors(command.fds.len()));
    }
    match guard {
        Guard::Keeper => connection::launch(command).await,
        Guard::Unguarded => unguarded::launch(command).await,
    }
}

/// Lays out `command` for the kernel, with paths that do not depend on the working directory of who starts it.
pub(super) fn pack(command: &Command, cookie: &str) -> Result<Packed, LaunchError> {
    let bad_directory = |directory: &Path| {
        let directory = directory.to_owned();
        move |source| LaunchError::BadWorkingDirectory { directory, source }
    };
    if let Some((number, _)) = command.fds.iter().find(|(number, _)| !(0..=MOST_NUMBER).contains(number)) {
        let source =
            io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} is not from 0 to {MOST_NUMBER}"));
        return Err(LaunchError::here(command, "dup2", source));
    }
    let cwd = match &command.cwd {
        Some(directory) => std::path::absolute(directory).map_err(bad_directory(directory))?,
        None => std::env::current_dir().map_err(bad_directory(Path::new(".")))?,
    };
    let program = std::path::absolute(&command.program).map_err(bad_directory(Path::new(".")))?;
    Packed::new(command, &program, &cwd, cookie).map_err(|refused| LaunchError::NulByte { what: refused.what })
}
