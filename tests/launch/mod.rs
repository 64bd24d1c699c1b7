//! Starting and ending processes, with real ones: the faults 1, 3 to 10, 24, 28 and 29.
//!
//! Whether processes are gone is never asked of the process table: each process that a test starts inherits one end of a
//! socket, and the test waits for the end of file at the other. The binary that runs these tests must call [`helper`] before
//! anything else, then `pm::roles`.

mod ends;
mod inherits;
mod starts;

use std::fmt::Debug;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use pm_core::driver::launch::{Child, Command, Exit, Guard, launch};

type Outcome = Result<(), String>;

/// How long anything here may take. It passes only where something hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// All tests, by name.
pub fn tests() -> Vec<(&'static str, fn() -> Outcome)> {
    vec![
        ("launch::exit_kinds", starts::exit_kinds),
        ("launch::typed_errors", starts::typed_errors),
        ("launch::errors_leak_no_descriptor", starts::errors_leak_no_descriptor),
        ("launch::errors_of_an_unprivileged_manager", starts::errors_of_an_unprivileged_manager),
        ("launch::too_many_files", starts::too_many_files),
        ("launch::no_keeper", starts::no_keeper),
        ("launch::sigterm_ignored_then_killed", ends::sigterm_ignored_then_killed),
        ("launch::stop_is_reported_and_killed", ends::stop_is_reported_and_killed),
        ("launch::grandchild_holding_the_pipe", ends::grandchild_holding_the_pipe),
        ("launch::strays_of_one_unit_only", ends::strays_of_one_unit_only),
        ("launch::strays_without_their_main_thread", ends::strays_without_their_main_thread),
        ("launch::kill_tree_finds_descendants_without_cookie", ends::kill_tree_finds_descendants_without_cookie),
        (
            "launch::forking_tree_is_killed_while_others_are_served",
            ends::forking_tree_is_killed_while_others_are_served,
        ),
        ("launch::no_signal_to_a_reused_pid", ends::no_signal_to_a_reused_pid),
        ("launch::wait_cancelled_and_repeated", ends::wait_cancelled_and_repeated),
        ("launch::dropped_child_dies", ends::dropped_child_dies),
        ("launch::cancelled_launch_leaves_nothing", ends::cancelled_launch_leaves_nothing),
        ("launch::runtime_shut_down_with_live_children", ends::runtime_shut_down_with_live_children),
        ("launch::thread_that_launched_ends", ends::thread_that_launched_ends),
        ("launch::manager_killed", ends::manager_killed),
        ("launch::manager_killed_unguarded", ends::manager_killed_unguarded),
        ("launch::keeper_killed", ends::keeper_killed),
        ("launch::descriptors_are_exact", inherits::descriptors_are_exact),
        ("launch::descriptors_overlap", inherits::descriptors_overlap),
        ("launch::limits_and_signals", inherits::limits_and_signals),
        ("launch::user_and_group", inherits::user_and_group),
        ("launch::arguments_unchanged", inherits::arguments_unchanged),
        ("launch::large_environment", inherits::large_environment),
        ("launch::many_at_a_time", inherits::many_at_a_time),
    ]
}

/// Is what a test started this binary as, and never returns, if it did.
pub fn helper() {
    let Ok(name) = std::env::var("PM_LAUNCH_TEST") else { return };
    match name.as_str() {
        "headless" => ends::headless(),
        "fds" => inherits::print_descriptors(),
        "manager" => ends::manager(Guard::Keeper, NASTY),
        "unguarded-manager" => ends::manager(Guard::Unguarded, &NASTY[..1]),
        "unprivileged" => report(starts::unprivileged()),
        "few-files" => report(starts::few_files()),
        "no-roles" => report(starts::no_roles()),
        _ => process::exit(64),
    }
}

const BOTH: [Guard; 2] = [Guard::Keeper, Guard::Unguarded];

/// Scripts whose processes must be gone a second after their manager was killed. Descriptor 9 tells of their end.
const NASTY: &[&str] = &[
    "echo spins >&9; while :; do :; done",
    "trap '' TERM HUP INT; echo ignores >&9; while :; do sleep 1000; done",
    "echo blocks >&9; yes | sleep 1000",
    "(setsid sh -c 'echo double-forked >&9; exec sleep 1000' &); exec sleep 1000",
    "setsid sh -c 'echo spins-in-session >&9; while :; do :; done' & wait",
    "echo stopped >&9; kill -STOP $$",
    "echo forks >&9; while :; do setsid sh -c 'sleep 0.02' & sleep 0.005; done",
    "i=0; while [ $i -lt 100 ]; do (setsid sleep 1000 &); i=$((i+1)); done; echo many >&9; wait; exec sleep 1000",
];

// --- what the tests have in common

/// Tells when every process that holds the other end has gone.
struct Life {
    socket: UnixStream,
    lines: BufReader<UnixStream>,
}

/// The other end.
struct End(UnixStream);

impl Life {
    fn new() -> Result<(Self, End), String> {
        let (socket, end) = UnixStream::pair().map_err(text)?;
        socket.set_read_timeout(Some(LIMIT)).map_err(text)?;
        let lines = BufReader::new(socket.try_clone().map_err(text)?);
        Ok((Life { socket, lines }, End(end)))
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|error| format!("no line came: {error}"))?;
        ensure(line.ends_with('\n'), "a line was expected, and the end came")?;
        line.pop();
        Ok(line)
    }

    fn ended(mut self) -> Outcome {
        let mut rest = Vec::new();
        // A process that dies with unread lines in its socket resets the connection, which is an end as well.
        match self.lines.read_to_end(&mut rest) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                Err(format!("somebody lives: {error}"))
            }
            _ => Ok(()),
        }
    }
}

impl End {
    /// Gives `command` this end as its descriptor 9.
    fn into(self, mut command: Command) -> Command {
        command.fds.push((9, Arc::new(self.0.into())));
        command
    }
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh", "t");
    command.argv = vec!["sh".into(), "-c".into(), script.into()];
    command.env = vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())];
    command
}

async fn start(guard: Guard, command: Command) -> Result<Child, String> {
    within(launch(guard, command)).await?.map_err(text)
}

async fn ended(child: &mut Child) -> Result<Exit, String> {
    within(child.exited()).await
}

async fn finish(guard: Guard, command: Command) -> Result<Exit, String> {
    ended(&mut start(guard, command).await?).await
}

/// What `command` writes to its descriptor 1.
async fn output(guard: Guard, mut command: Command) -> Result<String, String> {
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    ours.set_read_timeout(Some(LIMIT)).map_err(text)?;
    command.fds.push((1, Arc::new(theirs.into())));
    let mut child = start(guard, command).await?;
    let mut said = String::new();
    BufReader::new(ours).read_to_string(&mut said).map_err(text)?;
    let status = ended(&mut child).await?.status;
    ensure(status.success(), format_args!("{status}, and it said {said:?}"))?;
    Ok(said)
}

fn run<T>(test: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(text)?.block_on(test)
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(LIMIT, future).await.map_err(|_| format!("nothing happened within {LIMIT:?}"))
}

fn reexec(name: &str) -> process::Command {
    let mut command = process::Command::new("/proc/self/exe");
    command.env("PM_LAUNCH_TEST", name);
    command
}

/// Runs a helper that reports.
fn reported(command: &mut process::Command) -> Outcome {
    let output = command.output().map_err(text)?;
    ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))
}

/// Ends a helper with what it found.
fn report(outcome: Outcome) -> ! {
    if let Err(error) = &outcome {
        eprintln!("{error}");
    }
    process::exit(i32::from(outcome.is_err()))
}

fn parent(pid: u32) -> Result<u32, String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(text)?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().nth(1).and_then(|field| field.parse().ok()).ok_or_else(|| format!("no parent in {stat:?}"))
}

fn scratch() -> Result<PathBuf, String> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("pm-launch-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).map_err(text)?;
    Ok(directory)
}

fn same<T: PartialEq + Debug>(found: T, expected: T) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("{found:?} was found, {expected:?} expected")) }
}

fn ensure(holds: bool, otherwise: impl std::fmt::Display) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.to_string()) }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
