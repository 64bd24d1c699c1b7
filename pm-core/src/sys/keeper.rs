//! The process that starts, reaps and outlives everything of one manager.
//!
//! It has one thread, which waits for the manager's requests, for its children and for the death of the manager, and for
//! nothing else. When the manager has gone it kills all that is left, and ends; unless it was asked to stay, for units that
//! are kept until the next manager comes: see [`keeping`].

pub(crate) mod keeping;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;

use super::command::{Launch, Text};
use super::keeper_wire::{self as wire, NAMED_STRAYS, Reply, Request, Setup, Status};
use super::seqpacket;
use super::spawn::{Spawner, Stage};
use super::strays::{BLANK_LIMIT, Orphans, Owner};
use super::tree::{self, OwnChildren};
use super::wait::{self, Counted, Kind, Whose};
use crate::machine::exit::ExitStatus;
use keeping::{Kept, OpenCapture, Remembered, Stay};

/// How long the keeper waits for a process that it has killed. Only uninterruptible sleep, a debugger or a process of another
/// user takes longer.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How long the end of a unit waits for orphans of which it cannot be said yet whose they are.
const UNDECIDED_LIMIT: Duration = BLANK_LIMIT.saturating_mul(2);

/// Requests, children and processes to kill that one turn handles at most, so that no flood of one kind of event keeps
/// the keeper from the others.
const REQUESTS_A_TURN: usize = 16;
const CHILDREN_A_TURN: usize = 256;
const KILLS_A_TURN: usize = 512;

/// Bytes of replies beyond which no further request is read: the manager is too slow for more.
const OUTBOX: usize = 256 * 1024;

/// The kernel had no memory for a message: it is sent again after this time.
pub(crate) const SEND_AGAIN: Duration = Duration::from_millis(10);

/// Pids of killed processes that are remembered for each unit, to count none twice.
const VICTIMS: usize = 4096;

/// Is the keeper of the manager at the other end of `control`, until that manager has gone and nothing of it is left.
///
/// The process must be a fresh one with a single thread. Everything that it has inherited goes: session, descriptors,
/// working directory, signal mask.
/// `open_capture` makes what takes the output of units that have no manager.
pub(crate) fn main(control: OwnedFd, open_capture: OpenCapture) -> ! {
    let code = match Keeper::new(control, open_capture) {
        Ok(mut keeper) => {
            keeper.reply(&Reply::Ready { version: wire::VERSION });
            keeper.run();
            while keeper.wait_for_manager() {
                keeper.run();
            }
            keeper.close_meeting();
            keeper.kill_everything();
            0
        }
        Err(NotReady { control, step, errno }) => {
            let mut message = Vec::new();
            wire::append(&mut message, &Reply::Broken { step, errno });
            // If the manager has gone, nobody wants to know.
            let _ = seqpacket::send(&control, &message, &[]);
            1
        }
    };
    std::process::exit(code)
}

/// The standard input, if it is the control socket that a manager gives to its keeper: `None` if a person started this
/// program as a keeper.
pub(crate) fn control_socket() -> Option<OwnedFd> {
    let stdin = io::stdin();
    let kind = rustix::net::sockopt::socket_type(&stdin).ok()?;
    if kind != rustix::net::SocketType::SEQPACKET {
        return None;
    }
    rustix::io::fcntl_dupfd_cloexec(&stdin, 3).ok()
}

struct NotReady {
    control: OwnedFd,
    step: Setup,
    errno: i32,
}

#[derive(Debug)]
struct Keeper {
    control: OwnedFd,
    signals: OwnedFd,
    /// The manager's pidfd, once it has said HELLO. It says that the manager has died even if a process that the manager
    /// forked still holds the other end of `control`.
    manager: Option<OwnedFd>,
    spawner: Spawner,
    children: OwnChildren,
    units: HashMap<u64, Unit>,
    /// The leaders that have not been reaped, and their units.
    leaders: HashMap<i32, u64>,
    orphans: Orphans,
    /// Units whose leader has ended, and of which something may be left.
    ending: Vec<u64>,
    /// Replies of this turn, then messages that found no room in the socket.
    replies: Vec<u8>,
    outbox: VecDeque<Message>,
    waiting_bytes: usize,
    /// The kernel has no memory for the first of them.
    is_short: bool,
    /// There may be more to do at once: of any kind, and children to reap.
    busy: bool,
    more_children: bool,
    /// When to look again though nothing happened.
    look_again: Option<Instant>,
    /// The beginning of the cookies of all units, and the number of the next one.
    prefix: Vec<u8>,
    next: u64,
    /// Where the next manager is waited for.
    stay: Option<Stay>,
    open_capture: OpenCapture,
    /// This manager wants nothing to outlive it.
    keeps_nothing: bool,
    /// There is no manager.
    is_alone: bool,
    /// Kept units that have ended, and of which no manager has said that it knows.
    ended: Vec<Remembered>,
}

/// Replies for the manager.
#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Unit {
    leader: i32,
    killing: bool,
    /// What is held of it for the next manager.
    kept: Option<Kept>,
    /// What the leader leaves behind may end by itself, and is asked to by this signal.
    lingers: Option<i32>,
    /// Its group has had a signal already.
    was_asked: bool,
    /// Those that were asked.
    asked: BTreeSet<i32>,
    ended: Option<Ended>,
    /// The processes of this unit that the keeper killed, without the leader.
    victims: BTreeSet<i32>,
}

#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    counted: Counted,
    since: Instant,
}

impl Unit {
    fn add_victim(&mut self, pid: i32) {
        if self.victims.len() < VICTIMS {
            self.victims.insert(pid);
        }
    }
}

impl Keeper {
    fn new(control: OwnedFd, open_capture: OpenCapture) -> Result<Self, NotReady> {
        let mut control = control;
        match Self::prepare(&mut control) {
            Ok((signals, spawner)) => Ok(Keeper {
                control,
                signals,
                manager: None,
                spawner,
                children: OwnChildren::new(),
                units: HashMap::new(),
                leaders: HashMap::new(),
                orphans: Orphans::new(),
                ending: Vec::new(),
                replies: Vec::new(),
                outbox: VecDeque::new(),
                waiting_bytes: 0,
                is_short: false,
                busy: false,
                more_children: false,
                look_again: None,
                prefix: Vec::new(),
                next: 1,
                stay: None,
                open_capture,
                keeps_nothing: false,
                is_alone: false,
                ended: Vec::new(),
            }),
            Err((step, error)) => Err(NotReady { control, step, errno: error.raw_os_error().unwrap_or(0) }),
        }
    }

    fn prepare(control: &mut OwnedFd) -> Result<(OwnedFd, Spawner), (Setup, io::Error)> {
        block_signals();
        keep_only(control).map_err(|error| (Setup::Descriptors, error))?;
        // Refused only to the leader of a group, which the keeper is if somebody made it one: then it has its own group.
        match rustix::process::setsid() {
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err((Setup::Session, error.into())),
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| (Setup::Subreaper, error.into()))?;
        // Only for people who look at a list of processes.
        let _ = rustix::thread::set_name(c"pm-keeper");
        // A directory that the manager ran in may be removed or unmounted.
        let _ = rustix::process::chdir("/");
        let signals = child_signals().map_err(|error| (Setup::Signals, error))?;
        let mut spawner = Spawner::new().map_err(|error| (Setup::Stack, error))?;
        // It holds descriptors for all that it keeps, and gives what it starts the limit that it had itself.
        if let Ok(before) = allow_most_descriptors() {
            spawner.give_descriptor_limit(before);
        }
        Ok((signals, spawner))
    }

    /// Serves until the manager has gone.
    fn run(&mut self) {
        let mut buffer = vec![0; wire::MESSAGE];
        loop {
            self.flush();
            let Turn { requests, children, manager_died } = match self.wait() {
                Ok(turn) => turn,
                Err(_) => return,
            };
            if manager_died {
                return;
            }
            self.busy = false;
            if requests && self.read_requests(&mut buffer).is_err() {
                return;
            }
            if children || self.more_children {
                self.reap();
            }
            self.settle();
        }
    }

    fn wait(&mut self) -> io::Result<Turn> {
        let timeout = if self.busy {
            Some(Duration::ZERO)
        } else {
            self.look_again.map(|then| then.saturating_duration_since(Instant::now()))
        };
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos() as i64 });
        let mut interest = PollFlags::empty();
        if self.waiting_bytes < OUTBOX {
            interest |= PollFlags::IN;
        }
        if !self.outbox.is_empty() && !self.is_short {
            interest |= PollFlags::OUT;
        }
        let mut polled = [
            PollFd::new(&self.control, interest),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(self.manager.as_ref().unwrap_or(&self.signals), PollFlags::IN),
        ];
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let control = polled[0].revents();
        let children = polled[1].revents().contains(PollFlags::IN);
        let manager_died = self.manager.is_some() && !polled[2].revents().is_empty();
        if children {
            drain(&self.signals);
        }
        Ok(Turn {
            requests: control.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            children,
            manager_died,
        })
    }

    /// Reads what the manager wants. An error says that the manager has gone.
    fn read_requests(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..REQUESTS_A_TURN {
            let mut fds = Vec::new();
            let received = match seqpacket::receive(&self.control, buffer, &mut fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                received => received?,
            };
            if received.length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // What cannot be read comes from a manager of another version: it is told so by the answer to its HELLO.
            let request: Request<'_> =
                postcard::from_bytes(&buffer[..received.length]).map_err(|_| io::ErrorKind::InvalidData)?;
            self.handle(request, fds, received.descriptors_lost)?;
        }
        self.busy = true;
        Ok(())
    }

    fn handle(&mut self, request: Request<'_>, mut fds: Vec<OwnedFd>, descriptors_lost: bool) -> io::Result<()> {
        match request {
            Request::Hello { version, prefix: Text(prefix) } => {
                if version != wire::VERSION {
                    let step = Setup::Version { keeper: wire::VERSION };
                    self.reply(&Reply::Broken { step, errno: 0 });
                    self.flush();
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.orphans.set_prefix(prefix);
                self.prefix = prefix.to_vec();
                self.manager = fds.pop();
            }
            Request::Unkeep { id } => self.unkeep(id),
            Request::Forget { id } => self.forget(id),
            Request::Stay { path: Text(path), patience_ms } => self.stay(path, patience_ms, fds),
            Request::KeepNothing => self.keep_nothing(),
            Request::Keep { id, note: Text(note), held } => {
                self.keep(id, Kept::new(note, held.into_iter().zip(fds)), descriptors_lost);
            }
            Request::Note { id, note: Text(note) } => {
                if let Some(kept) = self.units.get_mut(&id).and_then(|unit| unit.kept.as_mut()) {
                    kept.note = note.to_vec();
                }
            }
            Request::Launch { id, .. } | Request::LaunchFrom { id, .. } if descriptors_lost => {
                self.reply(&Reply::Failed { id, stage: Stage::Descriptors, errno: libc::EMFILE });
            }
            Request::Launch { id, launch } => self.launch(id, &launch, &fds),
            Request::LaunchFrom { id, length } => {
                let bytes = fds.pop().ok_or(io::ErrorKind::InvalidData.into()).and_then(|memory| read(memory, length));
                match bytes.as_ref().map(|bytes| postcard::from_bytes::<Launch<'_>>(bytes)) {
                    Ok(Ok(launch)) => self.launch(id, &launch, &fds),
                    Ok(Err(_)) => self.reply(&Reply::Failed { id, stage: Stage::Request, errno: libc::EBADMSG }),
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        self.reply(&Reply::Failed { id, stage: Stage::Request, errno });
                    }
                }
            }
            Request::Signal { id, signal } => {
                let leader = self.units.get(&id).filter(|unit| unit.ended.is_none()).map(|unit| unit.leader);
                if let Some(leader) = leader {
                    // If nobody is there to receive it, the unit is about to be reported as ended.
                    let _ = tree::send(-leader, signal);
                }
            }
            Request::Linger { id, signal, was_asked } => {
                if let Some(unit) = self.units.get_mut(&id).filter(|unit| !unit.killing) {
                    unit.lingers = Some(signal);
                    unit.was_asked = was_asked;
                    // It is to end, and nobody is left to see to that when the manager has gone.
                    unit.kept = None;
                }
            }
            Request::Kill { id } => self.kill_unit(id),
        }
        Ok(())
    }

    fn launch(&mut self, id: u64, launch: &Launch<'_>, fds: &[OwnedFd]) {
        self.next = self.next.max(id.saturating_add(1));
        if self.is_alone {
            return;
        }
        let sources: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match self.spawner.spawn(launch, &sources) {
            Ok(pid) => {
                self.leaders.insert(pid, id);
                self.units.insert(
                    id,
                    Unit {
                        leader: pid,
                        killing: false,
                        kept: None,
                        lingers: None,
                        was_asked: false,
                        asked: BTreeSet::new(),
                        ended: None,
                        victims: BTreeSet::new(),
                    },
                );
                self.reply(&Reply::Started { id, pid: pid.cast_unsigned() });
            }
            Err(failure) => self.reply(&Reply::Failed { id, stage: failure.stage, errno: failure.errno }),
        }
    }

    /// Kills a unit whose leader lives, the leader last of all found, and leaves the rest to [`settle`](Self::settle).
    fn kill_unit(&mut self, id: u64) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        unit.killing = true;
        unit.kept = None;
        unit.lingers = None;
        if let Some(ended) = &mut unit.ended {
            // What it left behind had time to end. It is killed like that of any other from here on.
            ended.since = Instant::now();
            self.busy = true;
            return;
        }
        let leader = unit.leader;
        let mut roots = vec![leader];
        for pid in self.children.read() {
            if !self.leaders.contains_key(&pid) && self.owner(pid) == Owner::Unit(id) {
                roots.push(pid);
            }
        }
        let culled = tree::cull(&roots, KILLS_A_TURN);
        // Also those who cannot be stopped one by one, for they fork faster than that.
        let _ = tree::send(-leader, libc::SIGKILL);
        let _ = tree::send(leader, libc::SIGKILL);
        self.note_killed(id, &culled.killed);
        self.busy = true;
    }

    /// Takes note of what became of children, at most [`CHILDREN_A_TURN`].
    fn reap(&mut self) {
        self.more_children = false;
        for _ in 0..CHILDREN_A_TURN {
            let Ok(Some(event)) = wait::peek(Whose::Any, false) else { return };
            let unit = self.leaders.get(&event.pid).copied();
            match (event.kind, unit) {
                (Kind::Ended, Some(id)) => self.reap_leader(event.pid, id),
                (Kind::Ended, None) => self.reap_orphan(event.pid),
                (kind, unit) => {
                    let _ = wait::consume_stop(event.pid);
                    // A manager that does not read is told of no stops: a process can stop and go on without end.
                    let is_heard = self.waiting_bytes < OUTBOX;
                    if let Some(id) = unit.filter(|id| is_heard && self.units.get(id).is_some_and(|u| !u.killing)) {
                        self.reply(&match kind {
                            Kind::Stopped { signal } => Reply::Stopped { id, signal },
                            _ => Reply::Continued { id },
                        });
                    }
                }
            }
        }
        self.more_children = true;
        self.busy = true;
    }

    fn reap_leader(&mut self, pid: i32, id: u64) {
        // The leader is a zombie, so the number of its group is not free. From here on no process of the group can fork:
        // the kernel looks for a fatal signal before it lets a fork through.
        match self.units.get(&id).and_then(|unit| Some((unit.lingers?, unit.was_asked))) {
            None => drop(tree::send(-pid, libc::SIGKILL)),
            Some((signal, false)) => drop(tree::send(-pid, signal)),
            Some((_, true)) => {}
        }
        self.leaders.remove(&pid);
        let (status, counted) = wait::reap(pid).unwrap_or((ExitStatus::Lost, Counted::default()));
        if let Some(unit) = self.units.get_mut(&id) {
            unit.ended = Some(Ended { status, counted, since: Instant::now() });
            self.ending.push(id);
        }
    }

    fn reap_orphan(&mut self, pid: i32) {
        let group = Pid::from_raw(pid).and_then(|pid| rustix::process::getpgid(Some(pid)).ok());
        let known = self.orphans.forget(pid);
        let owner = known.or_else(|| self.ending_group(group?.as_raw_nonzero().get()));
        let killed = matches!(wait::reap(pid), Ok((ExitStatus::Signal { signal: libc::SIGKILL, .. }, _)));
        if let Some(unit) =
            owner.filter(|_| killed).and_then(|id| self.units.get_mut(&id)).filter(|unit| unit.ended.is_some())
        {
            unit.add_victim(pid);
        }
    }

    fn ending_group(&self, group: i32) -> Option<u64> {
        self.ending.iter().copied().find(|id| self.units.get(id).is_some_and(|unit| unit.leader == group))
    }

    fn owner(&mut self, pid: i32) -> Owner {
        let (ending, units) = (&self.ending, &self.units);
        self.orphans.owner(pid, Instant::now(), |group| {
            ending.iter().copied().find(|id| units.get(id).is_some_and(|unit| unit.leader == group))
        })
    }

    /// Ends the units whose leaders have ended: kills what is left of them, and reports those of which nothing is.
    fn settle(&mut self) {
        self.look_again = None;
        if self.ending.is_empty() {
            return;
        }
        // When a leader has become a zombie, its children have become the keeper's. So what is left of it is here, or
        // descends from what is here.
        let strays: Vec<i32> = self.children.read().into_iter().filter(|pid| !self.leaders.contains_key(pid)).collect();
        let now = Instant::now();
        let mut left: HashMap<u64, Vec<i32>> = HashMap::new();
        let mut undecided = Vec::new();
        for pid in strays {
            match self.owner(pid) {
                Owner::Unit(id) if self.units.get(&id).is_none_or(|unit| unit.ended.is_some()) => {
                    left.entry(id).or_default().push(pid);
                }
                Owner::Unit(_) | Owner::Nobody => {}
                Owner::Ending => undecided.push(pid),
                Owner::Unclear => {
                    undecided.push(pid);
                    self.look_again = Some(now + Duration::from_millis(1));
                }
            }
        }
        let lingers = |units: &HashMap<u64, Unit>, id: &u64| units.get(id).is_some_and(|unit| unit.lingers.is_some());
        for (id, pids) in &left {
            if lingers(&self.units, id) {
                continue;
            }
            let culled = tree::cull(pids, KILLS_A_TURN);
            self.busy |= !culled.complete;
            self.note_killed(*id, &culled.killed);
        }
        for id in std::mem::take(&mut self.ending) {
            let Some(unit) = self.units.get(&id) else { continue };
            let Some(ended) = &unit.ended else { continue };
            let mine = left.remove(&id).unwrap_or_default();
            if let Some(signal) = unit.lingers.filter(|_| !mine.is_empty()) {
                self.ask(id, &mine, signal);
                if let Some(ended) = self.units.get_mut(&id).and_then(|unit| unit.ended.as_mut()) {
                    // From their end on it takes a moment to be sure that nobody is left.
                    ended.since = now;
                }
                self.ending.push(id);
                continue;
            }
            // Whoever was there when the leader ended has been decided upon by then. Others come and go without end.
            let deadline = ended.since + if mine.is_empty() { UNDECIDED_LIMIT } else { KILL_LIMIT };
            if (mine.is_empty() && undecided.is_empty()) || now >= deadline {
                self.report_exit(id, mine);
            } else {
                self.ending.push(id);
                self.look_again_by(deadline);
            }
        }
    }

    /// Asks what a leader has left behind to end: those that the signal to its group has not reached.
    fn ask(&mut self, id: u64, strays: &[i32], signal: i32) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        for &pid in strays {
            let group = Pid::from_raw(pid).and_then(|pid| rustix::process::getpgid(Some(pid)).ok());
            let group = group.map_or(0, |group| group.as_raw_nonzero().get());
            if group == unit.leader || unit.asked.len() >= VICTIMS || !unit.asked.insert(pid) {
                continue;
            }
            // It is a child of this process and not reaped, so both numbers are its own.
            let _ = tree::send(if group == pid { -pid } else { pid }, signal);
        }
    }

    fn look_again_by(&mut self, moment: Instant) {
        self.look_again = Some(self.look_again.map_or(moment, |then| then.min(moment)));
    }

    fn note_killed(&mut self, id: u64, killed: &[(i32, u64)]) {
        // Of a unit that was reported already there is nothing to note.
        let Some(unit) = self.units.get_mut(&id) else { return };
        let leader = unit.leader;
        for process in killed.iter().filter(|(pid, _)| *pid != leader) {
            unit.add_victim(process.0);
            self.orphans.claim(*process, id);
        }
    }

    fn report_exit(&mut self, id: u64, survivors: Vec<i32>) {
        let Some(Unit { ended: Some(ended), victims, leader, kept, .. }) = self.units.remove(&id) else { return };
        if !victims.is_empty() {
            self.orphans.release(id);
        }
        let unsigned = |pid: &i32| pid.cast_unsigned();
        let exited = Reply::Exited {
            id,
            status: match ended.status {
                ExitStatus::Code(code) => Status::Code(code),
                ExitStatus::Signal { signal, core } => Status::Signal { signal, core },
                ExitStatus::Lost => Status::Lost,
            },
            counted: ended.counted,
            strays: victims.iter().take(NAMED_STRAYS).map(unsigned).collect(),
            stray_count: victims.len() as u32,
            survivors: survivors.iter().take(NAMED_STRAYS).map(unsigned).collect(),
        };
        self.reply(&exited);
        if let Some(kept) = kept {
            self.remember(id, leader, kept, exited);
        }
    }

    /// Adds to the message of this turn. There are as many replies as requests that were read, and exits; stops are left out
    /// beyond [`OUTBOX`]. So they are bounded by that and the number of units.
    fn reply(&mut self, reply: &Reply) {
        if self.is_alone {
            return;
        }
        wire::append(&mut self.replies, reply);
        if self.replies.len() > wire::MESSAGE / 2 {
            self.close_message();
        }
    }

    fn close_message(&mut self) {
        let bytes = std::mem::take(&mut self.replies);
        self.waiting_bytes += bytes.len();
        self.outbox.push_back(Message { bytes, fds: Vec::new() });
    }

    fn flush(&mut self) {
        if !self.replies.is_empty() {
            self.close_message();
        }
        self.is_short = false;
        while let Some(message) = self.outbox.front() {
            let fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(|fd| fd.as_fd()).collect();
            match seqpacket::send(&self.control, &message.bytes, &fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if seqpacket::is_passing(&error) => {
                    self.is_short = true;
                    self.look_again_by(Instant::now() + SEND_AGAIN);
                    return;
                }
                // Sent, or there is nobody to send it to: the next look at the socket says so.
                _ => {
                    self.waiting_bytes -= message.bytes.len();
                    self.outbox.pop_front();
                }
            }
        }
    }

    /// Kills all descendants, again and again until there is none left, but not longer than [`KILL_LIMIT`].
    fn kill_everything(&mut self) {
        let end = Instant::now() + KILL_LIMIT;
        while Instant::now() < end {
            let children = self.children.read();
            tree::cull(&children, KILLS_A_TURN);
            for leader in self.leaders.keys() {
                let _ = tree::send(-leader, libc::SIGKILL);
            }
            for pid in &children {
                let _ = tree::send(*pid, libc::SIGKILL);
            }
            let mut reaped = false;
            loop {
                match wait::peek(Whose::Any, false) {
                    Ok(Some(event)) if event.kind == Kind::Ended => {
                        self.leaders.remove(&event.pid);
                        let _ = wait::reap(event.pid);
                        reaped = true;
                    }
                    Ok(Some(event)) => drop(wait::consume_stop(event.pid)),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            if !reaped {
                let mut polled = [PollFd::new(&self.signals, PollFlags::IN)];
                let _ = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
                drain(&self.signals);
            }
        }
    }
}

/// What happened.
struct Turn {
    requests: bool,
    children: bool,
    manager_died: bool,
}

/// Blocks all signals: those that end or stop a process are meant for the manager, and the keeper ends after it. SIGCHLD
/// gets its default, for a manager may have ignored it, and then the kernel would throw the exit statuses away.
fn block_signals() {
    // SAFETY: a signal set is plain numbers; the pointers are to live locals; the process has one thread.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, ptr::null_mut());
    }
}

fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: a signal set is plain numbers, and the pointers are to a live local. What signalfd returns is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Raises the soft limit of open descriptors to the hard one. Gives both as they were.
fn allow_most_descriptors() -> io::Result<(u64, u64)> {
    // SAFETY: a limit is plain numbers; the pointers are to live locals.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) < 0 {
            return Err(io::Error::last_os_error());
        }
        let most = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((limit.rlim_cur, limit.rlim_max))
    }
}

/// Takes the one SIGCHLD that can be pending.
fn drain(signals: &OwnedFd) {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    // If there is none, somebody took it already.
    let _ = rustix::io::read(signals, &mut info);
}

/// Closes every descriptor but `control`, and opens `/dev/null` as 0, 1 and 2.
fn keep_only(control: &mut OwnedFd) -> io::Result<()> {
    const CONTROL: RawFd = 3;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?;
    let high = rustix::io::fcntl_dupfd_cloexec(&*control, 10)?;
    // SAFETY: this is a fresh process with one thread: nothing else in it uses descriptors. 0 to 2 belong to the standard
    // streams for ever, 3 becomes the only owner of the control socket, whose former owner is forgotten, not closed.
    unsafe {
        for standard in 0..3 {
            if libc::dup2(null.as_raw_fd(), standard) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if libc::dup3(high.as_raw_fd(), CONTROL, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget((null, high, std::mem::replace(control, OwnedFd::from_raw_fd(CONTROL))));
        if libc::syscall(libc::SYS_close_range, CONTROL + 1, u32::MAX, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let flags = rustix::fs::fcntl_getfl(&*control)?;
    Ok(rustix::fs::fcntl_setfl(&*control, flags | rustix::fs::OFlags::NONBLOCK)?)
}

fn read(memory: OwnedFd, length: u64) -> io::Result<Vec<u8>> {
    if length > wire::LAUNCH as u64 {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut bytes = vec![0; length as usize];
    std::fs::File::from(memory).read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
