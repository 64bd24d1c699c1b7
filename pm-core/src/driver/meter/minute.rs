//! How many calls were answered in the last minute.
//!
//! A slot for each tick of some second says which tick it is, in its upper half, and how many there were. Whoever counts in a tick first takes the slot of one that
//! is long over; so nothing has to be cleared, and no timer runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::machine::time::Time;

/// A tick has 2 to the power of this many nanoseconds: 1.07 s.
const TICK: u32 = 30;

/// As many ticks as a minute has, and the one that goes on.
const TICKS: u64 = 56;

/// More than that, as a power of two.
const SLOTS: usize = 64;

#[derive(Debug)]
pub(super) struct Minute([AtomicU64; SLOTS]);

impl Minute {
    pub(super) fn new() -> Self {
        Minute([const { AtomicU64::new(0) }; SLOTS])
    }

    pub(super) fn add(&self, now: Time, count: u32) {
        let tick = now.as_nanos() >> TICK;
        let slot = &self.0[tick as usize % SLOTS];
        let seen = slot.load(Ordering::Relaxed);
        if seen >> 32 != tick {
            // Somebody else may be faster, or a moment behind. Then a count or two are in the wrong tick, or in none.
            let _ = slot.compare_exchange(seen, tick << 32, Ordering::Relaxed, Ordering::Relaxed);
        }
        slot.fetch_add(count.into(), Ordering::Relaxed);
    }

    /// How many in a minute: of the last one, or since the beginning where that is less.
    pub(super) fn rate(&self, now: Time, age: Duration) -> f64 {
        let last = now.as_nanos() >> TICK;
        let first = last.saturating_sub(TICKS);
        let is_recent = |slot: &u64| (first..=last).contains(&(slot >> 32));
        let slots = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        let count: u64 = slots.filter(is_recent).map(|slot| slot & u64::from(u32::MAX)).sum();
        let seen = now.since(Time::from_nanos(first << TICK)).min(age).max(Duration::from_secs(1));
        count as f64 * 60.0 / seen.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let minute = Minute::new();
        let at = |seconds: f64| Time::ZERO + Duration::from_secs_f64(seconds);
        let rate = |seconds| minute.rate(at(seconds), Duration::from_secs_f64(seconds)).round();
        assert_eq!(rate(5.0), 0.0);
        // Ten in a second, in two batches, for two minutes.
        let mut now = 5.0;
        while now < 125.0 {
            minute.add(at(now), 2);
            minute.add(at(now), 3);
            now += 0.5;
            if now > 70.0 {
                assert!((rate(now) - 600.0).abs() <= 6.0, "{} at {now}", rate(now));
            }
        }
        assert!((rate(155.0) - 300.0).abs() <= 20.0, "{}", rate(155.0));
        assert_eq!(rate(190.0), 0.0, "all of it is over");
        // Much later, in the same slots.
        minute.add(at(10_000.0), 7);
        assert_eq!(rate(10_001.0), 7.0);
    }

    #[test]
    fn a_young_pool_is_as_quick_as_it_was_so_far() {
        let minute = Minute::new();
        let begun = Time::ZERO + Duration::from_secs(1000);
        minute.add(begun + Duration::from_secs(3), 100);
        let rate = minute.rate(begun + Duration::from_secs(10), Duration::from_secs(10));
        assert!((rate - 600.0).abs() < 1.0, "{rate}");
    }
}
