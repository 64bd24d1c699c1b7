//! What holds for a whole program: the registry of its pools, its signals, and whether it may start processes at all. Rows Q13, Q20, Q21.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, ExitCause, QueryErrorKind, Signal, registry, spawning};
use rustix::process::Signal as Kill;
use tokio::task::JoinHandle;

use crate::query::listening;
use crate::roles::{Job, Said};
use crate::support::{
    Gate, LONG, Scratch, TRANSPORTS, again, error, eventually, gone_within, jobs, kill, lost, over_all_alone, pids,
    refused, replaced, run, within,
};

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = [
        over_all_alone("registry::the_registry_knows_every_pool", the_registry_knows_every_pool),
        over_all_alone("registry::shutdown_on_the_first_signal", shutdown_on_the_first_signal),
        over_all_alone("registry::the_second_signal_kills", the_second_signal_kills),
        over_all_alone("registry::spawning_disabled", spawning_disabled),
    ]
    .into_iter()
    .flatten()
    .collect();
    tests.push(in_process_by_the_environment());
    tests
}

async fn the_registry_knows_every_pool(transport: AnyTransport) {
    assert!(registry::pools_info().is_empty());
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (first, begun) = listening(jobs(transport).workers(2).name("first")).await;
    let second = jobs(transport).name("second").start().await.unwrap();
    let third = jobs(transport).name("third").workers(0).start().await.unwrap();
    let names = || registry::pools_info().iter().map(|pool| pool.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(), ["first", "second", "third"]);
    let busy = tokio::spawn(first.query(&gate.wait()));
    begun.wait();
    let mut events = second.events();
    second.query(&Job::Pid).await.unwrap();
    lost(second.query(&Job::Exit(1)).await);
    replaced(&mut events).await;
    eventually("the replacement is counted", || registry::pools_info()[1].workers.active == 1).await;
    let [one, two, three] = registry::pools_info().try_into().unwrap();
    assert_eq!((one.workers.active, one.load, one.crashes, one.last_crash), (2, 1, 0, None));
    assert_eq!((two.workers.active, two.workers.crashed, two.load, two.crashes), (1, 0, 0, 1));
    assert!(two.last_crash.is_some());
    assert_eq!((three.workers.active, three.load), (0, 0));
    let leaving = {
        let first = first.clone();
        tokio::spawn(async move { first.unspawn().await })
    };
    eventually("one is releasing", || registry::pools_info()[0].workers.releasing == 1).await;
    // One that has no handle any more is not there either.
    drop(third);
    eventually("two are left", || names() == ["first", "second"]).await;
    // Temporary workers are nobody's pool.
    assert!(second.query_temporary(&Job::Pid).await.is_ok());
    assert_eq!(names().len(), 2);
    let pid = pids(&second)[0];
    let shut = tokio::spawn(registry::shutdown_all(LONG));
    drop(refused(&second).await);
    assert!(!shut.is_finished(), "the first one has a query under way");
    gate.open(1);
    assert_eq!(busy.await.unwrap().unwrap(), Said::Number(1));
    within(shut).await.unwrap();
    // The pool may be closed before this caller of its is told.
    drop(within(leaving).await);
    gone_within(pid, Duration::ZERO);
    assert!(registry::pools_info().is_empty());
    for pool in [&first, &second] {
        assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
    }
    // With no time, and with nothing to do.
    let (pool, begun) = listening(jobs(transport)).await;
    let stuck = tokio::spawn(pool.query(&Job::Spin));
    begun.wait();
    within(registry::shutdown_all(Duration::ZERO)).await;
    assert_eq!(lost(stuck.await.unwrap()).cause, ExitCause::Requested);
    within(registry::shutdown_all(LONG)).await;
}

async fn shutdown_on_the_first_signal(transport: AnyTransport) {
    for (sent, came) in [(Kill::TERM, Signal::TERM), (Kill::INT, Signal::INT)] {
        let scratch = Scratch::new();
        let gate = Gate::new(&scratch);
        let (pool, begun) = listening(jobs(transport).workers(2)).await;
        let other = jobs(transport).start().await.unwrap();
        let all = [pids(&pool), pids(&other)].concat();
        let busy = tokio::spawn(pool.query(&gate.wait()));
        begun.wait();
        let shut = on_signal(LONG).await;
        assert!(!shut.is_finished() && pool.query(&Job::Pid).await.is_ok());
        kill(std::process::id(), sent);
        drop(refused(&pool).await);
        assert!(!shut.is_finished() && !busy.is_finished());
        gate.open(1);
        assert_eq!(within(busy).await.unwrap().unwrap(), Said::Number(1));
        assert_eq!(within(shut).await.unwrap(), came);
        for pid in all {
            gone_within(pid, Duration::ZERO);
        }
        assert!(registry::pools_info().is_empty());
    }
}

async fn the_second_signal_kills(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport)).await;
    let pid = pids(&pool)[0];
    let stuck = tokio::spawn(pool.query(&Job::Spin));
    begun.wait();
    let shut = on_signal(LONG).await;
    kill(std::process::id(), Kill::INT);
    drop(refused(&pool).await);
    assert!(!shut.is_finished() && !stuck.is_finished());
    kill(std::process::id(), Kill::TERM);
    assert_eq!(within(shut).await.unwrap(), Signal::INT, "the first one counts");
    assert_eq!(lost(within(stuck).await.unwrap()).cause, ExitCause::Requested);
    gone_within(pid, Duration::ZERO);
}

async fn spawning_disabled(transport: AnyTransport) {
    let me = std::process::id();
    let before = jobs(transport).start().await.unwrap();
    assert!(spawning::is_enabled());
    spawning::disable();
    assert!(!spawning::is_enabled());
    let pool = jobs(transport).workers(2).start().await.unwrap();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(me));
    assert_eq!(pool.query_temporary(&Job::Pid).await.unwrap(), Said::Pid(me));
    let forced = |answer| matches!(answer, Ok(Said::Pid(pid)) if pid != me);
    assert!(forced(pool.query_temporary_forced(&Job::Pid).await));
    let died = lost(pool.query_temporary_forced(&Job::Abort).await);
    assert!(matches!(died.cause, ExitCause::Exited(status) if status.signal() == Some(Signal::ABRT)), "{died:?}");
    let by_force = jobs(transport).force().start().await.unwrap();
    assert!(forced(by_force.query(&Job::Pid).await));
    assert!(forced(before.query(&Job::Pid).await), "pools that had started go on as they are");
    spawning::enable();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(me));
    assert!(forced(jobs(transport).start().await.unwrap().query(&Job::Pid).await));
}

/// The environment is looked at once, so this takes a process that was started with it.
fn in_process_by_the_environment() -> Trial {
    let name = "registry::in_process_by_the_environment";
    Trial::test(name, move || {
        if std::env::var_os(spawning::VARIABLE).is_some() {
            run(async {
                assert!(!spawning::is_enabled());
                let me = std::process::id();
                let pool = jobs(TRANSPORTS[0]).start().await.unwrap();
                assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(me));
                assert_eq!(pool.query_temporary(&Job::Pid).await.unwrap(), Said::Pid(me));
                let forced = pool.query_temporary_forced(&Job::Pid).await;
                assert!(matches!(forced, Ok(Said::Pid(pid)) if pid != me));
                spawning::enable();
                let pool = jobs(TRANSPORTS[1]).start().await.unwrap();
                assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(pid)) if pid != me));
            });
            return Ok(());
        }
        let output = again().args([name, "--exact", "--test-threads=1"]).env(spawning::VARIABLE, "1").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(said.into()) }
    })
}

/// Starts to listen for signals; they are caught when this returns.
async fn on_signal(limit: Duration) -> JoinHandle<Signal> {
    let mut shut = Box::pin(registry::shutdown_on_signal(limit));
    poll_fn(|cx| match shut.as_mut().poll(cx) {
        Poll::Ready(signal) => panic!("nobody sent {signal:?}"),
        Poll::Pending => Poll::Ready(()),
    })
    .await;
    tokio::spawn(async move { shut.await.unwrap() })
}
