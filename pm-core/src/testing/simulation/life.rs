//! One life of a pool, played by one seed: callers, operators, and all that goes wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use super::checks::Line;
use super::process::{Fate, Script, Task};
use super::world::{Happening, Place, Rule, Settings, World};
use crate::machine::budget::{Budget, Scope};
use crate::machine::cause::ExitCause;
use crate::machine::pool::{Input, Phase};
use crate::machine::recycle::Reason;
use crate::machine::retry::{Delay, Retry};
use crate::machine::time::Time;
use crate::machine::unit::{self, Times};

use super::world::Outcome;

/// How many things callers and operators do before things are left to calm down.
const ACTS: u64 = 150;

/// After this long without disturbance everything must be as it should: longer than every backoff, grace and start limit.
const CALM: Duration = Duration::from_secs(30);

/// How long a closing pool may take: its deadline, the graces, and the kill.
const CLOSING: Duration = Duration::from_secs(20);

/// One life that went as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The seed.
    pub seed: u64,
    /// How many things happened.
    pub steps: u64,
    /// The virtual time that it took.
    pub lived: Duration,
    /// What callers got, and how many of them. Calls whose callers went have no outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Workers that died by themselves.
    pub crashes: u64,
    /// The most steps within one virtual second.
    pub most_steps_a_second: u64,
    /// Differs wherever two lives differ.
    pub fingerprint: u64,
}

/// A life in which something happened that must not.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed, which gives the same life again.
    pub seed: u64,
    /// What happened.
    pub what: String,
    /// What came before it.
    trace: Vec<Line>,
}

/// What many lives came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How many lives.
    pub lives: u64,
    /// How many things happened in them.
    pub steps: u64,
    /// The virtual time that they took.
    pub lived: Duration,
    /// What callers got.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Workers that died by themselves.
    pub crashes: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        for (at, what, a, b) in &self.trace {
            writeln!(f, "  {:>14.3?} {what} {a} {b}", at.since(Time::ZERO))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Lives one life.
///
/// # Errors
/// What went wrong in it, with the end of its trace.
pub fn run(seed: u64) -> Result<Life, Failure> {
    let mut player = Player::new(seed);
    match player.live() {
        Ok(()) => Ok(player.report(seed)),
        Err(what) => Err(Failure { seed, what, trace: player.world.ledger.tail() }),
    }
}

/// Lives many lives, and stops at the first that fails.
///
/// # Errors
/// As [`run`].
pub fn sweep(seeds: Range<u64>) -> Result<Totals, Failure> {
    let mut totals = Totals::default();
    for seed in seeds {
        let life = run(seed)?;
        totals.lives += 1;
        totals.steps += life.steps;
        totals.lived += life.lived;
        totals.crashes += life.crashes;
        for (outcome, count) in life.outcomes {
            *totals.outcomes.entry(outcome).or_default() += count;
        }
    }
    Ok(totals)
}

struct Player {
    world: World,
    /// How many workers there should be once things are calm; none where nobody has said so.
    target: Option<u32>,
    acts: u64,
    /// How wild this life is: of a hundred acts, how many are no plain queries.
    wildness: u64,
    deadly: u64,
}

impl Player {
    fn new(seed: u64) -> Self {
        // The first draws choose the setting; those of the world follow from another seed.
        let mut random = crate::machine::budget::SplitMix(seed ^ 0x5eed);
        let concurrency = [1, 1, 1, 2, 4][random.below(5) as usize];
        let rule = Rule {
            limit: random.below(7) as u32,
            window: Duration::from_millis([200, 5_000, 1_800_000][random.below(3) as usize]),
            scope: [Scope::CrashLoops, Scope::SpareCalls, Scope::EveryCrash][random.below(3) as usize],
        };
        let settings = Settings {
            concurrency,
            ahead: concurrency + [0, 0, 1, 3][random.below(4) as usize],
            queue: [4, 64, 4096][random.below(3) as usize],
            grace: Duration::from_millis(1 + random.below(200)),
            rule,
            times: Times { start: Duration::from_millis(500), stop_grace: Duration::from_millis(100) },
            hop: (Duration::from_nanos(500), Duration::from_micros([2, 30, 300][random.below(3) as usize])),
            slow_hops: [0, 20, 200][random.below(3) as usize],
            bad_starts: [0, 0, 50, 500][random.below(4) as usize],
            leaves_word: random.below(2) == 0,
            stubborn: 300,
        };
        let wildness = [5, 20, 50][random.below(3) as usize];
        let deadly = [0, 2, 15][random.below(3) as usize];
        Player { world: World::new(settings, seed), target: None, acts: 0, wildness, deadly }
    }

    fn live(&mut self) -> Result<(), String> {
        if self.world.random.below(4) > 0 {
            self.scale();
        }
        self.world.plan(Duration::ZERO, Happening::Act(0));
        while self.acts < ACTS {
            self.step()?;
        }
        self.world.calm_down();
        self.until(CALM, |_| false)?;
        self.is_calm()?;
        if self.world.random.below(4) == 0 {
            // The last handle was dropped.
            self.world.input(Input::Kill);
        } else {
            self.world.shut_down(Some(self.world.now + Duration::from_secs(2)));
        }
        let late = self.query(Script { takes: Duration::ZERO, fate: Fate::Answers, yields: true }, None);
        self.until(CLOSING, |world| world.phase == Phase::Closed && world.is_empty())?;
        self.is_over(late)
    }

    /// Goes on for a time, or until something is so. Time passes even where nothing happens.
    fn until(&mut self, limit: Duration, mut is_so: impl FnMut(&World) -> bool) -> Result<(), String> {
        let end = self.world.now + limit;
        while self.world.next_due().is_some_and(|due| due <= end) && !is_so(&self.world) {
            self.step()?;
        }
        self.world.now = self.world.now.max(if is_so(&self.world) { self.world.now } else { end });
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let act = self.world.step().ok_or("nothing follows any more")?;
        if let Some(number) = act {
            self.act(number);
        }
        self.world.check();
        match self.world.ledger.violation() {
            Some(what) => Err(what.clone()),
            None => Ok(()),
        }
    }

    fn act(&mut self, number: u64) {
        self.acts += 1;
        // Bursts, and pauses of all lengths.
        let gap = match self.world.random.below(20) {
            0..=9 => Duration::ZERO,
            10..=15 => Duration::from_micros(self.world.random.below(2_000)),
            16..=18 => Duration::from_millis(self.world.random.below(100)),
            _ => Duration::from_millis(self.world.random.below(5_000)),
        };
        self.world.plan(gap, Happening::Act(number + 1));
        match self.world.phase {
            // Somebody looks after a pool that serves no more, or most of its life would be refusals.
            Phase::Unspawned if self.world.random.below(5) == 0 => return self.scale(),
            Phase::GaveUp(_) if self.world.random.below(5) == 0 => return self.revive(),
            _ if self.world.random.below(100) >= self.wildness => {
                self.some_query();
                return;
            }
            _ => {}
        }
        match self.world.random.below(26) {
            0..=5 => self.abandon(),
            6..=8 => self.scale(),
            9 => self.operate(Input::SpawnOne, |target| target.map(|n| n + 1).or(Some(1))),
            10 => self.unspawn_one(),
            11 => self.operate(Input::Unspawn { deadline: None }, |_| Some(0)),
            12 | 13 => self.respawn(),
            14..=16 => self.at_some_process(World::crash),
            17 => self.at_some_process(World::cut),
            18 => self.at_some_process(World::tear),
            19 => self.at_some_process(World::misbehave),
            20 => self.chaos(),
            21 | 22 => self.recycle(),
            _ => self.revive(),
        }
    }

    /// Whether the pool still does what operators say.
    fn is_open(&self) -> bool {
        matches!(self.world.phase, Phase::Idle | Phase::Serving | Phase::Unspawned)
    }

    fn operate(&mut self, input: Input, target: impl FnOnce(Option<u32>) -> Option<u32>) {
        if self.is_open() {
            self.target = target(self.target);
        }
        self.world.ledger.note(self.world.now, "operate", u64::from(self.target.unwrap_or(99)), 0);
        self.world.input(input);
    }

    fn scale(&mut self) {
        let workers = self.world.random.below(5) as u32;
        let idlest = self.world.idlest();
        self.operate(Input::Scale { workers, idlest }, |_| Some(workers));
    }

    fn unspawn_one(&mut self) {
        let Some(&worker) = self.world.links.first() else { return };
        // While a respawn is under way it depends on the worker what this means; the model of `machine::pool` knows.
        if self.world.pool.settled() {
            self.operate(Input::UnspawnOne { worker, deadline: None }, |target| target.map(|n| n.saturating_sub(1)));
        }
    }

    fn respawn(&mut self) {
        let workers = match self.world.random.below(3) {
            0 => Some(1 + self.world.random.below(3) as u32),
            _ => None,
        };
        let drain = [None, Some(Duration::from_millis(20))][self.world.random.below(2) as usize];
        self.operate(Input::Respawn { workers, drain }, |target| workers.or(target));
    }

    /// Which changes nothing about how many there are.
    fn recycle(&mut self) {
        let Some(&worker) = self.world.links.first() else { return };
        let drain = [None, Some(Duration::from_millis(20))][self.world.random.below(2) as usize];
        self.world.input(Input::Recycle { worker, reason: Reason::Requested, drain });
    }

    fn revive(&mut self) {
        self.world.ledger.revived();
        self.world.input(Input::Revive);
    }

    fn chaos(&mut self) {
        let links = &self.world.links;
        if links.is_empty() {
            return;
        }
        let worker = links[self.acts as usize % links.len()];
        self.world.input(Input::KillWorker(worker, ExitCause::Chaos));
    }

    fn at_some_process(&mut self, happens: fn(&mut World, usize)) {
        let alive = self.world.alive();
        if !alive.is_empty() {
            let chosen = alive[self.world.random.below(alive.len() as u64) as usize];
            happens(&mut self.world, chosen);
        }
    }

    fn abandon(&mut self) {
        let open: Vec<_> = (0..self.world.calls.len()).filter(|task| !self.is_settled(*task)).collect();
        if !open.is_empty() {
            let chosen = open[self.world.random.below(open.len() as u64) as usize];
            self.world.abandon(chosen);
        }
    }

    fn is_settled(&self, task: Task) -> bool {
        matches!(self.world.calls[task].place, Place::Done | Place::Abandoned)
    }

    fn some_query(&mut self) {
        let random = &mut self.world.random;
        let takes = match random.below(10) {
            0..=3 => Duration::from_micros(1 + random.below(20)),
            4..=7 => Duration::from_micros(random.below(3_000)),
            8 => Duration::from_millis(random.below(30)),
            _ => Duration::from_millis(random.below(400)),
        };
        let fate = match random.below(100) {
            draw if draw < self.deadly => Fate::Kills,
            draw if draw < self.deadly + 3 => Fate::Hangs,
            draw if draw < self.deadly + 13 => Fate::Fails,
            _ => Fate::Answers,
        };
        let yields = random.below(2) == 0;
        // What hangs needs a limit, or nothing ever ends.
        let timeout = match random.below(3) {
            0 if fate != Fate::Hangs => None,
            _ => Some(Duration::from_millis(5 + random.below(500))),
        };
        self.query(Script { takes, fate, yields }, timeout);
    }

    fn query(&mut self, script: Script, timeout: Option<Duration>) -> Task {
        let random = &mut self.world.random;
        let delay = match random.below(3) {
            0 => Delay::Constant(Duration::ZERO),
            1 => Delay::Linear(Duration::from_millis(3)),
            _ => Delay::Exponential { first: Duration::from_millis(1), longest: Duration::from_millis(50) },
        };
        let retry = match random.below(6) {
            0 => Retry::times(1 + random.below(5) as u32).delay(delay),
            1 => Retry::times(2).delay(delay).on_timeout().on_error(),
            _ => Retry::NEVER,
        };
        let from_start = random.below(4) == 0;
        if self.world.phase == Phase::Idle {
            self.target.get_or_insert(1);
        }
        self.world.submit(script, timeout, from_start, retry)
    }

    /// The pool is what it was told to be, and every call has come to an end.
    fn is_calm(&mut self) -> Result<(), String> {
        if let Some(open) = (0..self.world.calls.len()).find(|task| !self.is_settled(*task)) {
            let call = &self.world.calls[open];
            return Err(format!("call {open} never ended: {call:?}, with the pool {:?}", self.world.phase));
        }
        let counts = self.world.pool.counts();
        match (&self.world.phase, self.target) {
            (Phase::Serving, Some(target)) => {
                if counts.active != target as usize || counts.releasing + counts.crashed > 0 {
                    return Err(format!("the pool should have {target} workers, and has {counts:?}"));
                }
                if self.world.links.len() != counts.active || !self.world.pool.settled() {
                    return Err(format!("{} of {counts:?} workers serve", self.world.links.len()));
                }
            }
            (Phase::GaveUp(_), _) => {
                if self.world.links.iter().any(|worker| self.world.pool.worker(*worker) != Some(unit::Phase::Ready)) {
                    return Err("a pool that gave up draws from its queue with workers that do not serve".to_string());
                }
            }
            (Phase::Unspawned | Phase::Idle, None | Some(0)) => {
                if counts.active + counts.releasing + counts.crashed > 0 {
                    return Err(format!("a pool without workers has {counts:?}"));
                }
            }
            (phase, target) => return Err(format!("the pool is {phase:?}, and should have {target:?} workers")),
        }
        Ok(())
    }

    fn is_over(&mut self, late: Task) -> Result<(), String> {
        if self.world.phase != Phase::Closed || !self.world.is_empty() {
            return Err(format!(
                "the pool is {:?} {CLOSING:?} after its shutdown: {:?}",
                self.world.phase,
                self.world.pool.counts()
            ));
        }
        if let Some(alive) = self.world.alive().first() {
            return Err(format!("process {alive} outlived its pool"));
        }
        if let Some(open) = (0..self.world.calls.len()).find(|task| !self.is_settled(*task)) {
            return Err(format!("call {open} is left when the pool is closed: {:?}", self.world.calls[open]));
        }
        match self.world.calls[late].resolved {
            Some((_, Outcome::ShuttingDown | Outcome::GaveUp | Outcome::NoWorkers)) => Ok(()),
            other => Err(format!("a query to a pool that shuts down gave {other:?}")),
        }
    }

    fn report(&self, seed: u64) -> Life {
        let ledger = &self.world.ledger;
        Life {
            seed,
            steps: ledger.steps,
            lived: self.world.now.since(Time::ZERO),
            outcomes: ledger.outcomes.clone(),
            crashes: ledger.crashes,
            most_steps_a_second: ledger.most_steps_a_second,
            fingerprint: ledger.fingerprint(),
        }
    }
}

/// The setting of a pool in which nothing goes wrong.
pub(super) fn quiet(concurrency: u32) -> Settings {
    Settings {
        concurrency,
        ahead: concurrency,
        queue: usize::MAX,
        grace: Duration::from_secs(1),
        rule: Rule { limit: 5, window: Duration::from_secs(1800), scope: Scope::CrashLoops },
        times: Times::default(),
        hop: (Duration::ZERO, Duration::ZERO),
        slow_hops: 0,
        bad_starts: 0,
        leaves_word: true,
        stubborn: 0,
    }
}

impl Rule {
    /// The budget that this rule describes.
    pub(super) fn budget(self) -> Budget {
        let Rule { limit, window, scope } = self;
        let budget = match scope {
            Scope::CrashLoops => Budget::crash_loops(limit, window),
            Scope::SpareCalls => Budget::spare_calls(limit, window),
            Scope::EveryCrash => Budget::every_crash(limit, window),
            Scope::EveryEnd => Budget::NEVER,
        };
        budget.backoff(Duration::from_millis(10), Duration::from_secs(1))
    }
}
