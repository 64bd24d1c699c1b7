//! `pm up` with the files of process-compose.

use crate::support::{Dir, Done, command};

/// A directory with this file, and sockets of its own.
fn project(text: &str) -> Dir {
    let dir = Dir::new();
    dir.script("process-compose.yaml", text);
    dir
}

/// A command in a project.
fn pm(dir: &Dir, name: &str, args: &[&str]) -> Done {
    command(name, args).dir(dir.path()).env("XDG_RUNTIME_DIR", dir.path()).env("GREETING", "hello").run("")
}

/// What a service has printed.
fn of(done: &Done, name: &str) -> Vec<String> {
    let text = done.text();
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    lines.filter(|(before, _)| before.trim() == name).map(|(_, line)| line.trim().to_owned()).collect()
}

#[test]
fn what_is_needed_comes_first_and_the_exit_code_is_that_of_the_named() {
    let dir = project(
        r#"version: "0.5"
log_level: debug
environment: [STAGE=test]
env_cmds:
  BUILD: echo 17
processes:
  client:
    command: |
      for file in set-up healthy said; do test -e $$file && echo "after $$file"; done
      echo "${GREETING} $$STAGE $$BUILD $$PC_PROC_NAME $$PC_REPLICA_NUM $$PM_REPLICA"
      exit 7
    depends_on:
      db: {condition: process_healthy}
      queue: {condition: process_log_ready}
      worker: {condition: process_started}
  db:
    command: sleep 0.2; touch healthy; exec sleep 1000
    depends_on:
      setup: {condition: process_completed_successfully}
    readiness_probe:
      exec: {command: test -e healthy}
  queue:
    command: sleep 0.2; touch said; echo "now (really) ready."; exec sleep 1000
    ready_log_line: (really)
  setup:
    command: touch set-up
  worker:
    command: echo "number {{.PC_REPLICA_NUM}} of $$PC_PROC_NAME"; exec sleep 1000
    replicas: 2
  never:
    command: touch never
    disabled: true
"#,
    );
    let done = pm(&dir, "up", &["-f", "process-compose.yaml", "--exit-code-from", "client"]).expect(7);
    assert_eq!(
        of(&done, "client"),
        ["after set-up", "after healthy", "after said", "hello test 17 client 0 1"],
        "{}",
        done.text()
    );
    assert_eq!(of(&done, "worker-0"), ["number 0 of worker"]);
    assert_eq!(of(&done, "worker-1"), ["number 1 of worker"]);
    assert!(
        done.err.starts_with("pm: warning: process-compose.yaml:2: log_level: nothing comes of it: "),
        "{}",
        done.err
    );
    assert!(!dir.join("never").exists());
}

#[test]
fn a_process_can_take_the_project_along() {
    let with = |availability: &str, command: &str| {
        let file = format!(
            "processes:\n  a:\n    command: {command}\n    availability: {{{availability}}}\n    success_exit_codes: [4]\n  \
            b:\n    command: exec sleep 1000\n"
        );
        pm(&project(&file), "up", &[]).code
    };
    assert_eq!(with("exit_on_end: true", "exit 0"), Some(0));
    assert_eq!(with("exit_on_end: true", "exit 3"), Some(3));
    assert_eq!(with("exit_on_end: true", "exit 4"), Some(0), "it is a success there");
    assert_eq!(with("restart: exit_on_failure", "exit 5"), Some(5));
    let restarted = "exit_on_end: true, restart: on_failure, max_restarts: 1";
    assert_eq!(with(restarted, "if test -e once; then exit 0; fi; touch once; exit 6"), Some(0));
    let skipped = "processes:\n  a:\n    command: exit 9\n  b:\n    command: b\n    availability: {exit_on_skipped: true}\n    \
        depends_on: {a: {condition: process_completed_successfully}}\n  c:\n    command: exec sleep 1000\n";
    pm(&project(skipped), "up", &[]).expect(1);
}

#[test]
fn a_file_is_checked_without_running_anything() {
    let file =
        "is_tui_disabled: true\nenv_cmds: {A: touch ran}\nprocesses:\n  a:\n    command: a\n    is_foreground: yes\n";
    let dir = project(file);
    let done = pm(&dir, "check", &[]).expect(0);
    assert!(done.text().ends_with(": 1 service: a\n"), "{}", done.text());
    assert_eq!(
        done.err,
        "pm: warning: process-compose.yaml:1: is_tui_disabled: nothing comes of it: pm has no such screen\n\
        pm: warning: process-compose.yaml:6: is_foreground: it is started only when it is named, and not in the foreground: is_tty gives it a terminal, and pm attach connects to that\n"
    );
    assert!(!dir.join("ran").exists());
    dir.script("process-compose.override.yaml", file);
    pm(&dir, "check", &[]).refused(2, &["process-compose.override.yaml stands beside it, and pm does not merge files"]);
    pm(&dir, "check", &["-f", "process-compose.yaml"]).expect(0);
    let bad = project("processes:\n  a:\n    command: a\n    is_elevated: true\n");
    pm(&bad, "check", &[])
        .refused(2, &["process-compose.yaml:4:5: processes.a.is_elevated: it is not supported: ", "^^^^^^"]);
}
