//! What a process gets from its manager, and what it does not. Faults 24, 28 and 29.

use std::ffi::OsString;
use std::fs;
use std::io::{BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;

use pm_core::driver::launch::{Command, Guard, Resource};
use pm_core::machine::exit::ExitStatus;

use super::{BOTH, LIMIT, Outcome, ended, ensure, finish, output, run, same, sh, start, text, within};

pub(super) fn descriptors_are_exact() -> Outcome {
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
pub(super) fn print_descriptors() -> ! {
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
pub(super) fn descriptors_overlap() -> Outcome {
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

pub(super) fn limits_and_signals() -> Outcome {
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
pub(super) fn user_and_group() -> Outcome {
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

pub(super) fn arguments_unchanged() -> Outcome {
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

pub(super) fn large_environment() -> Outcome {
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

pub(super) fn many_at_a_time() -> Outcome {
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
