//! Where the processes run. A wake-up across cores costs ten times one on the same core, so a figure without its place says nothing.

use std::fmt;

use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The variable that pins a process of a bench to one processor.
pub const VARIABLE: &str = "PM_BENCH_CPU";

/// Where manager and worker run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// The manager on processor 0, the worker on 1.
    #[value(name = "two")]
    TwoCores,
    /// Both on processor 0.
    #[value(name = "one")]
    OneCore,
    /// Wherever the kernel likes.
    Unpinned,
    /// As on two cores, each of which has a process beside that never sleeps.
    Hogs,
}

impl Place {
    /// All of them that this machine has.
    pub fn all() -> Vec<Place> {
        Place::value_variants().iter().copied().filter(|place| place.is_here()).collect()
    }

    /// Whether this machine has enough processors for it.
    pub fn is_here(self) -> bool {
        self == Place::OneCore || std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)
    }

    /// Its name in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Place::TwoCores => "two",
            Place::OneCore => "one",
            Place::Unpinned => "unpinned",
            Place::Hogs => "hogs",
        }
    }

    /// Pins the calling thread, and those that it starts, as the manager. Call it before a runtime is built.
    pub fn enter(self) {
        match self {
            Place::TwoCores | Place::OneCore | Place::Hogs => pin(&[0]),
            Place::Unpinned => pin(&all_cores()),
        }
    }

    /// The same for a thread that stands for a worker.
    pub fn enter_as_worker(self) {
        match self.worker() {
            Some(cpu) => pin(&[cpu]),
            None => pin(&all_cores()),
        }
    }

    /// The processor of the worker.
    fn worker(self) -> Option<usize> {
        match self {
            Place::TwoCores | Place::Hogs => Some(1),
            Place::OneCore => Some(0),
            Place::Unpinned => None,
        }
    }

    /// What [`VARIABLE`] says in the environment of a worker.
    pub fn variable(self) -> String {
        self.worker().map_or("any".to_string(), |cpu| cpu.to_string())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::TwoCores => "two cores",
            Place::OneCore => "one core",
            Place::Unpinned => "unpinned",
            Place::Hogs => "two cores with a hog on each",
        })
    }
}

/// Pins this process as its environment says: call it first in `main`.
pub fn pin_from_environment() {
    match std::env::var(VARIABLE).map(|cpu| cpu.parse()) {
        Ok(Ok(cpu)) => pin(&[cpu]),
        // The manager may have been pinned when it started this process.
        Ok(Err(_)) => pin(&all_cores()),
        Err(_) => {}
    }
}

fn all_cores() -> Vec<usize> {
    // Those of the machine, and not those that whoever started this process left it: as in "0-3".
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let last = online.trim().rsplit(['-', ',']).next().and_then(|last| last.parse().ok());
    (0..=last.unwrap_or(1)).collect()
}

fn pin(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    // A machine without that processor measures unpinned, and the table says where it ran by its cores.
    let _ = sched_setaffinity(None, &set);
}
