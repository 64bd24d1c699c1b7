//! The result file: what it says is done, and the way to go on where it ends.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::format::Format;
use super::intake::Line;
use crate::error::CliError;
use crate::plan::Log;

/// A line of the file that is longer than this was not written by pm: a result has at most 64 MiB, which JSON may escape six-fold.
const LONGEST: u64 = 512 << 20;

/// How many jobs share a page of [`Finished`].
const PAGE: u64 = 4096;

/// The jobs that need not be done again: for each number a digest of its input, 0 where it is to be done. In pages, so that a number out of
/// the way costs no more than its page.
#[derive(Debug, Default)]
pub(super) struct Finished {
    pages: BTreeMap<u64, Box<[u64]>>,
    failed: u64,
}

#[derive(Deserialize)]
struct Entry<'a> {
    job: u64,
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl Finished {
    /// Whether the file has this job, with this input.
    pub(super) fn has(&self, number: u64, line: &Line, format: &Format) -> bool {
        let known = self.pages.get(&(number / PAGE)).map_or(0, |page| page[(number % PAGE) as usize]);
        if known == 0 {
            return false;
        }
        let mut shown = Vec::new();
        format.input(line, &mut shown);
        known == digest(&shown)
    }

    /// How many of them failed.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    fn note(&mut self, entry: &Entry<'_>) {
        self.failed += u64::from(entry.error.is_some());
        let page = self.pages.entry(entry.job / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
        page[(entry.job % PAGE) as usize] = digest(entry.input.get().as_bytes());
    }

    fn forget(&mut self, entry: &Entry<'_>) {
        if let Some(page) = self.pages.get_mut(&(entry.job / PAGE)) {
            page[(entry.job % PAGE) as usize] = 0;
        }
    }
}

/// Never 0.
fn digest(shown: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(shown).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first).max(1)
}

/// Opens the result file for what is to be added to it, and gives what it says is done.
///
/// # Errors
/// [`CliError::Log`].
pub(super) fn open(log: &Log) -> Result<(File, Option<Finished>), CliError> {
    let failed = |problem: &str, source| CliError::Log {
        path: log.path.clone(),
        problem: problem.to_string(),
        source: Some(source),
    };
    let wrong = |problem: String| CliError::Log { path: log.path.clone(), problem, source: None };
    let open = OpenOptions::new().read(true).append(true).create(true).open(&log.path);
    let mut file = open.map_err(|source| failed("cannot be opened for results", source))?;
    let is_file = file.metadata().is_ok_and(|meta| meta.is_file());
    if !is_file {
        // A pipe or a device keeps nothing that could be resumed.
        return match log.resume {
            true => Err(wrong("is no regular file, and nothing can be resumed from it".to_string())),
            false => Ok((file, None)),
        };
    }
    lock(&file, log)?;
    if !log.resume {
        return match file.metadata().map(|meta| meta.len()) {
            Ok(0) => Ok((file, None)),
            _ => Err(wrong(
                "has results already; --resume goes on where they end, or remove it to begin anew".to_string(),
            )),
        };
    }
    let mut finished = Finished::default();
    let mut failures = false;
    let end = read(&file, |number, entry| {
        let entry = entry
            .ok_or_else(|| wrong(format!("has no result of pm pool in its line {number}; is it another file?")))?;
        failures |= entry.error.is_some();
        if entry.error.is_some() && log.retry_failed {
            finished.forget(&entry)
        } else {
            finished.note(&entry)
        }
        Ok(())
    })
    .map_err(|source| failed("cannot be read", source))??;
    file.set_len(end).map_err(|source| failed("cannot be cut where its last whole line ends", source))?;
    if log.retry_failed && failures {
        file = without_failures(&file, log)
            .map_err(|source| failed("cannot be written anew without its failures", source))?;
    }
    Ok((file, Some(finished)))
}

fn lock(file: &File, log: &Log) -> Result<(), CliError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let problem = "is being written by another pm; wait for it, or choose another file".to_string();
            Err(CliError::Log { path: log.path.clone(), problem, source: None })
        }
        // File systems that know no locks are used without.
        Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Goes through the whole lines and gives the offset where the last one ends.
fn read<E>(file: &File, mut see: impl FnMut(u64, Option<Entry<'_>>) -> Result<(), E>) -> io::Result<Result<u64, E>> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    reader.seek(SeekFrom::Start(0))?;
    let (mut line, mut end, mut number) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        let count = io::Read::take(&mut reader, LONGEST).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            // The end, or a torn line, or nothing that pm wrote.
            let is_torn = (count as u64) < LONGEST;
            return Ok(if is_torn { Ok(end) } else { see(number + 1, None).map(|()| end) });
        }
        number += 1;
        end += count as u64;
        let entry = serde_json::from_slice::<Entry<'_>>(&line).ok();
        let entry = entry.filter(|entry| entry.result.is_some() != entry.error.is_some());
        if let Err(error) = see(number, entry) {
            return Ok(Err(error));
        }
    }
}

/// Puts a copy without the failures in the place of the file. Whoever is killed meanwhile has the one or the other.
fn without_failures(file: &File, log: &Log) -> io::Result<File> {
    let path = std::fs::canonicalize(&log.path)?;
    let copy_path = beside(&path);
    // What a killed one left is of no use.
    let _ = std::fs::remove_file(&copy_path);
    let copy = OpenOptions::new().read(true).append(true).create_new(true).open(&copy_path)?;
    let copied = (|| {
        copy.set_permissions(file.metadata()?.permissions())?;
        let mut writer = BufWriter::with_capacity(64 << 10, &copy);
        let mut reader = BufReader::with_capacity(64 << 10, file);
        reader.seek(SeekFrom::Start(0))?;
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            if serde_json::from_slice::<Entry<'_>>(&line).is_ok_and(|entry| entry.error.is_none()) {
                writer.write_all(&line)?;
            }
            line.clear();
        }
        writer.flush()?;
        drop(writer);
        copy.sync_data()?;
        // The lock goes with the file.
        let _ = copy.try_lock();
        std::fs::rename(&copy_path, &path)
    })();
    match copied {
        Ok(()) => Ok(copy),
        Err(error) => {
            let _ = std::fs::remove_file(&copy_path);
            Err(error)
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".pm-new");
    path.with_file_name(name)
}
