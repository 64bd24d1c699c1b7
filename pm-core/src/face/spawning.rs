//! A switch for the whole program: with spawning disabled, pools serve in this process.
//!
//! For tests, and for debuggers. The same calls, codecs and errors; see [`PoolBuilder::in_process`](super::builder::PoolBuilder::in_process).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The variable that disables spawning from outside: anything but empty or `0`.
pub const VARIABLE: &str = "PM_IN_PROCESS";

static DISABLED: AtomicBool = AtomicBool::new(false);

/// From now on, pools that start serve in this process, unless they are forced to spawn.
pub fn disable() {
    DISABLED.store(true, Ordering::SeqCst);
}

/// From now on, pools that start spawn processes, whatever the environment says.
pub fn enable() {
    from_environment();
    DISABLED.store(false, Ordering::SeqCst);
}

/// Whether pools that start now spawn processes.
pub fn is_enabled() -> bool {
    from_environment();
    !DISABLED.load(Ordering::SeqCst)
}

/// The environment is looked at once.
fn from_environment() {
    static LOOKED: OnceLock<()> = OnceLock::new();
    LOOKED.get_or_init(|| {
        if std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty() && value != "0") {
            disable();
        }
    });
}
