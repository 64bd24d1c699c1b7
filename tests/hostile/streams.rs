//! Workers that break the rules of a stream: it ends, and nothing but it. Faults 15 and 18.

use libtest_mimic::Trial;
use pm::{AnyTransport, Duplex, PoolBuilder, Postcard, QueryErrorKind, StreamError, StreamManager};
use pm_core::machine::budget::SplitMix;

use super::script::{Content, Of, SCRIPT, Step, TOKENS, frame, none, text};
use super::{PATIENT, arm};
use crate::roles::{Job, Said};
use crate::streams::{Heard, Say};
use crate::support::{ALL, Scratch, contains, crash, over_all, replaced, run, this_program, within};

type Talks = StreamManager<Say, Heard>;
type Talk = Duplex<Say, Heard>;

const DATA: u8 = 33;
const FIN: u8 = 34;
const RST: u8 = 35;
const CREDIT: u8 = 8;
const RESP: u8 = 17;
const ERR: u8 = 18;

/// What the manager lets a worker send, in these tests.
const WINDOW: (u32, u32) = (8, 1000);

/// What a row of the table expects of the first stream, once the worker has done its worst there.
#[derive(Clone, Copy)]
enum Expect {
    /// It ends with a fault of this description.
    Fault(&'static str),
    /// It ends well.
    Ends,
    /// It ends with an error of this sort.
    Fails(QueryErrorKind),
    /// It goes on, with an error that is no end.
    Decodes,
}

fn rows() -> Vec<(&'static str, Vec<Step>, Expect)> {
    use Expect::{Decodes, Ends, Fails, Fault};
    let first = Of::Call(0);
    let data = |size| frame(DATA, 0, first, Content::Fill(0, size));
    let grant = |messages: u32, bytes: u32| {
        frame(CREDIT, 0, first, Content::Bytes([messages.to_be_bytes(), bytes.to_be_bytes()].concat()))
    };
    let end = || frame(RESP, 0, first, none());
    let overrun = |size| vec![data(size); WINDOW.0 as usize + 1];
    vec![
        ("too_many_messages", overrun(1), Fault("no credit")),
        ("too_many_bytes", overrun(400), Fault("no credit")),
        ("empty_messages_count_too", overrun(0), Fault("no credit")),
        ("a_message_after_the_end", vec![frame(FIN, 0, first, none()), data(1)], Fault("after its end")),
        ("two_ends", vec![frame(FIN, 0, first, none()); 2], Fault("after its end")),
        ("credit_of_2_63", vec![grant(u32::MAX, u32::MAX)], Fault("more credit")),
        ("credit_that_adds_up", vec![grant(1 << 30, 1); 2], Fault("more credit")),
        ("credit_in_bytes_that_adds_up", vec![grant(1, 1 << 30); 2], Fault("more credit")),
        ("credit_of_no_length", vec![frame(CREDIT, 0, first, none())], Fault("cannot be read")),
        ("credit_of_another_length", vec![frame(CREDIT, 0, first, Content::Fill(0, 9))], Fault("cannot be read")),
        ("an_error_that_is_no_json", vec![frame(DATA, 1, first, text("oh"))], Fault("cannot be read")),
        ("an_error_nested_deeply", vec![frame(DATA, 1, first, Content::Fill(b'[', 900))], Fault("cannot be read")),
        ("a_call_without_a_number", vec![frame(DATA, 2, first, text("1234567"))], Fault("cannot be read")),
        ("a_reply_without_a_number", vec![frame(DATA, 4, first, text("1234567"))], Fault("cannot be read")),
        ("a_reply_that_nobody_asked_for", vec![frame(DATA, 4, first, Content::Fill(0, 8)), end()], Ends),
        ("many_of_them", [vec![frame(DATA, 4, first, Content::Fill(0, 900)); 100], vec![end()]].concat(), Ends),
        ("stopped_twice", vec![frame(RST, 0, first, none()), frame(RST, 0, first, none()), end()], Ends),
        ("unknown_flags", vec![frame(FIN, 0x70, first, none()), end()], Ends),
        ("its_end_twice", vec![end(), end()], Ends),
        (
            "late_frames",
            vec![end(), data(1), grant(1, 1), frame(FIN, 0, first, none()), frame(RST, 0, first, none())],
            Ends,
        ),
        ("an_error_of_the_handler", vec![frame(ERR, 0, first, text("{}"))], Fails(QueryErrorKind::Handler)),
        ("a_message_of_another_codec", vec![frame(DATA, 0, first, text("\u{7f}{}")), end()], Decodes),
    ]
}

pub(super) fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for transport in ALL {
        for (name, steps, expect) in rows() {
            trials.push(Trial::test(format!("hostile::stream::{name}::{transport}"), move || {
                run(one_stream_misbehaves(transport, steps, expect));
                Ok(())
            }));
        }
    }
    trials.extend(over_all("hostile::stream::frames_in_every_order", frames_in_every_order));
    trials.extend(over_all("hostile::stream::one_that_was_never_opened", one_that_was_never_opened));
    trials.extend(over_all("hostile::stream::a_worker_that_never_credits", a_worker_that_never_credits));
    trials.extend(over_all("hostile::stream::a_worker_of_queries", a_worker_of_queries));
    trials
}

/// A pool of one worker, which does this with its first stream, and echoes on all others.
async fn hostile(transport: AnyTransport, steps: Vec<Step>, scratch: &Scratch) -> Talks {
    arm(scratch, 1);
    let opening = vec![Step::Hello, Step::ReadyForStreams(16, 1000), Step::Opens(1)];
    let steps = [opening, steps, vec![Step::EchoTheRest]].concat();
    let script = serde_json::to_string(&steps).expect("a script");
    let spec = this_program().env(SCRIPT, script).env(TOKENS, scratch.path(""));
    let pool = PoolBuilder::program("hostile", spec, transport, Postcard).streams();
    pool.window(WINDOW.0, WINDOW.1).budget(PATIENT).start().await.unwrap()
}

/// What was said comes back: the worker echoes bytes, and a `Say::Pid` reads as an empty `Heard::Text`.
async fn echoes(stream: &mut Talk) {
    for _ in 0..40 {
        stream.write(&Say::Echo(vec![7; 90])).await.unwrap();
        assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::Bytes(vec![7; 90]));
    }
}

async fn one_stream_misbehaves(transport: AnyTransport, steps: Vec<Step>, expect: Expect) {
    let scratch = Scratch::new();
    let pool = hostile(transport, steps, &scratch).await;
    let mut first = pool.create_stream().await.unwrap();
    let mut other = pool.create_stream().await.unwrap();
    echoes(&mut other).await;
    let end = within(async {
        loop {
            match first.next().await {
                // What it sent before is no fault.
                Some(Ok(_)) => {}
                Some(Err(error)) if !error.is_final() => assert!(matches!(expect, Expect::Decodes | Expect::Fault(_))),
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    });
    match (expect, end.await) {
        (Expect::Fault(what), Some(StreamError::Fault(fault))) => contains(fault.to_string(), what),
        (Expect::Ends | Expect::Decodes, None) => {}
        (Expect::Fails(kind), Some(StreamError::Failed(error))) => assert_eq!(error.kind(), kind),
        // The reader may have seen its half end before the fault.
        (Expect::Fault(what), None) => contains(within(first.close()).await.unwrap_err().to_string(), what),
        (_, end) => panic!("{end:?}"),
    }
    // Nobody else has noticed: neither this stream of the same worker, nor a new one.
    echoes(&mut other).await;
    echoes(&mut pool.create_stream().await.unwrap()).await;
    within(other.close()).await.unwrap();
    assert_eq!(pool.info().crashes, 0);
}

/// Whatever frames a worker sends on a stream, in whatever order, before or after its end: the stream comes to an end, and the others go on.
async fn frames_in_every_order(transport: AnyTransport) {
    let mut random = SplitMix(7);
    let mut below = |limit| random.below(limit);
    for _ in 0..40 {
        let first = Of::Call(0);
        let mut steps: Vec<Step> = (0..1 + below(12))
            .map(|_| match below(7) {
                0 => frame(DATA, 0, first, Content::Fill(0, below(30) as usize)),
                1 => frame(DATA, below(8) as u8, first, Content::Fill(b'0', below(30) as usize)),
                2 => frame(FIN, 0, first, none()),
                3 => frame(RST, 0, first, none()),
                4 => frame(CREDIT, 0, first, Content::Bytes(vec![0, 0, 0, below(9) as u8, 0, 0, 0, below(99) as u8])),
                5 if below(3) == 0 => frame(RESP, 0, first, none()),
                6 if below(3) == 0 => frame(ERR, 0, first, text("{}")),
                _ => frame(DATA, 0, first, none()),
            })
            .collect();
        steps.push(frame(RESP, 0, first, none()));
        let scratch = Scratch::new();
        let pool = hostile(transport, steps, &scratch).await;
        let mut first = pool.create_stream().await.unwrap();
        let mut other = pool.create_stream().await.unwrap();
        match below(4) {
            0 => drop(first),
            1 => first.cancel(),
            2 => drop(within(first.close()).await),
            _ => {
                let _ = first.write(&Say::Pid).await;
                while within(first.next()).await.is_some_and(|next| next.is_ok_and(|_| true)) {}
                drop(within(first.close()).await);
            }
        }
        echoes(&mut other).await;
        within(other.close()).await.unwrap();
        assert_eq!(pool.info().crashes, 0);
    }
}

async fn one_that_was_never_opened(transport: AnyTransport) {
    for kind in [DATA, FIN, RST, CREDIT] {
        let scratch = Scratch::new();
        let pool = hostile(transport, vec![frame(kind, 0, Of::Number(9 << 16 | 3), none())], &scratch).await;
        let mut events = pool.events();
        let mut first = pool.create_stream().await.unwrap();
        contains(format!("{:?}", crash(&mut events).await), "never opened");
        let lost = within(first.next()).await.unwrap().unwrap_err();
        assert_eq!(lost.failed().unwrap().kind(), QueryErrorKind::WorkerLost);
        replaced(&mut events).await;
    }
}

/// It takes what it has granted, and no more: its writer waits, and others do not.
async fn a_worker_that_never_credits(transport: AnyTransport) {
    let scratch = Scratch::new();
    let pool = hostile(transport, vec![], &scratch).await;
    let mut first = pool.create_stream().await.unwrap();
    let mut other = pool.create_stream().await.unwrap();
    for _ in 0..16 {
        within(first.write(&Say::Pid)).await.unwrap();
    }
    {
        let next = Say::Pid;
        let stuck = first.write(&next);
        tokio::pin!(stuck);
        tokio::select! {
            biased;
            written = &mut stuck => panic!("{written:?}"),
            () = echoes(&mut other) => {}
        }
    }
    first.end();
    drop(first);
    echoes(&mut other).await;
}

/// A worker whose READY speaks of queries is none for a pool of streams, nor the other way round.
async fn a_worker_of_queries(transport: AnyTransport) {
    let pool = PoolBuilder::<Say, Heard, _, _>::program("other", this_program(), transport, Postcard);
    let failed = pool.streams().spec(|spec| spec.serving("job")).start().await.unwrap_err();
    contains(failed.to_string(), "the manager has streams for the worker, which serves queries");
    let pool = PoolBuilder::<Job, Said, _, _>::program("other", this_program(), transport, Postcard);
    let failed = pool.spec(|spec| spec.serving("talk")).start().await.unwrap_err();
    contains(failed.to_string(), "the manager has queries for the worker, which serves streams");
}
