//! What the frames of the peer mean to a flow.

use std::sync::MutexGuard;
use std::task::Waker;

use super::batch::{Content, NUMBER, number};
use super::lease::Lease;
use super::{Flow, State};
use crate::machine::frame::{Frame, Header, Kind, flag};
use crate::machine::payload::{Lent, Payload};
use crate::machine::stream::{Fault, Grant};

/// A flow that is locked while the frames of its peer come, one after another.
pub(crate) struct Receiving<'a> {
    flow: &'a Flow,
    state: MutexGuard<'a, State>,
    came: Came,
}

/// What they came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Came {
    /// Messages, and errors, for whoever reads.
    pub(crate) messages: u32,
    /// Frames that mean nothing any more.
    pub(crate) dropped: u64,
    /// The stream owes an answer to some of these: the carrier is to see to that.
    pub(crate) owes: bool,
    /// What no honest peer does. The stream is over.
    pub(crate) fault: Option<Fault>,
}

impl Flow {
    /// Locks it, for frames of the peer.
    pub(crate) fn receive(&self) -> Receiving<'_> {
        Receiving { flow: self, state: self.state(), came: Came::default() }
    }
}

impl Receiving<'_> {
    /// Takes a frame.
    pub(crate) fn take(&mut self, frame: Frame<'_>, wakers: &mut Vec<Waker>) {
        let Frame { header, payload } = frame;
        if self.came.fault.is_some() {
            self.came.dropped += 1;
            return;
        }
        match self.state.receive(header, payload, &self.flow.lease, wakers) {
            Ok(true) => self.came.messages += u32::from(header.kind == Kind::Data as u8),
            Ok(false) => self.came.dropped += 1,
            Err(fault) => {
                self.flow.lease.shut();
                self.came.fault = Some(fault);
            }
        }
    }

    /// Unlocks it.
    pub(crate) fn end(mut self) -> Came {
        let State { owed, end, .. } = &mut *self.state;
        if !owed.unanswered.is_empty() && end.is_none() {
            self.came.owes = !std::mem::replace(&mut owed.is_known, true);
        }
        self.came
    }
}

impl State {
    /// Takes a frame of the peer. False where it means nothing any more.
    fn receive(
        &mut self,
        header: Header,
        payload: Lent<'_>,
        lease: &Lease,
        wakers: &mut Vec<Waker>,
    ) -> Result<bool, Fault> {
        let (kind, flags) = (Kind::from_wire(header.kind), header.flags);
        if kind == Some(Kind::Data) && flags & flag::REPLY != 0 {
            return self.reply(flags, payload, wakers);
        }
        let Some(stream) = &mut self.stream else { return Ok(false) };
        match kind {
            Some(Kind::Data) => {
                let is_wanted = stream.data(payload.len())?;
                if !is_wanted && stream.is_over() {
                    return Ok(false);
                }
                let content = Content::of(flags, &payload).map_err(|fault| stream.fail(fault))?;
                if is_wanted {
                    self.inbox.push(content, payload);
                    wakers.extend(self.reader.take());
                } else if let Content::Call(number) = content {
                    // Whoever made the call cannot know that nobody reads it.
                    self.owed.unanswered.push(number);
                }
                Ok(is_wanted)
            }
            Some(Kind::Fin) => {
                let finished = stream.peer_finished()?;
                self.wake_readers(wakers);
                Ok(finished)
            }
            Some(Kind::Rst) => {
                let stopped = stream.peer_stopped();
                lease.shut();
                self.wake_writers(wakers);
                Ok(stopped)
            }
            Some(Kind::Credit) => {
                let grant = Grant::decode(&payload).ok_or(Fault::Malformed).map_err(|fault| stream.fail(fault))?;
                stream.put_credit(lease.take());
                if stream.granted(grant)? {
                    self.wake_writers(wakers);
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Takes the reply to a call. One that nobody waits for any more is dropped: so a peer that makes some up fills nothing.
    fn reply(&mut self, flags: u8, payload: Lent<'_>, wakers: &mut Vec<Waker>) -> Result<bool, Fault> {
        let Some(stream) = self.stream.as_mut().filter(|_| self.end.is_none()) else { return Ok(false) };
        let number = number(&payload).ok_or(Fault::Malformed).map_err(|fault| stream.fail(fault))?;
        let Some(call) = self.calls.get_mut(&number).filter(|call| call.reply.is_none()) else { return Ok(false) };
        let reply = match (flags & flag::ERROR, &payload[NUMBER..]) {
            (0, _) => {
                let mut reply = Payload::default();
                payload.take_into(&mut reply);
                Ok(reply)
            }
            (_, []) => Err(None),
            (_, error) => {
                let error = serde_json::from_slice(error).map_err(|_| stream.fail(Fault::Malformed))?;
                Err(Some(Box::new(error)))
            }
        };
        call.reply = Some(reply);
        wakers.extend(call.waker.take());
        Ok(true)
    }
}
