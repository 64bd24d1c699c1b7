//! The clock of the kernel that an `Instant` is made of, without the arithmetic.

/// Nanoseconds since some moment before this process began. Never goes back.
pub(crate) fn nanos() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// The same as it was at the last tick of the kernel, some milliseconds ago at most, for a fraction of the price.
pub(crate) fn coarse_nanos() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: The pointer is to a live local. Both clocks are on every Linux, so that the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut now) };
    // A machine that runs for 584 years has other worries.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
