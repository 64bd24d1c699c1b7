//! Every transport through the whole `QueryManager`, by size and by how many queries are under way at once; and what the type of 64 KiB costs.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use pm::codec::Verbatim;
use pm::core::worker::role::ByteQuery;
use pm::{AnyTransport, Bytes, PoolBuilder, Query, QueryManager};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

static ECHO: ByteQuery = ByteQuery::new("echo", "bytes", &|input: &[u8], output: &mut Vec<u8>| {
    output.extend_from_slice(black_box(input));
    Ok(())
});

static BYTES: Query<Bytes, Bytes> = Query::new("bytes", &|value: Bytes| black_box(value));
static OCTETS: Query<Vec<u8>, Vec<u8>> = Query::new("octets", &|value: Vec<u8>| black_box(value));
static NUMBERS: Query<Vec<f64>, Vec<f64>> = Query::new("numbers", &|value: Vec<f64>| black_box(value));

type Pool = QueryManager<Vec<u8>, Vec<u8>, Verbatim>;

fn transports(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    for scheme in AnyTransport::SCHEMES {
        let transport: AnyTransport = scheme.parse().expect("a transport of this build");
        let start = PoolBuilder::role(&ECHO, transport, Verbatim("bytes")).start();
        let pool: Pool = runtime.block_on(start).expect("a pool");
        bench(c, &runtime, scheme, &pool);
        runtime.block_on(pool.shutdown());
    }
    let start = PoolBuilder::role(&ECHO, pm::core::driver::memory::Memory, Verbatim("bytes")).in_process().start();
    let pool: Pool = runtime.block_on(start).expect("a pool");
    bench(c, &runtime, "memory", &pool);
}

fn bench(c: &mut Criterion, runtime: &Runtime, scheme: &str, pool: &Pool) {
    let mut group = c.benchmark_group(scheme);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for size in [64, 1 << 10, 64 << 10, 1 << 20] {
        let input = vec![7u8; size];
        assert_eq!(runtime.block_on(pool.query(&input)).expect("an answer"), input, "right before fast");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("round trip", size), &input, |b, input| {
            b.to_async(runtime).iter(|| async { black_box(pool.query(input).await.expect("an answer")) });
        });
    }
    group.throughput(Throughput::Elements(1));
    for at_once in [16usize, 256] {
        group.bench_with_input(BenchmarkId::new("at once", at_once), &at_once, |b, &at_once| {
            b.to_async(runtime).iter_custom(|count| many(pool.clone(), at_once, count));
        });
    }
    group.finish();
}

/// Round trips of 64 KiB over the quickest transport, by postcard.
fn types(c: &mut Criterion) {
    const SIZE: usize = 64 << 10;
    let runtime = Runtime::new().expect("a runtime");
    typed(c, &runtime, "pm::Bytes", &BYTES, Bytes::from(vec![7; SIZE]));
    typed(c, &runtime, "Vec<u8>", &OCTETS, vec![7; SIZE]);
    typed(c, &runtime, "Vec<f64>", &NUMBERS, vec![7.5; SIZE / size_of::<f64>()]);
}

fn typed<T>(c: &mut Criterion, runtime: &Runtime, name: &str, echo: &'static Query<T, T>, value: T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug + Send + 'static,
{
    let transport: AnyTransport = "shm".parse().expect("a transport of this build");
    let pool = runtime.block_on(echo.pool().transport(transport).start()).expect("a pool");
    assert_eq!(runtime.block_on(pool.query(&value)).expect("an answer"), value, "right before fast");
    let mut group = c.benchmark_group("shm, 64 KiB");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Bytes(64 << 10));
    group.bench_function(name, |b| {
        b.to_async(runtime).iter(|| async { black_box(pool.query(&value).await.expect("an answer")) });
    });
    group.finish();
    runtime.block_on(pool.shutdown());
}

/// `count` queries of 64 bytes, `at_once` of them under way at a time, each of these in a task of its own.
async fn many(pool: Pool, at_once: usize, count: u64) -> Duration {
    let began = Instant::now();
    let tasks: Vec<_> = (0..at_once as u64)
        .map(|task| {
            let (pool, mine) = (pool.clone(), count / at_once as u64 + u64::from(task < count % at_once as u64));
            tokio::spawn(async move {
                let input = vec![7u8; 64];
                for _ in 0..mine {
                    black_box(pool.query(&input).await.expect("an answer"));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    began.elapsed()
}

criterion_group!(benches, transports, types);

fn main() {
    // The workers are this very program.
    pm::roles([&ECHO, &BYTES, &OCTETS, &NUMBERS]);
    benches();
    Criterion::default().configure_from_args().final_summary();
}
