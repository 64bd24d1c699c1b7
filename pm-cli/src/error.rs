//! What keeps a command from being carried out, and the exit code that it has.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use pm::core::driver::launch::LaunchError;
use thiserror::Error;

use crate::bench::work::BenchError;
use crate::config::ConfigError;
use crate::project::watching::WatchError;

/// The exit codes of `pm`.
pub mod code {
    /// Some jobs failed, or their results could not be written.
    pub const FAILED: u8 = 1;
    /// The command line cannot be carried out.
    pub const USAGE: u8 = 2;
    /// The pool gave up: its workers kept dying.
    pub const GAVE_UP: u8 = 3;
    /// The project is up already.
    pub const ALREADY_UP: u8 = 4;
    /// The project is not up.
    pub const NOT_UP: u8 = 5;
    /// It took longer than it was to be waited for: what timeout(1) says.
    pub const TOO_LONG: u8 = 124;
    /// Ended by SIGHUP, for its terminal has gone.
    pub const HUNG_UP: u8 = 129;
    /// Ended by SIGINT.
    pub const INTERRUPTED: u8 = 130;
    /// Nobody reads standard output any more: what a shell says of a program that SIGPIPE killed.
    pub const CLOSED: u8 = 141;
    /// Ended by SIGTERM.
    pub const TERMINATED: u8 = 143;

    /// Ended by this signal.
    pub fn by(signal: pm::Signal) -> u8 {
        128_i32.saturating_add(signal.0).try_into().unwrap_or(u8::MAX)
    }
}

/// A command cannot be carried out. Each message says what is wrong, with which value, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
    /// An option has a value that makes no sense, or contradicts another.
    #[error("{option}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// There is no such built-in worker.
    #[error(
        "there is no built-in worker {0:?}: write @echo, @sha256, @wc, @count, @py FILE:FUNC or @node FILE:FUNC; a program of that name is ./{0}"
    )]
    NoBuiltIn(String),
    /// A built-in worker got words that it does not take.
    #[error("{worker} takes {takes}, not {got:?}")]
    BuiltInArgs {
        /// The worker.
        worker: String,
        /// What it takes.
        takes: &'static str,
        /// What it got.
        got: Vec<OsString>,
    },
    /// The program cannot be found or executed.
    #[error("COMMAND cannot be run")]
    Program(#[source] LaunchError),
    /// What runs `@py` or `@node` is not installed.
    #[error("{worker} needs {program}")]
    NoInterpreter {
        /// `@py` or `@node`.
        worker: &'static str,
        /// What runs it.
        program: &'static str,
        /// Why it cannot be found.
        source: LaunchError,
    },
    /// The file of `@py` or `@node` cannot be read.
    #[error(
        "{worker} cannot read {path:?}: give the path of the file that defines the function, as in {worker} rules.{ending}:check"
    )]
    NoScript {
        /// `@py` or `@node`.
        worker: &'static str,
        /// The file.
        path: PathBuf,
        /// How such files end.
        ending: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The result file, or that of a plot, cannot be used.
    #[error("{path:?} {problem}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
        /// What the kernel said, where it did.
        source: Option<std::io::Error>,
    },
    /// Results go to standard output, and there is none.
    #[error("standard output cannot be written: it is closed; `>FILE` keeps the results, and `>/dev/null` drops them")]
    NoStdout,
    /// The first workers could not be started.
    #[error("the pool cannot be started: {0}")]
    Start(String),
    /// The file of a project cannot be used.
    #[error(transparent)]
    Config(ConfigError),
    /// What services of a project are started anew for cannot be watched.
    #[error(transparent)]
    Watch(WatchError),
    /// Where a project is reached cannot be made or used.
    #[error("{path:?}, where the project is reached, cannot be used")]
    Meeting {
        /// The socket, or its directory.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The project is up already.
    #[error("this project is up already: pm ps shows it, pm start and pm reload change it, pm down ends it")]
    AlreadyUp,
    /// The project is not up.
    #[error("this project is not up: pm up starts it")]
    NotUp,
    /// The project is not up, and its services have outlived it.
    #[error(
        "this project is not up, but its services are: they have outlived their pm; pm up takes them over, pm down ends them"
    )]
    OnlyKept,
    /// Services that have outlived their pm cannot be taken over.
    #[error(transparent)]
    Keep(pm::service::KeepError),
    /// The project ended before it had answered.
    #[error("the project ended before it had answered")]
    Lost,
    /// `pm tui` has no terminal.
    #[error("pm tui needs a terminal, for its input and its output: pm ps and pm logs -f show the same as text")]
    NoTerminal,
    /// The terminal of `pm tui` takes nothing.
    #[error("the terminal cannot be used")]
    Terminal(#[source] std::io::Error),
    /// What was asked of services could not be done, as the text says.
    #[error("{0}")]
    Service(String),
    /// The file of a project that is up cannot be used, as the text says.
    #[error("not reloaded, and all goes on as it was: {0}")]
    NotReloaded(String),
    /// What was waited for did not come in time.
    #[error("that did not come within {0:?}; pm ps says what each service is doing, and why")]
    TooLong(std::time::Duration),
    /// A bench came to no end.
    #[error("the bench was broken off: {}", chain(.0))]
    Bench(BenchError),
    /// The runtime cannot be made.
    #[error("the runtime cannot be started; are there descriptors and threads left? (ulimit -n, ulimit -u)")]
    Runtime(#[source] std::io::Error),
    /// `pm keeper` was called by hand, or cannot execute itself.
    #[error("/proc/self/exe cannot be executed; is /proc mounted?")]
    Keeper(#[source] std::io::Error),
}

impl CliError {
    /// The exit code of `pm` for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::NoStdout | CliError::Runtime(_) | CliError::Keeper(_) | CliError::Bench(BenchError::Lost) => {
                code::FAILED
            }
            CliError::Meeting { .. }
            | CliError::Keep(_)
            | CliError::Terminal(_)
            | CliError::Lost
            | CliError::Service(_)
            | CliError::Watch(_) => code::FAILED,
            CliError::AlreadyUp => code::ALREADY_UP,
            CliError::NotUp | CliError::OnlyKept => code::NOT_UP,
            CliError::TooLong(_) => code::TOO_LONG,
            _ => code::USAGE,
        }
    }
}

/// Tells people. Where nobody reads standard error any more, nobody is told, and the exit code says what there is to say.
pub fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    // What a service or a file said may be part of it: it is not to pass for another line, or to move the cursor. Lines that are meant begin with spaces.
    let text = text.to_string();
    let mut lines = text.split('\n');
    let mut shown = Vec::new();
    crate::project::screen::printable(lines.next().unwrap_or_default().as_bytes(), &mut shown);
    for line in lines {
        shown.push(b'\n');
        if !line.starts_with("  ") {
            shown.extend_from_slice(b"  ");
        }
        crate::project::screen::printable(line.as_bytes(), &mut shown);
    }
    let _ = writeln!(std::io::stderr(), "pm: {}", String::from_utf8_lossy(&shown));
}

/// The error with all that caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
