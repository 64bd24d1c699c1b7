//! What a Spec means for the process that is made of it, whatever that is for: a worker, or a program that runs once.

use super::launch::{self, Command, LaunchError};
use super::listeners::LISTEN_VARIABLES;
use crate::machine::spec::{Program, Resource, Spec};
use crate::transport::{LINK_VARIABLES, ROLE_VARIABLE, WORKER_VARIABLE};

/// What else a worker is told by its environment. What this process was told itself is meant for nobody else.
const WORKER_VARIABLES: [&str; 2] = [ROLE_VARIABLE, WORKER_VARIABLE];

/// Where a process that Node.js forked finds its channel: under a number that means something else in any other process.
const NODE_VARIABLES: [&str; 2] = ["NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE"];

/// How a process tells who started it that it is ready, and lives. What a worker says there would be taken for this process's own word.
pub(crate) const NOTIFY_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The command for `spec`, without descriptors. `owner` is what the process belongs to, and `unit` what it is called in the environment.
pub(crate) fn of_spec(spec: &Spec, owner: &str, unit: String) -> Result<Command, LaunchError> {
    // Listeners of this process, its link and its own channel to Node.js are not meant for that one. What the Spec sets is.
    let of_this_process =
        [&LISTEN_VARIABLES[..], &NOTIFY_VARIABLES, &NODE_VARIABLES, &LINK_VARIABLES, &WORKER_VARIABLES].concat();
    let own = std::env::vars_os().filter(|(name, _)| !of_this_process.iter().any(|known| name == known));
    let env = spec.environment(own);
    let (program, name) = match spec.what() {
        Program::Role(role) => {
            if !launch::roles_called() {
                return Err(LaunchError::RolesNotCalled);
            }
            // The path may have been replaced by a newer program since; this always is the one that runs.
            ("/proc/self/exe".into(), format!("{owner}:{role}").into())
        }
        Program::Path(name) => {
            let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
            (launch::resolve_program(name, path.as_deref())?, name.clone())
        }
        Program::Visitor(path) => {
            let source = std::io::ErrorKind::InvalidInput.into();
            return Err(LaunchError::Failed {
                program: path.clone(),
                step: "starting a visitor, which comes by itself",
                source,
            });
        }
    };
    let mut command = Command::new(program, unit);
    command.argv = std::iter::once(name).chain(spec.args().iter().cloned()).collect();
    command.env = env;
    command.cwd = spec.cwd().cloned();
    command.nice = spec.nice();
    command.rlimits = spec.limits().iter().map(|&(resource, limit)| (resource, limit, hard(resource, limit))).collect();
    (command.uid, command.gid) = spec.user();
    Ok(command)
}

/// The hard limit beside a soft one. At the soft limit of processor time the kernel sends SIGXCPU, which says what happened, and at the hard one
/// SIGKILL, which does not; where both are the same it is SIGKILL. So this one is a second higher, if the manager's own leaves room.
fn hard(resource: Resource, limit: u64) -> u64 {
    if resource != Resource::Cpu {
        return limit;
    }
    let more = limit.saturating_add(1);
    rustix::process::getrlimit(rustix::process::Resource::Cpu).maximum.map_or(more, |own| own.clamp(limit, more))
}
