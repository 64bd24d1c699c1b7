//! A line as it is drawn: its colours as styles, other control characters escaped, and how many cells it takes.

use std::borrow::Cow;

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

use crate::project::screen::colour_length;

/// The columns between two stops of a tab.
const TAB: usize = 8;

/// What takes one or two cells, as it is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glyph {
    /// A character with all that combines with it.
    pub symbol: Box<str>,
    /// How many cells it takes.
    pub width: u16,
    /// In which style.
    pub style: Style,
}

/// Text without colours, and with what is no text escaped. Borrowed where it is the same.
pub fn plain(line: &str) -> Cow<'_, str> {
    if is_plain(line) {
        return Cow::Borrowed(line);
    }
    let mut text = String::with_capacity(line.len());
    runs(line, |run, _| text.push_str(run));
    Cow::Owned(text)
}

/// Whether a line is shown as it stands.
fn is_plain(line: &str) -> bool {
    line.bytes().all(|byte| (b' '..0x7f).contains(&byte))
}

/// Calls with each run of text that has one style, and with each tab: ESC [ … m changes it, and whatever else would control a terminal is escaped.
fn runs(line: &str, mut each: impl FnMut(&str, Style)) {
    let mut rest = line.strip_suffix('\r').unwrap_or(line);
    let mut style = Style::new();
    while !rest.is_empty() {
        let end = rest.find(char::is_control).unwrap_or(rest.len());
        if end > 0 {
            each(&rest[..end], style);
            rest = &rest[end..];
        } else if let Some(length) = colour_length(rest) {
            style = changed(style, &rest[2..length - 1]);
            rest = &rest[length..];
        } else if let Some(after) = rest.strip_prefix('\t') {
            each("\t", style);
            rest = after;
        } else if let Some(c) = rest.chars().next() {
            each(&c.escape_default().collect::<String>(), style);
            rest = &rest[c.len_utf8()..];
        }
    }
}

/// A style after the numbers of SGR. What terminals do not agree about is left alone.
fn changed(mut style: Style, numbers: &str) -> Style {
    let mut numbers = numbers.split([';', ':']).map(|number| number.parse::<u8>().unwrap_or(0));
    while let Some(number) = numbers.next() {
        style = match number {
            0 => Style::new(),
            1 => style.add_modifier(Modifier::BOLD),
            2 => style.add_modifier(Modifier::DIM),
            3 => style.add_modifier(Modifier::ITALIC),
            4 => style.add_modifier(Modifier::UNDERLINED),
            7 => style.add_modifier(Modifier::REVERSED),
            9 => style.add_modifier(Modifier::CROSSED_OUT),
            22 => style.remove_modifier(Modifier::BOLD | Modifier::DIM),
            23 => style.remove_modifier(Modifier::ITALIC),
            24 => style.remove_modifier(Modifier::UNDERLINED),
            27 => style.remove_modifier(Modifier::REVERSED),
            29 => style.remove_modifier(Modifier::CROSSED_OUT),
            30..=37 => style.fg(Color::Indexed(number - 30)),
            40..=47 => style.bg(Color::Indexed(number - 40)),
            90..=97 => style.fg(Color::Indexed(number - 90 + 8)),
            100..=107 => style.bg(Color::Indexed(number - 100 + 8)),
            38 | 48 => {
                let colour = match numbers.next() {
                    Some(5) => numbers.next().map(Color::Indexed),
                    Some(2) => match (numbers.next(), numbers.next(), numbers.next()) {
                        (Some(red), Some(green), Some(blue)) => Some(Color::Rgb(red, green, blue)),
                        _ => None,
                    },
                    _ => None,
                };
                match colour {
                    Some(colour) if number == 38 => style.fg(colour),
                    Some(colour) => style.bg(colour),
                    None => style,
                }
            }
            39 => Style { fg: None, ..style },
            49 => Style { bg: None, ..style },
            _ => style,
        };
    }
    style
}

/// The cells of a line, up to this many columns: the rest is not looked at.
pub fn glyphs(line: &str, most: usize) -> Vec<Glyph> {
    let mut glyphs = Vec::new();
    let mut column = 0;
    runs(line, |run, style| {
        if column >= most {
            return;
        }
        if run == "\t" {
            for _ in 0..TAB - column % TAB {
                glyphs.push(Glyph { symbol: " ".into(), width: 1, style });
                column += 1;
            }
            return;
        }
        for grapheme in Span::raw(run).styled_graphemes(Style::new()) {
            if column >= most {
                return;
            }
            let symbol = grapheme.symbol;
            let width = if symbol.len() == 1 { 1 } else { Span::raw(symbol).width() };
            if width > 0 {
                glyphs.push(Glyph { symbol: symbol.into(), width: u16::try_from(width).unwrap_or(2), style });
                column += width;
            }
        }
    });
    glyphs
}

/// Where the rows of a line begin and end, in glyphs, where it is wrapped at this width. At least one.
pub fn rows(glyphs: &[Glyph], width: u16) -> Vec<std::ops::Range<usize>> {
    let width = width.max(1);
    let (mut rows, mut begin, mut used) = (Vec::new(), 0, 0);
    for (at, glyph) in glyphs.iter().enumerate() {
        if used + glyph.width > width && at > begin {
            rows.push(begin..at);
            (begin, used) = (at, 0);
        }
        used += glyph.width;
    }
    rows.push(begin..glyphs.len());
    rows
}

/// How many rows a line takes where it is wrapped at this width.
pub fn height(line: &str, width: u16) -> usize {
    let width = width.max(1);
    if is_plain(line) {
        return line.len().div_ceil(usize::from(width)).max(1);
    }
    rows(&glyphs(line, usize::MAX), width).len()
}

/// Finds text in a line that is plain: in any case, unless the text has a capital letter.
pub fn find(line: &str, text: &str) -> Option<std::ops::Range<usize>> {
    if text.is_empty() {
        return None;
    }
    if text.chars().any(char::is_uppercase) {
        return memchr::memmem::find(line.as_bytes(), text.as_bytes()).map(|at| at..at + text.len());
    }
    let (line, text) = (line.as_bytes(), text.as_bytes());
    let last = line.len().checked_sub(text.len())?;
    let (small, large) = (text[0], text[0].to_ascii_uppercase());
    let found = memchr::memchr2_iter(small, large, &line[..=last])
        .find(|&at| line[at..at + text.len()].eq_ignore_ascii_case(text))?;
    Some(found..found + text.len())
}

/// Whether a line, as it came, has this text where people see it.
pub fn has(line: &str, text: &str) -> bool {
    // Most have no such byte at all, also between colours.
    find(&plain(line), text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        glyphs(line, usize::MAX).iter().map(|glyph| &*glyph.symbol).collect()
    }

    #[test]
    fn control_characters_are_escaped_and_colours_are_styles() {
        assert_eq!(shown("\x1b[2Jgone\x1b]0;title\x07\r"), "\\u{1b}[2Jgone\\u{1b}]0;title\\u{7}");
        assert_eq!(plain("a\x1b[1;31mred\x1b[0m\0"), "ared\\u{0}");
        let red = glyphs("\x1b[1;31mr\x1b[0mx", 9);
        assert_eq!(red[0].style, Style::new().fg(Color::Indexed(1)).add_modifier(Modifier::BOLD));
        assert_eq!(red[1].style, Style::new());
        assert_eq!(glyphs("\x1b[38;5;200mr", 9)[0].style.fg, Some(Color::Indexed(200)));
        assert_eq!(glyphs("\x1b[48:2:1:2:3mr", 9)[0].style.bg, Some(Color::Rgb(1, 2, 3)));
        assert_eq!(glyphs("\x1b[38;5mr", 9)[0].style.fg, None);
    }

    #[test]
    fn tabs_and_wide_characters_take_their_cells() {
        assert_eq!(shown("a\tb"), "a       b");
        let wide = glyphs("日本", 9);
        assert_eq!(wide.iter().map(|glyph| glyph.width).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(rows(&wide, 3), [0..1, 1..2]);
        assert_eq!(rows(&wide, 1), [0..1, 1..2]);
        assert_eq!(rows(&[], 5).len(), 1);
        assert_eq!(glyphs(&"x".repeat(1000), 7).len(), 7);
    }

    #[test]
    fn heights_are_those_of_the_rows() {
        for line in ["", "abc", "abcd", "abcde", "日本日本", "a\tb", "\x1b[31mabcd\x1b[0me"] {
            for width in 1..10 {
                assert_eq!(height(line, width), rows(&glyphs(line, usize::MAX), width).len(), "{line:?} {width}");
            }
        }
    }

    #[test]
    fn texts_are_found() {
        assert_eq!(find("An Error", "error"), Some(3..8));
        assert_eq!(find("An Error", "Error"), Some(3..8));
        assert_eq!(find("an error", "Error"), None);
        assert_eq!(find("ab", "abc"), None);
        assert!(has("e\x1b[31mrr\x1b[0mor", "error"));
    }
}
