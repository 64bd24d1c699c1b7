//! `pm pool`: lines in, results out, and workers in between.
//!
//! ```text
//!  stdin ─▶ intake ─▶ board ─▶ lanes ─▶ QueryManager
//!           thread      │        │
//!                       │◀───────┘ outcomes
//!                       └─▶ writer ─▶ stdout or the result file, stderr
//!                           thread
//! ```
//!
//! With `--stream` there is no board: `streams` sends each line to the task of its key, which has the stream.
//!
//! The board is the one state, without I/O or a clock: which jobs may go, which results may be written. Lanes are tasks that take a
//! job from it, query the pool and bring the outcome back. Reading and writing block, so they have a thread each; what passes between
//! them and the board is bounded by the board.

mod board;
mod format;
mod intake;
mod job;
pub mod key;
mod keys;
mod latency;
mod log;
mod patience;
mod progress;
mod run;
mod streams;
mod talk;
mod watch;
mod writer;

pub use run::run;
