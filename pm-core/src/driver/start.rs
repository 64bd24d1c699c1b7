//! How a worker comes to be: as a process, or as a thread of this one.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::command;
use super::launch::{self, Child, ChildState, Command};
use super::listeners::{FIRST_LISTENER, Listeners};
use crate::face::error::StartError;
use crate::machine::cause::ExitCause;
use crate::machine::exit::{ExitStatus, Signal};
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::spec::{self, Program, Spec};
use crate::machine::unit::Farewell;
use crate::sys::outbox;
use crate::transport::{
    Accept, Identity, LINK_VARIABLE, LINK_VARIABLES, Link, OUTBOX_FD_VARIABLE, Place, ROLE_VARIABLE, Transport,
    WORKER_VARIABLE,
};

/// How long the last words of a process are waited for that ended before it took its link, and how many bytes they may have.
const LAST_WORDS: Duration = Duration::from_millis(100);
const MOST_WORDS: u64 = 4 << 10;

/// Starts workers of one sort.
pub(crate) trait Starter: Send + Sync + 'static {
    type Link: Link;

    /// Starts one incarnation of a worker. Cancel safe: what was started is ended.
    fn start(
        &self,
        worker: WorkerId,
        incarnation: Incarnation,
    ) -> impl Future<Output = Result<Started<Self::Link>, StartError>> + Send;

    /// The times that a worker has.
    fn times(&self) -> crate::machine::unit::Times;

    /// What happens to its prints.
    fn stderr(&self) -> spec::Stderr;

    /// The role to ask for in HELLO.
    fn role(&self) -> Option<String>;

    /// Whether a start that is called off may have made something that has to be ended.
    fn makes_something(&self) -> bool {
        true
    }

    /// How long a worker may take from its link to READY, where the time to start does not bound that.
    fn handshake_limit(&self) -> Option<Duration> {
        None
    }

    /// Lets go of what workers share: no other one will be started.
    fn close(&self) {}
}

/// A worker that was started and not yet heard of.
pub(crate) struct Started<L> {
    pub(crate) life: Life,
    pub(crate) link: L,
    /// Where its unwritten answers are, once it is dead.
    pub(crate) outbox: Option<OwnedFd>,
    /// What it prints; none where that is not captured.
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) farewell: Farewell,
}

/// What lives where a worker does.
pub(crate) enum Life {
    Process(Child),
    Thread(super::inprocess::Thread),
    Visitor(super::visitor::Visitor),
}

impl Life {
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Life::Process(child) => child.pid(),
            Life::Thread(_) => std::process::id(),
            Life::Visitor(visitor) => visitor.pid(),
        }
    }

    pub(crate) fn terminate(&self) {
        match self {
            // A process that has ended already needs no signal.
            Life::Process(child) => drop(child.signal(Signal::TERM)),
            Life::Thread(thread) => thread.abandon(),
            Life::Visitor(visitor) => visitor.cut(),
        }
    }

    pub(crate) fn kill(&self) {
        match self {
            Life::Process(child) => child.kill_tree(),
            Life::Thread(thread) => thread.abandon(),
            Life::Visitor(visitor) => visitor.cut(),
        }
    }

    /// Waits for its end. Cancel safe, and gives the same again.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        match self {
            Life::Process(child) => child.exited().await.status,
            Life::Thread(thread) => thread.ended().await,
            Life::Visitor(visitor) => visitor.ended().await,
        }
    }

    /// Its state as it changes; none where it has no states but running and ended.
    pub(crate) fn states(&self) -> Option<tokio::sync::watch::Receiver<ChildState>> {
        match self {
            Life::Process(child) => Some(child.state()),
            Life::Thread(_) | Life::Visitor(_) => None,
        }
    }
}

/// Starts processes over a transport.
pub(crate) struct ProcessStarter<T> {
    pub(crate) pool: Arc<str>,
    pub(crate) spec: Spec,
    pub(crate) transport: T,
    pub(crate) listeners: Mutex<Arc<Listeners>>,
}

impl<T: Transport> Starter for ProcessStarter<T> {
    type Link = T::Link;

    async fn start(&self, worker: WorkerId, incarnation: Incarnation) -> Result<Started<T::Link>, StartError> {
        let (offer, accept) = self.transport.offer()?;
        let unit = format!("{}{worker}.{incarnation}", self.pool);
        let mut command = command::of_spec(&self.spec, &self.pool, unit)?;
        set(&mut command, WORKER_VARIABLE, worker.0.to_string());
        if offer.is_foreign {
            if let Program::Role(_) = self.spec.what() {
                let why = "it is for other programs; this one serves its roles over uds, stdio or shm";
                let value = self.transport.scheme().to_string();
                return Err(StartError::Setting { setting: "the transport", value, why });
            }
        } else {
            // Its link is the one that is made here, whatever the Spec has copied from elsewhere.
            command.env.retain(|(name, _)| !LINK_VARIABLES.iter().any(|known| name == known));
            set(&mut command, LINK_VARIABLE, self.transport.scheme());
            if let Some(role) = self.spec.role_to_serve() {
                set(&mut command, ROLE_VARIABLE, role);
            }
        }
        for (name, value) in offer.env {
            set(&mut command, &name, value);
        }
        let (reader, writer) = std::io::pipe().map_err(|error| refused("make a pipe for its prints", error))?;
        let writer = Arc::new(OwnedFd::from(writer));
        // A worker's prints go to its stderr; a transport over stdio takes descriptor 1 for itself.
        command.fds = vec![(1, writer.clone()), (2, writer)];
        self.listeners().pass_to(&mut command);
        for (place, fd) in offer.fds {
            give(&mut command, place, fd);
        }
        let outbox = self.outbox(&mut command);
        let mut child = launch::launch(self.spec.guard(), command).await?;
        let mut stderr = receiver(reader.into()).map_err(|error| refused("watch the pipe for its prints", error))?;
        let peer = Identity { pid: child.pid() };
        let link = tokio::select! {
            biased;
            link = accept.accept(&peer) => link?,
            // It will never take its half of the link.
            exit = child.exited() => {
                let cause = ExitCause::Exited(exit.status);
                return Err(StartError::Died { cause, stderr: last_words(&mut stderr).await });
            }
        };
        let farewell = offer.farewell;
        Ok(Started { life: Life::Process(child), link, outbox, stderr: Some(stderr), farewell })
    }

    fn times(&self) -> crate::machine::unit::Times {
        self.spec.times()
    }

    fn stderr(&self) -> spec::Stderr {
        self.spec.stderr()
    }

    fn role(&self) -> Option<String> {
        self.spec.role_to_serve().map(Into::into)
    }

    fn close(&self) {
        drop(std::mem::take(&mut *self.listeners()));
    }
}

impl<T: Transport> ProcessStarter<T> {
    fn listeners(&self) -> MutexGuard<'_, Arc<Listeners>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a worker of this program an outbox. Where there can be none, it writes each answer at once.
    fn outbox(&self, command: &mut Command) -> Option<OwnedFd> {
        let Program::Role(_) = self.spec.what() else { return None };
        let ours = outbox::create().ok()?;
        give(command, Place::Variable(OUTBOX_FD_VARIABLE), ours.try_clone().ok()?);
        Some(ours)
    }
}

/// Sets a variable, whatever it was before.
fn set(command: &mut Command, name: &str, value: impl Into<OsString>) {
    command.env.retain(|(known, _)| known != name);
    command.env.push((name.into(), value.into()));
}

/// Gives a process a descriptor: under its number, or under the first one that is free, behind the listeners.
fn give(command: &mut Command, place: Place, fd: OwnedFd) {
    let number = match place {
        Place::Standard(number) => number,
        Place::Variable(name) => {
            let taken = command.fds.iter().map(|(number, _)| *number).max().unwrap_or(0);
            let number = (taken + 1).max(FIRST_LISTENER);
            set(command, name, number.to_string());
            number
        }
    };
    command.fds.retain(|(known, _)| *known != number);
    command.fds.push((number, Arc::new(fd)));
}

/// What a process printed that has ended. A grandchild may hold the pipe open.
async fn last_words(stderr: &mut pipe::Receiver) -> String {
    let mut words = Vec::new();
    let _ = tokio::time::timeout(LAST_WORDS, stderr.take(MOST_WORDS).read_to_end(&mut words)).await;
    String::from_utf8_lossy(&words).into_owned()
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(fd.as_fd(), true)?;
    pipe::Receiver::from_owned_fd(fd)
}

fn refused(action: &'static str, source: io::Error) -> StartError {
    crate::transport::TransportError::Io { scheme: "stderr", action, source }.into()
}
