//! Honest calls without faults: how long they, and their workers, wait.

use std::time::Duration;

use super::life;
use super::process::{Fate, Script};
use super::world::{Happening, Settings, World};
use crate::machine::pool::Input;
use crate::machine::retry::Retry;
use crate::machine::time::Time;

/// Calls for a pool whose workers serve already.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many workers.
    pub workers: u32,
    /// How many calls each runs at the same time.
    pub concurrency: u32,
    /// The time of a frame on its way.
    pub hop: Duration,
    /// When each call is made, and how long a worker computes for it.
    pub calls: Vec<(Duration, Duration)>,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Played {
    /// From the first call to the last answer.
    pub took: Duration,
    /// For each call, the time until it was answered.
    pub answered: Vec<Duration>,
    /// The longest time that one worker had nothing to do while one call waited, in the queue or elsewhere.
    pub longest_idle: Duration,
    /// How many calls waited in the worker that ran the longest call, at most.
    pub most_behind: usize,
    /// The same, once the longest call had run for 15 ms: the manager has had its chance by then.
    pub stayed_behind: usize,
}

/// When what waits behind a slow call should have moved on.
const CHANCE: Duration = Duration::from_millis(15);

/// Plays a load.
///
/// # Errors
/// A violation of what the simulation checks, or a call without an answer.
pub fn play(load: &Load) -> Result<Played, String> {
    let settings = Settings { hop: (load.hop, load.hop), ..life::quiet(load.concurrency) };
    let mut world = World::new(settings, 1);
    world.input(Input::Scale { workers: load.workers, idlest: Vec::new() });
    while world.links.len() < load.workers as usize {
        world.step().ok_or("the workers never served")?;
    }
    let began = world.now;
    for (number, (at, _)) in load.calls.iter().enumerate() {
        world.plan(*at, Happening::Act(number as u64));
    }
    let slowest = (0..load.calls.len()).max_by_key(|number| load.calls[*number].1);
    let mut watch = Watch { idle: vec![None; world.processes.len()], ..Watch::default() };
    let mut open = load.calls.len();
    while open > 0 {
        let before = world.now;
        let next = world.next_due().ok_or("a call was never answered")?;
        watch.look(&world, slowest, next.since(before));
        if let Some(number) = world.step().ok_or("nothing follows any more")? {
            let script = Script { takes: load.calls[number as usize].1, fate: Fate::Answers, yields: true };
            world.submit(script, None, false, Retry::NEVER);
        }
        world.check();
        if let Some(what) = world.ledger.violation() {
            return Err(what.clone());
        }
        open = load.calls.len() - world.ledger.outcomes.values().sum::<u64>() as usize;
    }
    let answered =
        world.calls.iter().map(|call| call.resolved.map_or(Duration::MAX, |(at, _)| at.since(call.made))).collect();
    Ok(Played {
        took: world.now.since(began),
        answered,
        longest_idle: watch.longest_idle,
        most_behind: watch.most_behind,
        stayed_behind: watch.stayed_behind,
    })
}

#[derive(Default)]
struct Watch {
    /// By process: since when it has been idle.
    idle: Vec<Option<Time>>,
    /// Every call before this one has begun.
    oldest: usize,
    longest_idle: Duration,
    most_behind: usize,
    stayed_behind: usize,
}

impl Watch {
    /// Looks at what is so for the next `passes`.
    fn look(&mut self, world: &World, slowest: Option<usize>, passes: Duration) {
        let waiting = |at: usize| world.processes[at].waiting.len();
        while world.calls.get(self.oldest).is_some_and(|call| call.begun.is_some()) {
            self.oldest += 1;
        }
        let waits_since = world.calls.get(self.oldest).map(|call| call.made);
        for at in 0..self.idle.len() {
            let process = &world.processes[at];
            let is_idle = process.running.is_empty() && process.waiting.is_empty();
            self.idle[at] = self.idle[at].or(Some(world.now)).filter(|_| is_idle);
            if let Some((idle_since, waits_since)) = self.idle[at].zip(waits_since) {
                self.longest_idle = self.longest_idle.max((world.now + passes).since(idle_since.max(waits_since)));
            }
            let runs_slowest = process.running.iter().any(|running| Some(running.task) == slowest);
            if runs_slowest && process.running.len() >= process.concurrency {
                self.most_behind = self.most_behind.max(waiting(at));
                let begun = slowest.and_then(|task| world.calls[task].begun).unwrap_or(Time::ZERO);
                if world.now.since(begun) >= CHANCE {
                    self.stayed_behind = self.stayed_behind.max(waiting(at));
                }
            }
        }
    }
}
