//! The machine behind the interface: keys and what the project says come in, questions to the project go out. It knows no terminal, no socket and no clock,
//! and [`view`](super::view) draws it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ratatui::layout::Rect;

use super::keys::{self, Command, HELP, Key};
use super::lines::{Kind, Lines};
use super::text;
use crate::project::wire::{EventRow, OutputRow, Question, Row};

/// So many events are kept.
const MOST_EVENTS: usize = 1000;

/// So many services have lines that are kept: with more than that, those that come later have none here.
const MOST_LOGS: usize = 1000;

/// How long a message stands.
const MESSAGE_STANDS: Duration = Duration::from_secs(6);

/// A share of the processor is that of this time at least. Over shorter ones the kernel counts too coarsely.
const SHARE_OF: Duration = Duration::from_millis(700);

/// So many characters are searched for at most.
const LONGEST_SEARCH: usize = 200;

/// A service that is not listed so many times has gone, and its lines with it. Once says nothing: its first line may have come before the list with it.
const ABSENCES: u8 = 3;

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// A key was pressed.
    Key(Key),
    /// The wheel was turned: up, or down.
    Wheel {
        /// Away from the user.
        up: bool,
    },
    /// The terminal has this size now.
    Resized {
        /// In columns.
        width: u16,
        /// In rows.
        height: u16,
    },
    /// All services as they are now.
    Services(Vec<Row>),
    /// Something happened.
    Event(EventRow),
    /// Something was printed.
    Output(OutputRow),
    /// What was asked for is done, with what there is to say about it; or could not be.
    Answered {
        /// What was asked for, in words.
        what: String,
        /// What came of it.
        done: Result<Vec<String>, String>,
    },
    /// The project has ended.
    Ended,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Ask the project, and say what it answers.
    Ask {
        /// What is asked for, in words.
        what: String,
        /// What is asked.
        question: Question,
    },
    /// Ask for the list of services soon, not only at its next time.
    Look,
    /// From now on the terminal tells of the mouse, or does not.
    Mouse(bool),
    /// Draw all anew, whatever stands on the terminal.
    Redraw,
    /// It is over.
    Leave(Leave),
}

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The user has left. The project is up.
    StaysUp,
    /// The user has left while the project stops.
    Stopping,
    /// The project was stopped from here.
    Stopped,
    /// The project has ended.
    Ended,
}

/// What stands below the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    /// What the selected service prints.
    Log,
    /// What is known of it.
    Detail,
    /// What happened to all.
    Events,
    /// The keys.
    Help,
}

/// What keys mean at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What [`keys::meaning`] says.
    Normal,
    /// They are the text that is searched for.
    Search(String),
    /// Whether the project is to be stopped.
    Confirm,
}

/// A service, as it was last heard of.
#[derive(Clone, Debug)]
pub struct Shown {
    /// As the project says.
    pub row: Row,
    /// The share of one processor that it has, in percent.
    pub cpu: Option<f64>,
    /// The processor time that it had had when.
    measured: Option<(u64, Duration)>,
}

/// Which line stands first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Whichever it takes for the newest to stand last.
    Follow,
    /// This one, from this of its rows on.
    At(u64, usize),
}

/// What a service has printed, and where in it the user is.
#[derive(Debug)]
pub struct Log {
    /// Its lines.
    pub lines: Lines,
    place: Place,
    absences: u8,
}

impl Default for Log {
    fn default() -> Self {
        Log { lines: Lines::default(), place: Place::Follow, absences: 0 }
    }
}

/// Where everything stands. What has no room has no height.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// One row.
    pub title: Rect,
    /// One row.
    pub header: Rect,
    /// The services.
    pub list: Rect,
    /// One row between them and the pane.
    pub bar: Rect,
    /// What [`Pane`] says.
    pub pane: Rect,
    /// One row, also for messages and questions.
    pub hint: Rect,
}

/// The interface.
#[derive(Debug)]
pub struct App {
    project: String,
    has_colours: bool,
    size: (u16, u16),
    services: Vec<Shown>,
    selected: Option<String>,
    logs: BTreeMap<String, Log>,
    events: VecDeque<EventRow>,
    /// How far the pane is scrolled that has no lines of its own: up from the end for events, down from the beginning for others.
    scrolled: usize,
    pane: Pane,
    mode: Mode,
    search: String,
    found: Option<u64>,
    left: u16,
    wraps: bool,
    copies: bool,
    /// Where the log was before it was copied.
    before_copy: Place,
    has_mouse: bool,
    message: Option<(String, bool, Duration)>,
    is_ending: bool,
    is_stale: bool,
}

impl App {
    /// Of a project of this name, on a terminal of this size. Without colours there are only bold and reversed letters.
    pub fn new(project: impl Into<String>, has_colours: bool, (width, height): (u16, u16)) -> Self {
        App {
            project: project.into(),
            has_colours,
            size: (width, height),
            services: Vec::new(),
            selected: None,
            logs: BTreeMap::new(),
            events: VecDeque::new(),
            scrolled: 0,
            pane: Pane::Log,
            mode: Mode::Normal,
            search: String::new(),
            found: None,
            left: 0,
            wraps: false,
            copies: false,
            before_copy: Place::Follow,
            has_mouse: false,
            message: None,
            is_ending: false,
            is_stale: true,
        }
    }

    /// The name of the project.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Whether it is drawn in colours.
    pub fn has_colours(&self) -> bool {
        self.has_colours
    }

    /// The services, each after those that it needs.
    pub fn services(&self) -> &[Shown] {
        &self.services
    }

    /// The service that is selected, with its place in the list.
    pub fn selected(&self) -> Option<(usize, &Shown)> {
        let label = self.selected.as_deref()?;
        self.services.iter().enumerate().find(|(_, shown)| shown.row.service == label)
    }

    /// What the selected service has printed.
    pub fn log(&self) -> Option<&Log> {
        self.logs.get(self.selected.as_deref()?)
    }

    /// What happened, the newest last.
    pub fn events(&self) -> &VecDeque<EventRow> {
        &self.events
    }

    /// What stands below the list.
    pub fn pane(&self) -> Pane {
        self.pane
    }

    /// What keys mean at the moment.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// What is searched for; empty where nothing is.
    pub fn search(&self) -> &str {
        &self.search
    }

    /// The line that was found last.
    pub fn found(&self) -> Option<u64> {
        self.found
    }

    /// How many columns are left out on the left.
    pub fn left(&self) -> u16 {
        if self.wraps { 0 } else { self.left }
    }

    /// Whether long lines go on in the next row.
    pub fn wraps(&self) -> bool {
        self.wraps
    }

    /// Whether there is only the log, as bare text.
    pub fn copies(&self) -> bool {
        self.copies
    }

    /// Whether the newest line stands last, and will.
    pub fn follows(&self) -> bool {
        self.log().is_none_or(|log| log.place == Place::Follow)
    }

    /// How far the pane is scrolled, where it is not the log.
    pub fn scrolled(&self) -> usize {
        self.scrolled
    }

    /// What there is to say, and whether it is bad.
    pub fn message(&self) -> Option<(&str, bool)> {
        self.message.as_ref().map(|(text, is_bad, _)| (text.as_str(), *is_bad))
    }

    /// Whether it has to be drawn since this was last asked.
    pub fn take_stale(&mut self) -> bool {
        std::mem::replace(&mut self.is_stale, false)
    }

    /// Where everything stands.
    pub fn areas(&self) -> Areas {
        let (width, height) = self.size;
        let mut y = 0;
        let mut take = |rows: u16| {
            let area = Rect { x: 0, y, width, height: rows.min(height - y) };
            y += area.height;
            area
        };
        let of_hint = u16::from(height >= 3);
        if self.copies {
            let pane = take(height - of_hint);
            return Areas { pane, hint: take(of_hint), ..Areas::default() };
        }
        let title = take(u16::from(height >= 10));
        let rest = height - title.height - of_hint;
        let header = take(u16::from(rest >= 8));
        let count = u16::try_from(self.services.len()).unwrap_or(u16::MAX);
        let list = take(count.min((rest / 3).max(1)));
        let bar = take(u16::from(rest >= 3));
        let pane = take(height.saturating_sub(title.height + header.height + list.height + bar.height + of_hint));
        Areas { title, header, list, bar, pane, hint: take(of_hint) }
    }

    /// Takes what comes at this time, which is counted from anywhere.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Effect> {
        if self.message.as_ref().is_some_and(|(_, _, at)| now.saturating_sub(*at) > MESSAGE_STANDS) {
            self.message = None;
            self.is_stale = true;
        }
        match input {
            Input::Output(row) => {
                self.printed(row, now);
                return Vec::new();
            }
            // What everybody else does is seen.
            _ => self.is_stale = true,
        }
        match input {
            Input::Key(key) => return self.key(key, now),
            Input::Wheel { up } => self.scroll(3, up),
            Input::Resized { width, height } => self.size = (width, height),
            Input::Services(rows) => self.listed(rows, now),
            // The next list has it.
            Input::Event(event) if event.is_sample() => {}
            Input::Event(event) => {
                if self.events.len() >= MOST_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(event);
                // Whoever looks at older ones goes on looking at them.
                if self.pane == Pane::Events && self.scrolled > 0 {
                    self.scrolled = (self.scrolled + 1).min(self.events.len());
                }
                return vec![Effect::Look];
            }
            Input::Answered { what, done } => return self.answered(&what, done, now),
            Input::Ended => {
                return vec![Effect::Leave(if self.is_ending { Leave::Stopped } else { Leave::Ended })];
            }
            Input::Output(_) => {}
        }
        Vec::new()
    }

    fn printed(&mut self, row: OutputRow, now: Duration) {
        if row.service.is_empty() {
            self.say(format!("{} pieces of output were missed; the logs have them", row.missed), true, now);
            return;
        }
        if self.logs.len() >= MOST_LOGS && !self.logs.contains_key(&row.service) {
            return;
        }
        self.is_stale |= self.selected.as_deref() == Some(&*row.service) && self.pane == Pane::Log && self.follows();
        self.logs.entry(row.service).or_default().lines.push(row.text, row.is_stderr, row.missed);
    }

    fn listed(&mut self, rows: Vec<Row>, now: Duration) {
        let place = self.selected().map_or(0, |(place, _)| place);
        let mut before: BTreeMap<String, Shown> =
            self.services.drain(..).map(|shown| (shown.row.service.clone(), shown)).collect();
        self.services = rows.into_iter().map(|row| Shown::new(before.remove(&row.service), row, now)).collect();
        for (label, log) in &mut self.logs {
            let is_listed = self.services.iter().any(|shown| shown.row.service == *label);
            log.absences = if is_listed { 0 } else { log.absences.saturating_add(1) };
        }
        self.logs.retain(|_, log| log.absences < ABSENCES);
        if self.selected().is_none() {
            let next = self.services.get(place).or(self.services.last());
            self.selected = next.map(|shown| shown.row.service.clone());
        }
    }

    fn answered(&mut self, what: &str, done: Result<Vec<String>, String>, now: Duration) -> Vec<Effect> {
        match done {
            Ok(_) if self.is_ending && what == DOWN => return vec![Effect::Leave(Leave::Stopped)],
            Ok(texts) if texts.is_empty() => self.say(format!("{what}: done"), false, now),
            Ok(texts) => self.say(texts.join("; "), true, now),
            Err(problem) => {
                self.is_ending &= what != DOWN;
                self.say(format!("{what}: {problem}"), true, now);
            }
        }
        vec![Effect::Look]
    }

    fn say(&mut self, text: String, is_bad: bool, now: Duration) {
        self.message = Some((text, is_bad, now));
        self.is_stale = true;
    }

    fn key(&mut self, key: Key, now: Duration) -> Vec<Effect> {
        match &mut self.mode {
            Mode::Search(typed) => {
                match key {
                    Key::Char(c) if typed.len() < LONGEST_SEARCH => typed.push(c),
                    Key::Backspace if typed.is_empty() => self.mode = Mode::Normal,
                    Key::Backspace => drop(typed.pop()),
                    Key::Enter => {
                        self.search = std::mem::take(typed);
                        self.mode = Mode::Normal;
                        self.found = None;
                        self.find_first(now);
                    }
                    Key::Escape | Key::Ctrl('c') => self.mode = Mode::Normal,
                    _ => {}
                }
                Vec::new()
            }
            Mode::Confirm => {
                self.mode = Mode::Normal;
                if !matches!(key, Key::Char('y' | 'Y' | 'Q')) {
                    return Vec::new();
                }
                self.is_ending = true;
                self.say("stopping the project".into(), false, now);
                vec![Effect::Ask { what: DOWN.into(), question: Question::Down { limit_ms: None } }]
            }
            Mode::Normal => match keys::meaning(key, self.copies) {
                Some(command) => self.command(command, now),
                None => Vec::new(),
            },
        }
    }

    fn command(&mut self, command: Command, now: Duration) -> Vec<Effect> {
        let page = usize::from(self.areas().pane.height).saturating_sub(1).max(1);
        match command {
            Command::Next => self.select(1),
            Command::Previous => self.select(-1),
            Command::Start | Command::Stop | Command::Restart | Command::More | Command::Fewer => {
                return self.act(command, now);
            }
            Command::PageUp => self.scroll(page, true),
            Command::PageDown => self.scroll(page, false),
            Command::LineUp => self.scroll(1, true),
            Command::LineDown => self.scroll(1, false),
            Command::Left => self.left = self.left.saturating_sub(8),
            // No line is longer than a piece.
            Command::Right => self.left = self.left.saturating_add(8).min(60_000),
            Command::Top => {
                self.scrolled = if self.pane == Pane::Events { self.events.len() } else { 0 };
                self.put(|log| Place::At(log.lines.first(), 0));
            }
            Command::Follow => {
                self.scrolled = 0;
                self.put(|_| Place::Follow);
            }
            Command::Search => {
                self.pane = Pane::Log;
                self.mode = Mode::Search(String::new());
            }
            Command::NextMatch => self.find_from(true, now),
            Command::PreviousMatch => self.find_from(false, now),
            Command::Wrap => {
                self.wraps = !self.wraps;
                // Rows are others now: the line stays.
                self.put(|log| match log.place {
                    Place::At(line, _) => Place::At(line, 0),
                    Place::Follow => Place::Follow,
                });
                self.say(format!("long lines are {}", if self.wraps { "wrapped" } else { "cut" }), false, now);
            }
            Command::Copy => self.copy(!self.copies),
            Command::Mouse => {
                self.has_mouse = !self.has_mouse;
                let text = if self.has_mouse { "the wheel scrolls" } else { "the mouse is the terminal's" };
                self.say(text.into(), false, now);
                return vec![Effect::Mouse(self.has_mouse && !self.copies)];
            }
            Command::Detail => self.show(Pane::Detail),
            Command::Events => self.show(Pane::Events),
            Command::Help => self.show(Pane::Help),
            Command::Back => {
                if self.copies {
                    self.copy(false);
                } else if self.pane != Pane::Log {
                    self.show(self.pane);
                } else {
                    self.search.clear();
                    self.found = None;
                }
            }
            Command::Redraw => return vec![Effect::Redraw],
            Command::Leave => {
                return vec![Effect::Leave(if self.is_ending { Leave::Stopping } else { Leave::StaysUp })];
            }
            Command::Down => self.mode = Mode::Confirm,
        }
        if command == Command::Copy || command == Command::Back {
            return vec![Effect::Mouse(self.has_mouse && !self.copies)];
        }
        Vec::new()
    }

    /// Shows a pane, or the log again where it is shown already.
    fn show(&mut self, pane: Pane) {
        if self.copies {
            self.copy(false);
        }
        self.pane = if self.pane == pane { Pane::Log } else { pane };
        self.scrolled = 0;
    }

    /// What is selected with a mouse must stand still, so nothing is followed meanwhile.
    fn copy(&mut self, begins: bool) {
        if begins == self.copies {
            return;
        }
        self.pane = Pane::Log;
        if begins {
            self.before_copy = self.log().map_or(Place::Follow, |log| log.place);
            self.copies = true;
            let (line, row) = self.top();
            self.put(|_| Place::At(line, row));
        } else {
            self.copies = false;
            let before = self.before_copy;
            if before == Place::Follow {
                self.put(|_| before);
            }
        }
    }

    fn select(&mut self, step: isize) {
        let Some(place) = self.selected().map(|(place, _)| place) else { return };
        let count = self.services.len();
        let next = if step > 0 { (place + 1) % count } else { (place + count - 1) % count };
        self.selected = Some(self.services[next].row.service.clone());
        self.found = None;
        self.left = 0;
        if self.pane == Pane::Detail {
            self.scrolled = 0;
        }
    }

    fn act(&mut self, command: Command, now: Duration) -> Vec<Effect> {
        let Some((_, shown)) = self.selected() else { return Vec::new() };
        let name = shown.row.name.clone();
        let replicas = self.services.iter().filter(|other| other.row.name == name).count();
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
        let names = vec![name.clone()];
        let (what, question) = match command {
            Command::Start => (format!("start {name}"), Question::Start { names, no_deps: false }),
            Command::Stop => (format!("stop {name}"), Question::Stop { names, limit_ms: None }),
            Command::Restart => (format!("restart {name}"), Question::Restart { names }),
            Command::More => {
                let replicas = replicas.saturating_add(1);
                (format!("scale {name} to {replicas}"), Question::Scale { name, replicas })
            }
            _ if replicas > 1 => {
                let replicas = replicas - 1;
                (format!("scale {name} to {replicas}"), Question::Scale { name, replicas })
            }
            _ => {
                self.say(format!("{name} has one process: x stops it"), false, now);
                return Vec::new();
            }
        };
        self.say(format!("{what} …"), false, now);
        vec![Effect::Ask { what, question }]
    }

    /// Moves the log of the selected service.
    fn put(&mut self, place: impl FnOnce(&Log) -> Place) {
        if let Some(log) = self.selected.as_deref().and_then(|label| self.logs.get_mut(label)) {
            log.place = place(log);
        }
    }

    /// The rows that a line takes.
    fn height(&self, log: &Log, line: u64) -> usize {
        match log.lines.get(line) {
            Some(line) if self.wraps && !matches!(line.kind, Kind::Missed(_)) => {
                text::height(line.text, self.areas().pane.width)
            }
            _ => 1,
        }
    }

    /// Where the log begins when its newest line stands last.
    fn top_of_end(&self, log: &Log) -> (u64, usize) {
        let mut room = usize::from(self.areas().pane.height);
        let mut line = log.lines.end();
        while line > log.lines.first() && room > 0 {
            line -= 1;
            let height = self.height(log, line);
            if height > room {
                return (line, height - room);
            }
            room -= height;
        }
        (line, 0)
    }

    /// The line that stands first, and which of its rows.
    pub fn top(&self) -> (u64, usize) {
        let Some(log) = self.log() else { return (0, 0) };
        match log.place {
            Place::Follow => self.top_of_end(log),
            // What was forgotten meanwhile cannot be shown.
            Place::At(line, _) if line < log.lines.first() => (log.lines.first(), 0),
            Place::At(line, row) => (line, row).min(self.top_of_end(log)),
        }
    }

    fn scroll(&mut self, rows: usize, up: bool) {
        if self.pane != Pane::Log {
            // Events are read from their end.
            let further = up == (self.pane == Pane::Events);
            let most = match self.pane {
                Pane::Events => self.events.len(),
                Pane::Help => HELP.len(),
                _ => MOST_EVENTS,
            };
            self.scrolled = if further { (self.scrolled + rows).min(most) } else { self.scrolled.saturating_sub(rows) };
            return;
        }
        let (mut line, mut row) = self.top();
        let Some(log) = self.log() else { return };
        for _ in 0..rows {
            if up && row > 0 {
                row -= 1;
            } else if up && line > log.lines.first() {
                line -= 1;
                row = self.height(log, line).saturating_sub(1);
            } else if !up && row + 1 < self.height(log, line) {
                row += 1;
            } else if !up {
                (line, row) = (line + 1, 0);
            }
        }
        let is_at_end = !up && (line, row) >= self.top_of_end(log) && !self.copies;
        self.put(|_| if is_at_end { Place::Follow } else { Place::At(line, row) });
    }

    /// The line that stands last.
    fn bottom(&self, log: &Log) -> u64 {
        let (mut line, row) = self.top();
        let mut room = (usize::from(self.areas().pane.height) + row).saturating_sub(self.height(log, line));
        while room > 0 && line + 1 < log.lines.end() {
            line += 1;
            room = room.saturating_sub(self.height(log, line));
        }
        line
    }

    /// Finds the newest match that is not below what is seen, or else the first below.
    fn find_first(&mut self, now: Duration) {
        let Some(log) = self.log() else { return };
        let bottom = self.bottom(log);
        let found = self.find(log, bottom, false).or_else(|| self.find(log, bottom, true));
        self.go_to(found, now);
    }

    fn find_from(&mut self, is_next: bool, now: Duration) {
        let Some(log) = self.log() else { return };
        let from = self.found.filter(|found| *found >= log.lines.first());
        let found = match from {
            Some(found) if is_next => self.find(log, found + 1, true),
            Some(found) => found.checked_sub(1).and_then(|before| self.find(log, before, false)),
            None => return self.find_first(now),
        };
        self.go_to(found, now);
    }

    /// The first match from this line on, this one included.
    fn find(&self, log: &Log, from: u64, is_next: bool) -> Option<u64> {
        if self.search.is_empty() {
            return None;
        }
        let matches = |line: &u64| log.lines.get(*line).is_some_and(|line| text::has(line.text, &self.search));
        if is_next {
            (from..log.lines.end()).find(matches)
        } else {
            (log.lines.first()..(from + 1).min(log.lines.end())).rev().find(matches)
        }
    }

    fn go_to(&mut self, found: Option<u64>, now: Duration) {
        if self.search.is_empty() {
            return;
        }
        let (Some(found), Some(log)) = (found, self.log()) else {
            return self.say(format!("no further match of {:?}", self.search), false, now);
        };
        let (line, row) = self.top();
        let is_seen = (line..=self.bottom(log)).contains(&found);
        let third = u64::from(self.areas().pane.height / 3);
        let place = if is_seen { Place::At(line, row) } else { Place::At(found.saturating_sub(third), 0) };
        self.found = Some(found);
        // What was found stays where it is seen, whatever comes.
        self.put(|_| place);
    }
}

/// What the end of the project is called.
const DOWN: &str = "down";

impl Shown {
    fn new(before: Option<Shown>, row: Row, now: Duration) -> Self {
        let since_start = || {
            let cpu = row.cpu_ms.filter(|_| row.lived_ms > 0)?;
            Some(100.0 * cpu as f64 / row.lived_ms as f64)
        };
        let measured = row.cpu_ms.map(|cpu| (cpu, now));
        let before = before.filter(|before| before.row.pid == row.pid && row.pid.is_some());
        match (before.and_then(|before| Some((before.cpu, before.measured?))), row.cpu_ms) {
            (Some((share, (cpu, at))), Some(_)) if now.saturating_sub(at) < SHARE_OF => {
                Shown { cpu: share, measured: Some((cpu, at)), row }
            }
            (Some((_, (cpu, at))), Some(has)) => {
                let share = 100.0 * has.saturating_sub(cpu) as f64 / now.saturating_sub(at).as_millis().max(1) as f64;
                Shown { cpu: Some(share), measured, row }
            }
            _ => Shown { cpu: since_start(), measured, row },
        }
    }
}

#[cfg(test)]
mod tests;
