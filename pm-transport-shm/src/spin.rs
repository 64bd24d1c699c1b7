//! How long it pays to wait for the peer without sleeping.

use std::time::{Duration, Instant};

use crate::ring::NO_CPU;

/// The longest spin: what a wake-up costs across processors, 2 to 50 µs. Whoever spins for so long before it sleeps has waited in vain at most as long as
/// the sleep would have cost.
const LONGEST: Duration = Duration::from_micros(50);

/// How often the peer's word is looked at between two looks at the clock.
const LOOKS: u32 = 64;

/// After so many spins in vain there is a pause of as many waits as there were spins in vain, up to [`LONGEST_PAUSE`].
const PATIENCE: u32 = 3;

/// The most waits that pass without a spin.
const LONGEST_PAUSE: u32 = 256;

/// The budget of one side for spinning.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    /// Spins in vain since the last one that paid.
    vain: u32,
    /// Waits that still pass without a spin.
    pause: u32,
}

impl Spin {
    /// Waits for `is_there` for as long as that pays. `peer` is the processor on which the peer ran last.
    pub(crate) fn until(&mut self, peer: u32, mut is_there: impl FnMut() -> bool) -> bool {
        if is_there() {
            return true;
        }
        // On one processor, every turn of the loop keeps the peer from running.
        if peer == NO_CPU || peer == cpu() {
            return false;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        // A peer that is at work already answers before the clock has to be asked.
        let mut end = None;
        loop {
            for _ in 0..LOOKS {
                if is_there() {
                    self.vain = 0;
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now > *end.get_or_insert(now + LONGEST) {
                break;
            }
        }
        self.vain += 1;
        if self.vain > PATIENCE {
            self.pause = self.vain.min(LONGEST_PAUSE);
        }
        false
    }
}

/// The processor that this thread runs on, as it stands in a chunk.
#[expect(unsafe_code, reason = "a question to the kernel")]
pub(crate) fn cpu() -> u32 {
    // SAFETY: It takes nothing and touches no memory of this program. It cannot fail on a Linux that has shared memory.
    let cpu = unsafe { libc::sched_getcpu() };
    (cpu.max(0) as u32).min(NO_CPU - 1)
}
