//! Work in other processes that feels like calling an async function.
//!
//! pm keeps pools of worker processes. A query goes to one of them and comes back with its result or its own error; a worker that dies is
//! replaced; when the program ends, however it ends, nothing is left behind.
//!
//! # A first pool
//!
//! ```no_run
//! static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     pm::roles([&DOUBLE]); // in a worker's process this serves, and never returns
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let pool = DOUBLE.pool().workers(4).start().await?;
//!         assert_eq!(pool.query(&21).await?, 42);
//!         pool.shutdown().await;
//!         Ok(())
//!     })
//! }
//! ```
//!
//! A worker is this very program, started again. So [`roles`] comes first in a plain `main`, before any runtime, logger or thread; a program
//! that never calls it never starts itself: the start of a pool fails there with
//! [`LaunchError::RolesNotCalled`](core::driver::launch::LaunchError::RolesNotCalled).
//!
//! # Tests
//!
//! A test harness has no such `main`. There a pool serves in threads of the same process, with the same codec, calls and errors:
//!
//! ```
//! static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let pool = DOUBLE.pool().in_process().start().await?;
//! assert_eq!(pool.query(&21).await?, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! [`spawning::disable`] does that for all pools of this program's own roles that start from then on, and the variable `PM_IN_PROCESS=1` from
//! outside. A pool of another program says that it cannot; `force` spawns all the same.
//!
//! # What can go wrong
//!
//! Every query resolves exactly once. [`QueryError`] says with what, [`QueryError::maybe_executed`] whether the handler may have run, and
//! [`QueryError::is_retryable`] whether the same query may well succeed again.
//!
//! | error | means | the worker |
//! |---|---|---|
//! | `Handler` | it returned an error or panicked | lives on |
//! | `TimedOut` | it took too long | is told, and replaced if it does not yield within the cancel grace |
//! | `WorkerLost` | its worker died with the query aboard | is replaced |
//! | `Poisoned` | it was aboard three dying workers | is replaced |
//! | `GaveUp` | workers keep dying, and none finishes a query (see [`Budget`]) | stays down until `revive` |
//! | `NoWorkers`, `ShuttingDown` | nobody is there to serve it | |
//! | `Encode`, `TooLarge` | the input cannot be sent | never saw it |
//! | `Decode` | the output is not what the caller expects | lives on |
//!
//! A query is tried once, unless a [`Retry`] says otherwise; one that had not started when its worker died goes to another one.
//!
//! ```
//! use std::time::Duration;
//! use pm::{Delay, Retry};
//!
//! static FETCH: pm::Query<String, String> = pm::Query::new("fetch", &|url: String| url);
//!
//! let builder = FETCH
//!     .pool()
//!     .workers(8)
//!     .timeout(Duration::from_secs(10))
//!     .retry(Retry::times(2).on_timeout().delay(Delay::Constant(Duration::from_millis(100))));
//! # drop(builder);
//! ```
//!
//! # Many at once, and threads
//!
//! [`query_batch`](QueryManager::query_batch) sends many queries together, each with its own deadline and error;
//! [`query_blocking`](QueryManager::query_blocking) is for threads that belong to no runtime.
//!
//! ```
//! static SQUARE: pm::Query<u64, u64> = pm::Query::new("square", &|n: u64| n * n);
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let pool = SQUARE.pool().in_process().start().await?;
//! let squares = pool.query_batch(&[1, 2, 3]).await;
//! assert_eq!(squares.into_iter().collect::<Result<Vec<_>, _>>()?, [1, 4, 9]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # Streams
//!
//! A [`Stream`] is a call with many messages both ways; its [pool](StreamManager) has thousands of them in each worker. Both sides hold a [`Duplex`].
//!
//! ```
//! static SHOUT: pm::Stream<String, String> = pm::Stream::new("shout", &shout);
//!
//! async fn shout(mut peer: pm::Duplex<String, String>) -> Result<(), pm::StreamError> {
//!     while let Some(text) = peer.next().await {
//!         peer.write(&text?.to_uppercase()).await?;
//!     }
//!     Ok(())
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let pool = SHOUT.pool().in_process().start().await?;
//! let mut stream = pool.create_stream().await?;
//! stream.write(&"hello".to_string()).await?;
//! assert_eq!(stream.next().await.unwrap()?, "HELLO");
//! stream.close().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! A write waits for the peer's credit: see [`Duplex`] for backpressure, and for what it means to drop a half. A message that the worker had sent is read before the end,
//! and the end says what became of the stream: nothing more, or a [`StreamError`].
//!
//! # Raw workers, servers, pipelines
//!
//! A [raw worker](RawManager) has one conversation with the program for as long as it lives; [`Pipeline`] puts managers in a row. The [`guide`] says when to choose what,
//! where backpressure comes from, how a server is replaced without losing a request, and how pools live in one.
//!
//! # A pool that looks after itself
//!
//! With an [`Autoscale`] the load decides how many workers there are: from 1 to 8 by default, one more where each has more than 5 calls in the mean of a second, one
//! less where it has fewer than 2, and 30 s between two steps. The idlest go, and finish what they have; an idle pool of the least size costs nothing.
//!
//! ```
//! use std::time::Duration;
//! use pm::Autoscale;
//!
//! static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
//!
//! let builder = DOUBLE.pool().autoscale(Autoscale::new().between(2, 16).cool_down(Duration::from_secs(5)));
//! # drop(builder);
//! ```
//!
//! With a [`Recycle`], workers are replaced while they are well: after so many calls, at an age, where their memory has grown, or on a schedule; [`recycle`](Pool::recycle)
//! does it when you say so. One at a time: a new one serves before the old one drains, so no query is lost, and there is one process more for a while, where a
//! [`respawn`](Pool::respawn) has twice as many.
//!
//! ```
//! use std::time::Duration;
//! use pm::Recycle;
//!
//! static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
//!
//! let leaky = Recycle::new().after_calls(100_000).above_rss(1 << 30).drain(Duration::from_secs(60));
//! let builder = DOUBLE.pool().workers(4).recycle(leaky);
//! # drop(builder);
//! ```
//!
//! # Configuration
//!
//! A [`PoolConfig`] says in any format that serde knows what the builder says in code: [`configure`](PoolBuilder::configure) does it. Times are written as `"250ms"` or
//! `"1h30m"`, 0 is no timeout, and [`Workers`] has the presets `cpu`, `io` and `memory`, for both.
//!
//! ```
//! static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
//!
//! let config: pm::PoolConfig = serde_json::from_str(r#"{ "workers": "cpu", "timeout": "10s", "autoscale": { "max": 16 } }"#)?;
//! let builder = DOUBLE.pool().workers(pm::Workers::Io).configure(&config);
//! # drop(builder);
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! # How it is doing
//!
//! [`health`](Pool::health) says whether a pool is well, and what is wrong where it is not; what it has counted; how long its calls took; and what its workers use.
//! [`registry::metrics`] gives that of all pools of the program as text for Prometheus, for the HTTP server that you have.
//!
//! ```
//! static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let pool = DOUBLE.pool().in_process().start().await?;
//! pool.query(&21).await?;
//! let health = pool.health();
//! assert_eq!((health.status, health.answered, health.errors.total()), (pm::Status::Healthy, 1, 0));
//! assert!(health.latency.p99() >= health.latency.p50());
//! assert!(pm::registry::metrics().contains("pm_calls_answered_total{pool=\"double\""));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # Cancelling
//!
//! Dropping the future of a query cancels it; a stream is ended by [`cancel`](Duplex::cancel). A handler that looks at [`cancelled`] or asks to be told by [`on_cancel`] can stop early; an async
//! handler is dropped at its next await; one that does neither is killed with its worker after the cancel grace (1 s). A worker of streams has others beside: it is killed where it says nothing at
//! all for the cancel grace (10 s), though it is asked, for then its handlers never give way and none of its streams goes on.
//!
//! # Other programs
//!
//! [`PoolBuilder::program`] starts any program that speaks the protocol of docs/PROTOCOL.md: one in Python or Node.js with the kits under
//! `workers/`, or one in Rust that calls [`serve`].
//!
//! [`exec`] runs any program once, to its end: with an argument list, some input, a timeout and a bound on what it may print. [`shell`] does so with a
//! text for `/bin/sh`. However the program ends, that is an [`Output`]; [`check`](Output::check) makes an error of what was no success. A program that cannot
//! be found or executed, takes too long or prints too much is an [`ExecError`] each, and with it ends all that it had started.
//!
//! ```no_run
//! # async fn app() -> Result<(), pm::ExecError> {
//! let status = pm::exec(["git", "diff", "--quiet"]).spec(|spec| spec.cwd("/srv/site")).output().await?.status;
//! let digest = pm::exec(["sha256sum"]).stdin(format!("changed: {}", !status.success())).output().await?.check()?;
//! println!("{}", digest.text());
//! # Ok(()) }
//! ```
//!
//! # The environment
//!
//! | variable | who sets it | says |
//! |---|---|---|
//! | `PM_IN_PROCESS` | you | with `1`, pools of this program's own roles serve in threads: for tests and debuggers |
//! | `PM_KEEPER` | you | the program to run as the keeper, as `$PM_KEEPER keeper`, where this one never calls [`roles`]: the path of `pm` |
//! | `PM_UNIT` | pm, for all that it starts | which incarnation of which worker a process belongs to, also when it has left its parents |
//! | `PM_SOCKET` | you, for a worker that pm does not start | the socket of a pool that takes [visitors](PoolBuilder::visitors) |
//! | `PM_WORKER` | pm, for workers | the number of the worker in its pool, the same for all its incarnations |
//! | `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES` | pm, for workers | the listeners of the Spec, as systemd gives them |
//! | `PM_ROLE` | pm, for workers; you, for a visitor with several roles | what to serve |
//! | `PM_LINK`, `PM_LINK_FD`, `PM_OUTBOX_FD` | pm, for workers | where the link is, and the outbox of a worker in Rust |
//! | `PM_KIT` | `pm pool`, for `@py` and `@node` | the kit itself, which is taken out before it runs |
//!
//! A worker takes `PM_LINK`, `PM_LINK_FD`, `PM_OUTBOX_FD`, `PM_ROLE` and `PM_SOCKET` out of its environment.
//!
//! # Features
//!
//! | feature | default | gives |
//! |---|---|---|
//! | `uds` | yes | the transport over Unix sockets, and [`Query`] with it as its default |
//! | `stdio` | yes | the transport over pipes |
//! | `shm` | yes | the transport over shared memory, between Rust programs |
//! | `foreign` | yes | links to programs that do not speak the protocol: [`Lines`], [`NodeChannel`], [`Silent`] |
//! | `bincode` | no | the codec `codec::Bincode` |
//! | `testing` | no | `core::testing`: the conformance suite for transports, the simulation |

#![forbid(unsafe_code)]

pub mod guide;

pub use bytes::Bytes;
pub use pm_core as core;
pub use pm_core::codec::{self, Codec, Json, Postcard, Verbatim};
pub use pm_core::face::builder::{PoolBuilder, Queries, Raw, Streams};
pub use pm_core::face::config::{AutoscaleConfig, BudgetConfig, PoolConfig, RecycleConfig, Workers};
pub use pm_core::face::duplex::{Duplex, Incoming, Reply, StreamReceiver, StreamSender};
pub use pm_core::face::error::{
    HandlerError, HandlerErrorKind, QueryError, QueryErrorKind, StartError, StreamError, TryQueryError, WorkerLost,
};
pub use pm_core::face::exec::{Exec, ExecError, Output, OutputStream, exec, shell};
pub use pm_core::face::metrics::metrics_text;
pub use pm_core::face::pipeline::{Outputs, Pipeline, PipelineError, StageInfo};
pub use pm_core::face::pool::{Errors, Health, Latencies, Pool, PoolInfo, WorkerHealth, WorkerInfo};
pub use pm_core::face::query::{QueryManager, QueryOptions, SlowQuery, TimeoutFrom};
pub use pm_core::face::raw::{RawEvent, RawEvents, RawManager, RawWorker};
pub use pm_core::face::stream::StreamManager;
pub use pm_core::face::worker::Worker;
pub use pm_core::face::{metrics, registry, spawning};
pub use pm_core::machine::budget::Budget;
pub use pm_core::machine::cause::ExitCause;
pub use pm_core::machine::event::Event;
pub use pm_core::machine::exit::{ExitStatus, Signal};
pub use pm_core::machine::health::{Status, Trouble};
pub use pm_core::machine::id::{Incarnation, WorkerId};
pub use pm_core::machine::recycle::{BadRecycle, Reason as RecycleReason, Recycle};
pub use pm_core::machine::retry::{Delay, Failure, Retry};
pub use pm_core::machine::scaling::{Autoscale, BadAutoscale};
pub use pm_core::machine::spec::{Inherit, ListenAddress, Resource, Spec, SpecBuilder, Stderr};
pub use pm_core::transport::Transport;
pub use pm_core::worker::context::{cancelled, draining, is_draining, notice, on_cancel, time_left};
pub use pm_core::worker::error::ServeError;
pub use pm_core::worker::listeners::{Listener, take_listeners};
pub use pm_core::worker::role::{ByteQuery, ByteStream, Role};

/// Programs that do not speak the protocol: what their messages mean.
#[cfg(feature = "foreign")]
pub use pm_transport_foreign as foreign;
#[cfg(feature = "foreign")]
pub use pm_transport_foreign::{Lines, NodeChannel, Silent};
#[cfg(feature = "shm")]
pub use pm_transport_shm::{Shm, Wake};
#[cfg(feature = "stdio")]
pub use pm_transport_stdio::Stdio;
#[cfg(feature = "uds")]
pub use pm_transport_uds::Uds;

#[cfg(any(feature = "stdio", feature = "uds", feature = "shm"))]
mod any;
#[cfg(any(feature = "stdio", feature = "uds", feature = "shm"))]
pub use any::{AnyTransport, UnknownTransport};

#[cfg(feature = "service")]
pub mod service {
    #![doc = "Services: long-running processes that need each other. An [`Orchestrator`] starts them in the order of their needs, watches them, and stops"]
    #![doc = "them for good; a [`Service`] says what runs, what it needs, and how it is known to be ready. docs/SERVICES.md has the words and what one may"]
    #![doc = "rely on; `pm up` is this as a command."]

    pub use pm_core::face::service::*;
    pub use pm_core::machine::metrics::{Gauge, Metrics, SHORTEST_INTERVAL, Sample};
    pub use pm_core::machine::probe::Timing;
    pub use pm_core::machine::restart::{Restart, When};
    pub use pm_core::machine::service::{
        Condition, Event, Need, PortHolder, PortTaken, Readiness, Rules, ServiceId, State, UnknownCondition, Verdict,
    };
}

/// A query that this program can serve, in pools over Unix sockets unless they say otherwise.
#[cfg(feature = "uds")]
pub type Query<I, O> = pm_core::Query<I, O, Uds>;

/// A stream that this program can serve, in pools over Unix sockets unless they say otherwise.
#[cfg(feature = "uds")]
pub type Stream<I, O> = pm_core::Stream<I, O, Uds>;

/// The programs of the README.
#[cfg(all(doctest, feature = "uds"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The worker's halves of the transports that this build has.
const CONNECTS: &[&dyn pm_core::transport::Connect] = &[
    #[cfg(feature = "stdio")]
    &Stdio,
    #[cfg(feature = "uds")]
    &Uds,
    #[cfg(feature = "shm")]
    &Shm::new(),
];

/// Says which queries and streams this program can serve. Call it first in a plain `main`, before any runtime, logger or thread: in a worker's process it
/// serves and never returns, in every other one it returns at once.
///
/// ```no_run
/// static DOUBLE: pm::Query<u32, u32> = pm::Query::new("double", &|n: u32| n * 2);
///
/// fn main() {
///     pm::roles([&DOUBLE]);
///     // the program itself
/// }
/// ```
pub fn roles<const N: usize>(roles: [&'static dyn Role; N]) {
    pm_core::worker::roles_over(&roles, CONNECTS);
}

/// Serves one role in a program that is nothing but a worker, and never returns.
///
/// ```no_run
/// static SHOUT: pm::Query<String, String> = pm::Query::new("shout", &|text: String| text.to_uppercase());
///
/// fn main() {
///     // Started by hand it says that it is a worker, and what starts it.
///     let Err(why) = pm::serve(&SHOUT);
///     eprintln!("{why}");
///     std::process::exit(64);
/// }
/// ```
///
/// `pm pool -- target/release/shout` starts it: with a line of text for each job, or with `--in json` where the input is another type.
///
/// # Errors
/// [`ServeError`]: most often that the program was started by hand.
pub fn serve(role: &'static dyn Role) -> Result<std::convert::Infallible, ServeError> {
    pm_core::worker::serve_over(role, CONNECTS)
}
