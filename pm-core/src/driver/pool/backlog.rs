//! The queue of a pool: calls that wait in line for a worker, or for their next try.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::driver::call::Call;
use crate::face::error::QueryError;
use crate::machine::line::Line;
use crate::machine::pool::Phase;
use crate::machine::time::Time;

pub(super) struct Backlog {
    pub(super) line: Line<Arc<Call>>,
    /// Calls that wait for their next try.
    pub(super) delayed: BinaryHeap<Reverse<Delayed>>,
    pub(super) next: u64,
    pub(super) phase: Phase,
    /// A query came before there was any worker.
    pub(super) demanded: bool,
    /// No further query is taken.
    pub(super) closing: bool,
    pub(super) last_stderr: String,
    /// When the task of the pool looks at the line next.
    pub(super) armed: Option<Time>,
}

pub(super) struct Delayed {
    pub(super) due: Time,
    pub(super) order: u64,
    pub(super) call: Arc<Call>,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl Backlog {
    pub(super) fn new() -> Self {
        Backlog {
            line: Line::default(),
            delayed: BinaryHeap::new(),
            next: 0,
            phase: Phase::Idle,
            demanded: false,
            closing: false,
            last_stderr: String::new(),
            armed: None,
        }
    }

    /// Empties it: all calls that wait, those in line first.
    pub(super) fn take_all(&mut self) -> Vec<Arc<Call>> {
        let delayed = self.delayed.drain().map(|Reverse(delayed)| delayed.call);
        self.line.take_all().into_iter().chain(delayed).collect()
    }

    /// The error of a query that no worker will ever serve. While a pool closes, queries that it has taken go on.
    pub(super) fn refusal(&self, pool: &Arc<str>, taken: bool) -> Option<QueryError> {
        let pool = pool.clone();
        match &self.phase {
            Phase::Idle | Phase::Serving if self.closing && !taken => Some(QueryError::ShuttingDown { pool }),
            Phase::Idle | Phase::Serving => None,
            Phase::Unspawned => Some(QueryError::NoWorkers { pool }),
            Phase::Closing | Phase::Closed => Some(QueryError::ShuttingDown { pool }),
            Phase::GaveUp(cause) => {
                Some(QueryError::GaveUp { pool, cause: cause.clone(), stderr: self.last_stderr.clone() })
            }
        }
    }
}
