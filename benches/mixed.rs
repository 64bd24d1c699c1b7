//! Whether workers wait while calls do. Sixteen workers, calls of 1 µs to 10 ms in a random mix, more of them under way than there are workers. How long was
//! a worker idle at a stretch, while some call waited for one? `cargo bench --bench mixed [-- SECONDS]`.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pm::{AnyTransport, Query};
use pm_cli::bench::measure::asked;
use rustix::time::{ClockId, clock_gettime};

const WORKERS: u32 = 16;

/// Calls under way at once.
const CALLERS: u64 = 64;

/// Target: no worker waits for longer while a call does.
const TARGET: Duration = Duration::from_millis(2);

/// Takes so many microseconds, and gives when it ran: its process, and the beginning and the end in nanoseconds of the machine's clock. It sleeps, so that sixteen workers are
/// busy on two processors.
static WORK: Query<u64, (u32, u64, u64)> = Query::new("work", &|micros: u64| {
    let began = now();
    std::thread::sleep(Duration::from_micros(micros));
    (std::process::id(), began, now())
});

/// Nanoseconds of the clock that all processes share.
fn now() -> u64 {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("the clock has begun").as_nanos() as u64
}

fn main() {
    pm::roles([&WORK]);
    let time = asked(3.0, Duration::from_millis(50)).time;
    println!("{WORKERS} workers, {CALLERS} calls of 1 µs to 10 ms at once: idle while a call waited");
    println!("{:<8}{:>10}{:>12}{:>12}{:>16}", "", "calls/s", "longest", "p99.9", "longer than 2 ms");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for scheme in AnyTransport::SCHEMES {
        let calls = runtime.block_on(calls(scheme, time));
        let mut waits = idle_while_waiting(&calls);
        waits.sort_unstable();
        let micros = |nanos: Option<&u64>| *nanos.unwrap_or(&0) as f64 / 1e3;
        let over = waits.iter().filter(|wait| Duration::from_nanos(**wait) > TARGET).count();
        println!(
            "{scheme:<8}{:>10.0}{:>9.0} µs{:>9.0} µs{over:>10} of {}",
            calls.len() as f64 / time.as_secs_f64(),
            micros(waits.last()),
            micros(waits.get(waits.len() * 999 / 1000)),
            waits.len(),
        );
    }
}

/// One call: when it was sent, and what it gave.
struct Ran {
    sent: u64,
    pid: u32,
    began: u64,
    ended: u64,
}

async fn calls(scheme: &str, time: Duration) -> Vec<Ran> {
    let transport: AnyTransport = scheme.parse().expect("a transport of this build");
    let pool = WORK.pool().workers(WORKERS).transport(transport).start().await.expect("a pool");
    let end = Instant::now() + time;
    let all = Arc::new(Mutex::new(Vec::new()));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (pool, all) = (pool.clone(), all.clone());
            tokio::spawn(async move {
                let mut random = caller + 1;
                while Instant::now() < end {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    // Evenly over the orders of magnitude.
                    let micros = 10_f64.powf((random >> 40) as f64 / f64::from(1 << 24) * 4.0) as u64;
                    let sent = now();
                    let (pid, began, ended) = pool.query(&micros).await.expect("an answer");
                    all.lock().expect("no panic").push(Ran { sent, pid, began, ended });
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    pool.shutdown().await;
    Arc::into_inner(all).expect("all callers have ended").into_inner().expect("no panic")
}

/// How long workers were idle at a stretch while a call waited, in nanoseconds. What each worker does before its first call and after its last one does not count.
fn idle_while_waiting(calls: &[Ran]) -> Vec<u64> {
    // What happens to a call: somebody waits for it, and the worker with this process runs it.
    enum Event {
        Sent,
        Began(u32),
        Ended(u32),
    }
    let mut events: Vec<(u64, Event)> = Vec::new();
    for call in calls {
        events.push((call.sent, Event::Sent));
        events.push((call.began, Event::Began(call.pid)));
        events.push((call.ended, Event::Ended(call.pid)));
    }
    events.sort_by_key(|(at, _)| *at);
    let mut idle: Vec<(u32, u64)> = Vec::new();
    let (mut waiting, mut since) = (0_usize, 0);
    let mut stretches = Vec::new();
    for (at, event) in events {
        match event {
            Event::Sent => {
                if waiting == 0 {
                    since = at;
                }
                waiting += 1;
            }
            Event::Began(pid) => {
                if let Some(place) = idle.iter().position(|(idle, _)| *idle == pid) {
                    stretches.push(at - idle.swap_remove(place).1.max(since));
                }
                waiting -= 1;
                if waiting == 0 {
                    stretches.extend(idle.iter().map(|(_, from)| at - since.max(*from)));
                }
            }
            Event::Ended(pid) => idle.push((pid, at)),
        }
    }
    stretches
}
