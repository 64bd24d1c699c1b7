//! Frames: the header, and the decoder of a byte stream. docs/PROTOCOL.md describes them.

use std::time::Duration;

use thiserror::Error;

use super::payload::{self, Lent};

/// Bytes of a frame before its payload, the length field included.
pub const HEADER: usize = 16;

/// What `rest` counts besides the payload.
const AFTER_LENGTH: usize = HEADER - 4;

/// The largest payload by default: 64 MiB.
pub const MAX_PAYLOAD: usize = 64 << 20;

/// The largest payload of a NOTICE.
pub const MAX_NOTICE: usize = 64 << 10;

/// The largest payload of a PING.
pub const MAX_PING: usize = 64;

/// Bytes that the decoder asks for at a time when it does not know better.
const READ_CHUNK: usize = 64 << 10;

/// The kinds of frames that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The manager's opening.
    Hello = 1,
    /// The worker's answer to it.
    Ready = 2,
    /// Asks for a PONG.
    Ping = 3,
    /// Answers a PING.
    Pong = 4,
    /// No further REQ follows.
    Drain = 5,
    /// Every answer was sent.
    Bye = 6,
    /// A line for the manager's log.
    Notice = 7,
    /// Credit for the messages of a stream.
    Credit = 8,
    /// A query.
    Req = 16,
    /// Its result.
    Resp = 17,
    /// Its error.
    Err = 18,
    /// Nobody waits for this call any more.
    Cancel = 19,
    /// Give this call back if it has not started.
    Recall = 20,
    /// A stream begins.
    Open = 32,
    /// A message of a stream.
    Data = 33,
    /// No further message follows.
    Fin = 34,
    /// No further message is read.
    Rst = 35,
}

impl Kind {
    /// The kind with this number, if this version knows it.
    pub const fn from_wire(kind: u8) -> Option<Kind> {
        Some(match kind {
            1 => Kind::Hello,
            2 => Kind::Ready,
            3 => Kind::Ping,
            4 => Kind::Pong,
            5 => Kind::Drain,
            6 => Kind::Bye,
            7 => Kind::Notice,
            8 => Kind::Credit,
            16 => Kind::Req,
            17 => Kind::Resp,
            18 => Kind::Err,
            19 => Kind::Cancel,
            20 => Kind::Recall,
            32 => Kind::Open,
            33 => Kind::Data,
            34 => Kind::Fin,
            35 => Kind::Rst,
            _ => return None,
        })
    }
}

/// Bits of the `flags` field.
pub mod flag {
    /// The receiver must understand this frame.
    pub const CRITICAL: u8 = 0x80;
    /// On ERR: the call had not started, and never will here.
    pub const NOT_STARTED: u8 = 0x01;
    /// On ERR: the call was cancelled.
    pub const CANCELLED: u8 = 0x02;
    /// On DATA: an error, as in ERR, after which the stream goes on. With [`REPLY`] the answer to a call.
    pub const ERROR: u8 = 0x01;
    /// On DATA: a call, which is answered by a REPLY of the same number. That lies before the message, in 8 bytes.
    pub const CALL: u8 = 0x02;
    /// On DATA: the answer to the call of this number.
    pub const REPLY: u8 = 0x04;
}

/// The time that a call has left, as it stands in a frame: 5 bits of exponent, 11 bits of mantissa, in milliseconds,
/// rounded up. Zero means that there is no deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining(u16);

impl Remaining {
    /// No deadline.
    pub const NONE: Remaining = Remaining(0);

    const MANTISSA_BITS: u32 = 11;
    const MANTISSA_MAX: u64 = (1 << Self::MANTISSA_BITS) - 1;

    /// The field for a time that is left, rounded up; a time below one millisecond counts as one.
    pub fn new(left: Option<Duration>) -> Self {
        let Some(left) = left else { return Self::NONE };
        let ceiling = Self::MANTISSA_MAX << 31;
        // Not by way of u128, whose division is slow.
        let part = u64::from(left.subsec_nanos().div_ceil(1_000_000));
        let millis = left.as_secs().saturating_mul(1000).saturating_add(part).clamp(1, ceiling);
        let bits = u64::BITS - millis.leading_zeros();
        let mut exponent = bits.saturating_sub(Self::MANTISSA_BITS);
        let mut mantissa = millis.div_ceil(1 << exponent);
        if mantissa > Self::MANTISSA_MAX {
            exponent += 1;
            mantissa = millis.div_ceil(1 << exponent);
        }
        Remaining((exponent as u16) << Self::MANTISSA_BITS | mantissa as u16)
    }

    /// The time that is left, or none where there is no deadline.
    pub const fn duration(self) -> Option<Duration> {
        if self.0 == 0 {
            return None;
        }
        let mantissa = self.0 as u64 & Self::MANTISSA_MAX;
        Some(Duration::from_millis(mantissa << (self.0 >> Self::MANTISSA_BITS)))
    }

    /// The field as it came out of a frame.
    pub const fn from_wire(field: u16) -> Self {
        Remaining(field)
    }

    /// The field as it goes into a frame.
    pub const fn to_wire(self) -> u16 {
        self.0
    }
}

/// All of a frame but its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind, which need not be one of [`Kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The time that the call has left.
    pub remaining: Remaining,
    /// The call, or 0.
    pub id: u64,
}

impl Header {
    /// A header of this kind, without flags, deadline or call.
    pub const fn new(kind: Kind) -> Self {
        Header { kind: kind as u8, flags: 0, remaining: Remaining::NONE, id: 0 }
    }

    /// The same for a call.
    pub const fn call(kind: Kind, id: u64) -> Self {
        Header { id, ..Header::new(kind) }
    }

    /// The header as bytes, for a payload of this length. The length must be within the limit of the link.
    pub fn encode(&self, payload: usize) -> [u8; HEADER] {
        debug_assert!(payload <= u32::MAX as usize - AFTER_LENGTH, "a payload of {payload} bytes cannot be framed");
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&((payload + AFTER_LENGTH) as u32).to_be_bytes());
        bytes[4] = self.kind;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.remaining.to_wire().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; AFTER_LENGTH]) -> Self {
        let [kind, flags, r0, r1, id @ ..] = *bytes;
        Header {
            kind,
            flags,
            remaining: Remaining::from_wire(u16::from_be_bytes([r0, r1])),
            id: u64::from_be_bytes(id),
        }
    }
}

/// A whole frame, whose payload still lies in the buffer of the one who read it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Everything but the payload.
    pub header: Header,
    /// The payload.
    pub payload: Lent<'a>,
}

impl Frame<'_> {
    /// Whether it says something about an open stream, but for its end.
    pub fn is_of_stream(&self) -> bool {
        [Kind::Data, Kind::Fin, Kind::Rst, Kind::Credit].iter().any(|kind| *kind as u8 == self.header.kind)
    }
}

/// Bytes that are no frame. The peer that sent them cannot be trusted with another byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadFrame {
    /// The length field is below the 12 bytes that every frame has after it.
    #[error("a frame of length {0}: every frame has at least 12 bytes after its length")]
    TooShort(u32),
    /// The length field is beyond the limit of the link.
    #[error("a frame of length {length}: this link takes at most {limit}")]
    TooLong {
        /// The length field.
        length: u32,
        /// The limit.
        limit: u32,
    },
    /// The id does not fit into 53 bits.
    #[error("a frame for call {0}: ids end at 2^53")]
    BadId(u64),
    /// The stream ended inside a frame.
    #[error("the stream ended {have} bytes into a frame")]
    Truncated {
        /// How many bytes of it had come.
        have: usize,
    },
}

/// Turns a byte stream into frames.
///
/// Bytes are written into [`Decoder::buffer`], then [`Decoder::next`] gives one frame after another. The buffer grows with the
/// bytes that came, never with the length that a header claims.
///
/// ```
/// use pm_core::machine::frame::{Decoder, Header, Kind};
///
/// let mut decoder = Decoder::new(1024);
/// decoder.buffer().extend_from_slice(&Header::new(Kind::Ping).encode(2));
/// assert_eq!(decoder.next(), Ok(None)); // the payload has not come yet
/// decoder.buffer().extend_from_slice(b"hi");
/// let frame = decoder.next().unwrap().unwrap();
/// assert_eq!(*frame.payload, *b"hi");
/// ```
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
    max_rest: u32,
}

impl Decoder {
    /// A decoder that takes payloads of at most `max_payload` bytes.
    pub fn new(max_payload: usize) -> Self {
        let max_rest = u32::try_from(max_payload.saturating_add(AFTER_LENGTH)).unwrap_or(u32::MAX);
        Decoder { bytes: Vec::new(), start: 0, max_rest }
    }

    /// The buffer to append to, with room for at least one more byte and mostly for many. Bytes that were there must stay.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        let unread = self.bytes.len() - self.start;
        if unread == 0 {
            self.bytes.clear();
            self.start = 0;
            payload::trim(&mut self.bytes);
        } else if self.start >= unread {
            // Moving no more than was consumed keeps the cost per byte constant.
            self.bytes.copy_within(self.start.., 0);
            self.bytes.truncate(unread);
            self.start = 0;
        }
        if self.bytes.capacity() - self.bytes.len() < READ_CHUNK / 2 {
            // A large frame whose first bytes came is worth a larger buffer, but at most twice what the peer has paid for.
            self.bytes.reserve(READ_CHUNK.max(unread));
        }
        &mut self.bytes
    }

    /// The next complete frame, or none until more bytes come.
    ///
    /// # Errors
    /// [`BadFrame`] for bytes that are no frame; every later call gives the same again.
    #[expect(clippy::should_implement_trait, reason = "a lending iterator: the frame borrows the buffer")]
    // In place of a call: what it gives is large, and moved otherwise.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, BadFrame> {
        let unread = &self.bytes[self.start..];
        let Some((length, _)) = unread.split_first_chunk::<4>() else { return Ok(None) };
        let rest = u32::from_be_bytes(*length);
        if (rest as usize) < AFTER_LENGTH {
            return Err(BadFrame::TooShort(rest));
        }
        if rest > self.max_rest {
            return Err(BadFrame::TooLong { length: rest, limit: self.max_rest });
        }
        let Some(body) = unread.get(4..4 + rest as usize) else { return Ok(None) };
        let Some((header, payload)) = body.split_first_chunk::<AFTER_LENGTH>() else { return Ok(None) };
        let (header, length) = (Header::decode(header), payload.len());
        if header.id >= super::id::CallId::LIMIT {
            return Err(BadFrame::BadId(header.id));
        }
        self.start += 4 + rest as usize;
        let payload = Lent::out_of(&mut self.bytes, &mut self.start, length);
        Ok(Some(Frame { header, payload }))
    }

    /// What the end of the stream means here.
    ///
    /// # Errors
    /// [`BadFrame::Truncated`] where it cuts a frame.
    pub fn finish(&self) -> Result<(), BadFrame> {
        match self.unread().len() {
            0 => Ok(()),
            have => Err(BadFrame::Truncated { have }),
        }
    }

    /// The bytes that came and were not given out yet.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Bytes of memory that the buffer holds.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, id: u64, payload: &[u8]) -> Vec<u8> {
        let header = Header { kind, flags: 0, remaining: Remaining::NONE, id };
        [header.encode(payload.len()).as_slice(), payload].concat()
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let stream = [frame(16, 1, b"one"), frame(17, 2, b""), frame(99, 3, &[7; 300])].concat();
        for step in 1..stream.len() {
            let mut decoder = Decoder::new(1000);
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                decoder.buffer().extend_from_slice(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    seen.push((frame.header.id, frame.payload.to_vec()));
                }
            }
            assert_eq!(seen, [(1, b"one".to_vec()), (2, Vec::new()), (3, vec![7; 300])], "in steps of {step}");
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn bad_lengths_are_named() {
        for (length, expected) in [
            (0, BadFrame::TooShort(0)),
            (11, BadFrame::TooShort(11)),
            (113, BadFrame::TooLong { length: 113, limit: 112 }),
            (u32::MAX, BadFrame::TooLong { length: u32::MAX, limit: 112 }),
        ] {
            let mut decoder = Decoder::new(100);
            decoder.buffer().extend_from_slice(&length.to_be_bytes());
            assert_eq!(decoder.next(), Err(expected));
            assert_eq!(decoder.next(), Err(expected), "an error is final");
        }
        let mut decoder = Decoder::new(100);
        decoder.buffer().extend_from_slice(&frame(17, 1 << 53, b""));
        assert_eq!(decoder.next(), Err(BadFrame::BadId(1 << 53)));
    }

    #[test]
    fn the_end_inside_a_frame_is_told_from_the_end_between_frames() {
        let whole = frame(17, 1, b"abc");
        for cut in 1..whole.len() {
            let mut decoder = Decoder::new(100);
            decoder.buffer().extend_from_slice(&whole[..cut]);
            assert_eq!(decoder.next(), Ok(None));
            assert_eq!(decoder.finish(), Err(BadFrame::Truncated { have: cut }));
        }
    }

    #[test]
    fn a_claimed_length_reserves_nothing() {
        let mut decoders: Vec<_> = (0..100).map(|_| Decoder::new(MAX_PAYLOAD)).collect();
        for decoder in &mut decoders {
            let header = Header::new(Kind::Resp).encode(MAX_PAYLOAD);
            decoder.buffer().extend_from_slice(&header);
            assert_eq!(decoder.next(), Ok(None));
            decoder.buffer();
            assert!(decoder.capacity() <= 4 * READ_CHUNK, "{} bytes for a header", decoder.capacity());
        }
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut decoder = Decoder::new(MAX_PAYLOAD);
        decoder.buffer().extend_from_slice(&frame(17, 1, &vec![1; 8 << 20]));
        assert!(decoder.next().unwrap().is_some());
        decoder.buffer();
        assert!(decoder.capacity() <= payload::KEEP);
    }

    #[test]
    fn remaining_rounds_up_and_never_by_more_than_a_thousandth() {
        for (millis, field) in
            [(1, 1), (2047, 2047), (2048, 3072), (2049, 3073), (900_000, 20190), (4_294_967_295, 46080)]
        {
            assert_eq!(Remaining::new(Some(Duration::from_millis(millis))).to_wire(), field, "{millis} ms");
        }
        assert_eq!(Remaining::new(None), Remaining::NONE);
        assert_eq!(Remaining::new(Some(Duration::ZERO)).duration(), Some(Duration::from_millis(1)));
        assert!(Remaining::new(Some(Duration::MAX)).duration() > Some(Duration::from_secs(100 * 365 * 86_400)));
        let mut millis = 1u64;
        while millis < 1 << 40 {
            let given = Remaining::new(Some(Duration::from_millis(millis))).duration().unwrap().as_millis() as u64;
            assert!(given >= millis && given - millis <= millis / 1024, "{millis} became {given}");
            millis = millis * 9 / 8 + 1;
        }
    }

    #[test]
    fn the_vectors_of_the_protocol_page() {
        let page = include_str!("../../../docs/PROTOCOL.md");
        let rows = page.lines().skip_while(|line| !line.starts_with("| name | kind | flags")).skip(2);
        let mut checked = 0;
        for row in rows.take_while(|line| line.starts_with('|')) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, name, kind, flags, remaining, id, text, hex, _] = cells[..] else {
                panic!("a row of 7 cells: {row}")
            };
            let header = Header {
                kind: kind.parse().unwrap(),
                flags: flags.parse().unwrap(),
                remaining: Remaining::from_wire(remaining.parse().unwrap()),
                id: id.parse().unwrap(),
            };
            let text = text.trim_matches('`').as_bytes();
            let hex = hex.trim_matches('`');
            let bytes: Vec<u8> =
                (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
            assert_eq!([header.encode(text.len()).as_slice(), text].concat(), bytes, "{name}");
            let mut decoder = Decoder::new(MAX_PAYLOAD);
            decoder.buffer().extend_from_slice(&bytes);
            assert_eq!(decoder.next(), Ok(Some(Frame { header, payload: text.into() })), "{name}");
            checked += 1;
        }
        assert!(checked >= 18, "the page has {checked} vectors");
    }
}
