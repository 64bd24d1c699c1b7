//! The rows as people read them, and what follows from them.

use std::fmt::Write;

use super::place::Place;
use super::rows::{Mode, Row};

/// The processor, the kernel and the number of cores.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("unknown");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    format!("{model} · Linux {} · {cores} cores", kernel.trim())
}

/// The rows of one place.
pub fn table(place: Place, rows: &[Row]) -> String {
    let mut text = format!(
        "{:<26}{:>9}{:>10}  {:>9} {:>9} {:>9} {:>9}  {:>8} {:>8}  {}\n",
        place.to_string(),
        "bytes",
        "in flight",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "k/s",
        "manager",
        "worker",
        "of its limit"
    );
    for row in rows.iter().filter(|row| row.place == place) {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let cpu = |nanos: f64| format!("{:.2}", nanos / 1000.0);
        let m = &row.measured;
        let _ = writeln!(
            text,
            "{:<8}{:<18}{:>9}{:>10}  {:>9.2} {:>9.2} {:>9.2} {:>9.1}  {:>8} {:>8}  {}",
            row.transport(),
            row.mode,
            row.size,
            row.in_flight,
            us(m.p50),
            us(m.p99),
            us(m.p999),
            m.rate / 1000.0,
            cpu(m.cpu_manager),
            cpu(m.cpu_worker),
            beside_limit(row, rows)
        );
    }
    text
}

/// The ratio to the limit, where that was measured in the same place at the same size.
fn beside_limit(row: &Row, rows: &[Row]) -> String {
    let is_it = |limit: &&Row| {
        limit.transport.is_none()
            && limit.place == row.place
            && limit.size == row.size
            && Some(limit.mode) == row.limit()
            && (limit.in_flight == row.in_flight)
    };
    let Some(limit) = rows.iter().find(is_it) else { return String::new() };
    match row.in_flight {
        1 => format!("{:.2} x {}", row.measured.p50 as f64 / limit.measured.p50.max(1) as f64, limit.mode),
        _ => format!("{:.2} of {}", row.measured.rate / limit.measured.rate.max(1.0), limit.mode),
    }
}

/// Which transport to pick on this machine, and why: for each place and size in which there was more than one.
pub fn advice(rows: &[Row]) -> Option<String> {
    let awaited: Vec<&Row> = rows.iter().filter(|row| row.transport.is_some() && row.mode == Mode::Await).collect();
    let mut cases: Vec<(Place, usize)> = Vec::new();
    for row in &awaited {
        if !cases.contains(&(row.place, row.size)) {
            cases.push((row.place, row.size));
        }
    }
    let verdicts: Vec<_> = cases.into_iter().filter_map(|case| verdict(&awaited, case)).collect();
    if verdicts.is_empty() {
        return None;
    }
    let mut text = format!("On this machine pick\n{}", verdicts.concat());
    if awaited.iter().any(|row| row.transport == Some("shm")) {
        text += "shm spins for some µs while a query is under way, and needs workers in Rust; those in other languages speak stdio and uds.\n";
    }
    Some(text)
}

/// The same for one place and size. None where nothing is compared.
fn verdict(awaited: &[&Row], (place, size): (Place, usize)) -> Option<String> {
    let here: Vec<&Row> = awaited.iter().copied().filter(|row| row.place == place && row.size == size).collect();
    let (few, crowd) = (here.iter().map(|row| row.in_flight).min()?, here.iter().map(|row| row.in_flight).max()?);
    let at = |in_flight: usize| here.iter().copied().filter(move |row| row.in_flight == in_flight);
    if at(few).count() < 2 {
        return None;
    }
    let quickest = at(few).min_by_key(|row| row.measured.p50)?.transport();
    let busiest = at(crowd).max_by(|a, b| a.measured.rate.total_cmp(&b.measured.rate))?.transport();
    let times: Vec<_> =
        at(few).map(|row| format!("{} {:.1} µs", row.transport(), row.measured.p50 as f64 / 1000.0)).collect();
    let rates: Vec<_> = at(crowd).map(|row| format!("{} {:.1}", row.transport(), row.measured.rate / 1000.0)).collect();
    let mut text = format!("  {place}, {size} bytes: {quickest}");
    if crowd > few {
        let pick = if quickest == busiest {
            ", which is ahead both ways".to_string()
        } else {
            format!(" for queries that are waited for one after another, {busiest} for many at once")
        };
        text += &pick;
    }
    let _ = write!(text, "\n    {few} in flight, p50: {}", times.join(", "));
    if crowd > few {
        let _ = write!(text, "\n    {crowd} in flight, thousands a second: {}", rates.join(", "));
    }
    text.push('\n');
    Some(text)
}
