//! What a worker costs before it does anything: the time from the start to READY, and the memory of an idle one. `cargo bench --bench startup`.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use pm::Query;
use pm_cli::bench::measure::{Recorder, asked};

static ECHO: Query<u64, u64> = Query::new("echo", &|n: u64| n);

fn main() {
    pm::roles([&ECHO]);
    let time = asked(3.0, Duration::from_millis(50)).time;
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        // The keeper is started with the first worker, and is not what is measured.
        let pool = ECHO.pool().start().await.expect("a pool");
        assert_eq!(pool.query(&7).await.expect("an answer"), 7, "right before fast");

        let mut recorder = Recorder::new(time, None);
        while recorder.goes_on() {
            let began = Instant::now();
            let worker = ECHO.pool().start_worker().await.expect("a worker");
            recorder.record(began.elapsed());
            worker.release().await;
        }
        let start = recorder.finish();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        println!("start until READY: p50 {:.2} ms, p99 {:.2} ms (target: 3 ms)", ms(start.p50), ms(start.p99));

        let worker = pool.acquire().expect("a worker");
        println!("private memory of an idle worker: {:.2} MB (target: 3 MB)", private_bytes(worker.pid) as f64 / 1e6);
        pool.shutdown().await;
    });
}

/// What the kernel counts as this process's alone.
fn private_bytes(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.sum::<u64>() * 1024
}
