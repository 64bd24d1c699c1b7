use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::text::Span;

use super::*;
use crate::project::tui::app::{Input, Shown};
use crate::project::tui::keys::Key;
use crate::project::wire::{MetricsRow, OutputRow, ProbeRow, Row};

const SECOND: Duration = Duration::from_secs(1);

pub(in crate::project::tui) fn row(service: &str, state: &str, pid: Option<u32>, why: Option<&str>) -> Row {
    Row {
        service: service.into(),
        name: service.split('-').next().unwrap().into(),
        state: state.into(),
        why: why.map(str::to_owned),
        pid,
        restarts: 2,
        lived_ms: 95_000,
        exit_code: pid.is_none().then_some(7),
        signal: None,
        status: None,
        rss_bytes: pid.map(|_| 23_400_000),
        cpu_ms: pid.map(|_| 9_500),
        readiness: None,
        liveness: None,
        metrics: None,
    }
}

fn app(width: u16, height: u16) -> App {
    let mut app = App::new("shop", true, (width, height));
    let why = "needs db (healthy); db is starting";
    let rows = vec![
        row("db", "healthy", Some(10), None),
        row("api", "waiting", None, Some(why)),
        row("日本", "failed", None, Some("exit code 7")),
    ];
    app.handle(Input::Services(rows), SECOND);
    let text = "one\ntwo \x1b[31mred\x1b[0m\n\x1b[2Jcleared?\ttab\n日本語\n".into();
    app.handle(Input::Output(OutputRow { service: "db".into(), is_stderr: false, text, missed: 0 }), SECOND);
    app
}

/// What stands on a terminal, without blanks at the ends of its lines.
fn screen(app: &mut App, width: u16, height: u16) -> String {
    app.handle(Input::Resized { width, height }, SECOND);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            draw(app, frame.buffer_mut());
        })
        .unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let mut text = String::new();
        let mut skipped = 0;
        for x in 0..width {
            let symbol = buffer[(x, y)].symbol();
            if skipped == 0 {
                text += symbol;
                skipped = Span::raw(symbol).width();
            }
            skipped = skipped.saturating_sub(1);
        }
        text.trim_end().to_string()
    };
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn press(app: &mut App, keys: &str) {
    for key in keys.chars() {
        app.handle(Input::Key(if key == '\r' { Key::Enter } else { Key::Char(key) }), SECOND);
    }
}

#[track_caller]
fn check(app: &mut App, width: u16, height: u16, expected: &str) {
    let seen = screen(app, width, height);
    assert!(seen.trim_end() == expected.trim_matches('\n'), "\n{seen}\n--- and not\n{expected}");
}

#[test]
fn the_list_and_the_log() {
    check(
        &mut app(90, 14),
        90,
        14,
        "
 shop  1 of 3 up
 SERVICE  STATE      RESTARTS   UPTIME     CPU     MEMORY  WHY
 db       healthy           2     95 s   10.0%    23.4 MB
 api      waiting           2        -       -          -  needs db (healthy); db is start
 日本     failed            2        -       -          -  exit code 7
── db ── follows ─────────────────────────────────────────────────────────────────────────
one
two red
\\u{1b}[2Jcleared?       tab
日本語



s start  x stop  r restart  / search  c copy  d details  e events  ? keys  q leave",
    );
}

#[test]
fn a_small_terminal_has_what_fits() {
    check(
        &mut app(20, 5),
        20,
        5,
        "
 db       healthy
── db ── follows ───
\\u{1b}[2Jcleared?
日本語
s start  x stop  r r",
    );
    check(&mut app(5, 1), 5, 1, " db");
    let mut wrapped = app(20, 6);
    press(&mut wrapped, "w");
    check(
        &mut wrapped,
        12,
        7,
        "
 db       he
 api      wa
── db ── fol
ared?
tab
日本語
long lines a",
    );
}

#[test]
fn copying_shows_the_log_alone() {
    let mut app = app(40, 6);
    press(&mut app, "c");
    check(
        &mut app,
        40,
        6,
        "
one
two red
\\u{1b}[2Jcleared?       tab
日本語

at rest, to be selected with the mouse:",
    );
}

#[test]
fn details_say_why() {
    let mut app = app(60, 20);
    press(&mut app, "jd");
    check(
        &mut app,
        60,
        16,
        "
 shop  1 of 3 up
 SERVICE  STATE       UPTIME     CPU     MEMORY  WHY
 db       healthy       95 s   10.0%    23.4 MB
 api      waiting          -       -          -  needs db (h
 日本     failed           -       -          -  exit code 7
── api: details ────────────────────────────────────────────
 state      waiting
 why        needs db (healthy); db is starting
 says       -
 pid        -
 lived      95 s
 restarts   2
 last exit  exit code 7
 cpu        -
 memory     -
s start  x stop  r restart  / search  c copy  d details  e e",
    );
}

#[test]
fn details_show_what_probes_say_and_what_was_measured() {
    let well = ProbeRow { ok: Some(true), said: None, ago_ms: Some(2_000), failures: 0, next_ms: Some(8_000) };
    let said = Some("127.0.0.1:80: connection refused".into());
    let failed = ProbeRow { ok: Some(false), said, ago_ms: Some(150_000), failures: 2, next_ms: None };
    let metrics = MetricsRow {
        cpu_percent: 150.25,
        rss_bytes: 23_400_000,
        processes: 3,
        threads: 12,
        fds: 40,
        uptime_ms: 95_000,
        ago_ms: 4_000,
    };
    let mut app = App::new("shop", true, (90, 18));
    let row = row("db", "healthy", Some(10), None);
    let row = Row { readiness: Some(well), liveness: Some(failed), metrics: Some(metrics), ..row };
    app.handle(Input::Services(vec![row]), SECOND);
    // A sample is no news: whoever wants to read what happened would find nothing else.
    for event in ["metrics", "usage_high"] {
        let (time, service) = ("2026-12-01T09:30:00.123Z".into(), "db".into());
        let text = format!("a {event}");
        app.handle(
            Input::Event(EventRow { time, service, event: event.into(), text, pid: None, metrics: None }),
            SECOND,
        );
    }
    press(&mut app, "d");
    check(
        &mut app,
        90,
        20,
        "
 shop  1 of 1 up
 SERVICE  STATE      RESTARTS   UPTIME     CPU     MEMORY  WHY
 db       healthy           2     95 s   10.0%    23.4 MB
── db: details ───────────────────────────────────────────────────────────────────────────
 state      healthy
 why        -
 says       -
 pid        10
 uptime     95 s
 restarts   2
 last exit  -
 cpu        9.5 s in all
 memory     23.4 MB
 health     well, 2.0 s ago; asked in 8.0 s
 liveness   failed 2 times in a row, 2 min ago: 127.0.0.1:80: connection refused
 metrics    150.2 % CPU, 23.4 MB, 3 processes, 12 threads, 40 fds (4.0 s ago)

 what happened, the last first
 09:30:00  a usage_high
s start  x stop  r restart  / search  c copy  d details  e events  ? keys  q leave",
    );
}

#[test]
fn colours_are_there_unless_nobody_wants_them() {
    let style = |has_colours| {
        let mut app = App::new("shop", has_colours, (60, 14));
        app.handle(Input::Services(vec![row("db", "healthy", Some(10), None)]), SECOND);
        let text = "\x1b[31mred\x1b[0m".into();
        app.handle(Input::Output(OutputRow { service: "db".into(), is_stderr: false, text, missed: 3 }), SECOND);
        press(&mut app, "/ed\r");
        let mut buffer = Buffer::empty(Rect::new(0, 0, 60, 14));
        draw(&app, &mut buffer);
        let at = |x, y| (buffer[(x, y)].symbol().to_string(), buffer[(x, y)].fg, buffer[(x, y)].modifier);
        [at(10, 2), at(0, 4), at(0, 5), at(1, 5)]
    };
    let bold = Modifier::BOLD | Modifier::REVERSED;
    assert_eq!(
        style(true),
        [
            ("h".into(), Color::Green, Modifier::REVERSED),
            ("(".into(), Color::Yellow, Modifier::DIM),
            ("r".into(), Color::Indexed(1), Modifier::empty()),
            ("e".into(), Color::Black, bold),
        ]
    );
    assert!(style(false).iter().all(|(_, colour, _)| *colour == Color::Reset));
}

#[test]
fn a_place_is_kept_while_lines_come() {
    let mut app = app(60, 14);
    let print = |app: &mut App, from: u32, to: u32| {
        let text = (from..to).map(|number| format!("line {number}\n")).collect();
        app.handle(Input::Output(OutputRow { service: "db".into(), is_stderr: false, text, missed: 0 }), SECOND);
    };
    print(&mut app, 0, 100);
    app.handle(Input::Key(Key::PageUp), SECOND);
    let before = screen(&mut app, 60, 14);
    assert!(before.contains("line 92\n") && before.contains("6 lines below"), "{before}");
    print(&mut app, 100, 200);
    let after = screen(&mut app, 60, 14);
    assert!(after.contains("line 92\n") && after.contains("106 lines below"), "{after}");
    press(&mut app, "f");
    assert!(screen(&mut app, 60, 14).contains("line 199\n"));
    // What was looked at is forgotten: the oldest there is stands in its place.
    app.handle(Input::Key(Key::Home), SECOND);
    print(&mut app, 200, 11_000);
    assert!(screen(&mut app, 60, 14).contains("line 1000\n"), "{}", screen(&mut app, 60, 14));
}

#[test]
fn shares_of_the_processor_are_those_of_the_last_second() {
    let mut app = App::new("shop", true, (60, 14));
    let mut at = |cpu_ms, millis| {
        let row = Row { cpu_ms: Some(cpu_ms), ..row("db", "running", Some(1), None) };
        app.handle(Input::Services(vec![row]), Duration::from_millis(millis));
        let Shown { cpu, .. } = &app.services()[0];
        cpu.unwrap().round()
    };
    assert_eq!([at(9_500, 0), at(9_900, 100), at(10_000, 1000), at(12_000, 2000)], [10.0, 10.0, 50.0, 200.0]);
}
