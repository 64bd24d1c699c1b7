//! What a bench gives: rows, each with its place.

use std::fmt;

use serde::Serialize;

use super::measure::Measured;
use super::place::Place;

/// Bytes of the payload that most limits carry.
pub const SMALL: usize = 64;

/// From so many bytes on the rate of many at once is that of the memory.
const LARGE: usize = 4 << 10;

/// Whether memory is the limit of payloads of this size, so many at once.
pub fn is_transfer(size: usize, in_flight: usize) -> bool {
    size >= LARGE || (size != SMALL && in_flight == 1)
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The transport; none for a limit.
    pub transport: Option<&'static str>,
    /// Where the processes ran.
    pub place: Place,
    /// Bytes of the payload.
    pub size: usize,
    /// Queries under way at once.
    pub in_flight: usize,
    /// How they were made.
    pub mode: Mode,
    /// What they took.
    pub measured: Measured,
}

/// How queries are made, or which limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each awaited, by a task of its own.
    Await,
    /// Each waited for by a thread of its own.
    Blocking,
    /// All that are under way sent and awaited together; the times are those of the whole batch.
    Batch,
    /// Two threads that never sleep.
    Spin,
    /// Two threads that wake each other.
    Futex,
    /// A bare tokio socket.
    Socket,
    /// Two bare tokio pipes.
    Pipe,
    /// Two tasks of this process.
    Channel,
    /// Many callers on one socket, written by hand.
    Mux,
    /// Shared memory: there and back, and with many in flight one way.
    Transfer,
}

impl Mode {
    /// Its name in JSON and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Await => "await",
            Mode::Blocking => "blocking",
            Mode::Batch => "batch",
            Mode::Spin => "spin",
            Mode::Futex => "futex",
            Mode::Socket => "socket",
            Mode::Pipe => "pipe",
            Mode::Channel => "channel",
            Mode::Mux => "mux",
            Mode::Transfer => "transfer",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Row {
    /// The name of the transport, or `limit`.
    pub fn transport(&self) -> &'static str {
        self.transport.unwrap_or("limit")
    }

    /// The limit that this row is held against.
    pub fn limit(&self) -> Option<Mode> {
        Some(match (self.transport?, self.in_flight) {
            ("shm", in_flight) if is_transfer(self.size, in_flight) => Mode::Transfer,
            ("shm", 1) if matches!(self.place, Place::OneCore | Place::Hogs) => Mode::Futex,
            ("shm", 1) => Mode::Spin,
            ("shm", _) => Mode::Channel,
            ("uds", 1) => Mode::Socket,
            ("stdio", 1) => Mode::Pipe,
            _ => Mode::Mux,
        })
    }

    /// One JSON object, on one line.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Object {
            transport: &'static str,
            placement: &'static str,
            size: usize,
            in_flight: usize,
            mode: &'static str,
            p50_ns: u64,
            p99_ns: u64,
            p999_ns: u64,
            rate: u64,
            cpu_ns_per_query_manager: u64,
            cpu_ns_per_query_worker: u64,
        }
        let Measured { p50, p99, p999, rate, cpu_manager, cpu_worker, .. } = self.measured;
        let object = Object {
            transport: self.transport(),
            placement: self.place.name(),
            size: self.size,
            in_flight: self.in_flight,
            mode: self.mode.name(),
            p50_ns: p50,
            p99_ns: p99,
            p999_ns: p999,
            rate: rate.round() as u64,
            cpu_ns_per_query_manager: cpu_manager.round() as u64,
            cpu_ns_per_query_worker: cpu_worker.round() as u64,
        };
        serde_json::to_string(&object).unwrap_or_default()
    }
}
