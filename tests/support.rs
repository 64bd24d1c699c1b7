//! What the tests have in common: waiting with a deadline, counting processes and descriptors, and trials over all transports.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use pm::{AnyTransport, Event, PoolBuilder, Postcard, QueryError, QueryOptions, Resource, Role, Spec, Stderr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::sync::broadcast;

use crate::roles::{Job, Said};

/// How long anything here may take. It passes only where something hangs.
pub const LIMIT: Duration = Duration::from_secs(40);

/// Longer than any test takes.
pub const LONG: Duration = Duration::from_secs(1000);

/// The variable by which the processes of one test are found. Children inherit it.
pub const MARK: &str = "PM_TEST_MARK";

/// The variable that says that this process runs one test alone.
const ALONE: &str = "PM_TEST_ALONE";

/// A pool of this program's own jobs.
pub type Pool = pm::QueryManager<Job, Said>;

/// The same, before its start.
pub type Builder = PoolBuilder<Job, Said, Postcard, AnyTransport>;

// --- trials

/// A test that does not depend on the transport.
pub fn one<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Vec<Trial> {
    vec![Trial::test(name, move || {
        run(test());
        Ok(())
    })]
}

/// A test over each transport.
pub fn over_all<F: Future<Output = ()>>(
    name: &str,
    test: impl Fn(AnyTransport) -> F + Clone + Send + 'static,
) -> Vec<Trial> {
    let over = |transport: AnyTransport| {
        let test = test.clone();
        Trial::test(format!("{name}::{transport}"), move || {
            run(test(transport));
            Ok(())
        })
    };
    ALL.map(over).into()
}

/// The transports that have the wire of docs/PROTOCOL.md.
pub const TRANSPORTS: [AnyTransport; 2] = [AnyTransport::Stdio(pm::Stdio), AnyTransport::Uds(pm::Uds)];

/// All transports of this build: between Rust programs.
pub const ALL: [AnyTransport; 3] =
    [AnyTransport::Stdio(pm::Stdio), AnyTransport::Uds(pm::Uds), AnyTransport::Shm(pm::Shm::new())];

/// A test that needs a process, and with it a keeper, of its own: it counts descriptors, or breaks what others use.
pub fn alone(name: impl Into<String>, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || {
        if std::env::var_os(ALONE).is_some_and(|alone| alone == *name) {
            return test();
        }
        let output = again().args([&name, "--exact", "--test-threads=1"]).env(ALONE, &name).output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Err(format!("{}\n{}{}", output.status, said[0], said[1]).into())
    })
}

/// The same for tests over all transports.
pub fn over_all_alone<F: Future<Output = ()>>(
    name: &str,
    test: impl Fn(AnyTransport) -> F + Clone + Send + 'static,
) -> Vec<Trial> {
    let over = |transport: AnyTransport| {
        let test = test.clone();
        alone(format!("{name}::{transport}"), move || {
            run(test(transport));
            Ok(())
        })
    };
    ALL.map(over).into()
}

/// This program once more.
pub fn again() -> Command {
    Command::new("/proc/self/exe")
}

/// Runs a test on a runtime of its own, with two threads so that what races can race.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    // What the test itself waits for has its own limit, and says more when that is over.
    let limited = async { tokio::time::timeout(2 * LIMIT, test).await.expect("the test takes for ever") };
    runtime.expect("a runtime").block_on(limited)
}

/// Waits for `future`, but not for ever.
#[track_caller]
pub fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(LIMIT, future).await {
            Ok(value) => value,
            Err(_) => panic!("nothing happened within {LIMIT:?} at {place}"),
        }
    }
}

// --- pools

/// A pool of jobs, quiet, over this transport.
pub fn jobs(transport: AnyTransport) -> Builder {
    crate::roles::JOB.pool().transport(transport).spec(quiet)
}

/// The same for another role.
pub fn pool_of<I: 'static, O: 'static>(
    role: &'static dyn Role,
    transport: AnyTransport,
) -> PoolBuilder<I, O, Postcard, AnyTransport> {
    PoolBuilder::role(role, transport, Postcard).spec(quiet)
}

/// Without core dumps, which would take most of the time of a test in which workers crash, and without backtraces, which would take the
/// place of the last words that a test looks for.
fn quiet(spec: pm::SpecBuilder) -> pm::SpecBuilder {
    spec.stderr(Stderr::Quiet).limit(Resource::Core, 0).env("RUST_BACKTRACE", "0")
}

/// A worker that is this binary, but as any other program.
pub fn this_program() -> pm::SpecBuilder {
    let path = std::env::current_exe().expect("the path of this program");
    quiet(Spec::program(path))
}

/// The pids of all workers that serve.
pub fn pids(pool: &pm::Pool) -> Vec<u32> {
    pool.workers().iter().map(|worker| worker.pid).collect()
}

/// Waits for an event, and gives what `want` makes of it.
#[track_caller]
pub fn event<T>(
    events: &mut broadcast::Receiver<Event>,
    mut want: impl FnMut(&Event) -> Option<T>,
) -> impl Future<Output = T> {
    within(async move {
        loop {
            match events.recv().await {
                Ok(event) => {
                    if let Some(found) = want(&event) {
                        return found;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(closed) => panic!("the event did not come: {closed}"),
            }
        }
    })
}

/// Waits until a worker has died, and gives why.
#[track_caller]
pub fn crash(events: &mut broadcast::Receiver<Event>) -> impl Future<Output = pm::ExitCause> {
    event(events, |event| match event {
        Event::Crashed { cause, .. } => Some(cause.clone()),
        _ => None,
    })
}

/// Waits until another process of a worker that died serves.
#[track_caller]
pub fn replaced(events: &mut broadcast::Receiver<Event>) -> impl Future<Output = u32> {
    event(events, |event| match event {
        Event::Replaced { pid, .. } => Some(*pid),
        _ => None,
    })
}

/// Waits until something is so that has no event of its own: what the process table says, or counters of the pool.
#[track_caller]
pub fn eventually(what: &str, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < LIMIT, "{what}: not so within {LIMIT:?} at {place}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Waits until so many calls are with a pool: aboard of its workers, or in its queue.
pub async fn calls_wait(pool: &pm::Pool, calls: usize) {
    eventually("they wait", || pool.info().load + pool.info().queued == calls).await;
}

/// A query under way.
pub type Asked = Pin<Box<dyn Future<Output = Result<Said, QueryError>> + Send>>;

/// Polls a query once: what it has come to, if it has.
pub async fn poll_once(query: &mut Asked) -> Option<Result<Said, QueryError>> {
    poll_fn(|cx| match query.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Asks until the pool is shutting down, and gives the queries that were taken before it was.
pub async fn refused(pool: &Pool) -> Vec<Asked> {
    within(async {
        let mut taken = Vec::new();
        loop {
            let mut query: Asked = Box::pin(pool.query_with(&Job::Pid, QueryOptions::new()));
            match poll_once(&mut query).await {
                Some(Err(QueryError::ShuttingDown { .. })) => return taken,
                // A query is on its way before its first poll.
                Some(answer) => assert!(answer.is_ok(), "{answer:?}"),
                None => taken.push(query),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// The error that a query must have had.
#[track_caller]
pub fn error<T: Debug>(result: Result<T, QueryError>) -> QueryError {
    match result {
        Err(error) => error,
        Ok(value) => panic!("an error was expected, {value:?} came"),
    }
}

/// The same for a worker that was lost.
#[track_caller]
pub fn lost<T: Debug>(result: Result<T, QueryError>) -> pm::WorkerLost {
    match result {
        Err(QueryError::WorkerLost(lost)) => *lost,
        other => panic!("WorkerLost was expected, {other:?} came"),
    }
}

#[track_caller]
pub fn contains(text: impl AsRef<str>, part: &str) {
    let text = text.as_ref();
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}

// --- processes

/// A mark that no other test has.
pub fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The processes that have this mark in their environment.
pub fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let is_marked = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    processes().into_iter().filter(is_marked).collect()
}

/// All processes of this machine.
pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The state of a process and its parent, if it is there.
pub fn state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The keeper of this process; none before the first worker.
pub fn keeper() -> Option<u32> {
    let me = std::process::id();
    let is_keeper = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim_end() == "pm-keeper" && state(*pid).is_some_and(|(_, parent)| parent == me)
    };
    processes().into_iter().find(is_keeper)
}

/// Children of this process and of its keeper that ended and were not waited for.
pub fn zombies() -> Vec<u32> {
    let parents = [Some(std::process::id()), keeper()];
    let is_ours =
        |pid: &u32| state(*pid).is_some_and(|(state, parent)| state == 'Z' && parents.contains(&Some(parent)));
    processes().into_iter().filter(is_ours).collect()
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Memory that a process has resident, in bytes.
pub fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10
}

pub fn kill(pid: u32, signal: Signal) {
    // It may have ended already, which is what most tests want of it.
    let _ = kill_process(raw(pid), signal);
}

/// Waits until a process is gone, by the kernel's own word. A process that ends at this moment counts as gone.
#[track_caller]
pub fn gone_within(pid: u32, limit: Duration) {
    let Ok(fd) = pidfd_open(raw(pid), PidfdFlags::empty()) else { return };
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap_or(0);
    assert!(ready > 0, "process {pid} lives: {}", command_line(pid));
}

pub fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(pid as i32).expect("a pid")
}

// --- files

/// A directory that is removed at the end of a test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pm-test-{}", mark()));
        fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    pub fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.0.join(Path::new(name.as_ref()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A pipe with a name, at which jobs wait ([`Job::Wait`]). Dropping it lets all go that wait.
pub struct Gate(fs::File, PathBuf);

impl Gate {
    pub fn new(scratch: &Scratch) -> Self {
        let path = scratch.path(format!("gate-{}", mark()));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe with a name");
        // Open for both, so that opening it never waits for the other side.
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("both ends of the pipe");
        Gate(file, path)
    }

    pub fn wait(&self) -> Job {
        Job::Wait(self.1.clone())
    }

    /// Lets so many go, now or when they come.
    pub fn open(&self, count: usize) {
        std::io::Write::write_all(&mut &self.0, &vec![1; count]).expect("bytes in the pipe");
    }
}
