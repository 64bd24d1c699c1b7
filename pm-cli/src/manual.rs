//! Completions for shells, and pages for man(1): both are made of the command line itself, so they say what it says.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::CliError;
use crate::project::client::print;

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pm", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Writes a page for each command into a directory.
///
/// # Errors
/// The directory cannot be written to.
pub fn pages(directory: &Path) -> Result<ExitCode, CliError> {
    let refused =
        |source| CliError::Log { path: directory.into(), problem: "cannot be written to".into(), source: Some(source) };
    std::fs::create_dir_all(directory).map_err(refused)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(refused)?;
    Ok(ExitCode::SUCCESS)
}
