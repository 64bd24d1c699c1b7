//! The manager's end of the connection to its keeper.
//!
//! It belongs to the process and to no runtime: requests are sent by whoever has one, and a thread that lives as long as the
//! keeper waits for replies and hands them to channels that work in any runtime.

#[cfg(feature = "service")]
pub(super) mod adoption;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
#[cfg(feature = "service")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;
use tokio::sync::{Semaphore, oneshot, watch};

use super::child::{Child, ChildState, Exit, Holder, Usage};
use super::error::LaunchError;
use super::keeper::{self, Program};
use super::launcher;
use crate::machine::exit::{ExitStatus, Signal};
use crate::sys::command::{Command, Packed, Text};
use crate::sys::keeper::SEND_AGAIN;
use crate::sys::keeper_wire::{self as wire, Reply, Request, Status};
use crate::sys::spawn::Failure;
use crate::sys::{seqpacket, tree};

/// How long a keeper may take until it is ready. It takes about 2 ms; this is for a machine that swaps.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Launches that may be under way at a time; more of them wait. The keeper starts one after the other, so this only has to
/// keep its queue from running dry, and fits the socket's buffer.
const LAUNCHES: usize = 16;

/// Requests that may wait for room in the socket before signals are refused. Kills are never refused: there is at most one
/// for each child.
const OUTGOING: usize = 4096;

/// How long to look for processes that a keeper left behind when it was killed.
const SWEEP_LIMIT: Duration = Duration::from_secs(2);

/// The manager's end of the connection to one keeper.
pub(super) struct Connection {
    /// The process that this connection belongs to: a fork of it must not use the parent's keeper.
    owner: u32,
    socket: OwnedFd,
    /// Wakes the thread when there is something to send.
    bell: OwnedFd,
    prefix: String,
    room: Semaphore,
    next: AtomicU64,
    /// The keeper was asked to stay after this process.
    #[cfg(feature = "service")]
    stays: AtomicBool,
    shared: Mutex<Shared>,
}

struct Shared {
    units: HashMap<u64, Unit>,
    outgoing: VecDeque<Message>,
    gone: Option<Gone>,
}

/// A process that the keeper was asked to start, until it has ended.
struct Unit {
    launched: Option<oneshot::Sender<Result<u32, Refusal>>>,
    state: watch::Sender<ChildState>,
    kill_asked: bool,
    /// Told where it cannot be kept.
    not_kept: Option<oneshot::Sender<()>>,
}

struct Message {
    bytes: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

/// Why there is no keeper at the other end.
#[derive(Clone)]
enum Gone {
    Lost,
    NeverReady(String),
}

enum Refusal {
    Failed(Failure),
    Gone(Gone),
}

/// A request was not accepted.
pub(super) enum NotAsked {
    Gone,
    Busy,
    Io(io::Error),
}

/// Starts `command` through the keeper, which is started if there is none.
pub(super) async fn launch(command: Command) -> Result<Child, LaunchError> {
    // A keeper that was lost takes no requests; the next one does. A keeper that is lost later than that may have started the
    // process, so it is not tried again.
    for _ in 0..3 {
        let connection = keeper::current()?;
        // The semaphore is never closed.
        let Ok(_room) = connection.room.acquire().await else { continue };
        match connection.begin(&command)? {
            Some((pending, packed_len)) => return pending.finish(&command, packed_len).await,
            None => continue,
        }
    }
    Err(LaunchError::KeeperLost { program: command.program.clone() })
}

impl Connection {
    /// Connects to a keeper that a new thread starts.
    pub(super) fn start(program: Program) -> Result<Arc<Self>, LaunchError> {
        let fail = |step: &'static str| {
            move |source: io::Error| LaunchError::here(&Command::new("pm-keeper", ""), step, source)
        };
        let (socket, theirs) = seqpacket::pair().map_err(fail("socketpair"))?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| fail("eventfd")(error.into()))?;
        let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|error| fail("pidfd_open")(error.into()))?;
        let connection = Arc::new(Connection {
            owner: std::process::id(),
            socket,
            bell,
            prefix: keeper::new_prefix(),
            room: Semaphore::new(LAUNCHES),
            next: AtomicU64::new(1),
            #[cfg(feature = "service")]
            stays: AtomicBool::new(false),
            shared: Mutex::new(Shared { units: HashMap::new(), outgoing: VecDeque::new(), gone: None }),
        });
        let hello = Request::Hello { version: wire::VERSION, prefix: Text(connection.prefix.as_bytes()) };
        let hello = Message { bytes: encode(&hello), fds: vec![Arc::new(me)] };
        seqpacket::send(&connection.socket, &hello.bytes, &[hello.fds[0].as_fd()]).map_err(fail("sendmsg"))?;
        let ours = connection.clone();
        thread(move || ours.run(&program, theirs)).map_err(fail("starting a thread"))?;
        Ok(connection)
    }

    /// Whether it takes requests of this process.
    pub(super) fn is_usable(&self) -> bool {
        self.is_ours() && self.lock().gone.is_none()
    }

    /// False in a fork of the manager, which has a copy of the socket and none of the rights.
    fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    /// Sends a request that carries no descriptors and may be refused.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<(), NotAsked> {
        if !self.is_ours() {
            return Err(NotAsked::Gone);
        }
        self.send(&mut self.lock(), Message { bytes: encode(request), fds: Vec::new() }, OUTGOING)
    }

    /// Asks to kill the unit `id`, once. Never refused, and never blocks.
    pub(super) fn kill(&self, id: u64) {
        if !self.is_ours() {
            return;
        }
        let mut shared = self.lock();
        match shared.units.get_mut(&id) {
            Some(unit) if !unit.kill_asked => unit.kill_asked = true,
            _ => return,
        }
        // If the keeper has gone, so have its children.
        let _ = self.send(&mut shared, Message { bytes: encode(&Request::Kill { id }), fds: Vec::new() }, usize::MAX);
    }

    /// Sends a launch. `None` if the keeper has gone before that.
    fn begin(self: &Arc<Self>, command: &Command) -> Result<Option<(Pending, usize)>, LaunchError> {
        // Relaxed: only uniqueness matters.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let packed = launcher::pack(command, &format!("{}{id}.{}", self.prefix, command.unit))?;
        let message = launch_message(command, id, &packed)?;
        let (launched, answer) = oneshot::channel();
        let (state, watched) = watch::channel(ChildState::Running);
        let mut shared = self.lock();
        shared.units.insert(id, Unit { launched: Some(launched), state, kill_asked: false, not_kept: None });
        match self.send(&mut shared, message, OUTGOING) {
            Ok(()) => {}
            Err(refused) => {
                shared.units.remove(&id);
                return match refused {
                    NotAsked::Gone => match &shared.gone {
                        Some(Gone::NeverReady(reason)) => Err(LaunchError::NoKeeper { reason: reason.clone() }),
                        _ => Ok(None),
                    },
                    NotAsked::Busy => Err(LaunchError::here(command, "sendmsg", io::ErrorKind::WouldBlock.into())),
                    NotAsked::Io(source) => Err(LaunchError::here(command, "sendmsg", source)),
                };
            }
        }
        drop(shared);
        let pending = Pending { connection: self.clone(), id, answer, watched, armed: true };
        Ok(Some((pending, packed.len())))
    }

    /// Sends now, or as soon as there is room, unless `limit` messages wait for room already.
    fn send(&self, shared: &mut Shared, message: Message, limit: usize) -> Result<(), NotAsked> {
        if shared.gone.is_some() {
            return Err(NotAsked::Gone);
        }
        if shared.outgoing.is_empty() {
            match self.send_now(&message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A launch has a caller to tell. What has no descriptors waits until there is memory again.
                Err(error) if message.fds.is_empty() && seqpacket::is_passing(&error) => {}
                Err(error) => return Err(NotAsked::Io(error)),
                Ok(()) => return Ok(()),
            }
        }
        if shared.outgoing.len() >= limit {
            return Err(NotAsked::Busy);
        }
        shared.outgoing.push_back(message);
        // The bell is full only if it has rung already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        Ok(())
    }

    fn send_now(&self, message: &Message) -> io::Result<()> {
        let fds: Vec<_> = message.fds.iter().map(|fd| fd.as_fd()).collect();
        match seqpacket::send(&self.socket, &message.bytes, &fds) {
            // The keeper has died. The thread finds the end of file and tells everybody.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Ok(()),
            sent => sent,
        }
    }

    /// The thread: starts the keeper, hands out its replies, and cleans up after it.
    fn run(&self, program: &Program, theirs: OwnedFd) {
        let mut keeper = match program.start(theirs) {
            Ok(keeper) => keeper,
            Err(reason) => return self.finish(Gone::NeverReady(reason)),
        };
        let mut talk = Talk { ready: false, broken: None };
        let reason = self.serve(&mut talk);
        // It has closed its socket, so it has ended; or it is a stranger that does not answer.
        let _ = keeper.kill();
        let status = keeper.wait();
        if !talk.ready {
            let how = talk.broken.unwrap_or_else(|| match (reason, status) {
                (Some(reason), _) => reason,
                (None, Ok(status)) => format!("it ended at once ({status})"),
                (None, Err(error)) => error.to_string(),
            });
            return self.finish(Gone::NeverReady(format!("{program} did not become one: {how}")));
        }
        self.lost();
    }

    /// The keeper has gone.
    fn lost(&self) {
        tracing::warn!("the keeper ended; what it held is killed");
        if !self.lock().units.is_empty() {
            tree::cull_by_cookie(self.prefix.as_bytes(), SWEEP_LIMIT);
        }
        self.finish(Gone::Lost);
    }

    /// Hands out replies until the keeper has gone. The text says what was wrong with it, if it was not its end.
    fn serve(&self, talk: &mut Talk) -> Option<String> {
        let deadline = Instant::now() + READY_LIMIT;
        let mut buffer = vec![0; wire::MESSAGE];
        loop {
            match seqpacket::receive(&self.socket, &mut buffer, &mut Vec::new()) {
                Ok(received) if received.length == 0 => return None,
                Ok(received) => {
                    for reply in wire::replies(&buffer[..received.length]) {
                        match reply {
                            Ok(reply) => self.take(talk, reply),
                            Err(error) => return Some(format!("it does not speak the keeper's protocol ({error})")),
                        }
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => return Some(error.to_string()),
            }
            if !talk.ready && Instant::now() >= deadline {
                return Some(format!("it did not answer within {READY_LIMIT:?}"));
            }
            self.wait((!talk.ready).then_some(deadline));
        }
    }

    /// Waits for replies and for the bell, and sends what waits for room.
    fn wait(&self, deadline: Option<Instant>) {
        let mut interest = PollFlags::IN;
        let mut is_short = false;
        {
            let mut shared = self.lock();
            while let Some(message) = shared.outgoing.front() {
                match self.send_now(message) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if seqpacket::is_passing(&error) => {
                        is_short = true;
                        break;
                    }
                    // No other error is known, and none would pass.
                    Err(_) | Ok(()) => drop(shared.outgoing.pop_front()),
                }
            }
            if !shared.outgoing.is_empty() && !is_short {
                interest |= PollFlags::OUT;
            }
        }
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = if is_short { Some(timeout.map_or(SEND_AGAIN, |time| time.min(SEND_AGAIN))) } else { timeout };
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos() as i64 });
        let mut polled = [PollFd::new(&self.socket, interest), PollFd::new(&self.bell, PollFlags::IN)];
        // An error can only be EINTR here, and then the caller looks again.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        if polled[1].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
    }

    /// Hands out one reply. Channels are told after the lock is released, for they wake tasks.
    fn take(&self, talk: &mut Talk, reply: Reply) {
        match reply {
            Reply::Ready { .. } => talk.ready = true,
            Reply::Broken { step, errno } => {
                let text = step.text();
                talk.ready = false;
                talk.broken = Some(match errno {
                    0 => text,
                    errno => format!("{text} ({})", io::Error::from_raw_os_error(errno)),
                });
            }
            Reply::Started { id, pid } => {
                let launched = self.lock().units.get_mut(&id).and_then(|unit| unit.launched.take());
                // A launch that was cancelled has asked for the kill itself.
                launched.map(|launched| launched.send(Ok(pid)));
            }
            Reply::Failed { id, stage, errno } => {
                let unit = self.lock().units.remove(&id);
                let launched = unit.and_then(|unit| unit.launched);
                launched.map(|launched| launched.send(Err(Refusal::Failed(Failure { stage, errno }))));
            }
            Reply::NotKept { id } => {
                let not_kept = self.lock().units.get_mut(&id).and_then(|unit| unit.not_kept.take());
                not_kept.map(|not_kept| not_kept.send(()));
            }
            // These come before anything else, if at all.
            Reply::Kept { .. } | Reply::AllKept { .. } => {}
            Reply::Stopped { id, signal } => self.set_state(id, ChildState::Stopped(Signal(signal))),
            Reply::Continued { id } => self.set_state(id, ChildState::Running),
            Reply::Exited { .. } => {
                if let Some((id, exit)) = exit_of(reply) {
                    let unit = self.lock().units.remove(&id);
                    unit.map(|unit| unit.state.send_replace(ChildState::Exited(exit)));
                }
            }
        }
    }

    fn set_state(&self, id: u64, state: ChildState) {
        let sender = self.lock().units.get(&id).map(|unit| unit.state.clone());
        sender.map(|sender| sender.send_replace(state));
    }

    /// Tells everybody that the keeper has gone.
    fn finish(&self, gone: Gone) {
        let units = {
            let mut shared = self.lock();
            shared.gone = Some(gone.clone());
            shared.outgoing.clear();
            std::mem::take(&mut shared.units)
        };
        for unit in units.into_values() {
            match unit.launched {
                Some(launched) => drop(launched.send(Err(Refusal::Gone(gone.clone())))),
                None => drop(unit.state.send_replace(ChildState::Exited(Exit::lost()))),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Each change under the lock is whole before anything that could panic.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the keeper has said of itself.
struct Talk {
    ready: bool,
    broken: Option<String>,
}

/// A launch that the keeper has not answered. Dropping it kills what came of it.
struct Pending {
    connection: Arc<Connection>,
    id: u64,
    answer: oneshot::Receiver<Result<u32, Refusal>>,
    watched: watch::Receiver<ChildState>,
    armed: bool,
}

impl Pending {
    async fn finish(mut self, command: &Command, packed_len: usize) -> Result<Child, LaunchError> {
        let answer = (&mut self.answer).await;
        self.armed = false;
        match answer {
            Ok(Ok(pid)) => {
                let holder = Holder::Keeper { connection: self.connection.clone(), id: self.id };
                Ok(Child::new(pid, self.watched.clone(), holder))
            }
            Ok(Err(Refusal::Failed(failure))) => Err(LaunchError::from_failure(command, packed_len, failure)),
            Ok(Err(Refusal::Gone(Gone::NeverReady(reason)))) => Err(LaunchError::NoKeeper { reason }),
            Ok(Err(Refusal::Gone(Gone::Lost))) | Err(_) => {
                Err(LaunchError::KeeperLost { program: command.program.clone() })
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.armed {
            self.connection.kill(self.id);
        }
    }
}

/// Of which unit a reply tells the end, and how that was.
fn exit_of(reply: Reply) -> Option<(u64, Exit)> {
    let Reply::Exited { id, status, counted, strays, stray_count, survivors } = reply else { return None };
    let status = match status {
        Status::Code(code) => ExitStatus::Code(code),
        Status::Signal { signal, core } => ExitStatus::Signal { signal, core },
        Status::Lost => ExitStatus::Lost,
    };
    Some((id, Exit { status, strays, stray_count, survivors, usage: Usage::from(counted) }))
}

/// Starts a thread that hands out what a keeper says.
fn thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("pm-keeper".to_owned()).stack_size(256 * 1024).spawn(run)?;
    Ok(())
}

fn encode(request: &Request<'_>) -> Vec<u8> {
    // Into a Vec nothing of this type can fail.
    postcard::to_stdvec(request).unwrap_or_default()
}

fn launch_message(command: &Command, id: u64, packed: &Packed) -> Result<Message, LaunchError> {
    let mut fds: Vec<_> = command.fds.iter().map(|(_, fd)| fd.clone()).collect();
    // A KiB for what is not text: numbers of descriptors and limits.
    if packed.len() + 1024 <= wire::INLINE && fds.len() <= 64 {
        return Ok(Message { bytes: encode(&Request::Launch { id, launch: packed.launch() }), fds });
    }
    let bytes = postcard::to_stdvec(&packed.launch()).unwrap_or_default();
    if bytes.len() > wire::LAUNCH {
        let source = io::Error::from_raw_os_error(libc::E2BIG);
        return Err(LaunchError::ArgumentsTooLong { program: command.program.clone(), bytes: packed.len(), source });
    }
    let memory = rustix::fs::memfd_create("pm-launch", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| LaunchError::here(command, "memfd_create", error.into()))?;
    let mut file = File::from(memory);
    file.write_all(&bytes).map_err(|source| LaunchError::here(command, "writing a memfd", source))?;
    fds.push(Arc::new(file.into()));
    Ok(Message { bytes: encode(&Request::LaunchFrom { id, length: bytes.len() as u64 }), fds })
}
