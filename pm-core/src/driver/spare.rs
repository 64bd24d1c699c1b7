//! What a thread keeps of calls that are over, so that the next ones need no new memory.
//!
//! Small buffers stay with their call. Large ones are kept apart: a call that waits then holds no more than its own payload needs, and whoever receives a
//! large payload has a buffer to leave in its place.

use std::cell::RefCell;
use std::mem;
use std::sync::Arc;

use super::call::Call;
use crate::machine::payload::{KEEP, Lent, Payload};

/// How many calls a thread keeps.
const CALLS: usize = 256;

/// How many bytes their buffers have together.
const CALLS_BYTES: usize = 1 << 20;

/// A buffer that is larger than this is none that stays with a call.
pub(super) const SMALL: usize = 16 << 10;

/// How many bytes the large buffers of a thread have together.
const LARGE_BYTES: usize = KEEP;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare::new()) };
}

struct Spare {
    calls: Vec<Arc<Call>>,
    calls_bytes: usize,
    large: Vec<Vec<u8>>,
    large_bytes: usize,
    /// The last input was large.
    expects_large: bool,
}

impl Spare {
    const fn new() -> Self {
        Spare { calls: Vec::new(), calls_bytes: 0, large: Vec::new(), large_bytes: 0, expects_large: false }
    }

    fn take_large(&mut self) -> Option<Vec<u8>> {
        let buffer = self.large.pop()?;
        self.large_bytes -= buffer.capacity();
        Some(buffer)
    }
}

/// A call that nobody else has, for another input: with a large buffer for it where the last input of this thread was large.
pub(super) fn take_call() -> Option<Arc<Call>> {
    with(|spare| {
        let mut call = spare.calls.pop()?;
        if let Some(fields) = Arc::get_mut(&mut call) {
            spare.calls_bytes -= fields.capacity();
            if spare.expects_large
                && let Some(buffer) = spare.take_large()
            {
                fields.input = buffer;
            }
        }
        Some(call)
    })
}

/// Keeps such a call, whose buffers have so many bytes, if there is room for it.
pub(super) fn give_call(call: Arc<Call>, bytes: usize) {
    with(|spare| {
        let fits = spare.calls.len() < CALLS && spare.calls_bytes + bytes <= CALLS_BYTES;
        fits.then(|| {
            spare.calls_bytes += bytes;
            spare.calls.push(call);
        })
    });
}

/// Gives an input that was encoded a buffer that fits it, and notes for the next one whether it was large.
pub(super) fn fit_input(input: &mut Vec<u8>) {
    if input.capacity() <= SMALL {
        return;
    }
    let is_large = input.len() > SMALL;
    if !is_large {
        let fitting = input.clone();
        strip(&mut mem::replace(input, fitting));
    }
    with(|spare| {
        spare.expects_large = is_large;
        Some(())
    });
}

/// Empties a buffer. Takes it away where it is large, and keeps it if there is room for it.
pub(super) fn strip(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() <= SMALL {
        return;
    }
    let buffer = mem::take(buffer);
    with(|spare| {
        (spare.large_bytes + buffer.capacity() <= LARGE_BYTES).then(|| {
            spare.large_bytes += buffer.capacity();
            spare.large.push(buffer);
        })
    });
}

/// Moves a payload into a small buffer. A large one leaves a large buffer in its place.
pub(super) fn receive(payload: Lent<'_>, into: &mut Payload) {
    if payload.len() > SMALL
        && into.capacity() <= SMALL
        && let Some(buffer) = with(Spare::take_large)
    {
        *into = Payload::from(buffer);
    }
    payload.take_into(into);
}

/// None where the thread ends, and keeps nothing.
fn with<T>(act: impl FnOnce(&mut Spare) -> Option<T>) -> Option<T> {
    SPARE.try_with(|spare| act(&mut spare.borrow_mut())).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::call::Terms;

    #[test]
    fn large_buffers_are_kept_apart_and_bounded() {
        let mut small = Vec::with_capacity(SMALL);
        strip(&mut small);
        assert_eq!((small.capacity(), with(Spare::take_large)), (SMALL, None));
        for _ in 0..100 {
            let mut large = vec![1; SMALL * 4];
            strip(&mut large);
            assert_eq!(large.capacity(), 0);
        }
        let kept: Vec<_> = std::iter::from_fn(|| with(Spare::take_large)).collect();
        assert!(kept.iter().map(Vec::capacity).sum::<usize>() <= LARGE_BYTES);
        assert!(kept.len() > 10 && kept.iter().all(Vec::is_empty));
    }

    #[test]
    fn a_call_that_waits_holds_no_more_than_it_needs() {
        let input = |size: usize| {
            Call::new(Terms::default(), |input: &mut Vec<u8>| {
                input.resize(size, 1);
                Ok::<(), ()>(())
            })
            .unwrap()
        };
        for size in [3 << 20, 10, 3 << 20, 10, 100_000, 10] {
            let mut call = input(size);
            let held = Arc::get_mut(&mut call).unwrap().capacity();
            assert!(held <= 2 * SMALL + 4 * size.max(1 << 20) * usize::from(size > SMALL), "{held} for {size}");
            call.reuse(Payload::from(vec![1; 3 << 20]));
        }
    }
}
