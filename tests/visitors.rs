//! Workers that pm did not start: they connect to the socket of a pool, and are workers like any other. Row T12; faults 1, 15, 25, 26.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use pm::core::transport::SOCKET_VARIABLE;
use pm::{
    AnyTransport, Event, ExitCause, ExitStatus, Json, PoolBuilder, Postcard, QueryError, QueryErrorKind, StartError,
    Stdio as Pipes, Uds,
};
use rustix::process::Signal as Kill;
use serde_json::{Value, json};

use crate::kits::Kit;
use crate::processes::PROCESS;
use crate::roles::{JOB, Job, Said};
use crate::streams::{Heard, Say, TALK};
use crate::support::{LONG, Pool, Scratch, again, contains, error, event, eventually, kill, lost, one, within};

type Builder = PoolBuilder<Job, Said, Postcard, AnyTransport>;

pub fn tests() -> Vec<Trial> {
    [
        one("visitors::they_are_workers_like_any_other", they_are_workers_like_any_other),
        one("visitors::queries_wait_for_the_first", queries_wait_for_the_first),
        one("visitors::more_than_there_are_seats_for_wait", more_than_there_are_seats_for_wait),
        one("visitors::one_that_dies_loses_its_own_queries", one_that_dies_loses_its_own_queries),
        one("visitors::one_that_does_not_yield_loses_its_link", one_that_does_not_yield_loses_its_link),
        one("visitors::strangers_hold_up_nobody", strangers_hold_up_nobody),
        one("visitors::roles_must_fit", roles_must_fit),
        one("visitors::the_socket_is_private_and_goes_with_its_pool", the_socket_is_private_and_goes_with_its_pool),
        one("visitors::they_may_serve_streams", they_may_serve_streams),
        one("visitors::other_transports_take_none", other_transports_take_none),
        in_kit(Kit::Python),
        in_kit(Kit::Node),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn in_kit(kit: Kit) -> Vec<Trial> {
    vec![Trial::test(format!("visitors::in_{kit}"), move || {
        if kit.is_installed() {
            crate::support::run(visitor_in(kit));
        }
        Ok(())
    })]
}

/// What this binary is where somebody else started it as a worker: its `main` has called `pm::roles`, and that is all.
pub fn helper() {
    if std::env::var(PROCESS).as_deref() == Ok("visitor") {
        panic!("`pm::roles` did not see that this is a visitor");
    }
}

/// A worker that this test starts as anybody would, and ends.
struct Visitor(Child);

impl Visitor {
    fn to(path: &Path, role: &str) -> Self {
        let mut command = again();
        command.env(PROCESS, "visitor").env("PM_ROLE", role);
        Self::start(command, path)
    }

    fn start(mut command: Command, path: &Path) -> Self {
        Visitor(command.env(SOCKET_VARIABLE, path).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pool_at(path: &Path) -> Builder {
    PoolBuilder::visitors("visited", path, AnyTransport::Uds(Uds), Postcard)
}

/// A pool with so many seats, and where it is.
async fn pool(scratch: &Scratch, seats: u32) -> (Pool, PathBuf) {
    let path = scratch.path("pool.sock");
    (pool_at(&path).workers(seats).start().await.unwrap(), path)
}

async fn are_there(pool: &Pool, count: usize) {
    eventually("the visitors are there", || pool.workers().len() == count).await;
}

async fn they_are_workers_like_any_other() {
    let scratch = Scratch::new();
    let (pool, path) = pool(&scratch, 2).await;
    let mut visitors = [Visitor::to(&path, JOB.name()), Visitor::to(&path, JOB.name())];
    are_there(&pool, 2).await;
    let mut pids: Vec<_> = pool.workers().iter().map(|worker| worker.pid).collect();
    pids.sort_unstable();
    let mut expected = visitors.each_ref().map(Visitor::pid);
    expected.sort_unstable();
    assert_eq!(pids, expected);
    for (worker, pid) in within(pool.query_all(&Job::Pid)).await {
        let info = pool.workers().into_iter().find(|info| info.id == worker).unwrap();
        assert_eq!(pid.unwrap(), Said::Pid(info.pid));
    }
    // They end by themselves when the pool does.
    within(pool.shutdown()).await;
    for visitor in &mut visitors {
        assert!(visitor.0.wait().unwrap().success());
    }
    assert_eq!(pool.info().crashes, 0);
}

async fn queries_wait_for_the_first() {
    let scratch = Scratch::new();
    let (pool, path) = pool(&scratch, 1).await;
    assert_eq!(pool.workers(), []);
    let query = tokio::spawn(pool.query(&Job::Pid));
    eventually("it waits", || pool.info().queued == 1).await;
    let visitor = Visitor::to(&path, JOB.name());
    assert_eq!(within(query).await.unwrap().unwrap(), Said::Pid(visitor.pid()));
    let refused = error(within(pool.query_temporary(&Job::Pid)).await);
    contains(refused.to_string(), "a visitor comes by itself");
    within(pool.shutdown()).await;
}

async fn more_than_there_are_seats_for_wait() {
    let scratch = Scratch::new();
    let (pool, path) = pool(&scratch, 1).await;
    let first = Visitor::to(&path, JOB.name());
    are_there(&pool, 1).await;
    let second = Visitor::to(&path, JOB.name());
    assert_eq!(within(pool.query(&Job::Pid)).await.unwrap(), Said::Pid(first.pid()));
    let mut events = pool.events();
    drop(first);
    // It comes in as the next life of the worker.
    let pid = crate::support::replaced(&mut events).await;
    assert_eq!(pid, second.pid());
    assert_eq!(within(pool.query(&Job::Pid)).await.unwrap(), Said::Pid(pid));
    within(pool.shutdown()).await;
}

async fn one_that_dies_loses_its_own_queries() {
    let scratch = Scratch::new();
    let (pool, path) = pool(&scratch, 2).await;
    let mut visitors = vec![Visitor::to(&path, JOB.name()), Visitor::to(&path, JOB.name())];
    are_there(&pool, 2).await;
    // More often than any budget would allow. Whoever waits has the seat of the one that is killed.
    for _ in 0..8 {
        visitors.push(Visitor::to(&path, JOB.name()));
        let worker = pool.workers().remove(0);
        let query = pool.query_on(worker.id, &Job::Sleep(LONG));
        let killed = async {
            eventually("it has the query", || pool.info().load == 1).await;
            kill(worker.pid, Kill::KILL);
        };
        let (answer, ()) = tokio::join!(within(query), killed);
        assert_eq!(lost(answer).pid, worker.pid);
        are_there(&pool, 2).await;
    }
    within(pool.shutdown()).await;
    drop(visitors);
}

async fn one_that_does_not_yield_loses_its_link() {
    let scratch = Scratch::new();
    let path = scratch.path("pool.sock");
    let grace = Duration::from_millis(50);
    let pool = pool_at(&path).timeout(Duration::from_millis(100)).cancel_grace(grace).start().await.unwrap();
    let mut events = pool.events();
    let stuck = Visitor::to(&path, JOB.name());
    are_there(&pool, 1).await;
    kill(stuck.pid(), Kill::STOP);
    let late = error(within(pool.query(&Job::Pid)).await);
    assert_eq!(late.kind(), QueryErrorKind::TimedOut);
    assert!(matches!(crate::support::crash(&mut events).await, ExitCause::Stuck { .. }));
    let next = Visitor::to(&path, JOB.name());
    assert_eq!(crate::support::replaced(&mut events).await, next.pid());
    assert_eq!(within(pool.query(&Job::Pid)).await.unwrap(), Said::Pid(next.pid()));
    // pm kills none that it did not start.
    assert!(crate::support::state(stuck.pid()).is_some_and(|(state, _)| state == 'T'));
    within(pool.shutdown()).await;
}

/// Whoever connects and is no worker.
async fn strangers_hold_up_nobody() {
    let scratch = Scratch::new();
    let path = scratch.path("pool.sock");
    let spec = |spec: pm::SpecBuilder| spec.start_timeout(Duration::from_millis(300));
    let pool = pool_at(&path).workers(1).spec(spec).start().await.unwrap();
    let mut events = pool.events();
    let mut failed = async || {
        event(&mut events, |event| match event {
            Event::Crashed { cause, .. } => Some(cause.to_string()),
            _ => None,
        })
        .await
    };
    // One that speaks another protocol, one that leaves at once, one that says nothing.
    let mut loud = UnixStream::connect(&path).unwrap();
    loud.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    contains(failed().await, "no READY");
    let mut end = Vec::new();
    let _ = loud.read_to_end(&mut end);
    drop(UnixStream::connect(&path).unwrap());
    contains(failed().await, "link");
    let silent = UnixStream::connect(&path).unwrap();
    contains(failed().await, "did not say READY within 300ms");
    drop(silent);
    let visitor = Visitor::to(&path, JOB.name());
    assert_eq!(within(pool.query(&Job::Pid)).await.unwrap(), Said::Pid(visitor.pid()));
    within(pool.shutdown()).await;
}

async fn roles_must_fit() {
    let scratch = Scratch::new();
    let path = scratch.path("pool.sock");
    let pool = pool_at(&path).spec(|spec| spec.serving(JOB.name())).start().await.unwrap();
    let mut events = pool.events();
    // What the pool asks for counts, whatever the visitor was started for; one that has no such role says so and goes.
    let _visitor = Visitor::to(&path, TALK.name());
    assert!(matches!(within(pool.query(&Job::Pid)).await.unwrap(), Said::Pid(_)));
    within(pool.shutdown()).await;
    let pool = pool_at(&path).spec(|spec| spec.serving("no-such-role")).start().await.unwrap();
    let mut of_second = pool.events();
    let mut visitor = Visitor::to(&path, JOB.name());
    // Whether its link or its end is seen first is a matter of luck; how a process ends that pm did not start, nobody can say.
    let cause = crate::support::crash(&mut of_second).await;
    assert!(matches!(cause, ExitCause::LinkLost { .. } | ExitCause::Exited(ExitStatus::Lost)), "{cause:?}");
    assert_eq!(visitor.0.wait().unwrap().code(), Some(64));
    within(pool.shutdown()).await;
    assert!(events.try_recv().is_ok());
}

async fn the_socket_is_private_and_goes_with_its_pool() {
    let scratch = Scratch::new();
    let directory = scratch.path("run");
    let path = directory.join("pool.sock");
    let pool = pool_at(&path).start().await.unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&directory)), (0o600, 0o700));
    let Err(StartError::Listen { source, .. }) = pool_at(&path).start().await else { panic!("one of them has it") };
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
    within(pool.shutdown()).await;
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    // What is no socket, or only leads to one, is left alone.
    std::os::unix::fs::symlink("/somewhere", &path).unwrap();
    assert!(matches!(pool_at(&path).start().await, Err(StartError::Listen { .. })));
    let long = scratch.path("x".repeat(120));
    assert!(matches!(pool_at(&long).start().await, Err(StartError::Spec(_))));
    drop(pool);
}

async fn they_may_serve_streams() {
    let scratch = Scratch::new();
    let path = scratch.path("pool.sock");
    let builder: PoolBuilder<Say, Heard, _, _> = PoolBuilder::visitors("talks", &path, Uds, Postcard);
    let pool = builder.streams().start().await.unwrap();
    let visitor = Visitor::to(&path, TALK.name());
    let mut stream = within(pool.create_stream()).await.unwrap();
    stream.write(&Say::Pid).await.unwrap();
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::Number(visitor.pid().into()));
    drop(visitor);
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert_eq!(error.failed().map(QueryError::kind), Some(QueryErrorKind::WorkerLost));
    within(pool.shutdown()).await;
}

async fn other_transports_take_none() {
    let scratch = Scratch::new();
    let path = scratch.path("pool.sock");
    let builder: PoolBuilder<Job, Said, _, _> = PoolBuilder::visitors("visited", &path, Pipes, Postcard);
    let Err(StartError::Transport(error)) = builder.start().await else { panic!("it takes none") };
    contains(error.to_string(), "stdio: a link to workers that pm did not start is not available");
    assert!(!path.exists());
}

async fn visitor_in(kit: Kit) {
    let scratch = Scratch::new();
    let path = scratch.path("pool.sock");
    let pool: pm::QueryManager<Value, Value, Json> =
        PoolBuilder::visitors("visited", &path, Uds, Json).workers(1).start().await.unwrap();
    let spec = kit.spec(kit.serve()).build().unwrap();
    let pm::core::machine::spec::Program::Path(program) = spec.what() else { panic!() };
    let mut command = Command::new(program);
    command.args(spec.args());
    let mut visitor = Visitor::start(command, &path);
    assert_eq!(within(pool.query(&json!(["pid"]))).await.unwrap(), json!(visitor.pid()));
    within(pool.shutdown()).await;
    assert!(visitor.0.wait().unwrap().success());
    // Where there is no such pool it says so.
    let mut command = Command::new(program);
    command.args(spec.args()).env(SOCKET_VARIABLE, &path).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    contains(String::from_utf8_lossy(&output.stderr), "takes no visitor");
}
