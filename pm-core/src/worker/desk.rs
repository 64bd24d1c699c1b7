//! The desk of a worker: the calls that came and have not been answered, and the frames about them.
//!
//! Whoever is free reads the link: the thread that runs handlers while it has nothing to run, its attendant while it has. So a call
//! that has not started can be given back, a PING is answered and a cancel is heard, however long a handler computes. Handlers that are futures give way to
//! each other, and to the link ([`Intake`](super::intake::Intake)).

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::context::{CancelFlag, Deadline, Hook};
use super::error::ServeError;
use super::link::WorkerLink;
use super::streams::Streams;
use crate::driver::flow::Flow;
use crate::face::error::{HandlerError, StreamError};
use crate::machine::frame::{Decoder, Frame, Header, Kind, MAX_PAYLOAD, flag};
use crate::machine::handshake::{Hello, Ready, VERSION};
use crate::machine::payload::Payload;
use crate::sys::clock;
use crate::sys::outbox::Outbox;

/// Calls that wait here at most. A manager's window is far below it; one that sends more is not read until there is room.
const MAX_WAITING: usize = 4096;

/// How old an answer may get in the outbox while calls go on, in nanoseconds. Long enough for some ten quick calls, and below what anybody feels.
const GATHER_NANOS: u64 = 50_000;

/// Messages of streams gather up to this many bytes: while the manager reads some, more are made. Together they would go only once there is nothing left to do.
const GATHER_OF_STREAMS: usize = 12 << 10;

/// A payload from this size on is sent from where it lies. Below it a copy costs less than a second piece.
const APART: usize = 4 << 10;

/// The exit code where the manager broke the protocol: `EX_SOFTWARE` of sysexits.
const VIOLATION: i32 = 70;

/// What a worker does when its link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtEnd {
    /// The process exits: with code 0, or with 70 where the manager broke the protocol.
    Exit,
    /// The thread returns.
    Return,
}

/// The worker has nothing more to do.
#[derive(Debug)]
pub(super) struct Ended;

/// One call that came.
#[derive(Debug, Default)]
pub(super) struct Job {
    pub(super) id: u64,
    /// Its place in the order in which calls came, counted from 1.
    pub(super) number: u64,
    pub(super) deadline: Option<Deadline>,
    pub(super) input: Payload,
    /// What makes it a stream; none where it is a query.
    pub(super) flow: Option<Arc<Flow>>,
}

/// See the [module](self).
pub(crate) struct Desk {
    pub(super) link: Box<dyn WorkerLink>,
    at_end: AtEnd,
    /// For the streams that come here.
    pub(super) me: Weak<Desk>,
    state: Mutex<State>,
    /// Something came, or waits to be sent, for those who serve with futures.
    pub(super) news: Notify,
    /// Whether the manager wants this worker to leave.
    pub(super) leaving: Arc<watch::Sender<bool>>,
}

pub(super) struct State {
    decoder: Decoder,
    pub(super) waiting: VecDeque<Job>,
    /// How many calls came.
    pub(super) came: u64,
    running: Running,
    /// Hooks of calls that were cancelled, to be run where the desk is not locked: they may well send a notice.
    hooks: Vec<Hook>,
    /// Tasks to be woken there.
    pub(super) wakers: Vec<Waker>,
    pub(super) streams: Streams,
    draining: bool,
    /// The manager has said all it will: nothing more comes, but answers go.
    heard_all: bool,
    ended: bool,
    out: Vec<u8>,
    /// Answers that are not on the link yet, and when the oldest of them was given, in nanoseconds.
    outbox: Option<Outbox>,
    oldest: Option<u64>,
}

impl Desk {
    pub(super) fn open(link: Box<dyn WorkerLink>, outbox: Option<Outbox>, at_end: AtEnd) -> Arc<Self> {
        Arc::new_cyclic(|me| Desk {
            link,
            at_end,
            me: me.clone(),
            news: Notify::new(),
            leaving: Arc::default(),
            state: Mutex::new(State {
                decoder: Decoder::new(MAX_PAYLOAD),
                waiting: VecDeque::new(),
                came: 0,
                running: Running::default(),
                hooks: Vec::new(),
                wakers: Vec::new(),
                streams: Streams::default(),
                draining: false,
                heard_all: false,
                ended: false,
                out: Vec::new(),
                outbox,
                oldest: None,
            }),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for HELLO.
    pub(super) fn hello(&self) -> Result<Hello, ServeError> {
        let mut state = self.state();
        loop {
            if let Some(frame) = state.decoder.next()? {
                return match frame.header.kind {
                    kind if kind == Kind::Hello as u8 => Ok(Hello::decode(&frame.payload)?),
                    kind => Err(ServeError::NotHello { kind }),
                };
            }
            if self.link.recv(state.decoder.buffer()).map_err(ServeError::Lost)? == 0 {
                // The manager is gone before it said a word: there is nothing to do and nobody to tell.
                match self.at_end {
                    AtEnd::Exit => std::process::exit(0),
                    AtEnd::Return => return Err(ServeError::Lost(io::ErrorKind::UnexpectedEof.into())),
                }
            }
        }
    }

    /// Answers it.
    pub(super) fn ready(&self, ready: &Ready) -> Result<(), ServeError> {
        debug_assert_eq!(ready.version, VERSION);
        let mut state = self.state();
        let sent = self.send_locked(&mut state, Header::new(Kind::Ready), &ready.encode());
        if let Some(outbox) = &mut state.outbox {
            outbox.begin_count();
        }
        drop(state);
        sent.map_err(|Ended| ServeError::Lost(io::ErrorKind::BrokenPipe.into()))
    }

    /// Sends a notice. A manager that is gone needs none.
    pub(super) fn notice(&self, text: &str) {
        let _ = self.send(Header::new(Kind::Notice), text.as_bytes());
    }

    fn send(&self, header: Header, payload: &[u8]) -> Result<(), Ended> {
        let mut state = self.state();
        self.send_locked(&mut state, header, payload)
    }

    /// Answers a call: into the outbox, where there is one and another call follows at once, and to the link otherwise.
    fn post(&self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Ended> {
        let nothing_follows = state.waiting.is_empty() && state.decoder.unread().is_empty();
        if nothing_follows && !state.streams.is_any() {
            return self.send_locked(state, header, payload);
        }
        self.gather(state, header, payload)
    }

    /// Puts a frame into the outbox, where there is one.
    pub(super) fn gather(&self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Ended> {
        if payload.len() >= self.link.gather() {
            return self.send_locked(state, header, payload);
        }
        let header_bytes = header.encode(payload.len());
        if let Some(outbox) = &mut state.outbox {
            if outbox.add(&header_bytes, payload) {
                let most = if state.streams.is_any() { GATHER_OF_STREAMS } else { usize::MAX };
                if outbox.frames().len() >= self.link.gather().min(most) {
                    return self.flush(state);
                }
                state.oldest.get_or_insert_with(clock::nanos);
                return Ok(());
            }
            self.flush(state)?;
            if state.outbox.as_mut().is_some_and(|outbox| outbox.add(&header_bytes, payload)) {
                state.oldest = Some(clock::nanos());
                return Ok(());
            }
        }
        self.send_locked(state, header, payload)
    }

    /// Puts on the link what has gathered, and what the streams owe.
    pub(super) fn send_answers(&self) -> Result<(), Ended> {
        let mut state = self.state();
        self.pay_streams(&mut state);
        let sent = self.flush(&mut state);
        unlock(state);
        sent
    }

    /// Whether there is something to put there.
    pub(super) fn has_gathered(&self) -> bool {
        let state = self.state();
        state.has_gathered() || state.streams.owes()
    }

    /// Puts what is in the outbox on the link.
    fn flush(&self, state: &mut State) -> Result<(), Ended> {
        state.oldest = None;
        if let Some(outbox) = &mut state.outbox
            && !outbox.frames().is_empty()
        {
            let sent = self.link.send(outbox.frames());
            outbox.clear();
            sent.map_err(|_| self.end(state, 0))?;
        }
        Ok(())
    }

    /// Sends a frame, after all that waits in the outbox.
    fn send_locked(&self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Ended> {
        self.flush(state)?;
        let header = header.encode(payload.len());
        let sent = if payload.len() < APART {
            state.out.clear();
            state.out.extend_from_slice(&header);
            state.out.extend_from_slice(payload);
            self.link.send(&state.out)
        } else {
            self.link.send_frame(&header, payload)
        };
        if let Some(outbox) = &mut state.outbox {
            outbox.note_sent((header.len() + payload.len()) as u64);
        }
        sent.map_err(|_| self.end(state, 0))
    }

    /// Waits for the next call and puts it into `job`, whose buffer is used again. The caller has it running then.
    pub(super) fn next(&self, job: &mut Job, cancel: &Arc<CancelFlag>) -> Result<(), Ended> {
        let mut state = self.state();
        loop {
            if self.take(&mut state, job, cancel)? {
                // Answers may gather for as long as calls are quick. The attendant sends what a slow call holds up.
                if state.oldest.is_some_and(|oldest| clock::nanos().saturating_sub(oldest) > GATHER_NANOS) {
                    self.flush(&mut state)?;
                }
                return Ok(());
            }
            self.flush(&mut state)?;
            state = self.await_more(state)?;
        }
    }

    /// Waits for more with the lock open: other threads may have notices to send meanwhile. Only the thread that runs handlers waits
    /// here, and nobody else receives then.
    fn await_more<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Ended> {
        let mut decoder = std::mem::replace(&mut state.decoder, Decoder::new(MAX_PAYLOAD));
        drop(state);
        let received = self.link.recv(decoder.buffer());
        let mut state = self.state();
        state.decoder = decoder;
        match received {
            Err(error) => Err(self.receive_failed(&mut state, &error)),
            Ok(0) => Err(self.end(&mut state, 0)),
            Ok(_) => Ok(state),
        }
    }

    /// The next call that is there already.
    fn take(&self, state: &mut State, job: &mut Job, cancel: &Arc<CancelFlag>) -> Result<bool, Ended> {
        if self.take_waiting(state, job) {
            state.begin(job, cancel);
            return Ok(true);
        }
        if state.ended {
            return Err(Ended);
        }
        loop {
            let State { decoder, came, .. } = state;
            match decoder.next() {
                Ok(Some(Frame { header, payload })) if header.kind == Kind::Req as u8 => {
                    *came += 1;
                    if !self.link.claim(*came) {
                        continue;
                    }
                    job.id = header.id;
                    job.number = *came;
                    job.deadline = header.remaining.duration().map(Deadline::after);
                    payload.take_into(&mut job.input);
                    state.begin(job, cancel);
                    return Ok(true);
                }
                Ok(Some(frame)) => {
                    let frame = Owned::of(frame);
                    self.handle(state, frame)?;
                }
                Ok(None) if state.draining => return Err(self.leave(state)),
                Ok(None) => return Ok(false),
                Err(error) => return Err(self.violation(state, &error.to_string())),
            }
        }
    }

    /// Puts the first call that waits and is still to be run into `job`.
    fn take_waiting(&self, state: &mut State, job: &mut Job) -> bool {
        while let Some(next) = state.waiting.pop_front() {
            if self.link.claim(next.number) {
                *job = next;
                return true;
            }
        }
        false
    }

    /// Takes in what came, or waits for it, and sorts it: so many bytes. The end of the stream means nothing after DRAIN.
    fn receive(&self, state: &mut State) -> Result<usize, Ended> {
        let received = self.link.recv(state.decoder.buffer());
        self.sort(state)?;
        match received {
            Ok(0) | Err(_) if state.draining => {
                state.heard_all = true;
                // Nobody is left to talk with.
                state.end_streams();
                Ok(0)
            }
            Err(error) => Err(self.receive_failed(state, &error)),
            Ok(0) => Err(self.end(state, 0)),
            Ok(count) => Ok(count),
        }
    }

    /// Looks after the link while handlers run, for at most `patience`: takes in what comes, in place of the thread that is busy.
    /// True where something came.
    pub(super) fn attend(&self, patience: Duration, still_busy: impl Fn() -> bool) -> Result<bool, Ended> {
        let mut state = self.state();
        if still_busy() {
            self.flush(&mut state)?;
        }
        let is_deaf = state.heard_all || state.waiting.len() >= MAX_WAITING;
        drop(state);
        if is_deaf {
            std::thread::park_timeout(patience);
            return Ok(false);
        }
        match self.link.wait(Some(patience)) {
            Ok(false) => return Ok(false),
            Ok(true) => {}
            Err(_) => return Err(Ended),
        }
        let mut state = self.state();
        if !still_busy() {
            return Ok(false);
        }
        let taken = self.receive(&mut state);
        unlock(state);
        taken.map(|_| true)
    }

    /// Takes in what has come, or waits for it: so many bytes. For a thread that runs futures.
    pub(super) fn take_in(&self) -> Result<usize, Ended> {
        let mut state = self.state();
        let taken = self.receive(&mut state);
        unlock(state);
        taken
    }

    /// Whether more may be taken in: not where the manager has said all it will, or too many calls wait here.
    pub(super) fn wants_more(&self) -> bool {
        let state = self.state();
        !state.heard_all && state.waiting.len() < MAX_WAITING
    }

    /// Puts calls among those that wait, and does what the other frames say.
    fn sort(&self, state: &mut State) -> Result<(), Ended> {
        let mut next = state.decoder.next();
        loop {
            let mut frame = match next {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.violation(state, &error.to_string())),
            };
            if !state.streams.is_any() || !frame.is_of_stream() {
                let frame = Owned::of(frame);
                self.handle(state, frame)?;
                next = state.decoder.next();
                continue;
            }
            let id = frame.header.id;
            // One that has ended here needs no more of them.
            let Some(flow) = state.streams.get(id) else {
                next = state.decoder.next();
                continue;
            };
            let mut receiving = flow.receive();
            next = loop {
                receiving.take(frame, &mut state.wakers);
                match state.decoder.next() {
                    Ok(Some(more)) if more.header.id == id && more.is_of_stream() => frame = more,
                    other => break other,
                }
            };
            state.streams.came(id, receiving.end(), &mut state.wakers);
        }
    }

    /// Takes a call that waits. None where none waits now, and an error where none will come.
    pub(super) fn poll_next(&self, job: &mut Job, cancel: &Arc<CancelFlag>) -> Result<Option<()>, Ended> {
        let mut state = self.state();
        if self.take_waiting(&mut state, job) {
            state.begin(job, cancel);
            return Ok(Some(()));
        }
        if state.draining && !state.ended && state.running.is_none() {
            return Err(self.leave(&mut state));
        }
        if state.ended { Err(Ended) } else { Ok(None) }
    }

    fn handle(&self, state: &mut State, frame: Owned) -> Result<(), Ended> {
        let Owned { header, payload } = frame;
        match Kind::from_wire(header.kind) {
            Some(kind @ (Kind::Req | Kind::Recall)) if state.streams.is_any() => {
                return Err(self.violation(state, &format!("a frame of kind {kind:?} on a link of streams")));
            }
            Some(Kind::Req) => {
                let deadline = header.remaining.duration().map(Deadline::after);
                state.came += 1;
                state.waiting.push_back(Job {
                    id: header.id,
                    number: state.came,
                    deadline,
                    input: payload,
                    flow: None,
                });
            }
            Some(Kind::Open) if state.streams.is_any() => return self.open_stream(state, header, &payload),
            Some(kind @ (Kind::Recall | Kind::Cancel)) => {
                let place = state.waiting.iter().position(|job| job.id == header.id);
                if let Some(place) = place {
                    state.waiting.remove(place);
                    state.end_stream(header.id);
                    let flags = if kind == Kind::Recall { flag::NOT_STARTED } else { flag::CANCELLED };
                    let header = Header { flags, ..Header::call(Kind::Err, header.id) };
                    return self.send_locked(state, header, &[]);
                }
                if kind == Kind::Cancel
                    && let Some(cancel) = state.running.find(header.id)
                {
                    state.hooks.extend(cancel.cancel());
                    state.end_stream(header.id);
                }
            }
            Some(Kind::Ping) => return self.send_locked(state, Header::new(Kind::Pong), &payload),
            Some(Kind::Pong) => {}
            Some(Kind::Drain) => {
                state.draining = true;
                let leaving = self.leaving.clone();
                state.hooks.push(Box::new(move || {
                    leaving.send_replace(true);
                }));
            }
            Some(kind) => return Err(self.violation(state, &format!("a frame of kind {kind:?}"))),
            None if header.flags & flag::CRITICAL != 0 => {
                return Err(self.violation(state, &format!("a critical frame of the unknown kind {}", header.kind)));
            }
            None => {}
        }
        Ok(())
    }

    /// Answers a call with its output or its error.
    pub(super) fn answer(&self, id: u64, answer: &Result<Vec<u8>, HandlerError>) -> Result<(), Ended> {
        match answer {
            Ok(output) => self.respond(id, output),
            Err(error) => self.fail(id, error),
        }
    }

    /// Answers a call with its output.
    pub(super) fn respond(&self, id: u64, output: &[u8]) -> Result<(), Ended> {
        if output.len() > MAX_PAYLOAD {
            let message = format!("the output has {} bytes; a frame takes at most {MAX_PAYLOAD}", output.len());
            return self.fail(id, &HandlerError { message, ..HandlerError::default() });
        }
        let mut state = self.finish_running(id);
        let sent = self.post(&mut state, Header::call(Kind::Resp, id), output);
        unlock(state);
        sent
    }

    /// Locks the desk, and takes a call out of those that run.
    fn finish_running(&self, id: u64) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.end_stream(id);
        if let Some(cancel) = state.running.end(id) {
            drop(state);
            drop(cancel);
            state = self.state();
        }
        state
    }

    /// Answers a call with its error.
    pub(super) fn fail(&self, id: u64, error: &HandlerError) -> Result<(), Ended> {
        let payload = error.to_payload();
        let mut state = self.finish_running(id);
        let sent = self.post(&mut state, Header::call(Kind::Err, id), &payload);
        unlock(state);
        sent
    }

    /// Answers a call that was cancelled, and stopped or was dropped before its end.
    pub(super) fn stopped(&self, id: u64) -> Result<(), Ended> {
        let mut state = self.finish_running(id);
        let sent = self.send_locked(&mut state, Header { flags: flag::CANCELLED, ..Header::call(Kind::Err, id) }, &[]);
        unlock(state);
        sent
    }

    /// Everything is answered. From here on the thread that serves has the end of the process in its hands.
    fn leave(&self, state: &mut State) -> Ended {
        let _ = self.flush(state);
        state.ended = true;
        Ended
    }

    /// Says that this worker ends now. A link that is lost does not hear it.
    pub(super) fn bye(&self) {
        let _ = self.send(Header::new(Kind::Bye), &[]);
    }

    /// What came cannot be received: the manager is gone, or what it sent makes no sense.
    fn receive_failed(&self, state: &mut State, error: &io::Error) -> Ended {
        match error.kind() {
            io::ErrorKind::InvalidData => self.violation(state, &error.to_string()),
            _ => self.end(state, 0),
        }
    }

    pub(super) fn violation(&self, state: &mut State, what: &str) -> Ended {
        eprintln!("pm worker: the manager broke the protocol: {what}");
        self.end(state, VIOLATION)
    }

    /// The link has ended. Calls that run are cancelled, where the process does not exit with them.
    fn end(&self, state: &mut State, code: i32) -> Ended {
        if state.ended {
            return Ended;
        }
        if self.at_end == AtEnd::Exit {
            std::process::exit(code);
        }
        state.ended = true;
        state.waiting.clear();
        state.end_streams();
        for cancel in state.running.iter() {
            state.hooks.extend(cancel.cancel());
        }
        Ended
    }
}

impl State {
    /// Whether answers lie in the outbox.
    pub(super) fn has_gathered(&self) -> bool {
        self.oldest.is_some()
    }

    /// A call is in the hands of a handler from here on, and the manager can know it after the worst.
    fn begin(&mut self, job: &Job, cancel: &Arc<CancelFlag>) {
        self.running.begin(job.id, cancel);
        if let Some(outbox) = &mut self.outbox {
            outbox.begin(job.number);
        }
    }
}

/// The calls in the hands of handlers.
#[derive(Default)]
struct Running {
    calls: Vec<(u64, Arc<CancelFlag>)>,
    /// The flag of the call that ended last: a thread that runs one after another uses it again.
    last: Option<Arc<CancelFlag>>,
}

impl Running {
    fn begin(&mut self, id: u64, cancel: &Arc<CancelFlag>) {
        let last = self.last.take().filter(|last| Arc::ptr_eq(last, cancel));
        self.calls.push((id, last.unwrap_or_else(|| cancel.clone())));
    }

    /// Gives the flag back unless it is kept: it is dropped where the desk is not locked, for its hooks may do anything then.
    fn end(&mut self, id: u64) -> Option<Arc<CancelFlag>> {
        let place = self.calls.iter().position(|(running, _)| *running == id)?;
        let cancel = self.calls.swap_remove(place).1;
        if !cancel.is_fresh() {
            return Some(cancel);
        }
        self.last.replace(cancel)
    }

    fn find(&self, id: u64) -> Option<&CancelFlag> {
        self.calls.iter().find(|(running, _)| *running == id).map(|(_, cancel)| &**cancel)
    }

    fn iter(&self) -> impl Iterator<Item = &CancelFlag> {
        self.calls.iter().map(|(_, cancel)| &**cancel)
    }

    fn is_none(&self) -> bool {
        self.calls.is_empty()
    }
}

/// Unlocks the desk, and does what waited for that.
pub(super) fn unlock(mut state: MutexGuard<'_, State>) {
    let dead = state.dead_streams();
    if state.hooks.is_empty() && state.wakers.is_empty() && dead.is_empty() {
        return;
    }
    let (hooks, mut wakers) = (std::mem::take(&mut state.hooks), std::mem::take(&mut state.wakers));
    drop(state);
    for flow in dead {
        flow.end(Err(StreamError::Ended), &mut wakers);
    }
    wakers.into_iter().for_each(Waker::wake);
    for hook in hooks {
        // Whoever reads the link goes on reading it; the panic has been printed.
        let _ = catch_unwind(AssertUnwindSafe(hook));
    }
}

/// A frame out of the buffer, so that what it leads to may use the buffer.
struct Owned {
    header: Header,
    payload: Payload,
}

impl Owned {
    fn of(frame: Frame<'_>) -> Self {
        let mut payload = Payload::default();
        frame.payload.take_into(&mut payload);
        Owned { header: frame.header, payload }
    }
}
