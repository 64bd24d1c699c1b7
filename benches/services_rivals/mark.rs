//! What the bench has started: a variable in the environment marks it, and all that it starts in turn.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process;

/// The variable.
const VARIABLE: &str = "PM_BENCH_MARK";

/// How long what was killed may take to be gone.
const END: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The mark of one run. What has it ends with this.
#[derive(Debug)]
pub(crate) struct Mark(String);

impl Mark {
    pub(crate) fn new() -> Self {
        Mark(format!("{}{}", of_this_process(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Marks what a command starts.
    pub(crate) fn set(&self, command: &mut Command) {
        command.env(VARIABLE, &self.0);
    }

    /// The variable and its value.
    pub(crate) fn variable(&self) -> (&'static str, &str) {
        (VARIABLE, &self.0)
    }

    /// All that have it and live.
    pub(crate) fn pids(&self) -> Vec<u32> {
        process::all().into_iter().filter(|pid| self.is_on(*pid)).collect()
    }

    /// Sends a signal to one that has it, and to nobody else who may have its number by now.
    pub(crate) fn signal(&self, pid: u32, signal: Signal) -> bool {
        send(pid, signal, |value| value == self.0)
    }

    fn is_on(&self, pid: u32) -> bool {
        process::variable(pid, VARIABLE).is_some_and(|value| value == self.0)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        end(|value| value == self.0);
    }
}

/// Ends all that this process has marked.
pub(crate) fn end_all() {
    let mine = of_this_process();
    end(|value| value.starts_with(&mine));
}

fn of_this_process() -> String {
    format!("{}-", std::process::id())
}

/// Kills again and again: whoever is killed may have started another one just before.
fn end(is_meant: impl Fn(&str) -> bool) {
    let began = Instant::now();
    while began.elapsed() < END {
        let is_marked = |pid: &u32| process::variable(*pid, VARIABLE).is_some_and(|value| is_meant(&value));
        let pids: Vec<u32> = process::all().into_iter().filter(is_marked).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            send(pid, Signal::KILL, &is_meant);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    eprintln!("processes of the bench live that cannot be killed");
}

fn send(pid: u32, signal: Signal, is_meant: impl Fn(&str) -> bool) -> bool {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else { return false };
    // Looked at once its number can no longer become that of another one.
    process::variable(pid, VARIABLE).is_some_and(|value| is_meant(&value)) && pidfd_send_signal(process, signal).is_ok()
}
