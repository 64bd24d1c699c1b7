//! `pm up --keep`: services that outlive their pm, and the next pm that takes them over.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Dir, Running, has, left_behind, objects};
use crate::up::{here, pm, project, up};

/// Says numbers, without end.
const TICKER: &str = "[service.ticker]\nshell = \"i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.02; done\"\n";

/// Ends with code 7 when it is told to.
const SEVEN: &str = "[service.seven]\nshell = \"trap 'exit 7' USR1; echo up; while :; do sleep 0.02; done\"\nhealth = { line = \"up\" }\n";

/// Waits for something that is about to come.
fn until(what: &str, holds: impl FnMut() -> bool) {
    until_or(what, String::new, holds);
}

/// The same, and says something more where it does not come.
fn until_or(what: &str, said: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {}", said());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn log(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.join(&format!(".pm/logs/{name}.log"))).unwrap_or_default()
}

/// The number that a ticker has said last.
fn ticks(dir: &Dir) -> Vec<u32> {
    let numbers = log(dir, "ticker");
    numbers.lines().filter_map(|line| line.rsplit_once("tick ")?.1.parse().ok()).collect()
}

fn row(dir: &Dir, name: &str) -> serde_json::Value {
    let rows = objects(&pm(dir, "ps", &["--json"]).expect(0).out);
    rows.into_iter().find(|row| row["service"] == name).unwrap_or_default()
}

fn pid(dir: &Dir, name: &str) -> u32 {
    row(dir, name)["pid"].as_u64().unwrap() as u32
}

fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// The keeper of a project that has no pm.
fn keeper(mark: &str) -> u32 {
    let left = left_behind(mark, Duration::ZERO);
    let line = left.iter().find(|line| line.contains("pm-keeper")).unwrap_or_else(|| panic!("{left:?}"));
    line.split_once(':').unwrap().0.parse().unwrap()
}

fn down(dir: &Dir, running: Running) {
    pm(dir, "down", &[]).expect(0);
    running.end().expect(0);
}

#[test]
fn killed_its_services_go_on_and_the_next_one_has_them() {
    let dir = project(&format!("{TICKER}{SEVEN}"));
    let running = up(&dir, &["--keep"]);
    let (ticker, seven) = (pid(&dir, "ticker"), pid(&dir, "seven"));
    let mark = running.kill();
    pm(&dir, "ps", &[]).refused(5, &["not up, but its services are", "pm up takes them over"]);
    let at_the_kill = ticks(&dir).last().copied().unwrap_or_default();
    until("its log goes on", || ticks(&dir).last() > Some(&(at_the_kill + 10)));
    // Twice: who has taken over may be killed as well.
    let running = up(&dir, &["--keep"]);
    assert_eq!((pid(&dir, "ticker"), pid(&dir, "seven")), (ticker, seven));
    running.kill();
    let running = up(&dir, &["--keep"]);
    assert_eq!((pid(&dir, "ticker"), pid(&dir, "seven")), (ticker, seven));
    let now = ticks(&dir).last().copied().unwrap();
    until("it is heard", || ticks(&dir).last() > Some(&(now + 3)));
    let all = ticks(&dir);
    // What a pm has read and not written yet dies with it: a line, each time.
    let gaps: u32 = all.windows(2).map(|pair| pair[1] - pair[0] - 1).sum();
    assert!(gaps <= 2 && all.is_sorted(), "{all:?}");
    send(seven, Signal::USR1);
    until("its exit code is known", || row(&dir, "seven")["exit_code"] == 7);
    let text = {
        pm(&dir, "down", &[]).expect(0);
        running.end().expect(1).err
    };
    assert!(text.contains(&format!("pm: ticker: taken over (pid {ticker}, up for ")), "{text}");
    assert!(text.contains("pm: seven: failed: exit code 7 after "), "{text}");
    assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
}

#[test]
fn what_ends_meanwhile_is_told_with_its_exit_code() {
    let dir = project(&format!(
        "{}{}restart = {{ when = \"on_failure\", delay = 0 }}\n{TICKER}",
        SEVEN.replace("seven", "once"),
        SEVEN
    ));
    let running = up(&dir, &["--keep"]);
    let (seven, once) = (pid(&dir, "seven"), pid(&dir, "once"));
    let mark = running.kill();
    send(seven, Signal::USR1);
    send(once, Signal::USR1);
    until("they have ended", || !lives(seven) && !lives(once));
    // And not even their numbers are free any more.
    let stranger = reuse(once);
    let running = here(&dir, "up", &["--keep"]).start();
    until("it is started again", || pm(&dir, "wait", &["seven"]).code == Some(0));
    assert_ne!(pid(&dir, "seven"), seven);
    assert_eq!(row(&dir, "seven")["restarts"], 1);
    // Whose rules do not start it again has ended, with the exit code that it had, and who needs it does not start for it.
    let row = row(&dir, "once");
    assert_eq!((&row["state"], &row["exit_code"]), (&"failed".into(), &7.into()), "{row}");
    let err = {
        pm(&dir, "down", &[]).expect(0);
        running.end().err
    };
    assert!(err.contains("pm: once: failed: exit code 7 after "), "{err}");
    assert!(err.contains("pm: seven: failed: exit code 7 after "), "{err}");
    if let Some(mut stranger) = stranger {
        assert!(lives(stranger.id()), "who has its number now was killed");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
    assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
}

/// A process that has this number again; none, and said so, where that cannot be had.
fn reuse(pid: u32) -> Option<std::process::Child> {
    for _ in 0..100 {
        if let Err(error) = std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()) {
            eprintln!("skipped: numbers of processes cannot be chosen here ({error})");
            return None;
        }
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        if child.id() == pid {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    eprintln!("skipped: the number {pid} is not given again");
    None
}

#[test]
fn what_has_changed_is_started_anew_and_what_is_gone_is_stopped() {
    let deaf = "[service.deaf]\nshell = \"trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\n";
    let dir = project(&format!("{TICKER}{SEVEN}{deaf}"));
    let running = up(&dir, &["--keep"]);
    let (ticker, seven, deaf) = (pid(&dir, "ticker"), pid(&dir, "seven"), pid(&dir, "deaf"));
    let mark = running.kill();
    dir.script("pm.toml", &format!("{TICKER}{}", SEVEN.replace("exit 7", "exit 8")));
    let running = up(&dir, &["--keep"]);
    until("it is started anew", || pid_or_none(&dir, "seven").is_some_and(|pid| pid != seven));
    assert_eq!(pid(&dir, "ticker"), ticker);
    until("what is not of it has ended", || !lives(deaf) && !lives(seven));
    let err = {
        pm(&dir, "down", &[]).expect(0);
        running.end().expect(0).err
    };
    assert!(
        err.contains(&format!("pm: deaf (pid {deaf}), which has outlived its pm, is not in the file any more")),
        "{err}"
    );
    assert!(log(&dir, "deaf").contains(" stdout F bye\n"), "{}", log(&dir, "deaf"));
    assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
}

fn pid_or_none(dir: &Dir, name: &str) -> Option<u32> {
    row(dir, name)["pid"].as_u64().map(|pid| pid as u32)
}

#[test]
fn down_ends_what_is_kept() {
    let deaf = "[service.deaf]\nshell = \"trap '' TERM; setsid sleep 1000 & echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\n";
    let dir = project(&format!("{TICKER}{deaf}"));
    let mark = up(&dir, &["--keep"]).kill();
    // The file need not be readable for that.
    dir.script("pm.toml", "nonsense");
    let stopped = objects(&pm(&dir, "down", &["--limit", "300ms", "--json"]).expect(0).out);
    let of = |name: &str| stopped.iter().find(|row| row["service"] == name).unwrap();
    assert_eq!((&of("deaf")["killed"], &of("ticker")["killed"]), (&true.into(), &false.into()), "{stopped:?}");
    assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
    pm(&dir, "down", &[]).refused(5, &["this project is not up: pm up starts it"]);
    assert!(!meeting_point(&dir).exists());
}

#[test]
fn only_what_is_to_be_kept_is() {
    let dir = project(&format!("{TICKER}{SEVEN}"));
    let running = up(&dir, &["--keep"]);
    let ticker = pid(&dir, "ticker");
    running.kill();
    // The next one takes them over, and does not keep them.
    let running = up(&dir, &[]);
    assert_eq!(pid(&dir, "ticker"), ticker);
    let mark = running.kill();
    until("they are gone with it", || left_behind(&mark, Duration::ZERO).is_empty() && !lives(ticker));
    // Who ends it wants it ended, however often and with whatever that is said.
    let deaf = "[service.deaf]\nshell = \"trap '' TERM INT; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\nstop = { limit = 1000 }\n";
    let dir = project(deaf);
    for kill_it in [false, true] {
        let running = up(&dir, &["--keep"]);
        running.signal(Signal::TERM);
        until("it goes down", || pm(&dir, "start", &["deaf"]).code == Some(1));
        if kill_it {
            let mark = running.kill();
            assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
        } else {
            running.says("waiting for deaf to end", 1);
            running.signal(Signal::TERM);
            running.end().expect(143);
        }
    }
}

#[test]
fn commands_that_belong_to_a_service_are_not_kept() {
    let dir = project(&format!(
        "{SEVEN}hooks = {{ start = [\"sleep\", \"1234\"] }}\nliveness = {{ command = [\"sleep\", \"1235\"], timeout = 100 }}\n"
    ));
    let running = up(&dir, &["--keep"]);
    until("both are there", || {
        let others = running.others();
        let line = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let all: String = others.iter().map(line).collect();
        all.contains("1234") && all.contains("1235")
    });
    let mark = running.kill();
    until("they are gone", || !left_behind(&mark, Duration::ZERO).concat().contains("sleep\u{0}123"));
    assert!(left_behind(&mark, Duration::ZERO).concat().contains("trap"), "and the service is not");
    down(&dir, up(&dir, &["--keep"]));
}

#[test]
fn who_says_that_it_is_ready_while_nobody_listens_is_heard() {
    if !has("python3", "--version") {
        return;
    }
    // One by a line, one by sd_notify(3), which then says more than a socket without a reader would take.
    let notifies = "import os, socket, time\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        while not os.path.exists('go'): time.sleep(0.01)\n\
        s.send(b'READY=1')\n\
        for i in range(1000): s.send(b'STATUS=%d' % i)\n\
        open('said', 'w').close()\n\
        while True: time.sleep(1)\n";
    let dir = project(
        "[service.line]\nshell = \"while ! test -e go; do sleep 0.01; done; echo it is up; exec sleep 1000\"\nhealth = { line = \"is up\" }\n\
         [service.silent]\nshell = \"while ! test -e go; do sleep 0.01; done; echo it is up; touch too; exec sleep 1000\"\nhealth = { line = \"is up\" }\nlog = false\n\
         [service.note]\ncommand = [\"python3\", \"note.py\"]\nhealth = { notify = true }\n",
    );
    dir.script("note.py", notifies);
    let running = here(&dir, "up", &["--keep"]).start();
    until("they are there", || pm(&dir, "wait", &["line", "silent", "note", "--for", "started"]).code == Some(0));
    running.kill();
    std::fs::write(dir.join("go"), "").unwrap();
    until_or(
        "both have said it",
        || format!("{:?}", (log(&dir, "line"), log(&dir, "note"))),
        || dir.join("said").exists() && log(&dir, "line").contains("is up"),
    );
    let running = up(&dir, &["--keep"]);
    for name in ["line", "silent", "note"] {
        assert_eq!(row(&dir, name)["state"], "healthy", "{name}");
    }
    down(&dir, running);
}

#[test]
fn a_flood_is_written_down_and_takes_no_memory() {
    let dir = project(
        "[service.flood]\nshell = \"yes abcdefghijklmnopqrstuvwxyz\"\nlog = { max_size = \"1M\", keep = 2 }\n\
         [service.silent]\nshell = \"yes nobody hears this\"\nlog = false\n\
         [service.long]\nshell = \"head -c 3000000 /dev/zero | tr '\\\\0' x; echo; echo said; exec sleep 1000\"\n",
    );
    let running = up(&dir, &["--keep"]);
    let (flood, silent) = (pid(&dir, "flood"), pid(&dir, "silent"));
    let mark = running.kill();
    let keeper = keeper(&mark);
    let rss = || {
        let statm = std::fs::read_to_string(format!("/proc/{keeper}/statm")).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join(".pm/logs/flood.log")).unwrap());
    // Its log is set aside several times: some MiB have gone through the keeper.
    let mut before = inode();
    let mut turns = 0;
    until("its log goes on", || {
        let now = std::fs::metadata(dir.join(".pm/logs/flood.log"))
            .map_or(before, |found| std::os::unix::fs::MetadataExt::ino(&found));
        turns += u32::from(std::mem::replace(&mut before, now) != now);
        turns >= 5
    });
    assert!(rss() < 24 << 20, "{}", rss());
    assert!(lives(flood) && lives(silent));
    until("the long line is whole", || log(&dir, "long").contains("F said"));
    let long: usize = log(&dir, "long").lines().map(|line| line.matches('x').count()).sum();
    assert!(long <= 3_000_000, "{long}");
    let running = up(&dir, &["--keep"]);
    assert_eq!((pid(&dir, "flood"), pid(&dir, "silent")), (flood, silent));
    let lines = log(&dir, "flood");
    let whole = |line: &&str| !line.ends_with(" F abcdefghijklmnopqrstuvwxyz");
    // Where one writer takes over from another a line may come in two pieces, or lack its beginning.
    assert!(lines.lines().filter(whole).count() <= 4, "{:?}", lines.lines().filter(whole).collect::<Vec<_>>());
    pm(&dir, "down", &[]).expect(0);
    running.end();
}

#[test]
fn replicas_that_somebody_asked_for_are_kept() {
    let dir = project(TICKER);
    let running = up(&dir, &["--keep"]);
    pm(&dir, "scale", &["ticker", "3"]).expect(0);
    let before = [pid(&dir, "ticker"), pid(&dir, "ticker#2"), pid(&dir, "ticker#3")];
    running.kill();
    let running = up(&dir, &["--keep"]);
    assert_eq!([pid(&dir, "ticker"), pid(&dir, "ticker#2"), pid(&dir, "ticker#3")], before);
    running.kill();
    // Until the file says another number.
    dir.script("pm.toml", &format!("{TICKER}replicas = 2\n"));
    let running = up(&dir, &["--keep"]);
    assert_eq!([pid(&dir, "ticker"), pid(&dir, "ticker#2")], before[..2]);
    until("the third is stopped", || !lives(before[2]));
    down(&dir, running);
}

#[test]
fn strangers_at_the_meeting_point_change_nothing() {
    let dir = project(TICKER);
    let running = up(&dir, &["--keep"]);
    let ticker = pid(&dir, "ticker");
    let mark = running.kill();
    let meeting = meeting_point(&dir);
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&meeting).unwrap().permissions()) & 0o777,
        0o600
    );
    // Of another kind; and one that hangs up at once; and one that says nonsense.
    assert!(UnixStream::connect(&meeting).is_err());
    let connect = || {
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET);
        let socket = rustix::net::socket(family, kind, None).unwrap();
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&meeting).unwrap()).unwrap();
        socket
    };
    // A manager of another version is told so, and one without a process gets nothing either.
    let others = [&b""[..], b"\xff\xff\xff", b"0123456789012345678901234567890", b"pm adopt\0\x01", b"pm adopt\0\x04"];
    for said in others {
        let socket = connect();
        if !said.is_empty() {
            rustix::net::send(&socket, said, rustix::net::SendFlags::empty()).unwrap();
        }
        let mut answer = [0; 64];
        let flags = rustix::net::RecvFlags::empty();
        let count = if said.is_empty() { 0 } else { rustix::net::recv(&socket, &mut answer[..], flags).unwrap().0 };
        assert_eq!(count > 0, said.starts_with(b"pm adopt"), "{said:?}");
    }
    // Who says nothing holds up nobody.
    let _idle: Vec<_> = (0..4).map(|_| connect()).collect();
    let now = ticks(&dir).last().copied().unwrap();
    let began = Instant::now();
    until("its log goes on", || ticks(&dir).last() > Some(&(now + 5)));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let running = up(&dir, &["--keep"]);
    assert_eq!(pid(&dir, "ticker"), ticker);
    // Where the keeper is killed as well nothing is left, and what it leaves is taken over.
    running.kill();
    send(keeper(&mark), Signal::KILL);
    assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
    pm(&dir, "ps", &[]).refused(5, &["pm up starts it"]);
    assert!(meeting.exists());
    down(&dir, up(&dir, &["--keep"]));
    assert!(!meeting.exists());
    // Whatever the version of a keeper, it can be told that all is to end.
    let mark = up(&dir, &["--keep"]).kill();
    let socket = connect();
    rustix::net::send(&socket, b"pm end", rustix::net::SendFlags::empty()).unwrap();
    until("all is gone", || left_behind(&mark, Duration::ZERO).is_empty() && !meeting.exists());
}

fn meeting_point(dir: &Dir) -> PathBuf {
    dir.join(".pm/pm.toml.keep")
}

#[test]
fn another_environment_takes_over_what_is_kept() {
    let dir = project(TICKER);
    let running = up(&dir, &["--keep"]);
    let ticker = pid(&dir, "ticker");
    running.kill();
    let elsewhere = Dir::new();
    let there = |name: &str, args: &[&str]| here(&dir, name, args).env("XDG_RUNTIME_DIR", elsewhere.path());
    let running = there("up", &["--keep"]).start();
    until("it is up", || there("wait", &[]).run("").code == Some(0));
    assert_eq!(pid(&dir, "ticker"), ticker);
    running.kill();
    let running = up(&dir, &["--keep"]);
    assert_eq!(pid(&dir, "ticker"), ticker);
    down(&dir, running);
}

/// A launch that comes to its end after somebody has ended the project is not kept for anybody.
#[test]
fn an_end_in_the_midst_of_the_start_leaves_nothing() {
    let deaf = "shell = \"trap '' TERM; while :; do sleep 1; done\"\n";
    let text: String = (0..40).map(|number| format!("[service.s{number}]\n{deaf}")).collect();
    let dir = project(&text);
    for _ in 0..3 {
        let running = here(&dir, "up", &["--keep"]).start();
        until("the first is there", || running.others().len() > 3);
        running.signal(Signal::TERM);
        until("it has heard", || running.ends_within(Duration::ZERO) || pm(&dir, "start", &["s0"]).code != Some(0));
        let mark = running.kill();
        assert_eq!(left_behind(&mark, Duration::from_secs(2)), [""; 0]);
        assert!(!meeting_point(&dir).exists());
    }
}

/// Whoever was asked to end when pm was killed does not live on for ever.
#[test]
fn a_stop_that_is_under_way_is_finished() {
    let dir = project(
        "[service.a]\nshell = \"trap '' TERM; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\nstop = { limit = 1000 }\n\
         [service.b]\nshell = \"setsid sh -c 'trap \\\"\\\" TERM; sleep 1000' & echo up; wait\"\nhealth = { line = \"up\" }\nstop = { limit = 1000 }\n\
         [service.c]\nshell = \"exec sleep 1000\"\n",
    );
    let running = up(&dir, &["--keep"]);
    let (a, b, c) = (pid(&dir, "a"), pid(&dir, "b"), pid(&dir, "c"));
    let stopping = here(&dir, "stop", &["a", "b"]).start();
    let stops = |name: &str| row(&dir, name)["state"] == "stopping";
    until("they are asked to end", || stops("a") && stops("b") && !lives(b));
    running.kill();
    drop(stopping);
    until("they are gone", || !lives(a));
    let running = up(&dir, &["--keep"]);
    assert_eq!(pid(&dir, "c"), c);
    assert!(pid(&dir, "a") != a && pid(&dir, "b") != b, "and were started anew");
    pm(&dir, "stop", &["a", "b", "--limit", "0s"]);
    down(&dir, running);
}

/// What a pm did not get to is not lost: the last words of a service, and its exit code.
#[test]
fn what_a_pm_did_not_get_to_is_known_to_the_next() {
    let dir = project(
        "[service.a]\nshell = \"trap 'echo last words; exit 7' USR1; echo up; while :; do sleep 0.01; done\"\nhealth = { line = \"up\" }\n\
         [service.b]\nshell = \"exec sleep 1000\"\n",
    );
    let running = up(&dir, &["--keep"]);
    let a = pid(&dir, "a");
    running.signal(Signal::STOP);
    send(a, Signal::USR1);
    until("it has ended", || !lives(a));
    running.kill();
    until("its words are written down", || log(&dir, "a").contains("F last words\n"));
    // Nor by one that dies while it takes over.
    for _ in 0..3 {
        here(&dir, "up", &["--keep"]).start().kill();
    }
    let running = here(&dir, "up", &["--keep"]).start();
    until("it is up", || pm(&dir, "wait", &["b"]).code == Some(0));
    let row = row(&dir, "a");
    assert_eq!((&row["state"], &row["exit_code"]), (&"failed".into(), &7.into()), "{row}");
    pm(&dir, "down", &[]).expect(0);
    running.end();
}

/// With its signal, within its time, into the log that the file names now.
#[test]
fn what_is_kept_ends_as_it_was_to_end() {
    let service = "[service.a]\nshell = \"trap '' TERM; trap 'echo interrupted; exit' INT; echo up; while :; do sleep 0.01; done\"\n\
                   health = { line = \"up\" }\nstop = { signal = \"INT\" }\n";
    let dir = project(&format!("{service}log = {{ file = \"one.log\" }}\n"));
    let running = up(&dir, &["--keep"]);
    running.kill();
    dir.script("pm.toml", &format!("{service}log = {{ file = \"two.log\" }}\n"));
    let running = up(&dir, &["--keep"]);
    running.kill();
    let stopped = objects(&pm(&dir, "down", &["--json"]).expect(0).out);
    assert_eq!((stopped.len(), &stopped[0]["clean"]), (1, &true.into()), "{stopped:?}");
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    assert!(text("two.log").contains("F interrupted\n") && !text("one.log").contains("interrupted"));
}

/// A hundred descriptors or two are enough for thirty services, also when they change hands.
#[test]
fn few_descriptors_are_enough() {
    let text: String = (0..30).map(|number| TICKER.replace("ticker", &format!("t{number}"))).collect();
    let dir = project(&text);
    let limited = || here(&dir, "up", &["--keep"]).descriptors(192).start();
    let running = limited();
    until("it is up", || pm(&dir, "wait", &[]).code == Some(0));
    let before: Vec<u32> = (0..30).map(|number| pid(&dir, &format!("t{number}"))).collect();
    let mark = running.kill();
    let keeper = keeper(&mark);
    let sizes = || (0..30).map(|number| log(&dir, &format!("t{number}")).len()).collect::<Vec<_>>();
    let first = sizes();
    until("all logs go on", || sizes().iter().zip(&first).all(|(now, then)| now > then));
    // Somebody looks, and goes again: the keeper does not spin for that.
    pm(&dir, "ps", &[]).refused(5, &["have outlived"]);
    let running = limited();
    until("it is up", || pm(&dir, "wait", &[]).code == Some(0));
    assert_eq!((0..30).map(|number| pid(&dir, &format!("t{number}"))).collect::<Vec<_>>(), before);
    assert!(lives(keeper));
    down(&dir, running);
}

#[test]
fn who_is_detached_goes_on_until_somebody_stops_it() {
    let dir = project(&format!("{}detached = true\n{SEVEN}", TICKER));
    let running = up(&dir, &[]);
    let (ticker, seven) = (pid(&dir, "ticker"), pid(&dir, "seven"));
    // Whatever ends the others, be it in good order or not.
    running.signal(Signal::TERM);
    assert!(running.ends_within(Duration::from_secs(20)));
    let mark = running.kill();
    assert!(lives(ticker) && !lives(seven));
    pm(&dir, "ps", &[]).refused(5, &["not up, but its services are"]);
    let now = ticks(&dir).last().copied().unwrap();
    until("its log goes on", || ticks(&dir).last() > Some(&(now + 3)));
    let running = up(&dir, &[]);
    assert_eq!(pid(&dir, "ticker"), ticker);
    let seven = pid(&dir, "seven");
    running.kill();
    until("the others are gone", || !lives(seven));
    assert!(lives(ticker));
    let running = up(&dir, &["--keep"]);
    assert_eq!(pid(&dir, "ticker"), ticker);
    down(&dir, running);
    assert_eq!(left_behind(&mark, Duration::from_secs(1)), [""; 0]);
    // Whoever was stopped is not left.
    let running = up(&dir, &[]);
    pm(&dir, "stop", &["ticker"]).expect(0);
    running.signal(Signal::TERM);
    let done = running.end().expect(143);
    assert!(!done.err.contains("left running"), "{}", done.err);
    assert!(!meeting_point(&dir).exists());
}
