//! `pm up -d`: starts a project in the background, and comes back when it is up.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::client;
use super::up::Plan;
use super::wire::{Answer, Question};
use crate::config;
use crate::error::{CliError, code};

/// What a project in the background says when it is reached at its socket.
const UP: &str = "up";

/// Starts this program again, as a project in the background, and waits until it is reached. What it says itself goes to `.pm/background.log`.
///
/// # Errors
/// What keeps it from being up.
pub fn start(plan: &Plan) -> Result<(), CliError> {
    let project = &plan.project;
    let log = config::place_of(&project.file, "background.log");
    let refused =
        |source| CliError::Log { path: log.clone(), problem: "cannot be written".into(), source: Some(source) };
    config::make_place(&project.file).map_err(refused)?;
    // Nothing goes of what another one says that is up: who has its place begins anew.
    let written = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).map_err(refused)?;
    let mut command = Command::new("/proc/self/exe");
    // People find it by the name that they know.
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "pm".into()));
    command.args(["up", "--in-background", "-f"]).arg(&project.file);
    command.args(plan.no_deps.then_some("--no-deps")).args(plan.is_kept.then_some("--keep"));
    command.arg("--").args(&plan.names);
    // What else this process was given, such as a lock of a script, is not for the project.
    pm::core::driver::launch::keep_descriptors_private();
    // A directory in which nothing of it is would be kept busy.
    command.current_dir(&project.directory);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(written).spawn().map_err(CliError::Runtime)?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        // Its end comes when it has said that it is up, or has ended.
        let _ = BufReader::new(stdout).read_line(&mut said);
    }
    if said.trim_end() == UP {
        return Ok(());
    }
    // It has ended, or is about to.
    let status = child.wait().map_err(CliError::Runtime)?;
    if status.code() == Some(code::ALREADY_UP.into()) {
        return Err(CliError::AlreadyUp);
    }
    Err(CliError::Service(format!("the project did not come up ({status}); {} says why", log.display())))
}

/// Waits until all that was started has come up.
///
/// # Errors
/// What cannot come up any more, with its last lines; or it took too long.
pub fn wait(file: &Path, names: Vec<String>, limit: std::time::Duration) -> Result<ExitCode, CliError> {
    let question = Question::Wait { names, condition: None };
    match client::ask(Some(file), &question, Some(limit))? {
        Answer::Done => Ok(ExitCode::SUCCESS),
        _ => Err(CliError::Lost),
    }
}

/// Leaves the terminal and the session of who started this. To be called before there is a second thread.
pub fn leave_session() {
    // It fails only for the leader of a group, who has none to leave.
    let _ = rustix::process::setsid();
}

/// What the last one said is of no use to this one, which has the place of the project now.
pub fn begin_log() {
    // It is not the file where somebody has said so, and then stays as it is.
    let _ = rustix::fs::ftruncate(std::io::stderr(), 0);
}

/// Says that the project is reached, and that nothing else will be said.
pub fn told_up() {
    let mut stdout = std::io::stdout().lock();
    // Whoever started it may have gone.
    let _ = writeln!(stdout, "{UP}").and_then(|()| stdout.flush());
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}
