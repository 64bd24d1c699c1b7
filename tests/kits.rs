//! Workers in Python and Node.js by the kits in `workers/`, over both transports. Row T6. Without the language on this machine a test says that
//! it was skipped, and why.

use std::path::PathBuf;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use pm::{
    AnyTransport, Budget, ExitCause, ExitStatus, HandlerErrorKind, Json, PoolBuilder, QueryErrorKind, QueryOptions,
    Spec, Stderr,
};
use serde_json::{Value, json};

use crate::processes::announce;
use crate::support::{Scratch, TRANSPORTS, contains, crash, error, gone_within, installed, lost, pids, run};

type Builder = PoolBuilder<Value, Value, Json, AnyTransport>;
type Pool = pm::QueryManager<Value, Value, Json>;

const LONG: Duration = Duration::from_secs(1000);

const PYTHON: &str = r#"
import os, subprocess, sys, time
import pm_worker

class Unhappy(Exception):
    pass

def job(order):
    what, value = order["do"], order.get("value")
    if what == "echo": return value
    if what == "make": return "x" * value
    if what == "fail": raise Unhappy("unhappy about " + value)
    if what == "exit": os._exit(value)
    if what == "die": os.kill(os.getpid(), 9)
    if what == "pid": return os.getpid()
    if what == "print":
        print(value); print(value, file=sys.stderr); os.write(1, b"\0\0\0\x0c\x63\x80"); os.system("echo from a child")
        return sys.stdin.read()
    if what == "notice": return pm_worker.notice(value)
    if what == "sleep": time.sleep(1000)
    if what == "spin":
        while True: pass
    if what == "stray":
        return int(subprocess.run("setsid sh -c 'sleep 1000 & echo $!'", shell=True, stdout=subprocess.PIPE).stdout)
    if what == "nothing": return None
    if what == "wrong": return object()
    if what == "environment": return [name for name in os.environ if name.startswith("PM_")]

pm_worker.serve(job)
"#;

const NODE: &str = r#"
const { serve, notice } = require('./pm_worker.js');
const { execSync, execFileSync } = require('child_process');
const fs = require('fs');
class Unhappy extends Error { get name() { return 'Unhappy'; } }

serve(async ({ do: what, value }) => {
  if (what === 'echo') return value;
  if (what === 'make') return 'x'.repeat(value);
  if (what === 'fail') throw new Unhappy('unhappy about ' + value);
  if (what === 'exit') process.exit(value);
  if (what === 'die') { process.kill(process.pid, 'SIGKILL'); while (true); }
  if (what === 'pid') return process.pid;
  if (what === 'print') {
    console.log(value); console.error(value); fs.writeSync(1, '\0\0\0\x0c\x63'); execSync('echo from a child', { stdio: 'inherit' });
    return fs.readFileSync(0, 'utf8');
  }
  if (what === 'notice') { notice(value); return null; }
  if (what === 'sleep') return new Promise(() => setTimeout(() => {}, 1e6));
  if (what === 'spin') while (true);
  if (what === 'stray') return Number(execFileSync('sh', ['-c', "setsid sh -c 'sleep 1000 >&- & echo $!'"]));
  if (what === 'nothing') return undefined;
  if (what === 'wrong') return 1n;
  if (what === 'environment') return Object.keys(process.env).filter(name => name.startsWith('PM_'));
});
"#;

/// Checks of one kit over one transport.
const CHECKS: [(&str, fn(&'static str, AnyTransport)); 9] = [
    ("values", |kit, transport| run(values(kit, transport))),
    ("errors_have_type_message_and_trace", |kit, transport| run(errors(kit, transport))),
    ("notices", |kit, transport| run(notices(kit, transport))),
    ("prints_never_reach_the_wire", |kit, transport| run(prints(kit, transport))),
    ("large_payloads", |kit, transport| run(large_payloads(kit, transport))),
    ("timeouts_kill_and_replace", |kit, transport| run(timeouts(kit, transport))),
    ("deaths", |kit, transport| run(deaths(kit, transport))),
    ("respawn_and_shutdown", |kit, transport| run(respawn_and_shutdown(kit, transport))),
    ("children_are_no_workers", |kit, transport| run(children_are_no_workers(kit, transport))),
];

pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for kit in ["python3", "node"] {
        for transport in TRANSPORTS {
            for (name, check) in CHECKS {
                trials.push(trial(kit, format!("kits::{kit}::{name}::{transport}"), move || {
                    check(kit, transport);
                    Ok(())
                }));
            }
        }
    }
    trials
}

/// A test that needs a language. Without it the test is shown as ignored.
pub fn trial(kit: &'static str, name: String, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    if installed(kit).is_some() {
        return Trial::test(name, test);
    }
    Trial::test(name, || Ok(())).with_kind(format!("skipped: no {kit}")).with_ignored_flag(true)
}

/// A pool of workers of this kit, from files in this directory.
fn workers(kit: &str, transport: AnyTransport, scratch: &Scratch) -> Builder {
    let kits = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("workers");
    let (source, program, text) = match kit {
        "node" => (kits.join("node/pm_worker.js"), "worker.js", NODE),
        _ => (kits.join("python/pm_worker.py"), "worker.py", PYTHON),
    };
    let name = source.file_name().expect("a name").to_owned();
    std::fs::copy(&source, scratch.path(name)).expect("the kit");
    std::fs::write(scratch.path(program), text).expect("the worker");
    let spec = Spec::program(kit).arg(scratch.path(program)).stderr(Stderr::Quiet);
    let budget = Budget::crash_loops(1000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    PoolBuilder::program(kit, spec, transport, Json).budget(budget)
}

fn order(what: &str, value: impl Into<Value>) -> Value {
    json!({ "do": what, "value": value.into() })
}

/// Is a manager whose workers are busy, until it is killed.
pub async fn be_manager(kit: &str, transport: AnyTransport, busy: &str) {
    let scratch = Scratch::new();
    let pool: Pool = workers(kit, transport, &scratch).workers(2).start().await.expect("a pool");
    for (_, answer) in pool.query_all(&order("pid", Value::Null)).await {
        answer.expect("a pid");
    }
    // It will have no time to remove them.
    drop(scratch);
    let busy = match busy {
        "idle" => return announce().await,
        "stray" => {
            for (_, answer) in pool.query_all(&order("stray", Value::Null)).await {
                answer.expect("a grandchild");
            }
            "sleep"
        }
        busy => busy,
    };
    for _ in 0..2 {
        let query = pool.query(&order(busy, Value::Null));
        tokio::spawn(query);
    }
    crate::support::eventually("both are busy", || pool.info().load == 2).await;
    announce().await;
}

async fn values(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).workers(2).start().await.unwrap();
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1.5),
        json!(9_007_199_254_740_991_i64),
        json!(1e300),
        json!(""),
        json!("ünïcödé \u{1F980} \u{202E} \u{0} \" \\ \n \u{7f} \u{2028}"),
        json!([1, [2, [3, []]], {}]),
        json!({ "": 1, "a b": { "é": [null] }, "__proto__": 1 }),
    ];
    for value in values {
        assert_eq!(pool.query(&order("echo", value.clone())).await.unwrap(), value);
    }
    assert_eq!(pool.query(&order("nothing", Value::Null)).await.unwrap(), Value::Null);
    let all: Vec<_> = (0..500).map(|n| tokio::spawn(pool.query(&order("echo", n)))).collect();
    for (n, answer) in all.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), json!(n));
    }
    let all = pool.query_all(&order("pid", Value::Null)).await;
    let mut answered: Vec<_> = all.into_iter().map(|(_, answer)| answer.unwrap().as_u64().unwrap() as u32).collect();
    let mut known = pids(&pool);
    answered.sort_unstable();
    known.sort_unstable();
    // pyenv and the like start the language by a script that executes it.
    assert_eq!(answered, known);
}

async fn errors(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).start().await.unwrap();
    let before = pids(&pool);
    let pm::QueryError::Handler(failed) = error(pool.query(&order("fail", "rain ✓")).await) else { panic!() };
    assert_eq!((failed.kind, failed.type_name.as_str()), (HandlerErrorKind::Error, "Unhappy"));
    assert_eq!(failed.message, "unhappy about rain ✓");
    contains(&failed.trace, if kit == "node" { "worker.js:" } else { "worker.py\", line" });
    let failed = error(pool.query(&order("wrong", Value::Null)).await);
    assert_eq!(failed.kind(), QueryErrorKind::Handler);
    assert_eq!(pool.query(&order("echo", 1)).await.unwrap(), json!(1));
    assert_eq!(pids(&pool), before, "the worker lives on");
}

async fn notices(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let (heard, notices) = std::sync::mpsc::channel();
    let hook = move |_, text: &str| drop(heard.send(text.to_string()));
    let pool = workers(kit, transport, &scratch).on_notice(hook).start().await.unwrap();
    for text in ["one", "zwei ✓", ""] {
        pool.query(&order("notice", text)).await.unwrap();
        assert_eq!(notices.recv_timeout(crate::support::LIMIT).unwrap(), text);
    }
    pool.query(&order("notice", "é".repeat(100_000))).await.unwrap();
    let cut = notices.recv_timeout(crate::support::LIMIT).unwrap();
    assert!(cut.len() <= 64 << 10 && cut.len() > 65_000 && cut.chars().all(|c| c == 'é'), "{}", cut.len());
    pool.query(&order("notice", "I feel ill")).await.unwrap();
    assert_eq!(lost(pool.query(&order("die", Value::Null)).await).last_notice.as_deref(), Some("I feel ill"));
}

async fn prints(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).start().await.unwrap();
    for n in 0..5 {
        let read = pool.query(&order("print", format!("line {n}"))).await.unwrap();
        assert_eq!(read, json!(""), "standard input is empty");
    }
    let died = lost(pool.query(&order("exit", 3)).await);
    assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Code(3)));
    assert_eq!(died.stderr.matches("line 4").count(), 2, "{:?}", died.stderr);
    assert_eq!(died.stderr.matches("from a child").count(), 5, "{:?}", died.stderr);
}

async fn large_payloads(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).start().await.unwrap();
    let text = "ß".repeat(4 << 20);
    assert!(pool.query(&order("echo", text.as_str())).await.unwrap() == json!(text));
    let all: Vec<_> = (0..8).map(|_| tokio::spawn(pool.query(&order("echo", "y".repeat(2 << 20))))).collect();
    for answer in all {
        assert!(answer.await.unwrap().unwrap() == json!("y".repeat(2 << 20)));
    }
    let failed = error(pool.query(&order("make", 70 << 20)).await);
    assert_eq!(failed.kind(), QueryErrorKind::Handler, "an answer that is too large is the handler's error: {failed}");
    assert_eq!(pool.query(&order("echo", 1)).await.unwrap(), json!(1));
}

async fn timeouts(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let grace = Duration::from_millis(100);
    let pool = workers(kit, transport, &scratch).cancel_grace(grace).start().await.unwrap();
    let mut events = pool.events();
    for what in ["sleep", "spin"] {
        let limit = QueryOptions::new().timeout(Some(Duration::from_millis(300)));
        let old = pids(&pool)[0];
        assert_eq!(error(pool.query_with(&order(what, Value::Null), limit).await).kind(), QueryErrorKind::TimedOut);
        assert_eq!(crash(&mut events).await, ExitCause::Stuck { grace });
        gone_within(old, Duration::from_secs(1));
        assert_eq!(pool.query(&order("echo", 1)).await.unwrap(), json!(1));
        assert_eq!(pids(&pool).len(), 1);
    }
}

async fn deaths(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).workers(2).start().await.unwrap();
    for (what, status) in [("exit", ExitStatus::Code(5)), ("die", ExitStatus::Signal { signal: 9, core: false })] {
        pool.query(&order("echo", 1)).await.unwrap();
        let died = lost(pool.query(&order(what, 5)).await);
        assert_eq!(died.cause, ExitCause::Exited(status));
        for n in 0..20 {
            assert_eq!(pool.query(&order("echo", n)).await.unwrap(), json!(n));
        }
    }
}

async fn respawn_and_shutdown(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).start().await.unwrap();
    for _ in 0..3 {
        let old = pids(&pool)[0];
        let all: Vec<_> = (0..50).map(|n| tokio::spawn(pool.query(&order("echo", n)))).collect();
        pool.respawn().await.unwrap();
        gone_within(old, Duration::ZERO);
        for (n, answer) in all.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap().unwrap(), json!(n));
        }
    }
    assert_eq!(pool.info().crashes, 0, "a drained worker says BYE and exits with 0");
    pool.shutdown().await;
    assert_eq!(pool.info().crashes, 0);
}

async fn children_are_no_workers(kit: &str, transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = workers(kit, transport, &scratch).start().await.unwrap();
    let names = pool.query(&order("environment", Value::Null)).await.unwrap();
    let names: Vec<_> = names.as_array().unwrap().iter().filter(|name| **name != json!("PM_UNIT")).cloned().collect();
    assert_eq!(names, Vec::<Value>::new());
    let stray = pool.query(&order("stray", Value::Null)).await.unwrap().as_u64().unwrap() as u32;
    pool.shutdown().await;
    gone_within(stray, Duration::ZERO);
}
