//! `pm.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pm::service::{Condition, LogFile, Moment, Need, Probe, Readiness, Restart, Service, ServiceBuilder, Stdin, When};
use pm::{Signal, Spec, SpecBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::values::{Size, Time};
use super::variables::{self, Variables};
use super::{Parts, Wrong, check};

/// A project of services that pm starts together: `pm up`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What the project is called: the name of its directory by default.
    pub name: Option<String>,
    /// Variables of all services. `${NAME}` in a text of this file is the value of a variable: of these, of `env_file`, or of the environment of
    /// pm; `${NAME:-default}` has a value where there is none; `$$` is a dollar sign. Texts for a shell are not touched, for it does that itself.
    #[serde(default)]
    pub env: BTreeMap<String, Scalar>,
    /// Files of variables of all services, NAME=value a line each. Those of `env` come before them.
    #[serde(default)]
    pub env_file: Many,
    /// What is logged of all services, where they do not say otherwise.
    #[serde(default)]
    pub log: Log,
    /// The services, by their names.
    #[schemars(with = "BTreeMap<String, Entry>")]
    pub service: BTreeMap<String, Spanned<Entry>>,
}

/// A service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is called for people.
    pub title: Option<String>,
    /// The program and its arguments. No shell sees them.
    pub command: Option<Vec<String>>,
    /// A line for `sh -c`, in place of `command`.
    pub shell: Option<String>,
    /// Its working directory, relative to this file: that of this file by default.
    pub dir: Option<String>,
    /// Its variables, on top of those of the file.
    #[serde(default)]
    pub env: BTreeMap<String, Scalar>,
    /// Files of its variables. Those of `env` come before them.
    #[serde(default)]
    pub env_file: Many,
    /// Whether it inherits the environment of pm: true by default. A list names the variables that it inherits.
    #[serde(default)]
    pub inherit: Inherit,
    /// What must be so before it starts: a list of services, or a table of services and conditions. Of a list each must be healthy, where something
    /// says when it is, and started otherwise.
    #[serde(default)]
    pub needs: Needs,
    /// What says that it is ready, and goes on saying whether it is well.
    pub health: Option<Health>,
    /// What is done when `health` says that it is not well any more: `report` (the default), or `restart`.
    #[serde(default)]
    pub on_unhealthy: OnUnhealthy,
    /// A second probe, from when it is ready on. When it fails the service is started anew.
    pub liveness: Option<Health>,
    /// Once ready it must say WATCHDOG=1 (sd_notify) at least this often, or it is started anew.
    pub watchdog: Option<Time>,
    /// What has not become ready by then has failed: 60s by default. Never a limit to its life.
    pub start_limit: Option<Time>,
    /// Whether it is started again when it has ended: `never` (the default), `on_failure` or `always`; or a table with more to say.
    #[serde(default)]
    pub restart: RestartEntry,
    /// Exit codes that are a success: 0 alone by default.
    pub success: Option<Vec<i32>>,
    /// How it is stopped.
    #[serde(default)]
    pub stop: Stop,
    /// So many processes of it: 1 by default. Each has its number, from 1, in PM_REPLICA.
    pub replicas: Option<u32>,
    /// It is not started unless it is named.
    #[serde(default)]
    pub disabled: bool,
    /// What it reads: `null` (the default), or `inherit`.
    #[serde(default)]
    pub stdin: StdinEntry,
    /// What is logged of it; false for nothing.
    pub log: Option<LogEntry>,
    /// Commands that follow from what happens to it, each a list. They have 30 s, and nothing waits for them.
    #[serde(default)]
    pub hooks: Hooks,
    /// Its niceness, from -20 (favoured) to 19.
    pub nice: Option<i32>,
    /// The number of its user.
    pub uid: Option<u32>,
    /// The number of its group.
    pub gid: Option<u32>,
    /// The most descriptors that it may have open.
    pub max_open_files: Option<u64>,
    /// The most memory that it may map.
    pub max_memory: Option<Size>,
}

/// A text, a number or a truth, as the value of a variable.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "the value of a variable is a text, a number, true or false")]
pub enum Scalar {
    /// A text.
    Text(String),
    /// A whole number.
    Whole(i64),
    /// Another number.
    Number(f64),
    /// True or false.
    Truth(bool),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Scalar::Text(text) => text.clone(),
            Scalar::Whole(number) => number.to_string(),
            Scalar::Number(number) => number.to_string(),
            Scalar::Truth(truth) => truth.to_string(),
        }
    }
}

/// One text or a list of them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a text, or a list of texts")]
pub enum Many {
    /// None.
    #[default]
    #[serde(skip)]
    None,
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Many {
    fn all(&self) -> &[String] {
        match self {
            Many::None => &[],
            Many::One(one) => std::slice::from_ref(one),
            Many::Several(all) => all,
        }
    }
}

/// What of the environment of pm a service inherits.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "true, false, or a list of the variables that are inherited")]
pub enum Inherit {
    /// All or nothing.
    Whether(bool),
    /// These.
    These(Vec<String>),
}

impl Default for Inherit {
    fn default() -> Self {
        Inherit::Whether(true)
    }
}

/// What a service needs.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a list of services, or a table such as { db = \"healthy\" }; the conditions are started, running, healthy, log_ready, completed and completed_successfully"
)]
pub enum Needs {
    /// These, each with the condition that fits it.
    Names(Vec<String>),
    /// These, in these conditions.
    Conditions(BTreeMap<String, NeedEntry>),
}

impl Default for Needs {
    fn default() -> Self {
        Needs::Names(Vec::new())
    }
}

/// What is needed of one.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NeedEntry {
    /// A condition.
    Word(ConditionWord),
    /// A condition, and more.
    Table(NeedTable),
}

/// What is needed of one, with all that can be said.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NeedTable {
    /// What it must have come to.
    pub condition: Option<ConditionWord>,
    /// Start anew whenever it is: false by default.
    #[serde(default)]
    pub restart: bool,
}

/// What a service must have come to.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are those of Condition")]
pub enum ConditionWord {
    Started,
    Running,
    Healthy,
    LogReady,
    Completed,
    CompletedSuccessfully,
}

impl From<ConditionWord> for Condition {
    fn from(word: ConditionWord) -> Self {
        match word {
            ConditionWord::Started => Condition::Started,
            ConditionWord::Running => Condition::Running,
            ConditionWord::Healthy => Condition::Healthy,
            ConditionWord::LogReady => Condition::LogReady,
            ConditionWord::Completed => Condition::Completed,
            ConditionWord::CompletedSuccessfully => Condition::CompletedSuccessfully,
        }
    }
}

/// A probe: one of `http`, `tcp`, `command`, `line` and `notify`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// A URL that is answered with status 200.
    pub http: Option<String>,
    /// Another method than GET, of `http`.
    pub method: Option<String>,
    /// Headers, of `http`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Another status than 200, of `http`.
    pub status: Option<u16>,
    /// A port that takes connections.
    pub tcp: Option<u16>,
    /// Another host than 127.0.0.1, of `tcp`.
    pub host: Option<String>,
    /// A command that ends with exit code 0.
    pub command: Option<Vec<String>>,
    /// Another exit code than 0, of `command`.
    pub exit_code: Option<i32>,
    /// A regular expression for a line that it prints when it is ready.
    pub line: Option<String>,
    /// It says itself when it is ready, by sd_notify.
    #[serde(default)]
    pub notify: bool,
    /// From an answer to the next question, once it was well: 10s by default.
    pub interval: Option<Time>,
    /// What has not answered by then has failed: 5s by default.
    pub timeout: Option<Time>,
    /// So many failures in a row make it unhealthy: 3 by default.
    pub retries: Option<u32>,
    /// So many successes in a row make it healthy: 1 by default.
    pub successes: Option<u32>,
    /// From the start to the first question: 0 by default.
    pub initial_delay: Option<Time>,
}

/// What is done about one that is not well any more.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum OnUnhealthy {
    /// It is said.
    #[default]
    Report,
    /// It is started anew.
    Restart,
}

/// Whether a service is started again.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "never, on_failure, always, or a table with `when`")]
pub enum RestartEntry {
    /// After these ends.
    Word(RestartWord),
    /// After these ends, and more.
    Table(RestartTable),
}

impl Default for RestartEntry {
    fn default() -> Self {
        RestartEntry::Word(RestartWord::Never)
    }
}

/// After which ends a service is started again. A stop that was asked for never is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartWord {
    /// After none.
    Never,
    /// After those that are no success.
    OnFailure,
    /// After all.
    Always,
    /// The same as `always`.
    UnlessStopped,
}

/// When a service is started again, how often, and after which delay.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartTable {
    /// After which ends.
    pub when: RestartWord,
    /// So many within the window, then it gives up: 5 by default; 0 is none.
    pub max: Option<u32>,
    /// Never give up, in place of `max`.
    #[serde(default)]
    pub endless: bool,
    /// How far back they are counted: 30m by default.
    pub window: Option<Time>,
    /// Before the first, doubled for each further one in the window: 1s by default; 0 is none.
    pub delay: Option<Time>,
    /// The longest delay: 30s by default.
    pub longest_delay: Option<Time>,
    /// Who has been well for so long begins with a clean slate: 1m by default.
    pub stable: Option<Time>,
}

/// How a service is stopped.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The signal that asks it to end: TERM by default.
    pub signal: Option<String>,
    /// A command that asks it to end, in place of the signal, with the number of its process in PM_PID.
    pub command: Option<Vec<String>>,
    /// From there to the kill: 10s by default.
    pub limit: Option<Time>,
}

/// What a service reads.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StdinEntry {
    /// Nothing.
    #[default]
    Null,
    /// What pm reads.
    Inherit,
}

/// What is logged.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The directory of the logs, relative to this file: .pm/logs by default. Each has the name of its service and the ending .log.
    pub dir: Option<PathBuf>,
    /// The file, in place of one in that directory. Of a service alone.
    pub file: Option<PathBuf>,
    /// A log that has reached this size is set aside: 10M by default; 0 is never.
    pub max_size: Option<Size>,
    /// So many are kept beside the one that is written to: 5 by default.
    pub keep: Option<u32>,
    /// JSON objects in place of lines.
    pub json: Option<bool>,
}

/// What is logged of a service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "false, or a table with file, max_size, keep and json")]
pub enum LogEntry {
    /// Whether it is.
    Whether(bool),
    /// How.
    Table(Log),
}

/// Commands that follow from what happens to a service. They have PM_SERVICE, PM_EVENT, PM_PID and PM_CAUSE in their environment.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// A process of it was made.
    pub start: Option<Vec<String>>,
    /// It has ended on request.
    pub stop: Option<Vec<String>>,
    /// Its process was made again after an end.
    pub restart: Option<Vec<String>>,
    /// It has crashed.
    pub crash: Option<Vec<String>>,
}

/// The JSON schema of `pm.toml`.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(File);
    schema.insert("title".into(), "pm.toml".into());
    schema.to_value()
}

/// Reads one.
///
/// # Errors
/// What is wrong, and where.
pub fn read(text: &str, directory: &Path) -> Result<Parts, Wrong> {
    let file: File = toml::from_str(text)
        .map_err(|error| Wrong { at: error.span(), problem: error.message().trim_end().replace('\n', "; ") })?;
    let whole = |problem| Wrong { at: None, problem };
    if file.log.file.is_some() {
        return Err(whole("log.file is of one service: write it in [service.NAME.log]".into()));
    }
    let from_files = read_files(&file.env_file, directory, &Variables::default()).map_err(whole)?;
    let known = Variables::new(from_files.clone());
    let own = expanded(&file.env, &known).map_err(whole)?;
    let variables = Variables::new(from_files.iter().chain(&own).cloned());
    let common: Vec<(String, String)> = from_files.into_iter().chain(own).collect();
    let logs = file.log.dir.clone();
    let log_directory = directory.join(logs.clone().unwrap_or_else(|| ".pm/logs".into()));

    let mut entries: Vec<(&String, &Spanned<Entry>)> = file.service.iter().collect();
    // As they stand in the file.
    entries.sort_by_key(|(_, entry)| entry.span().start);
    let place =
        |name: &str| entries.iter().find(|(known, _)| *known == name).map(|(_, entry)| head(text, entry.span()));
    let readiness: BTreeMap<&str, bool> =
        entries.iter().map(|(name, entry)| (name.as_str(), entry.get_ref().health.is_some())).collect();
    let mut services = Vec::new();
    let mut disabled = BTreeSet::new();
    for (name, entry) in &entries {
        let making = Making {
            name: name.as_str(),
            entry: entry.get_ref(),
            directory,
            log_directory: &log_directory,
            common: &common,
            variables: &variables,
            log: &file.log,
            has_readiness: &readiness,
        };
        let service =
            making.service().map_err(|problem| Wrong { at: place(name), problem: format!("{name}: {problem}") })?;
        services.push(service);
        if entry.get_ref().disabled {
            disabled.insert(name.to_string());
        }
    }
    if services.is_empty() {
        return Err(whole("no service stands in it: write [service.NAME] and its command".into()));
    }
    check(&services, place)?;
    Ok(Parts { name: file.name, logs, services, disabled, ..Parts::default() })
}

/// The line on which a table begins, or all of an inline one.
fn head(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text[..span.start].rfind('\n').map_or(0, |end| end + 1);
    let end = text[span.start..].find('\n').map_or(text.len(), |end| span.start + end);
    start..end
}

fn expanded(env: &BTreeMap<String, Scalar>, variables: &Variables) -> Result<Vec<(String, String)>, String> {
    let pair = |(name, value): (&String, &Scalar)| Ok((name.clone(), variables.expand(&value.text())?));
    env.iter().map(pair).collect()
}

fn read_files(files: &Many, directory: &Path, variables: &Variables) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for file in files.all() {
        all.extend(variables::read(&directory.join(variables.expand(file)?))?);
    }
    Ok(all)
}

/// A service in the making.
struct Making<'a> {
    name: &'a str,
    entry: &'a Entry,
    directory: &'a Path,
    log_directory: &'a Path,
    common: &'a [(String, String)],
    variables: &'a Variables,
    log: &'a Log,
    has_readiness: &'a BTreeMap<&'a str, bool>,
}

impl Making<'_> {
    fn service(&self) -> Result<Service, String> {
        let entry = self.entry;
        let mut spec = match (&entry.command, &entry.shell) {
            (Some(words), None) => self.command(words, "command")?,
            (None, Some(line)) if !line.trim().is_empty() => self.common(Spec::program("sh").arg("-c").arg(line))?,
            (None, Some(_)) => return Err("shell is empty".into()),
            (Some(_), Some(_)) => return Err("both command and shell say what runs: name one of them".into()),
            (None, None) => return Err("nothing says what runs: write command = [\"PROGRAM\", \"ARGUMENT\"]".into()),
        };
        if let Some(nice) = entry.nice {
            spec = spec.nice(nice);
        }
        if let Some(uid) = entry.uid {
            spec = spec.uid(uid);
        }
        if let Some(gid) = entry.gid {
            spec = spec.gid(gid);
        }
        if let Some(most) = entry.max_open_files {
            spec = spec.limit(pm::Resource::OpenFiles, most);
        }
        if let Some(Size(most)) = entry.max_memory {
            spec = spec.limit(pm::Resource::AddressSpace, most);
        }
        let mut service = Service::new(self.name, spec.build().map_err(|error| error.to_string())?);
        if let Some(title) = &entry.title {
            service = service.title(title);
        }
        for need in self.needs() {
            service = service.need(need);
        }
        if let Some(health) = &entry.health {
            service = self.health(service, health)?;
        }
        if let Some(health) = &entry.liveness {
            if health.line.is_some() || health.notify {
                return Err("liveness is asked again and again: give it http, tcp or command".into());
            }
            service = service.liveness(self.probe(health, "liveness")?);
        }
        if entry.on_unhealthy == OnUnhealthy::Restart {
            service = service.restart_unhealthy();
        }
        if let Some(Time(limit)) = entry.watchdog {
            service = service.watchdog(limit);
        }
        if let Some(Time(limit)) = entry.start_limit {
            service = service.start_limit(limit);
        }
        service = self.stop(service.restart(self.restart()))?;
        if let Some(replicas) = entry.replicas {
            service = service.replicas(replicas);
        }
        if let StdinEntry::Inherit = entry.stdin {
            service = service.stdin(Stdin::Inherit);
        }
        if let Some(log) = self.log_file()? {
            service = service.log(log);
        }
        let hooks = [
            (Moment::Start, &entry.hooks.start),
            (Moment::Stop, &entry.hooks.stop),
            (Moment::Restart, &entry.hooks.restart),
            (Moment::Crash, &entry.hooks.crash),
        ];
        for (moment, words) in hooks {
            if let Some(words) = words {
                let spec = self.command(words, "a hook")?.build().map_err(|error| error.to_string())?;
                service = service.hook_command(moment, spec);
            }
        }
        service.build().map_err(|error| error.to_string())
    }

    /// A command of the service, or one that belongs to it: in its directory, with its variables.
    fn command(&self, words: &[String], what: &str) -> Result<SpecBuilder, String> {
        let words = words.iter().map(|word| self.variables.expand(word)).collect::<Result<Vec<_>, _>>()?;
        let (program, args) = words.split_first().ok_or_else(|| format!("{what} is empty: name a program"))?;
        // A path is relative to the file; a name is looked for along PATH.
        let program = if program.contains('/') { self.directory_of_service()?.join(program) } else { program.into() };
        self.common(Spec::program(program).args(args))
    }

    fn directory_of_service(&self) -> Result<PathBuf, String> {
        match &self.entry.dir {
            Some(dir) => Ok(self.directory.join(self.variables.expand(dir)?)),
            None => Ok(self.directory.to_owned()),
        }
    }

    /// What all commands of the service have in common.
    fn common(&self, mut spec: SpecBuilder) -> Result<SpecBuilder, String> {
        spec = spec.cwd(self.directory_of_service()?);
        match &self.entry.inherit {
            Inherit::Whether(true) => {}
            Inherit::Whether(false) => spec = spec.replace_env(),
            Inherit::These(names) => {
                spec = spec.replace_env();
                for name in names {
                    spec = spec.allow_env(name);
                }
            }
        }
        let from_files = read_files(&self.entry.env_file, self.directory, self.variables)?;
        let own = expanded(&self.entry.env, self.variables)?;
        for (name, value) in self.common.iter().chain(&from_files).chain(&own) {
            spec = spec.env(name, value);
        }
        Ok(spec)
    }

    fn needs(&self) -> Vec<Need> {
        let fitting = |on: &str| match self.has_readiness.get(on) {
            Some(true) => Condition::Healthy,
            _ => Condition::Started,
        };
        match &self.entry.needs {
            Needs::Names(names) => names.iter().map(|on| Need::new(on, fitting(on))).collect(),
            Needs::Conditions(all) => all
                .iter()
                .map(|(on, entry)| match entry {
                    NeedEntry::Word(word) => Need::new(on, (*word).into()),
                    NeedEntry::Table(table) => Need {
                        on: on.clone(),
                        condition: table.condition.map_or_else(|| fitting(on), Into::into),
                        restart: table.restart,
                    },
                })
                .collect(),
        }
    }

    fn health(&self, service: ServiceBuilder, health: &Health) -> Result<ServiceBuilder, String> {
        match (&health.line, health.notify) {
            (None, false) => Ok(service.health(self.probe(health, "health")?)),
            (line, notify) => {
                let is_asked = health.http.is_some() || health.tcp.is_some() || health.command.is_some();
                if is_asked || line.is_some() && notify {
                    return Err("health is one of http, tcp, command, line and notify".into());
                }
                match line {
                    Some(line) => Ok(service.ready_line(line)),
                    None => Ok(service.notify()),
                }
            }
        }
    }

    fn probe(&self, health: &Health, what: &str) -> Result<Probe, String> {
        let mut probe = match (&health.http, health.tcp, &health.command) {
            (Some(url), None, None) => Probe::http(self.variables.expand(url)?),
            (None, Some(port), None) => match &health.host {
                Some(host) => Probe::tcp_at(self.variables.expand(host)?, port),
                None => Probe::tcp(port),
            },
            (None, None, Some(words)) => {
                Probe::command(self.command(words, what)?.build().map_err(|error| error.to_string())?)
            }
            _ => return Err(format!("{what} is one of http, tcp, command, line and notify")),
        };
        let misplaced = [
            ("method", health.method.is_some(), health.http.is_some(), "http"),
            ("headers", !health.headers.is_empty(), health.http.is_some(), "http"),
            ("status", health.status.is_some(), health.http.is_some(), "http"),
            ("host", health.host.is_some(), health.tcp.is_some(), "tcp"),
            ("exit_code", health.exit_code.is_some(), health.command.is_some(), "command"),
        ];
        if let Some((field, _, _, of)) = misplaced.iter().find(|(_, is_there, fits, _)| *is_there && !fits) {
            return Err(format!("{what}.{field} is of {of}, which is not there"));
        }
        if let Some(method) = &health.method {
            probe = probe.method(method);
        }
        for (name, value) in &health.headers {
            probe = probe.header(name, self.variables.expand(value)?);
        }
        if let Some(status) = health.status {
            probe = probe.status(status);
        }
        if let Some(code) = health.exit_code {
            probe = probe.exit_code(code);
        }
        if let Some(Time(interval)) = health.interval {
            probe = probe.interval(interval);
        }
        if let Some(Time(timeout)) = health.timeout {
            probe = probe.timeout(timeout);
        }
        if let Some(retries) = health.retries {
            probe = probe.retries(retries);
        }
        if let Some(successes) = health.successes {
            probe = probe.successes(successes);
        }
        if let Some(Time(delay)) = health.initial_delay {
            probe = probe.initial_delay(delay);
        }
        Ok(probe)
    }

    fn restart(&self) -> Restart {
        let when = |word| match word {
            RestartWord::Never => When::Never,
            RestartWord::OnFailure => When::OnFailure,
            RestartWord::Always | RestartWord::UnlessStopped => When::Always,
        };
        let mut restart = match &self.entry.restart {
            RestartEntry::Word(word) => Restart::when(when(*word)),
            RestartEntry::Table(table) => {
                let usual = Restart::default();
                let time = |given: Option<Time>, usual| given.map_or(usual, |Time(time)| time);
                Restart {
                    when: when(table.when),
                    max: if table.endless { None } else { table.max.or(usual.max) },
                    window: time(table.window, usual.window),
                    delay: time(table.delay, usual.delay),
                    longest_delay: time(table.longest_delay, usual.longest_delay),
                    stable: time(table.stable, usual.stable),
                    success: usual.success,
                }
            }
        };
        if let Some(success) = &self.entry.success {
            restart.success.clone_from(success);
        }
        restart
    }

    fn stop(&self, mut service: ServiceBuilder) -> Result<ServiceBuilder, String> {
        let stop = &self.entry.stop;
        match (&stop.signal, &stop.command) {
            (Some(_), Some(_)) => {
                return Err("both stop.signal and stop.command say how it is asked to end: name one".into());
            }
            (Some(signal), None) => {
                let signal: Signal = signal.parse().map_err(|error| format!("stop.signal: {error}"))?;
                service = service.stop_signal(signal);
            }
            (None, Some(words)) => {
                service =
                    service.stop_command(self.command(words, "stop.command")?.build().map_err(|e| e.to_string())?);
            }
            (None, None) => {}
        }
        if let Some(Time(limit)) = stop.limit {
            service = service.stop_limit(limit);
        }
        Ok(service)
    }

    fn log_file(&self) -> Result<Option<LogFile>, String> {
        let none = Log::default();
        let own = match &self.entry.log {
            Some(LogEntry::Whether(false)) => return Ok(None),
            Some(LogEntry::Whether(true)) | None => &none,
            Some(LogEntry::Table(own)) => own,
        };
        if own.dir.is_some() {
            return Err("log.dir is of all services: write it in [log], or log.file here".into());
        }
        let path = match &own.file {
            Some(file) => self.directory.join(file),
            None => self.log_directory.join(format!("{}.log", self.name)),
        };
        let usual = LogFile::new(path);
        let size = own.max_size.or(self.log.max_size).map(|Size(bytes)| bytes);
        Ok(Some(LogFile {
            max_bytes: size.unwrap_or(usual.max_bytes),
            keep: own.keep.or(self.log.keep).unwrap_or(usual.keep),
            json: own.json.or(self.log.json).unwrap_or(usual.json),
            path: usual.path,
        }))
    }
}

/// Whether a service says when it is ready.
pub fn says_when_ready(service: &Service) -> bool {
    service.rules().readiness != Readiness::Spawned
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of a text, as people see it.
    fn refused(text: &str) -> String {
        let wrong = read(text, Path::new("/nowhere")).unwrap_err();
        super::super::place::Place::of(text, wrong).to_string()
    }

    fn only(text: &str) -> Service {
        let mut parts = read(text, Path::new("/project")).unwrap();
        assert_eq!(parts.services.len(), 1);
        parts.services.remove(0)
    }

    #[test]
    fn each_field_is_in_the_documentation() {
        fn names(value: &serde_json::Value, all: &mut BTreeSet<String>) {
            if let Some(properties) = value.get("properties").and_then(|properties| properties.as_object()) {
                all.extend(properties.keys().cloned());
            }
            match value {
                serde_json::Value::Object(members) => members.values().for_each(|member| names(member, all)),
                serde_json::Value::Array(members) => members.iter().for_each(|member| names(member, all)),
                _ => {}
            }
        }
        let text = include_str!("../../../docs/SERVICES.md");
        let mut all = BTreeSet::new();
        names(&schema(), &mut all);
        assert!(all.len() > 40, "{all:?}");
        for name in all.iter().filter(|name| *name != "service") {
            assert!(
                text.contains(&format!("`{name}`")) || text.contains(&format!("{name} =")),
                "{name} is not documented"
            );
        }
    }

    #[test]
    fn a_service_with_much_to_say() {
        let service = only(
            "env = { PORT = 3000 }\n[service.api]\ncommand = [\"./api\", \"${PORT}\", \"$$x\"]\ndir = \"sub\"\nrestart = { when = \"always\", max = 2, delay = \"10ms\" }\n\
             success = [0, 143]\nstop = { signal = \"INT\", limit = 3 }\nreplicas = 2\nhealth = { http = \"http://127.0.0.1:${PORT}/\", interval = 0.5 }\nlog = { max_size = \"1K\" }\n",
        );
        assert_eq!(service.spec().command_line(), "/project/sub/./api 3000 '$x'");
        assert_eq!(service.rules().restart.success, [0, 143]);
        assert_eq!(service.rules().stop_limit, std::time::Duration::from_secs(3));
        assert_eq!((service.replicas(), service.log().unwrap().max_bytes), (2, 1024));
        assert!(matches!(service.rules().readiness, Readiness::Asked(timing) if timing.interval.as_millis() == 500));
    }

    #[test]
    fn needs_have_the_condition_that_fits() {
        let parts = read(
            "[service.web]\ncommand = [\"a\"]\nneeds = [\"db\", \"cache\"]\n[service.db]\ncommand = [\"a\"]\nhealth = { tcp = 1 }\n[service.cache]\ncommand = [\"a\"]\n",
            Path::new("/"),
        )
        .unwrap();
        let names: Vec<&str> = parts.services.iter().map(Service::name).collect();
        assert_eq!(names, ["web", "db", "cache"], "as they stand in the file");
        assert_eq!(
            parts.services[0].rules().needs,
            [Need::new("db", Condition::Healthy), Need::new("cache", Condition::Started)]
        );
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_line() {
        let cases = [
            ("", " missing field `service`"),
            ("service = {}", " no service stands in it: write [service.NAME] and its command"),
            ("[service.a]\ncomand = [\"x\"]", "2:1: unknown field `comand`, expected one of `title`, `command`, "),
            (
                "[service.a]\ncommand = \"x y\"",
                "2:11: invalid type: string \"x y\", expected a sequence\n  2 | command = \"x y\"\n",
            ),
            (
                "[service.a]\ntitle = \"x\"",
                "1:1: a: nothing says what runs: write command = [\"PROGRAM\", \"ARGUMENT\"]\n  1 | [service.a]\n    | ^^^^^^^^^^^",
            ),
            ("[service.a]\ncommand = []", "1:1: a: command is empty: name a program"),
            ("[service.a]\ncommand = [\"x\"]\nshell = \"y\"", "a: both command and shell say what runs"),
            ("[service.\"a b\"]\ncommand = [\"x\"]", "a b: \"a b\" cannot be the name of a service"),
            ("[service.a]\ncommand = [\"x\"]\nneeds = [\"b\"]", "1:1: \"a\" needs \"b\", which does not exist"),
            (
                "[service.a]\ncommand = [\"x\"]\nneeds = [\"b\"]\n[service.b]\ncommand = [\"x\"]\nneeds = [\"c\"]\n[service.c]\ncommand = [\"x\"]\nneeds = [\"a\"]",
                "a cycle of needs: a → b → c → a",
            ),
            (
                "[service.a]\ncommand = [\"x\"]\nneeds = { b = \"healthy\" }\n[service.b]\ncommand = [\"x\"]",
                "\"a\" needs \"b\" to be healthy, but nothing says when it is: give it a probe, or need it to be running",
            ),
            (
                "[service.a]\ncommand = [\"x\"]\nneeds = { b = \"ready\" }",
                "a list of services, or a table such as { db = \"healthy\" }",
            ),
            ("[service.a]\ncommand = [\"x\"]\nhealth = {}", "a: health is one of http, tcp, command, line and notify"),
            (
                "[service.a]\ncommand = [\"x\"]\nhealth = { tcp = 1, line = \"x\" }",
                "a: health is one of http, tcp, command, line and notify",
            ),
            (
                "[service.a]\ncommand = [\"x\"]\nhealth = { tcp = 1, status = 200 }",
                "a: health.status is of http, which is not there",
            ),
            (
                "[service.a]\ncommand = [\"x\"]\nhealth = { http = \"https://x/\" }",
                "only http:// is probed; ask a command, such as curl, for https",
            ),
            ("[service.a]\ncommand = [\"x\"]\nhealth = { line = \"(\" }", "a: \"(\" is no regular expression"),
            ("[service.a]\ncommand = [\"x\"]\nhealth = { tcp = 99999 }", "3:"),
            (
                "[service.a]\ncommand = [\"x\"]\nstart_limit = \"5q\"",
                "3:15: \"5q\" is no time: write a number with a unit",
            ),
            ("[service.a]\ncommand = [\"x\"]\nstart_limit = -1", "a time of -1 s is below zero"),
            ("[service.a]\ncommand = [\"x\"]\nstart_limit = 0", "a: the start limit is zero; it is at least 1"),
            ("[service.a]\ncommand = [\"x\"]\nstop = { signal = \"TERMINATE\" }", "a: stop.signal: "),
            ("[service.a]\ncommand = [\"x\"]\nnice = 40", "a: a niceness of 40; it goes from -20 to 19"),
            (
                "[service.a]\ncommand = [\"x\"]\nrestart = \"sometimes\"",
                "never, on_failure, always, or a table with `when`",
            ),
            (
                "[service.a]\ncommand = [\"${PM_NOT_SET}\"]",
                "a: the variable PM_NOT_SET is not set; write ${PM_NOT_SET:-something}",
            ),
            ("[service.a]\ncommand = [\"x\"]\nenv_file = \"none.env\"", "a: \"/nowhere/none.env\" cannot be read"),
            ("[service.a]\ncommand = [\"x\"]\n[service.a]\ncommand = [\"y\"]", "3:"),
            ("[service.a\ncommand = [\"x\"]", "1:11: "),
            (
                "[service.a]\ncommand = [\"x\"]\nliveness = { line = \"x\" }",
                "a: liveness is asked again and again: give it http, tcp or command",
            ),
            ("[log]\nfile = \"x\"\n[service.a]\ncommand = [\"x\"]", "log.file is of one service"),
        ];
        for (text, expected) in cases {
            let said = refused(text);
            assert!(said.contains(expected), "{text:?} gives\n{said}\nand not {expected:?}");
        }
    }
}
