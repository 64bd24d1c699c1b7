//! Files of variables (`.env`), and `${NAME}` in the texts of a configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// Reads a file of variables: `NAME=value`, a line each.
///
/// # Errors
/// What is wrong, with the line.
pub fn read(path: &Path) -> Result<Vec<(String, String)>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
    parse(&text).map_err(|(line, problem)| format!("{}:{line}: {problem}", path.display()))
}

/// `NAME=value`, with or without `export` before it. An empty line or one that begins with `#` says nothing. A value in single quotes is
/// what it is; in double quotes `\n`, `\t`, `\"`, `\\` and `\$` are what they are in a shell, and it may go over several lines; without
/// quotes it ends before ` #`. Nothing in it is replaced.
fn parse(text: &str) -> Result<Vec<(String, String)>, (usize, String)> {
    let mut variables = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let line_at = |rest: &str| text[..text.len() - rest.len()].matches('\n').count() + 1;
    while !rest.is_empty() {
        let (line, following) = rest.split_once('\n').unwrap_or((rest, ""));
        let number = line_at(rest);
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            rest = following;
            continue;
        }
        let at_name = rest.trim_start();
        let at_name = at_name.strip_prefix("export ").map_or(at_name, str::trim_start);
        let Some((name, after)) = at_name.split_once('=').filter(|(name, _)| !name.contains('\n')) else {
            return Err((number, "this is no variable: write NAME=value".into()));
        };
        let name = name.trim_end();
        let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !is_name {
            return Err((number, "what stands before the = cannot be the name of a variable".into()));
        }
        let after = after.trim_start_matches([' ', '\t']);
        let (value, left) = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                quoted(&after[1..], quote).ok_or_else(|| (number, format!("the quote of {name} is never closed")))?
            }
            _ => {
                let (value, left) = after.split_once('\n').unwrap_or((after, ""));
                let value = value.find(" #").map_or(value, |end| &value[..end]);
                variables.push((name.to_string(), value.trim().to_string()));
                rest = left;
                continue;
            }
        };
        let (tail, following) = left.split_once('\n').unwrap_or((left, ""));
        if !(tail.trim().is_empty() || tail.trim_start().starts_with('#')) {
            return Err((number, format!("something stands behind the value of {name}")));
        }
        variables.push((name.to_string(), value));
        rest = following;
    }
    Ok(variables)
}

/// What stands before the closing quote, and what after it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((value, &text[at + 1..])),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                known @ ('"' | '\\' | '$' | '`') => value.push(known),
                other => value.extend(['\\', other]),
            },
            _ => value.push(c),
        }
    }
    None
}

/// The variables that `${NAME}` may stand for: those of the file, and behind them those of this process.
#[derive(Debug, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// These on top of those of this process.
    pub fn new(own: impl IntoIterator<Item = (String, String)>) -> Self {
        Variables(own.into_iter().collect())
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0
            .get(name)
            .cloned()
            .or_else(|| std::env::var_os(name).and_then(|value: OsString| value.into_string().ok()))
    }

    /// Puts values in place of `${NAME}`, or of `${NAME:-default}` where there is none. `$$` is a dollar sign; a dollar sign before anything else is
    /// itself, for a shell may want it.
    ///
    /// # Errors
    /// A name without a value and without a default, and a brace that is never closed.
    pub fn expand(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            expanded.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                expanded.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let (inside, after) =
                    after.split_once('}').ok_or_else(|| format!("the brace of \"${{{after}\" is never closed"))?;
                let (name, default) = match inside.split_once(":-") {
                    Some((name, default)) => (name, Some(default)),
                    None => (inside, None),
                };
                let value = self.get(name).filter(|value| !value.is_empty() || default.is_none());
                let value = value.or_else(|| default.map(Into::into)).ok_or_else(|| {
                    format!("the variable {name} is not set; write ${{{name}:-something}} for a value where it is not")
                })?;
                expanded.push_str(&value);
                rest = after;
            } else {
                expanded.push('$');
            }
        }
        expanded.push_str(rest);
        Ok(expanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap()
    }

    fn of(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn files_of_variables() {
        let text = "# a\n\nA=1\nexport B = two words # said\nC='$A # no'\nD=\"a\\n\\\"b\\\" \\$x\"\nE=\nF=\"two\nlines\" # x\nG=a#b\r\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "$A # no"),
            ("D", "a\n\"b\" $x"),
            ("E", ""),
            ("F", "two\nlines"),
            ("G", "a#b"),
        ];
        assert_eq!(pairs(text), of(&expected));
        assert_eq!(pairs("\u{feff}A=1"), of(&[("A", "1")]));
    }

    #[test]
    fn what_is_no_variable_is_an_error_with_its_line() {
        assert_eq!(parse("A=1\nB\n").unwrap_err(), (2, "this is no variable: write NAME=value".into()));
        assert_eq!(parse("\n1A=1").unwrap_err().0, 2);
        assert_eq!(parse("A=\"x\n").unwrap_err(), (1, "the quote of A is never closed".into()));
        assert_eq!(parse("A='x' y").unwrap_err(), (1, "something stands behind the value of A".into()));
    }

    #[test]
    fn texts_are_expanded() {
        let variables = Variables::new(of(&[("A", "1"), ("E", "")]));
        let expand = |text| variables.expand(text);
        assert_eq!(expand("x${A}y$$z $HOME $").unwrap(), "x1y$z $HOME $");
        assert_eq!(expand("${PM_NOT_SET:-d} ${E:-d} [${E}]").unwrap(), "d d []");
        assert!(expand("${PM_NOT_SET}").unwrap_err().contains("PM_NOT_SET is not set"));
        assert!(expand("${A").unwrap_err().contains("never closed"));
    }
}
