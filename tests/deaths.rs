//! Workers that die, hang or do not come up, at every moment of their lives. Rows Q5, Q7, Q8, Q9; faults 1, 2, 4 to 6.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Event, ExitCause, ExitStatus, Incarnation, QueryErrorKind, QueryOptions, Retry, Signal,
    StartError,
};

use crate::query::listening;
use crate::roles::{EARLY, Job, Said};
use crate::support::{
    LONG, MARK, Scratch, calls_wait, contains, crash, descriptors, error, event, eventually, gone_within, jobs, keeper,
    kill, lost, mark, marked, over_all, over_all_alone, pids, replaced, resident, state, zombies,
};

use rustix::process::Signal as Kill;

/// Many deaths, and no long waits between them.
const PATIENT: Budget =
    Budget::crash_loops(1_000_000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));

pub fn tests() -> Vec<Trial> {
    [
        over_all("deaths::before_ready_the_start_says_why", before_ready_the_start_says_why),
        over_all("deaths::before_ready_of_a_replacement", before_ready_of_a_replacement),
        over_all("deaths::a_program_that_never_says_ready", a_program_that_never_says_ready),
        over_all("deaths::a_program_that_prints_is_shown", a_program_that_prints_is_shown),
        over_all("deaths::idle", idle),
        over_all("deaths::mid_query_by_its_own_hand", mid_query_by_its_own_hand),
        over_all("deaths::mid_query_by_a_stranger", mid_query_by_a_stranger),
        over_all("deaths::mid_frame", mid_frame),
        over_all("deaths::while_draining", while_draining),
        over_all("deaths::calls_that_had_not_started_go_elsewhere", calls_that_had_not_started_go_elsewhere),
        over_all_alone("deaths::the_last_words_are_in_the_error", the_last_words_are_in_the_error),
        over_all("deaths::stopped_workers_are_reported_and_killed", stopped_workers_are_reported_and_killed),
        over_all("deaths::closed_descriptors_are_a_lost_link", closed_descriptors_are_a_lost_link),
        over_all(
            "deaths::a_grandchild_that_keeps_the_link_delays_nothing",
            a_grandchild_that_keeps_the_link_delays_nothing,
        ),
        over_all("deaths::a_grandchild_does_not_outlive_a_drain", a_grandchild_does_not_outlive_a_drain),
        over_all("deaths::ignored_sigterm_ends_at_the_grace", ignored_sigterm_ends_at_the_grace),
        over_all("deaths::poison", poison),
        over_all("deaths::the_budget_is_spent", the_budget_is_spent),
        over_all("deaths::ordered_kills_cost_no_budget", ordered_kills_cost_no_budget),
        over_all("deaths::chaos", chaos),
        over_all_alone("deaths::two_hundred_kills", two_hundred_kills),
        over_all_alone("deaths::one_percent_segfaults", one_percent_segfaults),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn before_ready_the_start_says_why(transport: AnyTransport) {
    let faults: [(&str, fn(ExitStatus) -> bool); 4] = [
        ("exit", |status| status == ExitStatus::Code(7)),
        ("abort", |status| status.signal() == Some(Signal::ABRT)),
        ("segv", |status| status.signal() == Some(Signal::SEGV)),
        ("kill", |status| status.signal() == Some(Signal::KILL)),
    ];
    for (fault, fits) in faults {
        let mark = mark();
        let failed =
            jobs(transport).workers(2).spec(|spec| spec.env(EARLY, fault).env(MARK, &mark)).start().await.unwrap_err();
        let StartError::Died { cause: ExitCause::Exited(status), .. } = &failed else { panic!("{fault}: {failed:?}") };
        assert!(fits(*status), "{fault}: {status}");
        contains(failed.to_string(), "pm pool");
        eventually("nothing is left of a pool that did not start", || marked(&mark).is_empty()).await;
    }
    let failed = jobs(transport).spec(|spec| spec.env(EARLY, "complain")).start().await.unwrap_err();
    contains(failed.to_string(), "cannot find the configuration");
}

/// The worker that serves goes on serving while its neighbour dies again and again before READY.
async fn before_ready_of_a_replacement(transport: AnyTransport) {
    for fault in ["exit", "abort", "segv", "kill"] {
        let scratch = Scratch::new();
        let tokens: Vec<_> = (0..3).map(|n| scratch.path(format!("{n}"))).collect();
        for token in &tokens {
            std::fs::write(token, "").unwrap();
        }
        // The first workers find all tokens taken; those that come after a token was removed die of it.
        let early = format!("{fault}@{}", tokens[0].display());
        let pool =
            jobs(transport).workers(2).budget(PATIENT).spec(|spec| spec.env(EARLY, early)).start().await.unwrap();
        let mut events = pool.events();
        let victim = pool.workers()[0].clone();
        std::fs::remove_file(&tokens[0]).unwrap();
        kill(victim.pid, Kill::KILL);
        assert_eq!(crash(&mut events).await, ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false }));
        let before_ready = crash(&mut events).await;
        assert!(matches!(before_ready, ExitCause::Exited(_)), "{before_ready:?}");
        for _ in 0..50 {
            pool.query(&Job::Pid).await.unwrap();
        }
        let third = event(&mut events, |event| match event {
            Event::Replaced { worker, incarnation, .. } => Some((*worker, *incarnation)),
            _ => None,
        });
        assert_eq!(third.await, (victim.id, Incarnation(3)));
        assert_eq!(pids(&pool).len(), 2);
        assert_eq!(pool.info().crashes, 2);
    }
}

async fn a_program_that_never_says_ready(transport: AnyTransport) {
    let mark = mark();
    let limit = Duration::from_millis(300);
    for fault in ["hang", "spin"] {
        let builder = jobs(transport).spec(|spec| spec.env(EARLY, fault).env(MARK, &mark).start_timeout(limit));
        let failed = builder.start().await.unwrap_err();
        let StartError::Died { cause, .. } = &failed else { panic!("{failed:?}") };
        assert_eq!(*cause, ExitCause::StartTimeout { limit });
        contains(failed.to_string(), "READY within 300ms");
        contains(failed.to_string(), "pm pool -- PROGRAM {}");
        contains(failed.to_string(), "--as filter");
        eventually("it was killed", || marked(&mark).is_empty()).await;
    }
}

async fn a_program_that_prints_is_shown(transport: AnyTransport) {
    let builder = jobs(transport).spec(|spec| spec.env(EARLY, "print").start_timeout(Duration::from_secs(3)));
    let failed = builder.start().await.unwrap_err();
    match (transport.to_string().as_str(), &failed) {
        ("stdio", StartError::Handshake { mismatch, .. }) => {
            let pm_core::machine::handshake::Mismatch::NotReady { first, .. } = mismatch else {
                panic!("{mismatch:?}")
            };
            assert_eq!(first.len(), 200, "{first}");
            contains(first, "Loading the model, please wait. Loading");
        }
        // Its prints never were on the wire.
        ("uds" | "shm", StartError::Died { cause: ExitCause::StartTimeout { .. }, stderr }) => {
            contains(stderr, "Loading the model")
        }
        (_, failed) => panic!("{failed:?}"),
    }
    contains(failed.to_string(), "pm pool -- PROGRAM {}");
}

async fn idle(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).budget(PATIENT).start().await.unwrap();
    let mut events = pool.events();
    for (signal, number) in [(Kill::KILL, 9), (Kill::SEGV, 11), (Kill::ABORT, 6), (Kill::TERM, 15)] {
        let victim = pool.workers()[0].clone();
        // Rust's handler for stack overflows swallows the first signal that no instruction raised.
        for _ in 0..if number == 11 { 2 } else { 1 } {
            kill(victim.pid, signal);
        }
        if number == 11 {
            eventually("it dies of the second one", || {
                kill(victim.pid, signal);
                state(victim.pid).is_none_or(|(state, _)| state == 'Z')
            })
            .await;
        }
        let (cause, load, restarts) = event(&mut events, |event| match event {
            Event::Crashed { pid: Some(pid), cause, load, will_restart, .. } if *pid == victim.pid => {
                Some((cause.clone(), *load, *will_restart))
            }
            _ => None,
        })
        .await;
        let ExitCause::Exited(status) = cause else { panic!("{cause:?}") };
        assert_eq!((status.signal(), load, restarts), (Some(Signal(number)), 0, true));
        let now = replaced(&mut events).await;
        assert_ne!(now, victim.pid);
        let worker = pool.workers().into_iter().find(|worker| worker.id == victim.id).unwrap();
        assert_eq!(worker.incarnation.0, victim.incarnation.0 + 1);
        for _ in 0..10 {
            pool.query(&Job::Pid).await.unwrap();
        }
    }
    assert_eq!(pool.info().crashes, 4);
    assert!(pool.info().last_crash.is_some());
    eventually("no zombie is left", || zombies().is_empty()).await;
}

async fn mid_query_by_its_own_hand(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).budget(PATIENT).describe(|job| format!("{job:?}")).start().await.unwrap();
    let mut events = pool.events();
    let faults: [(Job, fn(ExitStatus) -> bool); 6] = [
        (Job::Segv, |status| status.signal() == Some(Signal::SEGV)),
        (Job::Abort, |status| status.signal() == Some(Signal::ABRT)),
        (Job::Exit(0), |status| status == ExitStatus::Code(0)),
        (Job::Exit(7), |status| status == ExitStatus::Code(7)),
        (Job::Signal(9), |status| status.signal() == Some(Signal::KILL)),
        (Job::Signal(15), |status| status.signal() == Some(Signal::TERM)),
    ];
    for (job, fits) in faults {
        pool.query(&Job::Pid).await.unwrap();
        let failed = error(pool.query(&job).await);
        assert!(failed.maybe_executed() && failed.is_retryable());
        let pm::QueryError::WorkerLost(lost) = failed else { panic!("{job:?}: {failed:?}") };
        assert!(matches!(lost.cause, ExitCause::Exited(status) if fits(status)), "{job:?}: {:?}", lost.cause);
        assert_eq!((lost.input.as_str(), lost.tries), (format!("{job:?}").as_str(), 1));
        let (cause, load) = event(&mut events, |event| match event {
            Event::Crashed { pid, cause, load, .. } if *pid == Some(lost.pid) => Some((cause.clone(), *load)),
            _ => None,
        })
        .await;
        assert_eq!((cause, load), (lost.cause, 1));
        replaced(&mut events).await;
    }
    assert_eq!(pids(&pool).len(), 2);
}

async fn mid_query_by_a_stranger(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(1).budget(PATIENT)).await;
    for job in [Job::Sleep(LONG), Job::Spin, Job::Nap(LONG)] {
        for signal in [Kill::KILL, Kill::TERM] {
            let query = tokio::spawn(pool.query(&job));
            begun.wait();
            let pid = pids(&pool)[0];
            kill(pid, signal);
            let died = lost(query.await.unwrap());
            assert_eq!(died.pid, pid);
            let number = signal.as_raw();
            assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Signal { signal: number, core: false }));
            assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
        }
    }
}

/// The worker is killed while its answer, which fills the link many times over, is on its way.
async fn mid_frame(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).budget(PATIENT).start().await.unwrap();
    let mut cut = 0;
    let size = 40 << 20;
    let begun = Instant::now();
    pool.query(&Job::Make(size)).await.unwrap();
    let whole = begun.elapsed();
    for round in 0..16 {
        let pid = pids(&pool)[0];
        let query = tokio::spawn(pool.query(&Job::Make(size)));
        // The moment of the fault: somewhere in the time that the whole takes.
        tokio::time::sleep(whole * round / 16).await;
        kill(pid, Kill::KILL);
        match query.await.unwrap() {
            Ok(Said::Text(text)) => assert_eq!(text.len(), size),
            other => {
                let died = lost(other);
                assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false }));
                cut += 1;
            }
        }
        assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
    }
    assert!(cut > 0, "no answer was cut");
}

async fn while_draining(transport: AnyTransport) {
    let faults: [(Kill, i32); 2] = [(Kill::KILL, 9), (Kill::TERM, 15)];
    for (signal, number) in faults {
        let (pool, begun) = listening(jobs(transport).workers(1)).await;
        let mut events = pool.events();
        let query = tokio::spawn(pool.query(&Job::Sleep(LONG)));
        begun.wait();
        let pid = pids(&pool)[0];
        let drained = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.unspawn().await })
        };
        event(&mut events, |event| matches!(event, Event::Draining { .. }).then_some(())).await;
        kill(pid, signal);
        let died = lost(query.await.unwrap());
        assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Signal { signal: number, core: false }));
        drained.await.unwrap().unwrap();
        assert_eq!(pool.workers(), []);
        assert_eq!(pool.info().workers.releasing, 0);
        gone_within(pid, Duration::from_secs(1));
    }
    // A worker that fails after its last answer takes nothing with it.
    for job in [Job::Exit(3), Job::Segv, Job::Abort] {
        let pool = jobs(transport).workers(2).start().await.unwrap();
        let dying = tokio::spawn(pool.query(&job));
        pool.respawn().await.unwrap();
        lost(dying.await.unwrap());
        assert_eq!(pids(&pool).len(), 2);
        pool.shutdown().await;
    }
}

async fn calls_that_had_not_started_go_elsewhere(transport: AnyTransport) {
    let scratch = Scratch::new();
    let file = scratch.path("count");
    let (pool, begun) = listening(jobs(transport).workers(1).budget(PATIENT)).await;
    let mut died = 0;
    for _ in 0..20 {
        let slow = tokio::spawn(pool.query(&Job::Sleep(LONG)));
        begun.wait();
        let job = Job::Count(file.clone(), Job::Pid.into());
        let behind: Vec<_> = (0..20).map(|_| tokio::spawn(pool.query(&job))).collect();
        calls_wait(&pool, 21).await;
        kill(pids(&pool)[0], Kill::KILL);
        lost(slow.await.unwrap());
        died += 1;
        for query in behind {
            assert!(matches!(query.await.unwrap(), Ok(Said::Pid(_))));
        }
    }
    let runs = std::fs::read_to_string(&file).unwrap().lines().count();
    assert_eq!(runs, died * 20, "each ran once");
}

async fn the_last_words_are_in_the_error(transport: AnyTransport) {
    let pool = jobs(transport).budget(PATIENT).start().await.unwrap();
    let before = resident(std::process::id());
    let died = lost(pool.query(&Job::Flood(20 << 20)).await);
    assert_eq!(died.cause, ExitCause::Exited(ExitStatus::Code(3)));
    assert!(died.stderr.ends_with("the last words\n"), "{:?}", died.stderr);
    assert_eq!(died.stderr.len(), 4096);
    let after = resident(std::process::id());
    assert!(after < before + (16 << 20), "{before} bytes were resident before, {after} after");
}

async fn stopped_workers_are_reported_and_killed(transport: AnyTransport) {
    let grace = Duration::from_millis(200);
    let (pool, begun) = listening(jobs(transport).workers(2).cancel_grace(grace)).await;
    let mut events = pool.events();
    let limit = QueryOptions::new().timeout(Some(Duration::from_secs(3)));
    let query = tokio::spawn(pool.query_with(&Job::Nap(LONG), limit));
    begun.wait();
    let busy = pool.workers().into_iter().find(|worker| worker.load == 1).unwrap();
    kill(busy.pid, Kill::STOP);
    let stopped = event(&mut events, |event| match event {
        Event::Stopped { worker, pid } => Some((*worker, *pid)),
        _ => None,
    });
    assert_eq!(stopped.await, (busy.id, busy.pid));
    for _ in 0..20 {
        pool.query(&Job::Echo(vec![1])).await.unwrap();
    }
    assert_eq!(error(query.await.unwrap()).kind(), QueryErrorKind::TimedOut);
    assert_eq!(crash(&mut events).await, ExitCause::Stuck { grace });
    replaced(&mut events).await;
    gone_within(busy.pid, Duration::from_secs(1));
    // One that is continued has lost nothing.
    let worker = pool.workers()[0].clone();
    kill(worker.pid, Kill::STOP);
    event(&mut events, |event| matches!(event, Event::Stopped { .. }).then_some(())).await;
    let query = {
        let pool = pool.clone();
        tokio::spawn(async move { pool.query_on(worker.id, &Job::Pid).await })
    };
    eventually("it is aboard", || pool.info().load == 1).await;
    kill(worker.pid, Kill::CONT);
    assert_eq!(query.await.unwrap().unwrap(), Said::Pid(worker.pid));
    // A stopped one does not hold up the end either.
    kill(worker.pid, Kill::STOP);
    drop(pool);
    gone_within(worker.pid, Duration::from_secs(10));
}

async fn closed_descriptors_are_a_lost_link(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).budget(PATIENT).start().await.unwrap();
    let mut events = pool.events();
    let died = lost(pool.query(&Job::CloseDescriptors).await);
    // The worker's own runtime may notice first, and ends the process as it does where the manager is gone.
    let ended = ExitCause::Exited(ExitStatus::Code(0));
    assert!(died.cause == ended || matches!(died.cause, ExitCause::LinkLost { .. }), "{:?}", died.cause);
    gone_within(died.pid, Duration::from_secs(1));
    replaced(&mut events).await;
    assert_eq!(pids(&pool).len(), 2);
}

async fn a_grandchild_that_keeps_the_link_delays_nothing(transport: AnyTransport) {
    let pool = jobs(transport).workers(1).budget(PATIENT).start().await.unwrap();
    for heir in [Job::Heir, Job::Stray] {
        for death in [Job::Exit(0), Job::Segv, Job::Signal(9)] {
            let Said::Pid(heir) = pool.query(&heir).await.unwrap() else { panic!() };
            assert!(state(heir).is_some());
            let begun = Instant::now();
            lost(pool.query(&death).await);
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            // The next incarnation starts when nothing of this one is left.
            assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
            gone_within(heir, Duration::ZERO);
        }
    }
}

async fn a_grandchild_does_not_outlive_a_drain(transport: AnyTransport) {
    for heir in [Job::Heir, Job::Stray] {
        let pool = jobs(transport).workers(1).start().await.unwrap();
        let Said::Pid(heir) = pool.query(&heir).await.unwrap() else { panic!() };
        let begun = Instant::now();
        pool.shutdown().await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        gone_within(heir, Duration::ZERO);
    }
}

async fn ignored_sigterm_ends_at_the_grace(transport: AnyTransport) {
    let grace = Duration::from_millis(200);
    let mark = mark();
    let (pool, begun) =
        listening(jobs(transport).workers(1).spec(|spec| spec.stop_grace(grace).env(MARK, &mark))).await;
    let stubborn = Job::Both(Job::IgnoreTerm.into(), Job::Sleep(LONG).into());
    let query = tokio::spawn(pool.query(&stubborn));
    begun.wait();
    assert_eq!(marked(&mark).len(), 1);
    pool.shutdown_within(Some(Duration::from_millis(300))).await;
    assert!(marked(&mark).is_empty());
    let failed = query.await.unwrap();
    let died = lost(failed);
    assert_eq!(died.cause, ExitCause::Requested);
}

async fn poison(transport: AnyTransport) {
    let scratch = Scratch::new();
    let file = scratch.path("count");
    let pool = jobs(transport).workers(2).retry(Retry::times(10)).describe(|_| "it".into()).start().await.unwrap();
    pool.query(&Job::Pid).await.unwrap();
    let mut events = pool.events();
    let poisoned = error(pool.query(&Job::Count(file.clone(), Job::Segv.into())).await);
    assert_eq!((poisoned.kind(), poisoned.tries()), (QueryErrorKind::Poisoned, 3));
    assert!(!poisoned.is_retryable() && poisoned.maybe_executed());
    contains(poisoned.to_string(), "3 workers died");
    contains(poisoned.to_string(), "SIGSEGV");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
    let summary = event(&mut events, |event| match event {
        Event::Poisoned { input } => Some(input.clone()),
        _ => None,
    });
    assert_eq!(summary.await, "it");
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
}

async fn the_budget_is_spent(transport: AnyTransport) {
    let mark = mark();
    let budget = Budget::crash_loops(3, LONG).backoff(Duration::from_millis(5), Duration::from_millis(20));
    let pool = jobs(transport).workers(1).budget(budget).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap();
    let mut events = pool.events();
    let begun = Instant::now();
    let mut lost_calls = 0;
    let gave_up = loop {
        match error(pool.query(&Job::Both(Job::Print("alas".into()).into(), Job::Exit(5).into())).await) {
            pm::QueryError::WorkerLost(_) => lost_calls += 1,
            other => break other,
        }
    };
    let pm::QueryError::GaveUp { cause, stderr, .. } = &gave_up else { panic!("{gave_up:?}") };
    assert_eq!(*cause, ExitCause::Exited(ExitStatus::Code(5)));
    contains(stderr, "alas");
    assert_eq!(lost_calls, 4, "the fourth death is one too many");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let crashes = event(&mut events, |event| match event {
        Event::GaveUp { crashes, .. } => Some(*crashes),
        _ => None,
    });
    assert_eq!(crashes.await, 4);
    assert!(marked(&mark).is_empty());
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::GaveUp);
    pool.revive().await.unwrap();
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
    assert_eq!(pids(&pool).len(), 1);
}

async fn ordered_kills_cost_no_budget(transport: AnyTransport) {
    let budget = Budget::every_crash(0, LONG);
    let grace = Duration::from_millis(10);
    let pool = jobs(transport).workers(2).budget(budget).cancel_grace(grace).start().await.unwrap();
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(20)));
    for _ in 0..10 {
        assert_eq!(error(pool.query_with(&Job::Sleep(LONG), limit).await).kind(), QueryErrorKind::TimedOut);
    }
    for n in 0..10 {
        pool.chaos(n);
        pool.query(&Job::Pid).await.ok();
    }
    pool.respawn().await.unwrap();
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
    let both = pids(&pool);
    assert_eq!(both.len(), 2);
    both.into_iter().for_each(|pid| kill(pid, Kill::KILL));
    eventually("this death counts", || pool.info().workers.active == 0 || pids(&pool).is_empty()).await;
    let mut failed = pool.query(&Job::Pid).await;
    while let Err(pm::QueryError::WorkerLost(_)) = failed {
        failed = pool.query(&Job::Pid).await;
    }
    assert_eq!(error(failed).kind(), QueryErrorKind::GaveUp);
}

async fn chaos(transport: AnyTransport) {
    let pool = jobs(transport).workers(3).retry(Retry::times(20)).start().await.unwrap();
    let mut events = pool.events();
    let all: Vec<_> = (0..2000_u32).map(|n| tokio::spawn(pool.query(&Job::Echo(n.to_be_bytes().into())))).collect();
    for n in 0..20 {
        eventually("somebody to kill", || !pids(&pool).is_empty()).await;
        pool.chaos(n);
        assert_eq!(crash(&mut events).await, ExitCause::Chaos);
    }
    for (n, answer) in all.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), Said::Bytes((n as u32).to_be_bytes().into()));
    }
    eventually("the pool is back to size", || pids(&pool).len() == 3).await;
}

/// 200 kills from outside during 20,000 queries.
async fn two_hundred_kills(transport: AnyTransport) {
    const QUERIES: usize = 20_000;
    const KILLS: usize = 200;
    let workers = 4;
    let pool = jobs(transport).workers(workers).budget(PATIENT).start().await.unwrap();
    // Everything that lasts is there now: the keeper, its thread, the runtime's own descriptors.
    for _ in 0..100 {
        pool.query(&Job::Pid).await.unwrap();
    }
    let keeper = keeper().unwrap();
    let before = (descriptors(std::process::id()), descriptors(keeper));
    let killer = {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut events = pool.events();
            for n in 0..KILLS {
                eventually("somebody to kill", || !pids(&pool).is_empty()).await;
                let all = pids(&pool);
                let pid = all[n % all.len()];
                kill(pid, Kill::KILL);
                event(&mut events, |event| {
                    matches!(event, Event::Crashed { pid: Some(dead), .. } if *dead == pid).then_some(())
                })
                .await;
            }
        })
    };
    let askers: Vec<_> = (0..64)
        .map(|_| {
            let pool = pool.clone();
            let killer = killer.abort_handle();
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                // At least the 20,000, and on until the last kill.
                while outcomes.len() < QUERIES / 64 + 1 || !killer.is_finished() {
                    outcomes.push(pool.query(&Job::Pid).await);
                }
                outcomes
            })
        })
        .collect();
    let mut answers: HashMap<u32, usize> = HashMap::new();
    let (mut total, mut died) = (0, 0);
    for asker in askers {
        for outcome in asker.await.unwrap() {
            total += 1;
            match outcome {
                Ok(Said::Pid(pid)) => *answers.entry(pid).or_default() += 1,
                Err(pm::QueryError::WorkerLost(lost)) => {
                    assert_eq!(lost.cause, ExitCause::Exited(ExitStatus::Signal { signal: 9, core: false }));
                    died += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    killer.await.unwrap();
    assert!(total >= QUERIES, "{total}");
    assert!(!answers.contains_key(&std::process::id()));
    assert!(died <= KILLS, "{died} calls were lost, one of each worker at most");
    eventually("the pool is back to size", || pids(&pool).len() == workers as usize).await;
    assert_eq!(pool.info().crashes, KILLS as u64);
    assert_eq!((pool.info().load, pool.info().queued), (0, 0));
    eventually("no zombie is left", || zombies().is_empty()).await;
    eventually("no descriptor is leaked", || {
        let now = (descriptors(std::process::id()), descriptors(keeper));
        now.0 <= before.0 && now.1 <= before.1
    })
    .await;
}

/// 1 % of 100,000 jobs segfault; a tenth of that here, all of it in the soak (PM_SOAK=1).
async fn one_percent_segfaults(transport: AnyTransport) {
    let jobs_count: usize = if std::env::var_os("PM_SOAK").is_some() { 100_000 } else { 10_000 };
    let scratch = Scratch::new();
    let pool = jobs(transport).workers(4).start().await.unwrap();
    let mut events = pool.events();
    let watcher = tokio::spawn(async move {
        let mut crashes = 0;
        while let Ok(event) = events.recv().await {
            assert!(!matches!(event, Event::GaveUp { .. }), "{event:?}");
            crashes += usize::from(matches!(event, Event::Crashed { .. }));
        }
        crashes
    });
    let askers: Vec<_> = (0..100)
        .map(|asker| {
            let pool = pool.clone();
            let file = scratch.path(format!("{asker}"));
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                for n in (asker..jobs_count).step_by(100) {
                    // Each asker has one bad job in a hundred.
                    let bad = (n / 100) % 100 == asker;
                    let job = if bad {
                        Job::Count(file.clone(), Job::Segv.into())
                    } else {
                        Job::Echo(n.to_be_bytes().into())
                    };
                    outcomes.push((n, bad, pool.query(&job).await));
                }
                (file, outcomes)
            })
        })
        .collect();
    let mut bad_jobs = 0;
    for asker in askers {
        let (file, outcomes) = asker.await.unwrap();
        let mut bad_here = 0;
        for (n, bad, outcome) in outcomes {
            match (bad, outcome) {
                (false, Ok(Said::Bytes(bytes))) => assert_eq!(bytes, n.to_be_bytes()),
                (true, Err(pm::QueryError::WorkerLost(lost))) => {
                    assert!(
                        matches!(lost.cause, ExitCause::Exited(status) if status.signal() == Some(Signal::SEGV)),
                        "{lost}"
                    );
                    bad_here += 1;
                }
                (_, other) => panic!("job {n}, bad: {bad}: {other:?}"),
            }
        }
        let runs = std::fs::read_to_string(file).map_or(0, |text| text.lines().count());
        assert_eq!(runs, bad_here, "each ran once");
        bad_jobs += bad_here;
    }
    assert_eq!(bad_jobs, jobs_count / 100);
    eventually("the pool is back to size", || pids(&pool).len() == 4).await;
    assert_eq!(pool.info().crashes, bad_jobs as u64);
    pool.shutdown().await;
    drop(pool);
    assert_eq!(watcher.await.unwrap(), bad_jobs);
    eventually("no zombie is left", || zombies().is_empty()).await;
}
