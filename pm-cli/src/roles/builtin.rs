//! `@echo`, `@count`, `@sha256` and `@wc`.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pm::{ByteQuery, ByteStream, Bytes, Duplex, HandlerError, StreamError};
use sha2::{Digest, Sha256};

use super::{CODEC, error};

/// Gives back what it gets.
pub static ECHO: ByteQuery = ByteQuery::new("echo", CODEC, &echo);

/// The same for the messages of a stream.
pub static ECHO_STREAM: ByteStream = ByteStream::new("echo-stream", CODEC, &echo_stream);

/// How many messages have come on a stream, after each.
pub static COUNT: ByteStream = ByteStream::new("count", CODEC, &count);

/// The SHA-256 digest of the file at a path, as `sha256sum` prints it.
pub static SHA256: ByteQuery = ByteQuery::new("sha256", CODEC, &sha256);

/// Lines, words and bytes of the file at a path, as `wc` counts them.
pub static WC: ByteQuery = ByteQuery::new("wc", CODEC, &wc);

fn echo(input: &[u8], output: &mut Vec<u8>) -> Result<(), HandlerError> {
    output.extend_from_slice(input);
    Ok(())
}

async fn echo_stream(mut peer: Duplex<Bytes, Bytes>) -> Result<(), StreamError> {
    while let Some(message) = peer.next().await {
        peer.write(&message?).await?;
    }
    Ok(())
}

async fn count(mut peer: Duplex<Bytes, Bytes>) -> Result<(), StreamError> {
    let mut count = 0_u64;
    while let Some(message) = peer.next().await {
        message?;
        count += 1;
        peer.write(&Bytes::from(count.to_string())).await?;
    }
    Ok(())
}

fn sha256(path: &[u8], output: &mut Vec<u8>) -> Result<(), HandlerError> {
    let mut digest = Sha256::new();
    read(path, |bytes| digest.update(bytes))?;
    output.extend_from_slice(hex(&digest.finalize()).as_bytes());
    Ok(())
}

fn wc(path: &[u8], output: &mut Vec<u8>) -> Result<(), HandlerError> {
    let (mut lines, mut words, mut bytes, mut in_word) = (0u64, 0u64, 0u64, false);
    read(path, |piece| {
        bytes += piece.len() as u64;
        for &byte in piece {
            lines += u64::from(byte == b'\n');
            // The white space of the C locale; `is_ascii_whitespace` lacks the vertical tab.
            let is_space = byte.is_ascii_whitespace() || byte == 0x0b;
            words += u64::from(!is_space && !in_word);
            in_word = !is_space;
        }
    })?;
    output.extend_from_slice(format!("{lines} {words} {bytes}").as_bytes());
    Ok(())
}

/// Reads a file piece by piece, unless the call is cancelled meanwhile.
fn read(path: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), HandlerError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let unreadable = |cause: std::io::Error| error("io", format!("{} cannot be read: {cause}", path.display()), "");
    let mut file = File::open(path).map_err(unreadable)?;
    let mut buffer = vec![0; 64 << 10];
    while !pm::cancelled() {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => take(&buffer[..count]),
            Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(unreadable(cause)),
        }
    }
    Ok(())
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_wc() {
        let path = std::env::temp_dir().join(format!("pm-wc-{}", std::process::id()));
        std::fs::write(&path, "one two\n\x0b three\t\nno newline at the end").unwrap();
        let mut output = Vec::new();
        wc(path.as_os_str().as_bytes(), &mut output).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(output, b"2 8 38");
    }
}
