//! A process and all that it starts, bounded in time.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use thiserror::Error;

/// How often it is seen whether the process has ended: rarely, for this happens beside what is measured.
const LOOK: Duration = Duration::from_millis(50);

/// How many lines of what it said are shown when it failed.
const TAIL: usize = 20;

/// A process did not do what it was started for.
#[derive(Debug, Error)]
pub(crate) enum GroupError {
    /// It cannot be started.
    #[error("{program} cannot be started: {source}")]
    Start { program: String, source: std::io::Error },
    /// It took too long, and was ended.
    #[error("it did not end within {0:?}")]
    Late(Duration),
    /// It failed.
    #[error("{status}\n{said}")]
    Failed { status: ExitStatus, said: String },
    /// It cannot be watched, or what it said cannot be read.
    #[error("it cannot be watched: {0}")]
    Watch(#[from] std::io::Error),
}

/// Runs a command to its end, and gives what it wrote to standard output. All that it started ends with it.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<String, GroupError> {
    let (mut output, mut errors) = (memory()?, memory()?);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(errors.try_clone()?).process_group(0);
    let mut group = match command.spawn() {
        Ok(child) => Group(child),
        Err(source) => {
            let program = command.get_program().to_string_lossy().into_owned();
            return Err(GroupError::Start { program, source });
        }
    };
    if !group.ends_within(limit)? {
        return Err(GroupError::Late(limit));
    }
    let status = group.end()?;
    if status.success() {
        return Ok(read(&mut output)?);
    }
    let said = read(&mut errors)?;
    let lines: Vec<&str> = said.lines().collect();
    Err(GroupError::Failed { status, said: lines[lines.len().saturating_sub(TAIL)..].join("\n") })
}

/// A process that leads a group of its own. The group ends with this.
struct Group(Child);

impl Group {
    /// Waits for the leader, but leaves it to be reaped, so that its number cannot be given to anybody else.
    fn ends_within(&self, limit: Duration) -> Result<bool, GroupError> {
        let end = Instant::now() + limit;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while waitid(WaitId::Pid(self.pid()), options).map_err(std::io::Error::from)?.is_none() {
            if Instant::now() > end {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<ExitStatus, std::io::Error> {
        // Nobody may be left.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        self.0.wait()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Once it has been reaped, its number is no longer its own.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.end();
        }
    }
}

/// A file in memory: unlike a pipe, it is never full, and whoever still holds it does not hold up its reader.
fn memory() -> Result<File, std::io::Error> {
    Ok(memfd_create("peers", MemfdFlags::CLOEXEC)?.into())
}

fn read(file: &mut File) -> Result<String, std::io::Error> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
