//! Workers in Python and Node.js, through the kits under `workers`. Rows T3, T6; faults 1, 15.

use std::fmt;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use libtest_mimic::Trial;
use pm::core::machine::handshake::Mismatch;
use pm::{
    AnyTransport, ExitCause, ExitStatus, HandlerErrorKind, Json, PoolBuilder, QueryError, QueryErrorKind, QueryOptions,
    Resource, Spec, SpecBuilder, StartError, Stderr, Verbatim,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{
    LIMIT, Scratch, TRANSPORTS, contains, crash, error, eventually, gone_within, lost, pids, replaced, run,
};

/// How the calls of these tests are served: an order and what belongs to it, in an array.
const PYTHON: &str = r#"
import sys
sys.path.insert(0, "KIT")
import pm_worker, os, time

def handle(order):
    what, rest = order[0], order[1:]
    if what == "echo": return rest[0]
    if what == "pid": return os.getpid()
    if what == "make": return "x" * rest[0]
    if what == "type": return type(rest[0]).__name__
    if what == "fail": raise ValueError(rest[0])
    if what == "unencodable": return {1, 2}
    if what == "deadline": return pm_worker.deadline()
    if what == "notice": return pm_worker.notice(rest[0])
    if what == "environment": return sorted(name for name in os.environ if name.startswith("PM_"))
    if what == "print":
        print(rest[0])
        print(rest[0], file=sys.stderr)
        os.write(1, b"written to 1\n")
        os.system("echo said by a child; cat")
        return sys.stdin.read()
    if what in ("sleep", "spin", "stray"):
        if what == "stray": os.system("setsid sh -c 'sleep 1000 >/dev/null 2>&1 &'")
        pm_worker.notice("begun")
        while what == "spin": pass
        return time.sleep(rest[0])
    if what == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(rest[0])
    if what == "kill": os.kill(os.getpid(), 9)

SERVE
"#;

const NODE: &str = r#"
const { serve, notice } = require('KIT/pm_worker.js');
const { spawnSync } = require('child_process');
const fs = require('fs');
const guests = [];
const wait = time => new Promise(done => setTimeout(done, time));

function handle([what, ...rest], call) {
  switch (what) {
    case 'echo': return rest[0];
    case 'later': return wait(1).then(() => rest[0]);
    case 'pid': return process.pid;
    case 'make': return 'x'.repeat(rest[0]);
    case 'type': return typeof rest[0];
    case 'fail': throw new RangeError(rest[0]);
    case 'reject': return wait(1).then(function refuse() { throw new TypeError(rest[0]); });
    case 'unencodable': return 10n;
    case 'deadline': return call.deadline ? (call.deadline - performance.now()) / 1000 : null;
    case 'notice': return notice(rest[0]);
    case 'environment': return Object.keys(process.env).filter(name => name.startsWith('PM_')).sort();
    case 'print':
      console.log(rest[0]);
      console.error(rest[0]);
      fs.writeSync(1, 'written to 1\n');
      spawnSync('sh', ['-c', 'echo said by a child; cat'], { stdio: 'inherit' });
      return fs.readFileSync(0, 'utf8');
    case 'sleep': notice('begun'); return wait(rest[0] * 1000);
    case 'spin': notice('begun'); for (;;);
    case 'stray':
      spawnSync('sh', ['-c', "setsid sh -c 'sleep 1000 >/dev/null 2>&1 &'"]);
      notice('begun');
      return wait(rest[0] * 1000);
    case 'nap':
      notice('begun');
      return new Promise((done, failed) => call.signal.addEventListener('abort', () => failed(new Error('aborted'))));
    case 'meet': // returns when so many are here
      return new Promise(done => {
        guests.push(done);
        if (guests.length === rest[0]) guests.splice(0).forEach(done => done('met'));
      });
    case 'exit': console.error('last words'); return process.exit(rest[0]);
    case 'kill': process.kill(process.pid, 'SIGKILL'); for (;;);
  }
}

SERVE
"#;

/// A language that has a kit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kit {
    Python,
    Node,
}

impl fmt::Display for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kit::Python => "python",
            Kit::Node => "node",
        })
    }
}

impl Kit {
    pub fn named(name: &str) -> Option<Self> {
        [Kit::Python, Kit::Node].into_iter().find(|kit| kit.to_string() == name)
    }

    /// The interpreter itself, behind whatever stands for it on PATH.
    pub fn interpreter(self) -> Option<&'static PathBuf> {
        static FOUND: [OnceLock<Option<PathBuf>>; 2] = [OnceLock::new(), OnceLock::new()];
        let (slot, program, flag, code) = match self {
            Kit::Python => (&FOUND[0], "python3", "-c", "import sys; print(sys.executable)"),
            Kit::Node => (&FOUND[1], "node", "-p", "process.execPath"),
        };
        let find = || {
            let output = Command::new(program).args([flag, code]).output().ok()?;
            let path = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| PathBuf::from(path.trim_end()))
        };
        slot.get_or_init(find).as_ref()
    }

    /// Whether it can be tried here. Says so where it cannot.
    pub fn is_installed(self) -> bool {
        let found = self.interpreter().is_some();
        if !found {
            println!("skipped: there is no interpreter for {self} on PATH");
        }
        found
    }

    /// A worker that calls the kit in this way.
    pub fn spec(self, serve: &str) -> SpecBuilder {
        let (code, flag, directory) = match self {
            Kit::Python => (PYTHON, "-c", "workers/python"),
            Kit::Node => (NODE, "-e", "workers/node"),
        };
        let directory = format!("{}/{directory}", env!("CARGO_MANIFEST_DIR"));
        let code = code.replace("SERVE", serve).replace("KIT", &directory);
        let interpreter = self.interpreter().expect("the interpreter was found before");
        Spec::program(interpreter).arg(flag).arg(code).stderr(Stderr::Quiet).limit(Resource::Core, 0)
    }

    pub const fn serve(self) -> &'static str {
        match self {
            Kit::Python => "pm_worker.serve(handle)",
            Kit::Node => "serve(handle);",
        }
    }

    /// A pool of workers that take orders.
    pub fn pool<O>(self, transport: AnyTransport) -> PoolBuilder<Value, O, Json, AnyTransport> {
        PoolBuilder::program(self.to_string(), self.spec(self.serve()), transport, Json)
    }
}

pub fn tests() -> Vec<Trial> {
    [
        each("kits::values_of_all_kinds", values_of_all_kinds),
        each("kits::results_have_types", results_have_types),
        each("kits::large_payloads", large_payloads),
        each("kits::errors_have_type_message_and_trace", errors_have_type_message_and_trace),
        each("kits::what_cannot_be_decoded_or_encoded_is_an_error", what_cannot_be_decoded_or_encoded_is_an_error),
        each("kits::bytes_in_place_of_json", bytes_in_place_of_json),
        each("kits::notices", notices),
        each("kits::prints_never_reach_the_wire", prints_never_reach_the_wire),
        each("kits::deadlines", deadlines),
        each("kits::a_timeout_kills_and_replaces", a_timeout_kills_and_replaces),
        each("kits::a_crash_is_a_lost_worker", a_crash_is_a_lost_worker),
        each("kits::all_workers_answer", all_workers_answer),
        each("kits::many_at_a_time", many_at_a_time),
        of(Kit::Python, "kits::coroutines", coroutines),
        each("kits::a_drain_ends_with_code_0", a_drain_ends_with_code_0),
        each("kits::roles", roles),
        each("kits::a_worker_that_does_not_come_up", a_worker_that_does_not_come_up),
        of(Kit::Node, "kits::async_handlers_run_together", async_handlers_run_together),
        of(Kit::Node, "kits::an_async_handler_hears_of_a_cancel", an_async_handler_hears_of_a_cancel),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A test of both kits over both transports.
pub fn each<F: Future<Output = ()>>(
    name: &str,
    test: impl Fn(Kit, AnyTransport) -> F + Clone + Send + 'static,
) -> Vec<Trial> {
    [Kit::Python, Kit::Node].into_iter().flat_map(|kit| of(kit, name, test.clone())).collect()
}

fn of<F: Future<Output = ()>>(
    kit: Kit,
    name: &str,
    test: impl Fn(Kit, AnyTransport) -> F + Clone + Send + 'static,
) -> Vec<Trial> {
    let over = |transport: AnyTransport| {
        let test = test.clone();
        Trial::test(format!("{name}::{kit}::{transport}"), move || {
            if kit.is_installed() {
                run(test(kit, transport));
            }
            Ok(())
        })
    };
    TRANSPORTS.map(over).into()
}

async fn values_of_all_kinds(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Value>(transport).start().await.unwrap();
    let mut nested = json!(1);
    for _ in 0..50 {
        nested = json!([nested, {"": null}]);
    }
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(9_007_199_254_740_991_i64),
        json!(-9_007_199_254_740_991_i64),
        json!(0.5),
        json!(-1e-300),
        json!(0.1 + 0.2),
        json!(1.797_693_134_862_315_7e308),
        json!(5e-324),
        json!(""),
        json!("ünïcödé ✓ \u{1F980} \u{202E} \u{10FFFF} \u{FEFF} \u{2028}"),
        json!("\u{0} \u{1f} \u{7f} \" \\ / \\ud800 \n\r\t"),
        json!([]),
        json!({}),
        json!([[], {}, [[]], null]),
        json!({"": 1, "__proto__": {"a": 1}, "constructor": 2, "ü \"": [true], "2": 1, "10": 2}),
        nested,
    ];
    if kit == Kit::Python {
        // Numbers of JavaScript are doubles, and a whole one has no fraction.
        values.extend([json!(u64::MAX), json!(i64::MIN), json!(1.0), json!(-0.0), json!(1e100)]);
    }
    for value in &values {
        assert_eq!(pool.query(&json!(["echo", value])).await.unwrap(), *value);
    }
    assert_eq!(pool.query(&json!(["echo", values])).await.unwrap(), json!(values));
    let names = |value| json!(["type", value]);
    let expected = match kit {
        Kit::Python => ["NoneType", "bool", "int", "float", "str", "list", "dict"],
        Kit::Node => ["object", "boolean", "number", "number", "string", "object", "object"],
    };
    let kinds = [json!(null), json!(true), json!(1), json!(1.5), json!("x"), json!([]), json!({})];
    for (kind, expected) in kinds.into_iter().zip(expected) {
        assert_eq!(pool.query(&names(kind)).await.unwrap(), json!(expected));
    }
    assert_eq!(pool.info().crashes, 0);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Verdict {
    legal: bool,
    why: Option<String>,
}

async fn results_have_types(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Verdict>(transport).start().await.unwrap();
    let before = pids(&pool);
    let verdict = Verdict { legal: true, why: Some("✓".to_string()) };
    assert_eq!(pool.query(&json!(["echo", verdict])).await.unwrap(), verdict);
    assert_eq!(pool.query(&json!(["echo", {"legal": false}])).await.unwrap(), Verdict { legal: false, why: None });
    for other in [json!({"illegal": 1}), json!(1), json!(null), json!("legal")] {
        let wrong = error(pool.query(&json!(["echo", other])).await);
        assert_eq!(wrong.kind(), QueryErrorKind::BadAnswer);
        assert!(wrong.maybe_executed());
        contains(wrong.to_string(), "cannot be decoded as json");
    }
    contains(error(pool.query(&json!(["echo", {}])).await).to_string(), "legal");
    assert_eq!(pids(&pool), before, "the worker is not to blame");
}

async fn large_payloads(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Value>(transport).workers(2).start().await.unwrap();
    let before = pids(&pool);
    for size in [4095, 65_519, 65_520, 65_521, 65_536, 1 << 20, (5 << 20) + 3] {
        let text: String = "aé✓\u{1F980}b".chars().cycle().take(size / 2).collect();
        let answer = pool.query(&json!(["echo", text])).await.unwrap();
        assert!(answer == json!(text), "{size}");
    }
    // Many at the same time, so that both directions are full.
    let text = |n: u8| char::from(b'a' + n).to_string().repeat(1 << 20);
    let all: Vec<_> = (0..16).map(|n| tokio::spawn(pool.query(&json!(["echo", text(n)])))).collect();
    for (n, answer) in all.into_iter().enumerate() {
        assert!(answer.await.unwrap().unwrap() == json!(text(n as u8)), "{n}");
    }
    let QueryError::Handler(failed) = error(pool.query(&json!(["make", 64 << 20])).await) else { panic!() };
    contains(&failed.message, "67108876");
    contains(&failed.message, "67108878");
    assert_eq!(pool.query(&json!(["make", 3])).await.unwrap(), json!("xxx"));
    assert_eq!(pids(&pool), before);
}

async fn errors_have_type_message_and_trace(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Value>(transport).start().await.unwrap();
    let before = pids(&pool);
    let mut orders = vec![("fail", if kit == Kit::Python { "ValueError" } else { "RangeError" }, "handle")];
    if kit == Kit::Node {
        orders.push(("reject", "TypeError", "refuse"));
    }
    for (order, type_name, function) in orders {
        for message in ["no such ünit ✓", "two\nlines", ""] {
            let failed = error(pool.query(&json!([order, message])).await);
            assert!(failed.maybe_executed() && !failed.is_retryable());
            let QueryError::Handler(failed) = failed else { panic!("{failed:?}") };
            assert_eq!((failed.kind, failed.tries), (HandlerErrorKind::Error, 1));
            assert_eq!((failed.type_name.as_str(), failed.message.as_str()), (type_name, message));
            contains(&failed.trace, function);
            contains(failed.to_string(), type_name);
        }
    }
    let QueryError::Handler(failed) = error(pool.query(&json!(["fail", "é".repeat(1 << 20)])).await) else { panic!() };
    assert_eq!(failed.message, "é".repeat(64 << 10), "cut");
    // A handler that is given what it does not expect fails by itself.
    assert!(matches!(error(pool.query(&json!(5)).await), QueryError::Handler(_)));
    assert_eq!(pool.query(&json!(["echo", 1])).await.unwrap(), json!(1));
    assert_eq!(pids(&pool), before);
}

async fn what_cannot_be_decoded_or_encoded_is_an_error(kit: Kit, transport: AnyTransport) {
    let spec = kit.spec(kit.serve());
    let pool =
        PoolBuilder::<Vec<u8>, Vec<u8>, _, _>::program("raw", spec, transport, Verbatim("json")).start().await.unwrap();
    let before = pids(&pool);
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let bad: [&[u8]; 8] = [b"", b"{not json", b"[1,]", b"\"\xff\"", b"[1] 2", b"NaN", b"[\"echo\", Infinity]", b"\0"];
    for input in bad {
        let failed = error(pool.query(&input.to_vec()).await);
        assert!(!failed.maybe_executed(), "{failed:?}");
        let QueryError::Handler(failed) = failed else { panic!("{failed:?}") };
        assert_eq!(failed.kind, HandlerErrorKind::Decode, "{failed:?}");
    }
    // Some parsers take this one, and none may die of it.
    match pool.query(&deep.into_bytes()).await {
        Ok(_) | Err(QueryError::Handler(_)) => {}
        other => panic!("{other:?}"),
    }
    let QueryError::Handler(failed) = error(pool.query(&b"[\"unencodable\"]".to_vec()).await) else { panic!() };
    assert_eq!((failed.kind, failed.type_name.as_str()), (HandlerErrorKind::Error, "TypeError"));
    // A lone surrogate is JSON as an escape, and no UTF-8.
    let lone = pool.query(&br#"["echo", "\ud800"]"#.to_vec()).await;
    assert!(matches!(error(lone), QueryError::Handler(_)));
    assert_eq!(pool.query(&b" [\"echo\" , 1 ]\n".to_vec()).await.unwrap(), b"1");
    assert_eq!(pids(&pool), before);
}

async fn bytes_in_place_of_json(kit: Kit, transport: AnyTransport) {
    let serve = match kit {
        Kit::Python => "pm_worker.serve(lambda data: data[::-1], codec='bytes')",
        Kit::Node => "serve(data => Buffer.from(data).reverse(), { codec: 'bytes' });",
    };
    let pool =
        |codec| PoolBuilder::<Vec<u8>, Vec<u8>, _, _>::program("bytes", kit.spec(serve), transport, Verbatim(codec));
    let bytes = pool("bytes").start().await.unwrap();
    for size in [0, 1, 255, 100_000, 1 << 20] {
        let data: Vec<u8> = (0..size).map(|at: u32| (at * 7 % 256) as u8).collect();
        let back: Vec<u8> = data.iter().rev().copied().collect();
        assert!(bytes.query(&data).await.unwrap() == back, "{size}");
    }
    let failed = pool("json").start().await.unwrap_err();
    let StartError::Handshake { mismatch: Mismatch::Codec { manager, worker }, .. } = &failed else {
        panic!("{failed:?}")
    };
    assert_eq!((manager.as_str(), worker.as_str()), ("json", "bytes"));
}

async fn notices(kit: Kit, transport: AnyTransport) {
    let (heard, notices) = mpsc::channel();
    let hook = move |worker, text: &str| drop(heard.send((worker, text.to_string())));
    let pool = kit.pool::<Value>(transport).on_notice(hook).start().await.unwrap();
    let worker = pool.workers()[0].id;
    for n in 0..100 {
        pool.query(&json!(["notice", format!("{n} ✓")])).await.unwrap();
        assert_eq!(notices.try_recv(), Ok((worker, format!("{n} ✓"))), "heard before the answer");
    }
    pool.query(&json!(["notice", "✓".repeat(50_000)])).await.unwrap();
    assert_eq!(notices.try_recv().unwrap().1, "✓".repeat((64 << 10) / 3), "cut at 64 KiB, between two characters");
    pool.query(&json!(["notice", "I feel ill"])).await.unwrap();
    let died = lost(pool.query(&json!(["exit", 4])).await);
    assert_eq!(died.last_notice.as_deref(), Some("I feel ill"));
}

async fn prints_never_reach_the_wire(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Value>(transport).start().await.unwrap();
    for n in 0..5 {
        let frame = "\u{0}\u{0}\u{0}\u{c}\u{63}\u{80}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}";
        assert_eq!(
            pool.query(&json!(["print", format!("{n} {frame}")])).await.unwrap(),
            json!(""),
            "nothing stands in stdin"
        );
    }
    let mut names = pool.query(&json!(["environment"])).await.unwrap();
    names.as_array_mut().unwrap().retain(|name| !name.as_str().unwrap_or_default().starts_with("PM_TEST_"));
    assert_eq!(names, json!(["PM_UNIT", "PM_WORKER"]), "no child believes that it is a worker");
    pool.query(&json!(["print", "printed"])).await.unwrap();
    let died = lost(pool.query(&json!(["exit", 1])).await);
    for (part, count) in [("printed\n", 2), ("written to 1\n", 6), ("said by a child\n", 6), ("last words\n", 1)] {
        assert_eq!(died.stderr.matches(part).count(), count, "{part:?} in {:?}", died.stderr);
    }
}

async fn deadlines(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Option<f64>>(transport).timeout(Duration::from_secs(50)).start().await.unwrap();
    let left = pool.query(&json!(["deadline"])).await.unwrap().unwrap();
    assert!((30.0..=50.1).contains(&left), "{left}");
    let none = pool.query_with(&json!(["deadline"]), QueryOptions::new().timeout(None)).await.unwrap();
    assert_eq!(none, None);
}

async fn a_timeout_kills_and_replaces(kit: Kit, transport: AnyTransport) {
    let grace = Duration::from_millis(100);
    let (pool, begun) = listening(kit.pool::<Value>(transport).workers(1).cancel_grace(grace)).await;
    let mut events = pool.events();
    for order in ["sleep", "spin"] {
        let before = pids(&pool);
        let limit = QueryOptions::new().timeout(Some(Duration::from_millis(300)));
        let query = tokio::spawn(pool.query_with(&json!([order, 1000]), limit));
        begun.recv_timeout(LIMIT).unwrap();
        let timed_out = error(query.await.unwrap());
        assert!(matches!(timed_out, QueryError::TimedOut { worker: Some(_), tries: 1, .. }), "{timed_out:?}");
        assert_eq!(crash(&mut events).await, ExitCause::Stuck { grace });
        let now = replaced(&mut events).await;
        assert_ne!(before, [now]);
        gone_within(before[0], LIMIT);
        assert_eq!(pool.query(&json!(["pid"])).await.unwrap(), json!(now));
    }
    assert_eq!(pool.info().crashes, 2);
}

async fn a_crash_is_a_lost_worker(kit: Kit, transport: AnyTransport) {
    let describe = |order: &Value| format!("the order {order}");
    let pool = kit.pool::<Value>(transport).describe(describe).start().await.unwrap();
    let mut events = pool.events();
    let faults = [
        (json!(["exit", 7]), ExitStatus::Code(7)),
        (json!(["exit", 0]), ExitStatus::Code(0)),
        (json!(["kill"]), ExitStatus::Signal { signal: 9, core: false }),
    ];
    for (order, status) in faults {
        let pid = pool.query(&json!(["pid"])).await.unwrap();
        let failed = error(pool.query(&order).await);
        assert!(failed.maybe_executed() && failed.is_retryable());
        let died = lost::<Value>(Err(failed));
        assert_eq!((json!(died.pid), &died.cause), (pid, &ExitCause::Exited(status)));
        assert_eq!(died.input, format!("the order {order}"));
        if order[0] == "exit" {
            assert!(died.stderr.ends_with("last words\n"), "{:?}", died.stderr);
            contains(died.to_string(), "last words");
        }
        let now = replaced(&mut events).await;
        assert_eq!(pool.query(&json!(["pid"])).await.unwrap(), json!(now));
    }
}

async fn all_workers_answer(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<u32>(transport).workers(3).start().await.unwrap();
    let workers = pool.workers();
    assert_eq!(workers.len(), 3);
    let answers = pool.query_all(&json!(["pid"])).await;
    let found: Vec<_> = answers.into_iter().map(|(worker, pid)| (worker, pid.unwrap())).collect();
    assert_eq!(found, workers.iter().map(|worker| (worker.id, worker.pid)).collect::<Vec<_>>());
    for worker in workers {
        assert_eq!(pool.query_on(worker.id, &json!(["pid"])).await.unwrap(), worker.pid);
    }
}

async fn many_at_a_time(kit: Kit, transport: AnyTransport) {
    let pool = kit.pool::<Value>(transport).workers(2).start().await.unwrap();
    let begun: Vec<_> = (0..3000).map(|n| tokio::spawn(pool.query(&json!(["echo", {"n": n}])))).collect();
    for (n, answer) in begun.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), json!({"n": n}));
    }
    assert_eq!((pool.info().crashes, pool.info().load), (0, 0));
}

async fn a_drain_ends_with_code_0(kit: Kit, transport: AnyTransport) {
    let scratch = Scratch::new();
    let codes = scratch.path("codes");
    // Nothing tells how a drained worker ended, so a shell around it does.
    let inner = kit.spec(kit.serve()).build().unwrap();
    let pm::core::machine::spec::Program::Path(program) = inner.what() else { panic!() };
    let script = r#"file="$0"; "$@"; code=$?; echo $code >> "$file"; exit $code"#;
    let spec =
        Spec::program("sh").arg("-c").arg(script).arg(&codes).arg(program).args(inner.args()).stderr(Stderr::Quiet);
    let builder = PoolBuilder::<Value, Value, _, _>::program("wrapped", spec, transport, Json);
    let (pool, begun) = listening(builder.workers(2)).await;
    // What they have is finished first.
    let naps: Vec<_> = (0..2).map(|_| tokio::spawn(pool.query(&json!(["sleep", 0.3])))).collect();
    for _ in 0..2 {
        begun.recv_timeout(LIMIT).unwrap();
    }
    let behind = tokio::spawn(pool.query(&json!(["echo", "behind"])));
    eventually("it is taken", || pool.info().load + pool.info().queued == 3).await;
    pool.shutdown().await;
    for nap in naps {
        assert_eq!(nap.await.unwrap().unwrap(), json!(null));
    }
    assert_eq!(behind.await.unwrap().unwrap(), json!("behind"));
    assert_eq!(fs::read_to_string(codes).unwrap(), "0\n0\n");
    assert_eq!(pool.info().crashes, 0);
}

async fn coroutines(kit: Kit, transport: AnyTransport) {
    let serve =
        "import asyncio\nasync def double(n):\n  await asyncio.sleep(0.001)\n  return n * 2\npm_worker.serve(double)";
    let pool = PoolBuilder::<Value, Value, _, _>::program("coroutines", kit.spec(serve), transport, Json);
    let pool = pool.start().await.unwrap();
    for n in 0..10 {
        assert_eq!(pool.query(&json!(n)).await.unwrap(), json!(2 * n));
    }
    let failed = error(pool.query(&json!(null)).await);
    contains(failed.to_string(), "TypeError");
}

async fn roles(kit: Kit, transport: AnyTransport) {
    let pool = |serve| PoolBuilder::<Value, Value, _, _>::program("roles", kit.spec(serve), transport, Json);
    let (single, named, several) = match kit {
        Kit::Python => (
            "pm_worker.serve({'double': lambda n: n * 2})",
            "pm_worker.serve({'double': lambda n: n * 2, 'half': lambda n: n / 2}, role='half')",
            "pm_worker.serve({'double': lambda n: n * 2, 'half': lambda n: n / 2})",
        ),
        Kit::Node => (
            "serve({ double: n => n * 2 });",
            "serve({ double: n => n * 2, half: n => n / 2 }, { role: 'half' });",
            "serve({ double: n => n * 2, half: n => n / 2 });",
        ),
    };
    assert_eq!(pool(single).start().await.unwrap().query(&json!(21)).await.unwrap(), json!(42));
    assert_eq!(pool(named).start().await.unwrap().query(&json!(21)).await.unwrap(), json!(10.5));
    // The pool can name the one that it wants.
    let asked = |role| {
        let spec = kit.spec(several).serving(role);
        PoolBuilder::<Value, Value, _, _>::program("asked", spec, transport, Json).start()
    };
    for (role, output) in [("double", json!(42)), ("half", json!(10.5))] {
        let pool = asked(role).await.unwrap();
        let answer = pool.query(&json!(21)).await.unwrap();
        assert_eq!(answer.as_f64(), output.as_f64());
    }
    let failed = asked("third").await.unwrap_err();
    let StartError::Died { cause, stderr } = &failed else { panic!("{failed:?}") };
    assert_eq!(*cause, ExitCause::Exited(ExitStatus::Code(64)));
    contains(stderr, "third");
    // Where it does not, this worker cannot know.
    let failed = pool(several).start().await.unwrap_err();
    let StartError::Died { cause, stderr } = &failed else { panic!("{failed:?}") };
    assert_eq!(*cause, ExitCause::Exited(ExitStatus::Code(64)));
    contains(stderr, "double");
    contains(stderr, "half");
}

async fn a_worker_that_does_not_come_up(kit: Kit, transport: AnyTransport) {
    let (serve, code, said) = match kit {
        Kit::Python => ("import no_such_module", 1, "ModuleNotFoundError"),
        Kit::Node => ("require('no-such-module');", 1, "Cannot find module"),
    };
    let builder = PoolBuilder::<Value, Value, _, _>::program("broken", kit.spec(serve), transport, Json).workers(2);
    let failed = builder.start().await.unwrap_err();
    let StartError::Died { cause, .. } = &failed else { panic!("{failed:?}") };
    assert_eq!(*cause, ExitCause::Exited(ExitStatus::Code(code)));
    contains(failed.to_string(), said);
}

async fn async_handlers_run_together(kit: Kit, transport: AnyTransport) {
    let pool = |serve| PoolBuilder::<Value, Value, _, _>::program("async", kit.spec(serve), transport, Json);
    let eight = pool("serve(handle, { concurrency: 8 });").start().await.unwrap();
    for _ in 0..5 {
        // None returns before all eight have begun.
        let guests: Vec<_> = (0..8).map(|_| tokio::spawn(eight.query(&json!(["meet", 8])))).collect();
        for guest in guests {
            assert_eq!(guest.await.unwrap().unwrap(), json!("met"));
        }
    }
    let all: Vec<_> = (0..200).map(|n| tokio::spawn(eight.query(&json!(["later", n])))).collect();
    for (n, answer) in all.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), json!(n));
    }
    // With one at a time promises work as well, one after the other.
    let one = pool("serve(handle);").start().await.unwrap();
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(300)));
    let guests: Vec<_> = (0..2).map(|_| tokio::spawn(one.query_with(&json!(["meet", 2]), limit))).collect();
    for guest in guests {
        assert_eq!(error(guest.await.unwrap()).kind(), QueryErrorKind::TimedOut);
    }
}

async fn an_async_handler_hears_of_a_cancel(kit: Kit, transport: AnyTransport) {
    let (pool, begun) = listening(kit.pool::<Value>(transport).cancel_grace(Duration::from_secs(30))).await;
    let before = pids(&pool);
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(100)));
    assert_eq!(error(pool.query_with(&json!(["nap"]), limit).await).kind(), QueryErrorKind::TimedOut);
    begun.recv_timeout(LIMIT).unwrap();
    let dropped = tokio::spawn(pool.query(&json!(["nap"])));
    begun.recv_timeout(LIMIT).unwrap();
    dropped.abort();
    assert_eq!(pool.query(&json!(["echo", 1])).await.unwrap(), json!(1));
    eventually("nothing is left of them", || pool.info().load == 0).await;
    assert_eq!((pids(&pool), pool.info().crashes), (before, 0));
}

/// Starts a pool, with what its workers say when they begin something long.
async fn listening<O: DeserializeOwned + Serialize + 'static>(
    builder: PoolBuilder<Value, O, Json, AnyTransport>,
) -> (pm::QueryManager<Value, O, Json>, mpsc::Receiver<()>) {
    let (heard, begun) = mpsc::channel();
    let hook = move |_, text: &str| {
        if text == "begun" {
            // The test may be over.
            let _ = heard.send(());
        }
    };
    (builder.on_notice(hook).start().await.unwrap(), begun)
}
