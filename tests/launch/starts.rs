//! How processes end by themselves, and how they do not start. Faults 1 and 3.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;

use pm_core::driver::launch::{Command, Guard, LaunchError, Resource, launch, resolve_program, run_if_keeper};
use pm_core::machine::exit::{ExitStatus, Signal};
use rustix::process::Pid;

use super::{
    BOTH, Life, Outcome, ended, ensure, finish, parent, reexec, reported, run, same, scratch, sh, start, text,
};

pub(super) fn exit_kinds() -> Outcome {
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

pub(super) fn typed_errors() -> Outcome {
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
pub(super) fn errors_leak_no_descriptor() -> Outcome {
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

pub(super) fn errors_of_an_unprivileged_manager() -> Outcome {
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
pub(super) fn unprivileged() -> Outcome {
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

pub(super) fn too_many_files() -> Outcome {
    reported(&mut reexec("few-files"))
}

/// In a process of its own, whose limit of open files is lowered when the keeper runs already.
pub(super) fn few_files() -> Outcome {
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

pub(super) fn no_keeper() -> Outcome {
    reported(reexec("no-roles").env("PATH", "/no/such"))?;
    reported(reexec("no-roles").env("PM_KEEPER", "/bin/true"))?;
    reported(reexec("no-roles").env("PM_KEEPER", "/no/such"))
}

/// In a process of its own that never calls `pm::roles()`.
pub(super) fn no_roles() -> Outcome {
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
