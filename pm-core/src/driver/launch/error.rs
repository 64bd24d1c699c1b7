//! Why a process was not started.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::program;
use crate::sys::command::{Command, MAX_DESCRIPTORS};
use crate::sys::spawn::{Failure, Stage};

/// Why a process was not started. No process and no descriptor is left behind by it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// There is no such program.
    #[error("program {program:?} was not found{}: install it, or give its full path", searched(.path))]
    NotFound {
        /// The program as it was named.
        program: PathBuf,
        /// The PATH that was searched, if one was.
        path: Option<OsString>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program may not be executed.
    #[error(
        "program {program:?} may not be executed: check that it is a file with the execute bit (chmod +x), that its \
         directories may be searched, and that its file system is not mounted noexec"
    )]
    PermissionDenied {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program is there, and what should run it is not: the `#!` line of a script or the loader of a binary names a
    /// file that does not exist.
    #[error(
        "program {program:?} is to be run by {interpreter:?}, which does not exist: install it, or correct the name"
    )]
    BadInterpreter {
        /// The program.
        program: PathBuf,
        /// What should run it.
        interpreter: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is not a program that this machine can run.
    #[error(
        "program {program:?} is not in a format that this machine can run: a script must begin with #! and its \
         interpreter, a binary must be for this architecture"
    )]
    BadExecutable {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The working directory cannot be entered.
    #[error("working directory {directory:?} cannot be entered: create it, or choose another")]
    BadWorkingDirectory {
        /// The directory.
        directory: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no room for another open file, here or in the keeper.
    #[error("too many open files: raise the limit (ulimit -n, LimitNOFILE=), or start fewer processes at a time")]
    TooManyFiles {
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no room for another process.
    #[error(
        "too many processes: raise the limit (ulimit -u, pids.max of the control group, TasksMax=), or start fewer"
    )]
    TooManyProcesses {
        /// What the kernel said.
        source: io::Error,
    },
    /// Arguments and environment are longer than the kernel allows.
    #[error(
        "arguments and environment of {program:?} take {bytes} bytes, more than the kernel allows (a quarter of the stack \
         limit, 128 KiB for a single one): pass less, or pass it in a file"
    )]
    ArgumentsTooLong {
        /// The program.
        program: PathBuf,
        /// Their length together, in bytes.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is not enough memory for another process.
    #[error(
        "not enough memory to start {program:?}: raise the limit of the control group or the address space, or start fewer"
    )]
    OutOfMemory {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A resource limit or a nice value was refused.
    #[error(
        "{limit} was refused: only a privileged process may go beyond its own hard limits and below its own nice value"
    )]
    LimitRefused {
        /// The limit and its value.
        limit: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The change of user or group was refused.
    #[error("becoming {user} was refused: only a privileged process may change its user or group")]
    UserRefused {
        /// The user and group.
        user: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A NUL byte stands in something that the kernel reads up to the first NUL byte.
    #[error("{what} holds a NUL byte, which no process can be given: remove it")]
    NulByte {
        /// Where it stands.
        what: String,
    },
    /// The role is one of this program, and this program never called `pm::roles()`.
    #[error(
        "this program did not call pm::roles() at the top of main, so it cannot start itself as a worker: call it \
         there, or, in a test, serve .in_process()"
    )]
    RolesNotCalled,
    /// There is no program that could be the keeper, or the one that there is failed.
    #[error(
        "no keeper: {reason}. Call pm::roles() first in main, so that this program can be its own keeper; or install pm \
         (or name it in PM_KEEPER); or say .unguarded() on the Spec, and what the process leaves behind is not cleaned up"
    )]
    NoKeeper {
        /// What was tried, and how it failed.
        reason: String,
    },
    /// The keeper ended while it was to start the process. If the process had started, it has been killed.
    #[error("the keeper ended while it was to start {program:?}: try again, a new keeper will be started")]
    KeeperLost {
        /// The program.
        program: PathBuf,
    },
    /// The kernel, or a filter around this process (seccomp, a container), does not offer what is needed.
    #[error("this system does not allow {what}: Linux 5.9 or later is needed, without a filter for it")]
    Unsupported {
        /// What is not allowed.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else failed.
    #[error("starting {program:?} failed at {step}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl LaunchError {
    /// More descriptors than one process can be given.
    pub(super) fn too_many_descriptors(count: usize) -> Self {
        LaunchError::Unsupported {
            what: format!("{count} descriptors for one process (at most {MAX_DESCRIPTORS})"),
            source: io::ErrorKind::InvalidInput.into(),
        }
    }

    /// What failed on the manager's side, before the launch reached anybody.
    pub(in crate::driver) fn here(command: &Command, step: &'static str, source: io::Error) -> Self {
        let program = command.program.clone();
        match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ETOOMANYREFS) => LaunchError::TooManyFiles { source },
            Some(libc::EAGAIN) => LaunchError::TooManyProcesses { source },
            Some(libc::ENOMEM) => LaunchError::OutOfMemory { program, source },
            _ => LaunchError::Failed { program, step, source },
        }
    }

    /// What `failure` means for `command`, whose strings took `bytes`.
    pub(super) fn from_failure(command: &Command, bytes: usize, failure: Failure) -> Self {
        let source = io::Error::from_raw_os_error(failure.errno);
        let program = command.program.clone();
        match (failure.stage, failure.errno) {
            (Stage::Descriptors, libc::EMFILE | libc::ENFILE | libc::EBADF | libc::EINVAL)
            | (_, libc::EMFILE | libc::ENFILE) => LaunchError::TooManyFiles { source },
            (Stage::Clone | Stage::Identity | Stage::Program, libc::EAGAIN) => LaunchError::TooManyProcesses { source },
            (Stage::Limit(index), _) => LaunchError::LimitRefused { limit: limit_text(command, index), source },
            (Stage::Nice, _) => {
                LaunchError::LimitRefused { limit: format!("nice value {}", command.nice.unwrap_or(0)), source }
            }
            (Stage::Identity, libc::EPERM | libc::EINVAL) => {
                LaunchError::UserRefused { user: user_text(command), source }
            }
            (
                Stage::Directory,
                libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP | libc::ENAMETOOLONG | libc::ESTALE,
            ) => LaunchError::BadWorkingDirectory { directory: command.cwd.clone().unwrap_or_default(), source },
            (Stage::Program, libc::ENOENT | libc::ENOTDIR) => match program::missing_interpreter(&program) {
                Some(interpreter) => LaunchError::BadInterpreter { program, interpreter, source },
                None => LaunchError::NotFound { program, path: None, source },
            },
            (Stage::Program, libc::EACCES | libc::EPERM | libc::EISDIR) => {
                LaunchError::PermissionDenied { program, source }
            }
            (Stage::Program, libc::ENOEXEC | libc::ELIBBAD) => LaunchError::BadExecutable { program, source },
            (Stage::Program | Stage::Request, libc::E2BIG) => LaunchError::ArgumentsTooLong { program, bytes, source },
            (_, libc::ENOMEM) => LaunchError::OutOfMemory { program, source },
            (Stage::Clone, libc::EPERM | libc::ENOSYS | libc::EINVAL) => {
                LaunchError::Unsupported { what: "clone with CLONE_VM and CLONE_VFORK".to_owned(), source }
            }
            (Stage::Descriptors, libc::ENOSYS | libc::EPERM) => {
                LaunchError::Unsupported { what: "close_range".to_owned(), source }
            }
            (stage, _) => LaunchError::Failed { program, step: step_text(stage), source },
        }
    }
}

/// The longest PATH that is shown, in bytes.
const LONGEST_SHOWN: usize = 60;

fn searched(path: &Option<OsString>) -> String {
    match path {
        // A long one says nothing that people do not know, and hides what they should see.
        Some(path) if path.len() <= LONGEST_SHOWN => format!(" in PATH {path:?}"),
        Some(_) => " in PATH".into(),
        None => String::new(),
    }
}

fn limit_text(command: &Command, index: u32) -> String {
    let show = |value: u64| if value == u64::MAX { "none".to_owned() } else { value.to_string() };
    match command.rlimits.get(index as usize) {
        Some((resource, soft, hard)) => format!("{} soft {} hard {}", resource.name(), show(*soft), show(*hard)),
        None => "a limit".to_owned(),
    }
}

fn user_text(command: &Command) -> String {
    let uid = command.uid.map(|uid| format!("uid {uid}"));
    let gid = command.gid.map(|gid| format!("gid {gid}"));
    uid.into_iter().chain(gid).collect::<Vec<_>>().join(" and ")
}

fn step_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Request => "reading the request in the keeper",
        Stage::Clone => "clone",
        Stage::Group => "setpgid",
        Stage::Session => "setsid",
        Stage::Descriptors => "placing the descriptors",
        Stage::Terminal => "taking the terminal",
        Stage::Limit(_) => "setrlimit",
        Stage::Nice => "setpriority",
        Stage::Identity => "changing the user",
        Stage::DeathSignal => "PR_SET_PDEATHSIG",
        Stage::Orphaned => "looking for the keeper, which has died",
        Stage::Directory => "entering the working directory",
        Stage::Program => "execve",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::command::Resource;

    fn check(command: &Command, stage: Stage, errno: i32, expected: &str) {
        let error = LaunchError::from_failure(command, 0, Failure { stage, errno });
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn errors_name_the_value_and_the_way_out() {
        let mut command = Command::new("/no/such/program", "a");
        command.cwd = Some("/no/such/directory".into());
        command.rlimits = vec![(Resource::OpenFiles, 10, u64::MAX)];
        command.uid = Some(5);
        command.gid = Some(7);
        check(&command, Stage::Program, libc::ENOENT, "\"/no/such/program\" was not found: install it");
        check(&command, Stage::Program, libc::EACCES, "chmod +x");
        check(&command, Stage::Program, libc::ENOEXEC, "begin with #!");
        check(&command, Stage::Directory, libc::ENOENT, "\"/no/such/directory\"");
        check(&command, Stage::Limit(0), libc::EPERM, "RLIMIT_NOFILE soft 10 hard none was refused");
        check(&command, Stage::Identity, libc::EPERM, "becoming uid 5 and gid 7");
        check(&command, Stage::Clone, libc::EAGAIN, "too many processes");
        check(&command, Stage::Clone, libc::EPERM, "does not allow clone");
    }
}
