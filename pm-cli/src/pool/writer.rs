//! The thread that writes: results to standard output or the result file, errors to standard error.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use indicatif::ProgressBar;
use tokio::sync::Notify;

use super::board::{Board, Flush, Tally};
use super::format::Sink;

/// A buffer that grew beyond this is given back.
const KEEP_CAPACITY: usize = 256 << 10;

/// The board, and who waits for what on it.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    to_write: Condvar,
    /// Lanes wait for room or lines.
    pub(super) work: Notify,
    /// The one who fetches lines waits until there are few.
    pub(super) hungry: Notify,
    /// Something is to be written soon.
    pub(super) dirty: Notify,
    /// The one who watches over all this has something to see.
    pub(super) news: Notify,
}

/// What stands under the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) board: Board,
    /// Lanes that wait.
    pub(super) parked: usize,
    /// All lanes.
    pub(super) lanes: usize,
    flush: bool,
    soon: bool,
    closing: bool,
    /// How far results are written, and on the disk where that was asked for.
    pub(super) written: Tally,
    /// Why nothing can be written any more.
    pub(super) failure: Option<io::Error>,
    /// Why the input ended before its end.
    pub(super) input_failure: Option<io::Error>,
    /// Why the pool gave up.
    pub(super) gave_up: Option<String>,
}

/// Where results go.
#[derive(Debug)]
pub(super) enum Target {
    /// Standard output.
    Stdout,
    /// The result file, and whether each write is synced.
    File(File, bool),
}

impl Shared {
    pub(super) fn new(board: Board) -> Arc<Self> {
        Arc::new(Shared {
            state: Mutex::new(State {
                board,
                parked: 0,
                lanes: 0,
                flush: false,
                soon: false,
                closing: false,
                written: Tally::default(),
                failure: None,
                input_failure: None,
                gave_up: None,
            }),
            to_write: Condvar::new(),
            work: Notify::new(),
            hungry: Notify::new(),
            dirty: Notify::new(),
            news: Notify::new(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what is to be written be written when it should be.
    pub(super) fn flush(&self, state: &mut State, when: Flush) {
        match when {
            Flush::No => {}
            Flush::Soon if state.soon || state.flush => {}
            Flush::Soon => {
                state.soon = true;
                self.dirty.notify_one();
            }
            Flush::Now if state.flush => {}
            Flush::Now => {
                state.flush = true;
                self.to_write.notify_one();
            }
        }
    }

    /// What was to be written soon is to be written now.
    pub(super) fn flush_soon(&self) {
        let mut state = self.lock();
        state.soon = false;
        if !state.flush {
            state.flush = true;
            self.to_write.notify_one();
        }
    }

    /// Wakes as many lanes as could take a job.
    pub(super) fn wake_lanes(&self, state: &mut State) {
        let count = if state.parked == 0 { 0 } else { state.parked.min(state.board.room()) };
        for _ in 0..count {
            self.work.notify_one();
        }
        state.parked -= count;
    }
}

/// Starts the thread. Errors on standard error stand above the bar, where there is one.
///
/// # Errors
/// The thread cannot be made.
pub(super) fn start(shared: Arc<Shared>, target: Target, bar: Option<ProgressBar>) -> io::Result<JoinHandle<()>> {
    let write = move || {
        let mut empty = Sink::default();
        loop {
            let mut state = shared.lock();
            while !state.flush && !state.closing {
                state = shared.to_write.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.flush = false;
            let (mut full, tally) = state.board.take_output(empty);
            let over = state.closing && full.out.is_empty() && full.err.is_empty();
            drop(state);
            if over {
                return;
            }
            let result = write_results(&target, &full.out);
            if !full.err.is_empty() {
                // A closed standard error has nobody to tell.
                let write = || drop(io::stderr().write_all(&full.err));
                bar.as_ref().map_or_else(write, |bar| bar.suspend(write));
            }
            let mut state = shared.lock();
            state.board.written();
            match result {
                Ok(()) => state.written = tally,
                Err(error) => {
                    state.failure = Some(error);
                    shared.news.notify_one();
                    return;
                }
            }
            shared.wake_lanes(&mut state);
            drop(state);
            full.out.clear();
            full.err.clear();
            for buffer in [&mut full.out, &mut full.err] {
                if buffer.capacity() > KEEP_CAPACITY {
                    *buffer = Vec::new();
                }
            }
            empty = full;
        }
    };
    std::thread::Builder::new().name("pm-writer".into()).stack_size(256 << 10).spawn(write)
}

/// Everything is in the board: the thread writes the rest and ends.
pub(super) fn close(shared: &Shared) {
    shared.lock().closing = true;
    shared.to_write.notify_one();
}

pub(super) fn write_results(target: &Target, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    match target {
        Target::Stdout => {
            // Past the buffer of std, which would copy, and write line by line.
            let mut rest = bytes;
            while !rest.is_empty() {
                match rustix::io::write(rustix::stdio::stdout(), rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        // Somebody else made it non-blocking.
                        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                            rustix::stdio::stdout(),
                            rustix::event::PollFlags::OUT,
                        )];
                        let _ = rustix::event::poll(&mut fds, None);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        }
        Target::File(file, sync) => {
            let mut file = file;
            file.write_all(bytes)?;
            if *sync { file.sync_data() } else { Ok(()) }
        }
    }
}
