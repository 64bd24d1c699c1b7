//! More of the guide: which kind of pool to choose, backpressure, replacing workers under load, and pools in a server. The [crate] has its beginning.
//!
//! # Queries, streams or raw workers
//!
//! All three are pools of the same workers, with the same life: started, watched, replaced, drained. They differ in what passes between program and worker.
//!
//! | | a query | a stream | a raw worker |
//! |---|---|---|---|
//! | looks like | an async function | a socket | a child process with a pipe |
//! | passes | one input, one output | messages both ways, in order | messages both ways, in order |
//! | in one worker | as many as it runs at once, others wait | thousands | one, as long as it lives |
//! | which worker | the one on which it costs least | the one with the fewest | you choose |
//! | what it has to do | its calls | its streams | what you say: [`set_load`](crate::RawWorker::set_load) |
//! | a deadline | yes | no | no |
//! | tried again | under a [`Retry`](crate::Retry) | by you, who knows what was said | by you |
//! | its worker dies | an error, or the next try | an error for its reader | an error for its reader, and the next life of the same worker |
//! | choose it for | work that has an end: validate, render, compile, search | state that lives with its messages: a game, a chat, a session | a process that does something of its own: a server, a shard, a device, a program that was written for another manager |
//!
//! Where you hesitate, take a query. A stream whose messages are questions with answers may still be one: it keeps its state, and
//! [`call`](crate::Duplex::call) is a query on it.
//!
//! A raw worker is a role like that of a stream, or any program: [`Lines`](crate::Lines), [`NodeChannel`](crate::NodeChannel) and [`Silent`](crate::Silent) are
//! links to those that know nothing of pm.
//!
//! ```
//! static SHARD: pm::Stream<String, usize> = pm::Stream::new("shard", &shard).concurrency(1);
//!
//! /// Remembers what it is told, and says how much that is.
//! async fn shard(mut program: pm::Duplex<usize, String>) -> Result<(), pm::StreamError> {
//!     let mut known = std::collections::HashSet::new();
//!     while let Some(word) = program.next().await {
//!         known.insert(word?);
//!         program.write(&known.len()).await?;
//!     }
//!     Ok(())
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let shards = SHARD.pool().raw().in_process().workers(2).start().await?;
//! let shard = shards.least_loaded().ok_or("no shard serves")?;
//! let mut sizes = shard.take_receiver().ok_or("somebody else reads")?;
//! shard.send(&"a word".to_string()).await?;
//! let size = sizes.next().await.transpose()?.unwrap_or_default();
//! shard.set_load(size as u32);
//! assert_eq!(shards.workers()[0].load, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! Workers that something else starts (a service manager, a debugger, a container with the same user) are [visitors](crate::PoolBuilder::visitors) of a pool: they connect to its
//! socket, and are workers like any other from then on.
//!
//! Work that goes through several pools in a row is a [`Pipeline`](crate::Pipeline); a program that runs once and ends is [`exec`](crate::exec).
//!
//! # Backpressure
//!
//! Nothing is unbounded, so whoever makes more than is taken has to wait, or to be told.
//!
//! | where | what is bounded | who waits |
//! |---|---|---|
//! | [`query`](crate::QueryManager::query) | nothing but the number of callers, each of which holds its input | the caller, in turn |
//! | [`try_query`](crate::QueryManager::try_query) | the queue of the pool, 4,096 by default | nobody: the input comes back |
//! | [`query_batch`](crate::QueryManager::query_batch) | the batch | the caller, for all of it |
//! | a worker | the calls on their way to it, as many as take it about a millisecond | the queue of the pool |
//! | [`write`](crate::Duplex::write) on a stream | what the other side has not read: 1024 messages or 256 KiB, and the message that goes beyond | the writer, on this stream alone |
//! | [`send`](crate::RawWorker::send) to a raw worker | the same | the sender |
//! | a program behind [`Lines`](crate::Lines) or [`NodeChannel`](crate::NodeChannel) | the same, and what the pipe holds | the program, in its own write |
//! | [`run_all`](crate::Pipeline::run_all) | the items that are inside | whoever makes the items: none is asked for |
//! | [`exec`](crate::exec) | what the program prints, 64 MiB by default | nobody: more is an error |
//!
//! A server that takes requests from outside bounds how many it has at once, and refuses the rest: a semaphore around `query`, or `try_query` with its queue. What
//! waits in an unbounded list somewhere in front of a pool is the memory that the server dies of.
//!
//! A reader of a stream that stops reading stops its writer, and nobody else. To read on and throw away is a choice that only the reader can make; to
//! [`cancel`](crate::Duplex::cancel) is the other one.
//!
//! # Replacing workers without downtime
//!
//! [`respawn`](crate::Pool::respawn) starts as many new workers as there are, and lets go of an old one for each new one that is ready. What is aboard an old one stays
//! there: its queries are answered, its streams come to their ends. [`respawn_with`](crate::Pool::respawn_with) says how long that may take.
//!
//! Servers can be replaced the same way, if the manager holds what they accept from. It binds the address once, for the life of the pool, and every worker gets it as
//! systemd would give it:
//!
//! ```no_run
//! # static WEB: pm::Stream<(), u32> = pm::Stream::new("web", &async |_: pm::Duplex<u32, ()>| Ok::<(), String>(()));
//! # async fn app() -> Result<(), Box<dyn std::error::Error>> {
//! let address: pm::ListenAddress = "127.0.0.1:8080".parse()?;
//! let pool = WEB.pool().raw().workers(2).spec(|spec| spec.listen(address)).start().await?;
//! // … and after a deployment:
//! pool.respawn_with(2, Some(std::time::Duration::from_secs(30))).await?;
//! # Ok(()) }
//! ```
//!
//! Connections that no worker has accepted wait in the kernel, for whichever is there next. Those that one has accepted are its own, and it takes some care to lose none of
//! them; `examples/http_cluster` does all of it:
//!
//! 1. A worker that is to leave hears it at once: [`draining`](crate::draining) is ready. It accepts nothing more, and closes its copy of the listener when it likes.
//! 2. It answers what it is asked on the connections that it has, and says with each answer that it was the last (`Connection: close`). To close a connection between two
//!    requests is to lose the one that is on its way: neither hyper's `graceful_shutdown` nor Node's `server.close()` can know of it.
//! 3. Connections on which nothing is asked are closed after a while.
//! 4. If the worker has told the program of its connections as its load, the conversation ends once that is zero, and the worker returns.
//!
//! A server that was not written for pm is one behind [`Silent`](crate::Silent) (it is told by SIGTERM), or behind [`NodeChannel`](crate::NodeChannel) (it hears `disconnect`, and can say that it is ready
//! by [`process.send`](crate::foreign::Conversation::ready_on)). Over both it finds the listener as descriptor 3: `server.listen({ fd: 3 })` in Node.js,
//! `socket.socket(fileno=3)` in Python.
//!
//! # In a server
//!
//! - `pm::roles` comes first in `main`, before the runtime: an `async fn main` under `#[tokio::main]` is too late. Make the runtime by hand, as all examples do.
//! - Start the pools before the server listens. A pool that cannot start says why at once, and that is the time to find out.
//! - A manager is cheap to clone: put it into the state of the server as it is.
//! - A client that goes away drops its request, and that drops the future of the query: its worker is told, and the next one has its place.
//! - Errors say what to answer: [`is_retryable`](crate::QueryError::is_retryable) ones are for 503, [`TimedOut`](crate::QueryErrorKind::TimedOut) for 504, and what a handler says about its input for 400.
//! - End in order: stop listening, let requests finish, then [`shutdown`](crate::Pool::shutdown) each pool, or all at once with
//!   [`registry::shutdown_on_signal`](crate::registry::shutdown_on_signal). If it does not come to that, the keeper kills what is left: nothing outlives the server.
//! - Watch [`Pool::events`](crate::Pool::events), or have `tracing` collect them: each is an event of the target `pm::pool`.
//! - Workers that hold secrets get an environment of their own: [`replace_env`](crate::SpecBuilder::replace_env) or [`allow_env`](crate::SpecBuilder::allow_env).
