//! Messages with descriptors over a socket of the kind SOCK_SEQPACKET: whole, in order, and with an end of file.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The most descriptors in one message; the kernel's SCM_MAX_FD is 253.
pub(crate) const MAX_FDS: usize = 250;

/// Two connected sockets, close-on-exec and non-blocking.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Whether a message that failed by this can be sent a little later: the kernel had no memory for it, or too many descriptors of
/// this user are under way.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::ETOOMANYREFS))
}

/// Sends one message. `WouldBlock` if there is no room for it now; no part of it has been sent then.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let slices = [IoSlice::new(bytes)];
    if fds.is_empty() {
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&socket, &slices, &mut SendAncillaryBuffer::default(), flags)
        })?;
        return Ok(());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
    }
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(&socket, &slices, &mut control, flags))?;
    Ok(())
}

/// One message that was received.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its length; 0 is the end of file, for nobody sends an empty message.
    pub(crate) length: usize,
    /// Descriptors came with it, and some of them were lost because this process has no number left for them.
    pub(crate) descriptors_lost: bool,
}

/// Receives one message into `buffer` and its descriptors, close-on-exec, into `fds`. `WouldBlock` if there is none.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)
    })?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(Received { length: message.bytes, descriptors_lost: message.flags.contains(ReturnFlags::CTRUNC) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_carry_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&ours, b"one", &[]).unwrap();
        send(&ours, b"three", &[writer.as_fd()]).unwrap();
        drop((ours, writer));

        let (mut buffer, mut fds) = ([0; 64], Vec::new());
        assert_eq!(receive(&theirs, &mut buffer, &mut fds).unwrap().length, 3);
        assert!(fds.is_empty());
        let received = receive(&theirs, &mut buffer, &mut fds).unwrap();
        assert_eq!(&buffer[..received.length], b"three");
        let mut file = std::fs::File::from(fds.remove(0));
        file.write_all(b"x").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert_eq!(receive(&theirs, &mut buffer, &mut fds).unwrap().length, 0);
    }
}
