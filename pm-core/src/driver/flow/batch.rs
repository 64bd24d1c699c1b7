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

/// Memory that a stream keeps twice while its reader waits.
pub(super) const KEEP: usize = 512;

/// Messages in the order in which they came. Their payloads lie one behind the other, so that they need no memory of their own.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: VecDeque<(Content, Place)>,
    pub(super) bytes: Vec<u8>,
    /// How many there were before these, and bytes of them: as many are likely to come again.
    pub(super) expected: (usize, usize),
}

#[derive(Debug)]
pub(super) enum Place {
    /// So many bytes, behind those of the message before it.
    Here(usize),
    Apart(Box<Payload>),
}

impl Batch {
    pub(super) fn push(&mut self, content: Content, payload: Lent<'_>) {
        if self.entries.capacity() == 0 {
            let (messages, bytes) = self.expected;
            self.entries.reserve(messages.max(1));
            self.bytes.reserve(bytes.max(payload.len()));
        }
        let place = if payload.len() < APART {
            self.bytes.extend_from_slice(&payload);
            Place::Here(payload.len())
        } else {
            let mut apart = Box::<Payload>::default();
            payload.take_into(&mut apart);
            Place::Apart(apart)
        };
        self.entries.push_back((content, place));
    }
}

/// Messages on their way from a flow to its reader, who takes all at once that have come, so that it need not lock the flow for each.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(super) batch: Batch,
    /// Where the next one begins.
    at: usize,
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
        let (content, place) = self.batch.entries.pop_front()?;
        let payload = match place {
            Place::Here(length) => {
                self.at += length;
                &self.batch.bytes[self.at - length..self.at]
            }
            Place::Apart(apart) => {
                self.apart = *apart;
                &self.apart[..]
            }
        };
        self.count += 1;
        self.bytes += payload.len();
        let value = match content {
            Content::Call(_) => payload.get(NUMBER..).unwrap_or_default(),
            _ => payload,
        };
        Some((content, value))
    }

    /// It is empty: what comes next lies at its beginning.
    pub(super) fn clear(&mut self) {
        (self.at, self.apart) = (0, Payload::default());
        self.batch.bytes.clear();
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
