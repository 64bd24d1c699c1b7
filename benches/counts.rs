//! What a query costs in counts, which are the same on a machine that is busy with other things, or nearly so: instructions (callgrind) and
//! system calls (strace). Fails where one stays above its ceiling. `cargo bench --bench counts`; what is not installed is skipped, and said so.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use pm::{AnyTransport, Query};
use pm_cli::bench::measure::Block;

static ECHO: Query<Block, Block> = Query::new("echo", &|block: Block| black_box(block));

/// The variable that makes this program the load that is counted: a number of queries, how many of them at once, and a transport, or `thread`.
const LOAD: &str = "PM_BENCH_LOAD";

/// One figure that is held.
struct Guard {
    what: &'static str,
    tool: Tool,
    at_once: u32,
    link: &'static str,
    ceiling: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    /// Instructions.
    Callgrind,
    /// System calls.
    Strace,
}

/// Instructions are those of manager and worker together, over a link in memory, since callgrind cannot follow the keeper; system calls are
/// those of both over shm. The ceilings are what was measured and a quarter; a peer that the machine keeps from running costs some system calls.
const GUARDS: [Guard; 5] = [
    Guard { what: "instructions, one at a time", tool: Tool::Callgrind, at_once: 1, link: "thread", ceiling: 11_000.0 },
    Guard {
        what: "instructions, 256 in flight",
        tool: Tool::Callgrind,
        at_once: 256,
        link: "thread",
        ceiling: 6_000.0,
    },
    Guard { what: "system calls, one at a time", tool: Tool::Strace, at_once: 1, link: "shm", ceiling: 0.2 },
    Guard { what: "system calls, 16 in flight", tool: Tool::Strace, at_once: 16, link: "shm", ceiling: 0.15 },
    Guard { what: "system calls, 256 in flight", tool: Tool::Strace, at_once: 256, link: "shm", ceiling: 0.2 },
];

/// How often a count that is too high is taken.
const TRIES: u32 = 3;

fn main() -> ExitCode {
    pm::roles([&ECHO]);
    if let Ok(load) = std::env::var(LOAD) {
        run_load(&load);
        return ExitCode::SUCCESS;
    }
    let mut is_held = true;
    for guard in GUARDS {
        let Some(each) = guard.least() else {
            println!("{}: skipped, {}", guard.what, guard.tool.needs());
            continue;
        };
        let holds = each <= guard.ceiling;
        is_held &= holds;
        println!(
            "{} a query: {each:.3}, ceiling {}{}",
            guard.what,
            guard.ceiling,
            if holds { "" } else { ": TOO MANY" }
        );
    }
    ExitCode::from(u8::from(!is_held))
}

impl Guard {
    /// The least of what was counted for each query, as often as it takes to be below the ceiling. None where it cannot be counted.
    fn least(&self) -> Option<f64> {
        let mut least = self.each()?;
        for _ in 1..TRIES {
            if least > self.ceiling {
                least = least.min(self.each()?);
            }
        }
        Some(least)
    }

    fn each(&self) -> Option<f64> {
        let is_alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        if self.tool == Tool::Strace && is_alone {
            return None;
        }
        // The difference of two runs, so that the start of the pool does not count.
        let (few, many) = match self.tool {
            Tool::Callgrind => (1_000, 6_000),
            Tool::Strace => (1_000, 51_000),
        };
        let (start, end) = (self.tool.count(self, few)?, self.tool.count(self, many)?);
        Some((end - start) / f64::from(many - few))
    }
}

/// Runs as many queries as it says.
fn run_load(load: &str) {
    let [queries, at_once, link] = *load.split(' ').collect::<Vec<_>>() else { panic!("{LOAD} is {load:?}") };
    let (queries, at_once): (u64, u64) = (queries.parse().expect("a number"), at_once.parse().expect("a number"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pool = match link {
            "thread" => ECHO.pool().in_process().start().await,
            link => ECHO.pool().transport(link.parse::<AnyTransport>().expect("a transport")).start().await,
        };
        let pool = pool.expect("a pool");
        let tasks: Vec<_> = (0..at_once)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let input = black_box(Block([7; 64]));
                    for _ in 0..queries / at_once {
                        assert_eq!(pool.query(&input).await.expect("an answer"), input);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        pool.shutdown().await;
    });
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Callgrind => "valgrind",
            Tool::Strace => "strace",
        }
    }

    /// What is missing where it counts nothing.
    fn needs(self) -> &'static str {
        match self {
            Tool::Callgrind => "valgrind does not run here",
            Tool::Strace => "strace does not run here, or there is one processor only",
        }
    }

    /// What it counts in a run of so many queries; none where it does not run.
    fn count(self, guard: &Guard, queries: u32) -> Option<f64> {
        let mut command = Command::new(self.name());
        match self {
            Tool::Callgrind => command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]),
            Tool::Strace => command.args(["-f", "-c", "-o", "/dev/stderr"]),
        };
        let output = command
            .arg(std::env::current_exe().expect("this program"))
            .env(LOAD, format!("{queries} {} {}", guard.at_once, guard.link))
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {text}", self.name());
        let number = |word: &str| word.replace(',', "").parse().ok();
        match self {
            // ==7== Collected : 12345
            Tool::Callgrind => {
                text.lines().find(|line| line.contains("Collected"))?.split_whitespace().last().and_then(number)
            }
            // 100.00  0.419  12  33551  1917  total
            Tool::Strace => {
                text.lines().find(|line| line.ends_with("total"))?.split_whitespace().nth(3).and_then(number)
            }
        }
    }
}
