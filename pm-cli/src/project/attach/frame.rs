//! What passes between a project and who is attached: a byte that says what it is, the length of the rest in four bytes (the highest first), and the rest.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest rest of a frame, in bytes.
pub const LONGEST: usize = 64 << 10;

/// The byte and the length.
const HEAD: usize = 5;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the service. Answered by [`Frame::Taken`] or [`Frame::Refused`], and until then there is no other [`Frame::Input`] or [`Frame::Close`]: so one that waits
    /// for the service stands in the way of nothing.
    Input(Vec<u8>),
    /// The end of its input. Answered as well.
    Close,
    /// Its terminal is this large.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters of a line.
        columns: u16,
    },
    /// It has all of it.
    Taken,
    /// It has not, or only a part of it.
    Refused(String),
    /// From the service.
    Printed {
        /// It went to standard error.
        is_stderr: bool,
        /// As it came.
        bytes: Vec<u8>,
    },
    /// So many bytes that it printed were dropped here, because whoever reads was too slow.
    Missed(u64),
    /// It has ended, and will not start again by itself. The last frame.
    Ended {
        /// As a shell has it.
        code: u8,
        /// In words.
        text: String,
    },
}

/// Reads one. None at the end. Not cancel safe.
///
/// # Errors
/// What the kernel says, and what is no frame.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(bad(format!("a frame of {length} bytes")));
    }
    let mut rest = vec![0; length];
    from.read_exact(&mut rest).await?;
    decode(kind, rest).map(Some)
}

/// Writes one, of which the rest is at most [`LONGEST`]. Not cancel safe.
///
/// # Errors
/// What the kernel says.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    to.write_all(&encode(frame)).await?;
    to.flush().await
}

fn encode(frame: &Frame) -> Vec<u8> {
    let of = |kind: u8, rest: &[&[u8]]| {
        let length: usize = rest.iter().map(|part| part.len()).sum();
        debug_assert!(length <= LONGEST);
        let mut bytes = Vec::with_capacity(HEAD + length);
        bytes.push(kind);
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        rest.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes
    };
    match frame {
        Frame::Input(bytes) => of(b'i', &[bytes]),
        Frame::Close => of(b'c', &[]),
        Frame::Resize { rows, columns } => of(b's', &[&rows.to_be_bytes(), &columns.to_be_bytes()]),
        Frame::Taken => of(b't', &[]),
        Frame::Refused(text) => of(b'r', &[text.as_bytes()]),
        Frame::Printed { is_stderr: false, bytes } => of(b'o', &[bytes]),
        Frame::Printed { is_stderr: true, bytes } => of(b'e', &[bytes]),
        Frame::Missed(count) => of(b'm', &[&count.to_be_bytes()]),
        Frame::Ended { code, text } => of(b'x', &[&[*code], text.as_bytes()]),
    }
}

fn decode(kind: u8, rest: Vec<u8>) -> io::Result<Frame> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(match (kind, &rest[..]) {
        (b'i', _) => Frame::Input(rest),
        (b'c', []) => Frame::Close,
        (b's', [a, b, c, d]) => {
            Frame::Resize { rows: u16::from_be_bytes([*a, *b]), columns: u16::from_be_bytes([*c, *d]) }
        }
        (b't', []) => Frame::Taken,
        (b'r', reason) => Frame::Refused(text(reason)),
        (b'o', _) => Frame::Printed { is_stderr: false, bytes: rest },
        (b'e', _) => Frame::Printed { is_stderr: true, bytes: rest },
        (b'm', count) if count.len() == 8 => {
            Frame::Missed(count.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        }
        (b'x', [code, words @ ..]) => Frame::Ended { code: *code, text: text(words) },
        _ => return Err(bad(format!("a frame {kind:#x} of {} bytes", rest.len()))),
    })
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}, which there is not; is it pm of another version?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(mut bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut all = Vec::new();
            while let Some(frame) = read(&mut bytes).await? {
                all.push(frame);
            }
            Ok(all)
        })
    }

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let sent = [
            Frame::Input(b"a\0\xff".into()),
            Frame::Input(vec![b'x'; LONGEST]),
            Frame::Close,
            Frame::Resize { rows: 24, columns: 300 },
            Frame::Taken,
            Frame::Refused("not now".into()),
            Frame::Printed { is_stderr: false, bytes: b"out".into() },
            Frame::Printed { is_stderr: true, bytes: Vec::new() },
            Frame::Missed(u64::MAX - 1),
            Frame::Ended { code: 143, text: "SIGTERM".into() },
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
        assert_eq!(read_all(&bytes).unwrap(), sent);
        // Cut off anywhere else than between two.
        for length in 1..encode(&sent[0]).len() {
            assert_eq!(read_all(&bytes[..length]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_is_read() {
        for bytes in
            [&b"i\xff\xff\xff\xff"[..], b"i\0\x01\0\x01", b"s\0\0\0\x01a", b"?\0\0\0\0", b"m\0\0\0\0", b"x\0\0\0\0"]
        {
            assert_eq!(read_all(bytes).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
