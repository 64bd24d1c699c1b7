//! The size of a pool that its load decides on: when the task looks, and what it sees. What follows from it decides
//! [`machine::scaling`](crate::machine::scaling).

use std::sync::atomic::{Ordering, fence};

use super::Pool;
use super::task::PoolTask;
use crate::driver::start::Starter;
use crate::machine::event::Event;
use crate::machine::pool::{Input, Phase};
use crate::machine::scaling::{Sample, Step};
use crate::machine::time::Time;
use crate::transport::LinkTx;

impl<S: Starter> PoolTask<S> {
    /// When to look at the load next; none where not before a call comes.
    pub(super) fn next_look(&self) -> Option<Time> {
        let is_serving = *self.machine.phase() == Phase::Serving;
        self.scaling.as_ref().filter(|_| is_serving)?.poll_timeout()
    }

    /// Looks at the load, if it is time to, and takes the step that follows.
    pub(super) fn tend_size(&mut self, now: Time) {
        let Some(scaling) = &mut self.scaling else { return };
        if *self.machine.phase() != Phase::Serving {
            return;
        }
        let (pool, workers) = (&self.pool, self.machine.size());
        if !pool.shared.unwatched.load(Ordering::SeqCst) || workers != scaling.workers() {
            scaling.stir(now);
        }
        if scaling.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let load = pool.load_to_serve();
        let step = scaling.look(now, Sample { workers, load });
        if scaling.poll_timeout().is_none() {
            pool.shared.unwatched.store(true, Ordering::SeqCst);
            // A caller counts its call and then looks whether anybody watches; this says that nobody does and then counts. The fence that would let one of them
            // always see the other's is half here and not in the way of a query: a processor that reorders may miss a call of these nanoseconds. The next one is
            // seen, and a load that matters has many.
            fence(Ordering::SeqCst);
            if pool.load_to_serve() > load {
                pool.shared.unwatched.store(false, Ordering::SeqCst);
                scaling.stir(now);
            }
        }
        if let Some(Step { from, to, load }) = step {
            pool.shared.report(Event::Scaled { from, to, load: load.round() as u64 });
            self.input(self.with_loads(Input::Scale { workers: to, idlest: Vec::new() }));
        }
    }
}

impl<Tx: LinkTx> Pool<Tx> {
    /// Calls that workers have which take more, and those that wait. What the others have left is theirs to finish.
    fn load_to_serve(&self) -> u64 {
        let queued = self.shared.queued.load(Ordering::SeqCst) as u64;
        queued + self.links.load().iter().map(|link| u64::from(link.load())).sum::<u64>()
    }
}
