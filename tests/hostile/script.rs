//! A hostile worker: this binary, which follows a script in place of serving.

use std::path::Path;

use pm_core::machine::frame::{Decoder, Header, Kind, MAX_PAYLOAD, Remaining};
use pm_core::transport::Connect;
use pm_core::worker::link::WorkerLink;
use serde::{Deserialize, Serialize};

use crate::roles::{JOB, sleep_for_ever};
use crate::streams::TALK;

pub(super) const SCRIPT: &str = "PM_TEST_SCRIPT";
pub(super) const TOKENS: &str = "PM_TEST_TOKENS";

/// One thing that a hostile worker does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    /// Reads HELLO.
    Hello,
    /// Sends a proper READY.
    Ready,
    /// Waits for so many more calls.
    Calls(usize),
    Send(Sent),
    /// Sends as many bytes of it as the number of the token says.
    Cut(Sent),
    /// Sends it a byte at a time.
    Slowly(Sent),
    Times(usize, Sent),
    /// Waits until a CANCEL has come.
    Cancelled,
    /// Waits until a PONG has come.
    Ponged,
    /// Writes this to standard output, whatever that is.
    Print(String),
    Exit(i32),
    Kill,
    Close,
    /// Answers every call that it has and gets, as it should.
    Serve,
    /// Sends a READY that serves streams, with this window.
    ReadyForStreams(u32, u32),
    /// Waits for so many more streams.
    Opens(usize),
    /// Gives back every message of those streams that it was not told of before, and ends those whose other end is ended.
    EchoTheRest,
    Sleep,
}

/// Bytes for the link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Sent {
    Raw(Vec<u8>),
    Frame { kind: u8, flags: u8, id: Of, content: Content },
}

/// The id of a frame.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Of {
    Nothing,
    /// The call that came as the n-th, from 0.
    Call(usize),
    Number(u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Content {
    Text(String),
    Bytes(Vec<u8>),
    /// So many times this byte.
    Fill(u8, usize),
}

/// `Said::Done` in postcard: the number of the variant.
pub(super) const DONE: &[u8] = &[0];

pub(super) fn frame(kind: u8, flags: u8, id: Of, content: Content) -> Step {
    Step::Send(Sent::Frame { kind, flags, id, content })
}

pub(super) fn raw(bytes: &[u8]) -> Step {
    Step::Send(Sent::Raw(bytes.to_vec()))
}

pub(super) fn none() -> Content {
    Content::Bytes(Vec::new())
}

pub(super) fn done() -> Content {
    Content::Bytes(DONE.to_vec())
}

pub(super) fn text(text: &str) -> Content {
    Content::Text(text.to_string())
}

/// READY with these numbers, and nothing checked.
pub(super) fn ready(codec: &str, version: u64, concurrency: u64, ahead: u64) -> Sent {
    let ready = format!(
        r#"{{"version":{version},"codec":"{codec}","role":"job","concurrency":{concurrency},"ahead":{ahead}}}"#
    );
    Sent::Frame { kind: 2, flags: 0, id: Of::Nothing, content: Content::Text(ready) }
}

/// Is a hostile worker, or an honest one where no token is left, and never returns, if this process was started as one.
pub fn helper() {
    let (Ok(script), Ok(tokens)) = (std::env::var(SCRIPT), std::env::var(TOKENS)) else { return };
    let Some(token) = take(Path::new(&tokens)) else {
        let _ = if script.contains("ReadyForStreams") { pm::serve(&TALK) } else { pm::serve(&JOB) };
        std::process::exit(70)
    };
    let steps: Vec<Step> = serde_json::from_str(&script).expect("a script");
    let mut actor = Actor {
        link: None,
        decoder: Decoder::new(MAX_PAYLOAD),
        calls: Vec::new(),
        answered: 0,
        token,
        held: Vec::new(),
    };
    for step in steps {
        actor.act(step);
    }
    std::process::exit(0)
}

/// Takes the lowest token that is left.
fn take(tokens: &Path) -> Option<usize> {
    let mut all: Vec<usize> =
        std::fs::read_dir(tokens).ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    // Who removes it has it.
    all.into_iter().find(|token| std::fs::remove_file(tokens.join(token.to_string())).is_ok())
}

struct Actor {
    link: Option<Box<dyn WorkerLink>>,
    decoder: Decoder,
    calls: Vec<u64>,
    answered: usize,
    token: usize,
    /// Frames that came while it waited for others: kind, flags, id and payload.
    held: Vec<(u8, u8, u64, Vec<u8>)>,
}

impl Actor {
    fn act(&mut self, step: Step) {
        match step {
            Step::Hello => drop(self.next(Kind::Hello)),
            Step::Ready => self.send(&ready("postcard", 1, 1, 1), usize::MAX),
            Step::Calls(count) => {
                for _ in 0..count {
                    let id = self.next(Kind::Req);
                    self.calls.push(id);
                }
            }
            Step::Send(sent) => self.send(&sent, usize::MAX),
            Step::Cut(sent) => self.send(&sent, self.token),
            Step::Slowly(sent) => {
                for byte in self.bytes(&sent) {
                    self.write(&[byte]);
                }
            }
            Step::Times(count, sent) => {
                let some = self.bytes(&sent).repeat(100);
                for _ in 0..count / 100 {
                    self.write(&some);
                }
            }
            Step::Cancelled => drop(self.next(Kind::Cancel)),
            Step::Ponged => drop(self.next(Kind::Pong)),
            Step::Print(text) => {
                use std::io::Write;
                let mut stdout = std::io::stdout();
                let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
            }
            Step::Exit(code) => std::process::exit(code),
            Step::Kill => {
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                sleep_for_ever()
            }
            Step::Close => self.link = None,
            Step::Serve => self.serve(),
            Step::ReadyForStreams(messages, bytes) => {
                let ready = format!(
                    r#"{{"version":1,"codec":"postcard","role":"talk","concurrency":100,"ahead":100,"streams":{{"messages":{messages},"bytes":{bytes}}}}}"#
                );
                self.send(
                    &Sent::Frame { kind: 2, flags: 0, id: Of::Nothing, content: Content::Text(ready) },
                    usize::MAX,
                );
            }
            Step::Opens(count) => {
                for _ in 0..count {
                    let id = self.next(Kind::Open);
                    self.calls.push(id);
                }
            }
            Step::EchoTheRest => self.echo_the_rest(),
            Step::Sleep => sleep_for_ever(),
        }
    }

    fn link(&mut self) -> &dyn WorkerLink {
        self.link.get_or_insert_with(|| {
            let scheme = std::env::var("PM_LINK").expect("a manager");
            let connect: &dyn Connect = match scheme.as_str() {
                "stdio" => &pm::Stdio,
                "uds" => &pm::Uds,
                _ => &const { pm::Shm::new() },
            };
            connect.connect().expect("a link")
        });
        self.link.as_deref().expect("it is there")
    }

    /// Waits for a frame of this kind, and gives its id. The end of the link is the end of the worker.
    fn next(&mut self, wanted: Kind) -> u64 {
        loop {
            match self.decoder.next().expect("an honest manager") {
                Some(frame) if frame.header.kind == wanted as u8 => return frame.header.id,
                Some(frame) if frame.header.kind == Kind::Req as u8 => self.calls.push(frame.header.id),
                Some(frame) => {
                    let header = frame.header;
                    self.held.push((header.kind, header.flags, header.id, frame.payload.to_vec()));
                }
                None => self.receive(),
            }
        }
    }

    fn receive(&mut self) {
        let mut bytes = Vec::new();
        if self.link().recv(&mut bytes).unwrap_or(0) == 0 {
            std::process::exit(0);
        }
        self.decoder.buffer().extend_from_slice(&bytes);
    }

    fn serve(&mut self) -> ! {
        // What its script has answered is answered.
        self.calls.drain(..self.answered.min(self.calls.len()));
        loop {
            for id in std::mem::take(&mut self.calls) {
                let answer = Sent::Frame { kind: 17, flags: 0, id: Of::Number(id), content: done() };
                self.send(&answer, usize::MAX);
            }
            match self.decoder.next().expect("an honest manager") {
                Some(frame) if frame.header.kind == Kind::Req as u8 => self.calls.push(frame.header.id),
                Some(frame) if frame.header.kind == Kind::Drain as u8 => std::process::exit(0),
                Some(_) => {}
                None => self.receive(),
            }
        }
    }

    fn echo_the_rest(&mut self) -> ! {
        // What came before it got here was for others.
        let mut held = std::mem::take(&mut self.held);
        loop {
            let next = match held.is_empty() {
                false => Some(held.remove(0)),
                true => self
                    .decoder
                    .next()
                    .expect("an honest manager")
                    .map(|frame| (frame.header.kind, frame.header.flags, frame.header.id, frame.payload.to_vec())),
            };
            let Some((kind, flags, id, payload)) = next else {
                self.receive();
                continue;
            };
            let is_other = !self.calls.contains(&id);
            let mut send = |kind, flags, payload: Vec<u8>| {
                self.send(
                    &Sent::Frame { kind, flags, id: Of::Number(id), content: Content::Bytes(payload) },
                    usize::MAX,
                );
            };
            match Kind::from_wire(kind) {
                Some(Kind::Drain) => std::process::exit(0),
                Some(Kind::Data) if is_other => {
                    send(8, 0, [1_u32.to_be_bytes(), (payload.len() as u32).to_be_bytes()].concat());
                    send(33, flags, payload);
                }
                Some(Kind::Fin) if is_other => send(17, 0, Vec::new()),
                _ => {}
            }
        }
    }

    fn bytes(&mut self, sent: &Sent) -> Vec<u8> {
        match sent {
            Sent::Raw(bytes) => bytes.clone(),
            Sent::Frame { kind, flags, id, content } => {
                let id = match *id {
                    Of::Nothing => 0,
                    Of::Call(number) => self.calls[number],
                    Of::Number(id) => id,
                };
                let payload = match content {
                    Content::Text(text) => text.clone().into_bytes(),
                    Content::Bytes(bytes) => bytes.clone(),
                    Content::Fill(byte, count) => vec![*byte; *count],
                };
                if matches!(kind, 17 | 18) && self.calls.contains(&id) {
                    self.answered = 1;
                }
                let header = Header { kind: *kind, flags: *flags, remaining: Remaining::NONE, id };
                [&header.encode(payload.len())[..], &payload].concat()
            }
        }
    }

    fn send(&mut self, sent: &Sent, most: usize) {
        let bytes = self.bytes(sent);
        self.write(&bytes[..bytes.len().min(most)]);
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.link().send(bytes).is_err() {
            std::process::exit(0);
        }
    }
}
