//! The machines: every decision of pm, without I/O.
//!
//! Nothing here reads a clock, spawns, touches a descriptor or draws randomness. Time comes in as an argument, seeds come
//! in at construction, and what should happen goes out as results and effects. So each machine can be driven through
//! years of virtual time in a test, and a failing run is a list of inputs that replays.
//!
//! | machine | decides |
//! |---|---|
//! | [`session`] | which calls are on one link, which have started, which are late |
//! | [`mod@stream`] | who may still send on one stream, and how much |
//! | [`window`] | how many calls one worker should have at once |
//! | [`pulse`] | whether a worker that does not end a cancelled stream still lives |
//! | [`dispatch`] | which worker a call goes to |
//! | [`line`](mod@line) | which call is next where all workers are busy, and which has waited too long |
//! | [`retry`] | whether a failed call is tried again |
//! | [`mod@unit`] | the life of one process: start, ready, drain, stop |
//! | [`pool`] | the life of a set of equal units: scaling, replacement, giving up |
//! | [`recycle`] | which workers are replaced while they are well, and when |
//! | [`scaling`] | how many workers a pool should have, by its load |
//! | [`supervisor`] | which services start and stop, in which order, and which cannot |
//! | [`life`] | the life of one service: its starts, its health, its end |
//! | [`probe`] | when a service is asked whether it is well, and what its answers mean |
//! | [`metrics`] | when it is measured what a service uses, and whether that is high |
//! | [`restart`] | whether a service that ended is started again |
//! | [`budget`] | whether a unit that died is started again, and after which delay |
//! | [`health`] | whether a pool is well |
//! | [`graph`] | in which order things that need each other start and stop |
//!
//! | vocabulary | says |
//! |---|---|
//! | [`spec`] | how to start one thing |
//! | [`service`] | what services need of each other, what state they are in, and what happened to them |
//! | [`frame`], [`payload`], [`handshake`] | what passes over a link |
//! | [`event`], [`cause`], [`exit`] | what happened to a worker, and why it ended |
//! | [`id`], [`time`] | who, and when |

pub mod budget;
pub mod cause;
pub mod dispatch;
pub mod event;
pub mod exit;
pub mod frame;
pub mod graph;
pub mod handshake;
pub mod health;
pub mod id;
pub mod life;
pub mod line;
pub mod metrics;
pub mod payload;
pub mod pool;
pub mod probe;
pub mod pulse;
pub mod recycle;
pub mod restart;
pub mod retry;
pub mod scaling;
pub mod service;
pub mod session;
pub mod spec;
pub mod stream;
pub mod supervisor;
pub mod time;
pub mod unit;
pub mod window;
