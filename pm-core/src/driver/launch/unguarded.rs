//! Processes without a keeper: each is held by a thread of its own.
//!
//! The thread starts the process as the keeper would, and ends only when it has reaped it, so that PR_SET_PDEATHSIG, which
//! looks at the thread that started a process, does what it should: the process is killed when the manager dies.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use super::child::{Child, ChildState, Exit, Holder, SignalError, Usage};
use super::error::LaunchError;
use super::{keeper, launcher};
use crate::machine::exit::{ExitStatus, Signal};
use crate::sys::command::{Command, Packed};
use crate::sys::spawn::Spawner;
use crate::sys::wait::{self, Counted, Event, Kind, Whose};
use crate::sys::{keeper_wire, tree};

/// Processes that one [`Child::kill_tree`] looks for.
const KILLS: usize = 4096;

static PREFIX: LazyLock<String> = LazyLock::new(keeper::new_prefix);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A process that a thread of this one holds.
pub(super) struct Unguarded {
    pid: i32,
    held: Mutex<Held>,
}

/// Whoever sends a signal holds the lock, and so does the thread while it reaps: no signal goes to a reused number.
#[derive(Default)]
struct Held {
    reaped: bool,
    killing: bool,
    victims: BTreeSet<i32>,
}

/// Starts `command` from a thread that lives as long as the process.
pub(super) async fn launch(command: Command) -> Result<Child, LaunchError> {
    // Relaxed: only uniqueness matters.
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let packed = launcher::pack(&command, &format!("{}{id}.{}", *PREFIX, command.unit))?;
    let (answer, launched) = oneshot::channel();
    let command = Arc::new(command);
    let theirs = command.clone();
    std::thread::Builder::new()
        .name("pm-child".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || run(theirs, packed, answer))
        .map_err(|source| LaunchError::here(&command, "starting a thread", source))?;
    // If this future is dropped, the channel drops the child, and that kills it.
    launched.await.unwrap_or_else(|_| {
        let source = std::io::Error::other("the thread of the child panicked");
        Err(LaunchError::here(&command, "starting a thread", source))
    })
}

impl Unguarded {
    pub(super) fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        let pid = self.pid.cast_unsigned();
        let held = self.lock();
        if held.reaped {
            return Err(SignalError::Ended { pid, signal });
        }
        tree::send(-self.pid, signal.0).map_err(|source| SignalError::Refused { pid, signal, source })
    }

    pub(super) fn kill_tree(&self) {
        let mut held = self.lock();
        if held.reaped {
            return;
        }
        held.killing = true;
        let culled = tree::cull(&[self.pid], KILLS);
        held.victims.extend(culled.killed.iter().map(|(pid, _)| *pid).filter(|pid| *pid != self.pid));
        for target in [-self.pid, self.pid] {
            // The number is ours until we reap it; an error says that the process cannot be killed by us.
            let _ = tree::send(target, libc::SIGKILL);
        }
    }

    /// Reaps the process, which has ended, and kills what is left of its group.
    fn reap(&self) -> Exit {
        let mut held = self.lock();
        let _ = tree::send(-self.pid, libc::SIGKILL);
        let (status, counted) = wait::reap(self.pid).unwrap_or((ExitStatus::Lost, Counted::default()));
        held.reaped = true;
        let strays = held.victims.iter().take(keeper_wire::NAMED_STRAYS).map(|pid| pid.cast_unsigned()).collect();
        let stray_count = held.victims.len() as u32;
        Exit { status, strays, stray_count, survivors: Vec::new(), usage: counted.into() }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // What it guards is whole at every point where something could panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(command: Arc<Command>, packed: Packed, answer: oneshot::Sender<Result<Child, LaunchError>>) {
    let spawned = Spawner::new().map_err(|source| LaunchError::here(&command, "preparing a stack", source)).and_then(
        |mut spawner| {
            let sources: Vec<_> = command.fds.iter().map(|(_, fd)| fd.as_fd()).collect();
            spawner
                .spawn(&packed.launch(), &sources)
                .map_err(|failure| LaunchError::from_failure(&command, packed.len(), failure))
        },
    );
    // The descriptors are the child's now: a copy that is held here would keep its links open.
    drop(command);
    let pid = match spawned {
        Ok(pid) => pid,
        // If nobody wants to know, nothing is left to do.
        Err(error) => return drop(answer.send(Err(error))),
    };
    let process = Arc::new(Unguarded { pid, held: Mutex::default() });
    let (state, watched) = watch::channel(ChildState::Running);
    let child = Child::new(pid.cast_unsigned(), watched, Holder::Unguarded(process.clone()));
    // A launch that was cancelled gives the child back, and dropping it kills it.
    drop(answer.send(Ok(child)));
    state.send_replace(ChildState::Exited(hold(&process, &state)));
}

/// Waits for the process, which nobody else may do.
fn hold(process: &Unguarded, state: &watch::Sender<ChildState>) -> Exit {
    loop {
        match wait::peek(Whose::Pid(process.pid), true) {
            Ok(Some(Event { kind: Kind::Ended, .. })) => return process.reap(),
            Ok(Some(Event { kind, .. })) => {
                let _ = wait::consume_stop(process.pid);
                if !process.lock().killing {
                    state.send_replace(match kind {
                        Kind::Stopped { signal } => ChildState::Stopped(Signal(signal)),
                        Kind::Continued | Kind::Ended => ChildState::Running,
                    });
                }
            }
            Ok(None) => {}
            // This program ignores SIGCHLD, or waits for children that are not its own: how it ended is gone.
            Err(_) => {
                process.lock().reaped = true;
                return Exit::lost();
            }
        }
    }
}

impl From<Counted> for Usage {
    fn from(counted: Counted) -> Self {
        Usage { user: counted.user, system: counted.system, max_rss_bytes: counted.max_rss_bytes }
    }
}
