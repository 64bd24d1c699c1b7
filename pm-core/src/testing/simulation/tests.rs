use std::time::Duration;

use super::load::{Load, play};
use super::{Outcome, run, sweep};
use crate::machine::budget::SplitMix;

/// CI lives a thousand lives; the soak, with `PM_SOAK=1`, a hundred times as many.
fn lives() -> u64 {
    if std::env::var_os("PM_SOAK").is_some() { 100_000 } else { 1_000 }
}

#[test]
fn a_thousand_lives() {
    let totals = sweep(0..lives()).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{totals:?}");
    // They are worth something only where everything happens in them.
    for outcome in [
        Outcome::Answered,
        Outcome::Handler,
        Outcome::TimedOut,
        Outcome::WorkerLost,
        Outcome::Poisoned,
        Outcome::NoWorkers,
        Outcome::GaveUp,
        Outcome::ShuttingDown,
        Outcome::Full,
    ] {
        assert!(totals.outcomes.get(&outcome).is_some_and(|count| *count > 20), "{outcome:?} in {totals:?}");
    }
    assert!(totals.lived > Duration::from_secs(30) * totals.lives as u32);
}

#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in 0..50 {
        assert_eq!(run(seed).unwrap(), run(seed).unwrap());
    }
    assert_ne!(run(1).unwrap().fingerprint, run(2).unwrap().fingerprint);
}

const MILLI: Duration = Duration::from_millis(1);

/// FEATURES Q10: one call of 500 ms and 200 of 1 ms on two workers.
fn slow_among_quick(before: usize, warm_up: usize) -> Load {
    let quick = |at: Duration, count: usize| std::iter::repeat_n((at, MILLI), count);
    let begins = Duration::from_millis(50);
    let mut calls: Vec<_> = (0..warm_up).map(|_| (Duration::ZERO, Duration::from_micros(1))).collect();
    calls.extend(quick(begins, before));
    calls.push((begins, 500 * MILLI));
    calls.extend(quick(begins, 200 - before));
    Load { workers: 2, concurrency: 1, hop: Duration::from_micros(30), calls }
}

#[test]
fn quick_calls_do_not_wait_behind_a_slow_one() {
    for (before, warm_up) in [(0, 0), (1, 0), (50, 0), (200, 0), (0, 10_000), (100, 10_000)] {
        let played = play(&slow_among_quick(before, warm_up)).unwrap();
        let quick = played.answered[warm_up..].iter().filter(|took| **took < 400 * MILLI).count();
        println!(
            "{before} before, {warm_up} warm-up: {} behind at first, {} stayed, {quick} quick, idle {:?}",
            played.most_behind, played.stayed_behind, played.longest_idle
        );
        assert!(played.stayed_behind <= 2, "{} calls waited behind the slow one", played.stayed_behind);
        assert!(quick >= 198, "only {quick} of 200 calls were answered while the slow one ran");
    }
}

/// PERFORMANCE: a pool of 16 workers, mixed 1 µs - 10 ms calls.
#[test]
fn no_worker_idles_while_a_call_waits() {
    let mut worst = Duration::ZERO;
    for seed in 0..20 {
        let mut random = SplitMix(seed);
        let mut at = 0.0;
        let calls = (0..3_000).map(|_| {
            // From 1 µs to 10 ms, each order of magnitude as often; all at once, or at nine tenths of what the workers can do.
            let takes = 1e-6 * 1e4_f64.powf(random.unit());
            at += if seed % 2 == 0 { 0.0 } else { -random.unit().max(1e-9).ln() * 1.09e-3 / 16.0 / 0.9 };
            (Duration::from_secs_f64(at), Duration::from_secs_f64(takes))
        });
        let hop = Duration::from_micros([1, 10, 30, 60][seed as usize / 2 % 4]);
        let load = Load { workers: 16, concurrency: 1, hop, calls: calls.collect() };
        let played = play(&load).unwrap();
        println!("seed {seed} hop {hop:?}: idle {:?}, took {:?}", played.longest_idle, played.took);
        worst = worst.max(played.longest_idle);
    }
    assert!(worst <= 2 * MILLI, "a worker was idle for {worst:?} while a call waited");
}
