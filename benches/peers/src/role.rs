//! How this program starts itself: as a manager that measures one rival, or as a worker that echoes for one.

use std::process::{Child, Command, Stdio};

use pm_cli::bench::place::{Place, VARIABLE};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::cli::Args;
use crate::error::{PeerError, Step};
use crate::rival::Rival;

/// The variable that says which role a process has.
const ROLE: &str = "PEERS_ROLE";

/// The variable that tells a worker where its manager can be found.
const ADDRESS: &str = "PEERS_ADDRESS";

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The program that somebody started.
    Whole,
    /// It measures one rival.
    Manager,
    /// It echoes.
    Worker,
}

impl Role {
    /// What the environment says. A manager or worker ends with the process that started it from here on.
    pub(crate) fn of_this_process() -> Role {
        let role = match std::env::var(ROLE).as_deref() {
            Ok("manager") => Role::Manager,
            Ok("worker") => Role::Worker,
            _ => return Role::Whole,
        };
        // Where the kernel refuses, `Group` ends them all the same, unless it is killed itself.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        role
    }
}

/// The address that the manager gave to this worker.
pub(crate) fn address() -> Result<String, PeerError> {
    std::env::var(ADDRESS).step("find the address of the manager")
}

/// The command that starts a manager.
pub(crate) fn manager(rival: Rival, args: &Args) -> Command {
    let mut command = itself(rival, "manager");
    command.arg("--seconds").arg(args.seconds.as_secs_f64().to_string()).arg("--placement").arg(args.placement.name());
    command
}

/// A worker, which ends with this.
#[derive(Debug)]
pub(crate) struct Worker(pub(crate) Child);

impl Worker {
    /// Starts it where the place says.
    pub(crate) fn start(
        rival: Rival,
        place: Place,
        address: &str,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Self, PeerError> {
        let mut command = itself(rival, "worker");
        command.env(VARIABLE, place.variable()).env(ADDRESS, address).stdin(stdin).stdout(stdout);
        command.spawn().map(Worker).step("start a worker")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn itself(rival: Rival, role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    // What is said of a failure is one line, and not where it came from.
    command.env(ROLE, role).env("RUST_BACKTRACE", "0").arg("--only").arg(rival.name());
    command
}
