//! A simulated worker process: it starts calls in order, answers each once, and hears what its link says.

use std::collections::VecDeque;
use std::time::Duration;

use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::session::Answer;
use crate::machine::time::Time;

/// A call, by its place in the list of all calls.
pub(super) type Task = usize;

/// What comes of a call when a worker runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answers,
    Fails,
    /// The worker dies of it.
    Kills,
    /// It never ends by itself.
    Hangs,
}

/// How a call behaves wherever it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Script {
    pub(super) takes: Duration,
    pub(super) fate: Fate,
    /// Whether it stops when it is cancelled.
    pub(super) yields: bool,
}

/// A frame to a worker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Request(CallId, Task),
    Cancel(CallId),
    Recall(CallId),
    Drain,
    /// The manager closed the link.
    End,
}

/// A frame of a worker, or what its launcher says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Spawned,
    NotSpawned,
    Ready,
    Answer(CallId, Answer, bool),
    /// A frame that no honest worker sends.
    Violation,
    /// It was lost on the way.
    Nothing,
    /// The link ended.
    End,
    /// The process did, with this code.
    Exited(i32),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) id: CallId,
    pub(super) task: Task,
    /// Tells the end of this run from that of another.
    pub(super) run: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Process {
    pub(super) worker: WorkerId,
    pub(super) incarnation: Incarnation,
    pub(super) concurrency: usize,
    pub(super) is_alive: bool,
    /// Whether what it sends arrives anywhere.
    pub(super) is_linked: bool,
    pub(super) drains: bool,
    pub(super) ignores_term: bool,
    /// How many calls came, and the number of the last that was begun: the word that it leaves.
    pub(super) came: u64,
    pub(super) begun: u64,
    pub(super) waiting: VecDeque<(u64, CallId, Task)>,
    pub(super) running: Vec<Running>,
    /// Frames under way, oldest first.
    pub(super) orders: VecDeque<Order>,
    pub(super) news: VecDeque<News>,
    pub(super) last_order: Time,
    pub(super) last_news: Time,
}

impl Process {
    pub(super) fn new(worker: WorkerId, incarnation: Incarnation, concurrency: usize) -> Self {
        Process {
            worker,
            incarnation,
            concurrency,
            is_alive: true,
            is_linked: true,
            drains: false,
            ignores_term: false,
            came: 0,
            begun: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            orders: VecDeque::new(),
            news: VecDeque::new(),
            last_order: Time::ZERO,
            last_news: Time::ZERO,
        }
    }

    /// The next call that it may begin now.
    pub(super) fn next(&mut self) -> Option<(CallId, Task)> {
        if !self.is_alive || !self.is_linked || self.running.len() >= self.concurrency {
            return None;
        }
        let (number, id, task) = self.waiting.pop_front()?;
        self.begun = number;
        Some((id, task))
    }

    /// A call came.
    pub(super) fn take(&mut self, id: CallId, task: Task) {
        self.came += 1;
        self.waiting.push_back((self.came, id, task));
    }

    /// Takes a call out that has not begun.
    pub(super) fn forget(&mut self, id: CallId) -> bool {
        let place = self.waiting.iter().position(|(_, waiting, _)| *waiting == id);
        place.is_some_and(|place| self.waiting.remove(place).is_some())
    }

    /// Calls that it has or will have, and answers of it that are under way.
    pub(super) fn held(&self) -> usize {
        let coming = self.orders.iter().filter(|order| matches!(order, Order::Request(..))).count();
        let going = self.news.iter().filter(|news| matches!(news, News::Answer(..))).count();
        coming + self.waiting.len() + self.running.len() + going
    }
}
