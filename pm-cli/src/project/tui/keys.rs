//! What each key means.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// A key, without what no key here depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those on the keys")]
pub enum Key {
    Char(char),
    Ctrl(char),
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    BackTab,
    Enter,
    Escape,
    Backspace,
}

impl Key {
    /// The key that a terminal tells of, if it is one of these.
    pub fn new(event: KeyEvent) -> Option<Self> {
        Some(match event.code {
            KeyCode::Char(c) if event.modifiers.contains(KeyModifiers::CONTROL) => Key::Ctrl(c),
            KeyCode::Char(c) => Key::Char(c),
            KeyCode::Up => Key::Up,
            KeyCode::Down => Key::Down,
            KeyCode::Left => Key::Left,
            KeyCode::Right => Key::Right,
            KeyCode::PageUp => Key::PageUp,
            KeyCode::PageDown => Key::PageDown,
            KeyCode::Home => Key::Home,
            KeyCode::End => Key::End,
            KeyCode::Tab => Key::Tab,
            KeyCode::BackTab => Key::BackTab,
            KeyCode::Enter => Key::Enter,
            KeyCode::Esc => Key::Escape,
            KeyCode::Backspace => Key::Backspace,
            _ => return None,
        })
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "HELP has the words")]
pub enum Command {
    Next,
    Previous,
    Start,
    Stop,
    Restart,
    More,
    Fewer,
    PageUp,
    PageDown,
    LineUp,
    LineDown,
    Left,
    Right,
    Top,
    Follow,
    Search,
    NextMatch,
    PreviousMatch,
    Wrap,
    Copy,
    Mouse,
    Detail,
    Events,
    Help,
    Back,
    Redraw,
    Leave,
    Down,
}

/// What a key means. In the copy mode there is only the log, so the arrows scroll: a wheel says arrows, where a terminal is left its mouse.
pub fn meaning(key: Key, is_copying: bool) -> Option<Command> {
    let command = match key {
        Key::Up | Key::Char('k') if is_copying => Command::LineUp,
        Key::Down | Key::Char('j') if is_copying => Command::LineDown,
        Key::Tab | Key::Down | Key::Char('j') => Command::Next,
        Key::BackTab | Key::Up | Key::Char('k') => Command::Previous,
        Key::Char('s') => Command::Start,
        Key::Char('x') => Command::Stop,
        Key::Char('r') => Command::Restart,
        Key::Char('+' | '=') => Command::More,
        Key::Char('-') => Command::Fewer,
        Key::PageUp | Key::Ctrl('b') => Command::PageUp,
        Key::PageDown | Key::Ctrl('f') | Key::Char(' ') => Command::PageDown,
        Key::Char('K') | Key::Ctrl('y') => Command::LineUp,
        Key::Char('J') | Key::Ctrl('e') => Command::LineDown,
        Key::Left | Key::Char('h') => Command::Left,
        Key::Right | Key::Char('l') => Command::Right,
        Key::Home | Key::Char('g') => Command::Top,
        Key::End | Key::Char('G' | 'f') => Command::Follow,
        Key::Char('/') => Command::Search,
        Key::Char('n') => Command::NextMatch,
        Key::Char('N') => Command::PreviousMatch,
        Key::Char('w') => Command::Wrap,
        Key::Char('c') => Command::Copy,
        Key::Char('m') => Command::Mouse,
        Key::Char('d') => Command::Detail,
        Key::Char('e') => Command::Events,
        Key::Char('?') => Command::Help,
        Key::Escape => Command::Back,
        Key::Ctrl('l') => Command::Redraw,
        Key::Char('q') | Key::Ctrl('c' | 'd') => Command::Leave,
        Key::Char('Q') => Command::Down,
        _ => return None,
    };
    // Nobody is to stop a service that is not on the screen.
    let is_about_services = matches!(
        command,
        Command::Next
            | Command::Previous
            | Command::Start
            | Command::Stop
            | Command::Restart
            | Command::More
            | Command::Fewer
    );
    (!is_copying || !is_about_services).then_some(command)
}

/// The keys, as the help shows them.
pub const HELP: [(&str, &str); 17] = [
    ("Tab Up Down j k", "select a service"),
    ("s x r", "start, stop, restart it"),
    ("+ -", "one process more of it, or fewer"),
    ("PgUp PgDn K J", "scroll its log, by pages or lines"),
    ("Home", "to the oldest line that is kept here; pm logs has all"),
    ("End f", "to the newest, and follow"),
    ("Left Right", "scroll sideways"),
    ("/ n N", "search; next and previous match"),
    ("w", "wrap long lines"),
    ("c", "copy: the log alone, at rest, to select with the mouse"),
    ("m", "the wheel scrolls; the terminal does not select then"),
    ("d", "details of the service"),
    ("e", "the events of all services"),
    ("Esc", "back to the log"),
    ("?", "these keys"),
    ("q Ctrl-C", "leave; the project stays up"),
    ("Q", "stop the project"),
];
