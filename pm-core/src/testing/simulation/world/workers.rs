//! What becomes of the workers, and of the frames on their links.

use std::time::Duration;

use super::{Happening, Link, Live, Outcome, Place, World};
use crate::machine::cause::ExitCause;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::{self, Aboard, Phase};
use crate::machine::retry::Failure;
use crate::machine::session::{Fate, Word};
use crate::machine::unit;
use crate::testing::simulation::process::{News, Order, Process, Task};

impl World {
    pub(super) fn link(&mut self, worker: WorkerId) -> Option<&mut Link> {
        self.lives.get_mut(&worker)?.link.as_mut()
    }

    pub(super) fn link_ended(&mut self, worker: WorkerId) {
        self.links.retain(|link| *link != worker);
        if let Some(link) = self.link(worker) {
            link.ended = true;
        }
    }

    pub(super) fn see_drained(&mut self, worker: WorkerId) {
        let Some(live) = self.lives.get_mut(&worker) else { return };
        let incarnation = live.incarnation;
        let Some(link) = &mut live.link else { return };
        if link.draining && !link.told_drained && link.session.unanswered() == 0 {
            link.told_drained = true;
            self.unit(worker, unit::Input::Drained(incarnation, unit::Farewell::Link), Aboard::default());
        }
    }

    pub(super) fn unit(&mut self, worker: WorkerId, input: unit::Input, aboard: Aboard) {
        self.input(pool::Input::Unit(worker, input, aboard));
    }

    pub(super) fn carry_out(&mut self) {
        while let Some(effect) = self.pool.poll_effect() {
            match effect {
                pool::Effect::Report(_) | pool::Effect::Recycled(..) => {}
                pool::Effect::Phase(phase) => self.enter(phase),
                pool::Effect::Forget(worker) => drop(self.lives.remove(&worker)),
                pool::Effect::Unit(worker, effect) => self.do_for_unit(worker, effect),
            }
        }
    }

    pub(super) fn do_for_unit(&mut self, worker: WorkerId, effect: unit::Effect) {
        match effect {
            unit::Effect::Spawn(incarnation) => self.spawn(worker, incarnation),
            unit::Effect::SendDrain(_) => {
                self.links.retain(|link| *link != worker);
                if let Some(link) = self.link(worker) {
                    link.draining = true;
                }
                self.order_frame(worker, Order::Drain);
                self.see_drained(worker);
            }
            unit::Effect::CloseLink(_) => {
                self.link_ended(worker);
                self.order_frame(worker, Order::End);
            }
            unit::Effect::Terminate(_) => {
                let process = self.lives.get(&worker).map(|live| live.process);
                if let Some(process) = process.filter(|process| !self.processes[*process].ignores_term) {
                    let delay = self.some_delay();
                    self.plan(delay, Happening::Die(process));
                }
            }
            unit::Effect::Kill(_) => {
                self.links.retain(|link| *link != worker);
                if let Some(process) = self.lives.get(&worker).map(|live| live.process) {
                    let delay = self.some_delay();
                    self.plan(delay, Happening::Die(process));
                }
            }
            unit::Effect::Unkillable(_) => self.ledger.violated(format!("worker {worker} was taken for unkillable")),
            unit::Effect::Down { cause, was_ready, .. } => self.down(worker, &cause, was_ready),
        }
    }

    pub(super) fn spawn(&mut self, worker: WorkerId, incarnation: Incarnation) {
        let at = self.processes.len();
        let mut process = Process::new(worker, incarnation, self.settings.concurrency as usize);
        process.ignores_term = self.random.below(1000) < self.settings.stubborn;
        self.processes.push(process);
        if let Some(before) = self.lives.insert(worker, Live { incarnation, process: at, link: None, last_load: 0 })
            && self.processes[before.process].is_alive
        {
            self.ledger
                .violated(format!("incarnation {incarnation} of worker {worker} begins while the one before lives"));
        }
        self.ledger.note(self.now, "spawn", u64::from(worker.0), u64::from(incarnation.0));
        let is_bad = self.random.below(1000) < self.settings.bad_starts;
        match (is_bad, self.random.below(4)) {
            (true, 0) => {
                self.processes[at].is_alive = false;
                self.news(at, News::NotSpawned);
            }
            (true, 1) => {
                // It never says READY.
                self.news(at, News::Spawned);
            }
            (true, _) => {
                self.news(at, News::Spawned);
                self.plan(Duration::from_millis(5), Happening::Die(at));
            }
            (false, _) => {
                self.news(at, News::Spawned);
                self.processes[at].last_news =
                    self.processes[at].last_news + Duration::from_micros(200 + self.random.below(3000));
                self.news(at, News::Ready);
            }
        }
    }

    pub(super) fn down(&mut self, worker: WorkerId, cause: &ExitCause, was_ready: bool) {
        self.links.retain(|link| *link != worker);
        let Some(live) = self.lives.get_mut(&worker) else { return };
        let load = std::mem::take(&mut live.last_load);
        let process = live.process;
        let link = live.link.take();
        // A worker that should serve is kept; one that was leaving is forgotten.
        if self.phase == Phase::Serving && self.pool.worker(worker).is_some() {
            let had_answered = link.as_ref().is_some_and(|link| link.answered_any);
            let expected = self.ledger.died(self.now, cause, was_ready, load, had_answered);
            let found = matches!(self.pool.phase(), Phase::GaveUp(_));
            if expected != found {
                self.ledger.violated(format!("{cause}: the budget says give up: {expected}, the pool: {found}"));
            }
        }
        if self.processes[process].is_alive && was_ready {
            self.ledger.violated(format!("worker {worker} was taken for dead and lives"));
        }
        let Some(mut link) = link else { return };
        let mut open = Vec::new();
        let word = match () {
            () if self.settings.leaves_word => Word::Begun(self.processes[process].begun),
            () if link.is_doubtful => Word::Nothing,
            () => Word::Answers,
        };
        link.session.lost(word, &mut open);
        // Each goes in front of those before it, so the youngest goes first.
        for (id, fate) in open.into_iter().rev() {
            let Some((task, _)) = link.calls.remove(&id) else { continue };
            match fate {
                Fate::Unstarted => {
                    self.goes_on(task);
                    self.enqueue_if_waiting(task);
                }
                Fate::Started => self.failed(task, Failure::of_death(cause), Outcome::WorkerLost),
            }
        }
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        let outcome = match &self.phase {
            Phase::Idle | Phase::Serving => return,
            Phase::Unspawned => Outcome::NoWorkers,
            Phase::GaveUp(_) => Outcome::GaveUp,
            Phase::Closing | Phase::Closed => Outcome::ShuttingDown,
        };
        let waiting: Vec<_> = self.queue.drain(..).collect();
        self.timed.clear();
        let delayed = std::mem::take(&mut self.delayed);
        for task in waiting.into_iter().chain(delayed.into_values()) {
            self.resolve_if_waiting(task, outcome);
        }
    }

    pub(super) fn resolve_if_waiting(&mut self, task: Task, outcome: Outcome) {
        if self.calls[task].place == Place::Waiting {
            self.resolve(task, outcome);
        }
    }

    // The links: frames keep their order.

    pub(super) fn order_frame(&mut self, worker: WorkerId, order: Order) {
        let delay = self.some_delay();
        let Some(live) = self.lives.get(&worker) else { return };
        let at = live.process;
        let process = &mut self.processes[at];
        process.last_order = (self.now + delay).max(process.last_order);
        process.orders.push_back(order);
        let due = process.last_order;
        self.plan_at(due, Happening::Order(at));
    }

    pub(super) fn news(&mut self, at: usize, news: News) {
        if matches!(news, News::Answer(..) | News::Violation) && !self.processes[at].is_linked {
            return;
        }
        let delay = self.some_delay();
        let process = &mut self.processes[at];
        process.last_news = (self.now + delay).max(process.last_news);
        process.news.push_back(news);
        let due = process.last_news;
        self.plan_at(due, Happening::News(at));
    }

    pub(super) fn some_delay(&mut self) -> Duration {
        let (least, most) = self.settings.hop;
        if self.settings.slow_hops > 0 && self.random.below(1000) < self.settings.slow_hops {
            return Duration::from_micros(500 + self.random.below(8000));
        }
        least + Duration::from_nanos(self.random.below((most - least).as_nanos() as u64 + 1))
    }
}
