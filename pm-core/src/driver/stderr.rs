//! What a worker prints: its tail for the error of a lost call, its lines for the manager's own standard error.

use std::collections::VecDeque;
use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::machine::spec::Stderr;

/// The tail that is kept of each worker.
const TAIL: usize = 4 << 10;

/// A line that is longer is cut in pieces of this length.
const LONGEST_LINE: usize = 8 << 10;

/// Lines that wait for a slow standard error. Beyond that they are dropped and counted.
const QUEUED_LINES: usize = 1024;

/// After a worker's end its last words may still be in the pipe. A grandchild can hold the pipe open for longer.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The last bytes that a worker printed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let surplus = (tail.len() + bytes.len()).saturating_sub(TAIL);
        tail.drain(..surplus);
        tail.extend(bytes);
    }

    /// As text, with what is no UTF-8 replaced.
    pub(crate) fn text(&self) -> String {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tail.make_contiguous()).into_owned()
    }
}

/// Reads what a worker prints until `ended` says that the worker has ended and its last words were read.
pub(crate) async fn follow(
    mut pipe: pipe::Receiver,
    tail: Tail,
    policy: Stderr,
    prefix: String,
    ended: impl Future<Output = ()>,
) {
    let mut ended = pin!(ended);
    let mut lines = Lines { prefix, partial: Vec::new(), forward: policy == Stderr::Forward };
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            biased;
            () = &mut ended => {
                let rest = async {
                    while let Ok(count) = pipe.read(&mut buffer).await && count > 0 {
                        tail.push(&buffer[..count]);
                        lines.take(&buffer[..count]);
                    }
                };
                let _ = tokio::time::timeout(LAST_WORDS, rest).await;
                break;
            }
            read = pipe.read(&mut buffer) => match read {
                Ok(count) if count > 0 => {
                    tail.push(&buffer[..count]);
                    lines.take(&buffer[..count]);
                }
                _ => break,
            },
        }
    }
    lines.finish();
}

struct Lines {
    prefix: String,
    partial: Vec<u8>,
    forward: bool,
}

impl Lines {
    fn take(&mut self, mut bytes: &[u8]) {
        if !self.forward {
            return;
        }
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            self.emit();
            bytes = &bytes[end + 1..];
        }
        for piece in bytes.chunks(LONGEST_LINE) {
            self.partial.extend_from_slice(piece);
            if self.partial.len() >= LONGEST_LINE {
                self.emit();
            }
        }
    }

    fn finish(&mut self) {
        if !self.partial.is_empty() {
            self.emit();
        }
    }

    fn emit(&mut self) {
        let text = escape(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        forward(format!("{}{text}\n", self.prefix));
    }
}

/// A worker's line must not move the cursor, clear the screen or pretend to be another line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// One thread writes for all workers of this process, so that a slow terminal holds up none of them.
fn forward(line: String) {
    static WRITER: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
    static DROPPED: Mutex<u64> = Mutex::new(0);
    let writer = WRITER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<String>(QUEUED_LINES);
        let write = move || {
            for line in receiver {
                // A closed standard error has nobody to tell.
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
        };
        std::thread::Builder::new().name("pm-stderr".into()).spawn(write).ok().map(|_| sender)
    });
    let Some(writer) = writer else { return };
    let mut dropped = DROPPED.lock().unwrap_or_else(PoisonError::into_inner);
    if *dropped > 0 && writer.try_send(format!("pm: {dropped} lines of workers were dropped here\n")).is_ok() {
        *dropped = 0;
    }
    if let Err(TrySendError::Full(_)) = writer.try_send(line) {
        *dropped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end() {
        let tail = Tail::default();
        tail.push(&[b'a'; 10_000]);
        tail.push(b"the end");
        assert_eq!(tail.text().len(), TAIL);
        assert!(tail.text().ends_with("aathe end"));
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\tb\x1b[2Jc\r"), "a\tb\\u{1b}[2Jc\\r");
    }
}
