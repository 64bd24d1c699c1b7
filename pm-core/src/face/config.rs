//! Pools that are set up by a configuration as well as by code.

mod fields;
mod workers;

use std::time::Duration;

use serde::Deserialize;

use super::error::StartError;
use crate::machine::budget::{Budget, Scope};
use crate::machine::recycle::Recycle;
use crate::machine::scaling::Autoscale;
pub use workers::Workers;

/// What a configuration says of a pool, for [`configure`](super::builder::PoolBuilder::configure). All of it may be left out: what is not said stays as it is.
///
/// It can be read from any format that serde knows and that describes itself, such as JSON or TOML. Times are texts such as `"250ms"`, `"15m"` or `"1h30m"`, or
/// numbers of seconds; sizes are texts such as `"512M"`, or numbers of bytes. A field that there is not is an error that names it, and each other error names its
/// field, the value, and what may stand there.
///
/// ```
/// use pm_core::face::config::{PoolConfig, Workers};
///
/// let config: PoolConfig = serde_json::from_str(
///     r#"{ "workers": "cpu", "timeout": "1h30m", "retries": 2,
///          "autoscale": { "max": 16, "cool_down": "10s" },
///          "recycle": { "after_calls": 100000, "above_rss": "512M" },
///          "budget": { "deaths": 10, "within": "1h" } }"#,
/// )?;
/// assert_eq!(config.workers, Some(Workers::Cpu));
///
/// let error = serde_json::from_str::<PoolConfig>(r#"{ "timeout": "15q" }"#).unwrap_err();
/// assert!(error.to_string().starts_with("timeout is \"15q\": write a number with a unit"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PoolConfig {
    /// How many workers it starts with: a number, `"cpu"`, `"io"` or `"memory"`. See [`Workers`].
    #[serde(deserialize_with = "fields::workers")]
    pub workers: Option<Workers>,
    /// How long a query may take; 0 is for as long as it likes.
    #[serde(deserialize_with = "fields::timeout")]
    pub timeout: Option<Option<Duration>>,
    /// How long a worker may take to end a cancelled query; of streams, how long it may say nothing while a cancelled one has not ended. 0 is for ever.
    #[serde(deserialize_with = "fields::cancel_grace")]
    pub cancel_grace: Option<Option<Duration>>,
    /// How many queries that wait are a full queue.
    #[serde(deserialize_with = "fields::queue")]
    pub queue: Option<usize>,
    /// How long a worker may take until it is ready; 0 is for ever.
    #[serde(deserialize_with = "fields::start_timeout")]
    pub start_timeout: Option<Option<Duration>>,
    /// How long a worker may take to leave, and again until it is killed.
    #[serde(deserialize_with = "fields::stop_grace")]
    pub stop_grace: Option<Duration>,
    /// How often a query is tried again whose worker died.
    #[serde(deserialize_with = "fields::retries")]
    pub retries: Option<u32>,
    /// That the load decides how many workers there are.
    pub autoscale: Option<AutoscaleConfig>,
    /// When workers are replaced that are well.
    pub recycle: Option<RecycleConfig>,
    /// How often workers may die before the pool gives up.
    pub budget: Option<BudgetConfig>,
}

/// What a configuration says of an [`Autoscale`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct AutoscaleConfig {
    /// The fewest workers.
    #[serde(deserialize_with = "fields::min")]
    pub min: Option<u32>,
    /// The most workers.
    #[serde(deserialize_with = "fields::max")]
    pub max: Option<u32>,
    /// One more above this mean load of each.
    #[serde(deserialize_with = "fields::up_above")]
    pub up_above: Option<f64>,
    /// One less below this mean load of each.
    #[serde(deserialize_with = "fields::down_below")]
    pub down_below: Option<f64>,
    /// Between two steps.
    #[serde(deserialize_with = "fields::cool_down")]
    pub cool_down: Option<Duration>,
    /// Over which the mean is taken.
    #[serde(deserialize_with = "fields::window")]
    pub window: Option<Duration>,
}

/// What a configuration says of a [`Recycle`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RecycleConfig {
    /// A worker that has answered so many calls.
    #[serde(deserialize_with = "fields::after_calls")]
    pub after_calls: Option<u64>,
    /// A worker that has served for so long.
    #[serde(deserialize_with = "fields::after_age")]
    pub after_age: Option<Duration>,
    /// A worker whose process has more than so many bytes resident.
    #[serde(deserialize_with = "fields::above_rss")]
    pub above_rss: Option<u64>,
    /// All workers, each time that so much time has passed.
    #[serde(deserialize_with = "fields::every")]
    pub every: Option<Duration>,
    /// How long an old worker may take to finish what it has; 0 is for as long as that takes.
    #[serde(deserialize_with = "fields::drain")]
    pub drain: Option<Option<Duration>>,
}

/// What a configuration says of a [`Budget`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct BudgetConfig {
    /// How many deaths are not too many.
    #[serde(deserialize_with = "fields::deaths")]
    pub deaths: Option<u32>,
    /// In how much time.
    #[serde(deserialize_with = "fields::within")]
    pub within: Option<Duration>,
    /// Which deaths count: `"crash-loops"`, `"spare-calls"` or `"every-crash"`.
    #[serde(deserialize_with = "fields::counts")]
    pub counts: Option<Scope>,
    /// The delay before the first restart.
    #[serde(deserialize_with = "fields::backoff")]
    pub backoff: Option<Duration>,
    /// The longest delay.
    #[serde(deserialize_with = "fields::longest_backoff")]
    pub longest_backoff: Option<Duration>,
}

impl PoolConfig {
    /// Whether it says nothing of queries, for a pool that serves none.
    pub(super) fn without_queries(&self) -> Result<(), StartError> {
        let PoolConfig { timeout, queue, retries, .. } = self;
        let said = [
            ("timeout", timeout.map(|limit| format!("{:?}", limit.unwrap_or_default()))),
            ("queue", queue.map(|queue| queue.to_string())),
            ("retries", retries.map(|retries| retries.to_string())),
        ];
        match said.into_iter().find_map(|(setting, value)| Some((setting, value?))) {
            Some((setting, value)) => {
                Err(StartError::Setting { setting, value, why: "it is for queries, which this pool does not serve" })
            }
            None => Ok(()),
        }
    }
}

impl AutoscaleConfig {
    /// Changes what it says.
    pub(super) fn change(&self, before: Autoscale) -> Autoscale {
        let (min, max) = (self.min.unwrap_or(before.min()), self.max.unwrap_or(before.max()));
        let mut after = before.between(min, max);
        after = self.up_above.map_or(after, |load| after.up_above(load));
        after = self.down_below.map_or(after, |load| after.down_below(load));
        after = self.cool_down.map_or(after, |time| after.cool_down(time));
        self.window.map_or(after, |time| after.window(time))
    }
}

impl RecycleConfig {
    /// Changes what it says.
    pub(super) fn change(&self, before: Recycle) -> Recycle {
        let mut after = before;
        after = self.after_calls.map_or(after, |calls| after.after_calls(calls));
        after = self.after_age.map_or(after, |age| after.after_age(age));
        after = self.above_rss.map_or(after, |bytes| after.above_rss(bytes));
        after = self.every.map_or(after, |time| after.every(time));
        self.drain.map_or(after, |limit| after.drain(limit))
    }
}

impl BudgetConfig {
    /// Changes what it says.
    pub(super) fn change(&self, before: Budget) -> Budget {
        let mut after = before;
        after = self.deaths.map_or(after, |deaths| after.deaths(deaths));
        after = self.within.map_or(after, |window| after.within(window));
        after = self.counts.map_or(after, |scope| after.counting(scope));
        let (first, longest) = after.delays();
        after.backoff(self.backoff.unwrap_or(first), self.longest_backoff.unwrap_or(longest))
    }
}

#[cfg(test)]
mod tests;
