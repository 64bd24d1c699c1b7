//! The command line.

use std::time::Duration;

use clap::Parser;
use pm_cli::bench::place::Place;

use crate::rival::Rival;

/// The longest that a figure may take.
const LONGEST: f64 = 60.0;

/// Measures pm beside its rivals: echo of 64 bytes and of 64 KiB through one worker process.
///
/// Each round starts fresh processes for each rival in turn. The table shows the medians of the rounds: round trips made one at a
/// time (p50, p99), and the rate with 256 under way. Rivals in Node.js and Python are installed beside this program at the first run.
/// What cannot be installed is skipped.
#[derive(Debug, Parser)]
#[command(name = "peers")]
pub(crate) struct Args {
    /// How long each figure is measured, in seconds
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// How many rounds there are
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Where the processes run: `two` (the manager on processor 0, the worker on 1), `one` (both on processor 0) or `unpinned`
    #[arg(long, value_name = "PLACE", default_value = "two", value_parser = placement)]
    pub(crate) placement: Place,
    /// Only these rivals, with commas between them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) only: Vec<Rival>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= LONGEST => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("give a number above 0 and up to {LONGEST}")),
    }
}

fn placement(text: &str) -> Result<Place, String> {
    match text {
        "two" => Ok(Place::TwoCores),
        "one" => Ok(Place::OneCore),
        "unpinned" => Ok(Place::Unpinned),
        _ => Err("give two, one or unpinned".to_string()),
    }
}
