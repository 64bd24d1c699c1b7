//! Starting, watching and ending processes, down to the system calls. All `unsafe` of pm-core stands here.
//!
//! | module | is |
//! |---|---|
//! | `clock` | the clock of the kernel |
//! | [`command`] | one process to start, as plain data |
//! | `spawn` | the clone and what the child does until it executes its program |
//! | `wait` | what became of children |
//! | `tree` | who descends from whom, and killing all that do |
//! | `keeper` | the process that starts, reaps and outlives everything of one manager |
//! | `strays` | what the keeper knows of processes that left their parents |
//! | `datagram` | messages with who sent them |
//! | `last_words` | what a process that has ended has left in its streams |
//! | `keeper_wire` | what manager and keeper say to each other |
//! | `inherited` | what a worker was given by its manager |
//! | `outbox` | answers that survive the worker that gave them |
//! | `seqpacket` | messages with descriptors over a socket |

pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod datagram;
pub(crate) mod inherited;
pub(crate) mod keeper;
pub(crate) mod keeper_wire;
pub(crate) mod last_words;
pub(crate) mod outbox;
pub(crate) mod seqpacket;
pub(crate) mod spawn;
pub(crate) mod strays;
pub(crate) mod tree;
pub(crate) mod wait;
