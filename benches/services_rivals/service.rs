//! The program that all tools run: a few lines of shell, which tell the bench that they run and become `sleep` or `cat`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::problem::Problem;

/// With the fifo, its name, what it does, and the file to print, for which it waits until it is told to begin. What a bench that was killed leaves ends after
/// ten minutes.
const SCRIPT: &str = r#"
if [ "$3" = family ]; then
    setsid sleep 600 </dev/null >/dev/null 2>&1 &
    child=$!
fi
echo "$2 $$ $child" >"$1"
if [ "$3" = print ]; then
    read -r begin <"$1.begin"
    exec cat "$4"
fi
exec sleep 600
"#;

/// What a service does once it has said that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// It rests.
    Rest,
    /// It rests beside a child in a session of its own.
    Family,
    /// It prints a file, and ends.
    Print,
}

/// The services of one run.
#[derive(Debug)]
pub(crate) struct Services {
    dir: PathBuf,
    does: Does,
    count: usize,
}

impl Services {
    /// In a directory of their own.
    pub(crate) fn new(dir: &Path, does: Does, count: usize) -> Result<Self, Problem> {
        std::fs::create_dir_all(dir.join("logs")).map_err(Problem::io("a directory"))?;
        std::fs::write(dir.join("service.sh"), SCRIPT).map_err(Problem::io("the script of the services"))?;
        Ok(Services { dir: dir.to_path_buf(), does, count })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn names(&self) -> Vec<String> {
        (0..self.count).map(|number| format!("s{number}")).collect()
    }

    /// What is printed.
    pub(crate) fn input(&self) -> PathBuf {
        self.dir.join("input")
    }

    /// A service that has printed all is not started anew.
    pub(crate) fn is_restarted(&self) -> bool {
        self.does != Does::Print
    }

    /// What runs one.
    pub(crate) fn command(&self, name: &str) -> Vec<String> {
        let does = match self.does {
            Does::Rest => "rest",
            Does::Family => "family",
            Does::Print => "print",
        };
        let path = |path: PathBuf| path.display().to_string();
        let [script, fifo] = ["service.sh", "fifo"].map(|file| path(self.dir.join(file)));
        ["/bin/sh", &script, &fifo, name, does, &path(self.input())].map(str::to_string).to_vec()
    }
}

/// One has said that it runs.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// Its child in another session.
    pub(crate) child: Option<u32>,
}

/// What services say, and what they are told.
#[derive(Debug)]
pub(crate) struct Reports {
    said: BufReader<File>,
    begin: File,
}

impl Reports {
    pub(crate) fn new(services: &Services) -> Result<Self, Problem> {
        let fifo = |name: &str| {
            let path = services.dir().join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            // Held open for both, so that nobody waits for the other end.
            File::options().read(true).write(true).open(path)
        };
        let said = BufReader::new(fifo("fifo").map_err(Problem::io("a fifo"))?);
        Ok(Reports { said, begin: fifo("fifo.begin").map_err(Problem::io("a fifo"))? })
    }

    /// Lets a service print.
    pub(crate) fn begin(&mut self) -> Result<(), Problem> {
        self.begin.write_all(b"begin\n").map_err(Problem::io("a fifo"))
    }

    /// The next one, if there is one in time.
    pub(crate) fn next(&mut self, limit: Duration) -> Option<Report> {
        if self.said.buffer().is_empty() {
            let limit = Timespec::try_from(limit).ok()?;
            poll(&mut [PollFd::new(self.said.get_ref(), PollFlags::IN)], Some(&limit))
                .ok()
                .filter(|ready| *ready > 0)?;
        }
        let mut line = String::new();
        // A write of a few bytes into a pipe is whole.
        self.said.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (name, pid) = (words.next()?.to_string(), words.next()?.parse().ok()?);
        Some(Report { name, pid, child: words.next().and_then(|child| child.parse().ok()) })
    }

    /// Waits until all have said that they run, and gives what each has said last.
    pub(crate) fn all(&mut self, services: &Services, limit: Duration) -> Result<BTreeMap<String, Report>, Problem> {
        let end = Instant::now() + limit;
        let mut said = BTreeMap::new();
        while said.len() < services.count {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Some(report) => drop(said.insert(report.name.clone(), report)),
                None => return Err(Problem::Silent { said: said.len(), wanted: services.count, limit }),
            }
        }
        Ok(said)
    }
}
