//! The limit of large payloads: so many bytes through shared memory, and nothing else. They are copied as pm-transport-shm copies them.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pm_transport_shm::bulk::{self, LINE, WORD};

use super::measure::{Measured, Recorder};
use super::place::Place;

/// So many bytes are on their way at once where one payload follows another, and two payloads at least.
const WAY: usize = 1 << 20;

/// The turn after which the other thread ends.
const OVER: u64 = u64::MAX;

/// Room for one payload, on its way from one thread to another.
#[derive(Debug)]
struct Slot {
    /// Which turn's payload is there.
    put: Count,
    /// Which turn's payload was taken.
    taken: Count,
    words: Vec<AtomicU64>,
    /// Where the payload begins, and ends: whole lines.
    at: std::ops::Range<usize>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicU64);

impl Count {
    /// Waits for this turn. False where all is over.
    fn wait(&self, turn: u64) -> bool {
        loop {
            match self.0.load(Ordering::Acquire) {
                OVER => return false,
                now if now == turn => return true,
                _ => std::hint::spin_loop(),
            }
        }
    }

    fn say(&self, turn: u64) {
        self.0.store(turn, Ordering::Release);
    }
}

impl Slot {
    fn new(words: usize) -> Self {
        let room: Vec<_> = (0..words + LINE / WORD).map(|_| AtomicU64::new(0)).collect();
        let first = room.as_ptr().align_offset(LINE);
        Slot { put: Count::default(), taken: Count::default(), words: room, at: first..first + words }
    }

    fn put(&self, turn: u64, payload: &[[u8; WORD]]) {
        let words = &self.words[self.at.clone()];
        if words.len() >= bulk::BULK {
            bulk::store(words, payload);
            bulk::fence();
        } else {
            for (word, bytes) in words.iter().zip(payload) {
                word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
        }
        self.put.say(turn);
    }

    /// Waits for a turn. False where all is over.
    fn take(&self, turn: u64, payload: &mut [[MaybeUninit<u8>; WORD]]) -> bool {
        let goes_on = self.put.wait(turn);
        if goes_on {
            bulk::load(&self.words[self.at.clone()], payload);
            self.taken.say(turn);
        }
        goes_on
    }
}

/// How many words payloads of so many bytes take: whole lines.
fn words(size: usize) -> usize {
    size.max(1).div_ceil(LINE) * (LINE / WORD)
}

/// There and back, between two threads that never sleep: two transfers, one after the other. The other thread is where a worker would run.
pub fn round_trips(place: Place, size: usize, time: Duration) -> Measured {
    let words = words(size);
    let slots: Arc<[Slot; 2]> = Arc::new([Slot::new(words), Slot::new(words)]);
    let other = slots.clone();
    let echo = thread::spawn(move || {
        place.enter_as_worker();
        let (payload, mut taken) = (vec![[7; WORD]; words], vec![[MaybeUninit::uninit(); WORD]; words]);
        let mut turn = 1;
        while other[0].take(turn, &mut taken) {
            other[1].put(turn, &payload);
            turn += 1;
        }
    });
    let (payload, mut taken) = (vec![[7; WORD]; words], vec![[MaybeUninit::uninit(); WORD]; words]);
    let mut recorder = Recorder::new(time, None);
    let mut turn = 0;
    while recorder.goes_on() {
        turn += 1;
        slots[0].put(turn, &payload);
        slots[1].take(turn, &mut taken);
    }
    slots[0].put.say(OVER);
    let _ = echo.join();
    recorder.finish()
}

/// One way, each as soon as there is room for it: the rate of the memory.
pub fn one_way(place: Place, size: usize, time: Duration) -> Measured {
    let words = words(size);
    let many = (WAY / (words * WORD)).max(2);
    let slots: Arc<Vec<Slot>> = Arc::new((0..many).map(|_| Slot::new(words)).collect());
    let other = slots.clone();
    let consumer = thread::spawn(move || {
        place.enter_as_worker();
        let mut taken = vec![[MaybeUninit::uninit(); WORD]; words];
        let mut turns = (1..).flat_map(|turn| (0..many).map(move |at| (turn, at)));
        while turns.next().is_some_and(|(turn, at)| other[at].take(turn, &mut taken)) {}
    });
    let payload = vec![[7; WORD]; words];
    let mut recorder = Recorder::new(time, None);
    let (mut turn, mut at) = (1, 0);
    while recorder.goes_on() {
        slots[at].taken.wait(turn - 1);
        slots[at].put(turn, &payload);
        at += 1;
        if at == many {
            (turn, at) = (turn + 1, 0);
        }
    }
    let measured = recorder.finish();
    // The consumer looks at them in turn, and ends at the first.
    slots[at].taken.wait(turn - 1);
    slots[at].put.say(OVER);
    let _ = consumer.join();
    measured
}
