//! `pm bench`: which transport to pick on this machine.
//!
//! | module | holds |
//! |---|---|
//! | [`work`] | what is measured, and how it is carried out |
//! | [`limits`] | the same work with nothing but the socket, the pipe, the cache or the channel |
//! | [`transfer`] | the same for large payloads: nothing but the memory |
//! | [`measure`] | times, rates and processor time |
//! | [`place`] | where the processes run |
//! | [`rows`] | what comes of it |
//! | [`table`], [`plot`] | how it is shown |

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pm::AnyTransport;

use crate::cli::BenchArgs;
use crate::error::{CliError, say};
use place::Place;
use rows::Row;
use work::{LIMITS, MODES, Settings};

pub mod limits;
pub mod measure;
pub mod place;
pub mod plot;
pub mod rows;
pub mod table;
pub mod transfer;
pub mod work;

/// What all rows take together, unless somebody says how long one takes.
const BUDGET: Duration = Duration::from_secs(22);

/// The least and the most that a row takes then.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The most queries under way at once.
const MAX_IN_FLIGHT: usize = 4096;

/// The largest payload: beyond it a frame would be too large.
const MAX_SIZE: usize = 60 << 20;

/// A `pm bench` that can be carried out.
#[derive(Debug)]
pub struct Plan {
    settings: Settings,
    json: bool,
    plot: Option<PathBuf>,
}

impl Plan {
    /// Checks the command line.
    ///
    /// # Errors
    /// [`CliError`] names the option and what would be right.
    pub fn new(args: BenchArgs) -> Result<Self, CliError> {
        let refuse = |option, problem: String| Err(CliError::Option { option, problem });
        let mut transports = Vec::new();
        for name in &args.transport {
            match name.parse::<AnyTransport>() {
                Ok(transport) => transports.push(transport),
                Err(error) => return refuse("--transport", error.to_string()),
            }
        }
        if transports.is_empty() {
            transports = AnyTransport::SCHEMES.iter().filter_map(|scheme| scheme.parse().ok()).collect();
        }
        if let Some(size) = args.size.iter().find(|size| **size > MAX_SIZE) {
            return refuse("--size", format!("{size} is too much; at most 60M fits into a frame"));
        }
        if let Some(many) = args.in_flight.iter().find(|many| !(1..=MAX_IN_FLIGHT).contains(*many)) {
            return refuse("--in-flight", format!("{many} is not possible; give numbers from 1 to {MAX_IN_FLIGHT}"));
        }
        if let Some(place) = args.placement.iter().find(|place| !place.is_here()) {
            return refuse("--placement", format!("{} needs two processors; this machine has one", place.name()));
        }
        let places = match args.placement {
            places if !places.is_empty() => places,
            _ => [Place::TwoCores, Place::OneCore].into_iter().filter(|place| place.is_here()).collect(),
        };
        let mut settings = Settings {
            transports,
            sizes: args.size,
            in_flight: args.in_flight,
            places,
            modes: MODES.to_vec(),
            limits: LIMITS.to_vec(),
            time: Duration::ZERO,
        };
        settings.time = match args.time {
            Some(time) if time.is_zero() => return refuse("--time", "a row takes time: 100ms, say".to_string()),
            Some(time) => time,
            None => (BUDGET / settings.rows().max(1) as u32).clamp(SHORTEST, LONGEST),
        };
        Ok(Plan { settings, json: args.json, plot: args.plot })
    }
}

/// Measures, and shows what came of it.
///
/// # Errors
/// [`CliError`] where a pool cannot be started or the plot cannot be written.
pub fn run(plan: Plan) -> Result<ExitCode, CliError> {
    let Plan { settings, json, plot } = plan;
    if let Some(path) = &plot {
        // Before the work, not after it.
        std::fs::File::create(path).map_err(|source| unwritable(path, source))?;
    }
    let mut progress = Progress::new(settings.rows());
    let mut rows: Vec<Row> = Vec::new();
    let mut is_closed = false;
    let measured = settings.measure(|row| {
        progress.next(&row);
        if json {
            is_closed = writeln!(std::io::stdout(), "{}", row.json()).is_err();
        }
        rows.push(row);
        if is_closed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.end();
    measured.map_err(CliError::Bench)?;
    if !json {
        let mut text = format!("{}\n", table::machine());
        for &place in &settings.places {
            text += "\n";
            text += &table::table(place, &rows);
        }
        text +=
            "\nk/s: thousands of queries a second; manager, worker: µs of processor time that each takes for a query\n";
        if let Some(advice) = table::advice(&rows) {
            text += "\n";
            text += &advice;
        }
        is_closed |= std::io::stdout().write_all(text.as_bytes()).is_err();
    }
    if let Some(path) = &plot {
        std::fs::write(path, plot::svg(&table::machine(), &rows)).map_err(|source| unwritable(path, source))?;
    }
    Ok(ExitCode::from(if is_closed { crate::error::code::CLOSED } else { 0 }))
}

fn unwritable(path: &Path, source: std::io::Error) -> CliError {
    CliError::Log { path: path.to_owned(), problem: "cannot be written".to_string(), source: Some(source) }
}

/// How far it is: a bar on a terminal, and a line for each transport in each place elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    last: Option<(Place, &'static str)>,
}

impl Progress {
    fn new(rows: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(rows as u64), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, last: None }
    }

    /// This row is done.
    fn next(&mut self, row: &Row) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("{} on {}, {}", row.transport(), row.place, row.mode));
                bar.inc(1);
            }
            None => {
                let now = (row.place, row.transport());
                if self.last.replace(now) != Some(now) {
                    say(format_args!("{} on {} …", now.1, now.0));
                }
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
