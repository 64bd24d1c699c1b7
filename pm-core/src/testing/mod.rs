//! For those who test: links in memory, the suite that every transport passes, and a pool at virtual time.
//!
//! | module | is |
//! |---|---|
//! | [`memory`] | links in memory, where the worker is a thread of the same process |
//! | [`conformance`] | what a transport promises, as tests that are generic over it |
//! | [`simulation`] | a pool at virtual time, with everything that can go wrong |
//! | [`properties`] | what must hold whatever bytes come |

pub mod conformance;
pub mod properties;
pub mod simulation;

/// Links in memory. [`Memory::take`](memory::Memory::take) gives the worker's half of an offer.
pub mod memory {
    pub use crate::driver::memory::{Memory, MemoryAccept, MemoryLink, MemoryWorker};
}
