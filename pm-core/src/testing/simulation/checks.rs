//! What must hold, kept by somebody who does not trust the machines: how often each call ran, what it came to, which deaths count.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::time::Duration;

use super::process::Task;
use super::world::{Outcome, Rule};
use crate::machine::budget::{Death, Scope};
use crate::machine::cause::ExitCause;
use crate::machine::time::Time;

/// More steps than this within one virtual second are a loop. A life has some thousand in all.
const MOST_STEPS_A_SECOND: u64 = 100_000;

/// One line of a trace.
pub(super) type Line = (Time, &'static str, u64, u64);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ledger {
    rule: Rule,
    trace: Vec<Line>,
    violation: Option<String>,
    /// By call: how often it may be begun, and how often it was.
    runs: Vec<(u32, u32)>,
    pub(super) outcomes: BTreeMap<Outcome, u64>,
    /// The deaths that count, and whether each was in a first call.
    deaths: Vec<(Time, bool)>,
    pub(super) crashes: u64,
    pub(super) steps: u64,
    this_second: u64,
    second: Duration,
    pub(super) most_steps_a_second: u64,
}

impl Ledger {
    pub(super) fn new(rule: Rule) -> Self {
        Ledger {
            rule,
            trace: Vec::new(),
            violation: None,
            runs: Vec::new(),
            outcomes: BTreeMap::new(),
            deaths: Vec::new(),
            crashes: 0,
            steps: 0,
            this_second: 0,
            second: Duration::ZERO,
            most_steps_a_second: 0,
        }
    }

    pub(super) fn note(&mut self, now: Time, what: &'static str, a: u64, b: u64) {
        self.trace.push((now, what, a, b));
    }

    /// The first violation stands.
    pub(super) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn violation(&self) -> Option<&String> {
        self.violation.as_ref()
    }

    pub(super) fn step(&mut self, passed: Duration) {
        self.steps += 1;
        self.second += passed;
        self.this_second += 1;
        if self.second >= Duration::from_secs(1) {
            self.second = Duration::ZERO;
            self.this_second = 0;
        }
        self.most_steps_a_second = self.most_steps_a_second.max(self.this_second);
        if self.this_second > MOST_STEPS_A_SECOND {
            self.violated(format!("{MOST_STEPS_A_SECOND} steps within a second: somebody spins"));
        }
    }

    pub(super) fn made(&mut self) {
        self.runs.push((1, 0));
    }

    /// A worker begins this call.
    pub(super) fn begun(&mut self, task: Task) {
        let (may, did) = &mut self.runs[task];
        *did += 1;
        if did > may {
            let what = format!("call {task} was begun {did} times, and may be begun {may} times");
            self.violated(what);
        }
    }

    /// Its retry policy has asked for another try.
    pub(super) fn may_run_again(&mut self, task: Task, attempts: u32) {
        let (may, _) = &mut self.runs[task];
        *may += 1;
        if *may > attempts {
            let what = format!("call {task} is tried a time beyond the {attempts} of its policy");
            self.violated(what);
        }
    }

    pub(super) fn resolved(&mut self, outcome: Outcome) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// A call was finished by a worker that had finished none.
    pub(super) fn progress(&mut self) {
        self.deaths.retain(|(_, first_call)| !first_call);
    }

    pub(super) fn revived(&mut self) {
        self.deaths.clear();
    }

    /// A worker that should serve died. Whether the pool must give up now.
    pub(super) fn died(
        &mut self,
        now: Time,
        cause: &ExitCause,
        was_ready: bool,
        load: usize,
        had_answered: bool,
    ) -> bool {
        let is_ordered = cause.is_ordered();
        self.crashes += u64::from(!is_ordered);
        let death = match (was_ready, load, had_answered) {
            _ if is_ordered => Death::Ordered,
            (false, ..) => Death::Starting,
            (true, 0, _) => Death::Idle,
            (true, _, false) => Death::FirstCall,
            (true, _, true) => Death::Aboard,
        };
        let counts = match self.rule.scope {
            Scope::CrashLoops => !matches!(death, Death::Aboard | Death::Ordered),
            Scope::SpareCalls => matches!(death, Death::Starting | Death::Idle),
            Scope::EveryCrash => death != Death::Ordered,
            Scope::EveryEnd => true,
        };
        if !counts {
            return false;
        }
        let oldest = now - self.rule.window;
        self.deaths.retain(|(at, _)| *at >= oldest);
        if self.deaths.len() >= self.rule.limit as usize {
            return true;
        }
        self.deaths.push((now, death == Death::FirstCall));
        false
    }

    /// A number that differs wherever two traces differ.
    pub(super) fn fingerprint(&self) -> u64 {
        // Not the randomly seeded hasher: the same in every process.
        let mut hasher = std::hash::DefaultHasher::new();
        for (at, what, a, b) in &self.trace {
            hasher.write_u64(at.as_nanos());
            hasher.write(what.as_bytes());
            hasher.write_u64(*a);
            hasher.write_u64(*b);
        }
        hasher.finish()
    }

    /// The last lines of the trace.
    pub(super) fn tail(&self) -> Vec<Line> {
        self.trace[self.trace.len().saturating_sub(60)..].to_vec()
    }
}
