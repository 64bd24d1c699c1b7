//! Units that outlive their manager.
//!
//! The manager asks the keeper to stay, at a socket on which it listens, and to keep certain units, whose descriptors the keeper then
//! holds as well. When the manager has gone, all that is not kept is killed. The output of what is kept is captured, so that nobody gets SIGPIPE or waits for a
//! pipe that is full. The next manager connects to the socket and is told of each unit. How a kept unit ended is remembered until a manager has said that it knows.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{Shutdown, SocketFlags};

use super::super::datagram;
use super::super::keeper_wire::{self as wire, Greeting, Holding, Reply, Setup};
use super::super::last_words;
use super::super::seqpacket;
use super::{Keeper, Message, REQUESTS_A_TURN, drain};

/// What takes the output of a unit while there is no manager.
pub(crate) trait Capture: fmt::Debug {
    /// Takes what was read of a stream.
    fn take(&mut self, stream: u8, bytes: &[u8]);

    /// The end of a stream. Nothing more follows of it.
    fn end(&mut self, stream: u8);

    /// The next manager takes over from here.
    fn hand_over(&mut self);

    /// Whether it has taken a line that says that the unit is ready.
    fn is_ready(&self) -> bool;
}

/// Makes what captures the output of a unit, as the manager's note says. None where nothing does: then it is dropped.
pub(crate) type OpenCapture = fn(&[u8]) -> Option<Box<dyn Capture>>;

/// How long one who connects may take to say that it is the next manager.
const GREETING_LIMIT: Duration = Duration::from_secs(1);

/// So many may have connected and not said it. Others wait for one of them to go.
const MOST_CALLERS: usize = 8;

/// No descriptor was left for one who connects: it is looked again after this time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Requests of the dead manager that are still looked at: as many as it may have had waiting, and some.
const LAST_REQUESTS: usize = 8192;

/// What is read of one stream in a turn.
const READ: usize = 64 * 1024;

/// Messages of sd_notify(3) that are taken of one unit in a turn.
const MESSAGES_A_TURN: usize = 16;

/// Where the next manager is waited for.
#[derive(Debug)]
pub(super) struct Stay {
    listener: Arc<OwnedFd>,
    path: PathBuf,
    /// Which file that is: device and inode.
    file: Option<(u64, u64)>,
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
    fd: Arc<OwnedFd>,
    has_ended: bool,
}

/// A kept unit that has ended, until a manager has said that it knows.
#[derive(Debug)]
pub(super) struct Remembered {
    id: u64,
    leader: i32,
    kept: Kept,
    exited: Reply,
    at: Instant,
}

/// One who has connected and has not said who it is.
#[derive(Debug)]
struct Caller {
    socket: OwnedFd,
    deadline: Instant,
}

/// What one who has connected wants.
enum Met {
    /// It says nothing yet.
    Silent,
    /// It is of no use.
    Nobody,
    /// It is the next manager.
    Manager,
    /// It wants all that is kept to end.
    End,
}

impl Kept {
    pub(super) fn new(note: &[u8], held: impl Iterator<Item = (Holding, OwnedFd)>) -> Self {
        let held = held.map(|(holding, fd)| {
            if let (Holding::Stream(_), Ok(flags)) = (holding, rustix::fs::fcntl_getfl(&fd)) {
                // The manager reads it in the same way, so nobody is surprised.
                let _ = rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK);
            }
            Held { holding, fd: Arc::new(fd), has_ended: false }
        });
        Kept { note: note.to_vec(), held: held.collect(), capture: None, is_ready: false }
    }

    /// Reads once what is there. A stream that has ended is not read again.
    fn pump(&mut self, buffer: &mut [u8]) {
        for held in self.held.iter_mut().filter(|held| !held.has_ended) {
            match held.holding {
                Holding::Stream(stream) => match rustix::io::read(&held.fd, &mut *buffer) {
                    Ok(count) if count > 0 => {
                        if let Some(capture) = &mut self.capture {
                            capture.take(stream, &buffer[..count]);
                        }
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    // A pipe ends with nothing, a terminal with an error.
                    _ => held.end(self.capture.as_deref_mut()),
                },
                Holding::Notify { uid } => {
                    for _ in 0..MESSAGES_A_TURN {
                        let Ok(message) = datagram::receive_from(&held.fd, uid) else { break };
                        self.is_ready |= message.is_some_and(|text| datagram::says_ready(&text));
                    }
                }
                Holding::Open => {}
            }
        }
    }

    /// Reads what its processes have left in its streams, and writes that down. Whoever else writes there is not waited for.
    fn finish(&mut self, open: OpenCapture, buffer: &mut [u8]) {
        if self.held.iter().all(|held| held.has_ended || !matches!(held.holding, Holding::Stream(_))) {
            return;
        }
        let capture = self.capture.take();
        let mut capture = if capture.is_some() { capture } else { open(&self.note) };
        for held in &mut self.held {
            let Holding::Stream(stream) = held.holding else { continue };
            if !held.has_ended {
                last_words::read(&held.fd, buffer, |bytes| {
                    if let Some(capture) = &mut capture {
                        capture.take(stream, bytes);
                    }
                });
            }
            held.end(capture.as_deref_mut());
        }
    }

    /// Whether it has said that it is ready, by whatever means.
    fn has_said_ready(&self) -> bool {
        self.is_ready || self.capture.as_ref().is_some_and(|capture| capture.is_ready())
    }

    /// What it does from here on is the next manager's to read.
    fn hand_over(&mut self) {
        self.is_ready = self.has_said_ready();
        if let Some(mut capture) = self.capture.take() {
            capture.hand_over();
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

impl Keeper {
    pub(super) fn stay(&mut self, path: &[u8], patience_ms: u64, mut fds: Vec<OwnedFd>) {
        let Some(listener) = fds.pop().filter(|_| !self.keeps_nothing) else { return };
        let path = PathBuf::from(OsStr::from_bytes(path));
        let file = fs::symlink_metadata(&path).ok().map(|found| (found.dev(), found.ino()));
        let patience = Duration::from_millis(patience_ms);
        self.stay = Some(Stay { listener: Arc::new(listener), path, file, patience });
    }

    /// Waits for nobody any more. Where there is no manager the socket is the keeper's.
    pub(super) fn close_meeting(&mut self) {
        if let Some(stay) = self.stay.take() {
            let is_ours = |found: fs::Metadata| Some((found.dev(), found.ino())) == stay.file;
            // Before it is closed: who finds it closed makes another one.
            if fs::symlink_metadata(&stay.path).is_ok_and(is_ours) {
                let _ = fs::remove_file(&stay.path);
            }
        }
    }

    /// Outlives this manager no more, whatever it still asks for.
    pub(super) fn keep_nothing(&mut self) {
        self.keeps_nothing = true;
        self.stay = None;
        self.ended.clear();
        for unit in self.units.values_mut() {
            unit.kept = None;
        }
    }

    pub(super) fn keep(&mut self, id: u64, kept: Kept, descriptors_lost: bool) {
        if self.keeps_nothing {
            return;
        }
        let Some(unit) = self.units.get_mut(&id).filter(|unit| !unit.killing) else { return };
        if descriptors_lost {
            self.reply(&Reply::NotKept { id });
        } else {
            unit.kept = Some(kept);
        }
    }

    /// A kept unit has ended. It is remembered until a manager knows.
    pub(super) fn remember(&mut self, id: u64, leader: i32, mut kept: Kept, exited: Reply) {
        if self.is_alone {
            kept.finish(self.open_capture, &mut vec![0; READ]);
            kept.hand_over();
        }
        self.ended.push(Remembered { id, leader, kept, exited, at: Instant::now() });
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.ended.retain(|ended| ended.id != id);
    }

    pub(super) fn unkeep(&mut self, id: u64) {
        if let Some(unit) = self.units.get_mut(&id) {
            unit.kept = None;
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
        let mut callers: Vec<Caller> = Vec::new();
        let (mut is_done_since, mut accept_at) = (None, None);
        loop {
            for kept in self.units.values_mut().filter_map(|unit| unit.kept.as_mut()) {
                kept.pump(&mut buffer);
            }
            let lives = self.units.values().any(|unit| unit.kept.is_some());
            let Some(stay) = &self.stay else { return false };
            let patience = stay.patience;
            let give_up = match lives {
                true => None,
                false if self.ended.is_empty() => return false,
                false => Some(*is_done_since.get_or_insert_with(Instant::now) + patience),
            };
            let now = Instant::now();
            if give_up.is_some_and(|at| at <= now) {
                return false;
            }
            callers.retain(|caller| caller.deadline > now);
            accept_at = accept_at.filter(|at| *at > now);
            let may_accept = callers.len() < MOST_CALLERS && accept_at.is_none();
            let until = callers.iter().map(|caller| caller.deadline).chain(give_up).chain(accept_at).min();
            let Ok(has_caller) = self.wait_alone(may_accept, &callers, until) else { return false };
            self.busy = false;
            self.reap();
            self.settle();
            if has_caller {
                match self.accept() {
                    Ok(caller) => callers.extend(caller),
                    // It waits until there is a descriptor for it.
                    Err(_) => accept_at = Some(Instant::now() + ACCEPT_AGAIN),
                }
            }
            let mut silent = Vec::new();
            for caller in callers {
                match self.meet(&caller.socket) {
                    Met::Silent => silent.push(caller),
                    Met::Nobody => {}
                    Met::Manager => return true,
                    Met::End => return false,
                }
            }
            callers = silent;
        }
    }

    /// What the manager asked for last counts: that may have been to keep something, or to kill it. Nothing is started for it any more.
    fn hear_last_requests(&mut self) {
        self.is_alone = true;
        let mut buffer = vec![0; wire::MESSAGE];
        for _ in 0..LAST_REQUESTS / REQUESTS_A_TURN {
            self.busy = false;
            if self.read_requests(&mut buffer).is_err() || !self.busy {
                break;
            }
        }
    }

    /// All ends with the manager that is not kept.
    fn end_with_manager(&mut self) {
        self.manager = None;
        // Where it has not died, but was of no use, it knows that it has no keeper any more.
        let _ = rustix::net::shutdown(&self.control, Shutdown::Both);
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
        let mut buffer = vec![0; READ];
        for ended in &mut self.ended {
            // The manager may not have read it to its end.
            ended.kept.finish(self.open_capture, &mut buffer);
            ended.kept.hand_over();
        }
        self.busy = true;
    }

    /// Waits until something happens. Whether somebody has connected.
    fn wait_alone(&self, may_accept: bool, callers: &[Caller], until: Option<Instant>) -> io::Result<bool> {
        let Some(stay) = &self.stay else { return Ok(false) };
        let due = if self.busy { Some(Instant::now()) } else { self.look_again.into_iter().chain(until).min() };
        let timeout = due.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos() as i64 });
        let interest = if may_accept { PollFlags::IN } else { PollFlags::empty() };
        let mut polled = vec![PollFd::new(&*stay.listener, interest), PollFd::new(&self.signals, PollFlags::IN)];
        polled.extend(callers.iter().map(|caller| PollFd::new(&caller.socket, PollFlags::IN)));
        let held = self.units.values().filter_map(|unit| unit.kept.as_ref()).flat_map(|kept| &kept.held);
        let read = held.filter(|held| !held.has_ended && held.holding != Holding::Open);
        polled.extend(read.map(|held| PollFd::new(&*held.fd, PollFlags::IN)));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_caller = polled[0].revents().contains(PollFlags::IN);
        if polled[1].revents().contains(PollFlags::IN) {
            drain(&self.signals);
        }
        Ok(has_caller)
    }

    /// Takes one who connects. None where it is of another user, or has gone again.
    fn accept(&self) -> io::Result<Option<Caller>> {
        let Some(stay) = &self.stay else { return Ok(None) };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&stay.listener, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Ok(None),
            accepted => accepted?,
        };
        let own = rustix::process::geteuid();
        let is_own = rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == own);
        Ok(is_own.then(|| Caller { socket, deadline: Instant::now() + GREETING_LIMIT }))
    }

    /// Hears one who has connected.
    fn meet(&mut self, socket: &OwnedFd) -> Met {
        let (mut buffer, mut fds) = ([0; wire::GREETING], Vec::new());
        let received = match seqpacket::receive(socket, &mut buffer, &mut fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Met::Silent,
            Err(_) => return Met::Nobody,
            Ok(received) => received,
        };
        match Greeting::read(&buffer[..received.length]) {
            Some(Greeting::End) => Met::End,
            Some(Greeting::Adopt { version }) if version != wire::VERSION => {
                // What is kept goes on waiting for a manager of this version.
                refuse(socket, Setup::Version { keeper: wire::VERSION });
                Met::Nobody
            }
            Some(Greeting::Adopt { .. }) => match (fds.pop(), socket.try_clone()) {
                (Some(manager), Ok(control)) if !has_ended(&manager) => {
                    self.tell_all(control, manager);
                    Met::Manager
                }
                // It has gone again, or nothing is left to speak to it with.
                _ => {
                    refuse(socket, Setup::Descriptors);
                    Met::Nobody
                }
            },
            None => Met::Nobody,
        }
    }

    /// Has a new manager, and tells it of all that is kept. That goes on being kept, for this manager may die as well.
    fn tell_all(&mut self, control: OwnedFd, manager: OwnedFd) {
        for kept in self.units.values_mut().filter_map(|unit| unit.kept.as_mut()) {
            kept.hand_over();
        }
        let message = |reply: &Reply, fds| {
            let mut bytes = Vec::new();
            wire::append(&mut bytes, reply);
            Message { bytes, fds }
        };
        let told = |id, leader: i32, kept: &Kept, ended_ms_ago| {
            let held = kept.held.iter().map(|held| held.holding).collect();
            let fds = kept.held.iter().map(|held| held.fd.clone()).collect();
            let (pid, note, is_ready) = (leader.cast_unsigned(), kept.note.clone(), kept.is_ready);
            message(&Reply::Kept { id, pid, note, held, is_ready, ended_ms_ago }, fds)
        };
        let mut messages = vec![message(&Reply::Ready { version: wire::VERSION }, Vec::new())];
        for (id, unit) in &self.units {
            // One whose leader has ended is told of as soon as all of it has.
            messages.extend(unit.kept.as_ref().map(|kept| told(*id, unit.leader, kept, None)));
        }
        for ended in &self.ended {
            let ago = u64::try_from(ended.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            messages.push(told(ended.id, ended.leader, &ended.kept, Some(ago)));
            messages.push(message(&ended.exited, Vec::new()));
        }
        let listener = self.stay.iter().map(|stay| stay.listener.clone()).collect();
        messages.push(message(&Reply::AllKept { prefix: self.prefix.clone(), next: self.next }, listener));
        self.control = control;
        self.manager = Some(manager);
        self.is_alone = false;
        self.keeps_nothing = false;
        self.waiting_bytes = messages.iter().map(|message| message.bytes.len()).sum();
        self.outbox.extend(messages);
    }
}

/// Whether a process has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

fn refuse(socket: &OwnedFd, step: Setup) {
    let mut message = Vec::new();
    wire::append(&mut message, &Reply::Broken { step, errno: 0 });
    // It may have gone again.
    let _ = seqpacket::send(socket, &message, &[]);
}
