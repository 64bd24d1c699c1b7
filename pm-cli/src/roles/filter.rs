//! A program that answers each line with one line and stays alive.
//!
//! The worker starts it before it says READY, so that a program that cannot run is known at once. Where the program ends, the worker ends
//! the same way, and the job that it had is lost with that cause. When no more jobs come, the program reads the end of its input, and the
//! worker waits for it to end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pm::core::worker::role::Service;
use pm::{HandlerError, Role};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use super::exec::MAX_OUTPUT;
use super::{CODEC, error};

/// The exit code of a worker whose filter wrote a line that nobody had asked for: `EX_PROTOCOL` of sysexits.
const OUT_OF_STEP: i32 = 76;

/// The exit code of a worker whose filter cannot be started: `EX_UNAVAILABLE` of sysexits.
const CANNOT_START: i32 = 69;

/// How long a filter may take to end, once it has read the end of its input.
pub const END: Duration = Duration::from_secs(10);

/// What a pipe holds at least.
const PIPE: usize = 64 << 10;

/// How long an answer takes at most from here to the link.
const ON_ITS_WAY: Duration = Duration::from_millis(50);

/// The role. Its arguments are the resolved program and the words.
pub static FILTER: Filter = Filter;

/// See the [module](self).
#[derive(Debug)]
pub struct Filter;

impl Role for Filter {
    fn name(&self) -> &'static str {
        "filter"
    }

    fn codecs(&self) -> &[&'static str] {
        &[CODEC]
    }

    fn service(&'static self, codec: &str) -> Option<Service> {
        if codec != CODEC {
            return None;
        }
        let running = Arc::new(Mutex::new(Running::start()));
        watch(&running);
        let guard = Guard(running);
        Some(Service::Blocking(Box::new(move |input, output| guard.running().answer(input, output))))
    }
}

/// Lets the filter end when it is dropped: there are no more jobs.
struct Guard(Arc<Mutex<Running>>);

impl Guard {
    fn running(&self) -> MutexGuard<'_, Running> {
        lock(&self.0)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.running().finish();
    }
}

struct Running {
    child: Child,
    /// None once there are no more jobs.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// When it answered last.
    answered: Option<Instant>,
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the worker when the filter ends, in the middle of a call only where the call finds no answer.
fn watch(running: &Arc<Mutex<Running>>) {
    let pid = Pid::from_child(&lock(running).child);
    let Ok(end) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let running = running.clone();
    let wait = move || {
        while poll(&mut [PollFd::new(&end, PollFlags::IN)], None).is_err() {}
        // The answer to a job that the filter ended with is on its way to the manager.
        let answered = lock(&running).answered;
        if let Some(answered) = answered {
            thread::sleep(ON_ITS_WAY.saturating_sub(answered.elapsed()));
        }
        let mut running = lock(&running);
        if running.stdin.is_some() {
            running.end();
        }
    };
    // Without this thread the next call sees the end.
    let _ = thread::Builder::new().name("pm-filter".into()).stack_size(64 << 10).spawn(wait);
}

impl Running {
    fn start() -> Self {
        let mut words = std::env::args_os().skip(1);
        let program = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default();
        let mut command = Command::new(&program);
        command.arg0(&name).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let started = command.spawn().map_err(|cause| cause.to_string());
        let piped = started.and_then(|mut child| match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Running {
                child,
                stdin: Some(stdin),
                stdout: BufReader::with_capacity(64 << 10, stdout),
                answered: None,
            }),
            _ => Err("it has no pipes".to_string()),
        });
        piped.unwrap_or_else(|cause| {
            eprintln!("the filter {name:?} cannot be started: {cause}");
            std::process::exit(CANNOT_START)
        })
    }

    fn answer(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<(), HandlerError> {
        if memchr::memchr(b'\n', input).is_some() {
            return Err(error("input", "a filter takes one line, and this job holds a line break", ""));
        }
        if self.has_surplus() {
            eprintln!(
                "the filter is out of step: it wrote a line that no job had asked for; each line must be answered with one line"
            );
            std::process::exit(OUT_OF_STEP);
        }
        let mut line = Vec::with_capacity(input.len() + 1);
        line.extend_from_slice(input);
        line.push(b'\n');
        let is_long = line.len() > PIPE;
        if !is_long && self.stdin.as_mut().is_none_or(|stdin| stdin.write_all(&line).is_err()) {
            self.end();
        }
        let Running { stdin: Some(stdin), stdout, .. } = self else { self.end() };
        let mut read = || stdout.by_ref().take(MAX_OUTPUT as u64).read_until(b'\n', output);
        let (written, read) = match is_long {
            false => (Ok(()), read()),
            // Its pipe does not hold the line, and it may answer before it has read all of it.
            true => thread::scope(|scope| {
                let writer = scope.spawn(|| stdin.write_all(&line));
                let read = read();
                (writer.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())), read)
            }),
        };
        if written.is_err() {
            self.end();
        }
        match (read, output.pop()) {
            (Ok(_), Some(b'\n')) => {
                self.answered = Some(Instant::now());
                Ok(())
            }
            (Ok(count), Some(_)) if count >= MAX_OUTPUT => {
                eprintln!("the filter wrote a line of more than {MAX_OUTPUT} bytes");
                std::process::exit(OUT_OF_STEP);
            }
            // Half a line is no answer.
            _ => self.end(),
        }
    }

    /// Gives it the end of its input, passes its last words on, and waits for its end.
    fn finish(&mut self) {
        self.stdin = None;
        let limit = || {
            thread::sleep(END);
            eprintln!("the filter has not ended {} s after the end of its input, and is killed", END.as_secs());
            std::process::exit(0);
        };
        // Without this thread the manager ends the wait, and says nothing.
        let _ = thread::Builder::new().name("pm-filter-end".into()).stack_size(64 << 10).spawn(limit);
        // No job asked for them, but somebody may want to read them: a filter of `awk` has a total to tell.
        let _ = io::copy(&mut self.stdout, &mut io::stderr());
        let _ = self.child.wait();
    }

    fn has_surplus(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.stdout.buffer().is_empty()
            || poll(&mut [PollFd::from_borrowed_fd(self.stdout.get_ref().as_fd(), PollFlags::IN)], Some(&now))
                .is_ok_and(|n| n > 0)
                && !self.is_at_end()
    }

    /// Whether its output has ended: then there is no surplus, but an end.
    fn is_at_end(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(self.stdout.get_ref().as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::IN)
    }

    /// Ends this process as the filter has ended, or is made to.
    fn end(&mut self) -> ! {
        // A filter that closed its output and lives on answers nothing any more.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let pid = Pid::from_child(&self.child);
            let grace = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let ended = pidfd_open(pid, PidfdFlags::empty())
                .is_ok_and(|end| poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&grace)).is_ok_and(|n| n > 0));
            if !ended {
                eprintln!("the filter closed its output and went on running");
                let _ = self.child.kill();
            }
        }
        end_as(self.child.wait().ok())
    }
}

fn end_as(status: Option<ExitStatus>) -> ! {
    let Some(status) = status else { std::process::exit(OUT_OF_STEP) };
    if let Some(signal) = status.signal() {
        // A handler of the runtime may take the first one; it resets itself then.
        for _ in 0..2 {
            let _ = Signal::from_named_raw(signal).map(|signal| kill_process(getpid(), signal));
        }
        std::process::exit(128 + signal);
    }
    std::process::exit(status.code().unwrap_or(OUT_OF_STEP))
}
