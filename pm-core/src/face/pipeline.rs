//! Managers in a row: what one answers is what the next is asked.

mod inside;

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use thiserror::Error;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::error::QueryError;
use super::pool::{Pool, PoolInfo};
use super::query::QueryManager;
use super::registry::SHUTDOWN_LIMIT;
use crate::codec::Codec;
use inside::Inside;

type Run<I, O> = dyn Fn(I) -> Answer<O> + Send + Sync;
type Answer<O> = Pin<Box<dyn Future<Output = Result<O, Failed>> + Send>>;

/// Where an item failed, counted from 0, and why.
type Failed = (usize, QueryError);

/// Stages that each item goes through, one after the other. Each is a pool with workers, limits and retries of its own; items that follow each other are in
/// different stages at the same time.
///
/// It is cheap to clone, and every clone is the same pipeline.
///
/// ```
/// # use pm_core::face::pipeline::Pipeline;
/// # use pm_core::face::query::QueryManager;
/// # async fn app(analyse: QueryManager<String, Vec<String>>, generate: QueryManager<Vec<String>, u64>) -> Result<(), Box<dyn std::error::Error>> {
/// let pipeline = Pipeline::new("analyse", analyse).then("generate", generate).map(|code| format!("{code:x}"));
/// println!("{}", pipeline.run("source".to_string()).await?);
/// pipeline.shutdown().await;
/// # Ok(()) }
/// ```
pub struct Pipeline<I, O> {
    stages: Arc<[Stage]>,
    run: Arc<Run<I, O>>,
    inside: Arc<Inside>,
}

#[derive(Clone)]
struct Stage {
    name: Arc<str>,
    pool: Pool,
}

/// An item did not come through, and this is where and why.
#[derive(Clone, Debug, Error)]
#[error("stage {stage:?} ({place} of {stages}): {error}")]
#[non_exhaustive]
pub struct PipelineError {
    /// The name of the stage.
    pub stage: Arc<str>,
    /// Which one it is, counted from 1.
    pub place: usize,
    /// How many there are.
    pub stages: usize,
    /// What happened there.
    #[source]
    pub error: QueryError,
}

/// How one stage is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its pool.
    pub pool: PoolInfo,
}

impl<I: Send + 'static, O: 'static> Pipeline<I, O> {
    /// A pipeline of one stage.
    pub fn new<C: Codec<I> + Codec<O>>(stage: impl Into<Arc<str>>, manager: QueryManager<I, O, C>) -> Self {
        let stages = [Stage { name: stage.into(), pool: (*manager).clone() }];
        let run = move |input: I| -> Answer<O> {
            let query = manager.query(&input);
            Box::pin(async move { query.await.map_err(|error| (0, error)) })
        };
        let inside = Arc::<Inside>::default();
        Pipeline { stages: stages.into(), run: Arc::new(run), inside }
    }

    /// The same with one stage more.
    pub fn then<P: 'static, C>(self, stage: impl Into<Arc<str>>, manager: QueryManager<O, P, C>) -> Pipeline<I, P>
    where
        O: Send,
        C: Codec<O> + Codec<P>,
    {
        let Pipeline { stages, run, inside } = self;
        let place = stages.len();
        let last = Stage { name: stage.into(), pool: (*manager).clone() };
        let run = move |input: I| -> Answer<P> {
            let before = run(input);
            let manager = manager.clone();
            Box::pin(async move {
                let query = manager.query(&before.await?);
                query.await.map_err(|error| (place, error))
            })
        };
        Pipeline { stages: stages.iter().cloned().chain([last]).collect(), run: Arc::new(run), inside }
    }

    /// The same, with what comes out of the last stage changed by a function that runs in this process: for what the next stage, or the caller, wants in
    /// another form.
    pub fn map<P: 'static>(self, change: impl Fn(O) -> P + Send + Sync + 'static) -> Pipeline<I, P> {
        let Pipeline { stages, run, inside } = self;
        let change = Arc::new(change);
        let run = move |input: I| -> Answer<P> {
            let (before, change) = (run(input), change.clone());
            Box::pin(async move { before.await.map(|output| change(output)) })
        };
        Pipeline { stages, run: Arc::new(run), inside }
    }

    /// Takes an item through all stages. Its time in each is that of the stage's pool; where a stage is busy it waits in the queue there.
    ///
    /// # Cancel safety
    /// An item that is dropped is cancelled in the stage that it is in.
    ///
    /// # Errors
    /// [`PipelineError`]: the first stage that failed; the later ones have not seen the item.
    ///
    /// # Panics
    /// Where it is polled outside a tokio runtime. What the item panicked with, in a function given to [`map`](Self::map), is passed on.
    pub fn run(&self, input: I) -> impl Future<Output = Result<O, PipelineError>> + Send + use<I, O>
    where
        O: Send,
    {
        let begin = self.item(input);
        async move { begin().await }
    }

    /// An item that begins when it is told to, in a task of its own: it goes on to the next stage also while nobody polls for it, so that a shutdown can wait for that.
    fn item(&self, input: I) -> impl FnOnce() -> Item<O> + Send + use<I, O>
    where
        O: Send,
    {
        let (answer, stages, inside) = ((self.run)(input), self.stages.clone(), self.inside.clone());
        move || {
            let entered = inside.enter();
            Item(tokio::spawn(async move {
                let _entered = entered;
                answer.await.map_err(|(place, error)| {
                    let stage = stages[place].name.clone();
                    PipelineError { stage, place: place + 1, stages: stages.len(), error }
                })
            }))
        }
    }

    /// Takes many items through, at most `at_once` of them at the same time (1 at least), and gives what comes of each, in their order. It takes the next item
    /// when fewer than that are inside, and only while somebody polls for a result: so a slow stage, or a slow reader, holds up whoever makes the items.
    ///
    /// An item that fails is an error in its place, and the others go on.
    ///
    /// # Panics
    /// Where it is polled outside a tokio runtime. What an item panicked with, in a function given to [`map`](Self::map), is passed on.
    pub fn run_all<S: Stream<Item = I> + Unpin>(&self, items: S, at_once: usize) -> Outputs<I, O, S>
    where
        O: Send,
    {
        Outputs { pipeline: self.clone(), items: Some(items), at_once: at_once.max(1), running: VecDeque::new() }
    }
}

impl<I, O> Pipeline<I, O> {
    /// How each stage is doing, in their order.
    pub fn info(&self) -> Vec<StageInfo> {
        let info = |stage: &Stage| StageInfo { name: stage.name.clone(), pool: stage.pool.info() };
        self.stages.iter().map(info).collect()
    }

    /// The pool of the stage with this name.
    pub fn stage(&self, name: &str) -> Option<&Pool> {
        self.stages.iter().find(|stage| *stage.name == *name).map(|stage| &stage.pool)
    }

    /// Shuts all stages down, the first one first, so that items that are inside come through; for at most 30 s. Returns once all workers are gone.
    ///
    /// # Cancel safety
    /// The stage that is being shut down is; the later ones go on.
    pub async fn shutdown(&self) {
        self.shutdown_within(Some(SHUTDOWN_LIMIT)).await;
    }

    /// The same with another limit for all stages together, or with none.
    ///
    /// # Cancel safety
    /// As [`shutdown`](Self::shutdown).
    pub async fn shutdown_within(&self, limit: Option<Duration>) {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let remaining = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.inside.close();
        let Some((first, later)) = self.stages.split_first() else { return };
        first.pool.shutdown_within(remaining()).await;
        // What the first stage has answered may be on its way to the next one.
        match remaining() {
            Some(limit) => drop(tokio::time::timeout(limit, self.inside.emptied()).await),
            None => self.inside.emptied().await,
        }
        for stage in later {
            stage.pool.shutdown_within(remaining()).await;
        }
    }
}

/// What comes of many items, in their order. Made by [`Pipeline::run_all`]. To drop it is to cancel the items that are inside.
pub struct Outputs<I, O, S> {
    pipeline: Pipeline<I, O>,
    /// None once there are no more.
    items: Option<S>,
    at_once: usize,
    running: VecDeque<Item<O>>,
}

/// One item on its way, which is ended with this.
struct Item<O>(JoinHandle<Result<O, PipelineError>>);

impl<O> Future for Item<O> {
    type Output = Result<O, PipelineError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        outcome(ready!(Pin::new(&mut self.0).poll(cx)))
    }
}

fn outcome<T>(joined: Result<T, JoinError>) -> Poll<T> {
    match joined.map_err(JoinError::try_into_panic) {
        Ok(output) => Poll::Ready(output),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Its runtime shuts down, and with it whoever asks.
        Err(Err(_)) => Poll::Pending,
    }
}

impl<O> Drop for Item<O> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<I: Send + 'static, O: Send + 'static, S: Stream<Item = I> + Unpin> Outputs<I, O, S> {
    /// The next result; none once all items are through.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<O, PipelineError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<I: Send + 'static, O: Send + 'static, S: Stream<Item = I> + Unpin> Stream for Outputs<I, O, S> {
    type Item = Result<O, PipelineError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while this.running.len() < this.at_once
            && let Some(items) = &mut this.items
        {
            match Pin::new(items).poll_next(cx) {
                Poll::Ready(Some(item)) => this.running.push_back(this.pipeline.item(item)()),
                Poll::Ready(None) => this.items = None,
                Poll::Pending => break,
            }
        }
        let Some(first) = this.running.front_mut() else {
            return if this.items.is_none() { Poll::Ready(None) } else { Poll::Pending };
        };
        let joined = ready!(Pin::new(&mut first.0).poll(cx));
        this.running.pop_front();
        outcome(joined).map(Some)
    }
}

impl<I, O> Clone for Pipeline<I, O> {
    fn clone(&self) -> Self {
        Pipeline { stages: self.stages.clone(), run: self.run.clone(), inside: self.inside.clone() }
    }
}

impl<I, O> fmt::Debug for Pipeline<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.stages.iter().map(|stage| &stage.name).collect();
        f.debug_struct("Pipeline").field("stages", &names).finish_non_exhaustive()
    }
}

impl<I, O, S> fmt::Debug for Outputs<I, O, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs").field("running", &self.running.len()).finish_non_exhaustive()
    }
}
