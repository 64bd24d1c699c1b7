//! Streams: many messages both ways, in one worker of many. Rows S1 to S9; faults 1, 12, 15, 18.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use libtest_mimic::Trial;
use pm::{
    AnyTransport, Budget, Bytes, Duplex, ExitCause, Incoming, PoolBuilder, QueryError, QueryErrorKind, StreamError,
    Streams, Verbatim,
};
use pm_core::machine::budget::SplitMix;
use rustix::process::Signal as Kill;
use serde::{Deserialize, Serialize};

use crate::support::{
    LIMIT, LONG, contains, eventually, gone_within, kill, one, over_all, over_all_alone, pids, pool_of, resident,
    within,
};

pub static TALK: pm::Stream<Say, Heard> = pm::Stream::new("talk", &talk);

/// The same, but a worker has two at the same time at most.
pub static FEW: pm::Stream<Say, Heard> = pm::Stream::new("few-talk", &talk).concurrency(2);

/// Sends what it gets, backwards.
pub static BACKWARDS: pm::ByteStream = pm::ByteStream::new("backwards", "bytes", &backwards);

async fn backwards(mut peer: Duplex<Bytes, Bytes>) -> Result<(), StreamError> {
    while let Some(bytes) = peer.next().await {
        peer.write(&bytes?.iter().rev().copied().collect()).await?;
    }
    Ok(())
}

/// Something that a stream's worker is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Say {
    Echo(Vec<u8>),
    /// Sends so many numbers.
    Count(u64),
    Pid,
    /// Says what the stream is called.
    Name,
    /// Sends an error, and goes on.
    Complain(String),
    /// Ends with an error.
    Fail(String),
    Panic(String),
    /// Reads nothing more, and lives.
    Deafen,
    /// Ends its sending, and reads on.
    Hush,
    /// Drops its receiving half, and lives.
    Unread,
    /// Waits for the end of the other side, and leaves.
    Close,
    /// Leaves.
    Leave,
    Abort,
    /// Computes for so long, and holds up all other streams.
    Block(Duration),
    /// The same without an end, and says so first.
    Hog,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Heard {
    Bytes(Vec<u8>),
    Number(u64),
    Text(String),
    /// How many messages came, once the last one has.
    End(u64),
}

#[derive(Debug)]
struct Sour(String);

impl std::fmt::Display for Sour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sour: {}", self.0)
    }
}

async fn talk(mut peer: Duplex<Heard, Say>) -> Result<(), Sour> {
    let gone = |error: StreamError| Sour(error.to_string());
    let mut came = 0;
    while let Some(said) = peer.next_incoming().await {
        came += 1;
        let (said, reply) = match said.map_err(gone)? {
            Incoming::Message(said) => (said, None),
            Incoming::Call(said, reply) => (said, Some(reply)),
        };
        let heard = match said {
            Say::Echo(bytes) => Heard::Bytes(bytes),
            Say::Count(numbers) => {
                for number in 0..numbers {
                    peer.write(&Heard::Number(number)).await.map_err(gone)?;
                }
                continue;
            }
            Say::Pid => Heard::Number(std::process::id().into()),
            Say::Name => Heard::Text(peer.name().to_string()),
            Say::Complain(what) => {
                match reply {
                    Some(reply) => reply.fail(Sour(what)).await.map_err(gone)?,
                    None => peer.write_error(Sour(what)).await.map_err(gone)?,
                }
                continue;
            }
            Say::Fail(what) => return Err(Sour(what)),
            Say::Panic(what) => panic!("{what}"),
            Say::Deafen => std::future::pending().await,
            Say::Hush => {
                peer.end();
                continue;
            }
            Say::Unread => {
                let (_sender, receiver) = peer.split();
                drop(receiver);
                return std::future::pending().await;
            }
            Say::Close => return peer.close().await.map_err(gone),
            Say::Leave => return Ok(()),
            Say::Abort => std::process::abort(),
            Say::Hog => {
                pm::notice("hogs");
                std::thread::sleep(LONG);
                continue;
            }
            Say::Block(time) => {
                std::thread::sleep(time);
                continue;
            }
        };
        match reply {
            Some(reply) => reply.answer(&heard).await.map_err(gone)?,
            None => peer.write(&heard).await.map_err(gone)?,
        }
    }
    // Where it was told to hush this is one too many.
    let _ = peer.write(&Heard::End(came)).await;
    Ok(())
}

type Builder = PoolBuilder<Say, Heard, pm::Postcard, AnyTransport, Streams>;
type Talk = Duplex<Say, Heard>;

fn talks(transport: AnyTransport) -> Builder {
    pool_of(&TALK, transport).streams()
}

pub fn tests() -> Vec<Trial> {
    [
        over_all("streams::messages_go_both_ways_in_order", messages_go_both_ways_in_order),
        over_all("streams::bytes_pass_as_they_are", bytes_pass_as_they_are),
        over_all("streams::halves_are_a_sink_and_a_stream", halves_are_a_sink_and_a_stream),
        over_all("streams::either_end_closes_its_half", either_end_closes_its_half),
        over_all("streams::errors_end_it_or_do_not", errors_end_it_or_do_not),
        over_all("streams::calls_have_replies", calls_have_replies),
        over_all(
            "streams::a_killed_worker_ends_its_streams_and_no_others",
            a_killed_worker_ends_its_streams_and_no_others,
        ),
        over_all("streams::what_came_before_a_kill_came_once", what_came_before_a_kill_came_once),
        over_all("streams::a_slow_reader_suspends_the_writer", a_slow_reader_suspends_the_writer),
        over_all("streams::either_half_may_be_dropped_at_any_moment", either_half_may_be_dropped_at_any_moment),
        over_all("streams::a_shutdown_waits_for_them_until_its_deadline", a_shutdown_waits_for_them_until_its_deadline),
        over_all("streams::a_respawn_leaves_them_where_they_are", a_respawn_leaves_them_where_they_are),
        over_all("streams::a_broadcast_reaches_all_that_are_open", a_broadcast_reaches_all_that_are_open),
        over_all(
            "streams::a_full_worker_takes_the_next_one_when_it_has_room",
            a_full_worker_takes_the_next_one_when_it_has_room,
        ),
        over_all("streams::cancelling_ends_the_handler", cancelling_ends_the_handler),
        over_all("streams::a_worker_that_never_gives_way_is_killed", a_worker_that_never_gives_way_is_killed),
        over_all("streams::one_worker_alone", one_worker_alone),
        over_all("streams::a_handler_may_close_its_end", a_handler_may_close_its_end),
        over_all("streams::a_call_that_nobody_reads_is_unanswered", a_call_that_nobody_reads_is_unanswered),
        over_all(
            "streams::the_errors_of_many_handlers_reach_their_readers",
            the_errors_of_many_handlers_reach_their_readers,
        ),
        over_all("streams::errors_are_cut_to_fit", errors_are_cut_to_fit),
        over_all_alone("streams::writers_that_wait_cost_nothing", writers_that_wait_cost_nothing),
        over_all_alone("streams::cancels_that_find_no_room_are_not_lost", cancels_that_find_no_room_are_not_lost),
        one("streams::a_thread_that_writes_ends_with_its_pool", a_thread_that_writes_ends_with_its_pool),
        over_all_alone("streams::ten_thousand_on_one_worker", ten_thousand_on_one_worker),
        over_all("streams::in_process", in_process),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn ask(stream: &mut Talk, say: Say) -> Heard {
    stream.write(&say).await.unwrap();
    within(stream.next()).await.expect("it goes on").unwrap()
}

async fn pid(stream: &mut Talk) -> u32 {
    match ask(stream, Say::Pid).await {
        Heard::Number(pid) => pid as u32,
        other => panic!("{other:?}"),
    }
}

async fn messages_go_both_ways_in_order(transport: AnyTransport) {
    let pool = talks(transport).workers(2).start().await.unwrap();
    let mut first = pool.create_stream_named("first").await.unwrap();
    let mut second = pool.create_stream().await.unwrap();
    assert_ne!(pid(&mut first).await, pid(&mut second).await, "each on the worker with the fewest");
    assert_eq!(ask(&mut first, Say::Name).await, Heard::Text("first".into()));
    assert_eq!(ask(&mut second, Say::Name).await, Heard::Text(String::new()));
    for size in [0, 1, 100, 5_000, 300_000, 3 << 20] {
        let bytes: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
        assert_eq!(ask(&mut first, Say::Echo(bytes.clone())).await, Heard::Bytes(bytes));
    }
    second.write(&Say::Count(10_000)).await.unwrap();
    for number in 0..10_000 {
        assert_eq!(within(second.next()).await.unwrap().unwrap(), Heard::Number(number));
    }
    first.end();
    assert_eq!(within(first.next()).await.unwrap().unwrap(), Heard::End(8));
    assert!(within(first.next()).await.is_none());
    assert!(within(first.next()).await.is_none());
    within(first.close()).await.unwrap();
    within(second.close()).await.unwrap();
    eventually("no stream is open", || pool.info().load == 0).await;
    within(pool.shutdown()).await;
}

async fn bytes_pass_as_they_are(transport: AnyTransport) {
    let pool = PoolBuilder::<Bytes, Bytes, _, _>::role(&BACKWARDS, transport, Verbatim("bytes")).streams();
    let pool = pool.start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    for bytes in [Bytes::new(), Bytes::from_static(&[0]), (0..=255).cycle().take(100_000).collect()] {
        stream.write(&bytes).await.unwrap();
        let back = within(stream.next()).await.unwrap().unwrap();
        assert!(back.iter().rev().eq(bytes.iter()), "{} bytes", bytes.len());
        let back = within(stream.call(&bytes)).await.unwrap_err();
        assert!(matches!(back, StreamError::Unanswered), "it does not tell calls from messages");
        within(stream.next()).await.unwrap().unwrap();
    }
    within(stream.close()).await.unwrap();
}

async fn halves_are_a_sink_and_a_stream(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let (mut sender, mut receiver) = pool.create_stream().await.unwrap().split();
    let messages = 5_000;
    let writer = tokio::spawn(async move {
        for number in 0..messages {
            SinkExt::send(&mut sender, Say::Echo(vec![number as u8; number % 300])).await.unwrap();
        }
        SinkExt::close(&mut sender).await.unwrap();
    });
    for number in 0..messages {
        let heard = within(StreamExt::next(&mut receiver)).await.unwrap().unwrap();
        assert_eq!(heard, Heard::Bytes(vec![number as u8; number % 300]));
    }
    assert_eq!(within(StreamExt::next(&mut receiver)).await.unwrap().unwrap(), Heard::End(messages as u64));
    assert!(within(StreamExt::next(&mut receiver)).await.is_none());
    writer.await.unwrap();
}

async fn either_end_closes_its_half(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    // This end first.
    let mut stream = pool.create_stream().await.unwrap();
    stream.write(&Say::Echo(vec![1])).await.unwrap();
    stream.end();
    assert!(matches!(stream.write(&Say::Pid).await, Err(StreamError::Ended)));
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::Bytes(vec![1]));
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::End(1));
    assert!(within(stream.next()).await.is_none());
    // The worker's first: it reads on.
    let mut stream = pool.create_stream().await.unwrap();
    stream.write(&Say::Hush).await.unwrap();
    assert!(within(stream.next()).await.is_none());
    stream.write(&Say::Block(Duration::ZERO)).await.unwrap();
    stream.write(&Say::Fail("late".into())).await.unwrap();
    let failed = within(stream.close()).await.unwrap_err();
    contains(failed.to_string(), "sour: late");
    // It leaves altogether.
    let mut stream = pool.create_stream().await.unwrap();
    stream.write(&Say::Leave).await.unwrap();
    assert!(within(stream.next()).await.is_none());
    let ended = within(async {
        loop {
            if let Err(error) = stream.write(&Say::Pid).await {
                return error;
            }
        }
    });
    assert!(matches!(ended.await, StreamError::Ended));
    within(stream.close()).await.unwrap();
    assert_eq!(pool.workers().len(), 1);
    assert_eq!(pool.info().crashes, 0);
}

async fn errors_end_it_or_do_not(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    stream.write(&Say::Complain("milk".into())).await.unwrap();
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert!(!error.is_final());
    let StreamError::Sent(sent) = &error else { panic!("{error:?}") };
    assert_eq!(sent.message, "sour: milk");
    contains(&sent.type_name, "Sour");
    stream.write(&Say::Echo(vec![7])).await.unwrap();
    stream.write(&Say::Fail("wine".into())).await.unwrap();
    assert_eq!(
        within(stream.next()).await.unwrap().unwrap(),
        Heard::Bytes(vec![7]),
        "what came before the end is read"
    );
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert!(error.is_final());
    let Some(QueryError::Handler(handler)) = error.failed() else { panic!("{error:?}") };
    assert_eq!((&*handler.message, &*handler.trace), ("sour: wine", r#"Sour("wine")"#));
    assert!(within(stream.next()).await.is_none());
    contains(stream.write(&Say::Pid).await.unwrap_err().to_string(), "sour: wine");
    let mut stream = pool.create_stream().await.unwrap();
    stream.write(&Say::Panic("grapes".into())).await.unwrap();
    contains(within(stream.next()).await.unwrap().unwrap_err().to_string(), "the handler panicked: grapes");
    assert_eq!(pool.info().crashes, 0);
}

async fn calls_have_replies(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    assert!(matches!(within(stream.call(&Say::Pid)).await.unwrap(), Heard::Number(_)));
    // Many at the same time, and messages between them.
    let calls: Vec<_> =
        (0..300u32).map(|number| tokio::spawn(stream.call(&Say::Echo(number.to_be_bytes().into())))).collect();
    stream.write(&Say::Echo(vec![1])).await.unwrap();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(within(call).await.unwrap().unwrap(), Heard::Bytes((number as u32).to_be_bytes().into()));
    }
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::Bytes(vec![1]));
    let error = within(stream.call(&Say::Complain("no".into()))).await.unwrap_err();
    assert!(matches!(&error, StreamError::Sent(sent) if sent.message == "sour: no"), "{error:?}");
    let error = within(stream.call(&Say::Block(Duration::ZERO))).await.unwrap_err();
    assert!(matches!(error, StreamError::Unanswered) && !error.is_final());
    // One that nobody waits for any more.
    drop(stream.call(&Say::Echo(vec![2])));
    let error = within(stream.call(&Say::Leave)).await.unwrap_err();
    assert!(matches!(error, StreamError::Ended | StreamError::Unanswered), "{error:?}");
    within(stream.close()).await.unwrap();
}

async fn a_killed_worker_ends_its_streams_and_no_others(transport: AnyTransport) {
    let pool = talks(transport).workers(2).start().await.unwrap();
    let mut streams = Vec::new();
    for number in 0..200 {
        let mut stream = pool.create_stream_named(&format!("talk {number}")).await.unwrap();
        let pid = pid(&mut stream).await;
        streams.push((pid, stream));
    }
    let victim = pids(&pool)[0];
    let all: HashSet<u32> = streams.iter().map(|(pid, _)| *pid).collect();
    assert_eq!(all.len(), 2);
    let (lost, left): (Vec<_>, Vec<_>) = streams.into_iter().partition(|(pid, _)| *pid == victim);
    assert_eq!((lost.len(), left.len()), (100, 100));
    let readers: Vec<_> = lost
        .into_iter()
        .map(|(_, mut stream)| tokio::spawn(async move { (within(stream.next()).await, Instant::now(), stream) }))
        .collect();
    tokio::task::yield_now().await;
    let begun = Instant::now();
    kill(victim, Kill::KILL);
    for reader in readers {
        let (end, at, mut stream) = reader.await.unwrap();
        let error = end.expect("an error, and not a quiet end").unwrap_err();
        let Some(QueryError::WorkerLost(lost)) = error.failed() else { panic!("{error:?}") };
        assert_eq!((lost.pid, Some(lost.worker)), (victim, stream.worker()));
        contains(&lost.input, "talk ");
        assert!(at - begun < LONG);
        assert!(stream.next().await.is_none());
        assert!(stream.write(&Say::Pid).await.is_err());
    }
    for (pid_before, mut stream) in left {
        assert_eq!(pid(&mut stream).await, pid_before);
        within(stream.close()).await.unwrap();
    }
    let mut stream = within(pool.create_stream()).await.unwrap();
    pid(&mut stream).await;
}

/// Whatever a worker was at: what it had sent by then comes once, in order and without a gap, and then the error.
async fn what_came_before_a_kill_came_once(transport: AnyTransport) {
    const PATIENT: Budget = Budget::crash_loops(1000, LONG).backoff(Duration::from_millis(1), Duration::from_millis(2));
    let pool = talks(transport).budget(PATIENT).start().await.unwrap();
    for round in 0..40u64 {
        let mut stream = within(pool.create_stream()).await.unwrap();
        stream.write(&Say::Pid).await.unwrap();
        let Some(Ok(Heard::Number(pid))) = within(stream.next()).await else { panic!("round {round}") };
        stream.write(&Say::Count(u64::MAX)).await.unwrap();
        let mut next = 0;
        let error = loop {
            match within(stream.next()).await.expect("an error at the end") {
                Ok(heard) => assert_eq!(heard, Heard::Number(next), "round {round}"),
                Err(error) => break error,
            }
            next += 1;
            if next == 1 + 777 * round {
                kill(pid as u32, Kill::KILL);
            }
        };
        assert!(matches!(error.failed(), Some(QueryError::WorkerLost(_))), "{error:?}");
    }
}

async fn a_slow_reader_suspends_the_writer(transport: AnyTransport) {
    let pool = talks(transport).window(16, 1 << 20).start().await.unwrap();
    let mut slow = pool.create_stream().await.unwrap();
    slow.write(&Say::Count(1_000_000)).await.unwrap();
    // Its worker is suspended in the middle of it, and serves others.
    let mut other = pool.create_stream().await.unwrap();
    for _ in 0..100 {
        pid(&mut other).await;
    }
    // Of this end the same holds.
    let mut deaf = pool.create_stream().await.unwrap();
    deaf.write(&Say::Deafen).await.unwrap();
    let mut sent = 0;
    let stuck = tokio::time::timeout(Duration::from_millis(200), async {
        loop {
            deaf.write(&Say::Echo(vec![0; 1024])).await.unwrap();
            sent += 1;
        }
    });
    assert!(stuck.await.is_err());
    assert!((100..300).contains(&sent), "{sent}");
    for number in 0..100 {
        assert_eq!(within(slow.next()).await.unwrap().unwrap(), Heard::Number(number));
    }
    drop((slow, deaf));
    pid(&mut other).await;
}

/// Whoever drops what at whatever moment: the worker and its other streams go on, and nothing is left of it.
async fn either_half_may_be_dropped_at_any_moment(transport: AnyTransport) {
    let pool = talks(transport).window(4, 4000).start().await.unwrap();
    let mut steady = pool.create_stream().await.unwrap();
    let mut random = SplitMix(11);
    let mut below = |limit| random.below(limit);
    for _ in 0..150 {
        let mut stream = pool.create_stream().await.unwrap();
        for _ in 0..below(5) {
            let say = match below(5) {
                0 => Say::Count(below(20)),
                1 => Say::Echo(vec![0; below(3000) as usize]),
                2 => Say::Hush,
                3 => Say::Complain("x".into()),
                _ => Say::Pid,
            };
            // Its worker may wait for this end to read.
            let write = stream.write(&say);
            drop(tokio::time::timeout(Duration::from_millis(below(3)), write).await);
        }
        if below(2) == 0 {
            let next = stream.next();
            drop(tokio::time::timeout(Duration::from_millis(below(3)), next).await);
        }
        match below(6) {
            0 => drop(stream),
            1 => stream.cancel(),
            2 => drop(within(stream.close()).await),
            3 => {
                let (sender, mut receiver) = stream.split();
                drop(sender);
                while within(receiver.next()).await.is_some() {}
            }
            4 => {
                let (mut sender, receiver) = stream.split();
                drop(receiver);
                let mut open = true;
                while open && below(4) > 0 {
                    let write = sender.write(&Say::Pid);
                    open = !matches!(tokio::time::timeout(Duration::from_millis(2), write).await, Ok(Err(_)));
                }
            }
            _ => {
                let call = stream.call(&Say::Pid);
                drop(stream);
                drop(tokio::time::timeout(Duration::from_millis(below(3)), call).await);
            }
        }
        pid(&mut steady).await;
    }
    eventually("the others have ended", || pool.info().load == 1).await;
    within(steady.close()).await.unwrap();
    assert_eq!(pool.info().crashes, 0);
    within(pool.shutdown()).await;
}

async fn a_shutdown_waits_for_them_until_its_deadline(transport: AnyTransport) {
    // Until the last one has ended.
    let pool = talks(transport).start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    pid(&mut stream).await;
    let shutdown = tokio::spawn({
        let pool = pool.clone();
        async move { pool.shutdown_within(None).await }
    });
    within(async {
        while pool.create_stream().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = pool.create_stream().await.unwrap_err();
    assert_eq!(refused.failed().unwrap().kind(), QueryErrorKind::ShuttingDown);
    pid(&mut stream).await;
    assert!(!shutdown.is_finished());
    within(stream.close()).await.unwrap();
    within(shutdown).await.unwrap();
    // Until the deadline.
    let pool = talks(transport).workers(2).start().await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = pool.create_stream().await.unwrap();
        pid(&mut stream).await;
        streams.push(stream);
    }
    within(pool.shutdown_within(Some(Duration::from_millis(50)))).await;
    for mut stream in streams {
        let ended = within(stream.next()).await.unwrap().unwrap_err();
        assert_eq!(ended.failed().unwrap().kind(), QueryErrorKind::ShuttingDown, "{ended:?}");
        assert!(stream.next().await.is_none());
    }
}

async fn a_respawn_leaves_them_where_they_are(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut old = pool.create_stream().await.unwrap();
    let before = pid(&mut old).await;
    let respawn = tokio::spawn({
        let pool = pool.clone();
        async move { pool.respawn().await }
    });
    eventually("another worker serves", || pids(&pool).iter().any(|pid| *pid != before)).await;
    let mut new = within(pool.create_stream()).await.unwrap();
    let after = pid(&mut new).await;
    assert_ne!(after, before);
    for _ in 0..20 {
        assert_eq!(pid(&mut old).await, before);
    }
    within(old.close()).await.unwrap();
    within(respawn).await.unwrap().unwrap();
    gone_within(before, Duration::ZERO);
    // One that was given up waiting for, for a stream goes on, is no reason for the next one to wait.
    let mut endless = within(pool.create_stream()).await.unwrap();
    let first = pid(&mut endless).await;
    let respawn = tokio::spawn({
        let pool = pool.clone();
        async move { pool.respawn().await }
    });
    eventually("another worker serves", || pids(&pool).iter().any(|pid| *pid != first)).await;
    respawn.abort();
    within(pool.respawn_with(1, Some(Duration::from_millis(50)))).await.unwrap();
    gone_within(first, Duration::ZERO);
    // Or until the deadline of the drain.
    within(pool.respawn_with(1, Some(Duration::from_millis(50)))).await.unwrap();
    let ended = within(new.next()).await.unwrap().unwrap_err();
    let Some(QueryError::WorkerLost(lost)) = ended.failed() else { panic!("{ended:?}") };
    assert_eq!((lost.pid, &lost.cause), (after, &ExitCause::Requested));
    assert_eq!(pool.info().crashes, 0);
}

async fn a_broadcast_reaches_all_that_are_open(transport: AnyTransport) {
    let pool = talks(transport).workers(2).start().await.unwrap();
    assert_eq!(within(pool.broadcast(&Say::Pid)).await.unwrap(), 0);
    let mut streams = Vec::new();
    for _ in 0..30 {
        streams.push(pool.create_stream().await.unwrap());
    }
    let mut ended = pool.create_stream().await.unwrap();
    ended.write(&Say::Leave).await.unwrap();
    assert!(within(ended.next()).await.is_none());
    assert_eq!(within(pool.broadcast(&Say::Pid)).await.unwrap(), 30);
    let mut all = HashSet::new();
    for stream in &mut streams {
        all.insert(format!("{:?}", within(stream.next()).await.unwrap().unwrap()));
    }
    assert_eq!(all.len(), 2);
    // One that has no room keeps nobody waiting but the broadcast itself.
    streams[0].write(&Say::Deafen).await.unwrap();
    let stuck = tokio::time::timeout(Duration::from_millis(100), async {
        loop {
            streams[0].write(&Say::Pid).await.unwrap();
        }
    });
    assert!(stuck.await.is_err());
    let broadcast = tokio::spawn(pool.broadcast(&Say::Pid));
    for stream in &mut streams[1..] {
        within(stream.next()).await.unwrap().unwrap();
    }
    assert!(!broadcast.is_finished());
    drop(streams.remove(0));
    assert_eq!(within(broadcast).await.unwrap().unwrap(), 29);
}

async fn a_full_worker_takes_the_next_one_when_it_has_room(transport: AnyTransport) {
    let pool: pm::StreamManager<Say, Heard> = pool_of(&FEW, transport).streams().start().await.unwrap();
    let mut first = pool.create_stream().await.unwrap();
    let second = pool.create_stream().await.unwrap();
    pid(&mut first).await;
    let mut third = Box::pin(pool.create_stream());
    let none = tokio::time::timeout(Duration::from_millis(100), &mut third).await;
    assert!(none.is_err(), "it has two");
    assert_eq!(pool.info().queued, 1);
    within(second.close()).await.unwrap();
    let mut third = within(third).await.unwrap();
    pid(&mut third).await;
    // One that is dropped while it waits leaves the line.
    let mut fourth = Box::pin(pool.create_stream());
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut fourth).await.is_err());
    drop(fourth);
    assert_eq!(pool.info().queued, 0);
    within(first.close()).await.unwrap();
    within(third.close()).await.unwrap();
    eventually("nothing is open", || pool.info().load == 0).await;
}

/// A handler that waits for something else is dropped, and its slot is free again.
async fn cancelling_ends_the_handler(transport: AnyTransport) {
    let pool: pm::StreamManager<Say, Heard> = pool_of(&FEW, transport).streams().start().await.unwrap();
    for _ in 0..10 {
        let mut stream = within(pool.create_stream()).await.unwrap();
        stream.write(&Say::Deafen).await.unwrap();
        stream.cancel();
    }
    eventually("nothing is open", || pool.info().load == 0).await;
    assert_eq!(pool.info().crashes, 0);
}

/// None of its other streams could go on either.
async fn a_worker_that_never_gives_way_is_killed(transport: AnyTransport) {
    let (heard, mut notices) = tokio::sync::mpsc::unbounded_channel();
    let builder = talks(transport).workers(1).cancel_grace(Duration::from_millis(100));
    let pool = builder.on_notice(move |_, _| heard.send(()).unwrap_or_default()).start().await.unwrap();
    let (mut wedged, mut other) = (pool.create_stream().await.unwrap(), pool.create_stream().await.unwrap());
    let first = pid(&mut other).await;
    within(wedged.write(&Say::Hog)).await.unwrap();
    // A cancel that comes along with the message would be heard before it.
    within(notices.recv()).await.unwrap();
    wedged.cancel();
    let error = within(other.next()).await.expect("an error").unwrap_err();
    match error.failed() {
        Some(QueryError::WorkerLost(lost)) => {
            assert!(matches!(lost.cause, ExitCause::Unresponsive { .. }), "{lost}");
        }
        _ => panic!("{error}"),
    }
    gone_within(first, LIMIT);
    let mut next = within(pool.create_stream()).await.unwrap();
    assert_ne!(pid(&mut next).await, first);
}

async fn one_worker_alone(transport: AnyTransport) {
    let worker = talks(transport).start_worker().await.unwrap();
    let mut stream = worker.create_stream().await.unwrap();
    assert_eq!(pid(&mut stream).await, worker.info().unwrap().pid);
    stream.write(&Say::Abort).await.unwrap();
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert!(matches!(error.failed(), Some(QueryError::WorkerLost(_))), "{error:?}");
    let error = within(worker.create_stream()).await.unwrap_err();
    assert!(matches!(error.failed(), Some(QueryError::GaveUp { .. })), "{error:?}");
    within(worker.release()).await;
}

async fn a_handler_may_close_its_end(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    stream.write(&Say::Close).await.unwrap();
    stream.write(&Say::Pid).await.unwrap();
    assert!(within(stream.next()).await.is_none());
    within(stream.close()).await.unwrap();
}

/// Whether its call comes before or after the worker has said that it reads nothing more.
async fn a_call_that_nobody_reads_is_unanswered(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    for round in 0..100 {
        let mut stream = pool.create_stream().await.unwrap();
        stream.write(&Say::Unread).await.unwrap();
        for _ in 0..round % 4 {
            tokio::task::yield_now().await;
        }
        let error = within(stream.call(&Say::Pid)).await.unwrap_err();
        assert!(matches!(error, StreamError::Unanswered | StreamError::Ended), "{error:?}");
        stream.cancel();
    }
}

async fn the_errors_of_many_handlers_reach_their_readers(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let talk = |number: u8| {
        let pool = pool.clone();
        async move {
            let mut stream = pool.create_stream().await.unwrap();
            for _ in 0..number % 5 {
                stream.write(&Say::Echo(vec![number])).await.unwrap();
            }
            stream.write(&Say::Fail("sour".into())).await.unwrap();
            for _ in 0..number % 5 {
                assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::Bytes(vec![number]));
            }
            let error = within(stream.next()).await.expect("an error, and not a quiet end").unwrap_err();
            assert!(matches!(error.failed(), Some(QueryError::Handler(_))), "{error:?}");
        }
    };
    for _ in 0..5 {
        let all: Vec<_> = (0..200).map(|number| tokio::spawn(talk(number))).collect();
        for one in all {
            one.await.unwrap();
        }
    }
}

async fn errors_are_cut_to_fit(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    let long = "é".repeat(1 << 20);
    stream.write(&Say::Complain(long.clone())).await.unwrap();
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, StreamError::Sent(sent) if sent.message.chars().count() == 64 << 10), "{error}");
    within(stream.write_error(&long)).await.unwrap();
    let error = within(stream.next()).await.unwrap().unwrap_err();
    contains(error.to_string(), "ééé");
    assert_eq!(pool.info().crashes, 0);
}

/// The link is full, for its worker computes; whoever waits for room waits, and does not ask for it again and again.
async fn writers_that_wait_cost_nothing(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut busy = pool.create_stream().await.unwrap();
    let mut writers = Vec::new();
    for _ in 0..8 {
        let mut stream = pool.create_stream().await.unwrap();
        pid(&mut stream).await;
        writers.push(stream);
    }
    busy.write(&Say::Block(Duration::from_millis(1500))).await.unwrap();
    let writers: Vec<_> = writers
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                for _ in 0..300 {
                    stream.write(&Say::Echo(vec![0; 4096])).await.unwrap();
                    // What comes back is dropped.
                    while tokio::time::timeout(Duration::ZERO, stream.next()).await.is_ok() {}
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = processor_time();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let burnt = processor_time() - before;
    assert!(burnt < Duration::from_millis(150), "{burnt:?} in half a second of waiting");
    for writer in writers {
        within(writer).await.unwrap();
    }
    within(busy.close()).await.unwrap();
}

/// Of this process so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("it has begun")
}

async fn cancels_that_find_no_room_are_not_lost(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let mut all = Vec::new();
    for _ in 0..9_000 {
        all.push(pool.create_stream().await.unwrap());
    }
    let mut busy = pool.create_stream().await.unwrap();
    pid(&mut busy).await;
    busy.write(&Say::Block(Duration::from_millis(700))).await.unwrap();
    for _ in 0..4 {
        let mut flood = pool.create_stream().await.unwrap();
        let full = async {
            for _ in 0..100 {
                flood.write(&Say::Block(Duration::ZERO)).await.unwrap();
                flood.write(&Say::Echo(vec![0; 200_000])).await.unwrap();
            }
        };
        drop(tokio::time::timeout(Duration::from_millis(20), full).await);
        all.push(flood);
    }
    for stream in all {
        stream.cancel();
    }
    eventually("all are cancelled", || pool.info().load == 1).await;
    within(busy.close()).await.unwrap();
    within(pool.shutdown_within(None)).await;
    assert_eq!(pool.info().crashes, 0);
}

/// A worker that is a thread finds that its pool is gone while it writes.
async fn a_thread_that_writes_ends_with_its_pool() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("pm-few-talk")).count()
    };
    for round in 0..20 {
        let pool: pm::StreamManager<Say, Heard> =
            pool_of(&FEW, AnyTransport::Uds(pm::Uds)).streams().in_process().start().await.unwrap();
        let mut stream = pool.create_stream().await.unwrap();
        stream.write(&Say::Count(u64::MAX)).await.unwrap();
        for _ in 0..round * 10 {
            within(stream.next()).await.unwrap().unwrap();
        }
        drop(pool);
        while within(stream.next()).await.is_some() {}
    }
    eventually("the threads have ended", || threads() == 0).await;
}

async fn ten_thousand_on_one_worker(transport: AnyTransport) {
    let pool = talks(transport).start().await.unwrap();
    let before = resident(std::process::id());
    let mut streams = Vec::new();
    for _ in 0..10_000 {
        streams.push(pool.create_stream().await.unwrap());
    }
    assert_eq!(pool.info().load, 10_000);
    let grown = resident(std::process::id()).saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes for 10,000 idle streams, in a debug build");
    for stream in &mut streams {
        stream.write(&Say::Echo(vec![5])).await.unwrap();
    }
    for stream in &mut streams {
        assert_eq!(within(stream.next()).await.unwrap().unwrap(), Heard::Bytes(vec![5]));
    }
    for stream in streams {
        within(stream.close()).await.unwrap();
    }
    eventually("nothing is open", || pool.info().load == 0).await;
    within(pool.shutdown()).await;
}

async fn in_process(_: AnyTransport) {
    let pool = TALK.pool().in_process().start().await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    assert_eq!(ask(&mut stream, Say::Echo(vec![3])).await, Heard::Bytes(vec![3]));
    stream.write(&Say::Fail("pickle".into())).await.unwrap();
    contains(within(stream.next()).await.unwrap().unwrap_err().to_string(), "pickle");
    let _open = pool.create_stream().await.unwrap();
    within(pool.shutdown_within(Some(Duration::ZERO))).await;
}
