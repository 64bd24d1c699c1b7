//! How pools are doing, as text for Prometheus.
//!
//! The [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), version 0.0.4: a line of help and one of type for each family, then its
//! samples. Units are seconds and bytes. Every sample has the labels `pool`, the name of its pool, and `number`, since several pools may have one name. Those of a worker have `worker`,
//! its number, and not its process: a restart begins no new series.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::driver::pool::{Health, WorkerHealth};
use crate::machine::health::Status;

/// What an HTTP server says of [`metrics_text`]: its `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The bounds of the buckets of latencies: powers of two of nanoseconds, from 1 µs to 18 minutes. There the counts are exact.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=40;

/// How these pools are doing, as text for Prometheus. [`registry::metrics`](super::registry::metrics) gives that of all pools of the program.
pub fn metrics_text(pools: &[Health]) -> String {
    let mut text = Text { text: String::new(), family: "" };
    text.family("pm_pool_up", "gauge", "1 where the pool serves, all well or degraded; 0 where it is down.");
    text.each(pools, |pool| u8::from(!matches!(pool.status, Status::Down(_))));
    text.family("pm_pool_degraded", "gauge", "1 where the pool serves and something is wrong.");
    text.each(pools, |pool| u8::from(matches!(pool.status, Status::Degraded(_))));
    text.family("pm_pool_uptime_seconds", "gauge", "Since the pool was started.");
    text.each(pools, |pool| seconds(pool.uptime));
    text.family(
        "pm_calls_answered_total",
        "counter",
        "Calls that workers answered, with a result or an error of their own.",
    );
    text.each(pools, |pool| pool.answered);
    text.family("pm_call_errors_total", "counter", "Calls that ended with an error, by its kind.");
    for pool in pools {
        for (kind, count) in pool.errors.by_kind() {
            text.sample("", pool, &[("kind", &kind)], count);
        }
    }
    text.family("pm_call_retries_total", "counter", "Further tries of calls.");
    text.each(pools, |pool| pool.retries);
    text.family("pm_calls_cancelled_total", "counter", "Calls whose callers went before they had ended.");
    text.each(pools, |pool| pool.cancelled);
    text.family("pm_call_duration_seconds", "histogram", "From when a call was made to its answer.");
    for pool in pools {
        text.latencies(pool);
    }
    text.family("pm_calls_queued", "gauge", "Calls that wait for a worker.");
    text.each(pools, |pool| pool.queued);
    text.family("pm_calls_open", "gauge", "Calls that workers have.");
    text.each(pools, |pool| pool.load);
    text.family("pm_workers", "gauge", "Workers: active, releasing, or crashed and about to be started again.");
    for pool in pools {
        let counts = pool.counts;
        for (state, count) in [("active", counts.active), ("releasing", counts.releasing), ("crashed", counts.crashed)]
        {
            text.sample("", pool, &[("state", &state)], count);
        }
    }
    text.family("pm_worker_crashes_total", "counter", "Workers that ended without having been told to.");
    text.each(pools, |pool| pool.crashes);
    text.family("pm_frames_dropped_total", "counter", "Frames of workers that meant nothing.");
    text.each(pools, |pool| pool.dropped_frames);
    text.of_workers(pools);
    text.text
}

struct Text {
    text: String,
    /// The family that was begun last.
    family: &'static str,
}

impl Text {
    /// Begins a family: its samples follow.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: impl Display) {
        // A text takes whatever there is memory for.
        let _ = writeln!(self.text, "{line}");
    }

    /// A sample of the family. `suffix` is that of its name, and may be nothing.
    fn sample(&mut self, suffix: &str, pool: &Health, labels: &[(&str, &dyn Display)], value: impl Display) {
        let mut line = format!("{}{suffix}{{pool=\"{}\",number=\"{}\"", self.family, escape(&pool.name), pool.number);
        for (label, value) in labels {
            let _ = write!(line, ",{label}=\"{}\"", escape(&value.to_string()));
        }
        self.line(format_args!("{line}}} {value}"));
    }

    fn each<V: Display>(&mut self, pools: &[Health], value: impl Fn(&Health) -> V) {
        for pool in pools {
            self.sample("", pool, &[], value(pool));
        }
    }

    fn latencies(&mut self, pool: &Health) {
        for power in BOUNDS {
            let bound = Duration::from_nanos(1 << power);
            self.sample("_bucket", pool, &[("le", &seconds(bound))], pool.latency.below(bound));
        }
        self.sample("_bucket", pool, &[("le", &"+Inf")], pool.latency.count());
        self.sample("_sum", pool, &[], seconds(pool.latency.sum()));
        self.sample("_count", pool, &[], pool.latency.count());
    }

    fn of_workers(&mut self, pools: &[Health]) {
        self.family("pm_worker_load", "gauge", "Calls that the worker has not answered.");
        self.each_worker(pools, |worker| Some(worker.load));
        self.family(
            "pm_worker_answered_total",
            "counter",
            "Calls that the worker has answered, since its process was started.",
        );
        self.each_worker(pools, |worker| Some(worker.answered));
        self.family("pm_worker_uptime_seconds", "gauge", "Since the process of the worker serves.");
        self.each_worker(pools, |worker| Some(seconds(worker.uptime)));
        self.family("pm_worker_resident_bytes", "gauge", "Memory that the process of the worker has resident.");
        self.each_worker(pools, |worker| worker.rss);
        self.family("pm_worker_cpu_seconds_total", "counter", "Processor time that the process of the worker has had.");
        self.each_worker(pools, |worker| worker.cpu.map(seconds));
    }

    fn each_worker<V: Display>(&mut self, pools: &[Health], value: impl Fn(&WorkerHealth) -> Option<V>) {
        for pool in pools {
            for worker in &pool.workers {
                if let Some(value) = value(worker) {
                    self.sample("", pool, &[("worker", &worker.id.0)], value);
                }
            }
        }
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// The value of a label, as it stands between quotes.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a \"b\" \\ c\nd ü"), r#"a \"b\" \\ c\nd ü"#);
    }

    #[test]
    fn of_no_pools_there_are_families_without_samples() {
        assert!(metrics_text(&[]).lines().all(|line| line.starts_with("# ")));
    }
}
