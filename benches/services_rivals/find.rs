//! Where a tool is, how it is installed, and which version it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::AS_PM;
use crate::mark::Mark;
use crate::problem::Problem;
use crate::running::ends_within;
use crate::tool::Tool;

/// What pip installs.
const PIP: [&str; 2] = ["supervisor==4.3.0", "honcho==2.0.0"];

/// What npm installs.
const NPM: [&str; 2] = ["pm2@7.0.4", "mprocs@0.9.6"];

/// How long a package manager may take.
const INSTALL: Duration = Duration::from_secs(180);

/// How long a tool may take to say its version.
const VERSION: Duration = Duration::from_secs(20);

/// A tool that can be measured.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) tool: Tool,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

impl Found {
    /// What `--install` has installed, or else what is on PATH. The error says why it is skipped.
    pub(crate) fn look(tool: Tool, scratch: &Path) -> Result<Found, String> {
        if tool == Tool::Pm {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            return Ok(Found { tool, program, version: env!("CARGO_PKG_VERSION").to_string() });
        }
        let installed = [home().join("venv/bin"), home().join("node/node_modules/.bin")];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = installed.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(tool.name()));
        let mut why = format!("it is not installed; {}", tool.advice());
        for candidate in candidates.filter(|candidate| candidate.is_file()) {
            // That of npm starts the program proper, and would be counted with it.
            let program = if tool == Tool::Mprocs { behind_npm(&candidate, scratch) } else { candidate };
            let mut command = Command::new(&program);
            command.arg(tool.version());
            match output(&mut command, scratch, VERSION) {
                Ok(text) => return Ok(Found { tool, program, version: version_in(&text) }),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }

    /// The command, with these arguments, in this directory, where it keeps all of its files.
    pub(crate) fn variables(&self, dir: &Path) -> Vec<(&'static str, String)> {
        let dir = |name: &str| dir.join(name).display().to_string();
        let mut variables = vec![
            ("XDG_RUNTIME_DIR", dir("")),
            ("PM2_HOME", dir("pm2")),
            ("PM2_DISABLE_VERSION_CHECK", "true".to_string()),
            ("TERM", "xterm-256color".to_string()),
        ];
        if self.tool == Tool::Pm {
            variables.push((AS_PM, "1".to_string()));
        }
        variables
    }
}

/// Installs what pip and npm have, and says what cannot be installed.
pub(crate) fn install(scratch: &Path) {
    let venv = home().join("venv");
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&venv);
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PIP);
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--prefix"])
        .arg(home().join("node"))
        .args(NPM);
    let python = output(&mut make, scratch, INSTALL).and_then(|_| output(&mut pip, scratch, INSTALL));
    let node = output(&mut npm, scratch, INSTALL);
    for (what, installed) in [(PIP, python), (NPM, node)] {
        if let Err(error) = installed {
            eprintln!("{} cannot be installed: {error}", what.join(" and "));
        }
    }
}

/// Where they are installed.
fn home() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("rivals")
}

/// Runs a command to its end, and gives what it has written to standard output. What it has started ends with it.
fn output(command: &mut Command, scratch: &Path, limit: Duration) -> Result<String, Problem> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Files: whoever is left and holds a pipe would hold up its reader.
    let files = ["output", "errors"].map(|file| scratch.join(file));
    let file = |at: usize| File::create(&files[at]).map_err(Problem::io("a file"));
    let mark = Mark::new();
    mark.set(command);
    command.env("PM2_HOME", scratch.join("pm2")).env("PM2_DISABLE_VERSION_CHECK", "true");
    command.stdin(Stdio::null()).stdout(file(0)?).stderr(file(1)?);
    let mut child = command.spawn().map_err(Problem::io(&name))?;
    let is_late = !ends_within(child.id(), limit);
    drop(mark);
    let status = child.wait().map_err(Problem::io(&name))?;
    let [output, errors] = files.map(|file| std::fs::read(file).unwrap_or_default());
    if is_late {
        return Err(Problem::Late(name, limit));
    }
    if !status.success() {
        let said = String::from_utf8_lossy(&errors).into_owned();
        let line = said.lines().find(|line| line.to_lowercase().contains("error")).or(said.lines().next());
        return Err(Problem::Failed(name, line.map_or(status.to_string(), str::to_string)));
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// The program that a package of npm has for this machine.
fn behind_npm(candidate: &Path, scratch: &Path) -> PathBuf {
    let Ok(script) = candidate.canonicalize() else { return candidate.to_path_buf() };
    if script.extension().is_none_or(|ending| ending != "js") {
        return candidate.to_path_buf();
    }
    let mut node = Command::new("node");
    node.args(["-p", "require(process.argv[1])"]).arg(script.with_file_name("index.js"));
    output(&mut node, scratch, VERSION).map_or(candidate.to_path_buf(), |path| path.trim().into())
}

/// The last word that begins with a digit, behind a `v` or not: pm2 says more than its version.
fn version_in(text: &str) -> String {
    let mut words = text.split_whitespace().map(|word| word.trim_start_matches('v'));
    words.rfind(|word| word.starts_with(|char: char| char.is_ascii_digit())).unwrap_or("unknown").to_string()
}
