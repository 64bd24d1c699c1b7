//! Links share nothing, and offers leave nothing behind.

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::content::{frame, header, payload};
use super::subject::{Subject, flush, push, recv, recv_frame, send};
use crate::transport::{Accept, Identity, LinkError, Transport};

pub(super) async fn links_share_nothing<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    // Both stand before either is taken, and they are taken the other way round.
    let (first, first_accept) = subject.offer()?;
    let (second, second_accept) = subject.offer()?;
    let (mut tx, mut rx, mut wire) = subject.join(second, second_accept).await?;
    let (mut other_tx, mut other_rx, other_wire) = subject.join(first, first_accept).await?;
    other_wire.send(&frame(1, 10))?;
    wire.send(&frame(2, 10))?;
    for (rx, expected) in [(&mut rx, 2), (&mut other_rx, 1)] {
        let (found, _) = recv_frame(rx).await?;
        if found.id != expected {
            return Err(format!("frame {} of the one link came on the other", found.id));
        }
    }
    // The one is full and then hostile and then gone; the other goes on.
    let mut room = 1000;
    while room > 0 && push(&mut other_tx, header(1), &payload(1, 60_000))? {
        room -= 1;
    }
    other_wire.send(&[0; 64])?;
    match recv(&mut other_rx).await? {
        Err(LinkError::BadFrame(_)) => {}
        other => return Err(format!("a frame of length 0 gave {other:?}")),
    }
    let mut n = 2;
    let mut goes_on = async |when: &str| -> Result<(), String> {
        n += 1;
        let at = |why| format!("the other link, {when}: {why}");
        wire.send(&frame(n, 10)).map_err(at)?;
        send(&mut tx, header(n), &payload(n, 10)).await.map_err(at)?;
        flush(&mut tx).await.map_err(at)?;
        let (found, _) = recv_frame(&mut rx).await.map_err(at)?;
        let read = wire.recv().map_err(at)?.map(|(header, _)| header.id);
        if (found.id, read) != (n, Some(n)) {
            return Err(at(format!("frame {n} came as {} and {read:?}", found.id)));
        }
        Ok(())
    };
    goes_on("while the one is full and broken").await?;
    drop(other_wire);
    goes_on("after the worker of the one has gone").await?;
    drop((other_tx, other_rx));
    goes_on("after the one has gone").await
}

pub(super) async fn unused_offers_leave_nothing<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    // So many that what others open and close meanwhile cannot be taken for a leak. The rounds are for the rest of the doubt.
    const EACH: usize = 100;
    const LEAK: usize = EACH * 3 / 4;
    let mut grown = Vec::new();
    for _ in 0..5 {
        let before = descriptors()?;
        for _ in 0..EACH {
            drop(subject.offer()?);
            let (offer, accept) = subject.offer()?;
            drop(offer);
            drop(accept);
            // The start was given up while the worker was awaited.
            let (offer, accept) = subject.offer()?;
            let peer = Identity { pid: std::process::id() };
            {
                let mut accepting = pin!(accept.accept(&peer));
                let polled = accepting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                drop(polled);
            }
            drop(offer);
            // The worker was there, and the manager was not any more.
            let (offer, accept) = subject.offer()?;
            let wire = subject.connect(offer).await?;
            drop(accept);
            drop(wire);
            tokio::task::yield_now().await;
        }
        let after = descriptors()?;
        if after < before + LEAK {
            return Ok(());
        }
        grown.push(after - before);
    }
    Err(format!("{} offers that nobody took left descriptors behind, round by round {grown:?}", 4 * EACH))
}

fn descriptors() -> Result<usize, String> {
    Ok(fs::read_dir("/proc/self/fd").map_err(|error| format!("/proc/self/fd: {error}"))?.count())
}
