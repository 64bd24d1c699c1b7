//! Where the package is, and how its code gets into workers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pm::{
    AnyTransport, Json, NodeChannel, PoolBuilder, QueryManager, Retry, Spec, SpecBuilder, StartError, StreamManager,
    Transport,
};

use super::dialect::{Simulator, Validator};
use super::validate::{Entry, Problems};

/// Battles are streams of lines for the simulator, and of chunks of what it says.
pub(crate) type Battles = StreamManager<String, String, Json>;

/// To validate a team is a query.
pub(crate) type Validators = QueryManager<Entry, Problems, Json>;

/// How many battles a worker has at once. The others wait, also for a worker that is started anew: on the one that is left they would all be
/// slow, and die together if it did. `worker.js` says the same.
pub(crate) const AT_ONCE: u32 = 8;

/// What installs the package in this directory.
pub(crate) const INSTALL: [&str; 4] = ["npm", "ci", "--ignore-scripts", "--omit=optional"];

/// How long the validation of a team may take. The package's own validator leaves without an answer what it fails at.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Who hosts the package's code.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Host {
    /// `worker.js`, by the kit for Node.js over this transport.
    Kit(AnyTransport),
    /// The files that a server of the package forks for itself, as they are.
    Package,
}

impl Host {
    /// Workers that simulate battles. Of each battle so many chunks lie here that nobody has read, at most.
    pub(crate) async fn battles(self, workers: u32, unread: u32) -> Result<Battles, StartError> {
        match self {
            Host::Kit(transport) => battles(kit("battle"), transport, workers, unread).await,
            Host::Package => {
                let channel = NodeChannel::speaking(Simulator::default());
                battles(forked("room-battle.js"), channel, workers, unread).await
            }
        }
    }

    /// Workers that validate teams.
    pub(crate) async fn validators(self, workers: u32) -> Result<Validators, StartError> {
        match self {
            Host::Kit(transport) => validators(kit("validate"), transport, workers).await,
            Host::Package => {
                let channel = NodeChannel::speaking(Validator);
                validators(forked("team-validator-async.js"), channel, workers).await
            }
        }
    }
}

async fn battles<T: Transport + Clone>(
    spec: SpecBuilder,
    transport: T,
    workers: u32,
    unread: u32,
) -> Result<Battles, StartError> {
    let pool = PoolBuilder::program("battles", spec, transport, Json).streams();
    pool.workers(workers).window(unread, 256 << 10).start().await
}

async fn validators<T: Transport + Clone>(
    spec: SpecBuilder,
    transport: T,
    workers: u32,
) -> Result<Validators, StartError> {
    let pool = PoolBuilder::program("validators", spec, transport, Json);
    // A team is as legal the second time.
    pool.workers(workers).timeout(TIMEOUT).retry(Retry::times(10)).start().await
}

/// The directory of this example.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/showdown")
}

fn package() -> PathBuf {
    directory().join("node_modules/pokemon-showdown")
}

/// Whether the package is there; otherwise what to do about it.
pub(crate) fn check() -> Result<(), String> {
    if package().join("dist/sim/index.js").exists() {
        return Ok(());
    }
    let install = format!("run `{}` in {}", INSTALL.join(" "), directory().display());
    if has_npm() {
        return Err(format!("the package pokemon-showdown is not installed: {install}"));
    }
    Err(format!(
        "there is no npm on PATH, and no package pokemon-showdown: install Node.js, which has npm, and then {install}"
    ))
}

pub(crate) fn has_npm() -> bool {
    let npm = Command::new("npm").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    npm.is_ok_and(|status| status.success())
}

fn kit(role: &str) -> SpecBuilder {
    Spec::program("node").arg(directory().join("worker.js")).serving(role)
}

/// A file of the package as `child_process.fork` would start it there. What a server has and a package lacks is the file with its
/// configuration.
fn forked(file: &str) -> SpecBuilder {
    let config = directory().join("config.js");
    let file = package().join("dist/server").join(file);
    Spec::program("node").arg("--require").arg(config).arg(file).cwd(package())
}
