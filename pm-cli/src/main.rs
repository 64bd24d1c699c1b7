//! The `pm` command. What it does is in the library `pm_cli`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // Workers, the keeper and the peers of a bench are this same program; in those these calls do not return.
    pm_cli::bench::place::pin_from_environment();
    pm_cli::bench::limits::serve_if_peer();
    pm::roles(pm_cli::roles::ALL);
    pm_cli::run(std::env::args_os())
}
