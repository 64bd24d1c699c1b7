//! What does not want to end, whose signals and waits they are, and what is left when the manager or the keeper dies. Faults 4 to 10.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pm_core::driver::launch::{ChildState, Guard, SignalError, launch, run_if_keeper};
use pm_core::machine::exit::{ExitStatus, Signal};
use rustix::process::{Pid, kill_process};

use super::{
    BOTH, LIMIT, Life, NASTY, Outcome, ended, ensure, finish, parent, reexec, report, run, same, sh, start, text,
    within,
};

// --- what does not want to end

pub(super) fn sigterm_ignored_then_killed() -> Outcome {
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

pub(super) fn stop_is_reported_and_killed() -> Outcome {
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

pub(super) fn grandchild_holding_the_pipe() -> Outcome {
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

pub(super) fn strays_of_one_unit_only() -> Outcome {
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

/// A process whose main thread has ended reads as a zombie, and lives on.
pub(super) fn strays_without_their_main_thread() -> Outcome {
    let (mut life, end) = Life::new()?;
    run(async move {
        let mut command = end.into(sh("PM_LAUNCH_TEST=headless setsid \"$SELF\" & read _ <&9; exit 7"));
        let program = std::env::current_exe().map_err(text)?;
        command.env.push(("SELF".into(), program.into()));
        let mut child = start(Guard::Keeper, command).await?;
        same(life.line()?, "headless".to_owned())?;
        let begun = Instant::now();
        life.socket.write_all(b"go\n").map_err(text)?;
        same(ended(&mut child).await?.status, ExitStatus::Code(7))?;
        // Where it is overlooked, the keeper waits for five seconds, and it lives until its manager ends.
        ensure(begun.elapsed() < Duration::from_secs(4), format_args!("after {:?}", begun.elapsed()))?;
        life.ended()
    })
}

/// A grandchild that goes on without its main thread.
pub(super) fn headless() -> ! {
    std::thread::spawn(|| {
        let own = format!("/proc/{}/stat", process::id());
        while !fs::read_to_string(&own).is_ok_and(|stat| stat.contains(") Z ")) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let line = b"headless\n";
        // SAFETY: nine is the descriptor that the test has given, and the bytes are there.
        unsafe { libc::write(9, line.as_ptr().cast(), line.len()) };
        loop {
            std::thread::park();
        }
    });
    // SAFETY: ends this thread alone; nothing on its stack is used by the other one.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has ended")
}

pub(super) fn kill_tree_finds_descendants_without_cookie() -> Outcome {
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

pub(super) fn forking_tree_is_killed_while_others_are_served() -> Outcome {
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

// --- whose signals, whose waits

/// Needs root, which may choose the next pid. Others have nothing to test here.
pub(super) fn no_signal_to_a_reused_pid() -> Outcome {
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

pub(super) fn wait_cancelled_and_repeated() -> Outcome {
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

pub(super) fn dropped_child_dies() -> Outcome {
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

pub(super) fn cancelled_launch_leaves_nothing() -> Outcome {
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

pub(super) fn runtime_shut_down_with_live_children() -> Outcome {
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

pub(super) fn thread_that_launched_ends() -> Outcome {
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

// --- the manager dies, or the keeper

pub(super) fn manager_killed() -> Outcome {
    kill_manager("manager", NASTY.len())
}

pub(super) fn manager_killed_unguarded() -> Outcome {
    kill_manager("unguarded-manager", 1)
}

pub(super) fn kill_manager(name: &str, units: usize) -> Outcome {
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
pub(super) fn manager(guard: Guard, scripts: &[&str]) -> ! {
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

pub(super) fn keeper_killed() -> Outcome {
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
