//! Other programs, run once: what they get, how they end, and what is an error. Row R5.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::core::driver::launch::LaunchError;
use pm::{Exec, ExecError, ExitStatus, Output, OutputStream, Signal, Spec, SpecBuilder, exec, shell};
use rustix::process::Signal as Kill;

use crate::support::{
    LIMIT, LONG, MARK, Scratch, alone, contains, descriptors, eventually, gone_within, keeper, kill, mark, marked, one,
    run, within, zombies,
};

/// More than a pipe holds, even where somebody has made it larger.
const MUCH: usize = 10 << 20;

pub fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        one("exec::success_and_both_streams", success_and_both_streams),
        one("exec::another_code_is_an_output_until_it_is_checked", another_code_is_an_output_until_it_is_checked),
        one("exec::death_by_a_signal", death_by_a_signal),
        one("exec::programs_that_cannot_be_started", programs_that_cannot_be_started),
        one("exec::specs_that_make_no_sense", specs_that_make_no_sense),
        one("exec::a_timeout_kills_the_whole_tree", a_timeout_kills_the_whole_tree),
        one("exec::too_much_output", too_much_output),
        one("exec::all_that_is_printed_before_the_end_arrives", all_that_is_printed_before_the_end_arrives),
        one("exec::much_goes_through", much_goes_through),
        one("exec::a_program_that_ignores_its_input", a_program_that_ignores_its_input),
        one("exec::a_program_that_closes_its_input", a_program_that_closes_its_input),
        one("exec::a_program_that_closes_its_output_and_goes_on", a_program_that_closes_its_output_and_goes_on),
        one("exec::the_environment_is_merged_replaced_or_listed", the_environment_is_merged_replaced_or_listed),
        one("exec::arguments_reach_a_program_unchanged", arguments_reach_a_program_unchanged),
        one("exec::texts_for_the_shell", texts_for_the_shell),
        one("exec::the_working_directory_and_niceness", the_working_directory_and_niceness),
        one("exec::somebody_holds_the_pipes", somebody_holds_the_pipes),
        one("exec::dropping_the_future_kills", dropping_the_future_kills),
        one("exec::secrets_are_not_told", secrets_are_not_told),
        one("exec::debug_is_short", debug_is_short),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(Trial::test("exec::one_thread_is_enough", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(much_goes_through());
        Ok(())
    }));
    trials.push(by_itself("exec::memory_has_a_bound", memory_has_a_bound));
    trials.push(by_itself("exec::no_descriptors_left", no_descriptors_left));
    trials.push(by_itself("exec::in_process_mode_changes_nothing", in_process_mode_changes_nothing));
    trials.push(by_itself("exec::the_keeper_is_killed", the_keeper_is_killed));
    trials
}

/// A test with a process of its own.
fn by_itself<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    alone(name, || {
        run(test());
        Ok(())
    })
}

/// Both ways to start a program.
const GUARDS: [fn(SpecBuilder) -> SpecBuilder; 2] = [|spec| spec, SpecBuilder::unguarded];

#[track_caller]
fn output(exec: Exec) -> impl Future<Output = Output> {
    let output = within(exec.output());
    async { output.await.unwrap() }
}

#[track_caller]
fn error(exec: Exec) -> impl Future<Output = ExecError> {
    let output = within(exec.output());
    async { output.await.unwrap_err() }
}

// --- how they end

async fn success_and_both_streams() {
    for guard in GUARDS {
        let said = output(shell("echo out; echo err >&2; echo more").spec(guard)).await;
        assert_eq!(said.status, ExitStatus::Code(0));
        assert_eq!((said.stdout.as_slice(), said.stderr.as_slice()), (&b"out\nmore\n"[..], &b"err\n"[..]));
        assert_eq!(said.text(), "out\nmore");
        assert_eq!(said.clone().check().unwrap(), said);
        // The standard input is empty.
        assert_eq!(output(exec(["cat"]).spec(guard)).await.stdout, b"");
    }
}

async fn another_code_is_an_output_until_it_is_checked() {
    let text = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; printf 'at \\033[2J\\r last\\n' >&2; exit 7";
    let said = output(shell(text)).await;
    assert_eq!(said.status, ExitStatus::Code(7));
    assert!(said.stderr.starts_with(b"line 0\nline 1\n"));
    let failed = said.check().unwrap_err();
    contains(failed.to_string(), "\"/bin/sh\" failed: exit code 7; its last output: ");
    let ExecError::Failed { program, status, stderr } = failed else { panic!("{failed:?}") };
    assert_eq!((program.as_path(), status), (Path::new("/bin/sh"), ExitStatus::Code(7)));
    assert!(stderr.ends_with("line 1998\nline 1999\nat \\u{1b}[2J\\r last\n"), "{stderr:?}");
    assert!((4 << 10..5 << 10).contains(&stderr.len()), "{}", stderr.len());
    // Without a word.
    let failed = output(exec(["false"])).await.check().unwrap_err();
    assert_eq!(failed.to_string(), "\"false\" failed: exit code 1");
}

async fn death_by_a_signal() {
    for guard in GUARDS {
        let said = output(shell("echo before; kill -KILL $$").spec(guard)).await;
        assert_eq!((said.status.signal(), said.stdout.as_slice()), (Some(Signal::KILL), &b"before\n"[..]));
        let failed = said.check().unwrap_err();
        assert_eq!(failed.to_string(), "\"/bin/sh\" failed: killed by SIGKILL");
    }
}

async fn programs_that_cannot_be_started() {
    let scratch = Scratch::new();
    let file = |name: &str, mode: u32| {
        let path = scratch.path(name);
        fs::write(&path, "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    for guard in GUARDS {
        for name in ["no-such-program", "/no/such/program"] {
            let failed = error(exec([name]).spec(guard)).await;
            assert!(matches!(failed, ExecError::NotFound(LaunchError::NotFound { .. })), "{failed:?}");
            contains(failed.to_string(), "was not found");
            contains(failed.to_string(), name);
        }
        let plain = file("plain", 0o644);
        let failed = error(exec([&plain]).spec(guard)).await;
        assert!(matches!(failed, ExecError::PermissionDenied(LaunchError::PermissionDenied { .. })), "{failed:?}");
        contains(failed.to_string(), "chmod +x");
        contains(failed.to_string(), &plain.to_string_lossy());
        let failed = error(exec(["pwd"]).spec(|spec| guard(spec.cwd("/no/such/directory")))).await;
        assert!(matches!(failed, ExecError::Launch(LaunchError::BadWorkingDirectory { .. })), "{failed:?}");
        contains(failed.to_string(), "\"/no/such/directory\"");
        let failed = error(exec([file("script", 0o755)]).spec(guard)).await;
        assert!(matches!(failed, ExecError::Launch(LaunchError::BadInterpreter { .. })), "{failed:?}");
        let failed = error(exec(["true", &"x".repeat(200_000)]).spec(guard)).await;
        assert!(matches!(failed, ExecError::Launch(LaunchError::ArgumentsTooLong { .. })), "{failed:?}");
    }
}

async fn specs_that_make_no_sense() {
    let failed = error(exec([""; 0])).await;
    assert!(matches!(failed, ExecError::Spec(_)), "{failed:?}");
    contains(failed.to_string(), "the program to run is empty");
    let failed = error(exec(["echo", "a\0b"])).await;
    contains(failed.to_string(), "an argument holds a NUL byte");
    let failed = error(exec(["true"]).timeout(Duration::ZERO)).await;
    contains(failed.to_string(), "the timeout is zero");
    for spec in [Spec::role("zoo"), Spec::program("/bin/true").serving("zoo")] {
        let failed = error(Exec::from_spec(spec)).await;
        assert!(matches!(&failed, ExecError::Role { role } if role == "zoo"), "{failed:?}");
        contains(failed.to_string(), "`Spec::program`");
    }
    let failed = error(exec(["true"]).spec(|spec| spec.listen(Path::new("/no/such/socket")))).await;
    assert!(matches!(failed, ExecError::Listens { .. }), "{failed:?}");
}

// --- how they are ended

/// Prints the pid of a grandchild in the group and of one that has left it, and goes on without an end.
const TREE: &str =
    "echo alas >&2; sh -c 'echo $$; exec sleep 1000' & setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & wait";

async fn a_timeout_kills_the_whole_tree() {
    // Without a keeper as well: both are descendants of the shell when it is killed.
    for guard in GUARDS {
        let mut given = Duration::from_millis(100);
        // It is as long as it takes until all of the tree is there.
        let (pids, mark) = loop {
            let mark = mark();
            let failed = error(shell(TREE).spec(|spec| guard(spec.env(MARK, &mark))).timeout(given)).await;
            let told = failed.to_string();
            let ExecError::TimedOut { program, limit, stdout, stderr } = failed else { panic!("{failed:?}") };
            assert_eq!((program.as_path(), limit), (Path::new("/bin/sh"), given));
            contains(&told, &format!("\"/bin/sh\" took longer than {given:?}"));
            let pids: Vec<u32> = stdout.lines().map(|line| line.parse().unwrap()).collect();
            if pids.len() == 2 {
                assert_eq!(stderr, "alas\n");
                contains(told, "alas");
                break (pids, mark);
            }
            given *= 2;
        };
        for pid in pids {
            gone_within(pid, LIMIT);
        }
        eventually("nothing is left", || marked(&mark).is_empty()).await;
    }
}

async fn too_much_output() {
    let mark = mark();
    for guard in GUARDS {
        for (text, stream) in [("echo alas >&2; yes", OutputStream::Stdout), ("yes alas >&2", OutputStream::Stderr)] {
            let flood = shell(text).spec(|spec| guard(spec.env(MARK, &mark))).output_limit(100_000).timeout(LONG);
            let failed = error(flood).await;
            let told = failed.to_string();
            contains(&told, &format!("printed more than 100000 bytes to its {stream}"));
            contains(&told, "raise `output_limit`");
            let ExecError::TooMuchOutput { program, stream: flooded, limit, stderr } = failed else {
                panic!("{failed:?}")
            };
            assert_eq!((program.as_path(), flooded, limit), (Path::new("/bin/sh"), stream, 100_000));
            contains(stderr, "alas\n");
        }
        eventually("nothing is left", || marked(&mark).is_empty()).await;
        // What is within the limit until the last byte is no error, also where it is read after the end.
        for (count, is_too_much) in [(100_000, false), (100_001, true), (40_000, false)] {
            let printed = exec(["head", "-c", &count.to_string(), "/dev/zero"]).spec(guard).output_limit(100_000);
            match within(printed.output()).await {
                Ok(said) => assert!(!is_too_much && said.stdout == vec![0; count]),
                Err(failed) => assert!(is_too_much, "{failed}"),
            }
        }
        let failed = error(exec(["echo"]).spec(guard).output_limit(0)).await;
        assert!(matches!(failed, ExecError::TooMuchOutput { limit: 0, .. }), "{failed:?}");
        assert!(output(exec(["true"]).spec(guard).output_limit(0)).await.status.success());
    }
}

async fn dropping_the_future_kills() {
    // Without a keeper, what leaves the group while it is being killed is nobody's.
    for (guard, grandchild) in GUARDS.into_iter().zip(["setsid sleep 1000", "sleep 1000"]) {
        let scratch = Scratch::new();
        let (mark, file) = (mark(), scratch.path("begun"));
        let text = format!("{grandchild} & : > \"$1\"; wait");
        let text = shell(text).spec(|spec| guard(spec.arg(&file).env(MARK, &mark)));
        let running = tokio::spawn(text.clone().output());
        eventually("it runs", || file.exists()).await;
        assert!(!marked(&mark).is_empty());
        running.abort();
        eventually("nothing is left", || marked(&mark).is_empty()).await;
        // While it is being started as well.
        for _ in 0..10 {
            let dropped = tokio::time::timeout(Duration::ZERO, text.clone().output()).await;
            assert!(dropped.is_err(), "{dropped:?}");
        }
        eventually("nothing is left", || marked(&mark).is_empty()).await;
    }
}

// --- pipes

async fn all_that_is_printed_before_the_end_arrives() {
    for guard in GUARDS {
        for _ in 0..10 {
            let text = "head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2; printf end; printf end >&2; exit 3";
            let said = output(shell(text).spec(guard)).await;
            assert_eq!(said.status, ExitStatus::Code(3));
            for printed in [said.stdout, said.stderr] {
                assert_eq!(printed.len(), (1 << 20) + 3);
                assert!(printed.ends_with(b"end"));
            }
        }
    }
}

async fn much_goes_through() {
    let sent: Vec<u8> = (0..MUCH).map(|n| (n % 251) as u8).collect();
    for guard in GUARDS {
        let said = output(exec(["cat"]).spec(guard).stdin(sent.clone())).await;
        assert!(said.status.success() && said.stdout == sent, "{said:?}");
        // Both streams at the same time.
        let said = output(exec(["tee", "/dev/stderr"]).spec(guard).stdin(sent.clone())).await;
        assert!(said.stdout == sent && said.stderr == sent, "{said:?}");
    }
}

async fn a_program_that_ignores_its_input() {
    for guard in GUARDS {
        let said = output(shell("echo done; exit 4").spec(guard).stdin(vec![b'x'; MUCH])).await;
        assert_eq!((said.status, said.stdout.as_slice()), (ExitStatus::Code(4), &b"done\n"[..]));
        // A part of it.
        let said = output(exec(["head", "-c", "5"]).spec(guard).stdin(vec![b'x'; MUCH])).await;
        assert_eq!(said.stdout, b"xxxxx");
        // Nothing that could be read.
        assert_eq!(output(exec(["wc", "-c"]).spec(guard).stdin("")).await.text(), "0");
    }
}

async fn a_program_that_closes_its_input() {
    for guard in GUARDS {
        // That it goes on for longer than the pipe is open is seen from what it copies afterwards.
        let text = "exec 0<&-; head -c 1048576 /dev/zero; echo closed >&2";
        let said = output(shell(text).spec(guard).stdin(vec![b'x'; MUCH])).await;
        assert!(said.status.success(), "{said:?}");
        assert_eq!((said.stdout.len(), said.stderr.as_slice()), (1 << 20, &b"closed\n"[..]));
    }
}

async fn a_program_that_closes_its_output_and_goes_on() {
    let scratch = Scratch::new();
    let fifo = scratch.path("fifo");
    for guard in GUARDS {
        let text = "echo out; mkfifo \"$1\"; exec >&- 2>&- 0<&-; read _ < \"$1\"; rm \"$1\"; exit 5";
        let running = tokio::spawn(shell(text).spec(|spec| guard(spec.arg(&fifo))).output());
        eventually("it waits", || fifo.exists()).await;
        let to_it = fifo.clone();
        within(tokio::task::spawn_blocking(move || fs::write(to_it, "go\n"))).await.unwrap().unwrap();
        let said = within(running).await.unwrap().unwrap();
        assert_eq!((said.status, said.stdout.as_slice()), (ExitStatus::Code(5), &b"out\n"[..]));
    }
}

async fn somebody_holds_the_pipes() {
    // It says that it holds them before the program ends, and goes on printing.
    let holder = "echo $$; kill -USR1 $PPID; while :; do echo on; sleep 0.01; done";
    let text = format!("trap 'echo bye; exit 6' USR1; setsid sh -c '{holder}' & wait");
    let holds = async |guard: fn(SpecBuilder) -> SpecBuilder, mark: &str| {
        let said = output(shell(&text).spec(|spec| guard(spec.env(MARK, mark)))).await;
        assert_eq!(said.status, ExitStatus::Code(6));
        let said = said.text().into_owned();
        contains(&said, "bye");
        said.lines().next().unwrap().parse::<u32>().unwrap()
    };
    // The keeper ends it with the program.
    let mark = mark();
    gone_within(holds(GUARDS[0], &mark).await, LIMIT);
    eventually("nothing is left", || marked(&mark).is_empty()).await;
    // Nobody else does, and it is not waited for.
    kill(holds(GUARDS[1], &mark).await, Kill::KILL);
    eventually("nothing is left", || marked(&mark).is_empty()).await;
}

// --- what they get

async fn the_environment_is_merged_replaced_or_listed() {
    let environment = async |change: fn(SpecBuilder) -> SpecBuilder| {
        let said = output(exec(["env"]).spec(change)).await;
        let mut lines: Vec<String> = said.text().lines().map(str::to_string).collect();
        lines.retain(|line| !line.starts_with("PM_UNIT="));
        lines
    };
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    let merged = environment(|spec| spec.env("OWN", "1").env("HOME", "/elsewhere")).await;
    for variable in [&path, "OWN=1", "HOME=/elsewhere"] {
        assert!(merged.iter().any(|line| line == variable), "{variable} is not in {merged:?}");
    }
    assert_eq!(merged.iter().filter(|line| line.starts_with("HOME=")).count(), 1);
    // What this process was told as a worker is meant for no other one; what is set for that one is.
    let socket = environment(|spec| spec.env("PM_SOCKET", "/run/pool").allow_env("PM_LINK")).await;
    assert_eq!(socket, ["PM_SOCKET=/run/pool"]);
    // Without PATH it is looked for where the system has its programs.
    assert_eq!(environment(|spec| spec.env("OWN", "1").replace_env()).await, ["OWN=1"]);
    assert_eq!(environment(|spec| spec.allow_env("PATH")).await, [path]);
}

async fn arguments_reach_a_program_unchanged() {
    let words: Vec<OsString> =
        ["$(id)", "`id`", "a\nb\n", "-n", "--", "--help", "", " ", "*", "~", "'\"\\", "${HOME}", "é"]
            .map(OsString::from)
            .into_iter()
            .chain([OsString::from_vec(vec![0xff, b'\t', 0x80])])
            .collect();
    let expected: Vec<u8> = words.iter().flat_map(|word| [word.clone().into_vec(), vec![0]].concat()).collect();
    for guard in GUARDS {
        let said = output(exec(["printf", "%s\\0"]).spec(|spec| guard(spec.args(&words)))).await;
        assert_eq!(said.stdout, expected);
        // Through the shell as its arguments, too.
        let said = output(shell("printf '%s\\0' \"$@\"").spec(|spec| guard(spec.args(&words)))).await;
        assert_eq!(said.stdout, expected);
    }
}

async fn texts_for_the_shell() {
    assert_eq!(output(shell("printf '1\\n2\\n' | wc -l; echo $((6 * 7))")).await.text(), "2\n42");
    // One that begins as an option does.
    let said = output(shell("-no-such-program")).await;
    assert_eq!(said.status, ExitStatus::Code(127), "{said:?}");
    contains(said.check().unwrap_err().to_string(), "-no-such-program");
    let failed = output(shell("echo 'unclosed")).await.check().unwrap_err();
    assert!(matches!(failed, ExecError::Failed { .. }), "{failed:?}");
}

async fn the_working_directory_and_niceness() {
    let scratch = Scratch::new();
    let path = fs::canonicalize(scratch.path("")).unwrap();
    let said = output(exec(["pwd"]).spec(|spec| spec.cwd(&path))).await;
    assert_eq!(said.text(), path.to_string_lossy());
    assert_eq!(output(exec(["nice"]).spec(|spec| spec.nice(13))).await.text(), "13");
}

async fn secrets_are_not_told() {
    let secret = |exec: Exec| exec.spec(|spec| spec.env("TOKEN", "hunter2")).stdin("hunter2");
    let built = secret(exec(["true"]));
    let mut told = format!("{built:?}");
    contains(&told, "TOKEN");
    let failures = [
        secret(exec(["no-such-program"])),
        secret(exec(["true"])).spec(|spec| spec.cwd("/no/such/directory")),
        secret(exec(["sleep", "1000"])).timeout(Duration::from_millis(1)),
        secret(exec(["yes"])).output_limit(10),
        secret(exec(["true"])).spec(|spec| spec.env("TOKEN", "hunter2\0")),
        secret(exec(["true"])).spec(|spec| spec.arg("x".repeat(200_000))),
    ];
    for failure in failures {
        let failed = error(failure).await;
        told += &format!("{failed} {failed:?}");
    }
    let failed = output(secret(exec(["false"]))).await.check().unwrap_err();
    told += &format!("{failed} {failed:?}");
    assert!(!told.contains("hunter2"), "{told}");
}

async fn debug_is_short() {
    let said = output(exec(["cat"]).stdin(vec![b'x'; MUCH])).await;
    let shown = format!("{said:?}");
    assert!(shown.len() < 1000, "{} bytes", shown.len());
    contains(shown, &format!("xxx\"... ({MUCH} bytes)"));
    assert_eq!(
        format!("{:?}", output(shell("printf 'a\\033\"\\n'")).await),
        r#"Output { status: Code(0), stdout: "a\x1b\"\n", stderr: "", .. }"#
    );
}

// --- what they cost

async fn memory_has_a_bound() {
    let limit = 32 << 20;
    output(exec(["true"])).await;
    let before = peak();
    for text in ["cat /dev/zero", "cat /dev/zero >&2"] {
        let failed = error(shell(text).output_limit(limit)).await;
        assert!(matches!(failed, ExecError::TooMuchOutput { .. }), "{failed:?}");
    }
    let grown = peak() - before;
    assert!(grown < limit + (8 << 20), "{grown} bytes for a limit of {limit}");
}

/// The most memory that this process had resident, in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

async fn no_descriptors_left() {
    let crowd = async || {
        let mut all = tokio::task::JoinSet::new();
        for n in 0..200_u32 {
            all.spawn(async move {
                let n = n.to_string();
                match n.as_bytes().last() {
                    Some(b'0') => drop(exec(["no-such-program"]).output().await.unwrap_err()),
                    Some(b'1') => drop(exec(["yes"]).output_limit(10).output().await.unwrap_err()),
                    Some(b'2') => drop(exec(["sleep", "1000"]).timeout(Duration::from_millis(1)).output().await),
                    Some(b'3') => drop(exec(["cat"]).spec(SpecBuilder::unguarded).output().await.unwrap()),
                    _ => assert_eq!(exec(["cat"]).stdin(n.clone()).output().await.unwrap().text(), n),
                }
            });
        }
        within(all.join_all()).await;
    };
    output(exec(["true"])).await;
    let keeper = keeper().unwrap();
    let count = || (descriptors(std::process::id()), descriptors(keeper));
    let before = count();
    for _ in 0..2 {
        crowd().await;
        eventually("nobody is left", || zombies().is_empty()).await;
        eventually("as many descriptors as before", || count() == before).await;
    }
}

async fn in_process_mode_changes_nothing() {
    pm::spawning::disable();
    let said = output(shell("echo $PPID")).await;
    assert_eq!(said.text(), keeper().unwrap().to_string());
}

async fn the_keeper_is_killed() {
    let scratch = Scratch::new();
    let file = scratch.path("begun");
    // What it reads is written once the keeper has said that it runs.
    let text = shell("read _; echo out; : > \"$1\"; exec sleep 1000").spec(|spec| spec.arg(&file)).stdin("go\n");
    let running = tokio::spawn(text.output());
    eventually("it runs", || file.exists()).await;
    kill(keeper().unwrap(), Kill::KILL);
    let said = within(running).await.unwrap().unwrap();
    assert_eq!((said.status, said.stdout.as_slice()), (ExitStatus::Lost, &b"out\n"[..]));
    contains(said.check().unwrap_err().to_string(), "exit status unknown");
    // There is another one.
    assert!(output(exec(["true"])).await.status.success());
}
