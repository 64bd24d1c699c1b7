//! Who sleeps is woken.
//!
//! Whoever finds nothing to do says so and looks once more before it sleeps; whoever makes something to do looks whether the other
//! sleeps after it has made it. Between the two steps of each stands a fence. So one of them sees what the other did:
//!
//! ```text
//! sleeper                                   waker
//!   1  asleep = n (a new number)              1  commit the chunk, or publish the room
//!   2  fence                                  2  fence
//!   3  look for chunks, or for room           3  look at asleep
//!   4  none: sleep                            4  n, and not rung yet: ring
//! ```
//!
//! If the sleeper's look (3) misses what was made, then its fence came before the waker's in the one order of all such fences,
//! and the waker's look (3) finds `n`. A ring that comes between the sleeper's look and its sleep is not lost either: the worker's sleep is a
//! futex wait for the value that the bell had before step 1, and the manager's an event of an eventfd that stays until it was seen.
//!
//! `n` is never the same for two sleeps, so one ring for each is enough, and a waker that is faster than the sleeper does not ring twice.

use crate::ring::order;
use crate::sync::{AtomicU64, Ordering};

/// What the waker keeps of one kind of sleep of its peer.
#[derive(Debug, Default)]
pub(crate) struct Rung(u64);

impl Rung {
    /// Whether the peer must be rung, after something was made for it. `asleep` is its word.
    pub(crate) fn is_due(&mut self, asleep: &AtomicU64) -> bool {
        // Pairs with the fence in `Sleep::begin`.
        order();
        let asleep = asleep.load(Ordering::Relaxed);
        asleep != 0 && asleep != std::mem::replace(&mut self.0, asleep)
    }
}

/// One kind of sleep of this side.
#[derive(Debug, Default)]
pub(crate) struct Sleep {
    number: u64,
    asleep: bool,
}

impl Sleep {
    /// Says that this side will sleep soon, in its word. So the word can be on its way while there is still something else to do.
    pub(crate) fn announce(&mut self, asleep: &AtomicU64) {
        if !self.asleep {
            self.number += 1;
            self.asleep = true;
            asleep.store(self.number, Ordering::Relaxed);
        }
    }

    /// Says that this side sleeps from here on. It has to look once more before it does.
    pub(crate) fn begin(&mut self, asleep: &AtomicU64) {
        self.announce(asleep);
        // Pairs with the fence in `Rung::is_due`.
        order();
    }

    /// Says that this side is awake: nobody needs to ring.
    pub(crate) fn end(&mut self, asleep: &AtomicU64) {
        if std::mem::take(&mut self.asleep) {
            asleep.store(0, Ordering::Relaxed);
        }
    }

    /// It was rung, and may sleep again: under a new number.
    pub(crate) fn renew(&mut self) {
        self.asleep = false;
    }
}
