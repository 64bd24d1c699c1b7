//! Buffers for small payloads, used again by the same thread.

use std::cell::RefCell;

/// Room that a buffer has to begin with: most payloads fit, and none has to grow byte by byte.
const ROOM: usize = 128;

/// A buffer that grew beyond this is not kept.
const MOST: usize = 4096;

/// How many a thread keeps: an input and an output, and some for calls that pass from thread to thread.
const KEPT: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn take() -> Vec<u8> {
    let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| Vec::with_capacity(ROOM))
}

/// Gives one back.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() > MOST || buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    // A thread that ends keeps nothing.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < KEPT {
            spare.push(buffer);
        }
    });
}
