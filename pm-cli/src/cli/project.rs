//! The command lines of `pm up` and of the commands that speak to a project.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use pm::core::units;

/// Which project it is about.
#[derive(Debug, Args)]
pub struct FileArg {
    /// The file of the project: pm.toml, process-compose.yaml or a Procfile [default: the first of them that is here]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `pm up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The services to start, with what they need [default: all that are not disabled]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
    /// Start only the services that are named, whatever they need
    #[arg(long, requires = "names")]
    pub no_deps: bool,
    /// Run in the background: pm ps, pm logs -f and pm down speak to it
    #[arg(short, long)]
    pub detach: bool,
    /// Run in the background, and come back when all are healthy (running, where nothing says when they are ready; or completed with success); fail as soon as that cannot be any more
    #[arg(long)]
    pub wait: bool,
    /// Run in the background, and open pm tui
    #[arg(long, conflicts_with_all = ["wait", "json", "exit_code_from"])]
    pub tui: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "5m")]
    pub wait_timeout: Duration,
    /// Stop all when this service has ended, with its exit code
    #[arg(long, value_name = "SERVICE", conflicts_with_all = ["detach", "wait"])]
    pub exit_code_from: Option<String>,
    /// A JSON object for each line that services print, and for each event
    #[arg(long, conflicts_with_all = ["detach", "wait"])]
    pub json: bool,
    /// Let the services outlive this pm if it is killed: the next pm up takes them over, and pm down ends them
    #[arg(long)]
    pub keep: bool,
    /// Is the project in the background that another pm has started
    #[arg(long, hide = true)]
    pub in_background: bool,
}

/// `pm ps`, `pm events` and `pm reload`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// A JSON object for each
    #[arg(long)]
    pub json: bool,
}

/// `pm logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The file of the project: pm.toml, process-compose.yaml or a Procfile [default: the first of them that is here]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The services [default: all]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
    /// What they print from now on, too
    #[arg(short, long)]
    pub follow: bool,
    /// Nothing that is older, as in 10m or 1h30m
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub since: Option<Duration>,
    /// Only so many of the last lines of each
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
    /// The time of each line before it
    #[arg(long)]
    pub timestamps: bool,
}

/// `pm attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The service; of its further replicas as in web#2
    #[arg(value_name = "SERVICE")]
    pub label: String,
    /// At the end of the input, close that of the service as well, and stay until it has ended
    #[arg(long, conflicts_with = "no_stdin")]
    pub close: bool,
    /// Read nothing: only show what it prints, until it has ended
    #[arg(long)]
    pub no_stdin: bool,
}

/// `pm start` and `pm restart`.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The services, with what they need [default: all that are not disabled]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
    /// Start only the services that are named, whatever they need
    #[arg(long, requires = "names")]
    pub no_deps: bool,
}

/// `pm restart`.
#[derive(Debug, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The services [default: all that are not disabled]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
}

/// `pm stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The services [default: all]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
    /// How long each may take until it is killed [default: what the file says, or 10s]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub limit: Option<Duration>,
    /// What had to be killed, as JSON objects
    #[arg(long)]
    pub json: bool,
}

/// `pm down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// How long all together may take until what is left is killed [default: to each what the file says, or 10s]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub limit: Option<Duration>,
    /// What had to be killed, as JSON objects
    #[arg(long)]
    pub json: bool,
}

/// `pm scale`.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The service
    #[arg(value_name = "SERVICE")]
    pub name: String,
    /// How many processes of it there are to be
    #[arg(value_name = "N")]
    pub replicas: u32,
}

/// `pm wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// The services [default: all that are not disabled]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
    /// started, running, healthy, log_ready, completed or completed_successfully [default: healthy; running, where nothing says when they are ready; or completed with success]
    #[arg(long = "for", value_name = "CONDITION", value_parser = conditions())]
    pub condition: Option<String>,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "5m")]
    pub timeout: Duration,
}

/// `pm graph`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("form").args(["dot", "mermaid", "json"])))]
pub struct GraphArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap shows the text as that of the option")]
    pub project: FileArg,
    /// For Graphviz: pm graph --dot | dot -Tsvg
    #[arg(long)]
    pub dot: bool,
    /// For Mermaid
    #[arg(long)]
    pub mermaid: bool,
    /// A JSON object for each service
    #[arg(long)]
    pub json: bool,
}

/// What can be waited for, for the command line and its completions.
fn conditions() -> clap::builder::PossibleValuesParser {
    pm::service::Condition::ALL.map(pm::service::Condition::name).into()
}
