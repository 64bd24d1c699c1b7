//! What people see while jobs run, and the summary at the end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::board::{Board, Tally};
use crate::error::say;
use crate::plan::Shown;

/// How often the bar is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(10);

/// What people see.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Shown,
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Progress {
    pub(super) fn new(shown: Shown) -> Self {
        let bar = (shown == Shown::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style("{spinner} {msg}"));
            bar
        });
        Progress { shown, bar, begun: Instant::now() }
    }

    /// The bar, for those who write beside it.
    pub(super) fn bar(&self) -> Option<ProgressBar> {
        self.bar.clone()
    }

    /// How often [`Progress::show`] is to be called; none for never.
    pub(super) fn interval(&self) -> Option<Duration> {
        match self.shown {
            Shown::Nothing => None,
            Shown::Lines => Some(LINE),
            Shown::Bar => Some(FRAME),
        }
    }

    /// Shows how far it is.
    pub(super) fn show(&self, written: Tally, total: Option<u64>, lost: u64) {
        let finished = written.done + written.failed;
        let rate = rate(finished, self.begun.elapsed());
        let mut text = format!("{} done, {} failed, {lost} lost, {rate}/s", written.done, written.failed);
        if written.skipped > 0 {
            let _ = write!(text, ", {} skipped", written.skipped);
        }
        match (&self.bar, total) {
            (Some(bar), Some(total)) => {
                if bar.length().is_none() {
                    bar.set_style(style("{bar:30} {pos}/{len} {msg}"));
                    bar.set_length(total);
                }
                bar.set_position(finished + written.skipped);
                // Before that nobody knows.
                if finished > 0 {
                    let _ = write!(text, ", {:#} left", HumanDuration(bar.eta()));
                }
                bar.set_message(text);
            }
            (Some(bar), None) => {
                bar.set_message(text);
                bar.tick();
            }
            (None, _) => {
                say(&text);
            }
        }
    }

    /// Clears the bar, and writes the summary where one is wanted.
    pub(super) fn end(&self, board: &Board, lost: u64) {
        let Tally { done, failed, skipped, not_run, retried } = board.tally();
        let took = self.begun.elapsed();
        let finished = done + failed;
        let mut text = format!("{finished} jobs, {failed} failed, {retried} retried, {lost} workers lost");
        if skipped > 0 {
            let _ = write!(text, ", {skipped} skipped");
        }
        if not_run > 0 {
            let _ = write!(text, ", {not_run} not done");
        }
        text.push_str("; ");
        let latency = board.latency();
        if let (Some(median), Some(tail)) = (latency.quantile(0.5), latency.quantile(0.99)) {
            let _ = write!(text, "p50 {median:.1?}, p99 {tail:.1?}, ");
        }
        let _ = write!(text, "{}/s, {took:.1?}", rate(finished, took));
        self.sum_up(&text);
    }

    /// The same for streams: so many were opened, so many messages came to them and from them, and so many errors.
    pub(super) fn end_streams(&self, opened: u64, messages: u64, written: Tally, lost: u64) {
        let took = self.begun.elapsed();
        let Tally { done, failed, .. } = written;
        let rate = rate(messages, took);
        self.sum_up(&format!(
            "{messages} messages, {done} results, {opened} streams, {failed} errors, {lost} workers lost; {rate}/s, {took:.1?}"
        ));
    }

    fn sum_up(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.shown != Shown::Nothing {
            say(text);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn rate(jobs: u64, took: Duration) -> String {
    let rate = jobs as f64 / took.as_secs_f64().max(1e-6);
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_once_it_can_be_known() {
        let progress = Progress { shown: Shown::Bar, bar: Some(ProgressBar::hidden()), begun: Instant::now() };
        let shown = |done, skipped| {
            progress.show(Tally { done, skipped, ..Tally::default() }, Some(10), 0);
            progress.bar().unwrap().message()
        };
        assert!(shown(0, 0).ends_with("/s"));
        assert!(shown(0, 3).ends_with("3 skipped"));
        assert!(shown(4, 3).ends_with(" left"));
    }
}
