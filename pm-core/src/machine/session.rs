//! The calls on one link.
//!
//! A session knows which calls are open, which of them the worker has started, which deadlines they have, and what an answer
//! means. It never sees a payload: it is called by methods with direct results, so that the hot path pays for no queue.
//!
//! ```text
//!            open              answered: Deliver
//!   Free ───────────▶ Open ───────────────────────▶ Free
//!                      │ cancel, expire
//!                      ▼          answered: Late
//!                  Cancelled ─────────────────────▶ Free
//! ```
//!
//! A slot stays counted until the worker has answered it: a worker that is told to stop a call is still busy with it.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::id::CallId;
use super::time::Time;

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As long as it likes.
    None,
    /// Until this moment, wherever it waits.
    Until(Time),
    /// This long from the moment at which the worker can have started it.
    Running(Duration),
}

/// The session has as many open calls as it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// How a worker answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a result or an error of its own.
    Outcome,
    /// It gives the call back: it has not started, and will not.
    NotStarted,
    /// It stopped or never started the call, because it was cancelled.
    Cancelled,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the caller.
    Deliver,
    /// The call has not run, and may be sent elsewhere.
    Requeue,
    /// Nobody waits for it any more.
    Late,
    /// No honest worker would have sent it.
    Violation(Violation),
}

/// What was wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The id was never issued on this link.
    NeverIssued,
    /// The worker answered a call that it had no leave to start yet.
    BeyondAhead,
    /// The worker gave a call back that nobody had asked for.
    NotAsked,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Violation::NeverIssued => "an answer to a call that was never made",
            Violation::BeyondAhead => "an answer to a call that its READY gave it no leave to start yet",
            Violation::NotAsked => "a call given back that nobody had asked for",
        })
    }
}

/// What remained of a call when its link was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The worker can have started it.
    Started,
    /// It cannot have: the call may be sent elsewhere.
    Unstarted,
}

/// What is known of the calls of a worker that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Word {
    /// Nothing: its answers were not read to the end. It may have started every call.
    #[default]
    Nothing,
    /// All its answers. It has started no more than it had leave to.
    Answers,
    /// With how many calls of the session it had begun, in the order of opening.
    Begun(u64),
}

/// What [`Session::look_up`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The call is open.
    Open,
    /// It has ended, at least for its caller.
    Ended,
    /// It was never issued on this link.
    NeverIssued,
}

/// What [`Session::cancel`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// The call is open: the worker must be told.
    Tell,
    /// The call has ended.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Open,
    Cancelled,
}

#[derive(Clone, Debug)]
struct Slot {
    state: State,
    /// How often the slot was taken: the upper part of the id.
    uses: u64,
    /// The place of the call in the order of opening.
    order: u64,
    started: bool,
    recalled: bool,
    limit: Limit,
    /// Open: when the call times out. Cancelled: when the worker counts as stuck.
    due: Option<Time>,
}

impl Slot {
    const NEW: Slot =
        Slot { state: State::Free, uses: 0, order: 0, started: false, recalled: false, limit: Limit::None, due: None };
}

/// The calls on one link. See the [module](self).
#[derive(Clone, Debug)]
pub struct Session {
    /// As many as were ever taken at the same time.
    slots: Vec<Slot>,
    capacity: usize,
    free: Vec<u16>,
    /// Calls that the worker cannot have started, oldest first. Those that ended meanwhile are skipped when met.
    waiting: VecDeque<CallId>,
    started: usize,
    ahead: usize,
    open: usize,
    next_order: u64,
    /// No slot is due before this moment. A lower bound: it may name one whose call has ended.
    earliest: Option<Time>,
    grace: Option<Duration>,
}

impl Session {
    /// A session of at most `capacity` calls for a worker that may have started `ahead` calls beyond its answers. A
    /// cancelled call that the worker does not end within `grace` means that the worker is stuck; none waits for ever.
    pub fn new(capacity: usize, ahead: usize, grace: Option<Duration>) -> Self {
        Session {
            slots: Vec::new(),
            capacity: capacity.clamp(1, CallId::MAX_SLOTS),
            free: Vec::new(),
            waiting: VecDeque::new(),
            started: 0,
            ahead: ahead.max(1),
            open: 0,
            next_order: 0,
            earliest: None,
            grace,
        }
    }

    /// Calls that the worker has not answered, cancelled ones included.
    pub fn unanswered(&self) -> usize {
        self.open
    }

    /// Calls that the worker can have started and has not answered.
    pub fn started(&self) -> usize {
        self.started
    }

    /// Whether the worker has not ended a cancelled call.
    pub fn has_cancelled(&self) -> bool {
        self.slots.iter().any(|slot| slot.state == State::Cancelled)
    }

    /// How long the worker may take to end a cancelled call.
    pub fn grace(&self) -> Option<Duration> {
        self.grace
    }

    /// When [`Session::expire`] has something to do, at the earliest.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.earliest
    }

    /// Begins a call.
    ///
    /// # Errors
    /// [`Full`] where all slots are taken.
    pub fn open(&mut self, now: Time, limit: Limit) -> Result<CallId, Full> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot::NEW);
                (self.slots.len() - 1) as u16
            }
            None => return Err(Full),
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.state = State::Open;
        slot.uses += 1;
        slot.order = self.next_order;
        slot.recalled = false;
        slot.started = false;
        slot.limit = limit;
        slot.due = None;
        let id = CallId::new(usize::from(index), slot.uses);
        if let Limit::Until(at) = limit {
            slot.due = Some(at);
            self.earliest = Time::earliest(self.earliest, Some(at));
        }
        self.next_order += 1;
        self.open += 1;
        if self.started < self.ahead {
            self.start(now, id.slot());
        } else {
            self.waiting.push_back(id);
        }
        Ok(id)
    }

    /// Takes a call back that was opened last and never sent.
    pub fn retract(&mut self, id: CallId) {
        let slot = &mut self.slots[id.slot()];
        if slot.uses != id.uses() || slot.state == State::Free {
            return;
        }
        slot.state = State::Free;
        slot.due = None;
        // The worker never sees it, and counts the next one in its place.
        self.next_order -= 1;
        self.open -= 1;
        if slot.started {
            self.started -= 1;
        } else {
            self.waiting.pop_back();
        }
        self.give_back(id.slot());
    }

    /// What is known of the call with this id, whoever says so.
    pub fn look_up(&self, id: CallId) -> Standing {
        match self.slots.get(id.slot()) {
            Some(slot) if id.uses() == slot.uses && slot.state == State::Open => Standing::Open,
            Some(slot) if id.uses() <= slot.uses && id.uses() > 0 => Standing::Ended,
            _ => Standing::NeverIssued,
        }
    }

    /// Takes an answer, and says what it means.
    pub fn answered(&mut self, now: Time, id: CallId, answer: Answer) -> Verdict {
        let Some(slot) = self.slots.get(id.slot()) else { return Verdict::Violation(Violation::NeverIssued) };
        if id.uses() > slot.uses || id.uses() == 0 {
            return Verdict::Violation(Violation::NeverIssued);
        }
        if id.uses() < slot.uses || slot.state == State::Free {
            return Verdict::Late;
        }
        let cancelled = slot.state == State::Cancelled;
        let verdict = match answer {
            Answer::Outcome if !slot.started => Verdict::Violation(Violation::BeyondAhead),
            Answer::NotStarted if !slot.recalled && !cancelled => Verdict::Violation(Violation::NotAsked),
            Answer::Cancelled if !cancelled => Verdict::Violation(Violation::NotAsked),
            _ if cancelled => Verdict::Late,
            Answer::Outcome => Verdict::Deliver,
            Answer::NotStarted | Answer::Cancelled => Verdict::Requeue,
        };
        if !matches!(verdict, Verdict::Violation(_)) {
            self.free(now, id.slot());
        }
        verdict
    }

    /// Ends a call for its caller.
    pub fn cancel(&mut self, now: Time, id: CallId) -> Cancel {
        match self.slots.get(id.slot()) {
            Some(slot) if slot.uses == id.uses() && slot.state == State::Open => {
                self.give_up(now, id.slot());
                Cancel::Tell
            }
            _ => Cancel::Gone,
        }
    }

    /// Ends the calls whose time is over and adds them to `out`: their callers get TimedOut, and the worker is to be told.
    /// True where the worker is stuck: it did not end a call within the grace.
    pub fn expire(&mut self, now: Time, out: &mut Vec<CallId>) -> bool {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return false;
        }
        let mut stuck = false;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.due.is_none_or(|due| due > now) {
                continue;
            }
            match slot.state {
                State::Free => {}
                State::Open => {
                    out.push(CallId::new(index, slot.uses));
                    self.give_up(now, index);
                }
                State::Cancelled => stuck = true,
            }
        }
        self.earliest = self.slots.iter().filter(|slot| slot.state != State::Free).filter_map(|slot| slot.due).min();
        stuck
    }

    /// Whether the worker can have started a call, as far as the order of its answers tells.
    pub fn is_started(&self, id: CallId) -> bool {
        self.slots.get(id.slot()).is_none_or(|slot| slot.uses != id.uses() || slot.started)
    }

    /// The place of an open call in the order of opening, counted from 1: what the worker counts as well.
    pub fn number(&self, id: CallId) -> u64 {
        self.slots.get(id.slot()).map_or(0, |slot| slot.order + 1)
    }

    /// Picks calls that the worker has not started, newest first, so that they can be asked back; the `keep` oldest of them stay, and so
    /// do those that may not go elsewhere. Each is picked once.
    pub fn recall(&mut self, keep: usize, may_go: impl Fn(CallId) -> bool, out: &mut Vec<CallId>) {
        let mut kept = 0;
        let stays = |id: &&CallId| {
            let slot = &self.slots[id.slot()];
            kept += usize::from(slot.uses == id.uses() && slot.state == State::Open && !slot.started);
            kept <= keep
        };
        let first = self.waiting.iter().take_while(stays).count();
        for at in (first..self.waiting.len()).rev() {
            let id = self.waiting[at];
            let slot = &mut self.slots[id.slot()];
            if slot.uses == id.uses() && slot.state == State::Open && !slot.started && !slot.recalled && may_go(id) {
                slot.recalled = true;
                out.push(id);
            }
        }
    }

    /// The link is lost. Adds every open call to `out`, oldest first, and what became of it. Cancelled ones have no caller any more.
    ///
    /// In doubt a call counts as started, so that none is run twice.
    pub fn lost(&mut self, word: Word, out: &mut Vec<(CallId, Fate)>) {
        let mut open: Vec<usize> =
            (0..self.slots.len()).filter(|&index| self.slots[index].state != State::Free).collect();
        open.sort_unstable_by_key(|&index| self.slots[index].order);
        for index in open {
            let slot = &mut self.slots[index];
            if slot.state == State::Open {
                let started = match word {
                    Word::Nothing => true,
                    Word::Answers => slot.started,
                    Word::Begun(begun) => slot.order < begun,
                };
                let fate = if started { Fate::Started } else { Fate::Unstarted };
                out.push((CallId::new(index, slot.uses), fate));
            }
            slot.state = State::Free;
            slot.due = None;
            self.give_back(index);
        }
        self.waiting.clear();
        self.started = 0;
        self.open = 0;
        self.earliest = None;
    }

    fn start(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        slot.started = true;
        self.started += 1;
        match (slot.state, slot.limit) {
            (State::Open, Limit::Running(limit)) => slot.due = Some(now + limit),
            (State::Cancelled, _) => slot.due = self.grace.map(|grace| now + grace),
            _ => return,
        }
        self.earliest = Time::earliest(self.earliest, slot.due);
    }

    /// The grace runs only while the worker can be at the call.
    fn give_up(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Cancelled;
        slot.due = self.grace.filter(|_| slot.started).map(|grace| now + grace);
        self.earliest = Time::earliest(self.earliest, slot.due);
    }

    /// The slot can be used again, unless its ids have run out: then no later one could be told from an earlier one.
    fn give_back(&mut self, index: usize) {
        if self.slots[index].uses < CallId::MAX_USES {
            self.free.push(index as u16);
        }
    }

    fn free(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Free;
        slot.due = None;
        let was_started = slot.started;
        self.give_back(index);
        self.open -= 1;
        if was_started {
            self.started -= 1;
            while let Some(id) = self.waiting.pop_front() {
                let next = &self.slots[id.slot()];
                if next.uses == id.uses() && next.state != State::Free {
                    self.start(now, id.slot());
                    break;
                }
            }
        } else if self.waiting.len() > 2 * self.slots.len() {
            let slots = &self.slots;
            self.waiting.retain(|id| slots[id.slot()].uses == id.uses() && slots[id.slot()].state != State::Free);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::SplitMix;
    use super::*;

    /// What a session should be, written without regard to cost: a list of calls in the order of opening.
    #[derive(Default)]
    struct Model {
        calls: Vec<ModelCall>,
        ended: Vec<CallId>,
    }

    struct ModelCall {
        id: CallId,
        open: bool,
        recalled: bool,
        limit: Limit,
        started: Option<Time>,
        due: Option<Time>,
    }

    impl Model {
        fn settle(&mut self, now: Time, ahead: usize, grace: Duration) {
            for call in self.calls.iter_mut().take(ahead) {
                if call.started.is_none() {
                    call.started = Some(now);
                    match (call.open, call.limit) {
                        (true, Limit::Running(limit)) => call.due = Some(now + limit),
                        (false, _) => call.due = Some(now + grace),
                        _ => {}
                    }
                }
            }
        }
    }

    #[test]
    fn agrees_with_a_list() {
        let grace = Duration::from_nanos(40);
        for seed in 0..2000 {
            let mut random = SplitMix(seed);
            let (capacity, ahead) = (1 + random.below(8) as usize, 1 + random.below(4) as usize);
            let mut session = Session::new(capacity, ahead, Some(grace));
            let mut model = Model::default();
            let mut now = Time::ZERO;
            for step in 0..200 {
                let context = || format!("seed {seed} step {step}");
                now = now + Duration::from_nanos(random.below(10));
                let pick = random.below(model.calls.len() as u64) as usize;
                match random.below(8) {
                    0..=2 => {
                        let limit = match random.below(3) {
                            0 => Limit::None,
                            1 => Limit::Until(now + Duration::from_nanos(random.below(60))),
                            _ => Limit::Running(Duration::from_nanos(random.below(60))),
                        };
                        let opened = session.open(now, limit);
                        assert_eq!(opened.is_err(), model.calls.len() == capacity, "{}", context());
                        if let Ok(id) = opened {
                            assert!(!model.ended.contains(&id) && model.calls.iter().all(|call| call.id != id));
                            let due = if let Limit::Until(at) = limit { Some(at) } else { None };
                            model.calls.push(ModelCall { id, open: true, recalled: false, limit, started: None, due });
                        }
                    }
                    3..=4 if !model.calls.is_empty() => {
                        let answer = [Answer::Outcome, Answer::Outcome, Answer::NotStarted, Answer::Cancelled]
                            [random.below(4) as usize];
                        let call = &model.calls[pick];
                        let expected = match answer {
                            Answer::Outcome if call.started.is_none() => Verdict::Violation(Violation::BeyondAhead),
                            Answer::NotStarted if call.open && !call.recalled => {
                                Verdict::Violation(Violation::NotAsked)
                            }
                            Answer::Cancelled if call.open => Verdict::Violation(Violation::NotAsked),
                            _ if !call.open => Verdict::Late,
                            Answer::Outcome => Verdict::Deliver,
                            _ => Verdict::Requeue,
                        };
                        let id = call.id;
                        assert_eq!(session.answered(now, id, answer), expected, "{}", context());
                        if !matches!(expected, Verdict::Violation(_)) {
                            model.calls.remove(pick);
                            model.ended.push(id);
                        }
                    }
                    5 if !model.calls.is_empty() => {
                        let call = &mut model.calls[pick];
                        let expected = if call.open { Cancel::Tell } else { Cancel::Gone };
                        assert_eq!(session.cancel(now, call.id), expected, "{}", context());
                        if call.open {
                            call.open = false;
                            call.due = call.started.map(|_| now + grace);
                        }
                    }
                    6 => {
                        let mut recalled = Vec::new();
                        let keep = random.below(3) as usize;
                        session.recall(keep, |_| true, &mut recalled);
                        let mut expected = Vec::new();
                        let waiting = model.calls.iter_mut().filter(|call| call.open && call.started.is_none());
                        for call in waiting.skip(keep).filter(|call| !call.recalled) {
                            call.recalled = true;
                            expected.push(call.id);
                        }
                        expected.reverse();
                        assert_eq!(recalled, expected, "{}", context());
                    }
                    _ => {
                        if let Some(&id) = model.ended.last() {
                            assert_eq!(session.answered(now, id, Answer::Outcome), Verdict::Late, "{}", context());
                            assert_eq!(session.cancel(now, id), Cancel::Gone);
                            assert_eq!(session.look_up(id), Standing::Ended);
                        }
                        let unknown = CallId::new(random.below(12) as usize, 1 << 36);
                        let verdict = session.answered(now, unknown, Answer::Outcome);
                        assert_eq!(verdict, Verdict::Violation(Violation::NeverIssued));
                        assert_eq!(session.look_up(unknown), Standing::NeverIssued);
                        for call in &model.calls {
                            let standing = if call.open { Standing::Open } else { Standing::Ended };
                            assert_eq!(session.look_up(call.id), standing, "{}", context());
                        }
                    }
                }
                model.settle(now, ahead, grace);
                let mut expired = Vec::new();
                let stuck = session.expire(now, &mut expired);
                let mut expected = Vec::new();
                let mut model_stuck = false;
                for call in model.calls.iter_mut().filter(|call| call.due.is_some_and(|due| due <= now)) {
                    if call.open {
                        call.open = false;
                        call.due = call.started.map(|_| now + grace);
                        expected.push(call.id);
                    } else {
                        model_stuck = true;
                    }
                }
                expired.sort_unstable();
                expected.sort_unstable();
                assert_eq!(expired, expected, "{}", context());
                assert_eq!(stuck, model_stuck, "{}", context());
                let due = model.calls.iter().filter_map(|call| call.due).min();
                assert!(due.is_none() || session.poll_timeout().is_some_and(|at| Some(at) <= due), "{}", context());
                assert_eq!(session.unanswered(), model.calls.len(), "{}", context());
                let started = model.calls.iter().filter(|call| call.started.is_some()).count();
                assert_eq!(session.started(), started, "{}", context());
            }
            let mut lost = Vec::new();
            session.lost(Word::Answers, &mut lost);
            let expected: Vec<_> = model
                .calls
                .iter()
                .filter(|call| call.open)
                .map(|call| (call.id, if call.started.is_some() { Fate::Started } else { Fate::Unstarted }))
                .collect();
            assert_eq!(lost, expected, "seed {seed}");
            assert_eq!((session.unanswered(), session.started()), (0, 0));
        }
    }

    #[test]
    fn a_worker_that_left_word_is_believed_about_what_it_had_not_begun() {
        let mut session = Session::new(8, 2, None);
        let calls: Vec<_> = (0..4).map(|_| session.open(Time::ZERO, Limit::None).unwrap()).collect();
        let never_sent = session.open(Time::ZERO, Limit::None).unwrap();
        session.retract(never_sent);
        assert_eq!(session.answered(Time::ZERO, calls[0], Answer::Outcome), Verdict::Deliver);
        let mut lost = Vec::new();
        session.lost(Word::Begun(2), &mut lost);
        let fates = [Fate::Started, Fate::Unstarted, Fate::Unstarted];
        assert_eq!(lost, calls[1..].iter().copied().zip(fates).collect::<Vec<_>>());

        // Its answer to the first never came, but the word says that it went on to the third.
        let mut session = Session::new(8, 1, None);
        let calls: Vec<_> = (0..4).map(|_| session.open(Time::ZERO, Limit::None).unwrap()).collect();
        let mut lost = Vec::new();
        session.lost(Word::Begun(3), &mut lost);
        let fates = [Fate::Started, Fate::Started, Fate::Started, Fate::Unstarted];
        assert_eq!(lost, calls.iter().copied().zip(fates).collect::<Vec<_>>());
    }

    #[test]
    fn a_slot_whose_ids_have_run_out_is_used_no_more() {
        let mut session = Session::new(2, 1, None);
        let first = session.open(Time::ZERO, Limit::None).unwrap();
        session.slots[first.slot()].uses = CallId::MAX_USES;
        let last = CallId::new(first.slot(), CallId::MAX_USES);
        assert!(last.to_wire() < CallId::LIMIT);
        assert_eq!(session.answered(Time::ZERO, last, Answer::Outcome), Verdict::Deliver);
        let other = session.open(Time::ZERO, Limit::None).unwrap();
        assert_ne!(other.slot(), first.slot());
        assert_eq!(session.open(Time::ZERO, Limit::None), Err(Full));
        assert_eq!(session.answered(Time::ZERO, last, Answer::Outcome), Verdict::Late);
    }

    #[test]
    fn the_clock_of_a_running_limit_starts_with_the_call() {
        let second = Duration::from_secs(1);
        let mut session = Session::new(8, 1, None);
        let first = session.open(Time::ZERO, Limit::Running(second)).unwrap();
        let behind = session.open(Time::ZERO, Limit::Running(second)).unwrap();
        let mut out = Vec::new();
        let later = Time::ZERO + second.mul_f64(0.9);
        assert_eq!(session.answered(later, first, Answer::Outcome), Verdict::Deliver);
        session.expire(Time::ZERO + second, &mut out);
        assert_eq!(out, [], "it has run for a tenth of a second");
        session.expire(later + second, &mut out);
        assert_eq!(out, [behind]);
    }
}
