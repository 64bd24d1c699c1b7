//! Serving with handlers that are futures: many calls at the same time, on one thread.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::{AbortHandle, JoinSet};

use super::context::{self, CancelFlag, Current};
use super::desk::{Desk, Ended, Job};
use super::error::ServeError;
use super::intake::Intake;
use super::role::BoxFuture;
use crate::face::error::HandlerError;

/// Begins a call.
pub(super) type Begin<'a> = dyn Fn(&mut Job) -> BoxFuture<Result<Vec<u8>, HandlerError>> + 'a;

/// Serves until the link ends.
pub(super) fn serve(desk: &Arc<Desk>, concurrency: u32, begin: &Begin<'_>) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServeError::Resources { what: "the handlers' runtime", source })?;
    let mut intake = {
        let _in_it = runtime.enter();
        Intake::new(desk)?
    };
    let _ = runtime.block_on(serve_calls(desk, &mut intake, concurrency as usize, begin));
    // Work on other threads may outlive its call; nobody waits for it.
    drop(intake);
    runtime.shutdown_background();
    desk.let_go();
    Ok(())
}

async fn serve_calls(
    desk: &Arc<Desk>,
    intake: &mut Intake,
    concurrency: usize,
    begin: &Begin<'_>,
) -> Result<Infallible, Ended> {
    let mut running: JoinSet<(u64, Result<Vec<u8>, HandlerError>)> = JoinSet::new();
    let mut ids: Vec<(tokio::task::Id, u64)> = Vec::new();
    loop {
        while running.len() < concurrency {
            let cancel = Arc::new(CancelFlag::default());
            let mut job = Job::default();
            if desk.poll_next(&mut job, &cancel)?.is_none() {
                break;
            }
            let (id, deadline) = (job.id, job.deadline);
            let current = Current { desk: desk.clone(), deadline, cancel: cancel.clone() };
            let future = match context::run(current.clone(), || Ok(begin(&mut job))) {
                Ok(future) => future,
                Err(error) => {
                    desk.fail(id, &error)?;
                    continue;
                }
            };
            let task: AbortHandle = running.spawn(async move { (id, InContext { current, future }.await) });
            ids.push((task.id(), id));
            cancel.add(Box::new(move || task.abort()));
        }
        let mut ended = running.try_join_next_with_id();
        if ended.is_none() && desk.has_gathered() {
            // Answers that came together go together; and that of a handler which has returned says more than what its stream owes since it was dropped.
            tokio::task::yield_now().await;
            ended = running.try_join_next_with_id();
            if ended.is_none() {
                desk.send_answers()?;
            }
        }
        let ended = match ended {
            Some(ended) => ended,
            None => tokio::select! {
                biased;
                Some(ended) = running.join_next_with_id() => ended,
                () = desk.news.notified() => continue,
                came = intake.next(), if desk.wants_more() => {
                    came?;
                    continue;
                }
            },
        };
        let task = ended.as_ref().map_or_else(|error| error.id(), |(task, _)| *task);
        let place = ids.iter().position(|(known, _)| *known == task);
        let id = place.map(|place| ids.swap_remove(place).1);
        match (ended, id) {
            (Ok((_, (id, answer))), _) => desk.answer(id, &answer)?,
            (Err(error), Some(id)) if error.is_cancelled() => desk.stopped(id)?,
            // A handler's panics are caught; this one was in the drop of its future.
            (Err(_), Some(id)) => desk.fail(id, &context::panic_error())?,
            (Err(_), None) => {}
        }
    }
}

/// A handler's future, which has its call as the current one whenever it runs.
struct InContext {
    current: Current,
    future: BoxFuture<Result<Vec<u8>, HandlerError>>,
}

impl Future for InContext {
    type Output = Result<Vec<u8>, HandlerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let current = self.current.clone();
        let future = self.future.as_mut();
        match context::run(current, || Ok(future.poll(cx))) {
            Ok(poll) => poll,
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}
