//! A tool that runs, and all that it has started.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pty_process::blocking::{Command as OnTerminal, Pty, open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::find::Found;
use crate::mark::Mark;
use crate::problem::Problem;
use crate::process;
use crate::service::Services;
use crate::tool::{Stop, Tool};

/// How long a command may take that speaks to a tool.
const COMMAND: Duration = Duration::from_secs(30);

/// It ends with this.
pub(crate) struct Running<'run> {
    found: &'run Found,
    services: &'run Services,
    child: Child,
    terminal: Option<Arc<Pty>>,
    mark: Mark,
}

impl<'run> Running<'run> {
    /// Starts all services, and does not wait for them.
    pub(crate) fn start(found: &'run Found, services: &'run Services) -> Result<Self, Problem> {
        let mark = Mark::new();
        let (child, terminal) = match found.tool.needs_terminal() {
            true => on_terminal(found, services, &mark).map(|(child, pty)| (child, Some(pty)))?,
            false => (plainly(found, services, &mark, found.tool.up(), "stdout")?, None),
        };
        Ok(Running { found, services, child, terminal, mark })
    }

    /// Waits for a command that leaves the tool in the background.
    pub(crate) fn is_started(&mut self) -> Result<(), Problem> {
        if self.found.tool.goes_to_background() {
            wait(&mut self.child, self.found.tool.up()[0])?;
        }
        Ok(())
    }

    /// The processes of the tool: all but these services.
    pub(crate) fn own(&self, services: &[u32]) -> Vec<u32> {
        self.mark.pids().into_iter().filter(|pid| !services.contains(pid)).collect()
    }

    /// Who of these lives.
    pub(crate) fn living(&self, pids: &[u32]) -> usize {
        self.mark.pids().iter().filter(|pid| pids.contains(pid)).count()
    }

    /// Kills one of its services.
    pub(crate) fn kill_service(&self, pid: u32) -> Result<(), Problem> {
        self.mark.signal(pid, Signal::KILL).then_some(()).ok_or(Problem::NoProcess)
    }

    /// Kills the process that holds all together.
    pub(crate) fn kill(&mut self) -> Result<(), Problem> {
        let killed = self.mark.signal(self.main()?, Signal::KILL);
        if !self.found.tool.goes_to_background() {
            self.child.wait().map_err(Problem::io("its end"))?;
        }
        killed.then_some(()).ok_or(Problem::NoProcess)
    }

    /// Asks it to stop all services. Gives the command that does, to be waited for.
    pub(crate) fn stop(&self) -> Result<Option<Child>, Problem> {
        match self.found.tool.stop() {
            Stop::Command(word) => plainly(self.found, self.services, &self.mark, &[word], "stop").map(Some),
            Stop::Terminate => self.mark.signal(self.main()?, Signal::TERM).then_some(None).ok_or(Problem::NoProcess),
            Stop::Key(key) => {
                let mut terminal = self.terminal.as_deref().ok_or(Problem::NoProcess)?;
                terminal.write_all(key).map_err(Problem::io("its terminal"))?;
                Ok(None)
            }
        }
    }

    fn main(&self) -> Result<u32, Problem> {
        match self.found.tool {
            Tool::Pm => {
                let is_it = |pid: &u32| process::has_argument(*pid, "--in-background");
                self.mark.pids().into_iter().find(is_it).ok_or(Problem::NoProcess)
            }
            Tool::Pm2 => {
                let text = std::fs::read_to_string(self.services.dir().join("pm2/pm2.pid"));
                text.map_err(Problem::io("pm2.pid"))?.trim().parse().map_err(|_| Problem::NoProcess)
            }
            _ => Ok(self.child.id()),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Before the mark ends the others: it would start them anew.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command without a terminal.
fn plainly(found: &Found, services: &Services, mark: &Mark, args: &[&str], output: &str) -> Result<Child, Problem> {
    let dir = services.dir();
    let file = |name: &str| File::create(dir.join(name)).map_err(Problem::io("a file"));
    let mut command = Command::new(&found.program);
    command.args(args).current_dir(dir).envs(found.variables(dir));
    mark.set(&mut command);
    command.stdin(Stdio::null()).stdout(file(output)?).stderr(file("stderr")?);
    command.spawn().map_err(Problem::io(found.tool.name()))
}

/// A command on a terminal that is read, and shown nowhere.
fn on_terminal(found: &Found, services: &Services, mark: &Mark) -> Result<(Child, Arc<Pty>), Problem> {
    let failed = |error: pty_process::Error| Problem::io("a terminal")(std::io::Error::other(error));
    let (pty, pts) = open().map_err(failed)?;
    pty.resize(pty_process::Size::new(24, 80)).map_err(failed)?;
    let (name, value) = mark.variable();
    let command = OnTerminal::new(&found.program)
        .args(found.tool.up())
        .current_dir(services.dir())
        .envs(found.variables(services.dir()))
        .env(name, value);
    let child = command.spawn(pts).map_err(failed)?;
    let pty = Arc::new(pty);
    let reader = pty.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        // Its end is an error of a terminal that nobody has open any more.
        while (&*reader).read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    Ok((child, pty))
}

/// Waits for the end of a command that speaks to a tool.
pub(crate) fn wait(child: &mut Child, name: &str) -> Result<(), Problem> {
    if !ends_within(child.id(), COMMAND) {
        return Err(Problem::Late(name.to_string(), COMMAND));
    }
    child.wait().map_err(Problem::io(name))?;
    Ok(())
}

/// Whether a process has ended, or does within this time.
pub(crate) fn ends_within(pid: u32, limit: Duration) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    let Ok(end) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let limit = Timespec::try_from(limit).ok();
    poll(&mut [PollFd::new(&end, PollFlags::IN)], limit.as_ref()).is_ok_and(|ended| ended > 0)
}
