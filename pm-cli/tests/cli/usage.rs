//! What cannot be carried out, and says so before any job is taken.

use std::time::Instant;

use crate::support::{Dir, command, has, pool};

#[test]
fn help_is_help() {
    for args in [&["--help"][..], &["-h"]] {
        let done = pool(args).run("").expect(0);
        assert!(done.text().contains("pm pool [OPTIONS] -- COMMAND") && done.err.is_empty(), "{done:?}");
        let words: Vec<_> = done.text().split_whitespace().map(str::to_string).collect();
        let text = words.join(" ");
        for part in ["a bare number is seconds", "The longest line, at most 60M"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
    let manual = pool(["--help"]).run("").text();
    for word in ["--resume", "--retry-failed", "{}", "@py FILE:FUNC", "worker_lost", "Examples", "130, 143", "sha256"] {
        assert!(manual.contains(word), "{word} is not in the manual");
    }
}

#[test]
fn options_that_make_no_sense_name_what_would() {
    let check = |args: &[&str], parts: &[&str]| pool(args.iter().chain(&["--", "@echo"])).run("a\n").refused(2, parts);
    check(&["-j", "0"], &["--jobs", "1 to 4096"]);
    check(&["-j", "5000"], &["--jobs", "1 to 4096"]);
    check(&["-t", "pigeon"], &["--transport", "pigeon"]);
    check(&["--timeout", "1y"], &["--timeout", "200ms"]);
    check(&["--start-timeout", "0"], &["--start-timeout"]);
    check(&["--chaos", "0ms"], &["--chaos", "200ms"]);
    check(&["--max-line", "0"], &["--max-line"]);
    check(&["--max-line", "1G"], &["--max-line", "60M"]);
    check(&["--halt", "soon"], &["--halt", "soon,fail=N"]);
    check(&["--halt", "now,fail=0"], &["--halt"]);
    check(&["--retry-on", "luck"], &["luck", "lost"]);
    check(&["--in", "yaml"], &["yaml", "json"]);
    check(&["--resume"], &["-o"]);
    check(&["--sync"], &["-o"]);
    check(&["--retry-failed"], &["-o"]);
    check(&["--tag", "--out", "json"], &["--tag"]);
    check(&["-o", "/tmp/never", "--out", "plain"], &["-o", "JSON"]);
    check(&["--as", "filter"], &["--as", "built-in"]);
    pool(["-j", "2"]).run("").refused(2, &["COMMAND"]);
    pool(["-j", "2", "@echo"]).run("").refused(2, &["'@echo'", "behind `--`", "pm pool -- @echo"]);
    pool(["sort", "-u", "{}"]).run("").refused(2, &["'sort'", "pm pool -- sort"]);
    pool(["--as", "filter", "--", "cat", "{}"]).run("").refused(2, &["--as", "{}"]);
}

#[test]
fn commands_that_cannot_be_run_say_why() {
    let dir = Dir::new();
    std::fs::write(dir.join("plain.txt"), "no program").unwrap();
    let plain = dir.join("plain.txt");
    let plain = plain.to_str().unwrap();
    let check = |command: &[&str], parts: &[&str]| {
        pool(["--"].iter().chain(command)).run("a\n").refused(2, parts);
    };
    check(&["no-such-program"], &["no-such-program", "not found"]);
    check(&["no-such-program", "{}"], &["no-such-program", "not found"]);
    check(&[plain, "{}"], &["plain.txt", "chmod +x"]);
    check(&["@sha512"], &["@sha512", "@sha256"]);
    check(&["@echo", "x"], &["@echo", "no arguments"]);
    check(&["@py"], &["FILE:FUNC"]);
    check(&["@py", "rules.py"], &["FILE:FUNC"]);
    check(&["@py", "no/such.py:f"], &["no/such.py"]);
    check(&["@node", "no/such.js:f"], &["no/such.js"]);
    pool(["--as", "filter", "--", "no-such-program"]).run("a\n").refused(2, &["no-such-program", "not found"]);
    std::fs::write(dir.join("rules.py"), "def f(x): return x\n").unwrap();
    let target = format!("{}:f", dir.join("rules.py").display());
    pool(["--", "@py", &target]).env("PATH", "/no/such").run("a\n").refused(2, &["@py needs python3", "not found"]);
}

#[test]
fn workers_that_never_serve_are_told_from_those_that_do() {
    // It prints in place of READY.
    pool(["-t", "stdio", "--", "echo", "hello"]).run("a\n").refused(2, &["hello", "{}", "--as filter"]);
    pool(["-t", "stdio", "--", "yes"]).run("a\n").refused(2, &["READY", "it sent", "{}", "--as filter"]);
    // It ends.
    let done = pool(["-j1", "--", "sh", "-c", "echo broken >&2; exit 7"]).run("a\n").expect(2);
    let lines: Vec<_> = done.err.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("[sh#1 ") && lines[0].ends_with("] broken"), "{lines:?}");
    for part in ["exit code 7", "stands above", "--as filter"] {
        assert!(lines[1].contains(part), "{part:?} is not in {lines:?}");
    }
    pool(["--", "sh", "-c", "exit 7"]).run("a\n").refused(2, &["exit code 7", "it wrote nothing"]);
    // It does nothing.
    let begun = Instant::now();
    pool(["--start-timeout", "200ms", "--", "sleep", "1000"]).run("a\n").refused(2, &["READY", "200ms"]);
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn a_script_without_its_interpreter_is_named() {
    let dir = Dir::new();
    let path = dir.script("lost", "#!/no/such/interpreter\n");
    pool([path.as_os_str()].iter().fold(vec!["--".as_ref()], |mut args, path| {
        args.push(*path);
        args
    }))
    .run("a\n")
    .refused(2, &["/no/such/interpreter"]);
    pool(["--as", "filter", "--", path.to_str().unwrap()]).run("a\n").refused(2, &["/no/such/interpreter"]);
    pool(["--", path.to_str().unwrap(), "{}"]).run("a\n").refused(2, &["/no/such/interpreter"]);
}

#[test]
fn functions_that_are_not_there_are_named() {
    let dir = Dir::new();
    if has("python3", "--version") {
        std::fs::write(dir.join("rules.py"), "import nothing_of_that_name\n").unwrap();
        std::fs::write(dir.join("good.py"), "def f(x): return x\n").unwrap();
        let target = |name: &str| format!("{}:{name}", dir.join("good.py").display());
        pool(["-t", "shm", "--", "@py", &target("f")]).run("a\n").refused(2, &["shm", "stdio", "uds"]);
        pool(["--", "@py", &target("g")]).run("a\n").refused(2, &["defines no 'g'"]);
        let broken = format!("{}:f", dir.join("rules.py").display());
        let done = pool(["-j1", "--", "@py", &broken]).run("a\n").expect(2);
        assert_eq!(done.err.matches("ModuleNotFoundError").count(), 1, "{}", done.err);
        assert!(!done.err.contains("--as filter"), "it is no program that could do anything else: {}", done.err);
    }
    if has("node", "--version") {
        std::fs::write(dir.join("good.js"), "exports.f = x => x;\n").unwrap();
        let target = format!("{}:g", dir.join("good.js").display());
        pool(["-t", "shm", "--", "@node", &target]).run("a\n").refused(2, &["shm", "stdio", "uds"]);
        pool(["--", "@node", &target]).run("a\n").refused(2, &["exports no 'g'"]);
    }
}

#[test]
fn the_keeper_is_no_command_for_people() {
    let done = pool(["--help"]).run("").expect(0);
    assert!(!done.text().contains("keeper"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pm"))
        .arg("keeper")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

#[test]
fn completions_and_pages_know_each_command() {
    let dir = Dir::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = command("completions", [shell]).run("").expect(0).text();
        for name in ["pool", "bench", "up", "graph"] {
            assert!(text.contains(name), "{shell}: {name}");
        }
    }
    command("man", [dir.join("man1")]).run("").expect(0);
    let page = std::fs::read_to_string(dir.join("man1/pm-up.1")).unwrap();
    assert!(page.contains("exit\\-code\\-from"), "{page}");
    command("man", ["/dev/null/x"]).run("").refused(2, &["/dev/null/x", "cannot be written to"]);
}
