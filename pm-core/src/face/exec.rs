//! Other programs, run once to their end: how they ended, and what they printed.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::error::tail;
use crate::driver::exec::{self, Unread};
use crate::driver::launch::LaunchError;
use crate::driver::stderr;
use crate::machine::exit::ExitStatus;
use crate::machine::spec::{BadSpec, Program, Spec, SpecBuilder};

pub use crate::driver::exec::OutputStream;

/// How many bytes a program may print to each of its two streams where nothing else is said: 64 MiB.
pub const DEFAULT_OUTPUT_LIMIT: usize = 64 << 20;

/// The shell of [`shell`].
const SHELL: &str = "/bin/sh";

/// How much of each stream the `Debug` form of an [`Output`] shows, in bytes.
const SHOWN: usize = 256;

/// Runs a program: its name or path first, then its arguments. Each reaches it unchanged, whatever it holds; there is no shell.
///
/// ```no_run
/// # async fn app() -> Result<(), pm_core::face::exec::ExecError> {
/// use pm_core::face::exec::exec;
///
/// let head = exec(["git", "rev-parse", "HEAD"]).spec(|spec| spec.cwd("/srv/site")).output().await?.check()?;
/// println!("{}", head.text());
/// # Ok(()) }
/// ```
pub fn exec(command: impl IntoIterator<Item = impl Into<OsString>>) -> Exec {
    let mut words = command.into_iter().map(Into::into);
    let program = words.next().unwrap_or_default();
    Exec::from_spec(Spec::program(program).args(words))
}

/// Runs a text through the shell, `/bin/sh -c`.
///
/// The shell interprets all of the text, and pm escapes nothing in it: a name, a path or anything else that comes from elsewhere does not belong
/// there. Where no pipe, redirection or wildcard is needed, [`exec`] is the safe form. Where one is, values are safe as
/// arguments, which are `"$1"`, `"$2"` … in the text:
///
/// ```no_run
/// # async fn app(pattern: &str) -> Result<(), pm_core::face::exec::ExecError> {
/// use pm_core::face::exec::shell;
///
/// let count = shell(r#"cat *.log | grep -c -e "$1""#).spec(|spec| spec.arg(pattern)).output().await?;
/// # Ok(()) }
/// ```
pub fn shell(text: impl Into<OsString>) -> Exec {
    // The dashes end the options, so that a text may begin with one; the last word is `$0`, which the shell calls itself by.
    Exec::from_spec(Spec::program(SHELL).args(["-c", "--"]).arg(text).arg("sh"))
}

/// A program to run once. Made by [`exec`], [`shell`] or [`Exec::from_spec`]; runs with [`output`](Exec::output).
///
/// Its standard input is `/dev/null` unless [`stdin`](Exec::stdin) says otherwise, its environment the manager's with the variables of the Spec
/// on top, its working directory the manager's. When it ends, so does all that it has started and left behind. Without the keeper
/// ([`SpecBuilder::unguarded`]), what has left its process group lives on; what that prints later is not read.
///
/// It is started by the keeper, so a program that uses it calls `pm::roles` first in `main`, be it with no roles at all; or has `pm` installed; or is
/// unguarded, as in a test harness, which has no such `main`.
///
/// In-process mode ([`spawning::disable`](super::spawning::disable)) is about workers. Programs run as they do without it.
///
/// ```standalone_crate
/// use std::time::Duration;
///
/// use pm_core::face::exec::{Exec, ExecError, exec, shell};
/// use pm_core::machine::spec::Spec;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # pm_core::driver::launch::run_if_keeper();
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let sorted = exec(["sort", "-n"]).stdin("10\n9\n").timeout(Duration::from_secs(10)).output().await?.check()?;
/// assert_eq!(sorted.stdout, b"9\n10\n");
///
/// let failed = shell("echo alas >&2; exit 3").output().await?;
/// assert_eq!(failed.status.code(), Some(3));
/// assert_eq!(failed.check().unwrap_err().to_string(), "\"/bin/sh\" failed: exit code 3; its last output: alas");
///
/// let spec = Spec::program("no-such-program").env("LANG", "C").cwd("/");
/// assert!(matches!(Exec::from_spec(spec).output().await, Err(ExecError::NotFound(_))));
/// # Ok(()) })
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing runs until its output is awaited"]
pub struct Exec {
    spec: SpecBuilder,
    stdin: Option<Bytes>,
    timeout: Option<Duration>,
    output_limit: usize,
}

impl Exec {
    /// Runs what a Spec says: environment, working directory, niceness, limits, user, and whether the keeper guards it. What else a Spec says
    /// (how long a worker may take to start and to stop, where its prints go) means nothing here.
    pub fn from_spec(spec: SpecBuilder) -> Self {
        Exec { spec, stdin: None, timeout: None, output_limit: DEFAULT_OUTPUT_LIMIT }
    }

    /// Changes how it is started: more arguments, environment, working directory, limits, user.
    pub fn spec(mut self, change: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Self {
        self.spec = change(self.spec);
        self
    }

    /// What it can read from its standard input; `/dev/null` by default. It is written while the program runs and prints. A program that reads none
    /// of it, or only a part, does no wrong.
    pub fn stdin(mut self, bytes: impl Into<Bytes>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// How long it may take from its start to its end; for as long as it likes by default.
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// How many bytes it may print to each of its two streams; [`DEFAULT_OUTPUT_LIMIT`] by default. That much is held in memory of each.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Runs it to its end. However it ends, that is an [`Output`]; [`Output::check`] makes an error of what was no success.
    ///
    /// It needs a tokio runtime with I/O and time, and blocks none of its threads.
    ///
    /// # Cancel safety
    /// Dropping the future kills the program with all that it has started.
    ///
    /// # Errors
    /// [`ExecError`]: it could not be started, took too long, or printed too much. In the latter cases it is killed with all that it has
    /// started, and the error comes when that is gone; what cannot be killed within a second, or was still being started, is not
    /// waited for.
    pub async fn output(self) -> Result<Output, ExecError> {
        let spec = self.spec.build()?;
        let program = match (spec.what(), spec.role_to_serve()) {
            (Program::Path(name), None) => PathBuf::from(name),
            (_, role) => return Err(ExecError::Role { role: role.unwrap_or_default().to_string() }),
        };
        if !spec.listeners().is_empty() {
            return Err(ExecError::Listens { program });
        }
        if self.timeout == Some(Duration::ZERO) {
            return Err(BadSpec::ZeroTime { what: "the timeout" }.into());
        }
        // A limit that no clock can reach is none.
        let time = self.timeout.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        let started = match in_time(time, exec::start(&spec, self.stdin, self.output_limit)).await {
            Ok(started) => started,
            Err(limit) => {
                return Err(ExecError::TimedOut { program, limit, stdout: String::new(), stderr: String::new() });
            }
        };
        let mut running = started?;
        let end = match in_time(time, running.ended()).await {
            Ok(Ok(status)) => {
                let (stdout, stderr) = running.printed();
                return Ok(Output { status, stdout, stderr, program });
            }
            Ok(Err((stream, unread))) => End::Unread(stream, unread),
            Err(limit) => End::TimedOut(limit),
        };
        running.kill().await;
        let (stdout, stderr) = running.printed();
        let (stdout, stderr) = (stderr::last(&stdout), stderr::last(&stderr));
        Err(match end {
            End::TimedOut(limit) => ExecError::TimedOut { program, limit, stdout, stderr },
            End::Unread(stream, Unread::TooMuch) => {
                ExecError::TooMuchOutput { program, stream, limit: self.output_limit, stderr }
            }
            End::Unread(stream, Unread::Failed(source)) => ExecError::Unreadable { program, stream, source },
        })
    }
}

/// Why a program was killed.
enum End {
    TimedOut(Duration),
    Unread(OutputStream, Unread),
}

/// Waits for `future`, but not beyond this instant: the error is the limit that led to it.
async fn in_time<T>(time: Option<(Instant, Duration)>, future: impl Future<Output = T>) -> Result<T, Duration> {
    match time {
        Some((instant, limit)) => timeout_at(instant, future).await.map_err(|_| limit),
        None => Ok(future.await),
    }
}

/// What is to be read may be long, or a secret: only its length is shown.
impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec")
            .field("spec", &self.spec)
            .field("stdin", &self.stdin.as_ref().map(Bytes::len))
            .field("timeout", &self.timeout)
            .field("output_limit", &self.output_limit)
            .finish()
    }
}

/// How a program ended, and what it printed until then.
#[derive(Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended. [`ExitStatus::Lost`] where the keeper was killed, and the program with it.
    pub status: ExitStatus,
    /// What it printed to its standard output.
    pub stdout: Vec<u8>,
    /// What it printed to its standard error.
    pub stderr: Vec<u8>,
    program: PathBuf,
}

impl Output {
    /// The same, if the program exited with code 0.
    ///
    /// # Errors
    /// [`ExecError::Failed`] otherwise, with the tail of its standard error.
    pub fn check(self) -> Result<Self, ExecError> {
        if self.status.success() {
            return Ok(self);
        }
        Err(ExecError::Failed { program: self.program, status: self.status, stderr: stderr::last(&self.stderr) })
    }

    /// Its standard output as text, without the newlines at the end, as `$(…)` is in a shell. What is no UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        let end = self.stdout.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 1);
        String::from_utf8_lossy(&self.stdout[..end])
    }
}

/// Of what was printed, the beginning is shown.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("status", &self.status)
            .field("stdout", &Beginning(&self.stdout))
            .field("stderr", &Beginning(&self.stderr))
            .finish_non_exhaustive()
    }
}

struct Beginning<'a>(&'a [u8]);

impl fmt::Debug for Beginning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if self.0.len() > SHOWN { write!(f, "... ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

/// A program has no output, and this is why; or it has one, and [`Output::check`] says that it is no success.
///
/// Programs are named without their arguments, which may hold secrets. Tails are the last 4 KiB, with control characters escaped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecError {
    /// There is no such program: [`LaunchError::NotFound`].
    #[error(transparent)]
    NotFound(LaunchError),
    /// The program may not be executed: [`LaunchError::PermissionDenied`].
    #[error(transparent)]
    PermissionDenied(LaunchError),
    /// It could not be started for another reason, such as a working directory that is not there.
    #[error(transparent)]
    Launch(LaunchError),
    /// The Spec is wrong, or the timeout is zero.
    #[error(transparent)]
    Spec(#[from] BadSpec),
    /// The Spec is that of a worker.
    #[error(
        "the role {role:?} is served by workers, which have a link to print to: start a pool of it; `exec` runs `Spec::program`"
    )]
    Role {
        /// The role.
        role: String,
    },
    /// The Spec has listeners.
    #[error(
        "{program:?} is to listen, and runs only once: start a pool of it, which keeps its listeners for as long as it lives"
    )]
    Listens {
        /// The program as it was named.
        program: PathBuf,
    },
    /// It took too long, and was killed.
    #[error(
        "{program:?} took longer than {limit:?}, and was killed with all that it had started: allow it more, or see what it \
         waits for{}",
        tail(if .stderr.is_empty() { .stdout } else { .stderr })
    )]
    TimedOut {
        /// The program as it was named.
        program: PathBuf,
        /// The time that it had.
        limit: Duration,
        /// The tail of its standard output.
        stdout: String,
        /// The tail of its standard error.
        stderr: String,
    },
    /// It printed too much, and was killed.
    #[error(
        "{program:?} printed more than {limit} bytes to its {stream}, and was killed with all that it had started: raise \
         `output_limit`, or let it write to a file{}",
        tail(.stderr)
    )]
    TooMuchOutput {
        /// The program as it was named.
        program: PathBuf,
        /// Where it printed them.
        stream: OutputStream,
        /// How many bytes it may print there.
        limit: usize,
        /// The tail of its standard error.
        stderr: String,
    },
    /// What it printed could not be read, and it was killed.
    #[error("the {stream} of {program:?} cannot be read, so it was killed with all that it had started")]
    Unreadable {
        /// The program as it was named.
        program: PathBuf,
        /// Where it printed.
        stream: OutputStream,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended otherwise than with code 0. Only [`Output::check`] says so.
    #[error("{program:?} failed: {status}{}", tail(.stderr))]
    Failed {
        /// The program as it was named.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The tail of its standard error.
        stderr: String,
    },
}

impl From<LaunchError> for ExecError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::NotFound { .. } => ExecError::NotFound(error),
            LaunchError::PermissionDenied { .. } => ExecError::PermissionDenied(error),
            _ => ExecError::Launch(error),
        }
    }
}
