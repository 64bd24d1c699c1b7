use std::fmt::Write;
use std::fs;

use pm::service::{Need, Readiness, Restart};

use super::super::place::Place;
use super::*;

/// Surroundings that are the same wherever the tests run.
fn surroundings() -> Surroundings {
    let pairs = [("HOME", "/home/ada"), ("PATH", "/usr/bin"), ("PORT", "8080"), ("WAIT", "3")];
    Surroundings {
        environment: pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        shell: "bash".into(),
        purpose: Purpose::Look,
    }
}

#[track_caller]
fn parts(text: &str) -> Parts {
    match read_in(text, Path::new("/shop"), Path::new("/shop/.pm/logs"), &surroundings()) {
        Ok(parts) => parts,
        Err(wrong) => panic!("{}", Place::of(text, wrong)),
    }
}

/// The error as people see it behind the name of the file.
#[track_caller]
fn wrong(text: &str) -> String {
    let wrong = read_in(text, Path::new("/shop"), Path::new("/shop/.pm/logs"), &surroundings()).unwrap_err();
    Place::of(text, wrong).to_string()
}

fn warnings(text: &str) -> Vec<String> {
    let line = |at: Range<usize>| text[..at.start].matches('\n').count() + 1;
    let shown = |Wrong { at, problem }| format!("{}: {problem}", at.map_or(0, line));
    parts(text).warnings.into_iter().map(shown).collect()
}

fn one(text: &str) -> Service {
    let mut services = parts(text).services;
    assert_eq!(services.len(), 1, "{services:?}");
    services.remove(0)
}

/// The variables that a service has on top of those that are inherited.
fn variables_of(service: &Service) -> Vec<String> {
    let all = service.spec().environment(std::iter::empty());
    all.iter().map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy())).collect()
}

/// A service in a few lines.
fn described(service: &Service) -> String {
    let (spec, rules) = (service.spec(), service.rules());
    let mut text = format!("{}: {} in {}\n", service.name(), spec.command_line(), spec.cwd().unwrap().display());
    if let Some(title) = service.title() {
        writeln!(text, "  title {title}").unwrap();
    }
    writeln!(text, "  env {}", variables_of(service).join(" ")).unwrap();
    let needs: Vec<String> = rules.needs.iter().map(Need::to_string).collect();
    if !needs.is_empty() {
        writeln!(text, "  needs {}", needs.join(", ")).unwrap();
    }
    match rules.readiness {
        Readiness::Spawned => {}
        Readiness::Told { .. } => writeln!(text, "  ready by a line, {:?}", rules.start_limit).unwrap(),
        Readiness::Asked(timing) => writeln!(text, "  ready within {:?}: {timing:?}", rules.start_limit).unwrap(),
    }
    if let Some(timing) = rules.liveness {
        writeln!(text, "  alive: {timing:?}").unwrap();
    }
    let Restart { when, max, delay, longest_delay, success, .. } = &rules.restart;
    writeln!(text, "  restart {when:?} {max:?} {delay:?}..{longest_delay:?} success {success:?}").unwrap();
    let log = service.log().unwrap();
    writeln!(text, "  stop {:?}, log {} {}x{}", rules.stop_limit, log.path.display(), log.max_bytes, log.keep).unwrap();
    text
}

const LARGE: &str = r#"# yaml-language-server: $schema=https://example.org/process-compose-schema.json
version: "0.5"
name: shop
is_strict: true
ordered_shutdown: true

x-probe: &probe
  initial_delay_seconds: 2
  period_seconds: 5
  timeout_seconds: 4
  failure_threshold: 2

environment:
  - 'LOG_LEVEL=debug'
  - URL=http://localhost:${PORT}/${STAGE:-dev}
env_cmds:
  BUILD: "echo '  17 '"
vars:
  VERSION: 1.10
  DEBUG: true
log_configuration:
  rotation:
    max_size_mb: 1
    max_backups: 3
shell:
  shell_command: zsh
  shell_argument: -ec

processes:
  db:
    description: The database {{.VERSION}}
    command: |
      exec postgres -D data \
        -p 5432
    working_dir: db
    is_dotenv_disabled: yes
    readiness_probe:
      <<: *probe
      exec:
        command: pg_isready -h {{ .HOST }}
        working_dir: /tmp
    vars: {HOST: localhost}
    shutdown:
      signal: 2
      timeout_seconds: 30
    availability:
      restart: on_failure
      max_restarts: 5
      backoff_seconds: ${WAIT}

  migrate:
    entrypoint: [./migrate, --to, "17"]
    working_dir: "db"
    depends_on:
      db: {condition: process_healthy}
    availability:
      restart: exit_on_failure
      exit_on_skipped: true

  worker:
    command: ./work $${LOG_LEVEL} --port 90{{.PC_REPLICA_NUM}} && echo $$ 'a {{"{{.B}}"}}'
    replicas: 2
    environment:
      QUEUE: mail
      EMPTY:
    log_location: logs/worker.{PC_REPLICA_NUM}.log
    depends_on:
      migrate:
        condition: process_completed_successfully
      web:
        condition: process_log_ready
    availability:
      restart: always
      backoff_seconds: 0

  web:
    command: "node web.js"
    log_location: logs/web.log
    log_configuration: {rotation: {max_size_mb: 2}}
    ready_log_line: "listening on (all)"
    liveness_probe:
      http_get:
        host: localhost
        path: health
        port: "{{.PORT}}"
        headers: {X-Probe: yes, Accept: [a, b]}
        status_code: 204
    vars:
      PORT: ${PORT}
    depends_on:
      db:
        condition: process_started
    success_exit_codes: [3, 4]
    shutdown:
      command: "kill $PM_PID"
      signal: 15

  tests:
    command: make test
    namespace: ci
    depends_on:
      worker: {condition: process_started}
      worker-1: {condition: process_started}
    availability: {exit_on_end: true}

  debugger:
    command: gdb
    is_disabled: "true"
    disabled: false
    depends_on:
      editor: {condition: process_started}
  editor:
    command: vi
    is_foreground: true
"#;

#[test]
fn a_large_file_means_what_it_means_there() {
    let parts = parts(LARGE);
    let all: String = parts.services.iter().map(described).collect();
    let expected = r"db: zsh -ec 'exec postgres -D data \
  -p 5432
' in /shop/db
  title The database 1.10
  env PC_PROC_NAME=db PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev
  ready within 11s: Timing { interval: 5s, timeout: 4s, retries: 2, successes: 1, initial_delay: 2s }
  restart OnFailure Some(5) 3s..3s success [0]
  stop 30s, log /shop/.pm/logs/db.log 1048576x3
migrate: /shop/db/./migrate --to 17 in /shop/db
  env PC_PROC_NAME=migrate PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev
  needs db (healthy)
  restart Never Some(0) 1s..1s success [0]
  stop 10s, log /shop/.pm/logs/migrate.log 1048576x3
worker-0: zsh -ec './work ${LOG_LEVEL} --port 900 && echo $ '\''a {{.B}}'\''' in /shop
  env PC_PROC_NAME=worker PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev QUEUE=mail EMPTY=
  needs migrate (completed_successfully), web (log_ready)
  restart Always None 1s..1s success [0]
  stop 10s, log /shop/logs/worker.0.log 0x0
worker-1: zsh -ec './work ${LOG_LEVEL} --port 901 && echo $ '\''a {{.B}}'\''' in /shop
  env PC_PROC_NAME=worker PC_REPLICA_NUM=1 LOG_LEVEL=debug URL=http://localhost:8080/dev QUEUE=mail EMPTY=
  needs migrate (completed_successfully), web (log_ready)
  restart Always None 1s..1s success [0]
  stop 10s, log /shop/logs/worker.1.log 0x0
web: zsh -ec 'node web.js' in /shop
  env PC_PROC_NAME=web PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev
  needs db (started)
  ready by a line, 3153600000s
  alive: Timing { interval: 10s, timeout: 1s, retries: 3, successes: 1, initial_delay: 0ns }
  restart Never Some(0) 1s..1s success [0, 3, 4]
  stop 10s, log /shop/logs/web.log 2097152x1000
tests: zsh -ec 'make test' in /shop
  env PC_PROC_NAME=tests PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev
  needs worker-0 (started), worker-1 (started)
  restart Never Some(0) 1s..1s success [0]
  stop 10s, log /shop/.pm/logs/tests.log 1048576x3
debugger: zsh -ec gdb in /shop
  env PC_PROC_NAME=debugger PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev
  needs editor (started)
  restart Never Some(0) 1s..1s success [0]
  stop 10s, log /shop/.pm/logs/debugger.log 1048576x3
editor: zsh -ec vi in /shop
  env PC_PROC_NAME=editor PC_REPLICA_NUM=0 LOG_LEVEL=debug URL=http://localhost:8080/dev
  restart Never Some(0) 1s..1s success [0]
  stop 10s, log /shop/.pm/logs/editor.log 1048576x3
";
    assert_eq!(all, expected);
    assert_eq!(parts.name.as_deref(), Some("shop"));
    assert_eq!(parts.disabled.iter().collect::<Vec<_>>(), ["debugger", "editor"]);
    let ends: Vec<String> = parts
        .ends
        .iter()
        .map(|(name, ends)| format!("{name} {} {} {}", ends.any, ends.failure, ends.skipped))
        .collect();
    assert_eq!(ends, ["migrate false true true", "tests true false false"]);
    assert_eq!(
        warnings(LARGE),
        [
            "100: namespace: nothing comes of it: pm starts the services of all namespaces; name some to start only those",
            "114: is_foreground: it is started only when it is named, and not in the foreground: is_tty gives it a terminal, and pm attach connects to that",
        ]
    );
    // What the public face of a service does not say.
    let web = format!("{:?}", parts.services[4]);
    for part in [
        r#"Http { host: "localhost", port: 8080"#,
        "target: /health",
        r#""x-probe": Sensitive"#,
        "status: 204",
        r"listening on \\(all\\)",
        "stop_by: Command",
        "kill $PM_PID",
    ] {
        assert!(web.contains(part), "{part} is not in {web}");
    }
    let db = format!("{:?}", parts.services[0]);
    assert!(db.contains("pg_isready -h localhost") && db.contains("Signal(2)"), "{db}");
}

#[test]
fn what_is_not_said_is_as_it_is_there() {
    let service = one("processes:\n  a:\n    command: run\n    readiness_probe:\n      http_get: {port: 80}\n");
    assert_eq!(
        described(&service),
        "a: bash -c run in /shop\n  env PC_PROC_NAME=a PC_REPLICA_NUM=0\n  \
        ready within 21s: Timing { interval: 10s, timeout: 1s, retries: 3, successes: 1, initial_delay: 0ns }\n  \
        restart Never Some(0) 1s..1s success [0]\n  stop 10s, log /shop/.pm/logs/a.log 10485760x5\n"
    );
    assert!(format!("{service:?}").contains(r#"host: "127.0.0.1", port: 80"#));
    assert!(service.rules().restart_unhealthy);
}

#[test]
fn variables_come_from_many_places_and_the_nearest_counts() {
    let directory = std::env::temp_dir().join(format!("pm-compose-{}", std::process::id()));
    fs::create_dir_all(directory.join("sub")).unwrap();
    fs::write(directory.join(".env"), "PORT=1\nDOT=dot\nALL=dot\nOUT=dot\n").unwrap();
    fs::write(directory.join("sub/a.env"), "ALL=file\nFILE=file\n").unwrap();
    let text = "environment: [ALL=global, GLOBAL=global]\nprocesses:\n  a:\n    command: run ${PORT} ${DOT}\n    working_dir: sub\n    \
        env_file: [a.env]\n    environment: [ALL=own]\n  b:\n    command: b\n    is_dotenv_disabled: true\n";
    let parts = read_in(text, &directory, &directory, &surroundings()).unwrap();
    fs::remove_dir_all(&directory).unwrap();
    // In the texts of the file .env is the stronger one, and in the environment it is the weaker one: as it is there.
    assert_eq!(parts.services[0].spec().command_line(), "bash -c 'run 1 dot'");
    assert_eq!(
        variables_of(&parts.services[0]),
        ["PC_PROC_NAME=a", "PC_REPLICA_NUM=0", "DOT=dot", "OUT=dot", "GLOBAL=global", "FILE=file", "ALL=own"]
    );
    assert_eq!(variables_of(&parts.services[1]), ["PC_PROC_NAME=b", "PC_REPLICA_NUM=0", "ALL=global", "GLOBAL=global"]);
}

#[test]
fn expansion_can_be_disabled() {
    let text = "disable_env_expansion: true\nprocesses:\n  a:\n    command: echo ${HOME##*/} $$ {{.PC_REPLICA_NUM}}\n";
    assert_eq!(one(text).spec().command_line(), "bash -c 'echo ${HOME##*/} $$ 0'");
    let text = "processes:\n  a:\n    is_template_disabled: true\n    command: docker inspect -f {{.State}} $NAME\n";
    assert_eq!(one(text).spec().command_line(), "bash -c 'docker inspect -f {{.State}} $NAME'");
}

#[test]
fn ten_replicas_have_names_of_one_length() {
    let services = parts("processes:\n  a:\n    command: a\n    replicas: 10\n    log_location: a.log\n").services;
    let names: Vec<&str> = services.iter().map(Service::name).collect();
    assert_eq!((names.len(), names[0], names[9]), (10, "a-00", "a-09"));
    assert_eq!(services[9].log().unwrap().path, Path::new("/shop/a.log.9"));
    assert_eq!(one("processes:\n  a:\n    command: a\n    replicas: 0\n").name(), "a");
}

#[test]
fn commands_that_give_variables_are_run_for_a_start_alone() {
    let text = "env_cmds:\n  A: echo \" 1 \"\n  B: exit 3\n  C: 'sleep 100 & sleep 100'\n  D: 'echo 1; exec >&-; sleep 100'\n\
        processes:\n  a:\n    command: a\n";
    let read = |purpose| {
        let surroundings = Surroundings { purpose, shell: "sh".into(), ..surroundings() };
        read_in(text, &std::env::temp_dir(), &std::env::temp_dir(), &surroundings).unwrap()
    };
    let variables = |parts: &Parts| variables_of(&parts.services[0])[2..].to_vec();
    let began = Instant::now();
    let started = read(Purpose::Start);
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(variables(&started), ["A=1"]);
    let problems: Vec<&str> = started.warnings.iter().map(|warning| warning.problem.as_str()).collect();
    assert_eq!(
        problems,
        [
            "env_cmds.B: \"exit 3\" ended with exit status: 3, so the variable is not set",
            "env_cmds.C: \"sleep 100 & sleep 100\" has not ended within 2s, so the variable is not set",
            "env_cmds.D: \"echo 1; exec >&-; sleep 100\" has not ended within 2s, so the variable is not set",
        ]
    );
    let looked = read(Purpose::Look);
    assert!(variables(&looked).is_empty() && looked.warnings.is_empty());
}

#[test]
fn what_only_changes_looks_is_said_once() {
    let text = "version: 3
log_level: info
log_location: pc.log
log_configuration: {disable_json: true, rotation: {compress: true}}
is_tui_disabled: true
processes:
  a:
    command: echo ${NONE} ${NONE}
    disable_ansi_colors: true
    working_dir: $HOME/x
    success_exit_codes: [143]
  b:
    command: b
    entrypoint: [b]
    disable_ansi_colors: true
    truncate_log: true
    environment: ['A=$HOME']
    readiness_probe: {exec: {command: b}}
";
    assert_eq!(
        warnings(text),
        [
            "8: ${NONE} has no value here, so nothing is put in its place; $${NONE} is for the shell to see (and 1 more of the same)",
            "1: version 3 is read as if it were 0.5",
            "2: log_level: nothing comes of it: pm has no log of its own",
            "5: is_tui_disabled: nothing comes of it: pm has no such screen",
            "3: log_location: each service has a log of its own, in .pm/logs; pm logs shows them together",
            "4: log_configuration.disable_json: nothing comes of it: pm's logs have a form of their own",
            "4: log_configuration.rotation.compress: old logs stay as they are; max_backups says how many",
            "9: disable_ansi_colors: nothing comes of it: pm shows the colours of a service; NO_COLOR=1 is without those of pm (and 1 more of the same)",
            "10: $HOME stays as it is, for no shell sees it; ${HOME} is replaced when the file is read (and 1 more of the same)",
            "11: success_exit_codes: 143 is an exit code; an end by signal 15 is no success",
            "16: truncate_log: nothing comes of it: logs go on where they ended",
            "14: entrypoint: nothing comes of it: there is a command too",
        ]
    );
}

/// A process of this name with these lines.
fn process(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!("processes:\n  a:\n    command: run\n{lines}")
}

#[test]
fn what_is_wrong_is_shown_with_its_line() {
    assert_eq!(
        wrong("processes:\n  a:\n    commnad: x\n"),
        format!(
            "3:5: \"commnad\" is no field of processes.a; there are {}\n  3 |     commnad: x\n    |     ^^^^^^^",
            PROCESS.join(", ")
        )
    );
    assert_eq!(
        wrong(&process("shutdown:\n  signl: 2")),
        "5:7: \"signl\" is no field of processes.a.shutdown; there are command, timeout_seconds, signal, parent_only, send_keys\n  \
        5 |       signl: 2\n    |       ^^^^^"
    );
    assert_eq!(
        wrong("processes:\n  a: {command: [}\n"),
        "2:16: mismatched bracket '[' closed by '}'\n  2 |   a: {command: [}\n    |                ^"
    );
    assert_eq!(
        wrong("processes:\n  a:\n    command: a\n    command: b\n"),
        "4:5: duplicate mapping key `command` is not allowed here\n  4 |     command: b\n    |     ^^^^^^^"
    );
    assert_eq!(
        wrong(&process("replicas: two")),
        "4:15: processes.a.replicas is a whole number from 0 to 1000, and not \"two\"\n  4 |     replicas: two\n    |               ^^^"
    );
    assert_eq!(
        wrong(&process("disabled: maybe")),
        "4:15: processes.a.disabled is true or false, and not \"maybe\"\n  4 |     disabled: maybe\n    |               ^^^^^"
    );
    assert_eq!(
        wrong(&process("is_daemon: true")),
        "4:5: processes.a.is_daemon: it is not supported: pm ends what a process leaves behind; have the program stay in the foreground\n  \
        4 |     is_daemon: true\n    |     ^^^^^^^^^"
    );
    assert_eq!(
        wrong(&process("shutdown: {parent_only: yes}")),
        "4:16: processes.a.shutdown.parent_only: it is not supported: the signal goes to the process and all of its group; \
        a command could send it to $PM_PID alone\n  4 |     shutdown: {parent_only: yes}\n    |                ^^^^^^^^^^^"
    );
    assert_eq!(
        wrong(&process("availability: {restart: unless_stopped}")),
        "4:29: processes.a.availability.restart is no, on_failure, always or exit_on_failure, and not \"unless_stopped\"\n  \
        4 |     availability: {restart: unless_stopped}\n    |                             ^^^^^^^^^^^^^^"
    );
    assert_eq!(
        wrong(&process("depends_on: {b: {condition: process_started}}")),
        "4:18: processes.a.depends_on.b: there is no such process\n  \
        4 |     depends_on: {b: {condition: process_started}}\n    |                  ^"
    );
    assert_eq!(
        wrong(&process("depends_on:\n  a: process_started")),
        "5:10: processes.a.depends_on.a is a map: write a: { condition: process_started }\n  \
        5 |       a: process_started\n    |          ^^^^^^^^^^^^^^^"
    );
    assert_eq!(
        wrong(&process("depends_on:\n  a: {}")),
        "5:7: processes.a.depends_on.a: say the condition, as in condition: process_started\n  5 |       a: {}\n    |       ^"
    );
    assert_eq!(
        wrong(&process("depends_on:\n  a: {condition: healthy}")),
        "5:22: \"healthy\" is no condition: there are process_started, process_healthy, process_log_ready, process_completed and \
        process_completed_successfully\n  5 |       a: {condition: healthy}\n    |                      ^^^^^^^"
    );
    assert_eq!(
        wrong(&process("readiness_probe: {http_get: {scheme: https}}")),
        "4:34: processes.a.readiness_probe.http_get.scheme: only http is probed; exec asks a command, such as curl -fk, for https\n  \
        4 |     readiness_probe: {http_get: {scheme: https}}\n    |                                  ^^^^^^"
    );
    assert_eq!(
        wrong(&process("readiness_probe: {http_get: {port: '{{.PORT}}'}}")),
        "4:40: processes.a.readiness_probe.http_get.port: {{.PORT}} has no value: write it in vars\n  \
        4 |     readiness_probe: {http_get: {port: '{{.PORT}}'}}\n    |                                        ^^^^^^^^^^^"
    );
    assert_eq!(
        wrong(&process("environment: [A=1, B]")),
        "4:24: processes.a.environment: \"B\" is no variable: write NAME=value\n  \
        4 |     environment: [A=1, B]\n    |                        ^"
    );
    // The place is that of the variable, whose value is longer.
    assert_eq!(
        wrong(&process("success_exit_codes: [0, '${HOME}', 7]")),
        "4:29: each of processes.a.success_exit_codes is a whole number from 0 to 255, and not \"/home/ada\"\n  \
        4 |     success_exit_codes: [0, '${HOME}', 7]\n    |                             ^^^^^^^^^"
    );
    assert_eq!(
        wrong(&process("working_dir: ${HOME##*/}")),
        "4:18: ${HOME##*/} is not supported: write ${NAME} or ${NAME:-default}, or $${HOME##*/} for the shell to see it\n  \
        4 |     working_dir: ${HOME##*/}\n    |                  ^^^^^^^^^^^"
    );
    assert_eq!(
        wrong("processes:\n  a b:\n    command: x\n"),
        "2:3: processes.a b: \"a b\" cannot be the name of a service: it is 1 to 64 letters, digits, `_`, `-` and `.`, and begins with \
        a letter, a digit or `_`\n  2 |   a b:\n    |   ^^^"
    );
    assert_eq!(
        wrong("processes:\n  a:\n    description: x\n"),
        "2:3: processes.a: nothing says what runs: write a command, or an entrypoint\n  2 |   a:\n    |   ^"
    );
    assert_eq!(wrong(""), " no process stands in it: write processes, and a command for each");
    assert_eq!(wrong("processes:\n"), " no process stands in it: write processes, and a command for each");
}

#[test]
fn processes_that_do_not_fit_together_are_wrong() {
    let two = |a: &str, b: &str| wrong(&format!("processes:\n  a: {{command: a, {a}}}\n  b: {{command: b, {b}}}\n"));
    let needs = |condition: &str| format!("depends_on: {{b: {{condition: {condition}}}}}");
    assert_eq!(
        two(&needs("process_started"), "disabled: true").lines().next().unwrap(),
        "2:32: processes.a.depends_on.b: it is disabled, so nothing may wait for it; drop this, or enable it"
    );
    assert!(
        two(&needs("process_healthy"), "").contains("\"a\" needs \"b\" to be healthy, but nothing says when it is")
    );
    assert!(two(&needs("process_log_ready"), "").contains("\"a\" needs \"b\" to be log_ready"));
    let back = "depends_on: {a: {condition: process_started}}";
    assert!(two(&needs("process_started"), back).contains("a cycle of needs"));
    let log = "log_location: x.log";
    assert_eq!(
        two(log, log).lines().next().unwrap(),
        "3:19: processes.b.log_location: a has the same log; {PC_REPLICA_NUM} in a path is the number of a replica"
    );
    let refused = |lines: &str| wrong(&process(lines)).lines().next().unwrap().to_string();
    assert_eq!(
        refused("ready_log_line: x\nreadiness_probe: {exec: {command: x}}"),
        "4:5: processes.a.ready_log_line: readiness_probe says when it is ready; there is one or the other"
    );
    for field in ["is_daemon", "is_elevated"] {
        assert!(refused(&format!("{field}: true")).contains(&format!("{field}: it is not supported: ")));
        parts(&process(&format!("{field}: false")));
    }
    for field in ["is_tty", "is_interactive"] {
        for (value, has_terminal) in [("true", true), ("no", false)] {
            let parts = parts(&process(&format!("{field}: {value}")));
            assert_eq!(parts.services[0].has_terminal(), has_terminal, "{field}: {value}");
        }
    }
    for field in ["extends", "schedule", "watch", "mcp"] {
        assert!(refused(&format!("{field}: {{}}")).contains(&format!("{field}: it is not supported: ")));
    }
    assert!(wrong("extends: a.yaml\nprocesses: {}\n").starts_with("1:1: extends: pm does not merge files"));
}

/// A file that is half written, or from which something was lost, is refused or read, and its place can be shown.
#[test]
fn no_text_is_too_odd() {
    let show = |text: &str| match read_in(text, Path::new("/shop"), Path::new("/shop/.pm/logs"), &surroundings()) {
        Ok(parts) => parts.warnings.into_iter().for_each(|wrong| drop(Place::of(text, wrong).to_string())),
        Err(wrong) => drop(Place::of(text, wrong).to_string()),
    };
    for end in (0..LARGE.len()).step_by(11) {
        show(&LARGE[..end]);
        show(&LARGE[end..]);
    }
    let lines: Vec<&str> = LARGE.split_inclusive('\n').collect();
    for gone in 0..lines.len() {
        show(&[&lines[..gone], &lines[gone + 1..]].concat().concat());
    }
    for odd in [
        "\u{feff}a: é",
        "{{",
        "&a [*a]",
        "a: &a\n  <<: *a",
        "- é\n- ${é",
        "processes: {é: {command: '${é}', é: ü}}",
        "\0",
        "%",
    ] {
        show(odd);
    }
}
