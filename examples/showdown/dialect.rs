//! The protocol between a server of the package and the processes that it forks: strings, in which lines come before what they are about.
//!
//! | to the process | from it |
//! |---|---|
//! | `ID`, then the query as JSON | `ID`, then the answer as JSON |
//! | `ID`, `NEW`: a stream | `ID`, `PUSH`, then a chunk |
//! | `ID`, `WRITE`, then a chunk | `ID`, `THROW`, then an error |
//! | `ID`, `WRITEEND`, or `ID`, `DESTROY` | `ID`, `END` |
//!
//! Besides, `THROW`, `CALLBACK` and `DEBUG` come without an ID, of the process as a whole.

use std::collections::BTreeMap;

use pm::HandlerError;
use pm::foreign::{Calls, Dialect, Out, Said};
use serde_json::json;

use super::host::AT_ONCE;
use super::validate::Entry;

/// The team validator of a server, `team-validator-async.js`.
#[derive(Clone, Debug)]
pub(crate) struct Validator;

/// The simulator of a server, `room-battle.js`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Simulator {
    /// The streams that the process has, and whether it was told that nothing more is written there. What it was told of one that it
    /// does not have, or has no longer, it would take for a crash of its own.
    streams: BTreeMap<u64, bool>,
}

impl Dialect for Validator {
    fn calls(&self) -> Calls {
        // It does one thing after another, and says nothing of what it has begun with.
        Calls::Queries { at_once: 4 }
    }

    fn say(&mut self, said: Said<'_>, out: &mut Out) {
        let Said::Query { id, input } = said else { return };
        match serde_json::from_slice::<Entry>(input) {
            Ok(Entry { format, team }) => {
                send(out, &format!("{id}\n{}", json!({ "formatid": format, "options": {}, "team": team })));
            }
            Err(error) => out.fail(id, &failed(error.to_string())),
        }
    }

    /// The answer is a string: `1` and the team, or `0` and its problems, a line each.
    fn hear(&mut self, message: &[u8], out: &mut Out) -> Result<(), String> {
        let text: String = serde_json::from_slice(message).map_err(|error| error.to_string())?;
        let Some((id, answer)) = of_a_call(&text, out)? else { return Ok(()) };
        let answer: String = serde_json::from_str(answer).map_err(|error| error.to_string())?;
        match answer.split_at_checked(1) {
            Some(("1", _)) => out.answer(id, "null"),
            Some(("0", problems)) => out.answer(id, json!(problems.lines().collect::<Vec<_>>()).to_string()),
            _ => return Err(format!("neither yes nor no: {answer:?}")),
        }
        Ok(())
    }
}

impl Dialect for Simulator {
    fn calls(&self) -> Calls {
        Calls::Streams { at_once: AT_ONCE }
    }

    fn say(&mut self, said: Said<'_>, out: &mut Out) {
        match said {
            Said::Query { .. } => {}
            Said::Open { id, .. } => {
                self.streams.insert(id, false);
                send(out, &format!("{id}\nNEW"));
            }
            Said::Message { id, payload } => match serde_json::from_slice::<String>(payload) {
                Ok(lines) if self.streams.get(&id) == Some(&false) => send(out, &format!("{id}\nWRITE\n{lines}")),
                Ok(_) => {}
                Err(error) => {
                    self.leave(id, out);
                    out.fail(id, &failed(error.to_string()));
                }
            },
            Said::End { id } => {
                if let Some(is_told @ false) = self.streams.get_mut(&id) {
                    *is_told = true;
                    send(out, &format!("{id}\nWRITEEND"));
                }
            }
            Said::Cancel { id } => {
                if self.leave(id, out) {
                    out.cancelled(id);
                }
            }
        }
    }

    fn hear(&mut self, message: &[u8], out: &mut Out) -> Result<(), String> {
        let text: String = serde_json::from_slice(message).map_err(|error| error.to_string())?;
        let Some((id, said)) = of_a_call(&text, out)? else { return Ok(()) };
        let (what, rest) = said.split_once('\n').unwrap_or((said, ""));
        // Of a stream that was left it may still say what it said before it heard of that.
        match what {
            _ if !self.streams.contains_key(&id) => {}
            // What its loop gets in place of a last chunk.
            "PUSH" if rest == "undefined" => {}
            "PUSH" => out.message(id, json!(rest).to_string()),
            "THROW" => out.error(id, &failed(rest.to_string())),
            "END" => {
                self.streams.remove(&id);
                out.answer(id, "");
            }
            _ => return Err(format!("{what:?} is nothing that a stream says")),
        }
        Ok(())
    }
}

impl Simulator {
    /// Forgets a stream, and has the process do so; false where it had none of this number.
    fn leave(&mut self, id: u64, out: &mut Out) -> bool {
        let left = self.streams.remove(&id);
        if left == Some(false) {
            send(out, &format!("{id}\nDESTROY"));
        }
        left.is_some()
    }
}

/// Which call a message is of, and what it says. One that is of none is passed on as a notice, or dropped if it is but a trace of what goes on.
fn of_a_call<'a>(text: &'a str, out: &mut Out) -> Result<Option<(u64, &'a str)>, String> {
    let (first, rest) = text.split_once('\n').ok_or_else(|| format!("{text:?} is of nothing"))?;
    match first {
        "DEBUG" => {}
        "THROW" | "CALLBACK" => out.notice(rest),
        id => return Ok(Some((id.parse().map_err(|_| format!("{id:?} is no number"))?, rest))),
    }
    Ok(None)
}

fn send(out: &mut Out, text: &str) {
    out.send(json!(text).to_string());
}

fn failed(message: String) -> HandlerError {
    HandlerError { message, ..HandlerError::default() }
}
