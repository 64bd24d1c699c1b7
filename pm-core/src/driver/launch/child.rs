//! A process that was launched.

use std::fmt;
#[cfg(feature = "service")]
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "service")]
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::connection::{Connection, NotAsked};
use super::unguarded::Unguarded;
use crate::machine::exit::{ExitStatus, Signal};
#[cfg(feature = "service")]
use crate::sys::command::Text;
#[cfg(feature = "service")]
use crate::sys::keeper_wire::Holding;
use crate::sys::keeper_wire::Request;

/// A process that was launched, with all that it starts.
///
/// Dropping it kills all of that. The drop waits for nothing, and needs no runtime.
pub struct Child {
    pid: u32,
    state: watch::Receiver<ChildState>,
    holder: Holder,
    /// Dropping it leaves the process where it is.
    is_left: bool,
}

/// Who holds the process.
pub(super) enum Holder {
    Keeper { connection: Arc<Connection>, id: u64 },
    Unguarded(Arc<Unguarded>),
}

/// What a child is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildState {
    /// It runs, as far as the kernel lets it.
    Running,
    /// A signal stopped it, such as SIGSTOP. It can be killed, or go on after SIGCONT.
    Stopped(Signal),
    /// It has ended.
    Exited(Exit),
}

/// How a child ended, and what ended with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// How the process itself ended.
    pub status: ExitStatus,
    /// The other processes of its tree that pm killed, at most 32 of them, smallest pid first. Without a keeper, only
    /// those that [`Child::kill_tree`] found.
    pub strays: Vec<u32>,
    /// How many there were (up to 4,096).
    pub stray_count: u32,
    /// Processes of the tree that did not die within 5 s of SIGKILL, at most 32 of them: uninterruptible, held by a
    /// debugger, or of another user.
    pub survivors: Vec<u32>,
    /// What it used. Zero if the status is [`ExitStatus::Lost`].
    pub usage: Usage,
}

/// What the kernel counted for a process and for those of its children that it waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in the program.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The most memory that the largest of them had resident, in bytes.
    pub max_rss_bytes: u64,
}

/// A signal could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// The process has ended, and its number may belong to another one.
    #[error("{signal} was not sent to process {pid}: it has ended")]
    Ended {
        /// The process.
        pid: u32,
        /// The signal.
        signal: Signal,
    },
    /// So many requests wait for the keeper that this one was not added.
    #[error("{signal} was not sent to process {pid}: the keeper is too far behind; try again")]
    Busy {
        /// The process.
        pid: u32,
        /// The signal.
        signal: Signal,
    },
    /// The kernel refused: not a signal, or a process of another user.
    #[error("{signal} was not sent to process {pid}")]
    Refused {
        /// The process.
        pid: u32,
        /// The signal.
        signal: Signal,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Child {
    pub(super) fn new(pid: u32, state: watch::Receiver<ChildState>, holder: Holder) -> Self {
        Child { pid, state, holder, is_left: false }
    }

    /// The number of the process, which is also the number of its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends `signal` to the process group: to the process and those of its descendants that have not left the group. It
    /// goes to nobody else even if the process ends meanwhile.
    pub fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        let pid = self.pid;
        if self.exit().is_some() {
            return Err(SignalError::Ended { pid, signal });
        }
        match &self.holder {
            Holder::Keeper { .. } if !(1..=64).contains(&signal.0) => {
                let source = std::io::ErrorKind::InvalidInput.into();
                Err(SignalError::Refused { pid, signal, source })
            }
            Holder::Keeper { connection, id } => {
                connection.ask(&Request::Signal { id: *id, signal: signal.0 }).map_err(|refused| match refused {
                    NotAsked::Gone => SignalError::Ended { pid, signal },
                    NotAsked::Busy => SignalError::Busy { pid, signal },
                    NotAsked::Io(source) => SignalError::Refused { pid, signal, source },
                })
            }
            Holder::Unguarded(process) => process.signal(signal),
        }
    }

    /// Sends `signal` like [`Child::signal`], and from then on, when the process has ended, lets those that it has started end as well: [`exited`](Self::exited) waits for
    /// them, and [`kill_tree`](Self::kill_tree) ends them. Without a keeper they are killed with the process.
    pub fn ask_tree(&self, signal: Signal) -> Result<(), SignalError> {
        self.linger(signal, true);
        self.signal(signal)
    }

    /// The same for a process that is asked in another way: what it has started gets `signal` once the process has ended.
    pub fn let_tree_end(&self, signal: Signal) {
        self.linger(signal, false);
    }

    fn linger(&self, signal: Signal, was_asked: bool) {
        if let Holder::Keeper { connection, id } = &self.holder {
            // Where it does not arrive they are killed with the process, as usual.
            let _ = connection.ask(&Request::Linger { id: *id, signal: signal.0, was_asked });
        }
    }

    /// Lets the process outlive this one, where its keeper stays, and has the keeper hold these descriptors for it. `note` is for the next manager, and
    /// says what becomes of its output until then. What is given is told where the keeper has no room for them; none is that it cannot be asked.
    #[cfg(feature = "service")]
    pub(super) fn keep(&self, note: &[u8], held: &[(Holding, BorrowedFd<'_>)]) -> Option<oneshot::Receiver<()>> {
        match &self.holder {
            Holder::Keeper { connection, id } => connection.keep(*id, note, held).ok(),
            Holder::Unguarded(_) => None,
        }
    }

    /// Leaves the process to its keeper, which keeps it for the next manager.
    #[cfg(feature = "service")]
    pub(crate) fn leave(mut self) {
        self.is_left = true;
    }

    /// It is not to be kept for the next manager any more.
    #[cfg(feature = "service")]
    pub(crate) fn unkeep(&self) {
        if let Holder::Keeper { connection, id } = &self.holder {
            // Where the keeper is too far behind to be asked it is kept, and the next manager ends it.
            let _ = connection.ask(&Request::Unkeep { id: *id });
        }
    }

    /// How it has ended is known and what it said last was read: its keeper need not remember that for the next manager.
    #[cfg(feature = "service")]
    pub(crate) fn forget(&self) {
        if let Holder::Keeper { connection, id } = &self.holder {
            // Then the next one hears of it once more.
            let _ = connection.ask(&Request::Forget { id: *id });
        }
    }

    /// Has another note for the next manager.
    #[cfg(feature = "service")]
    pub(crate) fn note(&self, note: &[u8]) {
        if let Holder::Keeper { connection, id } = &self.holder {
            // Then the older one has to do.
            let _ = connection.ask(&Request::Note { id: *id, note: Text(note) });
        }
    }

    /// The connection to its keeper, where it has one.
    #[cfg(feature = "service")]
    pub(super) fn connection(&self) -> Option<&Arc<Connection>> {
        match &self.holder {
            Holder::Keeper { connection, .. } => Some(connection),
            Holder::Unguarded(_) => None,
        }
    }

    /// Kills the process and all that descends from it. [`exited`](Self::exited) tells when that is done.
    pub fn kill_tree(&self) {
        if self.exit().is_some() {
            return;
        }
        match &self.holder {
            Holder::Keeper { connection, id } => connection.kill(*id),
            Holder::Unguarded(process) => process.kill_tree(),
        }
    }

    /// Waits until the process has ended and, under the keeper, nothing of its tree is left (or has survived SIGKILL for 5 s).
    ///
    /// It waits for processes, never for pipes that somebody holds open. Cancel safe; it may be called again and then gives
    /// the same answer.
    pub async fn exited(&mut self) -> Exit {
        let ended = self.state.wait_for(|state| matches!(state, ChildState::Exited(_))).await;
        match ended.as_deref() {
            Ok(ChildState::Exited(exit)) => exit.clone(),
            // The sender ends only with a last word, so this is never so.
            _ => Exit::lost(),
        }
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match &*self.state.borrow() {
            ChildState::Exited(exit) => Some(exit.clone()),
            ChildState::Running | ChildState::Stopped(_) => None,
        }
    }

    /// What it is doing, to watch from elsewhere.
    pub fn state(&self) -> watch::Receiver<ChildState> {
        self.state.clone()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        self.kill_tree();
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("pid", &self.pid).field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Exit {
    /// An end of which nothing is known.
    pub(super) fn lost() -> Self {
        Exit {
            status: ExitStatus::Lost,
            strays: Vec::new(),
            stray_count: 0,
            survivors: Vec::new(),
            usage: Usage::default(),
        }
    }
}
