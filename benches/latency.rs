//! Round trips (p50, p99, p99.9), rates and processor time of every transport through the whole `QueryManager`, beside their limits.
//! `cargo bench --bench latency [-- SECONDS]`; SECONDS for each row, three rounds, of which each row shows the one with the median rate.
//! It is what `pm bench` does, at length and in every place.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;
use std::time::Duration;

use pm::AnyTransport;
use pm_cli::bench::limits::serve_if_peer;
use pm_cli::bench::measure::{Asked, asked};
use pm_cli::bench::place::{Place, pin_from_environment};
use pm_cli::bench::rows::{Mode, Row};
use pm_cli::bench::table::{machine, table};
use pm_cli::bench::work::{BLOCK, BYTES, LIMITS, MODES, Settings};

fn main() {
    pin_from_environment();
    serve_if_peer();
    pm::roles([&BLOCK, &BYTES]);
    // cargo test runs benches with this; then one short round shows that all works.
    let Asked { is_test, time } = asked(1.0, Duration::from_millis(10));
    let rounds = if is_test { 1 } else { 3 };
    let settings = Settings {
        transports: AnyTransport::SCHEMES
            .iter()
            .map(|scheme| scheme.parse().expect("a transport of this build"))
            .collect(),
        sizes: if is_test { vec![64] } else { vec![48, 64, 1 << 10, 64 << 10, 1 << 20] },
        in_flight: vec![1, 16, 256],
        places: Place::all(),
        modes: MODES.to_vec(),
        limits: LIMITS.into_iter().chain([Mode::Mux]).collect(),
        time,
    };
    println!("{}", machine());
    for &place in &settings.places {
        let mut measured: Vec<Vec<Row>> = Vec::new();
        for _ in 0..rounds {
            let mut rows = Vec::new();
            let here = Settings { places: vec![place], ..settings.clone() };
            let done = here.measure(|row| {
                rows.push(row);
                ControlFlow::Continue(())
            });
            done.expect("nothing is lost");
            measured.push(rows);
        }
        let medians: Vec<Row> = (0..measured[0].len())
            .map(|at| {
                let mut rows: Vec<&Row> = measured.iter().map(|round| &round[at]).collect();
                rows.sort_by(|a, b| a.measured.rate.total_cmp(&b.measured.rate));
                rows[rows.len() / 2].clone()
            })
            .collect();
        println!("\n{}", table(place, &medians));
    }
}
