//! The streams at a desk: what the frames of the manager mean to them, and how their own come to the link.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::Waker;

use super::context::Deadline;
use super::desk::{Desk, Ended, Job, State, unlock};
use crate::driver::flow::{Came, Carrier, Flow, Outlet, Pushed};
use crate::face::error::StreamError;
use crate::machine::frame::Header;
use crate::machine::payload::Payload;
use crate::machine::stream::Grant;

/// The streams that the manager has opened, and that have no answer yet.
#[derive(Default)]
pub(super) struct Streams {
    /// What the manager may send on each before anything is read, and what this side may. None where the calls are queries.
    windows: Option<(Grant, Grant)>,
    flows: HashMap<u64, Arc<Flow>, BuildHasherDefault<ById>>,
    /// Those that owe something.
    owing: Vec<u64>,
    /// Those that are over because the link is, and are to be told where the desk is not locked: one of them may be what found that out.
    dead: Vec<Arc<Flow>>,
}

/// Ids are numbers that the manager counts up, so they need no better hash.
#[derive(Default)]
struct ById(u64);

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, id: u64) {
        // The lowest bits of an id, and the highest of a hash, tell one from another: fibonacci hashing spreads the first over the second.
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Streams {
    pub(super) fn is_any(&self) -> bool {
        self.windows.is_some()
    }

    pub(super) fn owes(&self) -> bool {
        !self.owing.is_empty()
    }

    /// A stream that is open.
    pub(super) fn get(&self, id: u64) -> Option<Arc<Flow>> {
        self.flows.get(&id).cloned()
    }

    /// Frames of a stream came to this.
    pub(super) fn came(&mut self, id: u64, came: Came, wakers: &mut Vec<Waker>) {
        if let Some(fault) = came.fault {
            if let Some(flow) = self.flows.remove(&id) {
                flow.end(Err(StreamError::Fault(fault)), wakers);
            }
        } else if came.owes {
            self.owing.push(id);
        }
    }
}

impl State {
    /// The stream with this id is over, if there is one.
    pub(super) fn end_stream(&mut self, id: u64) {
        if let Some(flow) = self.streams.flows.remove(&id) {
            flow.end(Err(StreamError::Ended), &mut self.wakers);
        }
    }

    /// The link has ended, and all streams with it: see [`Streams::dead`].
    pub(super) fn end_streams(&mut self) {
        let flows = self.streams.flows.drain().map(|(_, flow)| flow);
        self.streams.dead.extend(flows);
    }

    /// Streams that are over and were not told.
    pub(super) fn dead_streams(&mut self) -> Vec<Arc<Flow>> {
        std::mem::take(&mut self.streams.dead)
    }
}

impl Desk {
    /// The calls are streams from here on. `window` is what the manager may send on each, and `credit` what it has granted.
    pub(super) fn take_streams(&self, window: Grant, credit: Grant) {
        self.state().streams.windows = Some((window, credit));
    }

    /// Wakes those who wait for something that will not come: this worker serves no more.
    pub(super) fn let_go(&self) {
        unlock(self.state());
    }

    /// The manager opens a stream.
    pub(super) fn open_stream(&self, state: &mut State, header: Header, name: &[u8]) -> Result<(), Ended> {
        if state.streams.flows.contains_key(&header.id) {
            return Err(self.violation(state, &format!("a second OPEN of the stream {}", header.id)));
        }
        let (Some((window, credit)), Some(me)) = (state.streams.windows, self.me.upgrade()) else { return Ok(()) };
        let flow = Flow::new(&String::from_utf8_lossy(name));
        flow.open(me, header.id, window, credit);
        state.streams.flows.insert(header.id, flow.clone());
        state.came += 1;
        let deadline = header.remaining.duration().map(Deadline::after);
        let number = state.came;
        state.waiting.push_back(Job { id: header.id, number, deadline, input: Payload::default(), flow: Some(flow) });
        Ok(())
    }

    /// Puts on the link, or into the outbox, what the streams owe.
    pub(super) fn pay_streams(&self, state: &mut State) {
        for id in std::mem::take(&mut state.streams.owing) {
            if let Some(flow) = state.streams.flows.get(&id).cloned() {
                let mut wakers = std::mem::take(&mut state.wakers);
                flow.attend(&mut Out { desk: self, state }, true, &mut wakers);
                state.wakers.append(&mut wakers);
            }
        }
    }
}

/// A desk that is locked. Whoever sends there waits for room.
struct Out<'a> {
    desk: &'a Desk,
    state: &'a mut State,
}

impl Outlet for Out<'_> {
    fn push(&mut self, header: Header, payload: &[u8]) -> Pushed {
        match self.desk.gather(self.state, header, payload) {
            Ok(()) => Pushed::Taken,
            Err(Ended) => Pushed::Closed,
        }
    }

    fn remember(&mut self, _: u64) {}
}

impl Carrier for Desk {
    fn with(&self, act: &mut dyn FnMut(&mut dyn Outlet)) {
        let mut state = self.state();
        let had = state.has_gathered();
        act(&mut Out { desk: self, state: &mut state });
        let has = state.has_gathered();
        unlock(state);
        if has && !had {
            self.news.notify_one();
        }
    }

    fn owe(&self, id: u64, is_known: bool) {
        if !is_known {
            self.state().streams.owing.push(id);
        }
        self.news.notify_one();
    }

    fn has_handlers(&self) -> bool {
        true
    }

    /// The handler has its own way to end: it returns.
    fn cancel(&self, id: u64) {
        let mut state = self.state();
        state.end_stream(id);
        unlock(state);
    }
}
