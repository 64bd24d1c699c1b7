//! Services that need each other: who starts and stops, in which order, and who cannot.
//!
//! A request is noted for each service that it is about, and [`Supervisor::handle`] then does what is due, again and again until
//! nothing is: whoever is to start does so once all that it needs is there, and is skipped once that can no longer be; whoever is to
//! stop does so once nobody who stops too still needs it. So everything starts as early as it may, and stops in reverse.

mod child;
mod replace;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::graph::{BadGraph, Graph};
use super::life::{self, Life};
use super::restart::When;
use super::service::{Condition, Event, Need, Readiness, Rules, ServiceId, State, Verdict};
use super::time::Time;
use crate::units::rounded;
use child::{Child, Request, Skip, Then};
pub use replace::{Replaced, Replacement};

/// What is wanted of services, or happened to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start these.
    Start {
        /// Their names.
        names: Vec<String>,
        /// Start what they need first. Otherwise they start at once, whatever they need.
        with_needs: bool,
    },
    /// Stop these, those first that need others of them.
    Stop {
        /// Their names.
        names: Vec<String>,
        /// From the signal to the kill; none is what the rules of each say.
        limit: Option<Duration>,
    },
    /// Stop all. What is still there at the deadline is killed, whoever needs it.
    StopAll {
        /// None gives each the time that its rules say.
        deadline: Option<Time>,
    },
    /// Stop these and what is started anew with them, then start them.
    Restart {
        /// Their names.
        names: Vec<String>,
    },
    /// Have so many replicas of a service.
    Scale {
        /// Its name.
        name: String,
        /// How many.
        replicas: u32,
    },
    /// Stop a service and forget it. Nobody may need it.
    Remove {
        /// Its name.
        name: String,
    },
    /// What happened to one process.
    Life(ServiceId, life::Input),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// For one process.
    Life(ServiceId, life::Effect),
    /// A further replica exists.
    Added(ServiceId),
    /// It begins anew as what it was last replaced by: its next process runs that.
    Renewed(ServiceId),
    /// This process of a service will never be heard of again.
    Removed(ServiceId),
}

/// A service that cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadService {
    /// Its needs, or its name.
    #[error(transparent)]
    Graph(#[from] BadGraph),
    /// It needs something of another one that never comes.
    #[error("{from:?} needs {on:?} to be {condition}, but {hint}")]
    NeverReady {
        /// What has the need.
        from: String,
        /// The other one.
        on: String,
        /// What it is to be.
        condition: Condition,
        /// What to do.
        hint: &'static str,
    },
}

/// Why one that is always started again cannot be needed to end.
const NO_END: &str = "it is always started again: have it restart on failure alone, or need something else of it";

/// Why a restart is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Somebody wants it.
    ByName,
    /// What it is restarted with comes back from a crash, or was replaced.
    Along,
}

/// Where the jitter of a process comes from.
fn seed_of(seed: u64, id: ServiceId) -> u64 {
    seed.wrapping_add(u64::from(id.0))
}

#[derive(Clone, Debug)]
struct Group {
    rules: Arc<Rules>,
    children: Vec<ServiceId>,
    /// How many processes it was said to have when it was added or replaced. It may have been scaled since.
    replicas: u32,
    /// It goes with its last process. Without that it may have none, and get some again.
    is_leaving: bool,
}

/// All services of one manager. See the [module](self).
#[derive(Clone, Debug)]
pub struct Supervisor {
    groups: BTreeMap<Arc<str>, Group>,
    children: BTreeMap<ServiceId, Child>,
    /// The names, each after all that it needs.
    order: Vec<Arc<str>>,
    next_id: u32,
    seed: u64,
    kill_at: Option<Time>,
    effects: VecDeque<Effect>,
}

impl Supervisor {
    /// Without any service. `seed` is where the jitter of delays comes from.
    pub fn new(seed: u64) -> Self {
        Supervisor {
            groups: BTreeMap::new(),
            children: BTreeMap::new(),
            order: Vec::new(),
            next_id: 1,
            seed,
            kill_at: None,
            effects: VecDeque::new(),
        }
    }

    /// Adds services, each with a number of replicas. They may need each other and those that are there; where one of them cannot be
    /// added, none is. [`Effect::Added`] follows for each replica.
    ///
    /// # Errors
    /// [`BadService`] for a name that is taken, a need of something that does not exist or is never ready, and a cycle, with its path.
    pub fn add(&mut self, services: Vec<(String, Rules, u32)>) -> Result<(), BadService> {
        let known = self.order.iter().map(|name| (&**name, &*self.groups[name].rules));
        let all: Vec<(&str, &Rules)> =
            known.chain(services.iter().map(|(name, rules, _)| (name.as_str(), rules))).collect();
        let order = sorted(&all, &[])?;
        // What leaves does not start any more, so that its conditions do not matter.
        let is_leaving = |name: &str| self.groups.get(name).is_some_and(|group| group.is_leaving);
        let staying: Vec<(&str, &Rules)> = all.iter().copied().filter(|(name, _)| !is_leaving(name)).collect();
        check_conditions(&staying, &all)?;
        self.order = order;
        for (name, rules, replicas) in services {
            self.insert(name.into(), rules, replicas);
        }
        Ok(())
    }

    fn insert(&mut self, name: Arc<str>, rules: Rules, replicas: u32) {
        let group = Group { rules: Arc::new(rules), children: Vec::new(), replicas, is_leaving: false };
        self.groups.insert(name.clone(), group);
        for _ in 0..replicas {
            self.add_child(&name);
        }
    }

    /// Whether there is a service of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.groups.contains_key(name)
    }

    /// The names, each after all that it needs.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(|name| &**name)
    }

    /// The processes of a service, the first replica first.
    pub fn replicas(&self, name: &str) -> &[ServiceId] {
        self.groups.get(name).map_or(&[], |group| &group.children)
    }

    /// What a service needs.
    pub fn needs(&self, name: &str) -> &[Need] {
        self.groups.get(name).map_or(&[], |group| &group.rules.needs)
    }

    /// Who needs a service, directly.
    pub fn needed_by(&self, name: &str) -> Vec<&str> {
        let needs = |other: &&str| self.needs(other).iter().any(|need| need.on == name);
        self.names().filter(needs).collect()
    }

    /// The service that a process is of, and which replica it is, from 1.
    pub fn name_of(&self, id: ServiceId) -> Option<(&str, u32)> {
        self.children.get(&id).map(|child| (&*child.name, child.replica))
    }

    /// The life of a process of a service.
    pub fn life(&self, id: ServiceId) -> Option<&Life> {
        self.children.get(&id).map(|child| &child.life)
    }

    /// What a process of a service is doing.
    pub fn state(&self, id: ServiceId) -> Option<State> {
        self.children.get(&id).map(Child::state)
    }

    /// Why it is in the state that it is in, where that needs words.
    pub fn why(&self, now: Time, id: ServiceId) -> Option<String> {
        let child = self.children.get(&id)?;
        let life = &child.life;
        let last = |check| life.schedule(check).and_then(|s| s.last()).and_then(|last| last.as_ref().err()).cloned();
        match child.state() {
            State::Waiting => child.waits_for.clone(),
            State::Skipped => child.skipped.as_ref().map(|skip| skip.reason.clone()),
            State::Starting => last(life::Check::Readiness).map(|said| format!("not ready yet: {said}")),
            State::Unhealthy => last(life::Check::Readiness),
            State::Failed => Some(child.how_it_ended()),
            State::GaveUp => Some(format!("{}, after {} restarts", child.how_it_ended(), life.counted_restarts())),
            State::Backoff => {
                let starts_in = life.starts_at().map_or(Duration::ZERO, |at| at.since(now));
                Some(format!("{}; starts again in {}", child.how_it_ended(), rounded(starts_in)))
            }
            State::Completed => life.status().map(|status| status.to_string()),
            State::Idle | State::Running | State::Healthy | State::Stopping | State::Stopped => None,
        }
    }

    /// The names from a service that was skipped to the one that failed, along what each needs; the service alone where it was not skipped.
    pub fn path_to_failure(&self, name: &str) -> Vec<String> {
        let mut path = vec![name.to_string()];
        while let Some(on) =
            self.replicas(&path[path.len() - 1]).iter().find_map(|id| self.children[id].skipped.as_ref())
        {
            path.push(on.on.clone());
        }
        path
    }

    /// Whether a service, all its replicas, is in a condition.
    pub fn verdict(&self, name: &str, condition: Condition) -> Verdict {
        let Some(group) = self.groups.get(name) else { return Verdict::Never(format!("there is no {name}")) };
        if group.children.is_empty() {
            return Verdict::Never(format!("{name} has no replicas"));
        }
        let mut all = Verdict::Holds;
        for id in &group.children {
            match self.children[id].verdict(condition) {
                Verdict::Holds => {}
                never @ Verdict::Never(_) => return never,
                not_yet if all == Verdict::Holds => all = not_yet,
                Verdict::NotYet(_) => {}
            }
        }
        all
    }

    /// Whether a process of a service is to end on request, and has not. A start that was asked for since then may follow that end, or
    /// have taken its place.
    pub fn is_stopping(&self, id: ServiceId) -> bool {
        self.children.get(&id).is_some_and(|child| {
            let is_asked = matches!(child.request, Some(Request::Stop { .. }));
            is_asked || child.life.ends_for_good()
        })
    }

    /// Whether a process of a service is to be forgotten once it has ended.
    pub fn is_going(&self, id: ServiceId) -> bool {
        self.children.get(&id).is_some_and(Child::is_going)
    }

    /// Whether a process of a service was started and nobody has asked it to stop since, so that it may not have seen what changes now. One that is
    /// about to start will.
    pub fn may_have_missed(&self, id: ServiceId) -> bool {
        self.children.get(&id).is_some_and(Child::may_have_missed)
    }

    /// Whether a process of any service is there, or is about to be.
    pub fn is_up(&self) -> bool {
        self.children.values().any(|child| child.request.is_some() || child.life.state().is_up())
    }

    /// Takes an input. [`Supervisor::poll_effect`] then says what to do.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Start { names, with_needs } => {
                let named: BTreeSet<&str> = names.iter().map(String::as_str).collect();
                let all = if with_needs { self.with_needs(&named) } else { named.iter().map(|&n| n.into()).collect() };
                for name in all {
                    self.request_start(&name, named.contains(&*name), with_needs);
                }
            }
            Input::Stop { names, limit } => {
                for name in names {
                    self.request_stop(&name, limit, Then::Nothing);
                }
            }
            Input::StopAll { deadline } => {
                self.kill_at = Time::earliest(self.kill_at, deadline);
                for name in self.order.clone() {
                    self.request_stop(&name, None, Then::Nothing);
                }
            }
            Input::Restart { names } => {
                for name in names {
                    self.restart(&name);
                }
            }
            Input::Scale { name, replicas } => self.scale(&name, replicas),
            Input::Remove { name } => {
                if self.needed_by(&name).is_empty() {
                    if let Some(group) = self.groups.get_mut(&*name) {
                        group.is_leaving = true;
                    }
                    self.request_stop(&name, None, Then::Remove);
                    self.forget_if_left(&name);
                }
            }
            Input::Life(id, input) => {
                // What one uses decides nothing for the others.
                let is_sample = matches!(input, life::Input::Measured(..));
                if let Some(child) = self.children.get_mut(&id) {
                    child.life.handle(now, input);
                    self.follow(id);
                }
                if is_sample {
                    return;
                }
            }
        }
        self.settle(now);
    }

    /// When [`Supervisor::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.children.values().filter_map(|child| child.life.poll_timeout()).chain(self.kill_at).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.kill_at.take_if(|at| *at <= now).is_some() {
            let ids: Vec<ServiceId> = self.children.keys().copied().collect();
            for id in ids {
                let Some(child) = self.children.get_mut(&id) else { continue };
                if let Some(Request::Stop { then, .. }) = child.request.take() {
                    child.then = then;
                }
                child.life.handle(now, life::Input::Kill);
                self.follow(id);
            }
        }
        let due = |child: &Child| child.life.poll_timeout().is_some_and(|at| at <= now);
        let ids: Vec<ServiceId> = self.children.iter().filter(|(_, child)| due(child)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(child) = self.children.get_mut(&id) {
                child.life.handle_timeout(now);
                self.follow(id);
            }
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn say(&mut self, id: ServiceId, event: Event) {
        self.effects.push_back(Effect::Life(id, life::Effect::Event(event)));
    }

    /// Takes what a life wants done, and restarts those who restart with it.
    fn follow(&mut self, id: ServiceId) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let mut comes_back = false;
        while let Some(effect) = child.life.poll_effect() {
            comes_back |= matches!(
                &effect,
                life::Effect::Event(
                    Event::Crashed { restart: Some(_), .. } | Event::Completed { restart: Some(_), .. }
                )
            );
            if let life::Effect::Event(Event::Starting { .. }) = &effect {
                child.skipped = None;
            }
            self.effects.push_back(Effect::Life(id, effect));
        }
        if comes_back {
            let name = child.name.clone();
            for name in self.restarted_with(&name) {
                self.request_restart(&name, Asked::Along);
            }
        }
    }

    /// These, and all that they need by however many steps, in starting order.
    fn with_needs(&self, named: &BTreeSet<&str>) -> Vec<String> {
        let mut wanted: BTreeSet<&str> = named.iter().copied().filter(|name| self.contains(name)).collect();
        for name in self.order.iter().rev() {
            if wanted.contains(&**name) {
                wanted.extend(self.needs(name).iter().map(|need| need.on.as_str()));
            }
        }
        self.names().filter(|name| wanted.contains(name)).map(Into::into).collect()
    }

    /// What is started anew whenever this one is, by however many steps, in starting order.
    fn restarted_with(&self, name: &str) -> Vec<Arc<str>> {
        let mut affected: BTreeSet<&str> = BTreeSet::from([name]);
        let mut all = Vec::new();
        for other in &self.order {
            if self.needs(other).iter().any(|need| need.restart && affected.contains(need.on.as_str())) {
                affected.insert(other);
                all.push(other.clone());
            }
        }
        all
    }

    /// `is_named` is false for those that are only needed: what they have completed they need not do again.
    fn request_start(&mut self, name: &str, is_named: bool, with_needs: bool) {
        for id in self.replicas(name).to_vec() {
            let Some(child) = self.children.get_mut(&id) else { continue };
            if child.is_going() {
                continue;
            }
            if !is_named && child.life.state() == State::Completed {
                continue;
            }
            match &mut child.request {
                // It has not been told to stop yet: then it need not.
                Some(Request::Stop { then, .. }) if *then == Then::Nothing => child.request = None,
                Some(Request::Stop { .. }) => continue,
                Some(Request::Start { .. }) | None => {}
            }
            match child.life.state() {
                State::Starting | State::Running | State::Healthy | State::Unhealthy => {}
                State::Stopping => child.then = Then::Start { with_needs },
                _ => {
                    child.skipped = None;
                    child.request = Some(Request::Start { with_needs });
                }
            }
        }
    }

    fn request_stop(&mut self, name: &str, limit: Option<Duration>, then: Then) {
        for id in self.replicas(name).to_vec() {
            self.request_stop_of(id, limit, then);
        }
    }

    fn request_stop_of(&mut self, id: ServiceId, limit: Option<Duration>, then: Then) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let earlier = match child.request {
            Some(Request::Stop { then, .. }) => then,
            _ => child.then,
        };
        let then = if earlier == Then::Remove { Then::Remove } else { then };
        child.then = Then::Nothing;
        child.request = Some(Request::Stop { limit, then });
    }

    fn restart(&mut self, name: &str) {
        self.request_restart(name, Asked::ByName);
        // One that is not up is just started: nobody has to go down with it.
        for other in self.restarted_with(name) {
            self.request_restart(&other, Asked::ByName);
        }
        let is_down = |id: &ServiceId| !self.children[id].life.state().is_up();
        if self.replicas(name).iter().all(is_down) {
            self.request_start(name, true, true);
        }
    }

    /// Has what is up stop and start again.
    fn request_restart(&mut self, name: &str, asked: Asked) {
        for id in self.replicas(name).to_vec() {
            let is_up = self.children.get(&id).is_some_and(|child| {
                // A stop that was asked for never restarts, whoever crashes meanwhile.
                let is_leaving = match (&child.request, child.then) {
                    (Some(Request::Stop { then, .. }), _) => !matches!(then, Then::Start { .. }),
                    (_, Then::Start { .. }) => false,
                    _ => child.life.ends_for_good(),
                };
                child.life.state().is_up() && (asked == Asked::ByName || !is_leaving)
            });
            if is_up {
                let with_needs = self.children.get(&id).is_none_or(|child| child.minds_needs);
                self.request_stop_of(id, None, Then::Start { with_needs });
            }
        }
    }

    fn scale(&mut self, name: &str, replicas: u32) {
        let Some((name, group)) = self.groups.get_key_value(name).filter(|(_, group)| !group.is_leaving) else {
            return;
        };
        let (name, ids) = (name.clone(), group.children.clone());
        let is_up = |id: &ServiceId| {
            let child = &self.children[id];
            child.life.state().is_up() || matches!(child.request, Some(Request::Start { .. }))
        };
        let any_up = ids.is_empty() || ids.iter().any(is_up);
        let (going, staying): (Vec<ServiceId>, Vec<ServiceId>) =
            ids.iter().partition(|id| self.children[id].is_going());
        for id in staying.iter().skip(replicas as usize) {
            self.request_stop_of(*id, None, Then::Remove);
        }
        let mut missing = (replicas as usize).saturating_sub(staying.len());
        for id in going.into_iter().take(missing) {
            missing -= 1;
            if let Some(child) = self.children.get_mut(&id) {
                child.stay();
            }
        }
        for _ in 0..missing {
            let id = self.add_child(&name);
            if any_up && let Some(child) = self.children.get_mut(&id) {
                child.request = Some(Request::Start { with_needs: true });
            }
        }
    }

    fn add_child(&mut self, name: &Arc<str>) -> ServiceId {
        let id = ServiceId(self.next_id);
        self.next_id += 1;
        let Some(group) = self.groups.get_mut(name) else { return id };
        let taken: BTreeSet<u32> =
            group.children.iter().filter_map(|id| self.children.get(id)).map(|c| c.replica).collect();
        let replica = (1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX);
        let life = Life::new(group.rules.clone(), seed_of(self.seed, id));
        group.children.push(id);
        let (name, then) = (name.clone(), Then::Nothing);
        let child =
            Child { name, replica, life, request: None, then, minds_needs: true, skipped: None, waits_for: None };
        self.children.insert(id, child);
        self.effects.push_back(Effect::Added(id));
        id
    }

    fn remove_child(&mut self, id: ServiceId) {
        let Some(child) = self.children.remove(&id) else { return };
        if let Some(group) = self.groups.get_mut(&child.name) {
            group.children.retain(|other| *other != id);
        }
        self.say(id, Event::Removed);
        self.effects.push_back(Effect::Removed(id));
    }

    /// A service that was removed goes with its last process, unless somebody has come to need it meanwhile; and after those that need it and go
    /// as well.
    fn forget_if_left(&mut self, name: &str) {
        let mut left = vec![name.to_string()];
        while let Some(name) = left.pop() {
            let by: Vec<&str> = self.needed_by(&name);
            let is_wanted = by.iter().any(|other| !self.groups[*other].is_leaving);
            let is_needed = !by.is_empty();
            let Some(group) = self.groups.get_mut(&*name) else { continue };
            if !group.is_leaving || !group.children.is_empty() {
                continue;
            }
            if is_wanted {
                group.is_leaving = false;
            }
            if is_needed {
                continue;
            }
            left.extend(group.rules.needs.iter().map(|need| need.on.clone()));
            self.groups.remove(&*name);
            self.order.retain(|known| **known != *name);
        }
    }

    /// Does what is due of what was requested, until nothing is.
    fn settle(&mut self, now: Time) {
        loop {
            let mut is_done = true;
            let ids: Vec<ServiceId> = self.children.keys().copied().collect();
            for id in ids {
                is_done &= !self.settle_change(id);
            }
            for name in self.order.clone().iter().rev() {
                for id in self.replicas(name).to_vec() {
                    is_done &= !self.settle_stop(now, id);
                }
            }
            for name in self.order.clone() {
                for id in self.replicas(&name).to_vec() {
                    is_done &= !self.settle_start(now, id);
                }
            }
            if is_done {
                break;
            }
        }
        if self.kill_at.is_some() && !self.is_up() {
            self.kill_at = None;
        }
    }

    /// Whether something was done.
    fn settle_stop(&mut self, now: Time, id: ServiceId) -> bool {
        let Some(child) = self.children.get(&id) else { return false };
        if let Some(Request::Stop { limit, then }) = child.request {
            if self.is_still_needed(&child.name.clone()) {
                return false;
            }
            let Some(child) = self.children.get_mut(&id) else { return false };
            let was_waiting = child.waits_for.take().is_some();
            child.request = None;
            child.then = then;
            let was_up = child.life.state().is_up();
            child.life.handle(now, life::Input::Stop { limit });
            self.follow(id);
            if was_waiting && !was_up {
                self.say(id, Event::Stopped { status: None });
            }
            return true;
        }
        if child.then == Then::Nothing || child.life.state() == State::Stopping {
            return false;
        }
        let (then, state) = (child.then, child.life.state());
        match then {
            Then::Remove => {
                let name = child.name.clone();
                self.remove_child(id);
                self.forget_if_left(&name);
            }
            Then::Start { with_needs } => {
                if let Some(child) = self.children.get_mut(&id) {
                    child.then = Then::Nothing;
                    // One that was not well comes back by itself.
                    if !matches!(state, State::Starting | State::Running | State::Healthy | State::Unhealthy) {
                        child.skipped = None;
                        child.request = Some(Request::Start { with_needs });
                    }
                }
            }
            Then::Nothing => {}
        }
        true
    }

    /// Whether somebody who is to stop, or stops, needs a service that is to stop.
    fn is_still_needed(&self, name: &str) -> bool {
        let mut affected: BTreeSet<&str> = BTreeSet::from([name]);
        // What still lives as it was before it was replaced has the needs of then, but those that have turned round: nobody waits for who waits for him.
        for other in self.order.iter().skip_while(|other| &***other != name).skip(1) {
            let is_affected = |need: &Need| affected.contains(need.on.as_str());
            if !self.needs(other).iter().any(is_affected) && !self.needs_of_old(other).any(is_affected) {
                continue;
            }
            affected.insert(other);
            let stops = |id: &ServiceId| {
                let child = &self.children[id];
                let state = child.life.state();
                child.life.ends_for_good() || state.is_up() && matches!(child.request, Some(Request::Stop { .. }))
            };
            if self.replicas(other).iter().any(stops) {
                return true;
            }
        }
        false
    }

    /// Whether something was done.
    fn settle_start(&mut self, now: Time, id: ServiceId) -> bool {
        let Some(child) = self.children.get(&id) else { return false };
        let Some(Request::Start { with_needs }) = child.request else { return false };
        let needs = if with_needs { self.needs(&child.name) } else { &[] };
        let mut waits_for = None;
        for need in needs {
            match self.verdict(&need.on, need.condition) {
                Verdict::Holds => {}
                Verdict::NotYet(what) => waits_for = waits_for.or(Some(format!("needs {need}; {what}"))),
                Verdict::Never(why) => {
                    let skip = Skip { on: need.on.clone(), reason: format!("needs {need}; {why}") };
                    return self.skip(id, skip);
                }
            }
        }
        let Some(child) = self.children.get_mut(&id) else { return false };
        match waits_for {
            Some(reason) => {
                if child.waits_for.as_ref() != Some(&reason) {
                    child.waits_for = Some(reason.clone());
                    self.say(id, Event::Waiting { reason });
                }
                false
            }
            None => {
                child.waits_for = None;
                child.request = None;
                child.minds_needs = with_needs;
                self.renew(id);
                let Some(child) = self.children.get_mut(&id) else { return false };
                child.life.handle(now, life::Input::Start);
                self.follow(id);
                true
            }
        }
    }

    fn skip(&mut self, id: ServiceId, skip: Skip) -> bool {
        let Some(child) = self.children.get_mut(&id) else { return false };
        child.request = None;
        child.waits_for = None;
        let reason = skip.reason.clone();
        child.skipped = Some(skip);
        self.say(id, Event::Skipped { reason });
        true
    }
}

/// The names of services, each after all that it needs, and after the second of each of these pairs of which it is the first.
fn sorted(services: &[(&str, &Rules)], more: &[(&str, &str)]) -> Result<Vec<Arc<str>>, BadGraph> {
    let names: Vec<&str> = services.iter().map(|(name, _)| *name).collect();
    let needs = services.iter().flat_map(|(name, rules)| rules.needs.iter().map(|need| (*name, need.on.as_str())));
    let needs: Vec<(&str, &str)> = needs.chain(more.iter().copied()).collect();
    let graph = Graph::new(&names, &needs)?;
    Ok(graph.order().iter().map(|&at| Arc::from(names[at])).collect())
}

/// Looks for needs of these services that can never be. What they need is among `all`.
fn check_conditions(services: &[(&str, &Rules)], all: &[(&str, &Rules)]) -> Result<(), BadService> {
    let rules: BTreeMap<&str, &Rules> = all.iter().copied().collect();
    for (name, own) in services {
        for need in &own.needs {
            let other = rules[need.on.as_str()];
            let hint = match (need.condition, other.readiness) {
                (Condition::Healthy, Readiness::Spawned) => {
                    "nothing says when it is: give it a probe, or need it to be running"
                }
                (Condition::LogReady, Readiness::Spawned | Readiness::Asked(_))
                | (Condition::LogReady, Readiness::Told { by_line: false }) => {
                    "nothing says when it is: name the line that it prints then"
                }
                (Condition::CompletedSuccessfully, _) if other.restart.when == When::Always => NO_END,
                (Condition::Completed, _) if other.restart.never_ends() => NO_END,
                _ => continue,
            };
            return Err(BadService::NeverReady {
                from: name.to_string(),
                on: need.on.clone(),
                condition: need.condition,
                hint,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
