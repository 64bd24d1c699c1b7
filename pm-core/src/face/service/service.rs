//! A service in the making.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;

use super::error::BadService;
use super::probe::{Probe, Target};
use crate::driver::service::hook::{Hook, Moment, Occasion};
use crate::driver::service::log::LogFile;
use crate::machine::exit::Signal;
use crate::machine::metrics::{Metrics, SHORTEST_INTERVAL};
use crate::machine::restart::Restart;
use crate::machine::service::{Condition, Need, Readiness, Rules};
use crate::machine::spec::Spec;

/// The most processes that one service can have.
pub const MOST_REPLICAS: u32 = 1000;

/// The longest name of a service, in bytes.
const LONGEST_NAME: usize = 64;

/// What a service reads as its standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing: `/dev/null`.
    #[default]
    Null,
    /// What this program reads.
    Inherit,
    /// What those send who are attached to it ([`Orchestrator::attach`](super::Orchestrator::attach)). Without anybody attached it waits; the end of it comes only where somebody
    /// sends that. Each life of the service has a new one.
    Pipe,
}

/// How a service is asked to end.
#[derive(Clone, Debug, PartialEq)]
pub enum StopBy {
    /// By a signal to its process group: SIGTERM by default.
    Signal(Signal),
    /// By a command, which has the number of its process in `PM_PID`. One that fails is an event, and the service has its stop limit all the same; where it cannot be started, the service is sent SIGTERM.
    Command(Box<Spec>),
}

/// A long-running process, what it needs, and what is done about it. Built once, and right from then on.
#[derive(Clone, Debug)]
pub struct Service(pub(crate) Arc<Definition>);

/// What a service is.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) title: Option<String>,
    pub(crate) spec: Spec,
    pub(crate) rules: Rules,
    pub(crate) replicas: u32,
    pub(crate) health: Option<Target>,
    pub(crate) liveness: Option<Target>,
    pub(crate) ready_line: Option<Regex>,
    pub(crate) stop_by: StopBy,
    pub(crate) stdin: Stdin,
    /// It has a terminal, in place of its three standard streams.
    pub(crate) has_terminal: bool,
    pub(crate) is_detached: bool,
    pub(crate) hooks: Vec<(Moment, Hook)>,
    pub(crate) log: Option<LogFile>,
}

impl Definition {
    /// Whether the same runs, and the same is done about it. Its name and the number of its processes do not matter, nor does what it is called for
    /// people. Hooks in code are the same where they are the very same: where the service was built once, or is a clone.
    pub(crate) fn is_same(&self, other: &Definition) -> bool {
        // So that none is forgotten.
        let Definition {
            name: _,
            title: _,
            spec,
            rules,
            replicas: _,
            health,
            liveness,
            ready_line,
            stop_by,
            stdin,
            has_terminal,
            is_detached,
            hooks,
            log,
        } = self;
        let line = |line: &Option<Regex>| line.as_ref().map(|line| line.as_str().to_string());
        let is_same_hook =
            |((at, hook), (other_at, other)): (&(Moment, Hook), &(Moment, Hook))| at == other_at && hook.is_same(other);
        *spec == other.spec
            && *rules == other.rules
            && *health == other.health
            && *liveness == other.liveness
            && line(ready_line) == line(&other.ready_line)
            && *stop_by == other.stop_by
            && *stdin == other.stdin
            && *has_terminal == other.has_terminal
            && *is_detached == other.is_detached
            && hooks.len() == other.hooks.len()
            && hooks.iter().zip(&other.hooks).all(is_same_hook)
            && *log == other.log
    }

    /// Whether it says something by sd_notify(3).
    pub(crate) fn is_notified(&self) -> bool {
        self.rules.watchdog.is_some() || self.rules.readiness == Readiness::Told { by_line: false }
    }

    /// Whether those who are attached to it can send something.
    pub(crate) fn takes_input(&self) -> bool {
        self.has_terminal || self.stdin == Stdin::Pipe
    }
}

/// A [`Service`] in the making.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct ServiceBuilder {
    name: String,
    title: Option<String>,
    spec: Spec,
    rules: Rules,
    replicas: u32,
    health: Option<Probe>,
    liveness: Option<Probe>,
    ready_line: Option<String>,
    is_notified: bool,
    stop_by: StopBy,
    stdin: Option<Stdin>,
    has_terminal: bool,
    is_detached: bool,
    hooks: Vec<(Moment, Hook)>,
    log: Option<LogFile>,
}

impl Service {
    /// A service of this name, which tells it from all others of its orchestrator. What runs is in the Spec: program, arguments,
    /// environment, directory, limits, user. For a shell, say so: `Spec::program("sh").arg("-c").arg("…")`.
    #[expect(clippy::new_ret_no_self, reason = "a builder, as Spec::program is")]
    pub fn new(name: impl Into<String>, spec: Spec) -> ServiceBuilder {
        ServiceBuilder {
            name: name.into(),
            title: None,
            spec,
            rules: Rules::default(),
            replicas: 1,
            health: None,
            liveness: None,
            ready_line: None,
            is_notified: false,
            stop_by: StopBy::Signal(Signal::TERM),
            stdin: None,
            has_terminal: false,
            is_detached: false,
            hooks: Vec::new(),
            log: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is called for people, where that is not its name.
    pub fn title(&self) -> Option<&str> {
        self.0.title.as_deref()
    }

    /// What runs.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// What is done about it.
    pub fn rules(&self) -> &Rules {
        &self.0.rules
    }

    /// Whether something says when it is ready: a probe, a line, or itself. Otherwise it is as ready as its process exists.
    pub fn says_when_ready(&self) -> bool {
        self.0.rules.readiness != Readiness::Spawned
    }

    /// Where it is logged, and how.
    pub fn log(&self) -> Option<&LogFile> {
        self.0.log.as_ref()
    }

    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.0.has_terminal
    }

    /// Whether it may outlive its orchestrator.
    pub fn is_detached(&self) -> bool {
        self.0.is_detached
    }

    /// How many processes it has.
    pub fn replicas(&self) -> u32 {
        self.0.replicas
    }
}

impl ServiceBuilder {
    /// What it is called for people: any text.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// It starts once another service is in this condition.
    pub fn needs(self, on: impl Into<String>, condition: Condition) -> Self {
        self.need(Need::new(on, condition))
    }

    /// The same, with all that a need can say.
    pub fn need(mut self, need: Need) -> Self {
        self.rules.needs.push(need);
        self
    }

    /// What says that it is ready, and goes on saying whether it is well.
    pub fn health(mut self, probe: Probe) -> Self {
        self.health = Some(probe);
        self
    }

    /// A second probe, from when it is ready on. When it fails, the service is started anew, within its restarts.
    pub fn liveness(mut self, probe: Probe) -> Self {
        self.liveness = Some(probe);
        self
    }

    /// It is ready once it prints a line that matches this regular expression.
    pub fn ready_line(mut self, pattern: impl Into<String>) -> Self {
        self.ready_line = Some(pattern.into());
        self
    }

    /// It says itself when it is ready, by `READY=1` to `NOTIFY_SOCKET`, as sd_notify(3) does.
    pub fn notify(mut self) -> Self {
        self.is_notified = true;
        self
    }

    /// Once it is ready it must say `WATCHDOG=1` (sd_notify(3)) at least this often, or it is started anew.
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.rules.watchdog = Some(limit);
        self
    }

    /// It is measured what it and all that it starts use: [`Event::Metrics`](crate::machine::service::Event::Metrics) for each sample, the last one
    /// in [`Info`](super::Info), and an event for what becomes high or normal. Without this nothing is measured.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.rules.metrics = Some(metrics);
        self
    }

    /// It is started anew when its health probe says that it is not well any more, within its restarts.
    pub fn restart_unhealthy(mut self) -> Self {
        self.rules.restart_unhealthy = true;
        self
    }

    /// What has not become ready by then has failed: 60 s by default. Never a limit to its life.
    pub fn start_limit(mut self, limit: Duration) -> Self {
        self.rules.start_limit = limit;
        self
    }

    /// Whether it is started again when it has ended: never by default.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.rules.restart = restart;
        self
    }

    /// The signal that asks it to end: SIGTERM by default. It goes to its process group.
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_by = StopBy::Signal(signal);
        self
    }

    /// A command that asks it to end, in place of the signal.
    pub fn stop_command(mut self, spec: Spec) -> Self {
        self.stop_by = StopBy::Command(Box::new(spec));
        self
    }

    /// From the request to end to the kill: 10 s by default. 0 kills at once.
    pub fn stop_limit(mut self, limit: Duration) -> Self {
        self.rules.stop_limit = limit;
        self
    }

    /// So many processes of it: 1 by default. Each has its number, from 1, in `PM_REPLICA`.
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// What it reads: nothing by default.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = Some(stdin);
        self
    }

    /// It has a pseudo-terminal as its standard input, output and error, and as its controlling terminal: for programs that demand one. It leads a session of its own, not only a process
    /// group. `TERM` is that of this program, or `xterm-256color`, unless its Spec sets it; its size is 24 lines of 80 characters until one who is attached says otherwise.
    ///
    /// What it prints is all standard output. In its log and for those who listen lines end with `\n`, where the terminal has made `\r\n` of it; those who are attached have it as it came.
    /// When its process ends, the kernel sends SIGHUP to what that has left in the foreground of the terminal.
    pub fn terminal(mut self) -> Self {
        self.has_terminal = true;
        self
    }

    /// It outlives its orchestrator, where that has a place to keep it ([`OrchestratorBuilder::keep_detached`](super::OrchestratorBuilder::keep_detached)): if its program is killed, and
    /// if the orchestrator [leaves it](super::Orchestrator::leave_detached).
    pub fn detached(mut self) -> Self {
        self.is_detached = true;
        self
    }

    /// Logs what it prints to this file; of further replicas, with `#` and their number before the ending.
    pub fn log(mut self, log: LogFile) -> Self {
        self.log = Some(log);
        self
    }

    /// Runs code at a moment. It has [`HOOK_LIMIT`](super::HOOK_LIMIT), and nothing waits for it; its error is an event.
    pub fn hook<F>(mut self, moment: Moment, code: impl Fn(Occasion) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.hooks.push((moment, Hook::Code(Arc::new(move |occasion| Box::pin(code(occasion))))));
        self
    }

    /// Runs a command at a moment, with what happened in its environment (see [`Occasion`]).
    pub fn hook_command(mut self, moment: Moment, spec: Spec) -> Self {
        self.hooks.push((moment, Hook::Command(Box::new(spec))));
        self
    }

    /// The service.
    ///
    /// # Errors
    /// [`BadService`], which names what is wrong with it.
    pub fn build(self) -> Result<Service, BadService> {
        let is_first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_named = self.name.starts_with(is_first)
            && self.name.len() <= LONGEST_NAME
            && self.name.chars().all(|c| is_first(c) || "-.".contains(c));
        if !is_named {
            return Err(BadService::Name(self.name));
        }
        let mut rules = self.rules;
        if self.replicas > MOST_REPLICAS {
            return Err(BadService::Replicas(self.replicas));
        }
        if self.has_terminal && self.stdin.is_some() {
            return Err(BadService::TerminalAndStdin);
        }
        if rules.start_limit.is_zero() {
            return Err(BadService::Zero { what: "the start limit" });
        }
        if rules.watchdog.is_some_and(|limit| limit.is_zero()) {
            return Err(BadService::Zero { what: "the limit of the watchdog" });
        }
        if let Some(metrics) = &rules.metrics {
            if metrics.interval < SHORTEST_INTERVAL {
                return Err(BadService::Interval(metrics.interval));
            }
            let thresholds = [
                ("the threshold of its processor time", metrics.cpu_above),
                ("the threshold of its memory", metrics.rss_above),
                ("the threshold of its descriptors", metrics.fds_above),
            ];
            if let Some((what, _)) = thresholds.into_iter().find(|(_, above)| *above == Some(0)) {
                return Err(BadService::Zero { what });
            }
        }
        let ways = [
            (self.health.is_some(), "a health probe"),
            (self.ready_line.is_some(), "a line that it prints"),
            (self.is_notified, "sd_notify"),
        ];
        let mut given = ways.iter().filter(|(is_given, _)| *is_given);
        if let (Some((_, one)), Some((_, other))) = (given.next(), given.next()) {
            return Err(BadService::TwoReadinesses(one, other));
        }
        let health = self.health.map(Probe::check).transpose()?;
        let liveness = self.liveness.map(Probe::check).transpose()?;
        rules.liveness = liveness.as_ref().map(|(_, timing)| *timing);
        rules.readiness = match &health {
            Some((_, timing)) => Readiness::Asked(*timing),
            None if self.ready_line.is_some() => Readiness::Told { by_line: true },
            None if self.is_notified => Readiness::Told { by_line: false },
            None => Readiness::Spawned,
        };
        let ready_line = self.ready_line.map(|pattern| {
            Regex::new(&pattern).map_err(|error| BadService::Pattern { problem: error.to_string(), pattern })
        });
        Ok(Service(Arc::new(Definition {
            name: self.name,
            title: self.title,
            spec: self.spec,
            rules,
            replicas: self.replicas,
            health: health.map(|(target, _)| target),
            liveness: liveness.map(|(target, _)| target),
            ready_line: ready_line.transpose()?,
            stop_by: self.stop_by,
            stdin: self.stdin.unwrap_or_default(),
            has_terminal: self.has_terminal,
            is_detached: self.is_detached,
            hooks: self.hooks,
            log: self.log,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ServiceBuilder {
        Service::new(name, Spec::program("true").build().unwrap())
    }

    #[test]
    fn what_is_wrong_is_named() {
        for name in ["", "-a", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(named(name).build().unwrap_err(), BadService::Name(name.into()));
        }
        let two = named("a").health(Probe::tcp(1)).notify().build().unwrap_err();
        assert_eq!(two, BadService::TwoReadinesses("a health probe", "sd_notify"));
        assert!(matches!(named("a").ready_line("(").build(), Err(BadService::Pattern { .. })));
        let metrics = |metrics: Metrics| named("a").metrics(metrics).build().unwrap_err().to_string();
        let interval = Duration::from_millis(99);
        assert_eq!(
            metrics(Metrics { interval, ..Metrics::default() }),
            "metrics every 99ms; 100ms is the shortest interval, for processor time is counted in steps of 10 ms"
        );
        let none = Metrics { rss_above: Some(0), ..Metrics::default() };
        assert_eq!(metrics(none), "the threshold of its memory is zero; it is at least 1");
        assert_eq!(named("a").terminal().stdin(Stdin::Null).build().unwrap_err(), BadService::TerminalAndStdin);
        assert!(matches!(named("a").start_limit(Duration::ZERO).build(), Err(BadService::Zero { .. })));
    }

    /// Each thing that can be said of a service makes it another one, but for what it is called and how many there are of it.
    #[test]
    fn what_is_another_service() {
        let spec = |program: &str| Spec::program(program).build().unwrap();
        let is_same = |one: ServiceBuilder, other: ServiceBuilder| {
            let (one, other) = (one.build().unwrap(), other.build().unwrap());
            assert!(one.0.is_same(&one.0) && one.0.is_same(&one.clone().0));
            assert_eq!(one.0.is_same(&other.0), other.0.is_same(&one.0));
            one.0.is_same(&other.0)
        };
        let log = LogFile::new("a.log");
        let whole = || {
            named("a")
                .health(Probe::http("http://localhost/").header("a", "b"))
                .liveness(Probe::tcp(1))
                .hook_command(Moment::Crash, spec("true"))
                .log(log.clone())
        };
        assert!(is_same(whole(), whole().title("another").replicas(3)));
        assert!(is_same(named("a").ready_line("x"), named("a").ready_line("x")));
        let others = [
            Service::new("a", spec("false")).health(Probe::http("http://localhost/").header("a", "b")),
            whole().health(Probe::http("http://localhost/").header("a", "c")),
            whole().health(Probe::http("http://localhost/").header("a", "b").retries(7)),
            whole().liveness(Probe::tcp(2)),
            whole().stop_signal(Signal::INT),
            whole().stop_command(spec("true")),
            whole().stdin(Stdin::Inherit),
            whole().hook_command(Moment::Crash, spec("true")),
            whole().log(LogFile { keep: 1, ..log.clone() }),
            whole().needs("b", Condition::Started),
        ];
        for (at, other) in others.into_iter().enumerate() {
            assert!(!is_same(whole(), other), "{at}");
        }
        let hook = |moment, program| named("a").hook_command(moment, spec(program));
        assert!(!is_same(hook(Moment::Crash, "true"), hook(Moment::Stop, "true")));
        assert!(!is_same(hook(Moment::Crash, "true"), hook(Moment::Crash, "false")));
        assert!(!is_same(named("a").ready_line("x"), named("a").ready_line("y")));
        let code = || named("a").hook(Moment::Stop, |_| async { Ok(()) });
        assert!(!is_same(code(), code()), "nobody can say what code does");
    }

    #[test]
    fn rules_follow_from_what_was_said() {
        let service = named("a-1.b_c").health(Probe::tcp(1)).needs("db", Condition::Started).build().unwrap();
        assert!(matches!(service.rules().readiness, Readiness::Asked(_)));
        assert!(service.says_when_ready() && !named("a").build().unwrap().says_when_ready());
        assert_eq!(service.rules().needs, [Need::new("db", Condition::Started)]);
        assert!(named("a").watchdog(Duration::from_secs(1)).build().unwrap().0.is_notified());
    }
}
