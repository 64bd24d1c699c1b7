//! pm beside its rivals in one run: echo of 64 bytes and of 64 KiB through one worker process. `peers --help` says how.
//!
//! This program has three roles. Started by hand, it starts a manager for each rival in turn, and prints what they measured. As a
//! manager it measures one rival. As a worker it echoes for a manager.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`rival`] | who is measured |
//! | [`compare`] | the rounds |
//! | [`group`] | a process and all that it starts, bounded in time |
//! | [`role`] | how this program starts itself |
//! | [`measure`] | what is shared by the managers in Rust |
//! | [`scripts`] | the rivals in Node.js and Python |
//! | [`ours`], [`node`], [`mux`], [`iceoryx`], [`ipc_channel`], [`tarpc`] | one rival each |
//! | [`row`], [`table`] | what comes of it |

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use pm_cli::bench::limits::serve_if_peer;
use pm_cli::bench::place::pin_from_environment;
use pm_cli::bench::work::{BLOCK, BYTES};

use crate::cli::Args;
use crate::role::Role;

mod cli;
mod compare;
mod error;
mod group;
mod iceoryx;
mod ipc_channel;
mod measure;
mod mux;
mod node;
mod ours;
mod rival;
mod role;
mod row;
mod scripts;
mod table;
mod tarpc;

fn main() -> ExitCode {
    pin_from_environment();
    serve_if_peer();
    pm::roles([&BLOCK, &BYTES]);
    let args = Args::parse();
    let done = match Role::of_this_process() {
        Role::Whole => return compare::run(&args),
        Role::Manager => rival::manage(&args),
        Role::Worker => rival::serve(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
