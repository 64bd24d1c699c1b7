//! A slow reader slows the sender down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::content::{Ledger, frame, header, payload};
use super::subject::{Bell, Subject, aside, flush, push, recv_frame, within};
use crate::transport::{LinkRx, LinkTx, Transport};

/// What a link may hold that nobody reads: no more than the largest frame.
const BOUND: u64 = 64 << 20;

/// The size of the frames that fill a link.
const SIZE: usize = 16 << 10;

/// What one fill may take in, and what of it may have come before the last complete frame.
const FILL: usize = 2 << 20;

pub(super) async fn full_link_refuses<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, mut rx, mut wire) = subject.open().await?;
    let filled = fill_up(&mut tx, 0).await?;
    // The other direction knows nothing of it.
    let sender = wire.sender();
    let other = aside(move || sender.send(&frame(1, 1000)).map_err(|error| format!("the worker cannot send: {error}")));
    recv_frame(&mut rx).await?;
    within("a write against the full direction", other).await??;
    let last = filled + 1;
    let read = aside(move || {
        let mut ledger = Ledger::default();
        while ledger.count() < last {
            let Some((header, payload)) = wire.recv()? else { break };
            ledger.note(header, &payload, |_| SIZE);
        }
        Ok((ledger, wire))
    });
    flush(&mut tx).await?;
    if !push(&mut tx, header(last), &payload(last, SIZE))? {
        return Err("a link whose frames are all on their way has no room".to_string());
    }
    flush(&mut tx).await?;
    let (ledger, _wire) = within("the worker's last read", read).await??;
    ledger.check(last)
}

pub(super) async fn room_wakes_the_last_waker<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, _rx, mut wire) = subject.open().await?;
    let (first, second) = (Bell::new(), Bell::new());
    let mut filled = 0;
    // A kernel may find room after all while its buffers settle.
    while {
        filled = fill_up(&mut tx, filled).await?;
        first.poll(|cx| tx.poll_flush(cx)).is_ready() || second.poll(|cx| tx.poll_flush(cx)).is_ready()
    } {}
    let read = aside(move || {
        let mut ledger = Ledger::default();
        while ledger.count() < filled {
            let Some((header, payload)) = wire.recv()? else { break };
            ledger.note(header, &payload, |_| SIZE);
        }
        Ok((ledger, wire))
    });
    let flushed = second.until_ready("the wake-up of a writer that waits for room", |cx| tx.poll_flush(cx)).await?;
    flushed.map_err(|error| format!("flush: {error}"))?;
    let (ledger, _wire) = within("the worker's last read", read).await??;
    ledger.check(filled)
}

pub(super) async fn slow_manager_holds_the_worker<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let frames = (BOUND + (32 << 20)) / SIZE as u64;
    let (_tx, mut rx, wire) = subject.open().await?;
    let progress = Arc::new(AtomicU64::new(0));
    let counter = progress.clone();
    let sent = aside(move || {
        for n in 1..=frames {
            wire.send(&frame(n, SIZE))?;
            counter.store(n, Ordering::SeqCst);
        }
        Ok(wire)
    });
    let mut before = u64::MAX;
    loop {
        let now = progress.load(Ordering::SeqCst);
        if now * SIZE as u64 > BOUND {
            return Err(format!("the worker sent {now} frames of {SIZE} bytes that nobody reads"));
        }
        if now == before {
            break;
        }
        before = now;
        // Nothing is waited for here: a worker that sends no more cannot tell.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut ledger = Ledger::default();
    while ledger.count() < frames {
        let (header, payload) = recv_frame(&mut rx).await?;
        ledger.note(header, &payload, |_| SIZE);
    }
    within("the worker's last write", sent).await??;
    ledger.check(frames)
}

pub(super) async fn fills_are_bounded<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let frames = 16 << 10;
    let (_tx, mut rx, wire) = subject.open().await?;
    let sent = aside(move || {
        let batch: Vec<u8> = (1..=16).flat_map(|n| frame(n, 1000)).collect();
        (0..frames / 16).try_for_each(|_| wire.send(&batch)).map(|()| wire)
    });
    let mut came = 0;
    while came < frames {
        within("receive", std::future::poll_fn(|cx| rx.poll_fill(cx)))
            .await?
            .map_err(|error| format!("receive: {error}"))?;
        let mut bytes = 0;
        while let Some(frame) = rx.next().map_err(|error| format!("receive: {error}"))? {
            bytes += frame.payload.len();
            came += 1;
        }
        if bytes > FILL {
            return Err(format!("one fill took in {bytes} bytes: others never get their turn beside a busy worker"));
        }
    }
    within("the worker's last write", sent).await??;
    Ok(())
}

/// Pushes frames until the link has no room and moves none of them any more. Gives the number of the last.
async fn fill_up(tx: &mut impl LinkTx, mut last: u64) -> Result<u64, String> {
    let mut refused = 0;
    loop {
        let taken = push(tx, header(last + 1), &payload(last + 1, SIZE))?;
        last += u64::from(taken);
        if last * SIZE as u64 > BOUND {
            return Err(format!("the link took {last} frames of {SIZE} bytes that nobody reads"));
        }
        let flushed = tx.poll_flush(&mut Context::from_waker(Waker::noop()));
        match (taken, flushed) {
            (_, Poll::Ready(Err(error))) => return Err(format!("flush: {error}")),
            // A reactor that has not run yet may say that there is no room when there is.
            (false, Poll::Pending) if refused < 3 => refused += 1,
            (false, Poll::Pending) => return Ok(last),
            _ => refused = 0,
        }
        tokio::task::yield_now().await;
    }
}
