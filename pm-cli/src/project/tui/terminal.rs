//! The terminal, taken and given back whatever happens, and the loop between it, the project and the machine.

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
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use ratatui::crossterm::{cursor, execute, queue};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::app::{App, Effect, Input, Leave};
use super::feed::Feed;
use super::keys::Key;
use super::view;
use crate::error::{CliError, code, say};
use crate::project::{client, meeting};

/// The time from one frame to the next, at least: what comes meanwhile is drawn together.
const FRAME: Duration = Duration::from_millis(33);

/// So many keys and turns of the wheel wait to be looked at. More are left in the terminal.
const MOST_KEYS: usize = 64;

/// How often the thread that reads keys looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a signal waits for a frame that is being written. A terminal that takes nothing any more would hold it up for ever.
const PATIENCE: Duration = Duration::from_secs(1);

/// The exit code of a program that panicked.
const PANICKED: i32 = 101;

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

/// The terminal, as long as it is taken.
struct Taken;

/// Whether it is taken. Whoever gives it back first does, be it a panic or a signal.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

impl Taken {
    fn take() -> io::Result<Self> {
        enable_raw_mode()?;
        // From here on it is given back, also where the next step fails.
        IS_TAKEN.store(true, Ordering::SeqCst);
        let taken = Taken;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // What it says is for the screen that stays.
            give_back();
            before(panic);
            // Wherever it happened: the rest would go on drawing on a terminal that is no longer its own.
            std::process::exit(PANICKED);
        }));
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back as it was. A terminal that is gone takes nothing, and needs nothing.
fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), EndSynchronizedUpdate, DisableMouseCapture, LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

async fn run(name: &str, has_colours: bool, mut feed: Feed) -> Result<Left, CliError> {
    let signals = Signals::watch()?;
    let taken = Taken::take().map_err(CliError::Terminal)?;
    let keys = Keys::read().map_err(CliError::Runtime)?;
    let app = App::new(name, has_colours, size().unwrap_or((80, 24)));
    let terminal = Terminal::new(CrosstermBackend::new(io::BufWriter::with_capacity(64 << 10, io::stdout())));
    let terminal = terminal.map_err(CliError::Terminal)?;
    let mut screen = Screen { app, terminal, began: Instant::now(), is_clear: true };
    let left = screen.until_left(&mut feed, keys, signals).await;
    drop(taken);
    left.map_err(CliError::Terminal)
}

/// The signals that end it, seen by a thread of their own: one that waits for a terminal would not see them.
struct Signals {
    came: oneshot::Receiver<u8>,
}

impl Signals {
    fn watch() -> Result<Self, CliError> {
        let (tell, came) = oneshot::channel();
        let runtime = client::runtime()?;
        let within = runtime.enter();
        let kinds = [
            (SignalKind::interrupt(), code::INTERRUPTED),
            (SignalKind::terminate(), code::TERMINATED),
            (SignalKind::hangup(), code::HUNG_UP),
        ];
        let [mut interrupt, mut terminate, mut hang_up] = [
            (signal(kinds[0].0).map_err(CliError::Runtime)?, kinds[0].1),
            (signal(kinds[1].0).map_err(CliError::Runtime)?, kinds[1].1),
            (signal(kinds[2].0).map_err(CliError::Runtime)?, kinds[2].1),
        ];
        drop(within);
        let watch = move || {
            runtime.block_on(async move {
                let code = tokio::select! {
                    _ = interrupt.0.recv() => interrupt.1,
                    _ = terminate.0.recv() => terminate.1,
                    _ = hang_up.0.recv() => hang_up.1,
                };
                // Nobody may be there to hear it.
                let _ = tell.send(code);
                tokio::time::sleep(PATIENCE).await;
                // The loop is held up by its terminal. What is raw is made right at least: that waits for nobody.
                let _ = disable_raw_mode();
                std::process::exit(code.into());
            });
        };
        thread::Builder::new().name("pm-signals".into()).spawn(watch).map_err(CliError::Runtime)?;
        Ok(Signals { came })
    }
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
