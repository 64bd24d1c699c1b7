//! One worker in another one's place, while both are well: the new one serves before the old one leaves.
//!
//! ```text
//!   recycle: a successor starts ──▶ it is ready: the old one drains ──▶ the old one is gone: done
//!                │        │
//!                │        └ it is down: failed, and the old one serves on
//!                └ the old one is to leave anyway, or the pool serves no more: called off
//! ```
//!
//! Until it is ready, a successor counts for nothing: not as a worker of the pool, and not against its budget.

use std::time::Duration;

use super::{Duty, Effect, Phase, Pool};
use crate::machine::event::Event;
use crate::machine::id::WorkerId;
use crate::machine::recycle::{Reason, Swapped};
use crate::machine::time::Time;
use crate::machine::unit;

/// A replacement under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swap {
    old: WorkerId,
    new: WorkerId,
    reason: Reason,
    /// How long the old one may drain.
    drain: Option<Duration>,
    /// The new one serves.
    is_ready: bool,
}

impl Pool {
    /// Starts a successor for a worker that serves, if none is under way.
    pub(super) fn recycle(&mut self, now: Time, old: WorkerId, reason: Reason, drain: Option<Duration>) {
        let serves = self.is_current(old) && self.worker(old) == Some(unit::Phase::Ready);
        if !serves || self.phase != Phase::Serving || self.swap.is_some() {
            self.effects.push_back(Effect::Recycled(old, Swapped::CalledOff));
            return;
        }
        let new = self.start_new(now, Duty::Successor);
        self.swap = Some(Swap { old, new, reason, drain, is_ready: false });
    }

    /// The successor is ready: it takes the place of the old one, which drains. Nobody who changes the size of the pool waits for that.
    pub(super) fn succeed(&mut self, now: Time, worker: WorkerId) {
        let Some(swap) = self.swap.as_mut().filter(|swap| swap.new == worker) else { return };
        swap.is_ready = true;
        let Swap { old, new, reason, drain, .. } = *swap;
        let generation = self.generation;
        if let Some(member) = self.members.get_mut(&new) {
            member.duty = Duty::Active { generation };
        }
        if let Some(member) = self.members.get(&old) {
            let incarnation = member.unit.incarnation();
            self.effects.push_back(Effect::Report(Event::Recycled { worker: old, incarnation, by: new, reason }));
        }
        self.release(now, old, drain.map(|drain| now + drain));
        if let Some(member) = self.members.get_mut(&old) {
            member.duty = Duty::Replaced;
        }
    }

    /// The successor is down before it was ready. `is_wanted` says that nobody called it off.
    pub(super) fn successor_down(&mut self, worker: WorkerId, is_wanted: bool) {
        if let Some(swap) = self.swap.take_if(|swap| swap.new == worker) {
            let swapped = if is_wanted { Swapped::Failed } else { Swapped::CalledOff };
            self.effects.push_back(Effect::Recycled(swap.old, swapped));
        }
    }

    /// Ends a replacement that is done, or that has no point any more.
    pub(super) fn settle_swap(&mut self, now: Time) {
        let Some(Swap { old, new, is_ready, .. }) = self.swap else { return };
        if is_ready {
            if !self.members.contains_key(&old) {
                self.swap = None;
                self.effects.push_back(Effect::Recycled(old, Swapped::Done));
            }
            return;
        }
        let is_successor = self.members.get(&new).is_some_and(|member| member.duty == Duty::Successor);
        if self.phase != Phase::Serving || !is_successor || !self.is_current(old) {
            self.swap = None;
            self.release(now, new, None);
            self.effects.push_back(Effect::Recycled(old, Swapped::CalledOff));
        }
    }

    fn is_current(&self, worker: WorkerId) -> bool {
        let duty = Duty::Active { generation: self.generation };
        self.members.get(&worker).is_some_and(|member| member.duty == duty)
    }
}
