//! Workers that break the protocol in every way that its page names. Rows T3, T4, T9, T10; faults 14 to 16.
//!
//! Scripts are handed out by token: a pool's processes take one token each, and those that find none left are honest. So exactly as many
//! misbehave as a test wants.

mod script;
mod streams;

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Event, ExitCause, ExitStatus, PoolBuilder, Postcard, QueryErrorKind, QueryOptions, StartError,
};
use pm_core::machine::frame::{MAX_NOTICE, MAX_PAYLOAD};
use pm_core::machine::handshake::Mismatch;

use crate::roles::{Job, Said};
use crate::support::{
    ALL, Builder, LONG, MARK, Pool, Scratch, contains, crash, error, eventually, lost, mark, marked, over_all,
    over_all_alone, pids, replaced, resident, run, this_program,
};

pub use script::helper;
use script::{Content, Of, SCRIPT, Sent, Step, TOKENS, done, frame, none, raw, ready, text};

const PATIENT: Budget =
    Budget::crash_loops(1_000_000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));

/// What a row of the table expects of the manager, once the worker has one call and has done its worst.
#[derive(Clone, Copy)]
enum Expect {
    /// The worker is replaced for this violation.
    Violation(&'static str),
    /// It has lost its link, or ended by itself.
    Lost,
    /// Nothing happens to it, and its call is answered.
    Lives,
    /// The same, and what it sent meant nothing.
    Drops,
    /// Its caller gets an error of this sort, and it lives.
    Fails(QueryErrorKind),
}

/// What a worker may do when it has its first call, and what comes of it.
fn rows() -> Vec<(&'static str, Vec<Step>, Expect)> {
    use Expect::{Drops, Fails, Lives, Lost, Violation};
    let call = Of::Call(0);
    let length = |length: u32| raw(&[&length.to_be_bytes()[..], &[17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]].concat());
    let too_long = (MAX_PAYLOAD + 12 + 1) as u32;
    let late = |kind, flags, content: fn() -> Content| {
        vec![frame(17, 0, call, done()), frame(kind, flags, call, content()), Step::Serve]
    };
    let nested = || Content::Fill(b'[', 100_000);
    let err = |content| vec![frame(18, 0, call, content), Step::Sleep];
    let from_manager = |kind| vec![frame(kind, 0, call, none()), Step::Sleep];
    vec![
        ("length_0", vec![length(0), Step::Sleep], Violation("length 0")),
        ("length_11", vec![length(11), Step::Sleep], Violation("length 11")),
        ("length_max_plus_1", vec![length(too_long), Step::Sleep], Violation("67108877")),
        ("length_2_32_minus_1", vec![length(u32::MAX), Step::Sleep], Violation("4294967295")),
        ("critical_unknown_kind", vec![frame(99, 0x80, call, text("x")), Step::Sleep], Violation("unknown kind 99")),
        (
            "unknown_kind",
            vec![frame(99, 0, call, text("x")), frame(255, 0x7f, Of::Number(77), none()), Step::Serve],
            Drops,
        ),
        (
            "credit_for_a_query",
            vec![frame(8, 0, call, Content::Fill(0, 8)), Step::Sleep],
            Violation("Credit for a query"),
        ),
        ("message_for_a_query", vec![frame(33, 0, call, text("x")), Step::Sleep], Violation("Data for a query")),
        ("end_of_a_query", vec![frame(34, 0, call, none()), Step::Sleep], Violation("Fin for a query")),
        ("open_from_the_worker", from_manager(32), Violation("Open")),
        ("id_never_issued", vec![frame(17, 0, Of::Number(12_345_678), done()), Step::Sleep], Violation("never made")),
        (
            "id_of_a_slot_never_issued",
            vec![frame(17, 0, Of::Number(1 << 20), done()), Step::Sleep],
            Violation("never made"),
        ),
        ("id_0", vec![frame(17, 0, Of::Number(0), done()), Step::Sleep], Violation("never made")),
        ("id_beyond_53_bits", vec![frame(17, 0, Of::Number(1 << 53), done()), Step::Sleep], Violation("2^53")),
        ("id_all_ones", vec![frame(18, 0, Of::Number(u64::MAX), none()), Step::Sleep], Violation("2^53")),
        ("duplicate_answer", late(17, 0, done), Drops),
        ("duplicate_error", late(18, 0, || text("{}")), Drops),
        ("late_not_started", late(18, 1, none), Drops),
        ("late_cancelled", late(18, 2, none), Drops),
        ("late_error_that_is_no_json", late(18, 0, || text("}")), Violation("cannot be read")),
        ("not_started_unasked", vec![frame(18, 1, call, none()), Step::Sleep], Violation("nobody had asked")),
        ("cancelled_unasked", vec![frame(18, 2, call, none()), Step::Sleep], Violation("nobody had asked")),
        (
            "not_started_never_issued",
            vec![frame(18, 1, Of::Number(9_999_999), none()), Step::Sleep],
            Violation("never made"),
        ),
        ("error_that_is_no_json", err(text("oh no")), Violation("cannot be read")),
        ("error_that_is_another_json", err(text("[1]")), Violation("cannot be read")),
        (
            "error_that_is_no_utf8",
            err(Content::Bytes(b"{\"message\":\"\xff\xfe\"}".to_vec())),
            Violation("cannot be read"),
        ),
        ("error_nested_deeply", err(nested()), Violation("cannot be read")),
        ("error_of_an_unknown_kind", err(text(r#"{"kind":"surprise","message":"x"}"#)), Violation("cannot be read")),
        ("error_without_members", vec![frame(18, 0, call, text("{}")), Step::Serve], Fails(QueryErrorKind::Handler)),
        (
            "answer_of_another_codec",
            vec![frame(17, 0, call, text("\u{7f}{\"json\":1}")), Step::Serve],
            Fails(QueryErrorKind::BadAnswer),
        ),
        ("answer_that_is_empty", vec![frame(17, 0, call, none()), Step::Serve], Fails(QueryErrorKind::BadAnswer)),
        (
            "answer_that_claims_much",
            vec![frame(17, 0, call, Content::Bytes(vec![1, 255, 255, 255, 255, 15])), Step::Serve],
            Fails(QueryErrorKind::BadAnswer),
        ),
        (
            "notice_too_long",
            vec![frame(7, 0, Of::Nothing, Content::Fill(b'n', MAX_NOTICE + 1)), Step::Sleep],
            Violation("NOTICE"),
        ),
        ("notice_of_the_longest", vec![frame(7, 0, Of::Nothing, Content::Fill(b'n', MAX_NOTICE)), Step::Serve], Lives),
        (
            "notice_that_is_no_utf8",
            vec![frame(7, 0, Of::Nothing, Content::Bytes(vec![0xff, 0xfe, 0xc0])), Step::Serve],
            Lives,
        ),
        ("ping_too_long", vec![frame(3, 0, Of::Nothing, Content::Fill(b'p', 65)), Step::Sleep], Violation("PING")),
        ("ping_gets_pong", vec![frame(3, 0, Of::Nothing, text("tick")), Step::Ponged, Step::Serve], Lives),
        ("pong_unasked", vec![frame(4, 0, Of::Nothing, text("tock")), Step::Serve], Lives),
        ("bye_early_and_exit", vec![frame(6, 0, Of::Nothing, none()), Step::Exit(0)], Lost),
        ("hello_from_the_worker", from_manager(1), Violation("Hello")),
        ("ready_twice", vec![Step::Ready, Step::Sleep], Violation("Ready")),
        ("drain_from_the_worker", from_manager(5), Violation("Drain")),
        ("request_from_the_worker", from_manager(16), Violation("Req")),
        ("cancel_from_the_worker", from_manager(19), Violation("Cancel")),
        ("recall_from_the_worker", from_manager(20), Violation("Recall")),
        ("exit_in_a_header", vec![raw(&[0, 0, 0]), Step::Exit(0)], Lost),
        ("kill_in_a_payload", vec![raw(&[0, 0, 1, 0, 17, 0, 0, 0, 0, 0, 0, 0]), Step::Kill], Lost),
        ("close_and_live_on", vec![Step::Close, Step::Sleep], Lost),
        ("close_in_a_frame_and_live_on", vec![raw(&[0, 0, 1, 0, 17]), Step::Close, Step::Sleep], Lost),
        (
            "a_byte_at_a_time",
            vec![Step::Slowly(Sent::Frame { kind: 17, flags: 0, id: call, content: done() }), Step::Serve],
            Lives,
        ),
    ]
}

/// What a worker may do in place of saying READY, and a part of the error.
fn openings() -> Vec<(&'static str, Vec<Step>, &'static str)> {
    let length = |length: u32| raw(&[&length.to_be_bytes()[..], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
    let ready_text = |content: Content| frame(2, 0, Of::Nothing, content);
    let opening = |first: Step| vec![Step::Hello, first, Step::Sleep];
    let bad_ready =
        |codec: &str, version, concurrency, ahead| opening(Step::Send(ready(codec, version, concurrency, ahead)));
    vec![
        ("length_0", opening(length(0)), "length 0"),
        ("length_11", opening(length(11)), "length 11"),
        ("length_max_plus_1", opening(length((MAX_PAYLOAD + 13) as u32)), "67108877"),
        ("length_2_32_minus_1", opening(length(u32::MAX)), "4294967295"),
        ("answer_before_ready", opening(frame(17, 0, Of::Number(4097), done())), "kind 17"),
        ("error_before_ready", opening(frame(18, 0, Of::Number(4097), text("{}"))), "kind 18"),
        ("bye_before_ready", opening(frame(6, 0, Of::Nothing, none())), "kind 6"),
        ("critical_unknown_kind", opening(frame(99, 0x80, Of::Nothing, none())), "kind 99"),
        ("hello_back", opening(frame(1, 0, Of::Nothing, text("{}"))), "kind 1"),
        ("no_json", opening(ready_text(text("READY"))), "cannot be read"),
        ("empty", opening(ready_text(none())), "cannot be read"),
        ("no_utf8", opening(ready_text(Content::Bytes(vec![0xff; 30]))), "cannot be read"),
        ("nested_deeply", opening(ready_text(Content::Fill(b'[', 60_000))), "cannot be read"),
        ("too_long", opening(ready_text(Content::Fill(b' ', (64 << 10) + 1))), "65537 bytes"),
        ("concurrency_0", bad_ready("postcard", 1, 0, 1), "concurrency 0"),
        ("ahead_0", bad_ready("postcard", 1, 1, 0), "ahead 0"),
        ("ahead_below_concurrency", bad_ready("postcard", 1, 5, 4), "ahead 4"),
        ("ahead_65536", bad_ready("postcard", 1, 1, 65_536), "65536"),
        ("ahead_2_32_minus_1", bad_ready("postcard", 1, 1, u32::MAX.into()), "4294967295"),
        ("ahead_2_32", bad_ready("postcard", 1, 1, 1 << 32), "4294967296"),
        ("concurrency_2_32_minus_1", bad_ready("postcard", 1, u32::MAX.into(), u32::MAX.into()), "4294967295"),
        ("another_version", bad_ready("postcard", 2, 1, 1), "the worker version 2"),
        ("another_codec", bad_ready("json", 1, 1, 1), "\"postcard\", the worker \"json\""),
    ]
}

pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for transport in ALL {
        for (name, steps, expect) in rows() {
            trials.push(Trial::test(format!("hostile::{name}::{transport}"), move || {
                run(one_of_two_misbehaves(transport, steps, expect));
                Ok(())
            }));
        }
        for (name, steps, part) in openings() {
            trials.push(Trial::test(format!("hostile::opening::{name}::{transport}"), move || {
                run(one_opens_badly(transport, steps, part));
                Ok(())
            }));
        }
    }
    let more = [
        over_all("hostile::end_of_file_at_every_offset_of_an_answer", end_at_every_offset_of_an_answer),
        over_all("hostile::end_of_file_at_every_offset_of_ready", end_at_every_offset_of_ready),
        over_all("hostile::an_unknown_kind_before_ready_is_dropped", an_unknown_kind_before_ready_is_dropped),
        over_all("hostile::ready_a_byte_at_a_time", ready_a_byte_at_a_time),
        over_all("hostile::the_largest_numbers_of_ready", the_largest_numbers_of_ready),
        over_all("hostile::prints_before_ready", prints_before_ready),
        over_all("hostile::an_answer_beyond_ahead", an_answer_beyond_ahead),
        over_all("hostile::an_answer_after_the_timeout", an_answer_after_the_timeout),
        over_all("hostile::a_worker_that_never_reads", a_worker_that_never_reads),
        over_all_alone(
            "hostile::headers_that_claim_the_most_take_no_memory",
            headers_that_claim_the_most_take_no_memory,
        ),
        over_all_alone("hostile::a_flood_of_pings_takes_no_memory", a_flood_of_pings_takes_no_memory),
        over_all_alone("hostile::a_flood_of_notices_takes_no_memory", a_flood_of_notices_takes_no_memory),
    ];
    trials.extend(more.into_iter().flatten());
    trials.extend(streams::tests());
    trials
}

/// A pool whose processes are hostile for as long as there are tokens.
fn hostile(transport: AnyTransport, steps: &[Step], scratch: &Scratch, tokens: usize) -> Builder {
    arm(scratch, tokens);
    let script = serde_json::to_string(steps).expect("a script");
    let spec = this_program().env(SCRIPT, script).env(TOKENS, scratch.path(""));
    PoolBuilder::program("hostile", spec, transport, Postcard).budget(PATIENT)
}

fn arm(scratch: &Scratch, tokens: usize) {
    for token in 0..tokens {
        std::fs::write(scratch.path(format!("{token}")), "").expect("a token");
    }
}

async fn still_serves(pool: &Pool, workers: usize) {
    for n in 0..20_u8 {
        assert_eq!(pool.query(&Job::Echo(vec![n])).await.unwrap(), Said::Bytes(vec![n]));
    }
    assert_eq!(pids(pool).len(), workers);
}

async fn one_of_two_misbehaves(transport: AnyTransport, steps: Vec<Step>, expect: Expect) {
    let scratch = Scratch::new();
    let steps = [vec![Step::Hello, Step::Ready, Step::Calls(1)], steps].concat();
    let pool = hostile(transport, &steps, &scratch, 1).workers(2).start().await.unwrap();
    let mut events = pool.events();
    let before = pids(&pool);
    // The honest one says which it is, the other one says what its script says.
    let answers = pool.query_all(&Job::Pid).await;
    let (honest, bad): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| matches!(answer, Ok(Said::Pid(_))));
    assert_eq!((honest.len(), bad.len()), (1, 1), "{honest:?} {bad:?}");
    let answer = bad.into_iter().next().unwrap().1;
    let Ok(Said::Pid(honest)) = honest[0].1 else { panic!() };
    match expect {
        Expect::Lives | Expect::Drops => assert_eq!(answer.unwrap(), Said::Done),
        Expect::Fails(kind) => assert_eq!(error(answer).kind(), kind),
        Expect::Violation(what) if answer.is_ok() => contains(format!("{:?}", crash(&mut events).await), what),
        Expect::Violation(what) => match lost(answer).cause {
            ExitCause::Protocol { violation } => contains(violation, what),
            other => panic!("{other:?}"),
        },
        Expect::Lost => match lost(answer).cause {
            ExitCause::LinkLost { .. }
            | ExitCause::Exited(ExitStatus::Code(0) | ExitStatus::Signal { signal: 9, .. }) => {}
            other => panic!("{other:?}"),
        },
    }
    if let Expect::Lives | Expect::Drops | Expect::Fails(_) = expect {
        // Its further calls are answered as well, by the same process.
        for (_, answer) in pool.query_all(&Job::Echo(vec![1])).await {
            answer.unwrap();
        }
        assert_eq!(pids(&pool), before);
        assert_eq!(pool.info().crashes, 0);
        assert_eq!(pool.info().dropped_frames > 0, matches!(expect, Expect::Drops), "what means nothing is counted");
    } else {
        replaced(&mut events).await;
        still_serves(&pool, 2).await;
        assert!(pids(&pool).contains(&honest), "nobody else notices");
        assert_eq!(pool.info().crashes, 1);
    }
}

async fn one_opens_badly(transport: AnyTransport, steps: Vec<Step>, part: &'static str) {
    // The first worker of a pool: its start says what is wrong, and leaves nothing.
    let scratch = Scratch::new();
    let mark = mark();
    let failed =
        hostile(transport, &steps, &scratch, 100).spec(|spec| spec.env(MARK, &mark)).start().await.unwrap_err();
    assert!(matches!(failed, StartError::Handshake { .. }), "{failed:?}");
    contains(failed.to_string(), part);
    eventually("nothing is left of it", || marked(&mark).is_empty()).await;
    // A later one: it is replaced, and nobody else notices.
    let scratch = Scratch::new();
    let pool = hostile(transport, &steps, &scratch, 0).start().await.unwrap();
    let before = pids(&pool);
    let mut events = pool.events();
    arm(&scratch, 1);
    pool.spawn_one().await.unwrap();
    match crash(&mut events).await {
        ExitCause::Protocol { violation } => contains(violation, part),
        other => panic!("{other:?}"),
    }
    still_serves(&pool, 2).await;
    assert!(pids(&pool).contains(&before[0]));
    assert_eq!(pool.info().crashes, 1);
}

async fn end_at_every_offset_of_an_answer(transport: AnyTransport) {
    let answer = Sent::Frame {
        kind: 17,
        flags: 0,
        id: Of::Call(0),
        content: Content::Bytes([&[1, 9], &[b'x'; 9][..]].concat()),
    };
    let whole = 16 + 11;
    for last in [Step::Exit(0), Step::Kill] {
        let scratch = Scratch::new();
        let steps = [Step::Hello, Step::Ready, Step::Calls(1), Step::Cut(answer.clone()), last];
        let pool = hostile(transport, &steps, &scratch, whole + 1).start().await.unwrap();
        for offset in 0..=whole {
            let answer = pool.query(&Job::Pid).await;
            if offset == whole {
                assert!(answer.is_ok(), "a whole answer counts, whatever follows: {answer:?}");
                continue;
            }
            match lost(answer).cause {
                ExitCause::Exited(ExitStatus::Code(0) | ExitStatus::Signal { signal: 9, .. }) => {}
                other => panic!("after {offset} bytes: {other:?}"),
            }
        }
        eventually("the last one is noticed", || pool.info().crashes == whole as u64 + 1).await;
        still_serves(&pool, 1).await;
    }
}

async fn end_at_every_offset_of_ready(transport: AnyTransport) {
    let whole = ready("postcard", 1, 1, 1);
    let length = 16
        + match &whole {
            Sent::Frame { content: Content::Text(text), .. } => text.len(),
            _ => panic!(),
        };
    let scratch = Scratch::new();
    let pool = hostile(transport, &[Step::Hello, Step::Cut(whole), Step::Exit(0)], &scratch, 0).start().await.unwrap();
    let mut events = pool.events();
    arm(&scratch, length);
    pool.spawn_one().await.unwrap();
    for offset in 0..length {
        match crash(&mut events).await {
            ExitCause::Exited(ExitStatus::Code(0)) => {}
            ExitCause::Protocol { violation } => contains(violation, "ended"),
            other => panic!("after {offset} bytes: {other:?}"),
        }
    }
    still_serves(&pool, 2).await;
}

async fn an_unknown_kind_before_ready_is_dropped(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [
        Step::Hello,
        frame(99, 0, Of::Nothing, text("x")),
        frame(7, 0, Of::Nothing, text("loading")),
        Step::Ready,
        Step::Serve,
    ];
    let pool = hostile(transport, &steps, &scratch, 1).start().await.unwrap();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Done);
    assert_eq!(pool.info().crashes, 0);
}

async fn ready_a_byte_at_a_time(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [Step::Hello, Step::Slowly(ready("postcard", 1, 1, 1)), Step::Serve];
    let pool = hostile(transport, &steps, &scratch, 1).start().await.unwrap();
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Done);
}

async fn the_largest_numbers_of_ready(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [Step::Hello, Step::Send(ready("postcard", 1, 65_535, 65_535)), Step::Serve];
    let pool = hostile(transport, &steps, &scratch, 1).queue(20_000).start().await.unwrap();
    let all: Vec<_> = (0..10_000).map(|_| tokio::spawn(pool.query(&Job::Pid))).collect();
    for answer in all {
        assert_eq!(answer.await.unwrap().unwrap(), Said::Done);
    }
}

async fn prints_before_ready(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [Step::Print("Loading {0} of {1}\u{1b}[31m ".repeat(20)), Step::Hello, Step::Ready, Step::Serve];
    let started = hostile(transport, &steps, &scratch, 100).start().await;
    if transport.to_string() != "stdio" {
        // The wire is another descriptor.
        assert_eq!(started.unwrap().query(&Job::Pid).await.unwrap(), Said::Done);
        return;
    }
    let failed = started.unwrap_err();
    contains(failed.to_string(), "pm pool -- PROGRAM {}");
    let StartError::Handshake { mismatch: Mismatch::NotReady { first, .. }, .. } = failed else { panic!("{failed:?}") };
    contains(&first, "Loading {0} of {1}");
    assert!(!first.contains('\u{1b}'), "{first}");
    let plain = first.replace("\\x1b", "\u{1b}");
    assert_eq!(plain.len(), 200, "{first}");
}

/// It may have one call started, and answers the second one.
async fn an_answer_beyond_ahead(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [Step::Hello, Step::Ready, Step::Calls(2), frame(17, 0, Of::Call(1), done()), Step::Sleep];
    let pool = hostile(transport, &steps, &scratch, 1).start().await.unwrap();
    let mut events = pool.events();
    let both: Vec<_> = (0..2).map(|n| tokio::spawn(pool.query(&Job::Echo(vec![n])))).collect();
    match crash(&mut events).await {
        ExitCause::Protocol { violation } => contains(violation, "no leave to start"),
        other => panic!("{other:?}"),
    }
    let mut answers = Vec::new();
    for answer in both {
        answers.push(answer.await.unwrap());
    }
    // What such a worker says of what it has started is worth nothing: neither call runs again.
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
}

async fn an_answer_after_the_timeout(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [
        Step::Hello,
        Step::Ready,
        Step::Calls(1),
        Step::Cancelled,
        frame(17, 0, Of::Call(0), text("late")),
        Step::Serve,
    ];
    let pool = hostile(transport, &steps, &scratch, 1).cancel_grace(LONG).start().await.unwrap();
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(50)));
    assert_eq!(error(pool.query_with(&Job::Pid, limit).await).kind(), QueryErrorKind::TimedOut);
    for _ in 0..10 {
        assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Done);
    }
    assert_eq!(pool.info().crashes, 0);
    // Its answer was of no type that the manager knows, and harmed nobody.
    assert_eq!(pool.info().load, 0);
}

/// Its calls time out, and it is replaced at the grace, though it never takes a byte off the link.
async fn a_worker_that_never_reads(transport: AnyTransport) {
    let scratch = Scratch::new();
    let steps = [Step::Hello, Step::Ready, Step::Sleep];
    let grace = Duration::from_millis(100);
    let pool = hostile(transport, &steps, &scratch, 1).cancel_grace(grace).start().await.unwrap();
    let mut events = pool.events();
    let limit = QueryOptions::new().timeout(Some(Duration::from_millis(300)));
    let large = "x".repeat(2 << 20);
    let all: Vec<_> = (0..4).map(|_| tokio::spawn(pool.query_with(&Job::Say(large.clone()), limit))).collect();
    for answer in all {
        assert_eq!(error(answer.await.unwrap()).kind(), QueryErrorKind::TimedOut);
    }
    assert_eq!(crash(&mut events).await, ExitCause::Stuck { grace });
    replaced(&mut events).await;
    assert_eq!(pool.query(&Job::Say(large.clone())).await.unwrap(), Said::Text(large));
    still_serves(&pool, 1).await;
}

async fn headers_that_claim_the_most_take_no_memory(transport: AnyTransport) {
    let scratch = Scratch::new();
    let header = [&((MAX_PAYLOAD + 12) as u32).to_be_bytes()[..], &[17; 60]].concat();
    let steps = [Step::Hello, Step::Ready, Step::Calls(1), raw(&header), Step::Sleep];
    let workers = 50;
    let pool = hostile(transport, &steps, &scratch, workers as usize).workers(workers).start().await.unwrap();
    let before = resident(std::process::id());
    let limit = QueryOptions::new().timeout(Some(LONG));
    let _waiting: Vec<_> =
        (0..workers).map(|_| Box::pin(pool.query_with(&Job::Pid, limit))).map(tokio::spawn).collect();
    eventually("all have one", || pool.workers().iter().all(|worker| worker.load == 1)).await;
    let after = resident(std::process::id());
    // Each has a buffer of 64 KiB, and none of 64 MiB.
    assert!(after < before + (16 << 20), "{before} bytes were resident before, {after} after");
}

async fn a_flood_of_pings_takes_no_memory(transport: AnyTransport) {
    flood(transport, Sent::Frame { kind: 3, flags: 0, id: Of::Nothing, content: none() }).await;
    flood(transport, Sent::Frame { kind: 3, flags: 0, id: Of::Nothing, content: Content::Fill(b'p', 64) }).await;
}

async fn a_flood_of_notices_takes_no_memory(transport: AnyTransport) {
    flood(transport, Sent::Frame { kind: 7, flags: 0, id: Of::Nothing, content: Content::Fill(b'n', 1000) }).await;
}

/// A worker sends a million frames and reads nothing.
async fn flood(transport: AnyTransport, sent: Sent) {
    let scratch = Scratch::new();
    let steps = [
        Step::Hello,
        Step::Ready,
        Step::Calls(1),
        Step::Times(1_000_000, sent),
        frame(17, 0, Of::Call(0), done()),
        Step::Serve,
    ];
    let pool = hostile(transport, &steps, &scratch, 1).start().await.unwrap();
    let before = resident(std::process::id());
    assert_eq!(pool.query(&Job::Pid).await.unwrap(), Said::Done);
    let after = resident(std::process::id());
    assert!(after < before + (8 << 20), "{before} bytes were resident before, {after} after");
    event_free(&pool).await;
}

/// The pool goes on as if nothing had been.
async fn event_free(pool: &Pool) {
    let mut events = pool.events();
    for _ in 0..10 {
        pool.query(&Job::Pid).await.unwrap();
    }
    while let Ok(happened) = events.try_recv() {
        assert!(!matches!(happened, Event::Crashed { .. }), "{happened:?}");
    }
}
