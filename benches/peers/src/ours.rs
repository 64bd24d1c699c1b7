//! pm itself, through the engine of `pm bench`: 64 bytes as a typed block, 64 KiB as bytes.

use std::ops::ControlFlow;

use pm::AnyTransport;
use pm_cli::bench::rows::Mode;
use pm_cli::bench::work::Settings;

use crate::cli::Args;
use crate::error::PeerError;
use crate::row::{CROWD, Row, SIZES};

/// Each query awaited, one at a time and many at once.
pub(crate) fn measure(transport: AnyTransport, args: &Args) -> Result<Vec<Row>, PeerError> {
    let settings = Settings {
        transports: vec![transport],
        sizes: SIZES.to_vec(),
        in_flight: vec![1, CROWD],
        places: vec![args.placement],
        modes: vec![Mode::Await],
        limits: Vec::new(),
        time: args.seconds,
    };
    let mut measured = Vec::new();
    settings.measure(|row| {
        measured.push(row);
        ControlFlow::Continue(())
    })?;
    // For each size the engine gives a row for one query at a time, and then one for many.
    let pairs = measured.chunks_exact(2);
    Ok(pairs.map(|pair| Row::with_cpu(pair[0].size, pair[0].measured, pair[1].measured)).collect())
}
