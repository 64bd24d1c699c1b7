//! The life of a set of equal workers: how many there should be, which are replaced, and when to give up.
//!
//! ```text
//!            scale, demand           unspawn                    shutdown
//!   Idle ─────────────────▶ Serving ─────────▶ Unspawned    any ─────────▶ Closing ──▶ Closed
//!                            │   ▲ revive, scale   │                            none left
//!               budget spent ▼   │ ◀───────────────┘ scale
//!                            GaveUp
//! ```

mod swap;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::budget::{Budget, Death, Deaths, Verdict};
use super::cause::ExitCause;
use super::event::Event;
use super::id::{Incarnation, WorkerId};
use super::recycle::{Reason, Swapped};
use super::time::Time;
use super::unit::{self, Times, Unit};
use swap::Swap;

/// What a pool is asked, and what it hears of its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Have `workers` workers. Surplus ones drain: first those that do not serve yet, then those that stand first in `idlest`.
    Scale {
        /// How many.
        workers: u32,
        /// The workers, idlest first.
        idlest: Vec<WorkerId>,
    },
    /// Have one more.
    SpawnOne,
    /// A query came to a pool that was never spawned.
    Demand,
    /// Drain this one, and have one less.
    UnspawnOne {
        /// Which one.
        worker: WorkerId,
        /// When it is killed, if it has not left by then.
        deadline: Option<Time>,
    },
    /// The same for this incarnation of a worker; nothing where it has ended.
    Release {
        /// Which one.
        worker: WorkerId,
        /// Which life of it.
        incarnation: Incarnation,
        /// When it is killed, if it has not left by then.
        deadline: Option<Time>,
    },
    /// Drain all, and have none until somebody scales.
    Unspawn {
        /// When what is left is killed.
        deadline: Option<Time>,
    },
    /// Replace all workers by new ones. The old ones drain as the new ones get ready.
    Respawn {
        /// How many new ones; none means as many as there are.
        workers: Option<u32>,
        /// How long the old ones may drain.
        drain: Option<Duration>,
    },
    /// Replace this one, which is well, by a new one that serves before it drains. One at a time: what comes of it is an [`Effect::Recycled`].
    Recycle {
        /// Which one.
        worker: WorkerId,
        /// Why.
        reason: Reason,
        /// How long it may drain.
        drain: Option<Duration>,
    },
    /// Drain all until the deadline, for good.
    Shutdown {
        /// When what is left is killed.
        deadline: Option<Time>,
    },
    /// Kill all, for good.
    Kill,
    /// Begin anew after the pool gave up.
    Revive,
    /// Kill this worker, for a reason that counts against nothing.
    KillWorker(WorkerId, ExitCause),
    /// News of a worker's unit, with what it had aboard.
    Unit(WorkerId, unit::Input, Aboard),
    /// A worker finished the first call of its life.
    Progress(WorkerId, Incarnation),
}

/// What a worker had at the moment of the news.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aboard {
    /// Its process.
    pub pid: Option<u32>,
    /// Calls that it had not answered.
    pub calls: usize,
    /// The last notice that it sent.
    pub last_notice: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// For the unit of this worker.
    Unit(WorkerId, unit::Effect),
    /// Something happened.
    Report(Event),
    /// The pool's phase changed.
    Phase(Phase),
    /// The worker is gone for good, and can be forgotten.
    Forget(WorkerId),
    /// The replacement of this worker came to its end.
    Recycled(WorkerId, Swapped),
}

/// What a pool looks like to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was never spawned: the first query starts a worker.
    Idle,
    /// It serves, now or soon.
    Serving,
    /// All workers were sent away.
    Unspawned,
    /// The restart budget is spent.
    GaveUp(ExitCause),
    /// It is being shut down.
    Closing,
    /// All workers are gone, for good.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Counts towards the size of the pool, and is replaced.
    Active { generation: u32 },
    /// Starts, to take the place of another one that serves.
    Successor,
    /// Finishes what it has, and another one has its place: whoever changes the size of the pool does not wait for it.
    Replaced,
    /// Finishes what it has.
    Leaving,
}

#[derive(Clone, Debug)]
struct Member {
    unit: Unit,
    duty: Duty,
    finished_a_call: bool,
    /// Its process was asked for, and is not down.
    is_up: bool,
}

/// What the registry shows of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Workers that serve or are about to.
    pub active: usize,
    /// Workers that finish what they have.
    pub releasing: usize,
    /// Workers that died and wait for their next start.
    pub crashed: usize,
}

/// A set of equal workers. See the [module](self).
#[derive(Clone, Debug)]
pub struct Pool {
    times: Times,
    members: BTreeMap<WorkerId, Member>,
    next: u32,
    phase: Phase,
    generation: u32,
    /// How long the workers of earlier generations may drain.
    respawn_drain: Option<Duration>,
    swap: Option<Swap>,
    deaths: Deaths,
    crashes: u64,
    last_crash: Option<Time>,
    effects: VecDeque<Effect>,
}

impl Pool {
    /// A pool without workers. `seed` is where the jitter of its restarts comes from.
    pub fn new(times: Times, budget: Budget, seed: u64) -> Self {
        Pool {
            times,
            members: BTreeMap::new(),
            next: 1,
            phase: Phase::Idle,
            generation: 0,
            respawn_drain: None,
            swap: None,
            deaths: Deaths::new(budget, seed),
            crashes: 0,
            last_crash: None,
            effects: VecDeque::new(),
        }
    }

    /// What it looks like to a query.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// How many workers there are of each sort.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for member in self.members.values() {
            match (member.duty, member.unit.phase()) {
                (Duty::Leaving | Duty::Replaced, _) => counts.releasing += 1,
                (_, unit::Phase::Backoff) => counts.crashed += 1,
                _ => counts.active += 1,
            }
        }
        counts
    }

    /// How many workers there should be: those that serve, start or wait for their next start. Those count once that are being replaced.
    pub fn size(&self) -> u32 {
        self.current().count() as u32
    }

    /// How many workers crashed in the life of the pool.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }

    /// When the last one did.
    pub fn last_crash(&self) -> Option<Time> {
        self.last_crash
    }

    /// Whether nothing is under way: every worker that should serve does, and none is leaving. A replacement of one that is well is no change of the pool.
    pub fn settled(&self) -> bool {
        self.members.values().all(|member| match member.duty {
            Duty::Active { generation } => generation == self.generation && member.unit.phase() == unit::Phase::Ready,
            Duty::Successor | Duty::Replaced => true,
            Duty::Leaving => false,
        })
    }

    /// How a worker is doing, if it exists.
    pub fn worker(&self, worker: WorkerId) -> Option<unit::Phase> {
        self.members.get(&worker).map(|member| member.unit.phase())
    }

    /// Takes an input. [`Pool::poll_effect`] then says what to do.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Scale { workers, idlest } => self.scale(now, workers, &idlest),
            Input::SpawnOne => {
                if self.open_for_workers() {
                    self.spawn(now);
                }
            }
            Input::Demand => {
                if self.phase == Phase::Idle {
                    self.scale(now, 1, &[]);
                }
            }
            Input::UnspawnOne { worker, deadline } => self.unspawn_one(now, worker, deadline),
            Input::Release { worker, incarnation, deadline } => {
                if self.is_alive(worker, incarnation) {
                    self.unspawn_one(now, worker, deadline);
                }
            }
            Input::Unspawn { deadline } => {
                if self.open_for_workers() {
                    self.release_all(now, deadline);
                    self.enter(Phase::Unspawned);
                }
            }
            Input::Respawn { workers, drain } => self.respawn(now, workers, drain),
            Input::Recycle { worker, reason, drain } => self.recycle(now, worker, reason, drain),
            Input::Shutdown { deadline } => {
                if self.phase != Phase::Closed {
                    self.enter(Phase::Closing);
                    self.release_all(now, deadline);
                }
            }
            Input::Kill => {
                if self.phase != Phase::Closed {
                    self.enter(Phase::Closing);
                    for worker in self.ids() {
                        if !self.forget_if_down(worker) {
                            self.feed(now, worker, unit::Input::Kill(ExitCause::Requested));
                        }
                    }
                    self.each(|member| member.duty = Duty::Leaving);
                }
            }
            Input::Revive => {
                self.deaths.reset();
                if let Phase::GaveUp(_) = self.phase {
                    self.enter(Phase::Serving);
                    for worker in self.ids() {
                        self.feed(now, worker, unit::Input::Start { after: Duration::ZERO });
                    }
                }
            }
            Input::KillWorker(worker, cause) => self.feed(now, worker, unit::Input::Kill(cause)),
            Input::Unit(worker, input, aboard) => self.unit(now, worker, input, aboard),
            Input::Progress(worker, incarnation) => {
                if let Some(member) = self.members.get_mut(&worker)
                    && member.unit.incarnation() == incarnation
                {
                    member.finished_a_call = true;
                    self.deaths.progress();
                }
            }
        }
        self.settle(now);
    }

    /// When [`Pool::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.members.values().filter_map(|member| member.unit.poll_timeout()).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        for worker in self.ids() {
            if let Some(member) = self.members.get_mut(&worker) {
                member.unit.handle_timeout(now);
                self.collect(now, worker, Aboard::default());
            }
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn open_for_workers(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Serving | Phase::Unspawned)
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.members.keys().copied().collect()
    }

    fn each(&mut self, change: impl FnMut(&mut Member)) {
        self.members.values_mut().for_each(change);
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase.clone();
            self.effects.push_back(Effect::Phase(phase));
        }
    }

    /// Those of the newest generation: as many as there should be.
    fn current(&self) -> impl DoubleEndedIterator<Item = (WorkerId, &Member)> {
        let is_current =
            |member: &Member| matches!(member.duty, Duty::Active { generation } if generation == self.generation);
        self.members.iter().filter(move |(_, member)| is_current(member)).map(|(worker, member)| (*worker, member))
    }

    /// Those that serve until the newest generation does.
    fn earlier(&self) -> impl Iterator<Item = WorkerId> {
        let is_earlier =
            |member: &Member| matches!(member.duty, Duty::Active { generation } if generation < self.generation);
        self.members.iter().filter(move |(_, member)| is_earlier(member)).map(|(worker, _)| *worker)
    }

    fn spawn(&mut self, now: Time) {
        self.enter(Phase::Serving);
        self.start_new(now, Duty::Active { generation: self.generation });
    }

    fn start_new(&mut self, now: Time, duty: Duty) -> WorkerId {
        let worker = WorkerId(self.next);
        self.next += 1;
        self.members.insert(worker, Member { unit: Unit::new(self.times), duty, finished_a_call: false, is_up: false });
        self.feed(now, worker, unit::Input::Start { after: Duration::ZERO });
        worker
    }

    fn scale(&mut self, now: Time, workers: u32, idlest: &[WorkerId]) {
        if !self.open_for_workers() {
            return;
        }
        let active: Vec<_> = self.current().map(|(worker, _)| worker).collect();
        let wanted = workers as usize;
        if wanted == 0 {
            self.release_all(now, None);
            self.enter(Phase::Unspawned);
            return;
        }
        self.enter(Phase::Serving);
        for _ in active.len()..wanted {
            self.spawn(now);
        }
        // Those that do not serve yet have nothing to do at all, and nobody would miss them.
        let serves = |worker: &&WorkerId| self.worker(**worker) == Some(unit::Phase::Ready);
        let absent = active.iter().rev().filter(|worker| !serves(worker));
        let known = idlest.iter().filter(|worker| active.contains(worker) && serves(worker));
        let rest = active.iter().rev().filter(|worker| !idlest.contains(worker) && serves(worker));
        let surplus = absent.chain(known).chain(rest).copied().take(active.len().saturating_sub(wanted));
        let surplus: Vec<_> = surplus.collect();
        for worker in surplus {
            self.release(now, worker, None);
        }
    }

    fn respawn(&mut self, now: Time, workers: Option<u32>, drain: Option<Duration>) {
        if !self.open_for_workers() {
            return;
        }
        let count = workers.unwrap_or_else(|| self.current().count() as u32);
        if count == 0 {
            return;
        }
        self.generation += 1;
        self.respawn_drain = drain;
        // Whoever waits for the end of this waits for those as well.
        if let Some(drain) = drain {
            for worker in self.ids() {
                if self.members.get(&worker).is_some_and(|member| member.duty == Duty::Leaving) {
                    self.feed(now, worker, unit::Input::Drain { deadline: Some(now + drain) });
                }
            }
        }
        for _ in 0..count {
            self.spawn(now);
        }
    }

    /// Has one less. A worker that is being replaced takes its replacement with it.
    fn unspawn_one(&mut self, now: Time, worker: WorkerId, deadline: Option<Time>) {
        let earlier = self.earlier().count();
        if self.earlier().any(|one| one == worker) && self.current().count() >= earlier {
            let is_ready = |member: &Member| member.unit.phase() == unit::Phase::Ready;
            let replacement = self.current().rev().min_by_key(|(_, member)| is_ready(member)).map(|(worker, _)| worker);
            if let Some(replacement) = replacement {
                self.release(now, replacement, deadline);
            }
        }
        self.release(now, worker, deadline);
    }

    /// Whether this incarnation of a worker has begun and not ended.
    fn is_alive(&self, worker: WorkerId, incarnation: Incarnation) -> bool {
        self.members.get(&worker).is_some_and(|member| {
            let is_down = matches!(member.unit.phase(), unit::Phase::Idle | unit::Phase::Backoff | unit::Phase::Down);
            member.unit.incarnation() == incarnation && !is_down
        })
    }

    fn release_all(&mut self, now: Time, deadline: Option<Time>) {
        for worker in self.ids() {
            self.release(now, worker, deadline);
        }
    }

    fn release(&mut self, now: Time, worker: WorkerId, deadline: Option<Time>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        let incarnation = member.unit.incarnation();
        let was_ready = member.unit.phase() == unit::Phase::Ready;
        member.duty = Duty::Leaving;
        if self.forget_if_down(worker) {
            return;
        }
        if was_ready {
            self.effects.push_back(Effect::Report(Event::Draining { worker, incarnation }));
        }
        self.feed(now, worker, unit::Input::Drain { deadline });
    }

    /// A pool that gave up has workers that are down already: nothing more will be heard of them.
    fn forget_if_down(&mut self, worker: WorkerId) -> bool {
        let is_down = self.worker(worker) == Some(unit::Phase::Down);
        if is_down {
            self.members.remove(&worker);
            self.effects.push_back(Effect::Forget(worker));
        }
        is_down
    }

    fn feed(&mut self, now: Time, worker: WorkerId, input: unit::Input) {
        self.unit(now, worker, input, Aboard::default());
    }

    fn unit(&mut self, now: Time, worker: WorkerId, input: unit::Input, aboard: Aboard) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        let before = member.unit.phase();
        let (is_ready, is_spawned) = (matches!(input, unit::Input::Ready(_)), matches!(input, unit::Input::Spawned(_)));
        member.unit.handle(now, input);
        let incarnation = member.unit.incarnation();
        let (after, duty) = (member.unit.phase(), member.duty);
        let pid = aboard.pid.unwrap_or(0);
        if is_spawned && before == unit::Phase::Starting {
            self.effects.push_back(Effect::Report(Event::Spawned { worker, incarnation, pid }));
        }
        if is_ready && before == unit::Phase::Starting && after == unit::Phase::Ready {
            let event = match incarnation {
                Incarnation(1) => Event::Ready { worker, incarnation, pid },
                _ => Event::Replaced { worker, incarnation, pid },
            };
            self.effects.push_back(Effect::Report(event));
            match duty {
                Duty::Active { generation } if generation == self.generation => self.retire_earlier(now, 1),
                Duty::Successor => self.succeed(now, worker),
                _ => {}
            }
        }
        self.collect(now, worker, aboard);
    }

    /// A new worker serves: one of an earlier generation may go.
    fn retire_earlier(&mut self, now: Time, at_most: usize) {
        let deadline = self.respawn_drain.map(|drain| now + drain);
        for worker in self.earlier().take(at_most).collect::<Vec<_>>() {
            self.release(now, worker, deadline);
        }
    }

    /// Passes on the effects of a unit, and decides what follows where it went down.
    fn collect(&mut self, now: Time, worker: WorkerId, aboard: Aboard) {
        while let Some(effect) = self.members.get_mut(&worker).and_then(|member| member.unit.poll_effect()) {
            match effect {
                unit::Effect::Down { incarnation, cause, was_ready } => {
                    // A start that was still to come is called off without anybody having to know.
                    let was_up = self.members.get_mut(&worker).is_some_and(|member| std::mem::take(&mut member.is_up));
                    if was_up {
                        let down = unit::Effect::Down { incarnation, cause: cause.clone(), was_ready };
                        self.effects.push_back(Effect::Unit(worker, down));
                    }
                    self.down(now, worker, cause, was_ready, &aboard);
                }
                unit::Effect::Unkillable(incarnation) => {
                    self.effects.push_back(Effect::Report(Event::Unkillable { worker, pid: aboard.pid }));
                    self.effects.push_back(Effect::Unit(worker, unit::Effect::Unkillable(incarnation)));
                }
                effect => {
                    if let (unit::Effect::Spawn(_), Some(member)) = (&effect, self.members.get_mut(&worker)) {
                        member.is_up = true;
                    }
                    self.effects.push_back(Effect::Unit(worker, effect));
                }
            }
        }
    }

    fn down(&mut self, now: Time, worker: WorkerId, cause: ExitCause, was_ready: bool, aboard: &Aboard) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        let incarnation = member.unit.incarnation();
        let death = match () {
            () if cause.is_ordered() => Death::Ordered,
            () if !was_ready => Death::Starting,
            () if aboard.calls == 0 => Death::Idle,
            () if !member.finished_a_call => Death::FirstCall,
            () => Death::Aboard,
        };
        member.finished_a_call = false;
        let is_successor = member.duty == Duty::Successor;
        let is_member = matches!(member.duty, Duty::Active { .. });
        let is_replaced = is_member && self.phase == Phase::Serving;
        let verdict = is_replaced.then(|| self.deaths.record(now, death));
        if cause != ExitCause::Requested {
            self.crashes += 1;
            self.last_crash = Some(now);
            self.effects.push_back(Effect::Report(Event::Crashed {
                worker,
                incarnation,
                pid: aboard.pid,
                cause: cause.clone(),
                load: aboard.calls,
                last_notice: aboard.last_notice.clone(),
                will_restart: matches!(verdict, Some(Verdict::Restart(_))),
            }));
        }
        if is_successor {
            self.successor_down(worker, cause != ExitCause::Requested);
        }
        match verdict {
            Some(Verdict::Restart(after)) => self.feed(now, worker, unit::Input::Start { after }),
            Some(Verdict::GiveUp) => {
                // The one that was too many is not among those that the budget allowed.
                let crashes = self.deaths.count() + 1;
                // Whoever hears of it finds that it is so.
                self.enter(Phase::GaveUp(cause.clone()));
                self.effects.push_back(Effect::Report(Event::GaveUp { crashes, cause }));
                self.stop_starting(now);
            }
            // A pool that gave up keeps its members, so that `revive` knows how many there were.
            None if is_member && matches!(self.phase, Phase::GaveUp(_)) => {}
            None => {
                self.members.remove(&worker);
                if cause == ExitCause::Requested {
                    self.effects.push_back(Effect::Report(Event::Gone { worker, incarnation }));
                }
                self.effects.push_back(Effect::Forget(worker));
            }
        }
    }

    /// Nothing is started any more. Workers that serve finish what they have.
    fn stop_starting(&mut self, now: Time) {
        for worker in self.ids() {
            if let Some(unit::Phase::Backoff | unit::Phase::Starting) = self.worker(worker) {
                self.feed(now, worker, unit::Input::Kill(ExitCause::Requested));
            }
        }
    }

    fn settle(&mut self, now: Time) {
        self.settle_swap(now);
        // Every new one serves, however that came: the earlier ones may go.
        if self.current().all(|(_, member)| member.unit.phase() == unit::Phase::Ready) {
            self.retire_earlier(now, usize::MAX);
        }
        if self.phase == Phase::Serving
            && !self.members.values().any(|member| matches!(member.duty, Duty::Active { .. }))
        {
            self.enter(Phase::Unspawned);
        }
        if self.phase == Phase::Closing && self.members.is_empty() {
            self.enter(Phase::Closed);
        }
    }
}

#[cfg(test)]
mod tests;
