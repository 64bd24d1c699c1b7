//! Identities: workers, incarnations, calls.

use std::fmt;

/// A worker of a pool, numbered from 1 in the order of creation. A restart keeps the number and raises the
/// [`Incarnation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u32);

/// Which life of a unit this is: 1 for the first process, one more for each restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u32);

/// A call on one link, as it stands in the frames of that link. Below 2^53, so that every language can hold it.
///
/// The lower 16 bits name a slot of the session, the upper 37 count how often the slot was used. So the session knows an
/// id that it never issued from one whose call has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

impl CallId {
    const SLOT_BITS: u32 = 16;

    /// The most slots that a session can have.
    pub const MAX_SLOTS: usize = 1 << Self::SLOT_BITS;

    /// One past the largest id that may stand in a frame.
    pub const LIMIT: u64 = 1 << 53;

    /// How often a slot can be used.
    pub(crate) const MAX_USES: u64 = (Self::LIMIT >> Self::SLOT_BITS) - 1;

    pub(crate) const fn new(slot: usize, uses: u64) -> Self {
        CallId((uses << Self::SLOT_BITS) | slot as u64)
    }

    pub(crate) const fn slot(self) -> usize {
        (self.0 & (Self::MAX_SLOTS as u64 - 1)) as usize
    }

    pub(crate) const fn uses(self) -> u64 {
        self.0 >> Self::SLOT_BITS
    }

    /// The id as it came out of a frame. It need not be one that was ever issued.
    pub const fn from_wire(id: u64) -> Self {
        CallId(id)
    }

    /// The id as it goes into a frame.
    pub const fn to_wire(self) -> u64 {
        self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
