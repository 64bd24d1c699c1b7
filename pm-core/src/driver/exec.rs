//! A program that runs once: its pipes, what it prints, and its end.
//!
//! The pipes are read for as long as the program lives, and once more when it has ended. What it printed is all there by then, and so is
//! what the keeper has killed with it; whoever else holds a pipe (without a keeper, or beyond its reach) may hold it for ever, and
//! is not waited for.

use std::ffi::OsStr;
use std::fmt;
use std::future::pending;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::command;
use super::launch::{self, Child, Command, LaunchError};
use crate::machine::exit::ExitStatus;
use crate::machine::spec::{Program, Spec};

/// How long the end of a program is waited for that was killed. It takes some milliseconds; what cannot be killed must not hold up
/// the error that says why it should be.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// The room that is made for what comes first, in bytes. It doubles as more comes.
const FIRST_ROOM: usize = 4 << 10;

/// Where a program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Its descriptor 1.
    Stdout,
    /// Its descriptor 2.
    Stderr,
}

impl fmt::Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputStream::Stdout => "standard output",
            OutputStream::Stderr => "standard error",
        })
    }
}

/// Why what a program prints is not read on.
#[derive(Debug)]
pub(crate) enum Unread {
    TooMuch,
    Failed(io::Error),
}

/// A program that was started, and what it has printed so far. Dropping it kills the program with all that it has started.
pub(crate) struct Running {
    child: Child,
    stdin: Option<(Sender, Bytes)>,
    stdout: Capture,
    stderr: Capture,
}

/// Starts `spec`, which is to read `stdin`, or `/dev/null`, and may print `limit` bytes to each of its streams. Cancel safe: what was
/// started is ended.
pub(crate) async fn start(spec: &Spec, stdin: Option<Bytes>, limit: usize) -> Result<Running, LaunchError> {
    let mut command = command::of_spec(spec, "exec", unit(spec))?;
    let (stdin, stdout, stderr) =
        pipes(&mut command, stdin, limit).map_err(|source| LaunchError::here(&command, "pipe", source))?;
    let child = launch::launch(spec.guard(), command).await?;
    Ok(Running { child, stdin, stdout, stderr })
}

/// The name for people who look at the environment of a process.
fn unit(spec: &Spec) -> String {
    let name = match spec.what() {
        Program::Path(name) => Path::new(name).file_name().unwrap_or(name),
        Program::Role(role) => OsStr::new(role),
        Program::Visitor(path) => path.as_os_str(),
    };
    format!("exec:{}", name.to_string_lossy())
}

/// Gives `command` its ends of the pipes.
fn pipes(
    command: &mut Command,
    stdin: Option<Bytes>,
    limit: usize,
) -> io::Result<(Option<(Sender, Bytes)>, Capture, Capture)> {
    let (stdout, theirs) = Capture::new(limit)?;
    command.fds.push((1, Arc::new(theirs.into())));
    let (stderr, theirs) = Capture::new(limit)?;
    command.fds.push((2, Arc::new(theirs.into())));
    let Some(bytes) = stdin else { return Ok((None, stdout, stderr)) };
    let (theirs, ours) = io::pipe()?;
    command.fds.push((0, Arc::new(PipeReader::into(theirs))));
    Ok((Some((Sender::from_owned_fd(PipeWriter::into(ours))?, bytes)), stdout, stderr))
}

impl Running {
    /// Waits for its end, and hands it what it reads meanwhile. Where this is given up, what was read is kept.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, (OutputStream, Unread)> {
        let stdin = self.stdin.take();
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let passed_on = async {
            let stdout = async { stdout.read().await.map_err(|unread| (OutputStream::Stdout, unread)) };
            let stderr = async { stderr.read().await.map_err(|unread| (OutputStream::Stderr, unread)) };
            let stdin = async {
                feed(stdin).await;
                Ok(())
            };
            tokio::try_join!(stdout, stderr, stdin)?;
            // A program may close all three and live on.
            pending().await
        };
        let status = tokio::select! {
            biased;
            exit = self.child.exited() => exit.status,
            unread = passed_on => return unread,
        };
        self.stdout.rest().map_err(|unread| (OutputStream::Stdout, unread))?;
        self.stderr.rest().map_err(|unread| (OutputStream::Stderr, unread))?;
        Ok(status)
    }

    /// Kills it with all that it has started. Returns once that is gone, or after [`KILL_LIMIT`].
    pub(crate) async fn kill(&mut self) {
        self.child.kill_tree();
        let _ = tokio::time::timeout(KILL_LIMIT, self.child.exited()).await;
        for capture in [&mut self.stdout, &mut self.stderr] {
            // For its last words. What fails here cannot make it worse.
            let _ = capture.rest();
        }
    }

    /// What it has printed, to standard output and to standard error.
    pub(crate) fn printed(self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout.bytes, self.stderr.bytes)
    }
}

/// Writes all of it, and closes the pipe.
async fn feed(stdin: Option<(Sender, Bytes)>) {
    let Some((mut pipe, bytes)) = stdin else { return };
    // It fails where nobody reads on, and what a program reads is up to the program.
    let _ = pipe.write_all(&bytes).await;
}

/// One pipe, and what has come out of it.
struct Capture {
    pipe: Receiver,
    bytes: Vec<u8>,
    limit: usize,
}

impl Capture {
    fn new(limit: usize) -> io::Result<(Self, PipeWriter)> {
        let (ours, theirs) = io::pipe()?;
        let pipe = Receiver::from_owned_fd(OwnedFd::from(ours))?;
        Ok((Capture { pipe, bytes: Vec::new(), limit }, theirs))
    }

    /// Reads until the end. Cancel safe: what was read is kept.
    async fn read(&mut self) -> Result<(), Unread> {
        loop {
            let room = self.make_room()?;
            match self.pipe.read_buf(&mut (&mut self.bytes).limit(room)).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(Unread::Failed(error)),
            }
        }
    }

    /// Takes what is in the pipe now, without waiting, and no more than that: somebody may go on printing for ever.
    fn rest(&mut self) -> Result<(), Unread> {
        let failed = |error: rustix::io::Errno| Unread::Failed(error.into());
        let mut left = rustix::io::ioctl_fionread(&self.pipe).map_err(failed)?;
        while left > 0 {
            self.make_room()?;
            match rustix::io::read(&self.pipe, rustix::buffer::spare_capacity(&mut self.bytes)) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(count) => left = left.saturating_sub(count as u64),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if self.bytes.len() > self.limit { Err(Unread::TooMuch) } else { Ok(()) }
    }

    /// Makes room for more, one byte beyond the limit at most: the byte that tells that there is more.
    fn make_room(&mut self) -> Result<usize, Unread> {
        let length = self.bytes.len();
        let most = self.limit.saturating_add(1).saturating_sub(length);
        if most == 0 {
            return Err(Unread::TooMuch);
        }
        if length == self.bytes.capacity() {
            self.bytes.reserve_exact(length.max(FIRST_ROOM).min(most));
        }
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// What becomes of `printed` under a limit, first as it comes and then as it lies in the pipe, with the writer still there.
    async fn check(printed: &[u8], limit: usize, is_too_much: bool) {
        let (mut capture, mut theirs) = Capture::new(limit).unwrap();
        theirs.write_all(printed).unwrap();
        let rest = capture.rest();
        assert_eq!(matches!(rest, Err(Unread::TooMuch)), is_too_much, "{rest:?}");
        assert!(is_too_much || capture.bytes == printed);
        assert!(capture.bytes.capacity() <= (limit + 1).max(2 * printed.len()), "{}", capture.bytes.capacity());

        let (mut capture, mut theirs) = Capture::new(limit).unwrap();
        theirs.write_all(printed).unwrap();
        drop(theirs);
        let read = capture.read().await;
        assert_eq!(matches!(read, Err(Unread::TooMuch)), is_too_much, "{read:?}");
        assert!(is_too_much || capture.bytes == printed);
    }

    #[tokio::test]
    async fn the_limit_itself_is_not_too_much() {
        for limit in [0, 1, FIRST_ROOM - 1, FIRST_ROOM, FIRST_ROOM + 1, 3 * FIRST_ROOM] {
            check(&vec![b'x'; limit], limit, false).await;
            check(&vec![b'x'; limit + 1], limit, true).await;
            check(&vec![b'x'; 50_000], limit, true).await;
        }
        check(b"", 0, false).await;
    }
}
