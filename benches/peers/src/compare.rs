//! The rounds: each rival in turn, with fresh processes, and the table of the medians.

use std::process::ExitCode;
use std::time::Duration;

use thiserror::Error;

use crate::cli::Args;
use crate::group::{self, GroupError};
use crate::rival::Rival;
use crate::row::{Row, SIZES};
use crate::{role, scripts, table};

/// What a manager may take for its figures, in times of one figure: alone and in a crowd, each with a warm-up that takes no longer.
const FIGURES: u32 = 4 * SIZES.len() as u32;

/// How long a manager may take besides: to start, and until the last of a crowd is answered.
const SLACK: Duration = Duration::from_secs(20);

/// A rival was not measured.
#[derive(Debug, Error)]
enum LostError {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("what it printed cannot be read: {0}")]
    Rows(#[from] serde_json::Error),
}

/// Measures those that were chosen. Fails where a rival was started and did not come to its end.
pub(crate) fn run(args: &Args) -> ExitCode {
    if !args.placement.is_here() {
        eprintln!("--placement {} needs two processors; this machine has one", args.placement.name());
        return ExitCode::FAILURE;
    }
    let mut rivals = Rival::chosen(args);
    for (rival, reason) in scripts::missing(&rivals) {
        println!("{}: skipped, {reason}", rival.title());
        rivals.retain(|other| *other != rival);
    }
    let mut measured: Vec<(Rival, Row)> = Vec::new();
    let mut lost = Vec::new();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {} …", args.rounds);
        for &rival in &rivals {
            if lost.contains(&rival) {
                continue;
            }
            match measure(rival, args) {
                Ok(rows) => measured.extend(rows.into_iter().map(|row| (rival, row))),
                Err(error) => {
                    println!("{}: left out from round {round} on, {error}", rival.title());
                    lost.push(rival);
                }
            }
        }
    }
    print!("{}", table::table(args, &rivals, &measured));
    if lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(rival: Rival, args: &Args) -> Result<Vec<Row>, LostError> {
    let printed = group::run(&mut role::manager(rival, args), args.seconds * FIGURES + SLACK)?;
    Ok(Row::parse(&printed)?)
}
