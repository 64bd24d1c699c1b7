//! `watch` of pm.toml: a change restarts a service, and nothing else does. Each restart is waited for by what is told of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::ChildStdout;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Dir, Done, Running, command, objects};

fn project(text: &str) -> Dir {
    let dir = Dir::new();
    dir.script("pm.toml", text);
    dir
}

fn pm(dir: &Dir, name: &str, args: &[&str]) -> Done {
    command(name, args).dir(dir.path()).env("XDG_RUNTIME_DIR", dir.path()).run("")
}

/// `pm up --json`, and what it tells.
struct Up {
    running: Running,
    told: BufReader<ChildStdout>,
}

impl Up {
    fn start(dir: &Dir) -> Self {
        let mut running = command("up", ["--json"]).dir(dir.path()).env("XDG_RUNTIME_DIR", dir.path()).start();
        let told = running.stdout.take().unwrap();
        Up { running, told }
    }

    /// The next thing that it tells.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.told.read_line(&mut line).unwrap() > 0, "nothing more is told");
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until this happens to a service, and gives the words for it. Whatever is told before and `except` names is an error.
    #[track_caller]
    fn event(&mut self, service: &str, event: &str, except: &[&str]) -> String {
        loop {
            let row = self.next();
            if row["service"] != service {
                continue;
            }
            let word = row["event"].as_str().unwrap_or_default();
            assert!(!except.contains(&word), "{row}");
            if word == event {
                return row["text"].as_str().unwrap().to_string();
            }
        }
    }

    /// Waits until it prints this.
    #[track_caller]
    fn prints(&mut self, service: &str, text: &str) {
        loop {
            let row = self.next();
            assert!(row["event"] != "crashed", "{row}");
            if row["service"] == service && row["stream"] == "stdout" && row["text"] == text {
                return;
            }
        }
    }

    fn end(mut self) -> Done {
        self.running.signal(Signal::TERM);
        self.running.stdout = Some(self.told);
        self.running.end()
    }
}

/// A service that says what stands in `src/x`, and then rests.
const READS: &str = "shell = \"cat src/x; exec sleep 1000\"\n";

fn with_source(table: &str) -> Dir {
    let dir = project(&format!("[service.a]\n{table}"));
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("src/x"), "one\n").unwrap();
    dir
}

#[test]
fn a_change_restarts_it_once_and_says_why() {
    let dir = with_source(&format!("{READS}watch = [\"src\"]\n"));
    let mut up = Up::start(&dir);
    up.prints("a", "one");
    fs::write(dir.join("src/x"), "two\n").unwrap();
    assert_eq!(up.event("a", "changed", &[]), "restart: src/x changed");
    up.prints("a", "two");
    // What is written together is one change, also as editors do it: another file, which takes the place of the old one.
    fs::write(dir.join("src/.x.swp"), "three\n").unwrap();
    fs::write(dir.join("src/y"), "three\n").unwrap();
    fs::rename(dir.join("src/y"), dir.join("src/x")).unwrap();
    let words = up.event("a", "changed", &[]);
    assert_eq!(words, "restart: src/x and 1 more changed");
    up.prints("a", "three");
    // Directories that are made later are watched as well.
    fs::create_dir_all(dir.join("src/deep/deeper")).unwrap();
    up.event("a", "changed", &[]);
    up.prints("a", "three");
    fs::write(dir.join("src/deep/deeper/z"), "").unwrap();
    assert_eq!(up.event("a", "changed", &[]), "restart: src/deep/deeper/z changed");
    up.prints("a", "three");
    fs::remove_file(dir.join("src/deep/deeper/z")).unwrap();
    assert_eq!(up.event("a", "changed", &[]), "restart: src/deep/deeper/z changed");
    up.prints("a", "three");
    let row = objects(&pm(&dir, "ps", &["--json"]).expect(0).out).remove(0);
    assert_eq!(row["restarts"], 0, "a restart that is asked for counts against nothing");
    up.end().expect(143);
}

#[test]
fn reads_rights_and_what_is_ignored_restart_nothing() {
    let dir = with_source(&format!("{READS}watch = {{ paths = [\"src\"], ignore = [\"*.tmp\", \"cache/**\"] }}\n"));
    fs::create_dir_all(dir.join("src/cache/deep")).unwrap();
    fs::create_dir_all(dir.join("src/target")).unwrap();
    let mut up = Up::start(&dir);
    up.prints("a", "one");
    fs::read(dir.join("src/x")).unwrap();
    let file = fs::File::options().append(true).open(dir.join("src/x")).unwrap();
    // As touch(1) does.
    let then = std::time::SystemTime::UNIX_EPOCH;
    file.set_times(fs::FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    drop(file);
    for name in ["src/a.tmp", "src/cache/deep/b", "src/target/c", "src/x~", "beside"] {
        fs::write(dir.join(name), "").unwrap();
    }
    // What is told next is of the first change that matters.
    fs::write(dir.join("src/new"), "").unwrap();
    assert_eq!(up.event("a", "changed", &["started"]), "restart: src/new changed");
    up.prints("a", "one");
    up.end().expect(143);
}

#[test]
fn what_failed_is_tried_again_and_what_was_stopped_is_left_alone() {
    let dir = project(
        "[service.a]\nshell = \"cat src/x; test $(cat src/x) = good && exec sleep 1000; exit 1\"\nwatch = \"src/x\"\n\
         [service.b]\nshell = \"exec sleep 1000\"\nwatch = \"src\"\n\
         [service.c]\nshell = \"exec sleep 1000\"\nwatch = \"src\"\ndisabled = true\n",
    );
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("src/x"), "bad\n").unwrap();
    let mut up = Up::start(&dir);
    up.event("a", "crashed", &[]);
    pm(&dir, "stop", &["b"]).expect(0);
    // Nothing is up, and still it stays: a change may come.
    fs::write(dir.join("src/x"), "good\n").unwrap();
    assert_eq!(up.event("a", "changed", &[]), "restart: src/x changed");
    up.prints("a", "good");
    let rows = objects(&pm(&dir, "ps", &["--json"]).expect(0).out);
    let state = |name: &str| rows.iter().find(|row| row["service"] == name).unwrap()["state"].clone();
    assert_eq!((state("b"), state("c")), ("stopped".into(), "idle".into()));
    // Somebody starts it again, and from then on it is watched for.
    pm(&dir, "start", &["b"]).expect(0);
    fs::write(dir.join("src/y"), "").unwrap();
    assert_eq!(up.event("b", "changed", &[]), "restart: src/y changed");
    up.event("b", "started", &[]);
    up.end().expect(143);
}

#[test]
fn a_change_during_a_start_is_not_lost() {
    let dir = with_source(
        "shell = \"cat src/x; cat begun; echo up; exec sleep 1000\"\nhealth = { line = \"^up$\" }\nwatch = [\"src\"]\n",
    );
    let begun = dir.fifo("begun");
    let mut up = Up::start(&dir);
    // It has read what is about to change, and will not be ready: nobody closes what it reads.
    up.prints("a", "one");
    fs::write(dir.join("src/x"), "two\n").unwrap();
    up.event("a", "changed", &["healthy"]);
    up.prints("a", "two");
    drop(begun);
    up.end().expect(143);
}

#[test]
fn a_path_that_comes_later_is_watched_from_then_on() {
    let dir = project("[service.a]\nshell = \"cat build/out/x; exec sleep 1000\"\nwatch = [\"build/out\"]\n");
    let missing = format!("watch: {} does not exist; it is watched once it does", dir.join("build/out").display());
    let said = pm(&dir, "check", &[]).expect(0).err;
    assert!(said.contains("pm.toml:1: a: ") && said.contains(&missing), "{said}");
    let mut up = Up::start(&dir);
    up.event("a", "started", &[]);
    for text in ["one", "two"] {
        fs::create_dir_all(dir.join("build/out")).unwrap();
        fs::write(dir.join("build/out/x"), format!("{text}\n")).unwrap();
        up.event("a", "changed", &[]);
        up.prints("a", text);
        // All of it goes, and is made anew.
        fs::remove_dir_all(dir.join("build")).unwrap();
        up.event("a", "changed", &[]);
        up.event("a", "started", &[]);
    }
    up.end().expect(143);
}

#[test]
fn one_that_writes_where_it_is_watched_is_told_so_and_slowed_down() {
    let dir = with_source("shell = \"echo >> src/written; exec sleep 1000\"\nwatch = \"src\"\n");
    let mut up = Up::start(&dir);
    let mut changes = 0;
    let said = loop {
        let row = up.next();
        match row["event"].as_str() {
            Some("changed") => changes += 1,
            Some("note") => break row["text"].as_str().unwrap().to_string(),
            _ => assert!(row["event"] != "crashed", "{row}"),
        }
    };
    assert_eq!(changes, 10);
    assert!(
        said.starts_with("restarted 10 times in 30 s because of changes: does it write where it is watched?"),
        "{said}"
    );
    up.end().expect(143);
}

#[test]
fn the_limit_of_the_kernel_is_an_error_that_names_it() {
    let dir = with_source(&format!("{READS}watch = [\"src\"]\n"));
    for number in 0..8 {
        fs::create_dir_all(dir.join(&format!("src/{number}"))).unwrap();
    }
    // In a namespace of users of its own the limit can be lowered for this one alone.
    let limited = |then: &str| {
        let script = format!("echo 4 > /proc/sys/user/max_inotify_watches && {then}");
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["-Ur", "sh", "-c", &script]).current_dir(dir.path()).env("XDG_RUNTIME_DIR", dir.path());
        unshare.output()
    };
    if !limited("true").is_ok_and(|done| done.status.success()) {
        return eprintln!("skipped: there are no namespaces of users here");
    }
    let done = limited(concat!("exec ", env!("CARGO_BIN_EXE_pm"), " up")).unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be watched: ") && said.contains("sysctl fs.inotify.max_user_watches="), "{said}");
}
