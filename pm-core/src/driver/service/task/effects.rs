//! What the machine says, done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Semaphore, mpsc};

use super::super::hook::{MOST_AT_A_TIME, Moment, Occasion};
use super::super::input::Inlet;
use super::super::keep::Left;
use super::super::log::Log;
use super::super::output::{Said, Sink};
use super::super::probe;
use super::super::process::{AbortOnDrop, News, Order, Process};
use super::Task;
use super::member::Member;
use crate::driver::{clock, usage};
use crate::face::service::Happening;
use crate::machine::id::Incarnation;
use crate::machine::life::{self, Check, Life};
use crate::machine::service::{Event, Readiness, ServiceId, label};
use crate::machine::supervisor::Effect;

/// Orders to one process that wait for its task: it is being made, and takes none.
const ORDERS: usize = 16;

impl Task {
    /// Does what the machine says.
    pub(super) fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Added(id) => self.added(id),
                Effect::Renewed(id) => self.renewed(id),
                Effect::Removed(id) => {
                    self.members.remove(&id);
                    self.forget_definitions();
                }
                Effect::Life(id, effect) => self.carry_out_for(id, effect),
            }
        }
    }

    pub(super) fn added(&mut self, id: ServiceId) {
        let Some((name, replica)) = self.machine.name_of(id) else { return };
        let Some(definition) = self.definitions.get(name).cloned() else { return };
        let label: Arc<str> = label(name, replica).into();
        let (news, asides) = (self.news.downgrade(), self.asides.clone());
        let said = move |said| match said {
            Said::Ready(incarnation) => {
                // Never full for long; whoever is ready must not be overheard, so another thread waits for it.
                let Some(news) = news.upgrade() else { return };
                let ready = News::Life(id, life::Input::Ready(incarnation));
                if let Err(mpsc::error::TrySendError::Full(ready)) = news.try_send(ready) {
                    tokio::spawn(async move { drop(news.send(ready).await) });
                }
            }
            // An event, which may be lost.
            Said::LogLost(error) => drop(asides.try_send((id, Event::LogLost { error: error.to_string() }))),
        };
        let (listeners, subscriber) = (self.output.clone(), self.subscriber.clone());
        let sink = Sink::new(id, label.clone(), listeners, subscriber, Box::new(said));
        let member = Member {
            definition,
            label,
            replica,
            sink: Arc::new(sink),
            inlet: Arc::new(Inlet::new()),
            orders: None,
            probes: BTreeMap::new(),
            hooks: Arc::new(Semaphore::new(MOST_AT_A_TIME)),
            has_lost_log: false,
            not_started: None,
            port: None,
            was_killed: false,
            exit: None,
            is_unkillable: false,
            status: None,
            last_pid: None,
        };
        self.members.insert(id, member);
        self.open_log(id);
    }

    /// From its next process on it is as its service is now. Its log is opened anew where that is another one.
    pub(super) fn renewed(&mut self, id: ServiceId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(definition) = self.definitions.get(&member.definition.name).cloned() else { return };
        let old = std::mem::replace(&mut member.definition, definition);
        if old.log != member.definition.log {
            member.sink.close_log();
            member.has_lost_log = false;
        }
    }

    /// Opens the log of a process of a service, unless it is open. Where that fails it is said once, and tried again at the next start.
    pub(super) fn open_log(&mut self, id: ServiceId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(settings) = member.definition.log.as_ref().filter(|_| !member.sink.has_log()) else { return };
        match Log::open(settings.of_replica(member.replica)) {
            Ok(log) => member.sink.log_to(log),
            Err(error) => {
                if !std::mem::replace(&mut member.has_lost_log, true) {
                    self.say(id, Event::LogLost { error: error.to_string() });
                }
            }
        }
    }

    pub(super) fn carry_out_for(&mut self, id: ServiceId, effect: life::Effect) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match effect {
            life::Effect::Spawn(incarnation) => {
                self.open_log(id);
                self.live(id, incarnation, None);
            }
            life::Effect::Ask(incarnation, check) => {
                let definition = member.definition.clone();
                let timing = match (check, definition.rules.readiness) {
                    (Check::Readiness, Readiness::Asked(timing)) => Some(timing),
                    (Check::Readiness, _) => None,
                    (Check::Liveness, _) => definition.rules.liveness,
                };
                let Some(timing) = timing else { return };
                let news = self.news.clone();
                let asked = tokio::spawn(async move {
                    let target = if check == Check::Readiness {
                        definition.health.as_ref()
                    } else {
                        definition.liveness.as_ref()
                    };
                    let answer = match target {
                        Some(target) => probe::ask(target, timing.timeout).await,
                        None => Ok(()),
                    };
                    // Where nobody hears it, all is being dropped.
                    let _ = news.send(News::Life(id, life::Input::Answered(incarnation, check, answer))).await;
                });
                // An earlier one that is still under way ends with that.
                member.probes.insert(check, AbortOnDrop::of(&asked));
            }
            life::Effect::Measure(incarnation, pid) => {
                let (samples, news) = (self.samples.clone(), self.news.clone());
                tokio::spawn(async move {
                    let Ok(_room) = samples.acquire_owned().await else { return };
                    let taken = tokio::task::spawn_blocking(move || (clock::now(), usage::tree(pid))).await;
                    // A runtime that ends takes no more samples.
                    let Ok((at, usage)) = taken else { return };
                    let _ = news.send(News::Life(id, life::Input::Measured(incarnation, at, usage))).await;
                });
            }
            life::Effect::Terminate(_) => {
                let on_purpose = !self.machine.life(id).is_some_and(Life::is_wanted);
                member.order(Order::Terminate { on_purpose });
            }
            life::Effect::Kill(_) => {
                member.was_killed = true;
                member.order(Order::Kill);
            }
            life::Effect::Event(event) => self.happened(id, event),
        }
    }

    /// Has a process of a service live, from its start on or from where it is.
    pub(super) fn live(&mut self, id: ServiceId, incarnation: Incarnation, left: Option<Left>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let (orders, received) = mpsc::channel(ORDERS);
        member.orders = Some(orders);
        member.not_started = None;
        member.port = None;
        member.was_killed = false;
        member.exit = None;
        member.is_unkillable = false;
        member.status = None;
        let process = Process {
            definition: member.definition.clone(),
            id,
            label: member.label.clone(),
            replica: member.replica,
            incarnation,
            sink: member.sink.clone(),
            inlet: member.inlet.clone(),
            output_thread: self.output_thread.clone(),
            listening: self.listening.entry(member.definition.name.clone()).or_default().clone(),
            living: self.living.clone(),
            orders: received,
            news: self.news.clone(),
            keep: self.keep.clone(),
            left,
        };
        self.processes.spawn(process.run());
    }

    pub(super) fn happened(&mut self, id: ServiceId, event: Event) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let moment = match &event {
            Event::Started { pid, .. } => {
                member.last_pid = Some(*pid);
                Some((Moment::Start, None))
            }
            // Its hook has run when it was started.
            Event::Adopted { pid, .. } => {
                member.last_pid = Some(*pid);
                None
            }
            Event::Left { .. } => {
                member.probes.clear();
                member.orders = None;
                None
            }
            Event::Healthy { .. } if self.keep.is_some() => {
                member.order(Order::NoteReady);
                None
            }
            Event::Restarted { .. } => Some((Moment::Restart, None)),
            // One that had no process has not ended.
            Event::Stopped { status } => status.map(|status| (Moment::Stop, Some(status.to_string()))),
            Event::Crashed { cause, .. } => Some((Moment::Crash, Some(cause.to_string()))),
            Event::Unkillable { .. } => {
                member.is_unkillable = true;
                None
            }
            _ => None,
        };
        if matches!(event, Event::Stopped { .. } | Event::Crashed { .. } | Event::Completed { .. }) {
            member.probes.clear();
            member.orders = None;
        }
        if let Event::Crashed { .. } = event
            && let Some(taken) = member.port.clone().filter(|taken| !taken.before_start)
        {
            self.say(id, Event::PortTaken(taken));
        }
        if let Event::Stopped { status } = event {
            self.has_stopped(id, status);
        }
        if let Some((moment, cause)) = moment {
            self.run_hooks(id, moment, cause);
        }
        self.say(id, event);
    }

    pub(super) fn run_hooks(&self, id: ServiceId, moment: Moment, cause: Option<String>) {
        let Some(member) = self.members.get(&id) else { return };
        for (_, hook) in member.definition.hooks.iter().filter(|(of, _)| *of == moment) {
            let Ok(room) = member.hooks.clone().try_acquire_owned() else {
                let error = format!("it was not run: {MOST_AT_A_TIME} that began before it have not ended");
                self.say(id, Event::HookFailed { hook: moment.name(), error });
                continue;
            };
            let (hook, asides) = (hook.clone(), self.asides.clone());
            let occasion =
                Occasion { service: member.label.clone(), moment, pid: member.last_pid, cause: cause.clone() };
            tokio::spawn(async move {
                let result = hook.run(occasion).await;
                drop(room);
                if let Err(error) = result {
                    let _ = asides.send((id, Event::HookFailed { hook: moment.name(), error })).await;
                }
            });
        }
    }

    pub(super) fn say(&self, id: ServiceId, event: Event) {
        let Some(member) = self.members.get(&id) else { return };
        tracing::debug!(target: "pm::service", service = %member.label, ?event);
        // Nobody may listen.
        let _ = self.events.send(Happening { at: SystemTime::now(), id, label: member.label.clone(), event });
    }
}
