//! The rivals in Node.js and Python: scripts that measure as the managers in Rust do, and print the same rows.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cli::Args;
use crate::error::PeerError;
use crate::group::{self, GroupError};
use crate::rival::Rival;

/// How long a package manager may take.
const INSTALL: Duration = Duration::from_secs(180);

/// How long it may take to see whether a package is there.
const PROBE: Duration = Duration::from_secs(20);

/// A script that measures a rival.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// What it is written in.
    pub(crate) language: Language,
    /// Its file.
    pub(crate) file: &'static str,
    /// A program that fails where the package of the script is not installed.
    pub(crate) probe: &'static str,
}

/// What a script is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    /// Packages come from npm, into `node_modules` beside the scripts.
    Node,
    /// Packages come from pip, into an environment in `target`.
    Python,
}

/// Installs the packages that are missing. Says which rivals cannot run all the same, and why, on one line.
pub(crate) fn missing(rivals: &[Rival]) -> Vec<(Rival, String)> {
    let scripts: Vec<_> = rivals.iter().filter_map(|rival| Some((*rival, rival.script()?))).collect();
    let mut missing = Vec::new();
    if rivals.contains(&Rival::Node)
        && let Err(error) = group::run(Language::Node.interpreter().arg("--version"), PROBE)
    {
        missing.push((Rival::Node, error.to_string()));
    }
    for language in [Language::Node, Language::Python] {
        let mine = || scripts.iter().filter(|(_, script)| script.language == language);
        if mine().all(|(_, script)| script.probe().is_ok()) {
            continue;
        }
        let installed = language.install();
        for (rival, script) in mine() {
            match (script.probe(), &installed) {
                (Ok(_), _) => {}
                (Err(error @ GroupError::Start { .. }), _) => missing.push((*rival, error.to_string())),
                (Err(_), Ok(_)) => missing.push((*rival, "its package does not load".to_string())),
                (Err(_), Err(error)) => missing.push((*rival, cannot_install(error))),
            }
        }
    }
    missing
}

/// Of what a package manager said, the first line that speaks of an error: what follows is advice.
fn cannot_install(error: &GroupError) -> String {
    let error = error.to_string();
    let line = error.lines().find(|line| line.to_lowercase().contains("error")).or(error.lines().next());
    format!("its package cannot be installed: {}", line.unwrap_or_default())
}

impl Script {
    /// Becomes the script, in the place of this process. Returns where that fails.
    pub(crate) fn become_it(self, args: &Args) -> PeerError {
        let mut command = self.language.interpreter();
        command.arg(self.file).arg(args.seconds.as_secs_f64().to_string()).arg(args.placement.variable());
        PeerError::Step { step: "run the script", problem: command.exec().to_string() }
    }

    fn probe(self) -> Result<String, GroupError> {
        let flag = match self.language {
            Language::Node => "-e",
            Language::Python => "-c",
        };
        group::run(self.language.interpreter().arg(flag).arg(self.probe), PROBE)
    }
}

impl Language {
    fn directory(self) -> PathBuf {
        home().join("scripts").join(match self {
            Language::Node => "node",
            Language::Python => "python",
        })
    }

    /// What runs a script, started where the scripts are.
    fn interpreter(self) -> Command {
        let mut command = match self {
            Language::Node => Command::new("node"),
            Language::Python if python().exists() => Command::new(python()),
            Language::Python => Command::new("python3"),
        };
        command.current_dir(self.directory());
        command
    }

    fn install(self) -> Result<String, GroupError> {
        let run = |mut command: Command, words: &[&str]| {
            eprintln!("{} {} …", command.get_program().to_string_lossy(), words.join(" "));
            group::run(command.current_dir(self.directory()).args(words), INSTALL)
        };
        match self {
            Language::Node => {
                run(Command::new("npm"), &["ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"])
            }
            Language::Python => {
                if !python().exists() {
                    run(Command::new("python3"), &["-m", "venv", "../../target/venv"])?;
                }
                run(Command::new(python()), &["-m", "pip", "install", "--quiet", "--requirement", "requirements.txt"])
            }
        }
    }
}

/// The interpreter of the environment in `target`.
fn python() -> PathBuf {
    home().join("target/venv/bin/python")
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
