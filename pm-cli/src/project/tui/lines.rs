//! The last lines of a service: a ring that knows where lines begin and end, and nothing else of them.

use std::collections::VecDeque;

/// So many lines of a service are kept: more than anybody scrolls through. The log has them all.
pub const MOST_LINES: usize = 10_000;

/// So many bytes of a service are kept, where its lines are long.
pub const MOST_BYTES: usize = 4 << 20;

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Printed to standard output.
    Stdout,
    /// Printed to standard error.
    Stderr,
    /// Nothing that was printed: so many lines are missing here.
    Missed(u64),
}

/// A line, or a part of one that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// As it was printed, without its line break.
    pub text: &'a str,
    /// What it is.
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The number of its piece, from the first that ever came.
    piece: u64,
    begin: u32,
    end: u32,
    kind: Kind,
}

/// The last lines. Each has a number, from 0 for the first that ever came, which stays its own when others are forgotten.
#[derive(Debug, Default)]
pub struct Lines {
    /// As they came: a line costs a slot, and no allocation.
    pieces: VecDeque<Box<str>>,
    first_piece: u64,
    slots: VecDeque<Slot>,
    first: u64,
    bytes: usize,
}

impl Lines {
    /// The number of the oldest line that is kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next line will have.
    pub fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The line of this number, if it is kept.
    pub fn get(&self, number: u64) -> Option<Line<'_>> {
        let slot = self.slots.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?;
        let text = match slot.kind {
            Kind::Missed(_) => "",
            _ => {
                let piece = self.pieces.get(usize::try_from(slot.piece.checked_sub(self.first_piece)?).ok()?)?;
                piece.get(slot.begin as usize..slot.end as usize)?
            }
        };
        Some(Line { text, kind: slot.kind })
    }

    /// Takes lines as they came. Those of a piece that would be forgotten with its last ones are not even looked for.
    pub fn push(&mut self, text: String, is_stderr: bool, missed: u64) {
        if missed > 0 {
            self.put(Slot { piece: 0, begin: 0, end: 0, kind: Kind::Missed(missed) });
        }
        if text.is_empty() || u32::try_from(text.len()).is_err() {
            return;
        }
        let kind = if is_stderr { Kind::Stderr } else { Kind::Stdout };
        let piece = self.first_piece + self.pieces.len() as u64;
        let end = text.strip_suffix('\n').unwrap_or(&text).len();
        let breaks = memchr::memchr_iter(b'\n', &text.as_bytes()[..end]).count();
        let skipped = (breaks + 1).saturating_sub(MOST_LINES);
        let mut begin = 0;
        if skipped > 0 {
            // They had numbers, as all lines do; and none that was there before is kept.
            self.first = self.end() + skipped as u64;
            self.slots.clear();
            let last = memchr::memchr_iter(b'\n', &text.as_bytes()[..end]).nth(skipped - 1);
            begin = last.map_or(0, |at| at + 1);
        }
        for at in memchr::memchr_iter(b'\n', &text.as_bytes()[begin..end])
            .map(|at| begin + at)
            .chain([end])
            .collect::<Vec<_>>()
        {
            // They fit: the length of the text does.
            let (from, to) = (u32::try_from(begin).unwrap_or(u32::MAX), u32::try_from(at).unwrap_or(u32::MAX));
            self.put(Slot { piece, begin: from, end: to, kind });
            begin = at + 1;
        }
        self.bytes += text.len();
        self.pieces.push_back(text.into_boxed_str());
        self.forget_pieces();
        while self.bytes > MOST_BYTES && self.pieces.len() > 1 {
            let oldest = self.first_piece;
            while self.slots.front().is_some_and(|slot| matches!(slot.kind, Kind::Missed(_)) || slot.piece <= oldest) {
                self.slots.pop_front();
                self.first += 1;
            }
            self.forget_pieces();
        }
    }

    fn put(&mut self, slot: Slot) {
        if self.slots.len() >= MOST_LINES {
            self.slots.pop_front();
            self.first += 1;
        }
        self.slots.push_back(slot);
    }

    /// Forgets the pieces of which no line is kept.
    fn forget_pieces(&mut self) {
        let is_of_piece = |slot: &&Slot| !matches!(slot.kind, Kind::Missed(_));
        let needed = self.slots.iter().find(is_of_piece).map_or(u64::MAX, |slot| slot.piece);
        while self.first_piece < needed
            && let Some(piece) = self.pieces.pop_front()
        {
            self.bytes -= piece.len();
            self.first_piece += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &Lines) -> Vec<String> {
        (lines.first()..lines.end()).map(|number| lines.get(number).unwrap().text.to_string()).collect()
    }

    #[test]
    fn lines_of_pieces() {
        let mut lines = Lines::default();
        lines.push("a\n\nb\n".into(), false, 0);
        lines.push("c".into(), true, 0);
        lines.push("d\n".into(), false, 7);
        lines.push(String::new(), false, 0);
        assert_eq!(all(&lines), ["a", "", "b", "c", "", "d"]);
        assert_eq!(lines.get(3).unwrap().kind, Kind::Stderr);
        assert_eq!(lines.get(4).unwrap().kind, Kind::Missed(7));
        assert_eq!(lines.get(6), None);
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_others_keep_their_numbers() {
        // Pieces of all sizes, against a model that keeps everything.
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let (mut lines, mut model) = (Lines::default(), Vec::<String>::new());
        for _ in 0..300 {
            let count = [0, 1, 3, 500, 12_000][random(5) as usize];
            let length = [0, 5, 300, 5_000][random(if count > 1000 { 2 } else { 4 }) as usize];
            let own: Vec<String> = (0..count).map(|n| format!("{}{}", model.len() + n, "x".repeat(length))).collect();
            lines.push(own.iter().map(|line| format!("{line}\n")).collect(), false, 0);
            model.extend(own);
            assert!(lines.slots.len() <= MOST_LINES && lines.bytes() <= MOST_BYTES + (3 << 20), "{}", lines.bytes());
            assert_eq!(lines.bytes(), lines.pieces.iter().map(|piece| piece.len()).sum::<usize>());
            assert_eq!(lines.end(), model.len() as u64);
            for number in [lines.first(), (lines.first() + lines.end()) / 2, lines.end().saturating_sub(1)] {
                let expected = if lines.is_empty() { None } else { model.get(number as usize).map(String::as_str) };
                assert_eq!(lines.get(number).map(|line| line.text), expected);
            }
        }
        assert!(lines.first() > 0);
    }
}
