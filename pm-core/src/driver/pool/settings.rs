//! What a pool is made with, and who is told of what.

use std::sync::Arc;
use std::time::Duration;

use super::{AnyPool, WorkerInfo};
use crate::driver::link::LinkSettings;
use crate::machine::budget::Budget;
use crate::machine::cause::ExitCause;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::recycle::Recycling;
use crate::machine::scaling::Scaling;

pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) codec: String,
    pub(crate) queue: usize,
    pub(crate) policies: Policies,
    pub(crate) link: LinkSettings,
    pub(crate) hooks: Hooks,
}

/// What the task of a pool does of its own accord.
pub(crate) struct Policies {
    pub(crate) budget: Budget,
    /// None where the program alone says how many workers there are.
    pub(crate) scaling: Option<Scaling>,
    /// When workers are replaced that are well.
    pub(crate) recycling: Recycling,
}

impl Policies {
    /// Nothing but to replace what dies, within a budget.
    pub(crate) fn only(budget: Budget) -> Self {
        Policies { budget, scaling: None, recycling: Recycling::default() }
    }
}

pub(crate) type NoticeHook = Box<dyn Fn(WorkerId, &str) + Send + Sync>;

pub(crate) type SlowHook = Box<dyn Fn(SlowQuery) + Send + Sync>;

pub(crate) type DescribeHook = Box<dyn Fn(&[u8]) -> String + Send + Sync>;

/// Is told by the task of a pool how its workers come and go, each time before the task goes on.
pub(crate) trait Follower: Send + Sync {
    /// A worker serves.
    fn serves(&self, pool: &Arc<dyn AnyPool>, worker: &WorkerInfo);
    /// It was told to leave once it has nothing left.
    fn leaves(&self, worker: WorkerId, incarnation: Incarnation);
    /// Its process has ended.
    fn ended(&self, worker: WorkerId, incarnation: Incarnation, cause: &ExitCause);
    /// No other worker will ever come.
    fn closed(&self);
}

/// What people want to be told of.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) follower: Option<Arc<dyn Follower>>,
    pub(crate) notice: Option<NoticeHook>,
    pub(crate) slow: Option<(Duration, SlowHook)>,
    /// What the input of a call says, in short.
    pub(crate) describe: Option<DescribeHook>,
}

/// A query that took longer than it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowQuery {
    /// The worker that answered.
    pub worker: WorkerId,
    /// From the query to its answer.
    pub took: Duration,
    /// What the query was about.
    pub input: String,
}
