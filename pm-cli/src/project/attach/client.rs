//! The side of the user: the terminal or the pipes of `pm attach`.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ratatui::crossterm::terminal::disable_raw_mode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use super::frame::{self, Frame};
use super::keys::Keys;
use super::modes::{self, Modes};
use crate::error::{CliError, code, say};
use crate::project::client::{self, Asked};
use crate::project::meeting;
use crate::project::terminal::{PATIENCE, Signals, Taken};
use crate::project::wire::{Answer, Question};

/// What is read at once of standard input.
const CHUNK: usize = 16 << 10;

/// So many chunks wait to be sent. More are left where they come from.
const MOST_CHUNKS: usize = 4;

/// How often the thread that reads looks whether it is over.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What `pm attach` is to do.
#[derive(Debug)]
pub struct Wanted {
    /// The service, with the number of the replica where it is not the first.
    pub label: String,
    /// The end of standard input is the end of the input of the service.
    pub close: bool,
    /// Nothing is read.
    pub no_stdin: bool,
}

/// What becomes of standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// It is not read.
    None,
    /// Key by key, from a terminal for a terminal.
    Keys,
    /// As it comes, up to its end.
    Stream,
}

/// Why it is over.
enum Left {
    ByUser,
    Ended {
        code: u8,
        text: String,
    },
    /// By a signal, or because nobody reads on, with this exit code.
    Code(u8),
    /// The service did not take what it was given.
    Refused(String),
}

/// Connects standard input and output to a service.
///
/// # Errors
/// The project is not up, or the service is not.
pub fn attach(file: Option<&Path>, wanted: &Wanted) -> Result<ExitCode, CliError> {
    let socket = meeting::socket(&meeting::file(file)?)?;
    let label = &wanted.label;
    let (left, missed) = client::runtime()?.block_on(async {
        let mut asked = Asked::new(&socket, &Question::Attach { label: label.clone() }).await?;
        match asked.next().await? {
            Answer::Attached { is_terminal, takes_input } => run(asked, wanted, is_terminal, takes_input).await,
            Answer::Failed { message } => Err(CliError::Service(message)),
            _ => Err(CliError::Lost),
        }
    })?;
    if missed > 0 {
        say(format_args!("{missed} bytes that {label} printed were dropped here, because they were read too slowly"));
    }
    match left {
        Left::ByUser => {
            tell(format_args!("left {label}, which goes on"));
            Ok(ExitCode::SUCCESS)
        }
        Left::Ended { code, text } => {
            tell(format_args!("{label} has ended ({text})"));
            Ok(ExitCode::from(code))
        }
        Left::Code(code) => Ok(ExitCode::from(code)),
        Left::Refused(why) => Err(CliError::Service(format!("{label} did not take the input: {why}"))),
    }
}

/// Says something to a person. A program that reads standard error of the service is not to find it there.
fn tell(text: impl std::fmt::Display) {
    if io::stderr().is_terminal() {
        say(text);
    }
}

async fn run(asked: Asked, wanted: &Wanted, is_terminal: bool, takes_input: bool) -> Result<(Left, u64), CliError> {
    let on_terminal = io::stdin().is_terminal();
    let source = match (takes_input, on_terminal) {
        _ if wanted.no_stdin => Source::None,
        (true, true) if is_terminal => Source::Keys,
        // What is typed is left to whoever reads it next.
        (false, true) => Source::None,
        _ => Source::Stream,
    };
    let label = &wanted.label;
    tell(match source {
        Source::Keys => format!("attached to {label}; Ctrl-P Ctrl-Q leaves it as it is"),
        Source::Stream if on_terminal => format!("attached to {label}; Ctrl-D leaves it as it is"),
        Source::None if !takes_input => format!("attached to {label}, which takes no input; Ctrl-C leaves it as it is"),
        _ => format!("attached to {label}; Ctrl-C leaves it as it is"),
    });
    let mut signals = Signals::watch()?;
    let resized = signal(SignalKind::window_change()).map_err(CliError::Runtime)?;
    let taken = match source {
        Source::Keys => Some(Taken::take(modes::usual).map_err(CliError::Terminal)?),
        Source::None | Source::Stream => None,
    };
    let (read, write) = asked.into_parts();
    let typed = Typed::read(source).map_err(CliError::Runtime)?;
    let leaves = typed.leaves.clone();
    let (answers, answered) = mpsc::channel(1);
    let mut screen = Screen { is_raw: taken.is_some(), modes: Modes::default(), missed: 0 };
    let talk = Talk { write, answered, resized, is_terminal, takes_input, close: wanted.close, source };
    let left = tokio::select! {
        biased;
        came = &mut signals.came => match came.unwrap_or(code::TERMINATED) {
            // By the key, where the terminal is not the service's.
            code::INTERRUPTED if source != Source::Keys && io::stdin().is_terminal() => Ok(Left::ByUser),
            code => Ok(Left::Code(code)),
        },
        () = leaves.notified() => Ok(Left::ByUser),
        left = screen.show(read, answers) => left,
        left = talk.talk(typed) => left,
    };
    let was_raw = taken.is_some();
    drop(taken);
    if was_raw && io::stderr().is_terminal() {
        // What is said begins a line.
        eprintln!();
    }
    left.map(|left| (left, screen.missed))
}

/// What the service prints, as it is shown.
struct Screen {
    is_raw: bool,
    modes: Modes,
    missed: u64,
}

impl Screen {
    async fn show(
        &mut self,
        mut read: BufReader<OwnedReadHalf>,
        answers: mpsc::Sender<Result<(), String>>,
    ) -> Result<Left, CliError> {
        loop {
            match frame::read(&mut read).await {
                Ok(Some(Frame::Printed { is_stderr, bytes })) => {
                    if self.is_raw {
                        self.modes.see(&bytes);
                    }
                    let written = match is_stderr {
                        true => io::stderr().write_all(&bytes),
                        false => {
                            let mut stdout = io::stdout().lock();
                            stdout.write_all(&bytes).and_then(|()| stdout.flush())
                        }
                    };
                    // Nobody may be interested in its errors.
                    if written.is_err() && !is_stderr {
                        return Ok(Left::Code(code::CLOSED));
                    }
                }
                Ok(Some(Frame::Missed(count))) => self.missed += count,
                Ok(Some(Frame::Ended { code, text })) => return Ok(Left::Ended { code, text }),
                Ok(Some(frame @ (Frame::Taken | Frame::Refused(_)))) => {
                    let answer = if let Frame::Refused(why) = frame { Err(why) } else { Ok(()) };
                    // There is one question at a time.
                    let _ = answers.send(answer).await;
                }
                Ok(_) | Err(_) => return Err(CliError::Lost),
            }
        }
    }
}

/// What the user says to the service.
struct Talk {
    write: OwnedWriteHalf,
    answered: mpsc::Receiver<Result<(), String>>,
    resized: Signal,
    is_terminal: bool,
    takes_input: bool,
    close: bool,
    source: Source,
}

impl Talk {
    /// Sends what is typed, until its end. It returns only where that ends all.
    async fn talk(mut self, mut typed: Typed) -> Result<Left, CliError> {
        let fits = self.is_terminal && io::stdout().is_terminal();
        if fits {
            self.resize().await?;
        }
        let (mut is_waiting, mut is_over) = (false, false);
        loop {
            tokio::select! {
                _ = self.resized.recv(), if fits => self.resize().await?,
                Some(answer) = self.answered.recv() => {
                    is_waiting = false;
                    match answer {
                        // A key for one that has just ended.
                        Err(_) if self.source == Source::Keys => {}
                        Err(why) => return Ok(Left::Refused(why)),
                        Ok(()) => {}
                    }
                }
                chunk = typed.chunks.recv(), if !is_waiting && !is_over => match chunk {
                    Some(_) if !self.takes_input => return Ok(Left::Refused("it takes none: give it `stdin = \"pipe\"` or `tty = true`".into())),
                    Some(bytes) => {
                        is_waiting = true;
                        self.send(&Frame::Input(bytes)).await?;
                    }
                    None if self.source == Source::Keys => return Ok(Left::Code(code::HUNG_UP)),
                    None if self.source == Source::None || !self.takes_input => is_over = true,
                    None if self.close => {
                        (is_waiting, is_over) = (true, true);
                        self.send(&Frame::Close).await?;
                    }
                    None => return Ok(Left::ByUser),
                },
            }
        }
    }

    async fn resize(&mut self) -> Result<(), CliError> {
        // Where the terminal does not say how large it is, that of the service stays as it is.
        let Ok(size) = tcgetwinsize(io::stdout()) else { return Ok(()) };
        if size.ws_row == 0 || size.ws_col == 0 {
            return Ok(());
        }
        self.send(&Frame::Resize { rows: size.ws_row, columns: size.ws_col }).await
    }

    async fn send(&mut self, frame: &Frame) -> Result<(), CliError> {
        // The project has gone, or has said that the service has ended: that is heard where it is read.
        if frame::write(&mut self.write, frame).await.is_err() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// The thread that reads standard input. The channel ends with it.
struct Typed {
    chunks: mpsc::Receiver<Vec<u8>>,
    /// Told when the keys to leave were pressed, whatever waits to be sent.
    leaves: Arc<Notify>,
    is_over: Arc<AtomicBool>,
}

impl Typed {
    fn read(source: Source) -> io::Result<Self> {
        let (give, chunks) = mpsc::channel(MOST_CHUNKS);
        let (leaves, is_over) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let typed = Typed { chunks, leaves: leaves.clone(), is_over: is_over.clone() };
        if source == Source::None {
            return Ok(typed);
        }
        let read = move || {
            let (stdin, mut buffer) = (rustix::stdio::stdin(), vec![0; CHUNK]);
            let mut keys = Keys::default();
            while !is_over.load(Ordering::Relaxed) {
                match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&LOOK_EVERY)) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                    Ok(_) | Err(_) => {}
                }
                let bytes = match rustix::io::read(stdin, &mut buffer[..]) {
                    Ok(0) => return,
                    Ok(count) => &buffer[..count],
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                    // The terminal is gone.
                    Err(_) => return,
                };
                let (bytes, is_leaving) =
                    if source == Source::Keys { keys.take(bytes) } else { (bytes.to_vec(), false) };
                if is_leaving {
                    leaves.notify_one();
                    thread::sleep(PATIENCE);
                    // The loop is held up by its terminal, as by a signal.
                    let _ = disable_raw_mode();
                    std::process::exit(0);
                }
                if !bytes.is_empty() && give.blocking_send(bytes).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("pm-keys".into()).spawn(read)?;
        Ok(typed)
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
