//! One query and what comes of it: values, errors, choice of the worker, cancelling. Rows Q1, Q3, Q5, Q6, Q11, Q12, Q20, Q24.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Codec, ExitCause, HandlerErrorKind, Json, PoolBuilder, Postcard, QueryErrorKind, QueryOptions,
    SlowQuery, TimeoutFrom, TryQueryError,
};

use crate::roles::{ASYNC_JOB, BEGUN, Job, Said, ZOO, Zoo};
use crate::support::{
    Builder, Gate, LIMIT, LONG, Pool, Scratch, contains, crash, error, eventually, jobs, lost, one, over_all, pids,
    pool_of, replaced,
};

pub fn tests() -> Vec<Trial> {
    [
        over_all("query::the_answer_comes_from_another_process", the_answer_comes_from_another_process),
        over_all("query::values_are_equal_in_both_modes_and_codecs", values_are_equal_in_both_modes_and_codecs),
        over_all("query::payloads_of_every_size", payloads_of_every_size),
        over_all("query::too_large_payloads_are_errors_of_their_call", too_large_payloads_are_errors_of_their_call),
        over_all("query::a_handler_error_has_type_message_and_trace", a_handler_error_has_type_message_and_trace),
        over_all("query::a_panic_has_its_location", a_panic_has_its_location),
        over_all("query::an_input_of_another_type_is_a_decode_error", an_input_of_another_type_is_a_decode_error),
        over_all("query::all_workers_answer_once", all_workers_answer_once),
        over_all("query::a_named_worker_answers", a_named_worker_answers),
        over_all("query::try_query_gives_the_input_back", try_query_gives_the_input_back),
        over_all("query::a_query_waits_for_room", a_query_waits_for_room),
        over_all("query::room_is_given_in_turn", room_is_given_in_turn),
        over_all("query::dropped_queries_give_their_place_back", dropped_queries_give_their_place_back),
        over_all("query::notices_come_in_order", notices_come_in_order),
        over_all("query::slow_queries_are_reported", slow_queries_are_reported),
        over_all("query::prints_never_reach_the_wire", prints_never_reach_the_wire),
        over_all("query::the_deadline_travels_along", the_deadline_travels_along),
        over_all("query::a_timeout_costs_nobody_else", a_timeout_costs_nobody_else),
        over_all("query::a_handler_that_yields_keeps_its_worker", a_handler_that_yields_keeps_its_worker),
        over_all("query::a_query_that_waits_times_out_unexecuted", a_query_that_waits_times_out_unexecuted),
        over_all("query::time_may_count_from_the_start", time_may_count_from_the_start),
        over_all("query::dropping_the_future_frees_the_worker", dropping_the_future_frees_the_worker),
        over_all("query::dropping_query_all_frees_every_worker", dropping_query_all_frees_every_worker),
        over_all("query::async_handlers_run_together", async_handlers_run_together),
        over_all("query::long_calls_leave_no_slot_empty", long_calls_leave_no_slot_empty),
        over_all("query::an_async_handler_is_dropped_when_cancelled", an_async_handler_is_dropped_when_cancelled),
        over_all("query::short_queries_pass_a_slow_one", short_queries_pass_a_slow_one),
        one("query::in_process_mode_has_the_same_errors", in_process_mode_has_the_same_errors),
        one("query::in_process_timeouts_are_errors_too", in_process_timeouts_are_errors_too),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn the_answer_comes_from_another_process(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).start().await.unwrap();
    let known = pids(&pool);
    assert_eq!(known.len(), 2);
    for _ in 0..50 {
        let Said::Pid(pid) = pool.query(&Job::Pid).await.unwrap() else { panic!() };
        assert_ne!(pid, std::process::id());
        assert!(known.contains(&pid));
    }
    assert_eq!(pool.name(), "job");
    let info = pool.info();
    assert_eq!((info.workers.active, info.queued, info.load, info.crashes), (2, 0, 0, 0));
    pool.shutdown().await;
}

async fn values_are_equal_in_both_modes_and_codecs(transport: AnyTransport) {
    async fn answers<C: Codec<Zoo>>(builder: PoolBuilder<Zoo, Zoo, C, AnyTransport>) -> Vec<Result<Zoo, String>> {
        let pool = builder.start().await.unwrap();
        let mut answers = Vec::new();
        for zoo in Zoo::variations() {
            answers.push(pool.query(&zoo).await.map_err(|error| error.to_string()));
        }
        answers
    }
    fn same(left: &[Result<Zoo, String>], right: &[Result<Zoo, String>]) {
        assert_eq!(left.len(), right.len());
        for (left, right) in left.iter().zip(right) {
            match (left, right) {
                (Ok(left), Ok(right)) => {
                    let bits = |zoo: &Zoo| (zoo.floats.0.to_bits(), zoo.floats.1.to_bits());
                    assert_eq!(bits(left), bits(right));
                    assert_eq!(Zoo { floats: (0.0, 0.0), ..left.clone() }, Zoo { floats: (0.0, 0.0), ..right.clone() });
                }
                (left, right) => assert_eq!(left.as_ref().err(), right.as_ref().err()),
            }
        }
    }
    let zoo = || pool_of::<Zoo, Zoo>(&ZOO, transport);
    let inputs: Vec<_> = Zoo::variations().into_iter().map(Ok).collect();
    let by_postcard = answers(zoo()).await;
    same(&by_postcard, &inputs);
    same(&answers(zoo().in_process()).await, &by_postcard);
    let by_json = answers(zoo().codec(Json)).await;
    assert!(by_json.iter().filter(|answer| answer.is_ok()).count() >= 6, "{by_json:?}");
    same(&answers(zoo().codec(Json).in_process()).await, &by_json);
}

async fn payloads_of_every_size(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    for size in [0, 1, 15, 16, 100, 4095, 4096, 65_535, 65_536, 65_537, 1 << 20, (32 << 20) + 3] {
        let text: String = (0..size).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        let Said::Text(answer) = pool.query(&Job::Say(text.clone())).await.unwrap() else { panic!() };
        assert!(answer == text, "{size} bytes came back as {}", answer.len());
    }
    // Many large ones at the same time, so that both directions are full.
    let text = |n: u8| char::from(b'a' + n).to_string().repeat(3 << 20);
    let all: Vec<_> = (0..16).map(|n| tokio::spawn(pool.query(&Job::Say(text(n))))).collect();
    for (n, answer) in all.into_iter().enumerate() {
        assert!(answer.await.unwrap().unwrap() == Said::Text(text(n as u8)), "{n}");
    }
}

async fn too_large_payloads_are_errors_of_their_call(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    let before = pids(&pool);
    let too_large = error(pool.query(&Job::Say("x".repeat(65 << 20))).await);
    assert_eq!(too_large.kind(), QueryErrorKind::BadInput);
    assert!(!too_large.maybe_executed());
    contains(too_large.to_string(), "67108864");
    let too_large = error(pool.query(&Job::Make(65 << 20)).await);
    assert_eq!(too_large.kind(), QueryErrorKind::Handler);
    contains(too_large.to_string(), "67108864");
    assert_eq!(pool.query(&Job::Make(3)).await.unwrap(), Said::Text("xxx".into()));
    assert_eq!(pids(&pool), before, "the worker lives on");
}

async fn a_handler_error_has_type_message_and_trace(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    let before = pids(&pool);
    for _ in 0..3 {
        let error = error(pool.query(&Job::Fail("rain".into())).await);
        assert!(error.maybe_executed() && !error.is_retryable());
        assert_eq!(error.tries(), 1);
        let pm::QueryError::Handler(error) = error else { panic!("{error:?}") };
        assert_eq!(error.kind, HandlerErrorKind::Error);
        contains(&error.type_name, "Unhappy");
        assert_eq!(error.message, "unhappy about rain");
        contains(&error.trace, "Unhappy(\"rain\")");
    }
    assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
    assert_eq!(pids(&pool), before, "the worker lives on");
}

async fn a_panic_has_its_location(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    let other = pool_of::<Job, Said>(&ASYNC_JOB, transport).start().await.unwrap();
    for pool in [pool, other] {
        let before = pids(&pool);
        for _ in 0..3 {
            let pm::QueryError::Handler(error) = error(pool.query(&Job::Panic("at the disco".into())).await) else {
                panic!()
            };
            assert_eq!(error.kind, HandlerErrorKind::Panic);
            assert_eq!(error.message, "at the disco");
            contains(&error.trace, "roles.rs:");
        }
        assert_eq!(pool.query(&Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
        assert_eq!(pids(&pool), before, "the worker lives on");
    }
}

async fn an_input_of_another_type_is_a_decode_error(transport: AnyTransport) {
    let pool =
        PoolBuilder::<String, Said, Postcard, _>::role(&crate::roles::JOB, transport, Postcard).start().await.unwrap();
    let failed = error(pool.query(&"~".repeat(100)).await);
    assert!(!failed.maybe_executed(), "{failed:?}");
    let pm::QueryError::Handler(failed) = failed else { panic!("{failed:?}") };
    assert_eq!(failed.kind, HandlerErrorKind::Decode);
    // The input is right and the answer is not what the manager thinks.
    let pool =
        PoolBuilder::<Job, Zoo, Postcard, _>::role(&crate::roles::JOB, transport, Postcard).start().await.unwrap();
    let failed = error(pool.query(&Job::Echo(vec![])).await);
    assert_eq!(failed.kind(), QueryErrorKind::BadAnswer);
    assert!(failed.maybe_executed());
}

async fn all_workers_answer_once(transport: AnyTransport) {
    let pool = jobs(transport).workers(4).start().await.unwrap();
    let answers = pool.query_all(&Job::Pid).await;
    let answered: BTreeSet<_> = answers
        .iter()
        .map(|(worker, answer)| (*worker, answer.clone().unwrap()))
        .map(|(worker, said)| (worker, format!("{said:?}")))
        .collect();
    let expected: BTreeSet<_> =
        pool.workers().iter().map(|worker| (worker.id, format!("{:?}", Said::Pid(worker.pid)))).collect();
    assert_eq!(answered, expected);
    assert_eq!(answered.len(), 4);
}

async fn a_named_worker_answers(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(3)).await;
    for worker in pool.workers() {
        assert_eq!(pool.query_on(worker.id, &Job::Pid).await.unwrap(), Said::Pid(worker.pid));
        assert_eq!(worker.incarnation, pm::Incarnation(1));
    }
    // The busiest one still takes what is meant for it, and the least loaded one is another.
    let busy = pool.workers()[0].clone();
    let query = pool.clone();
    let slow = tokio::spawn(async move { query.query_on(busy.id, &Job::Nap(Duration::from_millis(100))).await });
    begun.wait();
    let chosen = pool.acquire().unwrap();
    assert_ne!(chosen.id, busy.id);
    assert_eq!(chosen.load, 0);
    assert_eq!(pool.workers()[0].load, 1);
    assert_eq!(pool.query_on(busy.id, &Job::Pid).await.unwrap(), Said::Pid(busy.pid));
    assert_eq!(slow.await.unwrap().unwrap(), Said::Text("rested".into()));
    let nobody = error(pool.query_on(pm::WorkerId(99), &Job::Pid).await);
    assert_eq!(nobody.kind(), QueryErrorKind::NoWorkers);
}

async fn try_query_gives_the_input_back(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(1).queue(3)).await;
    let slow = tokio::spawn(pool.query(&Job::Nap(LONG)));
    begun.wait();
    let mut waiting = Vec::new();
    let full = loop {
        let pool = pool.clone();
        let mut attempt = Box::pin(async move { pool.try_query(Job::Echo(vec![42])).await });
        match std::future::poll_fn(|cx| std::task::Poll::Ready(attempt.as_mut().poll(cx))).await {
            std::task::Poll::Ready(answer) => break answer,
            std::task::Poll::Pending => waiting.push(attempt),
        }
        assert!(waiting.len() < 10, "a queue of three took {}", waiting.len());
    };
    let Err(TryQueryError::Full(input)) = full else { panic!("{full:?}") };
    assert_eq!(input, Job::Echo(vec![42]));
    slow.abort();
    for attempt in waiting {
        assert_eq!(attempt.await.unwrap(), Said::Bytes(vec![42]));
    }
    assert_eq!(pool.try_query(Job::Echo(vec![1])).await.unwrap(), Said::Bytes(vec![1]));
}

async fn a_query_waits_for_room(transport: AnyTransport) {
    let pool = jobs(transport).workers(2).queue(1).start().await.unwrap();
    let all: Vec<_> = (0..500_u32).map(|n| pool.query(&Job::Echo(n.to_be_bytes().into()))).map(tokio::spawn).collect();
    for (n, answer) in all.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), Said::Bytes((n as u32).to_be_bytes().into()));
    }
}

/// Whoever waits for room is served in the order in which they came, and those who go meanwhile hold nobody up.
async fn room_is_given_in_turn(transport: AnyTransport) {
    let (said, heard) = mpsc::channel();
    // The test may be over.
    let hook = move |_, text: &str| drop(said.send(text.to_string()));
    let pool = jobs(transport).workers(1).queue(1).on_notice(hook).start().await.unwrap();
    let slow = tokio::spawn(pool.query(&Job::Nap(LONG)));
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), BEGUN);
    let query = |n: u32| Box::pin(pool.query(&Job::Notice(n.to_string())));
    let begun = |n: u32| {
        let mut query = query(n);
        assert!(query.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
        query
    };
    let mut waiting: Vec<_> = (0..30).map(begun).collect();
    assert_eq!(pool.info().queued, 29, "one is behind the slow one");
    drop(waiting.drain(10..20));
    let waiting: Vec<_> = waiting.into_iter().map(tokio::spawn).collect();
    slow.abort();
    // Newcomers do not overtake them.
    let newcomers: Vec<_> = (30..40).map(|n| tokio::spawn(query(n))).collect();
    for query in waiting.into_iter().chain(newcomers) {
        assert_eq!(query.await.unwrap().unwrap(), Said::Done);
    }
    let mut order: Vec<u32> = heard.try_iter().map(|said| said.parse().unwrap()).collect();
    // Which of these came first is for the runtime to say.
    order[20..].sort_unstable();
    assert_eq!(order, (0..10).chain(20..40).collect::<Vec<_>>());
}

/// A queue full of calls that nobody waits for any more is an empty queue.
async fn dropped_queries_give_their_place_back(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(1).queue(2)).await;
    let slow = tokio::spawn(pool.query(&Job::Nap(LONG)));
    begun.wait();
    let fill = || {
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut query = Box::pin(pool.query(&Job::Nap(LONG)));
            assert!(query.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
            waiting.push(query);
        }
        waiting
    };
    let waiting = fill();
    assert_eq!(pool.info().queued, 2, "one behind the slow one, two in the queue");
    drop(waiting);
    let pool_too = pool.clone();
    let mut attempt = Box::pin(async move { pool_too.try_query(Job::Pid).await });
    let taken = attempt.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(taken.is_pending(), "{taken:?}");
    slow.abort();
    assert!(matches!(attempt.await, Ok(Said::Pid(_))));
}

async fn notices_come_in_order(transport: AnyTransport) {
    let (heard, notices) = mpsc::channel();
    let pool = jobs(transport)
        .on_notice(move |worker, text| drop(heard.send((worker, text.to_string()))))
        .start()
        .await
        .unwrap();
    let worker = pool.workers()[0].id;
    for n in 0..100 {
        pool.query(&Job::Notice(format!("{n} ✓"))).await.unwrap();
    }
    // Each was sent before the answer to its call.
    let all: Vec<_> = notices.try_iter().collect();
    let expected: Vec<_> = (0..100).map(|n| (worker, format!("{n} ✓"))).collect();
    assert_eq!(all, expected);
    pool.query(&Job::Notice("é".repeat(50_000))).await.unwrap();
    assert_eq!(notices.recv().unwrap().1.len(), 64 << 10, "cut at 64 KiB");
    let died = lost(pool.query(&Job::Both(Job::Notice("I feel ill".into()).into(), Job::Exit(4).into())).await);
    assert_eq!(died.last_notice.as_deref(), Some("I feel ill"));
    contains(died.to_string(), "I feel ill");
}

async fn slow_queries_are_reported(transport: AnyTransport) {
    let (heard, slow) = mpsc::channel::<SlowQuery>();
    let limit = Duration::from_millis(50);
    let describe = |job: &Job| format!("a {}", format!("{job:?}").split('(').next().unwrap_or_default());
    let pool =
        jobs(transport).describe(describe).on_slow(limit, move |query| drop(heard.send(query))).start().await.unwrap();
    pool.query(&Job::Pid).await.unwrap();
    pool.query(&Job::Sleep(limit)).await.unwrap();
    let report = slow.recv().unwrap();
    assert_eq!(report.input, "a Sleep");
    assert!(report.took >= limit, "{report:?}");
    assert_eq!(report.worker, pool.workers()[0].id);
    let died = lost(pool.query(&Job::Exit(1)).await);
    assert_eq!(died.input, "a Exit", "the same words stand in the error of a lost call");
}

async fn prints_never_reach_the_wire(transport: AnyTransport) {
    let pool = jobs(transport).start().await.unwrap();
    for n in 0..20 {
        let frame = "\0\0\0\u{c}\u{63}\u{80}\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(pool.query(&Job::Print(format!("{n} {frame}"))).await.unwrap(), Said::Done);
    }
    let died = lost(pool.query(&Job::Both(Job::Print("last words".into()).into(), Job::Exit(1).into())).await);
    assert_eq!(died.stderr.matches("last words").count(), 2, "standard output and standard error: {:?}", died.stderr);
}

async fn the_deadline_travels_along(transport: AnyTransport) {
    let pool = jobs(transport).timeout(Duration::from_secs(50)).start().await.unwrap();
    let left = async |options| match pool.query_with(&Job::TimeLeft, options).await.unwrap() {
        Said::Number(left) => left,
        other => panic!("{other:?}"),
    };
    let usual = left(QueryOptions::new()).await;
    assert!((40_000..=50_100).contains(&usual), "{usual}");
    let more = left(QueryOptions::new().timeout(Some(Duration::from_secs(500)))).await;
    assert!((490_000..=500_500).contains(&more), "{more}");
    assert_eq!(left(QueryOptions::new().timeout(None)).await, -1);
}

async fn a_timeout_costs_nobody_else(transport: AnyTransport) {
    let grace = Duration::from_millis(100);
    let (pool, begun) = listening(jobs(transport).workers(2).cancel_grace(grace)).await;
    let mut events = pool.events();
    for stuck in [Job::Spin, Job::Sleep(LONG)] {
        let limit = Duration::from_millis(150);
        let waits = tokio::spawn(pool.query_with(&stuck, QueryOptions::new().timeout(Some(limit))));
        begun.wait();
        let others: Vec<_> = (0..50).map(|_| tokio::spawn(pool.query(&Job::Sleep(Duration::from_millis(1))))).collect();
        let timed_out = error(waits.await.unwrap());
        let pm::QueryError::TimedOut { limit: had, worker: Some(_), tries: 1 } = timed_out else {
            panic!("{timed_out:?}")
        };
        assert_eq!(had, limit);
        contains(timed_out.to_string(), "took too long");
        assert!(timed_out.is_retryable() && timed_out.maybe_executed());
        for other in others {
            assert_eq!(other.await.unwrap().unwrap(), Said::Done);
        }
        assert_eq!(crash(&mut events).await, ExitCause::Stuck { grace });
        replaced(&mut events).await;
        assert_eq!(pids(&pool).len(), 2);
        begun.forget();
    }
    assert_eq!(pool.info().workers.active, 2);
}

async fn a_handler_that_yields_keeps_its_worker(transport: AnyTransport) {
    let pool = jobs(transport).cancel_grace(Duration::from_secs(30)).start().await.unwrap();
    let before = pids(&pool);
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(50)));
    assert_eq!(error(pool.query_with(&Job::Nap(LONG), limit).await).kind(), QueryErrorKind::TimedOut);
    assert!(matches!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(_)));
    assert_eq!(pids(&pool), before);
    assert_eq!(pool.info().crashes, 0);
}

async fn a_query_that_waits_times_out_unexecuted(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(1)).await;
    let slow = tokio::spawn(pool.query(&Job::Nap(LONG)));
    begun.wait();
    // One goes to the worker, to be there when it is free; the others wait in the queue. Only over shared memory is it known of that one that the worker has
    // not begun with it.
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(100)));
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(pool.query_with(&Job::Pid, limit))).collect();
    let mut unsent = 0;
    for query in waiting {
        let timed_out = error(query.await.unwrap());
        assert_eq!(timed_out.kind(), QueryErrorKind::TimedOut);
        if !timed_out.maybe_executed() {
            unsent += 1;
            contains(timed_out.to_string(), "no worker had begun with it");
        }
    }
    assert_eq!(unsent, if matches!(transport, AnyTransport::Shm(_)) { 4 } else { 3 });
    slow.abort();
    assert!(matches!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(_)));
}

async fn time_may_count_from_the_start(transport: AnyTransport) {
    let limit = Duration::from_millis(400);
    let pool = jobs(transport).timeout(limit).timeout_from(TimeoutFrom::Start).start().await.unwrap();
    // Together they take longer than each of them may.
    let naps: Vec<_> = (0..6).map(|_| tokio::spawn(pool.query(&Job::Nap(Duration::from_millis(100))))).collect();
    for nap in naps {
        assert_eq!(nap.await.unwrap().unwrap(), Said::Text("rested".into()));
    }
    assert_eq!(error(pool.query(&Job::Nap(LONG)).await).kind(), QueryErrorKind::TimedOut);
}

async fn dropping_the_future_frees_the_worker(transport: AnyTransport) {
    let grace = Duration::from_millis(100);
    let (pool, begun) = listening(jobs(transport).workers(1).cancel_grace(grace)).await;
    let mut events = pool.events();
    for (job, dies) in [(Job::Nap(LONG), false), (Job::Sleep(LONG), true), (Job::Spin, true)] {
        let before = pids(&pool);
        let query = tokio::spawn(pool.query(&job));
        begun.wait();
        let dropped = Instant::now();
        query.abort();
        assert!(matches!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(_)));
        assert!(dropped.elapsed() < Duration::from_secs(20), "{:?}", dropped.elapsed());
        if dies {
            assert_eq!(crash(&mut events).await, ExitCause::Stuck { grace });
        }
        assert_eq!(pids(&pool) != before, dies, "{job:?}");
    }
    assert_eq!(pool.info().load, 0);
}

async fn dropping_query_all_frees_every_worker(transport: AnyTransport) {
    let (pool, begun) = listening(jobs(transport).workers(3)).await;
    let all = pool.clone();
    let query = tokio::spawn(async move { all.query_all(&Job::Nap(LONG)).await });
    for _ in 0..3 {
        begun.wait();
    }
    query.abort();
    eventually("nobody is busy", || pool.info().load == 0).await;
    assert_eq!(pool.info().crashes, 0);
}

async fn async_handlers_run_together(transport: AnyTransport) {
    let pool = pool_of::<Job, Said>(&ASYNC_JOB, transport).start().await.unwrap();
    let begun = Instant::now();
    let naps: Vec<_> = (0..60).map(|_| tokio::spawn(pool.query(&Job::Sleep(Duration::from_millis(200))))).collect();
    for nap in naps {
        assert_eq!(nap.await.unwrap().unwrap(), Said::Done);
    }
    // One after the other they would take 12 s.
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

/// A worker that can run one more call gets one, however many of those it has go on and on.
async fn long_calls_leave_no_slot_empty(transport: AnyTransport) {
    let (pool, begun) = listening(pool_of::<Job, Said>(&ASYNC_JOB, transport)).await;
    let long: Vec<_> = (0..55).map(|_| tokio::spawn(pool.query(&Job::Sleep(LONG)))).collect();
    long.iter().for_each(|_| begun.wait());
    let short: Vec<_> = (0..200).map(|_| tokio::spawn(pool.query(&Job::Sleep(Duration::from_millis(1))))).collect();
    for query in short {
        assert_eq!(
            tokio::time::timeout(LIMIT, query).await.expect("there are free slots").unwrap().unwrap(),
            Said::Done
        );
    }
    long.iter().for_each(|query| query.abort());
}

async fn an_async_handler_is_dropped_when_cancelled(transport: AnyTransport) {
    let (pool, begun) =
        listening(pool_of::<Job, Said>(&ASYNC_JOB, transport).cancel_grace(Duration::from_secs(30))).await;
    let before = pids(&pool);
    let query = tokio::spawn(pool.query(&Job::Sleep(LONG)));
    begun.wait();
    query.abort();
    eventually("the call has gone", || pool.info().load == 0).await;
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(30)));
    assert_eq!(error(pool.query_with(&Job::Sleep(LONG), limit).await).kind(), QueryErrorKind::TimedOut);
    eventually("the other as well", || pool.info().load == 0).await;
    assert_eq!(pids(&pool), before);
}

/// Row Q10: however long the slow one takes, at most two wait behind it.
async fn short_queries_pass_a_slow_one(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let (pool, begun) = listening(jobs(transport).workers(2)).await;
    for _ in 0..3 {
        let slow = tokio::spawn(pool.query(&gate.wait()));
        begun.wait();
        let done = Arc::new(AtomicUsize::new(0));
        let short: Vec<_> = (0..200)
            .map(|_| {
                let (query, done) = (pool.query(&Job::Sleep(Duration::from_millis(1))), done.clone());
                tokio::spawn(async move {
                    query.await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        eventually("all but two have passed it", || done.load(Ordering::Relaxed) >= 198).await;
        assert!(!slow.is_finished());
        gate.open(1);
        slow.await.unwrap().unwrap();
        for short in short {
            short.await.unwrap();
        }
        begun.forget();
    }
}

async fn in_process_mode_has_the_same_errors() {
    let pool = jobs(AnyTransport::Uds(pm::Uds)).workers(2).in_process().start().await.unwrap();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Pid(std::process::id()));
    let pm::QueryError::Handler(failed) = error(pool.query(&Job::Fail("rain".into())).await) else { panic!() };
    assert_eq!((failed.kind, failed.message.as_str()), (HandlerErrorKind::Error, "unhappy about rain"));
    let pm::QueryError::Handler(failed) = error(pool.query(&Job::Panic("at the disco".into())).await) else { panic!() };
    assert_eq!((failed.kind, failed.message.as_str()), (HandlerErrorKind::Panic, "at the disco"));
    contains(&failed.trace, "roles.rs:");
    assert_eq!(pool.query_all(&Job::Pid).await.len(), 2);
    pool.scale(3).await.unwrap();
    assert_eq!(pool.workers().len(), 3);
    pool.respawn().await.unwrap();
    let all: Vec<_> = (0..300_u32).map(|n| tokio::spawn(pool.query(&Job::Echo(n.to_be_bytes().into())))).collect();
    for (n, answer) in all.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), Said::Bytes((n as u32).to_be_bytes().into()));
    }
    pool.unspawn().await.unwrap();
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::NoWorkers);
    pool.shutdown().await;
    assert_eq!(error(pool.query(&Job::Pid).await).kind(), QueryErrorKind::ShuttingDown);
}

async fn in_process_timeouts_are_errors_too() {
    let uds = AnyTransport::Uds(pm::Uds);
    let builder = jobs(uds).in_process().timeout(Duration::from_millis(50)).cancel_grace(Duration::from_millis(50));
    let pool = builder.start().await.unwrap();
    let mut events = pool.events();
    assert_eq!(error(pool.query(&Job::Nap(LONG)).await).kind(), QueryErrorKind::TimedOut);
    assert_eq!(error(pool.query(&Job::Sleep(Duration::from_secs(2))).await).kind(), QueryErrorKind::TimedOut);
    // The thread cannot be killed; another takes its place.
    assert!(matches!(crash(&mut events).await, ExitCause::Stuck { .. }));
    let longer = QueryOptions::new().timeout(Some(LONG));
    assert_eq!(pool.query_with(&Job::Echo(vec![1]), longer).await.unwrap(), Said::Bytes(vec![1]));
}

/// Starts a pool, with what its workers say when they begin something long.
pub async fn listening(builder: Builder) -> (Pool, Begun) {
    let (heard, begun) = mpsc::channel();
    let hook = move |_, text: &str| {
        if text == BEGUN {
            // The test may be over.
            let _ = heard.send(());
        }
    };
    (builder.on_notice(hook).start().await.unwrap(), Begun(begun))
}

/// Tells of jobs that have begun.
pub struct Begun(mpsc::Receiver<()>);

impl Begun {
    /// Waits for the next one. The runtime has another thread to go on with.
    #[track_caller]
    pub fn wait(&self) {
        self.0.recv_timeout(LIMIT).expect("a job begins");
    }

    /// Forgets those that have begun.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }
}
