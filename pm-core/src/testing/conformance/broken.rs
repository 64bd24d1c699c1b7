//! The suite is worth what it finds: transports that are broken on purpose, each in one way, must fail.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::time::Sleep;

use super::subject::SOON;
use super::{Case, cases};
use crate::machine::frame::{Frame, Header};
use crate::testing::memory::{Memory, MemoryAccept, MemoryLink};
use crate::transport::{Accept, Identity, Link, LinkError, LinkRx, LinkTx, Offer, Transport, TransportError};

/// How a transport is broken. What concerns frames strikes one in a thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Drops,
    Doubles,
    Reorders,
    Corrupts,
    /// One time in a hundred that somebody waits, nobody wakes them.
    LosesWakeUps,
    /// It wakes the first who waited, not the last.
    KeepsTheFirstWaker,
    /// The end comes two seconds late.
    DelaysTheEnd,
    /// The end overtakes what was sent before it.
    EndsEarly,
    /// It takes everything, and holds what does not go.
    IsUnbounded,
    /// It takes frames after an error.
    ForgetsErrors,
    /// It is ready all the time.
    IsAlwaysReady,
    /// It leaves a descriptor open now and then.
    Leaks,
}

/// Which half of the link it is that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Tx,
    Rx,
}

#[derive(Debug)]
struct Broken(Fault, Half);

struct BrokenAccept(Fault, Half, MemoryAccept);

struct BrokenLink(Fault, Half, MemoryLink);

type Owned = (Header, Vec<u8>);

struct BrokenTx {
    inner: <MemoryLink as Link>::Tx,
    fault: Fault,
    pushes: u64,
    held: VecDeque<Owned>,
    waits: Waits,
}

struct BrokenRx {
    inner: <MemoryLink as Link>::Rx,
    fault: Fault,
    frames: u64,
    /// Out of order, or not yet at their turn.
    held: Option<Owned>,
    ready: VecDeque<Owned>,
    current: Vec<u8>,
    waits: Waits,
    late: Option<Pin<Box<Sleep>>>,
}

#[derive(Default)]
struct Waits {
    count: u64,
    first: Option<Waker>,
}

static LEAKED: Mutex<Vec<File>> = Mutex::new(Vec::new());

impl Transport for Broken {
    type Link = BrokenLink;
    type Accept = BrokenAccept;

    fn scheme(&self) -> &'static str {
        "broken"
    }

    fn offer(&self) -> Result<(Offer, BrokenAccept), TransportError> {
        static OFFERS: AtomicU64 = AtomicU64::new(0);
        if self.0 == Fault::Leaks && OFFERS.fetch_add(1, Ordering::Relaxed).is_multiple_of(4) {
            LEAKED.lock().unwrap().push(File::open("/dev/null").unwrap());
        }
        let (offer, accept) = Memory.offer()?;
        Ok((offer, BrokenAccept(self.0, self.1, accept)))
    }
}

impl Accept<BrokenLink> for BrokenAccept {
    async fn accept(self, peer: &Identity) -> Result<BrokenLink, TransportError> {
        Ok(BrokenLink(self.0, self.1, self.2.accept(peer).await?))
    }
}

impl Link for BrokenLink {
    type Tx = BrokenTx;
    type Rx = BrokenRx;

    fn split(self) -> (BrokenTx, BrokenRx) {
        let BrokenLink(fault, half, inner) = self;
        let (tx, rx) = inner.split();
        let (of_tx, of_rx) = match half {
            Half::Tx => (fault, Fault::None),
            Half::Rx => (Fault::None, fault),
        };
        let waits = Waits::default;
        (
            BrokenTx { inner: tx, fault: of_tx, pushes: 0, held: VecDeque::new(), waits: waits() },
            BrokenRx {
                inner: rx,
                fault: of_rx,
                frames: 0,
                held: None,
                ready: VecDeque::new(),
                current: Vec::new(),
                waits: waits(),
                late: None,
            },
        )
    }
}

impl LinkTx for BrokenTx {
    fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
        if self.fault == Fault::IsUnbounded {
            self.held.push_back((header, payload.to_vec()));
            return Ok(true);
        }
        self.pushes += 1;
        let strikes = strikes(self.pushes);
        match self.fault {
            Fault::Drops if strikes => return Ok(true),
            Fault::Doubles if strikes => drop(self.inner.push(header, payload)?),
            Fault::Reorders if strikes => {
                self.held.push_back((header, payload.to_vec()));
                return Ok(true);
            }
            Fault::Corrupts if strikes => {
                let (header, payload) = corrupt((header, payload.to_vec()));
                return self.inner.push(header, &payload);
            }
            Fault::ForgetsErrors => return Ok(self.inner.push(header, payload).unwrap_or(true)),
            _ => {}
        }
        let taken = self.inner.push(header, payload)?;
        // What was held back comes behind this one, or a later one where there is no room.
        if taken
            && let Some((header, payload)) = self.held.front()
            && self.inner.push(*header, payload)?
        {
            self.held.pop_front();
        }
        Ok(taken)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        loop {
            while let Some((header, payload)) = self.held.front()
                && self.fault == Fault::IsUnbounded
                && self.inner.push(*header, payload)?
            {
                self.held.pop_front();
            }
            let (inner, waits) = (&mut self.inner, &mut self.waits);
            let flushed = waits.poll(self.fault, cx, |cx| inner.poll_flush(cx));
            if flushed.is_pending() || self.fault != Fault::IsUnbounded || self.held.is_empty() {
                return flushed;
            }
        }
    }
}

impl LinkRx for BrokenRx {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if let Some(late) = &mut self.late {
            return late.as_mut().poll(cx).map(|()| Err(LinkError::Closed));
        }
        let (inner, waits) = (&mut self.inner, &mut self.waits);
        let filled = waits.poll(self.fault, cx, |cx| inner.poll_fill(cx));
        match (self.fault, filled) {
            (Fault::DelaysTheEnd, Poll::Ready(Err(_))) => {
                let late = self.late.insert(Box::pin(tokio::time::sleep(2 * SOON)));
                late.as_mut().poll(cx).map(|()| Err(LinkError::Closed))
            }
            (Fault::EndsEarly, Poll::Ready(Ok(()))) => {
                match self.inner.poll_fill(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Ready(Ok(())),
                }
            }
            (Fault::IsAlwaysReady, Poll::Pending) => {
                cx.waker().wake_by_ref();
                Poll::Ready(Ok(()))
            }
            (_, filled) => filled,
        }
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        while self.ready.is_empty() {
            let Some(frame) = self.inner.next()? else { return Ok(None) };
            let frame = (frame.header, frame.payload.to_vec());
            self.frames += 1;
            match self.fault {
                Fault::Drops if strikes(self.frames) => {}
                Fault::Doubles if strikes(self.frames) => self.ready.extend([frame.clone(), frame]),
                Fault::Reorders if strikes(self.frames) => self.held = Some(frame),
                Fault::Corrupts if strikes(self.frames) => self.ready.push_back(corrupt(frame)),
                _ => {
                    self.ready.push_back(frame);
                    self.ready.extend(self.held.take());
                }
            }
        }
        let Some((header, payload)) = self.ready.pop_front() else { return Ok(None) };
        self.current = payload;
        Ok(Some(Frame { header, payload: self.current[..].into() }))
    }
}

impl Waits {
    fn poll<R>(
        &mut self,
        fault: Fault,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        let polled = poll(cx);
        if polled.is_ready() {
            self.first = None;
            return polled;
        }
        self.count += 1;
        match fault {
            Fault::LosesWakeUps if self.count.is_multiple_of(100) => poll(&mut Context::from_waker(Waker::noop())),
            Fault::KeepsTheFirstWaker => {
                let first = self.first.get_or_insert_with(|| cx.waker().clone()).clone();
                poll(&mut Context::from_waker(&first))
            }
            _ => polled,
        }
    }
}

/// One frame in a thousand, and never the last of a crowd.
fn strikes(n: u64) -> bool {
    n % 1000 == 500
}

fn corrupt((mut header, mut payload): Owned) -> Owned {
    match payload.first_mut() {
        Some(byte) => *byte ^= 0x10,
        None => header.flags ^= 0x10,
    }
    (header, payload)
}

fn cases_of(fault: Fault, half: Half) -> Vec<Case> {
    cases(Broken(fault, half), |offer| {
        let half = Memory::take(&offer).ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Box::new(half))
    })
}

/// These cases fail, with a message that says this.
fn fails(fault: Fault, half: Half, expected: &[(&str, &str)]) {
    for (name, check) in cases_of(fault, half) {
        if let Some((_, why)) = expected.iter().find(|(expected, _)| *expected == name) {
            let verdict = check();
            assert!(
                verdict.as_ref().is_err_and(|message| message.contains(why)),
                "{fault:?} in {half:?}: {name} gave {verdict:?}, not {why:?}"
            );
        }
    }
    let known: Vec<_> = cases_of(fault, half).into_iter().map(|(name, _)| name).collect();
    assert!(expected.iter().all(|(name, _)| known.contains(name)), "a case that is not there: {expected:?}");
}

#[test]
fn the_wrapper_itself_passes() {
    for (name, check) in cases_of(Fault::None, Half::Tx) {
        assert_eq!(check(), Ok(()), "{name}");
    }
}

#[test]
fn a_transport_that_drops_fails() {
    fails(Fault::Drops, Half::Rx, &[("delivery::order_to_manager", "never came")]);
    fails(Fault::Drops, Half::Tx, &[("delivery::order_to_worker", "never came")]);
}

#[test]
fn a_transport_that_doubles_fails() {
    fails(Fault::Doubles, Half::Rx, &[("delivery::order_to_manager", "came twice")]);
    fails(Fault::Doubles, Half::Tx, &[("delivery::order_to_worker", "came twice")]);
}

#[test]
fn a_transport_that_reorders_fails() {
    fails(Fault::Reorders, Half::Rx, &[("delivery::order_to_manager", "frame 501 came in the place of frame 500")]);
    fails(Fault::Reorders, Half::Tx, &[("delivery::both_directions_at_once", "came in the place of frame")]);
}

#[test]
fn a_transport_that_corrupts_a_byte_fails() {
    fails(Fault::Corrupts, Half::Rx, &[("delivery::order_to_manager", "frame 500 came with")]);
    fails(Fault::Corrupts, Half::Tx, &[("delivery::order_to_worker", "frame 500 came with")]);
}

#[test]
fn a_transport_that_loses_a_wake_up_fails() {
    fails(Fault::LosesWakeUps, Half::Rx, &[("waking::hand_offs", "was a wake-up lost")]);
    fails(Fault::LosesWakeUps, Half::Tx, &[("waking::full_link_hand_offs", "was a wake-up lost")]);
}

#[test]
fn a_transport_that_wakes_the_wrong_one_fails() {
    fails(Fault::KeepsTheFirstWaker, Half::Rx, &[("waking::data_wakes_the_last_waker", "was a wake-up lost")]);
    fails(Fault::KeepsTheFirstWaker, Half::Tx, &[("flow::room_wakes_the_last_waker", "was a wake-up lost")]);
}

#[test]
fn a_transport_that_delays_the_end_fails() {
    fails(Fault::DelaysTheEnd, Half::Rx, &[("ending::manager_sees_it_soon", "not done within 1s")]);
}

#[test]
fn a_transport_whose_end_overtakes_its_frames_fails() {
    fails(Fault::EndsEarly, Half::Rx, &[("ending::unread_input_costs_no_answers", "never came")]);
}

#[test]
fn a_transport_without_bounds_fails() {
    fails(Fault::IsUnbounded, Half::Tx, &[("flow::full_link_refuses", "that nobody reads")]);
}

#[test]
fn a_transport_that_forgets_its_errors_fails() {
    fails(Fault::ForgetsErrors, Half::Tx, &[("ending::errors_are_final", "after an error")]);
}

#[test]
fn a_transport_that_is_always_ready_fails() {
    fails(Fault::IsAlwaysReady, Half::Rx, &[("waking::data_wakes_the_last_waker", "ready all the time")]);
}

#[test]
fn a_transport_that_leaks_fails() {
    fails(Fault::Leaks, Half::Tx, &[("apart::unused_offers_leave_nothing", "left descriptors behind")]);
    LEAKED.lock().unwrap().clear();
}
