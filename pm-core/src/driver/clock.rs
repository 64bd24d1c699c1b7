//! The clock of the machines.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::machine::time::Time;
use crate::sys::clock::nanos;

/// When the clock began: as an Instant, and in nanoseconds of the clock that an Instant is made of.
static BEGAN: OnceLock<(Instant, u64)> = OnceLock::new();

const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Now, on a clock that never goes back and begins with the first call.
pub(crate) fn now() -> Time {
    // A query asks three times; arithmetic on Instants would cost as much again as the clock.
    Time::from_nanos(nanos().saturating_sub(began().1))
}

/// When that is on tokio's clock.
pub(crate) fn instant(at: Time) -> tokio::time::Instant {
    let at = began().0.checked_add(at.since(Time::ZERO)).unwrap_or_else(|| Instant::now() + FAR);
    tokio::time::Instant::from_std(at)
}

fn began() -> &'static (Instant, u64) {
    // In this order no Time is ever ahead of its Instant: a sleep until then is over when the machines look.
    BEGAN.get_or_init(|| {
        let nanos = nanos();
        (Instant::now(), nanos)
    })
}
