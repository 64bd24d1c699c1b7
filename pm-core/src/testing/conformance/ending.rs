//! The end of a link.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::content::{Ledger, frame, header, payload};
use super::subject::{Bell, PATIENCE, SOON, Subject, aside, flush, recv, recv_frame, send, within, within_time};
use crate::machine::frame::BadFrame;
use crate::transport::{LinkError, LinkRx, LinkTx, Transport};

/// How often an end is tried, for it may meet its reader in different places.
const ROUNDS: u64 = 60;

pub(super) async fn everything_comes_before_it<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    for round in 0..ROUNDS {
        let frames = round % 7;
        let size = move |n: u64| ((n * 977 + round * 131) % 40_000) as usize;
        let (tx, mut rx, wire) = subject.open().await?;
        let sent = aside(move || (1..=frames).try_for_each(|n| wire.send(&frame(n, size(n)))));
        let mut ledger = Ledger::default();
        loop {
            match recv(&mut rx).await? {
                Ok((header, payload)) => ledger.note(header, &payload, size),
                Err(LinkError::Closed) => break,
                Err(error) => return Err(format!("round {round}: the link ended with: {error}")),
            }
        }
        within("the worker's last write", sent).await??;
        ledger.check(frames).map_err(|why| format!("round {round}: at the manager: {why}"))?;
        drop(tx);

        let (mut tx, rx, mut wire) = subject.open().await?;
        let received = aside(move || {
            let mut ledger = Ledger::default();
            while let Some((header, payload)) = wire.recv()? {
                ledger.note(header, &payload, size);
            }
            Ok(ledger)
        });
        for n in 1..=frames {
            send(&mut tx, header(n), &payload(n, size(n))).await?;
        }
        flush(&mut tx).await?;
        drop((tx, rx));
        let ledger = within("the worker's last read", received).await??;
        ledger.check(frames).map_err(|why| format!("round {round}: at the worker: {why}"))?;
    }
    Ok(())
}

/// A worker that dies has not read all that was sent to it. What it had answered by then counts. TCP cannot pass: it resets
/// such a connection, and with it goes what has not left the worker's host yet.
pub(super) async fn unread_input_costs_no_answers<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    const FRAMES: u64 = 100;
    for round in 0..ROUNDS {
        let (mut tx, mut rx, wire) = subject.open().await?;
        for n in 1..=10 {
            send(&mut tx, header(n), &payload(n, 100)).await?;
        }
        flush(&mut tx).await?;
        within("the worker's end", aside(move || (1..=FRAMES).try_for_each(|n| wire.send(&frame(n, 100))))).await??;
        let mut ledger = Ledger::default();
        // An end that is not the peer's own choice may have another name.
        while let Ok((header, payload)) = recv(&mut rx).await? {
            ledger.note(header, &payload, |_| 100);
        }
        ledger.check(FRAMES).map_err(|why| format!("round {round}: {why}"))?;
    }
    Ok(())
}

pub(super) async fn inside_a_frame<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let cut_frame = frame(2, 5);
    for cut in 1..cut_frame.len() {
        let (_tx, mut rx, wire) = subject.open().await?;
        wire.send(&[&frame(1, 3), &cut_frame[..cut]].concat())?;
        drop(wire);
        recv_frame(&mut rx).await?;
        match recv(&mut rx).await? {
            Err(LinkError::BadFrame(BadFrame::Truncated { have })) if have == cut => {}
            other => return Err(format!("the end after {cut} bytes of a frame gave {other:?}")),
        }
    }
    Ok(())
}

pub(super) async fn manager_sees_it_soon<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    for round in 0..ROUNDS {
        let (_tx, mut rx, wire) = subject.open().await?;
        if round % 2 == 1 {
            wire.send(&frame(1, 10))?;
            recv_frame(&mut rx).await?;
        }
        let bell = Bell::new();
        if bell.poll(|cx| rx.poll_fill(cx)).is_ready() && rx.next().is_ok_and(|frame| frame.is_some()) {
            return Err("a frame that nobody sent".to_string());
        }
        drop(wire);
        let ended = within_time(SOON, "the end of the worker", recv(&mut rx)).await??;
        match ended {
            Err(LinkError::Closed) => {}
            other => return Err(format!("round {round}: the link ended with {other:?}")),
        }
    }
    Ok(())
}

pub(super) async fn worker_sees_it_soon<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    for round in 0..ROUNDS {
        let (tx, rx, mut wire) = subject.open().await?;
        let waiting = Bell::new();
        let bell = waiting.clone();
        let ended = aside(move || {
            std::task::Wake::wake(bell);
            wire.recv()
        });
        waiting.rung("the worker's thread").await?;
        if round % 2 == 0 {
            drop(tx);
            drop(rx);
        } else {
            drop(rx);
            drop(tx);
        }
        if within_time(SOON, "the end of the manager, at a worker that receives", ended).await??.is_some() {
            return Err("the worker received a frame that nobody sent".to_string());
        }

        let (tx, mut rx, wire) = subject.open().await?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let ended = aside(move || {
            let began = Instant::now();
            while began.elapsed() < 2 * PATIENCE {
                if wire.send(&frame(counter.fetch_add(1, Ordering::SeqCst), 30_000)).is_err() {
                    return Ok(());
                }
            }
            Err("a worker that sends to a manager that is gone never gets an error".to_string())
        });
        recv_frame(&mut rx).await?;
        drop((tx, rx));
        within_time(SOON, "the end of the manager, at a worker that sends", ended).await??;
    }
    Ok(())
}

pub(super) async fn errors_are_final<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, mut rx, wire) = subject.open().await?;
    drop(wire);
    let began = Instant::now();
    while send(&mut tx, header(1), &payload(1, 1000)).await.is_ok() && flush(&mut tx).await.is_ok() {
        if began.elapsed() > PATIENCE {
            return Err("a link whose worker is gone takes frames for ever".to_string());
        }
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        if let Ok(taken) = tx.push(header(2), &payload(2, 10)) {
            return Err(format!("a push after an error gave {taken}: the call would be lost"));
        }
        if within("flush", std::future::poll_fn(|cx| tx.poll_flush(cx))).await?.is_ok() {
            return Err("a flush after an error succeeded".to_string());
        }
    }
    for _ in 0..10 {
        if let Ok((header, _)) = recv(&mut rx).await? {
            return Err(format!("a frame came after the end: {header:?}"));
        }
        if within("receive", std::future::poll_fn(|cx| rx.poll_fill(cx))).await?.is_ok() {
            return Err("a link that has ended goes on".to_string());
        }
    }
    Ok(())
}
