//! Many queries at the same time, from one caller.

use std::future::{Future, poll_fn};
use std::sync::Arc;

use super::error::QueryError;
use super::query::{QueryManager, QueryOptions, decode, wait_for_room};
use crate::codec::Codec;
use crate::driver::call::Call;
use crate::driver::pool::AnyPool;
use crate::driver::{buffers, clock};

impl<I, O, C> QueryManager<I, O, C>
where
    C: Codec<I> + Codec<O>,
{
    /// Sends a query for each of these inputs, and waits for all answers, which come in the order of the inputs. Each is a query of its own, with
    /// its own deadline, retries and error; what it saves is that they travel together, and that this task is woken once for many.
    ///
    /// All inputs are encoded at once, and the queries go out when the future is first polled, as many as there is room for.
    ///
    /// # Cancel safety
    /// Dropping the future cancels all of them that have no answer yet, as [`query`](Self::query) says.
    ///
    /// # Errors
    /// Each answer is its query's own, as that of [`query`](Self::query).
    pub fn query_batch(&self, inputs: &[I]) -> impl Future<Output = Vec<Result<O, QueryError>>> + Send + use<I, O, C> {
        self.query_batch_with(inputs, QueryOptions::new())
    }

    /// The same, with a timeout or retries of its own for each of the queries.
    pub fn query_batch_with(
        &self,
        inputs: &[I],
        options: QueryOptions,
    ) -> impl Future<Output = Vec<Result<O, QueryError>>> + Send + use<I, O, C> {
        let encoded: Vec<_> = inputs.iter().map(|input| self.encode(input)).collect();
        let (codec, terms, handle) = (self.codec.clone(), self.terms.with(options), self.handle.clone());
        async move {
            let pool = &*handle.pool;
            let made = clock::now();
            let mut batch = Batch { pool, calls: Vec::with_capacity(encoded.len()) };
            for encoded in encoded {
                let call = match encoded {
                    Ok(encoded) => {
                        let call = Call::new(encoded, terms, made);
                        // From here on it is the batch that takes it back.
                        batch.calls.push(Ok(call.clone()));
                        let sent = if pool.submit(made, &call) { Ok(()) } else { wait_for_room(pool, &call).await };
                        let Err(error) = sent else { continue };
                        batch.calls.pop();
                        Err(error)
                    }
                    Err(error) => Err(error),
                };
                batch.calls.push(call);
            }
            let mut outcomes = Vec::with_capacity(batch.calls.len());
            for at in 0..batch.calls.len() {
                outcomes.push(match &batch.calls[at] {
                    Ok(call) => poll_fn(|cx| call.poll(cx)).await,
                    Err(error) => Err(error.clone()),
                });
            }
            // Outputs need not be fit for other threads, so none is there while this waits.
            let decoded = outcomes.into_iter().map(|outcome| {
                let answer = outcome?;
                let output = decode(&codec, &answer);
                buffers::give(answer);
                output
            });
            decoded.collect()
        }
    }
}

/// Whoever drops this before all calls have their outcome has lost interest in them.
struct Batch<'a> {
    pool: &'a dyn AnyPool,
    calls: Vec<Result<Arc<Call>, QueryError>>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for call in self.calls.iter().flatten().filter(|call| !call.is_over()) {
            self.pool.abandon(call);
        }
    }
}
