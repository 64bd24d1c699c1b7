//! What services print: whole, in its log, for whoever listens, and in no one's way.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::OutputStream;
use pm::service::{Condition, Event, LogFile, Orchestrator, Output, State, When};
use tokio::sync::{broadcast, mpsc};

use super::{Events, RESTS, at_once, orchestrator, printed, shell, state, wait};
use crate::support::{Scratch, alone, contains, eventually, one, resident, run, within};

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        one("services::output::the_last_line_before_the_end_is_kept", the_last_line_before_the_end_is_kept),
        one("services::output::long_lines_nul_and_escapes", long_lines_nul_and_escapes),
        one("services::output::listeners_have_it_as_it_came", listeners_have_it_as_it_came),
        one("services::output::a_full_disk_stops_nobody", a_full_disk_stops_nobody),
        one("services::output::a_log_that_cannot_be_opened_stops_nobody", a_log_that_cannot_be_opened),
        one("services::output::a_log_that_is_a_pipe_nobody_reads_stops_nobody", a_log_that_is_a_pipe_nobody_reads),
        one("services::output::a_log_is_set_aside_when_it_is_large", a_log_is_set_aside_when_it_is_large),
        one("services::output::each_replica_has_a_log", each_replica_has_a_log),
        one("services::output::a_slow_reader_misses_lines_and_is_told", a_slow_reader_misses_lines_and_is_told),
        one("services::output::a_reader_that_is_gone_stops_nobody", a_reader_that_is_gone_stops_nobody),
        one("services::output::much_at_the_end_arrives", much_at_the_end_arrives),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(alone("services::output::a_hundred_megabytes_at_full_speed", || {
        run(a_hundred_megabytes_at_full_speed());
        Ok(())
    }));
    trials
}

/// What stands in a log, without the times: `stdout F the text`. A record that is just being written is none yet.
fn records(path: &Path) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.split_once(' ').expect("a time").1.to_string()).collect()
}

async fn ends(orchestrator: &Orchestrator, name: &str) {
    let _ = within(orchestrator.start_service(name)).await;
    wait(orchestrator, name, Condition::Completed).await;
}

async fn the_last_line_before_the_end_is_kept() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("logs/a.log");
    let a = shell("a", "echo first; printf last; printf alas >&2; kill -9 $$").log(LogFile::new(&path));
    orchestrator.add([a.build().unwrap()]).await.unwrap();
    for life in 1..=10 {
        ends(&orchestrator, "a").await;
        let (last, records) = (orchestrator.last_lines("a", 1000).await.unwrap(), records(&path));
        for (line, record) in [("first", "stdout F first"), ("last", "stdout F last"), ("alas", "stderr F alas")] {
            assert_eq!(last.iter().filter(|one| *one == line).count(), life, "{last:?}");
            assert_eq!(records.iter().filter(|one| *one == record).count(), life, "{records:?}");
        }
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "it may hold secrets");
}

async fn long_lines_nul_and_escapes() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("a.log");
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; printf 'a\\0b\\n\\033[31mred\\r\\n\\377\\n2026-01-01T00:00:00.000Z stdout F forged\\n'; \
                  head -c 1000000 /dev/zero | tr '\\0' y";
    orchestrator.add([shell("a", script).log(LogFile::new(&path)).build().unwrap()]).await.unwrap();
    ends(&orchestrator, "a").await;
    let bytes = fs::read(&path).unwrap();
    let (mut lines, mut text) = (Vec::new(), Vec::new());
    for record in bytes.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n') {
        let mut parts = record.splitn(4, |byte| *byte == b' ');
        let (_, stream, kind, rest) =
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(stream, b"stdout");
        assert!(rest.len() <= 64 << 10, "{}", rest.len());
        text.extend_from_slice(rest);
        if kind == b"F" {
            lines.push(std::mem::take(&mut text));
        }
    }
    let long = |letter: u8| vec![letter; 1_000_000];
    let expected: [&[u8]; 6] =
        [&long(b'x'), b"a\0b", b"\x1b[31mred\r", b"\xff", b"2026-01-01T00:00:00.000Z stdout F forged", &long(b'y')];
    assert_eq!(lines.len(), expected.len());
    assert!(lines.iter().zip(expected).all(|(line, expected)| line == expected));
    let last = orchestrator.last_lines("a", 100).await.unwrap();
    assert_eq!(last.len(), 1, "its end alone is longer than what is kept");
    assert!(last[0].len() >= 10_000 && last[0].bytes().all(|byte| byte == b'y'));
}

/// All that comes until a line says `end`.
async fn until_end(output: &mut broadcast::Receiver<Output>) -> Vec<Output> {
    let mut all = Vec::new();
    loop {
        let one = within(output.recv()).await.unwrap();
        let is_last = one.text.ends_with(b"end\n");
        all.push(one);
        if is_last {
            return all;
        }
    }
}

async fn listeners_have_it_as_it_came() {
    let orchestrator = orchestrator();
    let mut output = orchestrator.output();
    let script =
        "printf '\\033[1mbold\\n'; echo alas >&2; head -c 100000 /dev/zero | tr '\\0' x; sleep 0.05; printf 'y\\nend'";
    orchestrator.add([shell("a", script).build().unwrap()]).await.unwrap();
    ends(&orchestrator, "a").await;
    let all = until_end(&mut output).await;
    assert!(all.iter().all(|one| &*one.label == "a" && one.missed == 0), "{all:?}");
    let of =
        |stream| all.iter().filter(|one| one.stream == stream).flat_map(|one| one.text.to_vec()).collect::<Vec<u8>>();
    let expected = [b"\x1b[1mbold\n", &vec![b'x'; 100_000][..], b"y\nend\n"].concat();
    assert!(of(OutputStream::Stdout) == expected);
    assert_eq!(of(OutputStream::Stderr), b"alas\n");
    assert_eq!(all.iter().filter(|one| !one.is_whole).map(|one| one.text.len()).collect::<Vec<_>>(), [64 << 10]);
}

fn lost(event: &Event) -> Option<String> {
    match event {
        Event::LogLost { error } => Some(error.clone()),
        _ => None,
    }
}

async fn a_full_disk_stops_nobody() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", "for n in 1 2 3 4 5; do echo line $n; done; exec sleep 1000").log(LogFile::new("/dev/full"));
    within(orchestrator.start_many([a.build().unwrap()])).await.unwrap();
    contains(events.next("a", lost).await, "No space left");
    assert_eq!(printed(&orchestrator, "a", 5).await.len(), 5);
    wait(&orchestrator, "a", Condition::Running).await;
    assert_eq!(events.all(|one| lost(&one.event)), [""; 0], "it is said once");
    assert!(within(orchestrator.stop("a")).await.unwrap()[0].is_clean());
}

async fn a_log_that_cannot_be_opened() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let mut events = Events::of(&orchestrator);
    // A file stands where the directory should be: that is in the way of root as well.
    let directory = scratch.path("logs");
    fs::write(&directory, "").unwrap();
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").log(LogFile::new(directory.join("a.log")));
    within(orchestrator.start_many([a.build().unwrap()])).await.unwrap();
    let error = events.next("a", lost).await;
    contains(&error, "a.log");
    assert_eq!(state(&orchestrator, "a").await, State::Healthy);
    // Once that is mended, the next life is logged.
    fs::remove_file(&directory).unwrap();
    within(orchestrator.restart("a")).await.unwrap();
    within(orchestrator.stop("a")).await.unwrap();
    let records = records(&directory.join("a.log"));
    assert_eq!(records.last().map(String::as_str), Some("stdout F up"), "{records:?}");
}

/// To open it would wait for ever, and with it everything else.
async fn a_log_that_is_a_pipe_nobody_reads() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("a.log");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut events = Events::of(&orchestrator);
    let a = shell("a", "echo up; exec sleep 1000").ready_line("up").log(LogFile::new(&path)).build().unwrap();
    within(orchestrator.start_many([a])).await.unwrap();
    contains(events.next("a", lost).await, "a.log");
    assert!(within(orchestrator.stop("a")).await.unwrap()[0].is_clean());
}

async fn a_log_is_set_aside_when_it_is_large() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("a.log");
    // What is read at once is written at once, so each line comes by itself.
    let script = "for n in 1 2 3 4 5 6; do printf \"$n %5000s\\n\" x; sleep 0.05; done";
    let log = LogFile { max_bytes: 4000, keep: 2, ..LogFile::new(&path) };
    orchestrator.add([shell("a", script).log(log).build().unwrap()]).await.unwrap();
    ends(&orchestrator, "a").await;
    let files = ["a.log", "a.log.1", "a.log.2"].map(|name| records(&scratch.path(name)));
    let all: Vec<&String> = files.iter().rev().flatten().collect();
    assert!(all.len() <= 6 && all.last().is_some_and(|last| last.starts_with("stdout F 6 ")), "{}", all.len());
    assert!(files[1..].iter().all(|file| !file.is_empty()) && !scratch.path("a.log.3").exists());
}

async fn each_replica_has_a_log() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let a = shell("a", "echo $PM_REPLICA").replicas(3).log(LogFile::new(scratch.path("a.log")));
    orchestrator.add([a.build().unwrap()]).await.unwrap();
    ends(&orchestrator, "a").await;
    for (name, line) in [("a.log", "1"), ("a#2.log", "2"), ("a#3.log", "3")] {
        assert_eq!(records(&scratch.path(name)), [format!("stdout F {line}")]);
    }
}

/// So many lines are more than a pipe holds, and come in several pieces.
const LINES: usize = 50_000;

async fn a_slow_reader_misses_lines_and_is_told() {
    let (sender, mut reader) = mpsc::channel(2);
    let scratch = Scratch::new();
    let path = scratch.path("a.log");
    let orchestrator = Orchestrator::builder().output(sender).start().unwrap();
    let script = format!("seq {LINES}; {RESTS}");
    let a = shell("a", &script).log(LogFile::new(&path)).build().unwrap();
    let began = Instant::now();
    within(orchestrator.start_many([a])).await.unwrap();
    // It is not held up for long: all of it is in its log soon.
    eventually("all is logged", || records(&path).len() == LINES).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(within(orchestrator.stop("a")).await.unwrap()[0].is_clean());
    // What it reads at last and what it missed are all, though nothing is printed any more that could say so.
    let (mut read, mut missed) = (0, 0);
    while read + missed < LINES {
        let one = within(reader.recv()).await.unwrap();
        read += one.text.iter().filter(|byte| **byte == b'\n').count();
        missed += one.missed as usize;
    }
    assert!(read > 0 && missed > 0 && read + missed == LINES, "{read} and {missed}");
}

async fn a_reader_that_is_gone_stops_nobody() {
    let (sender, reader) = mpsc::channel(1);
    drop(reader);
    let orchestrator = Orchestrator::builder().output(sender).start().unwrap();
    let began = Instant::now();
    orchestrator.add([shell("a", &format!("seq {LINES}")).build().unwrap()]).await.unwrap();
    ends(&orchestrator, "a").await;
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// A pipe is full when its writer ends, and all of that is still read.
async fn much_at_the_end_arrives() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("a.log");
    let script = "head -c 60000 /dev/zero | tr '\\0' '\\n'; seq 500 >&2; kill -9 $$";
    let log = LogFile { max_bytes: 0, ..LogFile::new(&path) };
    let a = shell("a", script).log(log).restart(at_once(When::Never)).build().unwrap();
    orchestrator.add([a]).await.unwrap();
    for life in 1..=5 {
        ends(&orchestrator, "a").await;
        assert_eq!(records(&path).len(), life * 60_500);
    }
}

async fn a_hundred_megabytes_at_full_speed() {
    const LINES: usize = 1_000_000;
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let path = scratch.path("a.log");
    let line = "x".repeat(99);
    let script = format!("yes {line} | head -n {LINES}; printf end");
    let log = LogFile { max_bytes: 0, ..LogFile::new(&path) };
    let warm = shell("warm", &format!("yes {line} | head -n 10000")).log(LogFile::new(scratch.path("warm.log")));
    let a = shell("a", &script).log(log).build().unwrap();
    orchestrator.add([warm.build().unwrap(), a]).await.unwrap();
    ends(&orchestrator, "warm").await;
    let before = resident(std::process::id());
    let began = Instant::now();
    ends(&orchestrator, "a").await;
    println!("100 MB were logged in {:?}", began.elapsed());
    let grown = resident(std::process::id()).saturating_sub(before);
    assert!(grown <= 2 << 20, "{grown} bytes more");
    let mut count = 0;
    let mut last = String::new();
    for record in BufReader::new(File::open(&path).unwrap()).lines() {
        last = record.unwrap();
        count += usize::from(last.ends_with(&format!(" stdout F {line}")));
    }
    assert_eq!(count, LINES);
    contains(last, " stdout F end");
}
