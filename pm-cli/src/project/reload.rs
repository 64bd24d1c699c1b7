//! A project that is up reads its file again: `pm reload`, and SIGHUP.
//!
//! What runs is what the last file that could be used says. One that cannot be used changes nothing, and is answered with what is wrong with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pm::core::machine::service::label;
use pm::service::{LogFile, Replaced};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::server::Serving;
use super::watching;
use crate::config::watched::Watched;
use crate::config::{Ends, Project, Purpose};
use crate::error::{CliError, chain, say};

/// How long a file may take to be read: it may lie on a disk that does not answer, and commands may be run for it, which have 2 s each.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// What follows from the file of a project, for those who serve it, watch it and show it. It is replaced as a whole.
#[derive(Debug)]
pub struct Facts {
    /// Those that are started where none is named.
    pub enabled: Vec<String>,
    /// Of each service whether something says when it is ready.
    pub says_when_ready: BTreeMap<String, bool>,
    /// The logs of those that have one.
    pub logs: BTreeMap<String, LogFile>,
    /// Services that take all others along when they end.
    pub ends: BTreeMap<String, Ends>,
    /// What is watched of those that are started anew when it changes.
    pub watched: BTreeMap<String, Watched>,
    /// The length of the longest name.
    pub width: usize,
}

impl Facts {
    /// Those of a project of which these services are wanted.
    pub fn of(project: &Project, wanted: Vec<String>) -> Self {
        let services = || project.services.iter();
        Facts {
            enabled: wanted,
            says_when_ready: services().map(|one| (one.name().to_string(), one.says_when_ready())).collect(),
            logs: services().filter_map(|one| Some((one.name().to_string(), one.log()?.clone()))).collect(),
            ends: project.ends.clone(),
            watched: project.watched.clone(),
            width: services().map(width_of).max().unwrap_or(0),
        }
    }
}

/// The length of the longest label of a service.
fn width_of(service: &pm::service::Service) -> usize {
    label(service.name(), service.replicas().max(1)).len()
}

/// What `pm up` was told beside the file.
#[derive(Clone, Debug)]
pub struct Told {
    /// The file, absolute.
    pub file: PathBuf,
    /// The services that are to start; all that are not disabled where none is named.
    pub names: Vec<String>,
    /// What they need does not matter.
    pub no_deps: bool,
    /// Stop when this one has ended, with its exit code.
    pub exit_code_from: Option<String>,
}

impl Told {
    /// The services of a project that are to start. Of those that were named, those that it has.
    ///
    /// # Errors
    /// The one whose exit code counts does not exist.
    pub fn wanted(&self, project: &Project) -> Result<Vec<String>, CliError> {
        let exists = |name: &&String| project.services.iter().any(|one| one.name() == **name);
        if let Some(name) = self.exit_code_from.as_ref().filter(|name| !exists(name)) {
            let known: Vec<&str> = project.services.iter().map(|one| one.name()).collect();
            let problem = format!("--exit-code-from {name}: there is no such service; there are {}", known.join(", "));
            return Err(CliError::Service(problem));
        }
        let mut wanted = match self.names.is_empty() {
            true => project.enabled(),
            false => self.names.iter().filter(exists).cloned().collect(),
        };
        let ends_it = self.exit_code_from.iter().filter(|name| !wanted.contains(name)).cloned();
        wanted.extend(ends_it.collect::<Vec<_>>());
        Ok(wanted)
    }
}

/// What came of it, in `pm reload --json` as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Services that there were not.
    pub added: Vec<String>,
    /// Services that are started anew, where they were up, or have another number of processes.
    pub changed: Vec<String>,
    /// Services that are stopped and forgotten.
    pub removed: Vec<String>,
    /// What stands in the file and does nothing, each with its line.
    pub warnings: Vec<String>,
}

impl Reloaded {
    /// Whether it is what it was.
    pub fn is_unchanged(&self) -> bool {
        [&self.added, &self.changed, &self.removed].iter().all(|names| names.is_empty())
    }
}

/// For people, on one line.
impl std::fmt::Display for Reloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_unchanged() {
            return f.write_str("nothing has changed");
        }
        let parts = [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)];
        let parts = parts.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<String> = parts.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        f.write_str(&parts.join("; "))
    }
}

/// Why all is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReloaded {
    /// The file cannot be used. The text says where, and why.
    Bad(String),
    /// It could not be done now.
    Failed(String),
}

/// Reads the file, and has the project be what it says. One at a time: whoever comes meanwhile waits. The turn is to be held until that is answered: it may
/// be the end of the project, which waits for that.
///
/// Not cancel safe: what serves the project and what runs would not fit together. Callers run it in a task of its own.
///
/// # Errors
/// [`NotReloaded`]: nothing was changed.
pub async fn reload(serving: &Serving) -> (Result<Reloaded, NotReloaded>, OwnedMutexGuard<()>) {
    let turn = serving.reloads.clone().lock_owned().await;
    (read_again(serving).await, turn)
}

async fn read_again(serving: &Serving) -> Result<Reloaded, NotReloaded> {
    not_ending(serving)?;
    let file = serving.told.file.clone();
    let read = tokio::task::spawn_blocking(move || Project::read_for(Some(&file), Purpose::Start));
    let project = match tokio::time::timeout(READ_LIMIT, read).await {
        Ok(Ok(Ok(project))) => project,
        Ok(Ok(Err(error))) => return Err(NotReloaded::Bad(chain(&error))),
        // It panicked, which is said already.
        Ok(Err(error)) => return Err(NotReloaded::Failed(chain(&error))),
        Err(_) => {
            let file = serving.told.file.display();
            return Err(NotReloaded::Bad(format!("{file} could not be read within {READ_LIMIT:?}")));
        }
    };
    let bad = |problem: String| NotReloaded::Bad(format!("{}: {problem}", serving.told.file.display()));
    let wanted = serving.told.wanted(&project).map_err(|error| bad(error.to_string()))?;
    let facts = Facts::of(&project, wanted.clone());
    not_ending(serving)?;
    let before = serving.facts();
    // Before anything is changed, for this may fail. Where it is the same, what waits for more changes goes on waiting.
    let watching = match facts.watched == before.watched && facts.logs == before.logs {
        true => None,
        false => {
            let watching = watching::start(&serving.orchestrator, &facts, &project.directory);
            Some(watching.map_err(|error| NotReloaded::Failed(chain(&error)))?)
        }
    };
    let replaced = serving.orchestrator.replace_and_start(project.services, wanted, !serving.told.no_deps).await;
    let Replaced { added, changed, removed } = replaced.map_err(|error| bad(chain(&error)))?;
    if let Some(watching) = watching {
        serving.watch_with(watching);
    }
    serving.facts.send_replace(Arc::new(facts));
    Ok(Reloaded { added, changed, removed, warnings: project.warnings })
}

/// Relaxed: who asks at the same moment may be served still.
fn not_ending(serving: &Serving) -> Result<(), NotReloaded> {
    match serving.is_ending.load(Ordering::Relaxed) {
        true => Err(NotReloaded::Failed("the project is going down: nothing is started any more".into())),
        false => Ok(()),
    }
}

/// Reloads whenever it is asked to, and says what came of it. One request that waits stands for all that come before it is taken.
pub async fn on_request(serving: Arc<Serving>, mut requests: mpsc::Receiver<()>) {
    while requests.recv().await.is_some() {
        let (reloaded, turn) = reload(&serving).await;
        match reloaded {
            Ok(reloaded) => {
                reloaded.warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
                say(format_args!("reloaded: {reloaded}"));
            }
            Err(NotReloaded::Bad(problem) | NotReloaded::Failed(problem)) => {
                say(format_args!("not reloaded, and all goes on as it was: {problem}"));
            }
        }
        drop(turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_it_in_words() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut reloaded = Reloaded { added: vec![], changed: vec![], removed: vec![], warnings: names(&["a"]) };
        assert_eq!(reloaded.to_string(), "nothing has changed");
        reloaded.removed = names(&["db"]);
        assert_eq!(reloaded.to_string(), "removed db");
        reloaded.added = names(&["a", "b"]);
        assert_eq!(reloaded.to_string(), "added a, b; removed db");
    }
}
