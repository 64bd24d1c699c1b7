//! What the keeper knows of processes that left their parents.
//!
//! The keeper is a subreaper, so a process whose parent ends becomes a child of the keeper. Whose stray it is stands in its
//! environment: the cookie of its unit. A process may hide that (it cleared its environment before it left its parent);
//! such a one belongs to nobody, and lives until the manager ends.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::tree::{self, Environment};

/// A process without an environment either executes a program right now or wants none. After this time it wants none.
/// An execve needs less than a millisecond between the two, but other processes may come first.
pub(crate) const BLANK_LIMIT: Duration = Duration::from_millis(100);

/// Whose child an orphan was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A unit of this manager, which may have ended long ago.
    Unit(u64),
    /// Nobody that we know.
    Nobody,
    /// It has begun to end; the kernel will say when it has.
    Ending,
    /// It cannot be told yet: ask again soon.
    Unclear,
}

/// Those children of the keeper that it has not started itself. Their pids cannot be reused until it reaps them.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// How the cookies of this manager begin.
    prefix: Vec<u8>,
    known: HashMap<i32, Known>,
}

#[derive(Debug)]
enum Known {
    Owner(Owner),
    BlankSince(Instant),
    /// A descendant of a unit that was killed with it. It need not be a child of the keeper yet, and never becomes one if its
    /// parent was quick enough to reap it: then another process can get the pid, with another start.
    Claimed {
        unit: u64,
        start: u64,
    },
}

impl Orphans {
    pub(crate) fn new() -> Self {
        Orphans { prefix: Vec::new(), known: HashMap::new() }
    }

    pub(crate) fn set_prefix(&mut self, prefix: &[u8]) {
        self.prefix = prefix.to_vec();
    }

    /// Whose orphan `pid` is. `in_group` says which unit a process group belongs to.
    pub(crate) fn owner(&mut self, pid: i32, now: Instant, in_group: impl FnOnce(i32) -> Option<u64>) -> Owner {
        match self.known.get(&pid) {
            Some(Known::Owner(owner)) => return *owner,
            Some(Known::Claimed { unit, start }) if tree::stat(pid).is_some_and(|stat| stat.start == *start) => {
                return Owner::Unit(*unit);
            }
            Some(Known::BlankSince(_) | Known::Claimed { .. }) | None => {}
        }
        let environment = tree::environment(pid);
        let unit = match &environment {
            Environment::Cookie(cookie) => unit_in(cookie, &self.prefix),
            Environment::Foreign | Environment::Blank => None,
        };
        let owner = match unit {
            Some(unit) => Owner::Unit(unit),
            None => match tree::stat(pid) {
                None => return Owner::Ending,
                Some(stat) => match in_group(stat.group) {
                    Some(unit) => Owner::Unit(unit),
                    None if stat.is_ending() => return Owner::Ending,
                    // It may say more after the next look: an execve can take its time.
                    None if environment == Environment::Blank => {
                        return if self.blank_for(pid, now) < BLANK_LIMIT { Owner::Unclear } else { Owner::Nobody };
                    }
                    None => Owner::Nobody,
                },
            },
        };
        self.known.insert(pid, Known::Owner(owner));
        owner
    }

    /// How long `pid` has had a blank environment.
    fn blank_for(&mut self, pid: i32, now: Instant) -> Duration {
        match self.known.entry(pid).or_insert(Known::BlankSince(now)) {
            Known::BlankSince(since) => now.duration_since(*since),
            stale @ (Known::Owner(_) | Known::Claimed { .. }) => {
                *stale = Known::BlankSince(now);
                Duration::ZERO
            }
        }
    }

    /// Notes that `pid`, which was killed with `unit`, belongs to it whatever its environment says.
    pub(crate) fn claim(&mut self, (pid, start): (i32, u64), unit: u64) {
        if !matches!(self.known.get(&pid), Some(Known::Owner(_))) {
            self.known.insert(pid, Known::Claimed { unit, start });
        }
    }

    /// Forgets the claims of `unit`, of which nothing is left.
    pub(crate) fn release(&mut self, unit: u64) {
        self.known.retain(|_, known| !matches!(known, Known::Claimed { unit: claimed, .. } if *claimed == unit));
    }

    /// What was known of `pid`, which is reaped now.
    pub(crate) fn forget(&mut self, pid: i32) -> Option<u64> {
        match self.known.remove(&pid) {
            Some(Known::Owner(Owner::Unit(unit)) | Known::Claimed { unit, .. }) => Some(unit),
            _ => None,
        }
    }
}

/// The number of the unit in a cookie: the digits after the manager's prefix. What follows is the unit's name, and after a
/// slash the cookie that a manager inside of that unit gave.
fn unit_in(cookie: &[u8], prefix: &[u8]) -> Option<u64> {
    let rest = cookie.strip_prefix(prefix).filter(|_| !prefix.is_empty())?;
    let digits = rest.split(|byte| *byte == b'.').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_from_cookies_of_this_manager_only() {
        assert_eq!(unit_in(b"m1.17.web", b"m1."), Some(17));
        assert_eq!(unit_in(b"m1.17.web/m2.4.inner", b"m1."), Some(17));
        assert_eq!(unit_in(b"m1.17.web/m2.4.inner", b"m1.17.web/m2."), Some(4));
        assert_eq!(unit_in(b"m2.17.web", b"m1."), None);
        assert_eq!(unit_in(b"m1.web", b"m1."), None);
        assert_eq!(unit_in(b"m1.17.web", b""), None);
    }
}
