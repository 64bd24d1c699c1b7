//! The `pm` command. What it does is in the library `pm_cli`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // Workers and the keeper are this same program; in those this call does not return.
    pm::roles(pm_cli::roles::ALL);
    pm_cli::run(std::env::args_os())
}
