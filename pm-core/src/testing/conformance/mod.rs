//! What a transport promises, as tests that are generic over it.
//!
//! The author of a transport gives it to [`cases`], with a function that makes the worker's half out of an offer, in place of the
//! process that would find it in its environment. [`over_descriptors`] is that function wherever the half is one or two
//! descriptors. Each case is a name and a function, ready for libtest-mimic; [`run_all`] runs them in one ordinary test:
//!
//! ```
//! use pm_core::testing::{conformance, memory::Memory};
//!
//! # fn test_of_a_transport() {
//! conformance::run_all(Memory, |offer| {
//!     let half = Memory::take(&offer).ok_or(std::io::ErrorKind::NotFound)?;
//!     Ok(Box::new(half))
//! })
//! .unwrap();
//! # }
//! ```
//!
//! | cases | hold |
//! |---|---|
//! | `delivery` | frames arrive once, whole and in order, whatever their size, in both directions at once |
//! | `flow` | a slow reader slows the sender down; memory is bounded; room comes back |
//! | `waking` | whoever waits is woken: 100,000 hand-offs in a row lose none |
//! | `ending` | what was sent before the end comes before it; the end comes soon, and stays |
//! | `hostile` | bytes that are no frames are typed errors, and cost no memory |
//! | `apart` | links share nothing; an offer that nobody takes leaves nothing behind |
//!
//! A transport that cannot keep one of these promises leaves the case out of the list, and says so. Over TCP that is
//! `ending::unread_input_costs_no_answers`: the last answers of a worker that dies may be lost with it.
//!
//! A case that fails may leave a thread behind that waits on its link for ever. A case takes up to a few seconds; all of
//! them may run at the same time.

mod apart;
#[cfg(test)]
mod broken;
mod content;
mod delivery;
mod ending;
mod flow;
mod hostile;
mod subject;
mod suite;
mod waking;

pub use suite::{Case, cases, over_descriptors, run_all};
