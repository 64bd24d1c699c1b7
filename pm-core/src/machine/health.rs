//! Whether a pool is well.

use std::fmt;

use super::cause::ExitCause;
use super::pool::Phase;

/// Whether a pool does what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Healthy,
    /// It serves, but something is wrong.
    Degraded(Trouble),
    /// It serves nobody now.
    Down(Trouble),
}

/// What is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Workers died and wait for their next start.
    Crashed {
        /// How many.
        workers: usize,
    },
    /// Not all workers serve yet.
    Starting {
        /// How many do.
        serving: usize,
        /// How many there should be.
        workers: usize,
    },
    /// The queue is full.
    QueueFull {
        /// How many wait.
        queued: usize,
    },
    /// The restart budget is spent.
    GaveUp(ExitCause),
    /// All workers were sent away.
    Unspawned,
    /// It is being shut down.
    ShuttingDown,
}

/// What a pool looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signs {
    /// Its phase.
    pub phase: Phase,
    /// It takes no further calls, and ends once it has served those that it has.
    pub is_closing: bool,
    /// How many workers there should be.
    pub size: usize,
    /// How many serve.
    pub serving: usize,
    /// How many died, and wait for their next start.
    pub crashed: usize,
    /// How many calls wait.
    pub queued: usize,
    /// How many of them are a full queue.
    pub queue: usize,
}

impl Signs {
    /// What they mean. A pool that was never spawned is well: its first call starts a worker.
    pub fn status(&self) -> Status {
        match &self.phase {
            Phase::Closing | Phase::Closed => Status::Down(Trouble::ShuttingDown),
            Phase::Idle | Phase::Serving if self.is_closing => Status::Down(Trouble::ShuttingDown),
            Phase::GaveUp(cause) => Status::Down(Trouble::GaveUp(cause.clone())),
            Phase::Unspawned => Status::Down(Trouble::Unspawned),
            Phase::Idle => Status::Healthy,
            Phase::Serving => self.while_serving(),
        }
    }

    fn while_serving(&self) -> Status {
        let trouble = match () {
            () if self.crashed > 0 => Trouble::Crashed { workers: self.crashed },
            () if self.serving < self.size => Trouble::Starting { serving: self.serving, workers: self.size },
            () if self.queued >= self.queue => Trouble::QueueFull { queued: self.queued },
            () => return Status::Healthy,
        };
        if self.serving == 0 { Status::Down(trouble) } else { Status::Degraded(trouble) }
    }
}

impl Status {
    /// What is wrong; none where nothing is.
    pub fn trouble(&self) -> Option<&Trouble> {
        match self {
            Status::Healthy => None,
            Status::Degraded(trouble) | Status::Down(trouble) => Some(trouble),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Healthy => f.write_str("healthy"),
            Status::Degraded(trouble) => write!(f, "degraded: {trouble}"),
            Status::Down(trouble) => write!(f, "down: {trouble}"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Crashed { workers } => write!(f, "{workers} crashed and will be started again"),
            Trouble::Starting { serving, workers } => write!(f, "{serving} of {workers} workers serve so far"),
            Trouble::QueueFull { queued } => write!(f, "the queue is full, {queued} wait"),
            Trouble::GaveUp(cause) => write!(f, "it gave up, for its workers kept dying; the last: {cause}"),
            Trouble::Unspawned => f.write_str("all workers were sent away"),
            Trouble::ShuttingDown => f.write_str("it is shutting down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_signs_mean() {
        let well =
            Signs { phase: Phase::Serving, is_closing: false, size: 2, serving: 2, crashed: 0, queued: 0, queue: 10 };
        let gave_up = Phase::GaveUp(ExitCause::Chaos);
        for (signs, told) in [
            (well.clone(), "healthy"),
            (Signs { phase: Phase::Idle, size: 0, serving: 0, ..well.clone() }, "healthy"),
            (Signs { serving: 3, queued: 9, ..well.clone() }, "healthy"),
            (Signs { queued: 10, ..well.clone() }, "degraded: the queue is full, 10 wait"),
            (Signs { serving: 1, ..well.clone() }, "degraded: 1 of 2 workers serve so far"),
            (Signs { serving: 0, ..well.clone() }, "down: 0 of 2 workers serve so far"),
            (Signs { serving: 1, crashed: 1, ..well.clone() }, "degraded: 1 crashed and will be started again"),
            (Signs { serving: 0, crashed: 2, ..well.clone() }, "down: 2 crashed and will be started again"),
            (Signs { phase: Phase::Unspawned, ..well.clone() }, "down: all workers were sent away"),
            (Signs { phase: gave_up, ..well.clone() }, "down: it gave up"),
            (Signs { is_closing: true, ..well.clone() }, "down: it is shutting down"),
            (Signs { phase: Phase::Closed, ..well }, "down: it is shutting down"),
        ] {
            assert!(signs.status().to_string().starts_with(told), "{signs:?} is {}", signs.status());
        }
    }
}
