//! A program that is told to end, and ends with its services. Row P13.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::service::Event;
use rustix::process::Signal;

use super::{DEAF, Events, RESTS, orchestrator, shell};
use crate::processes::PROCESS;
use crate::support::{LIMIT, LONG, MARK, again, kill, mark, marked, processes, run, state, within};

#[path = "../../examples/services.rs"]
#[expect(dead_code, reason = "its main is another one's here")]
mod example;

pub fn tests() -> Vec<Trial> {
    let tests: [(&str, fn()); 5] = [
        ("the_first_signal_stops_in_order", the_first_signal_stops_in_order),
        ("the_second_signal_kills", the_second_signal_kills),
        ("the_third_signal_does_not_wait", the_third_signal_does_not_wait),
        ("what_is_ignored_goes_on_being_ignored", what_is_ignored_goes_on_being_ignored),
        ("without_it_a_signal_ends_the_program", without_it_a_signal_ends_the_program),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(format!("services::shutdown::{name}"), move || {
            test();
            Ok(())
        })
    };
    tests.map(trial).into()
}

/// What this binary is where it is a program that keeps services.
pub fn helper() {
    let code = match std::env::var(PROCESS).as_deref() {
        Ok("services-example") => run(async { example::app().await.expect("services").exit_code() }),
        Ok("services-deaf") => run(keep_a_deaf_one()),
        Ok("services-without") => run(async {
            let orchestrator = orchestrator();
            orchestrator.start_many([shell("a", RESTS).build().expect("a service")]).await.expect("it starts");
            println!("all are up");
            std::future::pending().await
        }),
        _ => return,
    };
    std::process::exit(code.into())
}

/// A service that does not hear SIGTERM and has all the time. Says what becomes of it.
async fn keep_a_deaf_one() -> u8 {
    let orchestrator = orchestrator();
    let told_to_end = tokio::spawn(orchestrator.shutdown_on_signals().expect("handlers"));
    let mut events = Events::of(&orchestrator);
    let deaf = shell("deaf", DEAF).ready_line("deaf").stop_limit(LONG).build().expect("a service");
    within(orchestrator.start_many([deaf])).await.expect("it starts");
    println!("all are up");
    events.next("deaf", |event| matches!(event, Event::Stopping { .. }).then_some(())).await;
    println!("stopping");
    let shutdown = told_to_end.await.expect("a shutdown");
    shutdown.stopped.iter().for_each(|stopped| println!("{stopped}"));
    println!("given up: {}", shutdown.was_given_up);
    shutdown.exit_code()
}

/// This binary as such a program, and what it prints.
struct Program {
    process: Child,
    output: BufReader<ChildStdout>,
    mark: String,
}

impl Program {
    /// Started once its services are. It ignores SIGINT where that is said, and otherwise does not, whatever runs this test.
    fn start(process: &str, ignores_interrupt: bool) -> Self {
        let mark = mark();
        let mut command = again();
        command.env(PROCESS, process).env(MARK, &mark).stdout(Stdio::piped());
        let disposition = if ignores_interrupt { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: signal(2) may be called between fork and exec, and touches no memory.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGINT, disposition);
                libc::signal(libc::SIGTERM, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut process = command.spawn().expect("this program");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut program = Program { process, output, mark };
        let line = program.line();
        assert!(line.starts_with("all are up"), "{line:?}");
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim_end().to_string()
    }

    fn signal(&self, signal: Signal) {
        kill(self.process.id(), signal);
    }

    /// Waits until it has ended and all that it had started with it; gives what it printed meanwhile.
    #[track_caller]
    fn end(mut self) -> (Vec<String>, ExitStatus) {
        let lines = self.output.lines().map(|line| line.expect("a line")).collect();
        let status = self.process.wait().expect("its end");
        let began = Instant::now();
        while !marked(&self.mark).is_empty() {
            assert!(began.elapsed() < LIMIT, "left: {:?}", marked(&self.mark));
            std::thread::sleep(Duration::from_millis(2));
        }
        (lines, status)
    }
}

fn the_first_signal_stops_in_order() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let program = Program::start("services-example", false);
        program.signal(signal);
        let (lines, status) = program.end();
        assert_eq!(lines, ["api: killed by SIGTERM", "db: killed by SIGTERM"]);
        assert_eq!(status.code(), Some(code));
    }
}

fn the_second_signal_kills() {
    for (first, second, code) in [(Signal::INT, Signal::INT, 130), (Signal::TERM, Signal::INT, 143)] {
        let mut program = Program::start("services-deaf", false);
        program.signal(first);
        assert_eq!(program.line(), "stopping");
        program.signal(second);
        let (lines, status) = program.end();
        assert!(lines[0].starts_with("deaf: killed: it did not stop in time"), "{lines:?}");
        assert_eq!(lines[1..], ["given up: false"]);
        assert_eq!(status.code(), Some(code), "that of the first");
    }
}

/// Nothing can be killed, for the keeper stands still.
fn the_third_signal_does_not_wait() {
    let mut program = Program::start("services-deaf", false);
    let id = program.process.id();
    let is_keeper = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim_end() == "pm-keeper" && state(*pid).is_some_and(|(_, parent)| parent == id)
    };
    let keeper = processes().into_iter().find(is_keeper).expect("a keeper");
    kill(keeper, Signal::STOP);
    program.signal(Signal::INT);
    assert_eq!(program.line(), "stopping");
    // Two that come at once may count as one.
    let began = Instant::now();
    while state(id).is_some_and(|(state, _)| state != 'Z') {
        assert!(began.elapsed() < LIMIT, "it waits");
        program.signal(Signal::INT);
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(keeper, Signal::CONT);
    let (lines, status) = program.end();
    assert_eq!(lines, ["given up: true"]);
    assert_eq!(status.code(), Some(130));
}

fn what_is_ignored_goes_on_being_ignored() {
    let program = Program::start("services-example", true);
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.process.id())).expect("its status");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("what it ignores");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask");
    assert_ne!(ignored & 1 << (libc::SIGINT - 1), 0, "{status}");
    program.signal(Signal::INT);
    program.signal(Signal::TERM);
    let (lines, status) = program.end();
    assert_eq!((lines.len(), status.code()), (2, Some(143)));
}

fn without_it_a_signal_ends_the_program() {
    let program = Program::start("services-without", false);
    program.signal(Signal::INT);
    let (_, status) = program.end();
    assert_eq!(status.signal(), Some(libc::SIGINT));
}
