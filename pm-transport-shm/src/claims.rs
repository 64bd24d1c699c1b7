//! Whose a call is: the worker's that takes it, or again the manager's that asks for it back.
//!
//! There is a word for each call, by its number in the order in which calls came, used again after [`CLAIMS`] others. Both sides swap their
//! mark into it before they do anything with the call, and see by what they get whether the other was there first. So a call is taken back at
//! once, also from a worker that computes or is stopped, and never runs twice.
//!
//! A worker that lies here lies about its own calls, which it could do by its answers as well.

use crate::sync::{AtomicU64, Ordering};

/// How many words there are. A manager asks only for calls that the worker has not begun with, of which there are fewer.
pub(crate) const CLAIMS: usize = 1024;

/// Part of the mark of the manager. Numbers stay below it.
const RECALLED: u64 = 1 << 63;

/// For the worker: whether it may run the call.
pub(crate) fn take(words: &[AtomicU64], number: u64) -> bool {
    word(words, number).swap(number, Ordering::AcqRel) != number | RECALLED
}

/// For the manager: whether it has the call back, which the worker then passes over. Not so where the word holds what nobody can have put there for an
/// earlier call: in doubt the worker has it, so that it does not run twice.
pub(crate) fn recall(words: &[AtomicU64], number: u64) -> bool {
    let before = word(words, number).swap(number | RECALLED, Ordering::AcqRel) & !RECALLED;
    let is_first = before == 0 && number <= words.len() as u64;
    is_first || before > 0 && before < number && std::ptr::eq(word(words, before), word(words, number))
}

fn word(words: &[AtomicU64], number: u64) -> &AtomicU64 {
    &words[number as usize % words.len()]
}
