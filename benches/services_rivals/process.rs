//! What `/proc` says of processes.

use std::fs::read_to_string;
use std::time::Duration;

/// The numbers of all processes.
pub(crate) fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A variable of a process that lives.
pub(crate) fn variable(pid: u32, name: &str) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables = bytes.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    variables
        .filter_map(|variable| variable.split_once('='))
        .find(|(it, _)| *it == name)
        .map(|(_, value)| value.to_string())
}

/// Whether one of its arguments is this.
pub(crate) fn has_argument(pid: u32, argument: &str) -> bool {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
}

/// Resident memory in MB, and the part of it that is its own (what processes share is divided among them).
pub(crate) fn memory(pid: u32) -> (f64, f64) {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / 1e6
    };
    (field("Rss:"), field("Pss:"))
}

/// How long its threads have been on a processor, with those that have ended, in the ticks of the kernel.
pub(crate) fn cpu(pid: u32) -> Duration {
    // The name may contain anything. Of what is behind it, utime and stime are the 12th and the 13th field.
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32
}
