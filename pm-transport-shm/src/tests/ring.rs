//! The ring, with honest ends and with others.

use std::sync::Arc;

use crate::ring::{COMMITTED, Consumer, Corrupt, LINE, LINE_WORDS, NO_CPU, Producer, Site, WORD, header};
use crate::sync::{AtomicU64, Ordering};

type Memory = Arc<Vec<AtomicU64>>;

fn words(count: usize) -> Memory {
    Arc::new((0..count).map(|_| AtomicU64::new(0)).collect())
}

/// A ring of so many lines, and its word of the consumer.
fn ring(lines: usize) -> (Memory, Memory) {
    (words(lines * LINE_WORDS), words(1))
}

fn ends(ring: &Memory, read: &Memory) -> (Producer<Memory>, Consumer<Memory>) {
    (Producer::new(ring.clone(), read.clone()), Consumer::new(ring.clone(), read.clone()))
}

fn far(cpu: u32) -> Site {
    Site { cpu, is_far: true }
}

/// Numbers that look random, the same in each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

#[test]
fn what_is_written_is_read_in_order_around_the_end() {
    for (lines, largest) in [(4, 300), (8, 100), (64, 5000), (64, 60), (256, 16_000)] {
        let (memory, read) = ring(lines);
        let (mut producer, mut consumer) = ends(&memory, &read);
        let mut numbers = Numbers(lines as u64);
        let (mut sent, mut came) = (Vec::new(), Vec::new());
        while sent.len() < 200_000 {
            let bytes: Vec<u8> = (0..1 + numbers.below(largest)).map(|_| numbers.below(256) as u8).collect();
            let count = producer.write(&bytes, far(3)).unwrap();
            sent.extend_from_slice(&bytes[..count]);
            let full = count < bytes.len();
            // Until it is full, and sometimes before.
            if full || numbers.below(3) == 0 {
                while let Some(chunk) = consumer.read(&mut came).unwrap() {
                    assert_eq!(chunk.cpu, 3);
                    if numbers.below(4) == 0 {
                        break;
                    }
                }
                consumer.publish();
            }
        }
        while consumer.read(&mut came).unwrap().is_some() {}
        assert!(came == sent, "{lines} lines, up to {largest} bytes");
    }
}

#[test]
fn a_full_ring_takes_nothing_until_its_reader_has_said_so() {
    let (memory, read) = ring(4);
    let (mut producer, mut consumer) = ends(&memory, &read);
    assert_eq!(producer.write(&[1; 1000], far(NO_CPU)).unwrap(), 3 * LINE - WORD);
    assert_eq!(producer.write(&[1], far(NO_CPU)).unwrap(), 0);
    let mut came = Vec::new();
    consumer.read(&mut came).unwrap().unwrap();
    assert!(!producer.has_room().unwrap());
    assert!(consumer.should_publish() && consumer.publish() && !consumer.publish());
    assert!(producer.has_room().unwrap());
    assert_eq!(producer.write(&[1], far(NO_CPU)).unwrap(), 1);
}

/// No change of any word of the ring makes the consumer take wrong bytes for right ones.
#[test]
fn random_writes_of_the_peer_are_found_out() {
    // Copied by words, and by lines.
    for (lines, size, step) in [(8, 200, 1), (128, 6000, 13)] {
        random_writes_are_found_out(lines, size, step);
    }
}

fn random_writes_are_found_out(lines: usize, size: usize, step: usize) {
    let (memory, read) = ring(lines);
    let mut numbers = Numbers(1);
    for at in (0..memory.len()).step_by(step) {
        for value in [0, 1, u64::MAX, COMMITTED, header(1, 0, 0), header(1 << 19, 0, 0), header(0, 0, 0)] {
            let value = value ^ if numbers.below(2) == 0 { 0 } else { numbers.below(1 << 30) as u64 };
            memory.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            read[0].store(0, Ordering::Relaxed);
            let (mut producer, mut consumer) = ends(&memory, &read);
            let sent: Vec<u8> = (0..size).map(|at| at as u8).collect();
            assert_eq!(producer.write(&sent, far(1)).unwrap(), size);
            let before = memory[at].swap(value, Ordering::Relaxed);
            let mut came = Vec::new();
            // Whatever comes of it: no bytes that were not sent.
            let _ = consumer.read(&mut came);
            assert!(came.is_empty() || came == sent, "word {at} was {before:x} and is {value:x}");
        }
    }
}

/// What a producer that was killed has stored by then is the beginning of its stores, or, where the processor stores in another order, any of those
/// before the last.
#[test]
fn a_producer_killed_at_any_step_leaves_whole_chunks() {
    let contents = |memory: &Memory| -> Vec<u64> { memory.iter().map(|word| word.load(Ordering::Relaxed)).collect() };
    let mut numbers = Numbers(3);
    for (lines, size) in [(8, 1), (8, 7), (8, 8), (8, 56), (8, 57), (8, 150), (8, 300), (256, 12_000)] {
        let (memory, read) = ring(lines);
        let (mut producer, mut consumer) = ends(&memory, &read);
        // Full of what earlier laps left, with the next chunk around the end.
        for _ in 0..(lines * 3 + lines / 2) / 2 {
            producer.write(&[0xEE; 90], far(NO_CPU)).unwrap();
            consumer.read(&mut Vec::new()).unwrap();
            consumer.publish();
        }
        let first: Vec<u8> = (0..20).collect();
        producer.write(&first, far(NO_CPU)).unwrap();
        let before = contents(&memory);
        let bytes: Vec<u8> = (0..size).map(|at| at as u8 ^ 0x55).collect();
        assert_eq!(producer.write(&bytes, far(NO_CPU)).unwrap(), bytes.len());
        let after = contents(&memory);
        // The word that says that the chunk is there is the one that was zero and is so no more, and stands at a line.
        let last = (0..after.len())
            .find(|at| at % LINE_WORDS == 0 && before[*at] == 0 && after[*at] & COMMITTED != 0)
            .expect("the first word of the chunk");
        for _ in 0..200 {
            let all = numbers.below(10) == 0;
            let mut memory_then = before.clone();
            for at in (0..after.len()).filter(|at| *at != last) {
                if all || numbers.below(2) == 0 {
                    memory_then[at] = after[at];
                }
            }
            let (memory, read) = (Arc::new(memory_then.into_iter().map(AtomicU64::new).collect::<Vec<_>>()), words(1));
            let mut heir = consumer.over(memory.clone(), read);
            let mut came = Vec::new();
            assert!(heir.read(&mut came).unwrap().is_some());
            assert_eq!(heir.read(&mut came), Ok(None), "{size} bytes, half written");
            assert!(came == first);
            if all {
                memory[last].store(after[last], Ordering::Relaxed);
                heir.read(&mut came).unwrap().unwrap();
                assert!(came[first.len()..] == bytes);
            }
        }
    }
}

#[test]
fn a_reader_that_lies_about_its_position_is_found_out() {
    let (memory, read) = ring(4);
    let (mut producer, mut consumer) = ends(&memory, &read);
    producer.write(&[1; 100], far(NO_CPU)).unwrap();
    read[0].store(3, Ordering::Relaxed);
    assert_eq!(producer.has_room(), Err(Corrupt::Position), "ahead of what was written");
    consumer.read(&mut Vec::new()).unwrap();
    consumer.publish();
    producer.has_room().unwrap();
    read[0].store(1, Ordering::Relaxed);
    assert_eq!(producer.has_room(), Err(Corrupt::Position), "back");
}

#[test]
fn a_chunk_of_an_earlier_lap_is_no_chunk() {
    let (memory, read) = ring(4);
    let (mut producer, mut consumer) = ends(&memory, &read);
    let mut came = Vec::new();
    for lap in 0..50_u8 {
        // Bytes that look like the beginning of a chunk, where the next one could begin.
        producer.write(&header(1, 0, 0).to_ne_bytes().repeat(1 + usize::from(lap % 15)), far(NO_CPU)).unwrap();
        assert!(consumer.read(&mut came).unwrap().is_some());
        assert_eq!(consumer.read(&mut came), Ok(None));
        consumer.publish();
    }
}
