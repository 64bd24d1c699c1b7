//! The clock of the kernel that an `Instant` is made of, without the arithmetic.

/// Nanoseconds since some moment before this process began. Never goes back.
pub(crate) fn nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: The pointer is to a live local. This clock is on every Linux, so that the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    // A machine that runs for 584 years has other worries.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
