//! The `pm` command. What it does is in the library `pm_cli`.

#![deny(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process was started without a standard output. Written before `main`, when there is one thread.
static IS_STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// The runtime of Rust opens /dev/null in place of a standard output that is closed, before `main`. From then on nothing tells it from what others
/// open for programs that are not to be heard (Python's `DEVNULL`, daemon(3)), so it is looked at before that.
#[used]
#[expect(unsafe_code, reason = "no other code runs before the runtime does")]
// SAFETY: The C library calls what stands in this section, with arguments that a function may leave alone, before anything else of this program. It
// makes one system call, and needs nothing that the runtime would have to set up.
#[unsafe(link_section = ".init_array")]
static BEFORE_THE_RUNTIME: extern "C" fn() = {
    extern "C" fn look() {
        let is_closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()) == Err(rustix::io::Errno::BADF);
        IS_STDOUT_CLOSED.store(is_closed, Ordering::Relaxed);
    }
    look
};

fn main() -> ExitCode {
    // Workers, the keeper and the peers of a bench are this same program; in those these calls do not return.
    pm_cli::bench::place::pin_from_environment();
    pm_cli::bench::limits::serve_if_peer();
    pm::roles(pm_cli::roles::ALL);
    let stdout = if IS_STDOUT_CLOSED.load(Ordering::Relaxed) { pm_cli::Stdout::Closed } else { pm_cli::Stdout::Open };
    pm_cli::run(std::env::args_os(), stdout)
}
