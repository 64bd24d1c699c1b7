//! A YAML file as a tree, each piece with its place, and the reading of its fields.
//!
//! Nothing is known here of what the fields mean. A tree, and not types that serde fills in, because numbers and truths are to be had as they
//! stand in the file (`1.10` is a version and no number), because any field that begins with `x-` is allowed, and because what is not
//! supported is to be found with its place.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::super::Wrong;
use super::text::Expanded;

/// A piece of YAML.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it stands in the file.
    pub(super) at: Range<usize>,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    /// A text; a number or a truth as it is written.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Name, Node)>),
}

/// The name of a field.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) at: Range<usize>,
    pub(super) name: String,
}

impl Node {
    /// Reads a document.
    pub(super) fn parse(source: &Expanded) -> Result<Self, Wrong> {
        let options = serde_saphyr::options! { with_snippet: false };
        match serde_saphyr::from_str_with_options::<Spanned<Raw>>(&source.text, options) {
            Ok(raw) => Ok(Node::new(raw, source)),
            Err(error) => {
                let at = error.location().and_then(|at| place(at, &source.text)).map(|at| source.original(at));
                let message = UserMessageFormatter.format_message(&error);
                let problem = match &*message {
                    // What it says of a map in the place of a name.
                    "expected string scalar" => "a field has a text as its name; a text with {{ in it stands in quotes",
                    other => other,
                };
                Err(Wrong { at, problem: problem.into() })
            }
        }
    }

    fn new(raw: Spanned<Raw>, source: &Expanded) -> Self {
        let bytes = place(raw.defined, &source.text);
        let at = bytes.clone().map_or(0..0, |at| source.original(at));
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Plain => Value::Text(bytes.and_then(|at| source.text.get(at)).unwrap_or_default().into()),
            Raw::Text(text) => Value::Text(text),
            Raw::List(items) => Value::List(items.into_iter().map(|item| Node::new(item, source)).collect()),
            Raw::Map(fields) => {
                let field = |(name, value): (Spanned<String>, Spanned<Raw>)| {
                    let at = place(name.defined, &source.text).map_or(0..0, |at| source.original(at));
                    (Name { at, name: name.value }, Node::new(value, source))
                };
                Value::Map(fields.into_iter().map(field).collect())
            }
        };
        Node { at, value }
    }

    pub(super) fn wrong(&self, problem: impl Into<String>) -> Wrong {
        Wrong { at: Some(self.at.clone()), problem: problem.into() }
    }

    /// What it is, for people.
    fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    pub(super) fn text(&self, what: &str) -> Result<&str, Wrong> {
        match &self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(format!("{what} is a text, and not {}", self.kind()))),
        }
    }

    pub(super) fn list(&self, what: &str) -> Result<&[Node], Wrong> {
        match &self.value {
            Value::List(items) => Ok(items),
            _ => Err(self.wrong(format!("{what} is a list, and not {}", self.kind()))),
        }
    }

    pub(super) fn map(&self, what: &str) -> Result<&[(Name, Node)], Wrong> {
        match &self.value {
            Value::Map(fields) => Ok(fields),
            _ => Err(self.wrong(format!("{what} is a map, and not {}", self.kind()))),
        }
    }

    /// The words of YAML 1.1, which are those of process-compose.
    pub(super) fn truth(&self, what: &str) -> Result<bool, Wrong> {
        let text = self.text(what)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(self.wrong(format!("{what} is true or false, and not {text:?}"))),
        }
    }

    pub(super) fn number(&self, what: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, Wrong> {
        let text = self.text(what)?;
        let number = text.trim().parse::<u32>().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            self.wrong(match *most {
                u32::MAX => format!("{what} is a whole number from {least} on, and not {text:?}"),
                most => format!("{what} is a whole number from {least} to {most}, and not {text:?}"),
            })
        })
    }
}

/// The fields of a map whose names are known.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    /// The way to it, with a dot at its end, or nothing.
    path: String,
    fields: &'a [(Name, Node)],
}

impl<'a> Fields<'a> {
    /// Fields of any other name are wrong, but for those that begin with `x-`, which are for others to read.
    pub(super) fn of(node: &'a Node, path: &str, known: &[&str]) -> Result<Self, Wrong> {
        let fields = node.map(if path.is_empty() { "the file" } else { path })?;
        for (name, _) in fields {
            if !name.name.starts_with("x-") && !known.contains(&name.name.as_str()) {
                let of = if path.is_empty() { "the file" } else { path };
                let problem = format!("{:?} is no field of {of}; there are {}", name.name, known.join(", "));
                return Err(Wrong { at: Some(name.at.clone()), problem });
            }
        }
        let path = if path.is_empty() { String::new() } else { format!("{path}.") };
        Ok(Fields { path, fields })
    }

    /// The value of a field, and its full name; none where there is nothing.
    pub(super) fn get(&self, name: &str) -> Option<(&'a Node, String)> {
        let (_, node) = self.fields.iter().find(|(known, _)| known.name == name)?;
        (!matches!(node.value, Value::Null)).then(|| (node, format!("{}{name}", self.path)))
    }

    /// Where the name of a field stands.
    pub(super) fn place(&self, name: &str) -> Option<Range<usize>> {
        self.fields.iter().find(|(known, _)| known.name == name).map(|(name, _)| name.at.clone())
    }

    pub(super) fn wrong(&self, name: &str, problem: impl fmt::Display) -> Wrong {
        Wrong { at: self.place(name), problem: format!("{}{name}: {problem}", self.path) }
    }

    /// A text that is not empty.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Wrong> {
        let text = self.get(name).map(|(node, what)| node.text(&what)).transpose()?;
        Ok(text.filter(|text| !text.trim().is_empty()))
    }

    /// False where it is not said.
    pub(super) fn truth(&self, name: &str) -> Result<bool, Wrong> {
        self.get(name).map_or(Ok(false), |(node, what)| node.truth(&what))
    }

    pub(super) fn number(&self, name: &str, range: std::ops::RangeInclusive<u32>) -> Result<Option<u32>, Wrong> {
        self.get(name).map(|(node, what)| node.number(&what, range)).transpose()
    }

    /// A number of which 0 is as if it were not there, as process-compose has it.
    pub(super) fn number_or(&self, name: &str, usual: u32) -> Result<u32, Wrong> {
        Ok(self.number(name, 0..=u32::MAX)?.filter(|number| *number > 0).unwrap_or(usual))
    }

    /// The fields of a map in it.
    pub(super) fn fields(&self, name: &str, known: &[&str]) -> Result<Option<Fields<'a>>, Wrong> {
        self.get(name).map(|(node, what)| Fields::of(node, &what, known)).transpose()
    }
}

/// The bytes of a location. Errors have a line and a column only.
fn place(at: Location, text: &str) -> Option<Range<usize>> {
    if at == Location::UNKNOWN {
        return None;
    }
    let span = at.span();
    if let (Some(start), Some(length)) = (span.byte_offset(), span.byte_len()) {
        let start = usize::try_from(start).ok()?;
        let end = start + usize::try_from(length).ok()?;
        return Some(start.min(text.len())..end.min(text.len()));
    }
    let before = usize::try_from(at.line()).ok()?.checked_sub(1)?;
    let column = usize::try_from(at.column()).ok()?.checked_sub(1)?;
    let begin: usize = text.split_inclusive('\n').take(before).map(str::len).sum();
    let line = text[begin..].split('\n').next().unwrap_or_default();
    let start = begin + line.char_indices().nth(column).map_or(line.len(), |(at, _)| at);
    Some(start..start)
}

/// What serde hears of it.
#[derive(Debug)]
enum Raw {
    Null,
    /// A number or a truth, which is taken from the file as it is written there.
    Plain,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, a truth, a list or a map")
    }

    fn visit_unit<E: Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = access.next_entry()? {
            fields.push(field);
        }
        Ok(Raw::Map(fields))
    }
}
