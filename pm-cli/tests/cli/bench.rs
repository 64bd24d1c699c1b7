//! `pm bench`, as short as it gets: what it prints, not what it measures.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Dir, Done, bench};

/// Rows of a run in the one place that every machine has.
fn rows(args: &[&str]) -> Vec<Value> {
    let done = bench(["--json", "--placement", "one", "--time", "5ms"].iter().chain(args)).run("").expect(0);
    done.objects()
}

fn of<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_else(|| panic!("{field} is no text in {row}"))
}

#[test]
fn each_row_is_an_object_with_all_fields() {
    let rows = rows(&[]);
    for row in &rows {
        for field in ["size", "in_flight", "p50_ns", "p99_ns", "p999_ns", "rate"] {
            assert!(row[field].as_u64().is_some_and(|number| number > 0), "{field} in {row}");
        }
        for field in ["cpu_ns_per_query_manager", "cpu_ns_per_query_worker"] {
            assert!(row[field].is_u64(), "{field} in {row}");
        }
        assert_eq!((of(row, "placement"), row["size"].as_u64()), ("one", Some(64)));
        assert!(row["p50_ns"].as_u64() <= row["p99_ns"].as_u64() && row["p99_ns"].as_u64() <= row["p999_ns"].as_u64());
        assert_eq!(row.as_object().unwrap().len(), 11, "{row}");
    }
    let modes = |transport: &str, in_flight: u64| -> BTreeSet<String> {
        let here = rows.iter().filter(|row| of(row, "transport") == transport && row["in_flight"] == in_flight);
        here.map(|row| of(row, "mode").to_string()).collect()
    };
    for transport in ["stdio", "uds", "shm"] {
        for in_flight in [1, 256] {
            assert_eq!(modes(transport, in_flight), BTreeSet::from(["await", "blocking", "batch"].map(String::from)));
        }
    }
    // Nobody spins for a thread that shares its processor.
    assert_eq!(modes("limit", 1), BTreeSet::from(["futex", "pipe", "socket"].map(String::from)));
    assert_eq!(modes("limit", 256), BTreeSet::from(["channel".to_string()]));
}

#[test]
fn lists_say_what_is_measured() {
    let rows = rows(&["-t", "shm,uds", "-s", "0,1K", "-n", "2"]);
    let rows: Vec<_> = rows.iter().filter(|row| of(row, "transport") != "limit").collect();
    let seen: Vec<_> =
        rows.iter().map(|row| (of(row, "transport"), row["size"].as_u64(), row["in_flight"].as_u64())).collect();
    let expected: Vec<_> = [("shm", 0), ("shm", 1024), ("uds", 0), ("uds", 1024)]
        .into_iter()
        .flat_map(|(transport, size)| [(transport, Some(size), Some(2)); 3])
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn without_json_there_is_a_table_and_advice() {
    let dir = Dir::new();
    let plot = dir.join("bench.svg");
    let args = ["--time", "5ms", "-p", "one", "-n", "1,8", "--plot", plot.to_str().unwrap()];
    let done: Done = bench(args).run("").expect(0);
    let text = done.text();
    for part in
        ["one core", "limit   futex", "shm     await", "x futex", "On this machine pick", "in flight, p50: stdio"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(done.err.contains("shm on one core"), "it says how far it is: {}", done.err);
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.matches("<rect").count() > 9 && svg.contains("shm batch"), "{svg}");
}

#[test]
fn options_that_make_no_sense_name_what_would() {
    let check = |args: &[&str], parts: &[&str]| bench(args).run("").refused(2, parts);
    check(&["-t", "pigeon"], &["--transport", "pigeon", "stdio, uds, shm"]);
    check(&["-s", "1G"], &["--size", "60M"]);
    check(&["-s", "big"], &["--size", "64K"]);
    check(&["-n", "0"], &["--in-flight", "1 to 4096"]);
    check(&["-n", "1,5000"], &["--in-flight", "5000"]);
    check(&["-p", "moon"], &["moon", "two", "unpinned"]);
    check(&["--time", "0"], &["--time"]);
    check(&["--plot", "/no/such/place.svg"], &["/no/such/place.svg", "No such file"]);
    let word = bench(["shm"]).run("").expect(2).err;
    assert!(word.contains("'shm'") && !word.contains("COMMAND"), "a bench has no command: {word}");
}

#[test]
fn it_ends_when_nobody_reads_on() {
    let mut running = bench(["--json", "-p", "one", "--time", "50ms"]).start();
    assert!(running.line().starts_with('{'));
    running.stdout = None;
    running.end().expect(141);
}

#[test]
fn a_signal_ends_it_and_all_that_it_started() {
    let running = bench(["--json", "-p", "one", "--time", "10s", "-t", "shm"]).start();
    while running.others().is_empty() {
        std::thread::yield_now();
    }
    running.signal(rustix::process::Signal::INT);
    running.end();
}
