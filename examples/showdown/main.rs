//! Battles and team validation of the npm package pokemon-showdown, in workers that may crash: what they come to is the same whatever happens to them.
//!
//! ```sh
//! npm ci --ignore-scripts --omit=optional --prefix examples/showdown
//! cargo run --release --example showdown -- --battles 100                # the package behind the kit for Node.js
//! cargo run --release --example showdown -- --battles 100 --chaos 2000   # with a worker killed every two seconds
//! cargo run --release --example showdown -- --battles 100 --foreign      # the package's own workers, which know nothing of pm
//! ```
//!
//! Each prints the same. How fast it was stands on standard error.

mod battle;
mod dialect;
mod dice;
mod digest;
mod host;
mod options;
mod player;
mod season;
mod validate;

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Called for the keeper, which ends whatever a worker leaves behind.
    pm::roles([]);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(season) = options::parse(std::env::args().skip(1))? else {
        println!("{}", options::HELP);
        return Ok(());
    };
    host::check()?;
    let report = tokio::runtime::Runtime::new()?.block_on(season.play())?;
    print!("{report}");
    println!("{}", report.digest());
    let (battles, seconds) = (report.battles.len(), report.time.as_secs_f64());
    let rate = battles as f64 / seconds;
    eprintln!("{battles} battles in {seconds:.1} s, {rate:.1} a second; {} were played again", report.replays);
    Ok(())
}
