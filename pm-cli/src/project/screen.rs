//! What services print and what happens to them, for people who watch: a thread that writes, so that a slow terminal holds up nothing else.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pm::OutputStream;
use pm::service::{Event, Happening, Output};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::reload::Facts;
use super::wire::{self, EventRow};

/// How long what is left may take to be written at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `name | text`, and what happens on standard error.
    Plain,
    /// The same in colours.
    Colours,
    /// A JSON object for each line and each event.
    Json,
}

impl Style {
    /// Colours on a terminal, unless `NO_COLOR` is set.
    pub fn choose(json: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match json {
            true => Style::Json,
            false if io::stdout().is_terminal() && !no_colour => Style::Colours,
            false => Style::Plain,
        }
    }
}

/// The thread that writes.
pub struct Screen {
    /// Told that nothing more comes; and that all is written.
    end: oneshot::Sender<()>,
    written: oneshot::Receiver<()>,
    /// Told when nobody reads standard output any more.
    pub closed: oneshot::Receiver<()>,
}

impl Screen {
    /// Shows all that comes until both ends are closed. `facts` has the length of the longest name.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        style: Style,
        facts: watch::Receiver<Arc<Facts>>,
        output: mpsc::Receiver<Output>,
        events: broadcast::Receiver<Happening>,
    ) -> io::Result<Self> {
        let (close, closed) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let ((end, ended), (done, written)) = (oneshot::channel(), oneshot::channel());
        let printer = Printer { style, facts, colours: HashMap::new(), line: Vec::new(), open: None };
        std::thread::Builder::new().name("pm-screen".into()).spawn(move || {
            runtime.block_on(show(printer, output, events, close, ended));
            // Whoever is in a hurry does not wait for it.
            let _ = done.send(());
        })?;
        Ok(Screen { end, written, closed })
    }

    /// Waits until all that has come is written, but not for a terminal that stands still. What comes after it is not shown.
    pub async fn finish(self) {
        // A thread that has ended already needs no word.
        let _ = self.end.send(());
        let _ = tokio::time::timeout(LAST_WORDS, self.written).await;
    }
}

async fn show(
    mut printer: Printer,
    mut output: mpsc::Receiver<Output>,
    mut events: broadcast::Receiver<Happening>,
    close: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
) {
    let (mut close, mut ended, mut is_ending) = (Some(close), ended, false);
    let (mut has_output, mut has_events) = (true, true);
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout());
    while has_output || has_events {
        if is_ending && output.is_empty() && events.is_empty() {
            break;
        }
        let written = tokio::select! {
            biased;
            _ = &mut ended, if !is_ending => {
                is_ending = true;
                Ok(())
            }
            happening = events.recv(), if has_events => match happening {
                Ok(happening) => out.flush().and_then(|()| printer.happening(&happening)),
                Err(broadcast::error::RecvError::Lagged(missed)) => printer.note(&format!("{missed} events were missed here")),
                Err(broadcast::error::RecvError::Closed) => {
                    has_events = false;
                    Ok(())
                }
            },
            printed = output.recv(), if has_output => match printed {
                Some(printed) => printer.output(&printed, &mut out).and_then(|()| {
                    // What is there is written at once, and together where there is more.
                    if output.is_empty() { out.flush() } else { Ok(()) }
                }),
                None => {
                    has_output = false;
                    out.flush()
                }
            },
        };
        if written.is_err()
            && let Some(close) = close.take()
        {
            // Nobody reads: it goes on taking, so that no service waits for it.
            let _ = close.send(());
        }
    }
}

struct Printer {
    style: Style,
    facts: watch::Receiver<Arc<Facts>>,
    /// The colour of each service, in the order of their first lines.
    colours: HashMap<String, u8>,
    line: Vec<u8>,
    /// The service and stream whose line is not at its end.
    open: Option<(String, OutputStream)>,
}

/// Colours of names that can be read on dark and on bright ground.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 96];

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    service: &'a str,
    stream: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    text: String,
}

impl Printer {
    fn output(&mut self, output: &Output, out: &mut impl Write) -> io::Result<()> {
        if output.missed > 0 {
            self.note(&format!("{}: {} lines were dropped here; its log has them", output.label, output.missed))?;
        }
        // A colour that one line of a service sets is not to reach those of others.
        let text = output.text.strip_suffix(b"\n").unwrap_or(&output.text);
        for line in text.split(|byte| *byte == b'\n') {
            self.line.clear();
            if self.style == Style::Json {
                let row = Line {
                    time: humantime::format_rfc3339_millis(output.at).to_string(),
                    service: &output.label,
                    stream: if output.stream == OutputStream::Stdout { "stdout" } else { "stderr" },
                    partial: !output.is_whole,
                    text: String::from_utf8_lossy(line).into_owned(),
                };
                serde_json::to_writer(&mut self.line, &row)?;
                self.line.push(b'\n');
            } else {
                let goes_on =
                    self.open.as_ref().is_some_and(|(name, of)| **name == *output.label && *of == output.stream);
                if !goes_on {
                    if self.open.take().is_some() {
                        self.line.push(b'\n');
                    }
                    self.name(&output.label);
                }
                let before = self.line.len();
                printable(line, &mut self.line);
                if output.is_whole {
                    self.open = None;
                    if self.line[before..].contains(&0x1b) {
                        self.line.extend_from_slice(b"\x1b[0m");
                    }
                    self.line.push(b'\n');
                } else {
                    self.open = Some((output.label.to_string(), output.stream));
                }
            }
            out.write_all(&self.line)?;
        }
        Ok(())
    }

    /// The name of a service before its line.
    fn name(&mut self, label: &str) {
        let next = self.colours.len();
        let width = self.facts.borrow().width;
        if self.style == Style::Colours {
            let colour = *self.colours.entry(label.into()).or_insert(COLOURS[next % COLOURS.len()]);
            // Into a Vec nothing fails.
            let _ = write!(self.line, "\x1b[{colour}m{label:width$} |\x1b[0m ");
        } else {
            let _ = write!(self.line, "{label:width$} | ");
        }
    }

    fn happening(&mut self, happening: &Happening) -> io::Result<()> {
        if self.style == Style::Json {
            let row = serde_json::to_string(&EventRow::from(happening))?;
            return writeln!(io::stdout(), "{row}");
        }
        // What everybody sees by itself, or what comes next says.
        let is_noise = matches!(
            happening.event,
            Event::Starting { .. }
                | Event::Running
                | Event::Status { .. }
                | Event::Restarted { .. }
                | Event::Waiting { .. }
                | Event::Metrics { .. }
        );
        if is_noise {
            return Ok(());
        }
        self.note(&format!("{}: {}", happening.label, wire::text(&happening.event)))
    }

    /// A word of pm itself, on standard error.
    fn note(&self, text: &str) -> io::Result<()> {
        if self.style == Style::Json {
            let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            let row = serde_json::json!({ "time": time, "service": "", "event": "note", "text": text });
            return writeln!(io::stdout(), "{row}");
        }
        crate::error::say(text);
        Ok(())
    }
}

/// A line as it may go to a terminal: colours pass, and whatever else would move the cursor, clear the screen or pretend to be another line is escaped.
pub fn printable(line: &[u8], to: &mut Vec<u8>) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.iter().all(|byte| *byte >= b' ' && *byte < 0x7f || *byte == b'\t') {
        return to.extend_from_slice(line);
    }
    let text = String::from_utf8_lossy(line);
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        if let Some(length) = colour_length(rest) {
            to.extend_from_slice(&rest.as_bytes()[..length]);
            rest = &rest[length..];
            continue;
        }
        if c.is_control() && c != '\t' {
            to.extend(c.escape_default().map(|c| c as u8));
        } else {
            to.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        rest = &rest[c.len_utf8()..];
    }
}

/// The length of the sequence that sets colours, where one stands at the beginning: ESC [ numbers m.
pub fn colour_length(text: &str) -> Option<usize> {
    let inside = text.strip_prefix("\x1b[")?;
    let end = inside.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    inside[end..].starts_with('m').then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_pass_and_nothing_else() {
        let shown = |line: &[u8]| {
            let mut to = Vec::new();
            printable(line, &mut to);
            String::from_utf8(to).unwrap()
        };
        assert_eq!(shown(b"plain\ttext\r"), "plain\ttext");
        assert_eq!(shown(b"\x1b[1;31mred\x1b[0m"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(shown(b"\x1b[2Jgone\x1b]0;title\x07"), "\\u{1b}[2Jgone\\u{1b}]0;title\\u{7}");
        assert_eq!(shown("über \u{9b}2J".as_bytes()), "über \\u{9b}2J");
        assert_eq!(shown(b"a\0b\xff\x08"), "a\\u{0}b\u{fffd}\\u{8}");
        assert_eq!(shown(b"\x1b[31"), "\\u{1b}[31");
    }
}
