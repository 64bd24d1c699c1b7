//! Copies of whole cache lines between private memory and the ring.
//!
//! The lines that a producer writes belong to the processor that read them last, and each has to be fetched from there before it can be
//! written word by word: some 500 ns a KiB where the two share no cache. Stores that pass by the caches (non-temporal, or streaming) need not fetch anything. They cost the
//! consumer a look into memory, which the processor makes ahead of its need; so they pay from some KiB on. Where there are no instructions for
//! that, it is words here too.

use std::mem::MaybeUninit;

use crate::ring::LINE_WORDS;
pub use crate::ring::{LINE, WORD};
use crate::sync::AtomicU64;

/// From so many words on a copy goes by lines: 4 KiB. Measured: there it costs the same where the processors share a cache, and half where they do not.
pub const BULK: usize = (4 << 10) / WORD;

/// So many words are copied at a time. What is computed of them then overlaps with the copy of the next ones.
pub(crate) const BLOCK: usize = 64;

/// How many of these words come before the first line, and how many follow in whole lines.
pub(crate) fn whole_lines(words: &[AtomicU64]) -> (usize, usize) {
    let before = words.as_ptr().align_offset(LINE).min(words.len());
    (before, (words.len() - before) / LINE_WORDS * LINE_WORDS)
}

/// Writes whole lines. Before any other side may look at them comes a [`fence`].
pub fn store(lines: &[AtomicU64], bytes: &[[u8; WORD]]) {
    assert!(lines.len() == bytes.len() && lines.len().is_multiple_of(LINE_WORDS), "whole lines");
    assert!(lines.as_ptr().align_offset(LINE) == 0, "lines begin at lines");
    imp::store(lines, bytes);
}

/// Reads whole lines.
#[expect(unsafe_code, reason = "what was written is initialized")]
pub fn load<'a>(lines: &[AtomicU64], bytes: &'a mut [[MaybeUninit<u8>; WORD]]) -> &'a [[u8; WORD]] {
    assert!(lines.len() == bytes.len() && lines.len().is_multiple_of(LINE_WORDS), "whole lines");
    imp::load(lines, bytes);
    // SAFETY: All of it was written, and bytes may have any value.
    unsafe { &*(std::ptr::from_mut(bytes) as *const [[u8; WORD]]) }
}

/// What [`store`] wrote is there before any store that follows.
pub fn fence() {
    imp::fence();
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[expect(unsafe_code, reason = "such loads and stores exist as instructions alone")]
mod imp {
    use std::arch::asm;

    use super::{AtomicU64, LINE_WORDS, MaybeUninit, WORD};

    /// Copies so many lines, more than none, by this instruction to store.
    macro_rules! copy_lines {
        ($store:literal, $from:expr, $to:expr, $lines:expr) => {
            asm!(
                "2:",
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + 32]",
                "movups {d}, [{from} + 48]",
                concat!($store, " [{to}], {a}"),
                concat!($store, " [{to} + 16], {b}"),
                concat!($store, " [{to} + 32], {c}"),
                concat!($store, " [{to} + 48], {d}"),
                "add {from}, 64",
                "add {to}, 64",
                "dec {left}",
                "jnz 2b",
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                from = inout(reg) $from => _,
                to = inout(reg) $to => _,
                left = inout(reg) $lines => _,
                options(nostack),
            )
        };
    }

    pub(super) fn store(lines: &[AtomicU64], bytes: &[[u8; WORD]]) {
        if lines.is_empty() {
            return;
        }
        // SAFETY: Both slices have as many bytes, a multiple of 64 above zero, and `lines` begins at a multiple of 64: so says the caller. Atomics may
        // be written through a shared reference. Another process that reads them meanwhile sees some of it, as it would of stores of words.
        unsafe {
            copy_lines!("movntps", bytes.as_ptr(), lines.as_ptr(), lines.len() / LINE_WORDS);
        }
    }

    pub(super) fn load(lines: &[AtomicU64], bytes: &mut [[MaybeUninit<u8>; WORD]]) {
        if lines.is_empty() {
            return;
        }
        // SAFETY: Both slices have as many bytes, a multiple of 64 above zero: so says the caller. What another process writes to `lines` meanwhile can
        // mix old and new bytes in what is read, as with loads of words.
        unsafe {
            copy_lines!("movups", lines.as_ptr(), bytes.as_mut_ptr(), lines.len() / LINE_WORDS);
        }
    }

    pub(super) fn fence() {
        // SAFETY: It touches nothing.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    }
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(miri))))]
mod imp {
    use super::{AtomicU64, MaybeUninit, WORD};
    use crate::sync::Ordering;

    pub(super) fn store(lines: &[AtomicU64], bytes: &[[u8; WORD]]) {
        for (word, bytes) in lines.iter().zip(bytes) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    pub(super) fn load(lines: &[AtomicU64], bytes: &mut [[MaybeUninit<u8>; WORD]]) {
        for (word, bytes) in lines.iter().zip(bytes) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes().map(MaybeUninit::new);
        }
    }

    /// The store with Release that follows is enough.
    pub(super) fn fence() {}
}
