//! Those who write on a stream: with credit and room at once, else they wait for some in the flow.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::lease::Lease;
use super::{Flow, Outlet, Pushed, State};
use crate::face::error::StreamError;
use crate::machine::frame::{Header, Kind, flag};
use crate::machine::stream::Write;

/// One who writes on a stream, one frame after another. Dropped, it waits no longer.
pub(crate) struct Writer {
    flow: Arc<Flow>,
    /// Its place among those who wait.
    ticket: Option<u64>,
}

impl Writer {
    pub(crate) fn new(flow: Arc<Flow>) -> Self {
        Writer { flow, ticket: None }
    }

    /// Sends a message. Pending where there is no credit or no room.
    pub(crate) fn poll(&mut self, flags: u8, payload: &[u8], cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let Writer { flow, ticket } = self;
        let Some((carrier, id)) = flow.carrier.get() else { return Poll::Ready(Err(StreamError::Ended)) };
        let header = Header { flags, ..Header::call(Kind::Data, *id) };
        let (mut has_gone, mut refused, mut before) = (false, None, None);
        carrier.with(&mut |out| {
            if flags & flag::REPLY == 0 && flow.lease.may_write() && out.push(header, payload) == Pushed::Taken {
                flow.lease.spend(payload.len());
                has_gone = true;
                return;
            }
            let mut state = flow.state();
            match state.write(header, out, payload, &flow.lease) {
                Some(Ok(())) => has_gone = true,
                Some(Err(error)) => refused = Some(error),
                None => before = state.wait(ticket, cx.waker()),
            }
        });
        if has_gone {
            *ticket = None;
            return Poll::Ready(Ok(()));
        }
        // Where no lock is held: it may be the last that its executor has of a task.
        drop(before);
        refused.map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }

    /// It waits no longer.
    pub(crate) fn give_up(&mut self) {
        if let Some(number) = self.ticket.take() {
            let mut state = self.flow.state();
            let place = state.writers.iter().position(|(other, _)| *other == number);
            let waker = place.map(|place| state.writers.remove(place));
            drop(state);
            drop(waker);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl State {
    /// Sends a message. None where there is no credit or no room.
    fn write(
        &mut self,
        header: Header,
        out: &mut dyn Outlet,
        payload: &[u8],
        lease: &Lease,
    ) -> Option<Result<(), StreamError>> {
        let is_reply = header.flags & flag::REPLY != 0;
        let may = match &mut self.stream {
            // It has an end in a moment, which says more.
            Some(stream) if stream.is_over() && self.end.is_none() => Write::Waits,
            Some(stream) if is_reply => stream.may_reply(),
            Some(stream) => {
                stream.put_credit(lease.take());
                stream.may_write()
            }
            None => Write::Never,
        };
        match may {
            Write::Never => return Some(Err(self.why_closed())),
            Write::Waits => {}
            Write::Goes => match out.push(header, payload) {
                Pushed::Taken => {
                    if let Some(stream) = self.stream.as_mut().filter(|_| !is_reply) {
                        stream.wrote(payload.len());
                        lease.put(stream.take_credit());
                    }
                    return Some(Ok(()));
                }
                Pushed::NoRoom => {
                    self.owed.room = true;
                    if !std::mem::replace(&mut self.owed.is_known, true) {
                        out.remember(header.id);
                    }
                }
                // The end of the link is on its way, and wakes all who wait.
                Pushed::Closed => {}
            },
        }
        None
    }

    /// Puts a writer among those who wait. Gives the waker that it had there.
    fn wait(&mut self, ticket: &mut Option<u64>, waker: &Waker) -> Option<Waker> {
        let number = *ticket.get_or_insert_with(|| {
            self.next_ticket += 1;
            self.next_ticket
        });
        match self.writers.iter_mut().find(|(other, _)| *other == number) {
            Some((_, known)) => Some(std::mem::replace(known, waker.clone())),
            None => {
                self.writers.push((number, waker.clone()));
                None
            }
        }
    }
}
