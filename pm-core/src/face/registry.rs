//! Every pool of this program that lives.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::metrics::metrics_text;
use crate::driver::clock;
use crate::driver::pool::{AnyPool, Command, Health, PoolInfo};
use crate::driver::signal::{ENDINGS, Heard};
use crate::machine::exit::Signal;

/// How long [`shutdown_all`] lets queries finish, where nothing else is said.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

static POOLS: Mutex<Vec<Weak<dyn AnyPool>>> = Mutex::new(Vec::new());

fn pools() -> MutexGuard<'static, Vec<Weak<dyn AnyPool>>> {
    POOLS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn add(pool: &Arc<dyn AnyPool>) {
    let mut pools = pools();
    pools.retain(|pool| pool.strong_count() > 0);
    pools.push(Arc::downgrade(pool));
}

fn living() -> Vec<Arc<dyn AnyPool>> {
    pools().iter().filter_map(Weak::upgrade).filter(|pool| !pool.commands().is_closed()).collect()
}

/// What every pool that lives is doing, in the order in which they were started.
pub fn pools_info() -> Vec<PoolInfo> {
    living().iter().map(|pool| pool.info()).collect()
}

/// How every pool that lives is doing, in the order in which they were started. It looks at /proc for each of their workers.
pub fn health() -> Vec<Health> {
    living().iter().map(|pool| pool.health()).collect()
}

/// The same as text for Prometheus. See [`metrics_text`].
pub fn metrics() -> String {
    metrics_text(&health())
}

/// Shuts every pool down at the same time: no further query is taken, those under way have until the deadline, then all workers are
/// killed. Returns once all are gone.
///
/// # Cancel safety
/// A shutdown that has begun goes on without its caller.
pub async fn shutdown_all(limit: Duration) {
    let closing: Vec<_> = living().into_iter().map(|pool| tokio::spawn(shut_down(pool, Some(limit)))).collect();
    for pool in closing {
        // A pool whose task is gone is shut down.
        let _ = pool.await;
    }
}

/// Waits for SIGINT or SIGTERM, then shuts every pool down as [`shutdown_all`] does; a second signal kills what is left. Returns the first
/// signal once all are gone, so that the program can end with the status that tells of it (130 or 143).
///
/// pm handles no signal unless this is called.
///
/// # Errors
/// What the operating system says where a handler cannot be set.
///
/// # Cancel safety
/// Signals go on being caught, and ignored, once this was polled.
pub async fn shutdown_on_signal(limit: Duration) -> io::Result<Signal> {
    let mut endings = Heard::of(&ENDINGS)?;
    let first = endings.next().await;
    tokio::select! {
        () = shutdown_all(limit) => {}
        _ = endings.next() => shutdown_all(Duration::ZERO).await,
    }
    Ok(first)
}

pub(crate) async fn shut_down(pool: Arc<dyn AnyPool>, limit: Option<Duration>) {
    let deadline = limit.map(|limit| clock::now() + limit);
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    if pool.commands().send(Command::Shutdown(deadline)).await.is_ok()
        && pool.commands().send(Command::Closed(closed)).await.is_ok()
    {
        let _ = is_closed.await;
    }
}
