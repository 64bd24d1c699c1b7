//! Whose a call is: the worker's that takes it, or again the manager's that asks for it back.
//!
//! There is a word for each call, by its number in the order in which calls came, used again after [`CLAIMS`] others. Both sides put their
//! mark into it before they do anything with the call, and see by what was there whether the other was first. So a call is taken back at
//! once, also from a worker that computes or is stopped, and never runs twice.
//!
//! A worker that lies here lies about its own calls, which it could do by its answers as well.

use crate::sync::{AtomicU64, Ordering};

/// How many words there are. A manager asks only for calls that the worker has not begun with, of which there are fewer.
pub(crate) const CLAIMS: usize = 4096;

/// Part of the mark of the manager. Numbers stay below it.
const RECALLED: u64 = 1 << 63;

/// For the worker: whether it may run the call.
pub(crate) fn take(words: &[AtomicU64], number: u64) -> bool {
    word(words, number).swap(number, Ordering::AcqRel) != number | RECALLED
}

/// For the manager: whether it has the call back, which the worker then passes over. Otherwise nothing has changed, and the worker has it: also where
/// the word holds what nobody can have put there for an earlier call.
pub(crate) fn recall(words: &[AtomicU64], number: u64) -> bool {
    let word = word(words, number);
    let before = word.load(Ordering::Acquire);
    let last = before & !RECALLED;
    // Not every call leaves its mark: one that was cancelled before its turn does not.
    let is_free = last == 0 || last < number && (number - last).is_multiple_of(words.len() as u64);
    // Once: whoever comes between is the worker, and has it then.
    is_free && word.compare_exchange(before, number | RECALLED, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

fn word(words: &[AtomicU64], number: u64) -> &AtomicU64 {
    &words[number as usize % words.len()]
}
