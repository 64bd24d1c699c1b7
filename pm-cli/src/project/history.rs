//! `pm logs`: what services have printed, from their logs, whether the project is up or not; and what they print from now on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use pm::core::machine::service::label;
use pm::service::{LogEntry, LogFile};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;

use super::screen::printable;
use crate::config::Project;
use crate::error::{CliError, code};

/// So many older files of one log are looked for.
const MOST_ASIDE: u32 = 1000;

/// What is shown.
#[derive(Debug)]
pub struct Wanted {
    /// The services; all where none is named.
    pub names: Vec<String>,
    /// What they print from now on, too.
    pub follow: bool,
    /// Nothing that is older.
    pub since: Option<Duration>,
    /// So many of the last lines of each; all where it is not said.
    pub lines: Option<usize>,
    /// With the time of each line.
    pub timestamps: bool,
}

/// A record of a log.
struct Record {
    /// The time as it stands there, which sorts as text.
    time: String,
    service: usize,
    text: Vec<u8>,
}

/// A log that is read, and read on.
struct Source {
    label: String,
    log: LogFile,
    file: Option<(BufReader<File>, u64)>,
    /// A line that is not whole yet.
    partial: Vec<u8>,
    /// Pieces of a line that is longer than a record, of standard output and of standard error.
    pieces: BTreeMap<bool, Vec<u8>>,
}

/// Shows them.
///
/// # Errors
/// A service that does not exist, and logs that cannot be read.
pub fn show(project: &Project, wanted: &Wanted) -> Result<ExitCode, CliError> {
    let mut sources = sources(project, &wanted.names)?;
    let watch = if wanted.follow { Some(watch(&sources)?) } else { None };
    let since = wanted.since.and_then(|age| SystemTime::now().checked_sub(age));
    // What is older than that has no time in a log.
    let since =
        since.filter(|at| *at >= SystemTime::UNIX_EPOCH).map(|at| humantime::format_rfc3339_millis(at).to_string());
    let mut records = Vec::new();
    for (number, source) in sources.iter_mut().enumerate() {
        let mut own = source.all(number, wanted.lines).map_err(|error| source.refused(error))?;
        own.retain(|record| since.as_ref().is_none_or(|since| record.time >= *since));
        if let Some(lines) = wanted.lines {
            own.drain(..own.len().saturating_sub(lines));
        }
        records.extend(own);
    }
    records.sort_by(|a, b| a.time.cmp(&b.time));
    let width = sources.iter().map(|source| source.label.len()).max().unwrap_or(0);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut write = |sources: &[Source], records: &[Record]| {
        for record in records {
            if wanted.timestamps {
                write!(out, "{} ", record.time)?;
            }
            let mut line = Vec::new();
            printable(&record.text, &mut line);
            if line.contains(&0x1b) {
                line.extend_from_slice(b"\x1b[0m");
            }
            write!(out, "{:width$} | ", sources[record.service].label)?;
            out.write_all(&line)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    if write(&sources, &records).is_err() {
        return Ok(ExitCode::from(code::CLOSED));
    }
    let Some(watch) = watch else { return Ok(ExitCode::SUCCESS) };
    loop {
        let mut records = Vec::new();
        for (number, source) in sources.iter_mut().enumerate() {
            source.more(number, &mut records).map_err(|error| source.refused(error))?;
        }
        records.sort_by(|a, b| a.time.cmp(&b.time));
        if write(&sources, &records).is_err() {
            return Ok(ExitCode::from(code::CLOSED));
        }
        if records.is_empty() {
            wait(&watch).map_err(CliError::Runtime)?;
        }
    }
}

/// The logs of the services, and of their replicas.
fn sources(project: &Project, names: &[String]) -> Result<Vec<Source>, CliError> {
    let known: BTreeMap<&str, Option<&Path>> =
        project.services.iter().map(|one| (one.name(), one.log().map(|log| log.path.as_path()))).collect();
    if let Some(name) = names.iter().find(|name| !known.contains_key(name.as_str())) {
        let all: Vec<&str> = project.services.iter().map(|one| one.name()).collect();
        return Err(CliError::Service(format!("there is no service {name:?}; there are {}", all.join(", "))));
    }
    let mut sources = Vec::new();
    for service in project.services.iter().filter(|one| names.is_empty() || names.iter().any(|name| name == one.name()))
    {
        let Some(log) = service.log() else { continue };
        for replica in 1.. {
            let log = log.of_replica(replica);
            // Replicas that were there once may be gone, and the first may not have printed yet.
            if replica > service.replicas().max(1) && !log.path.exists() {
                break;
            }
            let label = label(service.name(), replica);
            sources.push(Source { label, log, file: None, partial: Vec::new(), pieces: BTreeMap::new() });
        }
    }
    Ok(sources)
}

impl Source {
    fn refused(&self, source: io::Error) -> CliError {
        CliError::Log { path: self.log.path.clone(), problem: "cannot be read".into(), source: Some(source) }
    }

    /// All records that there are, those of older files first; where only so many lines are wanted, those of the files that have them.
    fn all(&mut self, number: usize, lines: Option<usize>) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut found = lines.map(|_| count(&self.log.path));
        let mut is_wanted = |path: &PathBuf| {
            let is_enough = lines.zip(found).is_some_and(|(lines, found)| found >= lines);
            found = found.map(|found| if is_enough { found } else { found + count(path) });
            !is_enough && path.exists()
        };
        let older: Vec<PathBuf> =
            (1..MOST_ASIDE).map(|age| self.log.aside(age)).take_while(|path| is_wanted(path)).collect();
        for path in older.iter().rev() {
            // It may have been set aside once more meanwhile.
            if let Ok(file) = File::open(path) {
                self.read(&mut BufReader::new(file), number, &mut records)?;
            }
        }
        self.more(number, &mut records)?;
        Ok(records)
    }

    /// What has come since.
    fn more(&mut self, number: usize, records: &mut Vec<Record>) -> io::Result<()> {
        loop {
            if self.file.is_none() {
                match File::open(&self.log.path) {
                    Ok(file) => {
                        let inode = file.metadata()?.ino();
                        self.file = Some((BufReader::new(file), inode));
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            let Some((mut file, inode)) = self.file.take() else { return Ok(()) };
            // Looked at before it is read: what is set aside later is read to its end next time.
            let is_current = std::fs::metadata(&self.log.path).is_ok_and(|found| found.ino() == inode);
            self.read(&mut file, number, records)?;
            if is_current {
                self.file = Some((file, inode));
                return Ok(());
            }
        }
    }

    fn read(&mut self, file: &mut BufReader<File>, number: usize, records: &mut Vec<Record>) -> io::Result<()> {
        loop {
            if file.read_until(b'\n', &mut self.partial)? == 0 {
                return Ok(());
            }
            if self.partial.last() != Some(&b'\n') {
                continue;
            }
            let line = std::mem::take(&mut self.partial);
            let Some(mut entry) = LogEntry::parse(&line[..line.len() - 1]) else { continue };
            if !entry.is_whole {
                self.pieces.entry(entry.is_stderr).or_default().append(&mut entry.text);
                continue;
            }
            if let Some(mut pieces) = self.pieces.remove(&entry.is_stderr) {
                pieces.append(&mut entry.text);
                entry.text = pieces;
            }
            records.push(Record { time: entry.time, service: number, text: entry.text });
        }
    }
}

/// The records of a file; none where it is not there.
fn count(path: &Path) -> usize {
    let Ok(mut file) = File::open(path) else { return 0 };
    let (mut buffer, mut lines) = (vec![0; 64 << 10], 0);
    while let Ok(count @ 1..) = io::Read::read(&mut file, &mut buffer) {
        lines += memchr::memchr_iter(b'\n', &buffer[..count]).count();
    }
    lines
}

/// The end of a log: what stands in its last so many bytes. Of older files at most the youngest is looked into.
///
/// # Errors
/// What the kernel says; that there is no log yet is none.
pub fn end_of(log: &LogFile, bytes: u64) -> io::Result<Vec<LogEntry>> {
    // The current one first: if it is set aside meanwhile, some of it is read twice rather than not at all.
    let current = end_of_file(&log.path, bytes)?;
    let read: u64 = current.1;
    let mut entries = if read < bytes { end_of_file(&log.aside(1), bytes - read)?.0 } else { Vec::new() };
    entries.extend(current.0);
    Ok(entries)
}

fn end_of_file(path: &Path, bytes: u64) -> io::Result<(Vec<LogEntry>, u64)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let begin = file.metadata()?.len().saturating_sub(bytes);
    file.seek(io::SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    // Bounded: a log that is written to faster than it is read would have no end.
    file.take(bytes).read_to_end(&mut text)?;
    let count = text.len() as u64;
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // What follows the last line break is not whole yet, or empty; and the first is the end of one that began before.
    lines.pop();
    let skipped = usize::from(begin > 0);
    Ok((lines.into_iter().skip(skipped).filter_map(LogEntry::parse).collect(), count))
}

/// What says that a log has changed.
fn watch(sources: &[Source]) -> Result<std::os::fd::OwnedFd, CliError> {
    let refused = |error: rustix::io::Errno| CliError::Runtime(error.into());
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(refused)?;
    let mut directories: Vec<&Path> = sources.iter().filter_map(|source| source.log.path.parent()).collect();
    directories.sort_unstable();
    directories.dedup();
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    for directory in directories {
        std::fs::create_dir_all(directory).map_err(CliError::Runtime)?;
        inotify::add_watch(&watch, directory, flags).map_err(refused)?;
    }
    Ok(watch)
}

fn wait(watch: &std::os::fd::OwnedFd) -> io::Result<()> {
    let mut polled = [PollFd::new(watch, PollFlags::IN)];
    // A network file system tells of no changes that others make: it is looked at all the same.
    let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
    match rustix::event::poll(&mut polled, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut events = [0; 4096];
    while rustix::io::read(watch, &mut events).is_ok_and(|count| count > 0) {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_forms() {
        let entry = |time: &str, is_stderr, is_whole, text: &str| {
            Some(LogEntry { time: time.into(), is_stderr, is_whole, text: text.into() })
        };
        let line = b"2026-12-01T00:00:00.000Z stderr P a  b";
        assert_eq!(LogEntry::parse(line), entry("2026-12-01T00:00:00.000Z", true, false, "a  b"));
        let json = br#"{"time":"2026","stream":"stdout","text":"a"}"#;
        assert_eq!(LogEntry::parse(json), entry("2026", false, true, "a"));
        assert_eq!(LogEntry::parse(b"half"), None);
    }

    #[test]
    fn the_end_of_a_log_is_read_without_the_rest() {
        let dir = std::env::temp_dir().join(format!("pm-history-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let log = LogFile::new(dir.join("a.log"));
        let texts = |bytes| {
            let entries = end_of(&log, bytes).unwrap();
            entries.iter().map(|entry| String::from_utf8(entry.text.clone()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(texts(100), Vec::<String>::new());
        std::fs::write(dir.join("a.log.1"), "1 stdout F one\n2 stdout F two\n").unwrap();
        std::fs::write(&log.path, "3 stdout F three\n4 stdout F four\n5 stdout F hal").unwrap();
        assert_eq!(texts(1000), ["one", "two", "three", "four"]);
        assert_eq!(texts(40), ["four"]);
        assert_eq!(texts(75), ["two", "three", "four"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
