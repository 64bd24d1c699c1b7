//! What becomes of the calls.

use super::{Outcome, Place, World};
use crate::machine::dispatch;
use crate::machine::id::WorkerId;
use crate::machine::pool::Phase;
use crate::machine::retry::{Failure, Verdict};
use crate::machine::session::Limit;
use crate::machine::unit;
use crate::testing::simulation::process::{Order, Task};

impl World {
    pub(super) fn board(&mut self, task: Task, waited: bool) -> bool {
        let costs: Vec<_> = self.links.iter().map(|worker| self.cost(*worker, waited)).collect();
        let Some((_, place)) = dispatch::best(costs) else { return false };
        self.send_to(self.links[place], task)
    }

    pub(super) fn cost(&self, worker: WorkerId, waited: bool) -> Option<u64> {
        let link = self.lives.get(&worker)?.link.as_ref()?;
        let (load, service) = (link.session.unanswered() as u32, link.window.service().as_nanos() as u64);
        if waited && !link.window.refills() {
            return None;
        }
        dispatch::cost(load, link.window.size(), service, waited)
    }

    pub(super) fn load(&self, worker: WorkerId) -> usize {
        self.lives.get(&worker).and_then(|live| live.link.as_ref()).map_or(0, |link| link.session.unanswered())
    }

    pub(super) fn send_to(&mut self, worker: WorkerId, task: Task) -> bool {
        let now = self.now;
        let phase = self.pool.worker(worker);
        if phase != Some(unit::Phase::Ready) {
            self.ledger.violated(format!("call {task} was submitted to worker {worker}, which is {phase:?}"));
        }
        let call = &self.calls[task];
        let limit = match (call.timeout, call.until) {
            (Some(limit), _) if call.from_start => Limit::Running(limit),
            (_, Some(until)) => Limit::Until(until),
            _ => Limit::None,
        };
        let Some(link) = self.link(worker) else { return false };
        if link.draining || link.ended || link.session.unanswered() >= link.window.size() as usize {
            self.ledger.violated(format!("worker {worker} was chosen and has no room"));
            return false;
        }
        let before = link.session.unanswered();
        let Ok(id) = link.session.open(now, limit) else { return false };
        link.calls.insert(id, (task, now));
        if before == 0 {
            link.window.began(now);
        }
        link.window.note_load(before as u32 + 1);
        self.calls[task].place = Place::Aboard(worker, id);
        self.ledger.note(now, "send", task as u64, u64::from(worker.0));
        self.order_frame(worker, Order::Request(id, task));
        true
    }

    pub(super) fn dispatch(&mut self) {
        for link in self.lives.values_mut().filter_map(|live| live.link.as_mut()) {
            link.window.note_load(link.session.unanswered() as u32);
        }
        while let Some(task) = self.queue.front().copied() {
            let is_over = matches!(self.calls[task].place, Place::Done | Place::Abandoned);
            if !is_over && !self.board(task, true) {
                break;
            }
            self.queue.pop_front();
            self.leave_queue(task);
        }
    }

    pub(super) fn leave_queue(&mut self, task: Task) {
        if let Some(until) = self.calls[task].until {
            self.timed.remove(&(until, task));
        }
    }

    /// Whether the queue takes it, or its answer is known.
    pub(super) fn enqueue(&mut self, task: Task, again: bool) -> bool {
        let refusal = match &self.phase {
            Phase::Idle | Phase::Serving if self.closing.is_some() && !again => Some(Outcome::ShuttingDown),
            Phase::Idle | Phase::Serving => None,
            Phase::Unspawned => Some(Outcome::NoWorkers),
            Phase::Closing | Phase::Closed => Some(Outcome::ShuttingDown),
            Phase::GaveUp(_) => Some(Outcome::GaveUp),
        };
        if let Some(outcome) = refusal {
            self.resolve(task, outcome);
            return true;
        }
        if !again && self.queue.len() >= self.settings.queue {
            return false;
        }
        if again {
            self.queue.push_front(task);
        } else {
            self.queue.push_back(task);
        }
        self.timed.extend(self.calls[task].until.map(|until| (until, task)));
        self.demanded |= self.phase == Phase::Idle;
        true
    }

    pub(super) fn enqueue_if_waiting(&mut self, task: Task) {
        if self.calls[task].place == Place::Waiting {
            self.enqueue(task, true);
        }
    }

    pub(super) fn goes_on(&mut self, task: Task) {
        let call = &mut self.calls[task];
        if let Place::Aboard(..) = call.place {
            call.place = Place::Waiting;
        }
    }

    pub(super) fn failed(&mut self, task: Task, failure: Failure, outcome: Outcome) {
        let now = self.now;
        let call = &mut self.calls[task];
        if matches!(call.place, Place::Done | Place::Abandoned) {
            return;
        }
        match call.tries.record(&call.retry, failure) {
            Verdict::Again(delay) => {
                call.until = call.timeout.filter(|_| !call.from_start).map(|limit| now + delay + limit);
                let attempts = call.retry.attempts();
                self.ledger.may_run_again(task, attempts);
                self.goes_on(task);
                if delay.is_zero() {
                    self.enqueue_if_waiting(task);
                } else {
                    self.order += 1;
                    self.delayed.insert((now + delay, self.order), task);
                }
            }
            Verdict::Fail => self.resolve(task, outcome),
            Verdict::Poisoned => self.resolve(task, Outcome::Poisoned),
        }
    }

    pub(super) fn resolve(&mut self, task: Task, outcome: Outcome) {
        let call = &mut self.calls[task];
        match call.place {
            Place::Abandoned => return,
            Place::Done => {
                self.ledger.violated(format!("call {task} was resolved twice: {:?}, {outcome:?}", call.resolved))
            }
            _ => {}
        }
        call.place = Place::Done;
        call.resolved = Some((self.now, outcome));
        self.ledger.note(self.now, "resolve", task as u64, outcome as u64);
        self.ledger.resolved(outcome);
    }
}
