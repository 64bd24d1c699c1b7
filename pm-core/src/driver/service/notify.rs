//! What a service says of itself: the server's side of sd_notify(3).
//!
//! Each incarnation has a socket of its own, with an abstract address that the kernel chooses, so nothing stands in the file system and nothing
//! that an earlier incarnation says is taken for this one's. Anybody in the network namespace could send to it: what does not come
//! from the service's own user or root is dropped.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::sys::datagram;

/// The longest status that is kept, in bytes.
const LONGEST_STATUS: usize = 256;

/// What a message says that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) is_ready: bool,
    pub(super) is_alive: bool,
    pub(super) status: Option<String>,
}

/// Where one incarnation of a service says something of itself.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    address: OsString,
    uid: u32,
}

impl NotifySocket {
    /// For a process of this user.
    pub(super) fn new(uid: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        rustix::net::sockopt::set_socket_passcred(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
        NotifySocket::adopt(socket, uid)
    }

    /// One that was made for a process which has outlived its manager.
    pub(super) fn adopt(socket: OwnedFd, uid: u32) -> io::Result<Self> {
        let own = SocketAddrUnix::try_from(rustix::net::getsockname(&socket)?)?;
        let name = own.abstract_name().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = OsString::from_vec([b"@", name].concat());
        Ok(NotifySocket { socket: UnixDatagram::from_std(socket.into())?, address, uid })
    }

    /// Whose messages count beside those of root.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// The socket itself, for who keeps it.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The value of `NOTIFY_SOCKET`.
    pub(super) fn address(&self) -> &OsString {
        &self.address
    }

    /// The next message. Cancel safe.
    pub(super) async fn next(&self) -> io::Result<Message> {
        loop {
            let receive = || datagram::receive_from(&self.socket, self.uid);
            if let Some(text) = self.socket.async_io(Interest::READABLE, receive).await? {
                return Ok(parse(&text));
            }
        }
    }
}

fn parse(text: &[u8]) -> Message {
    let mut message = Message::default();
    for line in text.split(|byte| *byte == b'\n') {
        match line {
            b"READY=1" => message.is_ready = true,
            b"WATCHDOG=1" => message.is_alive = true,
            _ => {
                if let Some(status) = line.strip_prefix(b"STATUS=") {
                    let status = String::from_utf8_lossy(&status[..status.len().min(LONGEST_STATUS)]);
                    message.status = Some(crate::driver::stderr::escape(&status));
                }
            }
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    #[tokio::test]
    async fn messages_come_as_systemd_has_them() {
        let socket = NotifySocket::new(rustix::process::getuid().as_raw()).unwrap();
        let name = socket.address().as_bytes().strip_prefix(b"@").unwrap();
        let theirs = UnixDatagram::unbound().unwrap();
        theirs.connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        theirs.send(b"READY=1\nSTATUS=up\x1b[2J and well\nMAINPID=7").unwrap();
        theirs.send(&[b'x'; 100_000]).unwrap();
        theirs.send(b"WATCHDOG=1\n").unwrap();
        let ready = Message { is_ready: true, is_alive: false, status: Some("up\\u{1b}[2J and well".into()) };
        assert_eq!(socket.next().await.unwrap(), ready);
        assert_eq!(socket.next().await.unwrap(), Message::default());
        assert_eq!(socket.next().await.unwrap(), Message { is_alive: true, ..Message::default() });
    }

    #[tokio::test]
    async fn strangers_are_not_heard() {
        let socket = NotifySocket::new(u32::MAX - 1).unwrap();
        let name = socket.address().as_bytes().strip_prefix(b"@").unwrap();
        let theirs = UnixDatagram::unbound().unwrap();
        theirs.connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        theirs.send(b"READY=1").unwrap();
        let heard = tokio::time::timeout(std::time::Duration::from_millis(50), socket.next()).await;
        // Root may speak for anybody, and tests may be run by root.
        assert_eq!(heard.is_ok(), rustix::process::getuid().is_root());
    }
}
