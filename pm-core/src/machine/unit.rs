//! The life of one process.
//!
//! ```text
//!             start          spawned, ready           drain             drained              (ask: from Starting and Ready to Asked)
//!   Idle ──────────▶ Starting ─────────────▶ Ready ─────────▶ Draining ─────────▶ Leaving (or Asked, by a signal)
//!                     ▲   │                    │                 │ deadline          │ grace
//!             restart │   │ start timeout      │ lost, violation │                   ▼
//!                     │   ▼                    ▼  stuck, kill    ▼               Terminated
//!                     │  Killed ◀──────────────┴─────────────────┴───────────────────┘ grace
//!                     │   │ exited (as from every state above)
//!   Backoff ──────────┘   ▼
//!      ▲                 Down ──▶ (restart | give up: the owner decides)
//!      └──────────────────┘
//! ```
//!
//! Every input about a process carries its incarnation; one of an earlier incarnation is dropped and counted.

use std::collections::VecDeque;
use std::time::Duration;

use super::cause::ExitCause;
use super::exit::{ExitStatus, Signal};
use super::id::Incarnation;
use super::time::Time;

/// After SIGKILL, a process that is still there after this long cannot be killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A link mostly ends because its process does: the exit status is worth this wait.
const EXIT_AFTER_LINK: Duration = Duration::from_secs(1);

/// The times that a unit keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the start to READY.
    pub start: Duration,
    /// From the end of its work to its exit, and again from SIGTERM to SIGKILL.
    pub stop_grace: Duration,
}

impl Default for Times {
    /// 30 s to start, 2 s of grace.
    fn default() -> Self {
        Times { start: Duration::from_secs(30), stop_grace: Duration::from_secs(2) }
    }
}

/// What happened to a unit, or is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start its next incarnation, after a delay.
    Start {
        /// The delay.
        after: Duration,
    },
    /// Its process exists.
    Spawned(Incarnation),
    /// Its process could not be made.
    NotSpawned(Incarnation, String),
    /// It serves.
    Ready(Incarnation),
    /// Let it finish what it has, until a deadline, then end it.
    Drain {
        /// None waits for as long as its calls take.
        deadline: Option<Time>,
    },
    /// It has no call left, and this is how it learns that it should leave.
    Drained(Incarnation, Farewell),
    /// Ask it to leave by a signal, whatever it is doing, and end it where it has not left by the deadline.
    Ask {
        /// Why.
        cause: ExitCause,
        /// None waits for as long as it takes.
        deadline: Option<Time>,
    },
    /// End it now.
    Kill(ExitCause),
    /// End this incarnation now, for something that it did.
    Fail(Incarnation, ExitCause),
    /// Its link ended.
    LinkLost(Incarnation, String),
    /// Its process ended.
    Exited(Incarnation, ExitStatus),
}

/// How a process that has nothing left to do learns that it should leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Farewell {
    /// Its link is closed. It has only to end, and has the stop grace for that.
    #[default]
    Link,
    /// By SIGTERM, for it has no link that it could see the end of. Nobody knows what it still has to do: it has all the time of the drain.
    Signal,
}

/// What is to be done about the process of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make the process, link it and shake hands.
    Spawn(Incarnation),
    /// Tell it that no further call follows.
    SendDrain(Incarnation),
    /// Close its link.
    CloseLink(Incarnation),
    /// Send SIGTERM.
    Terminate(Incarnation),
    /// Kill its whole tree.
    Kill(Incarnation),
    /// It is down. What follows is for its owner to decide.
    Down {
        /// Which life ended.
        incarnation: Incarnation,
        /// Why.
        cause: ExitCause,
        /// Whether it had been ready.
        was_ready: bool,
    },
    /// It was killed and is still there.
    Unkillable(Incarnation),
}

/// What a unit looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was never started.
    Idle,
    /// It waits for its next start.
    Backoff,
    /// Its process is being made, or has not said READY.
    Starting,
    /// It serves.
    Ready,
    /// It finishes what it has.
    Draining,
    /// It is being ended.
    Stopping,
    /// It is down.
    Down,
}

#[derive(Clone, Debug)]
enum State {
    Idle,
    Backoff {
        until: Time,
    },
    Starting {
        until: Time,
        limit: Duration,
    },
    Ready,
    Draining {
        until: Option<Time>,
    },
    Leaving {
        until: Time,
    },
    /// It was asked to leave by a signal, and finishes what it has.
    Asked {
        until: Option<Time>,
    },
    Terminated {
        until: Time,
    },
    /// The link went first; the exit status may follow.
    Orphaned {
        reason: String,
        until: Time,
    },
    Killed {
        until: Time,
    },
    Down,
}

/// One supervised process, through all its incarnations. See the [module](self).
#[derive(Clone, Debug)]
pub struct Unit {
    times: Times,
    state: State,
    incarnation: Incarnation,
    /// Why it is being ended, where pm does it.
    cause: Option<ExitCause>,
    was_ready: bool,
    stale: u64,
    effects: VecDeque<Effect>,
}

impl Unit {
    /// A unit that was never started.
    pub fn new(times: Times) -> Self {
        Unit {
            times,
            state: State::Idle,
            incarnation: Incarnation(0),
            cause: None,
            was_ready: false,
            stale: 0,
            effects: VecDeque::new(),
        }
    }

    /// From its next incarnation on it has these times.
    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// What it looks like.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Idle => Phase::Idle,
            State::Backoff { .. } => Phase::Backoff,
            State::Starting { .. } => Phase::Starting,
            State::Ready => Phase::Ready,
            State::Draining { .. } | State::Asked { .. } => Phase::Draining,
            State::Leaving { .. } | State::Terminated { .. } | State::Orphaned { .. } | State::Killed { .. } => {
                Phase::Stopping
            }
            State::Down => Phase::Down,
        }
    }

    /// Which life this is.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Inputs about earlier incarnations that were dropped.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// Takes an input. [`Unit::poll_effect`] then says what to do.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Start { after } => self.start(now, after),
            Input::Drain { deadline } => self.drain(now, deadline),
            Input::Ask { cause, deadline } => self.ask(now, cause, deadline),
            Input::Kill(cause) => self.kill(now, cause),
            Input::Spawned(of)
            | Input::NotSpawned(of, _)
            | Input::Ready(of)
            | Input::Drained(of, _)
            | Input::Fail(of, _)
            | Input::LinkLost(of, _)
            | Input::Exited(of, _)
                if of != self.incarnation || matches!(self.state, State::Down) =>
            {
                self.stale += 1;
            }
            Input::Spawned(_) => {}
            Input::NotSpawned(_, reason) => {
                let cause = self.cause.take().unwrap_or(ExitCause::NotStarted { reason });
                self.down(cause);
            }
            Input::Ready(of) => {
                if let State::Starting { .. } = self.state {
                    self.state = State::Ready;
                    self.was_ready = true;
                } else if let State::Draining { .. } = self.state {
                    self.effects.push_back(Effect::SendDrain(of));
                }
            }
            Input::Drained(of, way) => {
                if let State::Draining { until } = self.state {
                    let (effect, state) = match way {
                        Farewell::Link => {
                            (Effect::CloseLink(of), State::Leaving { until: now + self.times.stop_grace })
                        }
                        Farewell::Signal => (Effect::Terminate(of), State::Asked { until }),
                    };
                    self.effects.push_back(effect);
                    self.state = state;
                }
            }
            Input::Fail(_, cause) => self.kill(now, cause),
            Input::LinkLost(_, reason) => self.link_lost(now, reason),
            Input::Exited(_, status) => {
                let cause = match self.state {
                    State::Draining { .. } | State::Leaving { .. } if status == ExitStatus::Code(0) => {
                        ExitCause::Requested
                    }
                    // It had nothing left, and nobody can say that it ended badly.
                    State::Leaving { .. } if status == ExitStatus::Lost => ExitCause::Requested,
                    State::Asked { .. } if self.cause.is_none() && is_leave(status) => ExitCause::Requested,
                    State::Terminated { .. } => ExitCause::Requested,
                    _ => self.cause.take().unwrap_or(ExitCause::Exited(status)),
                };
                self.down(cause);
            }
        }
    }

    /// When [`Unit::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Idle | State::Ready | State::Down => None,
            State::Draining { until } | State::Asked { until } => until,
            State::Backoff { until }
            | State::Starting { until, .. }
            | State::Leaving { until }
            | State::Terminated { until }
            | State::Orphaned { until, .. }
            | State::Killed { until } => Some(until),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let of = self.incarnation;
        match &self.state {
            State::Backoff { .. } => self.spawn(now),
            State::Starting { limit, .. } => {
                let cause = ExitCause::StartTimeout { limit: *limit };
                self.kill(now, cause);
            }
            State::Draining { .. } | State::Asked { .. } => self.kill(now, ExitCause::Requested),
            State::Leaving { .. } => {
                self.effects.push_back(Effect::Terminate(of));
                self.state = State::Terminated { until: now + self.times.stop_grace };
            }
            State::Terminated { .. } => self.kill(now, ExitCause::Requested),
            State::Orphaned { reason, .. } => {
                let cause = ExitCause::LinkLost { reason: reason.clone() };
                self.kill(now, cause);
            }
            State::Killed { .. } => {
                self.effects.push_back(Effect::Unkillable(of));
                let cause = self.cause.take().unwrap_or(ExitCause::Requested);
                self.down(cause);
            }
            State::Idle | State::Ready | State::Down => {}
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn start(&mut self, now: Time, after: Duration) {
        match self.state {
            State::Idle | State::Down if after.is_zero() => self.spawn(now),
            State::Idle | State::Down => self.state = State::Backoff { until: now + after },
            _ => {}
        }
    }

    fn spawn(&mut self, now: Time) {
        self.incarnation.0 += 1;
        self.cause = None;
        self.was_ready = false;
        let limit = self.times.start;
        self.state = State::Starting { until: now + limit, limit };
        self.effects.push_back(Effect::Spawn(self.incarnation));
    }

    fn drain(&mut self, now: Time, deadline: Option<Time>) {
        match self.state {
            State::Idle | State::Backoff { .. } => {
                self.state = State::Down;
                self.effects.push_back(Effect::Down {
                    incarnation: self.incarnation,
                    cause: ExitCause::Requested,
                    was_ready: false,
                });
            }
            State::Starting { .. } => self.kill(now, ExitCause::Requested),
            State::Ready => {
                self.state = State::Draining { until: deadline };
                self.effects.push_back(Effect::SendDrain(self.incarnation));
            }
            State::Draining { until } => self.state = State::Draining { until: Time::earliest(until, deadline) },
            State::Asked { until } => self.state = State::Asked { until: Time::earliest(until, deadline) },
            _ => {}
        }
    }

    fn ask(&mut self, now: Time, cause: ExitCause, deadline: Option<Time>) {
        match self.state {
            State::Starting { .. } | State::Ready | State::Draining { .. } | State::Orphaned { .. } => {
                self.cause.get_or_insert(cause);
                self.state = State::Asked { until: deadline };
                self.effects.push_back(Effect::Terminate(self.incarnation));
            }
            State::Asked { .. } | State::Idle | State::Backoff { .. } => self.drain(now, deadline),
            State::Leaving { .. } | State::Terminated { .. } | State::Killed { .. } | State::Down => {}
        }
    }

    fn kill(&mut self, now: Time, cause: ExitCause) {
        match self.state {
            State::Idle | State::Backoff { .. } => self.drain(now, None),
            State::Killed { .. } | State::Down => {}
            _ => {
                self.cause.get_or_insert(cause);
                self.state = State::Killed { until: now + KILL_LIMIT };
                self.effects.push_back(Effect::Kill(self.incarnation));
            }
        }
    }

    fn link_lost(&mut self, now: Time, reason: String) {
        match self.state {
            State::Starting { .. } | State::Ready => {
                self.state = State::Orphaned { reason, until: now + EXIT_AFTER_LINK };
            }
            State::Draining { .. } => self.state = State::Leaving { until: now + self.times.stop_grace },
            _ => {}
        }
    }

    fn down(&mut self, cause: ExitCause) {
        self.state = State::Down;
        self.cause = None;
        let (incarnation, was_ready) = (self.incarnation, self.was_ready);
        self.effects.push_back(Effect::Down { incarnation, cause, was_ready });
    }
}

/// How a process ends that was asked to: by itself, or by the signal that asks, as the shell says it too.
fn is_leave(status: ExitStatus) -> bool {
    match status {
        ExitStatus::Code(code) => code == 0 || code == 128 + Signal::TERM.0,
        ExitStatus::Signal { signal, .. } => signal == Signal::TERM.0,
        ExitStatus::Lost => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Incarnation = Incarnation(1);

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn started() -> Unit {
        let mut unit = Unit::new(Times::default());
        unit.handle(at(0), Input::Start { after: Duration::ZERO });
        assert_eq!(effects(&mut unit), [Effect::Spawn(ONE)]);
        unit.handle(at(0), Input::Spawned(ONE));
        unit
    }

    fn ready() -> Unit {
        let mut unit = started();
        unit.handle(at(1), Input::Ready(ONE));
        assert_eq!(unit.phase(), Phase::Ready);
        unit
    }

    fn effects(unit: &mut Unit) -> Vec<Effect> {
        std::iter::from_fn(|| unit.poll_effect()).collect()
    }

    fn down(cause: ExitCause, was_ready: bool) -> Effect {
        Effect::Down { incarnation: ONE, cause, was_ready }
    }

    #[test]
    fn a_launch_that_was_given_up_has_the_cause_of_that() {
        let mut unit = Unit::new(Times::default());
        unit.handle(at(1), Input::Start { after: Duration::ZERO });
        let limit = Times::default().start;
        unit.handle_timeout(at(1) + limit);
        unit.handle(at(40_000), Input::NotSpawned(ONE, "given up".to_string()));
        let expected = [Effect::Spawn(ONE), Effect::Kill(ONE), down(ExitCause::StartTimeout { limit }, false)];
        assert_eq!(effects(&mut unit), expected);
    }

    #[test]
    fn a_drained_worker_leaves_by_itself() {
        let mut unit = ready();
        unit.handle(at(2), Input::Drain { deadline: Some(at(1000)) });
        unit.handle(at(3), Input::Drained(ONE, Farewell::Link));
        unit.handle(at(4), Input::Exited(ONE, ExitStatus::Code(0)));
        let expected = [Effect::SendDrain(ONE), Effect::CloseLink(ONE), down(ExitCause::Requested, true)];
        assert_eq!(effects(&mut unit), expected);
    }

    #[test]
    fn one_that_leaves_by_a_signal_has_the_time_of_the_drain() {
        let term = ExitStatus::Signal { signal: 15, core: false };
        for (status, is_leave) in [(term, true), (ExitStatus::Code(143), true), (ExitStatus::Code(1), false)] {
            let mut unit = ready();
            unit.handle(at(2), Input::Drain { deadline: None });
            unit.handle(at(3), Input::Drained(ONE, Farewell::Signal));
            assert_eq!((unit.phase(), unit.poll_timeout()), (Phase::Draining, None));
            unit.handle(at(90_000), Input::Exited(ONE, status));
            let cause = if is_leave { ExitCause::Requested } else { ExitCause::Exited(status) };
            assert_eq!(effects(&mut unit), [Effect::SendDrain(ONE), Effect::Terminate(ONE), down(cause, true)]);
        }
        let mut unit = ready();
        unit.handle(at(2), Input::Drain { deadline: Some(at(50)) });
        unit.handle(at(3), Input::Drained(ONE, Farewell::Signal));
        unit.handle(at(4), Input::Drain { deadline: Some(at(40)) });
        unit.handle_timeout(at(39));
        assert_eq!(effects(&mut unit), [Effect::SendDrain(ONE), Effect::Terminate(ONE)]);
        unit.handle_timeout(at(40));
        assert_eq!(effects(&mut unit), [Effect::Kill(ONE)]);
        // A signal of somebody else, while it has work to do, is none of that.
        let mut unit = ready();
        unit.handle(at(2), Input::Drain { deadline: None });
        unit.handle(at(3), Input::Exited(ONE, term));
        assert_eq!(effects(&mut unit), [Effect::SendDrain(ONE), down(ExitCause::Exited(term), true)]);
    }

    #[test]
    fn one_that_does_not_leave_is_terminated_then_killed_then_given_up() {
        let mut unit = ready();
        unit.handle(at(2), Input::Drain { deadline: None });
        unit.handle(at(3), Input::Drained(ONE, Farewell::Link));
        let mut seen = effects(&mut unit);
        while let Some(due) = unit.poll_timeout() {
            unit.handle_timeout(due);
            seen.extend(effects(&mut unit));
        }
        let expected = [
            Effect::SendDrain(ONE),
            Effect::CloseLink(ONE),
            Effect::Terminate(ONE),
            Effect::Kill(ONE),
            Effect::Unkillable(ONE),
            down(ExitCause::Requested, true),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_exit_status_explains_a_lost_link() {
        let mut unit = ready();
        unit.handle(at(5), Input::LinkLost(ONE, "end of file".into()));
        unit.handle(at(6), Input::Exited(ONE, ExitStatus::Code(3)));
        assert_eq!(effects(&mut unit), [down(ExitCause::Exited(ExitStatus::Code(3)), true)]);

        let mut unit = ready();
        unit.handle(at(5), Input::LinkLost(ONE, "end of file".into()));
        unit.handle_timeout(unit.poll_timeout().unwrap());
        unit.handle(at(900), Input::Exited(ONE, ExitStatus::Code(0)));
        let cause = ExitCause::LinkLost { reason: "end of file".into() };
        assert_eq!(effects(&mut unit), [Effect::Kill(ONE), down(cause, true)]);
    }

    #[test]
    fn a_death_while_draining_is_still_a_death() {
        let mut unit = ready();
        unit.handle(at(2), Input::Drain { deadline: None });
        unit.handle(at(3), Input::Exited(ONE, ExitStatus::Code(4)));
        assert_eq!(effects(&mut unit), [Effect::SendDrain(ONE), down(ExitCause::Exited(ExitStatus::Code(4)), true)]);
    }

    #[test]
    fn a_start_has_a_limit_and_a_drain_a_deadline() {
        let mut unit = started();
        unit.handle_timeout(unit.poll_timeout().unwrap());
        unit.handle(at(40_000), Input::Exited(ONE, ExitStatus::Code(0)));
        let cause = ExitCause::StartTimeout { limit: Duration::from_secs(30) };
        assert_eq!(effects(&mut unit), [Effect::Kill(ONE), down(cause, false)]);

        let mut unit = ready();
        unit.handle(at(5), Input::Drain { deadline: None });
        assert_eq!(unit.poll_timeout(), None);
        unit.handle(at(5), Input::Drain { deadline: Some(at(50)) });
        unit.handle_timeout(at(49));
        assert_eq!(effects(&mut unit), [Effect::SendDrain(ONE)]);
        unit.handle_timeout(at(50));
        assert_eq!(effects(&mut unit), [Effect::Kill(ONE)]);
    }

    #[test]
    fn news_of_an_earlier_life_is_dropped() {
        let mut unit = ready();
        unit.handle(at(2), Input::Exited(ONE, ExitStatus::Code(1)));
        unit.handle(at(3), Input::Start { after: Duration::from_millis(10) });
        assert_eq!(unit.phase(), Phase::Backoff);
        unit.handle_timeout(at(13));
        effects(&mut unit);
        unit.handle(at(14), Input::Exited(ONE, ExitStatus::Code(1)));
        unit.handle(at(14), Input::Ready(ONE));
        assert_eq!((unit.phase(), unit.stale(), unit.incarnation()), (Phase::Starting, 2, Incarnation(2)));
        assert_eq!(effects(&mut unit), []);
    }

    #[test]
    fn a_start_that_waits_can_be_called_off() {
        let mut unit = Unit::new(Times::default());
        unit.handle(at(0), Input::Start { after: Duration::from_secs(1) });
        unit.handle(at(1), Input::Kill(ExitCause::Requested));
        assert_eq!(unit.phase(), Phase::Down);
        assert_eq!(unit.poll_timeout(), None);
    }
}
