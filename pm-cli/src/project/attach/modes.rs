//! What a program has made of the terminal, and how the user gets it back from one that goes on without it.

use std::sync::atomic::{AtomicU16, Ordering};

/// The modes that show another screen. Each has to be left by its own number.
const SCREENS: [u16; 3] = [47, 1047, 1049];

/// The one of them that is set; 0 is none. For whoever gives the terminal back, which may be a panic or a signal.
static SCREEN: AtomicU16 = AtomicU16::new(0);

/// What is harmless where nothing of it is so: no frame is held back; the mouse and the focus are not told of; a paste is no bracket; keys are as usual; lines wrap; nothing is
/// inserted; the whole screen scrolls; letters are letters; no colours; the cursor is seen, as it was.
const USUAL: &str = "\x1b[?2026l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1004l\x1b[?2004l\x1b[?1l\x1b>\x1b[>4m\
    \x1b[=0;1u\x1b[?7h\x1b[4l\x1b7\x1b[r\x1b8\x1b(B\x0f\x1b[0m\x1b[?25h\x1b[0 q";

/// Follows what is printed. Only the screen needs that: to leave one that is not shown would move the cursor.
#[derive(Debug, Default)]
pub(super) struct Modes {
    at: At,
    /// The numbers of a sequence, which are as many as any program gives at once.
    numbers: [u16; 16],
    count: usize,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Text,
    Escape,
    Bracket,
    Numbers,
}

impl Modes {
    pub(super) fn see(&mut self, printed: &[u8]) {
        for &byte in printed {
            self.at = match (&self.at, byte) {
                (_, 0x1b) => At::Escape,
                (At::Escape, b'[') => At::Bracket,
                (At::Bracket, b'?') => {
                    (self.numbers, self.count) = ([0; 16], 0);
                    At::Numbers
                }
                (At::Numbers, b'0'..=b'9') => {
                    if let Some(number) = self.numbers.get_mut(self.count) {
                        *number = number.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                    }
                    At::Numbers
                }
                (At::Numbers, b';') => {
                    self.count += 1;
                    At::Numbers
                }
                (At::Numbers, b'h' | b'l') => {
                    for number in self.numbers.iter().filter(|number| SCREENS.contains(number)) {
                        // Relaxed: nothing else is told by it.
                        SCREEN.store(if byte == b'h' { *number } else { 0 }, Ordering::Relaxed);
                    }
                    At::Text
                }
                // A terminal that is begun anew.
                (At::Escape, b'c') => {
                    SCREEN.store(0, Ordering::Relaxed);
                    At::Text
                }
                _ => At::Text,
            };
        }
    }
}

/// What makes a terminal usable again.
pub(super) fn usual() -> Vec<u8> {
    let screen = SCREEN.swap(0, Ordering::Relaxed);
    let leave = if screen == 0 { String::new() } else { format!("\x1b[?{screen}l") };
    (leave + USUAL).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, for there is one terminal.
    #[test]
    fn another_screen_is_left_where_it_is_shown() {
        let left = |parts: &[&str]| {
            let mut modes = Modes::default();
            parts.iter().for_each(|part| modes.see(part.as_bytes()));
            let usual = String::from_utf8(usual()).unwrap();
            usual.strip_suffix(USUAL).unwrap().to_string()
        };
        assert_eq!(left(&["text"]), "");
        assert_eq!(left(&["a\x1b[?10", "49hb"]), "\x1b[?1049l");
        assert_eq!(left(&["\x1b[?25;1047h"]), "\x1b[?1047l");
        assert_eq!(left(&["\x1b[?47h\x1b[?47l"]), "");
        assert_eq!(left(&["\x1b[?1049h\x1bc"]), "");
        assert_eq!(left(&["\x1b[?1049\x1b[0mh", "[?1049h", "\x1b[1049h", "\x1b[?999999h"]), "");
        assert_eq!(left(&[&format!("\x1b[?{}1049h", "1;".repeat(40))]), "", "more than anybody says");
        // Programs that draw on the whole terminal end well: the vt100 of another terminal says so too.
        let mut parser = vt100::Parser::new(24, 80, 0);
        parser.process(b"line\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?1h\x1b[31mdrawn");
        let mut modes = Modes::default();
        modes.see(b"\x1b[?1049h");
        parser.process(&usual());
        let screen = parser.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste());
        assert!(!screen.application_cursor() && screen.fgcolor() == vt100::Color::Default);
        assert_eq!((screen.contents().as_str(), screen.cursor_position()), ("line", (0, 4)));
    }
}
