//! Signals that are heard, and do not end the program by themselves any more.

use std::io;
use std::task::Poll;

use tokio::signal::unix::{self, SignalKind, signal};

use crate::machine::exit::Signal;

/// What asks a program to end: by a key, and by another program.
pub const ENDINGS: [Signal; 2] = [Signal::INT, Signal::TERM];

/// Hears some signals. From its making on, for as long as the program runs, none of them does to it what it did before.
#[derive(Debug)]
pub struct Heard {
    signals: Vec<(Signal, unix::Signal)>,
}

impl Heard {
    /// These signals.
    ///
    /// # Errors
    /// One of them cannot be heard (SIGKILL, SIGSTOP), or there are no descriptors left.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn of(signals: &[Signal]) -> io::Result<Self> {
        let hear = |&sort: &Signal| Ok((sort, signal(SignalKind::from_raw(sort.0))?));
        Ok(Heard { signals: signals.iter().map(hear).collect::<io::Result<_>>()? })
    }

    /// These, but for those that are ignored now, which go on being ignored: nohup(1) and shells without job control mean that.
    ///
    /// # Errors
    /// Those of [`Heard::of`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn unless_ignored(signals: &[Signal]) -> io::Result<Self> {
        let ignored = ignored();
        // What is no signal is refused below.
        let bit = |signal: &Signal| u32::try_from(signal.0 - 1).ok().and_then(|shift| 1_u64.checked_shl(shift));
        let is_heard = |signal: &Signal| ignored & bit(signal).unwrap_or(0) == 0;
        Heard::of(&signals.iter().copied().filter(is_heard).collect::<Vec<_>>())
    }

    /// The next one; those that came first in the list first. Never, where none is heard. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            let mut all = self.signals.iter_mut();
            let came = all.find_map(|(sort, signal)| signal.poll_recv(context).is_ready().then_some(*sort));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The signals that this process ignores, a bit each.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
