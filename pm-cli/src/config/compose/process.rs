//! A process of process-compose as a service.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pm::service::{Condition, LogFile, Need, Probe, Restart, Service, ServiceBuilder, When};
use pm::{Signal, Spec, SpecBuilder};

use super::super::{Ends, Wrong, variables};
use super::text::render;
use super::tree::{Fields, Node, Value};
use super::{Crowd, Project, Rotation, Warnings, environment, no_shell, rotation};

/// A time that does not come: a century.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

const PROBE: &[&str] = &[
    "exec",
    "http_get",
    "initial_delay_seconds",
    "period_seconds",
    "timeout_seconds",
    "success_threshold",
    "failure_threshold",
    "grpc",
];

/// Fields that only change what is seen, and why nothing comes of them.
const LOOKS_OF_PROCESS: &[(&str, &str)] = &[
    ("name", "the key is the name"),
    ("disable_ansi_colors", "pm shows the colours of a service; NO_COLOR=1 is without those of pm"),
    ("monitor_for", "pm has no screen that would show it"),
    ("monitor_silence_threshold", "pm has no screen that would show it"),
    ("launch_timeout_seconds", "it is of daemons alone"),
    ("namespace", "pm starts the services of all namespaces; name some to start only those"),
];

/// What no service of pm can have, and what to do about it.
const REFUSED: &[(&str, &str)] = &[
    ("is_daemon", "pm ends what a process leaves behind; have the program stay in the foreground"),
    ("is_elevated", "pm asks for no password; write sudo -n into the command"),
];

/// The same, of fields that are more than true or false.
const REFUSED_TABLES: &[(&str, &str)] = &[
    ("extends", "pm does not merge processes; an anchor of YAML does: <<: *name"),
    ("schedule", "pm starts nothing by the clock; leave that to cron or a timer of systemd"),
    ("watch", "in pm.toml it is a list of paths: watch = [\"src\"]"),
    ("mcp", "pm is no server of MCP"),
];

/// A process in the making: one of its replicas.
pub(super) struct Process<'a> {
    pub(super) project: &'a Project<'a>,
    pub(super) crowd: &'a Crowd<'a>,
    pub(super) fields: &'a Fields<'a>,
    pub(super) path: &'a str,
    /// Where its key stands.
    pub(super) at: &'a Range<usize>,
    pub(super) key: &'a str,
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) replicas: u32,
    pub(super) vars: BTreeMap<&'a str, &'a Node>,
}

impl Process<'_> {
    /// The service, and which of its ends are those of all.
    pub(super) fn service(&self, warnings: &mut Warnings) -> Result<(Service, Ends), Wrong> {
        self.refuse(warnings)?;
        let spec = self.main(warnings)?;
        let mut service = Service::new(&self.name, self.built(spec)?);
        if let Some(description) = self.rendered("description")? {
            service = service.title(description);
        }
        // An interactive one is one that people are connected to: pm attach does that.
        if self.fields.truth("is_tty")? | self.fields.truth("is_interactive")? {
            service = service.terminal();
        }
        for need in self.needs()? {
            service = service.need(need);
        }
        // Nothing that has no probe is ever too slow there.
        service = service.start_limit(NEVER);
        service = self.readiness(service, warnings)?;
        if let Some((probe, _)) = self.probe("liveness_probe", warnings)? {
            service = service.liveness(probe);
        }
        let (restart, ends) = self.availability(warnings)?;
        service = self.shutdown(service.restart(restart), warnings)?.log(self.log(warnings)?);
        let service = service.build().map_err(|error| self.wrong(error))?;
        Ok((service, ends))
    }

    fn wrong(&self, problem: impl std::fmt::Display) -> Wrong {
        Wrong { at: Some(self.at.clone()), problem: format!("{}: {problem}", self.path) }
    }

    /// Speaks of what pm cannot do.
    fn refuse(&self, warnings: &mut Warnings) -> Result<(), Wrong> {
        let fields = self.fields;
        for (field, why) in REFUSED {
            if fields.truth(field)? {
                return Err(fields.wrong(field, format!("it is not supported: {why}")));
            }
        }
        for (field, why) in REFUSED_TABLES {
            if fields.get(field).is_some() {
                return Err(fields.wrong(field, format!("it is not supported: {why}")));
            }
        }
        for (field, why) in LOOKS_OF_PROCESS.iter().filter(|(field, _)| fields.get(field).is_some()) {
            warnings.add(format!("{field}: nothing comes of it: {why}"), fields.place(field));
        }
        if fields.truth("is_foreground")? {
            let problem = "is_foreground: it is started only when it is named, and not in the foreground: is_tty gives it a terminal, and pm attach connects to that";
            warnings.add(problem, fields.place("is_foreground"));
        }
        if fields.truth("truncate_log")? {
            warnings
                .add("truncate_log: nothing comes of it: logs go on where they ended", fields.place("truncate_log"));
        }
        Ok(())
    }

    /// The value of a template's variable.
    fn var(&self, name: &str) -> Option<String> {
        if name == "PC_REPLICA_NUM" {
            return Some(self.number.to_string());
        }
        let node = self.vars.get(name).or_else(|| self.project.vars.get(name))?;
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// A text with values in place of its templates.
    fn render(&self, text: &str, node: &Node, what: &str) -> Result<String, Wrong> {
        render(text, &|name| self.var(name)).map_err(|problem| node.wrong(format!("{what}: {problem}")))
    }

    /// A field in which templates are replaced.
    fn rendered(&self, name: &str) -> Result<Option<String>, Wrong> {
        self.rendered_of(self.fields, name)
    }

    fn rendered_of(&self, fields: &Fields<'_>, name: &str) -> Result<Option<String>, Wrong> {
        let (Some(text), Some((node, what))) = (fields.text(name)?, fields.get(name)) else { return Ok(None) };
        self.render(text, node, &what).map(Some)
    }

    /// A path in which templates are replaced, and which is relative to the file.
    fn path_of(&self, fields: &Fields<'_>, name: &str, warnings: &mut Warnings) -> Result<Option<PathBuf>, Wrong> {
        let Some(path) = self.rendered_of(fields, name)? else { return Ok(None) };
        if let Some((node, _)) = fields.get(name) {
            no_shell(&path, &node.at, warnings);
        }
        Ok(Some(self.project.directory.join(path)))
    }

    fn directory(&self, warnings: &mut Warnings) -> Result<PathBuf, Wrong> {
        let own = self.path_of(self.fields, "working_dir", warnings)?;
        Ok(own.unwrap_or_else(|| self.project.directory.to_owned()))
    }

    fn main(&self, warnings: &mut Warnings) -> Result<SpecBuilder, Wrong> {
        let fields = self.fields;
        let directory = self.directory(warnings)?;
        let command = fields.text("command")?;
        let command = match command {
            Some(command) if fields.truth("is_template_disabled")? => Some(command.to_string()),
            Some(_) => self.rendered("command")?,
            None => None,
        };
        let entrypoint = fields.get("entrypoint");
        if let Some(command) = command {
            if entrypoint.is_some() {
                warnings.add("entrypoint: nothing comes of it: there is a command too", fields.place("entrypoint"));
            }
            return self.common(self.shell(&command), &directory, warnings);
        }
        let Some((node, what)) = entrypoint else {
            return Err(self.wrong("nothing says what runs: write a command, or an entrypoint"));
        };
        let mut words = Vec::new();
        for word in node.list(&what)? {
            words.push(word.text(&format!("each of {what}"))?);
        }
        let (program, args) =
            words.split_first().ok_or_else(|| fields.wrong("entrypoint", "it is empty: name a program"))?;
        // A path is relative to the working directory; a name is looked for along PATH.
        let program = if program.contains('/') { directory.join(program) } else { program.into() };
        self.common(Spec::program(program).args(args.iter().copied()), &directory, warnings)
    }

    /// A line for the shell.
    fn shell(&self, command: &str) -> SpecBuilder {
        let (program, argument) = &self.project.shell;
        Spec::program(program).arg(argument).arg(command)
    }

    /// What all commands of the process have in common: a directory, and variables. Later ones come before earlier ones.
    fn common(&self, mut spec: SpecBuilder, directory: &Path, warnings: &mut Warnings) -> Result<SpecBuilder, Wrong> {
        spec = spec.cwd(directory);
        let own = [("PC_PROC_NAME", self.key.to_string()), ("PC_REPLICA_NUM", self.number.to_string())];
        for (name, value) in own {
            spec = spec.env(name, value);
        }
        if !self.fields.truth("is_dotenv_disabled")? {
            // The environment of pm comes before that file.
            let of_file = self.project.dotenv.iter().filter(|(name, _)| !self.project.environment.contains_key(name));
            for (name, value) in of_file {
                spec = spec.env(name, value);
            }
        }
        for (name, value) in &self.project.variables {
            spec = spec.env(name, self.render_variable(value)?);
        }
        for (name, value) in self.env_files(directory)? {
            spec = spec.env(name, value);
        }
        for (name, value) in environment(self.fields, warnings)? {
            spec = spec.env(name, self.render_variable(&value)?);
        }
        Ok(spec)
    }

    fn render_variable(&self, value: &str) -> Result<String, Wrong> {
        render(value, &|name| self.var(name)).map_err(|problem| self.fields.wrong("environment", problem))
    }

    /// Files of variables, which are relative to the working directory.
    fn env_files(&self, directory: &Path) -> Result<Vec<(String, String)>, Wrong> {
        let Some((node, what)) = self.fields.get("env_file") else { return Ok(Vec::new()) };
        let files = match &node.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut all = Vec::new();
        for file in files {
            let read = variables::read(&directory.join(file.text(&what)?));
            all.extend(read.map_err(|problem| file.wrong(format!("{what}: {problem}")))?);
        }
        Ok(all)
    }

    fn built(&self, spec: SpecBuilder) -> Result<Spec, Wrong> {
        spec.build().map_err(|error| self.wrong(error))
    }

    fn needs(&self) -> Result<Vec<Need>, Wrong> {
        let Some((node, what)) = self.fields.get("depends_on") else { return Ok(Vec::new()) };
        let all = node.map(&what)?;
        let mut needs = Vec::new();
        for (name, node) in all {
            let path = format!("{what}.{}", name.name);
            let wrong = |problem: String| Wrong { at: Some(name.at.clone()), problem: format!("{path}: {problem}") };
            let condition = match &node.value {
                Value::Map(_) => Fields::of(node, &path, &["condition"])?.get("condition"),
                Value::Null => None,
                _ => {
                    return Err(
                        node.wrong(format!("{path} is a map: write {}: {{ condition: process_started }}", name.name))
                    );
                }
            };
            // Its documents and its code are at odds about what is meant then.
            let (condition, of) =
                condition.ok_or_else(|| wrong("say the condition, as in condition: process_started".into()))?;
            let condition = match condition.text(&of)? {
                "process_started" => Condition::Started,
                "process_healthy" => Condition::Healthy,
                "process_log_ready" => Condition::LogReady,
                "process_completed" => Condition::Completed,
                "process_completed_successfully" => Condition::CompletedSuccessfully,
                other => {
                    return Err(condition.wrong(format!(
                        "{other:?} is no condition: there are process_started, process_healthy, process_log_ready, process_completed and process_completed_successfully"
                    )));
                }
            };
            let (key, names) = self.crowd.named(&name.name).ok_or_else(|| wrong("there is no such process".into()))?;
            let is_disabled = self.crowd.disabled.contains(key) && !self.crowd.disabled.contains(self.key);
            if is_disabled {
                return Err(wrong("it is disabled, so nothing may wait for it; drop this, or enable it".into()));
            }
            for replica in names {
                // A replica that is named for itself has its own condition.
                if replica == name.name || !all.iter().any(|(other, _)| other.name == replica) {
                    needs.push(Need::new(replica, condition));
                }
            }
        }
        Ok(needs)
    }

    fn readiness(&self, service: ServiceBuilder, warnings: &mut Warnings) -> Result<ServiceBuilder, Wrong> {
        let line = self.fields.text("ready_log_line")?;
        let Some((probe, start_limit)) = self.probe("readiness_probe", warnings)? else {
            return Ok(match line {
                Some(line) => service.ready_line(escaped(line)),
                None => service,
            });
        };
        if line.is_some() {
            let problem = "readiness_probe says when it is ready; there is one or the other";
            return Err(self.fields.wrong("ready_log_line", problem));
        }
        // What fails so often in a row is ended there, whether it was ready before or not; `availability` says what follows.
        Ok(service.health(probe).restart_unhealthy().start_limit(start_limit))
    }

    /// A probe, and when what has not passed it by then has failed as often as it may.
    fn probe(&self, name: &str, warnings: &mut Warnings) -> Result<Option<(Probe, Duration)>, Wrong> {
        let Some(fields) = self.fields.fields(name, PROBE)? else { return Ok(None) };
        if fields.get("grpc").is_some() {
            return Err(fields.wrong("grpc", "it is not supported: ask a command, such as grpc_health_probe"));
        }
        let exec = fields.fields("exec", &["command", "working_dir"])?;
        let http =
            fields.fields("http_get", &["host", "scheme", "path", "port", "num_port", "headers", "status_code"])?;
        let probe = match (exec, http) {
            (Some(exec), None) => self.exec_probe(&exec, warnings)?,
            (None, Some(http)) => self.http_probe(&http)?,
            (Some(_), Some(_)) => return Err(self.fields.wrong(name, "it has exec or http_get, and not both")),
            (None, None) => return Err(self.fields.wrong(name, "it has exec or http_get, and neither is there")),
        };
        let seconds = |number: u32| Duration::from_secs(number.into());
        let delay = seconds(fields.number_or("initial_delay_seconds", 0)?);
        let period = seconds(fields.number_or("period_seconds", 10)?);
        let timeout = seconds(fields.number_or("timeout_seconds", 1)?);
        let failures = fields.number_or("failure_threshold", 3)?;
        let probe = probe
            .initial_delay(delay)
            .interval(period)
            .timeout(timeout)
            .successes(fields.number_or("success_threshold", 1)?)
            .retries(failures);
        Ok(Some((probe, delay + period.saturating_mul(failures - 1) + timeout)))
    }

    fn exec_probe(&self, exec: &Fields<'_>, warnings: &mut Warnings) -> Result<Probe, Wrong> {
        let command = self.rendered_of(exec, "command")?;
        let command = command.ok_or_else(|| exec.wrong("command", "it is not there, or empty"))?;
        let directory = match self.path_of(exec, "working_dir", warnings)? {
            Some(directory) => directory,
            None => self.directory(warnings)?,
        };
        let spec = self.common(self.shell(&command), &directory, warnings)?;
        Ok(Probe::command(self.built(spec)?))
    }

    fn http_probe(&self, http: &Fields<'_>) -> Result<Probe, Wrong> {
        if self.rendered_of(http, "scheme")?.is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
            let problem = "only http is probed; exec asks a command, such as curl -fk, for https";
            return Err(http.wrong("scheme", problem));
        }
        let host = self.rendered_of(http, "host")?.unwrap_or_else(|| "127.0.0.1".into());
        let path = self.rendered_of(http, "path")?.unwrap_or_else(|| "/".into());
        let field = if http.get("port").is_some() { "port" } else { "num_port" };
        let port = match self.rendered_of(http, field)? {
            Some(port) => {
                let number = port.trim().parse::<u16>().ok().filter(|port| *port > 0);
                number.ok_or_else(|| http.wrong(field, format!("{port:?} is no port; they go from 1 to 65535")))?
            }
            None => 80,
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut probe = Probe::http(format!("http://{host}:{port}{slash}{path}"));
        if let Some((node, what)) = http.get("headers") {
            for (name, value) in node.map(&what)? {
                let values = match &value.value {
                    Value::List(values) => values.as_slice(),
                    _ => std::slice::from_ref(value),
                };
                for value in values {
                    probe = probe.header(&name.name, value.text(&format!("{what}.{}", name.name))?);
                }
            }
        }
        if let Some(status) = http.number("status_code", 0..=599)?.filter(|status| *status > 0) {
            probe = probe.status(u16::try_from(status).unwrap_or(u16::MAX));
        }
        Ok(probe)
    }

    fn availability(&self, warnings: &mut Warnings) -> Result<(Restart, Ends), Wrong> {
        let known = ["restart", "backoff_seconds", "max_restarts", "exit_on_end", "exit_on_skipped"];
        let mut success = vec![0];
        if let Some((node, what)) = self.fields.get("success_exit_codes") {
            for code in node.list(&what)? {
                let number = code.number(&format!("each of {what}"), 0..=255)?;
                if number > 128 {
                    let signal = number - 128;
                    let problem = format!(
                        "success_exit_codes: {number} is an exit code; an end by signal {signal} is no success"
                    );
                    warnings.add(problem, Some(code.at.clone()));
                }
                success.push(i32::try_from(number).unwrap_or(i32::MAX));
            }
        }
        // A restart is as late as the one before it, and none is ever forgotten.
        let restart = |when, max, seconds: u32| {
            let delay = Duration::from_secs(seconds.into());
            Restart { when, max, window: NEVER, delay, longest_delay: delay, stable: NEVER, success: success.clone() }
        };
        let Some(fields) = self.fields.fields("availability", &known)? else {
            return Ok((restart(When::Never, Some(0), 1), Ends::default()));
        };
        let mut ends =
            Ends { any: fields.truth("exit_on_end")?, failure: false, skipped: fields.truth("exit_on_skipped")? };
        let when = match fields.get("restart") {
            None => When::Never,
            Some((node, what)) => match node.text(&what)? {
                "no" => When::Never,
                "on_failure" => When::OnFailure,
                "always" => When::Always,
                "exit_on_failure" => {
                    ends.failure = true;
                    When::Never
                }
                other => {
                    let problem = format!("{what} is no, on_failure, always or exit_on_failure, and not {other:?}");
                    return Err(node.wrong(problem));
                }
            },
        };
        let max = match (when, fields.number_or("max_restarts", 0)?) {
            // Its probes do not start it anew then, either.
            (When::Never, _) => Some(0),
            (_, 0) => None,
            (_, max) => Some(max),
        };
        Ok((restart(when, max, fields.number_or("backoff_seconds", 1)?), ends))
    }

    fn shutdown(&self, mut service: ServiceBuilder, warnings: &mut Warnings) -> Result<ServiceBuilder, Wrong> {
        let known = ["command", "timeout_seconds", "signal", "parent_only", "send_keys"];
        let Some(fields) = self.fields.fields("shutdown", &known)? else {
            return Ok(service.stop_limit(Duration::from_secs(10)));
        };
        if fields.truth("parent_only")? {
            let problem = "it is not supported: the signal goes to the process and all of its group; a command could send it to $PM_PID alone";
            return Err(fields.wrong("parent_only", problem));
        }
        if fields.get("send_keys").is_some() {
            return Err(fields.wrong("send_keys", "it is not supported: pm has no terminal for a service"));
        }
        let signal = fields.number("signal", 0..=31)?.filter(|signal| *signal > 0);
        match (fields.text("command")?, signal) {
            // The signal is for where there is no command.
            (Some(command), _) => {
                let directory = self.directory(warnings)?;
                let spec = self.common(self.shell(command), &directory, warnings)?;
                service = service.stop_command(self.built(spec)?);
            }
            (None, Some(signal)) => service = service.stop_signal(Signal(i32::try_from(signal).unwrap_or(i32::MAX))),
            (None, None) => {}
        }
        Ok(service.stop_limit(Duration::from_secs(fields.number_or("timeout_seconds", 10)?.into())))
    }

    fn log(&self, warnings: &mut Warnings) -> Result<LogFile, Wrong> {
        let own = rotation(self.fields, warnings)?;
        let Some(path) = self.path_of(self.fields, "log_location", warnings)? else {
            let Rotation { max_bytes, keep } = own.unwrap_or(self.project.rotation);
            let path = self.project.logs.join(format!("{}.log", self.name));
            return Ok(LogFile { max_bytes, keep, ..LogFile::new(path) });
        };
        // Such a log grows for ever where nothing else is said.
        let Rotation { max_bytes, keep } = own.unwrap_or(Rotation { max_bytes: 0, keep: 0 });
        let mut path = path
            .into_os_string()
            .into_string()
            .map_err(|path| self.fields.wrong("log_location", format!("{} is no text", path.to_string_lossy())))?;
        let number = self.number.to_string();
        if path.contains("{PC_REPLICA_NUM}") {
            path = path.replace("{PC_REPLICA_NUM}", &number);
        } else if self.replicas > 1 {
            path = format!("{path}.{number}");
        }
        Ok(LogFile { max_bytes, keep, ..LogFile::new(path) })
    }
}

/// A regular expression that matches this text and nothing else.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
