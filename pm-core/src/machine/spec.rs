//! How to start one thing. A [`Spec`] is built once and is right from then on.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::unit::Times;

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// This very program, which serves one of the roles that its `main` gave to `pm::roles`.
    Role(String),
    /// Another program: a path, or a name that is looked for along `PATH`.
    Path(OsString),
    /// Nothing: somebody else starts it, and it connects to the socket at this path.
    Visitor(PathBuf),
}

/// Who makes sure that the process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// The keeper: the whole tree ends with its unit, and with the manager, however that ends.
    #[default]
    Keeper,
    /// Nobody but the manager. See [`SpecBuilder::unguarded`].
    Unguarded,
}

/// Where the environment of the process comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inherit {
    /// All of the manager's environment, with the variables of the Spec on top.
    #[default]
    All,
    /// The variables of the Spec alone.
    Nothing,
    /// Those of the manager that are named by [`SpecBuilder::allow_env`], with the variables of the Spec on top.
    Listed,
}

/// A resource that a process may use up to a limit. The meaning of each is in setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of a core dump.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of the data segment.
    Data,
    /// Bytes of a file that it writes.
    FileSize,
    /// Bytes of memory that it locks.
    LockedMemory,
    /// Open descriptors; more exactly, one more than the largest.
    OpenFiles,
    /// Processes and threads of its user.
    Processes,
    /// Bytes of the stack.
    Stack,
}

impl Resource {
    /// The name as in setrlimit(2).
    pub const fn name(self) -> &'static str {
        match self {
            Resource::AddressSpace => "RLIMIT_AS",
            Resource::Core => "RLIMIT_CORE",
            Resource::Cpu => "RLIMIT_CPU",
            Resource::Data => "RLIMIT_DATA",
            Resource::FileSize => "RLIMIT_FSIZE",
            Resource::LockedMemory => "RLIMIT_MEMLOCK",
            Resource::OpenFiles => "RLIMIT_NOFILE",
            Resource::Processes => "RLIMIT_NPROC",
            Resource::Stack => "RLIMIT_STACK",
        }
    }
}

/// What happens to what a worker writes to its standard error (and, as a worker's prints go there, to its standard output).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stderr {
    /// Each line goes to the manager's standard error, after the name of the pool and the number of the worker, with control
    /// characters escaped.
    #[default]
    Forward,
    /// Only the tail is kept, for the error of a call whose worker died.
    Quiet,
}

/// A place where others reach a program. The manager binds it once, and all processes of the Spec accept from it: see [`SpecBuilder::listen`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenAddress {
    /// A TCP address. The port 0 has the kernel choose one.
    Tcp(SocketAddr),
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        ListenAddress::Tcp(address)
    }
}

impl From<PathBuf> for ListenAddress {
    fn from(path: PathBuf) -> Self {
        ListenAddress::Unix(path)
    }
}

impl From<&Path> for ListenAddress {
    fn from(path: &Path) -> Self {
        ListenAddress::Unix(path.to_owned())
    }
}

/// A TCP address with its port, or the path of a socket, which holds a slash or has `unix:` before it.
///
/// ```
/// use pm_core::machine::spec::ListenAddress;
///
/// assert_eq!("127.0.0.1:0".parse(), Ok(ListenAddress::Tcp(([127, 0, 0, 1], 0).into())));
/// assert_eq!("./run/api.sock".parse(), Ok(ListenAddress::Unix("./run/api.sock".into())));
/// assert_eq!("unix:api.sock".parse(), Ok(ListenAddress::Unix("api.sock".into())));
/// assert!("8080".parse::<ListenAddress>().is_err());
/// ```
impl FromStr for ListenAddress {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        match text.parse() {
            Ok(address) => Ok(ListenAddress::Tcp(address)),
            Err(_) => match text.strip_prefix("unix:") {
                Some(path) => Ok(ListenAddress::Unix(path.into())),
                None if text.contains('/') => Ok(ListenAddress::Unix(text.into())),
                None => Err(BadSpec::Address(text.to_string())),
            },
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The most listeners that one process can be given: a few of what it takes to be given descriptors at all.
pub const MAX_LISTENERS: usize = 64;

/// The longest path of a Unix socket, in bytes: what `sun_path` holds, without its NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// The longest name of a listener, in bytes, as sd_listen_fds_with_names(3) has it.
const MAX_LISTENER_NAME: usize = 255;

/// How to start one thing. Made by [`Spec::program`] or [`Spec::role`].
#[derive(Clone, PartialEq)]
pub struct Spec {
    program: Program,
    /// The role that a program is asked to serve.
    role: Option<String>,
    args: Vec<OsString>,
    inherit: Inherit,
    allowed: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    nice: Option<i32>,
    limits: Vec<(Resource, u64)>,
    uid: Option<u32>,
    gid: Option<u32>,
    guard: Guard,
    stderr: Stderr,
    listeners: Vec<(String, ListenAddress)>,
    times: Times,
}

/// A Spec in the making.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct SpecBuilder {
    spec: Spec,
}

/// Something that no process can be started with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadSpec {
    /// The program is the empty string.
    #[error("the program to run is empty; name one")]
    NoProgram,
    /// A string holds a NUL byte, which no argument or variable can.
    #[error("{what} holds a NUL byte: {value:?}")]
    Nul {
        /// Which string.
        what: &'static str,
        /// Its value, without what follows the NUL; of a variable only the name.
        value: String,
    },
    /// The name of a variable is empty or holds `=`.
    #[error("{0:?} cannot be the name of an environment variable")]
    EnvName(String),
    /// A niceness that does not exist.
    #[error("a niceness of {0}; it goes from -20 to 19")]
    Nice(i32),
    /// Text that is no place to listen on.
    #[error(
        "{0:?} is no place to listen on: give an address with its port, such as 127.0.0.1:8080, or a path with a slash, such as ./api.sock"
    )]
    Address(String),
    /// The path of a Unix socket is longer than the kernel takes.
    #[error("a socket path of {length} bytes; the kernel takes {MAX_SOCKET_PATH}: {path:?}")]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The name of a listener is empty, too long, or holds what it cannot.
    #[error(
        "{0:?} cannot be the name of a listener: it is 1 to {MAX_LISTENER_NAME} printable ASCII characters without a colon"
    )]
    ListenerName(String),
    /// Visitors were to be given listeners.
    #[error("visitors are not started, so they cannot be given listeners; leave out `listen`")]
    VisitorListens,
    /// More listeners than a process can be given.
    #[error("{0} listeners; one process can be given {MAX_LISTENERS}")]
    Listeners(usize),
    /// A time of zero where something needs time.
    #[error("{what} is zero; nothing could be done in it")]
    ZeroTime {
        /// Which time.
        what: &'static str,
    },
}

impl Spec {
    /// Runs another program: a path, or a name that is looked for along `PATH`. Never a shell.
    pub fn program(program: impl Into<OsString>) -> SpecBuilder {
        SpecBuilder { spec: Spec::new(Program::Path(program.into())) }
    }

    /// Runs this very program, in the role of this name.
    pub fn role(name: impl Into<String>) -> SpecBuilder {
        SpecBuilder { spec: Spec::new(Program::Role(name.into())) }
    }

    /// Runs nothing: whoever connects to the Unix socket at this path is taken. Of a Spec of this sort only the times count, and the role that is asked for.
    #[cfg_attr(not(feature = "driver"), expect(dead_code, reason = "only the driver takes visitors"))]
    pub(crate) fn visitor(path: impl Into<PathBuf>) -> SpecBuilder {
        SpecBuilder { spec: Spec::new(Program::Visitor(path.into())) }
    }

    fn new(program: Program) -> Self {
        Spec {
            program,
            role: None,
            args: Vec::new(),
            inherit: Inherit::All,
            allowed: Vec::new(),
            env: Vec::new(),
            cwd: None,
            nice: None,
            limits: Vec::new(),
            uid: None,
            gid: None,
            guard: Guard::Keeper,
            stderr: Stderr::Forward,
            listeners: Vec::new(),
            times: Times::default(),
        }
    }

    /// What runs.
    pub fn what(&self) -> &Program {
        &self.program
    }

    /// The role that it is asked to serve; none where it knows by itself.
    pub fn role_to_serve(&self) -> Option<&str> {
        match &self.program {
            Program::Role(role) => Some(role),
            Program::Path(_) | Program::Visitor(_) => self.role.as_deref(),
        }
    }

    /// Its arguments, without the program's name.
    pub fn args(&self) -> &[OsString] {
        &self.args
    }

    /// The name of the program, without its directory and its arguments, which may be secrets.
    ///
    /// ```
    /// use pm_core::machine::spec::Spec;
    ///
    /// assert_eq!(Spec::program("/usr/bin/psql").arg("--password=x").build()?.program_name(), "psql");
    /// # Ok::<(), pm_core::machine::spec::BadSpec>(())
    /// ```
    pub fn program_name(&self) -> String {
        match &self.program {
            Program::Role(role) => role.clone(),
            Program::Path(path) => Path::new(path).file_name().unwrap_or(path).to_string_lossy().into_owned(),
            Program::Visitor(path) => path.to_string_lossy().into_owned(),
        }
    }

    /// The program and its arguments as one would type them, for people.
    ///
    /// ```
    /// use pm_core::machine::spec::Spec;
    ///
    /// assert_eq!(Spec::program("echo").arg("a b").arg("").build()?.command_line(), "echo 'a b' ''");
    /// # Ok::<(), pm_core::machine::spec::BadSpec>(())
    /// ```
    pub fn command_line(&self) -> String {
        let program = match &self.program {
            Program::Role(role) => OsStr::new(role),
            Program::Path(path) => path,
            Program::Visitor(path) => path.as_os_str(),
        };
        let words = std::iter::once(program).chain(self.args.iter().map(OsString::as_os_str));
        words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    /// The same with these variables on top.
    #[cfg_attr(not(feature = "service"), expect(dead_code, reason = "only services tell a command what it is about"))]
    pub(crate) fn with_variables(&self, variables: Vec<(OsString, OsString)>) -> Spec {
        let mut spec = self.clone();
        spec.env.retain(|(known, _)| !variables.iter().any(|(name, _)| name == known));
        spec.env.extend(variables);
        spec
    }

    /// The whole environment of the process, given that of the manager.
    pub fn environment(&self, manager: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
        let inherited = manager.filter(|(name, _)| match self.inherit {
            Inherit::All => true,
            Inherit::Nothing => false,
            Inherit::Listed => self.allowed.contains(name),
        });
        let mut all: Vec<_> = inherited.filter(|(name, _)| !self.env.iter().any(|(own, _)| own == name)).collect();
        all.extend(self.env.iter().cloned());
        all
    }

    /// Its working directory; none is the manager's.
    pub fn cwd(&self) -> Option<&PathBuf> {
        self.cwd.as_ref()
    }

    /// Its niceness.
    pub fn nice(&self) -> Option<i32> {
        self.nice
    }

    /// Its limits, both soft and hard; of processor time the hard one is a second higher, so that the process dies of SIGXCPU.
    pub fn limits(&self) -> &[(Resource, u64)] {
        &self.limits
    }

    /// Its user and group.
    pub fn user(&self) -> (Option<u32>, Option<u32>) {
        (self.uid, self.gid)
    }

    /// Who makes sure that it ends.
    pub fn guard(&self) -> Guard {
        self.guard
    }

    /// Where its prints go.
    pub fn stderr(&self) -> Stderr {
        self.stderr
    }

    /// What it listens on, each with its name.
    pub fn listeners(&self) -> &[(String, ListenAddress)] {
        &self.listeners
    }

    /// The times that it has.
    pub fn times(&self) -> Times {
        self.times
    }
}

/// A word of a command line, in quotes where a shell would not take it as one word.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Values of variables may be secrets: only their names are shown.
impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&OsStr> = self.env.iter().map(|(name, _)| name.as_os_str()).collect();
        f.debug_struct("Spec")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("inherit", &self.inherit)
            .field("env", &names)
            .field("cwd", &self.cwd)
            .field("nice", &self.nice)
            .field("limits", &self.limits)
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("guard", &self.guard)
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

impl SpecBuilder {
    /// Asks a program that has several roles for this one: by HELLO and by `PM_ROLE`, as docs/PROTOCOL.md says. A worker that serves
    /// another one is a typed error. What [`Spec::role`] made has its role already.
    ///
    /// ```
    /// use pm_core::machine::spec::Spec;
    ///
    /// let spec = Spec::program("python3").arg("worker.py").serving("resize").build()?;
    /// assert_eq!(spec.role_to_serve(), Some("resize"));
    /// # Ok::<(), pm_core::machine::spec::BadSpec>(())
    /// ```
    pub fn serving(mut self, role: impl Into<String>) -> Self {
        self.spec.role = Some(role.into());
        self
    }

    /// Adds an argument. It reaches the process unchanged, whatever it holds.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.spec.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.spec.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable, on top of what is inherited.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        self.spec.env.retain(|(known, _)| *known != name);
        self.spec.env.push((name, value.into()));
        self
    }

    /// Inherits nothing: the environment is what [`SpecBuilder::env`] sets.
    pub fn replace_env(mut self) -> Self {
        self.spec.inherit = Inherit::Nothing;
        self
    }

    /// Inherits only this variable, and others named the same way.
    pub fn allow_env(mut self, name: impl Into<OsString>) -> Self {
        self.spec.inherit = Inherit::Listed;
        self.spec.allowed.push(name.into());
        self
    }

    /// Sets the working directory. A relative one is taken from the manager's.
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.spec.cwd = Some(cwd.into());
        self
    }

    /// Sets the niceness, from -20 to 19. Below the manager's own it needs privileges.
    pub fn nice(mut self, nice: i32) -> Self {
        self.spec.nice = Some(nice);
        self
    }

    /// Limits a resource.
    pub fn limit(mut self, resource: Resource, limit: u64) -> Self {
        self.spec.limits.retain(|(known, _)| *known != resource);
        self.spec.limits.push((resource, limit));
        self
    }

    /// Runs as this user. Needs privileges.
    pub fn uid(mut self, uid: u32) -> Self {
        self.spec.uid = Some(uid);
        self
    }

    /// Runs as this group. Needs privileges.
    pub fn gid(mut self, gid: u32) -> Self {
        self.spec.gid = Some(gid);
        self
    }

    /// Starts the process without the keeper, for programs that neither call `pm::roles` nor have `pm` installed. The process
    /// itself still ends with its manager; what it started does not, and strays that left its group outlive it.
    pub fn unguarded(mut self) -> Self {
        self.spec.guard = Guard::Unguarded;
        self
    }

    /// Chooses what happens to prints. [`Stderr::Forward`] by default.
    pub fn stderr(mut self, stderr: Stderr) -> Self {
        self.spec.stderr = stderr;
        self
    }

    /// Listens there, for all processes of this Spec: the manager binds the address once, when the pool starts, and keeps it for as long as the pool lives.
    /// So a process that dies or is replaced costs no connection that it had not accepted.
    ///
    /// A process is given its listeners as systemd gives them: as the descriptors from 3 on, with `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` in its
    /// environment. Programs that know socket activation work unchanged; a worker of pm asks `pm::take_listeners()`.
    ///
    /// The name of the listener is `unknown`, as there; see [`listen_as`](Self::listen_as).
    pub fn listen(self, on: impl Into<ListenAddress>) -> Self {
        self.listen_as("unknown", on)
    }

    /// The same with a name, for programs that have several. Of 1 to 255 printable ASCII characters without a colon.
    pub fn listen_as(mut self, name: impl Into<String>, on: impl Into<ListenAddress>) -> Self {
        self.spec.listeners.push((name.into(), on.into()));
        self
    }

    /// How long the process may take until READY. 30 s by default.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.spec.times.start = limit;
        self
    }

    /// How long it may take to leave once its work is done, and again from SIGTERM to SIGKILL. 2 s by default.
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.spec.times.stop_grace = grace;
        self
    }

    /// The finished Spec.
    ///
    /// # Errors
    /// [`BadSpec`] names the value that no process can be started with.
    pub fn build(self) -> Result<Spec, BadSpec> {
        let spec = self.spec;
        match &spec.program {
            Program::Role(_) => {}
            Program::Path(path) if path.is_empty() => return Err(BadSpec::NoProgram),
            Program::Path(path) => no_nul("the program", path)?,
            Program::Visitor(path) => socket_path(path)?,
        }
        no_nul("the role", OsStr::new(spec.role_to_serve().unwrap_or_default()))?;
        for arg in &spec.args {
            no_nul("an argument", arg)?;
        }
        for (name, value) in &spec.env {
            let bytes = name.as_encoded_bytes();
            if bytes.is_empty() || bytes.contains(&b'=') || bytes.contains(&0) {
                return Err(BadSpec::EnvName(name.to_string_lossy().into_owned()));
            }
            if value.as_encoded_bytes().contains(&0) {
                let value = name.to_string_lossy().into_owned();
                return Err(BadSpec::Nul { what: "the value of a variable", value });
            }
        }
        if let Some(cwd) = &spec.cwd {
            no_nul("the working directory", cwd.as_os_str())?;
        }
        if let Some(nice) = spec.nice
            && !(-20..=19).contains(&nice)
        {
            return Err(BadSpec::Nice(nice));
        }
        if spec.listeners.len() > MAX_LISTENERS {
            return Err(BadSpec::Listeners(spec.listeners.len()));
        }
        for (name, on) in &spec.listeners {
            let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
            if !(1..=MAX_LISTENER_NAME).contains(&name.len()) || !name.bytes().all(printable) {
                return Err(BadSpec::ListenerName(name.clone()));
            }
            if let ListenAddress::Unix(path) = on {
                socket_path(path)?;
            }
        }
        if let (Program::Visitor(_), false) = (&spec.program, spec.listeners.is_empty()) {
            return Err(BadSpec::VisitorListens);
        }
        if spec.times.start.is_zero() {
            return Err(BadSpec::ZeroTime { what: "the time to start" });
        }
        Ok(spec)
    }
}

fn socket_path(path: &Path) -> Result<(), BadSpec> {
    no_nul("the path of a socket", path.as_os_str())?;
    match path.as_os_str().len() {
        1..=MAX_SOCKET_PATH => Ok(()),
        length => Err(BadSpec::SocketPath { path: path.to_owned(), length }),
    }
}

fn no_nul(what: &'static str, value: &OsStr) -> Result<(), BadSpec> {
    match value.as_encoded_bytes().iter().position(|&byte| byte == 0) {
        None => Ok(()),
        Some(_) => {
            let text = value.to_string_lossy();
            let before = text.split('\0').next().unwrap_or_default().to_string();
            Err(BadSpec::Nul { what, value: before })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_named() {
        let check = |builder: SpecBuilder, text: &str| {
            let message = builder.build().unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        };
        check(Spec::program(""), "empty");
        check(Spec::program("a\0b"), "the program holds a NUL byte: \"a\"");
        check(Spec::program("x").arg("\0"), "an argument");
        check(Spec::program("x").serving("a\0"), "the role holds a NUL byte: \"a\"");
        check(Spec::program("x").env("A=B", "1"), "A=B");
        check(Spec::program("x").nice(20), "20");
        let local = || ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
        check(Spec::program("x").listen_as("a:b", local()), "\"a:b\" cannot be the name");
        check(Spec::program("x").listen_as("", local()), "\"\" cannot be the name");
        check(Spec::program("x").listen(PathBuf::from("x".repeat(108))), "108 bytes");
        check(Spec::program("x").listen(Path::new("")), "0 bytes");
        check(Spec::visitor("x".repeat(108)), "108 bytes");
        check(Spec::visitor("x").listen(local()), "visitors are not started");
        check((0..65).fold(Spec::program("x"), |spec, _| spec.listen(local())), "65 listeners");
        check(Spec::program("x").start_timeout(Duration::ZERO), "time to start");
    }

    #[test]
    fn the_environment_is_merged_replaced_or_listed() {
        let manager = || [("PATH", "/bin"), ("SECRET", "1")].map(|(k, v)| (k.into(), v.into())).into_iter();
        let names = |spec: SpecBuilder| {
            let all = spec.build().unwrap().environment(manager());
            all.into_iter().map(|(k, v)| format!("{}={}", k.display(), v.display())).collect::<Vec<_>>()
        };
        assert_eq!(names(Spec::program("x").env("PATH", "/opt")), ["SECRET=1", "PATH=/opt"]);
        assert_eq!(names(Spec::program("x").env("A", "1").replace_env()), ["A=1"]);
        assert_eq!(names(Spec::program("x").env("A", "1").allow_env("PATH")), ["PATH=/bin", "A=1"]);
    }

    #[test]
    fn debug_shows_no_secret() {
        let spec = Spec::program("x").env("TOKEN", "hunter2");
        assert!(!format!("{spec:?}").contains("hunter2"));
        assert!(format!("{spec:?}").contains("TOKEN"));
    }
}
