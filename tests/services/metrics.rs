//! What services use: measured where that is asked for, said where it becomes much, and not looked at otherwise. Row P10.

use std::fs;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{Event, Gauge, Metrics, Sample, When};

use super::{Events, RESTS, at_once, info, orchestrator, pid, printed, python, shell};
use crate::support::{Scratch, kill, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::metrics::one_that_spins_is_high_and_normal_again", one_that_spins_is_high_and_normal_again),
        one("services::metrics::one_that_takes_much_gives_it_back", one_that_takes_much_gives_it_back),
        one("services::metrics::nothing_is_measured_unasked", nothing_is_measured_unasked),
        one("services::metrics::another_life_begins_as_normal", another_life_begins_as_normal),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const INTERVAL: Duration = Duration::from_millis(300);

fn often() -> Metrics {
    Metrics { interval: INTERVAL, ..Metrics::default() }
}

/// Shell that waits for a file.
fn until(path: &Path) -> String {
    format!("until test -e {}; do sleep 0.01; done", path.display())
}

/// Waits for a sample that is so.
async fn sampled(events: &mut Events, label: &str, is_so: impl Fn(&Sample) -> bool) -> Sample {
    let sample = |event: &Event| match event {
        Event::Metrics { sample } if is_so(sample) => Some(*sample),
        _ => None,
    };
    events.next(label, sample).await
}

/// A figure that crosses its threshold: whether it is high then, and its value.
fn crossing(event: &Event, of: Gauge) -> Option<(bool, u64)> {
    match event {
        Event::UsageHigh { gauge, value, .. } if *gauge == of => Some((true, *value)),
        Event::UsageNormal { gauge, value, .. } if *gauge == of => Some((false, *value)),
        _ => None,
    }
}

/// What spins is a child of a child.
async fn one_that_spins_is_high_and_normal_again() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let (go, stop) = (scratch.path("go"), scratch.path("stop"));
    let spins = format!("{}; while ! test -e {}; do :; done; echo rests; exec sleep 1000", until(&go), stop.display());
    // As little as is counted: a busy machine may give it no more.
    let metrics = Metrics { cpu_above: Some(1), ..often() };
    let a = shell("a", &format!("({spins}) & wait")).metrics(metrics).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a])).await.unwrap();
    fs::write(&go, "").unwrap();
    let (is_high, value) = events.next("a", |event| crossing(event, Gauge::Cpu)).await;
    assert!(is_high && value > 1, "{value}");
    let sample = info(&orchestrator, "a").await.metrics.expect("a sample").sample;
    assert!(sample.usage.processes >= 2 && sample.usage.threads >= 2 && sample.usage.fds >= 6, "{sample:?}");
    fs::write(&stop, "").unwrap();
    printed(&orchestrator, "a", 1).await;
    // Each is the other one than before, until nothing is left to be counted.
    let mut is_high = true;
    let rests = async {
        loop {
            let event = events.0.recv().await.expect("more events, and none lost").event;
            if let Some((now, _)) = crossing(&event, Gauge::Cpu) {
                assert_ne!(std::mem::replace(&mut is_high, now), now, "it is said once");
            }
            if matches!(event, Event::Metrics { sample } if sample.recent_cpu.is_zero()) && !is_high {
                break;
            }
        }
    };
    within(rests).await;
}

const TAKES: &str = "
import os, time
def until(path):
    while not os.path.exists(path): time.sleep(0.01)
until('MUCH')
held = (b'x' * (64 << 20), [open('/dev/null') for _ in range(100)])
until('LITTLE')
held = None
time.sleep(1000)
";

async fn one_that_takes_much_gives_it_back() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let (much, little) = (scratch.path("much"), scratch.path("little"));
    let script = TAKES.replace("MUCH", &much.display().to_string()).replace("LITTLE", &little.display().to_string());
    let Some(a) = python("a", &script) else { return };
    let metrics = Metrics { rss_above: Some(60 << 20), fds_above: Some(90), ..often() };
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a.metrics(metrics).build().unwrap()])).await.unwrap();
    let before = sampled(&mut events, "a", |_| true).await;
    assert!((1 << 20..40 << 20).contains(&before.usage.rss_bytes) && before.usage.fds < 50, "{before:?}");
    fs::write(&much, "").unwrap();
    // Memory is taken before descriptors, and may be measured before them.
    let (is_high, bytes) = events.next("a", |event| crossing(event, Gauge::Rss)).await;
    assert!(is_high && bytes > 60 << 20, "{bytes}");
    let sample = sampled(&mut events, "a", |sample| sample.usage.fds > 90).await;
    assert!(sample.usage.rss_bytes > 60 << 20, "{sample:?}");
    let last = info(&orchestrator, "a").await.metrics.expect("a sample");
    assert!(last.sample.usage.fds > 90 && last.sample.uptime >= sample.uptime, "{last:?}");
    fs::write(&little, "").unwrap();
    let mut left = vec![Gauge::Rss, Gauge::Fds];
    while !left.is_empty() {
        let (gauge, value) = events
            .next("a", |event| match event {
                Event::UsageNormal { gauge, value, .. } => Some((*gauge, *value)),
                _ => None,
            })
            .await;
        assert!(value < if gauge == Gauge::Rss { 54 << 20 } else { 81 }, "{gauge} {value}");
        assert!(left.contains(&gauge), "{gauge} is said twice");
        left.retain(|other| *other != gauge);
    }
}

async fn nothing_is_measured_unasked() {
    let orchestrator = orchestrator();
    let on = shell("on", RESTS).metrics(often()).build().unwrap();
    let off = shell("off", RESTS).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([on, off])).await.unwrap();
    assert!(info(&orchestrator, "on").await.metrics.is_none(), "not yet");
    let mut samples = Vec::new();
    let first_three = async {
        while samples.len() < 3 {
            let happening = events.0.recv().await.expect("more events, and none lost");
            if let Event::Metrics { sample } = happening.event {
                assert_eq!(&*happening.label, "on");
                samples.push(sample);
            }
        }
    };
    within(first_three).await;
    assert_eq!(samples[0].over, samples[0].uptime, "the first is since the start");
    assert!(samples.iter().all(|sample| sample.over >= INTERVAL / 2), "{samples:?}");
    assert_eq!(samples[1].uptime + samples[2].over, samples[2].uptime);
    assert_eq!((samples[2].usage.processes, samples[2].usage.threads), (1, 1));
    assert!(info(&orchestrator, "off").await.metrics.is_none());
    // Nor what is not there any more.
    within(orchestrator.stop("on")).await.unwrap();
    assert!(info(&orchestrator, "on").await.metrics.is_none());
}

async fn another_life_begins_as_normal() {
    let orchestrator = orchestrator();
    let metrics = Metrics { fds_above: Some(1), ..often() };
    let a = shell("a", RESTS).metrics(metrics).restart(at_once(When::OnFailure)).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a])).await.unwrap();
    let high = |event: &Event| crossing(event, Gauge::Fds);
    assert!(events.next("a", high).await.0);
    sampled(&mut events, "a", |_| true).await;
    kill(pid(&orchestrator, "a").await, rustix::process::Signal::KILL);
    events.crashed("a").await;
    let of_the_next = sampled(&mut events, "a", |_| true).await;
    assert_eq!(of_the_next.over, of_the_next.uptime, "nothing is left of the life before");
    assert!(events.next("a", high).await.0, "it is said again, and nothing of a normal figure before");
}
