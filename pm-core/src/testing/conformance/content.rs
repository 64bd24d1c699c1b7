//! Frames whose content follows from their number, so that the receiver knows each of them.

use std::sync::OnceLock;

use crate::machine::budget::SplitMix;
use crate::machine::frame::{HEADER, Header, Remaining};

/// Payloads repeat a stretch of this length, which begins at another place for each number.
const STRETCH: usize = 4096;

/// How many such places there are. A prime, so that it falls into step with nothing.
const PLACES: usize = 1021;

fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut random = SplitMix(1);
        (0..STRETCH + PLACES).map(|_| random.next_u64() as u8).collect()
    })
}

fn stretch(n: u64) -> &'static [u8] {
    let start = n as usize % PLACES;
    &noise()[start..start + STRETCH]
}

/// The header of frame `n`, which is its id. Links must carry every field, whatever it says.
pub(super) fn header(n: u64) -> Header {
    Header {
        kind: (n % 255) as u8 + 1,
        flags: (n >> 2) as u8,
        remaining: Remaining::from_wire((n.wrapping_mul(31)) as u16),
        id: n,
    }
}

/// The payload of frame `n`.
pub(super) fn payload(n: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let more = (size - bytes.len()).min(STRETCH);
        bytes.extend_from_slice(&stretch(n)[..more]);
    }
    bytes
}

/// The whole frame `n`, as it goes over the wire.
pub(super) fn frame(n: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + size);
    bytes.extend_from_slice(&header(n).encode(size));
    bytes.extend_from_slice(&payload(n, size));
    bytes
}

/// A size for frame `n` of a crowd: mostly small, sometimes none, sometimes some KiB.
pub(super) fn some_size(n: u64) -> usize {
    let random = SplitMix(n).next_u64();
    match random % 16 {
        0 => 0,
        1 => (random >> 8) as usize % 10_000,
        _ => (random >> 8) as usize % 200,
    }
}

/// What a receiver saw of frames 1, 2, 3 and so on.
#[derive(Default)]
pub(super) struct Ledger {
    seen: Vec<u64>,
    damaged: Option<String>,
}

impl Ledger {
    /// Notes a frame that should have `size` bytes.
    pub(super) fn note(&mut self, found: Header, bytes: &[u8], size: impl Fn(u64) -> usize) {
        let n = found.id;
        self.seen.push(n);
        let content = stretch(n);
        let damage = if found != header(n) {
            Some(format!("came with the header {found:?}"))
        } else if bytes.len() != size(n) {
            Some(format!("came with {} bytes in place of {}", bytes.len(), size(n)))
        } else {
            let differs = bytes.chunks(STRETCH).position(|chunk| *chunk != content[..chunk.len()]);
            differs.map(|at| format!("came with wrong bytes after byte {}", at * STRETCH))
        };
        if let Some(damage) = damage {
            self.damaged.get_or_insert(format!("frame {n} {damage}"));
        }
    }

    /// Whether frames 1 to `sent` came, each once, whole, in order.
    pub(super) fn check(&self, sent: u64) -> Result<(), String> {
        if let Some(damaged) = &self.damaged {
            return Err(damaged.clone());
        }
        let mut sorted = self.seen.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("frame {} of {sent} came twice", twice[0]));
        }
        if let Some(lost) = (1..=sent).find(|n| sorted.binary_search(n).is_err()) {
            return Err(format!("frame {lost} of {sent} never came ({} did)", self.seen.len()));
        }
        if let Some(place) = self.seen.iter().zip(1..).position(|(found, expected)| *found != expected) {
            return Err(format!("frame {} came in the place of frame {}", self.seen[place], place + 1));
        }
        Ok(())
    }

    /// How many frames came.
    pub(super) fn count(&self) -> u64 {
        self.seen.len() as u64
    }
}
