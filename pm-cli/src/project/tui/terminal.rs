//! The loop between the terminal, the project and the machine.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{
    DisableMouseCapture, EnableMouseCapture, Event, KeyEventKind, MouseEventKind, poll, read,
};
use ratatui::crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, size,
};
use ratatui::crossterm::{cursor, execute, queue};
use tokio::sync::mpsc;

use super::app::{App, Effect, Input, Leave};
use super::feed::Feed;
use super::keys::Key;
use super::view;
use crate::error::{CliError, code, say};
use crate::project::terminal::{Signals, Taken};
use crate::project::{client, meeting};

/// The time from one frame to the next, at least: what comes meanwhile is drawn together.
const FRAME: Duration = Duration::from_millis(33);

/// So many keys and turns of the wheel wait to be looked at. More are left in the terminal.
const MOST_KEYS: usize = 64;

/// How often the thread that reads keys looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Shows the project of this file until the user leaves, or the project ends.
///
/// # Errors
/// There is no terminal, or no project that is up.
pub fn show(file: Option<&Path>) -> Result<ExitCode, CliError> {
    check()?;
    let file = meeting::file(file)?;
    let socket = meeting::socket(&file)?;
    // Asked before anything changes on the terminal: a project that is not up is an error as of any other command.
    client::ask(Some(&file), &crate::project::wire::Question::Ps, None)?;
    let directory = file.parent().and_then(Path::file_name).unwrap_or(file.as_os_str());
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let feed = Feed::start(&socket).map_err(CliError::Runtime)?;
    let left = client::runtime()?.block_on(run(&directory.to_string_lossy(), !no_colour, feed))?;
    match left {
        Left::By(Leave::StaysUp) => say("the project is still up: pm down stops it"),
        Left::By(Leave::Stopping) => say("the project is being stopped"),
        Left::By(Leave::Stopped) => say("the project was stopped"),
        Left::By(Leave::Ended) => say("the project has ended"),
        Left::Signal(code) => return Ok(ExitCode::from(code)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there is a terminal to show it on.
///
/// # Errors
/// There is none.
pub fn check() -> Result<(), CliError> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() { Ok(()) } else { Err(CliError::NoTerminal) }
}

/// Why it is over.
enum Left {
    By(Leave),
    /// With this exit code.
    Signal(u8),
}

/// What is written to the terminal when it is given back.
fn back() -> Vec<u8> {
    let mut bytes = Vec::new();
    // Into a Vec nothing of this can fail.
    let _ = queue!(bytes, EndSynchronizedUpdate, DisableMouseCapture, LeaveAlternateScreen, cursor::Show);
    bytes
}

async fn run(name: &str, has_colours: bool, mut feed: Feed) -> Result<Left, CliError> {
    let signals = Signals::watch()?;
    let taken = Taken::take(back).map_err(CliError::Terminal)?;
    execute!(io::stdout(), EnterAlternateScreen, cursor::Hide).map_err(CliError::Terminal)?;
    let keys = Keys::read().map_err(CliError::Runtime)?;
    let app = App::new(name, has_colours, size().unwrap_or((80, 24)));
    let terminal = Terminal::new(CrosstermBackend::new(io::BufWriter::with_capacity(64 << 10, io::stdout())));
    let terminal = terminal.map_err(CliError::Terminal)?;
    let mut screen = Screen { app, terminal, began: Instant::now(), is_clear: true };
    let left = screen.until_left(&mut feed, keys, signals).await;
    drop(taken);
    left.map_err(CliError::Terminal)
}

/// The thread that reads keys.
struct Keys {
    keys: mpsc::Receiver<Input>,
    is_over: Arc<AtomicBool>,
}

impl Keys {
    fn read() -> io::Result<Self> {
        let (give, keys) = mpsc::channel(MOST_KEYS);
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = is_over.clone();
        thread::Builder::new().name("pm-keys".into()).spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let event = match poll(LOOK_EVERY) {
                    Ok(true) => read(),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                };
                let input = match event {
                    Ok(event) => input(&event),
                    // The terminal is gone: its end is the end of this channel.
                    Err(_) => return,
                };
                if let Some(input) = input
                    && give.blocking_send(input).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Keys { keys, is_over })
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// What an event of the terminal means here.
fn input(event: &Event) -> Option<Input> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => Key::new(*key).map(Input::Key),
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::ScrollUp => Some(Input::Wheel { up: true }),
            MouseEventKind::ScrollDown => Some(Input::Wheel { up: false }),
            _ => None,
        },
        Event::Resize(width, height) => Some(Input::Resized { width: *width, height: *height }),
        _ => None,
    }
}

struct Screen<W: Write> {
    app: App,
    terminal: Terminal<CrosstermBackend<W>>,
    began: Instant,
    /// What stands on the terminal is what was drawn last.
    is_clear: bool,
}

impl<W: Write> Screen<W> {
    /// The frame that is due first, then keys, then what happened, and then what was printed: of that there may be no end.
    async fn until_left(&mut self, feed: &mut Feed, mut keys: Keys, mut signals: Signals) -> io::Result<Left> {
        let mut due = Instant::now();
        let mut is_waiting = true;
        let mut has_output = true;
        loop {
            if self.app.take_stale() {
                is_waiting = true;
            }
            // The clock is asked itself: while there is always something to read, no timer tells.
            if is_waiting && due <= Instant::now() {
                let begin = Instant::now();
                is_waiting = false;
                self.draw()?;
                // Where a frame takes longer than that there is still time for all else.
                due = (begin + FRAME).max(Instant::now() + FRAME / 4);
            }
            let input = tokio::select! {
                biased;
                code = &mut signals.came => return Ok(Left::Signal(code.unwrap_or(code::TERMINATED))),
                key = keys.keys.recv() => match key {
                    Some(key) => key,
                    None => return Ok(Left::Signal(code::HUNG_UP)),
                },
                () = tokio::time::sleep_until(due.into()), if is_waiting => continue,
                news = feed.news.recv() => match news {
                    Some(news) => news,
                    None => Input::Ended,
                },
                output = feed.output.recv(), if has_output => match output {
                    Some(output) => output,
                    None => {
                        has_output = false;
                        continue;
                    }
                },
            };
            for effect in self.app.handle(input, self.began.elapsed()) {
                match effect {
                    Effect::Ask { what, question } => {
                        if !feed.ask(what.clone(), question) {
                            let done = Err("too much is being asked for already".into());
                            self.app.handle(Input::Answered { what, done }, self.began.elapsed());
                        }
                    }
                    Effect::Look => feed.look(),
                    Effect::Mouse(true) => execute!(io::stdout(), EnableMouseCapture)?,
                    Effect::Mouse(false) => execute!(io::stdout(), DisableMouseCapture)?,
                    Effect::Redraw => self.is_clear = false,
                    Effect::Leave(leave) => return Ok(Left::By(leave)),
                }
            }
        }
    }

    /// Draws one frame. A terminal that knows how shows it at once.
    fn draw(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_clear, true) {
            self.terminal.clear()?;
        }
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        let app = &mut self.app;
        self.terminal.draw(|frame| {
            let area = frame.area();
            // It may have changed since the last that was heard of it.
            app.handle(Input::Resized { width: area.width, height: area.height }, Duration::ZERO);
            if let Some(cursor) = view::draw(app, frame.buffer_mut()) {
                frame.set_cursor_position(cursor);
            }
        })?;
        self.app.take_stale();
        queue!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        Write::flush(self.terminal.backend_mut())
    }
}
