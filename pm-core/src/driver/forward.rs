//! Lines of workers on their way to the standard error of this process.
//!
//! One thread writes for all workers. Where standard error is slow, workers are read more slowly for a moment; where it stands still,
//! their lines are dropped and counted, so that it holds up nobody for good.

use std::collections::VecDeque;
use std::io::Write;
use std::pin::pin;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Bytes that wait to be written at most, with one line more.
const MOST_BYTES: usize = 1 << 20;

/// How long a line waits for room before it is dropped, and those after it at once until there is room again.
const PATIENCE: Duration = Duration::from_secs(1);

static STDERR: LazyLock<Option<Arc<Forward>>> = LazyLock::new(|| Forward::to(std::io::stderr()).ok());

/// Passes a line on. Waits for room, but not for ever. Cancel safe: the line has not gone.
pub(crate) async fn line(line: String) {
    if let Some(stderr) = &*STDERR {
        stderr.line(line).await;
    }
}

/// Waits until all lines that were passed on are written, for at most `limit`.
pub(crate) async fn flush(limit: Duration) {
    if let Some(stderr) = LazyLock::get(&STDERR).and_then(Option::as_ref) {
        let _ = tokio::time::timeout(limit, stderr.written()).await;
    }
}

/// The lines on their way to one place.
struct Forward {
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// Something was written.
    progress: Notify,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines that found no room since the last that did.
    dropped: u64,
    /// The thread is writing.
    is_writing: bool,
}

impl State {
    /// What stands in place of the lines that were dropped.
    fn gap(&mut self) -> String {
        format!("pm: {} lines of workers were dropped here\n", std::mem::take(&mut self.dropped))
    }
}

impl Forward {
    /// Starts the thread that writes.
    fn to(mut out: impl Write + Send + 'static) -> std::io::Result<Arc<Self>> {
        let forward = Arc::new(Forward { state: Mutex::default(), work: Condvar::new(), progress: Notify::new() });
        let writer = forward.clone();
        std::thread::Builder::new().name("pm-stderr".into()).spawn(move || {
            loop {
                let text = writer.take();
                // A closed standard error has nobody to tell.
                let _ = out.write_all(text.as_bytes());
                writer.state().is_writing = false;
                writer.progress.notify_waiters();
            }
        })?;
        Ok(forward)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to write.
    fn take(&self) -> String {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return line;
            }
            if state.dropped > 0 {
                state.is_writing = true;
                return state.gap();
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    async fn line(&self, line: String) {
        let Err(line) = self.put(line) else { return };
        let room = async {
            let mut line = line;
            loop {
                let mut progress = pin!(self.progress.notified());
                progress.as_mut().enable();
                match self.put(line) {
                    Ok(()) => return,
                    Err(back) => line = back,
                }
                progress.await;
            }
        };
        if tokio::time::timeout(PATIENCE, room).await.is_err() {
            self.state().dropped += 1;
        }
    }

    /// Queues a line, or gives it back where there is no room.
    fn put(&self, line: String) -> Result<(), String> {
        let mut state = self.state();
        if state.bytes >= MOST_BYTES {
            if state.dropped > 0 {
                // Nobody waits behind one that waited in vain.
                state.dropped += 1;
                return Ok(());
            }
            return Err(line);
        }
        if state.dropped > 0 {
            let gap = state.gap();
            state.bytes += gap.len();
            state.lines.push_back(gap);
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let state = self.state();
        state.lines.is_empty() && !state.is_writing
    }

    async fn written(&self) {
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            if self.is_idle() {
                return;
            }
            progress.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader};

    use super::*;

    fn forward() -> (Arc<Forward>, PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        (Forward::to(writer).unwrap(), reader)
    }

    #[tokio::test]
    async fn lines_come_in_order_and_all_of_them() {
        let (forward, reader) = forward();
        let read = std::thread::spawn(move || BufReader::new(reader).lines().take(100_000).collect::<Vec<_>>());
        for n in 0..100_000 {
            forward.line(format!("{n} {}\n", "x".repeat(100))).await;
        }
        forward.written().await;
        for (n, line) in read.join().unwrap().into_iter().enumerate() {
            assert!(line.unwrap().starts_with(&format!("{n} ")));
        }
    }

    #[tokio::test]
    async fn what_nobody_reads_is_dropped_and_counted() {
        let (forward, reader) = forward();
        let line = "x".repeat(1023) + "\n";
        // More than the queue and the pipe can take.
        let sent = 2 * MOST_BYTES / line.len();
        for _ in 0..sent {
            forward.line(line.clone()).await;
        }
        assert!(tokio::time::timeout(PATIENCE, forward.written()).await.is_err());
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        let came = lines.by_ref().take_while(|line| line.starts_with('x')).count();
        forward.line("the end\n".into()).await;
        assert!(came >= MOST_BYTES / line.len(), "{came}");
        assert_eq!(lines.next().as_deref(), Some("the end"));
    }
}
