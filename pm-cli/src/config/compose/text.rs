//! What process-compose replaces in texts: `${NAME}` in the whole file before it is read, and `{{.NAME}}` in some fields.

use std::ops::Range;

use super::super::Wrong;

/// A file with values in place of its variables, and where each part of it comes from.
#[derive(Debug, Default)]
pub(super) struct Expanded {
    pub(super) text: String,
    pieces: Vec<Piece>,
    /// Variables that have no value, and where they stand.
    pub(super) unset: Vec<(String, Range<usize>)>,
}

#[derive(Debug)]
struct Piece {
    /// Where it begins in the new text.
    start: usize,
    /// What it was in the old one.
    original: Range<usize>,
    is_value: bool,
}

impl Expanded {
    /// A text in which nothing is replaced.
    pub(super) fn verbatim(text: &str) -> Self {
        let mut expanded = Expanded::default();
        expanded.keep(text, 0..text.len());
        expanded
    }

    /// Puts values in place of `${NAME}`; of `${NAME:-default}`, `${NAME:=default}` and `${NAME=default}` where there is none or an empty one. `$$` is a
    /// dollar sign, and one before anything else is itself, for a shell may want it.
    pub(super) fn new(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Wrong> {
        let mut expanded = Expanded::default();
        let mut at = 0;
        while let Some(found) = text[at..].find('$') {
            let dollar = at + found;
            expanded.keep(text, at..dollar);
            at = match text[dollar + 1..].chars().next() {
                Some('$') => {
                    expanded.put("$", dollar..dollar + 2);
                    dollar + 2
                }
                Some('{') => {
                    let (value, end) = expanded.value(text, dollar, lookup)?;
                    expanded.put(&value, dollar..end);
                    end
                }
                _ => {
                    expanded.keep(text, dollar..dollar + 1);
                    dollar + 1
                }
            };
        }
        expanded.keep(text, at..text.len());
        Ok(expanded)
    }

    /// The value of what begins with `${` there, and where that ends.
    fn value(
        &mut self,
        text: &str,
        dollar: usize,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(String, usize), Wrong> {
        let rest = &text[dollar + 2..];
        // A line is enough: a brace that is closed in another one is most likely not meant.
        let line = rest.find('\n').unwrap_or(rest.len());
        let wrong = |length: usize, problem: String| {
            let end = dollar + 2 + length;
            Err(Wrong { at: Some(dollar..end), problem })
        };
        let length = rest.find(|c: char| !(c.is_alphanumeric() || "_-".contains(c))).unwrap_or(rest.len());
        let (name, after) = rest.split_at(length);
        let start = dollar + 2 + length;
        if !name.is_empty() && after.starts_with('}') {
            let value = lookup(name);
            if value.is_none() {
                self.unset.push((name.into(), dollar..start + 1));
            }
            return Ok((value.unwrap_or_default(), start + 1));
        }
        let sign = [":-", ":=", "="].into_iter().find(|sign| !name.is_empty() && after.starts_with(sign));
        let Some(sign) = sign else {
            if !rest[..line].contains('}') {
                return wrong(line, "the brace of ${ is never closed; a dollar sign is $$".into());
            }
            let inside = rest.find('}').map_or(rest, |end| &rest[..end]);
            let problem = format!(
                "${{{inside}}} is not supported: write ${{NAME}} or ${{NAME:-default}}, or $${{{inside}}} for the shell to see it"
            );
            return wrong(inside.len() + 1, problem);
        };
        let mut default = String::new();
        let mut at = start + sign.len();
        loop {
            match text[at..].chars().next() {
                None => return wrong(line, "the brace of ${ is never closed; a dollar sign is $$".into()),
                Some('}') => break,
                Some('$') if text[at..].starts_with("${") => {
                    let (value, end) = self.value(text, at, lookup)?;
                    default.push_str(&value);
                    at = end;
                }
                Some(c) => {
                    default.push(c);
                    at += c.len_utf8();
                }
            }
        }
        Ok((lookup(name).filter(|value| !value.is_empty()).unwrap_or(default), at + 1))
    }

    fn keep(&mut self, text: &str, range: Range<usize>) {
        self.pieces.push(Piece { start: self.text.len(), original: range.clone(), is_value: false });
        self.text.push_str(&text[range]);
    }

    fn put(&mut self, value: &str, original: Range<usize>) {
        self.pieces.push(Piece { start: self.text.len(), original, is_value: true });
        self.text.push_str(value);
    }

    /// Where in the file a part of the new text comes from. Of a value that is the variable.
    pub(super) fn original(&self, range: Range<usize>) -> Range<usize> {
        let piece = |at: usize| {
            let number = self.pieces.partition_point(|piece| piece.start <= at).saturating_sub(1);
            self.pieces.get(number)
        };
        let start = match piece(range.start) {
            Some(piece) if piece.is_value => piece.original.start,
            Some(piece) => piece.original.start + (range.start - piece.start),
            None => range.start,
        };
        let end = match piece(range.end.saturating_sub(1)) {
            _ if range.is_empty() => start,
            Some(piece) if piece.is_value => piece.original.end,
            Some(piece) => piece.original.start + (range.end - piece.start),
            None => range.end,
        };
        start..end.max(start)
    }
}

/// Puts values in place of `{{.NAME}}`, and texts in place of `{{"text"}}`: of the templates of Go no more than that.
pub(super) fn render(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut rendered = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        rendered.push_str(&rest[..at]);
        let inside = rest[at + 2..].trim_start();
        let (value, after) = match inside.chars().next() {
            Some(quote @ ('"' | '`')) => literal(&inside[1..], quote),
            Some('.') => field(&inside[1..], lookup)?,
            _ => None,
        }
        .and_then(|(value, after)| Some((value, after.trim_start().strip_prefix("}}")?)))
        .ok_or_else(|| {
            let shown = rest[at..].find("}}").map_or(&rest[at..], |end| &rest[at..at + end + 2]);
            format!(
                "{shown} is more of a template than pm knows: it has {{{{.NAME}}}} and {{{{\"text\"}}}}, and the latter for a text with braces"
            )
        })?;
        rendered.push_str(&value);
        rest = after;
    }
    rendered.push_str(rest);
    Ok(rendered)
}

fn field<'a>(inside: &'a str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<(String, &'a str)>, String> {
    let length = inside.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(inside.len());
    let (name, after) = inside.split_at(length);
    if name.is_empty() || !after.trim_start().starts_with("}}") {
        return Ok(None);
    }
    let value = lookup(name).ok_or_else(|| format!("{{{{.{name}}}}} has no value: write it in vars"))?;
    Ok(Some((value, after)))
}

fn literal(inside: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((value, &inside[at + 1..])),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                same @ ('"' | '\\') => value.push(same),
                _ => return None,
            },
            _ => value.push(c),
        }
    }
    None
}

/// The name after the first dollar sign, where one follows: what a shell would replace.
pub(super) fn shell_variable(text: &str) -> Option<&str> {
    let (_, after) = text.split_once('$')?;
    let after = after.strip_prefix('{').unwrap_or(after);
    let length = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
    let name = &after[..length];
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_').then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("value".into()),
            "E" => Some(String::new()),
            "LONG-NAME" => Some("dash".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_as_in_process_compose() {
        let expand = |text: &str| Expanded::new(text, &lookup).unwrap().text;
        assert_eq!(expand("${A} $A $$A $${A} $ $1 é"), "value $A $A ${A} $ $1 é");
        assert_eq!(expand("[${NONE}] ${NONE:-d} ${E:-d} ${E} ${NONE:=d e} ${NONE=d} ${A:-d}"), "[] d d  d e d value");
        assert_eq!(expand("${NONE:-a${NONE:-b${A}}c} ${LONG-NAME}"), "abvaluec dash");
        assert_eq!(Expanded::new("a ${NONE}", &lookup).unwrap().unset, [("NONE".into(), 2..9)]);
    }

    #[test]
    fn what_is_no_variable_has_its_place() {
        let wrong = |text: &str| Expanded::new(text, &lookup).unwrap_err();
        assert_eq!(wrong("a ${A\nb").at, Some(2..5));
        assert!(wrong("a ${A:-").problem.contains("never closed"));
        let odd = wrong("a ${A##*/} b");
        assert_eq!((odd.at, &odd.problem[..11]), (Some(2..10), "${A##*/} is"));
        assert!(wrong("${}").problem.contains("not supported"));
    }

    #[test]
    fn places_go_back_to_the_file() {
        let expanded = Expanded::new("a: ${A}b\nc: $$d\n", &lookup).unwrap();
        assert_eq!(expanded.text, "a: valueb\nc: $d\n");
        let original = |part: &str| {
            let start = expanded.text.find(part).unwrap();
            expanded.original(start..start + part.len())
        };
        assert_eq!(original("a"), 0..1);
        assert_eq!(original("valueb"), 3..8);
        assert_eq!(original("alu"), 3..7);
        assert_eq!(original("c"), 9..10);
        assert_eq!(original("$d"), 12..15);
        assert_eq!(expanded.original(16..16), 16..16);
    }

    #[test]
    fn templates_know_names_and_texts() {
        let render = |text: &str| super::render(text, &lookup);
        assert_eq!(render("a {{.A}} {{ .A }}{{ \"{{.B}} \\\"\" }}{{`\\`}} }}").unwrap(), "a value value{{.B}} \"\\ }}");
        assert_eq!(render("{{.B}}").unwrap_err(), "{{.B}} has no value: write it in vars");
        for text in ["{{if .A}}x{{end}}", "{{.A.B}}", "{{or .A 1}}", "{{", "{{.A", "{{- .A}}", "{{\"a}}"] {
            assert!(render(text).unwrap_err().contains("more of a template"), "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_replace() {
        assert_eq!(shell_variable("a $HOME/b"), Some("HOME"));
        assert_eq!(shell_variable("a ${HOME}"), Some("HOME"));
        assert_eq!(shell_variable("a $1 costs"), None);
        assert_eq!(shell_variable("a"), None);
    }
}
