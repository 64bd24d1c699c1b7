use ratatui::buffer::Buffer;

use super::*;
use crate::project::tui::view;
use crate::project::wire::{MetricsRow, ProbeRow};

/// Numbers that look like chance and are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }
}

fn row(service: &str, random: &mut Random) -> Row {
    let pid = (random.below(2) == 0).then(|| random.below(3) as u32);
    Row {
        service: service.into(),
        name: service.trim_end_matches("#2").into(),
        state: random.of(&["running", "failed", "waiting", "healthy"]).into(),
        why: (random.below(2) == 0).then(|| "日本 because\nof \x1b[2J this".into()),
        pid,
        restarts: random.below(10),
        lived_ms: random.below(1_000_000),
        exit_code: None,
        signal: None,
        status: None,
        rss_bytes: Some(random.below(1 << 40)),
        cpu_ms: Some(random.below(1000)),
        readiness: (random.below(2) == 0).then(|| probe(random)),
        liveness: (random.below(4) == 0).then(|| probe(random)),
        metrics: (random.below(2) == 0).then(|| sample(random)),
    }
}

fn probe(random: &mut Random) -> ProbeRow {
    ProbeRow {
        ok: random.of(&[None, Some(true), Some(false)]),
        said: random.of(&[None, Some("日本 \x1b[2J\nrefused".into())]),
        ago_ms: random.of(&[None, Some(5)]),
        failures: random.below(3) as u32,
        next_ms: random.of(&[None, Some(u64::MAX)]),
    }
}

fn sample(random: &mut Random) -> MetricsRow {
    let rss_bytes = random.of(&[0, 1 << 30, u64::MAX]);
    MetricsRow { cpu_percent: 99.5, rss_bytes, processes: 1, threads: 2, fds: 3, uptime_ms: 4, ago_ms: u64::MAX }
}

fn input(random: &mut Random) -> Input {
    let services = ["db", "api", "api#2", "日本", "x"];
    match random.below(16) {
        0 => {
            let count = random.below(6) as usize;
            Input::Services(services[..count.min(5)].iter().map(|service| row(service, random)).collect())
        }
        1 => Input::Resized { width: random.below(130) as u16, height: random.below(50) as u16 },
        2..5 => {
            let text = random.of(&["a\n", "日本語 text\n", "\x1b[31mred\x1b[0m\tx\x07\r\n", "", "\n\n\n", "part"]);
            let times = random.of(&[1, 3, 200, 20_000]);
            let service = random.of(&["db", "api", "日本", "gone", ""]).into();
            let missed = if random.below(5) == 0 { 9 } else { 0 };
            Input::Output(OutputRow { service, is_stderr: false, text: text.repeat(times), missed })
        }
        5 => Input::Event(EventRow {
            time: random.of(&["2026-12-01T00:00:00.000Z", "日"]).into(),
            service: random.of(&services).into(),
            event: random.of(&["crashed", "metrics"]).into(),
            text: "failed: exit code 1".into(),
            pid: None,
            metrics: None,
        }),
        6 => Input::Wheel { up: random.below(2) == 0 },
        7 => Input::Answered { what: "down".into(), done: Err("no".into()) },
        8..11 => Input::Key(random.of(&[
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Up,
            Key::Down,
            Key::Left,
            Key::Right,
            Key::Enter,
            Key::Escape,
            Key::Backspace,
        ])),
        _ => {
            let keys: Vec<char> = "sxr+-wcdemnNgfGQ?/a日Kj".chars().collect();
            Input::Key(Key::Char(random.of(&keys)))
        }
    }
}

/// Whatever comes in whatever order: it is drawn without a panic, into its area alone, and what it asks for is about services that there are.
#[test]
fn anything_may_come() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut app = App::new("shop", seed % 2 == 0, (80, 24));
        let mut now = Duration::ZERO;
        for step in 0..200 {
            now += Duration::from_millis(random.below(1500));
            let input = input(&mut random);
            for effect in app.handle(input.clone(), now) {
                if let Effect::Ask { question: Question::Stop { names, .. } | Question::Restart { names }, .. } = effect
                {
                    assert!(
                        app.services().iter().any(|shown| names == [shown.row.name.clone()]),
                        "seed {seed}, {step}"
                    );
                }
            }
            let areas = app.areas();
            let all = [areas.title, areas.header, areas.list, areas.bar, areas.pane, areas.hint];
            let rows: u16 = all.iter().map(|area| area.height).sum();
            assert!(rows <= app.size.1, "seed {seed}, {step}: {areas:?} of {:?}", app.size);
            let mut buffer = Buffer::empty(Rect::new(0, 0, app.size.0, app.size.1));
            view::draw(&app, &mut buffer);
            assert_eq!(app.services().is_empty(), app.selected().is_none(), "seed {seed}, {step}: {input:?}");
            for cell in buffer.content() {
                assert!(!cell.symbol().contains(char::is_control), "seed {seed}, {step}: {cell:?}");
            }
        }
    }
}

/// Whatever is scrolled by, the same way back leads to the same place.
#[test]
fn scrolling_is_exact() {
    for wraps in [false, true] {
        let mut random = Random(7);
        let mut app = App::new("shop", true, (30, 20));
        app.handle(Input::Services(vec![row("db", &mut random)]), Duration::ZERO);
        let text = (0..300).map(|n| format!("{n}{}\n", "x".repeat(random.below(100) as usize))).collect();
        app.handle(
            Input::Output(OutputRow { service: "db".into(), is_stderr: false, text, missed: 0 }),
            Duration::ZERO,
        );
        app.wraps = wraps;
        app.scroll(150, true);
        for _ in 0..50 {
            let before = app.top();
            let rows = 1 + random.below(40) as usize;
            app.scroll(rows, true);
            app.scroll(rows, false);
            assert_eq!(app.top(), before);
        }
        assert!(!app.follows());
        app.scroll(100_000, false);
        assert!(app.follows());
    }
}

#[test]
fn keys_ask_what_they_mean() {
    let mut random = Random(1);
    let mut app = App::new("shop", true, (80, 24));
    let rows = ["db", "api", "api#2"].map(|service| row(service, &mut random));
    app.handle(Input::Services(rows.to_vec()), Duration::ZERO);
    let mut asked = |keys: &str| {
        let effects: Vec<Effect> =
            keys.chars().flat_map(|key| app.handle(Input::Key(Key::Char(key)), Duration::ZERO)).collect();
        effects.iter().map(|effect| format!("{effect:?}")).collect::<Vec<_>>().join("\n")
    };
    assert!(asked("s").contains("Start { names: [\"db\"], no_deps: false }"));
    assert_eq!(asked("-"), "");
    assert!(asked("jx").contains("Stop { names: [\"api\"], limit_ms: None }"));
    assert!(asked("-").contains("Scale { name: \"api\", replicas: 1 }"));
    assert!(asked("+").contains("Scale { name: \"api\", replicas: 3 }"));
    assert_eq!(asked("q"), "Leave(StaysUp)");
    assert_eq!(asked("Qn"), "");
    assert!(asked("Qy").contains("Down"));
    assert_eq!(asked("q"), "Leave(Stopping)");
    assert!(matches!(app.handle(Input::Ended, Duration::ZERO)[..], [Effect::Leave(Leave::Stopped)]));
}

#[test]
fn matches_are_gone_through() {
    let mut random = Random(1);
    let mut app = App::new("shop", true, (40, 12));
    app.handle(Input::Services(vec![row("db", &mut random)]), Duration::ZERO);
    let text =
        (0..100).map(|n| if n % 10 == 0 { format!("\x1b[31mEr\x1b[0mror {n}\n") } else { "x\n".into() }).collect();
    app.handle(Input::Output(OutputRow { service: "db".into(), is_stderr: false, text, missed: 0 }), Duration::ZERO);
    let mut press = |keys: &str| {
        for key in keys.chars() {
            app.handle(Input::Key(if key == '\r' { Key::Enter } else { Key::Char(key) }), Duration::ZERO);
        }
        app.found()
    };
    assert_eq!(press("/error\r"), Some(90));
    assert_eq!(press("N"), Some(80));
    assert_eq!(press("NN"), Some(60));
    assert_eq!(press("n"), Some(70));
    assert_eq!(press("nnnnn"), Some(90));
    assert_eq!(press("/ror 3\r"), Some(30));
    assert_eq!(press("/ERROR\r"), None);
}
