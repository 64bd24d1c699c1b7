//! Round trips (p50, p99, p99.9) and rates of every transport through the whole `QueryManager`, each beside its limit in the same
//! round. `cargo bench --bench latency [-- SECONDS]`; three rounds by default, medians of ratios at the end.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Duration;

use pm::{AnyTransport, Query, QueryManager};
use pm_benches::limits::{BarePipe, BareSocket, Channel, FRAME, Futex, Mux, Spin};
use pm_benches::measure::{Block, Latency, Recorder, rate};
use pm_benches::place::{self, Place};

static ECHO: Query<Block, Block> = Query::new("echo", &|block: Block| black_box(block));

const IN_FLIGHT: usize = 256;

/// Times an expression over and over. A closure that lends and is sent cannot be written down yet.
macro_rules! timed {
    ($time:expr, $call:expr) => {{
        let mut recorder = Recorder::new($time);
        while recorder.goes_on() {
            $call;
        }
        recorder.finish()
    }};
}

fn main() {
    pm_benches::place::pin_from_environment();
    pm_benches::limits::echo_if_peer();
    pm::roles([&ECHO]);
    // cargo test runs benches with this; then one short round shows that all works.
    let is_test = std::env::args().any(|arg| arg == "--test");
    let seconds = std::env::args().filter_map(|arg| arg.parse::<f64>().ok()).next().unwrap_or(1.0);
    let (rounds, time) = if is_test { (1, Duration::from_millis(20)) } else { (3, Duration::from_secs_f64(seconds)) };
    println!("{} · {} cores", machine(), std::thread::available_parallelism().map_or(0, |cores| cores.get()));
    for place in Place::all() {
        let mut table = Table::default();
        for _ in 0..rounds {
            // A runtime and a worker of their own for each round and place: the keeper is pinned as the manager was when it began, the
            // worker pins itself.
            std::thread::spawn(move || {
                place.enter();
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(if place == Place::Unpinned { 2 } else { 1 })
                    .enable_all()
                    .build()
                    .expect("a runtime");
                let mut table = Table::default();
                // The work runs on a worker thread, as a server's does, and not on the thread that blocks for it.
                runtime.block_on(async {
                    tokio::spawn(async move {
                        round(place, time, &mut table).await;
                        table
                    })
                    .await
                    .expect("no panic")
                })
            })
            .join()
            .map(|round| table.rows.extend(round.rows))
            .expect("no panic");
        }
        table.print(place);
    }
}

async fn round(place: Place, time: Duration, table: &mut Table) {
    let mut frame = [7u8; FRAME];
    let mut socket = BareSocket::new(place);
    let socket_latency = timed!(time, socket.round_trip(&mut frame).await);
    drop(socket);
    let mut pipe = BarePipe::new(place);
    let pipe_latency = timed!(time, pipe.round_trip(&mut frame).await);
    drop(pipe);
    let mut futex = Futex::new(place);
    let futex_latency = timed!(time, futex.round_trip());
    drop(futex);
    // Nobody spins for a thread that shares its processor.
    let spin_latency = (place != Place::OneCore).then(|| {
        let mut spin = Spin::new(place);
        timed!(time, black_box(spin.round_trip(black_box([7; 8]))))
    });
    let mux = Mux::new(place);
    let mux_rate = rate(IN_FLIGHT, time, move || {
        let mux = mux.clone();
        async move { assert_eq!(mux.round_trip(black_box([7; FRAME])).await, [7; FRAME]) }
    })
    .await;
    let channel = Channel::new();
    let channel_rate = rate(IN_FLIGHT, time, move || {
        let channel = channel.clone();
        async move { assert_eq!(channel.round_trip(black_box([7; FRAME])).await, [7; FRAME]) }
    })
    .await;
    table.latency("limit: socket", &socket_latency, None);
    table.latency("limit: pipe", &pipe_latency, None);
    table.latency("limit: futex", &futex_latency, None);
    if let Some(spin) = &spin_latency {
        table.latency("limit: spin", spin, None);
    }
    table.rate("limit: mux on a socket", mux_rate, None);
    table.rate("limit: mpsc + oneshot", channel_rate, None);
    let memory_limit = spin_latency.as_ref().unwrap_or(&futex_latency);
    for (name, limit, most) in
        [("uds", &socket_latency, mux_rate), ("stdio", &pipe_latency, mux_rate), ("shm", memory_limit, channel_rate)]
    {
        let pool = start(name, place).await;
        let input = black_box(Block([7; 64]));
        let latency = timed!(time, assert_eq!(pool.query(&input).await.expect("an answer"), input));
        table.latency(name, &latency, Some(limit));
        let manager = pool.clone();
        let rate = rate(IN_FLIGHT, time, move || {
            let pool = manager.clone();
            async move { assert_eq!(pool.query(&input).await.expect("an answer"), input) }
        })
        .await;
        table.rate(name, rate, Some(most));
        pool.shutdown().await;
    }
    let pool = ECHO.pool().in_process().start().await.expect("a pool");
    let input = black_box(Block([7; 64]));
    let latency = timed!(time, assert_eq!(pool.query(&input).await.expect("an answer"), input));
    table.latency("memory (a thread)", &latency, None);
}

async fn start(transport: &str, place: Place) -> QueryManager<Block, Block> {
    let cpu = place.worker().map_or("any".to_string(), |cpu| cpu.to_string());
    ECHO.pool()
        .transport(transport.parse::<AnyTransport>().expect("a transport of this build"))
        .spec(|spec| spec.env(place::VARIABLE, cpu))
        .start()
        .await
        .expect("a pool")
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("unknown");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model} · Linux {}", kernel.trim())
}

#[derive(Default)]
struct Table {
    rows: Vec<(String, [f64; 4], Option<f64>)>,
}

impl Table {
    fn latency(&mut self, name: &str, latency: &Latency, limit: Option<&Latency>) {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let row = [us(latency.p50), us(latency.p99), us(latency.p999), latency.mean / 1000.0];
        let ratio = limit.map(|limit| latency.p50 as f64 / limit.p50 as f64);
        self.rows.push((format!("{name}: round trip, µs"), row, ratio));
    }

    fn rate(&mut self, name: &str, rate: f64, limit: Option<f64>) {
        self.rows.push((
            format!("{name}: {IN_FLIGHT} in flight, k/s"),
            [rate / 1000.0, 0.0, 0.0, 0.0],
            limit.map(|limit| rate / limit),
        ));
    }

    fn print(&self, place: Place) {
        println!(
            "\n{:44} {:>9} {:>9} {:>9} {:>9} {:>8}",
            format!("{place}"),
            "p50/rate",
            "p99",
            "p99.9",
            "mean",
            "of limit"
        );
        let mut names: Vec<&String> = Vec::new();
        for (name, _, _) in &self.rows {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for name in names {
            let rows: Vec<_> = self.rows.iter().filter(|(row, _, _)| row == name).collect();
            let median = |pick: &dyn Fn(&[f64; 4], Option<f64>) -> f64| {
                let mut values: Vec<f64> = rows.iter().map(|(_, row, ratio)| pick(row, *ratio)).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let columns: Vec<f64> = (0..4).map(|at| median(&|row, _| row[at])).collect();
            let ratio = if rows[0].2.is_some() {
                format!("{:.2}", median(&|_, ratio| ratio.unwrap_or(0.0)))
            } else {
                String::new()
            };
            let cell = |value: f64| if value == 0.0 { String::new() } else { format!("{value:.2}") };
            println!(
                "{name:44} {:>9} {:>9} {:>9} {:>9} {ratio:>8}",
                cell(columns[0]),
                cell(columns[1]),
                cell(columns[2]),
                cell(columns[3])
            );
        }
    }
}
