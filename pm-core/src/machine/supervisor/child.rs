//! One process of a service, beside its life: what is asked of it, why it was not started, and which conditions it is in.

use std::sync::Arc;
use std::time::Duration;

use super::super::cause::ExitCause;
use super::super::life::Life;
use super::super::service::{Condition, State, Verdict, label};
use super::super::time::Time;
use crate::units::rounded;

/// What is asked of one process, and could not be done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Start { with_needs: bool },
    Stop { limit: Option<Duration>, then: Then },
}

/// What follows when it has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    Start { with_needs: bool },
    Remove,
}

/// Why a process was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skip {
    /// What it needs and does not get.
    pub(super) on: String,
    pub(super) reason: String,
}

#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) name: Arc<str>,
    pub(super) replica: u32,
    pub(super) life: Life,
    pub(super) request: Option<Request>,
    /// What is to follow once it has ended, where it is ending for a request.
    pub(super) then: Then,
    /// What it needs mattered at its last start, and does at the next that follows from that.
    pub(super) minds_needs: bool,
    pub(super) skipped: Option<Skip>,
    /// What it was last said to wait for.
    pub(super) waits_for: Option<String>,
}

impl Child {
    pub(super) fn state(&self) -> State {
        match (&self.request, self.life.state()) {
            (Some(Request::Start { .. }), state) if !state.is_up() => State::Waiting,
            (_, state) if !state.is_up() && self.skipped.is_some() => State::Skipped,
            (_, state) => state,
        }
    }

    /// Whether it is to be forgotten once it has ended.
    pub(super) fn is_going(&self) -> bool {
        self.then == Then::Remove || matches!(self.request, Some(Request::Stop { then: Then::Remove, .. }))
    }

    /// Whether it has begun what it was started for, and neither stops on request nor is about to start: what changes now it may not have seen.
    pub(super) fn may_have_missed(&self) -> bool {
        self.request.is_none() && self.then == Then::Nothing && self.skipped.is_none() && self.life.is_wanted()
    }

    /// It was to go, and is not any more. Where it was told to end already it comes back.
    pub(super) fn stay(&mut self) {
        if self.then == Then::Remove {
            self.then = Then::Start { with_needs: self.minds_needs };
        } else {
            self.request = None;
        }
    }

    pub(super) fn how_it_ended(&self) -> String {
        let cause = self.life.cause().map_or_else(|| "ended".into(), ExitCause::to_string);
        match self.life.cause() {
            // These have no time of their own, or say it.
            Some(ExitCause::NotStarted { .. } | ExitCause::NotReady { .. }) | None => cause,
            Some(_) => format!("{cause} after {}", rounded(self.life.lived(Time::ZERO))),
        }
    }

    pub(super) fn verdict(&self, condition: Condition) -> Verdict {
        let label = label(&self.name, self.replica);
        let state = self.state();
        let is_restarting = self.then != Then::Nothing && self.then != Then::Remove
            || matches!(self.request, Some(Request::Stop { then: Then::Start { .. }, .. }));
        if is_restarting {
            return Verdict::NotYet(format!("{label} is being restarted"));
        }
        let not_yet = || Verdict::NotYet(format!("{label} is {state}"));
        let never = || {
            Verdict::Never(match state {
                State::Idle => format!("{label} is not started"),
                State::Failed | State::GaveUp => format!("{label} failed: {}", self.how_it_ended()),
                State::Completed => format!("{label} has completed"),
                State::Skipped => match &self.skipped {
                    Some(skip) => format!("{label} was skipped: it {}", skip.reason),
                    None => format!("{label} was skipped"),
                },
                _ => format!("{label} was stopped"),
            })
        };
        let is_over = state.is_over();
        match condition {
            Condition::Started
                if self.life.was_spawned() && !matches!(state, State::Waiting | State::Skipped | State::Stopped) =>
            {
                Verdict::Holds
            }
            Condition::Running if matches!(state, State::Running | State::Healthy | State::Unhealthy) => Verdict::Holds,
            Condition::Running if state == State::Starting && self.life.runs() => Verdict::Holds,
            Condition::Healthy if state == State::Healthy => Verdict::Holds,
            Condition::LogReady if self.life.was_ready() && matches!(state, State::Healthy | State::Completed) => {
                Verdict::Holds
            }
            Condition::Completed if state == State::Completed => Verdict::Holds,
            Condition::Completed if matches!(state, State::Failed | State::GaveUp) && self.life.was_spawned() => {
                Verdict::Holds
            }
            Condition::CompletedSuccessfully if state == State::Completed => Verdict::Holds,
            _ if is_over => never(),
            _ => not_yet(),
        }
    }
}
