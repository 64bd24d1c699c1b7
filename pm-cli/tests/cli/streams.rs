//! `pm pool --stream --key`: each line a message on the stream of its key.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Dir, Fifo, has, pool};

/// A game for each user, which ends as its orders say.
const GAME: &str = r#"
import os, time

def play(stream):
    moves = 0
    for order in stream:
        moves += 1
        do = order.get("do")
        if do == "die": os._exit(3)
        if do == "fail": raise ValueError("no such move")
        if do == "leave": return
        if do == "wait":
            with open(order["on"]) as gate: gate.readline()
        if do == "nap": time.sleep(0.2)
        if do == "complain": stream.error(ValueError("a strange move"))
        stream.write([stream.name, moves])

def refuse(stream):
    pass

def doze(stream):
    if stream.name == "a": time.sleep(1000)
    for order in stream: stream.write(order)
"#;

/// `pm pool` of that game.
fn game(args: &[&str], dir: &Dir) -> crate::support::Pm {
    let target = format!("{}:play", dir.script("game.py", GAME).display());
    let fixed = ["--in", "json", "--stream", "--key", "user", "--out", "json"];
    pool(fixed.iter().chain(args).map(|arg| arg.to_string()).chain(["--".into(), "@py".into(), target]))
}

fn order(user: &str, what: &str) -> String {
    json!({ "user": user, "do": what }).to_string() + "\n"
}

/// The results of each key, in their order.
fn by_key(objects: &[Value]) -> BTreeMap<String, Vec<Value>> {
    let mut keys: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for object in objects {
        let said = object.get("result").or(object["error"].get("kind")).unwrap_or(&Value::Null);
        keys.entry(object["key"].as_str().unwrap_or_default().to_string()).or_default().push(said.clone());
    }
    keys
}

#[test]
fn each_key_has_its_lines_in_order() {
    let input: String = (0..20_000).map(|n| format!("key{} {n}\n", n % 300)).collect();
    let ends_all_the_time = &["-j2", "--max-streams", "7"];
    for args in [&["-j1"][..], &["-j3"], &["-j2", "-t", "stdio"], &["-j2", "-t", "shm"], ends_all_the_time] {
        let options = ["--stream", "--key", "1", "--tag", "--", "@echo"];
        let done = pool(args.iter().chain(&options)).run(&input).expect(0);
        let mut keys: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for line in done.text().lines() {
            let (key, message) = line.split_once('\t').unwrap();
            let (word, number) = message.split_once(' ').unwrap();
            assert_eq!(key, word);
            keys.entry(key.to_string()).or_default().push(number.parse().unwrap());
        }
        assert_eq!(keys.len(), 300);
        for (key, numbers) in keys {
            let first: u32 = key[3..].parse().unwrap();
            assert_eq!(numbers, (first..20_000).step_by(300).collect::<Vec<_>>(), "{args:?}");
        }
        assert_eq!(done.err, "");
    }
    assert_eq!(pool(["--stream", "--key", "1", "--", "@echo"]).run("").expect(0).text(), "");
}

#[test]
fn a_tag_stays_on_its_line() {
    let input =
        [r#"{"id":"a\tb\n"}"#, r#"{"id":"c\\d"}"#, r#"{"id":[1,"e"]}"#].map(|line| line.to_string() + "\n").concat();
    let options = ["-j1", "--in", "json", "--stream", "--key", "id", "--tag", "--", "@count"];
    let done = pool(options).run(input).expect(0);
    let text = done.text();
    let lines: BTreeSet<&str> = text.lines().collect();
    assert_eq!(lines, BTreeSet::from(["a\\tb\\n\t1", "c\\\\d\t1", "[1,\"e\"]\t1"]));
}

#[test]
fn a_worker_keeps_what_it_likes_of_a_key() {
    let done = pool(["--stream", "--key", "2", "--out", "json", "--", "@count"]).run("x a\ny b\nz a\nx a\n").expect(0);
    let keys = by_key(&done.objects());
    assert_eq!(keys["a"], [json!("1"), json!("2"), json!("3")]);
    assert_eq!(keys["b"], [json!("1")]);
}

#[test]
fn lines_without_a_key_are_errors_of_their_own() {
    let done = pool(["--stream", "--key", "2", "--", "@count"]).run("a b\nalone\n\nc b\n").expect(1);
    assert_eq!(done.text(), "1\n2\n");
    let errors: Vec<_> = done.err.lines().collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert_eq!(errors[0], "pm: job 1 (\"alone\"): the line has no word 2, but 1 words");
    let done = pool(["--stream", "--key", "1", "--out", "json", "--", "@count"]).run(b"\xff x\n").expect(1);
    assert_eq!(done.objects()[0]["error"]["kind"], "no_key");
    let long = pool(["--stream", "--key", "1", "--max-line", "4", "--", "@count"]).run("abcdefgh\nab\n").expect(1);
    assert_eq!(long.text(), "1\n");
}

#[test]
fn errors_are_those_of_their_keys() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let mut running = game(&["-j2"], &dir).start();
    let mut stdin = running.stdin.take().unwrap();
    let mut objects: Vec<Value> = Vec::new();
    for (user, what, said) in
        [("ann", "move", 1), ("bob", "complain", 2), ("bob", "move", 1), ("cid", "fail", 1), ("ann", "move", 1)]
    {
        stdin.write_all(order(user, what).as_bytes()).unwrap();
        objects.extend((0..said).map(|_| serde_json::from_str::<Value>(&running.line()).unwrap()));
    }
    // The next line of a key that failed begins a new game. One that comes before the failure is known is lost with the old one.
    stdin.write_all((order("dan", "leave") + &order("cid", "move")).as_bytes()).unwrap();
    drop(stdin);
    objects.extend(running.end().expect(1).objects());
    let keys = by_key(&objects);
    assert_eq!(keys["ann"], [json!(["ann", 1]), json!(["ann", 2])]);
    assert_eq!(keys["bob"], [json!("error"), json!(["bob", 1]), json!(["bob", 2])]);
    assert_eq!(keys["cid"], [json!("error"), json!(["cid", 1])]);
    assert!(!keys.contains_key("dan"));
    let error = objects.into_iter().find(|object| object["key"] == "cid").unwrap();
    assert_eq!(error["error"]["message"], "ValueError: no such move");
}

#[test]
fn a_worker_that_dies_costs_its_own_keys_a_beginning() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let mut running = game(&["-j1"], &dir).start();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all((order("ann", "move") + &order("bob", "move")).as_bytes()).unwrap();
    let first: BTreeSet<_> = [running.line(), running.line()].into();
    assert_eq!(first.len(), 2);
    stdin.write_all(order("bob", "die").as_bytes()).unwrap();
    let errors = [running.line(), running.line()].map(|line| serde_json::from_str::<Value>(&line).unwrap());
    assert!(errors.iter().all(|error| error["error"]["kind"] == "worker_lost"), "{errors:?}");
    stdin.write_all((order("ann", "move") + &order("bob", "move")).as_bytes()).unwrap();
    drop(stdin);
    let keys = by_key(&running.end().expect(1).objects());
    assert_eq!((&keys["ann"][..], &keys["bob"][..]), (&[json!(["ann", 1])][..], &[json!(["bob", 1])][..]));
}

#[test]
fn a_key_that_is_slow_holds_up_no_other() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let mut gate = dir.fifo("gate");
    let mut running = game(&["-j1"], &dir).start();
    let mut stdin = running.stdin.take().unwrap();
    let wait = json!({ "user": "slow", "do": "wait", "on": gate.path }).to_string() + "\n";
    let behind: String = (0..2000).map(|_| order("slow", "move")).collect();
    let others: String = (0..500).map(|n| order(&format!("user{}", n % 50), "move")).collect();
    let writer = std::thread::spawn(move || stdin.write_all((wait + &behind + &others).as_bytes()));
    for _ in 0..500 {
        assert!(!running.line().contains("slow"));
    }
    gate.write("go\n");
    writer.join().unwrap().unwrap();
    let keys = by_key(&running.end().expect(0).objects());
    assert_eq!(keys["slow"].len(), 2001);
}

#[test]
fn more_keys_than_may_be_open_begin_anew() {
    let options = ["-j1", "--stream", "--max-streams", "2", "--key", "1", "--tag", "--", "@count"];
    let mut running = pool(options).start();
    let mut stdin = running.stdin.take().unwrap();
    // The key that was silent longest makes room.
    for (key, count) in [("a", 1), ("b", 1), ("a", 2), ("c", 1), ("a", 3), ("b", 1), ("c", 1)] {
        writeln!(stdin, "{key}").unwrap();
        assert_eq!(running.line(), format!("{key}\t{count}"));
    }
    drop(stdin);
    assert_eq!(running.end().expect(0).text(), "");
}

#[test]
fn more_keys_than_the_workers_take_are_served_all_the_same() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    // The kit takes a thousand at once.
    let input: String = (0..2500).map(|n| order(&format!("user{}", n % 1250), "move")).collect();
    let done = game(&["-j1"], &dir).run(input).expect(0);
    let results: usize = by_key(&done.objects()).values().map(Vec::len).sum();
    assert_eq!(results, 2500);
}

#[test]
fn a_handler_that_takes_nothing_comes_to_an_end() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let target = format!("{}:refuse", dir.script("game.py", GAME).display());
    let options = ["--stream", "--key", "1", "--out", "json", "--", "@py"];
    let done = pool(options.into_iter().map(str::to_string).chain([target])).run("a\nb\na\n");
    // A message may have been on its way before the stream ended.
    assert!(matches!(done.code, Some(0 | 1)), "{done:?}");
    assert!(done.objects().iter().all(|object| object["error"]["kind"] == "not_taken"), "{done:?}");
}

#[test]
fn the_first_signal_lets_streams_end() {
    let mut running = pool(["--stream", "--key", "1", "--", "@count"]).start();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(b"a\nb\na\n").unwrap();
    let mut lines: Vec<_> = (0..3).map(|_| running.line()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1", "1", "2"]);
    running.signal(Signal::TERM);
    // Its input is still open.
    assert!(running.ends_within(Duration::from_secs(60)));
    drop(stdin);
    let done = running.end().expect(143);
    assert!(done.err.starts_with("pm: stopping: streams come to their ends"), "{}", done.err);
}

#[test]
fn the_second_signal_kills_what_does_not_end() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let gate = dir.fifo("gate");
    let mut running = game(&["-j1"], &dir).start();
    let wait = json!({ "user": "slow", "do": "wait", "on": gate.path }).to_string() + "\n";
    running.stdin.as_mut().unwrap().write_all((order("ann", "move") + &wait).as_bytes()).unwrap();
    assert!(running.line().contains("ann"));
    running.signal(Signal::INT);
    assert!(!running.ends_within(Duration::from_millis(100)), "a stream is open");
    let ended = (0..100).any(|_| {
        running.signal(Signal::INT);
        running.ends_within(Duration::from_millis(200))
    });
    assert!(ended);
    running.end().expect(130);
}

/// A limit that only those reach who never go on, and a handler that does not.
const LIMIT: [&str; 2] = ["--timeout", "2s"];

fn hang(gate: &Fifo) -> String {
    json!({ "user": "slow", "do": "wait", "on": gate.path }).to_string() + "\n"
}

#[test]
fn a_stream_that_does_not_end_is_cancelled_and_one_that_is_slow_is_not() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let gate = dir.fifo("gate");
    let naps = order("ann", "nap").repeat(15);
    let objects = game(&LIMIT, &dir).run(hang(&gate) + &naps).expect(1).objects();
    let keys = by_key(&objects);
    assert_eq!((keys["ann"].len(), &keys["slow"][..]), (15, &[json!("timed_out")][..]), "{objects:?}");
    let error = objects.iter().find(|object| object["key"] == "slow").unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("nothing more comes") && message.contains("2s; --timeout"), "{message}");
}

#[test]
fn a_signal_gives_streams_no_longer_than_the_end_of_the_input_does() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let gate = dir.fifo("gate");
    let mut running = game(&LIMIT, &dir).start();
    running.stdin.as_mut().unwrap().write_all((order("ann", "move") + &hang(&gate)).as_bytes()).unwrap();
    assert!(running.line().contains("ann"));
    running.signal(Signal::TERM);
    assert!(running.ends_within(Duration::from_secs(60)));
    let keys = by_key(&running.end().expect(143).objects());
    assert_eq!(keys["slow"], [json!("timed_out")]);
}

/// What comes of this input for a handler that sleeps on the key `a`.
fn doze(options: &[&str], input: &str) -> Vec<Value> {
    let dir = Dir::new();
    let target = format!("{}:doze", dir.script("game.py", GAME).display());
    let (fixed, command) = (["-j1", "--stream", "--key", "1", "--out", "json"], ["--", "@py", &target]);
    pool(fixed.iter().chain(&LIMIT).chain(options).chain(&command)).run(input).expect(1).objects()
}

#[test]
fn a_stream_that_takes_nothing_is_cancelled_while_there_is_input() {
    if !has("python3", "--version") {
        return;
    }
    // More lines than a worker holds, so the second stream gets the rest.
    let objects = doze(&[], &"a\n".repeat(1500));
    let messages: Vec<_> = objects.iter().map(|object| object["error"]["message"].as_str().unwrap()).collect();
    assert!(messages.len() == 2 && messages[0].contains("took none of the lines"), "{messages:?}");
    assert!(messages[1].contains("nothing more comes"), "{messages:?}");
}

#[test]
fn a_stream_that_does_not_make_room_is_cancelled() {
    if !has("python3", "--version") {
        return;
    }
    let keys = by_key(&doze(&["--max-streams", "1"], "a\nb 1\nb 2\n"));
    assert_eq!((&keys["a"][..], &keys["b"][..]), (&[json!("timed_out")][..], &[json!("b 1"), json!("b 2")][..]));
}

#[test]
fn nobody_reads_the_results() {
    let mut running = pool(["--stream", "--key", "1", "--", "@echo"]).start();
    let mut stdin = running.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let line = "x".repeat(1000) + "\n";
        while stdin.write_all(line.as_bytes()).is_ok() {}
    });
    assert_eq!(running.line().len(), 1000);
    running.stdout = None;
    assert!(running.ends_within(Duration::from_secs(60)));
    writer.join().unwrap();
    running.end().expect(141);
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |args: &[&str], parts: &[&str]| pool(args).run("").refused(2, parts);
    refused(&["--stream", "--", "@count"], &["--key"]);
    refused(&["--key", "1", "--", "@count"], &["--stream"]);
    refused(&["--", "@count"], &["--stream --key FIELD"]);
    refused(&["--stream", "--key", "user", "--", "@count"], &["\"user\"", "--in json"]);
    refused(&["--stream", "--key", "0", "--", "@count"], &["counted from 1"]);
    refused(&["--stream", "--key", "a..b", "--in", "json", "--", "@count"], &["user.id"]);
    refused(&["--stream", "--key", "1", "--max-streams", "0", "--", "@count"], &["--max-streams"]);
    refused(&["--stream", "--key", "1", "--", "@wc"], &["serves no streams"]);
    refused(&["--stream", "--key", "1", "--", "cat", "{}"], &["--stream is for workers"]);
    refused(&["--stream", "--key", "1", "--as", "filter", "--", "cat"], &["--stream is for workers"]);
    refused(&["--stream", "--key", "1", "--retry", "1", "--", "@count"], &["--retry"]);
    refused(&["--stream", "--key", "1", "-o", "x", "--", "@count"], &["-o"]);
    refused(&["--stream", "--key", "1", "--retry-on", "error", "--", "@count"], &["--retry-on"]);
}
