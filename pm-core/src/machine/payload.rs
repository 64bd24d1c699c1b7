//! Payloads that change hands: out of the buffer of a link, into the call that they belong to.
//!
//! A small one is copied. A large one takes the whole buffer along, and leaves another one in its place, so that it is not copied at all.

use std::fmt;
use std::ops::Deref;

/// A payload from this size on takes the buffer along. Below it a copy costs less than what else happens to a frame.
const LARGE: usize = 4 << 10;

/// A buffer that is taken along has at most so many times the bytes of its payload: what lies unused in it is held for as long.
const SLACK: usize = 4;

/// A buffer that grew beyond this is given back once it is empty, and a smaller one is used again.
pub(crate) const KEEP: usize = 4 << 20;

/// Gives the memory of a buffer back that is worth more than [`KEEP`]. For one whose bytes are needed no more.
pub(crate) fn trim(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEEP {
        *buffer = Vec::new();
    }
}

/// A payload, and the memory that it lies in, which can be used again.
#[derive(Default)]
pub struct Payload {
    bytes: Vec<u8>,
    /// Where it begins.
    start: usize,
}

impl Payload {
    /// No bytes, in memory for so many.
    pub fn with_capacity(capacity: usize) -> Self {
        Payload { bytes: Vec::with_capacity(capacity), start: 0 }
    }

    /// The memory that it lies in, with what lies before it.
    #[cfg(feature = "driver")]
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes of the memory that it lies in.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Forgets the bytes and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Forgets the bytes, and the memory as well where it is large.
    #[cfg(feature = "driver")]
    pub(crate) fn trim(&mut self) {
        self.clear();
        trim(&mut self.bytes);
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Payload { bytes, start: 0 }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Payload").field(&self.len()).finish()
    }
}

/// The payload of a frame, in the buffer of the one who read it.
///
/// ```
/// use pm_core::machine::payload::{Lent, Payload};
///
/// let mut payload = Payload::default();
/// Lent::from(&b"hello"[..]).take_into(&mut payload);
/// assert_eq!(*payload, *b"hello");
/// ```
pub struct Lent<'a>(Place<'a>);

enum Place<'a> {
    Bytes(&'a [u8]),
    /// The `length` bytes before `end`; behind it are those that nobody has read yet.
    Buffer {
        buffer: &'a mut Vec<u8>,
        end: &'a mut usize,
        length: usize,
    },
}

impl<'a> Lent<'a> {
    /// The `length` bytes before `end` in a buffer of which only what lies behind `end` is needed further on. Where the buffer is taken, another
    /// one stands there afterwards, with these bytes at its beginning, and `end` is 0.
    pub(super) fn out_of(buffer: &'a mut Vec<u8>, end: &'a mut usize, length: usize) -> Self {
        Lent(Place::Buffer { buffer, end, length })
    }

    /// Moves it into `into`, in place of what was there.
    pub fn take_into(self, into: &mut Payload) {
        into.clear();
        match self.0 {
            Place::Buffer { buffer, end, length } if is_worth_taking(buffer, *end, length) => {
                into.bytes.extend_from_slice(&buffer[*end..]);
                buffer.truncate(*end);
                std::mem::swap(buffer, &mut into.bytes);
                into.start = std::mem::take(end) - length;
            }
            Place::Bytes(bytes) => into.bytes.extend_from_slice(bytes),
            Place::Buffer { ref buffer, ref end, length } => {
                into.bytes.extend_from_slice(&buffer[**end - length..**end])
            }
        }
    }
}

/// What lies behind the payload is copied in its place: less than is saved.
fn is_worth_taking(buffer: &Vec<u8>, end: usize, length: usize) -> bool {
    length >= LARGE && buffer.len() - end < length && buffer.capacity() / SLACK <= length
}

impl<'a> From<&'a [u8]> for Lent<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Lent(Place::Bytes(bytes))
    }
}

impl Deref for Lent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Bytes(bytes) => bytes,
            Place::Buffer { buffer, end, length } => &buffer[**end - length..**end],
        }
    }
}

impl fmt::Debug for Lent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&&**self).finish()
    }
}

impl PartialEq for Lent<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Lent<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::frame::{Decoder, Header, Kind, MAX_PAYLOAD};

    #[test]
    fn payloads_of_all_sizes_change_hands_whatever_lies_behind_them() {
        let sizes = [0, 1, 100, LARGE - 1, LARGE, 20_000, 70_000, 300_000];
        let mut decoder = Decoder::new(MAX_PAYLOAD);
        let mut payload = Payload::default();
        for &first in &sizes {
            for &second in &sizes {
                for &third in &sizes {
                    let frames = [first, second, third].map(|size| vec![size as u8 ^ 0x5a; size]);
                    for frame in &frames {
                        let buffer = decoder.buffer();
                        buffer.extend_from_slice(&Header::new(Kind::Resp).encode(frame.len()));
                        buffer.extend_from_slice(frame);
                    }
                    for frame in &frames {
                        let found = decoder.next().unwrap().unwrap();
                        assert_eq!(*found.payload, **frame);
                        found.payload.take_into(&mut payload);
                        assert_eq!(*payload, **frame);
                        assert!(payload.capacity() <= (SLACK * frame.len()).max(KEEP), "{}", payload.capacity());
                    }
                    assert_eq!(decoder.next(), Ok(None));
                }
            }
        }
    }

    #[test]
    fn a_large_payload_is_not_copied() {
        let mut decoder = Decoder::new(MAX_PAYLOAD);
        let buffer = decoder.buffer();
        buffer.extend_from_slice(&Header::new(Kind::Resp).encode(50_000));
        buffer.resize(16 + 50_000, 7);
        let place = buffer[16..].as_ptr();
        let mut payload = Payload::default();
        decoder.next().unwrap().unwrap().payload.take_into(&mut payload);
        assert_eq!(payload.as_ptr(), place);
        assert_eq!(decoder.capacity(), 0, "the buffer went along");
    }
}
