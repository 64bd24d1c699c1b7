//! Where something stands in a file, for people.

use std::fmt;

use super::Wrong;

/// A line of a file with something wrong in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1; none where the whole file is meant.
    line: Option<usize>,
    column: usize,
    /// The line, and how many characters of it are meant.
    text: String,
    width: usize,
    problem: String,
}

impl Place {
    /// Finds it.
    pub fn of(text: &str, wrong: Wrong) -> Self {
        let Some(at) = wrong.at else {
            return Place { line: None, column: 0, text: String::new(), width: 0, problem: wrong.problem };
        };
        let start = floor(text, at.start);
        let begin = text[..start].rfind('\n').map_or(0, |end| end + 1);
        let end = text[start..].find('\n').map_or(text.len(), |end| start + end);
        let line = text[..start].matches('\n').count() + 1;
        let column = text[begin..start].chars().count() + 1;
        let width = text[start..floor(text, at.end).clamp(start, end)].chars().count().max(1);
        Place { line: Some(line), column, text: text[begin..end].into(), width, problem: wrong.problem }
    }
}

/// The last place at or before this one where a character begins.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// `12:5: the problem`, and below it the line with a mark.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(line) = self.line else { return write!(f, " {}", self.problem) };
        writeln!(f, "{line}:{}: {}", self.column, self.problem)?;
        let number = line.to_string();
        // A tab stays one, so that the mark stands below what it means.
        let before = self.text.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' });
        writeln!(f, "  {number} | {}", self.text)?;
        write!(f, "  {} | {}{}", " ".repeat(number.len()), before.collect::<String>(), "^".repeat(self.width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_shown_with_a_mark() {
        let text = "a = 1\n\tb = \"ü\" # x\n";
        let at = text.find("\"ü\"").unwrap();
        let place = Place::of(text, Wrong { at: Some(at..at + 4), problem: "no".into() });
        assert_eq!(place.to_string(), "2:6: no\n  2 | \tb = \"ü\" # x\n    | \t    ^^^");
        assert_eq!(Place::of(text, Wrong { at: None, problem: "no".into() }).to_string(), " no");
        assert_eq!(
            Place::of("", Wrong { at: Some(9..12), problem: "no".into() }).to_string(),
            "1:1: no\n  1 | \n    | ^"
        );
    }
}
