//! Copies of many cache lines between private memory and the ring.
//!
//! The lines that a producer writes belong to the processor that read them last, and each has to be fetched from there before it can be
//! written word by word: some 500 ns a KiB where the two share no cache. Stores that pass by the caches need not fetch anything. They cost the consumer
//! a look into memory, which it makes ahead of its need; so they pay from some KiB on.

use std::mem::MaybeUninit;

use crate::ring::WORD;
use crate::sync::AtomicU64;

/// Words of a line.
const LINE_WORDS: usize = 8;

/// From so many bytes on a copy goes by lines. Measured: at 4 KiB it costs the same where the processors share a cache, and half where they do not.
pub(crate) const BULK: usize = 4 << 10;

/// Whether copies by lines are there at all.
pub(crate) const IS_THERE: bool = cfg!(all(target_arch = "x86_64", not(miri)));

/// How many words come before the first line, and how many words of whole lines follow, of these.
pub(crate) fn whole_lines(words: &[AtomicU64]) -> (usize, usize) {
    let before = words.as_ptr().align_offset(LINE_WORDS * WORD).min(words.len());
    (before, (words.len() - before) / LINE_WORDS * LINE_WORDS)
}

/// Writes whole lines, past the caches. They are there before any store that follows.
#[expect(unsafe_code, reason = "stores that pass by the caches exist as instructions alone")]
pub(crate) fn store(lines: &[AtomicU64], bytes: &[[u8; WORD]]) {
    assert!(lines.len() == bytes.len() && lines.len().is_multiple_of(LINE_WORDS));
    assert!(lines.as_ptr().cast::<[AtomicU64; LINE_WORDS]>().align_offset(LINE_WORDS * WORD) == 0);
    if lines.is_empty() {
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: Both slices have as many bytes, a multiple of 64 above zero, and `lines` begins at a multiple of 64. Atomics may be written through a
    // shared reference; what another process reads of them meanwhile is not defined by the order of these stores, and nobody relies on it
    // before the store with Release that follows. The fence at the end makes that come after them.
    unsafe {
        std::arch::asm!(
            "2:",
            "movups {a}, [{from}]",
            "movups {b}, [{from} + 16]",
            "movups {c}, [{from} + 32]",
            "movups {d}, [{from} + 48]",
            "movntps [{to}], {a}",
            "movntps [{to} + 16], {b}",
            "movntps [{to} + 32], {c}",
            "movntps [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "dec {left}",
            "jnz 2b",
            "sfence",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            from = inout(reg) bytes.as_ptr() => _,
            to = inout(reg) lines.as_ptr() => _,
            left = inout(reg) lines.len() / LINE_WORDS => _,
            options(nostack),
        );
    }
}

/// Reads whole lines.
#[expect(unsafe_code, reason = "loads of more than a word exist as instructions alone")]
pub(crate) fn load<'a>(lines: &[AtomicU64], bytes: &'a mut [[MaybeUninit<u8>; WORD]]) -> &'a [[u8; WORD]] {
    assert!(lines.len() == bytes.len() && lines.len().is_multiple_of(LINE_WORDS));
    if lines.is_empty() {
        return &[];
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: Both slices have as many bytes, a multiple of 64 above zero. What another process writes to `lines` meanwhile can mix old and new bytes in what is read,
    // as it can with loads of words; the checksum is over what was read.
    unsafe {
        std::arch::asm!(
            "2:",
            "movups {a}, [{from}]",
            "movups {b}, [{from} + 16]",
            "movups {c}, [{from} + 32]",
            "movups {d}, [{from} + 48]",
            "movups [{to}], {a}",
            "movups [{to} + 16], {b}",
            "movups [{to} + 32], {c}",
            "movups [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "dec {left}",
            "jnz 2b",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            from = inout(reg) lines.as_ptr() => _,
            to = inout(reg) bytes.as_mut_ptr() => _,
            left = inout(reg) lines.len() / LINE_WORDS => _,
            options(nostack),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    unreachable!("nobody copies by lines where that is not there");
    // SAFETY: All of it was written.
    unsafe { &*(std::ptr::from_mut(bytes) as *const [[u8; WORD]]) }
}
