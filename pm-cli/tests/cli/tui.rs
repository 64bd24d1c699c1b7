//! `pm tui` on a real pseudo-terminal, whose screen a terminal of its own reads.

use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pty_process::blocking::{Pty, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};

use crate::support::{Dir, command};

/// Far longer than anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What ends a frame.
const END_OF_FRAME: &[u8] = b"\x1b[?2026l";

/// Directories whose projects are stopped at the end, also of a test that fails.
pub(crate) struct Project(pub(crate) Dir);

impl Project {
    pub(crate) fn new(text: &str) -> Self {
        let dir = Dir::new();
        dir.script("pm.toml", text);
        Project(dir)
    }

    pub(crate) fn pm(&self, name: &str, args: &[&str]) -> crate::support::Done {
        command(name, args).dir(self.0.path()).env("XDG_RUNTIME_DIR", self.0.path()).run("")
    }

    /// Waits until the project in the background has ended, not only its services.
    fn is_gone(&self) {
        let file = self.0.join("pm.toml");
        let is_of_it = |process: std::io::Result<std::fs::DirEntry>| {
            let line = std::fs::read(process.ok()?.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(&*file.to_string_lossy()).then_some(())
        };
        let began = Instant::now();
        while std::fs::read_dir("/proc").unwrap().filter_map(is_of_it).next().is_some() {
            assert!(began.elapsed() < LIMIT, "the project in the background does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `pm up -d`, which leaves what it has started.
    pub(crate) fn start_in_background(&self) {
        let status = Command::new(env!("CARGO_BIN_EXE_pm"))
            .args(["up", "-d"])
            .current_dir(self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .status();
        assert!(status.unwrap().success());
    }

    /// `pm` with these arguments on a terminal of this size.
    pub(crate) fn on_terminal(&self, args: &[&str], rows: u16, columns: u16) -> Terminal {
        let (pty, pts) = open().unwrap();
        pty.resize(pty_process::Size::new(rows, columns)).unwrap();
        let is_raw = is_raw(&pty);
        let command = pty_process::blocking::Command::new(env!("CARGO_BIN_EXE_pm"))
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR");
        let child = command.spawn(pts).unwrap();
        let seen = Arc::new(Mutex::new(Seen {
            parser: vt100::Parser::new(rows, columns, 0),
            frames: Vec::new(),
            tail: Vec::new(),
            bytes: 0,
            is_deaf: false,
        }));
        let pty = Arc::new(pty);
        let (reader, shared) = (pty.clone(), seen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            // Its end is an error of a terminal that nobody has open any more.
            while !shared.lock().unwrap().is_deaf
                && let Ok(count) = (&*reader).read(&mut buffer)
                && count > 0
            {
                shared.lock().unwrap().take(&buffer[..count]);
            }
        });
        assert!(!is_raw);
        Terminal { child, pty, seen }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.pm("down", &["--limit", "1s"]);
        if !std::thread::panicking() {
            self.is_gone();
        }
    }
}

pub(crate) struct Seen {
    pub(crate) parser: vt100::Parser,
    /// When each frame was over.
    frames: Vec<Instant>,
    tail: Vec<u8>,
    bytes: usize,
    /// Nothing is read any more.
    is_deaf: bool,
}

impl Seen {
    fn take(&mut self, bytes: &[u8]) {
        self.parser.process(bytes);
        self.bytes += bytes.len();
        self.tail.extend_from_slice(bytes);
        let found = self.tail.windows(END_OF_FRAME.len()).filter(|window| *window == END_OF_FRAME).count();
        self.frames.extend(std::iter::repeat_n(Instant::now(), found));
        // The begin of one may be at the end. No whole one is kept, so that it counts once.
        self.tail.drain(..self.tail.len().saturating_sub(END_OF_FRAME.len() - 1));
    }
}

pub(crate) struct Terminal {
    child: Child,
    pub(crate) pty: Arc<Pty>,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl Terminal {
    pub(crate) fn press(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    fn screen(&self) -> String {
        self.seen.lock().unwrap().parser.screen().contents()
    }

    #[track_caller]
    pub(crate) fn sees(&self, what: impl Fn(&str) -> bool) {
        let began = Instant::now();
        while !what(&self.screen()) {
            assert!(began.elapsed() < LIMIT, "it does not come on the screen:\n{}", self.screen());
            // The screen is what it is after each read: there is no event to wait for that says more.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        self.sees(|screen| screen.contains(text));
    }

    /// Its exit code, once it has ended.
    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < LIMIT, "it does not end:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same, with the terminal as it was.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> Option<i32> {
        let code = self.code();
        self.sees(|_| !self.seen.lock().unwrap().parser.screen().alternate_screen());
        let seen = self.seen.lock().unwrap();
        assert!(!seen.parser.screen().hide_cursor(), "the cursor is hidden");
        assert!(!is_raw(&self.pty), "the terminal is raw");
        code
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended is not there to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn is_raw(pty: &Pty) -> bool {
    !tcgetattr(pty).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
}

const TWO: &str = "[service.db]\nshell = \"printf 'db is \\\\033[31mup\\\\033[0m\\\\n'; exec sleep 1000\"\nhealth = { line = \"is\" }\n\
    [service.api]\nshell = \"for n in $(seq 100); do echo call $n; done; exec sleep 1000\"\nneeds = [\"db\"]\n";

#[test]
fn services_are_seen_and_stopped_and_the_project_stays_up() {
    let project = Project::new(TWO);
    let mut terminal = project.on_terminal(&["up", "--tui"], 24, 100);
    terminal.sees(|screen| ["db ", "healthy", "api ", "running", "db is up"].iter().all(|text| screen.contains(text)));
    assert!(terminal.seen.lock().unwrap().parser.screen().alternate_screen());
    assert!(is_raw(&terminal.pty));
    // The other one, what it has printed before this was opened, and something in it.
    terminal.press("j");
    // Once: what the log has does not come again.
    terminal.sees(|screen| screen.matches("call 100").count() == 1);
    terminal.press("/CALL 7\r");
    terminal.shows("no further match of \"CALL 7\"");
    terminal.press("/call 7\r");
    terminal.shows("call 79");
    terminal.press("\x1b[5~");
    terminal.shows("lines below");
    terminal.press("f");
    terminal.shows("follows");
    terminal.press("x");
    terminal.sees(|screen| screen.contains("stopped") && screen.contains("1 of 2 up"));
    terminal.press("s");
    terminal.shows("2 of 2 up");
    terminal.press("c");
    terminal.sees(|screen| screen.starts_with("call ") && screen.contains("at rest"));
    // There nobody stops a service that is not seen.
    terminal.press("xc");
    terminal.shows("2 of 2 up");
    terminal.press("e");
    terminal.shows("stopping");
    terminal.press("d");
    terminal.shows("last exit");
    terminal.press("q");
    assert_eq!(terminal.ends(), Some(0));
    terminal.shows("pm: the project is still up: pm down stops it");
    assert!(project.pm("ps", &[]).expect(0).text().contains("healthy"));

    // The next one that comes can stop it, if it means to.
    let mut terminal = project.on_terminal(&["tui"], 24, 100);
    terminal.shows("2 of 2 up");
    terminal.press("Qn");
    terminal.press("Q");
    terminal.shows("Stop all services and the project?");
    terminal.press("y");
    assert_eq!(terminal.ends(), Some(0));
    terminal.shows("pm: the project was stopped");
    project.pm("ps", &[]).expect(5);
}

#[test]
fn services_come_and_go_with_the_file() {
    let project = Project::new(TWO);
    project.start_in_background();
    let mut terminal = project.on_terminal(&["tui"], 24, 100);
    terminal.shows("2 of 2 up");
    terminal.sees(|screen| screen.contains("db is up"));
    let db = "[service.db]\nshell = \"printf 'db is \\\\033[31mup\\\\033[0m\\\\n'; exec sleep 1000\"\nhealth = { line = \"is\" }\n";
    let fresh = "[service.fresh]\nshell = \"echo here at last; exec sleep 1000\"\n";
    std::fs::write(project.0.join("pm.toml"), [db, fresh].concat()).unwrap();
    assert_eq!(project.pm("reload", &[]).expect(0).text(), "added fresh; removed api\n");
    terminal.sees(|screen| screen.contains("2 of 2 up") && screen.contains("fresh ") && !screen.contains("api "));
    terminal.press("j");
    terminal.shows("here at last");
    // The one that is selected goes.
    std::fs::write(project.0.join("pm.toml"), db).unwrap();
    project.pm("reload", &[]).expect(0);
    terminal
        .sees(|screen| screen.contains("1 of 1 up") && screen.contains("db is up") && !screen.contains("here at last"));
    terminal.press("q");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    let project = Project::new(TWO);
    project.start_in_background();
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let mut terminal = project.on_terminal(&["tui"], 24, 80);
        terminal.shows("2 of 2 up");
        terminal.signal(signal);
        assert_eq!(terminal.ends(), Some(code));
    }
    // On one that is hardly one, and that changes its size.
    let mut terminal = project.on_terminal(&["tui"], 5, 20);
    terminal.shows("db is up");
    terminal.seen.lock().unwrap().parser.screen_mut().set_size(30, 90);
    terminal.pty.resize(pty_process::Size::new(30, 90)).unwrap();
    terminal.shows("2 of 2 up");
    project.pm("down", &[]).expect(0);
    assert_eq!(terminal.ends(), Some(0));
    terminal.shows("pm: the project has ended");
}

#[test]
fn without_a_terminal_or_a_project_it_says_so() {
    let project = Project::new(TWO);
    project.pm("tui", &[]).refused(2, &["pm tui needs a terminal"]);
    project.pm("up", &["--tui"]).refused(2, &["pm tui needs a terminal"]);
    project.pm("ps", &[]).expect(5);
    let mut terminal = project.on_terminal(&["tui"], 24, 80);
    terminal.shows("this project is not up");
    assert_eq!(terminal.ends(), Some(5));
}

#[test]
fn a_terminal_that_takes_nothing_any_more_holds_up_no_signal() {
    let project = Project::new("[service.a]\nshell = \"while :; do date +%N%N%N%N; sleep 0.01; done\"\n");
    project.start_in_background();
    let mut terminal = project.on_terminal(&["tui"], 50, 200);
    terminal.shows("1 of 1 up");
    terminal.seen.lock().unwrap().is_deaf = true;
    // Until it waits for the terminal: it has written what fits, and nothing more comes.
    let stat = || std::fs::read_to_string(format!("/proc/{}/wchan", terminal.child.id())).unwrap();
    let began = Instant::now();
    while !stat().contains("tty") && !stat().contains("woken") && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(50));
    }
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.code(), Some(143));
    assert!(!is_raw(&terminal.pty), "the terminal is raw");
}

/// One that writes as fast as it can beside one that says a word now and then: both are seen, keys are answered, and frames come.
#[test]
fn a_flood_does_not_freeze_it() {
    let project = Project::new(
        "[service.flood]\nshell = \"exec yes 'a line of a usual length, as services print them all the time, one of very many'\"\n\
         [service.quiet]\nshell = \"while :; do echo tick $(date +%s%N); sleep 0.05; done\"\n[log]\nmax_size = 1000000\nkeep = 1\n",
    );
    project.start_in_background();
    let mut terminal = project.on_terminal(&["tui"], 40, 120);
    terminal.sees(|screen| screen.contains("one of very many") && screen.contains("quiet"));
    let since = |first: usize| {
        let seen = terminal.seen.lock().unwrap();
        seen.frames[first..].windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<Duration>>()
    };
    // While it is looked at there is a frame as soon as one may be.
    let first = terminal.seen.lock().unwrap().frames.len();
    std::thread::sleep(Duration::from_secs(3));
    let mut between = since(first);
    let mut answers = Vec::new();
    for (key, shown) in [("d", "last exit"), ("d", "follows"), ("?", "stop the project"), ("?", "follows")].repeat(5) {
        let pressed = Instant::now();
        terminal.press(key);
        terminal.shows(shown);
        answers.push(pressed.elapsed());
    }
    terminal.press("j");
    terminal.shows("tick ");
    terminal.sees(|screen| !screen.contains("one of very many"));
    between.sort();
    answers.sort();
    let at = |times: &[Duration], share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{} frames in 3 s, from one to the next p50 {:?}, p99 {:?}, longest {:?}; a key is answered after p50 {:?}, longest {:?}",
        between.len(),
        at(&between, 0.5),
        at(&between, 0.99),
        at(&between, 1.0),
        at(&answers, 0.5),
        at(&answers, 1.0),
    );
    // On a machine that does other things as well, and not optimized: docs/SERVICES.md says what it is otherwise.
    assert!(at(&between, 0.5) < Duration::from_millis(120), "{:?}", at(&between, 0.5));
    assert!(at(&between, 0.5) >= Duration::from_millis(25), "more frames than anybody sees: {:?}", at(&between, 0.5));
    assert!(at(&answers, 1.0) < Duration::from_secs(3), "{:?}", at(&answers, 1.0));
    terminal.press("q");
    assert_eq!(terminal.ends(), Some(0));
}
