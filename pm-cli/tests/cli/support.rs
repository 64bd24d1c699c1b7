//! Running `pm`, bounded in time, and looking for what it leaves behind.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// Far longer than anything here takes on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(120);

/// How long what a dead pm leaves may live: a second is promised; the rest is for a busy machine.
const AFTERLIFE: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A `pm` in the making.
pub(crate) struct Pm {
    command: Command,
    mark: String,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap_or_else(|_| panic!("no UTF-8: {self:?}"))
    }

    /// The objects of `--out json`.
    pub(crate) fn objects(&self) -> Vec<Value> {
        objects(&self.out)
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stderr: {}\nstdout: {}",
            self.err,
            String::from_utf8_lossy(&self.out[..self.out.len().min(2000)])
        );
        self
    }

    /// It ended with this code, without a result, and said this.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, parts: &[&str]) {
        let done = self.expect(code);
        assert_eq!(done.text(), "");
        for part in parts {
            assert!(done.err.contains(part), "{part:?} is not in {:?}", done.err);
        }
    }
}

pub(crate) fn objects(bytes: &[u8]) -> Vec<Value> {
    bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// `pm pool` with these arguments.
pub(crate) fn pool<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Pm {
    pm("pool", args)
}

/// Another command with these arguments.
pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Pm {
    pm(name, args)
}

/// `pm bench` with these arguments.
pub(crate) fn bench<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Pm {
    pm("bench", args)
}

fn pm<S: AsRef<std::ffi::OsStr>>(command_name: &str, args: impl IntoIterator<Item = S>) -> Pm {
    let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new(env!("CARGO_BIN_EXE_pm"));
    command.arg(command_name).args(args).env("PM_TEST_MARK", &mark).env("NO_COLOR", "1");
    Pm { command, mark }
}

impl Pm {
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// With no more descriptors than that.
    pub(crate) fn descriptors(self, most: u32) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {most}; exec \"$0\" \"$@\""));
        command.arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        if let Some(directory) = self.command.get_current_dir() {
            command.current_dir(directory);
        }
        Pm { command, ..self }
    }

    /// Runs it to its end with this input.
    #[track_caller]
    pub(crate) fn run(self, input: impl AsRef<[u8]>) -> Done {
        let mut running = self.start();
        let mut stdin = running.stdin.take().unwrap();
        let input = input.as_ref().to_vec();
        // It may end before it has read everything.
        thread::spawn(move || drop(stdin.write_all(&input)));
        running.end()
    }

    /// Starts it; the test feeds it.
    pub(crate) fn start(mut self) -> Running {
        let mut child =
            self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut pipe = child.stderr.take().unwrap();
        let (sender, stderr) = mpsc::channel();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = heard.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = pipe.read(&mut buffer)
                && count > 0
            {
                shared.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
            let _ = sender.send(String::from_utf8_lossy(&shared.lock().unwrap()).into_owned());
        });
        Running { child, stdin, stdout: Some(stdout), stderr, heard, mark: self.mark, is_over: false }
    }
}

/// A `pm` that runs. Dropped before its end, it is killed.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
    stderr: Receiver<String>,
    heard: Arc<Mutex<Vec<u8>>>,
    mark: String,
    is_over: bool,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// The next line of its standard output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_string()
    }

    /// Waits until it has said this on standard error so often.
    #[track_caller]
    pub(crate) fn says(&self, text: &str, times: usize) {
        let began = Instant::now();
        loop {
            let heard = String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned();
            if heard.matches(text).count() >= times {
                return;
            }
            assert!(began.elapsed() < LIMIT && !self.ends_within(Duration::ZERO), "{text:?} is not said: {heard}");
            // A pipe that another thread reads: there is no event to wait for here.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end, and for the end of all that it started.
    #[track_caller]
    pub(crate) fn end(mut self) -> Done {
        self.stdin = None;
        let reader = self.stdout.take().map(|mut stdout| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = stdout.read_to_end(&mut bytes);
                bytes
            })
        });
        assert!(self.ends_within(LIMIT), "pm does not end");
        let code = self.child.wait().unwrap().code();
        self.is_over = true;
        let left = left_behind(&self.mark, AFTERLIFE);
        assert!(left.is_empty(), "left behind: {left:?}");
        let out = reader.map(|reader| reader.join().unwrap()).unwrap_or_default();
        let err = self.stderr.recv_timeout(LIMIT).expect("somebody holds its standard error");
        Done { code, out, err }
    }

    /// Kills it, and gives the mark of what it leaves.
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.is_over = true;
        self.mark.clone()
    }

    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        ends_within(self.pid(), limit)
    }

    /// Processes with its mark, itself aside.
    pub(crate) fn others(&self) -> Vec<u32> {
        marked(&self.mark).into_iter().filter(|&pid| pid != self.child.id()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn ends_within(pid: Pid, limit: Duration) -> bool {
    let Ok(end) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// The processes with this mark that live, zombies aside.
fn marked(mark: &str) -> Vec<u32> {
    let mark = format!("PM_TEST_MARK={mark}");
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
    })
    .collect()
}

/// What still lives when the time is up.
pub(crate) fn left_behind(mark: &str, limit: Duration) -> Vec<String> {
    let deadline = Instant::now() + limit;
    loop {
        let left = marked(mark);
        let now = Instant::now();
        if left.is_empty() || now > deadline {
            return left
                .iter()
                .map(|pid| {
                    format!("{pid}: {}", std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default())
                })
                .collect();
        }
        for pid in left {
            if let Some(pid) = Pid::from_raw(pid as i32) {
                ends_within(pid, deadline - now.min(deadline));
            }
        }
    }
}

/// A directory for one test, gone at its end.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!(
            "pm-cli-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file with this content, which may be executed.
    pub(crate) fn script(&self, name: &str, content: &str) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.join(name);
        // Written by another process: a descriptor of this one, inherited by a child of another test, would make it busy.
        let mut cat = Command::new("sh")
            .arg("-c")
            .arg("cat > \"$0\" && chmod 755 \"$0\"")
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        cat.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
        assert!(cat.wait().unwrap().success());
        let _ = std::fs::OpenOptions::new().read(true).mode(0o755).open(&path).unwrap();
        path
    }

    pub(crate) fn fifo(&self, name: &str) -> Fifo {
        let path = self.join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        // Held open for both, so that no open of the others waits and no line is lost.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Fifo { path, reader: BufReader::new(file) }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How jobs and tests tell each other what happened.
pub(crate) struct Fifo {
    pub(crate) path: PathBuf,
    reader: BufReader<File>,
}

impl Fifo {
    /// Waits for a line.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        if self.reader.buffer().is_empty() {
            let limit = Timespec::try_from(LIMIT).unwrap();
            let ready = poll(&mut [PollFd::new(self.reader.get_ref(), PollFlags::IN)], Some(&limit)).unwrap();
            assert!(ready > 0, "nobody writes into {:?}", self.path);
        }
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }
}

/// Numbers, a line each.
pub(crate) fn numbers(count: u32) -> String {
    (0..count).map(|number| format!("{number}\n")).collect()
}

/// Whether a program is installed; says so where it is not.
pub(crate) fn has(program: &str, version: &str) -> bool {
    let found = Command::new(program)
        .arg(version)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}
