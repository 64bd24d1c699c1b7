//! Standard input, cut into lines by a thread of its own.

use std::io::{self, Read};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

/// How much is read at once. The size of a full pipe.
const CHUNK: usize = 64 << 10;

/// Batches that wait for the board. One being cut and one waiting keep both threads busy.
const BATCHES: usize = 1;

/// One job as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Without what ended it.
    Whole(Bytes),
    /// It was longer than it may be. This is what remains of it.
    TooLong { sha256: [u8; 32], bytes: u64 },
}

/// What came from standard input: lines, or why there are no more.
pub(super) type Batch = io::Result<Vec<Line>>;

/// Starts to read standard input. The channel closes at its end.
///
/// # Errors
/// The thread cannot be made.
pub(super) fn start(delimiter: u8, max_line: usize) -> io::Result<mpsc::Receiver<Batch>> {
    let (sender, receiver) = mpsc::channel(BATCHES);
    let read = move || {
        let mut cutter = Cutter::new(delimiter, max_line);
        // Unbuffered: the cutter has the buffer.
        let mut stdin = io::stdin().lock();
        loop {
            match cutter.read(&mut stdin) {
                Ok(Some(lines)) if lines.is_empty() => {}
                Ok(Some(lines)) => {
                    if sender.blocking_send(Ok(lines)).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => return drop(sender.blocking_send(Err(error))),
            }
        }
    };
    std::thread::Builder::new().name("pm-intake".into()).stack_size(128 << 10).spawn(read)?;
    Ok(receiver)
}

/// Cuts a stream into lines.
struct Cutter {
    delimiter: u8,
    max_line: usize,
    /// What was read of a line that has not ended: `buffer[..filled]`.
    buffer: Vec<u8>,
    filled: usize,
    /// A line that is too long already, up to where it was read.
    long: Option<(Sha256, u64)>,
    ended: bool,
}

impl Cutter {
    fn new(delimiter: u8, max_line: usize) -> Self {
        Cutter { delimiter, max_line, buffer: vec![0; CHUNK], filled: 0, long: None, ended: false }
    }

    /// Reads once, and gives the lines that have ended. None at the end.
    fn read(&mut self, source: &mut impl Read) -> io::Result<Option<Vec<Line>>> {
        if self.ended {
            return Ok(None);
        }
        if self.filled == self.buffer.len() {
            self.buffer.resize((2 * self.filled).min(self.max_line.max(CHUNK) + CHUNK), 0);
        }
        let count = match source.read(&mut self.buffer[self.filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Some(Vec::new())),
            result => result?,
        };
        let mut lines = Vec::new();
        if count == 0 {
            self.ended = true;
            // The last line may lack its end.
            if let Some((mut digest, bytes)) = self.long.take() {
                digest.update(&self.buffer[..self.filled]);
                lines.push(Line::TooLong { sha256: digest.finalize().into(), bytes: bytes + self.filled as u64 });
            } else if self.filled > 0 {
                lines.push(self.line(&Bytes::copy_from_slice(&self.buffer[..self.filled])));
            }
            return Ok(Some(lines));
        }
        let (old, end) = (self.filled, self.filled + count);
        self.filled = end;
        let Some(last) = memchr::memrchr(self.delimiter, &self.buffer[old..end]) else {
            self.shorten();
            return Ok(Some(lines));
        };
        // One copy for all of them, of the size that they have: a slow job keeps no more than its neighbours alive.
        let last = old + last;
        let whole = Bytes::copy_from_slice(&self.buffer[..last]);
        self.buffer.copy_within(last + 1..end, 0);
        self.filled = end - last - 1;
        if self.buffer.len() > CHUNK && self.filled < CHUNK {
            self.buffer.truncate(CHUNK);
            self.buffer.shrink_to_fit();
        }
        let mut start = 0;
        // The old part has no delimiter.
        for at in memchr::memchr_iter(self.delimiter, &whole[old..]).map(|at| old + at).chain([last]) {
            let bytes = whole.slice(start..at);
            lines.push(match self.long.take() {
                Some((mut digest, length)) => {
                    digest.update(&bytes);
                    Line::TooLong { sha256: digest.finalize().into(), bytes: length + bytes.len() as u64 }
                }
                None => self.line(&bytes),
            });
            start = at + 1;
        }
        self.shorten();
        Ok(Some(lines))
    }

    fn line(&self, bytes: &Bytes) -> Line {
        match bytes.len() {
            length if length > self.max_line => {
                Line::TooLong { sha256: Sha256::digest(bytes).into(), bytes: length as u64 }
            }
            _ => Line::Whole(bytes.clone()),
        }
    }

    /// Of a line that is too long only the digest is kept.
    fn shorten(&mut self) {
        if self.long.is_some() || self.filled > self.max_line {
            let (digest, bytes) = self.long.get_or_insert_with(|| (Sha256::new(), 0));
            digest.update(&self.buffer[..self.filled]);
            *bytes += self.filled as u64;
            self.filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has in pieces of this length.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn cut(input: &[u8], piece: usize, max_line: usize) -> Vec<String> {
        let mut cutter = Cutter::new(b'\n', max_line);
        let mut drip = Drip(input, piece);
        let mut all = Vec::new();
        while let Some(lines) = cutter.read(&mut drip).unwrap() {
            all.extend(lines.into_iter().map(|line| match line {
                Line::Whole(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Line::TooLong { bytes, sha256 } => format!("<{bytes} {:02x}>", sha256[0]),
            }));
        }
        all
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let input = b"a\n\nbc\nabcdefghij\nend";
        // printf abcdefghij | sha256sum | cut -c1-2
        let expected = ["a", "", "bc", "<10 72>", "end"];
        for piece in 1..30 {
            assert_eq!(cut(input, piece, 4), expected, "in pieces of {piece}");
        }
        assert_eq!(cut(b"", 1, 4), [""; 0]);
        assert_eq!(cut(b"\n", 1, 4), [""]);
        assert_eq!(cut(b"x\n", 1, 4), ["x"]);
        assert_eq!(cut(b"abcdefghij", 3, 4), ["<10 72>"]);
    }

    #[test]
    fn long_lines_grow_the_buffer_and_give_it_back() {
        let mut input = vec![b'x'; 300_000];
        input.extend_from_slice(b"\ny\n");
        let mut cutter = Cutter::new(b'\n', 400_000);
        let mut source = &input[..];
        let mut lengths = Vec::new();
        while let Some(lines) = cutter.read(&mut source).unwrap() {
            lengths.extend(lines.iter().map(|line| match line {
                Line::Whole(bytes) => bytes.len(),
                Line::TooLong { .. } => 0,
            }));
        }
        assert_eq!(lengths, [300_000, 1]);
        assert_eq!(cutter.buffer.len(), CHUNK);
    }
}
