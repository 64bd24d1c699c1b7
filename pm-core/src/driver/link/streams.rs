//! The streams of a link: what their frames mean, and how those of this side come to it.
//!
//! A stream is a call, so its id, its end and its place are those of any call; what makes it a stream is its [`Flow`]. Messages go onto the link at once, by those who
//! write them. Whatever else a stream has to say waits for the next flush ([`Core::flush_all`]), which the task of the worker makes.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::LinkShared;
use super::locked::{Aboard, After, Batch, Core};
use crate::driver::clock;
use crate::driver::flow::{Came, Carrier, Flow, Outlet, Pushed};
use crate::face::error::StreamError;
use crate::machine::frame::{Header, Kind};
use crate::machine::id::{CallId, WorkerId};
use crate::machine::pulse::Pulse;
use crate::machine::session::Standing;
use crate::machine::stream::Grant;
use crate::machine::time::Time;
use crate::transport::{LinkError, LinkTx};

/// After so long without a write the next one is one that comes alone.
const ALONE_AFTER: Duration = Duration::from_micros(50);

/// Messages gather up to so many, or so many bytes: while the worker reads some, more are made. All together would go only once there is nothing left to do, and each on its
/// own would cost a system call.
const GATHER: u32 = 64;
const GATHER_BYTES: usize = 16 << 10;

/// What a link knows of its streams beyond their calls.
#[derive(Debug)]
pub(super) struct Streams {
    /// What the worker may send on each before anything is read, and what this side may. None where the calls are queries.
    windows: Option<(Grant, Grant)>,
    /// Those that owe something, or have found no room.
    owing: Vec<CallId>,
    /// What the last handler that failed said.
    pub(super) last_error: Option<String>,
    /// A message came since the last write.
    has_message: bool,
    /// When a message last went, and none before it waited.
    last_alone: Time,
    pub(super) pulse: Pulse,
}

impl Streams {
    /// `silence` is how long the worker may say nothing while it has not ended a cancelled stream.
    pub(super) fn new(windows: Option<(Grant, Grant)>, silence: Option<Duration>) -> Self {
        let pulse = Pulse::new(silence);
        Streams { windows, owing: Vec::new(), last_error: None, has_message: true, last_alone: Time::ZERO, pulse }
    }

    /// Whether the calls are streams.
    pub(super) fn is_any(&self) -> bool {
        self.windows.is_some()
    }

    /// A stream is aboard.
    pub(super) fn open(&self, flow: &Flow, link: Arc<dyn Carrier>, id: CallId) {
        let (window, credit) = self.windows.unwrap_or((Grant::NONE, Grant::NONE));
        flow.open(link, id.to_wire(), window, credit);
    }

    /// Whether a message that goes now need not wait for others: it is the answer to one that came alone, or none has gone for a while. In a flood it does.
    fn comes_alone(&mut self) -> bool {
        let now = clock::now();
        let before = std::mem::replace(&mut self.last_alone, now);
        std::mem::take(&mut self.has_message) || now.since(before) > ALONE_AFTER
    }

    /// Some messages came together.
    pub(super) fn note_messages(&mut self) {
        self.has_message = true;
    }
}

impl<Tx: LinkTx> Core<Tx> {
    /// The stream that frames with this header are about. None where it has ended.
    pub(super) fn stream_of(&self, header: Header) -> Result<Option<Arc<Flow>>, String> {
        let id = CallId::from_wire(header.id);
        let kind = || Kind::from_wire(header.kind).map(|kind| format!("{kind:?}")).unwrap_or_default();
        match self.session.look_up(id) {
            Standing::NeverIssued => Err(format!("a {} for a stream that was never opened (id {})", kind(), header.id)),
            Standing::Ended => Ok(None),
            Standing::Open => {
                let aboard = self.calls.get(id.slot()).and_then(Option::as_ref);
                let flow = aboard.and_then(|Aboard { call, .. }| call.flow.clone());
                flow.map(Some).ok_or_else(|| format!("a {} for a query (id {})", kind(), header.id))
            }
        }
    }

    /// Frames of a stream came to this. What its worker does wrong there ends the stream alone.
    pub(super) fn stream_came(&mut self, now: Time, id: u64, came: Came, after: &mut After, batch: &mut Batch) {
        let id = CallId::from_wire(id);
        batch.messages += came.messages;
        batch.dropped += came.dropped;
        if let Some(fault) = came.fault {
            self.end_stream(now, id, StreamError::Fault(fault), &mut after.wakers);
            batch.replied = true;
        } else if came.owes {
            self.streams.owing.push(id);
            batch.replied = true;
        }
    }

    /// Ends a stream for its caller, and tells the worker.
    fn end_stream(&mut self, now: Time, id: CallId, error: StreamError, wakers: &mut Vec<Waker>) {
        if let Some(Aboard { call, .. }) = self.give_up(now, id) {
            call.end_stream(Err(error), wakers);
        }
    }

    /// Says what the streams owe, as far as there is room.
    fn pay_streams(&mut self, has_room: bool, wakers: &mut Vec<Waker>) {
        let mut owing = std::mem::take(&mut self.streams.owing);
        owing.retain(|&id| {
            let flow = self.calls.get(id.slot()).and_then(Option::as_ref).and_then(|aboard| aboard.call.flow.clone());
            // The slot may have another one by now, whose frames those are then.
            flow.is_some_and(|flow| !flow.attend(&mut Out(self), has_room, wakers))
        });
        owing.append(&mut self.streams.owing);
        self.streams.owing = owing;
    }

    /// Flushes, with what had no room before and what the streams owe, and wakes those who wait for room.
    pub(super) fn flush_all(&mut self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Poll<Result<(), LinkError>> {
        let mut has_room = false;
        loop {
            if self.say_unsaid() {
                self.pay_streams(has_room, wakers);
            }
            let flushed = self.poll_flush(cx);
            let is_all = self.streams.owing.is_empty() && self.unsaid.is_empty();
            if is_all || !matches!(flushed, Poll::Ready(Ok(()))) {
                return flushed;
            }
            // It is empty, and has room for one frame at least.
            has_room = true;
        }
    }
}

impl<Tx: LinkTx> LinkShared<Tx> {
    /// The streams that are open.
    pub(crate) fn streams(&self) -> Vec<Arc<Flow>> {
        let core = self.core();
        core.calls.iter().flatten().filter_map(|aboard| aboard.call.flow.clone()).collect()
    }

    /// What the last handler that failed said.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.core().streams.last_error.clone()
    }

    /// Whether its worker may send nothing on one of them before somebody reads.
    pub(crate) fn is_held_up(&self) -> bool {
        self.streams().iter().any(|flow| flow.holds_up_peer())
    }
}

/// A link whose lock is held.
struct Out<'a, Tx>(&'a mut Core<Tx>);

impl<Tx: LinkTx> Outlet for Out<'_, Tx> {
    fn push(&mut self, header: Header, payload: &[u8]) -> Pushed {
        match self.0.push(header, payload) {
            Ok(true) => Pushed::Taken,
            Ok(false) => Pushed::NoRoom,
            Err(_) => Pushed::Closed,
        }
    }

    fn remember(&mut self, id: u64) {
        self.0.streams.owing.push(CallId::from_wire(id));
    }
}

impl<Tx: LinkTx> Carrier for LinkShared<Tx> {
    fn with(&self, act: &mut dyn FnMut(&mut dyn Outlet)) {
        let mut guard = self.core();
        let core = &mut *guard;
        let (unsent, owing) = (core.unsent, core.streams.owing.len());
        act(&mut Out(core));
        let has_pushed = core.unsent > unsent;
        if !has_pushed && core.streams.owing.len() == owing {
            return;
        }
        let is_alone = unsent == 0 && core.last_batch <= 1 && core.streams.comes_alone();
        let flushes = is_alone || core.unsent >= GATHER || core.unsent_bytes >= GATHER_BYTES;
        let is_gone =
            flushes && matches!(core.poll_flush(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
        let kick = !is_gone || !core.streams.owing.is_empty();
        drop(guard);
        if kick {
            self.kick();
        }
    }

    fn owe(&self, id: u64, is_known: bool) {
        if !is_known {
            self.core().streams.owing.push(CallId::from_wire(id));
        }
        self.kick();
    }

    fn worker(&self) -> Option<WorkerId> {
        Some(self.worker)
    }

    fn cancel(&self, id: u64) {
        LinkShared::cancel(self, CallId::from_wire(id));
    }
}
