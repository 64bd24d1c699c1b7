//! What may stand in `pm.toml`, field by field. The comments are those of its JSON schema.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pm::service::Condition;
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use crate::config::values::{Size, Time};

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
#[serde(deny_unknown_fields, expecting = "a table of its own, as in [service.web] and then command = [\"./web\"]")]
pub struct Entry {
    /// What it is called for people.
    pub title: Option<String>,
    /// The program and its arguments. No shell sees them.
    #[serde(default, deserialize_with = "words")]
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
    /// Whether it is measured what it and all that it has started use: false by default; or a table with more to say.
    #[serde(default)]
    pub metrics: MetricsEntry,
    /// What has not become ready by then has failed: 60s by default. Never a limit to its life.
    pub start_limit: Option<Time>,
    /// Addresses where others reach it, such as `127.0.0.1:8080` or `unix:PATH`. pm listens there, from its first start until the project ends, and
    /// gives the sockets to all its processes, as systemd does (LISTEN_FDS).
    #[serde(default)]
    pub listen: Many,
    /// Files and directories, relative to its working directory. It is started anew when something there changes. A table says what does not matter.
    pub watch: Option<WatchEntry>,
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
    /// What it reads: `null` (the default), `inherit` or `pipe`.
    pub stdin: Option<StdinEntry>,
    /// It has a terminal of its own, which pm attach connects to: false by default.
    #[serde(default)]
    pub tty: bool,
    /// Whether it goes on when pm ends: by Ctrl-C, by a signal, or because it is killed. The next pm up takes it over; pm down and pm stop end it
    #[serde(default)]
    pub detached: bool,
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
    pub(super) fn text(&self) -> String {
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
    pub(super) fn all(&self) -> &[String] {
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

/// What a service is started anew for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a path, a list of paths, or a table with paths and ignore")]
pub enum WatchEntry {
    /// A change of one of these.
    Paths(Many),
    /// The same, and what does not matter.
    Table(WatchTable),
}

/// What a service is started anew for, with all that can be said.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchTable {
    /// Files and directories, relative to the working directory of the service.
    pub paths: Many,
    /// What in them does not matter: names such as `*.tmp`, and paths such as `cache/**/*.db`, from the watched directory on.
    #[serde(default)]
    pub ignore: Many,
}

/// A probe: one of `http`, `tcp`, `command`, `line` and `notify`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table, as in health = { http = \"http://127.0.0.1:3000/\" }")]
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
    #[serde(default, deserialize_with = "words")]
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

/// Whether it is measured what a service uses.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "true, false, or a table with interval, cpu_above, rss_above and fds_above")]
pub enum MetricsEntry {
    /// Whether it is.
    Whether(bool),
    /// It is, and what is much.
    Table(MetricsTable),
}

impl Default for MetricsEntry {
    fn default() -> Self {
        MetricsEntry::Whether(false)
    }
}

/// How often it is measured what a service uses, and what is much. An event says what becomes more than that, and another one when it is
/// less than 90 % of it again.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsTable {
    /// From one sample to the next: 10s by default, and at least 100ms.
    pub interval: Option<Time>,
    /// So many hundredths of one core within an interval: 250 is two and a half cores.
    pub cpu_above: Option<u64>,
    /// So much resident memory.
    pub rss_above: Option<Size>,
    /// So many open descriptors.
    pub fds_above: Option<u64>,
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
#[serde(deny_unknown_fields, expecting = "a table, as in stop = { signal = \"INT\", limit = \"10s\" }")]
pub struct Stop {
    /// The signal that asks it to end: TERM by default.
    pub signal: Option<String>,
    /// A command that asks it to end, in place of the signal, with the number of its process in PM_PID.
    #[serde(default, deserialize_with = "words")]
    pub command: Option<Vec<String>>,
    /// From there to the kill: 10s by default.
    pub limit: Option<Time>,
}

/// What a service reads.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StdinEntry {
    /// Nothing.
    Null,
    /// What pm reads.
    Inherit,
    /// What is sent to it by pm attach.
    Pipe,
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
#[serde(deny_unknown_fields, expecting = "a table, as in hooks = { crash = [\"./tell\", \"me\"] }")]
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

/// A program and its arguments.
fn words<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Words;

    impl<'de> serde::de::Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list, as in command = [\"sleep\", \"1\"]; a line for a shell is shell = \"sleep 1\"")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = seq.next_element()? {
                words.push(word);
            }
            Ok(words)
        }
    }

    deserializer.deserialize_seq(Words).map(Some)
}
