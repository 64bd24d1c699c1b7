//! Every pool of this program that lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::driver::clock;
use crate::driver::pool::{AnyPool, Command, PoolInfo};

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

pub(crate) async fn shut_down(pool: Arc<dyn AnyPool>, limit: Option<Duration>) {
    let deadline = limit.map(|limit| clock::now() + limit);
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    if pool.commands().send(Command::Shutdown(deadline)).await.is_ok()
        && pool.commands().send(Command::Closed(closed)).await.is_ok()
    {
        let _ = is_closed.await;
    }
}
