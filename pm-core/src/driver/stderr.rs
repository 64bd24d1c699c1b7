//! What a worker prints: its tail for the error of a lost call, its lines for the manager's own standard error.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::forward;
use crate::machine::spec::Stderr;

/// The tail that is kept of each worker.
const TAIL: usize = 4 << 10;

/// A line that is longer is cut in pieces of this length.
const LONGEST_LINE: usize = 8 << 10;

/// After a worker's end its last words may still be in the pipe. A grandchild can hold the pipe open for longer.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// As many bytes as the pipe can hold, where nobody has made it larger. A grandchild may write on and on.
const MOST_LAST_WORDS: usize = 64 << 10;

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

/// The last of what a program printed, as text for an error: lines stay lines, and other control characters are escaped.
pub(crate) fn last(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(&printed[printed.len().saturating_sub(TAIL)..]);
    text.split('\n').map(escape).collect::<Vec<_>>().join("\n")
}

/// Reads what a worker prints until `ended` says that the worker has ended, and then its last words. `read` is told when all that
/// the worker printed is in the tail; its lines may take longer on their way to a slow standard error.
pub(crate) async fn follow(
    mut pipe: pipe::Receiver,
    tail: Tail,
    policy: Stderr,
    prefix: String,
    ended: impl Future<Output = ()>,
    read: oneshot::Sender<()>,
) {
    let mut ended = pin!(ended);
    let mut lines = Lines { prefix, partial: Vec::new(), ready: VecDeque::new(), forward: policy == Stderr::Forward };
    let mut buffer = vec![0; 4096];
    let mut last = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = &mut ended => {
                let rest = async {
                    while last.len() < MOST_LAST_WORDS
                        && let Ok(count) = pipe.read(&mut buffer).await
                        && count > 0
                    {
                        tail.push(&buffer[..count]);
                        last.extend_from_slice(&buffer[..count]);
                    }
                };
                let _ = tokio::time::timeout(LAST_WORDS, rest).await;
                break;
            }
            () = lines.pass_on(), if !lines.ready.is_empty() => {}
            count = pipe.read(&mut buffer), if lines.ready.is_empty() => match count {
                Ok(count) if count > 0 => {
                    tail.push(&buffer[..count]);
                    lines.take(&buffer[..count]);
                }
                _ => break,
            },
        }
    }
    // Nobody waits where the worker closed its output and lives on.
    let _ = read.send(());
    lines.take(&last);
    lines.finish();
    lines.pass_on().await;
}

struct Lines {
    prefix: String,
    partial: Vec<u8>,
    /// Those on their way: what comes in one read.
    ready: VecDeque<String>,
    forward: bool,
}

impl Lines {
    fn take(&mut self, mut bytes: &[u8]) {
        if !self.forward {
            return;
        }
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            self.cut();
            bytes = &bytes[end + 1..];
        }
        for piece in bytes.chunks(LONGEST_LINE) {
            self.partial.extend_from_slice(piece);
            if self.partial.len() >= LONGEST_LINE {
                self.cut();
            }
        }
    }

    fn finish(&mut self) {
        if !self.partial.is_empty() {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let text = escape(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        self.ready.push_back(format!("{}{text}\n", self.prefix));
    }

    /// Sends the lines on. Cancel safe: those that did not go stay.
    async fn pass_on(&mut self) {
        while let Some(line) = self.ready.front() {
            forward::line(line.clone()).await;
            self.ready.pop_front();
        }
    }
}

/// A worker's line must not move the cursor, clear the screen or pretend to be another line.
pub(crate) fn escape(text: &str) -> String {
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
