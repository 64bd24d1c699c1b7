//! A project that is up reads its file again: `pm reload`, SIGHUP, and what a terminal that goes says by the same signal.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pty_process::blocking::open;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Dir, Running, objects};
use crate::up::{here, is_ignored, pm, pm_in_background, project, up};

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// The file that is there now.
fn write(dir: &Dir, text: &str) {
    // As editors do it: whoever reads sees the one or the other.
    std::fs::write(dir.join("new.toml"), text).unwrap();
    std::fs::rename(dir.join("new.toml"), dir.join("pm.toml")).unwrap();
}

fn rests(name: &str) -> String {
    format!("[service.{name}]\nshell = \"exec sleep 1000\"\n")
}

/// The process of each service, where it has one.
fn pids(dir: &Dir) -> BTreeMap<String, Option<u64>> {
    let rows = objects(&pm(dir, "ps", &["--json"]).expect(0).out);
    rows.iter().map(|row| (row["service"].as_str().unwrap().to_string(), row["pid"].as_u64())).collect()
}

/// Waits until the services of a project are so.
#[track_caller]
fn eventually(dir: &Dir, holds: impl Fn(&BTreeMap<String, Option<u64>>) -> bool) -> BTreeMap<String, Option<u64>> {
    let began = Instant::now();
    loop {
        let pids = pids(dir);
        if holds(&pids) {
            return pids;
        }
        assert!(began.elapsed() < LIMIT, "{pids:?}");
    }
}

fn reloaded(added: &[&str], changed: &[&str], removed: &[&str]) -> Value {
    json!({ "added": added, "changed": changed, "removed": removed, "warnings": [] })
}

#[test]
fn sighup_reads_the_file_again_and_a_bad_one_keeps_what_runs() {
    if is_ignored(Signal::HUP) {
        return eprintln!("skipped: SIGHUP is ignored here");
    }
    let change = |seconds: u32| format!("[service.change]\nshell = \"sleep {seconds} & wait\"\n");
    let dir = project(&[rests("keep"), change(1000), rests("gone")].concat());
    let running = up(&dir, &[]);
    let before = pids(&dir);
    let mut said = 0;
    for (bad, why) in [
        ("[service.keep]\nshel = \"true\"\n".to_string(), "pm.toml:2:1: unknown field `shel`"),
        ([&rests("keep"), "needs = [\"nobody\"]\n"].concat(), "pm.toml:1:1: \"keep\" needs \"nobody\""),
        (String::new(), "pm.toml:1:1: missing field `service`"),
    ] {
        write(&dir, &bad);
        running.signal(Signal::HUP);
        said += 1;
        running.says("pm: not reloaded, and all goes on as it was: ", said);
        running.says(why, 1);
        assert_eq!(pids(&dir), before);
    }
    std::fs::remove_file(dir.join("pm.toml")).unwrap();
    running.signal(Signal::HUP);
    running.says("cannot be read", 1);

    write(&dir, &[rests("keep"), change(2000), rests("new")].concat());
    running.signal(Signal::HUP);
    running.says("pm: reloaded: added new; changed change; removed gone\n", 1);
    let after = eventually(&dir, |pids| {
        pids.len() == 3 && pids.values().all(Option::is_some) && pids["change"] != before["change"]
    });
    assert_eq!(after["keep"], before["keep"]);
    assert!(after.contains_key("new"));
    // What ran before is gone, with all that it had started.
    let began = Instant::now();
    let lines =
        || running.others().into_iter().map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    while lines().filter(|line| line.starts_with(b"sleep\x001000")).count() > 2 {
        assert!(began.elapsed() < LIMIT, "gone is still there");
    }
    running.signal(Signal::HUP);
    running.says("pm: reloaded: nothing has changed\n", 1);
    assert_eq!(pids(&dir), after);
    pm(&dir, "down", &[]).expect(0);
    running.end().expect(0);
}

#[test]
fn the_answer_says_what_came_of_it() {
    let dir = project(&[rests("a"), rests("b")].concat());
    pm(&dir, "reload", &[]).refused(5, &["this project is not up"]);
    let running = up(&dir, &[]);
    let before = pids(&dir);
    assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "nothing has changed\n");
    assert_eq!(objects(&pm(&dir, "reload", &["--json"]).expect(0).out), [reloaded(&[], &[], &[])]);

    write(&dir, "[service.a]\ncommand = []\n");
    pm(&dir, "reload", &[])
        .refused(2, &["pm: error: not reloaded, and all goes on as it was: ", "pm.toml:1:1: a: command is empty"]);
    assert_eq!(pids(&dir), before);

    // What is new is started, unless it is disabled; what was stopped and did not change stays so.
    pm(&dir, "stop", &["b"]).expect(0);
    let disabled = [&rests("idle"), "disabled = true\n"].concat();
    write(&dir, &[&rests("a"), "replicas = 2\n", &rests("b"), &rests("c"), &disabled].concat());
    let done = pm(&dir, "reload", &["-f", dir.join("pm.toml").to_str().unwrap(), "--json"]).expect(0);
    assert_eq!(objects(&done.out), [reloaded(&["c", "idle"], &["a"], &[])]);
    let after =
        eventually(&dir, |pids| ["a", "a#2", "c"].iter().all(|name| pids.get(*name).is_some_and(Option::is_some)));
    assert_eq!((after["a"], after["b"], after["idle"]), (before["a"], None, None));
    // All that is derived from the file is what it says now.
    pm(&dir, "wait", &["c"]).expect(0);
    pm(&dir, "start", &[]).expect(0);
    let after = pids(&dir);
    assert!(after["b"].is_some() && after["idle"].is_none(), "{after:?}");

    write(&dir, &rests("c"));
    assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "removed a, b, idle\n");
    assert_eq!(eventually(&dir, |pids| pids.len() == 1)["c"], after["c"]);
    pm(&dir, "down", &[]).expect(0);
    let done = running.end().expect(0);
    assert!(done.err.contains("pm: reloaded: removed a, b, idle\n"), "{}", done.err);
}

#[test]
fn files_of_others_do_not_change_by_themselves() {
    for (name, text) in [
        ("Procfile", "web: exec sleep 1000\nworker: exec sleep 1000\n"),
        (
            "process-compose.yaml",
            "environment:\n  - A=1\nenv_cmds:\n  B: echo 2\nprocesses:\n  web:\n    command: exec sleep 1000\n    environment:\n      - C=3\n    \
             readiness_probe:\n      exec:\n        command: \"true\"\n  worker:\n    command: exec sleep 1000\n    depends_on:\n      web:\n        \
             condition: process_healthy\n",
        ),
    ] {
        let dir = Dir::new();
        std::fs::write(dir.join(name), text).unwrap();
        let running = up(&dir, &[]);
        let before = pids(&dir);
        assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "nothing has changed\n", "{name}");
        std::fs::write(dir.join(name), text.replacen("1000", "2000", 1)).unwrap();
        assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "changed web\n", "{name}");
        let after = eventually(&dir, |pids| pids["web"].is_some_and(|pid| Some(pid) != before["web"]));
        assert_eq!(after["worker"], before["worker"]);
        pm(&dir, "down", &[]).expect(0);
        running.end().expect(0);
    }
}

#[test]
fn those_that_were_named_stay_those_that_are_wanted() {
    let dir = project(&[rests("a"), rests("b"), rests("c")].concat());
    let running = up(&dir, &["a", "b"]);
    let before = pids(&dir);
    write(&dir, &[rests("a"), rests("c"), rests("d")].concat());
    assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "added d; removed b\n");
    let after = eventually(&dir, |pids| !pids.contains_key("b"));
    assert_eq!((after["a"], after["c"], after["d"]), (before["a"], None, None));
    pm(&dir, "start", &[]).expect(0);
    assert_eq!(pids(&dir), after);
    write(&dir, &[rests("a"), rests("b")].concat());
    pm(&dir, "reload", &[]).expect(0);
    let after = eventually(&dir, |pids| pids.get("b").is_some_and(Option::is_some));
    assert_eq!(after["a"], before["a"]);
    pm(&dir, "down", &[]).expect(0);
    running.end().expect(0);
}

#[test]
fn what_ends_the_project_is_what_the_file_says_now() {
    // All that ran is removed, and the project goes on with what was added.
    let dir = project(&rests("a"));
    let running = up(&dir, &[]);
    let fifo = |name: &str| {
        assert!(Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
    };
    fifo("go");
    write(&dir, "[service.b]\nshell = \"read go < go\"\n");
    assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "added b; removed a\n");
    eventually(&dir, |pids| pids.keys().eq(["b"]) && pids["b"].is_some());
    std::fs::write(dir.join("go"), "go\n").unwrap();
    running.end().expect(0);

    // The one whose exit code counts has to be there.
    let dir = project(&[rests("a"), rests("b")].concat());
    let running = up(&dir, &["--exit-code-from", "b"]);
    write(&dir, &rests("a"));
    pm(&dir, "reload", &[]).refused(2, &["pm.toml: --exit-code-from b: there is no such service; there are a"]);
    write(&dir, &[&rests("a"), "[service.b]\nshell = \"exit 7\"\n"].concat());
    pm(&dir, "reload", &[]).expect(0);
    running.end().expect(7);

    // One that takes all along once it does.
    let dir = Dir::new();
    let file = dir.join("process-compose.yaml");
    let text = "processes:\n  a:\n    command: exec sleep 1000\n  b:\n    command: exit 3\n";
    std::fs::write(&file, text).unwrap();
    let running = here(&dir, "up", &[]).start();
    running.says("pm: b: failed: exit code 3", 1);
    std::fs::write(&file, [text, "    availability:\n      exit_on_end: true\n"].concat()).unwrap();
    // It has ended already, and nothing that runs is changed by that.
    assert_eq!(pm(&dir, "reload", &[]).expect(0).text(), "nothing has changed\n");
    running.end().expect(3);
}

#[test]
fn in_the_background_sighup_is_for_the_file() {
    let dir = project(&rests("a"));
    pm_in_background(&dir, &["-d", "--wait"]);
    let file = dir.join("pm.toml");
    let is_of_it = |process: std::io::Result<std::fs::DirEntry>| {
        let path = process.ok()?.path();
        let line = std::fs::read(path.join("cmdline")).ok()?;
        let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
        String::from_utf8_lossy(&line).contains(&*file.to_string_lossy()).then_some(pid)
    };
    let pid = std::fs::read_dir("/proc").unwrap().find_map(is_of_it).unwrap();
    write(&dir, &[rests("a"), rests("b")].concat());
    kill_process(Pid::from_raw(pid).unwrap(), Signal::HUP).unwrap();
    if !is_ignored(Signal::HUP) {
        eventually(&dir, |pids| pids.get("b").is_some_and(Option::is_some));
    }
    pm(&dir, "down", &[]).expect(0);
}

/// `pm up` as the leader of a session of its own on a terminal, and what it shows there up to a line.
fn on_terminal(dir: &Dir) -> (std::process::Child, BufReader<pty_process::blocking::Pty>) {
    let (pty, pts) = open().unwrap();
    let command = pty_process::blocking::Command::new(env!("CARGO_BIN_EXE_pm"))
        .arg("up")
        .current_dir(dir.path())
        .env("XDG_RUNTIME_DIR", dir.path())
        .env("NO_COLOR", "1");
    let child = command.spawn(pts).unwrap();
    let mut shown = BufReader::new(pty);
    shows(&mut shown, "a | up");
    (child, shown)
}

fn shows(shown: &mut BufReader<pty_process::blocking::Pty>, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(shown.read_line(&mut line).unwrap() > 0, "{text:?} is not shown");
    }
}

#[test]
fn a_terminal_that_goes_ends_it_and_one_that_stays_does_not() {
    if is_ignored(Signal::HUP) {
        return eprintln!("skipped: SIGHUP is ignored here");
    }
    let dir = project("[service.a]\nshell = \"echo up; exec sleep 1000\"\nhealth = { line = \"up\" }\n");
    let (mut child, mut shown) = on_terminal(&dir);
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    shows(&mut shown, "pm: reloaded: nothing has changed");
    let pid = pids(&dir)["a"].unwrap();
    drop(shown);
    assert_eq!(child.wait().unwrap().code(), Some(129));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "its service is still there");
    pm(&dir, "ps", &[]).refused(5, &[]);
}

/// Reloads that come together, while a service starts that takes its time; and while one reads a file that does not come.
#[test]
fn reloads_meet_and_each_is_answered() {
    let starts = "[service.a]\nshell = \"exec sleep 1000\"\nhealth = { line = \"never\" }\n";
    let dir = project(starts);
    let running = here(&dir, "up", &[]).start();
    running.says("pm: a: started", 1);
    let all: Vec<Running> = (0..5).map(|_| here(&dir, "reload", &[]).start()).collect();
    for one in all {
        assert_eq!(one.end().expect(0).text(), "nothing has changed\n");
    }
    // In the midst of its start it is changed, and what waits for it as well.
    let all: Vec<Running> = (0..5)
        .map(|n| {
            write(&dir, &[starts, &format!("env = {{ N = \"{n}\" }}\n"), &rests("b"), "needs = [\"a\"]\n"].concat());
            here(&dir, "reload", &[]).start()
        })
        .collect();
    for one in all {
        one.end().expect(0);
    }
    write(&dir, &[&rests("a"), &rests("b"), "needs = [\"a\"]\n"].concat());
    pm(&dir, "reload", &[]).expect(0);
    pm(&dir, "wait", &[]).expect(0);

    // Nobody writes into the file of variables, so that it is never read to its end.
    assert!(Command::new("mkfifo").arg(dir.join("vars")).status().unwrap().success());
    write(&dir, &["env_file = \"vars\"\n", &rests("a")].concat());
    let waits = [here(&dir, "reload", &[]).start(), here(&dir, "reload", &[]).start()];
    // All else goes on meanwhile, and the end of the project does not wait.
    pm(&dir, "restart", &["a"]).expect(0);
    pm(&dir, "down", &[]).expect(0);
    running.end().expect(0);
    for one in waits {
        one.end().refused(1, &["the project ended before it had answered"]);
    }
}

#[test]
fn nothing_is_reloaded_while_it_goes_down() {
    let slow = "[service.a]\nshell = \"trap 'read go < go; exit' TERM; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\nstop = { limit = 1000 }\n";
    let dir = project(slow);
    assert!(Command::new("mkfifo").arg(dir.join("go")).status().unwrap().success());
    let running = up(&dir, &[]);
    let down = here(&dir, "down", &[]).start();
    running.says("pm: a: stopping", 1);
    write(&dir, &[slow, &rests("b")].concat());
    pm(&dir, "reload", &[]).refused(1, &["the project is going down: nothing is started any more"]);
    if !is_ignored(Signal::HUP) {
        // It is no second signal, which would kill.
        running.signal(Signal::HUP);
        running.says("pm: not reloaded, and all goes on as it was: the project is going down", 1);
    }
    std::fs::write(dir.join("go"), "go\n").unwrap();
    down.end().expect(0);
    let done = running.end().expect(0);
    assert!(!done.err.contains("killing"), "{}", done.err);
}
