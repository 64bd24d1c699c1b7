//! Workers in Python and Node.js beside the pools that their languages bring: two workers, 64 bytes, 256 calls under way, three rounds one
//! after another, medians. `cargo bench --bench kits`. A language that is not installed is skipped, and said so.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pm::{Json, PoolBuilder, Spec, SpecBuilder, Stderr, Uds};
use pm_cli::bench::measure::{Asked, asked, many, median};

fn main() {
    pm::roles([]);
    let Asked { is_test, time } = asked(3.0, Duration::from_millis(200));
    let rounds = if is_test { 1 } else { 3 };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workers = here.join("../workers");
    let python = Spec::program("python3").arg("-c").arg("import pm_worker; pm_worker.serve(lambda text: text)");
    let python = python.env("PYTHONPATH", workers.join("python"));
    let node = format!("require({:?}).serve((text) => text)", workers.join("node/pm_worker.js"));
    let node = Spec::program("node").arg("-e").arg(node);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for (language, program, own, script) in [
        ("Python", python, "multiprocessing.Pool", ["python3", "languages/pool.py"]),
        ("Node.js", node, "child_process.fork", ["node", "languages/fork.js"]),
    ] {
        let [interpreter, script] = script;
        if Command::new(interpreter).arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("{language}: skipped, no {interpreter} on this machine");
            continue;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(runtime.block_on(pool(program.clone(), time)));
            let seconds = time.as_secs_f64().to_string();
            let output = Command::new(interpreter).arg(here.join(script)).arg(seconds).output().expect("it ran before");
            theirs.push(String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number"));
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{language}: pm {ours:.0}/s, {own} {theirs:.0}/s, ratio {:.2} (target: 1)", ours / theirs);
    }
}

async fn pool(program: SpecBuilder, time: Duration) -> f64 {
    let builder = PoolBuilder::<String, String, _, _>::program("kit", program.stderr(Stderr::Quiet), Uds, Json);
    let pool = builder.workers(2).start().await.expect("a pool");
    let text = "x".repeat(62);
    let callers = pool.clone();
    let measured = many(256, time, None, move || {
        let query = callers.query(&text);
        let text = text.clone();
        async move { assert_eq!(query.await.expect("an answer"), text) }
    })
    .await;
    pool.shutdown().await;
    measured.rate
}
