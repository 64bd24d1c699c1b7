//! Recycling at virtual time.

use std::collections::BTreeSet;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Workers that are replaced when that is asked for, as a pool does it.
struct World {
    recycling: Recycling,
    now: Time,
    next: u32,
    serving: BTreeSet<WorkerId>,
    /// Who is replaced now, and by whom.
    under_way: Option<(WorkerId, WorkerId)>,
    done: Vec<(Time, WorkerId, Reason)>,
    measured: u32,
    memory: u64,
}

impl World {
    fn new(settings: Recycle, workers: u32, seed: u64) -> Self {
        let mut world = World {
            recycling: Recycling::new(settings, seed).unwrap(),
            now: Time::ZERO,
            next: 1,
            serving: BTreeSet::new(),
            under_way: None,
            done: Vec::new(),
            measured: 0,
            memory: 0,
        };
        for _ in 0..workers {
            world.start();
        }
        world
    }

    fn start(&mut self) -> WorkerId {
        let worker = WorkerId(self.next);
        self.next += 1;
        self.serving.insert(worker);
        self.handle(Input::Serves(worker));
        worker
    }

    fn leave(&mut self, worker: WorkerId) {
        self.serving.remove(&worker);
        self.handle(Input::Left(worker));
    }

    fn handle(&mut self, input: Input) {
        self.recycling.handle(self.now, input);
        self.effects();
    }

    fn effects(&mut self) {
        while let Some(effect) = self.recycling.poll_effect() {
            match effect {
                Effect::Recycle { worker, reason } => {
                    assert!(self.serving.contains(&worker), "{worker} does not serve");
                    assert_eq!(self.under_way, None, "two at a time");
                    self.under_way = Some((worker, WorkerId(self.next)));
                    self.done.push((self.now, worker, reason));
                }
                Effect::Measure => {
                    self.measured += 1;
                    for worker in self.serving.clone() {
                        self.recycling.handle(self.now, Input::Measured(worker, self.memory));
                    }
                }
            }
        }
    }

    /// What is under way ends so.
    fn end(&mut self, swapped: Swapped) {
        let Some((old, _)) = self.under_way.take() else { return };
        if swapped == Swapped::Done {
            self.start();
            self.leave(old);
        }
        self.handle(Input::Swapped(old, swapped));
    }

    fn timeout(&mut self) {
        self.recycling.handle_timeout(self.now);
        self.effects();
        assert!(self.recycling.poll_timeout().is_none_or(|due| due > self.now), "a timer is due for ever");
    }

    /// For so long every replacement is done at once.
    fn live(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.end(Swapped::Done);
            match self.recycling.poll_timeout().filter(|due| *due <= end) {
                Some(due) => {
                    self.now = self.now.max(due);
                    self.timeout();
                }
                None if self.under_way.is_none() => break,
                None => {}
            }
        }
        self.now = end;
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let new = Recycle::new();
    for (settings, told) in [
        (new.after_calls(0), "after calls: 0"),
        (new.above_rss(0), "above bytes: 0"),
        (new.after_age(Duration::ZERO), "after an age of 0ns"),
        (new.every(Duration::ZERO), "every 0ns"),
        (new.sample_every(Duration::ZERO), "samples every 0ns"),
        (new.backoff(Duration::ZERO, SECOND), "backoff of 0ns"),
    ] {
        let refused = Recycling::new(settings, 1).unwrap_err();
        assert!(refused.to_string().contains(told), "{refused}");
    }
}

#[test]
fn without_settings_nothing_happens_and_nothing_is_due() {
    let mut world = World::new(Recycle::new(), 4, 1);
    world.handle(Input::Answered(WorkerId(1), u64::MAX));
    world.handle(Input::Measured(WorkerId(1), u64::MAX));
    assert_eq!((world.recycling.poll_timeout(), world.done.len()), (None, 0));
}

#[test]
fn equal_workers_do_not_reach_their_age_together() {
    for seed in 0..20 {
        let mut world = World::new(Recycle::new().after_age(1000 * SECOND), 8, seed);
        world.live(1000 * SECOND);
        let ages: Vec<_> = world.done.iter().map(|(at, ..)| at.since(Time::ZERO)).collect();
        assert_eq!(ages.len(), 8);
        assert!(ages.iter().all(|age| (900 * SECOND..=1000 * SECOND).contains(age)), "{ages:?}");
        let apart = ages.iter().map(Duration::as_secs).collect::<BTreeSet<_>>();
        assert!(apart.len() >= 6, "{ages:?}");
        // And those that came in their place have their own ages, for ever.
        world.live(9000 * SECOND);
        assert!((72..=90).contains(&world.done.len()), "{}", world.done.len());
    }
}

#[test]
fn a_schedule_takes_all_one_after_the_other() {
    let mut world = World::new(Recycle::new().every(3600 * SECOND), 3, 1);
    for round in 1..=24 {
        world.live(3600 * SECOND);
        assert_eq!(world.done.len(), 3 * round);
        assert!(world.done.iter().all(|(.., reason)| *reason == Reason::Schedule));
    }
    // With nobody there is no schedule; it begins anew with the first.
    for worker in world.serving.clone() {
        world.leave(worker);
    }
    world.live(10 * 3600 * SECOND);
    assert_eq!(world.recycling.poll_timeout(), None);
    world.start();
    world.live(3600 * SECOND);
    assert_eq!(world.done.len(), 3 * 24 + 1);
}

#[test]
fn memory_is_looked_at_only_where_it_matters() {
    let mut world = World::new(Recycle::new().after_age(10_000 * SECOND), 2, 1);
    world.live(100 * SECOND);
    assert_eq!(world.measured, 0);
    let mut world = World::new(Recycle::new().above_rss(1000).sample_every(2 * SECOND), 2, 1);
    world.memory = 1000;
    world.live(100 * SECOND);
    assert_eq!((world.measured, world.done.len()), (50, 0));
    world.memory = 1001;
    world.now = world.now + 2 * SECOND;
    world.timeout();
    assert_eq!(world.done.len(), 1, "one at a time");
    world.memory = 0;
    world.live(SECOND);
    let who: Vec<_> = world.done.iter().map(|&(_, worker, reason)| (worker.0, reason)).collect();
    assert_eq!(who, [(1, Reason::Memory), (2, Reason::Memory)], "each once, though both were seen again meanwhile");
}

#[test]
fn what_fails_is_tried_again_later_and_later() {
    let settings = Recycle::new().after_calls(10).backoff(SECOND, 60 * SECOND);
    let mut world = World::new(settings, 1, 7);
    world.handle(Input::Answered(WorkerId(1), 10));
    for n in 0..10 {
        let before = world.now;
        world.end(Swapped::Failed);
        assert_eq!(world.under_way, None);
        world.now = world.recycling.poll_timeout().expect("another try");
        let ideal = (1_u64 << n).min(60) as f64;
        let delay = world.now.since(before).as_secs_f64();
        assert!((0.75..1.25).contains(&(delay / ideal)), "{delay} is not about {ideal} s");
        world.timeout();
        assert!(world.under_way.is_some());
    }
    world.end(Swapped::Done);
    assert_eq!((world.serving.len(), world.recycling.poll_timeout()), (1, None));
    // A success ends it.
    world.handle(Input::Answered(WorkerId(2), 12));
    let before = world.now;
    world.end(Swapped::Failed);
    assert!(world.recycling.poll_timeout().unwrap().since(before) < 2 * SECOND);
    // One that leaves meanwhile needs no other try.
    world.leave(WorkerId(2));
    assert_eq!(world.recycling.poll_timeout(), None);
}

#[test]
fn whoever_asks_for_all_gets_all() {
    let mut world = World::new(Recycle::new().after_calls(5), 4, 1);
    world.handle(Input::Answered(WorkerId(2), 5));
    world.handle(Input::All);
    let mut count = 0;
    while world.recycling.is_pending() {
        world.end(Swapped::Done);
        count += 1;
    }
    assert_eq!(count, 4, "the one that was under way counts");
    assert_eq!(world.serving.iter().map(|worker| worker.0).collect::<Vec<_>>(), [5, 6, 7, 8]);
    assert_eq!(world.under_way, None);
}

/// Everything at any time: two are never replaced together, nobody who is gone is, and in the end nothing is left to do.
#[test]
fn in_any_order() {
    for seed in 0..500 {
        let mut random = SplitMix(seed);
        let settings = Recycle::new()
            .after_calls(100)
            .after_age(50 * SECOND)
            .above_rss(1000)
            .every(80 * SECOND)
            .backoff(Duration::from_millis(10), SECOND);
        let mut world = World::new(settings, 1 + random.below(4) as u32, seed);
        for _ in 0..300 {
            let some = world.serving.iter().nth(random.below(5) as usize).copied();
            match (random.below(12), some) {
                (0, _) => {
                    world.start();
                }
                (1, Some(worker)) => {
                    // It leaves for another reason. Where it was being replaced, that is called off.
                    world.leave(worker);
                    if world.under_way.is_some_and(|(old, _)| old == worker) {
                        world.under_way = None;
                        world.handle(Input::Swapped(worker, Swapped::CalledOff));
                    }
                }
                (2, Some(worker)) => world.handle(Input::Answered(worker, random.below(200))),
                (3, Some(worker)) => world.handle(Input::Measured(worker, random.below(2000))),
                (4, _) => world.handle(Input::All),
                (5, _) => world.end(Swapped::Failed),
                (6 | 7, _) => world.end(Swapped::Done),
                (8, _) => world.handle(Input::Swapped(WorkerId(9999), Swapped::Done)),
                (9, _) => world.handle(Input::Answered(WorkerId(9999), 1000)),
                _ => {
                    world.now = world.now + Duration::from_millis(random.below(5_000));
                    world.timeout();
                }
            }
        }
        world.live(10 * SECOND);
        assert!(!world.recycling.is_pending());
        assert!(world.recycling.orders.is_empty() && world.under_way.is_none(), "seed {seed}");
    }
}
