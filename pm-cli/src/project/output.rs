//! What services print, for whoever asks at the socket: the end of their logs, and from there on what comes.
//!
//! Nobody waits for a reader that is slow. What comes is taken at once, into a queue that keeps the newest of each service; what has no room there is
//! dropped and counted, and the count goes before what comes next. So a service that floods pushes out lines of its own and of no other, and this is the
//! one place on the way to the reader where something can be lost.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pm::OutputStream;
use pm::service::{LogEntry, Output};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;

use super::history;
use super::server::Serving;
use super::wire::{self, Answer, OutputRow};

/// So many bytes of each service wait for a slow reader: some thousands of lines, which is more than a screen shows before the next come.
const MOST_WAITING: usize = 512 << 10;

/// Lines of a log are sent together up to so many bytes.
const PIECE: usize = 64 << 10;

/// More than that of a log nobody is sent.
const MOST_HISTORY: u64 = 4 << 20;

/// Sends until the reader has gone, or the project has ended.
///
/// # Errors
/// The reader has gone.
pub async fn send(write: &mut (impl AsyncWrite + Unpin), serving: &Serving, last_bytes: u64) -> io::Result<()> {
    // Listened to before the logs are read: what is printed meanwhile may come twice, and is recognised by that.
    let mut output = serving.orchestrator.output();
    let facts = serving.facts();
    let logs = serving.orchestrator.list().await.into_iter();
    let logs =
        logs.filter_map(|info| Some((info.label.to_string(), facts.logs.get(&info.name)?.of_replica(info.replica))));
    let logs: Vec<_> = logs.collect();
    let last_bytes = last_bytes.min(MOST_HISTORY);
    let read = tokio::task::spawn_blocking(move || {
        // A log that cannot be read has no lines to show; who wants to know why asks `pm logs`.
        logs.into_iter().map(|(label, log)| (label, history::end_of(&log, last_bytes).unwrap_or_default())).collect()
    });
    let ends: BTreeMap<String, Vec<LogEntry>> = read.await.unwrap_or_default();
    let rows: Vec<OutputRow> = ends.iter().flat_map(|(label, entries)| rows_of(label, entries)).collect();
    let mut seen: BTreeMap<String, Seen> =
        ends.into_iter().filter_map(|(label, entries)| Some((label, Seen::new(&entries)?))).collect();

    let (queue, more) = (Mutex::new(Queue::default()), Notify::new());
    let queue = || -> MutexGuard<'_, Queue> { queue.lock().unwrap_or_else(PoisonError::into_inner) };
    let take = async {
        loop {
            match output.recv().await {
                Ok(piece) => {
                    let time = humantime::format_rfc3339_millis(piece.at).to_string();
                    match seen.get(&*piece.label) {
                        Some(last) if last.has(&time, &piece.text) => {}
                        _ => {
                            // Nothing that comes after this one stands in the log that was read.
                            seen.remove(&*piece.label);
                            queue().push(piece);
                        }
                    }
                }
                Err(RecvError::Lagged(missed)) => queue().missed_of_all += missed,
                Err(RecvError::Closed) => return Ok(()),
            }
            more.notify_one();
        }
    };
    let give = async {
        for row in rows {
            wire::write(write, &Answer::Output(row)).await?;
        }
        loop {
            let next = queue().pop();
            match next {
                Some(row) => wire::write(write, &Answer::Output(row)).await?,
                None => more.notified().await,
            }
        }
    };
    tokio::select! {
        biased;
        ended = take => ended,
        refused = give => refused,
    }
}

/// What stands in a log, in pieces.
fn rows_of(label: &str, entries: &[LogEntry]) -> Vec<OutputRow> {
    let mut rows: Vec<OutputRow> = Vec::new();
    for entry in entries {
        let mut text = String::from_utf8_lossy(&entry.text).into_owned();
        if entry.is_whole {
            text.push('\n');
        }
        match rows.last_mut() {
            Some(last) if last.is_stderr == entry.is_stderr && last.text.len() + text.len() <= PIECE => {
                last.text += &text
            }
            _ => rows.push(OutputRow { service: label.into(), is_stderr: entry.is_stderr, text, missed: 0 }),
        }
    }
    rows
}

/// The last moment of a log that was read.
struct Seen {
    time: String,
    /// All that stands there of that moment.
    text: Vec<u8>,
}

impl Seen {
    fn new(entries: &[LogEntry]) -> Option<Self> {
        let time = entries.last()?.time.clone();
        let mut text = Vec::new();
        for entry in entries.iter().skip_while(|entry| entry.time != time) {
            text.extend_from_slice(&entry.text);
            if entry.is_whole {
                text.push(b'\n');
            }
        }
        Some(Seen { time, text })
    }

    /// Whether a piece stands there. Those of the last moment are told from others by their text.
    fn has(&self, time: &str, piece: &[u8]) -> bool {
        time < self.time.as_str() || (time == self.time && memchr::memmem::find(&self.text, piece).is_some())
    }
}

/// What waits for the reader.
#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Arc<str>, Waiting>,
    /// Who is next: each that has something once.
    turns: VecDeque<Arc<str>>,
    /// Pieces that were missed, and nobody knows of whom.
    missed_of_all: u64,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Output>,
    bytes: usize,
    missed: u64,
}

impl Queue {
    fn push(&mut self, piece: Output) {
        let waiting = self.waiting.entry(piece.label.clone()).or_default();
        if waiting.pieces.is_empty() {
            self.turns.push_back(piece.label.clone());
        }
        waiting.bytes += piece.text.len();
        waiting.pieces.push_back(piece);
        while waiting.bytes > MOST_WAITING
            && waiting.pieces.len() > 1
            && let Some(oldest) = waiting.pieces.pop_front()
        {
            waiting.bytes -= oldest.text.len();
            waiting.missed += oldest.missed + memchr::memchr_iter(b'\n', &oldest.text).count() as u64;
        }
    }

    fn pop(&mut self) -> Option<OutputRow> {
        if self.missed_of_all > 0 {
            let missed = std::mem::take(&mut self.missed_of_all);
            return Some(OutputRow { service: String::new(), is_stderr: false, text: String::new(), missed });
        }
        let label = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&label)?;
        let piece = waiting.pieces.pop_front()?;
        waiting.bytes -= piece.text.len();
        let missed = std::mem::take(&mut waiting.missed) + piece.missed;
        if waiting.pieces.is_empty() {
            // Services come and go: no more is kept than what waits.
            self.waiting.remove(&label);
        } else {
            self.turns.push_back(label);
        }
        Some(OutputRow {
            service: piece.label.to_string(),
            is_stderr: piece.stream == OutputStream::Stderr,
            text: String::from_utf8_lossy(&piece.text).into_owned(),
            missed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time: &str, text: &str) -> LogEntry {
        LogEntry { time: time.into(), is_stderr: false, is_whole: true, text: text.into() }
    }

    #[test]
    fn a_flood_pushes_out_its_own_oldest_lines_and_they_are_counted() {
        let piece = |label: &str, text: String| Output {
            id: pm::service::ServiceId(1),
            label: label.into(),
            stream: OutputStream::Stdout,
            at: std::time::SystemTime::UNIX_EPOCH,
            text: text.into(),
            is_whole: true,
            missed: 0,
        };
        let mut queue = Queue::default();
        queue.push(piece("quiet", "word\n".into()));
        for n in 0..100 {
            queue.push(piece("flood", format!("{n}\n").repeat(10_000)));
        }
        assert!(queue.waiting["flood"].bytes <= MOST_WAITING);
        assert_eq!(
            queue.pop().map(|row| (row.service, row.text, row.missed)),
            Some(("quiet".into(), "word\n".into(), 0))
        );
        let (mut lines, mut missed) = (0, 0);
        let mut last = String::new();
        while let Some(row) = queue.pop() {
            // They are missing before all that is left.
            assert!(row.missed == 0 || lines == 0);
            lines += row.text.lines().count() as u64;
            missed += row.missed;
            last = row.text;
        }
        assert_eq!(lines + missed, 1_000_000);
        assert!(missed > 0 && last.starts_with("99\n"));
        assert!(queue.waiting.is_empty());
    }

    #[test]
    fn what_stands_in_the_log_does_not_come_again() {
        let seen = Seen::new(&[entry("1", "a"), entry("2", "b"), entry("2", "c")]).unwrap();
        assert!(seen.has("1", b"a\n") && seen.has("2", b"b\nc\n"));
        assert!(!seen.has("2", b"d\n") && !seen.has("3", b"b\n"));
        assert!(Seen::new(&[]).is_none());
    }

    #[test]
    fn lines_of_a_log_go_together() {
        let rows = rows_of("a", &[entry("1", "one"), entry("2", "two"), entry("3", &"x".repeat(PIECE))]);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].text, "one\ntwo\n");
    }
}
