//! How long it pays to wait for the peer without sleeping.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::ring::{NO_CPU, Site};

/// The longest spin: what a wake-up costs across processors, up to 50 µs, and as much for the peer's work. A shorter one would not outlast the wake-up
/// of a peer that has just fallen asleep, and both would go on sleeping in turns.
const LONGEST: Duration = Duration::from_micros(100);

/// How often the peer's word is looked at between two looks at the clock.
const LOOKS: u32 = 64;

/// After so many spins in vain there is a pause.
const PATIENCE: u32 = 3;

/// The first pause. Each spin in vain after it is followed by one twice as long, until one pays: so spins take a tenth of a processor at most, and two sides
/// that have both come to sleep before the other was awake find each other again soon.
const PAUSE: Duration = Duration::from_millis(1);

/// How often it is doubled: up to 64 ms, after which spins take less than two thousandths.
const DOUBLINGS: u32 = 6;

/// What whoever waits for its peer does before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wake {
    /// It spins for at most 100 µs, as long as that pays: not where both run on the same processor, and ever less often where it was in vain. Of the waiting
    /// callers, and of the workers, at most one less than there are processors spin for longer than a microsecond or two, in all pools of the program together;
    /// the others sleep. Costs the processor time that a busy peer takes for its answer, and nothing while nothing is to be done.
    #[default]
    Adaptive,
    /// It sleeps at once. Costs no processor time, and a wake-up each way: 2 to 5 µs on one processor, 25 to 50 µs across two.
    Park,
    /// It never sleeps. Costs a whole processor for each worker and one for the runtime of the manager, for as long as the pool lives, whether there is
    /// anything to do or not. For machines that have them to spare, and a worker whose next query may come at any time.
    Busy,
}

impl Wake {
    /// As it stands in the memory of the manager.
    pub(crate) const fn to_word(self) -> u64 {
        match self {
            Wake::Adaptive => 1,
            Wake::Park => 2,
            Wake::Busy => 3,
        }
    }

    pub(crate) const fn from_word(word: u64) -> Option<Self> {
        match word {
            1 => Some(Wake::Adaptive),
            2 => Some(Wake::Park),
            3 => Some(Wake::Busy),
            _ => None,
        }
    }
}

/// Who may spin for long: in each of the two sets fewer than there are processors.
#[derive(Debug)]
pub(crate) struct Tokens(AtomicUsize);

/// Those of the workers of this program, each for as long as its link lives.
pub(crate) static WORKERS: Tokens = Tokens(AtomicUsize::new(0));

/// Those of the callers and tasks of this program, each for one spin.
static WAITERS: Tokens = Tokens(AtomicUsize::new(0));

/// A place among those that may spin.
#[derive(Debug)]
pub(crate) struct Token(&'static Tokens);

impl Tokens {
    pub(crate) fn take(&'static self) -> Option<Token> {
        let most = processors().saturating_sub(1);
        let next = |taken: usize| (taken < most).then(|| taken + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(|_| Token(self))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many processors the machine has, whichever of them this thread may use.
#[expect(unsafe_code, reason = "a question to the kernel")]
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| {
        // SAFETY: It takes a number, touches no memory of this program, and gives -1 where it does not know.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        online.max(1) as usize
    })
}

/// Whose spins they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spinner {
    /// The manager: whoever waits there needs a token for it.
    Manager,
    /// A worker, which has a token or has none.
    Worker(bool),
}

/// The budget of one side for spinning.
#[derive(Debug)]
pub(crate) struct Spin {
    wake: Wake,
    spinner: Spinner,
    /// Spins in vain since the last one that paid.
    vain: u32,
    /// Until when waits pass without a spin.
    pause: Option<Instant>,
}

impl Spin {
    pub(crate) fn new(wake: Wake, spinner: Spinner) -> Self {
        Spin { wake, spinner, vain: 0, pause: None }
    }

    pub(crate) fn wake(&self) -> Wake {
        self.wake
    }

    /// Waits for `is_there` for as long as that pays. `peer` is the processor on which the peer ran last.
    pub(crate) fn until(&mut self, peer: u32, mut is_there: impl FnMut() -> bool) -> bool {
        if is_there() {
            return true;
        }
        // On one processor, every turn of the loop keeps the peer from running.
        if self.wake == Wake::Park || !is_elsewhere(peer) {
            return false;
        }
        if self.pause.is_some_and(|end| Instant::now() < end) {
            return false;
        }
        self.pause = None;
        // A peer that is at work already answers before the clock has to be asked, and before others have to be asked for a token.
        let mut end: Option<(Instant, Option<Token>)> = None;
        loop {
            for _ in 0..LOOKS {
                if is_there() {
                    self.vain = 0;
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            match &end {
                Some((end, _)) if now > *end => {
                    self.was_vain(now);
                    return false;
                }
                Some(_) => {}
                None => match self.token() {
                    Err(()) => return false,
                    Ok(token) => end = Some((now + LONGEST, token)),
                },
            }
        }
    }

    fn was_vain(&mut self, now: Instant) {
        if self.wake == Wake::Adaptive {
            self.vain = self.vain.saturating_add(1);
            if let Some(doublings) = self.vain.checked_sub(PATIENCE) {
                self.pause = Some(now + PAUSE * (1 << doublings.min(DOUBLINGS)));
            }
        }
    }

    /// Leave to go on.
    fn token(&self) -> Result<Option<Token>, ()> {
        match self.spinner {
            _ if self.wake == Wake::Busy => Ok(None),
            Spinner::Worker(true) => Ok(None),
            Spinner::Worker(false) => Err(()),
            Spinner::Manager => WAITERS.take().map(Some).ok_or(()),
        }
    }
}

/// Whether a peer that ran there can go on while this thread spins.
pub(crate) fn is_elsewhere(peer: u32) -> bool {
    site(peer).is_far
}

/// Where this thread writes, for a peer that ran last on this processor.
pub(crate) fn site(peer: u32) -> Site {
    let cpu = cpu();
    Site { cpu, is_far: peer != NO_CPU && peer != cpu }
}

/// The processor that this thread runs on, as it stands in a chunk.
#[expect(unsafe_code, reason = "a question to the kernel")]
fn cpu() -> u32 {
    // SAFETY: It takes nothing and touches no memory of this program. It cannot fail on a Linux that has shared memory.
    let cpu = unsafe { libc::sched_getcpu() };
    (cpu.max(0) as u32).min(NO_CPU - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_fewer_tokens_than_processors() {
        static TOKENS: Tokens = Tokens(AtomicUsize::new(0));
        let all: Vec<Token> = std::iter::from_fn(|| TOKENS.take()).collect();
        assert_eq!(all.len(), processors() - 1);
        drop(all);
        assert_eq!(TOKENS.take().is_some(), processors() > 1);
    }

    #[test]
    fn spins_are_short_and_get_rare_where_nothing_comes() {
        let elsewhere = (cpu() + 1) % NO_CPU;
        let spins = |wake, spinner| {
            let mut spin = Spin::new(wake, spinner);
            let began = Instant::now();
            let (mut spins, mut waits) = (0, 0);
            while waits < 40 || began.elapsed() < Duration::from_millis(40) && wake == Wake::Adaptive {
                let mut looks = 0;
                assert!(!spin.until(elsewhere, || {
                    looks += 1;
                    false
                }));
                spins += u32::from(looks > 1);
                waits += 1;
            }
            spins
        };
        assert_eq!(spins(Wake::Park, Spinner::Worker(true)), 0);
        assert_eq!(spins(Wake::Busy, Spinner::Worker(false)), 40);
        // Three, and one after each pause of 1, 2, 4, 8 and 16 ms; fewer where the machine is busy with others.
        let adaptive = spins(Wake::Adaptive, Spinner::Worker(true));
        assert!((3..=8).contains(&adaptive), "{adaptive}");
        let mut spin = Spin::new(Wake::Busy, Spinner::Worker(true));
        assert!(!spin.until(NO_CPU, || false), "where nobody knows where the peer is");
    }
}
