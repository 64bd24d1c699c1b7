//! The connection to a keeper that outlives its managers.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;
use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    Connection, LAUNCHES, Message, NotAsked, OUTGOING, READY_LIMIT, Shared, Talk, Unit, encode, exit_of, thread,
};
use crate::driver::launch::child::{Child, ChildState, Exit, Holder};
use crate::sys::command::Text;
use crate::sys::keeper_wire::{self as wire, Greeting, Holding, Reply, Request};
use crate::sys::seqpacket;

/// A process that has outlived the manager that started it, as its keeper tells of it.
pub(crate) struct Kept {
    pub(crate) child: Child,
    pub(crate) note: Vec<u8>,
    pub(crate) held: Vec<(Holding, OwnedFd)>,
    /// It has said so since that manager was gone.
    pub(crate) is_ready: bool,
    /// How it has ended meanwhile, and how long ago.
    pub(crate) ended: Option<(Exit, Duration)>,
}

/// What a keeper has kept, and the socket at which it waits for managers.
pub(in crate::driver::launch) struct Adopted {
    pub(in crate::driver::launch) connection: Arc<Connection>,
    pub(in crate::driver::launch) units: Vec<Kept>,
    pub(in crate::driver::launch) listener: OwnedFd,
}

impl Connection {
    /// Becomes the manager of a keeper that has outlived its own. Waits for that keeper, 10 s at most.
    ///
    /// # Errors
    /// What the kernel says, and in words what is wrong with who listens there.
    pub(in crate::driver::launch) fn adopt(socket: OwnedFd) -> io::Result<Adopted> {
        let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        seqpacket::send(&socket, &Greeting::Adopt { version: wire::VERSION }.bytes(), &[me.as_fd()])?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let heard = hear_of_kept(&socket)?;
        let mut units = HashMap::new();
        let watched = heard.units.into_iter().map(|told| {
            let state = told.ended.as_ref().map(|(exit, _)| ChildState::Exited(exit.clone()));
            let is_alive = state.is_none();
            let (state, watched) = watch::channel(state.unwrap_or(ChildState::Running));
            if is_alive {
                units.insert(told.id, Unit { launched: None, state, kill_asked: false, not_kept: None });
            }
            (told, watched)
        });
        let watched: Vec<_> = watched.collect();
        let connection = Arc::new(Connection {
            owner: std::process::id(),
            socket,
            bell,
            prefix: String::from_utf8_lossy(&heard.prefix).into_owned(),
            room: Semaphore::new(LAUNCHES),
            next: AtomicU64::new(heard.next),
            stays: AtomicBool::new(true),
            shared: Mutex::new(Shared { units, outgoing: VecDeque::new(), gone: None }),
        });
        let child = |id, pid, watched| Child::new(pid, watched, Holder::Keeper { connection: connection.clone(), id });
        let units = watched.into_iter().map(|(told, watched)| Kept {
            child: child(told.id, told.pid, watched),
            note: told.note,
            held: told.held,
            is_ready: told.is_ready,
            ended: told.ended,
        });
        let units = units.collect();
        let ours = connection.clone();
        thread(move || {
            // It closes its socket when it ends, or it is a stranger.
            let _ = ours.serve(&mut Talk { ready: true, broken: None });
            ours.lost();
        })?;
        Ok(Adopted { connection, units, listener: heard.listener })
    }

    /// Has the keeper wait at a socket for the next manager when this process has gone, with what is kept. Asked once.
    pub(in crate::driver::launch) fn stay(&self, listener: BorrowedFd<'_>, path: &[u8], patience: Duration) {
        // Relaxed: a second request changes nothing.
        if self.stays.swap(true, Ordering::Relaxed) {
            return;
        }
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        if self.tell(&Request::Stay { path: Text(path), patience_ms }, &[listener]).is_err() {
            self.stays.store(false, Ordering::Relaxed);
        }
    }

    /// Has the keeper keep a unit. What is given is told where it cannot.
    pub(in crate::driver::launch) fn keep(
        &self,
        id: u64,
        note: &[u8],
        held: &[(Holding, BorrowedFd<'_>)],
    ) -> Result<oneshot::Receiver<()>, NotAsked> {
        let (held, fds): (Vec<Holding>, Vec<BorrowedFd<'_>>) = held.iter().copied().unzip();
        let (not_kept, heard) = oneshot::channel();
        if let Some(unit) = self.lock().units.get_mut(&id) {
            unit.not_kept = Some(not_kept);
        }
        self.tell(&Request::Keep { id, note: Text(note), held }, &fds)?;
        Ok(heard)
    }

    /// Has the keeper end with this process, and with it all that is kept.
    pub(in crate::driver::launch) fn keep_nothing(&self) {
        if self.stays.swap(false, Ordering::Relaxed) && self.is_ours() {
            // Never refused. If the keeper has gone there is nothing to leave.
            let message = Message { bytes: encode(&Request::KeepNothing), fds: Vec::new() };
            let _ = self.send(&mut self.lock(), message, usize::MAX);
        }
    }

    /// Sends a request with descriptors, which may be refused.
    pub(in crate::driver::launch) fn tell(
        &self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), NotAsked> {
        if !self.is_ours() {
            return Err(NotAsked::Gone);
        }
        let fds: io::Result<Vec<_>> = fds.iter().map(|fd| Ok(Arc::new(fd.try_clone_to_owned()?))).collect();
        let message = Message { bytes: encode(request), fds: fds.map_err(NotAsked::Io)? };
        self.send(&mut self.lock(), message, OUTGOING)
    }
}

/// What a keeper tells the next manager.
struct Heard {
    units: Vec<Told>,
    prefix: Vec<u8>,
    next: u64,
    listener: OwnedFd,
}

struct Told {
    id: u64,
    pid: u32,
    note: Vec<u8>,
    held: Vec<(Holding, OwnedFd)>,
    is_ready: bool,
    ended_ago: Option<Duration>,
    ended: Option<(Exit, Duration)>,
}

/// Hears of all that was kept.
fn hear_of_kept(socket: &OwnedFd) -> io::Result<Heard> {
    let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let deadline = Instant::now() + READY_LIMIT;
    let mut buffer = vec![0; wire::MESSAGE];
    let mut units: Vec<Told> = Vec::new();
    loop {
        let mut fds = Vec::new();
        let received = match seqpacket::receive(socket, &mut buffer, &mut fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {READY_LIMIT:?}")));
                }
                let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as i64 };
                // An error can only be EINTR here, and then it is asked again.
                let _ = rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left));
                continue;
            }
            received => received?,
        };
        if received.length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended, or is no keeper"));
        }
        if received.descriptors_lost {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        for reply in wire::replies(&buffer[..received.length]) {
            let reply = reply.map_err(|error| wrong(format!("it does not speak the keeper's protocol ({error})")))?;
            match reply {
                Reply::Kept { id, pid, note, held, is_ready, ended_ms_ago } => {
                    let held = held.into_iter().zip(fds.drain(..)).collect();
                    let ended_ago = ended_ms_ago.map(Duration::from_millis);
                    units.push(Told { id, pid, note, held, is_ready, ended_ago, ended: None });
                }
                Reply::Exited { id, .. } => {
                    if let Some(told) = units.iter_mut().find(|told| told.id == id)
                        && let Some((_, exit)) = exit_of(reply)
                    {
                        told.ended = Some((exit, told.ended_ago.unwrap_or_default()));
                    }
                }
                Reply::AllKept { prefix, next } => {
                    let listener = fds.pop().ok_or_else(|| wrong("it gave no socket".into()))?;
                    return Ok(Heard { units, prefix, next, listener });
                }
                Reply::Broken { step, .. } => return Err(wrong(step.text())),
                // READY; and what may happen before it has told all is told behind that.
                _ => {}
            }
        }
    }
}
