//! What reaches a run from outside of its jobs: the clock, and chance.

/// The next turn of an interval; never where there is none.
pub(super) async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Which worker dies next.
pub(super) struct Random(pm::core::machine::budget::SplitMix);

impl Random {
    pub(super) fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Random(pm::core::machine::budget::SplitMix(RandomState::new().hash_one(std::process::id())))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }
}
