//! Processes from outside: the death of the manager, programs that are no workers, and what a worker is given. Rows Q19, Q21; faults 3, 5,
//! 6, 10, 24, 27 to 29.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use pm::{AnyTransport, Budget, ExitCause, PoolBuilder, Postcard, Resource, Signal, Spec, StartError, Stderr};
use pm_core::driver::launch::LaunchError;

use rustix::process::{Resource as Limit, Rlimit, Signal as Kill, setrlimit};

use crate::kits;
use crate::roles::{JOB, Job, Said};
use crate::support::{
    MARK, Scratch, TRANSPORTS, again, alone, both, both_alone, command_line, contains, descriptors, eventually, jobs,
    keeper, kill, lost, mark, marked, pids, run, this_program,
};

const LONG: Duration = Duration::from_secs(1000);

/// The variable that says what this process is in place of a run of tests.
const HELPER: &str = "PM_TEST_HELPER";

/// What a manager that is to be killed is told.
const TRANSPORT: &str = "PM_TEST_TRANSPORT";
const BUSY: &str = "PM_TEST_BUSY";

/// How long after the manager's death anything of it may live.
const GONE: Duration = Duration::from_secs(1);

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        both("processes::environment_is_merged_replaced_or_listed", environment_is_merged_replaced_or_listed),
        both("processes::a_worker_is_no_worker_to_its_children", a_worker_is_no_worker_to_its_children),
        both("processes::arguments_arrive_unchanged", arguments_arrive_unchanged),
        both("processes::directory_and_nice", directory_and_nice),
        both("processes::a_limit_that_is_hit_is_reported", a_limit_that_is_hit_is_reported),
        both("processes::descriptors_are_the_declared_ones", descriptors_are_the_declared_ones),
        both("processes::secrets_are_not_shown", secrets_are_not_shown),
        both_alone("processes::programs_that_cannot_be_started", programs_that_cannot_be_started),
        both_alone("processes::programs_that_are_no_workers", programs_that_are_no_workers),
        both_alone("processes::no_descriptors_left", no_descriptors_left),
        both_alone("processes::the_keeper_is_killed", the_keeper_is_killed),
    ]
    .into_iter()
    .flatten()
    .collect();
    for transport in TRANSPORTS {
        for busy in ["spin", "sleep", "stray", "heir", "flood", "idle"] {
            trials.push(Trial::test(format!("processes::manager_killed::{busy}::{transport}"), move || {
                manager_killed("manager", transport, busy)
            }));
        }
        for kit in ["python3", "node"] {
            for busy in ["spin", "sleep", "stray", "idle"] {
                trials.push(kits::trial(
                    kit,
                    format!("processes::manager_killed::{kit}_{busy}::{transport}"),
                    move || manager_killed(kit, transport, busy),
                ));
            }
        }
    }
    trials.push(Trial::test("processes::without_roles_nothing_is_started", without_roles_nothing_is_started));
    trials.push(alone("processes::managers_killed_by_the_dozen", managers_killed_by_the_dozen));
    trials
}

/// Is a program that never calls `pm::roles`, and never returns, if this process was started as one.
pub fn without_roles() {
    if std::env::var(HELPER).is_ok_and(|name| name == "without-roles") {
        let started = run(JOB.pool().workers(2).start());
        let error = started.map(drop).expect_err("a start without roles");
        println!("{error:?}\n{error}");
        std::process::exit(0);
    }
}

/// Is what a test started this binary as, and never returns, if it did.
pub fn helper() {
    let Ok(name) = std::env::var(HELPER) else { return };
    match name.as_str() {
        "spawning" => std::process::exit(i32::from(pm::spawning::is_enabled())),
        "manager" | "python3" | "node" => {
            let transport: AnyTransport = std::env::var(TRANSPORT).expect("a transport").parse().expect("a transport");
            let busy = std::env::var(BUSY).expect("something to do");
            // No limit of a test: it is killed.
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                match name.as_str() {
                    "manager" => be_manager(transport, &busy).await,
                    kit => kits::be_manager(kit, transport, &busy).await,
                }
            });
        }
        other => panic!("{other:?} is no helper"),
    }
}

/// Says on standard output that it is ready to be killed, and lives on.
pub async fn announce() {
    println!("ready");
    std::io::stdout().flush().expect("somebody listens");
    std::future::pending::<()>().await;
}

async fn be_manager(transport: AnyTransport, busy: &str) {
    let pool = jobs(transport).workers(2).start().await.expect("a pool");
    let keep_busy = |job: Job| {
        for _ in 0..2 {
            let pool = pool.clone();
            let job = job.clone();
            tokio::spawn(async move { drop(pool.query(&job).await) });
        }
    };
    match busy {
        "spin" => keep_busy(Job::Spin),
        "sleep" => keep_busy(Job::Both(Job::IgnoreTerm.into(), Job::Sleep(LONG).into())),
        // The answer fills the link, and nobody takes it: the worker is blocked in a write.
        "flood" => {
            keep_busy(Job::Make(60 << 20));
            println!("ready");
            std::io::stdout().flush().expect("somebody listens");
            crate::roles::spin()
        }
        "stray" | "heir" => {
            let job = if busy == "stray" { Job::Stray } else { Job::Heir };
            for (_, answer) in pool.query_all(&job).await {
                answer.expect("a grandchild");
            }
            keep_busy(Job::Spin);
        }
        _ => {}
    }
    if ["spin", "sleep", "stray", "heir"].contains(&busy) {
        eventually("both are busy", || pool.info().load == 2).await;
    }
    announce().await;
}

/// `kill -9` of a manager: a second later nothing lives that it had started.
pub fn manager_killed(name: &str, transport: AnyTransport, busy: &str) -> Result<(), Failed> {
    let mark = mark();
    let mut manager = again()
        .env(HELPER, name)
        .env(MARK, &mark)
        .env(TRANSPORT, transport.to_string())
        .env(BUSY, busy)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(manager.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    if line != "ready\n" {
        return Err(format!("the manager said {line:?}, and {:?}", manager.wait()?).into());
    }
    let before = marked(&mark);
    // The manager and two workers at least; the keeper wipes its environment or not.
    if before.len() < 3 {
        return Err(format!("only {before:?} are there").into());
    }
    kill(manager.id(), Kill::KILL);
    manager.wait()?;
    let begun = std::time::Instant::now();
    loop {
        let left = marked(&mark);
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GONE {
            let lines: Vec<_> = left.iter().map(|pid| format!("{pid}: {}", command_line(*pid))).collect();
            left.iter().for_each(|pid| kill(*pid, Kill::KILL));
            return Err(format!("these live after {GONE:?}: {lines:?}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn managers_killed_by_the_dozen() -> Result<(), Failed> {
    for round in 0..12 {
        manager_killed("manager", TRANSPORTS[round % 2], ["spin", "stray", "sleep"][round % 3])?;
    }
    Ok(())
}

fn without_roles_nothing_is_started() -> Result<(), Failed> {
    let mark = mark();
    let output = again().env(HELPER, "without-roles").env(MARK, &mark).env_remove("PM_KEEPER").output()?;
    let said = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    contains(&said, "RolesNotCalled");
    contains(&said, "call it there");
    assert_eq!(marked(&mark), [] as [u32; 0]);
    Ok(())
}

async fn lines(builder: crate::support::Builder, job: Job) -> BTreeSet<String> {
    let pool = builder.start().await.unwrap();
    let Said::Lines(lines) = pool.query(&job).await.unwrap() else { panic!() };
    lines.into_iter().collect()
}

async fn environment_is_merged_replaced_or_listed(transport: AnyTransport) {
    let inherited =
        std::env::vars().find(|(name, _)| name == "PATH").map(|(name, value)| format!("{name}={value}")).unwrap();
    let merged = lines(jobs(transport).spec(|spec| spec.env("COLOUR", "red green=blue\nß")), Job::Environment).await;
    assert!(merged.contains(&inherited) && merged.contains("COLOUR=red green=blue\nß"), "{merged:?}");
    let replaced = lines(jobs(transport).spec(|spec| spec.env("COLOUR", "red").replace_env()), Job::Environment).await;
    let own = |line: &&String| !line.starts_with("PM_UNIT=");
    assert_eq!(replaced.iter().filter(own).cloned().collect::<Vec<_>>(), ["COLOUR=red"]);
    let listed =
        lines(jobs(transport).spec(|spec| spec.env("COLOUR", "red").allow_env("PATH")), Job::Environment).await;
    assert_eq!(listed.iter().filter(own).cloned().collect::<Vec<_>>(), ["COLOUR=red".to_string(), inherited]);
}

async fn a_worker_is_no_worker_to_its_children(transport: AnyTransport) {
    let environment = lines(jobs(transport), Job::Environment).await;
    for name in ["PM_LINK", "PM_LINK_FD", "PM_ROLE", "PM_OUTBOX_FD"] {
        assert!(!environment.iter().any(|line| line.starts_with(&format!("{name}="))), "{name} is still there");
    }
}

async fn arguments_arrive_unchanged(transport: AnyTransport) {
    let arguments =
        ["-x", "--", "", " ", "a\nb", "$(touch /tmp/pm-pwned)", "`id`", "'", "\"", "\\", "*", "é\u{202e}", "a=b", "-"];
    let pool = jobs(transport).spec(|spec| spec.args(arguments)).start().await.unwrap();
    assert_eq!(pool.query(&Job::Arguments).await.unwrap(), Said::Lines(arguments.map(String::from).into()));
    assert!(!Path::new("/tmp/pm-pwned").exists());
}

async fn directory_and_nice(transport: AnyTransport) {
    let scratch = Scratch::new();
    let directory = scratch.path("a b\nc");
    std::fs::create_dir(&directory).unwrap();
    let pool =
        jobs(transport).spec(|spec| spec.cwd(&directory).nice(7).limit(Resource::OpenFiles, 77)).start().await.unwrap();
    let real = directory.canonicalize().unwrap().display().to_string();
    assert_eq!(pool.query(&Job::Directory).await.unwrap(), Said::Text(real));
    assert_eq!(pool.query(&Job::Nice).await.unwrap(), Said::Number(7));
    assert_eq!(pool.query(&Job::OpenFilesLimit).await.unwrap(), Said::Number(77));
}

async fn a_limit_that_is_hit_is_reported(transport: AnyTransport) {
    let budget = Budget::crash_loops(1000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    let pool = jobs(transport).budget(budget).spec(|spec| spec.limit(Resource::Cpu, 1)).start().await.unwrap();
    let died = lost(pool.query(&Job::Spin).await);
    // Soft and hard limit are the same, so the kernel may choose the stronger signal.
    let ExitCause::Exited(status) = died.cause else { panic!("{:?}", died.cause) };
    assert!([Signal(24), Signal::KILL].map(Some).contains(&status.signal()), "{status}");
    let pool = jobs(transport)
        .budget(budget)
        .spec(|spec| spec.limit(Resource::AddressSpace, 300 << 20))
        .start()
        .await
        .unwrap();
    let died = lost(pool.query(&Job::Allocate(400 << 20)).await);
    contains(&died.stderr, "memory allocation of 419430400 bytes failed");
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
}

async fn descriptors_are_the_declared_ones(transport: AnyTransport) {
    // Descriptors that this process has, and lets children inherit: none of them shall arrive.
    let (held, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    let found = lines(jobs(transport), Job::Descriptors).await;
    let kinds: Vec<&str> = found.iter().map(|line| line.split_once(' ').map_or("", |(_, kind)| kind)).collect();
    assert!(found.contains("0 /dev/null") && found.contains("1 pipe") && found.contains("2 pipe"), "{found:?}");
    // Beside them the link: one socket, or two pipes; and perhaps the outbox.
    let rest: Vec<_> =
        found.iter().filter(|line| !["0 /dev/null", "1 pipe", "2 pipe"].contains(&line.as_str())).collect();
    let links = kinds.len() - 3 - rest.iter().filter(|line| line.contains("memfd")).count();
    let (kind, count) = if transport.to_string() == "uds" { ("socket", 1) } else { ("pipe", 2) };
    assert_eq!(links, count, "{found:?}");
    assert!(rest.iter().filter(|line| !line.contains("memfd")).all(|line| line.ends_with(kind)), "{found:?}");
    drop(held);
}

async fn secrets_are_not_shown(transport: AnyTransport) {
    let secret = "hunter2-and-more";
    let builder = jobs(transport).name("pool").spec(|spec| spec.env("TOKEN", secret));
    let pool = builder.start().await.unwrap();
    let mut events = pool.events();
    let died = pool.query(&Job::Exit(1)).await.unwrap_err();
    let mut shown = format!("{pool:?} {died:?} {died} {:?} {:?}", pool.info(), pool.workers());
    while let Ok(event) = events.try_recv() {
        shown += &format!("{event:?}");
    }
    let spec = Spec::program("/no/such/program").env("TOKEN", secret);
    shown += &format!("{spec:?}");
    let failed = PoolBuilder::<Job, Said, _, _>::program("x", spec, transport, Postcard).start().await.unwrap_err();
    shown += &format!("{failed:?} {failed}");
    assert!(!shown.contains(secret), "{shown}");
}

fn program(path: impl Into<PathBuf>, transport: AnyTransport) -> PoolBuilder<Job, Said, Postcard, AnyTransport> {
    let spec = Spec::program(path.into()).stderr(Stderr::Quiet).start_timeout(Duration::from_secs(5));
    PoolBuilder::program("program", spec, transport, Postcard)
}

fn launch_error(failed: &StartError) -> &LaunchError {
    match failed {
        StartError::Launch(error) => error,
        other => panic!("{other:?}"),
    }
}

async fn programs_that_cannot_be_started(transport: AnyTransport) {
    jobs(transport).start().await.unwrap().shutdown().await;
    let keeper = keeper().unwrap();
    let scratch = Scratch::new();
    let file = |name: &str, content: &str, mode: u32| {
        let path = scratch.path(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let script = file("script", "#!/no/such/interpreter\n", 0o755);
    let garbage = file("garbage", "garbage", 0o755);
    let count = || (descriptors(std::process::id()), descriptors(keeper));
    let before = count();
    for _ in 0..10 {
        let failed = program("/no/such/program", transport).workers(3).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::NotFound { .. }), "{failed:?}");
        contains(failed.to_string(), "/no/such/program");
        let failed = program("no-such-program-anywhere", transport).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::NotFound { path: Some(_), .. }), "{failed:?}");
        let failed = program(&plain, transport).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::PermissionDenied { .. }), "{failed:?}");
        let failed = program(&script, transport).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::BadInterpreter { .. }), "{failed:?}");
        let failed = program(&garbage, transport).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::BadExecutable { .. }), "{failed:?}");
        let failed = jobs(transport).spec(|spec| spec.cwd("/no/such/directory")).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::BadWorkingDirectory { .. }), "{failed:?}");
        let failed = jobs(transport).spec(|spec| spec.arg("x".repeat(200_000))).start().await.unwrap_err();
        assert!(matches!(launch_error(&failed), LaunchError::ArgumentsTooLong { .. }), "{failed:?}");
    }
    eventually("no descriptor is leaked", || {
        let now = count();
        now.0 <= before.0 && now.1 <= before.1
    })
    .await;
    // A program that vanishes while the pool lives is an error, not a hang.
    let copy = scratch.path("copy");
    std::fs::copy("/proc/self/exe", &copy).unwrap();
    let spec = Spec::program(&copy)
        .env("PM_TEST_TOKENS", scratch.path("none"))
        .env("PM_TEST_SCRIPT", "[]")
        .stderr(Stderr::Quiet);
    let budget = Budget::crash_loops(2, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    let pool = PoolBuilder::<Job, Said, _, _>::program("copy", spec, transport, Postcard)
        .budget(budget)
        .start()
        .await
        .unwrap();
    std::fs::remove_file(&copy).unwrap();
    lost(pool.query(&Job::Exit(1)).await);
    let failed = pool.query(&Job::Pid).await.unwrap_err();
    contains(failed.to_string(), "was not found");
}

/// Plain programs, which say nothing, or something else than READY.
async fn programs_that_are_no_workers(transport: AnyTransport) {
    for (name, arguments) in [("true", &[][..]), ("false", &[]), ("echo", &["hello"]), ("cat", &[])] {
        let spec = Spec::program(name).args(arguments).stderr(Stderr::Quiet).start_timeout(Duration::from_millis(500));
        let failed =
            PoolBuilder::<Job, Said, _, _>::program(name, spec, transport, Postcard).start().await.unwrap_err();
        assert!(matches!(failed, StartError::Died { .. } | StartError::Handshake { .. }), "{name}: {failed:?}");
        contains(failed.to_string(), "pm pool -- PROGRAM {}");
        if name == "echo" {
            contains(failed.to_string(), "hello");
        }
    }
    // A worker of the right protocol and another codec.
    let spec = this_program().env("PM_TEST_TOKENS", "/none").env("PM_TEST_SCRIPT", "[]");
    let failed =
        PoolBuilder::<Vec<u8>, Vec<u8>, _, _>::program("codec", spec, transport, pm::Verbatim("bytes")).start().await;
    let failed = failed.map(drop).unwrap_err();
    contains(failed.to_string(), "\"bytes\"");
    contains(failed.to_string(), "postcard or json");
}

async fn no_descriptors_left(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).start().await.unwrap();
    let before = descriptors(std::process::id());
    // The numbers that are free below the limit are taken, but for a few.
    let limit = 100 + before as u64;
    setrlimit(Limit::Nofile, Rlimit { current: Some(limit), maximum: Some(4096) }).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    let mut failures = 0;
    for spare in 0..12 {
        let failed = jobs(transport).start().await;
        match failed {
            Err(StartError::Launch(error)) if matches!(*error, LaunchError::TooManyFiles { .. }) => failures += 1,
            Err(StartError::Transport(error)) => {
                contains(crate::support::chain(&*error), "open files");
                failures += 1;
            }
            Err(other) => panic!("with {spare} to spare: {other:?}"),
            Ok(pool) => drop(pool),
        }
        // Those that serve go on serving.
        assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
        taken.pop();
    }
    assert!(failures > 0);
    drop(taken);
    let another = jobs(transport).start().await.unwrap();
    assert!(matches!(another.query(&Job::Pid).await, Ok(Said::Pid(_))));
    another.shutdown().await;
    eventually("no descriptor is leaked", || descriptors(std::process::id()) <= before).await;
}

/// The keeper is killed, and with it every worker; the pool starts another one and goes on.
async fn the_keeper_is_killed(transport: AnyTransport) {
    let budget = Budget::crash_loops(1000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    let pool = jobs(transport).workers(2).budget(budget).start().await.unwrap();
    for _ in 0..3 {
        let (first, all) = (keeper().unwrap(), pids(&pool));
        kill(first, Kill::KILL);
        eventually("its workers are replaced", || {
            let now = pids(&pool);
            now.len() == 2 && now.iter().all(|pid| !all.contains(pid))
        })
        .await;
        assert_ne!(keeper(), Some(first));
        assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
    }
}
