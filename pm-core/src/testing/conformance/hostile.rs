//! Bytes that are no frames.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::content::{frame, header};
use super::subject::{Subject, Wire, aside, recv, recv_frame, within};
use crate::machine::frame::{BadFrame, HEADER, Header, Kind, MAX_PAYLOAD};
use crate::transport::{LinkError, LinkRx, Transport};

/// The largest length field of a frame.
const MAX_LENGTH: u32 = (MAX_PAYLOAD + HEADER - 4) as u32;

pub(super) async fn bad_lengths<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    for length in [0, 1, 11, MAX_LENGTH + 1, 1 << 31, u32::MAX] {
        let bytes = [length.to_be_bytes().as_slice(), &[0; 60]].concat();
        is_refused(&subject, &bytes, |bad| match bad {
            BadFrame::TooShort(found) => found == length && length < 12,
            BadFrame::TooLong { length: found, .. } => found == length && length > MAX_LENGTH,
            _ => false,
        })
        .await
        .map_err(|why| format!("length {length}: {why}"))?;
    }
    Ok(())
}

pub(super) async fn bad_ids<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    for id in [1 << 53, u64::MAX] {
        let bytes = Header::call(Kind::Resp, id).encode(0);
        is_refused(&subject, &bytes, |bad| bad == BadFrame::BadId(id))
            .await
            .map_err(|why| format!("id {id}: {why}"))?;
    }
    Ok(())
}

/// What a kind means is not for the link to say.
pub(super) async fn unknown_kinds_pass<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    let (_tx, mut rx, wire) = subject.open().await?;
    for kind in 0..=255 {
        for flags in [0, 0x7f, 0x80, 0xff] {
            let sent = Header { kind, flags, ..header(7) };
            wire.send(&sent.encode(0))?;
            let (found, _) = recv_frame(&mut rx).await.map_err(|why| format!("kind {kind}, flags {flags}: {why}"))?;
            if found != sent {
                return Err(format!("{sent:?} came as {found:?}"));
            }
        }
    }
    Ok(())
}

/// 10,000 headers that each claim the largest length: 640 GiB, of which not a byte comes. Fewer where links are slow to make.
pub(super) async fn claimed_lengths_cost_nothing<T: Transport>(subject: Arc<Subject<T>>) -> Result<(), String> {
    const AT_ONCE: usize = 50;
    const ROUNDS: usize = 200;
    const ENOUGH: Duration = Duration::from_secs(5);
    const AT_LEAST: usize = 20;
    // What 50 links may cost; if each reserved what it is told, they would cost 3.2 GiB. Other cases run beside this one.
    const MOST: usize = 1 << 30;
    const MOST_RESIDENT: usize = 256 << 20;
    let claim = Header::new(Kind::Resp).encode(MAX_PAYLOAD);
    let (before, before_resident) = memory()?;
    let began = Instant::now();
    for round in 0..ROUNDS {
        if round >= AT_LEAST && began.elapsed() > ENOUGH {
            break;
        }
        let mut links = Vec::new();
        for _ in 0..AT_ONCE {
            let (tx, mut rx, wire) = subject.open().await?;
            wire.send(&[&frame(1, 0), claim.as_slice()].concat())?;
            recv_frame(&mut rx).await?;
            if rx.next().map_err(|error| format!("a header of the largest length gave {error}"))?.is_some() {
                return Err("a header alone was taken for a frame".to_string());
            }
            links.push((tx, rx, wire));
        }
        let (now, resident) = memory()?;
        let (grown, grown_resident) = (now.saturating_sub(before), resident.saturating_sub(before_resident));
        if grown > MOST || grown_resident > MOST_RESIDENT {
            return Err(format!("{AT_ONCE} headers took {grown} bytes of memory, {grown_resident} of them resident"));
        }
    }
    Ok(())
}

/// A worker that sends these bytes after a good frame: the frame arrives, then the error, which stays.
async fn is_refused<T: Transport>(
    subject: &Arc<Subject<T>>,
    bytes: &[u8],
    expected: impl Fn(BadFrame) -> bool,
) -> Result<(), String> {
    for step in [1, bytes.len()] {
        let (_tx, mut rx, wire) = subject.open().await?;
        let bytes = bytes.to_vec();
        let sent = aside(move || send_in_steps(wire, &bytes, step));
        recv_frame(&mut rx).await?;
        match recv(&mut rx).await? {
            Err(LinkError::BadFrame(bad)) if expected(bad) => {}
            other => return Err(format!("gave {other:?}")),
        }
        if rx.next().is_ok() {
            return Err("the error did not stay".to_string());
        }
        within("the worker's last write", sent).await??;
    }
    Ok(())
}

fn send_in_steps(wire: Wire, bytes: &[u8], step: usize) -> Result<Wire, String> {
    wire.send(&frame(1, 3))?;
    for piece in bytes.chunks(step) {
        wire.send(piece)?;
    }
    Ok(wire)
}

/// Bytes of memory that this process has, and how many of them are resident.
fn memory() -> Result<(usize, usize), String> {
    let text = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let field = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? << 10)
    };
    field("VmSize:").zip(field("VmRSS:")).ok_or_else(|| format!("/proc/self/status says {text:?}"))
}
