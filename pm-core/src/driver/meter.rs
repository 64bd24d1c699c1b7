//! What a pool counts: answers and how long they took, errors, retries. On the way of a query it costs one addition, and nobody waits for anybody.

mod histogram;
mod minute;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::face::error::QueryErrorKind;
use crate::machine::time::Time;
use histogram::Histogram;
pub use histogram::Latencies;
use minute::Minute;

/// What a pool counts. All of it is relaxed: a figure may be looked at a moment before what it belongs to.
#[derive(Debug)]
pub(crate) struct Meter {
    /// How long answers took; their number is that of all answers.
    latencies: Histogram,
    minute: Minute,
    retries: AtomicU64,
    cancelled: AtomicU64,
    handler: AtomicU64,
    timed_out: AtomicU64,
    lost: AtomicU64,
    poisoned: AtomicU64,
    gave_up: AtomicU64,
    no_workers: AtomicU64,
    shutting_down: AtomicU64,
}

/// Calls that ended with an error, by its sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Errors {
    /// The handler returned an error or panicked. These calls count as answered as well.
    pub handler: u64,
    /// They took too long.
    pub timed_out: u64,
    /// Their worker died.
    pub lost: u64,
    /// They were aboard so many dying workers that they were tried no more.
    pub poisoned: u64,
    /// The pool had given up.
    pub gave_up: u64,
    /// The pool had no workers, or the one that was named was gone.
    pub no_workers: u64,
    /// The pool was shutting down.
    pub shutting_down: u64,
}

impl Errors {
    /// All of them, with the names that metrics give them.
    pub fn by_kind(&self) -> [(&'static str, u64); 7] {
        let Errors { handler, timed_out, lost, poisoned, gave_up, no_workers, shutting_down } = *self;
        [
            ("handler", handler),
            ("timed_out", timed_out),
            ("lost", lost),
            ("poisoned", poisoned),
            ("gave_up", gave_up),
            ("no_workers", no_workers),
            ("shutting_down", shutting_down),
        ]
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.by_kind().into_iter().map(|(_, count)| count).sum()
    }
}

impl Meter {
    pub(crate) fn new() -> Self {
        Meter {
            latencies: Histogram::new(),
            minute: Minute::new(),
            retries: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            handler: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            poisoned: AtomicU64::new(0),
            gave_up: AtomicU64::new(0),
            no_workers: AtomicU64::new(0),
            shutting_down: AtomicU64::new(0),
        }
    }

    /// A call that was made then is answered now.
    pub(crate) fn answered(&self, made: Time, now: Time) {
        self.latencies.record(now.since(made));
    }

    /// So many were answered together. Beside [`answered`](Self::answered), which counts each of them.
    pub(crate) fn answered_together(&self, now: Time, answers: u32) {
        self.minute.add(now, answers);
    }

    /// A call was tried in vain, and will be again.
    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// The caller of a call went.
    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// A call ends with such an error. What a caller does wrong itself is no error of the pool.
    pub(crate) fn failed(&self, kind: QueryErrorKind) {
        let counter = match kind {
            QueryErrorKind::Handler => &self.handler,
            QueryErrorKind::TimedOut => &self.timed_out,
            QueryErrorKind::WorkerLost => &self.lost,
            QueryErrorKind::Poisoned => &self.poisoned,
            QueryErrorKind::GaveUp => &self.gave_up,
            QueryErrorKind::NoWorkers => &self.no_workers,
            QueryErrorKind::ShuttingDown => &self.shutting_down,
            QueryErrorKind::OnRuntime | QueryErrorKind::BadInput | QueryErrorKind::BadAnswer => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were answered so far.
    pub(crate) fn answers(&self) -> u64 {
        self.latencies.count()
    }

    pub(crate) fn latencies(&self) -> Latencies {
        self.latencies.snapshot()
    }

    /// How many were answered in the minute that ends now, of a pool of this age.
    pub(crate) fn per_minute(&self, now: Time, age: Duration) -> f64 {
        self.minute.rate(now, age)
    }

    /// Retries, and calls whose callers went.
    pub(crate) fn retries_and_cancels(&self) -> (u64, u64) {
        (self.retries.load(Ordering::Relaxed), self.cancelled.load(Ordering::Relaxed))
    }

    pub(crate) fn errors(&self) -> Errors {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Errors {
            handler: load(&self.handler),
            timed_out: load(&self.timed_out),
            lost: load(&self.lost),
            poisoned: load(&self.poisoned),
            gave_up: load(&self.gave_up),
            no_workers: load(&self.no_workers),
            shutting_down: load(&self.shutting_down),
        }
    }
}
