//! Units that outlive their manager.
//!
//! The manager asks the keeper to stay, at a socket on which it listens, and to keep certain units, whose descriptors the keeper then
//! holds as well. When the manager has gone, all that is not kept is killed. The output of what is kept is captured, so that nobody gets SIGPIPE or waits for a
//! pipe that is full; its ends are remembered. The next manager connects to the socket and is given all of that.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;

use super::super::datagram;
use super::super::keeper_wire::{self as wire, Holding, Reply, Request, Setup};
use super::super::seqpacket;
use super::{Keeper, Message, drain};

/// What takes the output of a unit while there is no manager.
pub(crate) trait Capture: fmt::Debug {
    /// Takes what was read of a stream.
    fn take(&mut self, stream: u8, bytes: &[u8]);

    /// The end of a stream. Nothing more follows of it.
    fn end(&mut self, stream: u8);

    /// The next manager takes over from here.
    fn hand_over(&mut self);
}

/// Makes what captures the output of a unit, as the manager's note says. None where nothing does: then it is dropped.
pub(crate) type OpenCapture = fn(&[u8]) -> Option<Box<dyn Capture>>;

/// How long one who connects may take to say that it is the next manager.
const HELLO_LIMIT: Duration = Duration::from_secs(1);

/// Requests of the dead manager that are still looked at: as many as it may have had waiting, and some.
const LAST_REQUESTS: usize = 8192;

/// What is read of one stream in a turn.
const READ: usize = 64 * 1024;

/// Messages of sd_notify(3) that are taken of one unit in a turn.
const MESSAGES_A_TURN: usize = 16;

/// Where the next manager is waited for.
#[derive(Debug)]
pub(super) struct Stay {
    listener: OwnedFd,
    path: PathBuf,
    patience: Duration,
}

/// What is held of a unit.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) note: Vec<u8>,
    held: Vec<Held>,
    capture: Option<Box<dyn Capture>>,
    is_ready: bool,
}

#[derive(Debug)]
struct Held {
    holding: Holding,
    fd: OwnedFd,
    has_ended: bool,
}

/// What there is to tell once somebody is there to be told.
#[derive(Debug, Default)]
pub(super) struct Alone {
    ended: Vec<Ended>,
}

#[derive(Debug)]
struct Ended {
    id: u64,
    leader: i32,
    kept: Kept,
    exited: Reply,
}

impl Kept {
    pub(super) fn new(note: &[u8], held: impl Iterator<Item = (Holding, OwnedFd)>) -> Self {
        let held = held.map(|(holding, fd)| {
            if let (Holding::Stream(_), Ok(flags)) = (holding, rustix::fs::fcntl_getfl(&fd)) {
                // The manager reads it in the same way, so nobody is surprised.
                let _ = rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK);
            }
            Held { holding, fd, has_ended: false }
        });
        let held = held.collect();
        Kept { note: note.to_vec(), held, capture: None, is_ready: false }
    }

    /// Reads once what is there. A stream that has ended is not read again.
    fn pump(&mut self, buffer: &mut [u8]) {
        for held in self.held.iter_mut().filter(|held| !held.has_ended) {
            match held.holding {
                Holding::Stream(stream) => {
                    match rustix::io::read(&held.fd, &mut *buffer) {
                        Ok(count) if count > 0 => {
                            if let Some(capture) = &mut self.capture {
                                capture.take(stream, &buffer[..count]);
                            }
                        }
                        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                        // A pipe ends with nothing, a terminal with an error.
                        _ => held.end(self.capture.as_deref_mut()),
                    }
                }
                Holding::Notify { uid } => {
                    for _ in 0..MESSAGES_A_TURN {
                        let Ok((text, sender)) = datagram::receive(&held.fd) else { break };
                        self.is_ready |= (sender == Some(uid) || sender == Some(0)) && says_ready(&text);
                    }
                }
                Holding::Open => {}
            }
        }
    }

    /// Reads what its processes have left in its streams. Whoever else writes there is not waited for.
    fn drain(&mut self, buffer: &mut [u8]) {
        for held in &mut self.held {
            let Holding::Stream(stream) = held.holding else { continue };
            let mut left = rustix::io::ioctl_fionread(&held.fd).unwrap_or(0);
            while left > 0 && !held.has_ended {
                let Ok(count @ 1..) = rustix::io::read(&held.fd, &mut *buffer) else { break };
                left = left.saturating_sub(count as u64);
                if let Some(capture) = &mut self.capture {
                    capture.take(stream, &buffer[..count]);
                }
            }
            held.end(self.capture.as_deref_mut());
        }
    }
}

impl Held {
    fn end(&mut self, capture: Option<&mut (dyn Capture + 'static)>) {
        if let Holding::Stream(stream) = self.holding
            && !std::mem::replace(&mut self.has_ended, true)
            && let Some(capture) = capture
        {
            capture.end(stream);
        }
    }
}

impl Alone {
    /// What is not kept has nobody to tell its end to.
    pub(super) fn note_exit(&mut self, id: u64, leader: i32, kept: Option<Kept>, exited: Reply) {
        if let Some(mut kept) = kept {
            kept.drain(&mut vec![0; READ]);
            kept.capture = None;
            self.ended.push(Ended { id, leader, kept, exited });
        }
    }
}

impl Keeper {
    pub(super) fn stay(&mut self, path: &[u8], patience_ms: u64, mut fds: Vec<OwnedFd>) {
        if let Some(listener) = fds.pop() {
            let (path, patience) = (PathBuf::from(OsStr::from_bytes(path)), Duration::from_millis(patience_ms));
            self.stay = Some(Stay { listener, path, patience });
        }
    }

    /// Waits for nobody any more. Where there is no manager the socket is the keeper's.
    pub(super) fn close_meeting(&mut self) {
        if let Some(stay) = self.stay.take() {
            // Before it is closed: who finds it closed makes another one.
            let _ = fs::remove_file(&stay.path);
        }
    }

    /// Outlives no manager any more.
    pub(super) fn leave(&mut self) {
        self.stay = None;
        for unit in self.units.values_mut() {
            unit.kept = None;
        }
    }

    pub(super) fn keep(&mut self, id: u64, kept: Kept, descriptors_lost: bool) {
        let Some(unit) = self.units.get_mut(&id).filter(|unit| !unit.killing) else { return };
        if descriptors_lost {
            self.reply(&Reply::NotKept { id });
        } else {
            unit.kept = Some(kept);
        }
    }

    /// Waits for the next manager, if there is something to wait for. False where all that is left is to go.
    pub(super) fn wait_for_manager(&mut self) -> bool {
        self.hear_last_requests();
        if self.stay.is_none() {
            return false;
        }
        self.end_with_manager();
        let mut buffer = vec![0; READ];
        let mut is_done_since = None;
        loop {
            for kept in self.units.values_mut().filter_map(|unit| unit.kept.as_mut()) {
                kept.pump(&mut buffer);
            }
            let lives = self.units.values().any(|unit| unit.kept.is_some());
            let has_news = self.alone.as_ref().is_some_and(|alone| !alone.ended.is_empty());
            let Some(stay) = &self.stay else { return false };
            let patience = stay.patience;
            let give_up = match lives {
                true => None,
                false if !has_news => return false,
                false => Some(*is_done_since.get_or_insert_with(Instant::now) + patience),
            };
            if give_up.is_some_and(|at| at <= Instant::now()) {
                return false;
            }
            let has_caller = match self.wait_alone(give_up) {
                Ok(has_caller) => has_caller,
                Err(_) => return false,
            };
            self.busy = false;
            self.reap();
            self.settle();
            if has_caller && self.meet() {
                return true;
            }
        }
    }

    /// What the manager asked for last counts: that may have been to keep something, or to kill it. Nothing is started for it any more.
    fn hear_last_requests(&mut self) {
        self.alone = Some(Alone::default());
        let mut buffer = vec![0; wire::MESSAGE];
        for _ in 0..LAST_REQUESTS / super::REQUESTS_A_TURN {
            self.busy = false;
            if self.read_requests(&mut buffer).is_err() || !self.busy {
                break;
            }
        }
    }

    /// All ends with the manager that is not kept.
    fn end_with_manager(&mut self) {
        self.manager = None;
        self.replies.clear();
        self.outbox.clear();
        self.waiting_bytes = 0;
        self.is_short = false;
        let not_kept: Vec<u64> = self.units.iter().filter(|(_, unit)| unit.kept.is_none()).map(|(id, _)| *id).collect();
        for id in not_kept {
            self.kill_unit(id);
        }
        for kept in self.units.values_mut().filter_map(|unit| unit.kept.as_mut()) {
            kept.capture = (self.open_capture)(&kept.note);
        }
        self.busy = true;
    }

    /// Waits until something happens. Whether somebody has connected.
    fn wait_alone(&self, give_up: Option<Instant>) -> io::Result<bool> {
        let Some(stay) = &self.stay else { return Ok(false) };
        let due = if self.busy { Some(Instant::now()) } else { self.look_again.into_iter().chain(give_up).min() };
        let timeout = due.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos() as i64 });
        let mut polled = vec![PollFd::new(&stay.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        let held = self.units.values().filter_map(|unit| unit.kept.as_ref()).flat_map(|kept| &kept.held);
        let read = held.filter(|held| !held.has_ended && held.holding != Holding::Open);
        polled.extend(read.map(|held| PollFd::new(&held.fd, PollFlags::IN)));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_caller = !polled[0].revents().is_empty();
        if polled[1].revents().contains(PollFlags::IN) {
            drain(&self.signals);
        }
        Ok(has_caller)
    }

    /// Takes one who connects, if it is the next manager.
    fn meet(&mut self) -> bool {
        let Some(stay) = &self.stay else { return false };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&stay.listener, flags) else { return false };
        let own = rustix::process::geteuid();
        if !rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == own) {
            return false;
        }
        let limit = Timespec { tv_sec: HELLO_LIMIT.as_secs() as i64, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit));
        let (mut buffer, mut fds) = (vec![0; wire::MESSAGE], Vec::new());
        let Ok(received) = seqpacket::receive(&socket, &mut buffer, &mut fds) else { return false };
        // A manager of another version is told so, and what is kept goes on waiting for one of this.
        let version = match postcard::from_bytes(&buffer[..received.length]) {
            Ok(Request::Adopt { version }) => version,
            _ => return false,
        };
        let Some(manager) = fds.pop().filter(|_| version == wire::VERSION) else {
            let mut message = Vec::new();
            let step = Setup::Version { keeper: wire::VERSION };
            wire::append(&mut message, &Reply::Broken { step, errno: 0 });
            let _ = seqpacket::send(&socket, &message, &[]);
            return false;
        };
        self.tell_all(socket, manager)
    }

    /// Has a new manager, and tells it of all that is kept. That goes on being kept, for this manager may die as well.
    fn tell_all(&mut self, control: OwnedFd, manager: OwnedFd) -> bool {
        let Some(messages) = self.messages_for_next().ok() else {
            // There are no descriptors left: it may come again.
            return false;
        };
        let ended = self.alone.take().unwrap_or_default().ended;
        for kept in self.units.values_mut().filter_map(|unit| unit.kept.as_mut()) {
            if let Some(mut capture) = kept.capture.take() {
                capture.hand_over();
            }
        }
        self.control = control;
        self.manager = Some(manager);
        self.waiting_bytes = messages.iter().map(|message| message.bytes.len()).sum();
        self.outbox.extend(messages);
        for Ended { exited, .. } in ended {
            self.reply(&exited);
        }
        true
    }

    fn messages_for_next(&self) -> io::Result<Vec<Message>> {
        let Some(stay) = &self.stay else { return Err(io::ErrorKind::NotConnected.into()) };
        let message = |reply: Reply, fds| {
            let mut bytes = Vec::new();
            wire::append(&mut bytes, &reply);
            Message { bytes, fds }
        };
        let mut messages = vec![message(Reply::Ready { version: wire::VERSION }, Vec::new())];
        let alive = self.units.iter().filter_map(|(id, unit)| Some((*id, unit.leader, unit.kept.as_ref()?)));
        let ended = self.alone.iter().flat_map(|alone| &alone.ended).map(|one| (one.id, one.leader, &one.kept));
        for (id, leader, kept) in alive.chain(ended) {
            let held = kept.held.iter().map(|held| held.holding).collect();
            let fds: io::Result<Vec<OwnedFd>> = kept.held.iter().map(|held| held.fd.try_clone()).collect();
            let (pid, note, is_ready) = (leader.cast_unsigned(), kept.note.clone(), kept.is_ready);
            messages.push(message(Reply::Kept { id, pid, note, held, is_ready }, fds?));
        }
        let all = Reply::AllKept { prefix: self.prefix.clone(), next: self.next };
        messages.push(message(all, vec![stay.listener.try_clone()?]));
        Ok(messages)
    }
}

fn says_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}
