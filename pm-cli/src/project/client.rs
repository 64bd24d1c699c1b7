//! The side of the commands that speak to a project that is up.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pm::core::units::rounded;
use pm::service::{KeepError, Orchestrator, end_kept, is_kept};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::meeting;
use super::wire::{self, Answer, LONGEST_ANSWER, Question, Row, StoppedRow};
use crate::error::{CliError, chain, code, say};

/// A question that was asked, and its answers.
pub struct Asked {
    answers: BufReader<OwnedReadHalf>,
    /// Its end would take the question back.
    writer: OwnedWriteHalf,
}

impl Asked {
    /// Asks the project at this socket.
    ///
    /// # Errors
    /// [`CliError::NotUp`] where nobody listens there.
    pub async fn new(socket: &Path, question: &Question) -> Result<Self, CliError> {
        let lost = |source| CliError::Meeting { path: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).await.map_err(|_| CliError::NotUp)?;
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own || own == 0) {
            return Err(CliError::NotUp);
        }
        let (read, mut write) = stream.into_split();
        wire::write(&mut write, question).await.map_err(lost)?;
        Ok(Asked { answers: BufReader::new(read), writer: write })
    }

    /// Both ends of the connection, for what is no answer.
    pub fn into_parts(self) -> (BufReader<OwnedReadHalf>, OwnedWriteHalf) {
        (self.answers, self.writer)
    }

    /// The next answer.
    ///
    /// # Errors
    /// The project ended meanwhile.
    pub async fn next(&mut self) -> Result<Answer, CliError> {
        match wire::read(&mut self.answers, LONGEST_ANSWER).await {
            Ok(Some(answer)) => Ok(answer),
            _ => Err(CliError::Lost),
        }
    }
}

/// Asks one question that has one answer, on a runtime of its own.
///
/// # Errors
/// What was asked for could not be done, as the project says; or it is not up.
pub fn ask(file: Option<&Path>, question: &Question, limit: Option<Duration>) -> Result<Answer, CliError> {
    let file = meeting::file(file)?;
    let socket = meeting::socket(&file)?;
    let only_kept = |error| match error {
        CliError::NotUp if is_kept(&meeting::kept(&file)) => CliError::OnlyKept,
        error => error,
    };
    runtime()?.block_on(async {
        let asked = async { Asked::new(&socket, question).await.map_err(only_kept)?.next().await };
        let answer = match limit {
            Some(limit) => tokio::time::timeout(limit, asked).await.map_err(|_| CliError::TooLong(limit))?,
            None => asked.await,
        };
        match answer? {
            Answer::Failed { message } => Err(CliError::Service(message)),
            Answer::Refused { message } => Err(CliError::NotReloaded(message)),
            answer => Ok(answer),
        }
    })
}

/// A runtime for a command that waits and does little else.
///
/// # Errors
/// It cannot be made.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)
}

/// `pm ps`.
///
/// # Errors
/// The project is not up.
pub fn ps(file: Option<&Path>, json: bool) -> Result<ExitCode, CliError> {
    let Answer::Services { services } = ask(file, &Question::Ps, None)? else { return Err(CliError::Lost) };
    let text = if json {
        services.iter().map(|row| serde_json::to_string(row).unwrap_or_default() + "\n").collect()
    } else {
        table(&services)
    };
    Ok(print(&text))
}

/// Writes to standard output. Where nobody reads that any more, the exit code says so.
pub fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(code::CLOSED),
    }
}

/// A text of a service as it may stand on a terminal, on one line.
fn shown(text: &str) -> String {
    let mut line = Vec::new();
    super::screen::printable(text.as_bytes(), &mut line);
    String::from_utf8_lossy(&line).replace('\x1b', "\\u{1b}")
}

/// The table of `pm ps`.
fn table(rows: &[Row]) -> String {
    let header = ["SERVICE", "STATE", "PID", "RESTARTS", "UPTIME", "CPU", "MEMORY", "WHY"].map(String::from);
    let mut all = vec![header];
    all.extend(rows.iter().map(|row| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let cpu = row
            .cpu_ms
            .filter(|_| row.lived_ms > 0)
            .map(|cpu| format!("{:.1}%", 100.0 * cpu as f64 / row.lived_ms as f64));
        [
            row.service.clone(),
            row.state.clone(),
            or_dash(row.pid.map(|pid| pid.to_string())),
            row.restarts.to_string(),
            or_dash(row.pid.map(|_| rounded(Duration::from_millis(row.lived_ms)))),
            or_dash(cpu),
            or_dash(row.rss_bytes.map(wire::memory)),
            shown(row.why.as_deref().or(row.status.as_deref()).unwrap_or_default()),
        ]
    }));
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// `pm reload`: says what comes and goes.
///
/// # Errors
/// The project is not up, or its file cannot be used.
pub fn reload(file: Option<&Path>, json: bool) -> Result<ExitCode, CliError> {
    let Answer::Reloaded(reloaded) = ask(file, &Question::Reload, None)? else { return Err(CliError::Lost) };
    let text = if json {
        serde_json::to_string(&reloaded).unwrap_or_default()
    } else {
        reloaded.warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
        reloaded.to_string()
    };
    Ok(print(&(text + "\n")))
}

/// A command whose only answer is that it was done.
///
/// # Errors
/// It could not be done, or the project is not up.
pub fn act(file: Option<&Path>, question: &Question, limit: Option<Duration>) -> Result<ExitCode, CliError> {
    ask(file, question, limit).map(|_| ExitCode::SUCCESS)
}

/// `pm stop` and `pm down`: says what had to be killed.
///
/// # Errors
/// The project is not up, or there is no such service.
pub fn stop(file: Option<&Path>, question: &Question, json: bool) -> Result<ExitCode, CliError> {
    let stopped = match (ask(file, question, None), question) {
        (Ok(Answer::Stopped { stopped }), _) => stopped,
        (Err(CliError::OnlyKept), Question::Down { limit_ms }) => {
            end_all_kept(&meeting::kept(&meeting::file(file)?), limit_ms.map(Duration::from_millis))?
        }
        (Ok(_), _) => return Err(CliError::Lost),
        (Err(error), _) => return Err(error),
    };
    let text: String = if json {
        stopped.iter().map(|row| serde_json::to_string(row).unwrap_or_default() + "\n").collect()
    } else {
        stopped.iter().filter(|row| !row.clean).map(|row| row.text.clone() + "\n").collect()
    };
    let survivors = stopped.iter().any(|row: &StoppedRow| !row.survivors.is_empty());
    let printed = print(&text);
    Ok(if survivors { ExitCode::from(code::FAILED) } else { printed })
}

/// Ends services that have outlived their pm. The file need not be readable for that.
fn end_all_kept(path: &Path, limit: Option<Duration>) -> Result<Vec<StoppedRow>, CliError> {
    runtime()?.block_on(async {
        let builder = match Orchestrator::builder().adopt(path) {
            Ok(builder) => builder,
            // That of another version can still be told to kill them.
            Err(error @ KeepError::NotAdopted { .. }) => {
                say(format_args!("{}; they are killed", chain(&error)));
                end_kept(path).map_err(|source| CliError::Meeting { path: path.to_owned(), source })?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(CliError::Keep(error)),
        };
        let orchestrator = builder.start().map_err(CliError::Runtime)?;
        Ok(orchestrator.end_left_behind(limit).await.into_iter().map(Into::into).collect())
    })
}

/// `pm events`.
///
/// # Errors
/// The project is not up.
pub fn events(file: Option<&Path>, json: bool) -> Result<ExitCode, CliError> {
    let socket = meeting::socket(&meeting::file(file)?)?;
    runtime()?.block_on(async {
        let mut asked = Asked::new(&socket, &Question::Events).await?;
        // The end of the project is the end of its events.
        while let Ok(Answer::Event(row)) = asked.next().await {
            if row.is_sample() && !json {
                continue;
            }
            let line = if json {
                serde_json::to_string(&row).unwrap_or_default()
            } else {
                format!("{} {} {}", row.time, row.service, shown(&row.text))
            };
            if print(&(line + "\n")) != ExitCode::SUCCESS {
                return Ok(ExitCode::from(code::CLOSED));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
