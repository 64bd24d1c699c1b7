//! What the links of a pool ask of it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::task::Waker;
use std::time::Duration;

use super::backlog::Delayed;
use super::{Command, Entry, Placed, Pool, SlowQuery, guarded};
use crate::driver::call::Call;
use crate::driver::clock;
use crate::driver::link::Yard;
use crate::face::error::{QueryError, QueryErrorKind};
use crate::machine::event::Event;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::Input;
use crate::machine::time::Time;
use crate::transport::LinkTx;

impl<Tx: LinkTx> Yard for Pool<Tx> {
    fn notice(&self, worker: WorkerId, text: &str) {
        tracing::debug!(target: "pm::pool", pool = &*self.shared.name, %worker, notice = text);
        if let Some(notice) = &self.shared.hooks.notice {
            guarded("on_notice", || notice(worker, text));
        }
    }

    fn answered(&self, made: Time, now: Time) {
        self.shared.meter.answered(made, now);
    }

    fn answered_together(&self, now: Time, answers: u32) {
        self.shared.meter.answered_together(now, answers);
    }

    fn failed(&self, kind: QueryErrorKind) {
        self.shared.meter.failed(kind);
    }

    fn retried(&self) {
        self.shared.meter.retried();
    }

    fn is_slow(&self, made: Time, now: Time) -> bool {
        self.shared.hooks.slow.as_ref().is_some_and(|(threshold, _)| now.since(made) >= *threshold)
    }

    fn was_slow(&self, worker: WorkerId, made: Time, input: &[u8], now: Time) {
        if let Some((_, slow)) = &self.shared.hooks.slow {
            let slow_query = SlowQuery { worker, took: now.since(made), input: self.describe(input) };
            guarded("on_slow", || slow(slow_query));
        }
    }

    fn dropped(&self, frames: u64) {
        self.shared.dropped_frames.fetch_add(frames, Ordering::Relaxed);
    }

    fn requeue(&self, call: Arc<Call>, delay: Duration) {
        if call.is_named {
            let error = QueryError::NoWorkers { pool: self.shared.name.clone() };
            self.shared.fail(&call, error);
            return;
        }
        if delay.is_zero() {
            self.enqueue(&call, Entry::Again);
            return;
        }
        let mut backlog = self.backlog();
        if let Some(error) = backlog.refusal(&self.shared.name, true) {
            drop(backlog);
            self.shared.fail(&call, error);
            return;
        }
        if call.is_over() {
            return;
        }
        backlog.next += 1;
        let delayed = Delayed { due: clock::now() + delay, order: backlog.next, call };
        backlog.delayed.push(Reverse(delayed));
        drop(backlog);
        self.shared.wake.notify_one();
    }

    fn poisoned(&self, summary: &str) {
        self.shared.report(Event::Poisoned { input: summary.to_string() });
    }

    fn describe(&self, input: &[u8]) -> String {
        let described =
            self.shared.hooks.describe.as_ref().and_then(|describe| guarded("describe", || describe(input)));
        described.unwrap_or_else(|| format!("{} bytes", input.len()))
    }

    fn shutting_down(&self) -> Option<QueryError> {
        self.backlog().refusal(&self.shared.name, false).filter(|error| error.kind() == QueryErrorKind::ShuttingDown)
    }

    fn dispatch(&self) {
        // Whoever queues a call then looks for room, and whoever makes room then looks for calls. With this fence between the
        // two steps of each, one of them sees the other's.
        fence(Ordering::SeqCst);
        while self.shared.queued.load(Ordering::SeqCst) > 0 {
            let now = clock::now();
            let mut over = Vec::new();
            let mut boarded = Vec::new();
            let mut moved = false;
            let mut backlog = self.backlog();
            let links = self.links.load();
            while let Some(call) = backlog.line.front() {
                let mut sleeper = None;
                let placed =
                    if call.is_over() { Placed::Over } else { Self::place(&links, now, call, true, &mut sleeper) };
                boarded.extend(sleeper);
                let call = match placed {
                    Placed::Nowhere => break,
                    Placed::Sent(_) | Placed::Aboard | Placed::Over => backlog.line.pop_front(),
                };
                if let Placed::Over = placed {
                    over.extend(call);
                }
                moved = true;
            }
            self.shared.leave(backlog);
            drop(over);
            boarded.into_iter().for_each(Waker::wake);
            if moved {
                // Those that were over may have been the last that a shutdown waited for.
                self.idle();
            }
            // Room that appears after this look brings its own: whoever makes room dispatches.
            if !moved || Self::best(&links, true).is_none() {
                break;
            }
        }
    }

    fn first_answer(&self, worker: WorkerId, incarnation: Incarnation) {
        // Where the task is far behind, one of the next incarnations brings the same news.
        let _ = self.shared.commands.try_send(Command::Input(Input::Progress(worker, incarnation)));
    }

    fn idle(&self) {
        // Whoever shuts down refuses and then looks at the loads; whoever has answered the last call has lowered its load and then looks here. One of
        // them sees the other's.
        fence(Ordering::SeqCst);
        if self.shared.refusing.load(Ordering::SeqCst) {
            self.shared.wake.notify_one();
        }
    }

    fn is_worn(&self) {
        self.shared.worn.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    fn has_others(&self) -> bool {
        self.links.load().len() > 1
    }

    fn has_idle(&self, but: WorkerId) -> bool {
        self.links.load().iter().any(|link| link.worker != but && link.load() == 0)
    }
}
