//! How many calls one worker should have at once.
//!
//! Too few, and a fast worker waits for the manager after every answer. Too many, and calls wait behind a slow one while
//! other workers idle. So the window holds what the worker will have done by the time the manager can react: with calls of
//! 1 ms that is one call beyond those that run; with calls of 1 µs it is 256.

use std::time::Duration;

use super::time::Time;

/// The largest window.
pub const MAX_WINDOW: u32 = 256;

/// A call that was unanswered this long makes those behind it worth asking back, if another worker has nothing to do. With the
/// millisecond that a timer may be late, that other one is idle for less than 2 ms.
pub const STALL: Duration = Duration::from_micros(500);

/// The same, if every worker has something to do: all that is gained then is that calls wait where the next free worker finds them.
/// Longer than a busy machine makes a worker wait for its turn.
pub const SLOW: Duration = Duration::from_millis(10);

/// Answers that come less promptly than this, in nanoseconds, put that off no more: a call can also wait behind several that are
/// not quite slow.
const PROMPT: f64 = 100_000.0;

/// No answer lies in a worker for longer, unless it is slow to run.
const HELD: Duration = Duration::from_millis(3);

/// The horizon is never shorter than this, however fast the link is: where the machine is late now and then, a worker would run dry. Well below the 2 ms in
/// which a call should find a worker that is idle.
const SHORTEST_HORIZON: f64 = 400_000.0;

/// The horizon is never longer than this, so that a slow call holds up few others.
const LONGEST_HORIZON: f64 = 1_000_000.0;

/// The time in which the remembered peak of the service time halves.
const HALF_LIFE: Duration = Duration::from_millis(10);

/// What a call is taken to cost before one was seen: so slow that the first calls spread over all workers.
const UNKNOWN_SERVICE: f64 = 1_000_000.0;

/// The adaptive window of one worker.
#[derive(Clone, Debug)]
pub struct Window {
    concurrency: u32,
    /// How many calls a worker may have begun beyond its answers: so many can come together whatever they cost.
    ahead: u32,
    size: u32,
    /// Whether calls of the queue come here: from when there is room for several until there is none.
    refills: bool,
    /// Nanoseconds per answer: a peak that decays, or less.
    service: f64,
    decayed: Time,
    /// Nanoseconds from a call to its answer on an idle worker: the smallest seen lately.
    round_trip: f64,
    last_answer: Time,
    /// Since when nothing was answered promptly, or looked at for a stall.
    quiet_since: Time,
    /// Whether any answer came yet.
    seen: bool,
    /// It stays as it is.
    is_fixed: bool,
}

impl Window {
    /// The window of a worker that runs `concurrency` calls at the same time, and may begin `ahead` beyond its answers.
    pub fn new(concurrency: u32, ahead: u32) -> Self {
        let concurrency = concurrency.max(1);
        Window {
            concurrency,
            ahead: ahead.max(concurrency),
            refills: true,
            size: (concurrency + 1).min(Self::most(concurrency)),
            service: UNKNOWN_SERVICE,
            decayed: Time::ZERO,
            round_trip: LONGEST_HORIZON,
            last_answer: Time::ZERO,
            quiet_since: Time::ZERO,
            seen: false,
            is_fixed: false,
        }
    }

    /// The window of a worker that has up to so many streams. What a further one costs says nothing but how many there are: a stream is as long as it is, and nobody
    /// waits for its end.
    pub fn of_streams(count: u32) -> Self {
        Window { size: count.max(1), is_fixed: true, ..Window::new(count, count) }
    }

    /// How many calls the worker may have unanswered.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Notes how many calls the worker has unanswered.
    pub fn note_load(&mut self, load: u32) {
        if load >= self.size {
            self.refills = false;
        } else if load + self.refill() <= self.size {
            self.refills = true;
        }
    }

    /// Whether it is worth giving the worker calls of the queue now. One write, one wake-up and one read then serve several of them, while it is busy with the
    /// others.
    pub fn refills(&self) -> bool {
        self.refills
    }

    /// So many at a time, at least: never as many as would leave it without something to begin with.
    fn refill(&self) -> u32 {
        (self.size / 4).min(self.size.saturating_sub(self.concurrency) / 2).max(1)
    }

    /// The expected time per answer.
    pub fn service(&self) -> Duration {
        Duration::from_nanos(self.service as u64)
    }

    /// The worker got a call and had none.
    pub fn began(&mut self, now: Time) {
        self.last_answer = now;
        self.quiet_since = now;
    }

    /// `count` answers came, and `left` calls are unanswered still. `oldest` is when the oldest of the answered calls was sent.
    ///
    /// Where calls are left, the worker was busy all the time, and the time per answer is what a call costs: a peak is
    /// remembered. Where none is left, the worker has run dry, the time holds an unknown part of waiting, and a call costs at
    /// most that: so a window that is too small shows itself and grows, however noisy the machine is. The same holds where most of the window was answered
    /// by the time the manager looked: it is the manager that is late, under whatever load, and fewer calls at a time would make it later.
    pub fn answered(&mut self, now: Time, count: u32, left: u32, oldest: Time) {
        if count == 0 || self.is_fixed {
            return;
        }
        let since = now.since(self.last_answer);
        let per_answer = since.as_nanos() as f64 / f64::from(count);
        let halvings = now.since(self.decayed).as_nanos() as f64 / HALF_LIFE.as_nanos() as f64;
        // Most answers come after a fraction of the half-life, for which the tangent will do.
        let decay = if halvings < 0.01 { 1.0 - halvings * std::f64::consts::LN_2 } else { (-halvings).exp2() };
        let remembered = self.service * decay;
        // More came between two looks of the manager than the worker may have held back.
        let is_late = count > self.ahead && 4 * count > self.size && (since > HELD || per_answer < PROMPT);
        self.service = match left {
            _ if !self.seen => per_answer,
            _ if left == 0 || is_late => remembered.min(per_answer),
            _ => remembered.max(per_answer),
        };
        self.seen = true;
        self.decayed = now;
        self.last_answer = now;
        if left <= self.concurrency || per_answer < PROMPT || is_late {
            self.quiet_since = now;
        }
        if left == 0 && count == 1 {
            let seen = now.since(oldest).as_nanos() as f64;
            self.round_trip = seen.min(self.round_trip * 1.1);
        }
        // A worker that has run dry waits for its manager: the window grows as long as what is in it takes no longer than the
        // longest horizon. One that is busy needs no more than bridges a round trip.
        let (horizon, service) = match left {
            0 => (LONGEST_HORIZON, per_answer),
            _ => ((2.0 * self.round_trip).clamp(SHORTEST_HORIZON, LONGEST_HORIZON), self.service),
        };
        let ideal = match is_late {
            true => f64::from(2 * count),
            false => f64::from(self.concurrency) + horizon / service.max(1.0),
        };
        let most = Self::most(self.concurrency);
        let least = (self.concurrency + 1).min(most);
        // Doubling at most: one lucky drain must not pile calls behind the next slow one.
        self.size = (ideal.min(f64::from(most)) as u32).clamp(least, most.min(self.size.saturating_mul(2)).max(least));
    }

    /// Nothing was answered for a while, and `waiting` calls have not started. Gives how many of them should stay where the others
    /// are to be asked back, or none where all should. Until the next answer the worker then gets nothing beyond those.
    pub fn look(&mut self, now: Time, waiting: usize, has_idle: bool) -> Option<usize> {
        self.quiet_since = now;
        // With one call behind a slow one its worker goes on at once. An idle worker would not have to wait for that.
        let keep = usize::from(!has_idle);
        if waiting <= keep || !has_idle && now.since(self.last_answer) < SLOW {
            return None;
        }
        self.size = self.concurrency + keep as u32;
        Some(keep)
    }

    /// When [`Window::look`] has something to decide, if nothing is answered until then.
    pub fn stall_at(&self, unanswered: u32) -> Option<Time> {
        (unanswered > self.concurrency && !self.is_fixed).then(|| self.quiet_since + STALL)
    }

    /// A worker that runs more calls at once than the largest window has a window of that size.
    fn most(concurrency: u32) -> u32 {
        MAX_WINDOW.max(concurrency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that takes `service` per call and is kept full: the window after a second.
    fn steady(concurrency: u32, service: Duration) -> u32 {
        let mut window = Window::new(concurrency, concurrency);
        let mut now = Time::from_nanos(1);
        window.began(now);
        while now < Time::from_nanos(1_000_000_000) {
            let sent = now;
            now = now + service;
            window.answered(now, 1, 1, sent);
        }
        window.size()
    }

    #[test]
    fn slow_calls_have_one_behind_them_and_fast_ones_many() {
        assert_eq!(steady(1, Duration::from_millis(500)), 2);
        assert_eq!(steady(1, Duration::from_millis(1)), 2);
        assert_eq!(steady(4, Duration::from_millis(2)), 5);
        assert_eq!(steady(1, Duration::from_micros(1)), MAX_WINDOW);
        assert!((10..=12).contains(&steady(1, Duration::from_micros(100))));
        assert_eq!(steady(1000, Duration::from_millis(1)), 1000);
    }

    /// What comes of looks of the manager, each so late, that find so many answers.
    fn looks(window: &mut Window, late: Duration, mut answers: impl FnMut(&Window) -> u32, times: u32) {
        let mut now = Time::from_nanos(1);
        window.began(now);
        for _ in 0..times {
            let (sent, count) = (now, answers(window).min(window.size()));
            now = now + late;
            window.answered(now, count, window.size() - count, sent);
        }
    }

    #[test]
    fn a_late_manager_is_not_taken_for_a_slow_worker() {
        let mut window = Window::new(1, 1);
        looks(&mut window, Duration::from_millis(50), Window::size, 10);
        assert_eq!(window.size(), MAX_WINDOW);
        let mut lag = 0;
        let but_some = |window: &Window| {
            lag += 1;
            window.size() - lag
        };
        looks(&mut window, Duration::from_millis(50), but_some, 100);
        assert_eq!(window.size(), MAX_WINDOW);
        for done in [5, 50, 100] {
            let mut window = Window::new(1, 1);
            looks(&mut window, Duration::from_millis(50), |_| done, 30);
            assert!(window.size() >= done, "{} where {done} are done in each look", window.size());
        }
    }

    #[test]
    fn slow_calls_that_end_together_are_no_sign_of_a_late_manager() {
        let mut window = Window::new(4, 4);
        looks(&mut window, Duration::from_millis(50), |_| 4, 100);
        assert_eq!(window.size(), 5, "four ran at the same time");
        let mut window = Window::new(1, 256);
        looks(&mut window, Duration::from_secs(1), |_| 2, 100);
        assert_eq!(window.size(), 2, "the worker may hold answers back");
        let mut window = Window::new(1, 1);
        looks(&mut window, Duration::from_millis(2), |_| 2, 100);
        assert_eq!(window.size(), 2, "an answer may lie in the worker while the next call runs");
    }

    #[test]
    fn calls_of_the_queue_come_several_at_a_time_and_never_too_late() {
        let mut async_worker = Window::new(64, 64);
        assert_eq!(async_worker.size(), 65);
        for load in [65, 64] {
            async_worker.note_load(load);
        }
        assert!(async_worker.refills(), "one more can run");
        let mut window = Window { size: 256, ..Window::new(1, 1) };
        for (load, refills) in
            [(255, true), (256, false), (193, false), (192, true), (255, true), (256, false), (0, true)]
        {
            window.note_load(load);
            assert_eq!(window.refills(), refills, "{load}");
        }
    }

    #[test]
    fn one_slow_call_narrows_the_window_at_once_and_it_recovers() {
        let mut window = Window::new(1, 1);
        let mut now = Time::from_nanos(1);
        let step = |window: &mut Window, now: &mut Time, service: Duration| {
            let sent = *now;
            *now = *now + service;
            window.answered(*now, 1, 1, sent);
        };
        window.began(now);
        for _ in 0..1000 {
            step(&mut window, &mut now, Duration::from_micros(2));
        }
        assert_eq!(window.size(), MAX_WINDOW);
        step(&mut window, &mut now, Duration::from_millis(50));
        assert_eq!(window.size(), 2);
        let slow = now;
        while window.size() < 100 {
            step(&mut window, &mut now, Duration::from_micros(2));
        }
        assert!(now.since(slow) < Duration::from_millis(200), "{:?}", now.since(slow));
    }

    #[test]
    fn the_window_at_most_doubles() {
        let mut window = Window::new(1, 1);
        let mut now = Time::from_nanos(1);
        let mut before = window.size();
        for _ in 0..20 {
            let sent = now;
            now = now + Duration::from_nanos(100);
            window.answered(now, 1, 1, sent);
            assert!(window.size() <= before * 2);
            before = window.size();
        }
        assert_eq!(before, MAX_WINDOW);
    }
}
