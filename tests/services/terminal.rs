//! Services with a terminal or a pipe as their input, and those who are attached to them.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{
    AttachError, Attached, AttachedOutput, BadService, Condition, InputError, LogFile, MOST_ATTACHED, Orchestrator,
    Restart, Service, State, Stdin, When, WindowSize,
};
use pm::{ExitStatus, OutputStream, Signal};

use super::{Events, RESTS, at_once, info, numbers, orchestrator, pid, printed, sh, shell, state, wait};
use crate::support::{LONG, MARK, Scratch, alone, contains, descriptors, eventually, mark, marked, one, run, within};

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        one("services::terminal::it_is_a_terminal_of_its_own", it_is_a_terminal_of_its_own),
        one("services::terminal::its_user_can_open_it", its_user_can_open_it),
        one("services::terminal::it_is_told_its_size", it_is_told_its_size),
        one("services::terminal::what_is_typed_is_read_and_echoed", what_is_typed_is_read_and_echoed),
        one("services::terminal::the_end_of_the_input_is_typed", the_end_of_the_input_is_typed),
        one("services::terminal::all_of_it_comes_in_order", all_of_it_comes_in_order),
        one("services::terminal::who_lets_go_of_it_is_heard_again", who_lets_go_of_it_is_heard_again),
        one("services::terminal::all_groups_of_its_session_are_ended", all_groups_of_its_session_are_ended),
        one("services::terminal::lines_go_through_a_pipe", lines_go_through_a_pipe),
        one("services::terminal::what_several_send_does_not_mix", what_several_send_does_not_mix),
        one("services::terminal::who_does_not_read_holds_up_nobody_else", who_does_not_read_holds_up_nobody_else),
        one("services::terminal::who_is_attached_stays_attached", who_is_attached_stays_attached),
        one("services::terminal::who_reads_no_more_is_told_of", who_reads_no_more_is_told_of),
        one("services::terminal::who_is_slow_misses_bytes_and_is_told", who_is_slow_misses_bytes_and_is_told),
        one("services::terminal::who_cannot_be_attached_is_told_why", who_cannot_be_attached_is_told_why),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(alone("services::terminal::nothing_is_left_open", || {
        run(nothing_is_left_open());
        Ok(())
    }));
    trials
}

/// What one who is attached has seen.
struct Seen {
    output: AttachedOutput,
    text: String,
}

impl Seen {
    /// Reads until this has come, and forgets all up to it.
    #[track_caller]
    fn until(&mut self, part: &str) -> impl Future<Output = String> {
        within(async move {
            loop {
                if let Some(begin) = self.text.find(part) {
                    let rest = self.text.split_off(begin + part.len());
                    return std::mem::replace(&mut self.text, rest);
                }
                let piece = self.output.next().await.expect("more output");
                assert_eq!(piece.missed, 0);
                self.text += &String::from_utf8_lossy(&piece.bytes);
            }
        })
    }
}

async fn attach(orchestrator: &Orchestrator, label: &str) -> (pm::service::AttachedInput, Seen) {
    let Attached { input, output, .. } = within(orchestrator.attach(label)).await.expect("it is there");
    (input.expect("it takes input"), Seen { output, text: String::new() })
}

/// Its process leads a session, whose terminal is all three of its streams.
const LOOKS: &str = "for n in 0 1 2; do test -t $n || exit $((10 + n)); done; : >/dev/tty || exit 20; \
    read -r pid name state parent group session tty foreground rest </proc/$$/stat; \
    test \"$session/$group/$foreground\" = $$/$$/$$ || exit 21; echo \"$(stty size) $TERM\"";

async fn it_is_a_terminal_of_its_own() {
    let orchestrator = orchestrator();
    let spec = |name: &str| pm::Spec::program("sh").arg("-c").arg(LOOKS).env("TERM", name);
    let guarded = Service::new("guarded", spec("vt100").build().unwrap()).terminal();
    let unguarded = Service::new("unguarded", spec("vt220").unguarded().build().unwrap()).terminal();
    // Two at the same time have two.
    let two = shell("two", LOOKS).terminal().replicas(2);
    orchestrator.add([guarded, unguarded, two].map(|one| one.build().unwrap())).await.unwrap();
    within(orchestrator.start_all()).await.unwrap();
    for name in ["guarded", "unguarded", "two"] {
        let ended = within(orchestrator.wait(name, Condition::CompletedSuccessfully)).await;
        assert!(ended.is_ok(), "{name}: {ended:?}");
    }
    assert_eq!(orchestrator.last_lines("guarded", 9).await.unwrap(), ["24 80 vt100"]);
    assert_eq!(orchestrator.last_lines("unguarded", 9).await.unwrap(), ["24 80 vt220"]);
    // Where nothing says which it is, it is that of this program, or a usual one.
    let own = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or("xterm-256color".into());
    assert_eq!(orchestrator.last_lines("two", 9).await.unwrap(), vec![format!("24 80 {own}"); 2]);
}

/// By its name, as programs do that are given no descriptor of it.
async fn its_user_can_open_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let orchestrator = orchestrator();
    let spec = pm::Spec::program("sh").arg("-c").arg("echo \"$(id -u) opened\" >\"$(tty)\"").uid(65534).gid(65534);
    let service = Service::new("a", spec.build().unwrap()).terminal().build().unwrap();
    let _ = within(orchestrator.start_many([service])).await;
    wait(&orchestrator, "a", Condition::CompletedSuccessfully).await;
    assert_eq!(orchestrator.last_lines("a", 9).await.unwrap(), ["65534 opened"]);
}

async fn it_is_told_its_size() {
    let orchestrator = orchestrator();
    let script = "trap 'echo now $(stty size)' WINCH; echo at first $(stty size); while :; do sleep 0.01; done";
    orchestrator.add([shell("a", script).terminal().build().unwrap()]).await.unwrap();
    let (input, mut seen) = attach(&orchestrator, "a").await;
    within(orchestrator.start_service("a")).await.unwrap();
    seen.until("at first 24 80\r\n").await;
    input.resize(WindowSize { rows: 50, columns: 132 });
    seen.until("now 50 132\r\n").await;
    // The last one who says it counts, for further lives as well.
    let (other, _) = attach(&orchestrator, "a").await;
    other.resize(WindowSize { rows: 7, columns: 20 });
    seen.until("now 7 20\r\n").await;
    within(orchestrator.restart("a")).await.unwrap();
    seen.until("at first 7 20\r\n").await;
}

async fn what_is_typed_is_read_and_echoed() {
    let orchestrator = orchestrator();
    // A question is no line: it has to come all the same.
    let script = "printf 'name? '; read -r name; printf 'hello %s\\n' \"$name\" >&2; exit 3";
    let scratch = Scratch::new();
    let log = scratch.path("a.log");
    let service = shell("a", script).terminal().log(LogFile::new(&log)).build().unwrap();
    orchestrator.add([service]).await.unwrap();
    let (input, mut seen) = attach(&orchestrator, "a").await;
    within(orchestrator.start_service("a")).await.unwrap();
    assert_eq!(seen.until("name? ").await, "name? ");
    // The terminal takes back a character of two bytes at once, and makes a line break of the key.
    within(input.send("bobö\x7f\r".as_bytes())).await.unwrap();
    assert_eq!(seen.until("hello bob\r\n").await, "bobö\x08 \x08\r\nhello bob\r\n");
    let _ = within(orchestrator.wait("a", Condition::CompletedSuccessfully)).await.unwrap_err();
    assert_eq!(info(&orchestrator, "a").await.exit, Some(ExitStatus::Code(3)));
    // What is read by lines has no `\r` at their ends.
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| !line.ends_with('\r') && line.contains(" stdout F ")), "{text:?}");
    assert!(text.ends_with(" stdout F hello bob\n"), "{text:?}");
}

async fn the_end_of_the_input_is_typed() {
    let orchestrator = orchestrator();
    let _ = orchestrator.add([shell("a", "cat; echo over").terminal().build().unwrap()]).await;
    let (input, mut seen) = attach(&orchestrator, "a").await;
    for text in ["", "whole\n", "a part"] {
        within(orchestrator.start_service("a")).await.unwrap();
        within(input.send(text.as_bytes())).await.unwrap();
        within(input.close()).await.unwrap();
        let said = seen.until("over\r\n").await;
        // Once as its echo, and once from cat.
        assert_eq!(said.matches(text.trim_end()).count(), if text.is_empty() { said.len() + 1 } else { 2 }, "{said:?}");
        wait(&orchestrator, "a", Condition::CompletedSuccessfully).await;
    }
}

/// Of both streams, and to the last byte of a process that prints more at its end than a terminal holds.
async fn all_of_it_comes_in_order() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let log = scratch.path("a.log");
    let script =
        "for n in 1 3 5 7; do echo $n; echo $((n + 1)) >&2; done; seq 9 20000; printf 'last words'; kill -9 $$";
    let service = shell("a", script).terminal().log(LogFile::new(&log)).build().unwrap();
    orchestrator.add([service]).await.unwrap();
    for _ in 0..5 {
        let Attached { mut output, is_terminal, .. } = within(orchestrator.attach("a")).await.unwrap();
        assert!(is_terminal);
        let _ = within(orchestrator.start_service("a")).await;
        wait(&orchestrator, "a", Condition::Completed).await;
        let mut raw = Vec::new();
        while let Some(piece) = output.take() {
            assert_eq!((piece.missed, piece.stream), (0, OutputStream::Stdout));
            raw.extend_from_slice(&piece.bytes);
        }
        let mut expected: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect();
        expected += "last words";
        assert!(raw == expected.as_bytes(), "{} of {} bytes", raw.len(), expected.len());
    }
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(" F ").expect("a whole line").1).collect();
    let numbers: Vec<String> = (1..=20_000).map(|n| n.to_string()).chain(["last words".into()]).collect();
    assert_eq!(lines.len(), 5 * numbers.len());
    assert!(lines.chunks(numbers.len()).all(|life| life == numbers));
}

async fn who_lets_go_of_it_is_heard_again() {
    let orchestrator = orchestrator();
    let script = "echo here; exec </dev/null >/dev/null 2>&1; echo lost; echo back >/dev/tty; exec sleep 1000";
    orchestrator.add([shell("a", script).terminal().build().unwrap()]).await.unwrap();
    let (_input, mut seen) = attach(&orchestrator, "a").await;
    within(orchestrator.start_service("a")).await.unwrap();
    assert_eq!(seen.until("back\r\n").await, "here\r\nback\r\n");
    assert!(!state(&orchestrator, "a").await.is_over());
    assert!(within(orchestrator.stop("a")).await.unwrap()[0].is_clean());
}

/// As a shell with job control makes them: the signal of a stop does not reach them, and the end of the terminal does not matter to them.
async fn all_groups_of_its_session_are_ended() {
    let orchestrator = orchestrator();
    let script = "set -m; trap '' HUP; sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & \
        sh -c 'echo $$; exec sleep 1000' & sleep 0; exec sleep 1000";
    let mark = mark();
    let spec = pm::Spec::program("sh").arg("-c").arg(script).env(MARK, &mark).build().unwrap();
    let service = Service::new("a", spec).terminal().stop_limit(Duration::from_millis(300)).build().unwrap();
    within(orchestrator.start_many([service])).await.unwrap();
    let pids = numbers(&printed(&orchestrator, "a", 2).await);
    assert_eq!(pids.len(), 2, "{pids:?}");
    let leader = pid(&orchestrator, "a").await;
    let group = |pid: u32| rustix::process::getpgid(rustix::process::Pid::from_raw(pid as i32)).unwrap();
    eventually("each has a group of its own", || pids.iter().all(|pid| group(*pid) != group(leader))).await;
    let stopped = within(orchestrator.stop("a")).await.unwrap();
    assert!(marked(&mark).is_empty(), "nothing is left: {stopped:?}");
    assert_eq!(stopped[0].exit, Some(ExitStatus::Signal { signal: 15, core: false }));
    let [swept] = stopped[0].swept[..] else { panic!("the one that does not hear it: {stopped:?}") };
    assert!(pids.contains(&swept), "{pids:?}: {stopped:?}");
}

async fn lines_go_through_a_pipe() {
    let orchestrator = orchestrator();
    let script = "test -p /dev/stdin || exit 9; while read -r line; do echo \"got $line\"; done; echo the end";
    orchestrator.add([shell("a", script).stdin(Stdin::Pipe).replicas(2).build().unwrap()]).await.unwrap();
    within(orchestrator.start_service("a")).await.unwrap();
    let (input, mut seen) = attach(&orchestrator, "a").await;
    let (other, mut other_seen) = attach(&orchestrator, "a").await;
    for n in 0..100 {
        within(if n % 2 == 0 { &input } else { &other }.send(format!("line {n}\n").as_bytes())).await.unwrap();
        assert_eq!(seen.until("\n").await, format!("got line {n}\n"));
    }
    // Both see all of it; and it goes on when they are gone.
    other_seen.until("got line 99\n").await;
    drop((input, seen, other, other_seen));
    let (input, mut seen) = attach(&orchestrator, "a#2").await;
    within(input.send(b"for the second\n")).await.unwrap();
    seen.until("got for the second\n").await;
    within(input.close()).await.unwrap();
    seen.until("the end\n").await;
    let (input, mut seen) = attach(&orchestrator, "a").await;
    within(input.send(b"without an end")).await.unwrap();
    within(input.close()).await.unwrap();
    seen.until("the end\n").await;
    within(orchestrator.wait("a", Condition::Completed)).await.unwrap();
}

async fn what_several_send_does_not_mix() {
    let orchestrator = orchestrator();
    let script = "tr -s a-z | fold -w 1 | wc -l";
    orchestrator.add([shell("a", script).stdin(Stdin::Pipe).build().unwrap()]).await.unwrap();
    within(orchestrator.start_service("a")).await.unwrap();
    let (input, mut seen) = attach(&orchestrator, "a").await;
    let mut sends = tokio::task::JoinSet::new();
    for letter in b'a'..=b'j' {
        let input = input.clone();
        // More than a pipe holds, so that each has to wait in the midst of it.
        sends.spawn(async move { within(input.send(&vec![letter; 200_000])).await });
    }
    while let Some(sent) = sends.join_next().await {
        sent.unwrap().unwrap();
    }
    within(input.close()).await.unwrap();
    // Letters one after the other are one for it, so ten are left where none is twice.
    assert_eq!(seen.until("\n").await.trim(), "9");
}

async fn who_does_not_read_holds_up_nobody_else() {
    let orchestrator = orchestrator();
    let deaf = shell("deaf", RESTS).stdin(Stdin::Pipe).stop_limit(LONG).build().unwrap();
    // In its usual mode a terminal drops what is too long for a line.
    let on_terminal = shell("terminal", "stty raw -echo; echo raw; exec sleep 1000").terminal().ready_line("raw");
    within(orchestrator.start_many([deaf, on_terminal.stop_limit(LONG).build().unwrap()])).await.unwrap();
    for name in ["deaf", "terminal"] {
        let (input, _) = attach(&orchestrator, name).await;
        let much = vec![b'x'; 1 << 20];
        let (mut sends, mut waits) = (Box::pin(input.send(&much)), Box::pin(input.close()));
        // The first fills it, the second waits for its turn, and others are served all the while.
        for _ in 0..20 {
            assert!(tokio::time::timeout(Duration::from_millis(2), &mut sends).await.is_err());
            assert!(tokio::time::timeout(Duration::from_millis(2), &mut waits).await.is_err());
            assert_eq!(orchestrator.list().await.len(), 2);
        }
        assert_eq!(within(orchestrator.signal(name, Signal::CONT)).await, Ok(1));
        let stopped = within(orchestrator.stop(name)).await.unwrap();
        assert!(stopped[0].is_clean(), "{stopped:?}");
        let ended = within(sends).await;
        // A pipe is said to have no reader the moment before its service has ended.
        assert!(matches!(ended, Err(InputError::Ended | InputError::Closed)), "{ended:?}");
        // Its turn may have come at that moment.
        let _ = within(waits).await;
    }
}

async fn who_is_attached_stays_attached() {
    let orchestrator = orchestrator();
    let script =
        "echo begins; while read -r line; do test \"$line\" = die && kill -9 $$; echo \"got $line\"; done; echo over";
    let restart = Restart { max: None, ..at_once(When::Always) };
    for (name, on_terminal) in [("pipe", false), ("terminal", true)] {
        let service = shell(name, script).restart(restart.clone());
        let service = if on_terminal { service.terminal() } else { service.stdin(Stdin::Pipe) };
        orchestrator.add([service.build().unwrap()]).await.unwrap();
        let (input, mut seen) = attach(&orchestrator, name).await;
        // It is not up: what is sent waits for it.
        let early = tokio::spawn({
            let input = input.clone();
            async move { input.send(b"early\n").await }
        });
        within(orchestrator.start_service(name)).await.unwrap();
        within(early).await.unwrap().unwrap();
        seen.until("got early").await;
        for life in 0..3 {
            within(input.send(b"die\n")).await.unwrap();
            seen.until("begins").await;
            within(input.send(format!("{life}\n").as_bytes())).await.unwrap();
            seen.until(&format!("got {life}")).await;
        }
        // The end of the input of one life is none of the next.
        within(input.close()).await.unwrap();
        seen.until("over").await;
        seen.until("begins").await;
        within(input.send(b"again\n")).await.unwrap();
        seen.until("got again").await;
        within(orchestrator.restart(name)).await.unwrap();
        seen.until("begins").await;
        // When it is gone for good, both ends say so.
        within(orchestrator.remove(name)).await.unwrap();
        assert_eq!(within(input.send(b"x")).await, Err(InputError::Gone));
        within(async { while seen.output.next().await.is_some() {} }).await;
    }
}

async fn who_reads_no_more_is_told_of() {
    let orchestrator = orchestrator();
    let service = shell("a", "exec <&-; echo closed; exec sleep 1000").stdin(Stdin::Pipe).build().unwrap();
    orchestrator.add([service]).await.unwrap();
    let (input, mut seen) = attach(&orchestrator, "a").await;
    within(orchestrator.start_service("a")).await.unwrap();
    seen.until("closed\n").await;
    assert_eq!(within(input.send(b"x")).await, Err(InputError::Closed));
    // Or to which somebody has sent the end.
    within(orchestrator.start_many([shell("b", RESTS).stdin(Stdin::Pipe).build().unwrap()])).await.unwrap();
    let (input, _) = attach(&orchestrator, "b").await;
    assert_eq!(within(input.close()).await, Ok(()));
    assert_eq!(within(input.close()).await, Err(InputError::Closed));
    assert_eq!(within(input.send(b"x")).await, Err(InputError::Closed));
}

async fn who_is_slow_misses_bytes_and_is_told() {
    let orchestrator = orchestrator();
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo end";
    orchestrator.add([shell("a", script).build().unwrap()]).await.unwrap();
    let Attached { mut output, input, is_terminal, .. } = within(orchestrator.attach("a")).await.unwrap();
    assert!(input.is_none() && !is_terminal);
    let _ = within(orchestrator.start_service("a")).await;
    wait(&orchestrator, "a", Condition::CompletedSuccessfully).await;
    let (mut came, mut missed, mut last) = (0, 0, Vec::new());
    while let Some(piece) = output.take() {
        came += piece.bytes.len() as u64;
        missed += piece.missed;
        last = piece.bytes;
    }
    assert_eq!(came + missed, 3_000_004);
    assert!(missed > 0 && came > 0 && last.ends_with(b"xend\n"), "{came} came, {missed} were missed");
}

async fn who_cannot_be_attached_is_told_why() {
    let orchestrator = orchestrator();
    orchestrator.add([shell("a", RESTS).replicas(2).build().unwrap()]).await.unwrap();
    let error = within(orchestrator.attach("a#3")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no service \"a#3\"; there are a, a#2");
    let all: Vec<Attached> = {
        let mut all = Vec::new();
        for _ in 0..MOST_ATTACHED {
            all.push(within(orchestrator.attach("a")).await.unwrap());
        }
        all
    };
    let error = within(orchestrator.attach("a")).await.unwrap_err();
    assert_eq!(error, AttachError::TooMany { label: "a".into() });
    contains(error.to_string(), "64 are attached to a already");
    within(orchestrator.attach("a#2")).await.unwrap();
    drop(all);
    within(orchestrator.attach("a")).await.unwrap();
    let both = shell("b", RESTS).terminal().stdin(Stdin::Pipe).build().unwrap_err();
    assert_eq!(both, BadService::TerminalAndStdin);
    let spec = sh(RESTS);
    assert!(Service::new("b", spec).terminal().build().is_ok());
}

/// A terminal is four descriptors of this program, and a life takes them along.
async fn nothing_is_left_open() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let services = [
        shell("terminal", RESTS).terminal().build().unwrap(),
        shell("pipe", RESTS).stdin(Stdin::Pipe).build().unwrap(),
    ];
    orchestrator.add(services).await.unwrap();
    let own = std::process::id();
    let mut counts = Vec::new();
    for _ in 0..10 {
        for name in ["terminal", "pipe"] {
            let (input, _seen) = attach(&orchestrator, name).await;
            within(orchestrator.start_service(name)).await.unwrap();
            events.started(name).await;
            within(input.send(b"x")).await.unwrap();
            within(orchestrator.stop(name)).await.unwrap();
            assert_eq!(state(&orchestrator, name).await, State::Stopped);
        }
        counts.push(descriptors(own));
    }
    assert!(counts[1..].iter().all(|count| *count <= counts[0]), "{counts:?}");
}
