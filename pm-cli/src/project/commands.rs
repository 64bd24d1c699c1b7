//! From a command line to what carries it out.

use std::process::ExitCode;
use std::time::Duration;

use super::wire::Question;
use super::{attach, background, client, graph, history, screen, tui, up, wire};
use crate::cli::Command;
use crate::cli::project::{AttachArgs, GraphArgs, LogsArgs, UpArgs};
use crate::config::{self, Project, Purpose};
use crate::error::{CliError, say};

/// Carries out a command that is about a project.
///
/// # Errors
/// What keeps it from being carried out.
pub fn run(command: Command) -> Result<ExitCode, CliError> {
    let millis = |limit: Option<Duration>| limit.map(wire::millis);
    match command {
        Command::Up(args) => run_up(args),
        Command::Ps(args) => client::ps(args.project.file.as_deref(), args.json),
        Command::Tui(args) => tui::terminal::show(args.file.as_deref()),
        Command::Logs(args) => logs(args),
        Command::Attach(args) => {
            let AttachArgs { project, label, close, no_stdin } = args;
            attach::client::attach(project.file.as_deref(), &attach::client::Wanted { label, close, no_stdin })
        }
        Command::Start(args) => {
            let question = Question::Start { names: args.names, no_deps: args.no_deps };
            client::act(args.project.file.as_deref(), &question, None)
        }
        Command::Stop(args) => {
            let question = Question::Stop { names: args.names, limit_ms: millis(args.limit) };
            client::stop(args.project.file.as_deref(), &question, args.json)
        }
        Command::Restart(args) => {
            client::act(args.project.file.as_deref(), &Question::Restart { names: args.names }, None)
        }
        Command::Scale(args) => {
            let question = Question::Scale { name: args.name, replicas: args.replicas };
            client::act(args.project.file.as_deref(), &question, None)
        }
        Command::Down(args) => {
            let question = Question::Down { limit_ms: millis(args.limit) };
            client::stop(args.project.file.as_deref(), &question, args.json)
        }
        Command::Reload(args) => client::reload(args.project.file.as_deref(), args.json),
        Command::Wait(args) => {
            let question = Question::Wait { names: args.names, condition: args.condition };
            client::act(args.project.file.as_deref(), &question, Some(args.timeout))
        }
        Command::Events(args) => client::events(args.project.file.as_deref(), args.json),
        Command::Graph(args) => graph(&args),
        Command::Check(args) => {
            let project = Project::read(args.file.as_deref()).map_err(CliError::Config)?;
            warn(&project);
            let names: Vec<&str> = project.services.iter().map(|one| one.name()).collect();
            let noun = if names.len() == 1 { "service" } else { "services" };
            Ok(client::print(&format!("{}: {} {noun}: {}\n", project.name, names.len(), names.join(", "))))
        }
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&config::native::schema()).unwrap_or_default();
            Ok(client::print(&(schema + "\n")))
        }
        Command::Pool(_) | Command::Bench(_) | Command::Keeper | Command::Completions { .. } | Command::Man { .. } => {
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_up(args: UpArgs) -> Result<ExitCode, CliError> {
    if args.in_background {
        background::leave_session();
    }
    if args.tui {
        // Said before anything is started.
        tui::terminal::check()?;
    }
    // Who starts another pm for it does not run it.
    let is_elsewhere = args.detach || args.wait || args.tui;
    let purpose = if is_elsewhere { Purpose::Look } else { Purpose::Start };
    let project = Project::read_for(args.project.file.as_deref(), purpose).map_err(CliError::Config)?;
    warn(&project);
    let plan = up::Plan {
        names: args.names,
        no_deps: args.no_deps,
        exit_code_from: args.exit_code_from,
        style: screen::Style::choose(args.json),
        is_in_background: args.in_background,
        is_kept: args.keep,
        project,
    };
    if !is_elsewhere {
        return up::run(plan);
    }
    let wanted = plan.wanted()?;
    background::start(&plan)?;
    if args.tui {
        return tui::terminal::show(Some(&plan.project.file));
    }
    if args.wait { background::wait(&plan.project.file, wanted, args.wait_timeout) } else { Ok(ExitCode::SUCCESS) }
}

/// Says what stands in the file and does nothing.
fn warn(project: &Project) {
    for warning in &project.warnings {
        say(format_args!("warning: {warning}"));
    }
}

fn logs(args: LogsArgs) -> Result<ExitCode, CliError> {
    let project = Project::read(args.file.as_deref()).map_err(CliError::Config)?;
    let LogsArgs { names, follow, since, lines, timestamps, .. } = args;
    history::show(&project, &history::Wanted { names, follow, since, lines, timestamps })
}

fn graph(args: &GraphArgs) -> Result<ExitCode, CliError> {
    let project = Project::read(args.project.file.as_deref()).map_err(CliError::Config)?;
    let form = match args {
        GraphArgs { dot: true, .. } => graph::Form::Dot,
        GraphArgs { mermaid: true, .. } => graph::Form::Mermaid,
        GraphArgs { json: true, .. } => graph::Form::Json,
        _ => graph::Form::Text,
    };
    Ok(client::print(&graph::draw(&project.services, form)))
}
