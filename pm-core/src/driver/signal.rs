//! Signals that ask the program to end.

use std::io;

use tokio::signal::unix::{self, SignalKind, signal};

use crate::machine::exit::Signal;

/// Waits for SIGINT or SIGTERM. From the first call on, neither ends the program by itself any more.
pub(crate) struct Endings {
    interrupt: Option<unix::Signal>,
    terminate: Option<unix::Signal>,
}

impl Endings {
    pub(crate) fn new() -> io::Result<Self> {
        Endings::except(0)
    }

    /// Those that are ignored now go on being ignored: nohup(1) and shells without job control mean that.
    #[cfg(feature = "service")]
    pub(crate) fn unless_ignored() -> io::Result<Self> {
        Endings::except(ignored())
    }

    /// Without those that have a bit here.
    fn except(signals: u64) -> io::Result<Self> {
        let heard = |kind: SignalKind| {
            let is_left_out = signals & 1 << (kind.as_raw_value() - 1) != 0;
            (!is_left_out).then(|| signal(kind)).transpose()
        };
        Ok(Endings { interrupt: heard(SignalKind::interrupt())?, terminate: heard(SignalKind::terminate())? })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        async fn heard(signal: &mut Option<unix::Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = heard(&mut self.interrupt) => Signal::INT,
            () = heard(&mut self.terminate) => Signal::TERM,
        }
    }
}

/// The signals that this process ignores, a bit each.
#[cfg(feature = "service")]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
