//! Whoever waits is woken.

use std::hint;
use std::sync::Arc;
use std::time::Duration;

use super::content::{Ledger, frame, header, payload};
use super::subject::{Bell, PATIENCE, Subject, aside, flush, recv_frame, send, within};
use crate::machine::budget::SplitMix;
use crate::transport::{LinkRx, Transport};

/// There and back: 100,000 hand-offs.
const ROUNDS: u64 = 50_000;

pub(super) async fn data_wakes_the_last_waker<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (_tx, mut rx, wire) = subject.open().await?;
    let wire = Arc::new(wire);
    for n in 1..=100 {
        let (first, second) = (Bell::new(), Bell::new());
        for bell in [&first, &second] {
            // It may find what the round before left, but not for ever.
            let mut polls = 0;
            while bell.poll(|cx| rx.poll_fill(cx)).is_ready() {
                polls += 1;
                if polls > 100 {
                    return Err("a link on which nothing comes is ready all the time".to_string());
                }
                if let Some(frame) = rx.next().map_err(|error| format!("receive: {error}"))? {
                    return Err(format!("a frame that nobody sent: {:?}", frame.header));
                }
            }
        }
        let sender = wire.clone();
        let sent = aside(move || sender.send(&frame(n, 10)));
        let filled = second.until_ready("the wake-up of a reader that waits", |cx| rx.poll_fill(cx)).await?;
        filled.map_err(|error| format!("receive: {error}"))?;
        let (found, _) = recv_frame(&mut rx).await?;
        within("the worker's write", sent).await??;
        if found.id != n {
            return Err(format!("frame {} came in the place of frame {n}", found.id));
        }
    }
    Ok(())
}

pub(super) async fn hand_offs<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, mut rx, mut wire) = subject.open().await?;
    let echo = aside(move || {
        let mut random = SplitMix(1);
        while let Some((found, bytes)) = wire.recv()? {
            dawdle(&mut random);
            let mut whole = found.encode(bytes.len()).to_vec();
            whole.extend_from_slice(&bytes);
            wire.send(&whole)?;
        }
        Ok(())
    });
    let mut random = SplitMix(2);
    for n in 1..=ROUNDS {
        dawdle(&mut random);
        send(&mut tx, header(n), &payload(n, 24)).await?;
        flush(&mut tx).await?;
        let (found, bytes) = recv_frame(&mut rx).await.map_err(|why| format!("hand-off {}: {why}", 2 * n))?;
        if found != header(n) || bytes != payload(n, 24) {
            return Err(format!("frame {found:?} came in the place of frame {n}"));
        }
    }
    drop((tx, rx));
    within("the worker's end", echo).await?
}

pub(super) async fn full_link_hand_offs<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    // More than a link holds besides, so that somebody has to wait for most of them.
    const SIZE: usize = 300 << 10;
    const FRAMES: u64 = (96 << 20) / SIZE as u64;
    let (mut tx, _rx, mut wire) = subject.open().await?;
    let received = aside(move || {
        let mut ledger = Ledger::default();
        while ledger.count() < FRAMES {
            let Some((header, payload)) = wire.recv()? else { break };
            ledger.note(header, &payload, |_| SIZE);
        }
        Ok((ledger, wire))
    });
    for n in 1..=FRAMES {
        send(&mut tx, header(n), &payload(n, SIZE)).await?;
        flush(&mut tx).await.map_err(|why| format!("frame {n}: {why}"))?;
    }
    let (ledger, _wire) = within("the worker's last read", received).await??;
    ledger.check(FRAMES)
}

pub(super) async fn worker_waits<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, rx, mut wire) = subject.open().await?;
    if wire.wait(Duration::from_millis(20))? {
        return Err("the worker's wait says that something came, and nothing did".to_string());
    }
    let sent = Bell::new();
    let bell = sent.clone();
    let waited = aside(move || {
        std::task::Wake::wake(bell);
        let came = wire.wait(PATIENCE)?;
        let again = wire.wait(Duration::ZERO)?;
        let first = wire.recv()?;
        let end = wire.wait(PATIENCE)?;
        let last = wire.recv()?;
        Ok((came, again, first.map(|(header, _)| header.id), end, last.is_none()))
    });
    sent.rung("the worker's thread").await?;
    send(&mut tx, header(1), &payload(1, 5)).await?;
    flush(&mut tx).await?;
    drop((tx, rx));
    match within("the worker's wait", waited).await?? {
        (true, true, Some(1), true, true) => Ok(()),
        (came, again, first, end, last) => Err(format!(
            "the worker's wait says {came} and {again} where a frame came, and {end} at the end; it read {first:?}, then the end: {last}"
        )),
    }
}

/// Takes up to a microsecond or so, so that the two halves meet in ever new ways.
fn dawdle(random: &mut SplitMix) {
    for _ in 0..random.below(200) {
        hint::spin_loop();
    }
}
