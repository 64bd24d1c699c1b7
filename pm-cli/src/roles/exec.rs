//! One program a job: `{}` in its words is the job's text.
//!
//! The worker starts the program, reads what it prints and waits for its end, all on one thread: the program's pipes and its end
//! come through one `poll`. The program stays in the worker's process group. That makes the worker the handle by which pm
//! ends it: a job that takes too long has its worker killed, and the keeper kills all that the worker has started with it, also
//! what left the group. A worker is there again within milliseconds.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use pm::core::worker::role::Service;
use pm::{ExitStatus, HandlerError, Role};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{CODEC, error};

/// The most that a program may print to its standard output: what a frame can carry, less the head of [`Printed`].
pub const MAX_OUTPUT: usize = (64 << 20) - 8;

/// How much of a program's standard error is passed on; of more, the end.
pub const MAX_STDERR: usize = 64 << 10;

/// How much of it stands in the error of a job that failed.
pub const MAX_TAIL: usize = 4 << 10;

/// The role. Its arguments are the resolved program (empty where that depends on the job) and the words.
pub static EXEC: Exec = Exec { template: OnceLock::new(), buffers: Mutex::new(None) };

/// See the [module](self).
#[derive(Debug)]
pub struct Exec {
    template: OnceLock<Template>,
    buffers: Mutex<Option<Buffers>>,
}

/// What keeps from being allocated for each job.
#[derive(Debug)]
struct Buffers {
    null: File,
    chunk: Vec<u8>,
    stderr: Vec<u8>,
}

impl Role for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn codecs(&self) -> &[&'static str] {
        &[CODEC]
    }

    fn service(&'static self, codec: &str) -> Option<Service> {
        (codec == CODEC).then(|| Service::Blocking(Box::new(|input, output| self.run(input, output))))
    }
}

/// The words of a command, with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    program: Option<PathBuf>,
    words: Vec<Vec<Vec<u8>>>,
}

impl Template {
    /// `program` is what the first word was resolved to.
    pub fn new(program: Option<PathBuf>, words: impl IntoIterator<Item = OsString>) -> Self {
        let words = words.into_iter().map(|word| split(word.as_bytes())).collect();
        Template { program, words }
    }

    /// Whether a word has a hole.
    pub fn has_hole(word: &OsStr) -> bool {
        split(word.as_bytes()).len() > 1
    }

    fn fill(&self, input: &[u8]) -> Command {
        let mut words = self.words.iter().map(|parts| OsString::from_vec(parts.join(input)));
        let name = words.next().unwrap_or_default();
        let mut command = Command::new(self.program.as_deref().map_or(name.as_os_str(), |path| path.as_os_str()));
        command.arg0(name).args(words);
        command
    }
}

/// What stands between the holes of a word.
fn split(word: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"{}") {
            parts.push(Vec::new());
            rest = after;
        } else {
            parts.last_mut().unwrap_or(&mut Vec::new()).push(byte);
            rest = after;
        }
    }
    parts
}

/// What a program printed, as it goes to the manager: the length of the standard output in 8 bytes, it, and the standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Printed<'a> {
    /// Standard output.
    pub stdout: &'a [u8],
    /// Standard error.
    pub stderr: &'a [u8],
}

impl<'a> Printed<'a> {
    /// Reads the payload of a result.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let (length, rest) = payload.split_first_chunk::<8>()?;
        let (stdout, stderr) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some(Printed { stdout, stderr })
    }
}

/// How a program failed, as the type of the handler's error says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ended with this code.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
    /// It could not be started.
    Start,
    /// It printed more than [`MAX_OUTPUT`].
    Output,
}

impl Fault {
    fn write(self) -> String {
        match self {
            Fault::Exit(code) => format!("exit {code}"),
            Fault::Signal(signal) => format!("signal {signal}"),
            Fault::Start => "start".to_string(),
            Fault::Output => "output".to_string(),
        }
    }

    /// Reads the type of an error of this role.
    pub fn read(type_name: &str) -> Option<Self> {
        match type_name.split_once(' ') {
            Some(("exit", code)) => code.parse().ok().map(Fault::Exit),
            Some(("signal", signal)) => signal.parse().ok().map(Fault::Signal),
            None if type_name == "start" => Some(Fault::Start),
            None if type_name == "output" => Some(Fault::Output),
            _ => None,
        }
    }
}

impl Exec {
    fn run(&self, input: &[u8], output: &mut Vec<u8>) -> Result<(), HandlerError> {
        let template = self.template.get_or_init(|| {
            let mut args = std::env::args_os().skip(1);
            let program = args.next().filter(|program| !program.is_empty()).map(PathBuf::from);
            Template::new(program, args)
        });
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let buffers = match &mut *buffers {
            Some(buffers) => buffers,
            none => none.insert(Buffers {
                null: File::open("/dev/null").map_err(|cause| cannot_start(template, input, &cause))?,
                chunk: vec![0; 64 << 10],
                stderr: Vec::new(),
            }),
        };
        buffers.stderr.clear();
        let null = buffers.null.try_clone().map_err(|cause| cannot_start(template, input, &cause))?;
        let mut command = template.fill(input);
        let spawned = command.stdin(null).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        drop(command);
        let mut child = spawned.map_err(|cause| cannot_start(template, input, &cause))?;
        output.extend_from_slice(&[0; 8]);
        let read = follow(&mut child, buffers, output);
        if read.is_err() {
            // Reading failed or was given up: what it still does is of no use.
            let _ = child.kill();
        }
        let status = child.wait().map_err(|cause| error("io", format!("its end cannot be waited for: {cause}"), ""))?;
        let tail = |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MAX_TAIL)..]).into_owned();
        read.map_err(|Unread { fault, message }| error(fault, message, tail(&buffers.stderr)))?;
        let fault = match (status.code(), status.signal()) {
            (Some(0), _) => {
                let length = (output.len() - 8) as u64;
                output[..8].copy_from_slice(&length.to_le_bytes());
                output.extend_from_slice(&buffers.stderr);
                return Ok(());
            }
            (Some(code), _) => (Fault::Exit(code), ExitStatus::Code(code)),
            (None, signal) => {
                let signal = signal.unwrap_or_default();
                (Fault::Signal(signal), ExitStatus::Signal { signal, core: status.core_dumped() })
            }
        };
        Err(error(fault.0.write(), fault.1.to_string(), tail(&buffers.stderr)))
    }
}

fn cannot_start(template: &Template, input: &[u8], cause: &std::io::Error) -> HandlerError {
    let command = template.fill(input);
    let hint = match cause.kind() {
        std::io::ErrorKind::ArgumentListTooLong => ": an argument takes at most 128 KiB; pass the job's text in a file",
        std::io::ErrorKind::InvalidInput => ": no argument can hold a NUL byte",
        _ => "",
    };
    error(Fault::Start.write(), format!("{:?} cannot be started: {cause}{hint}", command.get_program()), "")
}

struct Unread {
    fault: String,
    message: String,
}

/// Reads what the program prints until both pipes have ended, or it has, and nothing is left in them: what it started may hold
/// them open for ever.
fn follow(child: &mut Child, buffers: &mut Buffers, output: &mut Vec<u8>) -> Result<(), Unread> {
    let unread = |cause: rustix::io::Errno| Unread {
        fault: "io".to_string(),
        message: format!("what it prints cannot be read: {cause}"),
    };
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let pid = Pid::from_child(child);
    let end = pidfd_open(pid, PidfdFlags::empty()).map_err(unread)?;
    let mut ended = false;
    while stdout.is_some() || stderr.is_some() {
        let (mut out, mut err) = (PollFlags::empty(), PollFlags::empty());
        let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = Vec::with_capacity(3);
        fds.push(PollFd::from_borrowed_fd(end.as_fd(), if ended { PollFlags::empty() } else { PollFlags::IN }));
        fds.extend(stdout.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        fds.extend(stderr.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        match poll(&mut fds, ended.then_some(&no_wait)) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.map_err(unread)?,
        };
        let mut ready = fds.iter().map(PollFd::revents);
        let has_ended = !ready.next().unwrap_or(PollFlags::empty()).is_empty();
        if stdout.is_some() {
            out = ready.next().unwrap_or(PollFlags::empty());
        }
        if stderr.is_some() {
            err = ready.next().unwrap_or(PollFlags::empty());
        }
        drop(ready);
        drop(fds);
        if ended && out.is_empty() && err.is_empty() {
            break;
        }
        // What it printed before its end is read in a further turn, after the end is known.
        ended |= has_ended;
        if !out.is_empty() && pull(&mut stdout, &mut buffers.chunk, |bytes| output.extend_from_slice(bytes)) {
            stdout = None;
        }
        if !err.is_empty() && pull(&mut stderr, &mut buffers.chunk, |bytes| keep_end(&mut buffers.stderr, bytes)) {
            stderr = None;
        }
        if output.len() > MAX_OUTPUT {
            let message = format!("it printed more than {} MiB; let it write to a file", MAX_OUTPUT.div_ceil(1 << 20));
            return Err(Unread { fault: Fault::Output.write(), message });
        }
    }
    if buffers.stderr.len() > MAX_STDERR {
        let surplus = buffers.stderr.len() - MAX_STDERR;
        buffers.stderr.drain(..surplus);
    }
    Ok(())
}

/// Reads once. True at the end of the pipe.
fn pull(pipe: &mut Option<impl Read>, chunk: &mut [u8], take: impl FnOnce(&[u8])) -> bool {
    let Some(pipe) = pipe else { return true };
    match pipe.read(chunk) {
        Ok(0) => true,
        Ok(count) => {
            take(&chunk[..count]);
            false
        }
        Err(cause) => cause.kind() != std::io::ErrorKind::Interrupted,
    }
}

/// Keeps the end of what comes, moving it only now and then.
fn keep_end(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    if kept.len() > 4 * MAX_STDERR {
        let surplus = kept.len() - MAX_STDERR;
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_stand_anywhere_and_several_times() {
        let words = ["cp", "--from={}", "{}{}", "{", "}", "{{}}", ""].map(OsString::from);
        let template = Template::new(None, words);
        let command = template.fill(b"a b");
        let filled: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(filled, ["--from=a b", "a ba b", "{", "}", "{a b}", ""]);
    }

    #[test]
    fn faults_read_back_as_they_were_written() {
        for fault in [Fault::Exit(3), Fault::Signal(11), Fault::Start, Fault::Output] {
            assert_eq!(Fault::read(&fault.write()), Some(fault));
        }
        assert_eq!(Fault::read("ValueError"), None);
    }

    #[test]
    fn hostile_lengths_are_refused() {
        assert_eq!(Printed::read(&[0xff; 20]), None);
        assert_eq!(Printed::read(b"short"), None);
        let printed = Printed { stdout: b"ab", stderr: b"c" };
        assert_eq!(Printed::read(b"\x02\0\0\0\0\0\0\0abc"), Some(printed));
    }
}
