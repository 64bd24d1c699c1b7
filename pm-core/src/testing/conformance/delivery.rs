//! Frames arrive once, whole and in order.

use std::sync::Arc;

use super::content::{Ledger, frame, header, payload, some_size};
use super::subject::{RxOf, Subject, TxOf, Wire, aside, flush, push, recv, recv_frame, send, within};
use crate::machine::frame::MAX_PAYLOAD;
use crate::transport::{LinkError, Transport};

/// Enough that a fault of one frame in a thousand strikes some twenty times.
const CROWD: u64 = 20_000;

/// Sizes around the limits that transports have: cache lines and cells, pages, what a pipe takes at once, and the largest of all.
const SIZES: [usize; 26] = [
    0,
    1,
    2,
    3,
    11,
    12,
    13,
    47,
    48,
    49,
    63,
    64,
    65,
    111,
    112,
    113,
    4095,
    4096,
    4097,
    65_519,
    65_520,
    65_535,
    65_536,
    65_537,
    1 << 20,
    MAX_PAYLOAD,
];

pub(super) async fn order_to_manager<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (_tx, mut rx, wire) = subject.open().await?;
    let sent = aside(move || {
        let mut batch = Vec::new();
        for n in 1..=CROWD {
            batch.extend_from_slice(&frame(n, some_size(n)));
            if n % (1 + n % 7) == 0 {
                wire.send(&batch)?;
                batch.clear();
            }
        }
        wire.send(&batch)
    });
    let ledger = manager_reads_all::<T>(&mut rx).await?;
    within("the worker's last write", sent).await??;
    ledger.check(CROWD)
}

pub(super) async fn order_to_worker<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, rx, wire) = subject.open().await?;
    let received = aside(move || worker_reads_all(wire, some_size));
    for n in 1..=CROWD {
        send(&mut tx, header(n), &payload(n, some_size(n))).await?;
        if n % (1 + n % 7) == 0 {
            flush(&mut tx).await?;
        }
    }
    flush(&mut tx).await?;
    drop((tx, rx));
    within("the worker's last read", received).await??.check(CROWD)
}

pub(super) async fn sizes_to_manager<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (_tx, mut rx, wire) = subject.open().await?;
    let sent = aside(move || (1..).zip(SIZES).try_for_each(|(n, size)| wire.send(&frame(n, size))));
    let mut ledger = Ledger::default();
    for _ in SIZES {
        let (header, payload) = recv_frame(&mut rx).await?;
        ledger.note(header, &payload, |n| SIZES[n as usize - 1]);
    }
    within("the worker's last write", sent).await??;
    ledger.check(SIZES.len() as u64)
}

pub(super) async fn sizes_to_worker<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, mut rx, mut wire) = subject.open().await?;
    let received = aside(move || {
        let mut ledger = Ledger::default();
        while let Some((found, bytes)) = wire.recv()? {
            ledger.note(found, &bytes, |n| SIZES[n as usize - 1]);
            wire.send(&frame(found.id, 0))?;
        }
        Ok(ledger)
    });
    for (n, size) in (1..).zip(SIZES) {
        // The worker has read all that came before, so the link is empty.
        if !push(&mut tx, header(n), &payload(n, size))? {
            return Err(format!("an empty link has no room for a payload of {size} bytes"));
        }
        flush(&mut tx).await?;
        recv_frame(&mut rx).await?;
    }
    drop((tx, rx));
    within("the worker's last read", received).await??.check(SIZES.len() as u64)
}

pub(super) async fn byte_by_byte<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    const FRAMES: u64 = 50;
    let (_tx, mut rx, wire) = subject.open().await?;
    let sent = aside(move || {
        for n in 1..=FRAMES {
            for byte in frame(n, some_size(n)) {
                wire.send(&[byte])?;
            }
        }
        Ok(())
    });
    let ledger = manager_reads_all::<T>(&mut rx).await?;
    within("the worker's last write", sent).await??;
    ledger.check(FRAMES)
}

pub(super) async fn both_directions_at_once<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    const FRAMES: u64 = 2000;
    let size = |n: u64| 1 + (n * 37 % 20_000) as usize;
    let (mut tx, mut rx, mut wire) = subject.open().await?;
    let sender = wire.sender();
    let sent = aside(move || {
        for n in 1..=FRAMES {
            sender.send(&frame(n, size(n))).map_err(|error| format!("the worker cannot send: {error}"))?;
        }
        Ok(())
    });
    let received = aside(move || {
        let mut ledger = Ledger::default();
        while ledger.count() < FRAMES {
            let Some((header, payload)) = wire.recv()? else { break };
            ledger.note(header, &payload, size);
        }
        Ok((ledger, wire))
    });
    let sending = async {
        for n in 1..=FRAMES {
            send(&mut tx, header(n), &payload(n, size(n))).await?;
        }
        flush(&mut tx).await
    };
    let receiving = async {
        let mut ledger = Ledger::default();
        while ledger.count() < FRAMES {
            let (header, payload) = recv_frame(&mut rx).await?;
            ledger.note(header, &payload, size);
        }
        Ok(ledger)
    };
    let ((), at_manager) = tokio::try_join!(sending, receiving)?;
    within("the worker's last write", sent).await??;
    let (at_worker, _wire) = within("the worker's last read", received).await??;
    at_manager.check(FRAMES).map_err(|why| format!("at the manager: {why}"))?;
    at_worker.check(FRAMES).map_err(|why| format!("at the worker: {why}"))
}

pub(super) async fn too_large_is_refused<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (mut tx, _rx, mut wire) = subject.open().await?;
    match tx_push_zeros::<T>(&mut tx, MAX_PAYLOAD + 1) {
        Err(LinkError::TooLarge { .. }) => {}
        other => return Err(format!("a payload of {} bytes gave {other:?}", MAX_PAYLOAD + 1)),
    }
    send(&mut tx, header(1), &payload(1, 10)).await?;
    flush(&mut tx).await?;
    let first = within("the next frame", aside(move || wire.recv())).await??;
    match first {
        Some((found, bytes)) if found == header(1) && bytes == payload(1, 10) => Ok(()),
        other => Err(format!("something of the refused frame was sent: {:?}", other.map(|(header, _)| header))),
    }
}

fn tx_push_zeros<T: Transport>(tx: &mut TxOf<T>, size: usize) -> Result<bool, LinkError> {
    use crate::transport::LinkTx;
    tx.push(header(9), &vec![0; size])
}

/// Reads to the end of the link.
async fn manager_reads_all<T: Transport>(rx: &mut RxOf<T>) -> Result<Ledger, String> {
    let mut ledger = Ledger::default();
    loop {
        match recv(rx).await? {
            Ok((header, payload)) => ledger.note(header, &payload, some_size),
            Err(LinkError::Closed) => return Ok(ledger),
            Err(error) => return Err(format!("the link ended after {} frames: {error}", ledger.count())),
        }
    }
}

fn worker_reads_all(mut wire: Wire, size: impl Fn(u64) -> usize) -> Result<Ledger, String> {
    let mut ledger = Ledger::default();
    while let Some((header, payload)) = wire.recv()? {
        ledger.note(header, &payload, &size);
    }
    Ok(ledger)
}
