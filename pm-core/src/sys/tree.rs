//! Who descends from whom, and killing all that do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::command::UNIT_VARIABLE;

/// Sends a signal to a process, or to a group if `pid` is negative. Errors mean that there is nobody to send it to.
///
/// Only for a pid that cannot have been reused: that of a child that has not been reaped, or of its group.
pub(crate) fn send(pid: i32, signal: i32) -> std::io::Result<()> {
    // SAFETY: a system call on plain numbers.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The children of this process, read again and again by one thread.
#[derive(Debug)]
pub(crate) struct OwnChildren {
    me: i32,
    file: Option<File>,
    text: Vec<u8>,
}

impl OwnChildren {
    /// For a process with one thread: children of other threads do not count.
    pub(crate) fn new() -> Self {
        let me = std::process::id() as i32;
        OwnChildren { me, file: File::open(children_path(me, me)).ok(), text: vec![0; 4096] }
    }

    /// The children, zombies included. Only processes that this one reaps leave the list, so none is overlooked.
    pub(crate) fn read(&mut self) -> Vec<i32> {
        let Some(file) = &self.file else { return scan().remove(&self.me).unwrap_or_default() };
        let mut length = 0;
        loop {
            if length == self.text.len() {
                self.text.resize(length * 2, 0);
            }
            match file.read_at(&mut self.text[length..], length as u64) {
                Ok(0) | Err(_) => break,
                Ok(read) => length += read,
            }
        }
        numbers(&self.text[..length]).collect()
    }
}

/// What was killed.
#[derive(Debug, Default)]
pub(crate) struct Culled {
    /// The pids and their starts, the roots among them, parents before children.
    pub(crate) killed: Vec<(i32, u64)>,
    /// Whether that was all. If not, what is left is found again by its cookie, as a child of the keeper.
    pub(crate) complete: bool,
}

/// How often one go looks at a tree. Where nothing but the time is missing, some 90 ms lie between the first look and the last: so long may a process of a machine
/// that is busy wait for the processor, and with that for its stop.
const MOST_PASSES: usize = 32;

/// From one look to the next where nothing new was found, at first; and how often that is doubled.
const PAUSE: Duration = Duration::from_micros(100);
const MOST_DOUBLINGS: u32 = 5;

/// Kills the children `roots` of this process and all that descend from them, at most `limit` processes in one go.
///
/// All of them are stopped first, parents before children and again until all have stopped and nobody new appears: a process that is stopped can
/// neither fork nor reap, so that no descendant slips away and no pid changes its owner while this looks. A fork that is under way when the signal
/// comes is finished first. `roots` must be unreaped children of this process.
pub(crate) fn cull(roots: &[i32], limit: usize) -> Culled {
    let me = std::process::id() as i32;
    let mut stopped = BTreeSet::new();
    let mut order = Vec::new();
    let mut complete = true;
    let mut pauses = 0;
    // Each pass finds what was forked before its parent was stopped in the pass before. More than a few passes happen
    // only if somebody outside continues what is stopped here, or a process is in the kernel for long.
    for pass in 1..=MOST_PASSES {
        let have_stopped = stopped.iter().all(|pid| has_stopped(*pid));
        let mut found = false;
        let mut lister = Lister::new();
        let mut queue: VecDeque<(i32, i32)> = roots.iter().map(|root| (*root, me)).collect();
        while let Some((pid, parent)) = queue.pop_front() {
            if !stopped.contains(&pid) {
                if stopped.len() >= limit {
                    complete = false;
                    break;
                }
                let Some(stat) = signal_exactly(pid, Signal::STOP, |stat| stat.parent == parent) else { continue };
                stopped.insert(pid);
                order.push((pid, stat.start));
                found = true;
            }
            queue.extend(lister.children(pid).into_iter().map(|child| (child, pid)));
        }
        if !complete || !found && have_stopped {
            break;
        }
        complete = pass < MOST_PASSES;
        if !found {
            std::thread::sleep(PAUSE * (1 << pauses.min(MOST_DOUBLINGS)));
            pauses += 1;
        }
    }
    for (pid, start) in &order {
        signal_exactly(*pid, Signal::KILL, |stat| stat.start == *start);
    }
    Culled { killed: order, complete }
}

/// So often it is looked again for those that may have executed a program when they were looked at, a millisecond apart.
const DOUBTS: u32 = 3;

/// Kills every process on this machine whose cookie begins with `prefix`, again and again until there is none or `limit` has
/// passed. It reads the environments of all processes, and is for the rare case that the keeper was killed.
pub(crate) fn cull_by_cookie(prefix: &[u8], limit: Duration) {
    let end = Instant::now() + limit;
    let mut doubts = 0;
    loop {
        let (mut found, mut in_doubt) = (false, false);
        for pid in processes() {
            let environment = environment(pid);
            in_doubt |= environment == Environment::Blank && stat(pid).is_some_and(|stat| stat.runs_a_program());
            let is_ours =
                |found: &Environment| matches!(found, Environment::Cookie(cookie) if cookie.starts_with(prefix));
            if is_ours(&environment) {
                // Looked at again while the pidfd is held, for the pid may have changed its owner meanwhile.
                found |= signal_exactly(pid, Signal::KILL, |_| is_ours(&self::environment(pid))).is_some();
            }
        }
        // One that executes a program at this moment says a moment later whose it is; of one that has no environment nobody ever knows.
        doubts = if found { 0 } else { doubts + 1 };
        if !found && (!in_doubt || doubts > DOUBTS) || Instant::now() >= end {
            return;
        }
        // There is no event to wait for: these are not our children. A killed process needs some time to end.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the environment of a process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// Whose it is.
    Cookie(Vec<u8>),
    /// Nothing about a unit, or it is not ours to read.
    Foreign,
    /// It reads as empty or as cut off: the process has none, executes a program at this moment, or has begun to end.
    Blank,
}

/// Bytes of an environment that are looked at. The kernel lets a program start with less; a process that points elsewhere
/// hides, and must not make whoever looks allocate without end.
const MOST_ENVIRONMENT: usize = 8 << 20;

/// What the environment of `pid` says.
///
/// A main thread that has ended has none any more, but those that go on without it have.
pub(crate) fn environment(pid: i32) -> Environment {
    let own = environment_in(&format!("/proc/{pid}/environ"));
    if own != Environment::Blank || stat(pid).is_none_or(|stat| stat.threads <= 1) {
        return own;
    }
    let others = threads(pid).map(|thread| environment_in(&format!("/proc/{pid}/task/{thread}/environ")));
    others.into_iter().find(|environment| *environment != Environment::Blank).unwrap_or(Environment::Blank)
}

fn environment_in(path: &str) -> Environment {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Environment::Blank,
        Err(_) => return Environment::Foreign,
    };
    // One call reads all of a usual environment. Between two calls the process may execute a program, and then the second
    // says that the end is reached.
    let mut text = vec![0; 128 * 1024];
    let mut length = 0;
    let mut calls = 0;
    loop {
        match file.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => break,
            Err(_) => return Environment::Foreign,
        }
        calls += 1;
        if length == MOST_ENVIRONMENT {
            break;
        }
        if length == text.len() {
            text.resize(length * 2, 0);
        }
    }
    text.truncate(length);
    match cookie_in(&text) {
        Some(cookie) => Environment::Cookie(cookie.to_vec()),
        None if length == MOST_ENVIRONMENT => Environment::Foreign,
        None if calls == 1 && text.ends_with(&[0]) => Environment::Foreign,
        None => Environment::Blank,
    }
}

/// The parts of `/proc/PID/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) flags: u64,
    /// How many threads it has, one that has ended and waits for the others included.
    pub(crate) threads: u32,
    /// Ticks from boot to start: with the pid, the identity of a process.
    pub(crate) start: u64,
}

impl Stat {
    /// Whether it runs no program any more: the kernel's flag PF_EXITING, or a zombie. All of this is said of its main thread, and
    /// others may go on without that.
    pub(crate) fn is_ending(&self) -> bool {
        self.threads <= 1 && (self.flags & 0x4 != 0 || matches!(self.state, b'Z' | b'X'))
    }

    /// Whether it runs a program: it is no thread of the kernel, and has not begun to end.
    fn runs_a_program(&self) -> bool {
        self.flags & 0x20_0000 == 0 && !self.is_ending()
    }

    /// Whether there is nothing left that could get a signal.
    fn is_gone(&self) -> bool {
        self.threads <= 1 && matches!(self.state, b'Z' | b'X')
    }
}

/// What the kernel says of `pid` now.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let mut text = [0; 512];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
    parse_stat(&text[..length])
}

/// Lists children of other processes, those of all their threads.
enum Lister {
    Files,
    /// Without CONFIG_PROC_CHILDREN: one look at all processes.
    Scan(BTreeMap<i32, Vec<i32>>),
}

impl Lister {
    fn new() -> Self {
        let me = std::process::id() as i32;
        if fs::exists(children_path(me, me)).unwrap_or(false) { Lister::Files } else { Lister::Scan(scan()) }
    }

    fn children(&mut self, pid: i32) -> Vec<i32> {
        match self {
            Lister::Scan(found) => found.get(&pid).cloned().unwrap_or_default(),
            Lister::Files => {
                let texts = threads(pid).filter_map(|thread| fs::read(children_path(pid, thread)).ok());
                texts.flat_map(|text| numbers(&text).collect::<Vec<_>>()).collect()
            }
        }
    }
}

/// Whether no thread of a process runs any more.
fn has_stopped(pid: i32) -> bool {
    let still = |thread: i32| {
        let mut text = [0; 512];
        let read = File::open(format!("/proc/{pid}/task/{thread}/stat")).and_then(|mut file| file.read(&mut text));
        let stat = read.ok().and_then(|length| parse_stat(&text[..length]));
        // One that is gone is as still as can be.
        stat.is_none_or(|stat| matches!(stat.state, b'T' | b't' | b'Z' | b'X'))
    };
    threads(pid).all(still)
}

/// Sends `signal` to `pid` if it is alive and is the process that `is_meant` knows. The pidfd is opened first, so that what
/// is looked at afterwards either is the process that gets the signal, or that process is gone and nobody gets it.
fn signal_exactly(pid: i32, signal: Signal, is_meant: impl Fn(&Stat) -> bool) -> Option<Stat> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let stat = stat(pid).filter(|stat| is_meant(stat) && !stat.is_gone())?;
    rustix::process::pidfd_send_signal(pidfd, signal).ok()?;
    Some(stat)
}

fn children_path(pid: i32, thread: i32) -> String {
    format!("/proc/{pid}/task/{thread}/children")
}

fn processes() -> impl Iterator<Item = i32> {
    numbered("/proc")
}

fn threads(pid: i32) -> impl Iterator<Item = i32> {
    numbered(&format!("/proc/{pid}/task"))
}

/// The entries of a directory that are numbers.
fn numbered(directory: &str) -> impl Iterator<Item = i32> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The children of every process, from one look at all of them.
fn scan() -> BTreeMap<i32, Vec<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in processes() {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    children
}

fn numbers(text: &[u8]) -> impl Iterator<Item = i32> + '_ {
    text.split(|byte| !byte.is_ascii_digit()).filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
}

/// Only what ends with a NUL byte: without one, it may have been cut off.
fn cookie_in(environ: &[u8]) -> Option<&[u8]> {
    environ
        .split_inclusive(|byte| *byte == 0)
        .find_map(|line| line.strip_prefix(UNIT_VARIABLE.as_bytes())?.strip_prefix(b"=")?.strip_suffix(&[0]))
}

/// The program's name stands in parentheses and may hold anything, parentheses and spaces included, so the fields are
/// counted from the last one.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&text[after..]).ok()?.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.bytes().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        flags: fields.nth(3)?.parse().ok()?,
        threads: fields.nth(10)?.parse().ok()?,
        start: fields.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_program_name_cannot_forge_its_stat() {
        let text = b"42 (a) R 1 (x) S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 0\n";
        let stat = Stat { state: b'S', parent: 7, group: 8, flags: 4_194_560, threads: 1, start: 12_345 };
        assert_eq!(parse_stat(text), Some(stat));
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b"42 (a) S 7"), None);
    }

    #[test]
    fn a_cookie_is_a_whole_variable() {
        assert_eq!(cookie_in(b"A=1\0PM_UNIT=x.1\0B=2\0"), Some(&b"x.1"[..]));
        assert_eq!(cookie_in(b"A=1\0PM_UNIT=x.1"), None);
        assert_eq!(cookie_in(b"A=PM_UNIT=x\0XPM_UNIT=y\0PM_UNITS=z\0"), None);
    }

    #[test]
    fn an_environment_without_end_is_not_read_to_its_end() {
        let path = std::env::temp_dir().join(format!("pm-environ-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        assert_eq!(environment_in(path.to_str().unwrap()), Environment::Foreign);
        file.set_len(0).unwrap();
        assert_eq!(environment_in(path.to_str().unwrap()), Environment::Blank);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn files_and_scan_list_the_same_children() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let (pid, me) = (child.id() as i32, std::process::id() as i32);
        assert!(Lister::Files.children(me).contains(&pid));
        assert!(Lister::Scan(scan()).children(me).contains(&pid));
        assert_eq!(stat(pid).unwrap().parent, me);
        let culled = cull(&[pid], 10);
        assert_eq!((culled.killed[0].0, culled.killed.len(), culled.complete), (pid, 1, true));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn what_forks_without_end_is_killed_to_the_last() {
        // Each forks on in a new session, which the kill of a group would not reach.
        let script = "while :; do setsid sleep 1000 & done";
        for _ in 0..20 {
            let cookie = format!("{}-{:?}", std::process::id(), Instant::now());
            let mark = format!("{UNIT_VARIABLE}={cookie}");
            let mut shell = std::process::Command::new("/bin/sh");
            // What survived would hold the output of this test open.
            shell.args(["-c", script]).env(UNIT_VARIABLE, &cookie).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = shell.spawn().unwrap();
            let pid = child.id() as i32;
            let end = Instant::now() + Duration::from_secs(20);
            while Lister::new().children(pid).len() < 5 {
                assert!(Instant::now() < end, "it does not fork");
                std::thread::yield_now();
            }
            // On a machine that is busy some may not stop in time. What they leave is found by the cookie.
            if !cull(&[pid], 4096).complete {
                cull_by_cookie(cookie.as_bytes(), Duration::from_secs(2));
            }
            child.wait().unwrap();
            let is_marked = |pid: &i32| {
                let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environ.split(|byte| *byte == 0).any(|line| line == mark.as_bytes())
                    && stat(*pid).is_some_and(|stat| !stat.is_ending())
            };
            // What was killed may need a moment to be gone.
            while let left @ [_, ..] = &*processes().filter(is_marked).collect::<Vec<_>>() {
                assert!(Instant::now() < end, "{left:?} live on");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_signal_meant_for_another_is_not_sent() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert_eq!(signal_exactly(pid, Signal::KILL, |stat| stat.start == 1), None);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
