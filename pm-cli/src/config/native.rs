//! `pm.toml`.

pub mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pm::service::{Condition, LogFile, Metrics, Moment, Need, Probe, Restart, Service, ServiceBuilder, Stdin, When};
use pm::{ListenAddress, Signal, Spec, SpecBuilder};
use toml::Spanned;

use super::values::{Size, Time};
use super::variables::{self, Variables};
use super::watched::Watched;
use super::{Parts, Wrong, check};
use file::{
    Entry, File, Health, Inherit, Log, LogEntry, Many, MetricsEntry, NeedEntry, Needs, OnUnhealthy, RestartEntry,
    RestartWord, Scalar, StdinEntry, WatchEntry,
};

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
pub fn read(text: &str, directory: &Path, logs: &Path) -> Result<Parts, Wrong> {
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
    let log_directory = directory.join(file.log.dir.as_deref().unwrap_or(logs));

    let mut entries: Vec<(&String, &Spanned<Entry>)> = file.service.iter().collect();
    // As they stand in the file.
    entries.sort_by_key(|(_, entry)| entry.span().start);
    let place =
        |name: &str| entries.iter().find(|(known, _)| *known == name).map(|(_, entry)| head(text, entry.span()));
    let readiness: BTreeMap<&str, bool> =
        entries.iter().map(|(name, entry)| (name.as_str(), entry.get_ref().health.is_some())).collect();
    let mut services = Vec::new();
    let mut disabled = BTreeSet::new();
    let (mut watched, mut warnings) = (BTreeMap::new(), Vec::new());
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
        let wrong = |problem| Wrong { at: place(name), problem: format!("{name}: {problem}") };
        let service = making.service().map_err(wrong)?;
        warnings.extend(making.probe_of_a_listener(&service).map(wrong));
        services.push(service);
        if let Some(watch) = making.watched().map_err(wrong)? {
            warnings.extend(
                watch
                    .missing()
                    .map(|path| wrong(format!("watch: {} does not exist; it is watched once it does", path.display()))),
            );
            watched.insert(name.to_string(), watch);
        }
        if entry.get_ref().disabled {
            disabled.insert(name.to_string());
        }
    }
    if services.is_empty() {
        return Err(whole("no service stands in it: write [service.NAME] and its command".into()));
    }
    check(&services, place)?;
    Ok(Parts { name: file.name, services, disabled, watched, warnings, ..Parts::default() })
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
        for on in self.listeners()? {
            spec = spec.listen(on);
        }
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
        if let Some(metrics) = self.metrics() {
            service = service.metrics(metrics);
        }
        if let Some(Time(limit)) = entry.start_limit {
            service = service.start_limit(limit);
        }
        service = self.stop(service.restart(self.restart()))?;
        if let Some(replicas) = entry.replicas {
            service = service.replicas(replicas);
        }
        service = match entry.stdin {
            Some(_) if entry.tty => return Err("tty is its standard input: leave out stdin".into()),
            Some(StdinEntry::Null) => service.stdin(Stdin::Null),
            Some(StdinEntry::Inherit) => service.stdin(Stdin::Inherit),
            Some(StdinEntry::Pipe) => service.stdin(Stdin::Pipe),
            None if entry.tty => service.terminal(),
            None => service,
        };
        if entry.detached {
            service = service.detached();
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

    /// Where it listens. A path is relative to its directory.
    fn listeners(&self) -> Result<Vec<ListenAddress>, String> {
        let address = |text: &String| {
            let on = self.variables.expand(text)?.parse().map_err(|error| format!("listen: {error}"))?;
            Ok(match on {
                ListenAddress::Unix(path) => ListenAddress::Unix(self.directory_of_service()?.join(path)),
                tcp => tcp,
            })
        };
        self.entry.listen.all().iter().map(address).collect()
    }

    /// That a probe asks a port on which pm itself listens for it, and so says nothing.
    fn probe_of_a_listener(&self, service: &Service) -> Option<String> {
        let is_listened_on = |port: u16| {
            let is_it = |on: &ListenAddress| matches!(on, ListenAddress::Tcp(address) if address.port() == port);
            service.spec().listeners().iter().any(|(_, on)| is_it(on))
        };
        let probes = [("health", &self.entry.health), ("liveness", &self.entry.liveness)];
        let (what, port) = probes.into_iter().find_map(|(what, probe)| {
            probe.as_ref()?.tcp.filter(|port| is_listened_on(*port)).map(|port| (what, port))
        })?;
        Some(format!(
            "{what}.tcp always passes: pm itself listens on port {port} for it; ask by http, command, line or notify"
        ))
    }

    fn watched(&self) -> Result<Option<Watched>, String> {
        let (paths, ignore) = match &self.entry.watch {
            None => return Ok(None),
            Some(WatchEntry::Paths(paths)) => (paths, &Many::None),
            Some(WatchEntry::Table(table)) => (&table.paths, &table.ignore),
        };
        let directory = self.directory_of_service()?;
        let path = |text: &String| -> Result<PathBuf, String> { Ok(directory.join(self.variables.expand(text)?)) };
        let paths = paths.all().iter().map(path).collect::<Result<Vec<_>, _>>()?;
        Watched::new(paths, ignore.all()).map(Some).map_err(|problem| format!("watch: {problem}"))
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

    fn metrics(&self) -> Option<Metrics> {
        let usual = Metrics::default();
        match &self.entry.metrics {
            MetricsEntry::Whether(is_on) => is_on.then_some(usual),
            MetricsEntry::Table(table) => Some(Metrics {
                interval: table.interval.map_or(usual.interval, |Time(interval)| interval),
                cpu_above: table.cpu_above,
                rss_above: table.rss_above.map(|Size(bytes)| bytes),
                fds_above: table.fds_above,
            }),
        }
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

#[cfg(test)]
mod tests;
