//! Workers and jobs that crash, hang, lie or are killed.

use std::io::{BufRead, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Dir, has, numbers, pool};

/// A filter that answers with its input, and dies on every hundredth number.
const FRAGILE: &str = "while read -r x; do case $x in *00) kill -SEGV $$;; *) echo \"$x\";; esac; done";

#[test]
fn a_worker_that_dies_costs_the_jobs_that_it_had() {
    let done = pool(["-j2", "--out", "json", "--as", "filter", "--", "sh", "-c", FRAGILE]).run(numbers(3000)).expect(1);
    let objects = done.objects();
    assert_eq!(objects.len(), 3000);
    let mut lost = 0;
    for (number, object) in objects.iter().enumerate() {
        assert_eq!(object["job"], number);
        if number % 100 == 0 && number > 0 {
            assert_eq!(object["error"]["kind"], "worker_lost", "{object}");
            let message = object["error"]["message"].as_str().unwrap();
            assert!(message.contains("SIGSEGV"), "{message}");
            assert_eq!(object["error"]["tries"], 1);
            lost += 1;
        } else {
            assert_eq!(object["result"], number.to_string(), "{object}");
        }
    }
    assert_eq!(lost, 29);
}

#[test]
fn a_function_that_kills_its_worker_costs_one_job() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let code = "import os, signal, sys\ndef f(n):\n  if n % 100 == 50:\n    print('about to die', file=sys.stderr, flush=True)\n    os.kill(os.getpid(), signal.SIGSEGV)\n  return n\n";
    std::fs::write(dir.join("rules.py"), code).unwrap();
    let args = ["-j2", "--in", "json", "--out", "json", "--retry", "2", "--", "@py", "rules.py:f"];
    let objects = pool(args).dir(dir.path()).run(numbers(1000)).expect(1).objects();
    let lost: Vec<_> = objects.iter().filter(|object| object.get("error").is_some()).collect();
    assert_eq!(objects.len(), 1000);
    assert_eq!(lost.len(), 10);
    for object in lost {
        assert_eq!(object["error"]["kind"], "worker_lost");
        assert_eq!(object["error"]["tries"], 3);
        assert!(object["error"]["stderr"].as_str().unwrap().contains("about to die"), "{object}");
    }
}

#[test]
fn retries_are_for_what_they_are_asked_for() {
    let dir = Dir::new();
    let count = dir.join("count");
    let script = format!("echo x >> {0}; n=$(wc -l < {0}); [ $n -ge 3 ] || exit 1; echo done {{}}", count.display());
    let run = |args: &[&str]| {
        std::fs::write(&count, "").unwrap();
        pool(args.iter().chain(&["-j1", "--out", "json", "--", "sh", "-c", &script])).run("a\n")
    };
    assert_eq!(run(&["--retry", "5"]).expect(1).objects()[0]["error"]["tries"], 1, "only lost workers are retried");
    assert_eq!(run(&["--retry", "1", "--retry-on", "error"]).expect(1).objects()[0]["error"]["tries"], 2);
    let done = run(&["--retry", "5", "--retry-on", "lost,error", "--progress", "always"]).expect(0);
    assert_eq!(done.objects()[0]["result"], "done a");
    assert!(done.err.contains("2 retried"), "{}", done.err);

    let script =
        format!("[ $(wc -l < {0}) -ge 1 ] || {{ echo x >> {0}; sleep 1000; }}; echo done {{}}", count.display());
    std::fs::write(&count, "").unwrap();
    let args = ["--timeout", "300ms", "--retry", "1", "--retry-on", "timeout", "--", "sh", "-c", &script];
    assert_eq!(pool(args).run("a\n").expect(0).text(), "done a\n");
}

#[test]
fn a_job_that_takes_too_long_is_ended_with_all_that_it_started() {
    let dir = Dir::new();
    let mut started = dir.fifo("started");
    let script = format!(
        "case $1 in 1) setsid sleep 1000 & sleep 1000 & echo up > {}; trap '' TERM; while :; do sleep 1000; done;; *) echo $1;; esac",
        started.path.display()
    );
    let mut running =
        pool(["-j1", "--timeout", "700ms", "--out", "json", "--", "sh", "-c", &script, "sh", "{}"]).start();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(b"0\n1\n").unwrap();
    assert_eq!(started.line(), "up");
    let begun = Instant::now();
    assert!(running.line().contains("\"result\":\"0\""));
    let line = running.line();
    assert!(line.contains("timed_out") && line.contains("700ms"), "{line}");
    assert!(begun.elapsed().as_secs() < 60);
    stdin.write_all(b"2\n").unwrap();
    // The next job has a new worker: what the old one had started is gone by then.
    assert!(running.line().contains("\"result\":\"2\""));
    let sleepers = running
        .others()
        .into_iter()
        .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().starts_with(b"sleep"));
    assert_eq!(sleepers.count(), 0);
    drop(stdin);
    running.end().expect(1);
}

#[test]
fn time_in_the_queue_is_no_time_of_the_job() {
    let done = pool(["-j1", "--timeout", "5s", "--", "sh", "-c", "sleep 0.1; echo {}"]).run(numbers(60)).expect(0);
    assert_eq!(done.text(), numbers(60));
}

#[test]
fn a_filter_that_does_not_keep_step_is_noticed() {
    // It never answers.
    let args =
        ["-j1", "--timeout", "200ms", "--out", "json", "--as", "filter", "--", "sh", "-c", "while read x; do :; done"];
    let objects = pool(args).run(numbers(2)).expect(1).objects();
    assert!(objects.iter().all(|object| object["error"]["kind"] == "timed_out"), "{objects:?}");
    // It answers twice, in one write: the first answer stands, and the next job is lost.
    let script = "while read x; do printf '%s\\nmore\\n' $x; done";
    let objects =
        pool(["-j1", "--out", "json", "--as", "filter", "--", "sh", "-c", script]).run(numbers(20)).expect(1).objects();
    let lost = objects
        .iter()
        .filter(|object| object["error"]["stderr"].as_str().is_some_and(|text| text.contains("out of step")));
    assert!(lost.count() > 0, "{objects:?}");
    assert!(
        objects.iter().all(|object| object["result"].is_null() || object["result"] == object["input"]),
        "{objects:?}"
    );
    // It ends after each answer: the answer counts, and the next job has another one.
    let script = "read x; echo $x";
    let done = pool(["-j1", "--retry", "100", "--as", "filter", "--", "sh", "-c", script]).run(numbers(20)).expect(0);
    assert_eq!(done.text(), numbers(20));
    // It fails.
    let script = "read x; echo oops >&2; exit 9";
    let object =
        &pool(["-j1", "--out", "json", "--as", "filter", "--", "sh", "-c", script]).run("a\n").expect(1).objects()[0];
    assert_eq!(object["error"]["message"], "the worker was lost: exit code 9");
    assert!(object["error"]["stderr"].as_str().unwrap().contains("oops"));
    // It closes its output and lives on.
    let script = "read x; exec >&-; sleep 1000";
    let object =
        &pool(["-j1", "--out", "json", "--as", "filter", "--", "sh", "-c", script]).run("a\n").expect(1).objects()[0];
    assert_eq!(object["error"]["kind"], "worker_lost");
}

#[test]
fn a_command_that_cannot_start_any_more_ends_the_pool() {
    let dir = Dir::new();
    let path = dir.script("once", "#!/bin/sh\nrm -f \"$0\"\nread x\nexit 5\n");
    let done = pool(["-j1", "--as", "filter", "--", path.to_str().unwrap()]).run(numbers(10)).expect(3);
    assert!(done.err.contains("gave up") && done.err.contains("cannot be started"), "{}", done.err);
}

#[test]
fn chaos_changes_no_result() {
    let args = ["-j3", "--", "sh", "-c", "echo {} | tr 0-9 a-j"];
    let calm = pool(args).run(numbers(200)).expect(0);
    let options = ["--chaos", "50ms", "--retry", "1000"];
    let wild = pool(options.iter().chain(&args)).run(numbers(200)).expect(0);
    assert!(calm.out == wild.out, "{}", wild.text());
    // It goes on until a worker has died, however fast the machine is.
    let mut running = pool(["--chaos", "20ms", "--retry", "1000", "--progress", "always", "--", "@echo"]).start();
    let mut stdin = running.stdin.take().unwrap();
    let before = running.others();
    let mut number = 0;
    while running.others().iter().all(|pid| before.contains(pid)) || number < 50_000 {
        stdin.write_all(format!("{number}\n").repeat(1000).as_bytes()).unwrap();
        (0..1000).for_each(|_| assert_eq!(running.line(), number.to_string()));
        number += 1000;
    }
    drop(stdin);
    let done = running.end().expect(0);
    let summary = done.err.lines().last().unwrap();
    assert!(!summary.contains(" 0 workers lost"), "{summary}");
}

#[test]
fn halt_soon_lets_the_others_finish_and_halt_now_does_not() {
    let dir = Dir::new();
    let mut started = dir.fifo("started");
    let mut gate = dir.fifo("gate");
    let script = format!(
        "case $1 in 0) echo up > {}; read line < {}; echo slow;; 1) read line < {1}; exit 1;; *) echo $1;; esac",
        started.path.display(),
        gate.path.display()
    );
    let args = ["-j2", "--out", "json", "--halt", "soon,fail=1", "--", "sh", "-c", &script, "sh", "{}"];
    let mut running = pool(args).start();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(numbers(2).as_bytes()).unwrap();
    assert_eq!(started.line(), "up");
    gate.write("go\ngo\n");
    drop(stdin);
    let objects = running.end().expect(1).objects();
    assert_eq!(objects[0]["result"], "slow");
    assert_eq!(objects[1]["error"]["kind"], "exit");

    let script = format!("case $1 in 0) echo up > {}; sleep 1000;; *) exit 1;; esac", started.path.display());
    let args = ["-j2", "--out", "json", "--halt", "now,fail=3", "--", "sh", "-c", &script, "sh", "{}"];
    let mut running = pool(args).start();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(b"0\n").unwrap();
    assert_eq!(started.line(), "up");
    let _ = stdin.write_all(&numbers(2000).as_bytes()[2..]);
    let objects = running.end().expect(1).objects();
    assert!((3..100).contains(&objects.len()), "{}", objects.len());
    assert!(objects.iter().all(|object| object["error"]["kind"] == "exit"), "job 0 was not done: {objects:?}");

    let done = pool(["-j1", "--halt", "never", "--", "false", "{}"]).run(numbers(50)).expect(1);
    assert_eq!(done.err.lines().count(), 50);
    let done = pool(["-j1", "--halt", "soon,fail=5", "--", "false", "{}"]).run(numbers(500)).expect(1);
    assert!((5..100).contains(&done.err.lines().count()), "{}", done.err);
}

#[test]
fn nothing_outlives_a_pm_that_was_killed() {
    let dir = Dir::new();
    let mut started = dir.fifo("started");
    let script =
        format!("setsid sleep 1000 & (sleep 1000 &) ; echo up > {}; while :; do :; done", started.path.display());
    let mut running = pool(["-j2", "--", "sh", "-c", &script, "{}"]).start();
    running.stdin.as_mut().unwrap().write_all(b"a\nb\n").unwrap();
    started.line();
    started.line();
    assert!(running.others().len() >= 8, "{:?}", running.others());
    running.signal(Signal::KILL);
    assert_eq!(running.end().code, None);
}

#[test]
fn all_that_workers_print_is_passed_on() {
    let script = "seq 30000 >&2; printf 'the last words' >&2; while read -r x; do echo \"$x\"; done";
    let done = pool(["-j1", "--as", "filter", "--", "sh", "-c", script]).run("a\n").expect(0);
    let printed: Vec<_> =
        done.err.lines().filter_map(|line| Some(line.strip_prefix("[sh#1 ")?.split_once("] ")?.1)).collect();
    let expected: Vec<_> = (1..=30_000).map(|n: u32| n.to_string()).chain(["the last words".to_string()]).collect();
    assert_eq!(printed, expected);
}

/// Standard error takes its time; deaths and deadlines do not wait for it.
#[test]
fn a_slow_standard_error_delays_no_restart() {
    let script = "while read -r x; do case $x in 1) yes '' | head -60000 >&2; kill -9 $$;; *) echo \"$x\";; esac; done";
    let mut pm = Command::new(env!("CARGO_BIN_EXE_pm"))
        .args(["pool", "-j1", "--out", "json", "--as", "filter", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    pm.stdin.take().unwrap().write_all(b"1\n2\n").unwrap();
    let mut err = pm.stderr.take().unwrap();
    let (done, is_done) = mpsc::channel::<()>();
    let slowly = std::thread::spawn(move || {
        let mut bytes = vec![0; 5000];
        while let Err(mpsc::RecvTimeoutError::Timeout) = is_done.recv_timeout(Duration::from_millis(100)) {
            err.read_exact(&mut bytes).unwrap();
        }
        std::io::copy(&mut err, &mut std::io::sink()).unwrap();
    });
    let results = std::io::BufReader::new(pm.stdout.take().unwrap()).lines().map(Result::unwrap).collect::<Vec<_>>();
    let took = begun.elapsed();
    done.send(()).unwrap();
    slowly.join().unwrap();
    assert_eq!(pm.wait().unwrap().code(), Some(1));
    assert_eq!(results.len(), 2, "{results:?}");
    assert!(results[0].contains("SIGKILL") && results[1].contains(r#""result":"2""#), "{results:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// The runtime of Rust opens /dev/null in its place, as others do who want to hear nothing.
#[test]
fn a_standard_output_that_is_closed_is_no_place_for_results() {
    let dir = Dir::new();
    let run = |command: &str| {
        let script = format!("printf 'a\\nb\\n' | \"$0\" {command}");
        let pm = env!("CARGO_BIN_EXE_pm");
        let output = Command::new("sh").args(["-c", &script, pm]).current_dir(dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = run("pool -- touch {} >&-");
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("standard output") && err.contains(">/dev/null"), "{err}");
    assert!(!dir.join("a").exists(), "it has worked for nothing");
    assert_eq!(run("pool --stream --key 1 -- @count >&-").0, Some(1));
    assert_eq!(run("bench -t shm --time 1ms >&-").0, Some(1));
    for command in ["pool -- @echo >/dev/null", "pool -- @echo 1<>/dev/null", "pool -o results -- @echo >&-"] {
        assert_eq!(run(command), (Some(0), String::new()), "{command}");
    }
    assert_eq!(std::fs::read_to_string(dir.join("results")).unwrap().lines().count(), 2);
}
