//! What services print: read on a thread of its own, into logs, a tail for errors, and to whoever listens.
//!
//! One thread reads for all services, into one buffer, so that a hundred of them cost no more memory than one. Where it writes
//! to files it waits for the disk; services that print more than that are held up by their pipes, and by nothing else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use regex::bytes::Regex;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::keep::Stream;
use super::log::Log;
use super::tap::{TapReader, Taps};
use crate::driver::exec::OutputStream;
use crate::machine::id::Incarnation;
use crate::machine::service::ServiceId;
use crate::sys::last_words;

/// What is read at once, from any service.
const BUFFER: usize = 256 << 10;

/// A line that is longer comes in pieces of this length.
const LONGEST_PIECE: usize = 64 << 10;

/// What is kept of each service for errors, and for those who look at it.
const TAIL: usize = 16 << 10;

/// How long what a service prints waits for a reader that is slow, before it is dropped for that one.
const PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lines that a service printed, as they came: several at once, of one of its streams.
#[derive(Clone, Debug)]
pub struct Output {
    /// The process of the service.
    pub id: ServiceId,
    /// The name of the service, with the number of the replica where there are several.
    pub label: Arc<str>,
    /// Where it printed.
    pub stream: OutputStream,
    /// When that was read.
    pub at: SystemTime,
    /// The lines, each with its line break (a `\n`, also where a terminal has made `\r\n` of it); or, where [`Output::is_whole`] is false, 64 KiB of one that goes on in what comes next. Empty
    /// where there is nothing to say but what was missed.
    pub text: Bytes,
    /// Whether all lines of the text are whole.
    pub is_whole: bool,
    /// Lines that went before these and did not find their way here, because whoever reads was too slow.
    pub missed: u64,
}

/// Whole lines, or a part of one that is too long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a [u8],
    pub(super) is_whole: bool,
}

impl<'a> Piece<'a> {
    /// Each line, without its line break.
    pub(super) fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        let text = self.text.strip_suffix(b"\n").unwrap_or(self.text);
        let mut ends = memchr::memchr_iter(b'\n', text);
        let mut begin = Some(0);
        std::iter::from_fn(move || {
            let from = begin?;
            let end = ends.next();
            begin = end.map(|end| end + 1);
            Some(&text[from..end.unwrap_or(text.len())])
        })
    }

    /// The same with `\n` at the ends of lines where there is `\r\n`, or more of the `\r`.
    fn without_carriage_returns(self, text: &'a mut Vec<u8>) -> Piece<'a> {
        text.clear();
        let (lines, is_ended) = (self.lines(), self.text.ends_with(b"\n"));
        for (number, line) in lines.enumerate() {
            if number > 0 {
                text.push(b'\n');
            }
            let end = line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
            text.extend_from_slice(&line[..end]);
        }
        text.extend(is_ended.then_some(b'\n'));
        Piece { text, is_whole: self.is_whole }
    }
}

/// Where what a process prints is read.
#[derive(Debug)]
pub(super) struct Source {
    fd: OwnedFd,
    stream: OutputStream,
    is_terminal: bool,
}

impl Source {
    /// The end of a pipe.
    pub(super) fn of_pipe(fd: OwnedFd, stream: OutputStream) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Source { fd, stream, is_terminal: false })
    }

    /// The master of a terminal, which does not block. Its slave must be held open as well, or it has ends where the process lets go of it for a moment.
    pub(super) fn of_terminal(master: OwnedFd) -> Self {
        Source { fd: master, stream: OutputStream::Stdout, is_terminal: true }
    }

    /// What it is for who keeps it.
    pub(super) fn kept_as(&self) -> Stream {
        match (self.is_terminal, self.stream) {
            (true, _) => Stream::Terminal,
            (false, OutputStream::Stdout) => Stream::Stdout,
            (false, OutputStream::Stderr) => Stream::Stderr,
        }
    }

    /// The stream itself.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The thread that reads. It ends with the last of those that hold this.
pub(crate) struct OutputThread {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl OutputThread {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (alive, end) = oneshot::channel::<()>();
        std::thread::Builder::new().name("pm-output".into()).spawn(move || {
            // An error says that all who held it are gone.
            let _ = runtime.block_on(end);
        })?;
        Ok(OutputThread { handle, _alive: alive })
    }

    /// Reads one stream of a process until its end, or until `ended` says that the process has ended, and then its last words.
    pub(super) fn follow(&self, source: Source, sink: Arc<Sink>, ended: watch::Receiver<bool>) -> JoinHandle<()> {
        let Source { fd, stream, is_terminal } = source;
        self.handle.spawn(async move {
            // Made here, where it is waited for; unchecked, for a terminal is no pipe, and read as one. It fails only where the kernel has no memory left.
            if let Ok(pipe) = pipe::Receiver::from_owned_fd_unchecked(fd) {
                pump(pipe, stream, is_terminal, &sink, ended).await;
            }
        })
    }
}

async fn pump(
    pipe: pipe::Receiver,
    stream: OutputStream,
    is_terminal: bool,
    sink: &Arc<Sink>,
    mut ended: watch::Receiver<bool>,
) {
    let mut splitter = Splitter::new(is_terminal);
    let mut queued = Vec::new();
    loop {
        let is_readable = tokio::select! {
            biased;
            // First, for somebody else who holds the pipe may fill it for ever.
            _ = ended.wait_for(|ended| *ended) => break,
            readable = pipe.readable() => readable.is_ok(),
        };
        let next = |buffer: &mut [u8]| pipe.try_read(buffer);
        if !is_readable || read(next, stream, sink, &mut splitter, &mut queued) == Some(0) {
            break;
        }
        sink.pass_on(&mut queued).await;
    }
    // Its last words are in the pipe by now. Whoever else holds the pipe may go on for ever, and is not waited for.
    let mut left = last_words::budget(&pipe);
    while left > 0 {
        // What the runtime last heard of the pipe may be older than what is in it, so the pipe itself is asked.
        let now = |buffer: &mut [u8]| Ok(rustix::io::read(&pipe, buffer)?);
        match read(now, stream, sink, &mut splitter, &mut queued) {
            None | Some(0) => break,
            Some(count) => left = left.saturating_sub(count as u64),
        }
        sink.pass_on(&mut queued).await;
    }
    splitter.finish(|piece| queued.extend(sink.take(stream, piece)));
    sink.pass_on(&mut queued).await;
    sink.own_up(stream);
}

/// Reads what is there. None where nothing is; 0 at the end.
fn read(
    how: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    stream: OutputStream,
    sink: &Sink,
    splitter: &mut Splitter,
    queued: &mut Vec<Output>,
) -> Option<usize> {
    READ.with_borrow_mut(|buffer| {
        buffer.resize(BUFFER, 0);
        match how(buffer) {
            Ok(count) => {
                sink.taps.push(stream, &buffer[..count]);
                splitter.take(&buffer[..count], |piece| queued.extend(sink.take(stream, piece)));
                Some(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(0),
        }
    })
}

/// Makes pieces of what comes.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// A line that is not whole yet.
    partial: Vec<u8>,
    /// Lines end with `\r\n`, as on a terminal, and are given as others are.
    is_terminal: bool,
}

impl Splitter {
    pub(super) fn new(is_terminal: bool) -> Self {
        Splitter { partial: Vec::new(), is_terminal }
    }

    pub(super) fn take(&mut self, bytes: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        let mut without = Vec::new();
        let is_terminal = self.is_terminal;
        self.cut(bytes, &mut |piece: Piece<'_>| {
            if is_terminal && memchr::memmem::find(piece.text, b"\r\n").is_some() {
                emit(piece.without_carriage_returns(&mut without));
            } else {
                emit(piece);
            }
        });
    }

    fn cut(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if !self.partial.is_empty() {
            let Some(end) = memchr::memchr(b'\n', bytes) else { return self.keep(bytes, emit) };
            let (head, rest) = bytes.split_at(end + 1);
            self.keep(head, emit);
            if !self.partial.is_empty() {
                emit(Piece { text: &self.partial, is_whole: true });
                self.forget();
            }
            bytes = rest;
        }
        let whole = memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
        if whole > 0 {
            emit(Piece { text: &bytes[..whole], is_whole: true });
        }
        self.keep(&bytes[whole..], emit);
    }

    /// Keeps what has no end yet, and cuts it where it is too long. `bytes` may end with the line break.
    fn keep(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        while self.partial.len() + bytes.len() > LONGEST_PIECE {
            let (head, rest) = bytes.split_at(LONGEST_PIECE - self.partial.len());
            self.partial.extend_from_slice(head);
            // A line break alone is no further piece, but the end of this one.
            let is_whole = rest == b"\n";
            emit(Piece { text: &self.partial, is_whole });
            self.partial.clear();
            bytes = if is_whole { &[] } else { rest };
        }
        self.partial.extend_from_slice(bytes);
    }

    pub(super) fn finish(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        if !self.partial.is_empty() {
            emit(Piece { text: &self.partial, is_whole: true });
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.partial.clear();
        self.partial.shrink_to(4096);
    }
}

/// Where the output of one process of a service goes, through all its incarnations.
pub(super) struct Sink {
    id: ServiceId,
    label: Arc<str>,
    /// Of all that listen, and of the one that everything waits for.
    listeners: broadcast::Sender<Output>,
    subscriber: Option<mpsc::Sender<Output>>,
    /// Told of the line that says that the service is ready, and of what was lost.
    said: Box<dyn Fn(Said) + Send + Sync>,
    /// Those who are attached.
    taps: Taps,
    state: Mutex<State>,
}

/// What the output of a service means for its life.
#[derive(Debug)]
pub(super) enum Said {
    Ready(Incarnation),
    LogLost(io::Error),
}

struct State {
    log: Option<Log>,
    tail: VecDeque<u8>,
    /// So much of the tail is of this life.
    fresh: usize,
    /// Looked for until it is found.
    ready: Option<(Regex, Incarnation)>,
    missed: u64,
    /// Somebody waits for room to say so.
    is_owning_up: bool,
}

impl Sink {
    pub(super) fn new(
        id: ServiceId,
        label: Arc<str>,
        listeners: broadcast::Sender<Output>,
        subscriber: Option<mpsc::Sender<Output>>,
        said: Box<dyn Fn(Said) + Send + Sync>,
    ) -> Self {
        let state = State { log: None, tail: VecDeque::new(), fresh: 0, ready: None, missed: 0, is_owning_up: false };
        Sink { id, label, listeners, subscriber, said, taps: Taps::default(), state: Mutex::new(state) }
    }

    /// For one more who is attached. None where there are too many.
    pub(super) fn tap(&self) -> Option<TapReader> {
        self.taps.open()
    }

    /// From now on, writes to this log.
    pub(super) fn log_to(&self, log: Log) {
        self.state().log = Some(log);
    }

    /// From now on, writes to none.
    pub(super) fn close_log(&self) {
        self.state().log = None;
    }

    /// Whether it writes to a log.
    pub(super) fn has_log(&self) -> bool {
        self.state().log.is_some()
    }

    /// Another life begins. From now on, looks for a line that matches.
    pub(super) fn begin(&self, ready: Option<Regex>, of: Incarnation) {
        let mut state = self.state();
        state.ready = ready.map(|ready| (ready, of));
        state.fresh = 0;
    }

    /// The last lines, as text, with what is no UTF-8 replaced and control characters escaped.
    pub(super) fn last(&self, lines: usize) -> Vec<String> {
        self.last_of(lines, TAIL)
    }

    /// The same of this life alone.
    pub(super) fn last_of_this_life(&self, lines: usize) -> Vec<String> {
        let fresh = self.state().fresh;
        self.last_of(lines, fresh)
    }

    fn last_of(&self, lines: usize, bytes: usize) -> Vec<String> {
        let mut state = self.state();
        let earlier = state.tail.len().saturating_sub(bytes);
        let is_cut = earlier == 0 && state.tail.len() >= TAIL;
        let text = String::from_utf8_lossy(&state.tail.make_contiguous()[earlier..]).into_owned();
        drop(state);
        let all: Vec<&str> = text.lines().collect();
        let first = usize::from(is_cut && all.len() > 1).max(all.len().saturating_sub(lines));
        all[first..].iter().map(|line| crate::driver::stderr::escape(line)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a piece, and gives what is to be passed on.
    fn take(&self, stream: OutputStream, piece: Piece<'_>) -> Option<Output> {
        let at = SystemTime::now();
        let mut state = self.state();
        let state = &mut *state;
        let end = &piece.text[piece.text.len().saturating_sub(TAIL)..];
        let surplus = (state.tail.len() + end.len() + 1).saturating_sub(TAIL).min(state.tail.len());
        state.tail.drain(..surplus);
        state.tail.extend(end);
        let is_unended = piece.is_whole && !piece.text.ends_with(b"\n");
        state.tail.extend(is_unended.then_some(b'\n'));
        state.fresh = (state.fresh + end.len() + usize::from(is_unended)).min(state.tail.len());
        let is_ready = |(ready, _): &mut (Regex, Incarnation)| piece.lines().any(|line| ready.is_match(line));
        if let Some((_, incarnation)) = state.ready.take_if(is_ready) {
            (self.said)(Said::Ready(incarnation));
        }
        if let Some(error) = state.log.as_mut().and_then(|log| log.write(at, stream, piece)) {
            (self.said)(Said::LogLost(error));
        }
        if self.subscriber.is_none() && self.listeners.receiver_count() == 0 {
            return None;
        }
        let mut text = piece.text.to_vec();
        if piece.is_whole && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        Some(self.output(stream, at, text.into(), piece.is_whole))
    }

    fn output(&self, stream: OutputStream, at: SystemTime, text: Bytes, is_whole: bool) -> Output {
        Output { id: self.id, label: self.label.clone(), stream, at, text, is_whole, missed: 0 }
    }

    /// Tells the one reader what it has missed, as soon as it has room: nothing may follow that could say it.
    fn own_up(self: &Arc<Self>, stream: OutputStream) {
        let Some(subscriber) = self.subscriber.clone() else { return };
        let mut state = self.state();
        if state.missed == 0 || std::mem::replace(&mut state.is_owning_up, true) {
            return;
        }
        drop(state);
        let sink = self.clone();
        tokio::spawn(async move {
            // An error says that nobody reads any more.
            let room = subscriber.reserve().await;
            let mut state = sink.state();
            state.is_owning_up = false;
            let missed = std::mem::take(&mut state.missed);
            drop(state);
            if let Ok(room) = room
                && missed > 0
            {
                room.send(Output { missed, ..sink.output(stream, SystemTime::now(), Bytes::new(), true) });
            }
        });
    }

    /// Hands on what was taken. Waits for the one reader that everything waits for, but not for ever.
    async fn pass_on(&self, queued: &mut Vec<Output>) {
        for mut output in queued.drain(..) {
            // Nobody may listen.
            let _ = self.listeners.send(output.clone());
            let Some(subscriber) = &self.subscriber else { continue };
            output.missed = std::mem::take(&mut self.state().missed);
            let lines = output.missed + memchr::memchr_iter(b'\n', &output.text).count() as u64;
            // Once it has missed some, it is not waited for until there is room again.
            let sent = match subscriber.try_send(output) {
                Err(mpsc::error::TrySendError::Full(output)) if output.missed == 0 => {
                    subscriber.send_timeout(output, PATIENCE).await.is_ok()
                }
                Err(mpsc::error::TrySendError::Full(_)) => false,
                // Whoever does not read any more misses nothing.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => true,
            };
            if !sent {
                self.state().missed += lines;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::budget::SplitMix;

    /// The pieces as they came, and what they say together.
    fn split(chunks: &[&[u8]]) -> (Vec<(Vec<u8>, bool)>, Vec<u8>) {
        let (mut splitter, mut pieces) = (Splitter::default(), Vec::new());
        for chunk in chunks {
            splitter.take(chunk, |piece| pieces.push((piece.text.to_vec(), piece.is_whole)));
        }
        splitter.finish(|piece| pieces.push((piece.text.to_vec(), piece.is_whole)));
        let mut text = Vec::new();
        for (piece, is_whole) in &pieces {
            text.extend_from_slice(piece);
            if *is_whole && !piece.ends_with(b"\n") {
                text.push(b'\n');
            }
        }
        (pieces, text)
    }

    #[test]
    fn lines_are_whole_and_nothing_is_lost() {
        assert_eq!(
            split(&[b"a\nb", b"c\n", b"d"]).0,
            [(b"a\n".to_vec(), true), (b"bc\n".to_vec(), true), (b"d".to_vec(), true)]
        );
        for seed in 0..300 {
            let mut random = SplitMix(seed);
            let mut text = Vec::new();
            for _ in 0..random.below(20) {
                let length =
                    [0, 1, 10, 3000, LONGEST_PIECE as u64 - 1, LONGEST_PIECE as u64, 200_000][random.below(7) as usize];
                text.resize(text.len() + length as usize, b'x');
                text.push(b'\n');
            }
            let mut chunks = Vec::new();
            let mut rest = &text[..];
            while !rest.is_empty() {
                let (head, tail) = rest.split_at((1 + random.below(100_000) as usize).min(rest.len()));
                chunks.push(head);
                rest = tail;
            }
            let (pieces, together) = split(&chunks);
            assert!(together == text, "seed {seed}: {} of {} bytes", together.len(), text.len());
            assert!(pieces.iter().all(|(piece, whole)| *whole || piece.len() == LONGEST_PIECE), "seed {seed}");
        }
    }

    #[test]
    fn lines_of_a_terminal_end_as_others_do() {
        let split = |chunks: &[&[u8]]| {
            let (mut splitter, mut text) = (Splitter { is_terminal: true, ..Splitter::default() }, Vec::new());
            for chunk in chunks {
                splitter.take(chunk, |piece| text.extend_from_slice(piece.text));
            }
            splitter.finish(|piece| text.extend_from_slice(piece.text));
            String::from_utf8(text).unwrap()
        };
        assert_eq!(split(&[b"a\r\n\r\nb\r\r\nc\rd\ne\r"]), "a\n\nb\nc\rd\ne\r");
        assert_eq!(split(&[b"a\r", b"\nb", b"\r\n"]), "a\nb\n");
    }

    #[test]
    fn lines_of_a_piece() {
        let lines = |text: &'static str| Piece { text: text.as_bytes(), is_whole: true }.lines().collect::<Vec<_>>();
        assert_eq!(lines("a\n\nb\n"), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines("a"), [b"a"]);
        assert_eq!(lines("\n"), [b""]);
    }
}
