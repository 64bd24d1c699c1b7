//! What is told of services when somebody asks.

use super::{NAMED, Task};
use crate::driver::clock;
use crate::face::service::{
    Answered, AttachError, Attached, AttachedInput, AttachedOutput, Info, Measured, NoService, ProbeInfo,
};
use crate::machine::life::{Check, Life};
use crate::machine::metrics::Watch;
use crate::machine::service::{ServiceId, State};
use crate::machine::time::Time;

impl Task {
    /// What there is to know of all processes of these services.
    pub(super) fn info(&self, names: &[&str]) -> Vec<Info> {
        let now = clock::now();
        names.iter().flat_map(|name| self.machine.replicas(name)).filter_map(|id| self.info_of(now, *id)).collect()
    }

    pub(super) fn info_of(&self, now: Time, id: ServiceId) -> Option<Info> {
        let (member, life) = (self.members.get(&id)?, self.machine.life(id)?);
        let (name, replica) = self.machine.name_of(id)?;
        let state = self.machine.state(id)?;
        let why = self.machine.why(now, id);
        let why =
            if state.is_up() || matches!(state, State::Failed | State::GaveUp) { member.with_port(why) } else { why };
        Some(Info {
            id,
            name: name.into(),
            label: member.label.clone(),
            replica,
            state,
            why,
            pid: life.pid(),
            incarnation: life.incarnation(),
            restarts: life.restarts(),
            lived: life.lived(now),
            exit: life.status(),
            status: member.status.clone().filter(|_| life.pid().is_some()),
            readiness: probe_info(now, life, Check::Readiness),
            liveness: probe_info(now, life, Check::Liveness),
            metrics: life.metrics().and_then(Watch::last).map(|(at, sample)| Measured { sample, ago: now.since(at) }),
        })
    }

    pub(super) fn last(&self, name: &str, lines: usize) -> Vec<String> {
        self.machine
            .replicas(name)
            .iter()
            .filter_map(|id| self.members.get(id))
            .flat_map(|member| member.sink.last(lines))
            .collect()
    }

    pub(super) fn attach(&self, label: String) -> Result<Attached, AttachError> {
        let Some(member) = self.members.values().find(|member| *member.label == *label) else {
            let known = self.members.values().map(|member| member.label.to_string()).take(NAMED).collect();
            return Err(NoService { name: label, known }.into());
        };
        let Some(tap) = member.sink.tap() else { return Err(AttachError::TooMany { label }) };
        let input = member.definition.takes_input().then(|| AttachedInput(member.inlet.writer()));
        Ok(Attached { input, output: AttachedOutput(tap), is_terminal: member.definition.has_terminal })
    }
}

/// What there is to know of a probe; none where it was not asked in this life.
fn probe_info(now: Time, life: &Life, check: Check) -> Option<ProbeInfo> {
    let schedule = life.schedule(check)?;
    let last = schedule.last().zip(schedule.answered_at());
    Some(ProbeInfo {
        last: last.map(|(result, at)| Answered { result: result.clone(), ago: now.since(at) }),
        failures: schedule.failures(),
        next_in: life.asks_at(check).map(|at| at.since(now)),
    })
}
