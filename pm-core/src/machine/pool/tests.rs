//! The pool at virtual time.

use super::super::budget::SplitMix;
use super::super::exit::ExitStatus;
use super::*;

const MILLI: Duration = Duration::from_millis(1);

/// The processes of a pool, as a launcher and a kernel would have them, and what must hold between them and the machine.
struct World {
    pool: Pool,
    now: Time,
    random: SplitMix,
    context: String,
    /// Those that were asked for and are not down.
    up: BTreeMap<WorkerId, Process>,
    known: BTreeMap<WorkerId, Incarnation>,
    gone: Vec<WorkerId>,
    /// How many there should be, once things are calm.
    target: usize,
    may_spawn: bool,
    gave_up: bool,
    /// Replacements that were asked for and have not ended.
    swaps: Vec<WorkerId>,
    swapped: Vec<Swapped>,
}

#[derive(Clone, Debug)]
struct Process {
    incarnation: Incarnation,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Draining,
    /// Its link was closed, or it was sent a signal.
    Ending,
    /// It was killed, and is still there.
    Unkillable,
}

impl World {
    fn new(seed: u64, budget: Budget) -> Self {
        let times = Times { start: 500 * MILLI, stop_grace: 100 * MILLI };
        World {
            pool: Pool::new(times, budget, seed),
            now: Time::ZERO,
            random: SplitMix(seed),
            context: format!("seed {seed}"),
            up: BTreeMap::new(),
            known: BTreeMap::new(),
            gone: Vec::new(),
            target: 0,
            may_spawn: true,
            gave_up: false,
            swaps: Vec::new(),
            swapped: Vec::new(),
        }
    }

    fn handle(&mut self, input: Input) {
        self.context += &format!("\n  {:?} {input:?}", self.now.since(Time::ZERO));
        self.pool.handle(self.now, input);
        self.effects();
    }

    fn timeout(&mut self) {
        self.pool.handle_timeout(self.now);
        self.effects();
        assert!(self.pool.poll_timeout().is_none_or(|due| due > self.now), "a timer is due for ever: {}", self.context);
    }

    fn unit(&mut self, worker: WorkerId, input: unit::Input, calls: usize) {
        self.handle(Input::Unit(worker, input, Aboard { pid: Some(worker.0), calls, last_notice: None }));
    }

    fn effects(&mut self) {
        while let Some(effect) = self.pool.poll_effect() {
            let context = format!("{effect:?} after {}", self.context);
            match effect {
                Effect::Phase(phase) => {
                    self.gave_up = matches!(phase, Phase::GaveUp(_));
                    self.may_spawn = matches!(phase, Phase::Serving);
                }
                Effect::Report(_) => {}
                Effect::Recycled(worker, swapped) => {
                    let asked = self.swaps.iter().position(|asked| *asked == worker);
                    self.swaps.remove(asked.unwrap_or_else(|| panic!("nobody asked for it: {context}")));
                    self.swapped.push(swapped);
                }
                Effect::Forget(worker) => {
                    assert!(!self.up.contains_key(&worker), "forgotten while it is up: {context}");
                    assert!(self.known.remove(&worker).is_some(), "forgotten twice: {context}");
                    self.gone.push(worker);
                }
                Effect::Unit(worker, effect) => {
                    assert!(!self.gone.contains(&worker), "an effect for one that is forgotten: {context}");
                    self.unit_effect(worker, effect, &context);
                }
            }
        }
    }

    fn unit_effect(&mut self, worker: WorkerId, effect: unit::Effect, context: &str) {
        if let unit::Effect::Spawn(incarnation) = effect {
            assert!(self.may_spawn, "a start that nobody wants: {context}");
            let before = self.known.insert(worker, incarnation);
            assert_eq!(incarnation.0, before.map_or(0, |before| before.0) + 1, "{context}");
            let process = Process { incarnation, state: State::Starting };
            assert!(self.up.insert(worker, process).is_none(), "a start while it is up: {context}");
            return;
        }
        let process = self.up.get_mut(&worker).unwrap_or_else(|| panic!("of one that is down: {context}"));
        match effect {
            unit::Effect::Spawn(_) => {}
            unit::Effect::SendDrain(of) => {
                assert_eq!((of, process.state), (process.incarnation, State::Ready), "{context}");
                process.state = State::Draining;
            }
            unit::Effect::CloseLink(of) | unit::Effect::Terminate(of) | unit::Effect::Kill(of) => {
                assert_eq!(of, process.incarnation, "{context}");
                process.state = State::Ending;
            }
            unit::Effect::Unkillable(of) => {
                assert_eq!((of, process.state), (process.incarnation, State::Ending), "{context}");
                process.state = State::Unkillable;
            }
            unit::Effect::Down { incarnation, .. } => {
                assert_eq!(incarnation, process.incarnation, "{context}");
                self.up.remove(&worker);
            }
        }
    }

    /// A process does something of its own.
    fn process(&mut self, worker: WorkerId) {
        let Some(Process { incarnation, state }) = self.up.get(&worker).cloned() else { return };
        let dies = ExitStatus::Signal { signal: 11, core: false };
        let calls = self.random.below(2) as usize;
        match (state, self.random.below(12)) {
            (State::Starting, 0) => self.unit(worker, unit::Input::NotSpawned(incarnation, "no such file".into()), 0),
            (State::Starting, 1) => self.unit(worker, unit::Input::Exited(incarnation, dies), 0),
            (State::Starting, 2) => self.unit(worker, unit::Input::Spawned(incarnation), 0),
            (State::Starting, 3..) => self.readies(worker),
            (State::Ready | State::Draining, 0) => self.unit(worker, unit::Input::Exited(incarnation, dies), calls),
            (State::Ready | State::Draining, 1) => {
                self.unit(worker, unit::Input::LinkLost(incarnation, "end of file".into()), calls);
            }
            (State::Ready, 2) => {
                let cause = ExitCause::Stuck { grace: MILLI };
                self.unit(worker, unit::Input::Fail(incarnation, cause), calls);
            }
            (State::Ready, _) => self.handle(Input::Progress(worker, incarnation)),
            (State::Draining, _) => self.unit(worker, unit::Input::Drained(incarnation, unit::Farewell::Link), 0),
            (State::Ending, 0) => {}
            (State::Ending, _) => self.unit(worker, unit::Input::Exited(incarnation, ExitStatus::Code(0)), calls),
            (State::Unkillable, _) => unreachable!("a unit is down when it says that"),
        }
    }

    fn readies(&mut self, worker: WorkerId) {
        let Some(process) = self.up.get_mut(&worker).filter(|process| process.state == State::Starting) else {
            return;
        };
        process.state = State::Ready;
        let incarnation = process.incarnation;
        self.unit(worker, unit::Input::Ready(incarnation), 0);
    }

    /// Somebody asks for something.
    fn operate(&mut self) {
        let is_open = matches!(self.pool.phase(), Phase::Idle | Phase::Serving | Phase::Unspawned);
        let ready: Vec<_> = self.ready();
        let mut target = self.target;
        let input = match self.random.below(15) {
            0..=2 => {
                target = self.random.below(5) as usize;
                let idlest = ready.into_iter().take(self.random.below(3) as usize).collect();
                Input::Scale { workers: target as u32, idlest }
            }
            3 => {
                target += 1;
                Input::SpawnOne
            }
            4 if *self.pool.phase() == Phase::Idle => {
                target = 1;
                Input::Demand
            }
            5 if !ready.is_empty() && self.pool.settled() => {
                target = target.saturating_sub(1);
                Input::UnspawnOne { worker: ready[self.random.below(ready.len() as u64) as usize], deadline: None }
            }
            6 => {
                target = 0;
                Input::Unspawn { deadline: None }
            }
            7 => {
                target = 1 + self.random.below(3) as usize;
                Input::Respawn { workers: Some(target as u32), drain: Some(50 * MILLI) }
            }
            8 => Input::Respawn { workers: None, drain: None },
            9 if !ready.is_empty() => Input::KillWorker(ready[0], ExitCause::Chaos),
            10 => Input::Revive,
            11..=13 => {
                // Of those that serve, and now and then of one that does not.
                let worker = WorkerId(self.random.below(u64::from(self.pool.next) + 1) as u32);
                let worker = ready.get(self.random.below(4) as usize).copied().unwrap_or(worker);
                self.swaps.push(worker);
                let drain = [None, Some(20 * MILLI)][self.random.below(2) as usize];
                Input::Recycle { worker, reason: Reason::Age, drain }
            }
            _ => return,
        };
        if is_open {
            self.target = target;
        }
        self.handle(input);
    }

    /// News that nobody should listen to: of the forgotten, of strangers, of earlier lives.
    fn gossip(&mut self) {
        let worker = match self.random.below(3) {
            0 => self.gone.last().copied().unwrap_or(WorkerId(9999)),
            1 => WorkerId(9999),
            _ => self.known.keys().next().copied().unwrap_or(WorkerId(9999)),
        };
        let of = Incarnation(self.known.get(&worker).map_or(1, |of| of.0.saturating_sub(1)));
        let before = format!("{:?} {:?} {:?}", self.pool.counts(), self.pool.phase(), self.pool.worker(worker));
        let news = [
            unit::Input::Ready(of),
            unit::Input::Exited(of, ExitStatus::Code(1)),
            unit::Input::LinkLost(of, "stale".into()),
            unit::Input::Drained(of, unit::Farewell::Link),
            unit::Input::Fail(of, ExitCause::Chaos),
        ];
        for input in news {
            self.pool.handle(self.now, Input::Unit(worker, input, Aboard::default()));
        }
        self.pool.handle(self.now, Input::Progress(worker, of));
        let after = format!("{:?} {:?} {:?}", self.pool.counts(), self.pool.phase(), self.pool.worker(worker));
        assert_eq!(before, after, "gossip changed something: {}", self.context);
        assert_eq!(self.pool.poll_effect(), None, "gossip had an effect: {}", self.context);
    }

    fn ready(&self) -> Vec<WorkerId> {
        self.up.iter().filter(|(_, process)| process.state == State::Ready).map(|(worker, _)| *worker).collect()
    }

    /// Nobody asks for anything, and every process does what it should, until nothing changes any more.
    fn calm(&mut self) {
        for _ in 0..1000 {
            let before = self.up.values().map(|process| process.state).collect::<Vec<_>>();
            for (worker, Process { incarnation, state }) in self.up.clone() {
                match state {
                    State::Starting => self.readies(worker),
                    State::Draining => self.unit(worker, unit::Input::Drained(incarnation, unit::Farewell::Link), 0),
                    State::Ending => self.unit(worker, unit::Input::Exited(incarnation, ExitStatus::Code(0)), 0),
                    State::Ready | State::Unkillable => {}
                }
            }
            let after = self.up.values().map(|process| process.state).collect::<Vec<_>>();
            match self.pool.poll_timeout() {
                Some(due) => {
                    self.now = due;
                    self.timeout();
                }
                None if before == after => return,
                None => {}
            }
        }
        panic!("it never calms down: {}", self.context);
    }

    fn check(&self) {
        let counts = self.pool.counts();
        assert_eq!(counts.active + counts.releasing + counts.crashed, self.known.len(), "{}", self.context);
    }

    /// What holds once things are calm.
    fn check_calm(&self) {
        let (counts, context) = (self.pool.counts(), &self.context);
        assert_eq!(self.swaps, [], "a replacement goes on for ever: {context}");
        if self.gave_up {
            assert_eq!(counts.releasing, 0, "{context}");
            return;
        }
        assert_eq!(self.ready().len(), self.target, "not as many serve as should: {context}");
        assert_eq!((counts.active, counts.releasing, counts.crashed), (self.target, 0, 0), "{context}");
        assert_eq!(self.pool.size() as usize, self.target, "{context}");
        assert!(self.pool.settled(), "something is under way for ever: {context}");
        let expected =
            if self.target == 0 { [Phase::Idle, Phase::Unspawned] } else { [Phase::Serving, Phase::Serving] };
        assert!(expected.contains(self.pool.phase()), "{:?}: {context}", self.pool.phase());
    }

    /// However it was, a shutdown ends it.
    fn check_end(mut self) {
        match self.random.below(3) {
            0 => self.handle(Input::Kill),
            1 => self.handle(Input::Shutdown { deadline: None }),
            _ => self.handle(Input::Shutdown { deadline: Some(self.now + 20 * MILLI) }),
        }
        if self.random.below(2) == 0 {
            // The second signal of somebody in a hurry.
            self.handle(Input::Kill);
        }
        self.operate();
        self.calm();
        assert_eq!(*self.pool.phase(), Phase::Closed, "{}", self.context);
        assert_eq!(self.swaps, [], "{}", self.context);
        assert!(self.up.is_empty() && self.known.is_empty(), "{}", self.context);
        self.handle(Input::Scale { workers: 3, idlest: Vec::new() });
        self.handle(Input::Revive);
        self.handle(Input::Kill);
        assert_eq!((self.pool.phase(), self.pool.poll_timeout()), (&Phase::Closed, None), "{}", self.context);
    }
}

fn strict() -> Budget {
    Budget::crash_loops(5, Duration::from_secs(10)).backoff(MILLI, 50 * MILLI)
}

#[test]
fn whatever_happens_it_ends_as_it_should() {
    for seed in 0..3000 {
        let patient = Budget::crash_loops(u32::MAX, MILLI).backoff(MILLI, 50 * MILLI);
        let mut world = World::new(seed, if seed % 2 == 0 { strict() } else { patient });
        for _ in 0..world.random.below(80) {
            match world.random.below(10) {
                0..=2 => world.operate(),
                3 => world.gossip(),
                4 => {
                    if let Some(due) = world.pool.poll_timeout() {
                        world.now = world.now.max(due);
                        world.timeout();
                    }
                }
                _ => {
                    let up: Vec<_> = world.up.keys().copied().collect();
                    if !up.is_empty() {
                        let chosen = up[world.random.below(up.len() as u64) as usize];
                        world.process(chosen);
                    }
                }
            }
            world.now = world.now + Duration::from_micros(world.random.below(2000));
            world.check();
        }
        if seed % 3 > 0 {
            world.calm();
            world.check_calm();
            if world.gave_up {
                world.handle(Input::Revive);
                world.calm();
                world.check_calm();
            }
        }
        world.check_end();
    }
}

fn serving(workers: u32, seed: u64) -> World {
    let mut world = World::new(seed, strict());
    world.target = workers as usize;
    world.handle(Input::Scale { workers, idlest: Vec::new() });
    world.calm();
    world.check_calm();
    world
}

#[test]
fn a_respawn_keeps_the_capacity_and_replaces_everyone() {
    for seed in 0..200 {
        let mut world = serving(1 + seed as u32 % 5, seed);
        let old = world.ready();
        world.handle(Input::Respawn { workers: None, drain: None });
        while let starting = world.up.iter().filter(|(_, process)| process.state == State::Starting).collect::<Vec<_>>()
            && !starting.is_empty()
        {
            let chosen = *starting[world.random.below(starting.len() as u64) as usize].0;
            world.readies(chosen);
            assert!(world.ready().len() >= old.len(), "fewer serve during a respawn: {}", world.context);
        }
        world.calm();
        world.check_calm();
        assert!(world.ready().iter().all(|worker| !old.contains(worker)), "{}", world.context);
    }
}

/// One after the other, in whatever order processes do things: as many serve as before, and never more than one more.
#[test]
fn a_recycling_keeps_the_capacity_and_adds_one_process() {
    for seed in 0..200 {
        let workers = 1 + seed as usize % 5;
        let mut world = serving(workers as u32, seed);
        let old = world.ready();
        for worker in old.clone() {
            world.swaps.push(worker);
            world.handle(Input::Recycle { worker, reason: Reason::Schedule, drain: None });
            assert!(world.pool.settled() && world.pool.size() as usize == workers, "it is no change of the pool");
            while !world.swaps.is_empty() {
                assert!(world.ready().len() >= workers, "fewer serve: {}", world.context);
                assert!(world.up.len() <= workers + 1, "more than one more: {}", world.context);
                let moving: Vec<_> = world.up.iter().filter(|(_, process)| process.state != State::Ready).collect();
                let (worker, process) = moving[world.random.below(moving.len() as u64) as usize];
                let (worker, incarnation) = (*worker, process.incarnation);
                match process.state {
                    State::Starting => world.readies(worker),
                    State::Draining => {
                        world.unit(worker, unit::Input::Drained(incarnation, unit::Farewell::Link), 0);
                    }
                    _ => world.unit(worker, unit::Input::Exited(incarnation, ExitStatus::Code(0)), 0),
                }
            }
        }
        assert_eq!(world.swapped, vec![Swapped::Done; workers]);
        world.calm();
        world.check_calm();
        assert!(world.ready().iter().all(|worker| !old.contains(worker)), "{}", world.context);
    }
}

#[test]
fn a_replacement_that_fails_counts_against_nothing() {
    let none = Budget::crash_loops(0, Duration::from_secs(10));
    let mut world = World::new(1, none);
    world.target = 1;
    world.handle(Input::Scale { workers: 1, idlest: Vec::new() });
    world.calm();
    for (n, how) in (2..).zip([
        unit::Input::NotSpawned(Incarnation(1), "no such file".into()),
        unit::Input::Exited(Incarnation(1), ExitStatus::Code(7)),
        unit::Input::Fail(Incarnation(1), ExitCause::Chaos),
    ]) {
        world.swaps.push(WorkerId(1));
        world.handle(Input::Recycle { worker: WorkerId(1), reason: Reason::Age, drain: None });
        world.unit(WorkerId(n), how, 0);
        world.calm();
        world.check_calm();
        assert_eq!((world.ready(), world.swapped.pop()), (vec![WorkerId(1)], Some(Swapped::Failed)));
    }
}

/// What happens to the old one, or is asked of the pool, while its successor starts.
#[test]
fn a_replacement_without_a_point_is_called_off() {
    let old = WorkerId(1);
    let respawn = Input::Respawn { workers: None, drain: None };
    let dies = unit::Input::Exited(Incarnation(1), ExitStatus::Code(1));
    for (input, ends, target) in [
        (Input::UnspawnOne { worker: old, deadline: None }, Some(Swapped::CalledOff), 1),
        (Input::UnspawnOne { worker: WorkerId(3), deadline: None }, Some(Swapped::CalledOff), 2),
        (Input::Scale { workers: 1, idlest: vec![old] }, Some(Swapped::CalledOff), 1),
        (Input::Scale { workers: 3, idlest: Vec::new() }, None, 3),
        (Input::Unspawn { deadline: None }, Some(Swapped::CalledOff), 0),
        (respawn, Some(Swapped::CalledOff), 2),
        // Its successor is there sooner than its next life, which is not needed any more then.
        (Input::Unit(old, dies, Aboard::default()), None, 2),
        (Input::KillWorker(WorkerId(2), ExitCause::Chaos), None, 2),
        (Input::Recycle { worker: WorkerId(2), reason: Reason::Age, drain: None }, Some(Swapped::CalledOff), 2),
    ] {
        let mut world = serving(2, 1);
        world.swaps.push(old);
        world.handle(Input::Recycle { worker: old, reason: Reason::Age, drain: None });
        if let Input::Recycle { worker, .. } = input {
            world.swaps.push(worker);
        }
        world.target = target;
        world.handle(input.clone());
        assert_eq!(world.swapped.pop(), ends, "{input:?}");
        world.calm();
        world.check_calm();
        if ends.is_none() {
            assert_eq!(world.swapped, [Swapped::Done], "{input:?}");
            assert!(!world.ready().contains(&old), "{input:?}");
        }
    }
}

/// What is asked for while a respawn is under way counts from what there will be, not from what there happens to be.
#[test]
fn requests_during_a_respawn_mean_what_they_say() {
    let respawn = Input::Respawn { workers: None, drain: None };
    let scale = |workers| Input::Scale { workers, idlest: Vec::new() };
    let first = WorkerId(1);
    for (workers, inputs, expected) in [
        (2, vec![respawn.clone(), respawn.clone()], 2),
        (2, vec![respawn.clone(), respawn.clone(), respawn.clone()], 2),
        (2, vec![respawn.clone(), scale(3)], 3),
        (3, vec![respawn.clone(), scale(1)], 1),
        (2, vec![respawn.clone(), Input::SpawnOne], 3),
        (2, vec![respawn.clone(), Input::UnspawnOne { worker: first, deadline: None }], 1),
        (1, vec![respawn.clone(), Input::UnspawnOne { worker: first, deadline: None }], 0),
        (
            3,
            vec![Input::Respawn { workers: Some(1), drain: None }, Input::UnspawnOne { worker: first, deadline: None }],
            1,
        ),
        (2, vec![respawn.clone(), Input::Unspawn { deadline: None }], 0),
    ] {
        for ready_first in 0..3 {
            let mut world = serving(workers, 1);
            world.target = expected;
            for input in &inputs {
                world.handle(input.clone());
                for worker in world.up.keys().copied().collect::<Vec<_>>().into_iter().rev().take(ready_first) {
                    world.readies(worker);
                }
            }
            // A worker that became ready meanwhile may have let the named one go already.
            let named_was_gone = ready_first > 0 && matches!(inputs.last(), Some(Input::UnspawnOne { .. }));
            world.calm();
            if !named_was_gone {
                world.check_calm();
            }
            assert!(world.pool.settled(), "{}", world.context);
        }
    }
}

#[test]
fn a_pool_whose_last_worker_was_sent_away_has_none() {
    let mut world = serving(1, 1);
    world.handle(Input::UnspawnOne { worker: WorkerId(1), deadline: None });
    assert_eq!(*world.pool.phase(), Phase::Unspawned, "its queries would wait for ever");
    world.target = 0;
    world.calm();
    world.check_calm();
    world.handle(Input::SpawnOne);
    world.target = 1;
    world.calm();
    world.check_calm();
}

#[test]
fn who_has_ended_cannot_be_released() {
    let mut world = serving(2, 1);
    let release =
        |incarnation| Input::Release { worker: WorkerId(1), incarnation: Incarnation(incarnation), deadline: None };
    for stale in [0, 2] {
        world.handle(release(stale));
        world.calm();
        assert_eq!(world.pool.counts().active, 2);
        world.check_calm();
    }
    world.handle(release(1));
    world.target = 1;
    world.calm();
    world.check_calm();
    assert_eq!(world.pool.counts().active, 1);
}

#[test]
fn a_pool_that_gave_up_can_be_revived_or_killed() {
    for ends in [Input::Revive, Input::Kill, Input::Shutdown { deadline: None }] {
        let mut world = serving(2, 1);
        let dies = ExitStatus::Code(1);
        while !world.gave_up {
            for (worker, process) in world.up.clone() {
                world.unit(worker, unit::Input::Exited(process.incarnation, dies), 0);
            }
            if let Some(due) = world.pool.poll_timeout() {
                world.now = due;
                world.timeout();
            }
        }
        world.calm();
        assert!(world.up.is_empty(), "{}", world.context);
        world.handle(ends.clone());
        world.calm();
        if ends == Input::Revive {
            world.check_calm();
        } else {
            assert_eq!(*world.pool.phase(), Phase::Closed, "{}", world.context);
        }
    }
}
