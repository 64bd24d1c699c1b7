//! A worker that writes at random into the memory of its link. Row T10; faults 20, 21.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Budget, ExitCause, QueryError, WorkerId};

use crate::roles::{Job, Said};
use crate::support::{eventually, jobs, one, within};

pub fn tests() -> Vec<Trial> {
    [one("shared_memory::random_writes_make_no_wrong_answer", random_writes_make_no_wrong_answer)]
        .into_iter()
        .flatten()
        .collect()
}

/// Bytes that tell each query from all others.
fn bytes(round: u64, n: u64) -> Vec<u8> {
    (0..n * 37 % 2000).map(|at| (round * 31 + n * 7 + at) as u8).chain((round << 32 | n).to_be_bytes()).collect()
}

async fn random_writes_make_no_wrong_answer() {
    let builder =
        jobs(AnyTransport::Shm(pm::Shm)).workers(2).budget(Budget::spare_calls(1000, Duration::from_secs(1800)));
    let pool = builder.timeout(Duration::from_secs(2)).start().await.unwrap();
    let (mut right, mut violations) = (0, 0);
    for round in 0..40 {
        let victim: WorkerId = loop {
            match pool.workers().first() {
                Some(worker) => break worker.id,
                None => tokio::task::yield_now().await,
            }
        };
        let _ = pool.query_on(victim, &Job::Scribble(round, 200_000)).await;
        let queries = (0..64).map(|n| {
            let pool = pool.clone();
            // Some one after another by the fast way, some together.
            tokio::spawn(async move {
                let mut ends = Vec::new();
                for _ in 0..8 {
                    ends.push((bytes(round, n), pool.query(&Job::Echo(bytes(round, n))).await));
                }
                ends
            })
        });
        for query in queries.collect::<Vec<_>>() {
            for (sent, end) in within(query).await.unwrap() {
                match end {
                    Ok(answer) => {
                        assert!(answer == Said::Bytes(sent), "round {round}: a wrong answer");
                        right += 1;
                    }
                    Err(QueryError::WorkerLost(lost) | QueryError::Poisoned(lost)) => {
                        violations += u32::from(matches!(lost.cause, ExitCause::Protocol { .. }));
                    }
                    // It wrote over what would have woken somebody.
                    Err(QueryError::TimedOut { .. }) => {}
                    Err(other) => panic!("round {round}: {other:?}"),
                }
            }
        }
    }
    assert!(right > 1000 && violations > 0, "{right} right, {violations} violations");
    eventually("all workers are back", || pool.workers().len() == 2).await;
    for _ in 0..100 {
        assert_eq!(within(pool.query(&Job::Echo(vec![1]))).await.unwrap(), Said::Bytes(vec![1]));
    }
    within(pool.shutdown()).await;
}
