//! Which stream a line belongs to.

use std::fmt;

use serde_json::Value;

use super::intake::Line;
use super::job::JobError;
use crate::cli::Input;

/// The longest key, in bytes: what the name of a stream can have.
const MOST: usize = pm::core::face::stream::MAX_NAME;

/// Where the key of a line stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The word with this number, from 1 on, of words that blanks or tabs separate.
    Word(usize),
    /// The member of an object, and of the object in it, and so on.
    Member(Vec<String>),
}

impl Key {
    /// Reads `--key`.
    ///
    /// # Errors
    /// What it should be.
    pub fn new(text: &str, input: Input) -> Result<Self, String> {
        match input {
            Input::Lines => match text.parse() {
                Ok(number @ 1..) => Ok(Key::Word(number)),
                _ => Err(format!(
                    "{text:?} is no number of a word, counted from 1; with --in json it is the name of a member"
                )),
            },
            Input::Json if text.split('.').all(|name| !name.is_empty()) => {
                Ok(Key::Member(text.split('.').map(str::to_string).collect()))
            }
            Input::Json => {
                Err(format!("{text:?} is no name of a member; write user, or user.id for one within another"))
            }
        }
    }

    /// The key of a line.
    pub(super) fn of(&self, line: &Line) -> Result<String, JobError> {
        let no_key = |message: String| JobError::untried("no_key", message);
        let Line::Whole(bytes) = line else {
            return Err(no_key("a line that is too long has no key".to_string()));
        };
        let key = match self {
            Key::Word(number) => {
                let words = bytes.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
                let word = words.clone().nth(number - 1);
                let word =
                    word.ok_or_else(|| no_key(format!("the line has no {self}, but {} words", words.count())))?;
                let text = std::str::from_utf8(word);
                text.map_err(|error| no_key(format!("the {self} is no UTF-8: {error}")))?.to_string()
            }
            Key::Member(path) => {
                let value: Value = serde_json::from_slice(bytes)
                    .map_err(|error| JobError::untried("bad_input", format!("not JSON: {error}")))?;
                let found = path.iter().try_fold(&value, |value, name| value.get(name));
                match found {
                    None => return Err(no_key(format!("the value has no {self}"))),
                    Some(Value::String(text)) => text.clone(),
                    Some(value) => value.to_string(),
                }
            }
        };
        match key.len() {
            0..=MOST => Ok(key),
            length => Err(no_key(format!("the {self} has {length} bytes; a key has at most {MOST}"))),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Word(number) => write!(f, "word {number}"),
            Key::Member(path) => write!(f, "member {:?}", path.join(".")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn check(key: &str, input: Input, line: &'static str, expected: Result<&str, &str>) {
        let found = Key::new(key, input).unwrap().of(&Line::Whole(Bytes::from_static(line.as_bytes())));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.message.contains(part), "{error:?}"),
            (found, expected) => panic!("{found:?} in place of {expected:?}"),
        }
    }

    #[test]
    fn keys_are_words_or_members() {
        check("1", Input::Lines, "  a\tb  c", Ok("a"));
        check("3", Input::Lines, "  a\tb  c", Ok("c"));
        check("4", Input::Lines, "  a\tb  c", Err("no word 4, but 3 words"));
        check("1", Input::Lines, "", Err("no word 1"));
        check("user", Input::Json, r#"{"user":"ann","n":1}"#, Ok("ann"));
        check("user.id", Input::Json, r#"{"user":{"id":7}}"#, Ok("7"));
        check("user", Input::Json, r#"{"user":null}"#, Ok("null"));
        check("user", Input::Json, r#"{"user":["a", "b"]}"#, Ok(r#"["a","b"]"#));
        check("user.id", Input::Json, r#"{"user":"ann"}"#, Err("no member \"user.id\""));
        check("user", Input::Json, "[1]", Err("no member"));
        check("user", Input::Json, "{", Err("not JSON"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for (text, input) in [("0", Input::Lines), ("user", Input::Lines), ("", Input::Json), ("a..b", Input::Json)] {
            assert!(Key::new(text, input).is_err(), "{text:?}");
        }
    }
}
