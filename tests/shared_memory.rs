//! What only shared memory has: ways to wait, claims, and a worker that writes at random into the memory of its link. Row T10; faults 20, 21.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Budget, ExitCause, QueryError, QueryErrorKind, QueryOptions, Shm, Wake, WorkerId};
use rustix::process::Signal;

use crate::roles::{Job, Said};
use crate::support::{eventually, jobs, kill, one, pids, within};

pub fn tests() -> Vec<Trial> {
    [
        one("shared_memory::random_writes_make_no_wrong_answer", random_writes_make_no_wrong_answer),
        one("shared_memory::every_way_to_wait", every_way_to_wait),
        one("shared_memory::a_stopped_worker_keeps_no_calls", a_stopped_worker_keeps_no_calls),
        one("shared_memory::what_waits_behind_a_stuck_call_never_ran", what_waits_behind_a_stuck_call_never_ran),
        one("shared_memory::who_is_told_to_sleep_burns_nothing", who_is_told_to_sleep_burns_nothing),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn every_way_to_wait() {
    for wake in [Wake::Adaptive, Wake::Park, Wake::Busy] {
        let pool = jobs(AnyTransport::Shm(Shm::new().wake(wake))).workers(1).start().await.unwrap();
        for n in 0..200 {
            let answer = within(pool.query(&Job::Echo(bytes(0, n)))).await.unwrap();
            assert!(answer == Said::Bytes(bytes(0, n)), "{wake:?}");
        }
        let many: Vec<_> = (0..200).map(|n| tokio::spawn(pool.query(&Job::Echo(bytes(1, n))))).collect();
        for (n, query) in many.into_iter().enumerate() {
            assert!(within(query).await.unwrap().unwrap() == Said::Bytes(bytes(1, n as u64)), "{wake:?}");
        }
        // One that takes its time holds up nobody else of this runtime, and is killed at its deadline.
        let limit = QueryOptions::new().timeout(Some(Duration::from_millis(50)));
        let late = within(pool.query_with(&Job::Sleep(Duration::from_secs(60)), limit)).await.unwrap_err();
        assert_eq!(late.kind(), QueryErrorKind::TimedOut, "{wake:?}");
        let pid = pids(&pool)[0];
        kill(pid, Signal::KILL);
        eventually("there is another worker", || pids(&pool).first().is_some_and(|next| *next != pid)).await;
        assert_eq!(within(pool.query(&Job::Echo(vec![1]))).await.unwrap(), Said::Bytes(vec![1]));
        within(pool.shutdown()).await;
    }
}

async fn a_stopped_worker_keeps_no_calls() {
    let pool = jobs(AnyTransport::Shm(Shm::new())).workers(2).start().await.unwrap();
    let [stopped, other] = pids(&pool)[..] else { panic!("two workers") };
    for _ in 0..5 {
        // Quick calls, so that each worker gets many at a time.
        let quick = |count| -> Vec<_> { (0..count).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect() };
        for call in quick(2000) {
            within(call).await.unwrap().unwrap();
        }
        kill(stopped, Signal::STOP);
        let calls = quick(200);
        // All but the one that it may have begun with: nothing that it does can give the others back.
        let left = || calls.iter().filter(|call| !call.is_finished()).count();
        eventually("the other worker has them", || left() <= 1).await;
        kill(stopped, Signal::CONT);
        for call in calls {
            within(call).await.unwrap().unwrap();
        }
    }
    let mut after = pids(&pool);
    after.sort_unstable();
    assert!(after.contains(&stopped) && after.contains(&other), "nobody was replaced");
    within(pool.shutdown()).await;
}

/// A call that times out on a link whose worker has not begun with it is known not to have run.
async fn what_waits_behind_a_stuck_call_never_ran() {
    let pool = jobs(AnyTransport::Shm(Shm::new())).workers(1).start().await.unwrap();
    within(pool.query(&Job::Echo(vec![1]))).await.unwrap();
    for _ in 0..5 {
        let limit = |millis| QueryOptions::new().timeout(Some(Duration::from_millis(millis)));
        let stuck = tokio::spawn(pool.query_with(&Job::Sleep(Duration::from_millis(300)), limit(10_000)));
        eventually("it is aboard", || pool.workers().first().is_some_and(|worker| worker.load > 0)).await;
        let behind: Vec<_> = (0..4).map(|n| tokio::spawn(pool.query_with(&Job::Echo(vec![n]), limit(60)))).collect();
        for query in behind {
            let late = within(query).await.unwrap().unwrap_err();
            assert_eq!((late.kind(), late.maybe_executed()), (QueryErrorKind::TimedOut, false), "{late}");
        }
        within(stuck).await.unwrap().unwrap();
    }
    let quick = within(pool.query(&Job::Echo(vec![2]))).await.unwrap();
    assert_eq!(quick, Said::Bytes(vec![2]), "the worker passes over them, and serves on");
    within(pool.shutdown()).await;
}

async fn who_is_told_to_sleep_burns_nothing() {
    let (asleep, busy) = (burnt_for_a_query(Wake::Park).await, burnt_for_a_query(Wake::Busy).await);
    // Debug builds and wake-ups take their time, but not as much as the two milliseconds between queries.
    assert!(asleep < Duration::from_micros(400), "{asleep:?} for each query");
    assert!(busy > 2 * asleep, "{busy:?} for each query, and {asleep:?} asleep");
}

/// Processor time of a worker for each query, two milliseconds apart.
async fn burnt_for_a_query(wake: Wake) -> Duration {
    let pool = jobs(AnyTransport::Shm(Shm::new().wake(wake))).workers(1).start().await.unwrap();
    let burnt = |pid: u32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    within(pool.query(&Job::Echo(vec![1]))).await.unwrap();
    let (pid, queries) = (pids(&pool)[0], 200);
    let before = burnt(pid);
    for _ in 0..queries {
        within(pool.query(&Job::Echo(vec![1]))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let each = Duration::from_nanos((burnt(pid) - before) / queries);
    within(pool.shutdown()).await;
    each
}

/// Bytes that tell each query from all others.
fn bytes(round: u64, n: u64) -> Vec<u8> {
    (0..n * 37 % 2000).map(|at| (round * 31 + n * 7 + at) as u8).chain((round << 32 | n).to_be_bytes()).collect()
}

async fn random_writes_make_no_wrong_answer() {
    let builder =
        jobs(AnyTransport::Shm(Shm::new())).workers(2).budget(Budget::spare_calls(1000, Duration::from_secs(1800)));
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
