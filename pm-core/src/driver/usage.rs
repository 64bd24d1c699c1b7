//! What a process uses, as /proc says it. Only processes of this manager are looked at, one by one.

use std::fs;
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};

/// Bytes that a process has resident; none where it is gone.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    // size resident shared text lib data dt, in pages
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

/// The processor time that a process has had, its threads included; none where it is gone.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, parentheses too. Behind it: state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let all = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(all as f64 / clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let memory = vec![1_u8; 32 << 20];
        let bytes = resident(std::process::id()).unwrap();
        assert!(bytes > std::hint::black_box(&memory).len() as u64, "{bytes}");
        assert!(cpu_time(std::process::id()).is_some());
        assert_eq!((resident(u32::MAX), cpu_time(u32::MAX)), (None, None));
    }
}
