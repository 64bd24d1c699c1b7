//! The log of a service: a file that is begun anew when it is large.
//!
//! Each line is a record, as container runtimes write them (the CRI log format):
//! `2026-12-01T09:30:00.123Z stdout F the text`. A line that is longer than a piece is several records, and all but the last of them have a
//! `P` in place of the `F`. So nothing of what a service prints is lost or mixed up, and its lines cannot pass for those of another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::output::Piece;
use crate::driver::exec::OutputStream;

/// Where a service is logged, and how large its log may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The file. Older ones have a dot and a number behind their name, the youngest `.1`.
    pub path: PathBuf,
    /// A file that has reached this many bytes is set aside, and another one begun: 10 MiB by default. 0 is never.
    pub max_bytes: u64,
    /// So many are kept beside the one that is written to: 5 by default.
    pub keep: u32,
    /// Each record is a JSON object with `time`, `stream` and `text`, and `partial` where the line goes on.
    pub json: bool,
}

impl LogFile {
    /// With the default limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LogFile { path: path.into(), max_bytes: 10 << 20, keep: 5, json: false }
    }

    /// Where the file stands that was set aside so many times.
    pub fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }

    /// That of one replica: of further ones with `#` and their number before the ending.
    pub fn of_replica(&self, replica: u32) -> LogFile {
        if replica == 1 {
            return self.clone();
        }
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ending = self.path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
        let path = self.path.parent().unwrap_or(Path::new("")).join(format!("{stem}#{replica}{ending}"));
        LogFile { path, ..self.clone() }
    }
}

#[derive(Serialize)]
struct Record<'a> {
    time: &'a str,
    stream: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    text: &'a str,
}

/// A log that is written to.
#[derive(Debug)]
pub(super) struct Log {
    settings: LogFile,
    file: Option<File>,
    bytes: u64,
    /// It is set aside when it has so many bytes: later than it should be where that has failed.
    rotate_at: u64,
    scratch: Vec<u8>,
    /// Lines that could not be written since the last that could.
    lost: u64,
    /// The last write was broken off in the midst of a record.
    is_torn: bool,
}

impl Log {
    /// Opens it, with its directories. What stands there stays. The error names the file.
    pub(super) fn open(settings: LogFile) -> io::Result<Self> {
        let of = |error| named(&settings.path, &error);
        if let Some(directory) = settings.path.parent() {
            fs::create_dir_all(directory).map_err(of)?;
        }
        let (file, bytes) = append(&settings.path).map_err(of)?;
        // Whoever wrote it last may have been killed in the midst of a record.
        let is_torn = ends_torn(&settings.path);
        let rotate_at = settings.max_bytes;
        Ok(Log { settings, file: Some(file), bytes, rotate_at, scratch: Vec::new(), lost: 0, is_torn })
    }

    fn reopen(&mut self) -> io::Result<()> {
        let (file, bytes) = append(&self.settings.path)?;
        self.bytes = bytes;
        self.file = Some(file);
        Ok(())
    }

    /// Writes what came at once. The error is that of the first lines that were lost since others were not; it is given once.
    pub(super) fn write(&mut self, at: SystemTime, stream: OutputStream, piece: Piece<'_>) -> Option<io::Error> {
        let mut records = std::mem::take(&mut self.scratch);
        records.clear();
        let time = humantime::format_rfc3339_millis(at).to_string();
        if self.is_torn {
            records.push(b'\n');
        }
        if self.lost > 0 {
            let text = format!("pm: {} lines were lost here", self.lost);
            self.format(&mut records, &time, OutputStream::Stderr, &text.into_bytes(), true);
        }
        let mut lines = 0;
        for line in piece.lines() {
            self.format(&mut records, &time, stream, line, piece.is_whole);
            lines += 1;
        }
        let written = self.put(&records);
        self.scratch = records;
        if self.scratch.capacity() > MOST_SCRATCH {
            self.scratch = Vec::new();
        }
        match written {
            Ok(()) => {
                self.lost = 0;
                self.is_torn = false;
                None
            }
            Err(error) => {
                self.lost += lines;
                (self.lost == lines).then(|| named(&self.settings.path, &error))
            }
        }
    }

    fn format(&self, to: &mut Vec<u8>, time: &str, stream: OutputStream, line: &[u8], is_whole: bool) {
        let stream = match stream {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        };
        if self.settings.json {
            let text = String::from_utf8_lossy(line);
            let record = Record { time, stream, partial: !is_whole, text: &text };
            // Into a Vec nothing of this type can fail.
            let _ = serde_json::to_writer(&mut *to, &record);
        } else {
            to.extend_from_slice(time.as_bytes());
            to.push(b' ');
            to.extend_from_slice(stream.as_bytes());
            to.extend_from_slice(if is_whole { b" F " } else { b" P " });
            to.extend_from_slice(line);
        }
        to.push(b'\n');
    }

    fn put(&mut self, records: &[u8]) -> io::Result<()> {
        if self.settings.max_bytes > 0 && self.bytes >= self.rotate_at {
            self.rotate();
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut rest = records;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.bytes += count as u64;
                    rest = &rest[count..];
                    self.is_torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sets the file aside. The oldest goes. Where that fails the file grows on, for lines are worth more than its size.
    fn rotate(&mut self) {
        let settings = &self.settings;
        for number in (1..settings.keep).rev() {
            let _ = fs::rename(settings.aside(number), settings.aside(number + 1));
        }
        let moved = match settings.keep {
            0 => fs::remove_file(&settings.path),
            _ => fs::rename(&settings.path, settings.aside(1)),
        };
        self.rotate_at = match moved {
            Ok(()) => self.settings.max_bytes,
            // Somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.settings.max_bytes,
            Err(_) => self.bytes.saturating_add(self.settings.max_bytes),
        };
        self.file = None;
    }
}

/// A record of a log, or a part of one that is too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The time as it stands there, which sorts as text.
    pub time: String,
    /// It was printed to standard error.
    pub is_stderr: bool,
    /// The line ends with it.
    pub is_whole: bool,
    /// What was printed.
    pub text: Vec<u8>,
}

impl LogEntry {
    /// Reads a line of a log, without its line break, in either form. None where it is neither.
    ///
    /// ```
    /// use pm_core::face::service::LogEntry;
    ///
    /// let entry = LogEntry::parse(b"2026-12-01T09:30:00.123Z stderr F oh no").unwrap();
    /// assert!(entry.is_stderr && entry.is_whole);
    /// assert_eq!(entry.text, b"oh no");
    /// ```
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.first() == Some(&b'{') {
            let record: serde_json::Value = serde_json::from_slice(line).ok()?;
            let text = |name: &str| record.get(name).and_then(|value| value.as_str()).map(str::to_owned);
            let is_partial = record.get("partial").and_then(serde_json::Value::as_bool).unwrap_or(false);
            let is_stderr = text("stream").is_some_and(|stream| stream == "stderr");
            return Some(LogEntry {
                time: text("time")?,
                is_stderr,
                is_whole: !is_partial,
                text: text("text")?.into_bytes(),
            });
        }
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = String::from_utf8(parts.next()?.to_vec()).ok()?;
        let is_stderr = parts.next()? == b"stderr";
        let is_whole = parts.next()? == b"F";
        Some(LogEntry { time, is_stderr, is_whole, text: parts.next()?.to_vec() })
    }
}

/// Whether the last record of a file is not whole.
fn ends_torn(path: &Path) -> bool {
    let last = || -> io::Result<u8> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut byte = [0];
        file.read_exact_at(&mut byte, length.checked_sub(1).ok_or(io::ErrorKind::UnexpectedEof)?)?;
        Ok(byte[0])
    };
    last().is_ok_and(|byte| byte != b'\n')
}

/// Opens a file to write at its end, which is where it says.
fn append(path: &Path) -> io::Result<(File, u64)> {
    // What a service prints may be secret. And a pipe with a name that nobody reads is an error, and no wait.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

/// The error with the file that it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// More than this is not kept for the next write.
const MOST_SCRATCH: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn aside(path: &Path, number: u32) -> PathBuf {
        LogFile::new(path).aside(number)
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pm-log-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn piece(text: &str) -> Piece<'_> {
        Piece { text: text.as_bytes(), is_whole: true }
    }

    #[test]
    fn records_tell_lines_streams_and_pieces_apart() {
        let path = directory("records").join("deep/web.log");
        let mut log = Log::open(LogFile::new(&path)).unwrap();
        let at = SystemTime::UNIX_EPOCH;
        assert!(log.write(at, OutputStream::Stdout, piece("one\n\ntwo\n")).is_none());
        assert!(log.write(at, OutputStream::Stdout, Piece { text: b"long", is_whole: false }).is_none());
        assert!(log.write(at, OutputStream::Stderr, piece("oops\n")).is_none());
        assert!(log.write(at, OutputStream::Stdout, piece("er\n")).is_none());
        let time = "1970-01-01T00:00:00.000Z";
        let expected = format!(
            "{time} stdout F one\n{time} stdout F \n{time} stdout F two\n{time} stdout P long\n{time} stderr F oops\n{time} stdout F er\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn json_on_request() {
        let path = directory("json").join("web.log");
        let mut log = Log::open(LogFile { json: true, ..LogFile::new(&path) }).unwrap();
        log.write(SystemTime::UNIX_EPOCH, OutputStream::Stdout, piece("a \"b\"\n"));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"time\":\"1970-01-01T00:00:00.000Z\",\"stream\":\"stdout\",\"text\":\"a \\\"b\\\"\"}\n");
    }

    #[test]
    fn a_large_file_is_set_aside_and_the_oldest_goes() {
        let path = directory("rotate").join("web.log");
        let mut log = Log::open(LogFile { max_bytes: 100, keep: 2, ..LogFile::new(&path) }).unwrap();
        for n in 0..10 {
            log.write(SystemTime::UNIX_EPOCH, OutputStream::Stdout, piece(&format!("{n} {}\n", "x".repeat(90))));
        }
        let first = |path: &Path| fs::read_to_string(path).map(|text| text[34..35].to_string()).ok();
        assert_eq!(
            [first(&path), first(&aside(&path, 1)), first(&aside(&path, 2))].map(Option::unwrap),
            ["9", "8", "7"]
        );
        assert!(!aside(&path, 3).exists());
    }

    #[test]
    fn a_log_that_was_removed_or_cannot_be_set_aside_goes_on() {
        let path = directory("removed").join("web.log");
        let settings = LogFile { max_bytes: 100, keep: 2, ..LogFile::new(&path) };
        let mut log = Log::open(settings.clone()).unwrap();
        let write = |log: &mut Log, n: u32| {
            let text = format!("{n} {}\n", "x".repeat(90));
            assert!(log.write(SystemTime::UNIX_EPOCH, OutputStream::Stdout, piece(&text)).is_none());
        };
        write(&mut log, 1);
        fs::remove_file(&path).unwrap();
        write(&mut log, 2);
        assert!(fs::read_to_string(&path).unwrap().contains(" F 2 "));
        // Nothing can take the place of a directory.
        fs::create_dir_all(aside(&path, 1).join("x")).unwrap();
        fs::create_dir_all(aside(&path, 2).join("x")).unwrap();
        for n in 3..9 {
            write(&mut log, n);
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!((2..9).all(|n| text.contains(&format!(" F {n} "))), "{text}");
        // The next one begins on a line of its own where this one was killed in the midst of one.
        fs::write(&path, "2026 stdout F half").unwrap();
        let mut log = Log::open(settings).unwrap();
        write(&mut log, 9);
        assert!(fs::read_to_string(&path).unwrap().contains("F half\n1970-01-01T00:00:00.000Z stdout F 9 "));
    }

    #[test]
    fn what_a_full_disk_loses_is_counted_and_said() {
        let path = directory("full").join("web.log");
        let mut log = Log::open(LogFile::new(&path)).unwrap();
        log.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let error = log.write(SystemTime::UNIX_EPOCH, OutputStream::Stdout, piece("a\nb\n")).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(log.write(SystemTime::UNIX_EPOCH, OutputStream::Stdout, piece("c\n")).is_none(), "said once");
        log.reopen().unwrap();
        assert!(log.write(SystemTime::UNIX_EPOCH, OutputStream::Stdout, piece("d\n")).is_none());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("stderr F pm: 3 lines were lost here\n") && text.ends_with("stdout F d\n"), "{text}");
    }
}
