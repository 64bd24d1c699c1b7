//! All services at once in place of those that there are: who comes, who goes, who begins anew, and who is left alone.
//!
//! A change is noted with the group alone, as other rules. Whoever is up under rules that are not those of its group any more is stopped as these say, and
//! started as those of the group say (`settle_change`); whoever is down begins so whenever it is started. So it does not matter in the midst of what a
//! service was replaced.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::service::{Need, Rules, ServiceId, State};
use super::super::time::Time;
use super::child::Then;
use super::{Asked, BadService, Effect, Supervisor, check_conditions, seed_of, sorted};

/// A service that there is to be.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// Its name. Where there is one of that name it is the same service.
    pub name: String,
    /// What it lives under.
    pub rules: Rules,
    /// How many processes it has, where that is another number than it was said to have before.
    pub replicas: u32,
    /// What runs is something else, whatever its rules say.
    pub is_changed: bool,
}

/// What came of a replacement. Names that are in none of these are those of services that were left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Those that there were not, and those that were about to go.
    pub added: Vec<String>,
    /// Those that are something else now, or have another number of processes.
    pub changed: Vec<String>,
    /// Those that are stopped, where they are up, and then forgotten.
    pub removed: Vec<String>,
}

impl Replaced {
    /// Whether all was as it is to be.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Supervisor {
    /// Has these services in place of those that there are. Where one of them cannot be, nothing changes.
    ///
    /// Those that are not named are stopped and forgotten, those first that need others. Those that are new are added, and not started. Of those that
    /// are changed the processes that are up are stopped, as they were, and started again, as they are now, with what they need and was never started;
    /// so are those that are restarted with them. Whatever was not changed is not touched. One that was removed and has not ended stays.
    ///
    /// # Errors
    /// [`BadService`] for a name that stands twice, a need of something that is not among them or is never ready, and a cycle, with its path.
    pub fn replace(&mut self, now: Time, services: Vec<Replacement>) -> Result<Replaced, BadService> {
        let order = self.order_with(&services)?;
        let mut replaced = Replaced::default();
        let wanted: BTreeSet<&str> = services.iter().map(|one| one.name.as_str()).collect();
        let gone = |name: &&Arc<str>| !wanted.contains(&***name) && !self.groups[&***name].is_leaving;
        let gone: Vec<Arc<str>> = self.order.iter().filter(gone).cloned().collect();
        self.order = order;
        let mut scaled = Vec::new();
        for Replacement { name, rules, replicas, is_changed } in services {
            let Some(group) = self.groups.get_mut(&*name) else {
                self.insert(name.as_str().into(), rules, replicas);
                replaced.added.push(name);
                continue;
            };
            let was_leaving = std::mem::take(&mut group.is_leaving);
            let is_scaled = std::mem::replace(&mut group.replicas, replicas) != replicas;
            let is_other = is_changed || *group.rules != rules;
            if is_other {
                group.rules = Arc::new(rules);
            }
            if was_leaving && group.children.is_empty() {
                // Nothing of it is left but its name, which others that leave still need.
                let name: Arc<str> = name.as_str().into();
                for _ in 0..replicas {
                    self.add_child(&name);
                }
            } else if was_leaving || is_scaled {
                scaled.push((name.clone(), replicas));
            }
            if was_leaving {
                replaced.added.push(name);
            } else if is_other || is_scaled {
                replaced.changed.push(name);
            }
        }
        for name in gone.iter().rev() {
            if let Some(group) = self.groups.get_mut(name) {
                group.is_leaving = true;
            }
            self.request_stop(name, None, Then::Remove);
        }
        for name in gone.iter().rev() {
            self.forget_if_left(name);
        }
        for (name, replicas) in scaled {
            self.scale(&name, replicas);
        }
        replaced.removed.extend(gone.iter().map(ToString::to_string));
        self.settle(now);
        Ok(replaced)
    }

    /// The order in which all stand that are to be or still leave. What still lives as it was is before what it needed then, where that can be.
    fn order_with(&self, services: &[Replacement]) -> Result<Vec<Arc<str>>, BadService> {
        let mut all: Vec<(&str, &Rules)> = services.iter().map(|one| (one.name.as_str(), &one.rules)).collect();
        sorted(&all, &[])?;
        check_conditions(&all, &all)?;
        let wanted: BTreeSet<&str> = all.iter().map(|(name, _)| *name).collect();
        let leaving = self.order.iter().filter(|name| !wanted.contains(&***name));
        // Nobody who stays needs one that leaves, and those that leave need each other as they did: there is no cycle.
        all.extend(leaving.map(|name| (&**name, &*self.groups[name].rules)));
        let known: BTreeSet<&str> = all.iter().map(|(name, _)| *name).collect();
        let old: Vec<(&str, &str)> = self
            .children
            .values()
            .filter(|child| child.life.state().is_up())
            .flat_map(|child| child.life.rules().needs.iter().map(|need| (&*child.name, need.on.as_str())))
            .filter(|(_, on)| known.contains(on))
            .collect();
        Ok(sorted(&all, &old).or_else(|_| sorted(&all, &[]))?)
    }

    /// What processes of a service that are up need that was replaced meanwhile.
    pub(super) fn needs_of_old(&self, name: &str) -> impl Iterator<Item = &Need> {
        let ids = self.replicas(name).iter().filter(|id| self.is_outdated(**id));
        let up = ids.filter_map(|id| self.children.get(id)).filter(|child| child.life.state().is_up());
        up.flat_map(|child| &child.life.rules().needs)
    }

    /// Whether a process of a service is what that was before it was replaced.
    fn is_outdated(&self, id: ServiceId) -> bool {
        self.children.get(&id).is_some_and(|child| {
            self.groups.get(&child.name).is_some_and(|group| !Arc::ptr_eq(child.life.rules(), &group.rules))
        })
    }

    /// Has one that is down, and is about to start, be what its service is now.
    pub(super) fn renew(&mut self, id: ServiceId) {
        if !self.is_outdated(id) {
            return;
        }
        let seed = seed_of(self.seed, id);
        if let Some(child) = self.children.get_mut(&id)
            && let Some(group) = self.groups.get(&child.name)
            && !child.life.state().is_up()
        {
            child.life = child.life.renewed(group.rules.clone(), seed);
            self.effects.push_back(Effect::Renewed(id));
        }
    }

    /// Has one that is up, and would go on as it was before it was replaced, stop and start again. Whether something was done.
    pub(super) fn settle_change(&mut self, id: ServiceId) -> bool {
        let Some(child) = self.children.get(&id) else { return false };
        let life = &child.life;
        let ends = life.ends_for_good();
        let goes_on = child.request.is_none() && child.then == Then::Nothing && life.state().is_up() && !ends;
        if !goes_on || !self.is_outdated(id) {
            return false;
        }
        let (name, with_needs) = (child.name.clone(), child.minds_needs);
        if with_needs {
            // What was added with the change, as a rule.
            for on in self.with_needs(&BTreeSet::from([&*name])) {
                let is_new = |id: &ServiceId| self.children[id].state() == State::Idle;
                if *on != *name && self.replicas(&on).iter().all(is_new) {
                    self.request_start(&on, false, true);
                }
            }
        }
        self.request_stop_of(id, None, Then::Start { with_needs });
        for other in self.restarted_with(&name) {
            self.request_restart(&other, Asked::Along);
        }
        true
    }
}
