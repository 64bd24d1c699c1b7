//! Jobs and results: every form of input, output and worker.

use std::io::Write;
use std::os::unix::ffi::OsStringExt;

use serde_json::json;

use crate::support::{Dir, has, numbers, pool};

#[test]
fn an_echo_gives_back_every_byte_in_order() {
    let mut input = numbers(50_000).into_bytes();
    input.extend_from_slice(b"\n\xff\xfe not UTF-8\n\ttab\r\nlast");
    let mut expected = input.clone();
    expected.push(b'\n');
    for args in [&["-j1"][..], &["-P3"], &["-t", "stdio"], &["-t", "shm"]] {
        let done = pool(args.iter().chain(&["--", "@echo"])).run(&input).expect(0);
        assert!(done.out == expected, "{args:?}: {} of {} bytes", done.out.len(), expected.len());
        assert_eq!(done.err, "");
    }
    assert_eq!(pool(["--", "@echo"]).run("").expect(0).text(), "");
}

#[test]
fn the_order_holds_whatever_jobs_take_and_unordered_lifts_it() {
    let dir = Dir::new();
    let gate = dir.fifo("gate");
    let script = format!("case $1 in 0) read line < {}; echo slow;; *) echo $1;; esac", gate.path.display());
    let args = ["-j2", "--", "sh", "-c", &script, "sh", "{}"];
    let mut running = pool(["--unordered"].iter().chain(&args)).start();
    running.stdin.as_mut().unwrap().write_all(numbers(20).as_bytes()).unwrap();
    let mut early: Vec<u32> = (1..20).map(|_| running.line().parse().unwrap()).collect();
    early.sort_unstable();
    assert_eq!(early, (1..20).collect::<Vec<_>>());
    let mut gate = gate;
    gate.write("go\n");
    assert_eq!(running.end().expect(0).text(), "slow\n");

    let mut running = pool(args).start();
    running.stdin.as_mut().unwrap().write_all(numbers(20).as_bytes()).unwrap();
    gate.write("go\n");
    let done = running.end().expect(0);
    assert_eq!(done.text(), format!("slow\n{}", &numbers(20)[2..]));
}

#[test]
fn intake_pauses_behind_a_slow_job() {
    let dir = Dir::new();
    let (mut gate, mut seen) = (dir.fifo("gate"), dir.fifo("seen"));
    let script = format!(
        "while read -r x; do case $x in 0) read line < {0};; 4095) echo $x > {1};; 9999) echo $x > {1};; esac; echo $x; done",
        gate.path.display(),
        seen.path.display()
    );
    let mut running = pool(["-j2", "--as", "filter", "--", "sh", "-c", &script]).start();
    let mut stdin = running.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(numbers(10_000).as_bytes()));
    assert_eq!(seen.line(), "4095", "the window holds 4,096 jobs");
    gate.write("go\n");
    assert_eq!(seen.line(), "9999");
    writer.join().unwrap().unwrap();
    assert_eq!(running.end().expect(0).text(), numbers(10_000));
}

#[test]
fn results_come_at_once_where_nothing_else_is_on_its_way() {
    let mut running = pool(["--", "@echo"]).start();
    for text in ["a", "b"] {
        running.stdin.as_mut().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
        assert_eq!(running.line(), text);
    }
    running.end().expect(0);
}

#[test]
fn digests_and_counts_are_those_of_the_real_programs() {
    let dir = Dir::new();
    let names: Vec<std::ffi::OsString> = ["empty", "with space", "-dash", "new\nline"]
        .map(Into::into)
        .into_iter()
        .chain([OsStringExt::from_vec(b"\xff".to_vec())])
        .collect();
    for (number, name) in names.iter().enumerate() {
        std::fs::write(dir.path().join(name), "words and\nlines ".repeat(number * 1000)).unwrap();
    }
    let input: Vec<u8> = names.iter().flat_map(|name| [name.as_encoded_bytes(), b"\0"].concat()).collect();
    let real = |program: &str| -> Vec<u8> {
        names
            .iter()
            .flat_map(|name| {
                let file = std::fs::File::open(dir.path().join(name)).unwrap();
                let output = std::process::Command::new(program).stdin(file).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let fields: Vec<_> = text.split_whitespace().filter(|field| *field != "-").collect();
                [name.as_encoded_bytes(), b"\t", fields.join(" ").as_bytes(), b"\n"].concat()
            })
            .collect()
    };
    for (worker, program) in [("@sha256", "sha256sum"), ("@wc", "wc")] {
        let done = pool(["-0", "--tag", "--", worker]).dir(dir.path()).run(&input).expect(0);
        assert!(done.out == real(program), "{worker}: {}", String::from_utf8_lossy(&done.out));
    }
    let done = pool(["--", "@sha256"]).run("/no/such\n").expect(1);
    assert_eq!(done.text(), "");
    assert!(done.err.starts_with("pm: job 0 (\"/no/such\"): /no/such cannot be read"), "{}", done.err);
}

#[test]
fn words_reach_a_program_unchanged() {
    let input = b"-n\0$(id)\0a b\0new\nline\0\xff\0\0{}\0".to_vec();
    let expected = b"<--x=-n,-n>\n<--x=$(id),$(id)>\n<--x=a b,a b>\n<--x=new\nline,new\nline>\n<--x=\xff,\xff>\n<--x=,>\n<--x={},{}>\n";
    let done = pool(["-0", "--", "printf", "<%s>", "--x={},{}"]).run(&input).expect(0);
    assert_eq!(done.out.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn a_program_can_stand_in_its_own_hole() {
    let done = pool(["--", "{}", "x"]).run("echo\nno-such-program\n").expect(1);
    assert_eq!(done.text(), "x\n");
    assert!(done.err.contains("job 1") && done.err.contains("no-such-program"), "{}", done.err);
}

#[test]
fn what_a_program_prints_is_the_result() {
    let plain = |script: &str| pool(["--", "sh", "-c", script, "{}"]).run("a\n").expect(0);
    assert_eq!(plain("printf 'x\\ny\\n'").text(), "x\ny\n");
    assert_eq!(plain("printf x").text(), "x\n");
    assert_eq!(plain("true").text(), "");
    let noisy = plain("echo out; echo warning >&2");
    assert_eq!((noisy.text().as_str(), noisy.err.as_str()), ("out\n", "warning\n"));
    assert_eq!(
        pool(["--", "cat", "--", "/dev/stdin", "/dev/null", "--", "/proc/self/{}"]).run("x\n").expect(1).text(),
        "",
        "its stdin is empty"
    );
    let big = pool(["--out", "json", "--", "sh", "-c", "yes | head -c 70000000; : {}"]).run("a\n").expect(1);
    assert_eq!(big.objects()[0]["error"]["kind"], "output_too_large");
    let large = pool(["--", "sh", "-c", "yes | head -c 5000000; : {}"]).run("a\n").expect(0);
    assert_eq!(large.out.len(), 5_000_000);
}

#[test]
fn a_tag_stands_on_each_line() {
    let done = pool(["--tag", "--", "sh", "-c", "echo a{}; echo b{}"]).run("1\n2\n").expect(0);
    assert_eq!(done.text(), "1\ta1\n1\tb1\n2\ta2\n2\tb2\n");
    let done = pool(["-0", "--tag", "--stream", "--key", "1", "--", "@echo"]).run(b"k a\nb\0").expect(0);
    assert_eq!(done.text(), "k\tk a\nk\tb\n");
}

#[test]
fn programs_that_fail_say_how() {
    let script = "echo out; echo why >&2; case $1 in 1) exit 3;; 2) kill -9 $$;; esac";
    let done = pool(["-j1", "--out", "json", "--", "sh", "-c", script, "sh", "{}"]).run(numbers(3)).expect(1);
    let objects = done.objects();
    assert_eq!(objects[0], json!({"job": 0, "input": "0", "result": "out"}));
    let error = json!({"kind": "exit", "message": "exit code 3", "tries": 1, "code": 3, "stderr": "why\n"});
    assert_eq!(objects[1], json!({"job": 1, "input": "1", "error": error}));
    assert_eq!(objects[2]["error"]["kind"], "signal");
    assert_eq!(objects[2]["error"]["message"], "killed by SIGKILL");
    let done = pool(["--", "sh", "-c", script, "sh", "{}"]).run("1\n").expect(1);
    assert_eq!(done.err, "pm: job 0 (\"1\"): exit code 3: why\n");
}

#[test]
fn filters_answer_line_for_line() {
    let done = pool(["-j2", "--as", "filter", "--", "sed", "-u", "s/^/x/"]).run(numbers(3000)).expect(0);
    assert_eq!(done.text(), numbers(3000).lines().map(|line| format!("x{line}\n")).collect::<String>());
    let done = pool(["-0", "--as", "filter", "--", "cat"]).run(b"one\0two\nlines\0\xff\0").expect(1);
    assert_eq!(done.out, b"one\n\xff\n");
    assert!(done.err.contains("job 1") && done.err.contains("line break"), "{}", done.err);
}

#[test]
fn a_filter_ends_by_itself() {
    let script = "while read -r x; do echo \"$x\"; done; echo 'a total'; sleep 0.2; echo 'the end' >&2; exit 3";
    let done = pool(["-j2", "--as", "filter", "--", "sh", "-c", script]).run(numbers(100)).expect(0);
    assert_eq!(done.text(), numbers(100));
    for words in ["a total", "the end"] {
        assert_eq!(done.err.matches(words).count(), 2, "{}", done.err);
    }
}

#[test]
fn json_goes_in_and_comes_out() {
    let values = "{\"a\": [1.50, null]}\n \"text\\u00e9\" \n17\n{nonsense\n\n";
    let done = pool(["--in", "json", "--out", "json", "--", "@echo"]).run(values).expect(1);
    let objects = done.objects();
    assert_eq!(objects[0], json!({"job": 0, "input": {"a": [1.5, null]}, "result": {"a": [1.5, null]}}));
    assert!(
        done.text().starts_with("{\"job\":0,\"input\":{\"a\": [1.50, null]},\"result\":{\"a\": [1.50, null]}}\n"),
        "as it was written"
    );
    assert_eq!(objects[1], json!({"job": 1, "input": "texté", "result": "texté"}));
    assert_eq!(objects[2]["result"], 17);
    assert_eq!(objects[3]["input"], "{nonsense");
    assert_eq!(objects[3]["error"]["kind"], "bad_input");
    assert_eq!(objects[4]["error"]["kind"], "bad_input");
    let done = pool(["--in", "json", "--", "printf", "<%s>", "{}"]).run("\"a\\nb\"\n[1]\n").expect(0);
    assert_eq!(done.text(), "<a\nb>\n<[1]>\n");
    let done = pool(["--in", "json", "--", "@echo"]).run("\"a\\nb\"\n[1]\n").expect(0);
    assert_eq!(done.text(), "a\nb\n[1]\n");
    let done = pool(["-0", "--in", "json", "--out", "json", "--", "@echo"]).run("[1,\n2]\0").expect(0);
    assert_eq!(done.text(), "{\"job\":0,\"input\":[1, 2],\"result\":[1, 2]}\n");
    let done = pool(["--out", "json", "--", "@echo"]).run(b"\xff\n").expect(0);
    assert_eq!(done.text(), "{\"job\":0,\"input\":{\"base64\":\"/w==\"},\"result\":{\"base64\":\"/w==\"}}\n");
}

#[test]
fn long_lines_are_errors_of_their_own() {
    let input = format!("a\n{}\nb\n{}", "x".repeat(100_000), "y".repeat(11));
    let done = pool(["--max-line", "10", "--out", "json", "--", "@echo"]).run(&input).expect(1);
    let objects = done.objects();
    assert_eq!(objects.len(), 4);
    assert_eq!(objects[1]["error"]["kind"], "line_too_long");
    assert_eq!(objects[1]["input"]["bytes"], 100_000);
    assert_eq!(objects[2]["result"], "b");
    assert_eq!(objects[3]["input"]["bytes"], 11);
    let done = pool(["--out", "json", "--", "@echo"]).run(&input).expect(0);
    let objects = done.objects();
    assert_eq!(objects[1]["input"]["bytes"], 100_000, "an input over 1 KiB is given by its digest");
    assert_eq!(objects[1]["result"].as_str().map(str::len), Some(100_000));
    let done = pool(["--max-line", "30M", "--", "@echo"]).run("z".repeat(20 << 20)).expect(0);
    assert_eq!(done.out.len(), (20 << 20) + 1);
    let done = pool(["--", "@echo"]).run("z".repeat((16 << 20) + 1)).expect(1);
    assert!(done.err.contains("--max-line"), "{}", done.err);
}

#[test]
fn python_functions_are_served() {
    if !has("python3", "--version") {
        return;
    }
    let dir = Dir::new();
    let code = "def f(x):\n  if x == '2': raise ValueError('two')\n  print('seen', x)\n  return {'got': x}\n";
    std::fs::write(dir.join("rules.py"), code).unwrap();
    for transport in ["uds", "stdio"] {
        let args = ["-j2", "-t", transport, "--out", "json", "--", "@py", "rules.py:f"];
        let done = pool(args).dir(dir.path()).run(numbers(4)).expect(1);
        let objects = done.objects();
        assert_eq!(objects[1], json!({"job": 1, "input": "1", "result": {"got": "1"}}));
        assert_eq!(objects[2]["error"]["kind"], "error");
        assert_eq!(objects[2]["error"]["message"], "ValueError: two");
        assert_eq!(objects.len(), 4);
    }
    let done = pool(["--", "@py", "rules.py:f"]).dir(dir.path()).run(b"1\n\xff\n").expect(1);
    assert_eq!(done.text(), "{\"got\":\"1\"}\n");
    assert!(done.err.contains("job 1") && done.err.contains("UTF-8"), "{}", done.err);
}

#[test]
fn node_functions_are_served() {
    if !has("node", "--version") {
        return;
    }
    let dir = Dir::new();
    std::fs::write(
        dir.join("rules.js"),
        "exports.f = async x => { if (x === 2) throw new TypeError('two'); return [x]; };\n",
    )
    .unwrap();
    for transport in ["uds", "stdio"] {
        let args = ["-t", transport, "--in", "json", "--out", "json", "--", "@node", "rules.js:f"];
        let done = pool(args).dir(dir.path()).run(numbers(4)).expect(1);
        let objects = done.objects();
        assert_eq!(objects[3], json!({"job": 3, "input": 3, "result": [3]}));
        assert_eq!(objects[2]["error"]["message"], "TypeError: two");
    }
}

#[test]
fn a_kit_shows_neither_in_a_command_line_nor_to_children() {
    let dir = Dir::new();
    let python = "import os, subprocess\n\ndef f(line):\n    child = subprocess.run('env', capture_output=True, text=True).stdout\n    \
        return [open('/proc/self/cmdline').read(), child, list(os.environ)]\n";
    let node = "exports.f = line => [require('fs').readFileSync('/proc/self/cmdline', 'utf8'), \
        require('child_process').execSync('env').toString(), Object.keys(process.env)];\n";
    for (program, worker, file, code) in [("python3", "@py", "rules.py", python), ("node", "@node", "rules.js", node)] {
        if !has(program, "--version") {
            continue;
        }
        std::fs::write(dir.join(file), code).unwrap();
        let target = format!("{file}:f");
        let done = pool(["-j1", "--out", "json", "--", worker, &target]).dir(dir.path()).run("a\n").expect(0);
        let result = &done.objects()[0]["result"];
        let words: Vec<_> = result[0].as_str().unwrap().trim_end_matches('\0').split('\0').collect();
        assert_eq!(words.last(), Some(&target.as_str()));
        assert!(words.iter().all(|word| word.len() < 100), "{words:?}");
        for names in &result.as_array().unwrap()[1..] {
            assert!(names.to_string().contains("PATH") && !names.to_string().contains("PM_KIT"), "{names}");
        }
    }
}

#[test]
fn progress_is_for_those_who_ask_where_there_is_no_terminal() {
    assert_eq!(pool(["--", "@echo"]).run(numbers(10)).expect(0).err, "");
    assert_eq!(pool(["--progress", "never", "--", "@echo"]).run(numbers(10)).expect(0).err, "");
    let done = pool(["--progress", "always", "--", "@echo"]).run(numbers(10)).expect(0);
    let summary = done.err.lines().last().unwrap();
    for part in ["10 jobs", "0 failed", "0 retried", "0 workers lost", "p50", "p99", "/s"] {
        assert!(summary.contains(part), "{part} is not in {summary}");
    }
    assert!(!done.err.contains('\x1b'));
    let nothing = pool(["--progress", "always", "--", "@echo"]).run("").expect(0).err;
    assert!(nothing.contains("0 jobs") && !nothing.contains("p50"), "{nothing}");
}
