//! The loop that runs a blocking handler, and its attendant.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::thread::{self, Thread};
use std::time::Duration;

use super::context::Seat;
use super::desk::{Desk, Ended, Job};
use super::error::ServeError;
use super::role::BlockingHandler;
use crate::machine::payload;

/// A handler that runs longer than this has its link looked after by the attendant.
const TICK: Duration = Duration::from_millis(1);

/// How long the attendant waits for something to look after, before it sees whether the handler still runs.
const PATIENCE: Duration = Duration::from_millis(20);

/// After so many ticks without a call the attendant sleeps until it is woken. Waking it costs the handler's thread a system call, so it
/// should be rare under load; ticking costs the machine a timer, so it should be rare without.
const IDLE_TICKS: u32 = 100;

/// Serves until the link ends.
pub(super) fn serve(desk: &Arc<Desk>, handler: &BlockingHandler) -> Result<(), ServeError> {
    let pulse = Arc::new(Pulse::default());
    let attendant = {
        let (desk, pulse) = (desk.clone(), pulse.clone());
        thread::Builder::new()
            .name("pm-attendant".into())
            .stack_size(64 << 10)
            .spawn(move || attend(&desk, &pulse))
            .map_err(|source| ServeError::Resources { what: "the attendant's thread", source })?
    };
    let _ = serve_calls(desk, handler, &pulse, attendant.thread());
    pulse.over.store(true, Ordering::Release);
    attendant.thread().unpark();
    // It ends by itself, but a hook of the program may hold it up.
    Ok(())
}

fn serve_calls(
    desk: &Arc<Desk>,
    handler: &BlockingHandler,
    pulse: &Pulse,
    attendant: &Thread,
) -> Result<Infallible, Ended> {
    let mut job = Job::default();
    let mut output = Vec::new();
    let mut seat = Seat::take(desk.clone());
    loop {
        desk.next(&mut job, seat.cancel())?;
        pulse.begin(attendant);
        output.clear();
        let result = seat.run(job.deadline, || handler(&job.input, &mut output));
        pulse.end();
        match result {
            Ok(()) => desk.respond(job.id, &output)?,
            Err(error) => desk.fail(job.id, &error)?,
        }
        payload::trim(&mut output);
        job.input.trim();
    }
}

/// How the handler's thread is doing, for the attendant.
#[derive(Default)]
struct Pulse {
    /// Odd while a handler runs.
    beats: AtomicU64,
    asleep: AtomicBool,
    over: AtomicBool,
}

impl Pulse {
    fn begin(&self, attendant: &Thread) {
        self.beats.store(self.beats.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // Pairs with the fence in `attend`: either this thread sees that the attendant sleeps, or the attendant, which looks
        // again after it has said so, sees the beat.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
            attendant.unpark();
        }
    }

    fn end(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

fn attend(desk: &Desk, pulse: &Pulse) {
    let mut idle = 0;
    while !pulse.over.load(Ordering::Acquire) {
        let before = pulse.beats.load(Ordering::Acquire);
        thread::park_timeout(TICK);
        let beats = pulse.beats.load(Ordering::Acquire);
        let is_running = beats % 2 == 1;
        idle = if beats == before && !is_running { idle + 1 } else { 0 };
        if beats == before && is_running {
            let is_same = || pulse.beats.load(Ordering::Acquire) == beats;
            while is_same() {
                if desk.attend(PATIENCE, is_same).is_err() {
                    return;
                }
            }
        } else if idle > IDLE_TICKS {
            idle = 0;
            pulse.asleep.store(true, Ordering::Relaxed);
            // Pairs with the fence in `Pulse::begin`.
            fence(Ordering::SeqCst);
            while pulse.beats.load(Ordering::Relaxed) == beats
                && pulse.asleep.load(Ordering::Relaxed)
                && !pulse.over.load(Ordering::Relaxed)
            {
                thread::park();
            }
            pulse.asleep.store(false, Ordering::Relaxed);
        }
    }
}
