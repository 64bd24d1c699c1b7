//! What each codec costs for a small and a large value.

#![forbid(unsafe_code)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pm::codec::{Bincode, Codec};
use pm::{Json, Postcard};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Job {
    id: u64,
    name: String,
    scores: Vec<f64>,
}

fn codec<C: Codec<Job>>(c: &mut Criterion, codec: &C, size: usize) {
    let job =
        Job { id: 7, name: "a job of ordinary length".into(), scores: (0..size).map(|n| n as f64 / 3.0).collect() };
    let mut payload = Vec::new();
    codec.encode(&job, &mut payload).expect("a value that fits");
    assert_eq!(codec.decode(&payload).expect("what was encoded"), job, "right before fast");
    let mut group = c.benchmark_group(format!("codec/{}/{size} numbers", codec.name()));
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("encode", |b| {
        let mut payload = Vec::new();
        b.iter(|| {
            payload.clear();
            codec.encode(black_box(&job), &mut payload).expect("a value that fits");
            black_box(&payload);
        });
    });
    group.bench_function("decode", |b| b.iter(|| codec.decode(black_box(&payload)).expect("what was encoded")));
    group.finish();
}

fn codecs(c: &mut Criterion) {
    for size in [4, 1000] {
        codec(c, &Postcard, size);
        codec(c, &Bincode, size);
        codec(c, &Json, size);
    }
}

criterion_group!(benches, codecs);
criterion_main!(benches);
