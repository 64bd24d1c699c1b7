//! `pm` as people use it: the built binary, real processes, real signals.
//!
//! Each run has a mark of its own in its environment, which all that it starts inherits. At its end no process with that mark may be left.

#[path = "cli/attach.rs"]
mod attach;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/compose.rs"]
mod compose;
#[path = "cli/faults.rs"]
mod faults;
#[path = "cli/jobs.rs"]
mod jobs;
#[path = "cli/keep.rs"]
mod keep;
#[path = "cli/log.rs"]
mod log;
#[path = "cli/reload.rs"]
mod reload;
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/streams.rs"]
mod streams;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/tui.rs"]
mod tui;
#[path = "cli/up.rs"]
mod up;
#[path = "cli/usage.rs"]
mod usage;
#[path = "cli/watch.rs"]
mod watch;
