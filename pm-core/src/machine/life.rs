//! The life of one service: a [`Unit`] with readiness, health, and restarts.
//!
//! ```text
//!            start            spawned            ready            probe fails
//!  Idle ─────────────▶ Starting ─────────▶ (Starting) ─────▶ Up ◀───────────▶ Unhealthy
//!                        ▲                      │             │                   │
//!                        │ delay                │ start limit │ stop, liveness    │ (restart_unhealthy)
//!                        │                      ▼             ▼                   ▼
//!                     Backoff ◀─────────────── Ending ◀───────┴───────────────────┘
//!                        ▲       restart         │
//!                        └────────────────────── │ ──▶ Stopped, Completed, Failed, GaveUp
//!                                  exited, or left running, from every state with a process
//! ```
//!
//! A process that an earlier manager has left is in Starting, or Up where it was ready, from the beginning.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::budget::SplitMix;
use super::cause::ExitCause;
use super::exit::ExitStatus;
use super::id::Incarnation;
use super::metrics::{Crossing, TreeUsage, Watch};
use super::probe::{Change, Schedule};
use super::restart::Restarts;
use super::service::{Event, Readiness, Rules, State};
use super::time::Time;
use super::unit::{self, Phase, Times, Unit};

/// A process that has lived for so long is said to run.
const RUNS_AFTER: Duration = Duration::from_secs(1);

/// Which of the probes of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Whether it is ready, and well.
    Readiness,
    /// Whether it lives.
    Liveness,
}

/// What happened to a service, or is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start it, unless it is up. A delay that it waits for is cut short.
    Start,
    /// Ask it to end, and end it where it has not by then.
    Stop {
        /// From the signal to the kill; none is what its [`Rules`] say.
        limit: Option<Duration>,
    },
    /// End it now.
    Kill,
    /// It was never started here, and has a process all the same: it has outlived an earlier manager.
    Adopted {
        /// Its process.
        pid: u32,
        /// How long that has lived.
        lived: Duration,
        /// Whether it was ready already: by its own word, or because its probe had passed.
        was_ready: bool,
    },
    /// It was never started here, and its process, which has outlived an earlier manager, has ended meanwhile.
    EndedMeanwhile {
        /// What was its process.
        pid: u32,
        /// How long that has lived.
        lived: Duration,
        /// How it ended.
        status: ExitStatus,
    },
    /// Its process was left to whoever comes next: it lives on, and is not this manager's any more.
    Left(Incarnation),
    /// Its process exists.
    Spawned(Incarnation, u32),
    /// Its process could not be made.
    NotSpawned(Incarnation, String),
    /// It says that it is ready.
    Ready(Incarnation),
    /// It says that it lives.
    Alive(Incarnation),
    /// What a probe said.
    Answered(Incarnation, Check, Result<(), String>),
    /// What its tree used at a time; none where it was gone.
    Measured(Incarnation, Time, Option<TreeUsage>),
    /// Its process ended.
    Exited(Incarnation, ExitStatus),
}

/// What is to be done for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make its process.
    Spawn(Incarnation),
    /// Carry out a probe once.
    Ask(Incarnation, Check),
    /// Measure what the tree of this process uses.
    Measure(Incarnation, u32),
    /// Ask it to end.
    Terminate(Incarnation),
    /// Kill its whole tree.
    Kill(Incarnation),
    /// For whom it may concern.
    Event(Event),
}

#[derive(Clone, Debug)]
enum Now {
    Idle,
    /// From the order to make its process until it is ready.
    Starting,
    /// It is ready, or its process exists where nothing says when it is.
    Up,
    /// It was ready, and is not well.
    Unhealthy,
    Ending,
    Backoff {
        until: Time,
    },
    Stopped,
    Completed,
    Failed,
    GaveUp,
}

/// One service, through all its incarnations. See the [module](self).
#[derive(Clone, Debug)]
pub struct Life {
    rules: Arc<Rules>,
    unit: Unit,
    now: Now,
    restarts: Restarts,
    /// Nobody has asked it to stop.
    is_wanted: bool,
    /// What a loss of its process, or of its health, is to be followed by whatever the policy says.
    is_to_return: bool,
    /// It had a process since somebody started it; and this life follows another one by itself.
    has_lived: bool,
    has_returned: bool,
    pid: Option<u32>,
    /// When its process was made, or was to be; and how long it lived.
    began: Time,
    lived: Duration,
    /// How long it had lived before that, under another manager.
    lived_before: Duration,
    /// It was ready in this life, and it has lived for a second.
    was_ready: bool,
    runs: bool,
    readiness: Option<Schedule>,
    liveness: Option<Schedule>,
    metrics: Option<Watch>,
    /// Where the phase of its samples comes from.
    seed: u64,
    start_by: Option<Time>,
    runs_at: Option<Time>,
    stable_at: Option<Time>,
    alive_by: Option<Time>,
    /// How its last process ended.
    status: Option<ExitStatus>,
    /// Why it ended last, unless that was a stop.
    cause: Option<ExitCause>,
    effects: VecDeque<Effect>,
}

/// Those of a unit. The time for the start is kept here, where its end can be a polite one.
fn times(rules: &Rules) -> Times {
    Times { start: Duration::MAX, stop_grace: rules.stop_limit }
}

impl Life {
    /// A service that was never started. `seed` is where the jitter of its delays and of its samples comes from.
    pub fn new(rules: Arc<Rules>, seed: u64) -> Self {
        Life {
            restarts: rules.restart.begin(seed),
            unit: Unit::new(times(&rules)),
            rules,
            now: Now::Idle,
            is_wanted: false,
            is_to_return: false,
            has_lived: false,
            has_returned: false,
            pid: None,
            began: Time::ZERO,
            lived: Duration::ZERO,
            lived_before: Duration::ZERO,
            was_ready: false,
            runs: false,
            readiness: None,
            liveness: None,
            metrics: None,
            seed,
            start_by: None,
            runs_at: None,
            stable_at: None,
            alive_by: None,
            status: None,
            cause: None,
            effects: VecDeque::new(),
        }
    }

    /// What follows this life, which has no process, under other rules: a service that was never started, whose incarnations are counted on, so that
    /// nothing that is said of an earlier one is taken for its own.
    pub fn renewed(&self, rules: Arc<Rules>, seed: u64) -> Self {
        let mut unit = self.unit.clone();
        unit.set_times(times(&rules));
        Life { unit, ..Life::new(rules, seed) }
    }

    /// What it lives under.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        match self.now {
            Now::Idle => State::Idle,
            Now::Starting => State::Starting,
            Now::Up if self.rules.readiness != Readiness::Spawned => State::Healthy,
            Now::Up if self.runs => State::Running,
            Now::Up => State::Starting,
            Now::Unhealthy => State::Unhealthy,
            Now::Ending => State::Stopping,
            Now::Backoff { .. } => State::Backoff,
            Now::Stopped => State::Stopped,
            Now::Completed => State::Completed,
            Now::Failed => State::Failed,
            Now::GaveUp => State::GaveUp,
        }
    }

    /// Its process, where it has one.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Which life it is in, or was in last.
    pub fn incarnation(&self) -> Incarnation {
        self.unit.incarnation()
    }

    /// Whether it was ready in this life: where nothing says when it is, since it has lived for a second.
    pub fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// Whether its process has lived for a second, or is ready.
    pub fn runs(&self) -> bool {
        self.pid.is_some() && self.runs
    }

    /// Whether its process was made in this life, or in the last one where it waits for the next.
    pub fn was_spawned(&self) -> bool {
        self.pid.is_some() || self.status.is_some()
    }

    /// How long its process has lived: until now, or until its end.
    pub fn lived(&self, now: Time) -> Duration {
        if self.pid.is_some() { self.lived_before + now.since(self.began) } else { self.lived }
    }

    /// How its last process ended, where it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Why it ended last, unless that was a stop.
    pub fn cause(&self) -> Option<&ExitCause> {
        self.cause.as_ref()
    }

    /// Whether somebody has started it, and nobody has asked it to stop since.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Whether it is ending, and nothing follows from that.
    pub fn ends_for_good(&self) -> bool {
        matches!(self.now, Now::Ending) && !self.returns()
    }

    /// Whether it is to start again once it has ended.
    pub fn returns(&self) -> bool {
        self.is_wanted && (self.is_to_return || matches!(self.now, Now::Backoff { .. }))
    }

    /// When it is started again, where it waits for that.
    pub fn starts_at(&self) -> Option<Time> {
        match self.now {
            Now::Backoff { until } => Some(until),
            _ => None,
        }
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts.total()
    }

    /// How many restarts count against the limit.
    pub fn counted_restarts(&self) -> usize {
        self.restarts.counted()
    }

    /// The questions that it is asked, or was in its last life.
    pub fn schedule(&self, check: Check) -> Option<&Schedule> {
        match check {
            Check::Readiness => self.readiness.as_ref(),
            Check::Liveness => self.liveness.as_ref(),
        }
    }

    /// When it is asked next, where that is known.
    pub fn asks_at(&self, check: Check) -> Option<Time> {
        self.schedule(check).filter(|_| self.is_watched())?.poll_timeout()
    }

    /// What its process uses, where that is measured.
    pub fn metrics(&self) -> Option<&Watch> {
        self.metrics.as_ref()
    }

    /// Inputs about earlier incarnations that were dropped.
    pub fn stale(&self) -> u64 {
        self.unit.stale()
    }

    /// Takes an input. [`Life::poll_effect`] then says what to do.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Start => self.start(now),
            Input::Stop { limit } => self.stop(now, limit.unwrap_or(self.rules.stop_limit)),
            Input::Kill => {
                self.is_wanted = false;
                if self.state().is_up() {
                    self.now = Now::Ending;
                    self.unit.handle(now, unit::Input::Kill(ExitCause::Requested));
                }
            }
            Input::Adopted { pid, lived, was_ready } => self.adopt(now, pid, lived, was_ready),
            Input::EndedMeanwhile { pid, lived, status } => self.ended_meanwhile(now, pid, lived, status),
            Input::Spawned(of, pid) => {
                if of == self.incarnation() && self.pid.is_none() && self.has_process() {
                    self.spawned(now, pid);
                }
                self.unit.handle(now, unit::Input::Spawned(of));
            }
            Input::Left(of) => {
                if of == self.incarnation() && self.has_process() {
                    self.is_wanted = false;
                    if let Some(pid) = self.pid.take() {
                        self.say(Event::Left { pid });
                    }
                    self.end();
                    self.unit.handle(now, unit::Input::Exited(of, ExitStatus::Lost));
                }
            }
            Input::NotSpawned(of, reason) => self.unit.handle(now, unit::Input::NotSpawned(of, reason)),
            Input::Ready(of) => {
                if of == self.incarnation() && matches!(self.rules.readiness, Readiness::Told { .. }) {
                    self.ready(now);
                }
            }
            Input::Alive(of) => {
                if of == self.incarnation() && self.alive_by.is_some() {
                    self.alive_by = self.rules.watchdog.map(|limit| now + limit);
                }
            }
            Input::Answered(of, check, answer) => {
                if of == self.incarnation() {
                    self.answered(now, check, answer);
                }
            }
            Input::Measured(of, at, usage) => {
                if of == self.incarnation() {
                    self.measured(at, usage);
                }
            }
            Input::Exited(of, status) => {
                if of == self.incarnation() && self.has_process() {
                    self.status = Some(status);
                }
                self.unit.handle(now, unit::Input::Exited(of, status));
            }
        }
        self.follow(now);
    }

    /// When [`Life::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let probes = [&self.readiness, &self.liveness].into_iter().flatten();
        let asked = probes.filter_map(Schedule::poll_timeout).min();
        let measured = self.metrics.as_ref().and_then(Watch::poll_timeout);
        let watched = Time::earliest(asked, measured).filter(|_| self.is_watched());
        [self.start_by, self.runs_at, self.stable_at, self.alive_by, watched, self.unit.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let is_due = |at: &mut Option<Time>| at.take_if(|at| *at <= now).is_some();
        if is_due(&mut self.start_by) {
            let said = self.why_not_ready();
            self.fail(now, ExitCause::NotReady { limit: self.rules.start_limit, said }, false);
        }
        if is_due(&mut self.runs_at) && !self.runs {
            self.runs = true;
            if self.rules.readiness == Readiness::Spawned {
                self.was_ready = true;
                self.effects.push_back(Effect::Event(Event::Running));
            }
        }
        if is_due(&mut self.stable_at) {
            self.restarts.forgive();
        }
        if is_due(&mut self.alive_by) {
            let limit = self.rules.watchdog.unwrap_or_default();
            self.fail(
                now,
                ExitCause::Unhealthy { reason: format!("no sign of life (WATCHDOG=1) for {limit:?}") },
                true,
            );
        }
        for check in [Check::Readiness, Check::Liveness] {
            let schedule = if check == Check::Readiness { &mut self.readiness } else { &mut self.liveness };
            if matches!(self.now, Now::Starting | Now::Up | Now::Unhealthy)
                && schedule.as_mut().is_some_and(|s| s.ask(now))
            {
                self.effects.push_back(Effect::Ask(self.unit.incarnation(), check));
            }
        }
        if self.is_watched()
            && let (Some(pid), Some(metrics)) = (self.pid, &mut self.metrics)
            && metrics.measure(now)
        {
            self.effects.push_back(Effect::Measure(self.unit.incarnation(), pid));
        }
        self.unit.handle_timeout(now);
        self.follow(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn say(&mut self, event: Event) {
        self.effects.push_back(Effect::Event(event));
    }

    fn why_not_ready(&self) -> String {
        let last = self.readiness.as_ref().and_then(Schedule::last);
        match (self.rules.readiness, last) {
            (Readiness::Asked(_), Some(Err(said))) => said.clone(),
            (Readiness::Asked(_), _) => "its probe has not answered".into(),
            (Readiness::Told { by_line: true }, _) => "it has not printed the line that says so".into(),
            (Readiness::Told { by_line: false }, _) => "it has not said READY=1".into(),
            (Readiness::Spawned, _) => "its process was not made".into(),
        }
    }

    fn is_watched(&self) -> bool {
        matches!(self.now, Now::Starting | Now::Up | Now::Unhealthy)
    }

    fn has_process(&self) -> bool {
        matches!(self.unit.phase(), Phase::Starting | Phase::Ready | Phase::Draining | Phase::Stopping)
    }

    fn start(&mut self, now: Time) {
        match self.now {
            Now::Starting | Now::Up | Now::Unhealthy | Now::Ending => return,
            Now::Backoff { .. } => {
                // It is down once this was handled, and says so to nobody but this machine.
                self.unit.handle(now, unit::Input::Drain { deadline: None });
                while self.unit.poll_effect().is_some() {}
            }
            Now::Idle | Now::Stopped | Now::Completed | Now::Failed | Now::GaveUp => {}
        }
        self.restarts.forgive();
        self.is_wanted = true;
        self.has_lived = false;
        self.now = Now::Idle;
        self.status = None;
        self.cause = None;
        self.unit.handle(now, unit::Input::Start { after: Duration::ZERO });
    }

    fn adopt(&mut self, now: Time, pid: u32, lived: Duration, was_ready: bool) {
        if !self.begin_with_process(now) {
            return;
        }
        self.start_by = Some(now + self.rules.start_limit);
        self.say(Event::Adopted { pid, lived });
        self.note_process(now, pid);
        self.lived_before = lived;
        if lived >= RUNS_AFTER {
            self.runs_at = Some(now);
        }
        self.unit.handle(now, unit::Input::Spawned(self.incarnation()));
        if was_ready && matches!(self.now, Now::Starting) {
            // Who was well is asked whether it still is, and is not killed where it is not.
            if let Readiness::Asked(timing) = self.rules.readiness {
                self.readiness = Some(Schedule::of_well(timing, now));
            }
            self.be_up(now);
            self.was_ready = true;
            self.runs = true;
            self.runs_at = None;
        }
    }

    fn ended_meanwhile(&mut self, now: Time, pid: u32, lived: Duration, status: ExitStatus) {
        if !self.begin_with_process(now) {
            return;
        }
        self.has_lived = true;
        self.pid = Some(pid);
        self.began = now;
        self.lived_before = lived;
        self.status = Some(status);
        let incarnation = self.incarnation();
        self.unit.handle(now, unit::Input::Spawned(incarnation));
        self.unit.handle(now, unit::Input::Exited(incarnation, status));
    }

    /// Begins a life whose process was made by somebody else. False where it is not the first.
    fn begin_with_process(&mut self, now: Time) -> bool {
        if !matches!(self.now, Now::Idle) {
            return false;
        }
        self.is_wanted = true;
        self.unit.handle(now, unit::Input::Start { after: Duration::ZERO });
        // It has its process already.
        while self.unit.poll_effect().is_some() {}
        self.has_returned = false;
        self.now = Now::Starting;
        true
    }

    fn stop(&mut self, now: Time, limit: Duration) {
        match self.now {
            Now::Idle | Now::Stopped | Now::Completed | Now::Failed | Now::GaveUp => {
                self.is_wanted = false;
                return;
            }
            Now::Backoff { .. } => {}
            Now::Starting | Now::Up | Now::Unhealthy | Now::Ending => {
                if self.is_wanted && !matches!(self.now, Now::Ending) {
                    self.say(Event::Stopping { cause: ExitCause::Requested });
                }
                self.end();
            }
        }
        self.is_wanted = false;
        self.unit.handle(now, unit::Input::Ask { cause: ExitCause::Requested, deadline: Some(now + limit) });
    }

    /// Ends this life for something that it did, or did not do.
    fn fail(&mut self, now: Time, cause: ExitCause, is_to_return: bool) {
        if !self.is_watched() {
            return;
        }
        self.is_to_return = is_to_return;
        self.say(Event::Stopping { cause: cause.clone() });
        self.end();
        self.unit.handle(now, unit::Input::Ask { cause, deadline: Some(now + self.rules.stop_limit) });
    }

    /// From here on it only has to end.
    fn end(&mut self) {
        self.now = Now::Ending;
        self.start_by = None;
        self.runs_at = None;
        self.stable_at = None;
        self.alive_by = None;
    }

    fn spawned(&mut self, now: Time, pid: u32) {
        let incarnation = self.incarnation();
        self.say(Event::Started { incarnation, pid });
        if self.has_returned {
            self.say(Event::Restarted { incarnation });
        }
        self.note_process(now, pid);
    }

    fn note_process(&mut self, now: Time, pid: u32) {
        self.pid = Some(pid);
        self.began = now;
        self.has_lived = true;
        if !self.is_watched() {
            return; // somebody stopped it while its process was being made
        }
        self.runs_at = Some(now + RUNS_AFTER);
        // Those that start together are not measured together, nor is one that starts again and again always as young.
        let phase = SplitMix(self.seed ^ u64::from(self.incarnation().0)).unit();
        self.metrics = self.rules.metrics.map(|metrics| Watch::new(metrics, now, phase));
        match self.rules.readiness {
            Readiness::Spawned => self.ready(now),
            Readiness::Told { .. } => {}
            Readiness::Asked(timing) => self.readiness = Some(Schedule::new(timing, now)),
        }
    }

    /// It is ready, and was not before in this life.
    fn ready(&mut self, now: Time) {
        if !matches!(self.now, Now::Starting) || self.pid.is_none() {
            return;
        }
        self.be_up(now);
        if self.rules.readiness != Readiness::Spawned {
            self.was_ready = true;
            self.runs = true;
            self.runs_at = None;
            self.say(Event::Running);
            self.say(Event::Healthy { after: now.since(self.began) });
        }
    }

    fn be_up(&mut self, now: Time) {
        self.unit.handle(now, unit::Input::Ready(self.incarnation()));
        self.now = Now::Up;
        self.start_by = None;
        self.stable_at = Some(now + self.rules.restart.stable);
        self.alive_by = self.rules.watchdog.map(|limit| now + limit);
        self.liveness = self.rules.liveness.map(|timing| Schedule::of_well(timing, now));
    }

    fn answered(&mut self, now: Time, check: Check, answer: Result<(), String>) {
        if !self.is_watched() {
            return;
        }
        let schedule = if check == Check::Readiness { &mut self.readiness } else { &mut self.liveness };
        let Some(change) = schedule.as_mut().and_then(|schedule| schedule.answered(now, answer.clone())) else {
            return;
        };
        let reason = answer.err().unwrap_or_default();
        match (check, change) {
            (Check::Readiness, Change::Healthy) if matches!(self.now, Now::Starting) => self.ready(now),
            (Check::Readiness, Change::Healthy) => {
                self.now = Now::Up;
                self.stable_at = Some(now + self.rules.restart.stable);
                self.say(Event::Healthy { after: now.since(self.began) });
            }
            (Check::Readiness, Change::Unhealthy) => {
                self.now = Now::Unhealthy;
                self.stable_at = None;
                self.say(Event::Unhealthy { reason: reason.clone() });
                if self.rules.restart_unhealthy {
                    self.fail(now, ExitCause::Unhealthy { reason }, true);
                }
            }
            (Check::Liveness, Change::Healthy) => {}
            (Check::Liveness, Change::Unhealthy) => self.fail(now, ExitCause::Unhealthy { reason }, true),
        }
    }

    fn measured(&mut self, at: Time, usage: Option<TreeUsage>) {
        if !self.is_watched() {
            return;
        }
        let Some((sample, crossings)) = self.metrics.as_mut().and_then(|metrics| metrics.measured(at, usage)) else {
            return;
        };
        self.say(Event::Metrics { sample });
        for Crossing { gauge, value, above, is_high } in crossings {
            self.say(match is_high {
                true => Event::UsageHigh { gauge, value, above },
                false => Event::UsageNormal { gauge, value, above },
            });
        }
    }

    /// Does what the unit says.
    fn follow(&mut self, now: Time) {
        while let Some(effect) = self.unit.poll_effect() {
            match effect {
                unit::Effect::Spawn(incarnation) => self.begin(now, incarnation),
                unit::Effect::Terminate(of) => self.effects.push_back(Effect::Terminate(of)),
                unit::Effect::Kill(of) => self.effects.push_back(Effect::Kill(of)),
                unit::Effect::Unkillable(_) => {
                    let pid = self.pid;
                    self.say(Event::Unkillable { pid });
                }
                unit::Effect::Down { cause, .. } => self.down(now, cause),
                // A service has no calls and no link: it is never drained.
                unit::Effect::SendDrain(_) | unit::Effect::CloseLink(_) => {}
            }
        }
    }

    fn begin(&mut self, now: Time, incarnation: Incarnation) {
        self.has_returned = matches!(self.now, Now::Backoff { .. });
        self.now = Now::Starting;
        self.began = now;
        self.lived = Duration::ZERO;
        self.lived_before = Duration::ZERO;
        self.was_ready = false;
        self.runs = false;
        self.is_to_return = false;
        self.readiness = None;
        self.liveness = None;
        self.start_by = Some(now + self.rules.start_limit);
        self.say(Event::Starting { incarnation });
        self.effects.push_back(Effect::Spawn(incarnation));
    }

    fn down(&mut self, now: Time, cause: ExitCause) {
        let was_spawned = self.pid.is_some();
        self.lived = if was_spawned { self.lived(now) } else { Duration::ZERO };
        self.end();
        self.pid = None;
        self.metrics = None;
        if !self.is_wanted {
            self.now = Now::Stopped;
            // Of an earlier life it is, where there was no process to end.
            let status = self.status.filter(|_| was_spawned);
            return self.say(Event::Stopped { status });
        }
        let success = match cause {
            ExitCause::Exited(status) if self.rules.restart.is_success(status) => Some(status),
            _ => None,
        };
        // What could not be started the first time is a mistake, and not bad luck.
        let is_mistake = !self.has_lived;
        let is_to_restart = !is_mistake && (self.is_to_return || self.rules.restart.follows(success.is_some()));
        let restart = if is_to_restart { self.restarts.next(now) } else { None };
        self.is_to_return = false;
        self.now = match (restart, success) {
            (Some(delay), _) => Now::Backoff { until: now + delay },
            (None, _) if is_to_restart => Now::GaveUp,
            (None, Some(_)) => Now::Completed,
            (None, None) => Now::Failed,
        };
        self.say(match success {
            Some(status) => Event::Completed { status, restart },
            None => Event::Crashed {
                cause: cause.clone(),
                lived: self.lived,
                restart,
                restarts: self.restarts.counted(),
                max: self.rules.restart.max,
            },
        });
        self.cause = Some(cause);
        match restart {
            Some(after) => self.unit.handle(now, unit::Input::Start { after }),
            None if is_to_restart => {
                let restarts = self.restarts.counted();
                self.say(Event::GaveUp { restarts });
            }
            None => {}
        }
    }
}
