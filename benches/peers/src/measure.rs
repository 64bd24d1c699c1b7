//! What is shared by the managers in Rust.

use std::future::Future;
use std::time::{Duration, Instant};

use pm_cli::bench::measure::{Measured, Recorder, many};
use pm_cli::bench::place::Place;

use crate::error::{PeerError, Step};
use crate::row::CROWD;

/// p50 and p99 of calls that are made one at a time, in microseconds.
pub(crate) fn alone(time: Duration, mut call: impl FnMut() -> Result<(), PeerError>) -> Result<(f64, f64), PeerError> {
    let mut recorder = Recorder::new(time, None);
    while recorder.goes_on() {
        call()?;
    }
    let measured = recorder.finish();
    Ok((micros(measured.p50), micros(measured.p99)))
}

/// The same of asynchronous calls, one at a time and then many at once. What `peer` burns is measured too: another process, or else a thread of this one.
pub(crate) async fn alone_and_crowd<C, F>(time: Duration, peer: Option<u32>, call: C) -> (Measured, Measured)
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let mut recorder = Recorder::new(time, peer);
    while recorder.goes_on() {
        call().await;
    }
    (recorder.finish(), many(CROWD, time, peer, call).await)
}

/// Calls a second, after a warm-up of a tenth of the time. `crowd` gives the number of calls that it made in a time.
pub(crate) fn rate(
    time: Duration,
    mut crowd: impl FnMut(Duration) -> Result<u64, PeerError>,
) -> Result<f64, PeerError> {
    crowd(time / 10)?;
    let began = Instant::now();
    let count = crowd(time)?;
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// Nanoseconds as microseconds.
pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// A payload of so many bytes.
pub(crate) fn payload(bytes: usize) -> Vec<u8> {
    vec![7; bytes]
}

/// Whether the answer is what was sent.
pub(crate) fn check(answer: &[u8], payload: &[u8]) -> Result<(), PeerError> {
    if answer == payload { Ok(()) } else { Err(PeerError::Wrong) }
}

/// The runtime of an asynchronous manager, as `pm bench` has it: the work is done by a thread of its own.
pub(crate) fn runtime(place: Place) -> Result<tokio::runtime::Runtime, PeerError> {
    let threads = if place == Place::Unpinned { 2 } else { 1 };
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().step("start a runtime")
}
