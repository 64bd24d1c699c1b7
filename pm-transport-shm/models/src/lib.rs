//! Models of the ring, the bell and the claims of pm-transport-shm: `cargo test --manifest-path pm-transport-shm/models/Cargo.toml`.

#![cfg(test)]

#[path = "../../src/bell.rs"]
mod bell;
#[path = "../../src/checksum.rs"]
mod checksum;
#[path = "../../src/claims.rs"]
mod claims;
#[path = "../../src/ring.rs"]
#[expect(dead_code, reason = "the transport uses all of it")]
mod ring;

/// Copies of lines, which are words here: of so few that a small ring has some.
mod bulk {
    use std::mem::MaybeUninit;

    use crate::sync::{AtomicU64, Ordering};

    pub(crate) const BULK: usize = 8;
    pub(crate) const BLOCK: usize = 8;

    pub(crate) fn whole_lines(words: &[AtomicU64]) -> (usize, usize) {
        let before = words.len() % 8;
        (before, words.len() - before)
    }

    pub(crate) fn store(lines: &[AtomicU64], bytes: &[[u8; 8]]) {
        for (word, bytes) in lines.iter().zip(bytes) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    pub(crate) fn load<'a>(lines: &[AtomicU64], bytes: &'a mut [[MaybeUninit<u8>; 8]]) -> &'a [[u8; 8]] {
        for (word, bytes) in lines.iter().zip(&mut *bytes) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes().map(MaybeUninit::new);
        }
        // SAFETY: All of it was written.
        unsafe { &*(std::ptr::from_mut(bytes) as *const [[u8; 8]]) }
    }

    pub(crate) fn fence() {}
}

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

use std::sync::Arc;

use loom::thread;

use crate::bell::{Rung, Sleep};
use crate::ring::{Consumer, Producer, Site};
use crate::sync::{AtomicU64, Ordering};

type Memory = Arc<Vec<AtomicU64>>;

fn words(count: usize) -> Memory {
    Arc::new((0..count).map(|_| AtomicU64::new(0)).collect())
}

/// The smallest ring: room for three chunks of one line, and the line that stays zero.
fn ring() -> (Producer<Memory>, Consumer<Memory>) {
    let (ring, read) = (words(4 * 8), words(1));
    (Producer::new(ring.clone(), read.clone()), Consumer::new(ring, read))
}

fn far(cpu: u32) -> Site {
    Site { cpu, is_far: true }
}

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    // More than the few that a fault of two threads needs.
    model.preemption_bound = Some(4);
    model.check(check);
}

/// What is read is what was written, in order, also where the ring comes round: nothing is overwritten before it was read.
#[test]
fn chunks_arrive_whole_and_in_order() {
    model(|| {
        let (mut producer, mut consumer) = ring();
        let writer = thread::spawn(move || {
            for n in 1..=4_u8 {
                while producer.write(&[n; 8], far(1)).unwrap() == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut came = Vec::new();
        while came.len() < 4 * 8 {
            if consumer.read(&mut came).unwrap().is_none() {
                consumer.publish();
                thread::yield_now();
            }
        }
        writer.join().unwrap();
        let sent: Vec<u8> = (1..=4_u8).flat_map(|n| [n; 8]).collect();
        assert_eq!(came, sent);
    });
}

/// A call that the manager wants back is run by the worker or comes back, and never both or neither; also where the word was used before.
#[test]
fn a_call_is_claimed_once() {
    model(|| {
        let claims = words(2);
        // Call 1 came and went; call 2 was cancelled before its turn.
        assert!(claims::take(&claims, 1));
        let theirs = claims.clone();
        let worker = thread::spawn(move || [3, 4].map(|number| claims::take(&theirs, number)));
        let recalled = [4, 3].map(|number| claims::recall(&claims, number));
        let [third, fourth] = worker.join().unwrap();
        assert_eq!([third, fourth], [!recalled[1], !recalled[0]]);
    });
}

/// A consumer that would sleep is rung for a chunk that it did not see.
#[test]
fn no_wake_up_for_news_is_lost() {
    model(|| {
        let (mut producer, consumer) = ring();
        let asleep = words(1);
        let theirs = asleep.clone();
        let waker = thread::spawn(move || {
            producer.write(&[1], far(1)).unwrap();
            Rung::default().is_due(&theirs[0])
        });
        let mut sleep = Sleep::default();
        sleep.begin(&asleep[0]);
        let has_chunk = consumer.has_chunk();
        let rang = waker.join().unwrap();
        assert!(has_chunk || rang);
    });
}

/// A producer that would sleep is rung for room that it did not see.
#[test]
fn no_wake_up_for_room_is_lost() {
    model(|| {
        let (mut producer, mut consumer) = ring();
        assert!(producer.write(&[1; 184], far(1)).unwrap() == 184 && producer.write(&[2], far(1)).unwrap() == 0);
        let asleep = words(1);
        let theirs = asleep.clone();
        let waker = thread::spawn(move || {
            consumer.read(&mut Vec::new()).unwrap();
            assert!(consumer.publish());
            Rung::default().is_due(&theirs[0])
        });
        let mut sleep = Sleep::default();
        sleep.begin(&asleep[0]);
        let has_room = producer.has_room().unwrap();
        let rang = waker.join().unwrap();
        assert!(has_room || rang);
    });
}

/// Two chunks, and a consumer that sleeps as the worker does: until its bell is another one than before it said that it sleeps. One ring for each
/// sleep is enough.
#[test]
fn who_sleeps_again_is_rung_again() {
    model(|| {
        let (mut producer, mut consumer) = ring();
        let (asleep, bell, over) = (words(1), words(1), words(1));
        let (theirs, rope, end) = (asleep.clone(), bell.clone(), over.clone());
        let waker = thread::spawn(move || {
            let mut rung = Rung::default();
            for n in 0..2 {
                producer.write(&[n], far(1)).unwrap();
                if rung.is_due(&theirs[0]) {
                    rope[0].fetch_add(1, Ordering::SeqCst);
                }
            }
            end[0].store(1, Ordering::Release);
        });
        let mut sleep = Sleep::default();
        let mut came = Vec::new();
        while came.len() < 2 {
            if consumer.read(&mut came).unwrap().is_some() {
                continue;
            }
            let before = bell[0].load(Ordering::Acquire);
            sleep.renew();
            sleep.begin(&asleep[0]);
            if !consumer.has_chunk() {
                while bell[0].load(Ordering::Acquire) == before {
                    let is_over = over[0].load(Ordering::Acquire) == 1;
                    assert!(!is_over || bell[0].load(Ordering::Acquire) != before, "nobody will ever ring");
                    thread::yield_now();
                }
            }
            sleep.end(&asleep[0]);
        }
        waker.join().unwrap();
        assert_eq!(came, [0, 1]);
    });
}
