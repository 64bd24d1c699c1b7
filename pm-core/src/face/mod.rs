//! What programs hold: managers and what they return.
//!
//! | module | holds |
//! |---|---|
//! | [`builder`] | a pool in the making |
//! | [`config`] | what a configuration says of a pool |
//! | `batch` | many queries at the same time, from one caller |
//! | `blocking` | queries of threads that belong to no runtime |
//! | `carry` | one query on its way |
//! | [`duplex`] | one end of a stream, in a manager or in a worker |
//! | [`pool`] | a pool of workers, whatever they serve |
//! | [`raw`] | a pool of workers that each have one conversation |
//! | [`pipeline`] | managers in a row |
//! | [`query`] | a pool of workers that answer queries |
//! | [`stream`] | a pool of workers that serve streams |
//! | [`worker`] | one worker without a pool |
//! | `service` | services, and the orchestrator that keeps them (feature `service`) |
//! | [`exec`] | other programs, run once |
//! | [`metrics`] | how pools are doing, as text for Prometheus |
//! | [`registry`] | all pools of this program |
//! | [`spawning`] | whether processes may be started |
//! | [`error`] | what can go wrong |
//!
//! A role is declared by [`Query`](crate::worker::role::Query) or [`Stream`](crate::worker::role::Stream), which the worker's side has as well.

mod batch;
mod blocking;
pub mod builder;
mod carry;
pub mod config;
pub mod duplex;
pub mod error;
pub mod exec;
pub mod metrics;
pub mod pipeline;
pub mod pool;
pub mod query;
pub mod raw;
pub mod registry;
#[cfg(feature = "service")]
pub mod service;
pub mod spawning;
pub mod stream;
pub mod worker;
