//! The task of a pool: feeds the [machine](crate::machine::pool), and carries out what it decides.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::{AnyPool, Command, Entry, Follower, LAST_WRITE, Pool, WorkerInfo, lock};
use crate::driver::call::TimeoutFrom;
use crate::driver::clock;
use crate::driver::forward;
use crate::driver::link::{LinkShared, Yard};
use crate::driver::start::Starter;
use crate::driver::stderr::Tail;
use crate::driver::worker::{News, Order, Plan, Task, TxOf};
use crate::face::error::{QueryError, StartError};
use crate::machine::cause::ExitCause;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::{self as machine, Input, Phase};
use crate::machine::recycle::{self, Recycling};
use crate::machine::retry::{Failure, Verdict};
use crate::machine::scaling::Scaling;
use crate::machine::spec::Stderr;
use crate::machine::time::Time;
use crate::machine::unit;
use crate::transport::LinkTx;

/// The live part of one worker, as the task knows it.
struct Live<Tx> {
    incarnation: Incarnation,
    pid: Option<u32>,
    orders: mpsc::Sender<Order>,
    tail: Tail,
    link: Option<Arc<LinkShared<Tx>>>,
    task: AbortHandle,
}

struct Waiting {
    answer: oneshot::Sender<Result<(), StartError>>,
    what: Wait,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// That nothing is under way any more. The first failure of a worker is the answer.
    Start,
    /// That nothing is under way any more.
    Settled,
    /// That all workers are replaced that served when this was asked for.
    Recycled,
}

/// The task of a pool.
pub(super) struct PoolTask<S: Starter> {
    pub(super) machine: machine::Pool,
    /// Says how many workers there should be; none where only the program does.
    pub(super) scaling: Option<Scaling>,
    /// Says who is replaced while it is well.
    pub(super) recycling: Recycling,
    pub(super) pool: Arc<Pool<TxOf<S>>>,
    plan: Arc<Plan<S>>,
    lives: BTreeMap<WorkerId, Live<TxOf<S>>>,
    waiting: Vec<Waiting>,
    closed: Vec<oneshot::Sender<()>>,
    pub(super) last_failure: Option<StartError>,
    /// The deadline of a shutdown that waits until the queue is served.
    shutdown: Option<Option<Time>>,
}

impl<S: Starter> PoolTask<S> {
    pub(super) fn new(
        machine: machine::Pool,
        scaling: Option<Scaling>,
        recycling: Recycling,
        pool: Arc<Pool<TxOf<S>>>,
        plan: Arc<Plan<S>>,
    ) -> Self {
        PoolTask {
            machine,
            scaling,
            recycling,
            pool,
            plan,
            lives: BTreeMap::new(),
            waiting: Vec::new(),
            closed: Vec::new(),
            last_failure: None,
            shutdown: None,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<News<TxOf<S>>>, mut commands: mpsc::Receiver<Command>) {
        let guard = Leftovers(Arc::downgrade(&self.pool));
        loop {
            self.carry_out();
            while self.tend_wear(clock::now()) {
                self.carry_out();
            }
            if *self.machine.phase() == Phase::Closed && self.lives.is_empty() {
                break;
            }
            let due = Time::earliest(self.machine.poll_timeout(), self.next_due());
            let due = Time::earliest(due, Time::earliest(self.next_look(), self.recycling.poll_timeout()));
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(clock::instant(due)).await,
                    None => std::future::pending().await,
                }
            };
            let pool = self.pool.clone();
            // Commands come first: that a worker finished a call is one, and is known before its death then.
            tokio::select! {
                biased;
                command = commands.recv() => if let Some(command) = command { self.obey(command) },
                news = inbox.recv() => if let Some(news) = news { self.hear(news) },
                () = pool.shared.wake.notified() => {}
                () = sleep => {}
            }
            let now = clock::now();
            if self.machine.poll_timeout().is_some_and(|due| due <= now) {
                self.machine.handle_timeout(now);
            }
            self.tend_backlog();
            self.tend_size(now);
        }
        if self.plan.starter.stderr() == Stderr::Forward {
            forward::flush(LAST_WRITE).await;
        }
        self.plan.starter.close();
        // The registry knows no pool that takes no commands, and whoever waits for the end may look there.
        commands.close();
        while let Some(command) = commands.recv().await {
            self.obey(command);
            self.carry_out();
        }
        for closed in self.closed.drain(..) {
            let _ = closed.send(());
        }
        drop(guard);
    }

    pub(super) fn input(&mut self, input: Input) {
        self.machine.handle(clock::now(), input);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Input(input) => self.input(self.with_loads(input)),
            Command::Settle(input, answer) => {
                self.waiting.push(Waiting { answer, what: Wait::Settled });
                self.input(self.with_loads(input));
            }
            Command::Start(input, answer) => {
                self.waiting.push(Waiting { answer, what: Wait::Start });
                self.input(self.with_loads(input));
            }
            Command::Recycle(answer) => {
                self.waiting.push(Waiting { answer, what: Wait::Recycled });
                self.recycling.handle(clock::now(), recycle::Input::All);
            }
            Command::Closed(answer) => {
                if *self.machine.phase() == Phase::Closed && self.lives.is_empty() {
                    let _ = answer.send(());
                } else {
                    self.closed.push(answer);
                }
            }
            Command::Shutdown(deadline) => {
                self.pool.shared.refusing.store(true, Ordering::SeqCst);
                lock(&self.pool.shared.backlog).closing = true;
                self.shutdown = Some(Time::earliest(self.shutdown.flatten(), deadline));
            }
            Command::Chaos(random) => {
                let links = self.pool.links.load();
                if !links.is_empty() {
                    let link = &links[(random % links.len() as u64) as usize];
                    let input = Input::KillWorker(link.worker, ExitCause::Chaos);
                    self.machine.handle(clock::now(), input);
                }
            }
        }
    }

    /// A scale down sends the idlest workers away, and only the links know which those are.
    pub(super) fn with_loads(&self, input: Input) -> Input {
        match input {
            Input::Scale { workers, idlest } if idlest.is_empty() => {
                let mut loads: Vec<_> = self.pool.workers().into_iter().map(|w| (w.load, Reverse(w.id))).collect();
                loads.sort_unstable();
                Input::Scale { workers, idlest: loads.into_iter().map(|(_, Reverse(id))| id).collect() }
            }
            input => input,
        }
    }

    fn hear(&mut self, news: News<TxOf<S>>) {
        match news {
            News::Linked(link) => {
                if let Some(live) = self.lives.get_mut(&link.worker)
                    && live.incarnation == link.incarnation
                {
                    live.link = Some(link);
                }
            }
            News::StartFailed(error) => self.start_failed(Wait::Start, error),
            News::Event(event) => self.pool.shared.report(event),
            News::Unit(worker, input, aboard) => {
                if let Some(live) = self.lives.get_mut(&worker) {
                    live.pid = live.pid.or(aboard.pid);
                }
                let became_ready = matches!(input, unit::Input::Ready(_));
                self.input(Input::Unit(worker, input, aboard));
                if became_ready && self.machine.worker(worker) == Some(unit::Phase::Ready) {
                    self.open(worker);
                }
            }
        }
    }

    /// A worker could not be started: that is the answer of those who wait for this.
    pub(super) fn start_failed(&mut self, what: Wait, error: StartError) {
        self.last_failure = Some(error.clone());
        for waiting in self.waiting.extract_if(.., |waiting| waiting.what == what) {
            drop(waiting.answer.send(Err(error.clone())));
        }
    }

    /// A worker serves: its link draws from the queue.
    fn open(&mut self, worker: WorkerId) {
        let Some(link) = self.lives.get(&worker).and_then(|live| live.link.clone()) else { return };
        self.pool.links.rcu(|links| links.iter().cloned().chain([link.clone()]).collect::<Vec<_>>());
        self.recycling.handle(clock::now(), recycle::Input::Serves(worker));
        self.tell(|follower| follower.serves(&(self.pool.clone() as Arc<dyn AnyPool>), &WorkerInfo::of(&link)));
        self.pool.dispatch();
    }

    /// Tells the one who follows the workers, if there is one.
    fn tell(&self, what: impl FnOnce(&dyn Follower)) {
        if let Some(follower) = &self.pool.shared.hooks.follower {
            what(&**follower);
        }
    }

    /// A link serves the queue no more.
    fn shut(&mut self, worker: WorkerId, incarnation: Incarnation, keep: bool) {
        let is_it = |link: &Arc<LinkShared<TxOf<S>>>| link.worker == worker && link.incarnation == incarnation;
        self.recycling.handle(clock::now(), recycle::Input::Left(worker));
        // Whoever misses it among the links waits for this lock, and finds it here.
        let mut leaving = lock(&self.pool.leaving);
        let before = self.pool.links.load_full();
        self.pool.links.rcu(|links| links.iter().filter(|link| !is_it(link)).cloned().collect::<Vec<_>>());
        if !keep {
            leaving.retain(|link| !is_it(link));
        } else if !leaving.iter().any(is_it) {
            leaving.extend(before.iter().find(|link| is_it(link)).cloned());
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                machine::Effect::Report(event) => self.pool.shared.report(event),
                machine::Effect::Phase(phase) => self.enter(phase),
                machine::Effect::Forget(worker) => drop(self.lives.remove(&worker)),
                machine::Effect::Unit(worker, effect) => self.unit(worker, effect),
                machine::Effect::Recycled(worker, swapped) => self.swapped(worker, swapped),
            }
        }
        let mut state = lock(&self.pool.shared.state);
        state.counts = self.machine.counts();
        state.size = self.machine.size();
        state.crashes = self.machine.crashes();
        state.last_crash = self.machine.last_crash();
        drop(state);
        self.answer_waiting();
    }

    fn unit(&mut self, worker: WorkerId, effect: unit::Effect) {
        let order = match effect {
            unit::Effect::Spawn(incarnation) => return self.spawn(worker, incarnation),
            unit::Effect::Down { incarnation, cause, was_ready } => {
                return self.down(worker, incarnation, cause, was_ready);
            }
            unit::Effect::Unkillable(_) => return,
            unit::Effect::SendDrain(incarnation) => {
                self.shut(worker, incarnation, true);
                self.tell(|follower| {
                    // The DRAIN frame goes before the half close that may follow.
                    self.lives.get(&worker).and_then(|live| live.link.as_ref()).inspect(|link| link.drain());
                    follower.leaves(worker, incarnation);
                });
                Order::Drain
            }
            unit::Effect::CloseLink(_) => Order::CloseLink,
            unit::Effect::Terminate(_) => Order::Terminate,
            unit::Effect::Kill(incarnation) => {
                self.shut(worker, incarnation, true);
                Order::Kill
            }
        };
        if let Some(live) = self.lives.get(&worker) {
            // A unit gets a handful of orders in its life, and the channel holds them all.
            let _ = live.orders.try_send(order);
        }
    }

    fn spawn(&mut self, worker: WorkerId, incarnation: Incarnation) {
        let (orders, inbox) = mpsc::channel(16);
        let tail = Tail::default();
        let task =
            Task { plan: self.plan.clone(), worker, incarnation, tail: tail.clone(), orders: inbox, deserted: false };
        let task = tokio::spawn(task.run()).abort_handle();
        self.lives.insert(worker, Live { incarnation, pid: None, orders, tail, link: None, task });
    }

    fn down(&mut self, worker: WorkerId, incarnation: Incarnation, cause: ExitCause, was_ready: bool) {
        self.shut(worker, incarnation, false);
        let Some(live) = self.lives.get_mut(&worker) else { return };
        let stderr = live.tail.text();
        if let Some(link) = live.link.take() {
            link.settle(&cause, &stderr, &*self.pool);
        }
        self.tell(|follower| follower.ended(worker, incarnation, &cause));
        lock(&self.pool.shared.backlog).last_stderr = stderr.clone();
        if !was_ready && cause != ExitCause::Requested {
            let known = matches!(cause, ExitCause::NotStarted { .. } | ExitCause::Protocol { .. });
            if !known {
                self.start_failed(Wait::Start, StartError::Died { cause, stderr });
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        let mut backlog = lock(&self.pool.shared.backlog);
        backlog.phase = phase;
        let refuses = backlog.refusal(&self.pool.shared.name, false).is_some();
        self.pool.shared.refusing.store(refuses, Ordering::SeqCst);
        let mut refused = Vec::new();
        if let Some(error) = backlog.refusal(&self.pool.shared.name, true) {
            refused.extend(backlog.take_all().into_iter().map(|call| (call, error.clone())));
        }
        self.pool.shared.leave(backlog);
        for (call, error) in refused {
            self.pool.shared.fail(&call, error);
        }
    }

    fn answer_waiting(&mut self) {
        let answer = match self.machine.phase() {
            Phase::GaveUp(cause) => {
                let stderr = lock(&self.pool.shared.backlog).last_stderr.clone();
                let died = StartError::Died { cause: cause.clone(), stderr };
                Err(self.last_failure.clone().unwrap_or(died))
            }
            Phase::Closing | Phase::Closed => Err(StartError::ShuttingDown),
            _ => Ok(()),
        };
        let (is_settled, is_recycled) = (self.machine.settled(), !self.recycling.is_pending());
        let is_over = |waiting: &mut Waiting| {
            answer.is_err() || if waiting.what == Wait::Recycled { is_recycled } else { is_settled }
        };
        for waiting in self.waiting.extract_if(.., is_over) {
            drop(waiting.answer.send(answer.clone()));
        }
    }

    fn next_due(&self) -> Option<Time> {
        let mut backlog = lock(&self.pool.shared.backlog);
        backlog.armed = backlog.line.next_due();
        let waiting = Time::earliest(self.shutdown.flatten(), backlog.armed);
        Time::earliest(backlog.delayed.peek().map(|Reverse(delayed)| delayed.due), waiting)
    }

    /// Queues calls whose delay is over, and ends those that timed out in the queue.
    fn tend_backlog(&mut self) {
        let now = clock::now();
        let mut again = Vec::new();
        if self.pool.shared.killed.load(Ordering::SeqCst) {
            self.input(Input::Kill);
        }
        let mut backlog = lock(&self.pool.shared.backlog);
        let demanded = std::mem::take(&mut backlog.demanded);
        while backlog.delayed.peek().is_some_and(|Reverse(delayed)| delayed.due <= now) {
            again.extend(backlog.delayed.pop().map(|Reverse(delayed)| delayed.call));
        }
        let expired: Vec<_> = std::iter::from_fn(|| backlog.line.pop_due(now)).collect();
        self.pool.shared.leave(backlog);
        if demanded {
            self.input(Input::Demand);
        }
        for call in expired {
            let (verdict, tries) = call.record_failure(now, Failure::TimedOut);
            if let Verdict::Again(delay) = verdict {
                self.pool.shared.meter.retried();
                self.pool.requeue(call, delay);
                continue;
            }
            let limit = call.terms.timeout.unwrap_or_default();
            debug_assert_eq!(call.terms.timeout_from, TimeoutFrom::Query);
            self.pool.shared.fail(&call, QueryError::TimedOut { limit, worker: None, tries });
        }
        for call in again {
            self.pool.enqueue(&call, Entry::Again);
        }
        self.pool.dispatch();
        self.end_if_served(now);
    }

    /// Shuts down once that is asked for and every call is served, or it takes too long.
    fn end_if_served(&mut self, now: Time) {
        let Some(deadline) = self.shutdown else { return };
        let backlog = lock(&self.pool.shared.backlog);
        // With the queue locked, no call is on its way between it and a link: a link counts a call until the queue has it. The conversation of a raw worker
        // ends when that is told to leave.
        let is_loaded = !self.plan.link.is_raw && self.pool.load() > 0;
        let is_served = backlog.line.is_empty() && backlog.delayed.is_empty() && !is_loaded;
        drop(backlog);
        if is_served || deadline.is_some_and(|at| at <= now) || *self.machine.phase() != Phase::Serving {
            self.shutdown = None;
            self.input(Input::Shutdown { deadline });
        }
    }
}

/// A runtime that shuts down drops the task; those who wait elsewhere still get their answers.
impl<S: Starter> Drop for PoolTask<S> {
    fn drop(&mut self) {
        for live in std::mem::take(&mut self.lives).into_values() {
            live.task.abort();
            if let Some(link) = live.link {
                link.settle(&ExitCause::Requested, "", &*self.pool);
                self.tell(|follower| follower.ended(link.worker, link.incarnation, &ExitCause::Requested));
            }
        }
        self.tell(|follower| follower.closed());
    }
}

/// Resolves what waits when the task ends, however it does.
struct Leftovers<Tx: LinkTx>(Weak<Pool<Tx>>);

impl<Tx: LinkTx> Drop for Leftovers<Tx> {
    fn drop(&mut self) {
        let Some(pool) = self.0.upgrade() else { return };
        let mut backlog = pool.backlog();
        backlog.phase = Phase::Closed;
        let waiting = backlog.take_all();
        pool.shared.leave(backlog);
        for call in waiting {
            let error = QueryError::ShuttingDown { pool: pool.shared.name.clone() };
            pool.shared.fail(&call, error);
        }
    }
}
