//! What a process uses, as /proc says it. Only processes of this manager are looked at, one by one.

use std::fs;
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};

#[cfg(feature = "service")]
pub use crate::machine::metrics::TreeUsage;

/// Bytes that a process has resident; none where it is gone.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    // size resident shared text lib data dt, in pages
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

/// The processor time that a process has had, its threads included; none where it is gone.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    let [user, system, _, _] = cpu_ticks(pid)?;
    Some(of_ticks(user + system))
}

/// The same with that of its children that have ended and that it has waited for, and of theirs.
#[cfg(feature = "service")]
fn cpu_time_with_children(pid: u32) -> Option<Duration> {
    Some(of_ticks(cpu_ticks(pid)?.into_iter().sum()))
}

/// Its own time in programs and in the kernel, and that of its children.
fn cpu_ticks(pid: u32) -> Option<[u64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, parentheses too. Behind it: state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime
    // cutime cstime
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some([ticks()?, ticks()?, ticks()?, ticks()?])
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
}

/// At most so many processes of one tree are looked at.
#[cfg(feature = "service")]
const MOST_OF_A_TREE: usize = 4096;

/// What a process and its descendants use; none where it is gone. Looks at these processes and at no other.
#[cfg(feature = "service")]
pub fn tree(root: u32) -> Option<TreeUsage> {
    let mut all = TreeUsage::default();
    let mut pids = vec![root];
    let mut at = 0;
    while let Some(&pid) = pids.get(at) {
        at += 1;
        // It may end while this looks.
        let (Some(rss), Some(cpu)) = (resident(pid), cpu_time_with_children(pid)) else { continue };
        all.rss_bytes += rss;
        all.cpu += cpu;
        all.processes += 1;
        all.fds += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u32);
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            all.threads += 1;
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let room = MOST_OF_A_TREE.saturating_sub(pids.len());
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()).take(room));
        }
    }
    (all.processes > 0).then_some(all)
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

    /// A command that is over and was waited for is not forgotten: of a shell they are all there is.
    #[cfg(feature = "service")]
    #[test]
    fn time_of_children_that_have_ended_counts() {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "timeout 0.3 sh -c 'while :; do :; done'; echo; read line"]);
        let mut child = shell.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let usage = tree(child.id()).unwrap();
        assert!(usage.processes == 1 && usage.cpu >= Duration::from_millis(50), "{usage:?}");
        assert!(cpu_time(child.id()).unwrap() < usage.cpu);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[cfg(feature = "service")]
    #[test]
    fn a_tree_is_the_process_and_its_descendants() {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "sleep 100 & echo; wait"]);
        let mut child = shell.stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let usage = tree(child.id()).unwrap();
        assert_eq!((usage.processes, usage.threads), (2, 2));
        assert!(usage.rss_bytes > 100_000 && usage.fds >= 6, "{usage:?}");
        for pid in fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap().split_whitespace() {
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap(),
                rustix::process::Signal::KILL,
            )
            .unwrap();
        }
        child.wait().unwrap();
        assert_eq!(tree(u32::MAX), None);
    }
}
