//! One job: what goes to the worker for it, and why it has no result.

use bytes::Bytes;
use pm::{ExitCause, HandlerError, HandlerErrorKind, QueryError};
use serde::Serialize;
use serde::de::IgnoredAny;

use super::intake::Line;
use crate::cli::Input;
use crate::plan::Wire;
use crate::roles::exec::Fault;

/// A job on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// Its place in the input, from 0.
    pub(super) number: u64,
    /// Its place among the jobs that were taken.
    pub(super) seq: u64,
    pub(super) line: Line,
    /// What goes to the worker.
    pub(super) payload: Bytes,
}

/// Why a job has no result, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct JobError {
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) tries: u32,
    /// The exit code of a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<i32>,
    /// The end of what the program or worker wrote to its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stderr: Option<String>,
    /// Where an error of a function came from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) trace: String,
}

/// What a failed try means for its job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It has no worker any more, through no fault of its own: it was not done.
    NotRun,
    /// The worker was lost.
    Lost(JobError),
    /// It took too long.
    TimedOut(JobError),
    /// It failed by itself.
    Error(JobError),
}

/// What goes to the worker for a line.
pub(super) fn payload(line: &Line, input: Input, wire: Wire) -> Result<Bytes, JobError> {
    let bytes = match line {
        Line::Whole(bytes) => bytes,
        Line::TooLong { bytes, .. } => {
            let message = format!("the line has {bytes} bytes; --max-line takes longer ones");
            return Err(JobError::untried("line_too_long", message));
        }
    };
    let bad = |message: String| JobError::untried("bad_input", message);
    let not_json = |error: serde_json::Error| match bytes.trim_ascii() {
        [] => bad("not JSON: the line is blank".to_string()),
        // It is always line 1: of the job, not of the input.
        _ => bad(format!("not JSON: {}", error.to_string().replace(" at line 1 column ", " at column "))),
    };
    match (input, wire) {
        (Input::Lines, Wire::Text | Wire::Printed) => Ok(bytes.clone()),
        (Input::Lines, Wire::Json) => {
            let text = std::str::from_utf8(bytes)
                .map_err(|error| bad(format!("the line is no UTF-8, and this worker takes JSON: {error}")))?;
            serde_json::to_vec(text).map(Bytes::from).map_err(|error| bad(error.to_string()))
        }
        (Input::Json, Wire::Json) => {
            serde_json::from_slice::<IgnoredAny>(bytes).map_err(not_json)?;
            std::str::from_utf8(bytes).map_err(|error| bad(format!("not JSON: {error}")))?;
            Ok(bytes.clone())
        }
        (Input::Json, Wire::Text | Wire::Printed) => match bytes.trim_ascii_start().first() {
            Some(b'"') => {
                let text: String = serde_json::from_slice(bytes).map_err(not_json)?;
                Ok(Bytes::from(text))
            }
            _ => {
                serde_json::from_slice::<IgnoredAny>(bytes).map_err(not_json)?;
                std::str::from_utf8(bytes).map_err(|error| bad(format!("not JSON: {error}")))?;
                Ok(bytes.slice_ref(bytes.trim_ascii()))
            }
        },
    }
}

impl JobError {
    /// What became of no try: of a line that is no job, or of a stream.
    pub(super) fn untried(kind: &'static str, message: String) -> Self {
        JobError { kind, message, tries: 0, ..JobError::default() }
    }

    /// The answer of a worker is not what it should be.
    pub(super) fn bad_answer(message: String, tries: u32) -> Self {
        JobError { kind: "bad_answer", message, tries, ..JobError::default() }
    }

    fn of_handler(error: HandlerError, wire: Wire) -> Self {
        let HandlerError { kind, type_name, message, trace, .. } = error;
        let fault = Some(()).filter(|()| wire == Wire::Printed).and_then(|()| Fault::read(&type_name));
        let of = |kind| JobError { kind, message: message.clone(), ..JobError::default() };
        match (fault, kind) {
            (Some(Fault::Exit(code)), _) => JobError { code: Some(code), stderr: Some(trace), ..of("exit") },
            (Some(Fault::Signal(_)), _) => JobError { stderr: Some(trace), ..of("signal") },
            (Some(Fault::Start), _) => of("start"),
            (Some(Fault::Output), _) => JobError { stderr: Some(trace), ..of("output_too_large") },
            (None, HandlerErrorKind::Panic) => JobError { trace, ..of("panic") },
            (None, HandlerErrorKind::Decode) => of("decode"),
            // The roles of pm itself name no type that anybody knows.
            (None, _) if wire != Wire::Json || type_name.is_empty() => JobError { trace, ..of("error") },
            // Of a text that is an error the type says nothing.
            (None, _) if type_name == "alloc::string::String" || type_name == "&str" => {
                JobError { trace, ..of("error") }
            }
            (None, _) => JobError { message: format!("{type_name}: {message}"), trace, ..of("error") },
        }
    }
}

impl Failed {
    /// What the error of a query means.
    pub(super) fn new(error: QueryError, wire: Wire) -> Self {
        match error {
            QueryError::Handler(error) => Failed::Error(JobError::of_handler(*error, wire)),
            QueryError::TimedOut { limit, .. } => {
                let message = format!("it took longer than {limit:?}");
                Failed::TimedOut(JobError { kind: "timed_out", message, ..JobError::default() })
            }
            // pm itself ended it.
            QueryError::WorkerLost(lost) if lost.cause == ExitCause::Requested => Failed::NotRun,
            QueryError::WorkerLost(lost) | QueryError::Poisoned(lost) => Failed::Lost(JobError {
                kind: "worker_lost",
                message: match lost.last_notice {
                    Some(notice) => format!("the worker was lost: {}; its last notice: {notice}", lost.cause),
                    None => format!("the worker was lost: {}", lost.cause),
                },
                stderr: Some(lost.stderr),
                ..JobError::default()
            }),
            QueryError::Encode { message, .. } => Failed::Error(JobError::untried("bad_input", message)),
            QueryError::TooLarge { .. } => Failed::Error(JobError::untried("bad_input", error.to_string())),
            QueryError::Decode { message, .. } => Failed::Error(JobError::bad_answer(message, 0)),
            _ => Failed::NotRun,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_what_the_worker_takes() {
        let check = |line: &'static [u8], input, wire, expected: Option<&str>| {
            let payload = payload(&Line::Whole(Bytes::from_static(line)), input, wire).ok();
            assert_eq!(
                payload.as_deref(),
                expected.map(str::as_bytes),
                "{} as {input:?} over {wire:?}",
                line.escape_ascii()
            );
        };
        check(b"a\"b", Input::Lines, Wire::Text, Some("a\"b"));
        check(b"a\"b", Input::Lines, Wire::Json, Some(r#""a\"b""#));
        check(b"\xff", Input::Lines, Wire::Json, None);
        check(br#" {"a":1} "#, Input::Json, Wire::Json, Some(r#" {"a":1} "#));
        check(br#" "a\nb" "#, Input::Json, Wire::Text, Some("a\nb"));
        check(br#" [1] "#, Input::Json, Wire::Printed, Some("[1]"));
        check(b"{", Input::Json, Wire::Json, None);
        check(b"", Input::Json, Wire::Text, None);
        check(b"[\"\xff\"]", Input::Json, Wire::Json, None);
    }
}
