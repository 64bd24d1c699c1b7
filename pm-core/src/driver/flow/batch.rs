//! Messages on their way to their reader.

use std::collections::VecDeque;

use crate::face::error::HandlerError;
use crate::machine::frame::flag;
use crate::machine::payload::{Lent, Payload};
use crate::machine::stream::{Fault, Grant};

/// Bytes of the number before a call and its reply.
pub(crate) const NUMBER: usize = 8;

/// What a message is.
#[derive(Debug)]
pub(crate) enum Content {
    Plain,
    /// A call with this number, whose input lies behind it.
    Call(u64),
    /// An error, after which the stream goes on.
    Error(Box<HandlerError>),
}

/// A payload from this size on lies apart, in the memory in which it came. Smaller ones lie together.
const APART: usize = 4 << 10;

/// Bytes that a stream keeps twice while its reader waits.
const KEEP: usize = 512;

/// Messages in the order in which they came. Their payloads lie one behind the other, so that they need no memory of their own.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The length of each, or [`ODD`].
    lengths: Vec<u16>,
    /// How many of them were taken.
    taken: usize,
    bytes: Vec<u8>,
    /// Where the next one begins.
    at: usize,
    odd: VecDeque<(Content, Place)>,
    /// How many there were before these, and bytes of them: as many are likely to come again.
    expected: (usize, usize),
}

/// The length of a message that is more than its bytes, or does not lie among the others: see [`Batch::odd`].
const ODD: u16 = u16::MAX;

const _: () = assert!(APART <= ODD as usize);

#[derive(Debug)]
enum Place {
    /// So many bytes, behind those of the message before it.
    Here(usize),
    Apart(Box<Payload>),
}

impl Batch {
    /// Once something comes, makes room for about as much as there is in `like`.
    pub(super) fn expect(&mut self, like: &Batch) {
        self.expected = (like.lengths.len(), like.bytes.len());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.lengths.len()
    }

    pub(super) fn push(&mut self, content: Content, payload: Lent<'_>) {
        let length = payload.len();
        if length >= APART {
            let mut apart = Box::<Payload>::default();
            payload.take_into(&mut apart);
            return self.push_odd(content, Place::Apart(apart));
        }
        if self.lengths.capacity() == 0 {
            let (messages, bytes) = self.expected;
            self.lengths.reserve(messages.max(1));
            self.bytes.reserve(bytes.max(length));
        }
        self.bytes.extend_from_slice(&payload);
        match content {
            Content::Plain => self.lengths.push(length as u16),
            content => self.push_odd(content, Place::Here(length)),
        }
    }

    #[cold]
    fn push_odd(&mut self, content: Content, place: Place) {
        self.odd.push_back((content, place));
        self.lengths.push(ODD);
    }

    /// The calls among those that were not taken.
    pub(super) fn calls(&self) -> impl Iterator<Item = u64> {
        self.odd.iter().filter_map(|(content, _)| match content {
            Content::Call(number) => Some(*number),
            _ => None,
        })
    }

    /// Forgets what was taken, which is all: what comes next lies at the beginning.
    pub(super) fn clear(&mut self) {
        debug_assert!(self.is_empty() && self.odd.is_empty());
        self.lengths.clear();
        self.bytes.clear();
        (self.taken, self.at) = (0, 0);
    }

    /// Gives memory back that is worth it.
    pub(super) fn trim(&mut self) {
        let odd = self.odd.capacity() * size_of::<(Content, Place)>();
        if self.bytes.capacity() + 2 * self.lengths.capacity() + odd > KEEP {
            *self = Batch { expected: self.expected, ..Batch::default() };
        }
    }
}

/// Messages on their way from a flow to its reader, who takes all at once that have come, so that it need not lock the flow for each.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(super) batch: Batch,
    /// The last one, where it lay apart.
    apart: Payload,
    /// How many were read since that was last reported, and bytes in them.
    pub(super) count: usize,
    pub(super) bytes: usize,
    /// Once so much was read the peer gets credit for it.
    pub(super) report_at: Grant,
}

impl Taken {
    pub(super) fn is_due(&self) -> bool {
        self.count >= self.report_at.messages as usize || self.bytes >= self.report_at.bytes as usize
    }

    /// The next message and its value, encoded, where [`Flow::poll_next`](super::Flow::poll_next) has found one.
    pub(crate) fn pop(&mut self) -> Option<(Content, &[u8])> {
        let Taken { batch, apart, count, bytes, .. } = self;
        let length = *batch.lengths.get(batch.taken)?;
        batch.taken += 1;
        *count += 1;
        let mut here = |length: usize| {
            batch.at += length;
            *bytes += length;
            &batch.bytes[batch.at - length..batch.at]
        };
        if length != ODD {
            return Some((Content::Plain, here(length.into())));
        }
        let (content, place) = batch.odd.pop_front()?;
        let payload = match place {
            Place::Here(length) => here(length),
            Place::Apart(payload) => {
                *apart = *payload;
                *bytes += apart.len();
                &apart[..]
            }
        };
        let value = match content {
            Content::Call(_) => payload.get(NUMBER..).unwrap_or_default(),
            _ => payload,
        };
        Some((content, value))
    }

    /// It is empty: what comes next lies at its beginning.
    pub(super) fn clear(&mut self) {
        self.apart = Payload::default();
        self.batch.clear();
    }
}

impl Content {
    pub(super) fn of(flags: u8, payload: &[u8]) -> Result<Self, Fault> {
        if flags & flag::ERROR != 0 {
            let error = serde_json::from_slice(payload).map_err(|_| Fault::Malformed)?;
            return Ok(Content::Error(Box::new(error)));
        }
        match flags & flag::CALL {
            0 => Ok(Content::Plain),
            _ => number(payload).map(Content::Call).ok_or(Fault::Malformed),
        }
    }
}

/// The number of a call, or of its reply.
pub(super) fn number(payload: &[u8]) -> Option<u64> {
    payload.first_chunk().copied().map(u64::from_be_bytes)
}
