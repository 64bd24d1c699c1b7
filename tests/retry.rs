//! Queries that are tried again, and queries that must not be: policies, delays, budgets, and at most once. Rows Q8, Q9.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Delay, Event, ExitCause, ExitStatus, Failure, Incarnation, QueryError, QueryErrorKind,
    QueryOptions, Retry, WorkerId,
};
use rustix::process::Signal as Kill;
use tokio::sync::broadcast;

use crate::query::listening;
use crate::roles::{ASYNC_JOB, EARLY, Job, Said};
use crate::support::{
    Gate, LONG, Pool, Scratch, calls_wait, error, event, eventually, jobs, kill, lost, over_all, pids, pool_of,
    replaced, within,
};

/// Many deaths, and no long waits between them.
const PATIENT: Budget =
    Budget::crash_loops(1_000_000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));

pub fn tests() -> Vec<Trial> {
    [
        over_all("retry::delays_are_kept", delays_are_kept),
        over_all("retry::lost_queries_are_tried_again", lost_queries_are_tried_again),
        over_all("retry::the_policy_says_which_errors", the_policy_says_which_errors),
        over_all("retry::timeouts_only_by_choice", timeouts_only_by_choice),
        over_all("retry::a_query_may_have_its_own_policy", a_query_may_have_its_own_policy),
        over_all(
            "retry::a_query_that_waits_for_its_next_try_can_be_dropped",
            a_query_that_waits_for_its_next_try_can_be_dropped,
        ),
        over_all("retry::at_most_once", at_most_once),
        over_all("retry::at_most_once_with_many_aboard", at_most_once_with_many_aboard),
        over_all("retry::at_most_three_deaths_with_a_policy", at_most_three_deaths_with_a_policy),
        over_all("retry::unstarted_ones_are_queued_again", unstarted_ones_are_queued_again),
        over_all("retry::poisoned_after_three", poisoned_after_three),
        over_all("retry::a_named_worker_is_the_only_one", a_named_worker_is_the_only_one),
        over_all("retry::loops_before_ready", loops_before_ready),
        over_all("retry::idle_deaths", idle_deaths),
        over_all("retry::deaths_aboard_are_the_calls_own", deaths_aboard_are_the_calls_own),
        over_all("retry::every_crash", every_crash),
        over_all("retry::spare_calls", spare_calls),
    ]
    .into_iter()
    .flatten()
    .collect()
}

// --- policies

async fn delays_are_kept(transport: AnyTransport) {
    let ms = Duration::from_millis;
    let scratch = Scratch::new();
    let pool = jobs(transport).workers(2).start().await.unwrap();
    let delays = [
        (Delay::Constant(Duration::ZERO), [0, 0, 0, 0]),
        (Delay::Constant(ms(40)), [40, 40, 40, 40]),
        (Delay::Linear(ms(20)), [20, 40, 60, 80]),
        (Delay::Exponential { first: ms(15), longest: ms(100) }, [15, 30, 60, 100]),
    ];
    let mut under_way = Vec::new();
    for (n, (delay, least)) in delays.into_iter().enumerate() {
        let log = Log(scratch.path(format!("{n}")));
        let query = pool.query_with(
            &log.job(7, [Job::Fail("rain".into())]),
            QueryOptions::new().retry(Retry::times(4).on_error().delay(delay)),
        );
        under_way.push((log, delay, least, tokio::spawn(query)));
    }
    for (log, delay, least, query) in under_way {
        let failed = error(within(query).await.unwrap());
        assert_eq!((failed.kind(), failed.tries()), (QueryErrorKind::Handler, 5), "{delay:?}");
        assert!(failed.to_string().contains("after 5 tries"), "{failed}");
        let runs = log.runs();
        assert_eq!(runs.len(), 5, "{delay:?}");
        for (pair, least) in runs.windows(2).zip(least) {
            let waited = pair[1].at - pair[0].at;
            assert!(waited >= ms(least), "{delay:?}: {waited:?}, not {least} ms");
        }
    }
    assert_eq!(pool.info().crashes, 0);
}

async fn lost_queries_are_tried_again(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let delay = Duration::from_millis(50);
    let retry = Retry::times(2).delay(Delay::Linear(delay));
    let pool = jobs(transport).workers(2).budget(PATIENT).retry(retry).start().await.unwrap();
    let mut events = pool.events();
    let answer = within(pool.query(&log.job(1, [Job::Exit(1), Job::Segv, Job::Pid]))).await;
    let runs = log.runs();
    assert_eq!(answer.unwrap(), Said::Pid(runs[2].pid));
    assert_eq!(runs.iter().map(|run| run.pid).collect::<BTreeSet<_>>().len(), 3, "three processes");
    assert!(runs[1].at - runs[0].at >= delay && runs[2].at - runs[1].at >= 2 * delay, "{runs:?}");
    for run in &runs[..2] {
        let crashed = event(&mut events, |event| match event {
            Event::Crashed { pid, load, .. } => Some((*pid, *load)),
            _ => None,
        });
        assert_eq!(crashed.await, (Some(run.pid), 1));
    }
    // The last error says how many tries there were.
    let pool = jobs(transport).workers(2).budget(PATIENT).retry(Retry::times(1)).start().await.unwrap();
    let died = lost(within(pool.query(&log.job(2, [Job::Exit(1), Job::Exit(2), Job::Pid]))).await);
    assert_eq!((died.tries, died.cause.clone()), (2, ExitCause::Exited(ExitStatus::Code(2))));
    assert!(died.to_string().contains("after 2 tries"), "{died}");
    assert_eq!(log.runs_of(2).len(), 2);
}

async fn the_policy_says_which_errors(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let pool = jobs(transport).workers(2).budget(PATIENT).start().await.unwrap();
    let kinds = [Failure::Lost, Failure::Handler];
    let policies: [(Retry, &[Failure]); 6] = [
        (Retry::NEVER, &[]),
        (Retry::times(1), &[Failure::Lost]),
        (Retry::times(1).on_error(), &[Failure::Lost, Failure::Handler]),
        (Retry::times(1).on_timeout(), &[Failure::Lost]),
        (Retry::times(1).on(&[Failure::Handler]), &[Failure::Handler]),
        (Retry::times(0).on_error(), &[]),
    ];
    let mut id = 0;
    for (retry, covered) in policies {
        for kind in kinds {
            let faults = match kind {
                Failure::Lost => vec![Job::Exit(1)],
                _ => vec![Job::Fail("rain".into()), Job::Panic("at the disco".into())],
            };
            for fault in faults {
                id += 1;
                let job = log.job(id, [fault.clone(), Job::Pid]);
                let answer = within(pool.query_with(&job, QueryOptions::new().retry(retry))).await;
                let tries = log.runs_of(id).len();
                if covered.contains(&kind) {
                    assert!(matches!(answer, Ok(Said::Pid(_))), "{retry:?}, {fault:?}: {answer:?}");
                    assert_eq!(tries, 2);
                } else {
                    let expected =
                        if kind == Failure::Lost { QueryErrorKind::WorkerLost } else { QueryErrorKind::Handler };
                    let failed = error(answer);
                    assert_eq!((failed.kind(), failed.tries(), tries), (expected, 1, 1), "{retry:?}, {fault:?}");
                }
            }
        }
    }
    // An input that cannot be read is no better the second time, but it is an error of the handler.
    let strings = pm::PoolBuilder::<String, Said, pm::Postcard, _>::role(&crate::roles::JOB, transport, pm::Postcard);
    let pool = strings.retry(Retry::times(2).on_error()).start().await.unwrap();
    let failed = error(within(pool.query(&"~".repeat(100))).await);
    assert!(!failed.maybe_executed(), "{failed:?}");
    // What never reached a worker is not tried at all.
    within(pool.unspawn()).await.unwrap();
    let refused = error(within(pool.query(&"x".into())).await);
    assert_eq!((refused.kind(), refused.tries()), (QueryErrorKind::NoWorkers, 0));
}

async fn timeouts_only_by_choice(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let limit = Duration::from_millis(400);
    let pool = jobs(transport).workers(2).timeout(limit).cancel_grace(LONG).budget(PATIENT).start().await.unwrap();
    let before = pids(&pool);
    let again = Retry::times(2).on_timeout();
    // A policy without timeouts.
    let options = QueryOptions::new().retry(Retry::times(2).on_error());
    let late = error(within(pool.query_with(&log.job(1, [Job::Nap(LONG)]), options)).await);
    assert_eq!((late.kind(), late.tries()), (QueryErrorKind::TimedOut, 1));
    assert_eq!(log.runs_of(1).len(), 1);
    // Each try has the whole limit.
    let begun = Instant::now();
    let options = QueryOptions::new().retry(again);
    let late = error(within(pool.query_with(&log.job(2, [Job::Nap(LONG)]), options)).await);
    assert_eq!((late.kind(), late.tries()), (QueryErrorKind::TimedOut, 3));
    assert!(begun.elapsed() >= 3 * limit, "{:?}", begun.elapsed());
    assert_eq!(log.runs_of(2).len(), 3);
    // The second try may be quicker.
    let answer = within(pool.query_with(&log.job(3, [Job::Nap(LONG), Job::Pid]), options)).await;
    assert_eq!(answer.unwrap(), Said::Pid(log.runs_of(3)[1].pid));
    assert_eq!(pids(&pool), before, "those that yield live on");
    // A worker that does not yield is killed; the try that follows does not wait for that.
    let grace = Duration::from_millis(50);
    let pool = jobs(transport).workers(1).timeout(limit).cancel_grace(grace).start().await.unwrap();
    let pid = pids(&pool)[0];
    let mut events = pool.events();
    let stuck = pool.query_with(&log.job(4, [Job::Spin, Job::Pid]), QueryOptions::new().retry(again));
    // Starting a process may take longer than the limit of a try, where the machine is busy.
    match within(stuck).await {
        Ok(answer) => assert_eq!(answer, Said::Pid(log.runs_of(4)[1].pid)),
        Err(late) => assert_eq!((late.kind(), late.tries()), (QueryErrorKind::TimedOut, 3)),
    }
    assert_eq!(log.runs_of(4)[0].pid, pid);
    assert_eq!(crate::support::crash(&mut events).await, ExitCause::Stuck { grace });
}

async fn a_query_may_have_its_own_policy(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let never = QueryOptions::new().retry(Retry::NEVER);
    let twice = QueryOptions::new().retry(Retry::times(1));
    let pool = jobs(transport).workers(2).budget(PATIENT).start().await.unwrap();
    lost(within(pool.query(&log.job(1, [Job::Exit(1), Job::Pid]))).await);
    assert!(within(pool.query_with(&log.job(2, [Job::Exit(1), Job::Pid]), twice)).await.is_ok());
    lost(within(pool.query_with(&log.job(3, [Job::Exit(1), Job::Pid]), QueryOptions::new())).await);
    let pool = jobs(transport).workers(2).budget(PATIENT).retry(Retry::times(1)).start().await.unwrap();
    assert!(within(pool.query(&log.job(4, [Job::Exit(1), Job::Pid]))).await.is_ok());
    let died = lost(within(pool.query_with(&log.job(5, [Job::Exit(1), Job::Pid]), never)).await);
    assert_eq!(died.tries, 1);
    assert!(within(pool.try_query(log.job(6, [Job::Exit(1), Job::Pid]))).await.is_ok());
    assert_eq!([1, 2, 3, 4, 5, 6].map(|id| log.runs_of(id).len()), [1, 2, 1, 2, 1, 2]);
}

async fn a_query_that_waits_for_its_next_try_can_be_dropped(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let retry = Retry::times(5).on_error().delay(Delay::Constant(LONG));
    let pool = jobs(transport).retry(retry).start().await.unwrap();
    let query = |id| tokio::spawn(pool.query(&log.job(id, [Job::Fail("rain".into()), Job::Pid])));
    let waiting = query(1);
    eventually("it has failed once", || log.runs_of(1).len() == 1 && pool.info().load == 0).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert!(matches!(within(pool.query(&Job::Pid)).await, Ok(Said::Pid(_))));
    // A shutdown does not wait for it longer than it may; a kill does not wait at all.
    let waiting = query(2);
    eventually("it has failed once", || log.runs_of(2).len() == 1 && pool.info().load == 0).await;
    within(pool.shutdown_within(Some(Duration::from_millis(50)))).await;
    assert_eq!(error(within(waiting).await.unwrap()).kind(), QueryErrorKind::ShuttingDown);
    assert_eq!(log.runs().len(), 2);
}

// --- at most once

/// What a number of askers got, each query under an id of its own.
async fn storm(
    pool: &Pool,
    log: &Log,
    queries: u32,
    kills: usize,
    job: impl Fn(u32) -> Job,
) -> Vec<(u32, Result<Said, QueryError>)> {
    const ASKERS: u32 = 32;
    let killer = {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut events = pool.events();
            for n in 0..kills {
                eventually("somebody to kill", || !pids(&pool).is_empty()).await;
                let Some(&pid) = pids(&pool).get(n % 2).or(pids(&pool).first()) else { continue };
                kill(pid, Kill::KILL);
                let is_it = |event: &Event| matches!(event, Event::Crashed { pid: Some(dead), .. } if *dead == pid);
                event(&mut events, |event| is_it(event).then_some(())).await;
            }
        })
    };
    let askers: Vec<_> = (0..ASKERS)
        .map(|asker| {
            let asked: Vec<_> =
                (asker..queries).step_by(ASKERS as usize).map(|id| (id, pool.query(&log.job(id, [job(id)])))).collect();
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                for (id, query) in asked {
                    outcomes.push((id, query.await));
                }
                outcomes
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for asker in askers {
        outcomes.extend(within(asker).await.unwrap());
    }
    within(killer).await.unwrap();
    assert_eq!(outcomes.len(), queries as usize);
    outcomes
}

/// Checks the outcomes of a storm without a policy against what the workers wrote, and gives how many were lost.
fn check_at_most_once(log: &Log, outcomes: Vec<(u32, Result<Said, QueryError>)>) -> usize {
    let runs = log.runs_by_id();
    let mut died = 0;
    for (id, outcome) in outcomes {
        let runs = runs.get(&id).map_or(&[][..], Vec::as_slice);
        assert!(runs.len() <= 1, "query {id} ran {} times: {runs:?}", runs.len());
        match outcome {
            Ok(said) => assert_eq!(runs.iter().map(|run| Said::Pid(run.pid)).collect::<Vec<_>>(), [said], "query {id}"),
            Err(QueryError::WorkerLost(lost)) => {
                assert_eq!(lost.tries, 1);
                assert!(runs.iter().all(|run| run.pid == lost.pid), "query {id}: {lost:?}, {runs:?}");
                died += 1;
            }
            Err(other) => panic!("query {id}: {other:?}"),
        }
    }
    died
}

async fn at_most_once(transport: AnyTransport) {
    const KILLS: usize = 60;
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let workers = 3;
    let pool = jobs(transport).workers(workers).budget(PATIENT).start().await.unwrap();
    // One in 50 dies by its own hand, at once after it has written its line.
    let bad = |id: u32| id % 50 == 7;
    let outcomes = storm(&pool, &log, 4000, KILLS, |id| if bad(id) { Job::Signal(9) } else { Job::Pid }).await;
    assert!(outcomes.iter().all(|(id, outcome)| !bad(*id) || outcome.is_err()));
    let died = check_at_most_once(&log, outcomes);
    assert!((80..=80 + KILLS).contains(&died), "{died} were lost; of each worker at most one had started");
    eventually("the pool is back to size", || pids(&pool).len() == workers as usize).await;
    assert_eq!((pool.info().load, pool.info().queued), (0, 0));
}

async fn at_most_once_with_many_aboard(transport: AnyTransport) {
    const KILLS: usize = 30;
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let builder = pool_of::<Job, Said>(&ASYNC_JOB, transport);
    let pool = builder.workers(2).budget(PATIENT).start().await.unwrap();
    let bad = |id: u32| id % 100 == 7;
    let outcomes = storm(&pool, &log, 2000, KILLS, |id| if bad(id) { Job::Exit(3) } else { Job::Pid }).await;
    assert!(outcomes.iter().all(|(id, outcome)| !bad(*id) || outcome.is_err()));
    assert!(check_at_most_once(&log, outcomes) >= 20);
    eventually("the pool is back to size", || pids(&pool).len() == 2).await;
    assert_eq!((pool.info().load, pool.info().queued), (0, 0));
}

async fn at_most_three_deaths_with_a_policy(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let builder = jobs(transport).workers(3).budget(PATIENT).retry(Retry::times(10));
    let pool = builder.start().await.unwrap();
    let bad = |id: u32| id % 200 == 7;
    let outcomes = storm(&pool, &log, 2000, 40, |id| if bad(id) { Job::Signal(9) } else { Job::Pid }).await;
    let runs = log.runs_by_id();
    for (id, outcome) in outcomes {
        let count = runs.get(&id).map_or(0, Vec::len);
        match outcome {
            Ok(said) => {
                assert!(!bad(id) && (1..=3).contains(&count), "query {id} ran {count} times");
                assert_eq!(said, Said::Pid(runs[&id].last().unwrap().pid));
            }
            Err(QueryError::Poisoned(lost)) => {
                assert!(lost.tries == 3 && count <= 3, "query {id} ran {count} times: {lost:?}")
            }
            Err(other) => panic!("query {id}: {other:?}"),
        }
    }
}

async fn unstarted_ones_are_queued_again(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(1).budget(PATIENT)).await;
    for round in 0..10 {
        let victim = pids(&pool)[0];
        let slow = tokio::spawn(pool.query(&gate.wait()));
        begun.wait();
        let ids: Vec<u32> = (0..30).map(|n| round * 100 + n).collect();
        let behind: Vec<_> = ids.iter().map(|id| tokio::spawn(pool.query(&log.job(*id, [Job::Pid])))).collect();
        calls_wait(&pool, 31).await;
        kill(victim, Kill::KILL);
        let died = lost(within(slow).await.unwrap());
        assert_eq!((died.pid, died.tries), (victim, 1));
        for (id, query) in ids.iter().zip(behind) {
            let answer = within(query).await.unwrap().unwrap();
            let runs = log.runs_of(*id);
            assert_eq!(runs.iter().map(|run| Said::Pid(run.pid)).collect::<Vec<_>>(), [answer]);
            assert_ne!(runs[0].pid, victim);
        }
    }
    assert_eq!(pool.info().crashes, 10);
}

async fn poisoned_after_three(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let retry = Retry::times(20).on_error();
    let builder = jobs(transport).workers(2).budget(PATIENT).retry(retry).describe(|job| match job {
        Job::Log(_, id, _) => format!("number {id}"),
        _ => "another".into(),
    });
    let pool = builder.start().await.unwrap();
    let mut events = pool.events();
    let poisoned = error(within(pool.query(&log.job(1, [Job::Exit(1), Job::Segv, Job::Exit(3), Job::Pid]))).await);
    let QueryError::Poisoned(last) = &poisoned else { panic!("{poisoned:?}") };
    assert_eq!((last.tries, last.cause.clone()), (3, ExitCause::Exited(ExitStatus::Code(3))));
    assert_eq!(last.input, "number 1");
    let runs = log.runs_of(1);
    assert_eq!(runs.iter().map(|run| run.pid).collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(last.pid, runs[2].pid);
    let mut deaths = 0;
    let input = event(&mut events, |event| match event {
        Event::Poisoned { input } => Some(input.clone()),
        Event::Crashed { .. } => {
            deaths += 1;
            None
        }
        _ => None,
    });
    assert_eq!(input.await, "number 1");
    assert!(deaths >= 2, "the third one may be told after it");
    // Deaths count, errors of the handler do not.
    let fail = || Job::Fail("rain".into());
    let answer = pool.query(&log.job(2, [fail(), Job::Exit(1), fail(), fail(), Job::Exit(1), fail(), Job::Pid]));
    assert!(matches!(within(answer).await, Ok(Said::Pid(_))));
    assert_eq!(log.runs_of(2).len(), 7);
    // A policy with fewer tries ends before that, and nobody is poisoned.
    let twice = QueryOptions::new().retry(Retry::times(1));
    assert_eq!(lost(within(pool.query_with(&log.job(3, [Job::Exit(1)]), twice)).await).tries, 2);
}

async fn a_named_worker_is_the_only_one(transport: AnyTransport) {
    let scratch = Scratch::new();
    let log = Log(scratch.path("log"));
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(2).budget(PATIENT).retry(Retry::times(5).on_error())).await;
    let mut events = pool.events();
    let named = |worker: WorkerId, job: Job| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.query_on(worker, &job).await })
    };
    for round in 0..5 {
        let victim = pool.workers()[0].clone();
        let id = round * 10;
        // Started.
        let died = lost(within(named(victim.id, log.job(id, [Job::Exit(1), Job::Pid]))).await.unwrap());
        assert_eq!((died.worker, died.pid, died.tries), (victim.id, victim.pid, 1));
        assert_eq!(log.runs_of(id).len(), 1);
        replaced(&mut events).await;
        // Not started.
        let victim = pool.workers().into_iter().find(|worker| worker.id == victim.id).unwrap();
        let slow = named(victim.id, gate.wait());
        begun.wait();
        let behind: Vec<_> = (1..5).map(|n| named(victim.id, log.job(id + n, [Job::Pid]))).collect();
        eventually("they are aboard", || pool.info().load == 5).await;
        kill(victim.pid, Kill::KILL);
        lost(within(slow).await.unwrap());
        for query in behind {
            let gone = error(within(query).await.unwrap());
            assert_eq!((gone.kind(), gone.maybe_executed()), (QueryErrorKind::NoWorkers, false));
        }
        replaced(&mut events).await;
        assert!((1..5).all(|n| log.runs_of(id + n).is_empty()));
    }
    let id = pool.workers()[0].id;
    assert_eq!(error(within(named(id, log.job(99, [Job::Fail("rain".into()), Job::Pid]))).await.unwrap()).tries(), 1);
    // One query for each, and each for itself.
    let log = Log(scratch.path("all"));
    let answers = within(pool.query_all(&log.job(1, [Job::Exit(1), Job::Pid]))).await;
    assert_eq!(answers.len(), 2);
    assert_eq!(log.runs().iter().map(|run| run.pid).collect::<BTreeSet<_>>().len(), log.runs().len());
}

// --- budgets

async fn loops_before_ready(transport: AnyTransport) {
    let budget = Budget::crash_loops(2, LONG).backoff(Duration::from_millis(20), Duration::from_millis(20));
    let builder = jobs(transport).workers(0).budget(budget).spec(|spec| spec.env(EARLY, "complain"));
    let pool = builder.start().await.unwrap();
    let mut events = pool.events();
    let begun = Instant::now();
    let queries: Vec<_> = (0..10).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    for query in queries {
        let failed = error(within(query).await.unwrap());
        let QueryError::GaveUp { pool, cause, stderr } = &failed else { panic!("{failed:?}") };
        assert_eq!((&**pool, cause.clone()), ("job", ExitCause::Exited(ExitStatus::Code(2))));
        assert!(stderr.contains("cannot find the configuration"), "{stderr:?}");
        assert_eq!((failed.maybe_executed(), failed.tries()), (false, 0));
    }
    assert!(begun.elapsed() >= 2 * Duration::from_millis(15), "two restarts, with a jitter of a quarter");
    for (life, restarts) in [(1, true), (2, true), (3, false)] {
        let crashed = crashed(&mut events).await;
        assert_eq!(crashed, (Incarnation(life), 0, restarts));
    }
    assert_eq!(gave_up(&mut events).await, 3);
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::GaveUp);
    assert!(pool.revive().await.is_err(), "it is no better than before");
}

async fn idle_deaths(transport: AnyTransport) {
    let quick = (Duration::from_millis(1), Duration::from_millis(2));
    for budget in [Budget::crash_loops(2, LONG), Budget::spare_calls(2, LONG), Budget::every_crash(2, LONG)] {
        let pool = jobs(transport).budget(budget.backoff(quick.0, quick.1)).start().await.unwrap();
        let mut events = pool.events();
        for life in 1..=3 {
            // Calls that finish do not forgive a death that no call was to blame for.
            pool.query(&Job::Pid).await.unwrap();
            assert_eq!(pool.info().load, 0);
            kill(pids(&pool)[0], Kill::KILL);
            assert_eq!(crashed(&mut events).await, (Incarnation(life), 0, life < 3), "{budget:?}");
            if life < 3 {
                replaced(&mut events).await;
            }
        }
        assert_eq!(gave_up(&mut events).await, 3);
        assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::GaveUp);
    }
    // A window that has slid on forgets.
    let budget = Budget::crash_loops(0, LONG);
    let pool = jobs(transport).budget(budget).start().await.unwrap();
    let mut events = pool.events();
    kill(pids(&pool)[0], Kill::TERM);
    assert_eq!(crashed(&mut events).await, (Incarnation(1), 0, false));
    assert_eq!(gave_up(&mut events).await, 1);
    let pool = jobs(transport)
        .budget(Budget::crash_loops(1, Duration::from_millis(1)).backoff(quick.1, quick.1))
        .start()
        .await
        .unwrap();
    let mut events = pool.events();
    for _ in 0..4 {
        kill(pids(&pool)[0], Kill::KILL);
        replaced(&mut events).await;
    }
}

async fn deaths_aboard_are_the_calls_own(transport: AnyTransport) {
    // A worker that has finished a call, and then dies of another one, costs nothing.
    let pool = jobs(transport).budget(Budget::crash_loops(1, LONG)).start().await.unwrap();
    let mut events = pool.events();
    for life in 1..=6 {
        within(pool.query(&Job::Pid)).await.unwrap();
        lost(within(pool.query(&Job::Exit(1))).await);
        assert_eq!(crashed(&mut events).await, (Incarnation(life), 1, true));
    }
    // Nor do those in a first call, as long as some call finishes between them.
    let budget = Budget::crash_loops(1, LONG).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let pool = jobs(transport).budget(budget).start().await.unwrap();
    for _ in 0..4 {
        lost(within(pool.query(&Job::Exit(1))).await);
        within(pool.query(&Job::Pid)).await.unwrap();
    }
    // Where none ever does, it is a loop.
    lost(within(pool.query(&Job::Exit(1))).await);
    lost(within(pool.query(&Job::Exit(1))).await);
    lost(within(pool.query(&Job::Exit(1))).await);
    assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::GaveUp);
}

async fn every_crash(transport: AnyTransport) {
    let budget = Budget::every_crash(3, LONG).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let pool = jobs(transport).workers(1).budget(budget).start().await.unwrap();
    let mut events = pool.events();
    for life in 1..=4 {
        within(pool.query(&Job::Pid)).await.unwrap();
        lost(within(pool.query(&Job::Exit(1))).await);
        assert_eq!(crashed(&mut events).await, (Incarnation(life), 1, life < 4));
    }
    assert_eq!(gave_up(&mut events).await, 4);
    assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::GaveUp);
    // A query that would be tried again is not, once nobody is left.
    within(pool.revive()).await.unwrap();
    let retry = QueryOptions::new().retry(Retry::times(2));
    for _ in 0..3 {
        lost(within(pool.query(&Job::Exit(1))).await);
    }
    let failed = error(within(pool.query_with(&Job::Exit(1), retry)).await);
    assert_eq!(failed.kind(), QueryErrorKind::GaveUp);
}

async fn spare_calls(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).budget(Budget::spare_calls(0, LONG)).start().await.unwrap();
    let mut events = pool.events();
    for life in 1..=10 {
        lost(within(pool.query(&Job::Exit(1))).await);
        assert_eq!(crashed(&mut events).await, (Incarnation(life), 1, true));
    }
    within(pool.query(&Job::Pid)).await.unwrap();
    kill(pids(&pool)[0], Kill::KILL);
    assert_eq!(crashed(&mut events).await, (Incarnation(11), 0, false));
    assert_eq!(gave_up(&mut events).await, 1);
    assert_eq!(error(within(pool.query(&Job::Pid)).await).kind(), QueryErrorKind::GaveUp);
}

// --- helpers

/// The next death: which life it ended, how many calls were aboard, and whether another life follows.
async fn crashed(events: &mut broadcast::Receiver<Event>) -> (Incarnation, usize, bool) {
    event(events, |event| match event {
        Event::Crashed { incarnation, load, will_restart, .. } => Some((*incarnation, *load, *will_restart)),
        _ => None,
    })
    .await
}

async fn gave_up(events: &mut broadcast::Receiver<Event>) -> usize {
    event(events, |event| match event {
        Event::GaveUp { crashes, .. } => Some(*crashes),
        _ => None,
    })
    .await
}

/// The file into which workers write what they begin.
struct Log(PathBuf);

/// One line of it.
#[derive(Clone, Copy, Debug)]
struct Run {
    id: u32,
    pid: u32,
    /// By the clock that all processes share.
    at: Duration,
}

impl Log {
    /// Writes a line under this id, then does one job after the other, try by try.
    fn job<const N: usize>(&self, id: u32, jobs: [Job; N]) -> Job {
        Job::Log(self.0.clone(), id, jobs.into())
    }

    fn runs(&self) -> Vec<Run> {
        fn parse(line: &str) -> Option<Run> {
            let mut fields = line.split(' ');
            let (id, pid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Run { id, pid, at: Duration::from_nanos(fields.next()?.parse().ok()?) })
        }
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        // Of a line that is just being written, a part may be there.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{line:?} is torn"))).collect()
    }

    fn runs_of(&self, id: u32) -> Vec<Run> {
        self.runs().into_iter().filter(|run| run.id == id).collect()
    }

    fn runs_by_id(&self) -> BTreeMap<u32, Vec<Run>> {
        let mut runs: BTreeMap<u32, Vec<Run>> = BTreeMap::new();
        for run in self.runs() {
            runs.entry(run.id).or_default().push(run);
        }
        runs
    }
}
