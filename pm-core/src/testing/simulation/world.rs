//! The simulated driver: what `driver::pool`, `driver::link` and `driver::worker` do, without threads and at virtual time.

mod calls;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::checks::Ledger;
use super::process::{Fate, News, Order, Process, Running, Script, Task};
use crate::machine::budget::{Scope, SplitMix};
use crate::machine::cause::ExitCause;
use crate::machine::exit::ExitStatus;
use crate::machine::id::{CallId, Incarnation, WorkerId};
use crate::machine::pool::{self, Aboard, Phase, Pool};
use crate::machine::retry::{Failure, Retry, Tries};
use crate::machine::session::{Answer, Cancel, Session, Verdict};
use crate::machine::time::Time;
use crate::machine::unit::{self, Times};
use crate::machine::window::Window;

/// As in the driver: a timeout may come so much late.
const COARSE: Duration = Duration::from_millis(4);

/// The timers of the driver fire on whole milliseconds.
const TIMER: u64 = 1_000_000;

/// Calls that one link takes at most.
const LINK_CAPACITY: usize = 512;

/// How a simulated pool is set up.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) concurrency: u32,
    pub(super) ahead: u32,
    pub(super) queue: usize,
    pub(super) grace: Duration,
    pub(super) rule: Rule,
    pub(super) times: Times,
    /// The time of a frame on its way, from and to.
    pub(super) hop: (Duration, Duration),
    /// Of a thousand frames, how many are held up for some milliseconds.
    pub(super) slow_hops: u64,
    /// Of a thousand starts, how many fail in some way.
    pub(super) bad_starts: u64,
    /// Whether a dead worker leaves word of the calls that it had begun.
    pub(super) leaves_word: bool,
    /// Of a thousand processes, how many ignore SIGTERM.
    pub(super) stubborn: u64,
}

/// When a pool gives up: at more than `limit` deaths of a sort within a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) limit: u32,
    pub(super) window: Duration,
    pub(super) scope: Scope,
}

/// A call, from its making to its outcome.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) script: Script,
    pub(super) timeout: Option<Duration>,
    /// Whether the timeout counts from the start on a worker.
    pub(super) from_start: bool,
    pub(super) retry: Retry,
    pub(super) made: Time,
    pub(super) until: Option<Time>,
    pub(super) tries: Tries,
    pub(super) place: Place,
    /// When a worker first began it, and when it was resolved.
    pub(super) begun: Option<Time>,
    pub(super) resolved: Option<(Time, Outcome)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Waiting,
    Aboard(WorkerId, CallId),
    Done,
    Abandoned,
}

/// What a caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The answer.
    Answered,
    /// The error of the handler.
    Handler,
    /// It took too long.
    TimedOut,
    /// Its worker died.
    WorkerLost,
    /// It was aboard three dying workers.
    Poisoned,
    /// There are no workers.
    NoWorkers,
    /// The budget of the pool is spent.
    GaveUp,
    /// The pool is being shut down.
    ShuttingDown,
    /// The queue was full.
    Full,
}

/// A worker, as the manager knows it.
struct Live {
    incarnation: Incarnation,
    process: usize,
    link: Option<Link>,
    /// What it had when it exited.
    last_load: usize,
}

pub(super) struct Link {
    pub(super) session: Session,
    pub(super) window: Window,
    /// The calls that somebody waits for, and when each was sent.
    calls: BTreeMap<CallId, (Task, Time)>,
    draining: bool,
    told_drained: bool,
    answered_any: bool,
    /// The manager reads it no more.
    ended: bool,
    /// Not all that the worker answered came, or what came cannot be trusted.
    is_doubtful: bool,
}

/// Something that comes at its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    /// The one who plays callers and operators does something.
    Act(u64),
    /// A frame reaches a worker.
    Order(usize),
    /// A frame, or other news, reaches the manager.
    News(usize),
    /// A run of a call comes to its end.
    Done(usize, u64),
    /// The kernel carries out a kill.
    Die(usize),
}

/// See the [module](self).
pub(super) struct World {
    pub(super) now: Time,
    pub(super) settings: Settings,
    pub(super) random: SplitMix,
    pub(super) pool: Pool,
    pub(super) calls: Vec<Call>,
    pub(super) queue: VecDeque<Task>,
    /// Those of the queue that time out there.
    timed: BTreeSet<(Time, Task)>,
    delayed: BTreeMap<(Time, u64), Task>,
    lives: BTreeMap<WorkerId, Live>,
    /// The workers whose links draw from the queue, in the order of their readiness.
    pub(super) links: Vec<WorkerId>,
    pub(super) processes: Vec<Process>,
    agenda: BTreeMap<(Time, u64), Happening>,
    order: u64,
    runs: u64,
    closing: Option<Option<Time>>,
    demanded: bool,
    pub(super) phase: Phase,
    pub(super) ledger: Ledger,
}

impl World {
    pub(super) fn new(settings: Settings, seed: u64) -> Self {
        World {
            now: Time::ZERO,
            pool: Pool::new(settings.times, settings.rule.budget(), seed),
            ledger: Ledger::new(settings.rule),
            settings,
            random: SplitMix(seed),
            calls: Vec::new(),
            queue: VecDeque::new(),
            timed: BTreeSet::new(),
            delayed: BTreeMap::new(),
            lives: BTreeMap::new(),
            links: Vec::new(),
            processes: Vec::new(),
            agenda: BTreeMap::new(),
            order: 0,
            runs: 0,
            closing: None,
            demanded: false,
            phase: Phase::Idle,
        }
    }

    // What callers and operators do.

    /// A query.
    pub(super) fn submit(&mut self, script: Script, timeout: Option<Duration>, from_start: bool, retry: Retry) -> Task {
        let until = timeout.filter(|_| !from_start).map(|limit| self.now + limit);
        let task = self.calls.len();
        self.calls.push(Call {
            script,
            timeout,
            from_start,
            retry,
            made: self.now,
            until,
            tries: Tries::default(),
            place: Place::Waiting,
            begun: None,
            resolved: None,
        });
        self.ledger.made();
        self.ledger.note(self.now, "query", task as u64, 0);
        let is_aboard = self.queue.is_empty() && self.board(task, false);
        if !is_aboard && !self.enqueue(task, false) {
            self.resolve(task, Outcome::Full);
        }
        self.dispatch();
        task
    }

    /// The caller goes.
    pub(super) fn abandon(&mut self, task: Task) {
        let place = self.calls[task].place;
        if matches!(place, Place::Done | Place::Abandoned) {
            return;
        }
        self.ledger.note(self.now, "abandon", task as u64, 0);
        self.calls[task].place = Place::Abandoned;
        if let Place::Aboard(worker, id) = place {
            let now = self.now;
            if let Some(link) = self.link(worker)
                && link.session.cancel(now, id) == Cancel::Tell
            {
                link.calls.remove(&id);
                self.order_frame(worker, Order::Cancel(id));
            }
        }
    }

    pub(super) fn input(&mut self, input: pool::Input) {
        self.pool.handle(self.now, input);
        self.carry_out();
    }

    /// Workers, idlest first, as a scale down needs them.
    pub(super) fn idlest(&self) -> Vec<WorkerId> {
        let load = |worker: &WorkerId| {
            self.lives.get(worker).and_then(|live| live.link.as_ref()).map_or(0, |link| link.session.unanswered())
        };
        let mut workers: Vec<_> = self.links.iter().map(|worker| (load(worker), *worker)).collect();
        workers.sort_unstable();
        workers.into_iter().map(|(_, worker)| worker).collect()
    }

    /// Takes no more queries, and closes the pool once those that were taken are served.
    pub(super) fn shut_down(&mut self, deadline: Option<Time>) {
        self.closing = Some(deadline);
        self.tend();
    }

    pub(super) fn crash(&mut self, process: usize) {
        self.exits(process, -9);
    }

    /// The link breaks; what was on it arrives.
    pub(super) fn cut(&mut self, process: usize) {
        if self.processes[process].is_alive && self.processes[process].is_linked {
            self.news(process, News::End);
            self.processes[process].is_linked = false;
        }
    }

    /// The link breaks, and what was on it is lost, as where TCP resets a connection.
    pub(super) fn tear(&mut self, process: usize) {
        let worker = self.processes[process].worker;
        let torn = &mut self.processes[process];
        if !torn.is_alive || !torn.is_linked {
            return;
        }
        for news in torn.news.iter_mut().filter(|news| matches!(news, News::Answer(..))) {
            *news = News::Nothing;
        }
        if let Some(live) = self.lives.get_mut(&worker).filter(|live| live.process == process)
            && let Some(link) = &mut live.link
        {
            link.is_doubtful = true;
        }
        self.cut(process);
    }

    /// The worker sends what no honest worker sends.
    pub(super) fn misbehave(&mut self, process: usize) {
        if self.processes[process].is_alive {
            self.news(process, News::Violation);
        }
    }

    pub(super) fn plan(&mut self, after: Duration, happening: Happening) {
        self.plan_at(self.now + after, happening);
    }

    fn plan_at(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        self.agenda.insert((at, self.order), happening);
    }

    // Time.

    /// When the next thing is due: something that happens, or a timer.
    pub(super) fn next_due(&self) -> Option<Time> {
        let happening = self.agenda.first_key_value().map(|((at, _), _)| *at);
        Time::earliest(happening, self.next_timer())
    }

    fn next_timer(&self) -> Option<Time> {
        let mut due = Time::earliest(self.pool.poll_timeout(), self.closing.flatten());
        due = Time::earliest(due, self.delayed.first_key_value().map(|((at, _), _)| *at));
        due = Time::earliest(due, self.timed.first().map(|(at, _)| *at));
        for live in self.lives.values() {
            due = Time::earliest(due, live.link.as_ref().and_then(|link| self.link_due(link)));
        }
        // A timer that was due while something else was done fires now.
        due.map(|due| Time::from_nanos(due.as_nanos().next_multiple_of(TIMER)).max(self.now))
    }

    fn link_due(&self, link: &Link) -> Option<Time> {
        if link.ended {
            return None;
        }
        let expiry = link.session.poll_timeout().map(|at| at + COARSE);
        let waits = link.session.unanswered() > link.session.started() && self.links.len() > 1;
        let stall = if waits { link.window.stall_at(link.session.unanswered() as u32) } else { None };
        Time::earliest(expiry, stall)
    }

    /// Goes on to the next thing and does it. Gives what is for the player to do; none where nothing follows any more.
    pub(super) fn step(&mut self) -> Option<Option<u64>> {
        let timer = self.next_timer();
        let at = self.next_due()?;
        self.ledger.step(at.since(self.now));
        self.now = at;
        let mut act = None;
        match self.agenda.first_key_value() {
            Some(((due, _), _)) if *due <= at => {
                if let Some((_, happening)) = self.agenda.pop_first() {
                    act = self.happens(happening);
                }
            }
            _ => self.timers(timer),
        }
        self.tend();
        self.dispatch();
        Some(act)
    }

    fn timers(&mut self, fired: Option<Time>) {
        let now = self.now;
        if self.pool.poll_timeout().is_some_and(|due| due <= now) {
            self.pool.handle_timeout(now);
            self.carry_out();
        }
        for worker in self.lives.keys().copied().collect::<Vec<_>>() {
            self.keep_time(worker);
        }
        self.tend();
        // What was due is done, or the driver would spin.
        if self.next_timer().is_some_and(|next| Some(next) <= fired) {
            self.ledger.violated(format!("a timer of {fired:?} is still due after it fired"));
        }
    }

    /// Ends calls whose time is over, and asks calls back that wait behind a slow one.
    fn keep_time(&mut self, worker: WorkerId) {
        let now = self.now;
        let others = self.links.len() > 1;
        let has_idle = self.links.iter().any(|other| *other != worker && self.load(*other) == 0);
        let grace = self.settings.grace;
        let Some(live) = self.lives.get_mut(&worker) else { return };
        let incarnation = live.incarnation;
        let Some(link) = live.link.as_mut().filter(|link| !link.ended) else { return };
        let mut expired = Vec::new();
        let mut stuck = false;
        if link.session.poll_timeout().is_some_and(|at| at + COARSE <= now) {
            stuck = link.session.expire(now, &mut expired);
        }
        let timed_out: Vec<_> = expired.iter().filter_map(|id| Some((*id, link.calls.remove(id)?.0))).collect();
        let mut recalled = Vec::new();
        let stalled = others
            && link.session.unanswered() > link.session.started()
            && link.window.stall_at(link.session.unanswered() as u32).is_some_and(|at| at <= now);
        let waiting = link.session.unanswered() - link.session.started();
        if stalled && let Some(keep) = link.window.look(now, waiting, has_idle) {
            link.session.recall(keep, |_| true, &mut recalled);
        }
        for (id, task) in timed_out {
            self.order_frame(worker, Order::Cancel(id));
            self.failed(task, Failure::TimedOut, Outcome::TimedOut);
        }
        for id in recalled {
            self.order_frame(worker, Order::Recall(id));
        }
        if stuck {
            self.link_ended(worker);
            self.unit(worker, unit::Input::Fail(incarnation, ExitCause::Stuck { grace }), Aboard::default());
        }
    }

    /// What the task of a pool does at each of its turns.
    fn tend(&mut self) {
        let now = self.now;
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let task = entry.remove();
            self.enqueue(task, true);
        }
        while let Some((_, task)) = self.timed.first().copied().filter(|(until, _)| *until <= now) {
            self.leave_queue(task);
            self.queue.retain(|queued| *queued != task);
            if self.calls[task].place == Place::Waiting {
                // A timeout in the queue is final.
                self.resolve(task, Outcome::TimedOut);
            }
        }
        if std::mem::take(&mut self.demanded) {
            self.input(pool::Input::Demand);
        }
        if let Some(deadline) = self.closing
            && (self.queue.is_empty() && self.delayed.is_empty()
                || deadline.is_some_and(|at| at <= now)
                || self.phase != Phase::Serving)
        {
            self.closing = None;
            self.input(pool::Input::Shutdown { deadline });
        }
    }

    // What happens.

    fn happens(&mut self, happening: Happening) -> Option<u64> {
        match happening {
            Happening::Act(number) => return Some(number),
            Happening::Order(process) => self.worker_hears(process),
            Happening::News(process) => self.manager_hears(process),
            Happening::Done(process, run) => self.done(process, run),
            Happening::Die(process) => self.exits(process, -9),
        }
        None
    }

    fn worker_hears(&mut self, at: usize) {
        let process = &mut self.processes[at];
        let Some(order) = process.orders.pop_front() else { return };
        if !process.is_alive || !process.is_linked {
            return;
        }
        match order {
            Order::Request(id, task) => process.take(id, task),
            Order::Recall(id) => {
                if process.forget(id) {
                    self.news(at, News::Answer(id, Answer::NotStarted, false));
                }
            }
            Order::Cancel(id) => {
                let running = process.running.iter().position(|running| running.id == id);
                if process.forget(id) {
                    self.news(at, News::Answer(id, Answer::Cancelled, false));
                } else if let Some(place) = running
                    && self.calls[process.running[place].task].script.yields
                {
                    process.running.remove(place);
                    self.news(at, News::Answer(id, Answer::Cancelled, false));
                }
            }
            Order::Drain => process.drains = true,
            Order::End => return self.exits(at, 0),
        }
        self.begin_calls(at);
    }

    fn begin_calls(&mut self, at: usize) {
        while let Some((id, task)) = self.processes[at].next() {
            self.runs += 1;
            let run = self.runs;
            self.processes[at].running.push(Running { id, task, run });
            let call = &mut self.calls[task];
            call.begun.get_or_insert(self.now);
            let script = call.script;
            self.ledger.note(self.now, "begin", task as u64, at as u64);
            self.ledger.begun(task);
            if script.fate != Fate::Hangs {
                self.plan(script.takes, Happening::Done(at, run));
            }
        }
    }

    fn done(&mut self, at: usize, run: u64) {
        let process = &mut self.processes[at];
        let Some(place) = process.running.iter().position(|running| running.run == run) else { return };
        let Running { id, task, .. } = process.running.remove(place);
        if !process.is_alive {
            return;
        }
        if !process.is_linked {
            // It cannot answer: it ends, as a worker does whose manager has gone.
            return self.exits(at, 0);
        }
        match self.calls[task].script.fate {
            Fate::Kills => return self.exits(at, 139),
            fate => self.news(at, News::Answer(id, Answer::Outcome, fate == Fate::Answers)),
        }
        self.begin_calls(at);
    }

    fn exits(&mut self, at: usize, code: i32) {
        let process = &mut self.processes[at];
        if !process.is_alive {
            return;
        }
        process.is_alive = false;
        process.running.clear();
        process.waiting.clear();
        let says_end = process.is_linked && self.random.below(2) == 0;
        self.ledger.note(self.now, "exits", at as u64, code as u64);
        if says_end {
            self.news(at, News::End);
        }
        self.news(at, News::Exited(code));
    }

    fn manager_hears(&mut self, at: usize) {
        let process = &mut self.processes[at];
        let Some(news) = process.news.pop_front() else { return };
        let (worker, of) = (process.worker, process.incarnation);
        let pid = Some(at as u32);
        let Some(live) = self.lives.get_mut(&worker).filter(|live| live.incarnation == of) else { return };
        match news {
            News::Spawned => self.unit(worker, unit::Input::Spawned(of), Aboard { pid, ..Aboard::default() }),
            News::NotSpawned => {
                self.unit(worker, unit::Input::NotSpawned(of, "no such program".into()), Aboard::default());
            }
            News::Ready => {
                let Settings { concurrency, ahead, grace, .. } = self.settings;
                let window = Window::new(concurrency, ahead);
                let capacity = LINK_CAPACITY.max(window.size() as usize);
                live.link = Some(Link {
                    session: Session::new(capacity, ahead as usize, Some(grace)),
                    window,
                    calls: BTreeMap::new(),
                    draining: false,
                    told_drained: false,
                    answered_any: false,
                    ended: false,
                    is_doubtful: false,
                });
                self.unit(worker, unit::Input::Ready(of), Aboard { pid, ..Aboard::default() });
                if self.pool.worker(worker) == Some(unit::Phase::Ready) {
                    self.links.push(worker);
                }
            }
            News::Nothing => {}
            News::Answer(id, answer, is_output) => self.answered(worker, id, answer, is_output),
            News::Violation => {
                if self.link(worker).is_some_and(|link| !link.ended) {
                    self.link_ended(worker);
                    if let Some(link) = self.link(worker) {
                        link.is_doubtful = true;
                    }
                    let cause = ExitCause::Protocol { violation: "a bad length".into() };
                    self.unit(worker, unit::Input::Fail(of, cause), Aboard::default());
                }
            }
            News::End => {
                if self.link(worker).is_none_or(|link| !link.ended) {
                    self.link_ended(worker);
                    self.unit(worker, unit::Input::LinkLost(of, "end of file".into()), Aboard::default());
                }
            }
            News::Exited(code) => {
                let load = live.link.as_ref().map_or(0, |link| link.session.unanswered());
                live.last_load = load;
                let status =
                    if code < 0 { ExitStatus::Signal { signal: -code, core: false } } else { ExitStatus::Code(code) };
                self.unit(worker, unit::Input::Exited(of, status), Aboard { pid, calls: load, last_notice: None });
            }
        }
    }

    fn answered(&mut self, worker: WorkerId, id: CallId, answer: Answer, is_output: bool) {
        let now = self.now;
        let Some(live) = self.lives.get_mut(&worker) else { return };
        let incarnation = live.incarnation;
        // What came before the end counts, even where the link is of no further use.
        let Some(link) = &mut live.link else { return };
        match link.session.answered(now, id, answer) {
            Verdict::Late => {}
            Verdict::Violation(violation) => {
                self.ledger.violated(format!("an honest worker {worker} was accused: {violation}"));
            }
            Verdict::Requeue => {
                if let Some((task, _)) = link.calls.remove(&id) {
                    self.goes_on(task);
                    self.enqueue_if_waiting(task);
                }
            }
            Verdict::Deliver => {
                let Some((task, sent)) = link.calls.remove(&id) else { return };
                let left = link.session.unanswered() as u32;
                link.window.answered(now, 1, left, sent);
                let is_first = !std::mem::replace(&mut link.answered_any, true);
                if is_output {
                    self.resolve(task, Outcome::Answered);
                } else {
                    self.failed(task, Failure::Handler, Outcome::Handler);
                }
                if is_first {
                    self.ledger.progress();
                    self.input(pool::Input::Progress(worker, incarnation));
                }
            }
        }
        self.see_drained(worker);
    }

    /// What must hold between any two steps.
    pub(super) fn check(&mut self) {
        for (worker, live) in &self.lives {
            let Some(link) = &live.link else { continue };
            let process = &self.processes[live.process];
            let unanswered = link.session.unanswered();
            let aboard = link.calls.len();
            if aboard > unanswered {
                self.ledger.violated(format!("worker {worker} has {aboard} calls aboard and {unanswered} unanswered"));
            }
            if process.is_alive && process.is_linked && process.held() != unanswered {
                let held = process.held();
                self.ledger.violated(format!("worker {worker} has {held} calls, and its session counts {unanswered}"));
            }
        }
    }

    /// From now on every start succeeds and every frame is quick.
    pub(super) fn calm_down(&mut self) {
        self.settings.bad_starts = 0;
        self.settings.slow_hops = 0;
        self.agenda.retain(|_, happening| !matches!(happening, Happening::Act(_)));
    }

    /// The processes that live.
    pub(super) fn alive(&self) -> Vec<usize> {
        (0..self.processes.len()).filter(|at| self.processes[*at].is_alive).collect()
    }

    /// Whether the manager has forgotten all its workers.
    pub(super) fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }
}
