//! The credit of a stream, where whoever writes finds it without the lock of the flow.
//!
//! It is taken out of the [`Stream`](crate::machine::stream::Stream) as a whole, spent message by message, and put back before anybody looks at the credit there. All of that
//! happens under the lock of the carrier, which every writer holds anyway: so plain loads and stores do. Only [`shut`](Lease::shut) needs no lock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use crate::machine::stream::Credit;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Lease {
    messages: AtomicU32,
    bytes: AtomicI64,
    /// No message goes any more, whatever credit there is.
    is_shut: AtomicBool,
}

impl Lease {
    /// Whether a message may go. Where not, whoever has the lock of the flow knows more.
    pub(super) fn may_write(&self) -> bool {
        !self.is_shut.load(Ordering::Relaxed) && self.credit().is_there()
    }

    /// A message of so many bytes goes, which [`may_write`](Self::may_write) has allowed.
    pub(super) fn spend(&self, bytes: usize) {
        let mut credit = self.credit();
        credit.spend(bytes);
        self.put(credit);
    }

    /// All credit is here from now on.
    pub(super) fn put(&self, credit: Credit) {
        self.messages.store(credit.messages, Ordering::Relaxed);
        self.bytes.store(credit.bytes, Ordering::Relaxed);
    }

    /// None is here from now on.
    pub(super) fn take(&self) -> Credit {
        let credit = self.credit();
        self.put(Credit::NONE);
        credit
    }

    /// This side sends nothing more, or nobody reads it. Relaxed: whoever owes FIN has called this before, and FIN goes under the lock of the carrier, so a writer that comes
    /// after FIN sees it.
    pub(super) fn shut(&self) {
        self.is_shut.store(true, Ordering::Relaxed);
    }

    fn credit(&self) -> Credit {
        Credit { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}
