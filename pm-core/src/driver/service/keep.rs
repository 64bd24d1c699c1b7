//! Services that outlive the program that started them, until the next orchestrator takes them over.
//!
//! What the next one has to know of a process is a [`Note`], which its keeper keeps, beside the streams of the process. The keeper also
//! runs [`open_capture`]: as long as there is no orchestrator it writes the logs, and looks for the line that says that a service is ready.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::log::{Log, LogFile};
use super::output::{Piece, Splitter};
use crate::driver::exec::OutputStream;
use crate::driver::launch::meeting::{Kept, MeetingPoint};
use crate::driver::launch::{Child, Exit};
use crate::face::service::{Definition, LeftBehind, StopBy, Stopped};
use crate::machine::exit::Signal;
use crate::machine::service::label;
use crate::sys::keeper::keeping::Capture;
use crate::sys::keeper_wire::Holding;
use crate::sys::last_words;

/// The longest note that is kept of a process, in bytes: a path (4 KiB), a pattern and a few names.
const NOTE: usize = 8 * 1024;

/// What is read of a stream at once.
const READ: usize = 64 << 10;

/// What the next orchestrator has to know of a process. Its form belongs to the version of the keeper's protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Its service, and which replica of it.
    pub(super) name: String,
    pub(super) replica: u32,
    /// How many replicas the service is said to have. It may have others, if somebody has scaled it.
    pub(super) declared: u32,
    /// What runs, in short: where it is not the same any more, the service is started anew.
    pub(super) what: [u8; 32],
    /// When it was started, in milliseconds since 1970.
    since_ms: u64,
    /// It has said that it is ready, or was found to be well.
    pub(super) was_ready: bool,
    /// The line that says so.
    ready_line: Option<String>,
    stop_signal: i32,
    stop_limit_ms: u64,
    /// What the descriptors are that its keeper holds, in their order.
    streams: Vec<Stream>,
    log: Option<LogSettings>,
}

/// A descriptor that is held of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stream {
    Stdout,
    Stderr,
    /// The master of its terminal, which has both.
    Terminal,
    /// The other end of that, which is held open.
    Slave,
    /// The socket of sd_notify(3), and whose messages count there.
    Notify {
        uid: u32,
    },
}

impl Stream {
    /// What its keeper does with it, where it is the one of this number.
    fn holding(self, number: usize) -> Holding {
        match self {
            Stream::Stdout | Stream::Stderr | Stream::Terminal => Holding::Stream(number as u8),
            Stream::Slave => Holding::Open,
            Stream::Notify { uid } => Holding::Notify { uid },
        }
    }

    /// Where what is read of it was printed.
    fn printed(self) -> OutputStream {
        if self == Stream::Stderr { OutputStream::Stderr } else { OutputStream::Stdout }
    }

    fn is_read(self) -> bool {
        matches!(self, Stream::Stdout | Stream::Stderr | Stream::Terminal)
    }
}

/// A [`LogFile`], for another process of this machine: with an absolute path, which need not be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LogSettings {
    path: Vec<u8>,
    max_bytes: u64,
    keep: u32,
    json: bool,
}

impl LogSettings {
    fn of(log: &LogFile) -> io::Result<Self> {
        let path = std::path::absolute(&log.path)?.into_os_string().into_vec();
        Ok(LogSettings { path, max_bytes: log.max_bytes, keep: log.keep, json: log.json })
    }

    fn file(self) -> LogFile {
        let path = PathBuf::from(OsString::from_vec(self.path));
        LogFile { path, max_bytes: self.max_bytes, keep: self.keep, json: self.json }
    }
}

impl Note {
    /// Of a process that was just started.
    pub(super) fn new(definition: &Definition, replica: u32) -> Self {
        let since_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut note = Note {
            name: definition.name.clone(),
            replica,
            declared: 0,
            what: what_runs(definition),
            since_ms: u64::try_from(since_ms).unwrap_or(u64::MAX),
            was_ready: false,
            ready_line: None,
            stop_signal: Signal::TERM.0,
            stop_limit_ms: 0,
            streams: Vec::new(),
            log: None,
        };
        note.follow(definition);
        note
    }

    /// What is done about the process, as its definition says.
    fn follow(&mut self, definition: &Definition) {
        self.declared = definition.replicas;
        self.ready_line = definition.ready_line.as_ref().map(|line| line.as_str().to_owned());
        self.stop_signal = match definition.stop_by {
            StopBy::Signal(signal) => signal.0,
            // Nobody runs it who does not know the service.
            StopBy::Command(_) => Signal::TERM.0,
        };
        self.stop_limit_ms = u64::try_from(definition.rules.stop_limit.as_millis()).unwrap_or(u64::MAX);
        self.log = definition.log.as_ref().and_then(|log| LogSettings::of(&log.of_replica(self.replica)).ok());
    }

    /// The process is kept for the next one once more, under what its definition says now.
    pub(super) fn renew(&mut self, definition: &Definition, child: &Child) {
        self.follow(definition);
        child.note(&self.encode());
    }

    /// Says that the process has become ready.
    pub(super) fn is_ready(&mut self, child: &Child) {
        if !std::mem::replace(&mut self.was_ready, true) {
            child.note(&self.encode());
        }
    }

    pub(super) fn label(&self) -> String {
        label(&self.name, self.replica)
    }

    fn encode(&self) -> Vec<u8> {
        // Into a Vec nothing of this type can fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }
}

/// What a process is made of, in short. Values of variables are part of it and cannot be read from it.
pub(super) fn what_runs(definition: &Definition) -> [u8; 32] {
    let spec = &definition.spec;
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    // Program, user, limits and the like: all but the values of variables.
    let streams = (definition.stdin, definition.has_terminal, definition.is_notified());
    part(format!("{spec:?} {streams:?}").as_bytes());
    for (name, value) in spec.environment(std::iter::empty()) {
        part(name.as_encoded_bytes());
        part(value.as_encoded_bytes());
    }
    hash.finalize().into()
}

/// Where what an orchestrator starts is kept.
pub(crate) struct Keep {
    meeting: MeetingPoint,
    /// All services, and not only those that are detached.
    keeps_all: bool,
}

impl Keep {
    pub(crate) fn new(meeting: MeetingPoint, keeps_all: bool) -> Self {
        Keep { meeting, keeps_all }
    }

    /// Whether the processes of a service are kept.
    pub(super) fn keeps(&self, definition: &Definition) -> bool {
        self.keeps_all || definition.is_detached
    }

    /// Lets a process outlive this one. What is given is told where it cannot be.
    pub(super) fn keep(
        &self,
        child: &Child,
        note: &mut Note,
        held: &[(Stream, BorrowedFd<'_>)],
    ) -> Option<oneshot::Receiver<()>> {
        note.streams = held.iter().map(|(stream, _)| *stream).collect();
        let fds: Vec<(Holding, BorrowedFd<'_>)> =
            held.iter().enumerate().map(|(number, (stream, fd))| (stream.holding(number), *fd)).collect();
        let note = note.encode();
        if note.len() > NOTE {
            let (tell, told) = oneshot::channel();
            let _ = tell.send(());
            return Some(told);
        }
        self.meeting.keep(child, &note, &fds)
    }

    /// Leaves what is kept to the next one.
    pub(super) fn close(&self) {
        self.meeting.close();
    }

    /// Lets nothing outlive this process.
    pub(super) fn keep_nothing(&self) {
        self.meeting.keep_nothing();
    }
}

/// A process that has outlived the orchestrator that started it, and is nobody's yet.
pub(crate) struct Left {
    pub(super) child: Child,
    pub(super) note: Note,
    pub(super) held: Vec<(Stream, OwnedFd)>,
    /// How it has ended meanwhile, and how long ago. What it said last stands in its log then.
    pub(super) ended: Option<(Exit, Duration)>,
}

impl Left {
    /// None where its note cannot be read: it came from another program. Such a process is killed.
    pub(crate) fn new(kept: Kept) -> Option<Self> {
        let mut note: Note = postcard::from_bytes(&kept.note).ok()?;
        note.was_ready |= kept.is_ready;
        let held = note.streams.iter().copied().zip(kept.held.into_iter().map(|(_, fd)| fd)).collect();
        Some(Left { child: kept.child, note, held, ended: kept.ended })
    }

    /// How long its process has lived. The clock may have been set meanwhile.
    pub(super) fn lived(&self) -> Duration {
        let since = UNIX_EPOCH + Duration::from_millis(self.note.since_ms);
        let ago = self.ended.as_ref().map_or(Duration::ZERO, |(_, ago)| *ago);
        SystemTime::now().duration_since(since).unwrap_or_default().saturating_sub(ago)
    }

    pub(super) fn info(&self) -> LeftBehind {
        LeftBehind { label: self.note.label().into(), pid: self.child.pid(), lived: self.lived() }
    }

    /// Has it end as it was to be, or within another limit, and writes down what it still says.
    pub(super) async fn end(mut self, limit: Option<Duration>) -> Stopped {
        let limit = limit.unwrap_or(Duration::from_millis(self.note.stop_limit_ms));
        // Where it has ended meanwhile its exit says so.
        let _ = self.child.ask_tree(Signal(self.note.stop_signal));
        let _ = self.child.signal(Signal::CONT);
        let capture = Mutex::new(Captured::open(&self.note));
        let mut was_killed = false;
        let exited = async {
            match tokio::time::timeout(limit, self.child.exited()).await {
                Ok(exit) => exit,
                Err(_) => {
                    was_killed = true;
                    self.child.kill_tree();
                    self.child.exited().await
                }
            }
        };
        let streams = || self.held.iter().enumerate().filter(|(_, (stream, _))| stream.is_read());
        let read = async {
            let readers = streams().map(|(number, (_, fd))| Box::pin(read(fd, number as u8, &capture)));
            all(readers.collect()).await;
            std::future::pending::<Exit>().await
        };
        let exit = tokio::select! {
            exit = exited => exit,
            exit = read => exit,
        };
        for (number, (_, fd)) in streams() {
            drain(fd, number as u8, &capture);
        }
        self.child.forget();
        Stopped {
            label: self.note.label().into(),
            exit: Some(exit.status),
            was_killed,
            swept: exit.strays,
            survivors: exit.survivors,
        }
    }
}

/// Waits for all of them.
async fn all<F: Future<Output = ()> + Unpin>(mut futures: Vec<F>) {
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| std::pin::Pin::new(future).poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Reads a stream until its end.
async fn read(fd: &OwnedFd, number: u8, capture: &Mutex<Captured>) {
    // Unchecked, for a terminal is no pipe, and read as one. It fails only where the process has no descriptors left.
    let Ok(pipe) = fd.try_clone().and_then(pipe::Receiver::from_owned_fd_unchecked) else { return };
    let mut buffer = vec![0; READ];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => lock(capture).take(number, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Reads what is in a stream. Whoever else holds it is not waited for.
fn drain(fd: &OwnedFd, number: u8, capture: &Mutex<Captured>) {
    last_words::read(fd, &mut vec![0; READ], |bytes| lock(capture).take(number, bytes));
    lock(capture).end(number);
}

fn lock(capture: &Mutex<Captured>) -> MutexGuard<'_, Captured> {
    capture.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What writes down what a process prints while it has no orchestrator.
#[derive(Debug)]
struct Captured {
    /// Each stream that is held, those that are read with what makes lines of them.
    streams: Vec<(Stream, Splitter)>,
    lines: Lines,
}

#[derive(Debug)]
struct Lines {
    /// None where it cannot be opened: then its output is dropped, for nobody is to wait for it.
    log: Option<Log>,
    ready_line: Option<Regex>,
    is_ready: bool,
}

/// Makes it in the keeper, from the note of a process.
pub(crate) fn open_capture(note: &[u8]) -> Option<Box<dyn Capture>> {
    let note: Note = postcard::from_bytes(note).ok()?;
    Some(Box::new(Captured::open(&note)))
}

impl Captured {
    fn open(note: &Note) -> Self {
        let log = note.log.clone().and_then(|settings| Log::open(settings.file()).ok());
        // It was one when the service was made.
        let ready_line = note.ready_line.as_ref().and_then(|line| Regex::new(line).ok());
        let splitter = |stream: &Stream| (*stream, Splitter::new(*stream == Stream::Terminal));
        let lines = Lines { log, ready_line, is_ready: false };
        Captured { streams: note.streams.iter().map(splitter).collect(), lines }
    }

    fn stream(&mut self, number: u8) -> Option<(OutputStream, &mut Splitter, &mut Lines)> {
        let (stream, splitter) = self.streams.get_mut(usize::from(number))?;
        Some((stream.printed(), splitter, &mut self.lines))
    }
}

impl Lines {
    fn put(&mut self, stream: OutputStream, piece: Piece<'_>) {
        if let Some(ready_line) = &self.ready_line {
            self.is_ready |= piece.lines().any(|line| ready_line.is_match(line));
        }
        if let Some(log) = &mut self.log {
            // What is lost is counted and said in the log itself.
            let _ = log.write(SystemTime::now(), stream, piece);
        }
    }
}

impl Capture for Captured {
    fn take(&mut self, number: u8, bytes: &[u8]) {
        if let Some((stream, splitter, lines)) = self.stream(number) {
            splitter.take(bytes, |piece| lines.put(stream, piece));
        }
    }

    fn end(&mut self, number: u8) {
        if let Some((stream, splitter, lines)) = self.stream(number) {
            splitter.finish(|piece| lines.put(stream, piece));
        }
    }

    fn hand_over(&mut self) {
        for (stream, splitter) in &mut self.streams {
            let lines = &mut self.lines;
            // The line goes on in what the next one reads.
            splitter.finish(|piece| lines.put(stream.printed(), Piece { is_whole: false, ..piece }));
        }
    }

    fn is_ready(&self) -> bool {
        self.lines.is_ready
    }
}
