//! What a query takes where it does not follow the last one at once. Queries that come at a pace of their own (10, 50 and 80 % of what the transport can do;
//! each is timed from the moment at which it should have begun, so that a queue shows), and queries with gaps between them, in which workers fall asleep.
//! `cargo bench --bench pacing [-- SECONDS]`.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use pm::{AnyTransport, QueryManager};
use pm_cli::bench::measure::{Block, asked, histogram, many};
use pm_cli::bench::place::{self, Place};
use pm_cli::bench::table::machine;
use pm_cli::bench::work::BLOCK;

type Pool = QueryManager<Block, Block>;

const INPUT: Block = Block([7; 64]);

/// Parts of the saturation, in percent.
const PACES: [u32; 3] = [10, 50, 80];

const GAPS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_micros(10),
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
];

/// Where the timer of the runtime is too coarse, a caller waits without sleeping.
const TIMER: Duration = Duration::from_millis(1);

fn main() {
    place::pin_from_environment();
    pm::roles([&BLOCK]);
    let time = asked(1.0, Duration::from_millis(20)).time;
    let place = if Place::TwoCores.is_here() { Place::TwoCores } else { Place::OneCore };
    println!("{} · {place}; µs\n", machine());
    place.enter();
    println!("{:<8}{:<28}{:>9}{:>9}{:>9}{:>12}", "", "", "p50", "p99", "p99.9", "queries/s");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for scheme in AnyTransport::SCHEMES {
        // The work runs on a thread of the runtime, as a server's does.
        runtime.block_on(async { tokio::spawn(measure(scheme, place, time)).await.expect("no panic") });
    }
}

async fn measure(scheme: &'static str, place: Place, time: Duration) {
    let transport: AnyTransport = scheme.parse().expect("a transport of this build");
    let pool = BLOCK.pool().transport(transport).spec(|spec| spec.env(place::VARIABLE, place.variable()));
    let pool = pool.start().await.expect("a pool");
    let callers = pool.clone();
    // Each in a task that is made for it, as a server makes them, and as below.
    let most = many(256, time, None, move || {
        let pool = callers.clone();
        async move { tokio::spawn(answered(pool)).await.expect("no panic") }
    });
    let most = most.await.rate;
    for percent in PACES {
        let pace = most * f64::from(percent) / 100.0;
        let (times, rate) = paced(&pool, pace, time).await;
        print(scheme, &format!("at {percent} % of {:.0} k/s", most / 1000.0), &times, rate);
    }
    for gap in GAPS {
        let (times, rate) = with_gaps(&pool, gap, time).await;
        print(scheme, &format!("{gap:?} between calls"), &times, rate);
    }
    pool.shutdown().await;
}

async fn answered(pool: Pool) {
    assert_eq!(pool.query(&INPUT).await.expect("an answer"), INPUT);
}

/// Begins so many queries a second, each when its time has come, whatever became of the others.
async fn paced(pool: &Pool, pace: f64, time: Duration) -> (Histogram<u64>, f64) {
    let times = Arc::new(Mutex::new(histogram()));
    let mut queries = tokio::task::JoinSet::new();
    let began = Instant::now();
    let mut begun = 0_u32;
    loop {
        let now = Instant::now();
        if now - began > time {
            break;
        }
        let due = ((now - began).as_secs_f64() * pace) as u32;
        for n in begun..due {
            let (pool, times) = (pool.clone(), times.clone());
            let intended = began + Duration::from_secs_f64(f64::from(n) / pace);
            queries.spawn(async move {
                answered(pool).await;
                times.lock().expect("no panic").saturating_record(intended.elapsed().as_nanos() as u64);
            });
        }
        begun = due;
        while queries.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
    queries.join_all().await;
    let times = times.lock().expect("no panic").clone();
    (times, f64::from(begun) / began.elapsed().as_secs_f64())
}

/// One query after another, with a gap between them.
async fn with_gaps(pool: &Pool, gap: Duration, time: Duration) -> (Histogram<u64>, f64) {
    let mut times = histogram();
    let began = Instant::now();
    while began.elapsed() < time || times.is_empty() {
        let at = Instant::now();
        assert_eq!(pool.query(&INPUT).await.expect("an answer"), INPUT);
        times.saturating_record(at.elapsed().as_nanos() as u64);
        if gap >= TIMER {
            tokio::time::sleep(gap).await;
        } else {
            let until = Instant::now() + gap;
            while Instant::now() < until {
                tokio::task::yield_now().await;
            }
        }
    }
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    (times, rate)
}

fn print(scheme: &str, what: &str, times: &Histogram<u64>, rate: f64) {
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!("{scheme:<8}{what:<28}{:>9.2}{:>9.2}{:>9.2}{rate:>12.0}", at(0.5), at(0.99), at(0.999));
}
