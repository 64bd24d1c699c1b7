//! Signals that ask the program to end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::machine::exit::Signal;

/// Waits for SIGINT or SIGTERM. From the first call on, neither ends the program by itself any more.
pub(crate) struct Endings {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Endings {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Endings { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
        }
    }
}
