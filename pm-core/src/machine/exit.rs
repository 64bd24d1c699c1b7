//! How a process ended, and the names of signals.

use std::fmt;
use std::str::FromStr;

/// How a process ended.
///
/// ```
/// use pm_core::machine::exit::ExitStatus;
///
/// assert_eq!(ExitStatus::Code(3).to_string(), "exit code 3");
/// assert_eq!(ExitStatus::Signal { signal: 11, core: true }.to_string(), "killed by SIGSEGV (core dumped)");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    /// It exited by itself with this code.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// The number of the signal.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core: bool,
    },
    /// It has ended, and nobody can say how: the keeper died first and took the status with it, or the program collects
    /// the statuses of all its children itself.
    Lost,
}

impl ExitStatus {
    /// Whether it ended by itself with code 0.
    pub const fn success(self) -> bool {
        matches!(self, ExitStatus::Code(0))
    }

    /// The exit code, if it ended by itself.
    pub const fn code(self) -> Option<i32> {
        match self {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal { .. } | ExitStatus::Lost => None,
        }
    }

    /// The signal that killed it, if one did.
    pub const fn signal(self) -> Option<Signal> {
        match self {
            ExitStatus::Signal { signal, .. } => Some(Signal(signal)),
            ExitStatus::Code(_) | ExitStatus::Lost => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ExitStatus::Code(code) => write!(f, "exit code {code}"),
            ExitStatus::Signal { signal, core: false } => write!(f, "killed by {}", Signal(signal)),
            ExitStatus::Signal { signal, core: true } => write!(f, "killed by {} (core dumped)", Signal(signal)),
            ExitStatus::Lost => f.write_str("ended, exit status unknown"),
        }
    }
}

/// A signal by its Linux number. It is written as `SIGTERM`, and read as `SIGTERM`, `TERM`, `term` or `15`.
///
/// ```
/// use pm_core::machine::exit::Signal;
///
/// assert_eq!("term".parse(), Ok(Signal::TERM));
/// assert_eq!(Signal(35).to_string(), "SIGRTMIN+1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(pub i32);

impl Signal {
    /// Hang up: by convention, read the configuration again.
    pub const HUP: Signal = Signal(1);
    /// Interrupt, as by Ctrl-C.
    pub const INT: Signal = Signal(2);
    /// Quit, with a core dump unless it is handled.
    pub const QUIT: Signal = Signal(3);
    /// Abort.
    pub const ABRT: Signal = Signal(6);
    /// Kill, which no process can handle.
    pub const KILL: Signal = Signal(9);
    /// The program's own, first.
    pub const USR1: Signal = Signal(10);
    /// Segmentation fault.
    pub const SEGV: Signal = Signal(11);
    /// The program's own, second.
    pub const USR2: Signal = Signal(12);
    /// Please end.
    pub const TERM: Signal = Signal(15);
    /// Go on after a stop.
    pub const CONT: Signal = Signal(18);
    /// Stop, which no process can handle.
    pub const STOP: Signal = Signal(19);

    /// The name, such as `SIGTERM`; none for real-time signals and for numbers that are no signal.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.0) {
            (Some(name), _) => f.write_str(name),
            (None, FIRST_REAL_TIME) => f.write_str("SIGRTMIN"),
            (None, number @ FIRST_REAL_TIME..=LAST) => write!(f, "SIGRTMIN+{}", number - FIRST_REAL_TIME),
            (None, number) => write!(f, "signal {number}"),
        }
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownSignal { text: text.to_owned() };
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse::<i32>() {
            return if (1..=LAST).contains(&number) { Ok(Signal(number)) } else { Err(unknown()) };
        }
        let short = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(offset) = short.strip_prefix("RTMIN") {
            let offset = match offset {
                "" => 0,
                _ => offset.strip_prefix('+').and_then(|digits| digits.parse::<i32>().ok()).ok_or_else(unknown)?,
            };
            let in_range = (0..=LAST - FIRST_REAL_TIME).contains(&offset);
            return if in_range { Ok(Signal(FIRST_REAL_TIME + offset)) } else { Err(unknown()) };
        }
        let known = NAMES.iter().find(|(_, name)| name.strip_prefix("SIG") == Some(short));
        known.map(|(number, _)| Signal(*number)).ok_or_else(unknown)
    }
}

/// A text that names no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no signal is called {text:?}: write a name such as SIGTERM or TERM, or a number from 1 to 64")]
pub struct UnknownSignal {
    text: String,
}

/// What glibc and musl call SIGRTMIN; they keep 32 and 33 (and musl 34) to themselves.
const FIRST_REAL_TIME: i32 = 34;

/// The largest signal number on Linux.
const LAST: i32 = 64;

/// The numbers of x86, ARM, RISC-V, LoongArch, s390 and POWER; MIPS and SPARC differ.
const NAMES: [(i32, &str); 31] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (10, "SIGUSR1"),
    (11, "SIGSEGV"),
    (12, "SIGUSR2"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (16, "SIGSTKFLT"),
    (17, "SIGCHLD"),
    (18, "SIGCONT"),
    (19, "SIGSTOP"),
    (20, "SIGTSTP"),
    (21, "SIGTTIN"),
    (22, "SIGTTOU"),
    (23, "SIGURG"),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (26, "SIGVTALRM"),
    (27, "SIGPROF"),
    (28, "SIGWINCH"),
    (29, "SIGIO"),
    (30, "SIGPWR"),
    (31, "SIGSYS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_sentences() {
        assert_eq!(ExitStatus::Code(0).to_string(), "exit code 0");
        assert_eq!(ExitStatus::Signal { signal: 9, core: false }.to_string(), "killed by SIGKILL");
        assert_eq!(ExitStatus::Signal { signal: 6, core: true }.to_string(), "killed by SIGABRT (core dumped)");
        assert_eq!(ExitStatus::Signal { signal: 99, core: false }.to_string(), "killed by signal 99");
        assert_eq!(ExitStatus::Lost.to_string(), "ended, exit status unknown");
    }

    #[test]
    fn every_signal_reads_back_as_it_was_written() {
        for number in (1..=31).chain(FIRST_REAL_TIME..=LAST) {
            assert_eq!(Signal(number).to_string().parse(), Ok(Signal(number)));
            assert_eq!(number.to_string().parse(), Ok(Signal(number)));
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "SIG", "SIGFOO", "0", "65", "-9", "RTMIN+31", "RTMIN-1", "TERM "] {
            let parsed = text.parse::<Signal>();
            assert_eq!(parsed.is_ok(), text == "TERM ", "{text:?} gave {parsed:?}");
        }
    }
}
