//! Services: what [`Supervisor`](crate::machine::supervisor::Supervisor) decides, done with processes.
//!
//! | module | does |
//! |---|---|
//! | `task` | keeps all services of an orchestrator: feeds the machine, carries out what it says, answers requests |
//! | `process` | lives through one incarnation of a service |
//! | `probe` | asks a service once whether it is well |
//! | `port` | finds out who holds a port |
//! | `listening` | keeps what the processes of a service accept from |
//! | `notify` | hears what a service says of itself by sd_notify(3) |
//! | `command` | runs a command that belongs to a service |
//! | `input` | what a service reads, and those who write there |
//! | `terminal` | the pseudo-terminal of a service |
//! | `output` | reads what services print, on a thread of its own |
//! | `tap` | the same byte for byte, for those who are attached |
//! | `log` | writes that to files, and lets them not grow without end |
//! | `hook` | runs what is to follow from an event |
//! | `keep` | lets processes outlive this one, and knows those again that have |

mod command;
pub(crate) mod hook;
pub(crate) mod input;
pub(crate) mod keep;
mod listening;
pub(crate) mod log;
mod notify;
pub(crate) mod output;
mod port;
mod probe;
mod process;
pub(crate) mod tap;
pub(crate) mod task;
pub(crate) mod terminal;
