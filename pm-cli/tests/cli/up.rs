//! `pm up` and the commands that speak to a project, with real services.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Dir, Done, Running, command, has, objects};

/// A directory with this pm.toml, and sockets of its own.
pub(crate) fn project(text: &str) -> Dir {
    let dir = Dir::new();
    dir.script("pm.toml", text);
    dir
}

/// A command in a project.
pub(crate) fn pm(dir: &Dir, name: &str, args: &[&str]) -> Done {
    here(dir, name, args).run("")
}

pub(crate) fn here(dir: &Dir, name: &str, args: &[&str]) -> crate::support::Pm {
    command(name, args).dir(dir.path()).env("XDG_RUNTIME_DIR", dir.path())
}

/// `pm up`, as soon as its services have come up.
pub(crate) fn up(dir: &Dir, args: &[&str]) -> Running {
    let running = here(dir, "up", args).start();
    let began = Instant::now();
    // It is reached a moment after its start.
    while pm(dir, "wait", &[]).code == Some(5) {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not come up");
    }
    running
}

const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello/pm.toml");

#[test]
fn the_first_example_gives_the_exit_code_of_its_client() {
    let scratch = Dir::new();
    // The example lies where others run it too: its logs go elsewhere.
    std::fs::copy(HELLO, scratch.join("pm.toml")).unwrap();
    let done = here(&scratch, "up", &["--exit-code-from", "client"]).env("TMPDIR", scratch.path()).run("").expect(0);
    let of_client: Vec<String> =
        done.text().lines().filter_map(|line| line.strip_prefix("client  | ").map(str::to_owned)).collect();
    assert_eq!(of_client, ["Hello, Ada!", "Hello, Grace!", "Hello, Barbara!"]);
    assert!(done.text().contains("greeter | ready to greet\n"), "{}", done.text());
    assert!(done.err.contains("pm: greeter: stopped"), "{}", done.err);
}

#[test]
fn the_exit_code_is_that_of_the_service_or_says_that_it_failed() {
    let dir = project("[service.a]\nshell = \"echo last words; exit 7\"\n[service.b]\nshell = \"sleep 1000\"\n");
    let done = pm(&dir, "up", &["--exit-code-from", "a"]).expect(7);
    assert!(done.err.contains("pm: a failed: exit code 7 after 0."), "{}", done.err);
    assert!(done.err.contains("pm:   a | last words\n"), "{}", done.err);
    // One that needs what failed was not started: that is a failure, too.
    let dir = project(
        "[service.a]\nshell = \"exit 7\"\n[service.b]\ncommand = [\"true\"]\nneeds = { a = \"completed_successfully\" }\n",
    );
    let done = pm(&dir, "up", &["--exit-code-from", "b"]).expect(1);
    let why = "pm: b: skipped: needs a (completed_successfully); a failed: exit code 7 after 0.0 s\n";
    assert!(done.err.contains(why), "{}", done.err);
    // Without a service that decides, one that failed makes the whole fail; and all that completed well does not.
    pm(&dir, "up", &[]).expect(1);
    pm(&project("[service.a]\ncommand = [\"true\"]\n"), "up", &[]).expect(0);
}

#[test]
fn commands_speak_to_a_project_that_is_up() {
    let dir = project(
        "[service.db]\nshell = \"echo db is up; exec sleep 1000\"\nhealth = { line = \"is up\" }\n\
         [service.api]\nshell = \"echo api $PM_REPLICA; exec sleep 1000\"\nneeds = [\"db\"]\n\
         [service.extra]\nshell = \"exec sleep 1000\"\ndisabled = true\n",
    );
    let mut running = up(&dir, &[]);
    let rows = || objects(&pm(&dir, "ps", &["--json"]).expect(0).out);
    let state = |name: &str| {
        let row = rows().into_iter().find(|row| row["service"] == name);
        row.map(|row| row["state"].as_str().unwrap().to_string()).unwrap_or_default()
    };
    assert_eq!([state("db"), state("api"), state("extra")], ["healthy", "running", "idle"]);
    let table = pm(&dir, "ps", &[]).expect(0).text();
    assert!(table.starts_with("SERVICE  STATE    PID") && table.contains("\ndb       healthy  "), "{table}");

    pm(&dir, "scale", &["api", "3"]).expect(0);
    pm(&dir, "wait", &["api"]).expect(0);
    assert_eq!(state("api#3"), "running");
    pm(&dir, "scale", &["api", "1"]).expect(0);
    assert_eq!(state("api#2"), "");

    pm(&dir, "start", &["extra"]).expect(0);
    pm(&dir, "wait", &["extra", "--for", "started"]).expect(0);
    pm(&dir, "stop", &["extra"]).expect(0);
    assert_eq!(state("extra"), "stopped");
    let pid = |name: &str| rows().into_iter().find(|row| row["service"] == name).unwrap()["pid"].as_u64();
    let before = pid("db");
    pm(&dir, "restart", &["db"]).expect(0);
    assert_ne!(pid("db"), before);

    pm(&dir, "up", &[]).refused(4, &["this project is up already"]);
    pm(&dir, "stop", &["nobody"]).refused(1, &["there is no service \"nobody\"; there are db, api, extra"]);
    pm(&dir, "wait", &["extra", "--timeout", "5s"]).refused(1, &["extra will not be running: extra was stopped"]);
    let logs = pm(&dir, "logs", &["api", "-n", "1"]).expect(0).text();
    // Those of replicas that are gone are history, too.
    let mut lines: Vec<&str> = logs.lines().collect();
    lines.sort();
    assert_eq!(lines, ["api   | api 1", "api#2 | api 2", "api#3 | api 3"]);

    pm(&dir, "down", &[]).expect(0);
    assert!(running.ends_within(Duration::from_secs(10)));
    let mut first = Vec::new();
    while first.len() < 2 {
        first.push(running.line());
    }
    first.sort();
    assert_eq!(first, ["api   | api 1", "db    | db is up"]);
    running.end().expect(0);
    pm(&dir, "ps", &[]).refused(5, &["this project is not up: pm up starts it"]);
}

#[test]
fn in_the_background_and_back() {
    let dir = project("[service.a]\nshell = \"echo here; exec sleep 1000\"\nhealth = { line = \"here\" }\n");
    pm_in_background(&dir, &["-d", "--wait"]);
    pm(&dir, "up", &["-d"]).refused(4, &["is up already"]);
    assert!(pm(&dir, "ps", &[]).expect(0).text().contains("healthy"));
    pm(&dir, "down", &[]).expect(0);
    pm(&dir, "ps", &[]).refused(5, &[]);
    // It has gone, and its place is free.
    let began = Instant::now();
    while run_in_background(&dir, &["-d"]).0 == Some(4) {
        assert!(began.elapsed() < Duration::from_secs(20), "the first one does not end");
    }
    pm(&dir, "down", &[]).expect(0);
    // One that cannot come up says so at once, with the reason and the last words.
    let bad =
        project("[service.a]\nshell = \"echo oh no; exit 1\"\n[service.b]\nshell = \"sleep 1000\"\nneeds = [\"a\"]\n");
    let done = run_in_background(&bad, &["--wait"]);
    assert_eq!(done.0, Some(1));
    assert!(
        done.1.contains("a will not be running: a failed: exit code 1") && done.1.contains("| oh no"),
        "{}",
        done.1
    );
    pm(&bad, "down", &[]).expect(0);
}

/// What stays behind is meant to: it has no mark that a run looks for at its end.
fn run_in_background(dir: &Dir, args: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pm"))
        .arg("up")
        .args(args)
        .current_dir(dir.path())
        .env("XDG_RUNTIME_DIR", dir.path())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn pm_in_background(dir: &Dir, args: &[&str]) {
    let (code, err) = run_in_background(dir, args);
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn what_listens_is_reached_and_who_holds_a_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = project(&format!(
        "[service.a]\nshell = \"echo $LISTEN_FDS; exec sleep 1000\"\nlisten = \"unix:a.sock\"\n\
         [service.b]\nshell = \"exec sleep 1000\"\nhealth = {{ tcp = {port} }}\n\
         [service.c]\nshell = \"exec sleep 1000\"\nlisten = [\"127.0.0.1:{port}\"]\n",
    ));
    let mut running = here(&dir, "up", &[]).start();
    assert_eq!(running.line(), "a | 1");
    std::os::unix::net::UnixStream::connect(dir.join("a.sock")).unwrap();
    let began = Instant::now();
    while pm(&dir, "wait", &["c"]).code != Some(1) {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not fail");
    }
    let by = format!("by process {} (", std::process::id());
    let refused = pm(&dir, "start", &["c"]).expect(1).err;
    assert!(refused.contains(&format!("c cannot listen on 127.0.0.1:{port}: ")) && refused.contains(&by), "{refused}");
    pm(&dir, "wait", &["b"]).expect(0);
    let rows = objects(&pm(&dir, "ps", &["--json"]).expect(0).out);
    let b = rows.iter().find(|row| row["service"] == "b").unwrap();
    assert!(b["why"].as_str().unwrap().starts_with(&format!("port {port} is held {by}")), "{b}");
    pm(&dir, "down", &[]).expect(0);
    let err = running.end().expect(1).err;
    assert!(err.contains(&format!("pm: b: port {port} is held {by}")), "{err}");
    assert!(!dir.join("a.sock").exists(), "it ends with the project");
}

#[test]
fn two_starters_race_and_one_wins() {
    let dir = project("[service.a]\nshell = \"exec sleep 1000\"\n");
    let running: Vec<Running> = (0..4).map(|_| here(&dir, "up", &[]).start()).collect();
    let losers = |running: &[Running]| running.iter().filter(|one| one.ends_within(Duration::ZERO)).count();
    let began = Instant::now();
    while losers(&running) < 3 {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    while pm(&dir, "down", &[]).code == Some(5) {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let mut codes: Vec<_> = running.into_iter().map(|one| one.end().code).collect();
    codes.sort();
    assert_eq!(codes, [Some(0), Some(4), Some(4), Some(4)]);
}

#[test]
fn signals_end_it_politely_then_at_once() {
    let dir = project(
        "[service.a]\nshell = \"trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\n",
    );
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        // What is ignored here, as under nohup, is ignored by pm as well.
        if is_ignored(signal) {
            eprintln!("skipped: {signal:?} is ignored here");
            continue;
        }
        let running = up(&dir, &[]);
        running.signal(signal);
        let done = running.end().expect(code);
        assert!(done.text().contains("a | bye\n"), "{}", done.text());
        assert!(done.err.contains("pm: a: stopped (exit code 0)"), "{}", done.err);
    }
    // One that does not listen: the second kills, and the third does not wait even for that.
    let deaf = project(
        "[service.a]\nshell = \"trap '' TERM; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\nstop = { limit = 1000 }\n",
    );
    let running = up(&deaf, &[]);
    running.signal(Signal::TERM);
    // Twice at once is one wish.
    running.signal(Signal::TERM);
    assert!(!running.ends_within(Duration::from_millis(1500)));
    running.signal(Signal::TERM);
    let done = running.end().expect(143);
    assert!(done.err.contains("pm: waiting for a to end; another Ctrl-C kills what has not\n"), "{}", done.err);
    assert!(done.err.contains("pm: killing what has not stopped\n"), "{}", done.err);
    assert!(done.err.contains("pm: a: killed: it did not stop in time"), "{}", done.err);
}

#[test]
fn killed_it_leaves_nothing_and_its_socket_is_taken_over() {
    let dir = project("[service.a]\nshell = \"setsid sleep 1000 & exec sleep 1000\"\n");
    let running = up(&dir, &[]);
    assert!(running.others().len() >= 3);
    running.signal(Signal::KILL);
    let done = running.end();
    assert_eq!(done.code, None);
    pm(&dir, "ps", &[]).refused(5, &[]);
    let running = up(&dir, &[]);
    pm(&dir, "down", &[]).expect(0);
    running.end().expect(0);
}

#[test]
fn a_stop_lets_the_tree_end() {
    let dir = project(
        "[service.a]\nshell = \"(trap 'sleep 0.2; echo saved; exit' TERM; echo up; while :; do sleep 0.01; done) & wait\"\nhealth = { line = \"up\" }\n\
         [service.b]\nshell = \"(trap '' TERM; echo up; while :; do sleep 0.01; done) & wait\"\nhealth = { line = \"up\" }\nstop = { limit = \"300ms\" }\n",
    );
    let running = up(&dir, &[]);
    let stopped = objects(&pm(&dir, "down", &["--json"]).expect(0).out);
    let of = |name: &str| stopped.iter().find(|row| row["service"] == name).unwrap();
    assert_eq!(of("a")["clean"], true, "{stopped:?}");
    assert!(of("b")["killed"] == true && !of("b")["swept"].as_array().unwrap().is_empty(), "{stopped:?}");
    let done = running.end().expect(0);
    assert!(done.text().contains("a | saved\n"), "{}", done.text());
}

#[test]
fn nobody_reads_any_more() {
    let dir = project("[service.a]\nshell = \"while :; do echo line; done\"\n");
    let mut running = here(&dir, "up", &[]).start();
    assert_eq!(running.line(), "a | line");
    running.stdout = None;
    running.end().expect(141);
}

pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (signal.as_raw() - 1) != 0
}

/// A client that listens and does not read, and one that says nothing.
#[test]
fn clients_hold_up_nobody() {
    let dir = project("[service.a]\nshell = \"exec sleep 1000\"\n");
    let running = up(&dir, &[]);
    let mut listeners: Vec<Running> = (0..3).map(|_| here(&dir, "events", &[]).start()).collect();
    let socket = std::fs::read_dir(dir.join("pm")).unwrap().map(|entry| entry.unwrap().path());
    let socket = socket.into_iter().find(|path| path.extension().is_some_and(|it| it == "sock")).unwrap();
    let silent: Vec<_> = (0..300).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    drop(silent);
    pm(&dir, "restart", &["a"]).expect(0);
    listeners[0].line();
    running.signal(Signal::TERM);
    running.end().expect(143);
    for listener in listeners {
        listener.end().expect(0);
    }
}

#[test]
fn nothing_is_started_while_it_goes_down() {
    let dir = project(
        "[service.a]\nshell = \"exec sleep 1000\"\n\
         [service.b]\nshell = \"trap 'sleep 0.5; exit' TERM; echo up; while :; do sleep 0.01; done\"\nneeds = [\"a\"]\nhealth = { line = \"up\" }\n",
    );
    let running = up(&dir, &[]);
    let down = here(&dir, "down", &["--json"]).start();
    let began = Instant::now();
    while !pm(&dir, "ps", &[]).text().contains("stopping") {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    pm(&dir, "start", &["a"]).refused(1, &["the project is going down"]);
    let stopped = down.end().expect(0).objects();
    assert!(stopped.len() == 2 && stopped.iter().all(|row| row["clean"] == true), "{stopped:?}");
    running.end().expect(0);
}

#[test]
fn a_terminal_that_stands_still_holds_up_no_end() {
    let dir = project("[service.a]\nshell = \"exec yes\"\n");
    let running = here(&dir, "up", &[]).start();
    let began = Instant::now();
    // Nobody reads: the pipe is full in a moment.
    while !pm(&dir, "ps", &[]).text().contains("running") {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    running.signal(Signal::TERM);
    assert!(running.ends_within(Duration::from_secs(10)), "it waits for its reader");
    running.end().expect(143);
}

#[test]
fn what_is_ignored_stays_ignored() {
    let dir = project("[service.a]\nshell = \"exec sleep 1000\"\n");
    let pm_path = env!("CARGO_BIN_EXE_pm");
    let mut nohup = std::process::Command::new("nohup")
        .args([pm_path, "up"])
        .current_dir(dir.path())
        .env("XDG_RUNTIME_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while pm(&dir, "wait", &[]).code != Some(0) {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&nohup), Signal::HUP).unwrap();
    assert!(pm(&dir, "ps", &[]).expect(0).text().contains("running"));
    pm(&dir, "down", &[]).expect(0);
    assert!(nohup.wait().unwrap().success());
}

#[test]
fn json_for_programs() {
    let dir = project("[service.a]\nshell = \"echo one; echo two >&2\"\n");
    let done = pm(&dir, "up", &["--json"]).expect(0);
    let rows = objects(&done.out);
    let lines: Vec<_> = rows.iter().filter(|row| row["text"] == "one" || row["text"] == "two").collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|row| row["service"] == "a"));
    assert!(rows.iter().any(|row| row["event"] == "started" && row["pid"].is_u64()), "{rows:?}");
    assert!(rows.iter().any(|row| row["event"] == "completed"), "{rows:?}");
}

#[test]
fn lines_are_shown_as_they_may_be() {
    let dir = project("[service.a]\nshell = \"printf '\\\\033[31mred\\\\033[0m \\\\033[2J\\\\000 end'\"\n");
    let done = pm(&dir, "up", &[]).expect(0);
    assert_eq!(done.text(), "a | \u{1b}[31mred\u{1b}[0m \\u{1b}[2J\\u{0} end\u{1b}[0m\n");
}

#[test]
fn long_lines_come_whole() {
    let dir = project("[service.a]\nshell = \"head -c 1000000 /dev/zero | tr '\\\\0' x; echo; echo after\"\n");
    let done = pm(&dir, "up", &[]).expect(0);
    assert_eq!(done.text().lines().count(), 2);
    assert_eq!(done.text().len(), 1_000_000 + "a | \na | after\n".len());
    let logs = pm(&dir, "logs", &[]).expect(0).text();
    assert_eq!(logs, done.text());
}

#[test]
fn logs_are_followed_over_a_rotation() {
    let dir = project(
        "[log]\nmax_size = 2000\n[service.a]\nshell = \"read go < go; for n in $(seq 200); do echo line $n; done; sleep 1000\"\n",
    );
    assert!(std::process::Command::new("mkfifo").arg(dir.join("go")).status().unwrap().success());
    let running = here(&dir, "up", &[]).start();
    let mut logs = here(&dir, "logs", &["-f"]).start();
    std::fs::write(dir.join("go"), "go\n").unwrap();
    for n in 1..=200 {
        assert_eq!(logs.line(), format!("a | line {n}"));
    }
    logs.signal(Signal::TERM);
    drop(logs);
    running.signal(Signal::TERM);
    running.end().expect(143);
}

#[test]
fn graphs_and_checks_start_nothing() {
    let dir = project(
        "[service.db]\ncommand = [\"true\"]\n[service.api]\ncommand = [\"true\"]\nneeds = { db = \"started\" }\n",
    );
    assert_eq!(pm(&dir, "graph", &[]).expect(0).text(), "db\napi needs db (started)\n");
    assert!(pm(&dir, "graph", &["--dot"]).expect(0).text().starts_with("digraph services {"));
    assert_eq!(
        pm(&dir, "check", &[]).expect(0).text().split(": ").skip(1).collect::<Vec<_>>(),
        ["2 services", "db, api\n"]
    );
    let schema: serde_json::Value = serde_json::from_str(&pm(&dir, "schema", &[]).expect(0).text()).unwrap();
    assert!(schema["properties"]["service"].is_object(), "{schema}");
    assert!(!Path::new(&dir.join(".pm")).exists());
}

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop");

#[test]
fn the_shop_with_a_real_database() {
    if !(has("redis-server", "--version") && has("redis-cli", "--version") && has("python3", "--version")) {
        return;
    }
    let dir = Dir::new();
    for name in ["pm.toml", "shop.py"] {
        std::fs::copy(Path::new(SHOP).join(name), dir.join(name)).unwrap();
    }
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let shop =
        here(&dir, "up", &["--exit-code-from", "client"]).env("SHOP_REDIS_PORT", port()).env("SHOP_API_PORT", port());
    let done = shop.run("").expect(0);
    for line in
        ["migrate  | the goods are there", "client   | 2 tea: 9.00, by worker", "client   | 10 tea: 45.00, by worker"]
    {
        assert!(done.text().contains(line), "{line:?} is not in {}", done.text());
    }
    assert!(done.err.contains("pm: db: stopped (exit code 0)"), "{}", done.err);
}
#[test]
fn whoever_listens_does_not_hold_up_the_end() {
    let dir = project("[service.a]\nshell = \"exec sleep 1000\"\n");
    let running = up(&dir, &[]);
    let mut events = here(&dir, "events", &[]).start();
    pm(&dir, "stop", &["a"]).expect(0);
    while !events.line().contains("stopped") {}
    running.end().expect(0);
    events.end().expect(0);
}

/// What is measured is for programs; people read what becomes much, and what probes say.
#[test]
fn metrics_and_probes_are_told() {
    let dir = project(
        "[service.a]\nshell = \"echo up; exec sleep 1000\"\nmetrics = { interval = \"200ms\", fds_above = 1 }\n\
         health = { command = [\"true\"] }\n[service.b]\nshell = \"exec sleep 1000\"\n",
    );
    let running = up(&dir, &[]);
    let (mut json, mut plain) = (here(&dir, "events", &["--json"]).start(), here(&dir, "events", &[]).start());
    let sample = loop {
        let row: serde_json::Value = serde_json::from_str(&json.line()).unwrap();
        if row["event"] == "metrics" {
            break row;
        }
    };
    assert_eq!((&sample["service"], &sample["metrics"]["processes"]), (&"a".into(), &1.into()), "{sample}");
    assert!(sample["text"].as_str().unwrap().contains(" % CPU, "), "{sample}");
    let rows = objects(&pm(&dir, "ps", &["--json"]).expect(0).out);
    let (a, b) = (&rows[0], &rows[1]);
    assert!(a["metrics"]["rss_bytes"].as_u64().unwrap() > 100_000 && a["metrics"]["ago_ms"].is_u64(), "{a}");
    assert_eq!((&a["readiness"]["ok"], &a["readiness"]["failures"]), (&true.into(), &0.into()), "{a}");
    assert!(a["liveness"].is_null() && b["metrics"].is_null() && b["readiness"].is_null(), "{rows:?}");
    // It listens once it has heard something.
    let hears = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !hears.load(Ordering::Relaxed) {
                pm(&dir, "restart", &["b"]).expect(0);
            }
        });
        plain.line();
        hears.store(true, Ordering::Relaxed);
    });
    while !json.line().contains("\"metrics\"") {}
    running.signal(Signal::TERM);
    let done = running.end().expect(143);
    assert!(done.err.contains("pm: a: high number of descriptors: "), "{}", done.err);
    let heard = plain.end().expect(0).text();
    assert!(heard.contains("b started") && heard.contains("a stopped"), "{heard}");
    for text in [done.err.clone(), done.text(), heard] {
        assert!(!text.contains("% CPU"), "{text}");
    }
    json.end().expect(0);
}

/// Cron and a desktop have different places for sockets.
#[test]
fn another_environment_finds_the_same_project() {
    let dir = project("[service.a]\nshell = \"exec sleep 1000\"\n");
    let running = up(&dir, &[]);
    let elsewhere = Dir::new();
    let there = |name: &str| command(name, [""; 0]).dir(dir.path()).env("XDG_RUNTIME_DIR", elsewhere.path()).run("");
    there("up").refused(4, &["is up already"]);
    assert!(there("ps").expect(0).text().contains("running"));
    there("down").expect(0);
    running.end().expect(0);
    there("ps").refused(5, &[]);
}

/// One that comes too late, or another project in the same directory, touches nothing of one that is up.
#[test]
fn what_pm_writes_of_a_project_is_of_that_alone() {
    let dir = project("[service.a]\nshell = \"echo first; exec sleep 1000\"\nhealth = { line = \"first\" }\n");
    dir.script("other.toml", "[service.a]\nshell = \"echo second; exec sleep 1000\"\nhealth = { line = \"second\" }\n");
    pm_in_background(&dir, &["-d", "--wait"]);
    pm_in_background(&dir, &["-d", "--wait", "-f", "other.toml"]);
    let said = || std::fs::read_to_string(dir.join(".pm/background.log")).unwrap();
    let before = said();
    assert!(before.contains("pm: a: healthy"), "{before}");
    pm(&dir, "up", &["-d"]).refused(4, &["pm reload"]);
    assert_eq!(said(), before);
    // A directory stands for the file in it.
    let logs = |args: &[&str]| pm(&dir, "logs", args).expect(0).text();
    assert_eq!([logs(&["--file", "."]), logs(&["--file", "other.toml"])], ["a | first\n", "a | second\n"]);
    assert_eq!(std::fs::read_to_string(dir.join(".pm/.gitignore")).unwrap(), "*\n");
    pm(&dir, "down", &["-f", "."]).expect(0);
    pm(&dir, "down", &["-f", "other.toml"]).expect(0);
}

/// A command that is to stop a service and fails says so.
#[test]
fn a_stop_command_that_fails_is_told() {
    let dir = project(
        "[service.a]\nshell = \"exec sleep 1000\"\nstop = { command = [\"sh\", \"-c\", \"echo cannot >&2; exit 3\"], limit = \"200ms\" }\n",
    );
    let running = up(&dir, &[]);
    pm(&dir, "down", &[]).expect(0);
    let done = running.end().expect(0);
    assert!(done.err.contains("sh: exit code 3 (cannot)"), "{}", done.err);
}
