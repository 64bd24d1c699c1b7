//! Queries of threads that belong to no runtime. Row Q25.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, ExitCause, QueryErrorKind, QueryOptions};

use crate::roles::{Job, Said};
use crate::support::{Gate, LONG, Scratch, contains, error, jobs, lost, over_all, pids, within};

pub fn tests() -> Vec<Trial> {
    [
        over_all("blocking::answers_and_errors", answers_and_errors),
        over_all("blocking::threads_do_not_mix_their_answers", threads_do_not_mix_their_answers),
        over_all("blocking::a_query_waits_for_room", a_query_waits_for_room),
        over_all("blocking::it_is_refused_within_a_runtime", it_is_refused_within_a_runtime),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs it on a thread of its own.
async fn aside<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    within(result).await.unwrap()
}

async fn answers_and_errors(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).start().await.unwrap();
    let pid = pids(&pool)[0];
    aside(move || {
        for _ in 0..300 {
            assert_eq!(pool.query_blocking(&Job::Pid).unwrap(), Said::Pid(pid));
        }
        let large = vec![7; 3 << 20];
        assert_eq!(pool.query_blocking(&Job::Echo(large.clone())).unwrap(), Said::Bytes(large));
        let failed = error(pool.query_blocking(&Job::Fail("rain".into())));
        contains(failed.to_string(), "unhappy about rain");
        let short = QueryOptions::new().timeout(Some(Duration::from_millis(50)));
        assert_eq!(error(pool.query_blocking_with(&Job::Nap(LONG), short)).kind(), QueryErrorKind::TimedOut);
        let died = lost(pool.query_blocking(&Job::Exit(3)));
        assert!(matches!(died.cause, ExitCause::Exited(_)), "{:?}", died.cause);
        assert!(matches!(pool.query_blocking(&Job::Pid).unwrap(), Said::Pid(next) if next != pid));
    })
    .await;
}

async fn threads_do_not_mix_their_answers(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).start().await.unwrap();
    // Others await meanwhile.
    let awaiting = {
        let pool = pool.clone();
        tokio::spawn(async move {
            for n in 0..500_u32 {
                let bytes = n.to_be_bytes().to_vec();
                assert_eq!(pool.query(&Job::Echo(bytes.clone())).await.unwrap(), Said::Bytes(bytes));
            }
        })
    };
    let threads = (0..6_u32).map(|thread| {
        let pool = pool.clone();
        aside(move || {
            for n in 0..300_u32 {
                let bytes = [thread.to_be_bytes(), n.to_be_bytes()].concat();
                assert_eq!(pool.query_blocking(&Job::Echo(bytes.clone())).unwrap(), Said::Bytes(bytes));
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.await;
    }
    within(awaiting).await.unwrap();
    assert_eq!((pool.info().load, pool.info().answered), (0, 6 * 300 + 500));
}

async fn a_query_waits_for_room(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let pool = jobs(transport).workers(1).queue(1).start().await.unwrap();
    let under_way: Vec<_> = (0..8).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
    while pool.info().queued == 0 {
        tokio::task::yield_now().await;
    }
    let (refused, waiting) = (pool.clone(), pool.clone());
    let short = QueryOptions::new().timeout(Some(Duration::from_millis(50)));
    let refused = aside(move || refused.query_blocking_with(&Job::Pid, short)).await;
    assert_eq!(error(refused).kind(), QueryErrorKind::TimedOut);
    let waiting = aside(move || waiting.query_blocking(&Job::Pid));
    gate.open(8);
    assert!(matches!(waiting.await.unwrap(), Said::Pid(_)));
    for query in under_way {
        within(query).await.unwrap().unwrap();
    }
}

async fn it_is_refused_within_a_runtime(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).start().await.unwrap();
    let refused = error(pool.query_blocking(&Job::Pid));
    assert_eq!(refused.kind(), QueryErrorKind::OnRuntime);
    assert!(!refused.maybe_executed() && !refused.is_retryable());
    contains(refused.to_string(), "await `query`");
}
