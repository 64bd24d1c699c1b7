//! Many queries at the same time, from one caller.

use std::future::Future;

use super::carry::Carry;
use super::error::QueryError;
use super::query::{QueryManager, QueryOptions};
use crate::codec::Codec;
use crate::driver::clock;
use crate::driver::link::FLUSH_AT_CHEAP;

/// So many go to a worker together: it begins with them while the next ones are on their way.
const TOGETHER: usize = FLUSH_AT_CHEAP as usize;

impl<I, O, C> QueryManager<I, O, C>
where
    C: Codec<I> + Codec<O>,
{
    /// Sends a query for each of these inputs, and waits for all answers, which come in the order of the inputs. Each is a query of its own, with
    /// its own deadline, retries and error; what it saves is that they travel together, and that this task is woken once for many. For large payloads as many
    /// tasks are quicker, since here all of them are encoded before the first goes out.
    ///
    /// All inputs are encoded at once, and the queries go out when the future is first polled: as many as the workers should have, and the others into the queue.
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
        let terms = self.terms.with(options);
        let calls: Vec<_> = inputs.iter().map(|input| self.call(input, terms)).collect();
        let (codec, handle) = (self.codec.clone(), self.pool.handle.clone());
        async move {
            let made = clock::now();
            // Whoever drops this before all have their outcome has lost interest in all of them.
            let mut batch: Vec<_> = calls.into_iter().map(|call| Carry::new(&*handle, call)).collect();
            // One alone is as well off as any other query.
            let mut at = if batch.len() == 1 { 1 } else { 0 };
            while at < batch.len() {
                let end = batch.len().min(at + TOGETHER);
                let part = &mut batch[at..end];
                let sent = handle.pool.submit_many(made, &mut part.iter().map_while(|carry| carry.unsent(made)));
                part[..sent].iter_mut().for_each(Carry::was_sent);
                at += sent;
                if sent < part.len() {
                    // No call at all, or one for which its worker has no room.
                    part[sent].submit(made);
                    at += 1;
                }
            }
            let mut answers = Vec::with_capacity(batch.len());
            for carry in &mut batch {
                answers.push(carry.await);
            }
            // Outputs need not be fit for other threads, so none is there while this waits.
            answers.into_iter().map(|answer| answer?.decode(&codec)).collect()
        }
    }
}
