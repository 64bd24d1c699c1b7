//! How pools are doing, for programs and for Prometheus. Row Q14.

use std::collections::BTreeMap;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Event, Health, QueryErrorKind, QueryOptions, Retry, Status, StreamManager, Trouble,
    metrics_text, registry,
};
use rustix::process::Signal as Kill;

use crate::query::listening;
use crate::roles::{Job, Said};
use crate::streams::{Heard, Say, TALK};
use crate::support::{
    Asked, Gate, LONG, Scratch, error, event, eventually, jobs, kill, over_all, over_all_alone, pids, poll_once,
    pool_of, replaced, within,
};

pub fn tests() -> Vec<Trial> {
    [
        over_all("health::everything_is_counted", everything_is_counted),
        over_all("health::how_long_calls_take", how_long_calls_take),
        over_all("health::what_workers_use", what_workers_use),
        over_all("health::streams_count_when_they_end", streams_count_when_they_end),
        over_all("health::whether_a_pool_is_well", whether_a_pool_is_well),
        over_all_alone("health::the_text_for_prometheus", the_text_for_prometheus),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn everything_is_counted(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).start().await.unwrap();
    let begun = pool.health();
    assert_eq!((begun.status, begun.answered, begun.errors.total()), (Status::Healthy, 0, 0));
    for n in 1..=10 {
        assert!(pool.query(&Job::Pid).await.is_ok());
        assert_eq!(pool.health().answered, n, "whoever has an answer finds it counted");
    }
    for n in 1..=2 {
        error(pool.query(&Job::Fail("no".to_string())).await);
        assert_eq!(pool.health().errors.handler, n, "and so is an error");
    }
    error(pool.query(&Job::Exit(1)).await);
    assert_eq!(pool.health().errors.lost, 1);
    let twice = QueryOptions::new().retry(Retry::times(1));
    error(within(pool.query_with(&Job::Exit(1), twice)).await);
    let short = QueryOptions::new().timeout(Some(Duration::from_millis(50)));
    error(within(pool.query_with(&Job::Nap(LONG), short)).await);
    let mut dropped: Asked = Box::pin(pool.query_with(&Job::Nap(LONG), QueryOptions::new()));
    assert!(poll_once(&mut dropped).await.is_none());
    drop(dropped);
    let health = pool.health();
    let errors = health.errors;
    assert_eq!((errors.handler, errors.lost, errors.timed_out, errors.total()), (2, 2, 1, 5));
    assert_eq!((health.answered, health.retries, health.cancelled), (12, 1, 1));
    assert_eq!((health.latency.count(), health.crashes), (12, 3));
    assert!(health.last_crash.is_some() && health.uptime > Duration::ZERO);
    assert!(health.per_minute >= 12.0, "it is younger than a minute: {}", health.per_minute);
    within(pool.shutdown()).await;
    error(pool.query(&Job::Pid).await);
    let health = pool.health();
    assert_eq!((health.errors.shutting_down, health.answered), (1, 12));
}

async fn how_long_calls_take(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    for _ in 0..200 {
        assert!(pool.query(&Job::Pid).await.is_ok());
    }
    pool.query(&Job::Sleep(Duration::from_millis(300))).await.unwrap();
    let latency = pool.health().latency;
    assert_eq!(latency.count(), 201);
    assert!(latency.max() >= Duration::from_millis(294), "{latency:?}");
    assert!(latency.p50() <= latency.p99() && latency.p99() <= latency.max(), "{latency:?}");
    assert!(latency.mean() >= Duration::from_millis(294) / 201 && latency.mean() <= latency.max(), "{latency:?}");
    assert_eq!((latency.below(Duration::from_secs(1 << 20)), latency.quantile(1.0)), (201, latency.max()));
    // In this process there is no worker to look at, and all else is the same.
    let pool = jobs(transport).in_process().start().await.unwrap();
    pool.query(&Job::Pid).await.unwrap();
    let health = pool.health();
    assert_eq!((health.answered, health.workers.len(), health.workers[0].rss), (1, 1, None));
}

async fn what_workers_use(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(2)).await;
    let [busy, idle] = pool.workers().try_into().unwrap();
    for _ in 0..3 {
        pool.query_on(busy.id, &Job::Leak(32 << 20)).await.unwrap();
    }
    let waits = {
        let (pool, job) = (pool.clone(), gate.wait());
        tokio::spawn(async move { pool.query_on(busy.id, &job).await })
    };
    begun.wait();
    let [first, second] = pool.health().workers.try_into().unwrap();
    assert_eq!((first.id, first.pid, first.load, first.answered), (busy.id, busy.pid, 1, 3));
    assert_eq!((second.id, second.pid, second.load, second.answered), (idle.id, idle.pid, 0, 0));
    assert!(first.rss.unwrap() > 96 << 20 && second.rss.unwrap() < 96 << 20, "{first:?}, {second:?}");
    assert!(first.cpu.is_some() && first.uptime > Duration::ZERO && !first.is_leaving);
    // One that leaves is looked at until it is gone.
    let leaves = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.unspawn_one(busy.id).await })
    };
    eventually("it leaves", || pool.health().workers.iter().any(|worker| worker.is_leaving)).await;
    assert_eq!(pool.health().workers.len(), 2);
    gate.open(1);
    within(waits).await.unwrap().unwrap();
    within(leaves).await.unwrap().unwrap();
    let health = pool.health();
    assert_eq!((health.workers.len(), health.answered, health.load), (1, 4, 0));
}

async fn streams_count_when_they_end(transport: AnyTransport) {
    let pool: StreamManager<Say, Heard> = pool_of(&TALK, transport).streams().start().await.unwrap();
    let stream = within(pool.create_stream()).await.unwrap();
    let health = pool.health();
    assert_eq!((health.answered, health.load, health.workers[0].load), (0, 1, 1));
    within(stream.close()).await.unwrap();
    eventually("it is counted", || pool.health().answered == 1).await;
    let mut sour = within(pool.create_stream()).await.unwrap();
    sour.write(&Say::Fail("lemon".to_string())).await.unwrap();
    assert!(within(sour.next()).await.unwrap().is_err());
    assert_eq!((pool.health().answered, pool.health().errors.handler), (2, 1));
}

async fn whether_a_pool_is_well(transport: AnyTransport) {
    let budget = Budget::crash_loops(1, LONG).backoff(LONG, LONG);
    let pool = jobs(transport).workers(0).budget(budget).start().await.unwrap();
    let status = || pool.health().status;
    assert_eq!(status(), Status::Healthy, "the first query starts a worker");
    within(pool.scale(2)).await.unwrap();
    assert_eq!(status(), Status::Healthy);
    let mut events = pool.events();
    kill(pids(&pool)[0], Kill::KILL);
    event(&mut events, |event| matches!(event, Event::Crashed { .. }).then_some(())).await;
    let crashed = Trouble::Crashed { workers: 1 };
    eventually("one is missing", || status() == Status::Degraded(crashed.clone())).await;
    kill(pids(&pool)[0], Kill::KILL);
    event(&mut events, |event| matches!(event, Event::GaveUp { .. }).then_some(())).await;
    assert!(matches!(status(), Status::Down(Trouble::GaveUp(_))), "{}", status());
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::GaveUp);
    assert_eq!(pool.health().errors.gave_up, 1);
    within(pool.revive()).await.unwrap();
    eventually("it is well again", || status() == Status::Healthy).await;
    within(pool.unspawn()).await.unwrap();
    assert_eq!(status(), Status::Down(Trouble::Unspawned));
    error(pool.query(&Job::Pid).await);
    assert_eq!(pool.health().errors.no_workers, 1);
    within(pool.shutdown()).await;
    assert_eq!(status(), Status::Down(Trouble::ShuttingDown));
    // A queue that is full.
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).queue(3)).await;
    let queries: Vec<_> = (0..40).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
    begun.wait();
    eventually("it is full", || matches!(pool.health().status, Status::Degraded(Trouble::QueueFull { .. }))).await;
    gate.open(40);
    for query in queries {
        assert_eq!(within(query).await.unwrap().unwrap(), Said::Number(1));
    }
    assert_eq!(pool.health().status, Status::Healthy);
}

async fn the_text_for_prometheus(transport: AnyTransport) {
    let awkward = "a \"pool\" \\ of\nmany, {words}";
    let first = jobs(transport).workers(2).name(awkward).start().await.unwrap();
    let second = jobs(transport).name(awkward).start().await.unwrap();
    let mut events = second.events();
    for _ in 0..25 {
        first.query(&Job::Pid).await.unwrap();
    }
    error(second.query(&Job::Exit(1)).await);
    replaced(&mut events).await;
    let text = registry::metrics();
    let samples = parse(&text);
    let health = registry::health();
    let [one, two] = &health[..] else { panic!("{health:?}") };
    assert_ne!(one.number, two.number);
    let of = |pool: &Health, name: &str, more: &[(&str, &str)]| {
        let mut labels = BTreeMap::from([
            ("pool".to_string(), awkward.to_string()),
            ("number".to_string(), pool.number.to_string()),
        ]);
        labels.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let found = samples.get(&(name.to_string(), labels.clone()));
        *found.unwrap_or_else(|| panic!("{name} {labels:?} is not in {text}"))
    };
    assert_eq!(of(one, "pm_calls_answered_total", &[]), 25.0);
    assert_eq!(of(two, "pm_call_errors_total", &[("kind", "lost")]), 1.0);
    assert_eq!(of(one, "pm_call_errors_total", &[("kind", "timed_out")]), 0.0);
    assert_eq!(of(one, "pm_workers", &[("state", "active")]), 2.0);
    assert_eq!(of(two, "pm_worker_crashes_total", &[]), 1.0);
    assert_eq!((of(one, "pm_pool_up", &[]), of(one, "pm_pool_degraded", &[])), (1.0, 0.0));
    for worker in &one.workers {
        let id = worker.id.0.to_string();
        let labels = [("worker", id.as_str())];
        assert!(of(one, "pm_worker_resident_bytes", &labels) > 1e5);
        assert!(of(one, "pm_worker_cpu_seconds_total", &labels) < 100.0);
        assert!(of(one, "pm_worker_uptime_seconds", &labels) > 0.0);
    }
    // A histogram grows from bound to bound, and ends with all.
    let mut buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter(|((name, labels), _)| {
            name == "pm_call_duration_seconds_bucket" && labels["number"] == one.number.to_string()
        })
        .map(|((_, labels), count)| (labels["le"].replace("+Inf", "inf").parse().unwrap(), *count))
        .collect();
    buckets.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.len() > 10 && buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
    assert_eq!(buckets.last().unwrap(), &(f64::INFINITY, of(one, "pm_call_duration_seconds_count", &[])));
    assert!(of(one, "pm_call_duration_seconds_sum", &[]) > 0.0);
    // Of these pools and no others, whichever are asked for.
    let samples = parse(&metrics_text(&health[..1]));
    assert!(samples.keys().all(|(_, labels)| labels["number"] == one.number.to_string()));
}

/// A sample by its name and its labels.
type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// Reads the text format strictly: each family has its help and its type before its samples, and no sample comes twice.
fn parse(text: &str) -> Samples {
    let mut samples = Samples::new();
    let mut families = BTreeMap::new();
    let mut family = ("", "");
    let mut helped = "";
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').expect("a name and a help").0;
            continue;
        }
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            family = typed.split_once(' ').expect("a name and a type");
            assert_eq!(family.0, helped, "its help comes before its type");
            assert!(["counter", "gauge", "histogram"].contains(&family.1), "{line}");
            assert_eq!(family.1 == "counter", family.0.ends_with("_total"), "{line}");
            assert_eq!(families.insert(family.0, family.1), None, "a family comes once: {line}");
            continue;
        }
        let (name, rest) = line.split_once('{').expect("labels");
        let suffix = name.strip_prefix(family.0).unwrap_or_else(|| panic!("{line} is not of the family {}", family.0));
        let suffixes: &[&str] = if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(suffixes.contains(&suffix), "{line}");
        let (labels, value) = labels(rest);
        let value = value.trim().parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert_eq!(samples.insert((name.to_string(), labels), value), None, "twice: {line}");
    }
    samples
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name:?}");
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, escaped @ ('"' | '\\'))) => escaped,
                    other => panic!("an escape that there is not: {other:?}"),
                }),
                (_, character) => value.push(character),
            }
        };
        assert_eq!(labels.insert(name.to_string(), value), None);
        text = &rest[end + 1..];
        match text.strip_prefix(',') {
            Some(more) => text = more,
            None => return (labels, text.strip_prefix('}').expect("a closing brace")),
        }
    }
}
