//! Virtual time: nanoseconds since the manager began.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, as nanoseconds since the manager began.
///
/// Machines get it as an argument and never read a clock. Additions saturate: a deadline that lies beyond 584 years
/// is as good as none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The moment at which the manager began.
    pub const ZERO: Time = Time(0);

    /// The point `nanos` nanoseconds after the manager began.
    pub const fn from_nanos(nanos: u64) -> Self {
        Time(nanos)
    }

    /// Nanoseconds since the manager began.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero where `earlier` is later.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The earlier of two optional points, where none means never.
    pub fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, by: Duration) -> Time {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, by: Duration) -> Time {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_sub(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Time::from_nanos(5) + Duration::MAX, Time::from_nanos(u64::MAX));
        assert_eq!(Time::from_nanos(5) - Duration::from_secs(1), Time::ZERO);
        assert_eq!(Time::ZERO.since(Time::from_nanos(9)), Duration::ZERO);
    }

    #[test]
    fn none_is_never() {
        let t = Some(Time::from_nanos(3));
        assert_eq!(Time::earliest(None, t), t);
        assert_eq!(Time::earliest(t, None), t);
        assert_eq!(Time::earliest(t, Some(Time::ZERO)), Some(Time::ZERO));
    }
}
