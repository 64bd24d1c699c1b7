//! SIGINT, SIGTERM, and readers that go away.

use std::io::Write;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Dir, numbers, pool};

#[test]
fn the_first_signal_lets_jobs_aboard_finish() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = Dir::new();
        let (mut started, mut gate) = (dir.fifo("started"), dir.fifo("gate"));
        let script =
            format!("echo up > {}; read line < {}; echo done {{}}", started.path.display(), gate.path.display());
        let mut running = pool(["-j2", "--", "sh", "-c", &script]).start();
        let mut stdin = running.stdin.take().unwrap();
        stdin.write_all(numbers(100).as_bytes()).unwrap();
        started.line();
        started.line();
        running.signal(signal);
        // It reads no more, however long its input stays open.
        assert!(!running.ends_within(Duration::from_millis(100)), "jobs are aboard");
        gate.write(&"go\n".repeat(100));
        assert!(running.ends_within(Duration::from_secs(60)), "it waits for input that it does not need");
        drop(stdin);
        let done = running.end().expect(code);
        let count = done.text().lines().count();
        // Those that wait in a worker are asked back, which takes a moment on a busy machine.
        assert!((2..=4).contains(&count), "{count} jobs were done: {}", done.text());
        assert_eq!(done.text(), numbers(count as u32).lines().map(|line| format!("done {line}\n")).collect::<String>());
        assert!(done.err.starts_with("pm: stopping: jobs that have begun are finished"), "{}", done.err);
        assert!(done.err.contains(&format!("stopped early, with {count} jobs done and 0 failed")), "{}", done.err);
    }
}

#[test]
fn the_second_signal_kills() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = Dir::new();
        let mut started = dir.fifo("started");
        let script = format!("trap '' INT TERM; echo up > {}; while :; do sleep 1000; done", started.path.display());
        let mut running = pool(["-j1", "--", "sh", "-c", &script, "{}"]).start();
        running.stdin.as_mut().unwrap().write_all(b"a\nb\n").unwrap();
        started.line();
        // Two that come at once may count as one, as for every program.
        let ended = (0..100).any(|_| {
            running.signal(signal);
            running.ends_within(Duration::from_millis(200))
        });
        assert!(ended);
        let done = running.end().expect(code);
        assert_eq!(done.text(), "");
        assert!(done.err.contains("stopped early, with 0 jobs done"), "{}", done.err);
    }
}

#[test]
fn a_signal_while_workers_start_ends_it() {
    let dir = Dir::new();
    let mut started = dir.fifo("started");
    let script = dir.script("slow", &format!("#!/bin/sh\necho up > {}\nsleep 1000\n", started.path.display()));
    let running = pool(["-j1", "--", script.to_str().unwrap()]).start();
    started.line();
    running.signal(Signal::INT);
    assert!(running.ends_within(Duration::from_secs(60)));
    running.end().expect(130);
}

#[test]
fn a_signal_in_an_idle_pool_ends_it() {
    let mut running = pool(["--", "@echo"]).start();
    running.stdin.as_mut().unwrap().write_all(b"a\n").unwrap();
    assert_eq!(running.line(), "a");
    running.signal(Signal::TERM);
    assert!(running.ends_within(Duration::from_secs(60)));
    running.end().expect(143);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    for args in [&["--", "@echo"][..], &["--", "sh", "-c", "echo {}"]] {
        let mut running = pool(args).start();
        let mut stdin = running.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || while stdin.write_all(b"0\n1\n2\n3\n").is_ok() {});
        assert_eq!(running.line(), "0");
        running.stdout = None;
        assert!(running.ends_within(Duration::from_secs(60)));
        let done = running.end().expect(141);
        assert_eq!(done.err, "");
        feeder.join().unwrap();
    }
}
