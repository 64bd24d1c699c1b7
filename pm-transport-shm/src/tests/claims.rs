//! Claims, with honest workers and with others. Both at once: see `models/`.

use crate::claims::{CLAIMS, recall, take};
use crate::sync::{AtomicU64, Ordering};

#[test]
fn whoever_is_first_has_the_call() {
    let words: Vec<AtomicU64> = (0..CLAIMS).map(|_| AtomicU64::new(0)).collect();
    for lap in 0..3 {
        for at in 1..=CLAIMS as u64 {
            let number = lap * CLAIMS as u64 + at;
            if at % 3 == 0 {
                assert!(recall(&words, number) && !take(&words, number), "{number}");
            } else if at % 3 == 1 {
                assert!(take(&words, number) && !recall(&words, number), "{number}");
            }
        }
    }
}

#[test]
fn a_call_that_never_had_its_turn_leaves_no_mark() {
    let words: Vec<AtomicU64> = (0..CLAIMS).map(|_| AtomicU64::new(0)).collect();
    for lap in 1..4 {
        let number = lap * CLAIMS as u64 + 2;
        assert!(recall(&words, number) && !take(&words, number), "the first mark, in lap {lap}");
        words[2].store(0, Ordering::Relaxed);
    }
}

#[test]
fn in_doubt_the_worker_has_it() {
    let words: Vec<AtomicU64> = (0..CLAIMS).map(|_| AtomicU64::new(0)).collect();
    let number = 5 * CLAIMS as u64 + 7;
    for written in [1, 6, 8, number - 1, number, number + 1, number + CLAIMS as u64, u64::MAX, 1 << 62] {
        words[7].store(written, Ordering::Relaxed);
        assert!(!recall(&words, number), "{written}");
        assert!(take(&words, number), "what is not taken back is run: {written}");
    }
    words[7].store(number - CLAIMS as u64, Ordering::Relaxed);
    assert!(recall(&words, number));
}
