//! `process-compose.yaml`: the files of process-compose, in version 0.5 of their format.
//!
//! What a field means is what process-compose makes of it, with its defaults. What pm cannot do is an error where a service would
//! run otherwise, and a warning where only what is seen of it changes. Nothing is passed over in silence.
//!
//! | module | does |
//! |---|---|
//! | `text` | puts values in place of `${NAME}` and `{{.NAME}}` |
//! | `tree` | reads YAML, each piece with its place |
//! | `process` | makes a service of a process |

mod process;
mod text;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pm::service::{LogFile, Service};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open};

use super::{Ends, Parts, Purpose, Wrong, check, variables};
use process::Process;
use text::{Expanded, shell_variable};
use tree::{Fields, Node, Value};

/// The version of the format that is read here.
const VERSION: &str = "0.5";

/// How long each command of `env_cmds` may take, as in process-compose.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);

/// The longest value that such a command gives, in bytes.
const LONGEST_VALUE: u64 = 128 << 10;

/// The most processes of one name. More is most likely a slip, and each costs a few descriptors.
const MOST_REPLICAS: u32 = 1000;

/// How many old logs are kept where process-compose keeps all.
const KEEP_ALL: u32 = 1000;

/// How large a log grows where rotation is asked for, and no size: as in process-compose.
const USUAL_MEGABYTES: u32 = 100;

const PROJECT: &[&str] = &[
    "version",
    "name",
    "processes",
    "environment",
    "vars",
    "env_cmds",
    "shell",
    "disable_env_expansion",
    "is_strict",
    "ordered_shutdown",
    "log_location",
    "log_configuration",
    "log_level",
    "log_length",
    "log_format",
    "is_tui_disabled",
    "extends",
    "mcp_server",
];

const PROCESS: &[&str] = &[
    "command",
    "entrypoint",
    "description",
    "working_dir",
    "environment",
    "env_file",
    "is_dotenv_disabled",
    "vars",
    "is_template_disabled",
    "disabled",
    "is_disabled",
    "replicas",
    "namespace",
    "depends_on",
    "readiness_probe",
    "liveness_probe",
    "ready_log_line",
    "availability",
    "success_exit_codes",
    "shutdown",
    "log_location",
    "log_configuration",
    "truncate_log",
    "name",
    "disable_ansi_colors",
    "monitor_for",
    "monitor_silence_threshold",
    "launch_timeout_seconds",
    "is_foreground",
    "is_daemon",
    "is_tty",
    "is_interactive",
    "is_elevated",
    "extends",
    "schedule",
    "watch",
    "mcp",
];

/// Fields of the file that only change what is seen, and why nothing comes of them.
const LOOKS_OF_PROJECT: &[(&str, &str)] = &[
    ("log_level", "pm has no log of its own"),
    ("log_length", "pm logs reads the whole log; -n says how much of it"),
    ("log_format", "pm's logs have a form of their own"),
    ("is_tui_disabled", "pm has no such screen"),
];

/// The same of a log.
const LOOKS_OF_LOG: &[&str] = &[
    "fields_order",
    "disable_json",
    "timestamp_format",
    "no_color",
    "no_metadata",
    "add_timestamp",
    "flush_each_line",
];

/// What surrounds the file.
#[derive(Debug)]
struct Surroundings {
    /// The environment of pm.
    environment: BTreeMap<String, String>,
    /// What commands are for where the file does not say.
    shell: String,
    purpose: Purpose,
}

impl Surroundings {
    fn here(purpose: Purpose) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let environment: BTreeMap<String, String> = std::env::vars_os().filter_map(text).collect();
        let has_bash = environment
            .get("PATH")
            .is_some_and(|path| std::env::split_paths(path).any(|directory| directory.join("bash").is_file()));
        let usual = if has_bash { "bash" } else { "sh" };
        let shell = environment.get("COMPOSE_SHELL").cloned().unwrap_or_else(|| usual.into());
        Surroundings { environment, shell, purpose }
    }
}

/// Reads one.
///
/// # Errors
/// What is wrong, and where.
pub fn read(text: &str, directory: &Path, logs: &Path, purpose: Purpose) -> Result<Parts, Wrong> {
    read_in(text, directory, logs, &Surroundings::here(purpose))
}

fn read_in(text: &str, directory: &Path, logs: &Path, surroundings: &Surroundings) -> Result<Parts, Wrong> {
    let dotenv = directory.join(".env");
    let dotenv = if dotenv.exists() {
        variables::read(&dotenv).map_err(|problem| Wrong { at: None, problem })?
    } else {
        Vec::new()
    };
    let mut warnings = Warnings::default();
    let source = expanded(text, &dotenv, surroundings, &mut warnings)?;
    let root = Node::parse(&source)?;
    if let Value::Null = root.value {
        return Err(Wrong {
            at: None,
            problem: "no process stands in it: write processes, and a command for each".into(),
        });
    }
    let file = Fields::of(&root, "", PROJECT)?;
    let project = Project::read(&file, (directory, logs), dotenv, surroundings, &mut warnings)?;
    project.parts(&file, warnings)
}

/// The file with values in place of its variables, unless it says that they are to stay.
fn expanded(
    text: &str,
    dotenv: &[(String, String)],
    surroundings: &Surroundings,
    warnings: &mut Warnings,
) -> Result<Expanded, Wrong> {
    let verbatim = Expanded::verbatim(text);
    if let Ok(Node { value: Value::Map(fields), .. }) = Node::parse(&verbatim) {
        let field = fields.iter().find(|(name, _)| name.name == "disable_env_expansion");
        if field.is_some_and(|(_, node)| node.truth("disable_env_expansion").unwrap_or(false)) {
            return Ok(verbatim);
        }
    }
    let lookup = |name: &str| {
        let from_file = dotenv.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value);
        from_file.or_else(|| surroundings.environment.get(name)).cloned()
    };
    let source = Expanded::new(text, &lookup)?;
    for (name, at) in &source.unset {
        let problem = format!(
            "${{{name}}} has no value here, so nothing is put in its place; $${{{name}}} is for the shell to see"
        );
        warnings.add(problem, Some(at.clone()));
    }
    Ok(source)
}

/// What is said once about a field, however often it stands in the file.
#[derive(Debug, Default)]
struct Warnings(Vec<(String, Vec<Option<Range<usize>>>)>);

impl Warnings {
    /// The same field may be looked at more than once: for each command of a process, and for each replica.
    fn add(&mut self, problem: impl Into<String>, at: Option<Range<usize>>) {
        let problem = problem.into();
        match self.0.iter_mut().find(|(known, _)| *known == problem) {
            Some((_, places)) if places.contains(&at) => {}
            Some((_, places)) => places.push(at),
            None => self.0.push((problem, vec![at])),
        }
    }

    fn all(self) -> Vec<Wrong> {
        let said = |(problem, places): (String, Vec<Option<Range<usize>>>)| {
            let more = if let [_, more @ ..] = &*places { more.len() } else { 0 };
            let problem = if more == 0 { problem } else { format!("{problem} (and {more} more of the same)") };
            Wrong { at: places.into_iter().next().flatten(), problem }
        };
        self.0.into_iter().map(said).collect()
    }
}

/// What all processes have in common.
struct Project<'a> {
    directory: &'a Path,
    /// Where logs are, where nothing else is said.
    logs: &'a Path,
    /// The environment of pm.
    environment: &'a BTreeMap<String, String>,
    name: Option<String>,
    /// The program that commands are for, and the argument before them.
    shell: (String, String),
    dotenv: Vec<(String, String)>,
    variables: Vec<(String, String)>,
    vars: BTreeMap<&'a str, &'a Node>,
    rotation: Rotation,
}

/// How large a log may be.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    max_bytes: u64,
    keep: u32,
}

impl<'a> Project<'a> {
    fn read(
        file: &Fields<'a>,
        (directory, logs): (&'a Path, &'a Path),
        dotenv: Vec<(String, String)>,
        surroundings: &'a Surroundings,
        warnings: &mut Warnings,
    ) -> Result<Self, Wrong> {
        if let Some(version) = file.text("version")?.filter(|version| *version != VERSION) {
            warnings.add(format!("version {version} is read as if it were {VERSION}"), file.place("version"));
        }
        if file.get("extends").is_some() {
            return Err(file.wrong("extends", "pm does not merge files; write all processes into one"));
        }
        if file.get("mcp_server").is_some() {
            return Err(file.wrong("mcp_server", "pm is no server of MCP"));
        }
        // Whatever they say: pm takes no unknown fields, and always stops those first that need others.
        let _ = (file.truth("is_strict")?, file.truth("ordered_shutdown")?, file.truth("disable_env_expansion")?);
        for (field, why) in LOOKS_OF_PROJECT.iter().filter(|(field, _)| file.get(field).is_some()) {
            warnings.add(format!("{field}: nothing comes of it: {why}"), file.place(field));
        }
        if file.text("log_location")?.is_some() {
            let problem = "log_location: each service has a log of its own, in .pm/logs; pm logs shows them together";
            warnings.add(problem, file.place("log_location"));
        }
        let shell = match file.fields(
            "shell",
            &["shell_command", "shell_argument", "elevated_shell_command", "elevated_shell_argument"],
        )? {
            Some(shell) => {
                let part = |name| {
                    let missing = || {
                        file.wrong(
                            "shell",
                            format!("it has both shell_command and shell_argument, and {name} is not there"),
                        )
                    };
                    shell.text(name)?.map(String::from).ok_or_else(missing)
                };
                (part("shell_command")?, part("shell_argument")?)
            }
            None => (surroundings.shell.clone(), "-c".into()),
        };
        let usual = LogFile::new("");
        let mut project = Project {
            directory,
            logs,
            environment: &surroundings.environment,
            name: file.text("name")?.map(String::from),
            shell,
            dotenv,
            variables: environment(file, warnings)?,
            vars: vars(file)?,
            rotation: Rotation { max_bytes: usual.max_bytes, keep: usual.keep },
        };
        if let Some(rotation) = rotation(file, warnings)? {
            project.rotation = rotation;
        }
        if let Some((node, what)) = file.get("env_cmds") {
            for (name, command) in node.map(&what)? {
                let command = command.text(&format!("env_cmds.{}", name.name))?;
                if surroundings.purpose == Purpose::Look {
                    continue;
                }
                match output_of(&surroundings.shell, command, directory) {
                    Ok(value) => project.variables.push((name.name.clone(), value)),
                    Err(problem) => {
                        let problem = format!("env_cmds.{}: {problem}, so the variable is not set", name.name);
                        warnings.add(problem, Some(name.at.clone()));
                    }
                }
            }
        }
        Ok(project)
    }

    fn parts(self, file: &Fields<'_>, mut warnings: Warnings) -> Result<Parts, Wrong> {
        let none =
            || Wrong { at: None, problem: "no process stands in it: write processes, and a command for each".into() };
        let (processes, what) = file.get("processes").ok_or_else(none)?;
        let processes = processes.map(&what)?;
        if processes.is_empty() {
            return Err(none());
        }
        let mut crowd = Crowd::default();
        for (name, node) in processes {
            let path = format!("processes.{}", name.name);
            let fields = Fields::of(node, &path, PROCESS)?;
            let replicas = fields.number("replicas", 0..=MOST_REPLICAS)?.unwrap_or(1).max(1);
            crowd.replicas.insert(&name.name, replicas);
            if is_disabled(&fields)? {
                crowd.disabled.insert(&name.name);
            }
        }
        let mut parts = Parts { name: self.name.clone(), ..Parts::default() };
        let mut places = BTreeMap::new();
        for (name, node) in processes {
            let path = format!("processes.{}", name.name);
            let fields = Fields::of(node, &path, PROCESS)?;
            let replicas = crowd.replicas.get(name.name.as_str()).copied().unwrap_or(1);
            for number in 0..replicas {
                let process = Process {
                    project: &self,
                    crowd: &crowd,
                    fields: &fields,
                    path: &path,
                    at: &name.at,
                    key: &name.name,
                    name: replica_name(&name.name, replicas, number),
                    number,
                    replicas,
                    vars: vars(&fields)?,
                };
                let (service, ends) = process.service(&mut warnings)?;
                if let Some(other) = same_log(&parts.services, &service) {
                    let problem =
                        format!("{other} has the same log; {{PC_REPLICA_NUM}} in a path is the number of a replica");
                    return Err(fields.wrong("log_location", problem));
                }
                places.insert(process.name.clone(), name.at.clone());
                if crowd.disabled.contains(name.name.as_str()) {
                    parts.disabled.insert(process.name.clone());
                }
                if ends != Ends::default() {
                    parts.ends.insert(process.name.clone(), ends);
                }
                parts.services.push(service);
            }
        }
        check(&parts.services, |name| places.get(name).cloned())?;
        parts.warnings = warnings.all();
        Ok(parts)
    }
}

/// What processes have to know of each other.
#[derive(Debug, Default)]
struct Crowd<'a> {
    replicas: BTreeMap<&'a str, u32>,
    /// Those that are not started unless they are named.
    disabled: BTreeSet<&'a str>,
}

/// Of several replicas each has its number behind its name, all with as many digits as the number of replicas has.
fn replica_name(key: &str, replicas: u32, number: u32) -> String {
    match replicas {
        0 | 1 => key.into(),
        _ => format!("{key}-{number:0width$}", width = replicas.to_string().len()),
    }
}

/// `is_disabled` is the stronger one, for it stands in files that are put on top of others. What is of a terminal is started by hand there.
fn is_disabled(fields: &Fields<'_>) -> Result<bool, Wrong> {
    let disabled = match fields.get("is_disabled") {
        Some((node, what)) => node.truth(&what)?,
        None => fields.truth("disabled")?,
    };
    Ok(disabled | fields.truth("is_foreground")?)
}

/// The service that is logged into the same file.
fn same_log<'a>(services: &'a [Service], service: &Service) -> Option<&'a str> {
    let path = &service.log()?.path;
    services.iter().find(|one| one.log().is_some_and(|log| log.path == *path)).map(Service::name)
}

/// Variables as a list of `NAME=value`, or as a map.
fn environment(fields: &Fields<'_>, warnings: &mut Warnings) -> Result<Vec<(String, String)>, Wrong> {
    let Some((node, what)) = fields.get("environment") else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    let mut add = |name: &str, value: &str, node: &Node| {
        no_shell(value, &node.at, warnings);
        all.push((name.to_string(), value.to_string()));
    };
    match &node.value {
        Value::Map(pairs) => {
            for (name, value) in pairs {
                match value.value {
                    Value::Null => add(&name.name, "", value),
                    _ => add(&name.name, value.text(&format!("{what}.{}", name.name))?, value),
                }
            }
        }
        _ => {
            for item in node.list(&what)? {
                let text = item.text(&format!("each of {what}"))?;
                let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
                let (name, value) =
                    pair.ok_or_else(|| item.wrong(format!("{what}: {text:?} is no variable: write NAME=value")))?;
                add(name, value, item);
            }
        }
    }
    Ok(all)
}

/// Notes a text with a variable that only a shell would replace, where none sees it.
fn no_shell(text: &str, at: &Range<usize>, warnings: &mut Warnings) {
    if let Some(name) = shell_variable(text) {
        warnings.add(
            format!("${name} stays as it is, for no shell sees it; ${{{name}}} is replaced when the file is read"),
            Some(at.clone()),
        );
    }
}

fn vars<'a>(fields: &Fields<'a>) -> Result<BTreeMap<&'a str, &'a Node>, Wrong> {
    let Some((node, what)) = fields.get("vars") else { return Ok(BTreeMap::new()) };
    Ok(node.map(&what)?.iter().map(|(name, node)| (name.name.as_str(), node)).collect())
}

/// How large logs may be, where that is said.
fn rotation(fields: &Fields<'_>, warnings: &mut Warnings) -> Result<Option<Rotation>, Wrong> {
    let known: Vec<&str> = ["rotation"].iter().chain(LOOKS_OF_LOG).copied().collect();
    let Some(log) = fields.fields("log_configuration", &known)? else { return Ok(None) };
    for field in LOOKS_OF_LOG.iter().filter(|field| log.get(field).is_some()) {
        let problem = format!("log_configuration.{field}: nothing comes of it: pm's logs have a form of their own");
        warnings.add(problem, log.place(field));
    }
    let known = ["max_size_mb", "max_backups", "max_age_days", "compress", "directory", "filename"];
    let Some(rotation) = log.fields("rotation", &known)? else { return Ok(None) };
    if let Some(field) = ["directory", "filename"].into_iter().find(|field| rotation.get(field).is_some()) {
        return Err(rotation.wrong(field, "log_location says where the log is"));
    }
    for field in ["max_age_days", "compress"].into_iter().filter(|field| rotation.get(field).is_some()) {
        let problem =
            format!("log_configuration.rotation.{field}: old logs stay as they are; max_backups says how many");
        warnings.add(problem, rotation.place(field));
    }
    Ok(Some(Rotation {
        max_bytes: u64::from(rotation.number_or("max_size_mb", USUAL_MEGABYTES)?) << 20,
        keep: rotation.number_or("max_backups", KEEP_ALL)?.min(KEEP_ALL),
    }))
}

/// What a command prints, without the space around it.
fn output_of(shell: &str, command: &str, directory: &Path) -> Result<String, String> {
    let mut child = Command::new(shell)
        .args(["-c", command])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{shell} cannot be run: {error}"))?;
    let (sender, printed) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        // It ends when the command has, or has been killed, with all that it started.
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.take(LONGEST_VALUE).read_to_string(&mut text);
            // Nobody listens any more where the time is up.
            let _ = sender.send(read.map(|_| text));
        });
    }
    let deadline = Instant::now() + COMMAND_LIMIT;
    let text = printed.recv_timeout(COMMAND_LIMIT);
    if text.is_err() || !ends_by(&child, deadline) {
        // A group that has ended needs no signal.
        let _ = kill_process_group(Pid::from_child(&child), rustix::process::Signal::KILL);
        let _ = child.wait();
        return Err(format!("{command:?} has not ended within {COMMAND_LIMIT:?}"));
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match text {
        Ok(Ok(text)) if status.success() => Ok(text.trim().into()),
        Ok(Err(error)) => Err(format!("what {command:?} prints cannot be read: {error}")),
        _ => Err(format!("{command:?} ended with {status}")),
    }
}

/// Whether a child has ended by then.
fn ends_by(child: &Child, deadline: Instant) -> bool {
    let Ok(end) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return true };
    let left = deadline.saturating_duration_since(Instant::now());
    let Ok(left) = Timespec::try_from(left) else { return false };
    poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&left)).is_ok_and(|ready| ready > 0)
}

impl Crowd<'_> {
    /// The key of a process that is called so, and the names of its replicas; of one of its replicas that one alone.
    fn named(&self, name: &str) -> Option<(&str, Vec<String>)> {
        let all = |key: &str, replicas: u32| (0..replicas).map(|number| replica_name(key, replicas, number)).collect();
        if let Some((key, replicas)) = self.replicas.get_key_value(name) {
            return Some((key, all(key, *replicas)));
        }
        let of_several = self.replicas.iter().filter(|(_, replicas)| **replicas > 1);
        let mut found = of_several
            .filter(|(key, replicas)| (0..**replicas).any(|number| replica_name(key, **replicas, number) == name));
        found.next().map(|(key, _)| (*key, vec![name.to_string()]))
    }
}
