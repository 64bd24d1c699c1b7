//! The checksum of a chunk.

use crate::ring::WORD;

/// A checksum against accidents and random writes: a change of any one word changes it for certain before it is cut to 32 bits.
///
/// The words go to four lanes in turn, so that they need not wait for each other. The lane of the next word is always the first: a place that is
/// counted would keep the lanes in memory.
pub(crate) struct Sum {
    lanes: [u64; 4],
    added: usize,
}

impl Sum {
    pub(crate) fn new(line: u64, length: usize) -> Self {
        let seed = line.wrapping_mul(Self::FACTOR) ^ length as u64;
        Sum { lanes: [seed, !seed, seed.rotate_left(17), seed.rotate_left(43)], added: 0 }
    }

    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

    pub(crate) fn add(&mut self, word: u64) {
        let [lane, second, third, fourth] = self.lanes;
        self.lanes = [second, third, fourth, (lane ^ word).wrapping_mul(Self::FACTOR).rotate_left(29)];
        self.added += 1;
    }

    pub(crate) fn add_all(&mut self, words: &[[u8; WORD]]) {
        for word in words {
            self.add(u64::from_ne_bytes(*word));
        }
    }

    pub(crate) fn finish(mut self) -> u32 {
        self.lanes.rotate_right(self.added % 4);
        let mixed =
            self.lanes.into_iter().fold(0_u64, |all, lane| (all.rotate_left(21) ^ lane).wrapping_mul(Self::FACTOR));
        (mixed ^ (mixed >> 32)) as u32
    }
}
