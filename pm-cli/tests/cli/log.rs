//! The result file: written whole, gone on with, and cleared of failures.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use rustix::process::Signal;

use crate::support::{Dir, numbers, objects, pool};

/// The last line of each job.
fn jobs(path: &Path) -> BTreeMap<u64, String> {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
    objects(&bytes).into_iter().map(|object| (object["job"].as_u64().unwrap(), object.to_string())).collect()
}

fn lines(path: &Path) -> usize {
    std::fs::read(path).unwrap().iter().filter(|&&byte| byte == b'\n').count()
}

#[test]
fn a_run_that_was_killed_anywhere_goes_on_to_the_same_end() {
    let dir = Dir::new();
    let (whole, torn) = (dir.join("whole"), dir.join("torn"));
    let input = numbers(60_000);
    let done = pool(["-o".as_ref(), whole.as_os_str(), "--".as_ref(), "@echo".as_ref()]).run(&input).expect(0);
    assert_eq!((done.text().as_str(), done.err.as_str()), ("", ""), "results go to the file alone");
    let expected = std::fs::read(&whole).unwrap();
    assert_eq!(lines(&whole), 60_000);
    let mut partial = 0;
    // How far the input goes before the kill decides how far pm comes.
    for fed in [0, 10, 65_000, 120_000, 200_000, 300_000] {
        let mut running = pool(["-o".as_ref(), torn.as_os_str(), "--".as_ref(), "@echo".as_ref()]).start();
        running.stdin.as_mut().unwrap().write_all(&input.as_bytes()[..fed]).unwrap();
        running.signal(Signal::KILL);
        assert_eq!(running.end().code, None);
        partial += usize::from(torn.exists() && lines(&torn) > 0);
        let resume = pool(["--resume".as_ref(), "-o".as_ref(), torn.as_os_str(), "--".as_ref(), "@echo".as_ref()]);
        resume.run(&input).expect(0);
        assert!(std::fs::read(&torn).unwrap() == expected, "after {fed} bytes");
        std::fs::remove_file(&torn).unwrap();
    }
    assert!(partial > 0, "no run was killed between its first and its last result");
    // A write that was torn at any byte.
    for cut in (1..expected.len()).step_by(expected.len() / 7) {
        std::fs::write(&torn, &expected[..cut]).unwrap();
        pool(["--resume".as_ref(), "-o".as_ref(), torn.as_os_str(), "--".as_ref(), "@echo".as_ref()])
            .run(&input)
            .expect(0);
        assert!(std::fs::read(&torn).unwrap() == expected, "cut at {cut}");
    }
}

#[test]
fn unordered_runs_resume_as_well() {
    let dir = Dir::new();
    let (whole, torn) = (dir.join("whole"), dir.join("torn"));
    let args = |path: &Path| {
        let path = path.to_str().unwrap().to_string();
        ["--unordered", "--sync", "-j3", "--resume", "-o"]
            .map(String::from)
            .into_iter()
            .chain([path, "--".into(), "@echo".into()])
            .collect::<Vec<_>>()
    };
    let input = numbers(20_000);
    pool(args(&whole)).run(&input).expect(0);
    let mut running = pool(args(&torn)).start();
    running.stdin.as_mut().unwrap().write_all(&input.as_bytes()[..80_000]).unwrap();
    running.signal(Signal::KILL);
    running.end();
    let done = pool(args(&torn)).run(&input).expect(0);
    assert_eq!(done.err, "");
    assert_eq!(lines(&torn), 20_000, "no job twice");
    assert_eq!(jobs(&torn), jobs(&whole));
}

#[test]
fn only_what_matches_is_skipped() {
    let dir = Dir::new();
    let (log, seen) = (dir.join("log"), dir.join("seen"));
    let script = format!("echo {{}} >> {}; echo done {{}}", seen.display());
    let args = |option: &'static str| {
        ["-j1", option, "-o", log.to_str().unwrap(), "--", "sh", "-c", &script].map(String::from)
    };
    let long = "x".repeat(5000);
    pool(args("--resume")).run(format!("a\nb\n{long}\nd\n")).expect(0);
    std::fs::write(&seen, "").unwrap();
    // Job 1 has another input, job 4 is new.
    pool(args("--resume")).run(format!("a\nB\n{long}\nd\ne\n")).expect(0);
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "B\ne\n");
    let jobs = jobs(&log);
    assert!(jobs[&1].contains("done B") && jobs[&4].contains("done e"), "the last line of a job counts");
    // Now all of it is done.
    std::fs::write(&seen, "").unwrap();
    pool(args("--resume")).run(format!("a\nB\n{long}\nd\ne\n")).expect(0);
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "");
}

#[test]
fn failures_are_done_again_where_that_is_asked_for() {
    let dir = Dir::new();
    let (log, switch, seen) = (dir.join("log"), dir.join("switch"), dir.join("seen"));
    let script = format!(
        "echo {{}} >> {}; case {{}} in 3|7) [ -e {} ] || exit 1;; esac; echo done {{}}",
        seen.display(),
        switch.display()
    );
    let args = |options: &[&'static str]| {
        let rest = ["-j1", "-o", log.to_str().unwrap(), "--", "sh", "-c", &script];
        options.iter().chain(&rest).map(ToString::to_string).collect::<Vec<_>>()
    };
    pool(args(&[])).run(numbers(10)).expect(1);
    std::fs::write(&seen, "").unwrap();
    std::fs::write(&switch, "").unwrap();
    let resumed = pool(args(&["--resume"])).run(numbers(10)).expect(1);
    assert!(resumed.err.contains("2 jobs failed in earlier runs; --retry-failed"), "{}", resumed.err);
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "", "--resume alone takes failures for done");
    pool(args(&["--retry-failed"])).run(numbers(10)).expect(0);
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "3\n7\n");
    assert_eq!(lines(&log), 10, "the failures are out of the file");
    assert!(jobs(&log).values().all(|job| job.contains("done")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "no copy is left");
}

#[test]
fn files_that_are_no_result_files_are_left_alone() {
    let dir = Dir::new();
    let path = dir.join("log");
    let check = |options: &[&str], content: &str, parts: &[&str]| {
        std::fs::write(&path, content).unwrap();
        let rest = ["-o", path.to_str().unwrap(), "--", "@echo"];
        pool(options.iter().chain(&rest)).run("a\n").refused(2, parts);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    };
    check(&[], "{\"job\":0,\"input\":\"a\",\"result\":\"a\"}\n", &["has results already", "--resume"]);
    check(&["--resume"], "dear diary\n", &["line 1", "another file"]);
    check(&["--resume"], "{\"job\":0,\"input\":\"a\",\"result\":\"a\"}\n{\"job\":1}\n", &["line 2"]);
    pool(["-o", "/no/such/dir/log", "--", "@echo"]).run("a\n").refused(2, &["/no/such/dir/log", "cannot be opened"]);
    pool(["--resume", "-o", "/dev/null", "--", "@echo"]).run("a\n").refused(2, &["/dev/null", "regular"]);
}

#[test]
fn two_pms_do_not_write_one_file() {
    let dir = Dir::new();
    let path = dir.join("log");
    let args = ["--resume", "-o", path.to_str().unwrap(), "--", "@echo"];
    let mut fifo = dir.fifo("started");
    let script = format!("echo up > {}; cat", fifo.path.display());
    let first = ["--resume", "-o", path.to_str().unwrap(), "--as", "filter", "--", "sh", "-c", &script];
    let running = pool(first).start();
    fifo.line();
    pool(args).run("a\n").refused(2, &["another pm"]);
    running.end();
}

#[test]
fn a_full_disk_is_no_success() {
    let done = pool(["-o", "/dev/full", "--", "@echo"]).run(numbers(10)).expect(1);
    assert!(done.err.contains("/dev/full") && done.err.contains("No space left"), "{}", done.err);
}

#[test]
fn errors_stand_in_the_file_and_not_on_standard_error() {
    let dir = Dir::new();
    let path = dir.join("log");
    let done = pool(["-o", path.to_str().unwrap(), "--sync", "--", "false", "{}"]).run("a\n").expect(1);
    assert_eq!((done.text().as_str(), done.err.as_str()), ("", ""));
    assert_eq!(objects(&std::fs::read(&path).unwrap())[0]["error"]["code"], 1);
}
