//! What a query costs in allocations, once everything is warm: nothing on the hot path. Counted per thread, in manager and worker.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use libtest_mimic::Trial;
use pm::{AnyTransport, Query};

use crate::support::one;

/// Answers with the allocations of the worker's thread so far, and 56 bytes more.
pub static COUNT: Query<Block, Block> = Query::new("count-allocations", &|_: Block| [allocations(), 0, 0, 0]);

/// Something without a heap.
type Block = [u64; 4];

/// Counts, and leaves the rest to the system.
pub struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    // A thread that ends allocates as well.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: Everything is passed to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: As the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: As the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: As the caller promised.
        unsafe { System.realloc(memory, layout, size) }
    }
}

pub fn tests() -> Vec<Trial> {
    [
        one("allocations::a_hot_query_needs_none", a_hot_query_needs_none),
        one("allocations::a_crowd_needs_none", a_crowd_needs_none),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn a_hot_query_needs_none() {
    const QUERIES: usize = 5000;
    let pool = COUNT.pool().transport(AnyTransport::Shm(pm::Shm::new())).start().await.unwrap();
    let counts = std::thread::spawn(move || {
        let call = || pool.query_blocking(&[u64::MAX; 4]).unwrap()[0];
        for _ in 0..1000 {
            call();
        }
        let mut at_worker = call();
        let mut counts: Vec<(u64, u64)> = Vec::with_capacity(QUERIES);
        for _ in 0..QUERIES {
            let before = allocations();
            let now = call();
            counts.push((allocations() - before, now - at_worker));
            at_worker = now;
        }
        counts
    })
    .join()
    .unwrap();
    let (manager, worker): (Vec<u64>, Vec<u64>) = counts.into_iter().unzip();
    let none = |counts: &[u64]| counts.iter().filter(|&&count| count == 0).count();
    assert!(none(&manager) > QUERIES * 9 / 10, "{} of {QUERIES} without any at the manager", none(&manager));
    assert!(none(&worker) > QUERIES * 9 / 10, "{} of {QUERIES} without any at the worker", none(&worker));
    assert!(manager.iter().max() < Some(&16), "{:?}", manager.iter().max());
}

async fn a_crowd_needs_none() {
    const CALLERS: u64 = 256;
    const QUERIES: u64 = 200;
    // All in one thread, whose allocations are counted.
    let allocated = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pool = COUNT.pool().transport(AnyTransport::Shm(pm::Shm::new())).start().await.unwrap();
            let crowd = async |queries: u64| {
                let mut callers = tokio::task::JoinSet::new();
                for _ in 0..CALLERS {
                    let pool = pool.clone();
                    callers.spawn(async move {
                        for _ in 0..queries {
                            pool.query(&[u64::MAX; 4]).await.unwrap();
                        }
                    });
                }
                callers.join_all().await;
            };
            crowd(20).await;
            // A machine that stands still for a while has calls asked back, which takes some: the best of three counts.
            let mut least = u64::MAX;
            for _ in 0..3 {
                let before = allocations();
                crowd(QUERIES).await;
                least = least.min(allocations() - before);
            }
            pool.shutdown().await;
            least
        })
    })
    .join()
    .unwrap();
    // The tasks themselves, and what grows once in a while.
    assert!(allocated < CALLERS * QUERIES / 20, "{allocated} allocations in {} queries", CALLERS * QUERIES);
}
