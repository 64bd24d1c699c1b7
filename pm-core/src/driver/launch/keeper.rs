//! Which program is the keeper, and the one connection to it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{env, process};

use super::connection::Connection;
use super::error::LaunchError;
use super::program::resolve_program;
use crate::sys;
use crate::sys::command::UNIT_VARIABLE;
use crate::sys::keeper::keeping::OpenCapture;
use crate::transport::ROLE_VARIABLE;

/// The role of the keeper.
pub const KEEPER_ROLE: &str = "pm-keeper";

/// The variable that names the program to run as the keeper, as `$PM_KEEPER keeper`, where this program cannot be it.
pub const KEEPER_VARIABLE: &str = "PM_KEEPER";

/// Whether [`run_if_keeper`] was called: only then may this program start itself. Set and read with no other data, so the
/// order is Relaxed.
static ROLES_CALLED: AtomicBool = AtomicBool::new(false);

/// The connection that launches use. Whoever finds it gone makes a new one.
static CONNECTION: Mutex<Option<Arc<Connection>>> = Mutex::new(None);

/// What takes the output of processes that have no manager.
#[cfg(feature = "service")]
const OPEN_CAPTURE: OpenCapture = crate::driver::service::keep::open_capture;
#[cfg(not(feature = "service"))]
const OPEN_CAPTURE: OpenCapture = |_| None;

/// Becomes the keeper and never returns, if this process was started as one. Otherwise it notes that this program can be
/// its own keeper, and returns.
///
/// To be called first in `main`, before any thread, runtime or logger; `pm::roles()` does it.
pub fn run_if_keeper() {
    ROLES_CALLED.store(true, Ordering::Relaxed);
    if env::var_os(ROLE_VARIABLE).is_some_and(|role| role == KEEPER_ROLE) {
        serve_as_keeper();
    }
}

/// Is the keeper of the manager whose socket is the standard input, until that manager has gone and nothing of it is left.
/// `pm keeper` is this. A person who starts it is told so, and it ends with code 64.
pub fn serve_as_keeper() -> ! {
    match sys::keeper::control_socket() {
        Some(control) => sys::keeper::main(control, OPEN_CAPTURE),
        None => {
            eprintln!("the keeper is started by pm, with its socket as standard input, and by nobody else");
            process::exit(64) // EX_USAGE
        }
    }
}

/// Whether this program has called `pm::roles()`, and so may start itself.
pub fn roles_called() -> bool {
    ROLES_CALLED.load(Ordering::Relaxed)
}

/// The connection to the keeper. If there is none a keeper is being started; the requests wait in the socket until it reads
/// them.
pub(super) fn current() -> Result<Arc<Connection>, LaunchError> {
    let mut current = lock();
    if let Some(connection) = current.as_ref().filter(|connection| connection.is_usable()) {
        return Ok(connection.clone());
    }
    let connection = Connection::start(Program::find()?)?;
    *current = Some(connection.clone());
    Ok(connection)
}

/// The connection that launches use, if there is one.
#[cfg(feature = "service")]
pub(super) fn connected() -> Option<Arc<Connection>> {
    lock().clone()
}

/// Has launches use a keeper that was taken over. What another one has started stays with that.
#[cfg(feature = "service")]
pub(super) fn use_connection(connection: Arc<Connection>) {
    *lock() = Some(connection);
}

/// The beginning of the cookies of one connection, or of the unguarded children: no other in this machine begins so. A
/// manager that is itself a unit of another manager puts that unit's cookie in front, so that the outer keeper knows its
/// strays, too.
pub(super) fn new_prefix() -> String {
    let outer = env::var(UNIT_VARIABLE).map(|outer| outer + "/").unwrap_or_default();
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    format!("{outer}{}-{now:x}.", process::id())
}

/// What can be run as the keeper.
#[derive(Debug)]
pub(super) enum Program {
    /// This program, which has called [`run_if_keeper`].
    Own,
    /// `pm`, or what takes its place.
    Named(PathBuf),
}

impl Program {
    fn find() -> Result<Self, LaunchError> {
        if roles_called() {
            return Ok(Program::Own);
        }
        let path = env::var_os("PATH");
        let named = env::var_os(KEEPER_VARIABLE).filter(|name| !name.is_empty());
        let name = named.as_deref().unwrap_or(OsStr::new("pm"));
        resolve_program(name, path.as_deref()).map(Program::Named).map_err(|error| {
            let source = if named.is_some() {
                format!("{KEEPER_VARIABLE} names no program")
            } else {
                "pm is not installed".into()
            };
            LaunchError::NoKeeper { reason: format!("this program did not call pm::roles(), and {source} ({error})") }
        })
    }

    /// Starts the keeper with `control` as its standard input. The error says why not.
    pub(super) fn start(&self, control: OwnedFd) -> Result<Child, String> {
        // Nothing here keeps std from posix_spawn, so the size of this process does not matter.
        let mut command = match self {
            Program::Own => {
                let mut command = Command::new("/proc/self/exe");
                command.arg0(KEEPER_ROLE).env(ROLE_VARIABLE, KEEPER_ROLE);
                command
            }
            Program::Named(path) => {
                let mut command = Command::new(path);
                command.arg("keeper").env_remove(ROLE_VARIABLE);
                command
            }
        };
        command.stdin(control).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| format!("{self} cannot be executed ({error})"))
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Program::Own => f.write_str("this program, /proc/self/exe,"),
            Program::Named(path) => write!(f, "{path:?}"),
        }
    }
}

fn lock() -> MutexGuard<'static, Option<Arc<Connection>>> {
    // The lock guards one assignment, which a panic cannot leave half done.
    CONNECTION.lock().unwrap_or_else(PoisonError::into_inner)
}
