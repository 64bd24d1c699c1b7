//! Those who wait for something to come about, and what they are told.

use tokio::sync::oneshot;

use super::Task;
use crate::driver::clock;
use crate::face::service::{NoService, RemoveError, StartError, Stopped, WaitError};
use crate::machine::cause::ExitCause;
use crate::machine::exit::ExitStatus;
use crate::machine::life::Check;
use crate::machine::service::{Condition, Readiness, ServiceId, State, Verdict};

/// So many lines are told of a service that failed.
const LAST_LINES: usize = 20;

/// Somebody who waits for something to come about.
pub(super) enum Waiter {
    Start { names: Vec<String>, answer: oneshot::Sender<Result<(), StartError>> },
    Scale { name: String, answer: oneshot::Sender<Result<(), StartError>> },
    Stop { ids: Vec<ServiceId>, stopped: Vec<Stopped>, answer: StopAnswer },
    Condition { name: String, condition: Condition, answer: oneshot::Sender<Result<(), WaitError>> },
}

pub(super) enum StopAnswer {
    Some(oneshot::Sender<Result<Vec<Stopped>, NoService>>),
    All(oneshot::Sender<Vec<Stopped>>),
    Removed(oneshot::Sender<Result<Vec<Stopped>, RemoveError>>),
}

impl Task {
    /// Whoever waits for a number of replicas that is not wanted any more is told so.
    pub(super) fn overtake(&mut self, name: &str) {
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter {
                Waiter::Scale { name: of, answer, .. } if of == name => {
                    let _ = answer.send(Err(StartError::Overtaken { service: of }));
                }
                other => self.waiters.push(other),
            }
        }
    }

    /// Notes how a process ended on request, for all that wait for that: it may be started again before they are looked after.
    pub(super) fn has_stopped(&mut self, id: ServiceId, status: Option<ExitStatus>) {
        let Some(member) = self.members.get(&id) else { return };
        let stopped = member.stopped(status);
        for waiter in &mut self.waiters {
            if let Waiter::Stop { ids, stopped: all, .. } = waiter
                && ids.contains(&id)
            {
                ids.retain(|other| *other != id);
                all.push(stopped.clone());
            }
        }
    }

    pub(super) fn look_after_waiters(&mut self) {
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter {
                Waiter::Start { names, answer } => match self.have_come_up(&names) {
                    None if answer.is_closed() => {}
                    None => self.waiters.push(Waiter::Start { names, answer }),
                    Some(result) => drop(answer.send(result)),
                },
                Waiter::Scale { name, answer } => {
                    // Those that are too many must have gone. How many there are then may be for somebody else to say, who has asked since.
                    let is_whole = !self.machine.replicas(&name).iter().any(|id| self.machine.is_going(*id));
                    match is_whole.then(|| self.have_come_up(std::slice::from_ref(&name))).flatten() {
                        None if answer.is_closed() => {}
                        None => self.waiters.push(Waiter::Scale { name, answer }),
                        Some(result) => drop(answer.send(result)),
                    }
                }
                Waiter::Condition { name, condition, answer } => match self.machine.verdict(&name, condition) {
                    Verdict::NotYet(_) if answer.is_closed() => {}
                    Verdict::NotYet(_) => self.waiters.push(Waiter::Condition { name, condition, answer }),
                    Verdict::Holds => drop(answer.send(Ok(()))),
                    Verdict::Never(why) => {
                        let path = self.machine.path_to_failure(&name);
                        let output = self.last_words(path.last().unwrap_or(&name));
                        let why = self.with_port(path.last().unwrap_or(&name), why);
                        drop(answer.send(Err(WaitError::Never { service: name, condition, why, path, output })));
                    }
                },
                Waiter::Stop { mut ids, stopped, answer } => {
                    // One that somebody wants up again before it was told to end does not stop.
                    ids.retain(|id| self.machine.is_stopping(*id));
                    if !ids.is_empty() {
                        self.waiters.push(Waiter::Stop { ids, stopped, answer });
                        continue;
                    }
                    match answer {
                        StopAnswer::Some(answer) => drop(answer.send(Ok(stopped))),
                        StopAnswer::All(answer) => drop(answer.send(stopped)),
                        StopAnswer::Removed(answer) => drop(answer.send(Ok(stopped))),
                    }
                }
            }
        }
    }

    /// Whether all of them are up: ready, where something says that they are. None where that is not known yet.
    pub(super) fn have_come_up(&self, names: &[String]) -> Option<Result<(), StartError>> {
        let mut all = Some(Ok(()));
        for name in names {
            if !self.machine.contains(name) {
                // Somebody has removed it meanwhile.
                return Some(Err(StartError::Stopped { service: name.clone() }));
            }
            let readiness = self.definitions.get(name).map_or(Readiness::Spawned, |one| one.rules.readiness);
            let condition = if readiness == Readiness::Spawned { Condition::Started } else { Condition::Healthy };
            let has_completed = self.machine.verdict(name, Condition::CompletedSuccessfully) == Verdict::Holds;
            match self.machine.verdict(name, condition) {
                _ if has_completed || self.machine.replicas(name).is_empty() => {}
                Verdict::Holds => {}
                Verdict::NotYet(_) => all = None,
                Verdict::Never(why) => return Some(Err(self.why_not(name, why))),
            }
        }
        all
    }

    pub(super) fn why_not(&self, name: &str, why: String) -> StartError {
        let path = self.machine.path_to_failure(name);
        let service = path.last().map_or(name, String::as_str).to_string();
        let output = self.last_words(&service);
        let ids = self.machine.replicas(&service);
        if path.len() > 1 {
            let why =
                self.machine.replicas(name).iter().find_map(|id| self.machine.why(clock::now(), *id)).unwrap_or(why);
            return StartError::DependencyFailed { path, why, output };
        }
        if let Some(error) = ids.iter().find_map(|id| self.members.get(id)?.not_started.as_ref()) {
            return error.error(service);
        }
        if ids.iter().any(|id| self.machine.state(*id) == Some(State::Stopped)) {
            return StartError::Stopped { service };
        }
        let failed = ids.iter().find_map(|id| self.machine.life(*id).filter(|life| life.cause().is_some()));
        match failed.and_then(|life| life.cause()) {
            Some(ExitCause::NotReady { limit, .. }) => {
                let last = failed.and_then(|life| life.schedule(Check::Readiness)?.last()?.as_ref().err().cloned());
                let port = ids.iter().find_map(|id| self.members.get(id)?.port.clone());
                StartError::Timeout { service, limit: *limit, said: last, port, output }
            }
            cause => {
                let words = ids.iter().find_map(|id| self.machine.why(clock::now(), *id));
                let why = self.with_port(&service, words.unwrap_or(why));
                StartError::Failed { service, cause: cause.cloned(), why, output }
            }
        }
    }

    /// What a service printed last in its last life, for an error.
    pub(super) fn last_words(&self, name: &str) -> Vec<String> {
        let member = self.machine.replicas(name).iter().filter_map(|id| self.members.get(id));
        member.flat_map(|member| member.sink.last_of_this_life(LAST_LINES)).collect()
    }

    /// Why a service is not up, with who else holds its port.
    pub(super) fn with_port(&self, name: &str, why: String) -> String {
        let has_one = |id: &ServiceId| self.members.get(id).filter(|member| member.port.is_some());
        match self.machine.replicas(name).iter().find_map(has_one) {
            Some(member) => member.with_port(Some(why)).unwrap_or_default(),
            None => why,
        }
    }
}
