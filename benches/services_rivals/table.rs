//! The table that people read.

use std::fmt::Write;
use std::time::Duration;

use pm_cli::bench::table::machine;

use crate::find::Found;
use crate::measure::Extent;
use crate::problem::Problem;

/// What was measured of one tool.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) found: Found,
    pub(crate) starts: Vec<Duration>,
    pub(crate) survivors: Option<Survivors>,
    pub(crate) rest: Option<Rest>,
    pub(crate) restarts: Vec<Duration>,
    pub(crate) stop: Option<Duration>,
    pub(crate) logged: Option<Logged>,
    /// What came of a few lines.
    pub(crate) few: Option<usize>,
    /// Why figures are missing.
    pub(crate) problems: Vec<String>,
}

/// Who lives when the tool has been killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Survivors {
    pub(crate) services: usize,
    pub(crate) grandchildren: usize,
}

/// What the processes of a tool use while its services rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    pub(crate) processes: usize,
    /// MB.
    pub(crate) rss: f64,
    /// MB.
    pub(crate) pss: f64,
    /// 1 is one core.
    pub(crate) cpu: f64,
}

/// What came into a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logged {
    pub(crate) lines: usize,
    /// Until it grew for the last time.
    pub(crate) took: Duration,
}

impl Column {
    pub(crate) fn new(found: Found) -> Self {
        let (starts, restarts, problems) = (Vec::new(), Vec::new(), Vec::new());
        Column { found, starts, survivors: None, rest: None, restarts, stop: None, logged: None, few: None, problems }
    }

    /// Keeps the reason for figures that are missing.
    pub(crate) fn note(&mut self, what: &str, measured: Result<(), Problem>) {
        self.problems.extend(measured.err().map(|error| format!("{}: {what}: {error}", self.found.tool.name())));
    }

    fn cells(&self, extent: &Extent) -> [String; 10] {
        let none = || "–".to_string();
        let starts = sorted(&self.starts);
        let restarts = sorted(&self.restarts);
        let rest = |cell: fn(&Rest) -> String| self.rest.as_ref().map_or_else(none, cell);
        let logged = |cell: &dyn Fn(&Logged) -> String| self.logged.as_ref().map_or_else(none, cell);
        [
            starts.get(starts.len() / 2).map_or_else(none, millis),
            rest(|rest| rest.processes.to_string()),
            rest(|rest| format!("{:.1} / {:.1}", rest.rss, rest.pss)),
            rest(|rest| format!("{:.2}", 100.0 * rest.cpu)),
            match (self.found.tool.restarts(), restarts.get(restarts.len() / 2), restarts.last()) {
                (true, Some(median), Some(longest)) => format!("{} / {}", millis(median), millis(longest)),
                (true, ..) => none(),
                (false, ..) => "has none".to_string(),
            },
            self.stop.as_ref().map_or_else(none, millis),
            self.survivors.map_or_else(none, |left| format!("{} / {}", left.services, left.grandchildren)),
            logged(&|logged| format!("{:.0}", logged.lines as f64 / logged.took.as_secs_f64() / 1000.0)),
            logged(&|logged| (extent.lines - logged.lines.min(extent.lines)).to_string()),
            self.few.map_or_else(none, |lines| (extent.few - lines.min(extent.few)).to_string()),
        ]
    }
}

/// A row for each measure, a column for each tool, and what was skipped.
pub(crate) fn table(columns: &[Column], skipped: &[String], extent: &Extent) -> String {
    let Extent { rounds, started, resting, kills, lines, few, watched, aftermath, .. } = extent;
    let names = [
        format!("{started} services run (median of {rounds}), ms"),
        format!("{resting} at rest: processes of the tool"),
        "their memory, RSS / PSS, MB".to_string(),
        format!("their processor time over {watched:?}, % of a core"),
        format!("killed: its next life (median / longest of {kills}), ms"),
        format!("{resting} services have stopped, ms"),
        format!("kill -9 of the tool: live {aftermath:?} later, of {started} / {started}"),
        "lines of 88 B into its log, thousands a second".to_string(),
        format!("lost of these {lines}"),
        format!("lost of {few} of a service that then ends (worst of {rounds})"),
    ];
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{}\n\n{:<width$}", machine(), "");
    let titles = columns.iter().map(|column| format!("{} {}", column.found.tool.name(), column.found.version));
    text.extend(titles.map(|title| format!("{title:>20}")));
    text.push('\n');
    let cells: Vec<[String; 10]> = columns.iter().map(|column| column.cells(extent)).collect();
    for (row, name) in names.iter().enumerate() {
        let _ = write!(text, "{name:<width$}");
        text.extend(cells.iter().map(|cells| format!("{:>20}", cells[row])));
        text.push('\n');
    }
    let problems = columns.iter().flat_map(|column| &column.problems);
    for line in skipped.iter().chain(problems) {
        let _ = writeln!(text, "{line}");
    }
    text + NOTES
}

/// What is needed to read it.
const NOTES: &str = "
services: a shell script that reports itself and becomes `sleep`; kill -9 of the tool: services / a child of each in a session of its own
restarts: pm delay = 0; supervisord startsecs = 0, all in one group; pm2 as it comes; mprocs autorestart, killed after 1.1 s of life at least; process-compose backoff of 1 s, its least
stop: pm down, pm2 kill, the key q of mprocs, SIGTERM to the others; logs: none rotates; pm and honcho write a time on each line, honcho to its standard output
";

fn sorted(times: &[Duration]) -> Vec<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times
}

fn millis(time: &Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 10.0 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}
