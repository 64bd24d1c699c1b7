//! Messages there and back between two threads that stall at random, over real memory, bells and sleeps: none is lost, and nobody sleeps for ever.

use std::future::poll_fn;
use std::time::Duration;

use pm_core::machine::frame::{Header, Kind};
use pm_core::transport::{Accept, Identity, Link, LinkRx, LinkTx, Transport};

use super::ring::Numbers;
use crate::{Shm, Wake, connect_over};

/// How many, unless the environment says so: `.ci/soak` asks for a hundred million.
const MESSAGES: u64 = 100_000;

/// Messages on their way at most.
const WINDOW: u64 = 2048;

/// Longer than any stall.
const LOST: Duration = Duration::from_secs(60);

/// Sleeps, gives up its turn or goes on.
fn stall(numbers: &mut Numbers) {
    match numbers.below(2000) {
        0 => std::thread::sleep(Duration::from_micros(numbers.below(200) as u64)),
        1..20 => std::thread::yield_now(),
        20..60 => (0..numbers.below(2000)).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

#[test]
fn no_message_and_no_wake_up_is_lost() {
    let messages = std::env::var("PM_STALLS").map_or(MESSAGES, |count| count.parse().expect("a number of messages"));
    for wake in [Wake::Adaptive, Wake::Park] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(there_and_back(wake, messages / 2));
    }
}

async fn there_and_back(wake: Wake, messages: u64) {
    let (offer, accept) = Shm::new().wake(wake).offer().expect("an offer");
    let (_, socket) = offer.fds.into_iter().next().expect("a socket");
    let worker = std::thread::spawn(move || {
        let link = connect_over(socket).expect("a link");
        let mut numbers = Numbers(7);
        let mut buffer = Vec::new();
        while link.recv(&mut buffer).is_ok_and(|count| count > 0) {
            // In parts of any size: frames need not be whole here.
            let part = 1 + numbers.below(buffer.len());
            stall(&mut numbers);
            if link.send(&buffer[..part]).and_then(|()| link.send(&buffer[part..])).is_err() {
                return;
            }
            buffer.clear();
        }
    });
    let link = accept.accept(&Identity { pid: std::process::id() }).await.expect("the manager's half");
    let (mut tx, mut rx) = link.split();
    let mut numbers = Numbers(11);
    let (mut sent, mut came) = (0, 0);
    while came < messages {
        for _ in 0..numbers.below(64) {
            if sent == messages || sent - came == WINDOW {
                break;
            }
            if !tx.push(Header::call(Kind::Req, sent), &sent.to_ne_bytes()).expect("the link is open") {
                break;
            }
            sent += 1;
        }
        stall(&mut numbers);
        let step = async {
            // Both ways go on at once: neither side waits for the other to read first.
            let mut flushed = false;
            poll_fn(|cx| {
                flushed |= tx.poll_flush(cx).is_ready();
                match rx.poll_fill(cx) {
                    std::task::Poll::Pending if flushed && sent == came => std::task::Poll::Ready(()),
                    filled => filled.map(|filled| filled.expect("the link is open")),
                }
            })
            .await;
        };
        tokio::time::timeout(LOST, step).await.unwrap_or_else(|_| panic!("asleep for ever after {came} of {sent}"));
        while let Some(frame) = rx.next().expect("whole frames") {
            assert_eq!((frame.header.id, &*frame.payload), (came, &came.to_ne_bytes()[..]));
            came += 1;
        }
    }
    drop((tx, rx));
    worker.join().expect("no panic");
}
