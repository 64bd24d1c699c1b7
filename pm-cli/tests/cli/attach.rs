//! `pm attach`: on a real pseudo-terminal, and with pipes.

use std::io::{BufRead, Write};
use std::time::Instant;

use rustix::process::Signal;

use crate::support::{Done, Pm, Running, command};
use crate::tui::{LIMIT, Project, is_raw};

/// Asks, and then draws on the whole terminal, as an editor does.
const EDITOR: &str = r#"[service.editor]
tty = true
shell = '''
read -r name; echo "hello $name at $(stty size)"
read -r go; printf '\033[?1049h\033[?25l\033[?2004h\033[?1000h\033[31mdrawn\r\n'
trap 'echo "size $(stty size)"' WINCH; while :; do sleep 0.01; done
'''
"#;

const PIPES: &str = r#"[service.cat]
stdin = "pipe"
shell = "cat; echo over >&2; exit 7"
[service.lines]
stdin = "pipe"
restart = { when = "always", delay = 0, endless = true }
shell = '''echo begins; while read -r line; do echo "got $line"; test "$line" = end && exit 1; done'''
[service.null]
shell = "while ! test -e go; do echo tick; sleep 0.01; done; echo gone; exit 3"
"#;

fn attach(project: &Project, args: &[&str]) -> Pm {
    command("attach", args).dir(project.0.path()).env("XDG_RUNTIME_DIR", project.0.path())
}

/// `pm up`, which is up.
fn up(project: &Project) -> Running {
    let up = command("up", [""; 0]).dir(project.0.path()).env("XDG_RUNTIME_DIR", project.0.path()).start();
    let began = Instant::now();
    while project.pm("ps", &[]).code != Some(0) {
        assert!(began.elapsed() < LIMIT, "it does not come up");
    }
    up
}

fn err(done: &Done, text: &str) {
    assert!(done.err.contains(text), "{text:?} is not in {:?}", done.err);
}

#[test]
fn a_terminal_is_connected_and_given_back() {
    let project = Project::new(EDITOR);
    project.start_in_background();
    let mut terminal = project.on_terminal(&["attach", "editor"], 30, 90);
    terminal.shows("attached to editor; Ctrl-P Ctrl-Q leaves it as it is");
    terminal.press("bob\r");
    terminal.shows("hello bob at 30 90");
    assert!(is_raw(&terminal.pty));
    // One of the two keys alone is the service's.
    terminal.press("\x10x\r");
    terminal.shows("drawn");
    let modes = |terminal: &crate::tui::Terminal| {
        let seen = terminal.seen.lock().unwrap();
        let screen = seen.parser.screen();
        (screen.alternate_screen(), screen.hide_cursor(), screen.bracketed_paste())
    };
    assert_eq!(modes(&terminal), (true, true, true));
    terminal.seen.lock().unwrap().parser.screen_mut().set_size(40, 100);
    terminal.pty.resize(pty_process::Size::new(40, 100)).unwrap();
    terminal.shows("size 40 100");
    terminal.press("\x10\x11");
    assert_eq!(terminal.ends(), Some(0));
    terminal.shows("pm: left editor, which goes on");
    terminal.shows("hello bob");
    assert_eq!(modes(&terminal), (false, false, false));
    let seen = terminal.seen.lock().unwrap();
    assert_eq!(seen.parser.screen().mouse_protocol_mode(), vt100::MouseProtocolMode::None);
    drop(seen);
    project.pm("wait", &["editor", "--for", "running"]).expect(0);

    // Ctrl-C is the service's, which ends by that.
    let mut terminal = project.on_terminal(&["attach", "editor"], 20, 70);
    terminal.shows("size 20 70");
    terminal.press("\x03");
    assert_eq!(terminal.ends(), Some(130));
    terminal.shows("pm: editor has ended (failed, ");
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    let project = Project::new(EDITOR);
    let up = up(&project);
    let attached = || {
        let terminal = project.on_terminal(&["attach", "editor"], 24, 80);
        terminal.shows("attached to editor");
        terminal.sees(|_| is_raw(&terminal.pty));
        terminal
    };
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let mut terminal = attached();
        terminal.signal(signal);
        assert_eq!(terminal.ends(), Some(code));
    }
    let mut terminal = attached();
    terminal.press("x\ry\r");
    terminal.shows("drawn");
    project.pm("stop", &["editor"]).expect(0);
    // Its shell has an end by SIGTERM.
    assert_eq!(terminal.ends(), Some(143));
    terminal.shows("pm: editor has ended (stopped, ");
    up.end().expect(0);
    // A project that is killed says nothing any more.
    let up = self::up(&project);
    let mut terminal = attached();
    terminal.press("x\ry\r");
    terminal.shows("drawn");
    up.signal(Signal::KILL);
    assert_eq!(terminal.ends(), Some(1));
    terminal.shows("the project ended before it had answered");
    assert_eq!(up.end().code, None);
}

#[test]
fn pipes_are_connected() {
    let project = Project::new(PIPES);
    project.start_in_background();
    // It leaves once all of it was taken; the service goes on, and reads it.
    for _ in 0..5 {
        assert_eq!(attach(&project, &["lines"]).run("one\n").expect(0).err, "");
    }
    // Through its end, and with what more is said in its next life.
    let mut lines = attach(&project, &["lines"]).start();
    let input = lines.stdin.as_mut().unwrap();
    input.write_all(b"two\nend\n").unwrap();
    while lines.line() != "got end" {}
    assert_eq!(lines.line(), "begins");
    lines.stdin.as_mut().unwrap().write_all(b"three\n").unwrap();
    assert_eq!(lines.line(), "got three");
    lines.end().expect(0);
    let done = attach(&project, &["cat", "--close"]).run("a\nwithout an end\0").expect(7);
    assert_eq!((done.out.as_slice(), done.err.as_str()), (&b"a\nwithout an end\0"[..], "over\n"));
    err(&attach(&project, &["cat"]).run("x").expect(1), "cat is not up (failed, exit code 7): pm start starts it");
    // Much of it, and back.
    project.pm("start", &["cat"]).expect(0);
    let much: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    let done = attach(&project, &["cat", "--close"]).run(&much).expect(7);
    assert_eq!(done.err, "over\n");
    assert!(done.out == much, "{} of {} bytes", done.out.len(), much.len());
    err(&attach(&project, &["null"]).run("x").expect(1), "null did not take the input: it takes none");
    err(&attach(&project, &["nul"]).run("").expect(1), "there is no service \"nul\"; there are ");
    let mut shows = attach(&project, &["null", "--no-stdin"]).start();
    let mut too = attach(&project, &["null"]).start();
    assert_eq!([shows.line(), too.line()], ["tick", "tick"]);
    project.0.script("go", "");
    for one in [shows, too] {
        let text = one.end().expect(3).text();
        assert!(text.ends_with("gone\n"), "{text:?}");
    }
    project.pm("down", &[]).expect(0);
    attach(&project, &["cat"]).run("").expect(5);
}

/// The last service is the end of the project, and whoever is attached to it hears how it ended all the same.
#[test]
fn the_end_of_the_last_service_is_told() {
    let project = Project::new("[service.a]\ntty = true\nshell = \"read -r x; echo last words; exit 3\"\n");
    for _ in 0..5 {
        let up = up(&project);
        let done = attach(&project, &["a", "--close"]).run("x\n").expect(3);
        assert!(done.text().ends_with("last words\r\n"), "{:?}", done.text());
        up.end().expect(1);
    }
}

#[test]
fn who_does_not_read_holds_up_nobody() {
    let project = Project::new(
        "[service.flood]\nshell = \"exec yes 'a line of a usual length, as services print them'\"\nlog = false\n\
         [service.echo]\nstdin = \"pipe\"\nshell = \"exec cat\"\n",
    );
    project.start_in_background();
    let mut deaf = attach(&project, &["flood"]).start();
    // It is connected, and stands still from then on.
    assert!(deaf.line().starts_with("a line"));
    let mut echo = attach(&project, &["echo"]).start();
    for n in 0..20 {
        echo.stdin.as_mut().unwrap().write_all(format!("{n}\n").as_bytes()).unwrap();
        assert_eq!(echo.line(), n.to_string());
    }
    echo.end().expect(0);
    let mut reader = deaf.stdout.take().unwrap();
    let mut bytes = 0;
    while bytes < 4 << 20 {
        let count = reader.fill_buf().unwrap().len();
        reader.consume(count);
        bytes += count;
    }
    // Nobody reads on.
    drop(reader);
    let done = deaf.end().expect(141);
    err(&done, "bytes that flood printed were dropped here");
}

#[test]
fn what_cannot_be_attached_is_refused() {
    let project = Project::new("[service.a]\nshell = \"sleep 1000\"\ntty = true\nstdin = \"inherit\"\n");
    project.pm("check", &[]).refused(2, &["a: tty is its standard input: leave out stdin"]);
    project.pm("attach", &[]).refused(2, &["SERVICE"]);
    project.pm("attach", &["a", "--close", "--no-stdin"]).refused(2, &["--no-stdin"]);
}
