//! Autoscaling at virtual time.

use super::super::budget::SplitMix;
use super::*;

const MILLI: Duration = Duration::from_millis(1);
/// How often a load may change.
const TICK: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

/// A pool whose workers do what they should, driven as the task of a pool drives it.
struct World {
    scaling: Scaling,
    now: Time,
    workers: u32,
    steps: Vec<(Time, Step)>,
    /// How many there were at the last look, and when that last changed, by whomever.
    seen: (Option<u32>, Time),
}

impl World {
    fn new(settings: Autoscale, workers: u32) -> Self {
        let scaling = Scaling::new(settings).expect("settings that make sense");
        World { scaling, now: Time::ZERO, workers, steps: Vec::new(), seen: (None, Time::ZERO) }
    }

    /// Looks at what is due. A load is there because calls came.
    fn look(&mut self, load: u64) {
        if load > 0 {
            self.scaling.stir(self.now);
        }
        if self.scaling.poll_timeout().is_none_or(|due| due > self.now) {
            return;
        }
        if self.seen.0.replace(self.workers).is_some_and(|seen| seen != self.workers) {
            self.seen.1 = self.now;
        }
        if let Some(step) = self.scaling.look(self.now, Sample { workers: self.workers, load }) {
            assert_eq!(step.from, self.workers);
            self.workers = step.to;
            self.steps.push((self.now, step));
        }
        assert!(self.scaling.poll_timeout().is_none_or(|due| due > self.now), "it would look for ever");
    }

    /// For so long the load is what `load` says of the number of workers.
    fn live(&mut self, time: Duration, mut load: impl FnMut(Time, u32) -> u64) {
        let end = self.now + time;
        while self.now < end {
            let now_load = load(self.now, self.workers);
            self.look(now_load);
            self.now = self.now + TICK;
        }
    }

    fn turns(&self) -> usize {
        let is_up = |step: &Step| step.to > step.from;
        self.steps.windows(2).filter(|pair| is_up(&pair[0].1) != is_up(&pair[1].1)).count()
    }
}

/// Settings that make sense, of all sorts.
fn some_settings(random: &mut SplitMix) -> Autoscale {
    let min = 1 + random.below(4) as u32;
    let up = 0.5 + 10.0 * random.unit();
    Autoscale::new()
        .between(min, min + random.below(12) as u32)
        .up_above(up)
        .down_below(up * (0.05 + 0.94 * random.unit()))
        .cool_down(Duration::from_millis(50 + random.below(8_000)))
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let new = Autoscale::new();
    for (settings, told) in [
        (new.between(0, 4), "from 0 to 4 workers"),
        (new.between(5, 4), "from 5 to 4 workers"),
        (new.up_above(2.0), "up above 2, down below 2"),
        (new.down_below(0.0), "down below 0"),
        (new.down_below(-1.0), "down below -1"),
        (new.up_above(f64::NAN), "up above NaN"),
        (new.up_above(f64::INFINITY), "up above inf"),
        (new.cool_down(Duration::ZERO), "the cool-down is 0ns"),
        (new.window(Duration::ZERO), "the window is 0ns"),
    ] {
        let refused = Scaling::new(settings).expect_err(told);
        assert!(refused.to_string().contains(told), "{refused}");
    }
    assert_eq!(new.check(), Ok(()));
}

#[test]
fn the_defaults_are_those_of_the_features() {
    let mut world = World::new(Autoscale::new(), 1);
    // Each step comes 30 s after the one before, and brings one worker.
    world.live(10 * 60 * SECOND, |_, _| 1000);
    let sizes: Vec<_> = world.steps.iter().map(|(_, step)| step.to).collect();
    assert_eq!(sizes, [2, 3, 4, 5, 6, 7, 8]);
    for pair in world.steps.windows(2) {
        let gap = pair[1].0.since(pair[0].0);
        assert!(gap >= 30 * SECOND && gap < 31 * SECOND, "{gap:?}");
    }
    assert!(world.steps[0].0 < Time::ZERO + 2 * SECOND, "the first one waits for a window only");
    world.live(10 * 60 * SECOND, |_, _| 0);
    assert_eq!(world.workers, 1);
    assert_eq!(world.scaling.poll_timeout(), None, "an idle pool is left alone");
    // Five each are borne, and so are two.
    for (workers, load) in [(1, 5), (2, 4), (2, 10), (4, 8), (4, 20), (8, 16)] {
        let mut world = World::new(Autoscale::new(), workers);
        world.live(10 * 60 * SECOND, |_, _| load);
        assert_eq!(world.steps, [], "{load} calls on {workers} workers");
    }
}

#[test]
fn a_burst_changes_nothing() {
    let mut world = World::new(Autoscale::new(), 1);
    for _ in 0..1000 {
        world.live(30 * MILLI, |_, _| 100);
        world.live(5 * SECOND, |_, _| 0);
    }
    assert_eq!(world.steps, []);
    // The same for a lull.
    let mut world = World::new(Autoscale::new(), 4);
    for _ in 0..1000 {
        world.live(50 * MILLI, |_, _| 0);
        world.live(5 * SECOND, |_, _| 16);
    }
    assert_eq!(world.steps, []);
}

#[test]
fn it_sleeps_at_its_least_size_until_a_call_comes() {
    let mut scaling = Scaling::new(Autoscale::new()).unwrap();
    assert_eq!(scaling.poll_timeout(), None);
    let mut looks = 0;
    let mut now = Time::ZERO;
    // One call at a time, all day long, is looked at no more often than eight times a second.
    for _ in 0..100_000 {
        scaling.stir(now);
        if scaling.poll_timeout().is_some_and(|due| due <= now) {
            looks += 1;
            assert_eq!(scaling.look(now, Sample { workers: 1, load: 1 }), None);
            assert_eq!(scaling.poll_timeout(), None);
        }
        now = now + MILLI;
    }
    assert!((700..=800).contains(&looks), "{looks} looks in 100 s");
}

#[test]
fn a_load_on_a_threshold_is_borne() {
    let settings = Autoscale::new().cool_down(50 * MILLI).up_above(2.0).down_below(1.0);
    for load in [2, 4] {
        let mut world = World::new(settings, 2);
        let mut random = SplitMix(1);
        for _ in 0..100_000 {
            world.look(load);
            world.now = world.now + Duration::from_nanos(random.below(20_000_000));
        }
        assert_eq!(world.steps, []);
    }
}

/// A load that depends on nothing, as that of so many callers who each wait for their answer: the size goes one way, and stays.
#[test]
fn a_constant_load_never_makes_it_swing() {
    for seed in 0..200 {
        let mut random = SplitMix(seed);
        let settings = if seed < 60 { Autoscale::new() } else { some_settings(&mut random) };
        let load = if seed < 60 { seed } else { random.below(150) };
        let workers = settings.min + random.below(u64::from(settings.max - settings.min) + 1) as u32;
        let mut world = World::new(settings, workers);
        world.live(20 * (settings.cool_down + SECOND), |_, _| load);
        assert_eq!(world.turns(), 0, "{load} calls, {settings:?}: {:?}", world.steps);
        let settled = world.steps.len();
        world.live(20 * settings.cool_down, |_, _| load);
        assert_eq!(world.steps.len(), settled, "{load} calls, {settings:?}: {:?}", world.steps);
    }
}

/// A steady stream of calls, which pile up where there are too few workers for them: sooner or later the pool has enough, and keeps them.
#[test]
fn a_steady_rate_never_makes_it_swing_for_ever() {
    for seed in 0..40 {
        let mut random = SplitMix(seed);
        let settings = if seed % 3 == 0 { Autoscale::new() } else { some_settings(&mut random) };
        // Calls that come in 10 ms, and those that one worker answers in that time.
        let pace = 0.02 + 0.2 * random.unit();
        let rate = pace * f64::from(settings.max) * random.unit();
        let workers = settings.min + random.below(u64::from(settings.max - settings.min) + 1) as u32;
        let mut world = World::new(settings, workers);
        let mut waiting = 0.0;
        let mut flow = |_: Time, workers: u32| {
            let served = (pace * f64::from(workers)).min(waiting + rate);
            waiting += rate - served;
            // What is under way stays in the pool for as long as a call takes.
            (waiting + served / pace).round() as u64
        };
        world.live(150 * settings.cool_down + 1000 * SECOND, &mut flow);
        let settled = world.steps.len();
        let (workers, turns) = (world.workers, world.turns());
        world.live(60 * (settings.cool_down + SECOND), &mut flow);
        let told = format!("seed {seed}: {rate} at {pace}, {settings:?}: {:?}", world.steps);
        assert_eq!((world.steps.len(), world.workers), (settled, workers), "{told}");
        // For each size it has to learn that it is too small, mostly once.
        assert!(turns <= 2 * settings.max as usize, "{turns} turns, {told}");
        assert!(workers == settings.max || f64::from(workers) * pace >= rate, "too few for ever: {told}");
    }
}

/// Whatever the load is, and whoever else changes the size: steps are single, within the bounds, apart, and for a reason.
#[test]
fn any_load() {
    for seed in 0..200 {
        let mut random = SplitMix(seed);
        let settings = some_settings(&mut random).window(Duration::from_millis(20 + random.below(2_000)));
        let mut world = World::new(settings, settings.min);
        let mut seen: Vec<(Time, u64)> = Vec::new();
        let mut load = 0_u64;
        for _ in 0..5_000 {
            match random.below(40) {
                0 => load = random.below(100),
                1 => load = 0,
                2 => world.workers = 1 + random.below(20) as u32,
                _ => load = load.saturating_add_signed(random.below(7) as i64 - 3),
            }
            seen.push((world.now, load));
            let (before, count, (_, changed)) = (world.workers, world.steps.len(), world.seen);
            world.look(load);
            if world.steps.len() > count {
                let (at, step) = world.steps[count];
                let context = format!("seed {seed}: {step:?} at {at:?}, {settings:?}");
                if before < settings.min {
                    assert_eq!(step.to, settings.min, "{context}");
                } else {
                    assert_eq!(step.to.abs_diff(before), 1, "{context}");
                    assert!(changed == Time::ZERO || at.since(changed) >= settings.cool_down, "too soon: {context}");
                    let seen_since = |within: Duration| {
                        seen.iter().rev().take_while(move |&&(then, _)| at.since(then) <= within).map(|&(_, load)| load)
                    };
                    // The mean lies between what was seen in the window, with the look before it.
                    let (window, each) = (settings.the_window() * 2 + 200 * MILLI, f64::from(before));
                    if step.to > before {
                        assert!(step.to <= settings.max, "{context}");
                        let most = seen_since(window).max().unwrap_or(0);
                        assert!(most as f64 > settings.up_above * each, "for nothing: {context}");
                    } else if before <= settings.max {
                        assert!(step.to >= settings.min, "{context}");
                        let least = seen_since(window).min().unwrap_or(0);
                        assert!((least as f64) < settings.down_below * each, "for nothing: {context}");
                    }
                }
                world.seen = (Some(step.to), at);
            }
            world.now = world.now + Duration::from_millis(1 + random.below(100));
        }
    }
}

/// What comes and goes is served each time, and the pool is small again each time.
#[test]
fn it_follows_a_load_that_comes_and_goes() {
    let mut world = World::new(Autoscale::new(), 1);
    for day in 0..10 {
        world.live(400 * SECOND, |_, _| 100);
        assert_eq!(world.workers, 8, "day {day}");
        world.live(400 * SECOND, |_, _| 0);
        assert_eq!((world.workers, world.scaling.poll_timeout()), (1, None), "day {day}");
    }
}

#[test]
fn a_change_by_hand_is_left_alone_for_a_while_and_then_corrected() {
    let mut world = World::new(Autoscale::new().between(2, 4), 0);
    world.scaling.stir(Time::ZERO);
    world.workers = 1;
    world.live(SECOND, |_, _| 0);
    assert_eq!(world.workers, 2, "too few are made more at once");
    world.live(60 * SECOND, |_, _| 8);
    world.workers = 6;
    let by_hand = world.now;
    world.steps.clear();
    world.live(200 * SECOND, |_, _| 8);
    let sizes: Vec<_> = world.steps.iter().map(|(_, step)| step.to).collect();
    assert_eq!(sizes, [5, 4], "one at a time into the bounds, and no further: two each are borne");
    assert!(world.steps[0].0.since(by_hand) >= 30 * SECOND);
}
