//! The commands of `pm`. The binary is a thin shell around [`run`].
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line as it was written |
//! | [`config`] | the files of projects: pm.toml, process-compose.yaml, Procfile |
//! | [`project`] | `pm up`, and the commands that speak to a project |
//! | [`manual`] | completions for shells, and pages for man(1) |
//! | [`plan`] | the same, checked and resolved: what can be carried out |
//! | [`pool`] | `pm pool`: carries the plan out |
//! | [`bench`](mod@bench) | `pm bench`: measures the transports side by side |
//! | [`roles`] | what `pm` serves as its own worker: `@echo`, `@sha256`, `@wc`, programs with `{}`, filters |

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub mod bench;
pub mod cli;
pub mod config;
pub mod error;
pub mod manual;
pub mod plan;
pub mod pool;
pub mod project;
pub mod roles;

/// The standard output that the process was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdout {
    /// There is one.
    Open,
    /// There is none: what is written to it now goes nowhere.
    Closed,
}

impl Stdout {
    /// Nobody works for results that go nowhere.
    fn check(self) -> Result<(), error::CliError> {
        if self == Stdout::Open { Ok(()) } else { Err(error::CliError::NoStdout) }
    }
}

/// Reads the command line, does what it says, and gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, stdout: Stdout) -> ExitCode {
    let cli = match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help goes to standard output with code 0, what is wrong to standard error with code 2.
        Err(error) => cli::hinted(error).exit(),
    };
    let done = match cli.command {
        cli::Command::Pool(args) => pool(*args, stdout),
        cli::Command::Bench(args) => bench(args, stdout),
        cli::Command::Keeper => Err(keeper()),
        cli::Command::Completions { shell } => Ok(manual::completions(shell)),
        cli::Command::Man { directory } => manual::pages(&directory),
        command => project::run(command),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            error::say(format_args!("error: {}", error::chain(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

fn pool(args: cli::PoolArgs, stdout: Stdout) -> Result<ExitCode, error::CliError> {
    let plan = plan::Plan::new(args)?;
    if plan.log.is_none() {
        stdout.check()?;
    }
    pool::run(plan)
}

fn bench(args: cli::BenchArgs, stdout: Stdout) -> Result<ExitCode, error::CliError> {
    let plan = bench::Plan::new(args)?;
    stdout.check()?;
    bench::run(plan)
}

/// Becomes the keeper: this program again, under the name by which [`pm::roles`] knows it. Returns only where that fails.
fn keeper() -> error::CliError {
    use std::os::unix::process::CommandExt;

    use pm::core::driver::launch::KEEPER_ROLE;
    use pm::core::transport::ROLE_VARIABLE;

    error::CliError::Keeper(
        std::process::Command::new("/proc/self/exe").arg0(KEEPER_ROLE).env(ROLE_VARIABLE, KEEPER_ROLE).exec(),
    )
}
