//! Texts and what they mean, or what is said of them.

use pm::service::Readiness;

use super::*;

/// The error of a text, as people see it.
fn refused(text: &str) -> String {
    let wrong = read(text, Path::new("/nowhere"), Path::new("/nowhere/.pm/logs")).unwrap_err();
    crate::config::place::Place::of(text, wrong).to_string()
}

fn only(text: &str) -> Service {
    let mut parts = read(text, Path::new("/project"), Path::new("/project/.pm/logs")).unwrap();
    assert_eq!(parts.services.len(), 1);
    parts.services.remove(0)
}

#[test]
fn each_field_is_in_the_documentation() {
    fn names(value: &serde_json::Value, all: &mut BTreeSet<String>) {
        if let Some(properties) = value.get("properties").and_then(|properties| properties.as_object()) {
            all.extend(properties.keys().cloned());
        }
        match value {
            serde_json::Value::Object(members) => members.values().for_each(|member| names(member, all)),
            serde_json::Value::Array(members) => members.iter().for_each(|member| names(member, all)),
            _ => {}
        }
    }
    let text = include_str!("../../../../docs/SERVICES.md");
    let mut all = BTreeSet::new();
    names(&schema(), &mut all);
    assert!(all.len() > 40, "{all:?}");
    for name in all.iter().filter(|name| *name != "service") {
        assert!(text.contains(&format!("`{name}`")) || text.contains(&format!("{name} =")), "{name} is not documented");
    }
}

#[test]
fn a_service_with_much_to_say() {
    let service = only(
        "env = { PORT = 3000 }\n[service.api]\ncommand = [\"./api\", \"${PORT}\", \"$$x\"]\ndir = \"sub\"\nrestart = { when = \"always\", max = 2, delay = \"10ms\" }\n\
         success = [0, 143]\nstop = { signal = \"INT\", limit = 3 }\nreplicas = 2\nhealth = { http = \"http://127.0.0.1:${PORT}/\", interval = 0.5 }\nlog = { max_size = \"1K\" }\n",
    );
    assert_eq!(service.spec().command_line(), "/project/sub/./api 3000 '$x'");
    assert_eq!(service.rules().restart.success, [0, 143]);
    assert_eq!(service.rules().stop_limit, std::time::Duration::from_secs(3));
    assert_eq!((service.replicas(), service.log().unwrap().max_bytes), (2, 1024));
    assert!(matches!(service.rules().readiness, Readiness::Asked(timing) if timing.interval.as_millis() == 500));
}

#[test]
fn metrics_are_off_on_or_more() {
    let metrics = |field: &str| only(&format!("[service.a]\ncommand = [\"x\"]\n{field}")).rules().metrics;
    assert_eq!([metrics(""), metrics("metrics = false")], [None; 2]);
    assert_eq!([metrics("metrics = true"), metrics("metrics = {}")], [Some(Metrics::default()); 2]);
    let all = metrics("metrics = { interval = \"1s\", cpu_above = 150, rss_above = \"1K\", fds_above = 9 }");
    let interval = std::time::Duration::from_secs(1);
    assert_eq!(all, Some(Metrics { interval, cpu_above: Some(150), rss_above: Some(1024), fds_above: Some(9) }));
}

#[test]
fn needs_have_the_condition_that_fits() {
    let parts = read(
        "[service.web]\ncommand = [\"a\"]\nneeds = [\"db\", \"cache\"]\n[service.db]\ncommand = [\"a\"]\nhealth = { tcp = 1 }\n[service.cache]\ncommand = [\"a\"]\n",
        Path::new("/"),
        Path::new("/.pm/logs"),
    )
    .unwrap();
    let names: Vec<&str> = parts.services.iter().map(Service::name).collect();
    assert_eq!(names, ["web", "db", "cache"], "as they stand in the file");
    assert_eq!(
        parts.services[0].rules().needs,
        [Need::new("db", Condition::Healthy), Need::new("cache", Condition::Started)]
    );
}

#[test]
fn where_it_listens_and_what_it_watches() {
    let text = "[service.a]\ncommand = [\"x\"]\ndir = \"sub\"\nlisten = [\"[::1]:80\", \"unix:run/s\", \"/s\"]\nwatch = [\"src\", \"/etc\"]\nhealth = { tcp = 80 }\n";
    let parts = read(text, Path::new("/project"), Path::new("/project/.pm/logs")).unwrap();
    let listeners: Vec<String> = parts.services[0].spec().listeners().iter().map(|(_, on)| on.to_string()).collect();
    assert_eq!(listeners, ["[::1]:80", "/project/sub/run/s", "/s"]);
    assert_eq!(parts.watched["a"].paths(), [PathBuf::from("/etc"), PathBuf::from("/project/sub/src")]);
    let warnings: Vec<&str> = parts.warnings.iter().map(|wrong| wrong.problem.as_str()).collect();
    let missing = "a: watch: /project/sub/src does not exist; it is watched once it does";
    let probe =
        "a: health.tcp always passes: pm itself listens on port 80 for it; ask by http, command, line or notify";
    assert_eq!(warnings, [probe, missing]);
    // Only the service itself is given them.
    let text =
        "[service.a]\ncommand = [\"x\"]\nlisten = \"/s\"\nstop = { command = [\"y\"] }\nhooks = { start = [\"z\"] }";
    assert_eq!(only(text).spec().listeners().len(), 1);
}

#[test]
fn what_is_wrong_is_shown_with_its_line() {
    let cases = [
        ("", " missing field `service`"),
        ("service = {}", " no service stands in it: write [service.NAME] and its command"),
        ("[service.a]\ncomand = [\"x\"]", "2:1: unknown field `comand`, expected one of `title`, `command`, "),
        (
            "[service.a]\ncommand = [\"x\"]\nhealth = \"http://x\"",
            "3:10: invalid type: string \"http://x\", expected a table, as in health = { http = \"http://127.0.0.1:3000/\" }",
        ),
        (
            "[service]\na = \"sleep 1\"",
            "2:5: invalid type: string \"sleep 1\", expected a table of its own, as in [service.web] and then command = [\"./web\"]",
        ),
        (
            "[service.a]\ncommand = \"x y\"",
            "2:11: invalid type: string \"x y\", expected a list, as in command = [\"sleep\", \"1\"]; a line for a shell is shell = \"sleep 1\"\n  2 | command = \"x y\"\n",
        ),
        (
            "[service.a]\ntitle = \"x\"",
            "1:1: a: nothing says what runs: write command = [\"PROGRAM\", \"ARGUMENT\"]\n  1 | [service.a]\n    | ^^^^^^^^^^^",
        ),
        ("[service.a]\ncommand = []", "1:1: a: command is empty: name a program"),
        ("[service.a]\ncommand = [\"x\"]\nshell = \"y\"", "a: both command and shell say what runs"),
        ("[service.\"a b\"]\ncommand = [\"x\"]", "a b: \"a b\" cannot be the name of a service"),
        ("[service.a]\ncommand = [\"x\"]\nneeds = [\"b\"]", "1:1: \"a\" needs \"b\", which does not exist"),
        (
            "[service.a]\ncommand = [\"x\"]\nneeds = [\"b\"]\n[service.b]\ncommand = [\"x\"]\nneeds = [\"c\"]\n[service.c]\ncommand = [\"x\"]\nneeds = [\"a\"]",
            "a cycle of needs: a → b → c → a",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nneeds = { b = \"healthy\" }\n[service.b]\ncommand = [\"x\"]",
            "\"a\" needs \"b\" to be healthy, but nothing says when it is: give it a probe, or need it to be running",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nneeds = { b = \"ready\" }",
            "a list of services, or a table such as { db = \"healthy\" }",
        ),
        ("[service.a]\ncommand = [\"x\"]\nhealth = {}", "a: health is one of http, tcp, command, line and notify"),
        (
            "[service.a]\ncommand = [\"x\"]\nhealth = { tcp = 1, line = \"x\" }",
            "a: health is one of http, tcp, command, line and notify",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nhealth = { tcp = 1, status = 200 }",
            "a: health.status is of http, which is not there",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nhealth = { http = \"https://x/\" }",
            "only http:// is probed; ask a command, such as curl, for https",
        ),
        ("[service.a]\ncommand = [\"x\"]\nhealth = { line = \"(\" }", "a: \"(\" is no regular expression"),
        ("[service.a]\ncommand = [\"x\"]\nhealth = { tcp = 99999 }", "3:"),
        ("[service.a]\ncommand = [\"x\"]\nstart_limit = \"5q\"", "3:15: \"5q\" is no time: write a number with a unit"),
        ("[service.a]\ncommand = [\"x\"]\nstart_limit = -1", "a time of -1 s is below zero"),
        ("[service.a]\ncommand = [\"x\"]\nstart_limit = 0", "a: the start limit is zero; it is at least 1"),
        ("[service.a]\ncommand = [\"x\"]\nstop = { signal = \"TERMINATE\" }", "a: stop.signal: "),
        ("[service.a]\ncommand = [\"x\"]\nnice = 40", "a: a niceness of 40; it goes from -20 to 19"),
        (
            "[service.a]\ncommand = [\"x\"]\nrestart = \"sometimes\"",
            "never, on_failure, always, or a table with `when`",
        ),
        (
            "[service.a]\ncommand = [\"${PM_NOT_SET}\"]",
            "a: the variable PM_NOT_SET is not set; write ${PM_NOT_SET:-something}",
        ),
        ("[service.a]\ncommand = [\"x\"]\nenv_file = \"none.env\"", "a: \"/nowhere/none.env\" cannot be read"),
        ("[service.a]\ncommand = [\"x\"]\n[service.a]\ncommand = [\"y\"]", "3:"),
        ("[service.a\ncommand = [\"x\"]", "1:11: "),
        (
            "[service.a]\ncommand = [\"x\"]\nliveness = { line = \"x\" }",
            "a: liveness is asked again and again: give it http, tcp or command",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nmetrics = \"on\"",
            "true, false, or a table with interval, cpu_above, rss_above and fds_above",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nmetrics = { interval = 0.01 }",
            "a: metrics every 10ms; 100ms is the shortest interval",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nmetrics = { rss_above = 0 }",
            "a: the threshold of its memory is zero; it is at least 1",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nlisten = \"8080\"",
            "1:1: a: listen: \"8080\" is no place to listen on: give an address with its port",
        ),
        ("[service.a]\ncommand = [\"x\"]\nlisten = 8080", "3:10: a text, or a list of texts"),
        ("[service.a]\ncommand = [\"x\"]\nlisten = \"/${PM_NOT_SET}\"", "a: the variable PM_NOT_SET is not set"),
        ("[service.a]\ncommand = [\"x\"]\nwatch = []", "1:1: a: watch: it names no path"),
        (
            "[service.a]\ncommand = [\"x\"]\nwatch = { paths = \"src\", ignore = \"[a]\" }",
            "\"[a]\" cannot be ignored: ",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nwatch = { path = \"src\" }",
            "3:9: a path, a list of paths, or a table with paths and ignore",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\ntty = true\nstdin = \"pipe\"",
            "1:1: a: tty is its standard input: leave out stdin",
        ),
        (
            "[service.a]\ncommand = [\"x\"]\nstdin = \"tty\"",
            "3:9: unknown variant `tty`, expected one of `null`, `inherit`, `pipe`",
        ),
        ("[log]\nfile = \"x\"\n[service.a]\ncommand = [\"x\"]", "log.file is of one service"),
    ];
    for (text, expected) in cases {
        let said = refused(text);
        assert!(said.contains(expected), "{text:?} gives\n{said}\nand not {expected:?}");
    }
}
