//! The terminal of the user, taken and given back whatever happens: by a panic, by signals, and while a terminal takes nothing any more.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pm::Signal;
use pm::core::driver::signal::Heard;
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use tokio::sync::oneshot;

use super::client;
use crate::error::{CliError, code};

/// How long a signal waits for what is being written. A terminal that takes nothing any more would hold it up for ever.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The exit code of a program that panicked.
const PANICKED: i32 = 101;

/// What gives it back, while it is taken. Whoever gives it back first does, be it a panic or a signal.
static TAKEN: Mutex<Option<fn() -> Vec<u8>>> = Mutex::new(None);

/// The terminal in raw mode, as long as it is taken.
#[derive(Debug)]
pub struct Taken(());

impl Taken {
    /// Takes it. `back` says what is written to it when it is given back, before its mode is what it was.
    ///
    /// # Errors
    /// It cannot be made raw.
    pub fn take(back: fn() -> Vec<u8>) -> io::Result<Self> {
        enable_raw_mode()?;
        // From here on it is given back, also where the next step fails.
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(back);
        let taken = Taken(());
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // What it says is for the screen that stays.
            give_back();
            before(panic);
            // Wherever it happened: the rest would go on drawing on a terminal that is no longer its own.
            std::process::exit(PANICKED);
        }));
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
    let back = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(back) = back {
        let mut stdout = io::stdout();
        if stdout.is_terminal() {
            let _ = stdout.write_all(&back()).and_then(|()| stdout.flush());
        }
        let _ = disable_raw_mode();
    }
}

/// The signals that end it, seen by a thread of their own: one that waits for a terminal would not see them.
#[derive(Debug)]
pub struct Signals {
    /// The exit code of the first one that came.
    pub came: oneshot::Receiver<u8>,
}

impl Signals {
    /// Watches from now on. Whoever does not end within [`PATIENCE`] after one is ended.
    ///
    /// # Errors
    /// There is no thread left for it.
    pub fn watch() -> Result<Self, CliError> {
        let (tell, came) = oneshot::channel();
        let runtime = client::runtime()?;
        let within = runtime.enter();
        let mut heard = Heard::of(&[Signal::INT, Signal::TERM, Signal::HUP]).map_err(CliError::Runtime)?;
        drop(within);
        let watch = move || {
            runtime.block_on(async move {
                let code = code::by(heard.next().await);
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
