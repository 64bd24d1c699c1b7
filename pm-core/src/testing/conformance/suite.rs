//! The list of the cases, and how one is run.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::subject::Subject;
use super::{apart, delivery, ending, flow, hostile, waking};
use crate::transport::{Offer, Transport};
use crate::worker::link::{FdLink, WorkerLink};

/// A case takes seconds; one that is not over by now blocks where it must not.
const LIMIT: Duration = Duration::from_secs(120);

/// A check, by its name. It can be run any number of times, and says what is wrong with the transport.
pub type Case = (&'static str, Box<dyn Fn() -> Result<(), String> + Send + Sync>);

type Verdict = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// All cases for a transport. `connect` makes the worker's half of an offer, as a worker's process would.
///
/// It is called on a thread of its own, while [`Accept`](crate::transport::Accept) waits for it.
pub fn cases<T, C>(transport: T, connect: C) -> Vec<Case>
where
    T: Transport,
    C: Fn(Offer) -> io::Result<Box<dyn WorkerLink>> + Send + Sync + 'static,
{
    let subject = Arc::new(Subject::new(transport, connect));
    let case = |name, check: fn(Arc<Subject<T>>) -> Verdict| -> Case {
        let subject = subject.clone();
        (name, Box::new(move || run(&subject, check)))
    };
    macro_rules! list {
        ($($group:ident: $($name:ident),+;)+) => {
            vec![$($(case(
                concat!(stringify!($group), "::", stringify!($name)),
                |subject| Box::pin($group::$name(subject)),
            )),+),+]
        };
    }
    list! {
        delivery: order_to_manager, order_to_worker, sizes_to_manager, sizes_to_worker, byte_by_byte,
            both_directions_at_once, too_large_is_refused;
        flow: full_link_refuses, room_wakes_the_last_waker, slow_manager_holds_the_worker, fills_are_bounded;
        waking: data_wakes_the_last_waker, hand_offs, full_link_hand_offs, worker_waits;
        ending: everything_comes_before_it, unread_input_costs_no_answers, inside_a_frame, manager_sees_it_soon,
            worker_sees_it_soon, errors_are_final;
        hostile: bad_lengths, bad_ids, unknown_kinds_pass, claimed_lengths_cost_nothing;
        apart: links_share_nothing, unused_offers_leave_nothing;
    }
}

/// Runs all cases, one after another.
///
/// # Errors
/// The names of the cases that fail, and what each says.
pub fn run_all<T, C>(transport: T, connect: C) -> Result<(), String>
where
    T: Transport,
    C: Fn(Offer) -> io::Result<Box<dyn WorkerLink>> + Send + Sync + 'static,
{
    let failed: Vec<_> = cases(transport, connect)
        .iter()
        .filter_map(|(name, check)| check().err().map(|why| format!("{name}: {why}")))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// The worker's half of an offer that is one descriptor, a socket, or two, of which the one with the lower number is read and the other written.
///
/// # Errors
/// The offer has another number of descriptors.
pub fn over_descriptors(mut offer: Offer) -> io::Result<Box<dyn WorkerLink>> {
    offer.fds.sort_by_key(|(place, _)| *place);
    let mut fds = offer.fds.into_iter().map(|(_, fd)| fd);
    match (fds.next(), fds.next(), fds.next()) {
        (Some(socket), None, _) => Ok(Box::new(FdLink::socket(socket))),
        (Some(read), Some(write), None) => Ok(Box::new(FdLink::pipes(read, write))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an offer of one or two descriptors was expected")),
    }
}

/// Runs a case on a runtime of its own. Its thread is given up where a method of the link blocks for ever.
fn run<T: Transport>(subject: &Arc<Subject<T>>, check: fn(Arc<Subject<T>>) -> Verdict) -> Result<(), String> {
    let (sender, verdict) = mpsc::channel();
    let subject = subject.clone();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime: {error}"))
            .and_then(|runtime| runtime.block_on(check(subject)));
        // Nobody listens where the time was over.
        let _ = sender.send(runtime);
    };
    thread::Builder::new().spawn(body).map_err(|error| format!("no thread: {error}"))?;
    verdict.recv_timeout(LIMIT).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(format!("not over after {LIMIT:?}: something blocks that must not")),
        RecvTimeoutError::Disconnected => Err("it panicked".to_string()),
    })
}
