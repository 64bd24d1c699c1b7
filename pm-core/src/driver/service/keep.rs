//! Services that outlive the program that started them, until the next orchestrator takes them over.
//!
//! What the next one has to know of a process is a [`Note`], which its keeper keeps, beside the streams of the process. The keeper also
//! runs [`open_capture`]: as long as there is no orchestrator it writes the logs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::unix::pipe;

use super::log::{Log, LogEntry, LogFile};
use super::output::{Piece, Splitter};
use crate::driver::exec::OutputStream;
use crate::driver::launch::kept::{Kept, MeetingPoint};
use crate::driver::launch::{Child, Exit};
use crate::face::service::{Definition, LeftBehind, Stopped};
use crate::machine::exit::Signal;
use crate::sys::keeper::keeping::Capture;
use crate::sys::keeper_wire::Holding;

/// From the signal to the kill, of those whom nobody knows any more and whose rules are forgotten.
pub(super) const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

/// The longest note that is kept of a process, in bytes: a path (4 KiB) and a few names.
const NOTE: usize = 8 * 1024;

/// What is read of one of them at once.
const READ: usize = 64 << 10;

/// What the next orchestrator has to know of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Its service, and which replica of it.
    pub(super) name: String,
    pub(super) replica: u32,
    /// What runs, in short: where it is not the same any more, the service is started anew.
    pub(super) what: [u8; 32],
    /// When it was started, in milliseconds since 1970.
    pub(super) since_ms: u64,
    /// It has said that it is ready.
    pub(super) was_ready: bool,
    /// What the descriptors are that its keeper holds, in their order.
    streams: Vec<Stream>,
    log: Option<LogSettings>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stream {
    Stdout,
    Stderr,
    Notify { uid: u32 },
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

/// The streams of a process that its keeper holds.
pub(super) struct Held<Fd> {
    pub(super) stdout: Fd,
    pub(super) stderr: Fd,
    /// The socket of sd_notify(3), and whose messages count there.
    pub(super) notify: Option<(Fd, u32)>,
}

impl Note {
    /// Of a process that was just started.
    pub(super) fn new(definition: &Definition, replica: u32) -> Self {
        let since_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let log = definition.log.as_ref().and_then(|log| LogSettings::of(&log.of_replica(replica)).ok());
        Note {
            name: definition.name.clone(),
            replica,
            what: what_runs(definition),
            since_ms: u64::try_from(since_ms).unwrap_or(u64::MAX),
            was_ready: false,
            streams: Vec::new(),
            log,
        }
    }

    pub(super) fn label(&self) -> String {
        if self.replica == 1 { self.name.clone() } else { format!("{}#{}", self.name, self.replica) }
    }

    /// How long its process has lived. The clock may have been set meanwhile.
    pub(super) fn lived(&self) -> Duration {
        let since = UNIX_EPOCH + Duration::from_millis(self.since_ms);
        SystemTime::now().duration_since(since).unwrap_or_default()
    }

    /// Says that the process has become ready.
    pub(super) fn is_ready(&mut self, child: &Child) {
        if !std::mem::replace(&mut self.was_ready, true) {
            child.note(&self.encode());
        }
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
    part(format!("{spec:?} {:?} {:?}", definition.stdin, definition.is_notified()).as_bytes());
    for (name, value) in spec.environment(std::iter::empty()) {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    hash.finalize().into()
}

/// Where what an orchestrator starts is kept.
pub(crate) struct Keep {
    meeting: MeetingPoint,
}

impl Keep {
    pub(crate) fn new(meeting: MeetingPoint) -> Self {
        Keep { meeting }
    }

    /// Lets a process outlive this one.
    pub(super) fn keep(&self, child: &Child, note: &mut Note, held: &Held<BorrowedFd<'_>>) {
        let mut fds = vec![(Holding::Stream(0), held.stdout), (Holding::Stream(1), held.stderr)];
        note.streams = vec![Stream::Stdout, Stream::Stderr];
        if let Some((socket, uid)) = held.notify {
            fds.push((Holding::Notify { uid }, socket));
            note.streams.push(Stream::Notify { uid });
        }
        let note = note.encode();
        // More than that would take a path of several KiB, which no file has.
        if note.len() <= NOTE {
            self.meeting.keep(child, &note, &fds);
        }
    }

    /// Lets nothing outlive this process.
    pub(crate) fn leave(&self) {
        self.meeting.leave();
    }
}

/// A process that has outlived the orchestrator that started it, and is nobody's yet.
pub(crate) struct Left {
    pub(super) child: Child,
    pub(super) note: Note,
    pub(super) held: Held<OwnedFd>,
}

impl Left {
    /// None where its note cannot be read: it came from another program. Such a process is killed.
    pub(crate) fn new(kept: Kept) -> Option<Self> {
        let mut note: Note = postcard::from_bytes(&kept.note).ok()?;
        note.was_ready |= kept.is_ready;
        let mut fds = kept.held.into_iter().map(|(_, fd)| fd);
        let (mut stdout, mut stderr, mut notify) = (None, None, None);
        for (stream, fd) in note.streams.iter().zip(&mut fds) {
            match stream {
                Stream::Stdout => stdout = Some(fd),
                Stream::Stderr => stderr = Some(fd),
                Stream::Notify { uid } => notify = Some((fd, *uid)),
            }
        }
        Some(Left { child: kept.child, held: Held { stdout: stdout?, stderr: stderr?, notify }, note })
    }

    pub(super) fn info(&self) -> LeftBehind {
        LeftBehind { label: self.note.label().into(), pid: self.child.pid(), lived: self.note.lived() }
    }

    /// Whether it has printed the line that says that it is ready, as its log has it.
    pub(super) fn has_said(&self, pattern: &Regex) -> bool {
        let Some(log) = self.note.log.clone().map(LogSettings::file) else { return false };
        let since = UNIX_EPOCH + Duration::from_millis(self.note.since_ms);
        let since = humantime::format_rfc3339_millis(since).to_string();
        // The younger one last, for most of the time it is the only one.
        [log.aside(1), log.path].iter().any(|path| has_line(path, &since, pattern))
    }

    /// Has it end, and writes down what it still says.
    pub(super) async fn end(mut self, limit: Duration) -> Stopped {
        // Where it has ended meanwhile its exit says so.
        let _ = self.child.ask_tree(Signal::TERM);
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
        let read = async {
            tokio::join!(read(&self.held.stdout, 0, &capture), read(&self.held.stderr, 1, &capture));
            std::future::pending::<Exit>().await
        };
        let exit = tokio::select! {
            exit = exited => exit,
            exit = read => exit,
        };
        // What it said last.
        drain(&self.held.stdout, 0, &capture);
        drain(&self.held.stderr, 1, &capture);
        Stopped {
            label: self.note.label().into(),
            exit: Some(exit.status),
            was_killed,
            swept: exit.strays,
            survivors: exit.survivors,
        }
    }
}

/// Reads a stream until its end.
async fn read(fd: &OwnedFd, stream: u8, capture: &Mutex<Captured>) {
    // It fails only where the process has no descriptors left.
    let Ok(pipe) = fd.try_clone().and_then(pipe::Receiver::from_owned_fd) else { return };
    let mut buffer = vec![0; READ];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => lock(capture).take(stream, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Reads what is in a stream. Whoever else holds it is not waited for.
fn drain(fd: &OwnedFd, stream: u8, capture: &Mutex<Captured>) {
    let mut left = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    let mut buffer = vec![0; READ];
    while left > 0 {
        let Ok(count @ 1..) = rustix::io::read(fd, &mut buffer) else { break };
        left = left.saturating_sub(count as u64);
        lock(capture).take(stream, &buffer[..count]);
    }
    lock(capture).end(stream);
}

fn lock(capture: &Mutex<Captured>) -> MutexGuard<'_, Captured> {
    capture.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a log has a record from this time on with a line that matches.
fn has_line(path: &Path, since: &str, pattern: &Regex) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut records = BufReader::new(file);
    let mut record = Vec::new();
    loop {
        record.clear();
        match records.read_until(b'\n', &mut record) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        let entry = LogEntry::parse(record.strip_suffix(b"\n").unwrap_or(&record));
        if entry.is_some_and(|entry| *entry.time >= *since && pattern.is_match(&entry.text)) {
            return true;
        }
    }
}

/// What writes down what a process prints while it has no orchestrator.
#[derive(Debug)]
struct Captured {
    /// None where it cannot be opened: then its output is dropped, for nobody is to wait for it.
    log: Option<Log>,
    splitters: BTreeMap<u8, Splitter>,
}

/// Makes it in the keeper, from the note of a process. Where the process has no log its output is dropped.
pub(crate) fn open_capture(note: &[u8]) -> Option<Box<dyn Capture>> {
    let note: Note = postcard::from_bytes(note).ok()?;
    Some(Box::new(Captured::open(&note)))
}

impl Captured {
    fn open(note: &Note) -> Self {
        let log = note.log.clone().and_then(|settings| Log::open(settings.file()).ok());
        Captured { log, splitters: BTreeMap::new() }
    }
}

fn put(log: &mut Option<Log>, stream: u8, piece: Piece<'_>) {
    let stream = if stream == 0 { OutputStream::Stdout } else { OutputStream::Stderr };
    if let Some(log) = log {
        // What is lost is counted and said in the log itself.
        let _ = log.write(SystemTime::now(), stream, piece);
    }
}

impl Capture for Captured {
    fn take(&mut self, stream: u8, bytes: &[u8]) {
        let log = &mut self.log;
        self.splitters.entry(stream).or_default().take(bytes, |piece| put(log, stream, piece));
    }

    fn end(&mut self, stream: u8) {
        let log = &mut self.log;
        self.splitters.entry(stream).or_default().finish(|piece| put(log, stream, piece));
    }

    fn hand_over(&mut self) {
        let log = &mut self.log;
        for (stream, splitter) in &mut self.splitters {
            // The line goes on in what the next one reads.
            splitter.finish(|piece| put(log, *stream, Piece { is_whole: false, ..piece }));
        }
    }
}
