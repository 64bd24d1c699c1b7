//! The clone, and what the child does until it executes its program.
//!
//! The child shares the memory of its parent (CLONE_VM) until it executes, and the parent's thread waits for that
//! (CLONE_VFORK), as in posix_spawn. So a start costs the same whatever the size of the parent, and the child reports a
//! failure by writing it into a variable. In return the child may not allocate, lock or panic: whatever it needs is
//! prepared before.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rustix::process::DumpableBehavior;
use serde::{Deserialize, Serialize};

use super::command::{LISTEN_PID_VARIABLE, Launch};

/// Held while a child that shares this memory may change whether it can be dumped.
static DUMPABLE: Mutex<()> = Mutex::new(());

/// Where a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Reading the request.
    Request,
    /// The clone.
    Clone,
    /// The process group.
    Group,
    /// The session.
    Session,
    /// Placing or closing descriptors.
    Descriptors,
    /// The controlling terminal.
    Terminal,
    /// The resource limit with this index.
    Limit(u32),
    /// The nice value.
    Nice,
    /// Supplementary groups, group or user.
    Identity,
    /// PR_SET_PDEATHSIG.
    DeathSignal,
    /// The parent died before PR_SET_PDEATHSIG was in force.
    Orphaned,
    /// The working directory.
    Directory,
    /// The program itself.
    Program,
}

/// A start that failed: the stage and the errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) errno: i32,
}

/// Starts processes, one at a time. A process that it started is killed when the thread that started it ends.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Stack,
    null: OwnedFd,
    /// The limits of open descriptors that a child gets where its launch names none; none is those of this process.
    descriptors: Option<(u64, u64)>,
}

impl Spawner {
    /// Allocates the stack that children run on until they execute.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?;
        Ok(Spawner { stack: Stack::new()?, null, descriptors: None })
    }

    /// Gives children these limits of open descriptors, the soft one and the hard one, where their launches name none.
    pub(crate) fn give_descriptor_limit(&mut self, limits: (u64, u64)) {
        self.descriptors = Some(limits);
    }

    /// Starts `launch` with `sources` as the descriptors of its targets. When this returns a pid, the program is
    /// executing; when it returns a failure, no process is left.
    ///
    /// It lasts as long as the kernel takes to find and open the program, which a network file system that does not
    /// answer can make long.
    pub(crate) fn spawn(&mut self, launch: &Launch<'_>, sources: &[BorrowedFd<'_>]) -> Result<i32, Failure> {
        if sources.len() != launch.targets.len() {
            return Err(Failure { stage: Stage::Descriptors, errno: libc::EBADF });
        }
        let argv = pointers(launch.argv.0);
        let mut env = pointers(launch.env.0);
        let listen_pid = launch.listens.then(PidVariable::new);
        if let Some(variable) = &listen_pid {
            // In front of the null pointer at the end.
            env.insert(0, variable.text());
        }
        let placing = Placing::new(launch, sources, self.null.as_raw_fd());
        let plan = Plan {
            program: launch.program.0.as_ptr().cast(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: launch.cwd.0.as_ptr().cast(),
            placing: &placing,
            listen_pid: listen_pid.as_ref(),
            descriptors: self.descriptors,
            launch,
            parent: std::process::id() as libc::pid_t,
            failure: Cell::new(None),
        };
        // One at a time where that flag changes, so that each finds it as it should be.
        let changes_user = launch.uid.or(launch.gid).is_some();
        let alone = changes_user.then(|| DUMPABLE.lock().unwrap_or_else(PoisonError::into_inner));
        let dumpable = alone.as_ref().and_then(|_| rustix::process::dumpable_behavior().ok());
        let blocked = BlockedSignals::new();
        // SAFETY: the stack is 16-byte aligned at its top, mapped, and used by no other child, for `&mut self` is held
        // until the child has executed or ended (CLONE_VFORK). `child` keeps to what a child that shares memory with its
        // stopped parent may do. `plan` and all that it points to live until the clone returns.
        let pid = unsafe {
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            libc::clone(child, self.stack.top(), flags, ptr::from_ref(&plan).cast_mut().cast::<c_void>())
        };
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        drop(blocked);
        // A child that changes its user makes the memory that it shares undumpable, and with it the parent.
        if dumpable == Some(DumpableBehavior::Dumpable) {
            let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
        }
        drop(alone);
        if pid < 0 {
            return Err(Failure { stage: Stage::Clone, errno });
        }
        match plan.failure.get() {
            None => Ok(pid),
            Some(failure) => {
                // It has called _exit. A host that ignores SIGCHLD has it reaped by the kernel: then this says ECHILD.
                let _ = super::wait::reap(pid);
                Err(failure)
            }
        }
    }
}

/// What the child needs, all prepared.
struct Plan<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    placing: &'a Placing,
    listen_pid: Option<&'a PidVariable>,
    descriptors: Option<(u64, u64)>,
    launch: &'a Launch<'a>,
    parent: libc::pid_t,
    failure: Cell<Option<Failure>>,
}

/// `LISTEN_PID=` with room for a number, which only the process itself can know.
struct PidVariable {
    text: Vec<Cell<u8>>,
}

impl PidVariable {
    /// The digits of the largest pid that there can be, and a NUL.
    const ROOM: usize = 11;

    fn new() -> Self {
        let name = LISTEN_PID_VARIABLE.bytes().chain([b'=']);
        PidVariable { text: name.chain([0; Self::ROOM]).map(Cell::new).collect() }
    }

    fn text(&self) -> *const c_char {
        self.text.as_ptr().cast()
    }

    /// Neither locks nor allocates.
    fn write(&self, pid: libc::pid_t) {
        let mut place = LISTEN_PID_VARIABLE.len() + 1;
        let mut unit = 1_000_000_000;
        while unit > 0 {
            // Leading zeros are left out.
            if pid >= unit {
                if let Some(digit) = self.text.get(place) {
                    digit.set(b'0' + (pid / unit % 10) as u8);
                }
                place += 1;
            }
            unit /= 10;
        }
    }
}

/// Which descriptor goes where.
struct Placing {
    /// Source and target. The child replaces a source that stands in the way of a target.
    moves: Vec<(Cell<RawFd>, RawFd)>,
    /// The largest target.
    top: RawFd,
    /// The ranges to close, both ends included: all that is no target.
    gaps: Vec<(u32, u32)>,
}

impl Placing {
    fn new(launch: &Launch<'_>, sources: &[BorrowedFd<'_>], null: RawFd) -> Self {
        let mut moves: Vec<_> = sources
            .iter()
            .zip(&launch.targets)
            .map(|(source, target)| (Cell::new(source.as_raw_fd()), *target))
            .collect();
        for standard in 0..3 {
            if !launch.targets.contains(&standard) {
                moves.push((Cell::new(null), standard));
            }
        }
        let mut targets: Vec<u32> = moves.iter().map(|(_, target)| target.cast_unsigned()).collect();
        targets.sort_unstable();
        targets.dedup();
        let mut gaps = Vec::with_capacity(targets.len());
        let mut next = 0;
        for target in targets {
            if target > next {
                gaps.push((next, target - 1));
            }
            next = target + 1;
        }
        gaps.push((next, u32::MAX));
        Placing { moves, top: next.cast_signed() - 1, gaps }
    }
}

/// The child's life until it executes. It returns only to die.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its own `Plan`, and waits.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let Err(failure) = become_program(plan);
    plan.failure.set(Some(failure));
    // SAFETY: _exit ends this process alone; no destructor of the shared memory runs.
    unsafe { libc::_exit(127) }
}

fn become_program(plan: &Plan<'_>) -> Result<std::convert::Infallible, Failure> {
    let launch = plan.launch;
    // SAFETY: system calls on plain numbers, and on pointers that `Plan` keeps alive. None of these functions of libc
    // locks or allocates; those that would speak to other threads about a new user are called by number instead.
    unsafe {
        // Either way its number is that of its group.
        match launch.terminal {
            true => check(Stage::Session, libc::setsid())?,
            false => check(Stage::Group, libc::setpgid(0, 0))?,
        }
        // Before the limits: RLIMIT_NOFILE may leave no room for what is moved out of the way.
        place_descriptors(plan.placing)?;
        if launch.terminal {
            // 0: from a session that has it already it is not taken.
            check(Stage::Terminal, libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        if let Some((soft, hard)) = plan.descriptors {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            check(Stage::Descriptors, libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
        }
        for (index, (resource, soft, hard)) in launch.limits.iter().enumerate() {
            let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
            check(Stage::Limit(index as u32), libc::setrlimit(*resource as _, &raw const limit))?;
        }
        if let Some(nice) = launch.nice {
            check(Stage::Nice, libc::setpriority(libc::PRIO_PROCESS, 0, nice))?;
        }
        change_identity(launch)?;
        // After the change of user, which clears it.
        check(Stage::DeathSignal, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0))?;
        if libc::getppid() != plan.parent {
            return Err(Failure { stage: Stage::Orphaned, errno: libc::ESRCH });
        }
        check(Stage::Directory, libc::chdir(plan.cwd))?;
        if let Some(variable) = plan.listen_pid {
            variable.write(libc::getpid());
        }
        default_signals();
        libc::execve(plan.program, plan.argv, plan.env);
        Err(Failure { stage: Stage::Program, errno: errno() })
    }
}

/// # Safety
///
/// Only in a process whose descriptors nobody else uses: it closes all of them but the targets.
unsafe fn place_descriptors(placing: &Placing) -> Result<(), Failure> {
    let stage = Stage::Descriptors;
    // First all sources above all targets, so that no target overwrites a source that is still needed.
    for (source, _) in &placing.moves {
        if source.get() <= placing.top {
            // SAFETY: a system call on plain numbers.
            let moved = unsafe { libc::fcntl(source.get(), libc::F_DUPFD_CLOEXEC, placing.top + 1) };
            check(stage, moved)?;
            source.set(moved);
        }
    }
    for (source, target) in &placing.moves {
        // SAFETY: a system call on plain numbers.
        check(stage, unsafe { libc::dup2(source.get(), *target) })?;
    }
    for (first, last) in &placing.gaps {
        // SAFETY: a system call on plain numbers; the caller lets these descriptors be closed.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) };
        check(stage, closed as c_int)?;
    }
    Ok(())
}

/// # Safety
///
/// Only in a process of its own: by number, these calls change one thread, which is right only where there is but one.
unsafe fn change_identity(launch: &Launch<'_>) -> Result<(), Failure> {
    let stage = Stage::Identity;
    if launch.uid.is_none() && launch.gid.is_none() {
        return Ok(());
    }
    // SAFETY: system calls on plain numbers; an empty list of groups needs no pointer.
    unsafe {
        if libc::geteuid() == 0 {
            check(stage, libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) as c_int)?;
        }
        if let Some(gid) = launch.gid {
            check(stage, libc::syscall(libc::SYS_setresgid, gid, gid, gid) as c_int)?;
        }
        if let Some(uid) = launch.uid {
            check(stage, libc::syscall(libc::SYS_setresuid, uid, uid, uid) as c_int)?;
        }
    }
    Ok(())
}

/// Sets every signal to its default, then lets all of them in. In this order, and last of all: until the program executes, a
/// handler of the parent would run in memory that the parent shares.
///
/// # Safety
///
/// Only in a process that has a table of signal handlers of its own.
unsafe fn default_signals() {
    let default = [0_u64; 4]; // at least as large as the kernel's sigaction: handler SIG_DFL, no flags, no mask
    let none = 0_u64;
    for signal in 1..=64 {
        // SAFETY: the kernel reads a sigaction and a mask of 8 bytes from live locals. KILL and STOP are refused, which
        // changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<c_void>(), 8) };
    }
    // SAFETY: as above.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null_mut::<c_void>(), 8);
    }
}

fn check(stage: Stage, result: c_int) -> Result<(), Failure> {
    if result < 0 { Err(Failure { stage, errno: errno() }) } else { Ok(()) }
}

fn errno() -> i32 {
    // SAFETY: the address of the errno of this thread, which a child of CLONE_VM shares with its waiting parent.
    unsafe { *libc::__errno_location() }
}

/// Pointers to the NUL-terminated strings in `block`, and a null pointer.
fn pointers(block: &[u8]) -> Vec<*const c_char> {
    let mut pointers: Vec<*const c_char> = block
        .split_inclusive(|byte| *byte == 0)
        .filter(|text| text.ends_with(&[0]))
        .map(|text| text.as_ptr().cast())
        .collect();
    pointers.push(ptr::null());
    pointers
}

/// All signals blocked for this thread, the two that glibc keeps to itself included, until the drop.
struct BlockedSignals {
    before: u64,
}

impl BlockedSignals {
    fn new() -> Self {
        let (all, mut before) = (u64::MAX, 0_u64);
        // SAFETY: the kernel reads and writes masks of 8 bytes in live locals.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, 8) };
        BlockedSignals { before }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the kernel reads a mask of 8 bytes from a live field.
        unsafe {
            let none = ptr::null_mut::<c_void>();
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const self.before, none, 8);
        }
    }
}

/// Memory for a child to run on, with an inaccessible page below it.
#[derive(Debug)]
struct Stack {
    base: *mut c_void,
}

impl Stack {
    /// The deepest path needs about 2 KiB in a debug build.
    const SIZE: usize = 64 * 1024;
    const GUARD: usize = 4096;

    fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
            libc::mmap(ptr::null_mut(), Self::SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Stack { base };
        // SAFETY: the lowest page of the mapping that was just made.
        if unsafe { libc::mprotect(base, Self::GUARD, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn top(&self) -> *mut c_void {
        self.base.wrapping_byte_add(Self::SIZE)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; whoever ran on it has executed or ended.
        unsafe { libc::munmap(self.base, Self::SIZE) };
    }
}

// SAFETY: a mapping belongs to the process, not to a thread, and only the owner hands it out.
unsafe impl Send for Stack {}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::super::command::{Command, Packed};
    use super::super::wait;
    use super::*;
    use crate::machine::exit::ExitStatus;

    fn start(command: &Command) -> Result<i32, Failure> {
        let packed = Packed::new(command, &command.program, Path::new("/"), "test").unwrap();
        let sources: Vec<_> = command.fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        Spawner::new().unwrap().spawn(&packed.launch(), &sources)
    }

    #[test]
    fn gaps_are_all_that_is_no_target() {
        let mut command = Command::new("/bin/true", "a");
        let null = std::sync::Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        command.fds = vec![(3, null.clone()), (10, null)];
        let packed = Packed::new(&command, &command.program, Path::new("/"), "test").unwrap();
        let sources: Vec<_> = command.fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        let placing = Placing::new(&packed.launch(), &sources, 9);
        assert_eq!(placing.gaps, [(4, 9), (11, u32::MAX)]);
        assert_eq!(placing.top, 10);
        assert_eq!(placing.moves.len(), 5);
    }

    #[test]
    fn a_program_runs_and_a_missing_one_is_a_failure_without_a_child() {
        let pid = start(&Command::new("/bin/false", "a")).unwrap();
        assert_eq!(wait::reap(pid).unwrap().0, ExitStatus::Code(1));
        let failure = start(&Command::new("/no/such", "a")).unwrap_err();
        assert_eq!(failure, Failure { stage: Stage::Program, errno: libc::ENOENT });
    }
}
