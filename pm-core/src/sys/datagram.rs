//! Datagrams of a local socket, with who sent them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// The longest message that is looked at; sd_notify(3) has no limit, and nobody says more.
const LONGEST: usize = 4096;

/// The next datagram of a socket with SO_PASSCRED, if it is of this user or root; nothing in place of one of somebody else. `WouldBlock` if there is none.
pub(crate) fn receive_from(socket: impl AsFd, uid: u32) -> io::Result<Option<Vec<u8>>> {
    let (text, sender) = receive(socket)?;
    Ok((sender == Some(uid) || sender == Some(0)).then_some(text))
}

/// Whether a message of sd_notify(3) says that its sender is ready.
pub(crate) fn says_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

/// The next datagram and the user of its sender. Descriptors that come along are closed.
fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Option<u32>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; LONGEST];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)
    })?;
    buffer.truncate(message.bytes);
    let mut uid = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(sender) = part {
            uid = Some(sender.uid.as_raw());
        }
    }
    Ok((buffer, uid))
}
