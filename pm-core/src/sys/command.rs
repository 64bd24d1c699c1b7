//! One process to start, as plain data.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::machine::spec::Resource;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The variable by which the keeper knows whose stray a process is. [`launch`](crate::driver::launch::launch) sets it.
pub const UNIT_VARIABLE: &str = "PM_UNIT";

/// The variable that says which process listeners are meant for.
pub(crate) const LISTEN_PID_VARIABLE: &str = "LISTEN_PID";

/// The most descriptors that one process can be given. The kernel carries 253 in one message (SCM_MAX_FD); a few are
/// kept for pm itself.
pub const MAX_DESCRIPTORS: usize = 240;

/// One process to start. Nothing is looked up, expanded or inherited later: what stands here is what the process gets.
///
/// What a child has from nobody here (umask, scheduling class, control group, limits that are not named) it has from the
/// keeper, which took it from the manager when the keeper started.
#[derive(Clone)]
pub struct Command {
    /// The absolute path of the program. [`resolve_program`](crate::driver::launch::resolve_program) finds it.
    pub program: PathBuf,
    /// The arguments, with the one that the program sees as its own name first.
    pub argv: Vec<OsString>,
    /// The whole environment, but for `PM_UNIT`, which is added.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory; where there is none, the manager's at the time of the launch.
    pub cwd: Option<PathBuf>,
    /// The descriptors by their numbers in the child: exactly these and no other. Of 0, 1 and 2, those that are not named
    /// are `/dev/null`. At most [`MAX_DESCRIPTORS`].
    pub fds: Vec<(RawFd, Arc<OwnedFd>)>,
    /// Whether the process is to find its own number in `LISTEN_PID`, which nobody knows before it exists: its listeners are meant for it alone, and not for
    /// processes that it starts.
    pub listens: bool,
    /// Whether descriptor 0 is a terminal that is to be its controlling one. Then it leads a session of its own, not only a process group.
    pub terminal: bool,
    /// The nice value, from -20 (favoured) to 19.
    pub nice: Option<i32>,
    /// Resource limits: the resource, the soft limit, the hard one; `u64::MAX` is none.
    pub rlimits: Vec<(Resource, u64, u64)>,
    /// The user to become. Supplementary groups are dropped, the group stays unless `gid` is given too.
    pub uid: Option<u32>,
    /// The group to become.
    pub gid: Option<u32>,
    /// The name of the unit, for people who look at the environment of a process. It need not be unique.
    pub unit: String,
}

impl Command {
    /// `program` without arguments, with an empty environment and no descriptor but `/dev/null` three times.
    pub fn new(program: impl Into<PathBuf>, unit: impl Into<String>) -> Self {
        let program = program.into();
        Command {
            argv: vec![program.clone().into_os_string()],
            program,
            env: Vec::new(),
            cwd: None,
            fds: Vec::new(),
            listens: false,
            terminal: false,
            nice: None,
            rlimits: Vec::new(),
            uid: None,
            gid: None,
            unit: unit.into(),
        }
    }
}

/// Values of the environment may be secrets, so only their names are shown.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("argv", &self.argv)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("fds", &self.fds)
            .field("listens", &self.listens)
            .field("terminal", &self.terminal)
            .field("nice", &self.nice)
            .field("rlimits", &self.rlimits)
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("unit", &self.unit)
            .finish()
    }
}

/// The number that the kernel has for a resource.
#[cfg_attr(target_env = "gnu", expect(clippy::unnecessary_cast, reason = "musl has them as c_int"))]
const fn number_of(resource: Resource) -> u32 {
    let number = match resource {
        Resource::AddressSpace => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::Processes => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
    };
    number as u32
}

/// A [`Command`] whose strings are laid out as execve(2) wants them.
pub(crate) struct Packed {
    program: Vec<u8>,
    argv: Vec<u8>,
    env: Vec<u8>,
    cwd: Vec<u8>,
    targets: Vec<RawFd>,
    listens: bool,
    terminal: bool,
    limits: Vec<(u32, u64, u64)>,
    nice: Option<i32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Packed {
    /// Lays out `command`, with `cookie` as the value of [`UNIT_VARIABLE`], and with paths that are absolute.
    pub(crate) fn new(command: &Command, program: &Path, cwd: &Path, cookie: &str) -> Result<Self, NulByte> {
        let mut argv = Vec::with_capacity(256);
        for (index, argument) in command.argv.iter().enumerate() {
            append(&mut argv, &[argument.as_bytes()]).map_err(|_| NulByte { what: format!("argument {index}") })?;
        }
        let mut env = Vec::with_capacity(4096);
        append(&mut env, &[UNIT_VARIABLE.as_bytes(), b"=", cookie.as_bytes()])
            .map_err(|_| NulByte { what: "the name of the unit".to_owned() })?;
        let is_set_here = |name: &OsStr| name == UNIT_VARIABLE || command.listens && name == LISTEN_PID_VARIABLE;
        for (name, value) in command.env.iter().filter(|(name, _)| !is_set_here(name)) {
            append(&mut env, &[name.as_bytes(), b"=", value.as_bytes()])
                .map_err(|_| NulByte { what: format!("the environment variable {name:?}") })?;
        }
        Ok(Packed {
            program: terminated(program.as_os_str(), "the program")?,
            argv,
            env,
            cwd: terminated(cwd.as_os_str(), "the working directory")?,
            targets: command.fds.iter().map(|(target, _)| *target).collect(),
            listens: command.listens,
            terminal: command.terminal,
            limits: command.rlimits.iter().map(|(resource, soft, hard)| (number_of(*resource), *soft, *hard)).collect(),
            nice: command.nice,
            uid: command.uid,
            gid: command.gid,
        })
    }

    /// The bytes that the new process's strings take.
    pub(crate) fn len(&self) -> usize {
        self.program.len() + self.argv.len() + self.env.len()
    }

    pub(crate) fn launch(&self) -> Launch<'_> {
        Launch {
            program: Text(&self.program),
            argv: Text(&self.argv),
            env: Text(&self.env),
            cwd: Text(&self.cwd),
            targets: self.targets.clone(),
            listens: self.listens,
            terminal: self.terminal,
            limits: self.limits.clone(),
            nice: self.nice,
            uid: self.uid,
            gid: self.gid,
        }
    }
}

/// A process to start, as it travels to the keeper. Each text is NUL-terminated, `argv` and `env` are many of those.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch<'a> {
    #[serde(borrow)]
    pub(crate) program: Text<'a>,
    #[serde(borrow)]
    pub(crate) argv: Text<'a>,
    #[serde(borrow)]
    pub(crate) env: Text<'a>,
    #[serde(borrow)]
    pub(crate) cwd: Text<'a>,
    pub(crate) targets: Vec<RawFd>,
    /// It finds its own number in [`LISTEN_PID_VARIABLE`].
    pub(crate) listens: bool,
    /// It leads a session, and its descriptor 0 is the terminal of that.
    pub(crate) terminal: bool,
    pub(crate) limits: Vec<(u32, u64, u64)>,
    pub(crate) nice: Option<i32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// Bytes that are copied as a whole: serde would write a `&[u8]` one element at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'de [u8]>::deserialize(deserializer).map(Text)
    }
}

/// A text that is to become a C string holds a NUL byte.
#[derive(Debug)]
pub(crate) struct NulByte {
    pub(crate) what: String,
}

fn append(block: &mut Vec<u8>, parts: &[&[u8]]) -> Result<(), ()> {
    for part in parts {
        if part.contains(&0) {
            return Err(());
        }
        block.extend_from_slice(part);
    }
    block.push(0);
    Ok(())
}

fn terminated(text: &OsStr, what: &str) -> Result<Vec<u8>, NulByte> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    append(&mut bytes, &[text.as_bytes()]).map_err(|()| NulByte { what: what.to_owned() })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_command_survives_the_wire() {
        let mut command = Command::new("/bin/true", "a");
        command.argv.push("two\nlines".into());
        command.env = vec![("PM_UNIT".into(), "old".into()), ("X".into(), "1".into())];
        let packed = Packed::new(&command, Path::new("/bin/true"), Path::new("/"), "new").unwrap();
        let bytes = postcard::to_stdvec(&packed.launch()).unwrap();
        let launch: Launch<'_> = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(launch.program.0, b"/bin/true\0");
        assert_eq!(launch.argv.0, b"/bin/true\0two\nlines\0");
        assert_eq!(launch.env.0, b"PM_UNIT=new\0X=1\0");
        assert_eq!(launch.cwd.0, b"/\0");
    }

    #[test]
    fn nul_bytes_are_refused_by_name() {
        let mut command = Command::new("/bin/true", "a");
        command.argv.push("a\0b".into());
        let refused = Packed::new(&command, Path::new("/bin/true"), Path::new("/"), "a").err().unwrap();
        assert_eq!(refused.what, "argument 1");
    }

    #[test]
    fn debug_shows_no_value_of_the_environment() {
        let mut command = Command::new("/bin/true", "a");
        command.env.push(("TOKEN".into(), "hunter2".into()));
        let shown = format!("{command:?}");
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }
}
