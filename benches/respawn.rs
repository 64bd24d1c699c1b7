//! What it costs to replace all workers under load: the latency of requests to a web server in two processes, and of queries, without and with ten respawns.
//!
//! `cargo bench -p pm-benches --bench respawn [-- SECONDS]`. The target: a respawn adds at most 10 ms to the p99.

#[path = "../tests/cluster/load.rs"]
#[expect(dead_code, unreachable_pub, reason = "the tests look at more of it")]
mod load;
#[path = "../examples/http_cluster/web.rs"]
mod web;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pm_cli::bench::measure::{Asked, asked};

use load::Load;

static SQUARE: pm::Query<u64, u64> = pm::Query::new("square", &|n: u64| n * n);

/// How often all workers are replaced while it is measured.
const RESPAWNS: u32 = 10;

/// Queries under way.
const CALLERS: usize = 16;

/// How long the old workers may take.
const DRAIN: Option<Duration> = Some(Duration::from_secs(10));

fn main() {
    pm::roles([&web::WEB, &SQUARE]);
    let Asked { is_test, time } = asked(5.0, Duration::from_millis(500));
    let respawns = if is_test { 2 } else { RESPAWNS };
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        println!("{:<34}{:>12}{:>12}{:>12}{:>12}", "", "requests", "p50", "p99", "longest");
        let quiet = row("64 connections", http(time, 0).await);
        let busy = row(&format!("the same, with {respawns} respawns"), http(time, respawns).await);
        println!("added to the p99: {:.1} ms (target: 10)", (busy - quiet) * 1e3);
        let quiet = row("16 queries under way", queries(time, 0).await);
        let busy = row(&format!("the same, with {respawns} respawns"), queries(time, respawns).await);
        println!("added to the p99: {:.1} ms (target: 10)", (busy - quiet) * 1e3);
    });
}

/// Prints a row, and gives its p99 in seconds.
fn row(name: &str, mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{name:<34}{:>12}{:>12.1?}{:>12.1?}{:>12.1?}", times.len(), at(0.5), at(0.99), at(1.0));
    at(0.99).as_secs_f64()
}

/// Replaces all workers so often, over so much time.
async fn respawn(pool: &pm::Pool, time: Duration, respawns: u32) {
    let end = Instant::now() + time;
    for n in 0..respawns {
        pool.respawn_with(2, DRAIN).await.expect("new workers");
        tokio::time::sleep_until((end - time * (respawns - n - 1) / respawns.max(1)).into()).await;
    }
    tokio::time::sleep_until(end.into()).await;
}

async fn http(time: Duration, respawns: u32) -> Vec<Duration> {
    let address = pm::ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
    let pool = web::WEB.pool().raw().workers(2).spec(|spec| spec.listen(address)).start().await.expect("a pool");
    tokio::spawn(web::follow_loads(pool.subscribe()));
    let load = Load::on(&pool.addresses()[0]);
    respawn(&pool, time, respawns).await;
    let seen = load.end().await.expect("not one request may fail");
    pool.shutdown().await;
    seen.times
}

async fn queries(time: Duration, respawns: u32) -> Vec<Duration> {
    let pool = SQUARE.pool().workers(2).start().await.expect("a pool");
    let is_over = Arc::<AtomicBool>::default();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (pool, is_over) = (pool.clone(), is_over.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    assert_eq!(pool.query(&7).await.expect("not one query may fail"), 49);
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    respawn(&pool, time, respawns).await;
    is_over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.await.expect("no panic"));
    }
    pool.shutdown().await;
    times
}
