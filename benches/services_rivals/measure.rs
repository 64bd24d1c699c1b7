//! The measures: three runs of each tool.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::files;
use crate::problem::Problem;
use crate::process;
use crate::running::{Running, ends_within, wait};
use crate::service::{Does, Reports, Services};
use crate::table::{Column, Logged, Rest, Survivors};

/// How long all services may take to start.
const START: Duration = Duration::from_secs(60);

/// How long one that was killed may take to start anew.
const RESTART: Duration = Duration::from_secs(10);

/// How long all may take to stop.
const STOP: Duration = Duration::from_secs(30);

/// How long all lines may take into the log.
const PRINT: Duration = Duration::from_secs(60);

/// 87 bytes, which no tool takes apart.
const LINE: &str = "0123456789abcdefghijklmnopqrstuvwxyz-0123456789abcdefghijklmnopqrstuvwxyz-0123456789abc";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One run of a tool: what comes of it goes into its column.
pub(crate) type Measure = fn(&mut Column, &Path, &Extent);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// How often a tool is started for the median of its start.
    pub(crate) rounds: usize,
    /// Services that are started.
    pub(crate) started: usize,
    /// Services that rest, and are stopped.
    pub(crate) resting: usize,
    /// How often one is killed.
    pub(crate) kills: usize,
    /// Lines that are printed by a service that prints much.
    pub(crate) lines: usize,
    /// Lines that are printed by one that ends soon.
    pub(crate) few: usize,
    /// How long idle services are watched.
    pub(crate) watched: Duration,
    /// How long a tool is left alone between a start and what follows.
    pub(crate) settled: Duration,
    /// When it is seen who has outlived the tool, and for how long a log must not have grown to be complete.
    pub(crate) aftermath: Duration,
}

impl Extent {
    pub(crate) fn whole(watched: Duration) -> Self {
        let (settled, aftermath) = (Duration::from_secs(1), Duration::from_secs(2));
        Extent {
            rounds: 3,
            started: 50,
            resting: 100,
            kills: 20,
            lines: 1_000_000,
            few: 1000,
            watched,
            settled,
            aftermath,
        }
    }

    /// Only whether all works.
    pub(crate) fn test(watched: Duration) -> Self {
        let (settled, aftermath) = (Duration::from_millis(50), Duration::from_millis(300));
        Extent { rounds: 1, started: 3, resting: 3, kills: 2, lines: 1000, few: 1000, watched, settled, aftermath }
    }
}

/// How soon all services run, and who of them lives when the tool is killed.
pub(crate) fn start_and_kill(column: &mut Column, scratch: &Path, extent: &Extent) {
    let measured = (|| {
        let services = Services::new(&dir(column, scratch), Does::Family, extent.started)?;
        files::write(column.found.tool, &services)?;
        let mut reports = Reports::new(&services)?;
        let began = Instant::now();
        let mut running = Running::start(&column.found, &services)?;
        let said = reports.all(&services, START)?;
        column.starts.push(began.elapsed());
        running.is_started()?;
        std::thread::sleep(extent.settled);
        running.kill()?;
        std::thread::sleep(extent.aftermath);
        let pids: Vec<u32> = said.values().map(|report| report.pid).collect();
        let children: Vec<u32> = said.values().filter_map(|report| report.child).collect();
        let survivors = Survivors { services: running.living(&pids), grandchildren: running.living(&children) };
        // The worst of the rounds.
        column.survivors = column.survivors.max(Some(survivors));
        Ok(())
    })();
    column.note("start", measured);
}

/// What a tool uses while its services rest, how soon one that is killed is there again, and how soon all have ended.
pub(crate) fn rest(column: &mut Column, scratch: &Path, extent: &Extent) {
    let measured = (|| {
        let tool = column.found.tool;
        let services = Services::new(&dir(column, scratch), Does::Rest, extent.resting)?;
        files::write(tool, &services)?;
        let mut reports = Reports::new(&services)?;
        let mut running = Running::start(&column.found, &services)?;
        let mut said = reports.all(&services, START)?;
        running.is_started()?;
        std::thread::sleep(extent.settled);

        let pids: Vec<u32> = said.values().map(|report| report.pid).collect();
        let own = running.own(&pids);
        let used = || own.iter().map(|pid| process::cpu(*pid)).sum::<Duration>();
        let (before, began) = (used(), Instant::now());
        std::thread::sleep(extent.watched);
        let cpu = used().saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
        let memory: Vec<(f64, f64)> = own.iter().map(|pid| process::memory(*pid)).collect();
        let (rss, pss) = (memory.iter().map(|both| both.0).sum(), memory.iter().map(|both| both.1).sum());
        column.rest = Some(Rest { processes: own.len(), rss, pss, cpu });

        if tool.restarts() {
            let victim = said.get_mut("s0").ok_or(Problem::NoProcess)?;
            for number in 0..extent.kills {
                // Not in step with whatever a tool does at intervals.
                let pause = Duration::from_millis(137 * number as u64 % 400);
                std::thread::sleep(tool.shortest_life() + pause);
                let killed = Instant::now();
                running.kill_service(victim.pid)?;
                *victim = reports.next(RESTART).ok_or(Problem::Silent { said: 0, wanted: 1, limit: RESTART })?;
                column.restarts.push(killed.elapsed());
            }
        }

        std::thread::sleep(tool.shortest_life());
        let pids: Vec<u32> = said.values().map(|report| report.pid).collect();
        let began = Instant::now();
        let command = running.stop()?;
        let is_left = |pid: &&u32| !ends_within(**pid, STOP.saturating_sub(began.elapsed()));
        let left = pids.iter().filter(is_left).count();
        if left > 0 {
            return Err(Problem::Alive(left, STOP));
        }
        column.stop = Some(began.elapsed());
        command.map_or(Ok(()), |mut command| wait(&mut command, "the command that stops all"))
    })();
    column.note("rest", measured);
}

/// How fast lines come into the log of a service, and whether all do: also of one that has ended before the tool looks.
pub(crate) fn log(column: &mut Column, scratch: &Path, extent: &Extent) {
    for _ in 0..extent.rounds {
        match print(column, scratch, extent, extent.few) {
            // The worst of the rounds.
            Ok(logged) => column.few = Some(column.few.map_or(logged.lines, |lines| lines.min(logged.lines))),
            Err(error) => column.note("log of a service that ends soon", Err(error)),
        }
    }
    let many = print(column, scratch, extent, extent.lines).map(|logged| column.logged = Some(logged));
    column.note("log", many);
}

fn print(column: &Column, scratch: &Path, extent: &Extent, count: usize) -> Result<Logged, Problem> {
    let services = Services::new(&dir(column, scratch), Does::Print, 1)?;
    files::write(column.found.tool, &services)?;
    let mut input = std::fs::File::create(services.input()).map(BufWriter::new).map_err(Problem::io("the input"))?;
    for _ in 0..count {
        writeln!(input, "{LINE}").map_err(Problem::io("the input"))?;
    }
    drop(input.into_inner().map_err(|error| Problem::io("the input")(error.into_error()))?);
    let mut reports = Reports::new(&services)?;
    let _running = Running::start(&column.found, &services)?;
    let service = reports.next(START).ok_or(Problem::Silent { said: 0, wanted: 1, limit: START })?;
    // Before it is told, and until growth was seen: a bench that is held up makes no tool faster.
    let began = Instant::now();
    reports.begin()?;
    let log = services.dir().join(column.found.tool.log());
    let (mut size, mut grown) = (0, began);
    // Its size alone, so that nothing is read beside what is measured.
    while began.elapsed() < PRINT {
        let now = std::fs::metadata(&log).map_or(0, |file| file.len());
        if now != size {
            (size, grown) = (now, Instant::now());
        } else if grown.elapsed() > extent.aftermath && ends_within(service.pid, Duration::ZERO) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let bytes = std::fs::read(&log).map_err(Problem::io(column.found.tool.log()))?;
    let is_whole = |line: &&[u8]| std::str::from_utf8(line).is_ok_and(|line| line.contains(LINE));
    let lines = bytes.split(|byte| *byte == b'\n').filter(is_whole).count();
    // The next one needs the space.
    let _ = std::fs::remove_file(&log);
    let _ = std::fs::remove_file(services.input());
    Ok(Logged { lines, took: grown - began })
}

fn dir(column: &Column, scratch: &Path) -> PathBuf {
    scratch.join(format!("{}-{}", column.found.tool.name(), NEXT.fetch_add(1, Ordering::Relaxed)))
}
