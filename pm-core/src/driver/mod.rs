//! The driver: what the machines decide, done with tokio.
//!
//! | module | does |
//! |---|---|
//! | [`launch`] | starts and ends processes |
//! | `command` | what a Spec means for its process |
//! | `start` | makes a worker out of a Spec and a transport |
//! | `listeners` | binds what all processes of a Spec accept from |
//! | [`socket_path`] | sockets with a path in the file system |
//! | `exec` | a program that runs once |
//! | `worker` | lives through one incarnation of a worker |
//! | `link` | the calls on one link |
//! | `call` | one call, from its caller to a worker and back |
//! | `flow` | one end of a stream, here or in a worker |
//! | `spare` | what a thread keeps of calls that are over |
//! | `pool` | the queue, the links, and the task that keeps workers alive |
//! | [`framed`], [`memory`] | links over byte streams, and in memory |
//! | `inprocess` | workers that are threads |
//! | `visitor` | workers that pm did not start |
//! | `service` | services: their processes, probes, output, and the task that keeps them |
//! | `signal` | SIGINT and SIGTERM, where the program asks for them |
//! | `stderr` | what workers print |
//! | `forward` | their lines on the way to the standard error of this process |
//! | `meter` | what a pool counts: answers, how long they took, errors |
//! | `usage` | what a process uses |
//! | `clock` | the clock of the machines |

pub(crate) mod call;
pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod exec;
pub(crate) mod flow;
pub(crate) mod forward;
pub mod framed;
pub(crate) mod inprocess;
pub mod launch;
pub(crate) mod link;
pub(crate) mod listeners;
pub mod memory;
pub(crate) mod meter;
pub(crate) mod pool;
#[cfg(feature = "service")]
pub(crate) mod service;
pub mod signal;
pub mod socket_path;
mod spare;
pub(crate) mod start;
pub(crate) mod stderr;
pub(crate) mod usage;
pub(crate) mod visitor;
pub(crate) mod worker;
