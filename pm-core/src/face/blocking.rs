//! Queries of threads that belong to no runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::error::QueryError;
use super::query::{QueryManager, QueryOptions};
use crate::codec::Codec;

impl<I, O, C> QueryManager<I, O, C>
where
    C: Codec<I> + Codec<O>,
{
    /// Sends a query as [`query`](Self::query) does, and blocks this thread until it has its answer. For threads outside of any runtime; the
    /// runtime on which the pool was started must go on running elsewhere.
    ///
    /// # Errors
    /// [`QueryError::OnRuntime`] within a runtime, which must not be blocked; otherwise as [`query`](Self::query).
    pub fn query_blocking(&self, input: &I) -> Result<O, QueryError> {
        self.query_blocking_with(input, QueryOptions::new())
    }

    /// The same, with a timeout or retries of its own.
    ///
    /// # Errors
    /// As [`query_blocking`](Self::query_blocking).
    pub fn query_blocking_with(&self, input: &I, options: QueryOptions) -> Result<O, QueryError> {
        let pool = &self.pool.handle.pool;
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(QueryError::OnRuntime { pool: pool.name().clone() });
        }
        // Hooks of the program may run in this thread, and expect a runtime.
        let _entered = pool.runtime().enter();
        block_on(self.query_with(input, options))
    }
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    // A thread that is just ending has no waker of its own any more.
    let waker = WAKER.try_with(Waker::clone).unwrap_or_else(|_| Waker::from(Arc::new(Unpark(thread::current()))));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            // Somebody else may have used the token of this thread; then it looks once more than it had to.
            Poll::Pending => thread::park(),
        }
    }
}
