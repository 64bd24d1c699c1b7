//! The pseudo-terminal of a service.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Uid, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// What programs take for the sort of their terminal where nothing says which one it is.
pub(super) const USUAL_TERM: &str = "xterm-256color";

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// 24 lines of 80 characters, as terminals once were: what programs are made for that are not told.
impl Default for WindowSize {
    fn default() -> Self {
        WindowSize { rows: 24, columns: 80 }
    }
}

/// A terminal that was just made.
#[derive(Debug)]
pub(super) struct Terminal {
    /// What is written here the process reads, and what it prints is read here. Does not block.
    pub(super) master: OwnedFd,
    /// What the process has.
    pub(super) slave: OwnedFd,
}

impl Terminal {
    /// Makes one of this size, for a process of this user and group where they are not those of this process.
    pub(super) fn open(size: WindowSize, (uid, gid): (Option<u32>, Option<u32>)) -> io::Result<Self> {
        // It is not to become the terminal of this process.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        resize(&master, size)?;
        // So that a backspace takes back a character, and not the last byte of it.
        let mut modes = tcgetattr(&slave)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        if uid.or(gid).is_some() {
            // Or it could not open its terminal by its name.
            fchown(&slave, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
        }
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Terminal { master, slave })
    }
}

/// Says how large it is from now on. The kernel tells the processes in its foreground by SIGWINCH.
pub(super) fn resize(master: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_its_size_and_blocks_nobody() {
        let terminal = Terminal::open(WindowSize::default(), (None, None)).unwrap();
        let size = rustix::termios::tcgetwinsize(&terminal.slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (24, 80));
        assert_eq!(rustix::io::read(&terminal.master, &mut [0; 8][..]).unwrap_err(), rustix::io::Errno::AGAIN);
        assert!(rustix::termios::isatty(&terminal.slave));
    }
}
