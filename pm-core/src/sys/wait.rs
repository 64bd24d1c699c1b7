//! What became of children.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::exit::ExitStatus;

/// Something that happened to a child, not yet consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) pid: i32,
    pub(crate) kind: Kind,
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ended,
    Stopped { signal: i32 },
    Continued,
}

/// What the kernel counted for a child that has been reaped, its own reaped children included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) max_rss_bytes: u64,
}

/// Which children to look at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    Any,
    Pid(i32),
}

/// Looks at the next event and leaves it there, so that the pid stays taken until [`reap`] or [`consume_stop`].
/// `None`: nothing happened, or with `block` false nothing yet. `ECHILD`: there is no such child.
pub(crate) fn peek(whose: Whose, block: bool) -> io::Result<Option<Event>> {
    let wait = if block { 0 } else { libc::WNOHANG };
    waitid(whose, libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOWAIT | wait)
}

/// Takes the stop or continuation of `pid` that [`peek`] showed.
pub(crate) fn consume_stop(pid: i32) -> io::Result<()> {
    waitid(Whose::Pid(pid), libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG).map(drop)
}

/// Reaps `pid`, which has ended: from here on its number may belong to another process.
pub(crate) fn reap(pid: i32) -> io::Result<(ExitStatus, Counted)> {
    let mut status = 0;
    // SAFETY: a rusage is plain numbers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the types that wait4 writes.
        let reaped = unsafe { libc::wait4(pid, &mut status, 0, &mut usage) };
        if reaped == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let counted = Counted {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
    };
    Ok((decode(status), counted))
}

fn waitid(whose: Whose, options: i32) -> io::Result<Option<Event>> {
    let (kind, id) = match whose {
        Whose::Any => (libc::P_ALL, 0),
        Whose::Pid(pid) => (libc::P_PID, pid as libc::id_t),
    };
    // SAFETY: a siginfo_t is plain numbers, for which all zeros is a value; si_pid stays 0 if nothing happened.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the pointer is to a live local of the type that waitid writes.
        if unsafe { libc::waitid(kind, id, &mut info, options) } == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: waitid has filled in the members of SIGCHLD, or left the zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let kind = match info.si_code {
        libc::CLD_STOPPED | libc::CLD_TRAPPED => Kind::Stopped { signal: status },
        libc::CLD_CONTINUED => Kind::Continued,
        _ => Kind::Ended,
    };
    Ok(Some(Event { pid, kind }))
}

fn decode(status: i32) -> ExitStatus {
    if libc::WIFEXITED(status) {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    } else {
        ExitStatus::Signal { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_decode() {
        assert_eq!(decode(0), ExitStatus::Code(0));
        assert_eq!(decode(3 << 8), ExitStatus::Code(3));
        assert_eq!(decode(9), ExitStatus::Signal { signal: 9, core: false });
        assert_eq!(decode(11 | 0x80), ExitStatus::Signal { signal: 11, core: true });
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is reaped by its pid")]
    fn a_child_is_seen_before_it_is_reaped() {
        let child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id() as i32;
        assert_eq!(peek(Whose::Pid(pid), true).unwrap(), Some(Event { pid, kind: Kind::Ended }));
        assert_eq!(peek(Whose::Pid(pid), true).unwrap(), Some(Event { pid, kind: Kind::Ended }));
        assert_eq!(reap(pid).unwrap().0, ExitStatus::Code(7));
        assert_eq!(peek(Whose::Pid(pid), false).unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }
}
