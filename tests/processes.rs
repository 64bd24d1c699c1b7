//! What a worker's process gets and what it does not get, and programs that are no workers. Rows T3, T4, Q19, Q21; faults 3, 24, 27, 28, 29.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::core::driver::launch::LaunchError;
use pm::core::machine::handshake::Mismatch;
use pm::{
    AnyTransport, ExitCause, ExitStatus, Json, PoolBuilder, Postcard, QueryError, Resource, Signal, Spec, SpecBuilder,
    StartError, Stderr,
};

use crate::roles::{JOB, Job, Said};
use crate::support::{
    ALL, Builder, LIMIT, LONG, MARK, Pool, Scratch, TRANSPORTS, again, alone, contains, crash, descriptors, error,
    event, eventually, jobs, lost, mark, marked, one, over_all, over_all_alone, run, this_program,
};

/// What this program is started as, where a test needs another process than a worker.
pub const PROCESS: &str = "PM_TEST_PROCESS";

/// The transport that a helper uses.
pub const TRANSPORT: &str = "PM_TEST_TRANSPORT";

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        over_all("processes::a_program_without_roles", a_program_without_roles),
        over_all("processes::roles_in_a_runtime_are_too_late", roles_in_a_runtime_are_too_late),
        over_all("processes::process_lists_name_the_role", process_lists_name_the_role),
        over_all_alone("processes::descriptors_are_exact", descriptors_are_exact),
        one("processes::the_environment_is_merged_replaced_or_listed", the_environment_is_merged_replaced_or_listed),
        one("processes::the_working_directory", the_working_directory),
        one("processes::niceness", niceness),
        over_all("processes::limits_hold_and_are_reported", limits_hold_and_are_reported),
        over_all("processes::arguments_reach_a_program_unchanged", arguments_reach_a_program_unchanged),
        over_all_alone("processes::programs_that_cannot_be_started", programs_that_cannot_be_started),
        over_all_alone("processes::no_descriptors_left", no_descriptors_left),
        over_all("processes::a_program_that_never_says_ready", a_program_that_never_says_ready),
        over_all("processes::a_program_that_prints_and_exits", a_program_that_prints_and_exits),
        over_all("processes::a_program_that_prints_and_lives", a_program_that_prints_and_lives),
        over_all("processes::secrets_are_not_told", secrets_are_not_told),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(alone("processes::ignored_signals_are_not_inherited", || {
        ignored_signals_are_not_inherited();
        Ok(())
    }));
    trials
}

/// What this binary is before it has called `pm::roles`: a worker as any other program may be one, or a manager without roles.
pub fn without_roles() {
    match std::env::var(PROCESS).as_deref() {
        Ok("worker") => {
            let Err(why) = pm::serve(&JOB);
            eprintln!("{why}");
            std::process::exit(70)
        }
        Ok("late") => {
            run(async { pm::roles([&JOB]) });
            std::process::exit(0)
        }
        Ok("without-roles") => {
            run(no_roles(helper_transport()));
            std::process::exit(0)
        }
        _ => {}
    }
}

/// The transport of this helper.
pub fn helper_transport() -> AnyTransport {
    std::env::var(TRANSPORT).ok().and_then(|name| name.parse().ok()).expect("a transport")
}

// --- programs without roles

async fn a_program_without_roles(transport: AnyTransport) {
    let mark = mark();
    let mut command = again();
    command.env(PROCESS, "without-roles").env(TRANSPORT, transport.to_string()).env(MARK, &mark);
    // Where pm is installed it would be the keeper.
    command.env("PATH", "/no/such/directory").env_remove("PM_KEEPER");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(marked(&mark), [0_u32; 0], "nothing is left of it");
}

/// In a process of its own that never calls `pm::roles`.
async fn no_roles(transport: AnyTransport) {
    let mark = std::env::var(MARK).expect("a mark");
    for unguarded in [false, true] {
        let builder = jobs(transport).workers(3);
        let builder = if unguarded { builder.spec(SpecBuilder::unguarded) } else { builder };
        let failed = builder.start().await.unwrap_err();
        assert!(matches!(launch(&failed), LaunchError::RolesNotCalled), "{failed:?}");
        contains(failed.to_string(), "pm::roles() at the top of main");
    }
    assert_eq!(marked(&mark), [std::process::id()], "nothing was started");
    let temporary = jobs(transport).workers(0).start().await.unwrap();
    let failed = error(temporary.query(&Job::Pid).await);
    contains(failed.to_string(), "pm::roles() at the top of main");
    drop(temporary);

    let failed = program(transport).start().await.unwrap_err();
    assert!(matches!(launch(&failed), LaunchError::NoKeeper { .. }), "{failed:?}");
    for way in ["pm::roles() first in main", "install pm", ".unguarded()"] {
        contains(failed.to_string(), way);
    }
    assert_eq!(marked(&mark), [std::process::id()], "nothing was started");

    let pool = program(transport).workers(2).spec(SpecBuilder::unguarded).start().await.unwrap();
    assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
    let died = lost(pool.query(&Job::Exit(3)).await);
    assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Code(3)));
    assert_eq!(pool.query(&Job::Echo(vec![2])).await.unwrap(), Said::Bytes(vec![2]));
    pool.shutdown().await;
    assert_eq!(marked(&mark), [std::process::id()], "all were ended");
}

/// A pool of this program as any other one: it calls `pm::serve`, and knows nothing of roles.
fn program(transport: AnyTransport) -> Builder {
    PoolBuilder::program("program", this_program().env(PROCESS, "worker"), transport, Postcard)
}

async fn roles_in_a_runtime_are_too_late(transport: AnyTransport) {
    let late = this_program().env(PROCESS, "late").serving(JOB.name());
    let builder: Builder = PoolBuilder::program("late", late, transport, Postcard);
    let Err(StartError::Died { cause, stderr }) = builder.start().await else { panic!("it cannot serve") };
    assert_eq!(cause, ExitCause::Exited(ExitStatus::Code(64)));
    contains(stderr, "call it first in `main`, and make the runtime after it");
}

// --- what a process gets

async fn process_lists_name_the_role(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    let pid = pool.workers()[0].pid;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name.trim_end(), &JOB.name()[..JOB.name().len().min(15)]);
    pool.shutdown().await;
}

async fn descriptors_are_exact(transport: AnyTransport) {
    let over = AtomicBool::new(false);
    // The outbox is mapped, and its descriptor closed, before the worker serves.
    let wanted: &[&str] = match transport {
        AnyTransport::Stdio(_) => &["/dev/null", "pipe", "pipe", "pipe", "pipe"],
        // The memory files are mapped, and their descriptors closed.
        AnyTransport::Shm(_) => &["/dev/null", "pipe", "pipe", "socket", "anon_inode"],
        _ => &["/dev/null", "pipe", "pipe", "socket"],
    };
    let kinds = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.split(' ').nth(1).unwrap_or_default().to_string()).collect()
    };
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Without close-on-exec, as a careless library leaves them.
                    let (one, other) = UnixStream::pair().unwrap();
                    let _careless = (rustix::io::dup(&one).unwrap(), rustix::io::dup(&other).unwrap());
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let _udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                    let _careless_too = rustix::io::dup(&listener).unwrap();
                    std::thread::yield_now();
                }
            });
        }
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    for unguarded in [false, true] {
                        let builder = jobs(transport).workers(4);
                        let builder = if unguarded { builder.spec(SpecBuilder::unguarded) } else { builder };
                        let pool = builder.start().await.unwrap();
                        for _ in 0..5 {
                            for (worker, answer) in pool.query_all(&Job::Descriptors).await {
                                let Said::Lines(lines) = answer.unwrap() else { panic!() };
                                assert_eq!(kinds(&lines), wanted, "worker {worker}: {lines:?}");
                            }
                            pool.respawn().await.unwrap();
                        }
                    }
                });
            });
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = found {
            std::panic::resume_unwind(panic);
        }
    });
}

async fn environment(builder: Builder) -> BTreeSet<String> {
    let pool = builder.start().await.unwrap();
    let Said::Lines(lines) = pool.query(&Job::Environment).await.unwrap() else { panic!() };
    lines.into_iter().filter(|line| matters(line)).collect()
}

/// By `PM_UNIT` the keeper finds strays, and `PM_WORKER` is the number of a worker, as docs/PROTOCOL.md says; the other one is of all pools of these tests.
fn matters(variable: &str) -> bool {
    !["PM_UNIT=", "PM_WORKER=", "RUST_BACKTRACE="].iter().any(|name| variable.starts_with(name))
}

async fn the_environment_is_merged_replaced_or_listed() {
    let builder = || jobs(TRANSPORTS[1]);
    let own = std::env::vars().map(|(name, value)| format!("{name}={value}"));
    let own: BTreeSet<_> = own.filter(|line| matters(line)).collect();
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    let names = |all: &BTreeSet<String>| -> BTreeSet<String> {
        all.iter().map(|line| line.split('=').next().unwrap_or_default().to_string()).collect()
    };

    let merged = environment(builder().spec(|spec| spec.env("PM_TEST_A", "1 = ü\n2").env("PATH", "/elsewhere"))).await;
    let mut expected = own.clone();
    assert!(expected.remove(&path));
    expected.extend(["PM_TEST_A=1 = ü\n2".to_string(), "PATH=/elsewhere".to_string()]);
    assert_eq!(merged, expected);

    let replaced =
        environment(builder().spec(|spec| spec.env("PM_TEST_A", "1").env("PM_TEST_B", "").replace_env())).await;
    assert_eq!(replaced, BTreeSet::from(["PM_TEST_A=1", "PM_TEST_B="].map(String::from)));

    let listed = builder().spec(|spec| spec.allow_env("PATH").allow_env("PM_TEST_NOT_SET").env("PM_TEST_A", "1"));
    assert_eq!(environment(listed).await, BTreeSet::from([path.clone(), "PM_TEST_A=1".to_string()]));
    let above = builder().spec(|spec| spec.env("PATH", "/mine").allow_env("PATH"));
    assert_eq!(environment(above).await, BTreeSet::from(["PATH=/mine".to_string()]));

    // Where its link is no Spec can say, also one that copies the environment of a worker.
    let copied = builder().spec(|spec| spec.env("PM_SOCKET", "/no/such/socket").env("PM_OUTBOX_FD", "0"));
    assert_eq!(environment(copied).await, own);

    // The same where the worker is another program; it finds its link without the variables of its manager.
    let program =
        PoolBuilder::program("program", this_program().env(PROCESS, "worker").replace_env(), TRANSPORTS[0], Postcard);
    assert_eq!(names(&environment(program).await), BTreeSet::from([PROCESS.to_string()]));
}

async fn the_working_directory() {
    let directory = |cwd: PathBuf| async {
        let pool = jobs(TRANSPORTS[1]).spec(|spec| spec.cwd(cwd)).start().await.unwrap();
        match pool.query(&Job::Directory).await.unwrap() {
            Said::Text(directory) => PathBuf::from(directory),
            other => panic!("{other:?}"),
        }
    };
    let scratch = Scratch::new();
    let nested = scratch.path("a directory\nwith ü");
    fs::create_dir(&nested).unwrap();
    let nested = nested.canonicalize().unwrap();
    assert_eq!(directory(nested.clone()).await, nested);
    let here = std::env::current_dir().unwrap();
    assert_eq!(directory("tests".into()).await, here.join("tests"), "a relative one is taken from the manager's");
    let pool = jobs(TRANSPORTS[1]).start().await.unwrap();
    assert_eq!(pool.query(&Job::Directory).await.unwrap(), Said::Text(here.display().to_string()));
}

async fn niceness() {
    for unguarded in [false, true] {
        let builder = jobs(TRANSPORTS[1]).spec(|spec| spec.nice(13));
        let builder = if unguarded { builder.spec(SpecBuilder::unguarded) } else { builder };
        let pool = builder.start().await.unwrap();
        assert_eq!(pool.query(&Job::Nice).await.unwrap(), Said::Number(13));
    }
}

async fn limits_hold_and_are_reported(transport: AnyTransport) {
    let limited = |resource, limit| jobs(transport).spec(move |spec| spec.limit(resource, limit));
    let ended_by = |died: &pm::WorkerLost, signal: Signal| {
        let ExitCause::Exited(status) = died.cause else { panic!("{:?}", died.cause) };
        assert_eq!(status.signal(), Some(signal), "{died}");
        contains(died.to_string(), &signal.to_string());
    };

    let pool = limited(Resource::OpenFiles, 77).start().await.unwrap();
    assert_eq!(pool.query(&Job::OpenFilesLimit).await.unwrap(), Said::Number(77));

    let pool = limited(Resource::Cpu, 1).start().await.unwrap();
    let mut events = pool.events();
    let died = lost(pool.query(&Job::Spin).await);
    ended_by(&died, Signal(24));
    assert_eq!(crash(&mut events).await, died.cause);

    let scratch = Scratch::new();
    let pool = limited(Resource::FileSize, 3).start().await.unwrap();
    let died = lost(pool.query(&Job::Count(scratch.path("count"), Job::Pid.into())).await);
    ended_by(&died, Signal(25));
    assert_eq!(fs::metadata(scratch.path("count")).unwrap().len(), 3);
    assert!(matches!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(_)));

    let pool = limited(Resource::AddressSpace, 1 << 30).start().await.unwrap();
    let died = lost(pool.query(&Job::Allocate(2 << 30)).await);
    ended_by(&died, Signal::ABRT);
    contains(&died.stderr, "memory allocation of 2147483648 bytes failed");

    // Each heir costs its parent a descriptor. A handler that gets no more fails, and its worker lives on.
    let pool = limited(Resource::OpenFiles, 16).start().await.unwrap();
    for heirs in 0.. {
        assert!(heirs < 16, "the limit does not hold");
        if let Err(failed) = pool.query(&Job::Heir).await {
            let QueryError::Handler(failed) = failed else { panic!("{failed:?}") };
            contains(&failed.message, "Too many open files");
            break;
        }
    }
    assert_eq!(pool.query(&Job::OpenFilesLimit).await.unwrap(), Said::Number(16));
}

async fn arguments_reach_a_program_unchanged(transport: AnyTransport) {
    let arguments = [
        "-n",
        "--help",
        "--",
        "-",
        "two\nlines",
        "$(touch /tmp/no)",
        "`id`",
        "*",
        "",
        " ",
        "a'b\"c\\",
        "ü",
        "A=B",
        "{}",
        "%s",
        ";",
        "&",
        "|",
        "\t",
        "\u{1b}[31m",
        "~",
    ];
    for unguarded in [false, true] {
        let builder = program(transport).spec(|spec| spec.args(arguments));
        let builder = if unguarded { builder.spec(SpecBuilder::unguarded) } else { builder };
        let pool = builder.start().await.unwrap();
        assert_eq!(pool.query(&Job::Arguments).await.unwrap(), Said::Lines(arguments.map(String::from).into()));
    }
    let long = "x".repeat(100_000);
    let pool = jobs(transport).spec(|spec| spec.arg("-x").arg(&long)).start().await.unwrap();
    assert_eq!(pool.query(&Job::Arguments).await.unwrap(), Said::Lines(vec!["-x".into(), long.clone()]));
    let failed = jobs(transport).spec(|spec| spec.arg(long.repeat(2))).start().await.unwrap_err();
    assert!(matches!(launch(&failed), LaunchError::ArgumentsTooLong { .. }), "{failed:?}");
    assert!(failed.to_string().len() < 1000, "it does not repeat the argument");
}

async fn programs_that_cannot_be_started(transport: AnyTransport) {
    let scratch = Scratch::new();
    let file = |name: &str, content: &str, mode: u32| {
        fs::write(scratch.path(name), content).unwrap();
        fs::set_permissions(scratch.path(name), fs::Permissions::from_mode(mode)).unwrap();
        scratch.path(name)
    };
    let mark = mark();
    let try_one = |spec: SpecBuilder| {
        let spec = spec.env(MARK, &mark).stderr(Stderr::Quiet);
        let builder = PoolBuilder::<Job, Said, _, _>::program("program", spec, transport, Postcard).workers(3);
        async move {
            let failed = builder.start().await.unwrap_err();
            let StartError::Launch(error) = failed else { panic!("{failed:?}") };
            error
        }
    };
    let missing = scratch.path("missing");
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let bad_interpreter = file("script", "#!/no/such/interpreter -x\n", 0o755);
    let garbage = file("garbage", "garbage", 0o755);
    let directory = scratch.path("");
    let named = |program: &Path, named: &Path| assert_eq!(program, named);
    let guards: [fn(SpecBuilder) -> SpecBuilder; 2] = [|spec| spec, SpecBuilder::unguarded];

    // The first ones start the keeper, and what else stays.
    for guard in guards {
        try_one(guard(Spec::program(&missing))).await;
        let pool = program(transport).spec(guard).start().await.unwrap();
        pool.shutdown().await;
    }
    let keeper = crate::support::keeper().unwrap();
    let count = || (descriptors(std::process::id()), descriptors(keeper));
    let before = settled(count).await;
    for guard in guards {
        for _ in 0..3 {
            match &*try_one(guard(Spec::program(&missing))).await {
                LaunchError::NotFound { program, .. } => named(program, &missing),
                other => panic!("{other:?}"),
            }
            match &*try_one(guard(Spec::program("no-such-program"))).await {
                LaunchError::NotFound { path: Some(_), .. } => {}
                other => panic!("{other:?}"),
            }
            for denied in [&plain, &directory] {
                match &*try_one(guard(Spec::program(denied))).await {
                    LaunchError::PermissionDenied { program, .. } => named(program, denied),
                    other => panic!("{other:?}"),
                }
            }
            match &*try_one(guard(Spec::program(&bad_interpreter))).await {
                LaunchError::BadInterpreter { interpreter, .. } => {
                    named(interpreter, Path::new("/no/such/interpreter"))
                }
                other => panic!("{other:?}"),
            }
            match &*try_one(guard(Spec::program(&garbage))).await {
                LaunchError::BadExecutable { program, .. } => named(program, &garbage),
                other => panic!("{other:?}"),
            }
            for nowhere in [&missing, &plain] {
                match &*try_one(guard(this_program().cwd(nowhere))).await {
                    LaunchError::BadWorkingDirectory { directory, .. } => named(directory, nowhere),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    eventually("no descriptor is left, here or in the keeper", || count() == before).await;
    assert_eq!(marked(&mark), [0; 0], "no process is left");
    assert_eq!(crate::support::zombies(), [0; 0]);
}

/// What something is once it has stopped changing.
async fn settled<T: PartialEq>(value: impl Fn() -> T) -> T {
    let begun = Instant::now();
    let (mut last, mut same) = (value(), 0);
    while same < 20 {
        assert!(begun.elapsed() < LIMIT, "it never settles");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = value();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Whatever number of descriptors is left, the start works, or fails with an error that says so.
async fn no_descriptors_left(transport: AnyTransport) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let guards: [fn(SpecBuilder) -> SpecBuilder; 2] = [|spec| spec, SpecBuilder::unguarded];
    for guard in guards {
        // The keeper has its own limit, that of now.
        let builder = || jobs(transport).spec(guard);
        builder().start().await.unwrap().shutdown().await;
        let count = || descriptors(std::process::id());
        let before = settled(count).await;
        let mark = mark();
        let limit = getrlimit(Resource::Nofile);
        let mut failed = Vec::new();
        let mut started = None;
        for spare in 0..40 {
            setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum }).unwrap();
            let mut fill: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
            fill.truncate(fill.len() - spare);
            let outcome = builder().spec(|spec| spec.env(MARK, &mark)).start().await;
            drop(fill);
            setrlimit(Resource::Nofile, limit).unwrap();
            match outcome {
                Ok(pool) => {
                    started = Some(pool);
                    break;
                }
                Err(error) => failed.push(error),
            }
            eventually("no descriptor is left", || count() == before).await;
            eventually("no process is left", || marked(&mark).is_empty()).await;
        }
        assert!(failed.len() > 2, "{failed:?}");
        for error in failed {
            let said = chain(&error);
            assert!(matches!(&error, StartError::Launch(_) | StartError::Transport(_)), "{error:?}");
            assert!(said.contains("too many open files") || said.contains("Too many open files"), "{said}");
        }
        let pool = started.expect("it starts with 40 descriptors");
        assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
        pool.shutdown().await;
        drop(pool);
        eventually("no descriptor is left", || count() == before).await;
    }
}

/// An error and all that it came from.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[track_caller]
fn launch(failed: &StartError) -> &LaunchError {
    match failed {
        StartError::Launch(error) => error,
        other => panic!("a LaunchError was expected, {other:?} came"),
    }
}

// --- programs that are no workers

fn stranger(transport: AnyTransport, script: &str) -> PoolBuilder<String, String, Json, AnyTransport> {
    let spec = Spec::program("sh").arg("-c").arg(script).stderr(Stderr::Quiet);
    PoolBuilder::program("stranger", spec, transport, Json)
}

async fn a_program_that_never_says_ready(transport: AnyTransport) {
    let limit = Duration::from_millis(300);
    let mark = mark();
    let spec = Spec::program("sleep").arg("1000").env(MARK, &mark).start_timeout(limit);
    let builder = PoolBuilder::<String, String, _, _>::program("sleeper", spec, transport, Json);
    let begun = Instant::now();
    let failed = builder.workers(2).start().await.unwrap_err();
    assert!(begun.elapsed() >= limit);
    let StartError::Died { cause, .. } = &failed else { panic!("{failed:?}") };
    assert_eq!(*cause, ExitCause::StartTimeout { limit });
    for way in ["READY within 300ms", "pm pool -- PROGRAM {}", "pm pool --as filter -- PROGRAM"] {
        contains(failed.to_string(), way);
    }
    eventually("it was killed", || marked(&mark).is_empty()).await;
}

async fn a_program_that_prints_and_exits(transport: AnyTransport) {
    for (print, code) in
        [("printf 'usage: nothing'", 0), ("printf hi", 3), ("printf 'usage: nothing' >&2", 2), (":", 0)]
    {
        let failed = stranger(transport, &format!("{print}; exit {code}")).start().await.unwrap_err();
        let text = failed.to_string();
        let what = print.strip_prefix("printf ").map_or("", |print| print.trim_end_matches(" >&2").trim_matches('\''));
        contains(&text, what);
        contains(&text, "pm pool -- PROGRAM {}");
        match (&failed, transport) {
            (StartError::Died { cause, .. }, _) => {
                assert_eq!(*cause, ExitCause::Exited(ExitStatus::Code(code)), "{print}");
            }
            (StartError::Handshake { mismatch: Mismatch::NotReady { first, .. }, .. }, AnyTransport::Stdio(_)) => {
                assert_eq!(first, what);
            }
            _ => panic!("{print}: {failed:?}"),
        }
    }
}

async fn a_program_that_prints_and_lives(transport: AnyTransport) {
    let mark = mark();
    let text = "Loading the model, 1 of 2, please wait a little. ".repeat(6);
    let script = format!("printf '%s' '{text}'; printf '%s' '{text}' >&2; exec sleep 1000");
    let limit = if matches!(transport, AnyTransport::Stdio(_)) { LONG } else { Duration::from_secs(3) };
    let builder = stranger(transport, &script).spec(|spec| spec.env(MARK, &mark).start_timeout(limit));
    let failed = crate::support::within(builder.start()).await.unwrap_err();
    match (&failed, transport) {
        // What it printed came in place of READY, so that nobody has to wait for the timeout.
        (StartError::Handshake { mismatch: Mismatch::NotReady { first, .. }, .. }, AnyTransport::Stdio(_)) => {
            assert_eq!(*first, text[..200]);
        }
        // Its prints were on no wire.
        (StartError::Died { cause: ExitCause::StartTimeout { .. }, stderr }, _) => {
            assert_eq!(*stderr, text.repeat(2));
        }
        _ => panic!("{failed:?}"),
    }
    contains(failed.to_string(), "Loading the model, 1 of 2");
    contains(failed.to_string(), "pm pool -- PROGRAM {}");
    eventually("it was killed", || marked(&mark).is_empty()).await;
}

// --- secrets and signals

const SECRET: &str = "hunter2-is-a-secret";

async fn secrets_are_not_told(transport: AnyTransport) {
    fn told_by<E: std::error::Error>(error: &E) -> String {
        format!("{error:?} {error:#?} {}", chain(error))
    }
    let mut told = Vec::new();
    let secret = |spec: SpecBuilder| spec.env("PM_TEST_TOKEN", SECRET);

    let builder = secret(this_program());
    told.push(format!("{builder:?} {builder:#?}"));
    let spec = builder.build().unwrap();
    told.push(format!("{spec:?} {spec:#?}"));
    contains(&told[1], "PM_TEST_TOKEN");
    told.push(told_by(&Spec::program("x").env("PM_TEST_TOKEN", format!("{SECRET}\0x")).build().unwrap_err()));

    let failing: Vec<SpecBuilder> = vec![
        Spec::program("/no/such/program"),
        Spec::program("no-such-program"),
        Spec::program("/"),
        this_program().cwd("/no/such/directory"),
        this_program().arg("x".repeat(200_000)),
        Spec::program("sh").arg("-c").arg("echo no worker; exit 1"),
        Spec::program("sleep").arg("1000").start_timeout(Duration::from_millis(100)),
    ];
    for spec in failing {
        let spec = secret(spec.stderr(Stderr::Quiet));
        let builder = PoolBuilder::<Job, Said, _, _>::program("program", spec, transport, Postcard);
        told.push(told_by(&builder.start().await.unwrap_err()));
    }
    let failed =
        jobs(transport).spec(|spec| secret(spec).env("PM_TEST_LONG", SECRET.repeat(20_000))).start().await.unwrap_err();
    assert!(matches!(launch(&failed), LaunchError::ArgumentsTooLong { .. }), "{failed:?}");
    told.push(told_by(&failed));

    let pool: Pool = jobs(transport).workers(2).spec(secret).start().await.unwrap();
    let mut events = pool.events();
    let Said::Lines(environment) = pool.query(&Job::Environment).await.unwrap() else { panic!() };
    assert!(environment.contains(&format!("PM_TEST_TOKEN={SECRET}")), "the worker itself has it");
    for job in [Job::Fail("x".into()), Job::Panic("x".into()), Job::Exit(1), Job::Abort, Job::Segv] {
        told.push(told_by(&error(pool.query(&job).await)));
    }
    let mut crashes = 0;
    while crashes < 3 {
        let happened = event(&mut events, |event| Some(event.clone())).await;
        crashes += usize::from(matches!(happened, pm::Event::Crashed { .. }));
        told.push(format!("{happened:?}"));
    }
    told.push(format!("{pool:?} {:?} {:?} {:?}", pool.info(), pool.workers(), pm::registry::pools_info()));
    pool.shutdown().await;
    while let Ok(happened) = events.try_recv() {
        told.push(format!("{happened:?}"));
    }
    for text in told {
        assert!(!text.contains(SECRET) && !text.contains("hunter2"), "{text}");
    }
}

fn ignored_signals_are_not_inherited() {
    let ignored = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD, libc::SIGXCPU];
    for signal in ignored {
        // SAFETY: SIG_IGN is a disposition that runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the set is this function's own and initialized before it is used. Threads that are made later inherit the mask.
    unsafe {
        let mut blocked = std::mem::zeroed();
        libc::sigemptyset(&mut blocked);
        for signal in [libc::SIGTERM, libc::SIGUSR2, libc::SIGQUIT] {
            libc::sigaddset(&mut blocked, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut());
    }
    let signals = |pid: u32| -> Vec<(String, u64)> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let lines = status.lines().filter_map(|line| line.split_once(":\t"));
        let wanted = lines.filter(|(name, _)| matches!(*name, "SigBlk" | "SigIgn"));
        wanted.map(|(name, set)| (name.to_string(), u64::from_str_radix(set, 16).unwrap())).collect()
    };
    for transport in ALL {
        for unguarded in [false, true] {
            if unguarded {
                // Its statuses are this process's to collect, which it cannot while it ignores SIGCHLD.
                // SAFETY: SIG_DFL is a disposition that runs no code.
                unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
            }
            run(async {
                let guard = |builder: Builder| if unguarded { builder.spec(SpecBuilder::unguarded) } else { builder };
                let pool = guard(jobs(transport)).start().await.unwrap();
                pool.query(&Job::Pid).await.unwrap();
                // Rust's own start-up ignores SIGPIPE.
                let expected = [("SigBlk".to_string(), 0), ("SigIgn".to_string(), 1 << (libc::SIGPIPE - 1))];
                assert_eq!(signals(pool.workers()[0].pid), expected, "{transport}, unguarded: {unguarded}");
                for signal in [libc::SIGTERM, libc::SIGUSR2, libc::SIGHUP] {
                    let died = lost(pool.query(&Job::Signal(signal)).await);
                    assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Signal { signal, core: false }));
                }
                pool.shutdown().await;
            });
        }
    }
}

/// Whether the shell and this program are there.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh").arg("-c").arg(format!("command -v {program}")).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: there is no sh or no {program}");
    }
    found
}
