//! What a process was given by the one that started it.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes over a descriptor that this process was started with, and keeps it from children.
///
/// # Errors
/// `EBADF` where there is no such descriptor, and `InvalidInput` for 0, 1 and 2, which belong to the standard library.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_SETFD has no memory effect; a number that is no descriptor gives EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is open, and by the contract of the environment variable that named it, it is this process's
    // link and nobody else's; it is taken once, before anything else of the program runs.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has the runtime that this is called in watch for what comes over a descriptor.
///
/// # Errors
/// What the operating system says of a descriptor that cannot be watched.
pub(crate) fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.try_clone_to_owned()?;
    // SAFETY: An OwnedFd is open for as long as it lives, and always the same descriptor; it goes where the AsyncFd goes.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Takes variables out of the environment, so that no child of this process sees them.
pub(crate) fn forget_variables(names: &[&str]) {
    for name in names {
        // SAFETY: A worker does this at the top of main, while it has one thread, as `roles_over` asks for.
        unsafe { std::env::remove_var(name) };
    }
}

/// Has no program that this process executes from now on inherit a descriptor, but for the standard ones and those that it is given by name.
pub fn keep_descriptors_private() {
    // SAFETY: a system call on plain numbers, which closes nothing here.
    unsafe {
        // Kernels before 5.11 refuse it. Then descriptors are inherited, as by every other program.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}
