//! How long a stream may be silent while something is expected of it. No clock.

use std::time::{Duration, Instant};

/// What is expected of a stream is that it takes the line which waits for it, and that it ends once nothing more comes for it. How long that takes nobody can
/// say: its worker may hold a thousand lines that it has not read. So what is limited is the time without any sign of life.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Option<Duration>,
    since: Option<Instant>,
}

impl Patience {
    /// For so long; without a limit for ever.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Patience { limit, since: None }
    }

    /// Something is expected of it.
    pub(super) fn expect(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// It has said or taken something.
    pub(super) fn heard(&mut self) {
        self.since = None;
    }

    /// When it has been silent for too long. Where it changes it gets later.
    pub(super) fn end(&self) -> Option<Instant> {
        self.since?.checked_add(self.limit?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_first_thing_that_is_expected() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(Some(Duration::from_secs(10)));
        assert_eq!(patience.end(), None);
        patience.expect(at(1));
        patience.expect(at(5));
        assert_eq!(patience.end(), Some(at(11)));
        patience.heard();
        assert_eq!(patience.end(), None);
        patience.expect(at(7));
        assert_eq!(patience.end(), Some(at(17)));
        let mut endless = Patience::new(None);
        endless.expect(start);
        assert_eq!(endless.end(), None);
    }
}
