//! Many queries from one caller. Row Q25.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, QueryErrorKind, QueryOptions};

use crate::query::listening;
use crate::roles::{Job, Said};
use crate::support::{LONG, error, eventually, jobs, lost, over_all, pids, within};

pub fn tests() -> Vec<Trial> {
    [
        over_all("batch::answers_come_in_the_order_of_the_inputs", answers_come_in_the_order_of_the_inputs),
        over_all("batch::each_query_has_its_own_end", each_query_has_its_own_end),
        over_all("batch::dropping_it_frees_the_workers", dropping_it_frees_the_workers),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn answers_come_in_the_order_of_the_inputs(transport: AnyTransport) {
    // More than workers, links and the queue have room for.
    let pool = jobs(transport).workers(2).queue(50).start().await.unwrap();
    let inputs: Vec<Job> = (0..3000_u32).map(|n| Job::Echo(n.to_be_bytes().to_vec())).collect();
    for (n, answer) in within(pool.query_batch(&inputs)).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), Said::Bytes((n as u32).to_be_bytes().to_vec()));
    }
    assert!(within(pool.query_batch(&[])).await.is_empty());
    assert_eq!((pool.info().load, pool.info().queued, pool.info().answered), (0, 0, 3000));
}

async fn each_query_has_its_own_end(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).start().await.unwrap();
    let before = pids(&pool)[0];
    let inputs = [Job::Pid, Job::Fail("rain".into()), Job::Exit(3), Job::Pid, Job::Nap(LONG), Job::Pid];
    let options = QueryOptions::new().timeout(Some(Duration::from_secs(2)));
    let mut answers = within(pool.query_batch_with(&inputs, options)).await.into_iter();
    let mut next = || answers.next().unwrap();
    assert_eq!(next().unwrap(), Said::Pid(before));
    assert_eq!(error(next()).kind(), QueryErrorKind::Handler);
    assert_eq!(lost(next()).pid, before);
    // What lay behind it had not begun, and went to the next worker.
    assert!(matches!(next().unwrap(), Said::Pid(pid) if pid != before));
    let late = error(next());
    assert!(late.kind() == QueryErrorKind::TimedOut && late.maybe_executed(), "{late:?}");
    // The last one waited behind it for as long as it had.
    let last = next();
    assert!(last.is_ok() || error(last).kind() == QueryErrorKind::TimedOut);
    assert!(answers.next().is_none());
}

async fn dropping_it_frees_the_workers(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(2)).await;
    let mut batch = Box::pin(pool.query_batch(&vec![Job::Nap(LONG); 20]));
    assert!(tokio::time::timeout(Duration::ZERO, &mut batch).await.is_err());
    begun.wait();
    begun.wait();
    drop(batch);
    eventually("nothing is left of it", || pool.info().load == 0 && pool.info().queued == 0).await;
    assert_eq!(within(pool.query(&Job::Echo(vec![1]))).await.unwrap(), Said::Bytes(vec![1]));
    assert_eq!(pool.info().crashes, 0, "they woke up when they were cancelled");
}
