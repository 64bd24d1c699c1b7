//! What a process that has ended has left in its streams.

use std::os::fd::AsFd;

/// At most so much is read of a terminal: the kernel says only of a part of what is in it.
const MOST_IN_A_TERMINAL: u64 = 64 << 10;

/// How many bytes are read of a stream once its process has ended: what is in it then, and not what others who hold it write for ever.
pub(crate) fn budget(stream: impl AsFd) -> u64 {
    match rustix::termios::isatty(&stream) {
        true => MOST_IN_A_TERMINAL,
        false => rustix::io::ioctl_fionread(&stream).unwrap_or(0),
    }
}

/// Reads that, piece by piece. The stream must not block.
pub(crate) fn read(stream: impl AsFd, buffer: &mut [u8], mut take: impl FnMut(&[u8])) {
    let mut left = budget(&stream);
    while left > 0 {
        // Nothing more, its end, or that of a terminal, which is an error.
        let Ok(count @ 1..) = rustix::io::read(&stream, &mut *buffer) else { return };
        left = left.saturating_sub(count as u64);
        take(&buffer[..count]);
    }
}
