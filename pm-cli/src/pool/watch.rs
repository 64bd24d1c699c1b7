//! What reaches a run from outside of its jobs: signals, the clock, and chance.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::code;

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The exit code of the next one.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => code::INTERRUPTED,
            _ = self.terminate.recv() => code::TERMINATED,
        }
    }
}

/// The next turn of an interval; never where there is none.
pub(super) async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Which worker dies next.
pub(super) struct Random(pm::core::machine::budget::SplitMix);

impl Random {
    pub(super) fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Random(pm::core::machine::budget::SplitMix(RandomState::new().hash_one(std::process::id())))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }
}
