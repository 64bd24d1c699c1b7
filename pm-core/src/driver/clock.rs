//! The clock of the machines.

use std::sync::OnceLock;
use std::time::Instant;

use crate::machine::time::Time;

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Now, on a clock that never goes back and begins with the first call.
pub(crate) fn now() -> Time {
    let began = *BEGAN.get_or_init(Instant::now);
    // A manager that runs for 584 years has other worries.
    Time::from_nanos(began.elapsed().as_nanos() as u64)
}

/// When that is on tokio's clock.
pub(crate) fn instant(at: Time) -> tokio::time::Instant {
    let began = *BEGAN.get_or_init(Instant::now);
    let at = began.checked_add(at.since(Time::ZERO)).unwrap_or_else(|| Instant::now() + FAR);
    tokio::time::Instant::from_std(at)
}

const FAR: std::time::Duration = std::time::Duration::from_secs(30 * 365 * 86_400);
