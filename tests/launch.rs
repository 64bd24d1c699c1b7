//! Starting and ending processes, with real ones: the faults 1, 3 to 10, 24, 28 and 29.
//!
//! Whether processes are gone is never asked of the process table: each process that a test starts inherits one end of a
//! socket, and the test waits for the end of file at the other. The binary that runs these tests must call [`helper`] before
//! anything else, then `pm::roles`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pm_core::driver::launch::{
    Child, ChildState, Command, Exit, Guard, LaunchError, Resource, SignalError, launch, resolve_program, run_if_keeper,
};
use pm_core::machine::exit::{ExitStatus, Signal};
use rustix::process::{Pid, kill_process};

type Outcome = Result<(), String>;

/// How long anything here may take. It passes only where something hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// All tests, by name.
pub fn tests() -> Vec<(&'static str, fn() -> Outcome)> {
    vec![
        ("launch::exit_kinds", exit_kinds),
        ("launch::typed_errors", typed_errors),
        ("launch::errors_leak_no_descriptor", errors_leak_no_descriptor),
        ("launch::errors_of_an_unprivileged_manager", errors_of_an_unprivileged_manager),
        ("launch::too_many_files", too_many_files),
        ("launch::no_keeper", no_keeper),
        ("launch::sigterm_ignored_then_killed", sigterm_ignored_then_killed),
        ("launch::stop_is_reported_and_killed", stop_is_reported_and_killed),
        ("launch::grandchild_holding_the_pipe", grandchild_holding_the_pipe),
        ("launch::strays_of_one_unit_only", strays_of_one_unit_only),
        ("launch::kill_tree_finds_descendants_without_cookie", kill_tree_finds_descendants_without_cookie),
        ("launch::forking_tree_is_killed_while_others_are_served", forking_tree_is_killed_while_others_are_served),
        ("launch::no_signal_to_a_reused_pid", no_signal_to_a_reused_pid),
        ("launch::wait_cancelled_and_repeated", wait_cancelled_and_repeated),
        ("launch::dropped_child_dies", dropped_child_dies),
        ("launch::cancelled_launch_leaves_nothing", cancelled_launch_leaves_nothing),
        ("launch::runtime_shut_down_with_live_children", runtime_shut_down_with_live_children),
        ("launch::thread_that_launched_ends", thread_that_launched_ends),
        ("launch::manager_killed", manager_killed),
        ("launch::manager_killed_unguarded", manager_killed_unguarded),
        ("launch::keeper_killed", keeper_killed),
        ("launch::descriptors_are_exact", descriptors_are_exact),
        ("launch::descriptors_overlap", descriptors_overlap),
        ("launch::limits_and_signals", limits_and_signals),
        ("launch::user_and_group", user_and_group),
        ("launch::arguments_unchanged", arguments_unchanged),
        ("launch::large_environment", large_environment),
        ("launch::many_at_a_time", many_at_a_time),
    ]
}

/// Is what a test started this binary as, and never returns, if it did.
pub fn helper() {
    let Ok(name) = std::env::var("PM_LAUNCH_TEST") else { return };
    match name.as_str() {
        "fds" => print_descriptors(),
        "manager" => manager(Guard::Keeper, NASTY),
        "unguarded-manager" => manager(Guard::Unguarded, &NASTY[..1]),
        "unprivileged" => report(unprivileged()),
        "few-files" => report(few_files()),
        "no-roles" => report(no_roles()),
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

// --- 1, 3: how processes end, and how they do not start

fn exit_kinds() -> Outcome {
    run(async {
        for guard in BOTH {
            let status = async |script: String| Ok::<_, String>(finish(guard, sh(&script)).await?.status);
            same(status("exit 0".into()).await?, ExitStatus::Code(0))?;
            same(status("exit 7".into()).await?, ExitStatus::Code(7))?;
            for (name, number) in [("KILL", 9), ("TERM", 15)] {
                let ended = status(format!("kill -{name} $$")).await?;
                same(ended, ExitStatus::Signal { signal: number, core: false })?;
            }
            for (name, number) in [("SEGV", 11), ("ABRT", 6)] {
                let ended = status(format!("kill -{name} $$")).await?;
                same(ended.signal(), Some(Signal(number)))?;
            }
            let mut busy = start(guard, sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")).await?;
            let usage = ended(&mut busy).await?.usage;
            ensure(!usage.user.is_zero() && usage.max_rss_bytes > 100_000, format_args!("{usage:?}"))?;
        }
        Ok(())
    })
}

fn typed_errors() -> Outcome {
    let directory = scratch()?;
    let file = |name: &str, content: &[u8], mode: u32| -> Result<PathBuf, String> {
        let path = directory.join(name);
        fs::write(&path, content).map_err(text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(text)?;
        Ok(path)
    };
    let script = file("script", b"#!/no/such/interpreter -x\n", 0o755)?;
    let garbage = file("garbage", b"garbage", 0o755)?;
    let plain = file("plain", b"#!/bin/sh\n", 0o644)?;
    let outcome = run(async {
        for guard in BOTH {
            let fails = async |command: Command| match launch(guard, command).await {
                Ok(child) => Err(format!("{child:?} was started")),
                Err(error) => Ok(error),
            };
            match fails(Command::new("/no/such/program", "t")).await? {
                LaunchError::NotFound { program, .. } => same(program, PathBuf::from("/no/such/program"))?,
                other => return Err(format!("{other:?}")),
            }
            match fails(Command::new(&script, "t")).await? {
                LaunchError::BadInterpreter { interpreter, .. } => {
                    same(interpreter, PathBuf::from("/no/such/interpreter"))?;
                }
                other => return Err(format!("{other:?}")),
            }
            match fails(Command::new(&garbage, "t")).await? {
                LaunchError::BadExecutable { program, .. } => same(program, garbage.clone())?,
                other => return Err(format!("{other:?}")),
            }
            for denied in [plain.clone(), directory.clone()] {
                match fails(Command::new(&denied, "t")).await? {
                    LaunchError::PermissionDenied { program, .. } => same(program, denied)?,
                    other => return Err(format!("{other:?}")),
                }
            }
            for bad in ["/no/such/directory", "/etc/passwd"] {
                match fails(Command { cwd: Some(bad.into()), ..sh("exit 0") }).await? {
                    LaunchError::BadWorkingDirectory { directory, .. } => same(directory, PathBuf::from(bad))?,
                    other => return Err(format!("{other:?}")),
                }
            }
            let mut long = sh("exit 0");
            long.argv.push("x".repeat(200_000).into()); // more than MAX_ARG_STRLEN, 128 KiB
            match fails(long).await? {
                LaunchError::ArgumentsTooLong { bytes, .. } => ensure(bytes > 200_000, bytes)?,
                other => return Err(format!("{other:?}")),
            }
            let limit = (Resource::OpenFiles, 20, 10);
            match fails(Command { rlimits: vec![limit], ..sh("exit 0") }).await? {
                LaunchError::LimitRefused { limit, .. } => same(limit, "RLIMIT_NOFILE soft 20 hard 10".to_owned())?,
                other => return Err(format!("{other:?}")),
            }
            // The kernel counts the processes that the user has had before.
            let _first = start(guard, Command { uid: Some(65_533), ..sh("exec sleep 1000") }).await?;
            let crowded = Command { uid: Some(65_533), rlimits: vec![(Resource::Processes, 0, 0)], ..sh("exit 0") };
            match fails(crowded).await? {
                LaunchError::TooManyProcesses { .. } => {}
                other => return Err(format!("{other:?}")),
            }
            match fails(Command { argv: vec!["a\0b".into()], ..sh("exit 0") }).await? {
                LaunchError::NulByte { what } => same(what, "argument 0".to_owned())?,
                other => return Err(format!("{other:?}")),
            }
        }
        match resolve_program("no-such-program", Some("/bin:/usr/bin".as_ref())) {
            Err(LaunchError::NotFound { path: Some(_), .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    fs::remove_dir_all(directory).map_err(text)?;
    outcome
}

/// Both in the manager and in the keeper: whatever failed, the number of descriptors afterwards is that of before.
fn errors_leak_no_descriptor() -> Outcome {
    let (life, end) = Life::new()?;
    run(async move {
        let child = start(Guard::Keeper, end.into(sh("echo up >&9; exec sleep 1000"))).await?;
        let keeper = parent(child.pid())?;
        let count =
            || -> Result<usize, String> { Ok(fs::read_dir(format!("/proc/{keeper}/fd")).map_err(text)?.count()) };
        let before = count()?;
        for round in 0..20 {
            let (_ours, theirs) = UnixStream::pair().map_err(text)?;
            let mut command = Command::new("/no/such/program", "t");
            command.fds = vec![(5, Arc::new(theirs.into()))];
            if round % 2 == 1 {
                command.env.push(("LONG".into(), "x".repeat(20_000).into())); // by memfd
            }
            let failed = launch(Guard::Keeper, command).await;
            ensure(matches!(failed, Err(LaunchError::NotFound { .. })), format_args!("{failed:?}"))?;
        }
        // The keeper has handled nothing since its last answer, so it is quiet.
        same(count()?, before)?;
        drop(child);
        life.ended()
    })
}

fn errors_of_an_unprivileged_manager() -> Outcome {
    let directory = scratch()?;
    // The binary of the tests may lie where other users cannot look.
    let copy = directory.join("self");
    fs::copy("/proc/self/exe", &copy).map_err(text)?;
    for path in [&directory, &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(text)?;
    }
    let mut command = process::Command::new(&copy);
    command.env("PM_LAUNCH_TEST", "unprivileged").current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let outcome = reported(&mut command);
    fs::remove_dir_all(directory).map_err(text)?;
    outcome
}

/// In a process of its own, which is not root.
fn unprivileged() -> Outcome {
    run_if_keeper();
    run(async {
        let user = Command { uid: Some(0), ..sh("exit 0") };
        let nice = Command { nice: Some(-5), ..sh("exit 0") };
        let limit = Command { rlimits: vec![(Resource::OpenFiles, 1 << 20, 1 << 20)], ..sh("exit 0") };
        for guard in BOTH {
            let refused = launch(guard, user.clone()).await;
            ensure(
                matches!(&refused, Err(LaunchError::UserRefused { user, .. }) if user == "uid 0"),
                format_args!("{refused:?}"),
            )?;
            for command in [&nice, &limit] {
                let refused = launch(guard, command.clone()).await;
                ensure(matches!(refused, Err(LaunchError::LimitRefused { .. })), format_args!("{refused:?}"))?;
            }
            same(finish(guard, sh("exit 3")).await?.status, ExitStatus::Code(3))?;
        }
        Ok(())
    })
}

fn too_many_files() -> Outcome {
    reported(&mut reexec("few-files"))
}

/// In a process of its own, whose limit of open files is lowered when the keeper runs already.
fn few_files() -> Outcome {
    run_if_keeper();
    run(async {
        let count = || fs::read_dir("/proc/self/fd").map(Iterator::count).map_err(text);
        same(finish(Guard::Keeper, sh("exit 3")).await?.status, ExitStatus::Code(3))?;
        let before = count()?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let low = rustix::process::Rlimit { current: Some(before as u64), maximum: limit.maximum };
        let mut fill = Vec::new();
        rustix::process::setrlimit(rustix::process::Resource::Nofile, low).map_err(text)?;
        while let Ok(file) = fs::File::open("/dev/null") {
            fill.push(file);
        }
        let mut long = sh("exit 0");
        long.env.push(("LONG".into(), "x".repeat(20_000).into())); // needs a memfd
        let refused = launch(Guard::Keeper, long.clone()).await;
        let refused_too = launch(Guard::Unguarded, sh("exit 0")).await;
        drop(fill);
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).map_err(text)?;
        ensure(matches!(refused, Err(LaunchError::TooManyFiles { .. })), format_args!("{refused:?}"))?;
        ensure(matches!(refused_too, Err(LaunchError::TooManyFiles { .. })), format_args!("{refused_too:?}"))?;
        same(count()?, before)?;
        same(finish(Guard::Keeper, long).await?.status, ExitStatus::Code(0))?;

        // The same in the keeper, which takes its limit from the manager.
        let keeper = parent(start(Guard::Keeper, sh("exec sleep 1000")).await?.pid())?;
        let keeper = Pid::from_raw(keeper as i32);
        let low = rustix::process::Rlimit { current: Some(7), maximum: limit.maximum };
        rustix::process::prlimit(keeper, rustix::process::Resource::Nofile, low).map_err(text)?;
        let mut many = sh("exit 0");
        let null = Arc::new(OwnedFd::from(fs::File::open("/dev/null").map_err(text)?));
        many.fds = (3..9).map(|number| (number, null.clone())).collect();
        let refused = launch(Guard::Keeper, many.clone()).await;
        ensure(matches!(refused, Err(LaunchError::TooManyFiles { .. })), format_args!("{refused:?}"))?;
        rustix::process::prlimit(keeper, rustix::process::Resource::Nofile, limit).map_err(text)?;
        same(finish(Guard::Keeper, many).await?.status, ExitStatus::Code(0))
    })
}

fn no_keeper() -> Outcome {
    reported(reexec("no-roles").env("PATH", "/no/such"))?;
    reported(reexec("no-roles").env("PM_KEEPER", "/bin/true"))?;
    reported(reexec("no-roles").env("PM_KEEPER", "/no/such"))
}

/// In a process of its own that never calls `pm::roles()`.
fn no_roles() -> Outcome {
    run(async {
        let refused = launch(Guard::Keeper, sh("exit 0")).await;
        let Err(error @ LaunchError::NoKeeper { .. }) = refused else { return Err(format!("{refused:?}")) };
        let told = error.to_string();
        for way_out in ["pm::roles()", "install pm", ".unguarded()"] {
            ensure(told.contains(way_out), &told)?;
        }
        same(finish(Guard::Unguarded, sh("exit 3")).await?.status, ExitStatus::Code(3))
    })
}

// --- 4, 5, 6: what does not want to end

fn sigterm_ignored_then_killed() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        run(async move {
            let script = "trap '' TERM; trap 'echo alive >&9' USR1; echo up >&9; while :; do sleep 0.01; done";
            let mut child = start(guard, end.into(sh(script))).await?;
            same(life.line()?, "up".to_owned())?;
            child.signal(Signal::TERM).map_err(text)?;
            child.signal(Signal::USR1).map_err(text)?;
            // Signals arrive in order of their number, so TERM was seen if USR1 (10) is answered twice.
            same(life.line()?, "alive".to_owned())?;
            child.signal(Signal::USR1).map_err(text)?;
            same(life.line()?, "alive".to_owned())?;
            child.kill_tree();
            same(ended(&mut child).await?.status, ExitStatus::Signal { signal: 9, core: false })?;
            life.ended()
        })?;
    }
    Ok(())
}

fn stop_is_reported_and_killed() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        run(async move {
            let mut child = start(guard, end.into(sh("echo up >&9; exec sleep 1000"))).await?;
            same(life.line()?, "up".to_owned())?;
            let mut state = child.state();
            for _ in 0..3 {
                child.signal(Signal::STOP).map_err(text)?;
                within(state.wait_for(|state| *state == ChildState::Stopped(Signal::STOP))).await?.map_err(text)?;
                child.signal(Signal::CONT).map_err(text)?;
                within(state.wait_for(|state| *state == ChildState::Running)).await?.map_err(text)?;
            }
            child.signal(Signal::STOP).map_err(text)?;
            within(state.wait_for(|state| *state == ChildState::Stopped(Signal::STOP))).await?.map_err(text)?;
            child.kill_tree();
            same(ended(&mut child).await?.status, ExitStatus::Signal { signal: 9, core: false })?;
            life.ended()
        })?;
    }
    Ok(())
}

fn grandchild_holding_the_pipe() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        run(async move {
            let script = "setsid sh -c 'trap \"\" TERM; echo $$ >&9; exec sleep 1000' & read line <&9; exit 5";
            let mut child = start(guard, end.into(sh(script))).await?;
            let stray: u32 = life.line()?.parse().map_err(text)?;
            life.socket.write_all(b"go\n").map_err(text)?;
            let exit = ended(&mut child).await?;
            same(exit.status, ExitStatus::Code(5))?;
            match guard {
                Guard::Keeper => same((exit.strays, exit.stray_count), (vec![stray], 1))?,
                // It has left the group, and nobody knows it. That this is so is what the documentation says.
                Guard::Unguarded => {
                    let pid = Pid::from_raw(stray as i32).ok_or("no pid")?;
                    kill_process(pid, rustix::process::Signal::KILL).map_err(text)?;
                }
            }
            life.ended()
        })?;
    }
    Ok(())
}

fn strays_of_one_unit_only() -> Outcome {
    // The daemon answers on its descriptor 9, so that its life can be told from its answer.
    let script = "(setsid sh -c 'echo $$ >&9; while read line <&9; do echo $line >&9; done' &); exec sleep 1000";
    for by_exit in [false, true] {
        let (mut one, one_end) = Life::new()?;
        let (mut other, other_end) = Life::new()?;
        run(async move {
            let mut first = start(Guard::Keeper, one_end.into(sh(script))).await?;
            let second = start(Guard::Keeper, other_end.into(sh(script))).await?;
            let stray: u32 = one.line()?.parse().map_err(text)?;
            other.line()?;
            if by_exit {
                first.signal(Signal::TERM).map_err(text)?;
            } else {
                first.kill_tree();
            }
            let exit = ended(&mut first).await?;
            let signal = if by_exit { 15 } else { 9 };
            same(exit.status, ExitStatus::Signal { signal, core: false })?;
            // The shell that made the daemon an orphan may not have ended by itself yet.
            ensure(exit.strays.contains(&stray), format_args!("{exit:?} without {stray}"))?;
            one.ended()?;
            other.socket.write_all(b"still there\n").map_err(text)?;
            same(other.line()?, "still there".to_owned())?;
            drop(second);
            other.ended()
        })?;
    }
    Ok(())
}

fn kill_tree_finds_descendants_without_cookie() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        run(async move {
            let script = "env -i setsid sh -c 'setsid sleep 1000 & echo up >&9; wait' & wait";
            let mut child = start(guard, end.into(sh(script))).await?;
            same(life.line()?, "up".to_owned())?;
            child.kill_tree();
            same(ended(&mut child).await?.stray_count, 2)?;
            life.ended()
        })?;
    }
    Ok(())
}

fn forking_tree_is_killed_while_others_are_served() -> Outcome {
    let (mut life, end) = Life::new()?;
    run(async move {
        // Some 100 sleepers in sessions of their own, and two loops that go on making more.
        let script = "i=0; while [ $i -lt 100 ]; do (setsid sleep 1000 &); i=$((i+1)); done
            (setsid sh -c 'while :; do (setsid sleep 0.05 &); done' &)
            (setsid sh -c 'while :; do setsid sh -c \"sleep 0.05\" & sleep 0.002; done' &)
            echo up >&9; exec sleep 1000";
        let mut child = start(Guard::Keeper, end.into(sh(script))).await?;
        same(life.line()?, "up".to_owned())?;
        child.kill_tree();
        for _ in 0..20 {
            same(finish(Guard::Keeper, sh("exit 4")).await?.status, ExitStatus::Code(4))?;
        }
        let exit = ended(&mut child).await?;
        ensure(exit.stray_count >= 102 && exit.survivors.is_empty(), format_args!("{exit:?}"))?;
        life.ended()
    })
}

// --- 7, 8, 9: whose signals, whose waits

/// Needs root, which may choose the next pid. Others have nothing to test here.
fn no_signal_to_a_reused_pid() -> Outcome {
    let steer = |pid: u32| fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string());
    for guard in BOTH {
        run(async move {
            let mut child = start(guard, sh("exit 0")).await?;
            ended(&mut child).await?;
            let deadline = Instant::now() + LIMIT;
            let mut bystander = loop {
                if steer(child.pid()).is_err() {
                    return Ok(());
                }
                let mut bystander =
                    process::Command::new("/bin/sleep").arg("1000").process_group(0).spawn().map_err(text)?;
                if bystander.id() == child.pid() {
                    break bystander;
                }
                bystander.kill().and_then(|()| bystander.wait()).map_err(text)?;
                ensure(Instant::now() < deadline, "the pid was never free")?;
            };
            let refused = child.signal(Signal::KILL);
            ensure(matches!(refused, Err(SignalError::Ended { .. })), format_args!("{refused:?}"))?;
            child.kill_tree();
            drop(child);
            // Whatever that asked of the keeper has been done when this comes back.
            finish(Guard::Keeper, sh("exit 0")).await?;
            let alive = bystander.try_wait().map_err(text)?.is_none();
            bystander.kill().and_then(|()| bystander.wait()).map_err(text)?;
            ensure(alive, "the bystander was killed")
        })?;
    }
    Ok(())
}

fn wait_cancelled_and_repeated() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        run(async move {
            let mut child = start(guard, end.into(sh("echo up >&9; read line <&9; exit 6"))).await?;
            life.line()?;
            for _ in 0..100 {
                let mut wait = pin!(child.exited());
                let first = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                ensure(first.is_pending(), format_args!("{first:?}"))?;
            }
            life.socket.write_all(b"go\n").map_err(text)?;
            let exit = ended(&mut child).await?;
            same(exit.status, ExitStatus::Code(6))?;
            same(ended(&mut child).await?, exit.clone())?;
            same(child.exit(), Some(exit))?;
            life.ended()
        })?;
    }
    Ok(())
}

fn dropped_child_dies() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        let child = run(async move { start(guard, end.into(sh("echo up >&9; exec sleep 1000"))).await })?;
        life.line()?;
        // No runtime is alive here.
        drop(child);
        life.ended()?;
    }
    Ok(())
}

fn cancelled_launch_leaves_nothing() -> Outcome {
    for guard in BOTH {
        for polls in 0..40 {
            let (life, end) = Life::new()?;
            let command = end.into(sh("exec sleep 1000"));
            let mut launching = Box::pin(launch(guard, command));
            for _ in 0..polls {
                match launching.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Pending => std::thread::yield_now(),
                    Poll::Ready(started) => {
                        drop(started.map_err(text)?);
                        break;
                    }
                }
            }
            drop(launching);
            life.ended()?;
        }
    }
    Ok(())
}

fn runtime_shut_down_with_live_children() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().map_err(text)?;
        runtime.spawn(async move {
            // Under the keeper also what left its parents.
            let stray = if guard == Guard::Keeper { "(setsid sleep 1000 &)" } else { ":" };
            let script = format!("echo up >&9; {stray}; exec sleep 1000");
            let mut child = start(guard, end.into(sh(&script))).await?;
            Ok::<_, String>(child.exited().await)
        });
        life.line()?;
        drop(runtime);
        life.ended()?;
    }
    Ok(())
}

fn thread_that_launched_ends() -> Outcome {
    for guard in BOTH {
        let (mut life, end) = Life::new()?;
        let script = "while read line <&9; do echo $line >&9; done";
        let thread = std::thread::spawn(move || run(async move { start(guard, end.into(sh(script))).await }));
        let child = thread.join().map_err(|_| "the thread panicked")??;
        life.socket.write_all(b"still there\n").map_err(text)?;
        same(life.line()?, "still there".to_owned())?;
        drop(child);
        life.ended()?;
    }
    Ok(())
}

// --- 10: the manager dies, or the keeper

fn manager_killed() -> Outcome {
    kill_manager("manager", NASTY.len())
}

fn manager_killed_unguarded() -> Outcome {
    kill_manager("unguarded-manager", 1)
}

fn kill_manager(name: &str, units: usize) -> Outcome {
    let (mut life, end) = Life::new()?;
    let mut manager = reexec(name).stdin(OwnedFd::from(end.0)).spawn().map_err(text)?;
    let mut seen = BTreeSet::new();
    while seen.len() < units + 1 {
        seen.insert(life.line()?);
    }
    manager.kill().map_err(text)?;
    let killed = Instant::now();
    let gone = life.ended();
    let took = killed.elapsed();
    manager.wait().map_err(text)?;
    gone?;
    ensure(took < Duration::from_secs(1), format_args!("it took {took:?}"))
}

/// In a process of its own: starts `scripts`, says that they run, and waits to be killed.
fn manager(guard: Guard, scripts: &[&str]) -> ! {
    run_if_keeper();
    let stdin = std::io::stdin();
    let outcome = run(async {
        let end = Arc::new(stdin.as_fd().try_clone_to_owned().map_err(text)?);
        let mut children = Vec::new();
        for script in scripts {
            let mut command = sh(script);
            command.fds = vec![(9, end.clone())];
            children.push(start(guard, command).await?);
        }
        let stopped = async {
            for child in &children {
                if let ChildState::Stopped(_) = &*child.state().borrow() {
                    return true;
                }
            }
            false
        };
        // The one that stops itself has done so before this says that all is up.
        if scripts.len() > 1 && !stopped.await {
            let mut state = children[5].state();
            within(state.wait_for(|state| matches!(state, ChildState::Stopped(_)))).await?.map_err(text)?;
        }
        rustix::io::write(&end, b"up\n").map_err(text)?;
        std::future::pending::<Outcome>().await
    });
    report(outcome)
}

fn keeper_killed() -> Outcome {
    let (mut life, end) = Life::new()?;
    run(async move {
        let script = "(setsid sh -c 'echo up >&9; exec sleep 1000' &); exec sleep 1000";
        let mut child = start(Guard::Keeper, end.into(sh(script))).await?;
        life.line()?;
        let keeper = parent(child.pid())?;
        kill_process(Pid::from_raw(keeper as i32).ok_or("no pid")?, rustix::process::Signal::KILL).map_err(text)?;
        same(ended(&mut child).await?.status, ExitStatus::Lost)?;
        // The direct child died with the keeper, the stray because the manager looked for it.
        life.ended()?;
        let mut next = start(Guard::Keeper, sh("exit 3")).await?;
        same(ended(&mut next).await?.status, ExitStatus::Code(3))?;
        ensure(!PathBuf::from(format!("/proc/{keeper}")).exists(), "the keeper was not reaped")
    })
}

// --- 24, 28, 29: what a process gets

fn descriptors_are_exact() -> Outcome {
    let threads: Vec<_> = (0..32)
        .map(|index| {
            std::thread::spawn(move || {
                run(async move {
                    for round in 0..3 {
                        // `dup` without close-on-exec: what a careless library leaves open.
                        let (one, other) = UnixStream::pair().map_err(text)?;
                        let _careless = (rustix::io::dup(&one).map_err(text)?, rustix::io::dup(&other).map_err(text)?);
                        let (ours, theirs) = UnixStream::pair().map_err(text)?;
                        let theirs = Arc::new(OwnedFd::from(theirs));
                        let mut command = Command::new("/proc/self/exe", "t");
                        command.program = std::env::current_exe().map_err(text)?;
                        command.env = vec![("PM_LAUNCH_TEST".into(), "fds".into())];
                        command.fds = vec![(1, theirs.clone()), (7 + round, theirs)];
                        let mut child = start(BOTH[(index + round as usize) % 2], command).await?;
                        let status = ended(&mut child).await?.status;
                        same(status, ExitStatus::Code(0))?;
                        let mut said = String::new();
                        ours.set_read_timeout(Some(LIMIT)).map_err(text)?;
                        BufReader::new(ours).read_to_string(&mut said).map_err(text)?;
                        same(said, format!("0 /dev/null\n1 socket\n2 /dev/null\n{} socket\n", 7 + round))?;
                    }
                    Ok(())
                })
            })
        })
        .collect();
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
}

/// In a process of its own: prints its descriptors, but for the one that it reads them by.
fn print_descriptors() -> ! {
    let mut found = Vec::new();
    let entries = fs::read_dir("/proc/self/fd").expect("the directory is there");
    for entry in entries.map_while(Result::ok) {
        let (Ok(number), Ok(target)) =
            (entry.file_name().to_string_lossy().parse::<i32>(), fs::read_link(entry.path()))
        else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if !target.ends_with("/fd") {
            found.push((number, target.split(':').next().unwrap_or_default().to_owned()));
        }
    }
    found.sort();
    found.iter().for_each(|(number, target)| println!("{number} {target}"));
    process::exit(0)
}

/// Targets that are numbers of other sources, in a circle.
fn descriptors_overlap() -> Outcome {
    for guard in BOTH {
        run(async move {
            let mut ours = Vec::new();
            let mut theirs = Vec::new();
            for _ in 0..4 {
                let (mine, other) = UnixStream::pair().map_err(text)?;
                mine.set_read_timeout(Some(LIMIT)).map_err(text)?;
                ours.push(mine);
                theirs.push(Arc::new(OwnedFd::from(other)));
            }
            let numbers: Vec<i32> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
            // Here the sources are these numbers, in the keeper the lowest above its own.
            let targets = match guard {
                Guard::Keeper => vec![8, 5, 6, 7],
                Guard::Unguarded => vec![numbers[1], numbers[2], numbers[3], numbers[0]],
            };
            let echo = |(index, number)| format!("echo {index} >&{number}; ");
            let mut command = sh(&targets.iter().enumerate().map(echo).collect::<String>());
            command.program = "/bin/bash".into(); // a plain sh knows descriptors of one digit only
            command.fds = targets.iter().copied().zip(theirs.iter().cloned()).collect();
            drop(theirs);
            let mut child = start(guard, command).await?;
            ended(&mut child).await?;
            for (index, mine) in ours.into_iter().enumerate() {
                let mut said = String::new();
                BufReader::new(mine).read_to_string(&mut said).map_err(text)?;
                same(said, format!("{index}\n"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn limits_and_signals() -> Outcome {
    for guard in BOTH {
        run(async move {
            let mut command = Command::new("/bin/grep", "t");
            command.argv =
                ["grep", "-hE", "^(Sig(Blk|Ign)|Max (open files|core))", "/proc/self/status", "/proc/self/limits"]
                    .map(OsString::from)
                    .into();
            command.rlimits = vec![(Resource::OpenFiles, 30, 40), (Resource::Core, 0, u64::MAX)];
            let said = output(guard, command).await?;
            let mut words = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            // This process ignores SIGPIPE, as every Rust program does.
            same(words.next(), Some("SigBlk: 0000000000000000".to_owned()))?;
            same(words.next(), Some("SigIgn: 0000000000000000".to_owned()))?;
            same(words.next(), Some("Max core file size 0 unlimited bytes".to_owned()))?;
            same(words.next(), Some("Max open files 30 40 files".to_owned()))?;

            let nice = Command { nice: Some(7), ..sh("nice >&1") };
            same(output(guard, nice).await?, "7\n".to_owned())?;
            let here = Command { cwd: Some("/usr".into()), ..sh("pwd") };
            same(output(guard, here).await?, "/usr\n".to_owned())?;
            let group = output(guard, sh("cut -d' ' -f1,5 /proc/$$/stat")).await?;
            let mut numbers = group.split_whitespace();
            same(numbers.next(), numbers.next())?;
            let cpu = Command { rlimits: vec![(Resource::Cpu, 1, 2)], ..sh("while :; do :; done") };
            let ended = finish(guard, cpu).await?;
            same(ended.status.signal().map(|signal| signal.to_string()), Some("SIGXCPU".to_owned()))
        })?;
    }
    Ok(())
}

/// Needs root; others cannot become somebody else.
fn user_and_group() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for guard in BOTH {
        run(async move {
            let other = Command { uid: Some(65_534), gid: Some(65_533), ..sh("id -u; id -g; id -G") };
            same(output(guard, other).await?, "65534\n65533\n65533\n".to_owned())?;
            // Changing the user of a child that shares our memory must not make us undumpable.
            same(rustix::process::dumpable_behavior(), Ok(rustix::process::DumpableBehavior::Dumpable))
        })?;
    }
    Ok(())
}

fn arguments_unchanged() -> Outcome {
    let arguments = ["-n", "--help", "two\nlines", "$(touch /tmp/no)", "`id`", "*", "", " ", "a'b\"c\\", "ü"];
    for guard in BOTH {
        run(async move {
            let mut command = Command::new("/usr/bin/printf", "t");
            command.argv = ["printf", "<%s>"].into_iter().chain(arguments).map(OsString::from).collect();
            let expected: String = arguments.iter().map(|argument| format!("<{argument}>")).collect();
            same(output(guard, command).await?, expected)
        })?;
    }
    Ok(())
}

fn large_environment() -> Outcome {
    for guard in BOTH {
        run(async move {
            let mut command = sh("echo ${#LONG} $LAST $PM_UNIT");
            for index in 0..10 {
                command.env.push((format!("PAD{index}").into(), "p".repeat(100_000).into()));
            }
            command.env.push(("LONG".into(), "x".repeat(100_000).into()));
            command.env.push(("LAST".into(), "end".into()));
            command.env.push(("PM_UNIT".into(), "forged".into()));
            let said = output(guard, command).await?;
            ensure(said.starts_with("100000 end ") && said.trim_end().ends_with(".t"), said)
        })?;
    }
    Ok(())
}

fn many_at_a_time() -> Outcome {
    for guard in BOTH {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().map_err(text)?;
        runtime.block_on(async {
            let tasks: Vec<_> = (0..100)
                .map(|index| {
                    tokio::spawn(async move {
                        same(finish(guard, sh(&format!("exit {index}"))).await?.status, ExitStatus::Code(index))
                    })
                })
                .collect();
            for task in tasks {
                within(task).await?.map_err(text)??;
            }
            Ok::<_, String>(())
        })?;
    }
    Ok(())
}

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
