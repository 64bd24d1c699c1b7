//! All services at once in place of those that there are.

use super::*;

impl World {
    fn replace(&mut self, services: Vec<Replacement>) -> Result<Replaced, BadService> {
        self.trace.push(format!("{} ms: replaced by {services:#?}", self.now.as_nanos() / 1_000_000));
        for one in &services {
            self.manners.entry(one.name.clone()).or_insert(GOOD);
        }
        let replaced = self.machine.replace(self.now, services);
        self.carry_out();
        self.check();
        replaced
    }

    /// Where it was told to end on request: nobody who is to end as well, and lives with a need of it, is still there. A need that has turned round since
    /// does not count.
    pub(super) fn is_stopped_after_those_that_need_it(&self, id: ServiceId) {
        let (child, name) = (&self.machine.children[&id], &self.names[&id]);
        // One that is still wanted has failed.
        if child.request.is_some() || child.life.is_wanted() {
            return;
        }
        for other in self.machine.names().skip_while(|other| other != name).skip(1) {
            let needs_it = |id: &&ServiceId| {
                let life = self.machine.life(**id).unwrap();
                life.state().is_up() && life.rules().needs.iter().any(|need| need.on == *name)
            };
            let is_before =
                self.machine.replicas(other).iter().filter(needs_it).any(|id| self.machine.is_stopping(*id));
            assert!(!is_before, "{name} is stopped before {other}\n{}", self.story());
        }
    }

    fn incarnations(&self, name: &str) -> Vec<u64> {
        let ids = self.machine.replicas(name).iter();
        ids.map(|id| self.machine.life(*id).unwrap().incarnation().0.into()).collect()
    }

    /// Each with its first process alone.
    fn states(&self, names: &[&str]) -> Vec<State> {
        names.iter().map(|name| self.state(name)).collect()
    }
}

fn as_it_is(name: &str, rules: Rules) -> Replacement {
    Replacement { name: name.into(), rules, replicas: 1, is_changed: false }
}

fn changed(name: &str, rules: Rules) -> Replacement {
    Replacement { is_changed: true, ..as_it_is(name, rules) }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn stop(name: &str) -> Input {
    Input::Stop { names: vec![name.into()], limit: None }
}

/// `web` needs `api`, which needs `db`; all are up.
fn three() -> World {
    let mut world = World::new(
        1,
        vec![
            ("web", plain(needs("api", Condition::Started)), GOOD),
            ("api", plain(needs("db", Condition::Started)), GOOD),
            ("db", plain(vec![]), GOOD),
        ],
    );
    world.start("web");
    world.run(at(2000));
    world
}

#[test]
fn what_did_not_change_is_left_alone() {
    let mut world = three();
    let replaced = world
        .replace(vec![
            as_it_is("web", plain(needs("api", Condition::Started))),
            changed("api", plain(needs("db", Condition::Started))),
            as_it_is("db", plain(vec![])),
            as_it_is("new", plain(vec![])),
        ])
        .unwrap();
    assert_eq!((replaced.added, replaced.changed, replaced.removed), (names(&["new"]), names(&["api"]), vec![]));
    assert_eq!(
        world.states(&["web", "api", "db", "new"]),
        [State::Running, State::Stopping, State::Running, State::Idle]
    );
    world.run(at(5000));
    assert_eq!([world.starts("web"), world.starts("api"), world.starts("db")], [1, 2, 1], "{}", world.story());
    assert_eq!(world.state("api"), State::Running);
    // Once more, and there is nothing to do.
    let same = ["web", "api", "db", "new"].map(|name| {
        let rules = world.machine.groups[name].rules.as_ref().clone();
        as_it_is(name, rules)
    });
    assert!(world.replace(same.into()).unwrap().is_empty());
    world.run(at(6000));
    assert_eq!(world.starts("api"), 2);
}

#[test]
fn a_process_ends_under_the_rules_that_it_began_with() {
    let deaf = Manners { is_polite: false, ..GOOD };
    let old = Rules { stop_limit: Duration::from_secs(2), ..Rules::default() };
    let new = Rules { stop_limit: Duration::from_secs(20), ..probed(vec![]) };
    let mut world = World::new(1, vec![("a", old, deaf)]);
    world.start("a");
    world.run(at(1000));
    world.replace(vec![as_it_is("a", new)]).unwrap();
    world.run(at(2900));
    assert_eq!((world.state("a"), world.incarnations("a")), (State::Stopping, vec![1]));
    world.run(at(3500));
    assert_eq!((world.state("a"), world.incarnations("a")), (State::Healthy, vec![2]), "{}", world.story());
    world.handle(stop("a"));
    world.run(at(23_000));
    assert_eq!(world.state("a"), State::Stopping);
    world.run(at(24_000));
    assert_eq!(world.state("a"), State::Stopped);
}

#[test]
fn what_was_said_of_the_process_before_is_not_taken_for_its_own() {
    let told = Rules { readiness: Readiness::Told { by_line: true }, ..Rules::default() };
    let mut world = World::new(1, vec![("a", told.clone(), GOOD)]);
    world.start("a");
    world.run(at(100));
    let (id, first) = (world.id("a"), Incarnation(1));
    world.replace(vec![changed("a", told)]).unwrap();
    world.run(at(200));
    world.handle(Input::Life(id, life::Input::Ready(first)));
    assert_eq!((world.state("a"), world.incarnations("a")), (State::Starting, vec![2]));
    world.handle(Input::Life(id, life::Input::Ready(Incarnation(2))));
    assert_eq!(world.state("a"), State::Healthy);
}

#[test]
fn those_who_go_do_so_in_order_and_come_back_where_they_are_wanted_again() {
    let slow = Manners { is_polite: false, ..GOOD };
    let mut world = three();
    world.manners.insert("web".into(), slow);
    let replaced = world.replace(vec![as_it_is("other", plain(vec![]))]).unwrap();
    assert_eq!(replaced.removed, names(&["db", "api", "web"]));
    assert_eq!(world.states(&["web", "api", "db"]), [State::Stopping, State::Running, State::Running]);
    // db was not told to end yet, and stays; web was, and comes back.
    let replaced = world
        .replace(vec![
            as_it_is("db", plain(vec![])),
            as_it_is("web", plain(needs("db", Condition::Started))),
            as_it_is("other", plain(vec![])),
        ])
        .unwrap();
    assert_eq!((replaced.added, replaced.changed, replaced.removed), (names(&["db", "web"]), vec![], vec![]));
    world.run(at(20_000));
    assert_eq!((world.starts("db"), world.starts("web")), (1, 2), "{}", world.story());
    assert_eq!(world.states(&["db", "web"]), [State::Running; 2]);
    assert!(!world.machine.contains("api"));
    world.replace(vec![as_it_is("other", plain(vec![]))]).unwrap();
    world.run(at(40_000));
    assert_eq!(world.machine.names().collect::<Vec<_>>(), ["other"]);
}

/// What goes stays known until those that need it, and go as well, have gone: also where it has ended before them.
#[test]
fn who_goes_is_known_to_those_that_need_it() {
    let mut world = World::new(
        1,
        vec![
            ("job", plain(vec![]), Manners { lives: 1, ..GOOD }),
            ("api", plain(needs("job", Condition::CompletedSuccessfully)), Manners { is_polite: false, ..GOOD }),
        ],
    );
    world.start("api");
    world.run(at(2000));
    assert_eq!(world.states(&["job", "api"]), [State::Completed, State::Running]);
    world.replace(vec![as_it_is("new", plain(vec![]))]).unwrap();
    assert!(world.machine.contains("job"));
    world.machine.add(vec![("late".into(), plain(vec![]), 1)]).unwrap();
    world.carry_out();
    world.run(at(20_000));
    assert_eq!(world.machine.names().collect::<Vec<_>>(), ["new", "late"], "{}", world.story());
}

#[test]
fn who_is_down_stays_down_and_begins_as_it_is_now() {
    let mut world = three();
    world.handle(stop("web"));
    world.run(at(3000));
    let all = |api: Rules| {
        vec![
            as_it_is("web", probed(needs("api", Condition::Started))),
            as_it_is("api", api),
            as_it_is("db", plain(vec![])),
        ]
    };
    let api = plain(needs("db", Condition::Started));
    assert_eq!(world.replace(all(api.clone())).unwrap().changed, names(&["web"]));
    world.run(at(4000));
    assert_eq!(world.state("web"), State::Stopped);
    world.start("web");
    world.run(at(5000));
    assert_eq!(world.state("web"), State::Healthy);
    // A stop that waits for its turn is not taken back by a change; and by a start it is, but not to what it was.
    world.manners.insert("web".into(), Manners { is_polite: false, ..GOOD });
    world.handle(Input::Stop { names: names(&["web", "api"]), limit: None });
    let other = Rules { start_limit: SECOND, ..api.clone() };
    world.replace(all(other.clone())).unwrap();
    assert_eq!(world.states(&["web", "api"]), [State::Stopping, State::Running]);
    world.start("api");
    world.run(at(30_000));
    assert_eq!((world.states(&["web", "api"]), world.starts("api")), (vec![State::Stopped, State::Running], 2));
    assert_eq!(**world.machine.life(world.id("api")).unwrap().rules(), other);
}

#[test]
fn those_that_are_restarted_with_a_changed_one_are() {
    let mut along = Need::new("db", Condition::Healthy);
    along.restart = true;
    let all = |db: Replacement| {
        vec![db, as_it_is("api", plain(vec![along.clone()])), as_it_is("log", plain(needs("db", Condition::Healthy)))]
    };
    let services = all(as_it_is("db", probed(vec![])));
    let mut world = World::new(1, services.iter().map(|one| (one.name.as_str(), one.rules.clone(), GOOD)).collect());
    world.handle(Input::Start { names: names(&["api", "log"]), with_needs: true });
    world.run(at(2000));
    world.is_stopping_all = false;
    world.replace(all(changed("db", probed(vec![])))).unwrap();
    assert_eq!(world.states(&["db", "api", "log"]), [State::Healthy, State::Stopping, State::Running]);
    world.run(at(4000));
    assert_eq!([world.starts("db"), world.starts("api"), world.starts("log")], [2, 2, 1], "{}", world.story());
}

#[test]
fn what_a_changed_one_needs_anew_is_started_first() {
    let mut world = three();
    let web = || as_it_is("web", plain(needs("api", Condition::Started)));
    let api = || as_it_is("api", plain(needs("cache", Condition::Healthy)));
    let cache = as_it_is("cache", probed(vec![]));
    let replaced = world.replace(vec![web(), api(), cache]).unwrap();
    assert_eq!(
        (replaced.added, replaced.changed, replaced.removed),
        (names(&["cache"]), names(&["api"]), names(&["db"]))
    );
    // As it was it needs db, so that db ends after it.
    assert_eq!(world.states(&["api", "db", "cache"]), [State::Stopping, State::Running, State::Starting]);
    world.run(at(5000));
    assert_eq!(world.states(&["web", "api", "cache"]), [State::Running, State::Running, State::Healthy]);
    assert!(!world.machine.contains("db"));

    // Where needs do not matter, they do not now.
    let mut world = World::new(1, vec![("api", plain(vec![]), GOOD)]);
    world.handle(Input::Start { names: names(&["api"]), with_needs: false });
    world.run(at(2000));
    world.replace(vec![api(), as_it_is("cache", probed(vec![]))]).unwrap();
    world.run(at(4000));
    assert_eq!(world.states(&["api", "cache"]), [State::Running, State::Idle], "{}", world.story());
}

#[test]
fn needs_may_turn_round() {
    let mut world = three();
    world
        .replace(vec![
            as_it_is("web", plain(vec![])),
            as_it_is("api", plain(needs("web", Condition::Started))),
            as_it_is("db", plain(needs("api", Condition::Started))),
        ])
        .unwrap();
    assert_eq!(world.machine.names().collect::<Vec<_>>(), ["web", "api", "db"]);
    world.run(at(5000));
    assert_eq!(world.states(&["web", "api", "db"]), [State::Running; 3], "{}", world.story());
    assert_eq!([world.starts("web"), world.starts("api"), world.starts("db")], [2; 3]);
}

#[test]
fn the_number_of_processes_changes_where_another_is_named() {
    let mut world = World::new(1, vec![("web", plain(vec![]), GOOD)]);
    let replicas = |replicas| vec![Replacement { replicas, ..as_it_is("web", plain(vec![])) }];
    world.start("web");
    world.run(at(1500));
    assert_eq!(world.replace(replicas(3)).unwrap().changed, names(&["web"]));
    world.run(at(3000));
    assert_eq!(world.incarnations("web"), [1, 1, 1]);
    // Somebody has scaled it: that is his to say, as long as the number that is named is the same.
    world.handle(Input::Scale { name: "web".into(), replicas: 2 });
    world.run(at(4000));
    assert!(world.replace(replicas(3)).unwrap().is_empty());
    world.run(at(5000));
    assert_eq!(world.machine.replicas("web").len(), 2);
    world.replace(replicas(1)).unwrap();
    world.run(at(6000));
    assert_eq!(world.incarnations("web"), [1], "{}", world.story());
}

#[test]
fn one_that_cannot_be_changes_nothing() {
    let mut world = three();
    let before = format!("{:?}", world.machine);
    let mut refused = |services| world.replace(services).unwrap_err().to_string();
    assert_eq!(
        refused(vec![as_it_is("web", plain(needs("api", Condition::Started)))]),
        r#""web" needs "api", which does not exist"#
    );
    assert_eq!(refused(vec![changed("db", plain(vec![])), as_it_is("db", plain(vec![]))]), r#""db" is named twice"#);
    let round =
        vec![changed("a", plain(needs("b", Condition::Started))), changed("b", plain(needs("a", Condition::Started)))];
    assert!(refused(round).starts_with("a cycle of needs: "));
    let never = vec![as_it_is("db", plain(vec![])), changed("api", plain(needs("db", Condition::LogReady)))];
    assert!(refused(never).contains("name the line that it prints then"));
    assert_eq!(format!("{:?}", world.machine), before);
}

/// A system of some of eight services, in which each may need those before it in an order of its own.
fn generated(random: &mut SplitMix) -> Vec<Replacement> {
    let mut names: Vec<String> = (0..8).map(|n| format!("s{n}")).collect();
    for n in (1..names.len()).rev() {
        // Mostly the same order, and sometimes another.
        if random.below(6) == 0 {
            names.swap(n, random.below(n as u64 + 1) as usize);
        }
    }
    names.truncate(1 + random.below(8) as usize);
    let mut services: Vec<Replacement> = Vec::new();
    for name in names {
        let when = [When::Never, When::Never, When::OnFailure, When::Always][random.below(4) as usize];
        let is_asked = random.below(3) == 0;
        let mut needs = Vec::new();
        for other in &services {
            if random.below(3) > 0 {
                continue;
            }
            let ends = other.rules.restart.when != When::Always;
            let condition = match (random.below(5), other.rules.readiness) {
                (0, Readiness::Asked(_)) => Condition::Healthy,
                (1, _) if ends => Condition::Completed,
                (2, _) => Condition::Running,
                _ => Condition::Started,
            };
            needs.push(Need { restart: random.below(6) == 0, ..Need::new(other.name.clone(), condition) });
        }
        let timing = Timing { interval: SECOND, retries: 2, ..Timing::default() };
        let rules = Rules {
            needs,
            readiness: if is_asked { Readiness::Asked(timing) } else { Readiness::Spawned },
            start_limit: Duration::from_secs(5),
            restart_unhealthy: random.below(2) == 0,
            restart: Restart {
                max: Some(random.below(4) as u32),
                delay: Duration::from_millis(random.below(200)),
                ..Restart::when(when)
            },
            stop_limit: Duration::from_millis(200 + 300 * random.below(2)),
            ..Rules::default()
        };
        let replicas = [1, 1, 1, 2, 3, 0][random.below(6) as usize];
        services.push(Replacement { name, rules, replicas, is_changed: random.below(4) == 0 });
    }
    services
}

/// What follows is not what is: something of it is broken.
fn broken(random: &mut SplitMix) -> Vec<Replacement> {
    let mut services = generated(random);
    let at = random.below(services.len() as u64) as usize;
    match random.below(3) {
        0 => services[at].rules.needs.push(Need::new("nobody", Condition::Started)),
        1 => {
            let own = services[at].name.clone();
            services[at].rules.needs.push(Need::new(own, Condition::Started));
        }
        _ => services.push(services[at].clone()),
    }
    services
}

/// Systems that are replaced by others in the midst of anything: what must hold holds at each step, what is not changed is not told to end, a system
/// that cannot be changes nothing, whoever waits has a reason, and in the end everything stops and only the last system is left.
#[test]
fn generated_systems_are_replaced_at_any_moment() {
    for seed in 0..3000 {
        let mut random = SplitMix(seed);
        let manners = |random: &mut SplitMix| Manners {
            refuses: [0, 0, 0, 3][random.below(4) as usize],
            lives: [0, 0, 300, 3000][random.below(4) as usize],
            code: random.below(2) as i32,
            ready_after: [Some(0), Some(300), None][random.below(3) as usize],
            flaps: [0, 0, 4][random.below(3) as usize],
            is_polite: random.below(3) > 0,
        };
        let mut world = World::new(seed, vec![]);
        world.manners = (0..8).map(|n| (format!("s{n}"), manners(&mut random))).collect();
        let mut now = generated(&mut random);
        world.replace(now.clone()).unwrap();
        for _ in 0..14 {
            let name = format!("s{}", random.below(8));
            let named = vec![name.clone()];
            match random.below(12) {
                0..=3 => world.handle(Input::Start { names: named, with_needs: random.below(4) > 0 }),
                4 => world.handle(Input::Stop { names: named, limit: None }),
                5 => world.handle(Input::Restart { names: named }),
                6 => world.handle(Input::Scale { name, replicas: random.below(4) as u32 }),
                7 => world.handle(Input::StopAll { deadline: Some(world.now + Duration::from_millis(300)) }),
                8 => {
                    let before = format!("{:?}", world.machine);
                    assert!(world.replace(broken(&mut random)).is_err());
                    assert_eq!(format!("{:?}", world.machine), before, "seed {seed}");
                }
                _ => now = replaced_in(&mut world, now, &mut random, seed),
            }
            world.check();
            let time = [0, random.below(10), random.below(3000)][random.below(3) as usize];
            world.run(world.now + Duration::from_millis(time));
        }
        // Nothing hangs: whoever is to stop is told, and whoever waits does so for something that may still come.
        world.run(world.now + Duration::from_secs(30));
        for (id, child) in &world.machine.children {
            let is_asked = matches!(child.request, Some(Request::Stop { .. }));
            assert!(!is_asked, "seed {seed}: {id:?} is to stop and is not told\n{}", world.story());
            if child.state() == State::Waiting {
                let needs = world.machine.needs(&child.name).iter();
                let mut verdicts = needs.map(|need| world.machine.verdict(&need.on, need.condition));
                let waits = verdicts.any(|verdict| matches!(verdict, Verdict::NotYet(_)));
                assert!(waits, "seed {seed}: {} waits for nothing\n{}", child.name, world.story());
            }
            if child.life.state().is_up() {
                let group = &world.machine.groups[&child.name];
                assert!(Arc::ptr_eq(child.life.rules(), &group.rules), "seed {seed}: {id:?} is old\n{}", world.story());
            }
        }
        let mut left: Vec<&str> = world.machine.names().collect();
        let mut wanted: Vec<&str> = now.iter().map(|one| one.name.as_str()).collect();
        left.sort();
        wanted.sort();
        assert_eq!(left, wanted, "seed {seed}\n{}", world.story());
        world.is_stopping_all = true;
        world.handle(Input::StopAll { deadline: None });
        world.run(world.now + Duration::from_secs(10));
        assert!(!world.machine.is_up(), "seed {seed}\n{}", world.story());
        assert!(world.known.values().all(|known| known.process.is_none()), "seed {seed}");
    }
}

/// Replaces what there is by something of which a part is the same. Gives what there is then.
fn replaced_in(world: &mut World, before: Vec<Replacement>, random: &mut SplitMix, seed: u64) -> Vec<Replacement> {
    let mut services = generated(random);
    if random.below(2) == 0 {
        // The same, but for the last one or two, which none of the others needs.
        services = before.iter().map(|one| Replacement { is_changed: false, ..one.clone() }).collect();
        match random.below(3) {
            0 if services.len() > 1 => drop(services.pop()),
            1 => services.iter_mut().rev().take(1).for_each(|last| last.is_changed = true),
            _ => {}
        }
    }
    let alike = |one: &&Replacement| {
        let same = before.iter().any(|old| {
            (&old.name, &old.rules, old.replicas) == (&one.name, &one.rules, one.replicas) && !one.is_changed
        });
        same && !one.rules.needs.iter().any(|need| need.restart)
    };
    let untouched: Vec<String> = services.iter().filter(alike).map(|one| one.name.clone()).collect();
    let asked = |world: &World| -> Vec<(ServiceId, bool)> {
        let ids = untouched.iter().flat_map(|name| world.machine.replicas(name));
        ids.map(|id| (*id, world.known[id].process.as_ref().is_some_and(|process| process.asked_to_end))).collect()
    };
    let earlier = asked(world);
    let replaced = world.replace(services.clone()).unwrap();
    assert_eq!(asked(world), earlier, "seed {seed}: {untouched:?}\n{}", world.story());
    for name in &untouched {
        assert!(!replaced.changed.contains(name) && !replaced.added.contains(name), "seed {seed}: {name}");
    }
    // Each stands after all that it needs, those that leave as well.
    let order: Vec<&str> = world.machine.names().collect();
    for (at, name) in order.iter().enumerate() {
        let needs = world.machine.needs(name);
        assert!(needs.iter().all(|need| order[..at].contains(&need.on.as_str())), "seed {seed}: {name} in {order:?}");
    }
    services
}
