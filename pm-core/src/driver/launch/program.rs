//! Finding programs, and what should run them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::error::LaunchError;

/// Where programs are looked for if there is no PATH: the `_CS_PATH` of glibc.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The absolute path of `program`, found as execvp(3) finds it: a name with a slash is a path, relative to this process's
/// working directory; another name is looked for in each directory of `path_env` (`/bin:/usr/bin` if there is none).
/// Symbolic links stay as they are, since some programs act by the name that they were called by.
///
/// No shell is involved, and nothing in `program` is expanded.
pub fn resolve_program(program: impl AsRef<OsStr>, path_env: Option<&OsStr>) -> Result<PathBuf, LaunchError> {
    let program = program.as_ref();
    let not_found = |path| LaunchError::NotFound {
        program: program.into(),
        path,
        source: io::Error::from_raw_os_error(libc::ENOENT),
    };
    if program.is_empty() {
        return Err(not_found(None));
    }
    if program.as_bytes().contains(&b'/') {
        let path = std::path::absolute(program).map_err(|_| not_found(None))?;
        return match look(&path) {
            Look::Program => Ok(path),
            Look::Missing => Err(not_found(None)),
            Look::Denied => Err(denied(path)),
        };
    }
    let path_env = path_env.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut refused = None;
    for directory in env::split_paths(path_env) {
        // An empty entry is the working directory.
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let Ok(candidate) = std::path::absolute(directory.join(program)) else { continue };
        match look(&candidate) {
            Look::Program => return Ok(candidate),
            Look::Denied => refused = refused.or(Some(candidate)),
            Look::Missing => {}
        }
    }
    Err(refused.map_or_else(|| not_found(Some(OsString::from(path_env))), denied))
}

/// Checks that what is to run `program` is there: the interpreter of a script, the loader of a binary. Who starts a program many times
/// knows so at once.
///
/// # Errors
/// [`LaunchError::BadInterpreter`], which names it.
pub fn check_interpreter(program: &Path) -> Result<(), LaunchError> {
    missing_interpreter(program).map_or(Ok(()), |interpreter| {
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        Err(LaunchError::BadInterpreter { program: program.into(), interpreter, source })
    })
}

/// Why executing `program` says that a file is missing though `program` is there: the script's interpreter or the binary's
/// loader that does not exist.
pub(super) fn missing_interpreter(program: &Path) -> Option<PathBuf> {
    let mut file = File::open(program).ok()?;
    let mut start = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut start).ok()?;
    let interpreter = script_interpreter(&start).or_else(|| elf_loader(&start, &file))?;
    (!interpreter.exists()).then_some(interpreter)
}

enum Look {
    Program,
    Missing,
    Denied,
}

fn look(path: &Path) -> Look {
    match path.metadata() {
        Ok(found) if found.is_dir() => Look::Denied,
        Ok(_) => match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => Look::Program,
            Err(_) => Look::Denied,
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Look::Denied,
        Err(_) => Look::Missing,
    }
}

fn denied(program: PathBuf) -> LaunchError {
    LaunchError::PermissionDenied { program, source: io::Error::from_raw_os_error(libc::EACCES) }
}

fn script_interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = line.trim_ascii_start().split(|byte| matches!(byte, b' ' | b'\t')).next()?;
    // A line that ends in "\r\n" names a file whose name ends in a carriage return: show that.
    (!word.is_empty()).then(|| OsString::from_vec(word.to_vec()).into())
}

/// The loader that a 64-bit little-endian ELF binary names (program header PT_INTERP).
fn elf_loader(start: &[u8], file: &File) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    if !start.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let u64_at = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let u16_at = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (headers, size, count) = (u64_at(start, 32)?, u16_at(start, 54)?, u16_at(start, 56)?);
    for index in 0..u64::from(count) {
        let at = usize::try_from(headers.checked_add(index * u64::from(size))?).ok()?;
        let header = start.get(at..at.checked_add(56)?)?;
        if header.starts_with(&PT_INTERP.to_le_bytes()) {
            let mut name = vec![0; usize::try_from(u64_at(header, 32)?).ok()?.min(4096)];
            file.read_exact_at(&mut name, u64_at(header, 8)?).ok()?;
            name.retain(|byte| *byte != 0);
            return Some(OsString::from_vec(name).into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_execvp_finds_them() {
        let path = Some(OsStr::new("/no/such:/dev:/bin"));
        assert_eq!(resolve_program("sh", path).unwrap(), Path::new("/bin/sh"));
        assert_eq!(resolve_program("/bin/sh", None).unwrap(), Path::new("/bin/sh"));
        assert_eq!(resolve_program("sh", None).unwrap(), Path::new("/bin/sh"));
        assert!(matches!(
            resolve_program("sh", Some(OsStr::new("/dev"))),
            Err(LaunchError::NotFound { path: Some(_), .. })
        ));
        assert!(matches!(resolve_program("", None), Err(LaunchError::NotFound { .. })));
        assert!(matches!(resolve_program("/etc", None), Err(LaunchError::PermissionDenied { .. })));
        assert!(matches!(resolve_program("/etc/passwd", None), Err(LaunchError::PermissionDenied { .. })));
        assert!(matches!(
            resolve_program("passwd", Some(OsStr::new("/etc"))),
            Err(LaunchError::PermissionDenied { .. })
        ));
    }

    #[test]
    fn interpreters_are_read_from_the_first_line() {
        assert_eq!(script_interpreter(b"#! /no/such -x\nrest"), Some("/no/such".into()));
        assert_eq!(script_interpreter(b"#!/bin/sh\r\n"), Some("/bin/sh\r".into()));
        assert_eq!(script_interpreter(b"#!\n"), None);
        assert_eq!(script_interpreter(b"echo"), None);
        assert_eq!(missing_interpreter(Path::new("/bin/sh")), None);
        let loader = File::open("/bin/sh").map(|file| {
            let mut start = vec![0; 4096];
            file.read_exact_at(&mut start, 0).unwrap();
            elf_loader(&start, &file)
        });
        assert!(loader.unwrap().unwrap().exists());
    }
}
