//! How results are written: plain, or one JSON object a job.

use std::borrow::Cow;
use std::io::Write;

use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use super::intake::Line;
use super::job::JobError;
use crate::cli::{Input, Output};
use crate::plan::{Plan, Wire};
use crate::roles::builtin::hex;
use crate::roles::exec::Printed;

/// An input that is longer is shown by its digest.
const SHOWN_INPUT: usize = 1024;

/// How much of an input stands in an error on standard error.
const SHORT_INPUT: usize = 60;

/// How results are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) output: Output,
    pub(super) input: Input,
    pub(super) wire: Wire,
    pub(super) tag: bool,
}

/// Where they go.
#[derive(Debug, Default)]
pub(super) struct Sink {
    /// Standard output, or the result file.
    pub(super) out: Vec<u8>,
    /// Standard error.
    pub(super) err: Vec<u8>,
}

impl Format {
    pub(super) fn of(plan: &Plan) -> Self {
        Format { output: plan.output, input: plan.input, wire: plan.worker.wire, tag: plan.tag }
    }

    /// Writes the result of a job. The answer of a worker that is not what it should be becomes an error.
    pub(super) fn result(
        &self,
        number: u64,
        line: &Line,
        answer: &[u8],
        tries: u32,
        sink: &mut Sink,
    ) -> Result<(), JobError> {
        let result = self.read(answer, tries, sink)?;
        let out = &mut sink.out;
        match self.output {
            Output::Plain if !self.tag && self.wire == Wire::Printed && result.is_empty() => {}
            Output::Plain => {
                let text = self.text(result, tries)?;
                lines(&text, self.tag.then_some(|out: &mut Vec<u8>| tag(out, line)), out);
            }
            Output::Json => {
                self.head(number, line, out);
                self.object(result, out);
            }
        }
        Ok(())
    }

    /// Writes a message of the stream of this key.
    pub(super) fn message(&self, key: &str, message: &[u8], sink: &mut Sink) -> Result<(), JobError> {
        let message = self.read(message, 0, sink)?;
        let out = &mut sink.out;
        match self.output {
            Output::Plain => {
                let text = self.text(message, 0)?;
                lines(&text, self.tag.then_some(|out: &mut Vec<u8>| key_tag(out, key)), out);
            }
            Output::Json => {
                key_head(key, out);
                self.object(message, out);
            }
        }
        Ok(())
    }

    /// What a worker answered, without what belongs to the way that it came.
    fn read<'a>(&self, answer: &'a [u8], tries: u32, sink: &mut Sink) -> Result<&'a [u8], JobError> {
        let bad = |message: &str| JobError::bad_answer(message.to_string(), tries);
        match self.wire {
            Wire::Text => Ok(answer),
            Wire::Printed => {
                let printed =
                    Printed::read(answer).ok_or_else(|| bad("a worker of pm answered what cannot be read"))?;
                if !printed.stderr.is_empty() {
                    sink.err.extend_from_slice(printed.stderr);
                    if !printed.stderr.ends_with(b"\n") {
                        sink.err.push(b'\n');
                    }
                }
                Ok(printed.stdout)
            }
            Wire::Json => {
                let is_json =
                    serde_json::from_slice::<IgnoredAny>(answer).is_ok() && std::str::from_utf8(answer).is_ok();
                if is_json { Ok(answer.trim_ascii()) } else { Err(bad("the worker's answer is not JSON")) }
            }
        }
    }

    /// What was read as text.
    fn text<'a>(&self, result: &'a [u8], tries: u32) -> Result<Cow<'a, [u8]>, JobError> {
        match self.wire {
            Wire::Json if result.starts_with(b"\"") => {
                let text: String =
                    serde_json::from_slice(result).map_err(|error| JobError::bad_answer(error.to_string(), tries))?;
                Ok(text.into_bytes().into())
            }
            Wire::Json if memchr::memchr2(b'\n', b'\r', result).is_some() => {
                let mut json = Vec::with_capacity(result.len());
                one_line(&mut json, result);
                Ok(json.into())
            }
            Wire::Json => Ok(result.into()),
            Wire::Text | Wire::Printed => Ok(self.chomp(result).into()),
        }
    }

    /// Writes it as the result in an object that has been begun, and ends that.
    fn object(&self, result: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"result\":");
        match self.wire {
            Wire::Json => one_line(out, result),
            Wire::Text | Wire::Printed => text(out, self.chomp(result)),
        }
        out.extend_from_slice(b"}\n");
    }

    /// What a program printed ends with a line break that is not part of the result.
    fn chomp<'a>(&self, result: &'a [u8]) -> &'a [u8] {
        match self.wire {
            Wire::Printed => result.strip_suffix(b"\n").unwrap_or(result),
            Wire::Json | Wire::Text => result,
        }
    }

    /// Writes the error of a job.
    pub(super) fn error(&self, number: u64, line: &Line, error: &JobError, sink: &mut Sink) {
        match self.output {
            Output::Plain => {
                let shown = match line {
                    Line::Whole(bytes) => short(bytes),
                    Line::TooLong { bytes, .. } => format!("{bytes} bytes"),
                };
                told(&format!("job {number} ({shown})"), error, &mut sink.err);
            }
            Output::Json => {
                self.head(number, line, &mut sink.out);
                failed(error, &mut sink.out);
            }
        }
    }

    /// Writes an error of the stream of this key.
    pub(super) fn stream_error(&self, key: &str, error: &JobError, sink: &mut Sink) {
        match self.output {
            Output::Plain => told(&format!("key {}", short(key.as_bytes())), error, &mut sink.err),
            Output::Json => {
                key_head(key, &mut sink.out);
                failed(error, &mut sink.out);
            }
        }
    }

    fn head(&self, number: u64, line: &Line, out: &mut Vec<u8>) {
        let _ = write!(out, "{{\"job\":{number},\"input\":");
        self.input(line, out);
    }

    /// Writes an input as JSON.
    pub(super) fn input(&self, line: &Line, out: &mut Vec<u8>) {
        match line {
            Line::TooLong { sha256, bytes } => {
                let _ = write!(out, "{{\"sha256\":\"{}\",\"bytes\":{bytes}}}", hex(sha256));
            }
            Line::Whole(bytes) if bytes.len() > SHOWN_INPUT => {
                let _ = write!(out, "{{\"sha256\":\"{}\",\"bytes\":{}}}", hex(&Sha256::digest(bytes)), bytes.len());
            }
            Line::Whole(bytes) => match self.input {
                Input::Json
                    if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() && std::str::from_utf8(bytes).is_ok() =>
                {
                    one_line(out, bytes.trim_ascii());
                }
                Input::Json | Input::Lines => text(out, bytes),
            },
        }
    }
}

/// Begins the object of a stream.
fn key_head(key: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"key\":");
    text(out, key.as_bytes());
}

/// Tells people of an error, on one line.
fn told(of: &str, error: &JobError, err: &mut Vec<u8>) {
    let _ = write!(err, "pm: {of}: {}", escape(&error.message));
    if error.tries > 1 {
        let _ = write!(err, " (after {} tries)", error.tries);
    }
    if let Some(last) = error.stderr.as_deref().and_then(|stderr| stderr.trim_end().lines().last()) {
        let _ = write!(err, ": {}", escape(last));
    }
    err.push(b'\n');
}

/// Writes an error as that of an object that has been begun, and ends that.
fn failed(error: &JobError, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"error\":");
    // Nothing in it can fail to be JSON.
    let _ = serde_json::to_writer(&mut *out, error);
    out.extend_from_slice(b"}\n");
}

/// Writes text, and a line break behind it. Each of its lines has the tag.
fn lines(text: &[u8], tag: Option<impl FnOnce(&mut Vec<u8>)>, out: &mut Vec<u8>) {
    let start = out.len();
    if let Some(tag) = tag {
        tag(out);
    }
    let tag = start..out.len();
    let mut rest = text;
    while !tag.is_empty()
        && let Some(end) = memchr::memchr(b'\n', rest)
    {
        out.extend_from_slice(&rest[..=end]);
        out.extend_from_within(tag.clone());
        rest = &rest[end + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'\n');
}

fn key_tag(out: &mut Vec<u8>, key: &str) {
    // It stays on its line, and in its column.
    for byte in key.bytes() {
        match byte {
            b'\\' | b'\t' | b'\n' | b'\r' => out.extend(std::ascii::escape_default(byte)),
            byte => out.push(byte),
        }
    }
    out.push(b'\t');
}

fn tag(out: &mut Vec<u8>, line: &Line) {
    if let Line::Whole(bytes) = line {
        out.extend_from_slice(bytes);
    }
    out.push(b'\t');
}

/// Writes text as JSON: a string, or `{"base64":"…"}` where it is no UTF-8.
fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let _ = serde_json::to_writer(out, text);
        }
        Err(_) => {
            out.extend_from_slice(b"{\"base64\":\"");
            base64(out, bytes);
            out.extend_from_slice(b"\"}");
        }
    }
}

/// Writes JSON on one line: a line break in JSON can only be white space between its tokens.
fn one_line(out: &mut Vec<u8>, json: &[u8]) {
    let start = out.len();
    out.extend_from_slice(json);
    for byte in &mut out[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// RFC 4648, section 4.
fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= group.len() { digit } else { b'=' });
        }
    }
}

fn short(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHORT_INPUT)]);
    let cut: String = text.chars().take(SHORT_INPUT).collect();
    let more = if cut.len() < text.len() || bytes.len() > 4 * SHORT_INPUT { "…" } else { "" };
    format!("\"{}{more}\"", escape(&cut))
}

/// What a job wrote must not move the cursor, or pretend to be another line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn line(text: &str) -> Line {
        Line::Whole(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn written(format: Format, input: &str, answer: &[u8]) -> String {
        let mut sink = Sink::default();
        match format.result(7, &line(input), answer, 1, &mut sink) {
            Ok(()) => String::from_utf8(sink.out).unwrap(),
            Err(error) => format!("error {}", error.kind),
        }
    }

    #[test]
    fn results_are_written_as_they_were_asked_for() {
        let plain = Format { output: Output::Plain, input: Input::Lines, wire: Wire::Text, tag: false };
        let json = Format { output: Output::Json, ..plain };
        let over_json = |format| Format { wire: Wire::Json, ..format };
        assert_eq!(written(plain, "in", b"out"), "out\n");
        assert_eq!(written(Format { tag: true, ..plain }, "in", b"out"), "in\tout\n");
        let tagged = Format { tag: true, ..plain };
        assert_eq!(written(tagged, "in", b""), "in\t\n");
        assert_eq!(written(tagged, "", b"a\nb"), "\ta\n\tb\n");
        assert_eq!(written(tagged, "in", b"a\n\nb\n"), "in\ta\nin\t\nin\tb\nin\t\n");
        assert_eq!(written(over_json(tagged), "in", b"\"a\\nb\""), "in\ta\nin\tb\n");
        assert_eq!(written(over_json(tagged), "in", b"{\n\"a\": 1\n}"), "in\t{ \"a\": 1 }\n");
        assert_eq!(written(json, "in", b"a\"b"), "{\"job\":7,\"input\":\"in\",\"result\":\"a\\\"b\"}\n");
        assert_eq!(written(json, "in", b"\xff\x00"), "{\"job\":7,\"input\":\"in\",\"result\":{\"base64\":\"/wA=\"}}\n");
        assert_eq!(written(over_json(plain), "in", b"\"a\\nb\""), "a\nb\n");
        assert_eq!(written(over_json(plain), "in", b"{\n\"a\": 1\n}"), "{ \"a\": 1 }\n");
        assert_eq!(written(over_json(json), "in", b" [1,\n2]\n"), "{\"job\":7,\"input\":\"in\",\"result\":[1, 2]}\n");
        assert_eq!(written(over_json(json), "in", b"[1"), "error bad_answer");
        let values = Format { input: Input::Json, ..over_json(json) };
        assert_eq!(written(values, " {\"a\": 1.0}", b"1e400"), "{\"job\":7,\"input\":{\"a\": 1.0},\"result\":1e400}\n");
        assert_eq!(written(values, "nonsense", b"1"), "{\"job\":7,\"input\":\"nonsense\",\"result\":1}\n");
    }

    #[test]
    fn what_programs_print_loses_one_line_break_and_may_be_nothing() {
        let printed = |stdout: &[u8]| [&(stdout.len() as u64).to_le_bytes(), stdout, b"warning"].concat();
        let plain = Format { output: Output::Plain, input: Input::Lines, wire: Wire::Printed, tag: false };
        let json = Format { output: Output::Json, ..plain };
        assert_eq!(written(plain, "in", &printed(b"a\nb\n")), "a\nb\n");
        assert_eq!(written(plain, "in", &printed(b"a")), "a\n");
        assert_eq!(written(plain, "in", &printed(b"")), "");
        assert_eq!(written(plain, "in", &printed(b"\n")), "\n");
        let tagged = Format { tag: true, ..plain };
        assert_eq!(written(tagged, "in", &printed(b"")), "in\t\n");
        assert_eq!(written(tagged, "in", &printed(b"a\nb\n")), "in\ta\nin\tb\n");
        assert_eq!(written(json, "in", &printed(b"a\n\n")), "{\"job\":7,\"input\":\"in\",\"result\":\"a\\n\"}\n");
        assert_eq!(written(json, "in", b"short"), "error bad_answer");
    }

    #[test]
    fn messages_have_their_key_on_each_line_and_an_error_leaves_none() {
        let format = Format { output: Output::Plain, input: Input::Lines, wire: Wire::Json, tag: true };
        let mut sink = Sink::default();
        format.message("k\te\ny", b"\"a\\nb\"", &mut sink).unwrap();
        assert_eq!(sink.out, b"k\\te\\ny\ta\nk\\te\\ny\tb\n");
        sink.out.clear();
        // Half of a pair of surrogates: no text, though it looks like JSON.
        assert!(format.message("key", b"\"\\ud800\"", &mut sink).is_err());
        assert!(format.result(0, &line("in"), b"\"\\ud800\"", 1, &mut sink).is_err());
        assert!(sink.out.is_empty(), "{}", sink.out.escape_ascii());
    }

    #[test]
    fn long_inputs_are_given_by_their_digest() {
        let mut out = Vec::new();
        let format = Format { output: Output::Json, input: Input::Lines, wire: Wire::Text, tag: false };
        format.input(&line(&"x".repeat(1024)), &mut out);
        assert_eq!(out.len(), 1026);
        out.clear();
        format.input(&line(&"x".repeat(1025)), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("{\"sha256\":\"") && text.ends_with("\",\"bytes\":1025}"), "{text}");
    }

    #[test]
    fn errors_are_one_line_and_move_no_cursor() {
        let format = Format { output: Output::Plain, input: Input::Lines, wire: Wire::Text, tag: false };
        let error = JobError {
            message: "bad\n\x1b[2J".to_string(),
            tries: 3,
            stderr: Some("first\nlast\r\n".to_string()),
            ..JobError::default()
        };
        let mut sink = Sink::default();
        format.error(7, &line(&"y\t".repeat(100)), &error, &mut sink);
        let text = String::from_utf8(sink.err).unwrap();
        assert!(text.starts_with("pm: job 7 (\"y\\ty"), "{text}");
        assert!(text.ends_with("…\"): bad\\n\\u{1b}[2J (after 3 tries): last\n"), "{text}");
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            let mut out = Vec::new();
            base64(&mut out, bytes.as_bytes());
            assert_eq!(out, text.as_bytes());
        }
    }
}
