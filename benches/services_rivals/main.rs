//! `pm up` beside supervisord, pm2, honcho, mprocs and process-compose: the commands themselves, each with a configuration file of its own and the same services.
//!
//! `cargo bench -p pm-benches --bench services_rivals [-- --install] [-- TOOL...] [-- SECONDS]`, where the seconds are those in which idle services are watched.
//! What is installed is measured, the rest is skipped and said so; `--install` gets supervisord and honcho with pip, pm2 and mprocs with npm, below the
//! target directory.
//!
//! | module | holds |
//! |---|---|
//! | [`tool`] | who is measured: how it is started, stopped and found among its processes |
//! | [`files`] | the configuration file of each |
//! | [`find`] | where a tool is, how it is installed, its version |
//! | [`service`] | the program that all of them run, and how it says that it runs |
//! | [`mark`] | what the bench has started, and its end |
//! | [`running`] | a tool that runs |
//! | [`process`] | what `/proc` says of processes |
//! | [`measure`] | the measures |
//! | [`problem`] | why there is no figure |
//! | [`table`] | what comes of them |

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use pm_cli::bench::measure::{Asked, asked};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::find::Found;
use crate::measure::Extent;
use crate::table::Column;
use crate::tool::Tool;

mod files;
mod find;
mod mark;
mod measure;
mod problem;
mod process;
mod running;
mod service;
mod table;
mod tool;

/// The variable that makes this program the command `pm`.
const AS_PM: &str = "PM_BENCH_AS_PM";

fn main() -> ExitCode {
    pm::roles(pm_cli::roles::ALL);
    if std::env::var_os(AS_PM).is_some() {
        return pm_cli::run(std::env::args_os(), pm_cli::Stdout::Open);
    }
    let scratch = Scratch::new();
    end_all_on_signals(scratch.0.clone());
    let Asked { is_test, time } = asked(20.0, Duration::from_millis(300));
    let extent = if is_test { Extent::test(time) } else { Extent::whole(time) };
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--install") {
        find::install(&scratch.0);
    }
    let is_asked = |tool: &&Tool| words.iter().any(|word| word == tool.name());
    let mut chosen: Vec<Tool> = Tool::ALL.iter().filter(is_asked).copied().collect();
    if chosen.is_empty() {
        chosen = Tool::ALL.to_vec();
    }
    let (mut columns, mut skipped) = (Vec::new(), Vec::new());
    for tool in chosen {
        match Found::look(tool, &scratch.0) {
            Ok(found) => columns.push(Column::new(found)),
            Err(why) => skipped.push(format!("skipped: {}: {why}", tool.name())),
        }
    }
    let measure = |what: &str, measure: measure::Measure, columns: &mut Vec<Column>| {
        for column in columns {
            if !is_test {
                eprintln!("{}: {what} …", column.found.tool.name());
            }
            measure(column, &scratch.0, &extent);
        }
    };
    // In turn, so that an hour of the machine that is slow is slow for all.
    for _ in 0..extent.rounds {
        measure("start", measure::start_and_kill, &mut columns);
    }
    measure("rest", measure::rest, &mut columns);
    measure("log", measure::log, &mut columns);
    print!("{}", table::table(&columns, &skipped, &extent));
    // A test of a rival that is not as it should be says nothing of pm.
    let is_well = columns.iter().all(|column| column.found.tool != Tool::Pm || column.problems.is_empty());
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C ends what tools in the background have started, too. Whoever handles a signal hands it to its children unignored, whatever its own parent ignored: some
/// tools stop their services with SIGINT.
fn end_all_on_signals(scratch: PathBuf) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut interrupt, mut terminate): (Signal, Signal) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt()).expect("a handler"), signal(SignalKind::terminate()).expect("a handler"))
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        mark::end_all();
        let _ = std::fs::remove_dir_all(scratch);
        std::process::exit(130);
    });
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pm-rivals-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
