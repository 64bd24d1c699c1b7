//! What a project is made of: its services, read from a file.
//!
//! | module | reads |
//! |---|---|
//! | [`native`] | `pm.toml` |
//! | [`compose`] | `process-compose.yaml` |
//! | [`procfile`] | `Procfile` |
//! | [`variables`] | files of variables, and `${NAME}` in texts |
//! | [`values`] | times and sizes as they stand in a file |
//! | [`watched`] | what services are started anew for |
//! | [`place`] | which line of a file something stands in |

pub mod compose;
pub mod native;
pub mod place;
pub mod procfile;
pub mod values;
pub mod variables;
pub mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pm::service::{Service, State};
use thiserror::Error;

use place::Place;
use watched::Watched;

/// The files that are looked for where none is named, the first that is there.
pub const FILES: [&str; 4] = ["pm.toml", "process-compose.yaml", "process-compose.yml", "Procfile"];

/// Files that process-compose puts on top of the one that it finds. pm does not.
const OVERRIDES: [&str; 4] =
    ["compose.override.yml", "compose.override.yaml", "process-compose.override.yml", "process-compose.override.yaml"];

/// The longest file that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// A project: services that are started together.
#[derive(Debug)]
pub struct Project {
    /// What it is called.
    pub name: String,
    /// The file that it was read from, absolute.
    pub file: PathBuf,
    /// The directory of the file. What is relative in it is relative to this.
    pub directory: PathBuf,
    /// The services, as they stand in the file.
    pub services: Vec<Service>,
    /// Those that are not started unless they are named.
    pub disabled: BTreeSet<String>,
    /// Those that take the whole project along when they end.
    pub ends: BTreeMap<String, Ends>,
    /// Those that are started anew when something changes.
    pub watched: BTreeMap<String, Watched>,
    /// What stands in the file and does nothing: each with the file and its line, for people.
    pub warnings: Vec<String>,
}

/// What a project is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be shown, or to be spoken to where it is up. No command is run for it.
    Look,
    /// To be started.
    Start,
}

/// Which ends of a service are the end of the project, with the exit code of the service. A stop that was asked for never is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// All, once it is not to be started again.
    pub any: bool,
    /// Those that are no success.
    pub failure: bool,
    /// That it is not started because what it needs can no longer be.
    pub skipped: bool,
}

impl Ends {
    /// Whether a service in this state takes the project along.
    pub fn holds(self, state: State) -> bool {
        match state {
            State::Completed => self.any,
            State::Failed | State::GaveUp => self.any || self.failure,
            State::Skipped => self.skipped,
            _ => false,
        }
    }
}

/// A file that no project can be made of.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is none.
    #[error("there is no {} here; write one, or name another with -f", FILES.join(" or "))]
    NoFile,
    /// It cannot be read.
    #[error("{path:?} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is too long.
    #[error("{path:?} has {bytes} bytes; a file of services has {LONGEST} at most")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// What stands in it makes no sense. The text has the place, the line, and what would be right.
    #[error("{path}:{place}", path = .path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, and what is wrong there.
        place: Place,
    },
}

/// Something that is wrong, and where: bytes of the file, where that is known.
#[derive(Debug)]
pub struct Wrong {
    /// From where to where.
    pub at: Option<std::ops::Range<usize>>,
    /// What is wrong, with the value, and what would be right.
    pub problem: String,
}

impl Project {
    /// Reads the file that is named, or the first of [`FILES`] in the working directory, to look at it.
    ///
    /// # Errors
    /// [`ConfigError`], with the line and what is wrong there.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read_for(file, Purpose::Look)
    }

    /// Reads it for this purpose.
    ///
    /// # Errors
    /// [`ConfigError`], with the line and what is wrong there.
    pub fn read_for(file: Option<&Path>, purpose: Purpose) -> Result<Self, ConfigError> {
        let named = find(file)?;
        let unreadable = |source| ConfigError::Unreadable { path: named.clone(), source };
        // Through symbolic links the directory of the project would be another one than people see.
        let path = std::path::absolute(&named).map_err(unreadable)?;
        let bytes = fs::metadata(&path).map_err(unreadable)?.len();
        if bytes > LONGEST {
            return Err(ConfigError::TooLong { path: named, bytes });
        }
        let text = fs::read_to_string(&path).map_err(unreadable)?;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let logs = place_of(&path, "logs");
        let is_procfile = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("Procfile"));
        let is_compose = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        let read = match (is_procfile, is_compose) {
            (true, _) => procfile::read(&text, &directory, &logs),
            (false, true) if file.is_none() => {
                no_override(&directory).and_then(|()| compose::read(&text, &directory, &logs, purpose))
            }
            (false, true) => compose::read(&text, &directory, &logs, purpose),
            (false, false) => native::read(&text, &directory, &logs),
        };
        let shown = named.display().to_string();
        let Parts { name, services, disabled, ends, watched, warnings } =
            read.map_err(|wrong| ConfigError::Bad { path: named, place: Place::of(&text, wrong) })?;
        let line = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        let warning = |Wrong { at, problem }| match at {
            Some(at) => format!("{shown}:{}: {problem}", line(at.start)),
            None => format!("{shown}: {problem}"),
        };
        let warnings = warnings.into_iter().map(warning).collect();
        let name = name.unwrap_or_else(|| {
            directory.file_name().map_or_else(|| "project".into(), |name| name.to_string_lossy().into_owned())
        });
        Ok(Project { name, file: path, directory, services, disabled, ends, watched, warnings })
    }

    /// The names of the services that are started where none is named.
    pub fn enabled(&self) -> Vec<String> {
        let names = self.services.iter().map(|service| service.name().to_string());
        names.filter(|name| !self.disabled.contains(name)).collect()
    }
}

/// The file of a project: the one that is named, or the first of [`FILES`] in the directory that is named, or in the working directory.
///
/// # Errors
/// There is none.
pub fn find(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let directory = match named {
        Some(file) if !file.is_dir() => return Ok(file.to_owned()),
        Some(directory) => directory,
        None => Path::new(""),
    };
    FILES.iter().map(|name| directory.join(name)).find(|path| path.exists()).ok_or(ConfigError::NoFile)
}

/// Where pm keeps something of the project of this file, in `.pm` beside it: of a file with a name of its own under that name, so that several in one directory do not meet.
pub fn place_of(file: &Path, what: &str) -> PathBuf {
    let name = file.file_name().unwrap_or_default();
    let directory = file.parent().unwrap_or(Path::new("/")).join(".pm");
    match FILES.iter().any(|usual| name == *usual) {
        true => directory.join(what),
        false => directory.join(format!("{}.{what}", name.to_string_lossy())),
    }
}

/// Makes `.pm` beside the file of a project. Nothing in it is for git(1), whose users do not have to say so.
///
/// # Errors
/// What the kernel says.
pub fn make_place(file: &Path) -> std::io::Result<()> {
    let place = file.parent().unwrap_or(Path::new("/")).join(".pm");
    fs::create_dir_all(&place)?;
    let ignored = place.join(".gitignore");
    match fs::OpenOptions::new().write(true).create_new(true).open(ignored) {
        Ok(mut file) => std::io::Write::write_all(&mut file, b"*\n"),
        // What stands there stays.
        Err(_) => Ok(()),
    }
}

/// What a format gives.
#[derive(Debug, Default)]
pub struct Parts {
    /// What the project is called.
    pub name: Option<String>,
    /// The services.
    pub services: Vec<Service>,
    /// Those that are not started unless they are named.
    pub disabled: BTreeSet<String>,
    /// Those that take the whole project along when they end.
    pub ends: BTreeMap<String, Ends>,
    /// Those that are started anew when something changes.
    pub watched: BTreeMap<String, Watched>,
    /// What stands in the file and does nothing, and where.
    pub warnings: Vec<Wrong>,
}

/// process-compose puts another file on top of the one that it finds. Without it this would be another project.
fn no_override(directory: &Path) -> Result<(), Wrong> {
    match OVERRIDES.iter().find(|name| directory.join(name).exists()) {
        Some(name) => {
            let problem =
                format!("{name} stands beside it, and pm does not merge files; name the one that is meant with -f");
            Err(Wrong { at: None, problem })
        }
        None => Ok(()),
    }
}

/// Looks for needs that cannot be: what does not exist, cycles, what is never ready. `place` says where a service stands.
///
/// # Errors
/// The first that is wrong.
pub fn check(services: &[Service], place: impl Fn(&str) -> Option<std::ops::Range<usize>>) -> Result<(), Wrong> {
    use pm::core::machine::graph::BadGraph;
    use pm::core::machine::supervisor::{BadService, Supervisor};

    let all = services.iter().map(|one| (one.name().to_string(), one.rules().clone(), one.replicas())).collect();
    for (at, service) in services.iter().enumerate() {
        let path = |one: &Service| one.log().map(|log| log.path.clone());
        if let Some(other) = services[..at].iter().find(|other| path(other).is_some() && path(other) == path(service)) {
            let problem = format!(
                "{:?} and {:?} have one log: {:?}",
                other.name(),
                service.name(),
                path(service).unwrap_or_default()
            );
            return Err(Wrong { at: place(service.name()), problem });
        }
    }
    let Err(error) = Supervisor::new(0).add(all) else { return Ok(()) };
    let who = match &error {
        BadService::Graph(BadGraph::Twice(name)) => Some(name),
        BadService::Graph(BadGraph::Missing { from, .. }) | BadService::NeverReady { from, .. } => Some(from),
        BadService::Graph(BadGraph::Cycle(path)) => path.first(),
        _ => None,
    };
    let at = who.and_then(|name| place(name));
    Err(Wrong { at, problem: error.to_string() })
}
