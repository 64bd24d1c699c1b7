//! Workers that are replaced while they are well: what the task tells [`machine::recycle`](crate::machine::recycle), and what it does for it.

use std::sync::atomic::Ordering;

use super::task::{PoolTask, Wait};
use crate::driver::clock;
use crate::driver::start::Starter;
use crate::driver::usage;
use crate::machine::id::WorkerId;
use crate::machine::pool;
use crate::machine::recycle::{Effect, Input, Swapped};
use crate::machine::time::Time;

impl<S: Starter> PoolTask<S> {
    /// Looks for workers that are to be replaced, and begins with the next one. True where that left something for the task to carry out.
    pub(super) fn tend_wear(&mut self, now: Time) -> bool {
        if self.pool.shared.worn.swap(false, Ordering::SeqCst) {
            for link in &*self.pool.links.load_full() {
                self.recycling.handle(now, Input::Answered(link.worker, link.answered()));
            }
        }
        if self.recycling.poll_timeout().is_some_and(|due| due <= now) {
            self.recycling.handle_timeout(now);
        }
        let mut is_begun = false;
        while let Some(effect) = self.recycling.poll_effect() {
            match effect {
                Effect::Measure => self.measure(now),
                Effect::Recycle { worker, reason } => {
                    let drain = self.recycling.settings().drain_limit();
                    self.input(pool::Input::Recycle { worker, reason, drain });
                    is_begun = true;
                }
            }
        }
        is_begun
    }

    /// Looks at the memory of all workers that are processes.
    fn measure(&mut self, now: Time) {
        let me = std::process::id();
        for link in self.pool.links.load_full().iter().filter(|link| link.pid != me) {
            if let Some(bytes) = usage::resident(link.pid) {
                self.recycling.handle(now, Input::Measured(link.worker, bytes));
            }
        }
    }

    /// A replacement came to its end.
    pub(super) fn swapped(&mut self, worker: WorkerId, swapped: Swapped) {
        let was_asked_for = self.recycling.is_pending();
        self.recycling.handle(clock::now(), Input::Swapped(worker, swapped));
        if swapped == Swapped::Failed
            && was_asked_for
            && let Some(error) = self.last_failure.clone()
        {
            self.start_failed(Wait::Recycled, error);
        }
    }
}
