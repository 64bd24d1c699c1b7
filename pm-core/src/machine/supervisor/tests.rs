//! Generated systems of services at virtual time, beside a model that knows only what the world has seen.

use super::super::budget::SplitMix;
use super::super::exit::ExitStatus;
use super::super::id::Incarnation;
use super::super::life::Check;
use super::super::metrics::{Gauge, Metrics, TreeUsage};
use super::super::probe::Timing;
use super::super::restart::{Restart, When};
use super::*;

mod replace;

const SECOND: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

/// How the processes of a service behave.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// It cannot be started, one time in so many; 0 is never.
    refuses: u64,
    /// It ends by itself after at most so long; 0 is never.
    lives: u64,
    /// The code it ends with.
    code: i32,
    /// Its probe passes from then on; none is never.
    ready_after: Option<u64>,
    /// Its probe fails later, one time in so many.
    flaps: u64,
    /// It ends at once when it is asked to.
    is_polite: bool,
}

const GOOD: Manners = Manners { refuses: 0, lives: 0, code: 0, ready_after: Some(100), flaps: 0, is_polite: true };

#[derive(Clone, Debug)]
struct Process {
    incarnation: Incarnation,
    pid: Option<u32>,
    spawned_at: Time,
    asked_to_end: bool,
}

/// What is known of one process of a service, from effects that were carried out and from nothing else.
#[derive(Clone, Debug, Default)]
struct Known {
    process: Option<Process>,
    events: Vec<Event>,
}

#[derive(Debug)]
struct World {
    machine: Supervisor,
    manners: BTreeMap<String, Manners>,
    known: BTreeMap<ServiceId, Known>,
    names: BTreeMap<ServiceId, String>,
    due: BTreeMap<(Time, u64), (ServiceId, life::Input)>,
    now: Time,
    random: SplitMix,
    next: u64,
    /// All that happened, for whoever reads a failure.
    trace: Vec<String>,
    /// What has a process may only end in this order while all is being stopped.
    is_stopping_all: bool,
}

impl World {
    fn new(seed: u64, services: Vec<(&str, Rules, Manners)>) -> Self {
        let mut machine = Supervisor::new(seed);
        let manners = services.iter().map(|(name, _, manners)| (name.to_string(), *manners)).collect();
        machine.add(services.into_iter().map(|(name, rules, _)| (name.to_string(), rules, 1)).collect()).unwrap();
        let mut world = World {
            machine,
            manners,
            known: BTreeMap::new(),
            names: BTreeMap::new(),
            due: BTreeMap::new(),
            now: Time::ZERO,
            random: SplitMix(seed),
            next: 0,
            trace: Vec::new(),
            is_stopping_all: false,
        };
        world.carry_out();
        world
    }

    fn handle(&mut self, input: Input) {
        self.trace.push(format!("{} ms: {input:?}", self.now.as_nanos() / 1_000_000));
        self.machine.handle(self.now, input);
        self.carry_out();
    }

    fn start(&mut self, name: &str) {
        self.handle(Input::Start { names: vec![name.into()], with_needs: true });
    }

    /// A service that was never started has a process that has outlived an earlier manager.
    fn adopt(&mut self, name: &str, lived: Duration, was_ready: bool) {
        let id = self.id(name);
        let pid = 500 + id.0;
        self.handle(Input::Life(id, life::Input::Adopted { pid, lived, was_ready }));
        let incarnation = self.machine.life(id).unwrap().incarnation();
        let process = Process { incarnation, pid: Some(pid), spawned_at: self.now, asked_to_end: false };
        self.known.get_mut(&id).unwrap().process = Some(process);
        let manners = self.manners[name];
        if manners.lives > 0 {
            let lives = 1 + self.random.below(manners.lives);
            self.later(lives, id, life::Input::Exited(incarnation, ExitStatus::Code(manners.code)));
        }
    }

    fn later(&mut self, millis: u64, id: ServiceId, input: life::Input) {
        self.next += 1;
        self.due.insert((self.now + Duration::from_millis(millis), self.next), (id, input));
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            self.trace.push(format!("{} ms:   {effect:?}", self.now.as_nanos() / 1_000_000));
            match effect {
                Effect::Added(id) => {
                    let (name, _) = self.machine.name_of(id).unwrap();
                    self.names.insert(id, name.to_string());
                    self.known.insert(id, Known::default());
                }
                Effect::Renewed(id) => assert!(self.known[&id].process.is_none(), "{}", self.story()),
                Effect::Removed(id) => assert!(self.known.remove(&id).unwrap().process.is_none()),
                Effect::Life(id, effect) => self.carry_out_for(id, effect),
            }
        }
    }

    fn carry_out_for(&mut self, id: ServiceId, effect: life::Effect) {
        let name = self.names[&id].clone();
        let manners = self.manners[&name];
        match effect {
            life::Effect::Spawn(incarnation) => {
                assert!(self.known[&id].process.is_none(), "{name} has two processes\n{}", self.story());
                assert!(!self.is_stopping_all, "{name} starts while all stop\n{}", self.story());
                let process = Process { incarnation, pid: None, spawned_at: self.now, asked_to_end: false };
                self.known.get_mut(&id).unwrap().process = Some(process);
                if manners.refuses > 0 && self.random.below(manners.refuses) == 0 {
                    return self.later(1, id, life::Input::NotSpawned(incarnation, "no such file".into()));
                }
                self.later(1, id, life::Input::Spawned(incarnation, 1000 + self.next as u32));
                if manners.lives > 0 {
                    let lives = 2 + self.random.below(manners.lives);
                    self.later(lives, id, life::Input::Exited(incarnation, ExitStatus::Code(manners.code)));
                }
            }
            life::Effect::Ask(incarnation, check) => {
                let Some(process) = &self.known[&id].process else { return };
                let age = self.now.since(process.spawned_at).as_millis() as u64;
                let is_up = manners.ready_after.is_some_and(|after| age >= after);
                let flaps = manners.flaps > 0 && self.random.below(manners.flaps) == 0;
                let answer = if is_up && !flaps { Ok(()) } else { Err("refused".to_string()) };
                let takes = self.random.below(3);
                self.later(takes, id, life::Input::Answered(incarnation, check, answer));
            }
            life::Effect::Measure(incarnation, pid) => {
                let process = self.known[&id].process.as_ref();
                assert_eq!(process.map(|process| process.pid), Some(Some(pid)), "{name}\n{}", self.story());
                let rss_bytes = self.random.below(200);
                let usage = (rss_bytes > 20).then_some(TreeUsage { rss_bytes, ..TreeUsage::default() });
                let (now, takes) = (self.now, self.random.below(2000));
                self.later(takes, id, life::Input::Measured(incarnation, now, usage));
            }
            life::Effect::Terminate(incarnation) => {
                self.is_stopped_after_those_that_need_it(id);
                if self.is_stopping_all {
                    let before = self.dependents_with_process(&name);
                    assert!(before.is_empty(), "{name} is stopped before {before:?}\n{}", self.story());
                }
                if let Some(process) = &mut self.known.get_mut(&id).unwrap().process {
                    process.asked_to_end = true;
                }
                if manners.is_polite {
                    self.later(5, id, life::Input::Exited(incarnation, ExitStatus::Code(0)));
                }
            }
            life::Effect::Kill(incarnation) => {
                self.later(1, id, life::Input::Exited(incarnation, ExitStatus::Signal { signal: 9, core: false }));
            }
            life::Effect::Event(event) => self.known.get_mut(&id).unwrap().events.push(event),
        }
    }

    fn dependents_with_process(&self, name: &str) -> Vec<String> {
        let mut affected = vec![name.to_string()];
        let mut found = Vec::new();
        for other in self.machine.names() {
            if self.machine.needs(other).iter().any(|need| affected.contains(&need.on)) {
                affected.push(other.to_string());
                let has_process = |id: &ServiceId| self.known[id].process.is_some();
                found.extend(self.machine.replicas(other).iter().any(has_process).then(|| other.to_string()));
            }
        }
        found
    }

    /// Lets time go by until nothing is due before `until`.
    fn run(&mut self, until: Time) {
        for _ in 0..100_000 {
            let due = self.due.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = Time::earliest(due, self.machine.poll_timeout()).filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if due.is_some_and(|at| at <= self.now) {
                let (_, (id, input)) = self.due.pop_first().unwrap();
                self.tell(id, input);
            } else {
                self.machine.handle_timeout(self.now);
                self.carry_out();
            }
            self.check();
        }
        panic!("time stands still\n{}", self.story());
    }

    /// Passes on what happens to a process, unless that is gone.
    fn tell(&mut self, id: ServiceId, input: life::Input) {
        let Some(known) = self.known.get_mut(&id) else { return };
        let is_of_this = |of: &Incarnation| known.process.as_ref().is_some_and(|process| process.incarnation == *of);
        match &input {
            life::Input::Spawned(of, pid) if is_of_this(of) => {
                let process = known.process.as_mut().unwrap();
                process.pid = Some(*pid);
            }
            life::Input::NotSpawned(of, _) | life::Input::Exited(of, _) if is_of_this(of) => known.process = None,
            life::Input::Spawned(..) | life::Input::NotSpawned(..) | life::Input::Exited(..) => return,
            _ => {}
        }
        self.handle(Input::Life(id, input));
    }

    /// What must hold at any time.
    fn check(&self) {
        for (id, child) in &self.machine.children {
            let ends = child.life.state() == State::Stopping;
            assert!(child.then == Then::Nothing || ends, "{id:?} {child:#?}\n{}", self.story());
        }
        for (id, known) in &self.known {
            let (state, name) = (self.machine.state(*id).unwrap(), &self.names[id]);
            let has_process = known.process.is_some();
            let expected = state.is_up() && state != State::Backoff;
            assert_eq!(has_process, expected, "{name} is {state}\n{}", self.story());
            let life = self.machine.life(*id).unwrap();
            if let Some(max) = life.rules().restart.max {
                assert!(life.counted_restarts() <= max as usize, "{}", self.story());
            }
        }
    }

    fn id(&self, name: &str) -> ServiceId {
        self.machine.replicas(name)[0]
    }

    fn state(&self, name: &str) -> State {
        self.machine.state(self.id(name)).unwrap()
    }

    fn why(&self, name: &str) -> String {
        self.machine.why(self.now, self.id(name)).unwrap_or_default()
    }

    fn starts(&self, name: &str) -> usize {
        let is_start = |event: &&Event| matches!(event, Event::Started { .. });
        self.known[&self.id(name)].events.iter().filter(is_start).count()
    }

    fn story(&self) -> String {
        self.trace.join("\n")
    }
}

fn probed(needs: Vec<Need>) -> Rules {
    Rules { needs, readiness: Readiness::Asked(Timing::default()), ..Rules::default() }
}

/// Each second, with this as the most memory.
fn measured(rss: u64) -> Metrics {
    Metrics { interval: SECOND, rss_above: Some(rss), ..Metrics::default() }
}

fn plain(needs: Vec<Need>) -> Rules {
    Rules { needs, ..Rules::default() }
}

fn needs(on: &str, condition: Condition) -> Vec<Need> {
    vec![Need::new(on, condition)]
}

#[test]
fn a_chain_starts_in_order_and_stops_in_reverse() {
    let mut world = World::new(
        1,
        vec![
            ("web", probed(needs("api", Condition::Healthy)), GOOD),
            ("api", probed(needs("db", Condition::Healthy)), GOOD),
            ("db", probed(vec![]), GOOD),
        ],
    );
    world.start("web");
    assert_eq!(world.why("web"), "needs api (healthy); api is waiting");
    world.run(at(120));
    assert_eq!(
        [world.state("db"), world.state("api"), world.state("web")],
        [State::Healthy, State::Starting, State::Waiting]
    );
    world.run(at(500));
    assert_eq!(world.state("web"), State::Healthy);
    world.is_stopping_all = true;
    world.handle(Input::StopAll { deadline: None });
    assert!(world.machine.is_up());
    world.run(at(600));
    assert!(["web", "api", "db"].iter().all(|name| world.state(name) == State::Stopped), "{}", world.story());
    assert!(!world.machine.is_up());
}

#[test]
fn what_needs_a_failed_one_is_skipped_with_the_path() {
    let bad = Manners { lives: 1, code: 1, ..GOOD };
    let mut world = World::new(
        1,
        vec![
            ("web", plain(needs("api", Condition::Started)), GOOD),
            ("api", plain(needs("migrate", Condition::CompletedSuccessfully)), GOOD),
            ("migrate", plain(vec![]), bad),
        ],
    );
    world.start("web");
    world.run(at(100));
    assert_eq!(
        [world.state("migrate"), world.state("api"), world.state("web")],
        [State::Failed, State::Skipped, State::Skipped]
    );
    assert!(
        world.why("api").starts_with("needs migrate (completed_successfully); migrate failed: exit code 1 after 0.0 s")
    );
    assert!(
        world.why("web").starts_with("needs api (started); api was skipped: it needs migrate"),
        "{}",
        world.why("web")
    );
    assert_eq!(world.machine.path_to_failure("web"), ["web", "api", "migrate"]);
    // Once it works, everything starts anew.
    world.manners.insert("migrate".into(), Manners { lives: 1, ..GOOD });
    world.start("web");
    world.run(at(3000));
    assert_eq!(
        [world.state("migrate"), world.state("api"), world.state("web")],
        [State::Completed, State::Running, State::Running]
    );
    // What has completed is not done again because another one needs it.
    world.handle(Input::Stop { names: vec!["web".into()], limit: None });
    world.run(at(4000));
    world.start("web");
    world.run(at(5000));
    assert_eq!((world.starts("migrate"), world.starts("web")), (2, 2));
}

#[test]
fn a_service_that_is_never_healthy_fails_at_its_start_limit_and_is_asked_politely() {
    let never = Manners { ready_after: None, ..GOOD };
    let mut world =
        World::new(1, vec![("db", probed(vec![]), never), ("api", plain(needs("db", Condition::Healthy)), GOOD)]);
    world.start("api");
    world.run(at(59_000));
    assert_eq!([world.state("db"), world.state("api")], [State::Starting, State::Waiting]);
    assert_eq!(world.why("db"), "not ready yet: refused");
    world.run(at(61_000));
    assert_eq!([world.state("db"), world.state("api")], [State::Failed, State::Skipped]);
    assert_eq!(world.why("db"), "not ready within 60s: refused");
    assert!(
        world.trace.iter().any(|line| line.contains("Terminate"))
            && !world.trace.iter().any(|line| line.contains("Kill("))
    );
}

#[test]
fn restarts_end_at_their_limit_and_a_stop_never_restarts() {
    let crashes = Manners { lives: 5, code: 1, ready_after: None, ..GOOD };
    let always =
        Rules { restart: Restart { delay: Duration::ZERO, ..Restart::when(When::Always) }, ..Rules::default() };
    let mut world = World::new(1, vec![("a", always.clone(), crashes)]);
    world.start("a");
    world.run(at(10_000));
    assert_eq!((world.state("a"), world.starts("a")), (State::GaveUp, 6));
    assert!(
        world.why("a").starts_with("exit code 1 after") && world.why("a").ends_with("after 5 restarts"),
        "{}",
        world.why("a")
    );

    let mut world = World::new(1, vec![("a", always.clone(), GOOD)]);
    world.start("a");
    world.run(at(2_000));
    world.handle(Input::Stop { names: vec!["a".into()], limit: None });
    world.run(at(90_000));
    assert_eq!((world.state("a"), world.starts("a")), (State::Stopped, 1));

    // A success is no failure, and starts again where it always does.
    let ends = Manners { lives: 5, ..GOOD };
    let on_failure = Rules { restart: Restart::when(When::OnFailure), ..Rules::default() };
    let mut world = World::new(1, vec![("a", on_failure, ends), ("b", always, ends)]);
    world.handle(Input::Start { names: vec!["a".into(), "b".into()], with_needs: true });
    world.run(at(10_000));
    assert_eq!([world.state("a"), world.state("b")], [State::Completed, State::GaveUp]);
}

#[test]
fn unhealthy_restarts_only_where_asked() {
    let flaps = Manners { flaps: 1, ready_after: Some(0), ..GOOD };
    for restart_unhealthy in [false, true] {
        let rules = Rules { restart_unhealthy, ..probed(vec![]) };
        let mut world = World::new(1, vec![("a", rules, GOOD)]);
        world.start("a");
        world.run(at(500));
        assert_eq!(world.state("a"), State::Healthy);
        world.manners.insert("a".into(), flaps);
        world.run(at(33_000));
        if restart_unhealthy {
            assert_eq!(world.starts("a"), 2, "{}", world.story());
        } else {
            assert_eq!((world.state("a"), world.starts("a")), (State::Unhealthy, 1));
            world.manners.insert("a".into(), GOOD);
            world.run(at(45_000));
            assert_eq!(world.state("a"), State::Healthy);
        }
    }
}

#[test]
fn who_says_nothing_to_the_watchdog_is_started_anew() {
    let rules = Rules { readiness: Readiness::Told { by_line: false }, watchdog: Some(SECOND), ..Rules::default() };
    let mut world = World::new(1, vec![("a", rules, GOOD)]);
    world.start("a");
    world.run(at(10));
    let (id, of) = (world.id("a"), Incarnation(1));
    world.handle(Input::Life(id, life::Input::Ready(of)));
    for second in 1..5 {
        world.run(at(second * 900));
        world.handle(Input::Life(id, life::Input::Alive(of)));
    }
    assert_eq!((world.state("a"), world.starts("a")), (State::Healthy, 1));
    world.run(at(6_500));
    assert_eq!(world.starts("a"), 2, "{}", world.story());
}

#[test]
fn start_and_stop_meet() {
    let mut world = World::new(1, vec![("a", probed(vec![]), GOOD)]);
    // Stop during start.
    world.start("a");
    world.handle(Input::Stop { names: vec!["a".into()], limit: None });
    world.run(at(1000));
    assert_eq!(world.state("a"), State::Stopped);
    // Start during stop.
    world.start("a");
    world.run(at(2000));
    world.handle(Input::Stop { names: vec!["a".into()], limit: None });
    world.start("a");
    assert_eq!(world.state("a"), State::Stopping);
    world.run(at(3000));
    assert_eq!((world.state("a"), world.starts("a")), (State::Healthy, 3));
    // One that does not listen is killed at its limit.
    world.manners.insert("a".into(), Manners { is_polite: false, ..GOOD });
    world.handle(Input::Stop { names: vec!["a".into()], limit: Some(SECOND) });
    world.run(at(3900));
    assert_eq!(world.state("a"), State::Stopping);
    world.run(at(4100));
    assert_eq!(world.state("a"), State::Stopped);
}

#[test]
fn a_restart_takes_those_along_that_want_it() {
    let mut along = Need::new("db", Condition::Healthy);
    along.restart = true;
    let mut world = World::new(
        1,
        vec![
            ("db", probed(vec![]), GOOD),
            ("api", plain(vec![along]), GOOD),
            ("log", plain(needs("db", Condition::Healthy)), GOOD),
        ],
    );
    world.handle(Input::Start { names: vec!["api".into(), "log".into()], with_needs: true });
    world.run(at(2000));
    world.handle(Input::Restart { names: vec!["db".into()] });
    world.run(at(4000));
    assert_eq!([world.starts("db"), world.starts("api"), world.starts("log")], [2, 2, 1], "{}", world.story());
    assert_eq!([world.state("db"), world.state("api")], [State::Healthy, State::Running]);
}

/// A stop that was asked for is not taken back because what the service is restarted with crashes meanwhile.
#[test]
fn a_crash_does_not_bring_back_what_was_stopped() {
    let mut along = Need::new("db", Condition::Started);
    along.restart = true;
    let always = Rules { restart: Restart::when(When::Always), ..Rules::default() };
    let slow = Manners { is_polite: false, ..GOOD };
    let mut world = World::new(1, vec![("db", always, GOOD), ("api", plain(vec![along]), slow)]);
    world.start("api");
    world.run(at(2000));
    world.handle(Input::Stop { names: vec!["api".into()], limit: None });
    world.run(at(3000));
    assert_eq!(world.state("api"), State::Stopping);
    let (id, process) = (world.id("db"), world.known[&world.id("db")].process.clone().unwrap());
    world.tell(id, life::Input::Exited(process.incarnation, ExitStatus::Code(1)));
    world.run(at(30_000));
    assert_eq!([world.state("db"), world.state("api")], [State::Running, State::Stopped], "{}", world.story());
}

#[test]
fn scaling_adds_and_removes_the_last() {
    let mut world =
        World::new(1, vec![("web", plain(vec![]), GOOD), ("lb", plain(needs("web", Condition::Running)), GOOD)]);
    world.start("lb");
    world.run(at(3000));
    world.handle(Input::Scale { name: "web".into(), replicas: 3 });
    world.run(at(3500));
    assert_eq!(world.machine.replicas("web").len(), 3);
    assert_eq!(world.machine.verdict("web", Condition::Running), Verdict::NotYet("web#2 is starting".into()));
    world.run(at(5000));
    assert_eq!(world.machine.verdict("web", Condition::Running), Verdict::Holds);
    world.handle(Input::Scale { name: "web".into(), replicas: 1 });
    world.run(at(6000));
    assert_eq!(world.machine.replicas("web").len(), 1);
    world.handle(Input::Remove { name: "web".into() });
    assert!(world.machine.contains("web"), "lb needs it");
    world.handle(Input::Remove { name: "lb".into() });
    world.run(at(7000));
    world.handle(Input::Remove { name: "web".into() });
    world.run(at(8000));
    assert_eq!(world.machine.names().count(), 0);
}

#[test]
fn who_is_to_go_and_is_wanted_again_stays_or_comes_back() {
    let mut world = World::new(1, vec![("web", plain(vec![]), GOOD)]);
    let scale = |replicas| Input::Scale { name: "web".into(), replicas };
    world.start("web");
    world.handle(scale(3));
    world.run(at(2000));
    world.handle(scale(1));
    world.handle(scale(2));
    world.run(at(4000));
    let numbers = |world: &World| {
        let ids = world.machine.replicas("web").iter();
        ids.map(|id| (world.machine.name_of(*id).unwrap().1, world.machine.state(*id).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&world), [(1, State::Running), (2, State::Running)], "{}", world.story());
    world.handle(scale(0));
    world.run(at(6000));
    assert_eq!((numbers(&world), world.machine.contains("web")), (vec![], true), "{}", world.story());
    world.handle(scale(1));
    world.run(at(8000));
    assert_eq!(numbers(&world), [(1, State::Running)], "{}", world.story());
    world.handle(Input::Remove { name: "web".into() });
    world.handle(scale(5));
    world.run(at(9000));
    assert!(!world.machine.contains("web"), "{}", world.story());
}

/// A stop that nothing follows, one that a start follows, and one that a start takes the place of.
#[test]
fn it_is_known_what_stops() {
    let mut world =
        World::new(1, vec![("db", plain(vec![]), GOOD), ("api", plain(needs("db", Condition::Started)), GOOD)]);
    let stop = |name: &str| Input::Stop { names: vec![name.into()], limit: None };
    world.start("api");
    world.run(at(2000));
    let [db, api] = ["db", "api"].map(|name| world.machine.replicas(name)[0]);
    assert!(!world.machine.is_stopping(db));
    world.handle(Input::StopAll { deadline: None });
    assert!(world.machine.is_stopping(db) && world.machine.is_stopping(api), "db waits for api");
    world.start("db");
    assert!(!world.machine.is_stopping(db), "it was not told yet, and stays");
    world.run(at(3000));
    assert_eq!([world.state("db"), world.state("api")], [State::Running, State::Stopped], "{}", world.story());
    world.handle(stop("db"));
    world.start("db");
    assert!(world.machine.is_stopping(db), "it was told, and starts again afterwards");
    world.run(at(5000));
    assert!(!world.machine.is_stopping(db));
    assert_eq!((world.state("db"), world.starts("db")), (State::Running, 2), "{}", world.story());
}

#[test]
fn what_cannot_be_is_refused_when_it_is_added() {
    let mut machine = Supervisor::new(1);
    let add = |machine: &mut Supervisor, name: &str, rules| {
        machine.add(vec![(name.into(), rules, 1)]).map_err(|e| e.to_string())
    };
    add(&mut machine, "db", plain(vec![])).unwrap();
    let refused = add(&mut machine, "api", plain(needs("db", Condition::Healthy))).unwrap_err();
    assert!(refused.contains("give it a probe, or need it to be running"), "{refused}");
    let refused = add(&mut machine, "api", plain(needs("cache", Condition::Started))).unwrap_err();
    assert_eq!(refused, r#""api" needs "cache", which does not exist"#);
    assert_eq!(add(&mut machine, "db", plain(vec![])).unwrap_err(), r#""db" is named twice"#);
    let restart = Restart::when(When::Always);
    add(&mut machine, "cron", Rules { restart, ..Rules::default() }).unwrap();
    let refused = add(&mut machine, "late", plain(needs("cron", Condition::CompletedSuccessfully))).unwrap_err();
    assert!(refused.contains("it is always started again"), "{refused}");
    assert_eq!(machine.names().collect::<Vec<_>>(), ["db", "cron"]);
}

/// Systems of services with random needs, manners and requests: what must hold holds at each step, whoever waits has a reason, and in the end
/// everything stops.
#[test]
fn generated_systems_never_hang_and_always_stop() {
    for seed in 0..1500 {
        let mut random = SplitMix(seed);
        let count = 1 + random.below(6) as usize;
        let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
        let rules: Vec<Rules> = (0..count)
            .map(|n| {
                let readiness = if random.below(2) == 0 {
                    Readiness::Spawned
                } else {
                    Readiness::Asked(Timing { interval: SECOND, retries: 2, ..Timing::default() })
                };
                let when = [When::Never, When::OnFailure, When::Always][random.below(3) as usize];
                Rules {
                    readiness,
                    start_limit: Duration::from_secs(5),
                    restart_unhealthy: random.below(2) == 0,
                    metrics: (random.below(3) == 0).then(|| measured(100)),
                    liveness: (random.below(4) == 0).then(Timing::default),
                    restart: Restart {
                        max: Some(random.below(4) as u32),
                        delay: Duration::from_millis(random.below(200)),
                        ..Restart::when(when)
                    },
                    stop_limit: Duration::from_millis(500),
                    needs: (0..n)
                        .filter(|_| random.below(3) == 0)
                        .map(|on| Need::new(format!("s{on}"), Condition::Started))
                        .collect(),
                    ..Rules::default()
                }
            })
            .collect();
        let mut rules = rules;
        for n in 0..count {
            for need in 0..rules[n].needs.len() {
                let on: usize = rules[n].needs[need].on[1..].parse().unwrap();
                // One that is always started again cannot be needed to end.
                let never_ends = rules[on].restart.when == When::Always;
                let options: &[Condition] = match rules[on].readiness {
                    Readiness::Spawned if never_ends => &[Condition::Started, Condition::Running],
                    _ if never_ends => &[Condition::Started, Condition::Running, Condition::Healthy],
                    Readiness::Spawned => &[
                        Condition::Started,
                        Condition::Running,
                        Condition::Completed,
                        Condition::CompletedSuccessfully,
                    ],
                    _ => &[Condition::Started, Condition::Running, Condition::Healthy, Condition::Completed],
                };
                rules[n].needs[need].condition = options[random.below(options.len() as u64) as usize];
                rules[n].needs[need].restart = random.below(4) == 0;
            }
        }
        let services: Vec<(&str, Rules, Manners)> = names
            .iter()
            .zip(rules)
            .map(|(name, rules)| {
                let manners = Manners {
                    refuses: [0, 0, 3][random.below(3) as usize],
                    lives: [0, 0, 300, 3000][random.below(4) as usize],
                    code: random.below(2) as i32,
                    ready_after: [Some(0), Some(300), None][random.below(3) as usize],
                    flaps: [0, 0, 4][random.below(3) as usize],
                    is_polite: random.below(3) > 0,
                };
                (name.as_str(), rules, manners)
            })
            .collect();
        let mut world = World::new(seed, services);
        for name in names.iter().filter(|_| seed % 3 == 0) {
            if world.random.below(2) == 0 {
                world.adopt(name, Duration::from_millis(seed), seed % 2 == 0);
            }
        }
        for _ in 0..12 {
            let name = names[random.below(count as u64) as usize].clone();
            let names = vec![name.clone()];
            world.handle(match random.below(9) {
                8 => Input::StopAll { deadline: Some(world.now + Duration::from_millis(random.below(100))) },
                0..=3 => Input::Start { names, with_needs: random.below(4) > 0 },
                4 => Input::Stop { names, limit: None },
                5 => Input::Restart { names },
                6 => Input::Scale { name, replicas: random.below(4) as u32 },
                _ => Input::Stop { names, limit: Some(Duration::ZERO) },
            });
            world.check();
            let until =
                world.now + Duration::from_millis([0, random.below(10), random.below(3000)][random.below(3) as usize]);
            world.run(until);
        }
        // Whoever still waits does so for something that may still come.
        let until = world.now + Duration::from_secs(30);
        world.run(until);
        for (id, child) in &world.machine.children {
            let is_asked = matches!(child.request, Some(Request::Stop { .. }));
            assert!(!is_asked, "seed {seed}: {id:?} is to stop and is not told\n{}", world.story());
        }
        for (id, name) in &world.names {
            if world.machine.state(*id) != Some(State::Waiting) {
                continue;
            }
            let needs = world.machine.needs(name).iter();
            let not_yet =
                needs.filter(|need| matches!(world.machine.verdict(&need.on, need.condition), Verdict::NotYet(_)));
            assert!(not_yet.count() > 0, "seed {seed}: {name} waits for nothing\n{}", world.story());
        }
        world.is_stopping_all = true;
        let deadline = (random.below(2) == 0).then(|| world.now + Duration::from_secs(1));
        world.handle(Input::StopAll { deadline });
        let until = world.now + if deadline.is_some() { Duration::from_millis(1100) } else { Duration::from_secs(10) };
        // At the deadline they are killed in any order.
        world.is_stopping_all = deadline.is_none();
        world.run(until);
        assert!(!world.machine.is_up(), "seed {seed}\n{}", world.story());
        assert!(world.known.values().all(|known| known.process.is_none()), "seed {seed}");
    }
}

#[test]
fn what_is_used_is_measured_while_it_lives_and_said() {
    let rules = |metrics| Rules { metrics, ..plain(vec![]) };
    let mut world = World::new(1, vec![("a", rules(Some(measured(100))), GOOD), ("b", rules(None), GOOD)]);
    for name in ["a", "b"] {
        world.start(name);
    }
    world.run(at(60_000));
    let id = world.id("a");
    let (mut samples, mut is_high) = (0, false);
    for event in &world.known[&id].events {
        match event {
            Event::Metrics { sample } => {
                samples += 1;
                assert!(sample.uptime >= sample.over && sample.over >= SECOND / 2, "{sample:?}");
            }
            Event::UsageHigh { gauge, value, above: 100 } => {
                assert!(*gauge == Gauge::Rss && *value > 100 && !std::mem::replace(&mut is_high, true));
            }
            Event::UsageNormal { gauge, value, above: 100 } => {
                assert!(*gauge == Gauge::Rss && *value < 90 && std::mem::replace(&mut is_high, false));
            }
            _ => {}
        }
    }
    assert!((20..=60).contains(&samples), "{samples} samples");
    assert!(world.machine.life(id).unwrap().metrics().unwrap().last().is_some());
    world.handle(Input::Stop { names: vec!["a".into()], limit: None });
    let events = world.known[&id].events.len();
    world.run(at(120_000));
    let later = &world.known[&id].events[events..];
    assert!(!later.iter().any(|event| matches!(event, Event::Metrics { .. })), "{later:?}");
    assert!(world.machine.life(id).unwrap().metrics().is_none());
    let of_b = &world.known[&world.id("b")].events;
    assert!(!of_b.iter().any(|event| matches!(event, Event::Metrics { .. })), "{of_b:?}");
}

#[test]
fn unasked_checks_are_dropped() {
    let mut world = World::new(1, vec![("a", probed(vec![]), GOOD)]);
    let id = world.id("a");
    world.handle(Input::Life(id, life::Input::Answered(Incarnation(0), Check::Readiness, Ok(()))));
    world.handle(Input::Life(id, life::Input::Ready(Incarnation(0))));
    assert_eq!(world.state("a"), State::Idle);
}

#[test]
fn one_that_outlived_its_manager_is_as_it_would_be() {
    // What is asked and was well is taken to be, and asked whether it still is.
    let sick = Manners { ready_after: None, ..GOOD };
    let patient = Rules { start_limit: SECOND, ..probed(vec![]) };
    let mut world = World::new(1, vec![("a", patient.clone(), sick)]);
    world.adopt("a", 100 * SECOND, true);
    assert_eq!((world.state("a"), world.starts("a")), (State::Healthy, 0));
    world.run(at(60_000));
    assert_eq!(world.state("a"), State::Unhealthy, "and is not killed for it\n{}", world.story());
    // What was not well yet has its time for that.
    let mut world = World::new(1, vec![("a", patient, sick)]);
    world.adopt("a", 100 * SECOND, false);
    world.run(at(2000));
    assert_eq!(world.state("a"), State::Failed, "{}", world.story());
    let mut world = World::new(1, vec![("a", probed(vec![]), GOOD)]);
    world.adopt("a", 100 * SECOND, false);
    assert_eq!((world.state("a"), world.starts("a")), (State::Starting, 0));
    world.run(at(500));
    assert_eq!(world.state("a"), State::Healthy);
    let id = world.id("a");
    assert_eq!(world.machine.life(id).unwrap().lived(world.now), 100 * SECOND + Duration::from_millis(500));
    assert_eq!(world.known[&id].events[0], Event::Adopted { pid: 500 + id.0, lived: 100 * SECOND });
    // A start changes nothing, and a stop ends it.
    world.start("a");
    world.run(at(1000));
    assert_eq!((world.state("a"), world.starts("a")), (State::Healthy, 0));
    world.handle(Input::Stop { names: vec!["a".into()], limit: None });
    world.run(at(2000));
    assert_eq!(world.state("a"), State::Stopped);

    // What says itself that it is ready does so once; what has no probe runs after a second, all its lives together.
    let told = Rules { readiness: Readiness::Told { by_line: true }, ..plain(vec![]) };
    for (was_ready, state) in [(true, State::Healthy), (false, State::Starting)] {
        let mut world = World::new(1, vec![("a", told.clone(), GOOD)]);
        world.adopt("a", SECOND, was_ready);
        world.run(at(100));
        assert_eq!(world.state("a"), state);
    }
    for (lived, state) in [(SECOND, State::Running), (Duration::from_millis(100), State::Starting)] {
        let mut world = World::new(1, vec![("a", plain(vec![]), GOOD)]);
        world.adopt("a", lived, false);
        world.run(at(100));
        assert_eq!(world.state("a"), state);
    }

    // One that has ended meanwhile is restarted as its rules say, and was never ready here.
    let restarts = Restart { delay: Duration::ZERO, ..Restart::when(When::OnFailure) };
    for (when, state, starts) in [(restarts, State::Running, 1), (Restart::default(), State::Failed, 0)] {
        let rules = Rules { restart: when, ..plain(vec![]) };
        let mut world = World::new(1, vec![("a", rules, GOOD), ("b", plain(needs("a", Condition::Started)), GOOD)]);
        let id = world.id("a");
        let ended = life::Input::EndedMeanwhile { pid: 7, lived: SECOND, status: ExitStatus::Code(7) };
        world.handle(Input::Life(id, ended));
        world.run(at(2000));
        assert_eq!((world.state("a"), world.starts("a")), (state, starts), "{}", world.story());
        let crash = world.known[&id].events[0].clone();
        assert!(matches!(crash, Event::Crashed { lived: SECOND, .. }), "{crash:?}");
    }
}
