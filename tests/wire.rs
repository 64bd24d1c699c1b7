//! The worker's half of docs/PROTOCOL.md, for a manager that is written by hand: over the worker's standard input and output.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::core::machine::frame::{Decoder, Frame, Header, Kind, MAX_PAYLOAD};
use pm::core::machine::handshake::{Hello, Ready, VERSION};
use pm::core::machine::spec::Program;
use pm::{Codec, Json, Postcard};

use crate::kits::Kit;
use crate::roles::Job;
use crate::support::{LIMIT, again, contains};

/// Long enough for a worker to have seen the end of its link, with time to spare.
const NAP: Duration = Duration::from_millis(200);

pub fn tests() -> Vec<Trial> {
    let of = |name: &'static str, test: fn(Worker)| {
        Worker::ALL.map(|worker| {
            Trial::test(format!("wire::{name}::{worker:?}"), move || {
                match worker {
                    Worker::Kit(kit) if !kit.is_installed() => eprintln!("skipped: no {kit} on this machine"),
                    worker => test(worker),
                }
                Ok(())
            })
        })
    };
    [
        of("after_drain_the_end_of_the_link_means_nothing", after_drain_the_end_of_the_link_means_nothing),
        of("without_drain_the_end_of_the_link_ends_the_worker", without_drain_the_end_of_the_link_ends_the_worker),
    ]
    .into_iter()
    .flatten()
    .chain([Trial::test("wire::a_role_that_is_not_there", || {
        a_role_that_is_not_there();
        Ok(())
    })])
    .collect()
}

/// Whose half it is.
#[derive(Clone, Copy, Debug)]
enum Worker {
    Blocking,
    Async,
    Kit(Kit),
}

fn after_drain_the_end_of_the_link_means_nothing(worker: Worker) {
    let mut manager = Manager::start(worker);
    manager.nap(1, NAP);
    manager.nap(2, Duration::ZERO);
    manager.send(Header::new(Kind::Drain), &[]);
    drop(manager.input.take());
    let mut answered = manager.rest();
    assert_eq!(answered.pop(), Some((Kind::Bye as u8, 0)), "the last frame");
    answered.sort_unstable();
    assert_eq!(answered, [(Kind::Resp as u8, 1), (Kind::Resp as u8, 2)]);
    assert_eq!(manager.child.wait().unwrap().code(), Some(0));
}

fn without_drain_the_end_of_the_link_ends_the_worker(worker: Worker) {
    let mut manager = Manager::start(worker);
    manager.nap(1, worker.longest());
    manager.nap(2, Duration::ZERO);
    let begun = Instant::now();
    drop(manager.input.take());
    let answered = manager.rest();
    // One that computes on its only thread sees the end after its call, and starts no other.
    match worker {
        Worker::Blocking => assert_eq!(answered, []),
        Worker::Async => assert!(!answered.contains(&(Kind::Resp as u8, 1)), "{answered:?}"),
        Worker::Kit(_) => assert!(!answered.contains(&(Kind::Resp as u8, 2)), "{answered:?}"),
    }
    assert_eq!(manager.child.wait().unwrap().code(), Some(0));
    assert!(begun.elapsed() < LIMIT);
}

/// Of the kits, `kits::roles` says the same.
fn a_role_that_is_not_there() {
    let mut command = again();
    command.env("PM_LINK", "stdio").env("PM_ROLE", "nobody").stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a worker");
    let hello = frame(Header::new(Kind::Hello), &hello("postcard", Some("nobody")).encode());
    child.stdin.as_mut().expect("its input").write_all(&hello).expect("the worker reads");
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(64));
    contains(String::from_utf8_lossy(&output.stderr), "nobody");
}

impl Worker {
    const ALL: [Worker; 4] = [Worker::Blocking, Worker::Async, Worker::Kit(Kit::Python), Worker::Kit(Kit::Node)];

    /// What it naps for where nobody wants it to wake up again.
    const fn longest(self) -> Duration {
        match self {
            Worker::Blocking | Worker::Async => LIMIT,
            Worker::Kit(_) => NAP,
        }
    }
}

fn hello(codec: &str, role: Option<&str>) -> Hello {
    let max_frame = (MAX_PAYLOAD + 12) as u32;
    Hello { version: VERSION, codec: codec.into(), role: role.map(Into::into), max_frame, streams: None }
}

fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    [&header.encode(payload.len()), payload].concat()
}

/// A manager by hand, which does not outlive its test.
struct Manager {
    worker: Worker,
    child: Child,
    input: Option<ChildStdin>,
    decoder: Decoder,
}

impl Manager {
    /// Starts the worker and shakes hands.
    fn start(worker: Worker) -> Self {
        let mut command = match worker {
            Worker::Blocking | Worker::Async => again(),
            Worker::Kit(kit) => {
                let spec = kit.spec(kit.serve()).build().unwrap();
                let Program::Path(program) = spec.what() else { panic!("{spec:?}") };
                let mut command = Command::new(program);
                command.args(spec.args());
                command
            }
        };
        let (role, codec) = match worker {
            Worker::Blocking => (Some("job"), "postcard"),
            Worker::Async => (Some("async-job"), "postcard"),
            Worker::Kit(_) => (None, "json"),
        };
        command.env("PM_LINK", "stdio").envs(role.map(|role| ("PM_ROLE", role)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker");
        let input = child.stdin.take();
        let mut manager = Manager { worker, child, input, decoder: Decoder::new(MAX_PAYLOAD) };
        let hello = hello(codec, role);
        manager.send(Header::new(Kind::Hello), &hello.encode());
        let ready = manager.receive(|frame| Ready::decode(&frame.payload)).expect("READY").unwrap();
        assert_eq!((ready.codec, ready.role), (hello.codec, hello.role));
        manager
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let input = self.input.as_mut().expect("an open link");
        input.write_all(&frame(header, payload)).expect("the worker reads");
    }

    /// Asks the worker to sleep, and to answer then.
    fn nap(&mut self, id: u64, length: Duration) {
        let mut payload = Vec::new();
        match self.worker {
            Worker::Blocking => Postcard.encode(&Job::Sleep(length), &mut payload),
            Worker::Async => Postcard.encode(&Job::Nap(length), &mut payload),
            Worker::Kit(_) => Json.encode(&("sleep".to_string(), length.as_secs_f64()), &mut payload),
        }
        .unwrap();
        self.send(Header::call(Kind::Req, id), &payload);
    }

    /// The next frame, if there is one before the end of the link.
    fn receive<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        let output = self.child.stdout.as_mut().expect("its output");
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next().expect("frames") {
                return Some(take(frame));
            }
            match output.read(&mut bytes).expect("its output") {
                0 => return None,
                count => self.decoder.buffer().extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// What it still sends, without notices: kinds and ids.
    fn rest(&mut self) -> Vec<(u8, u64)> {
        let mut frames = Vec::new();
        while let Some((kind, id)) = self.receive(|frame| (frame.header.kind, frame.header.id)) {
            if kind != Kind::Notice as u8 {
                frames.push((kind, id));
            }
        }
        frames
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
