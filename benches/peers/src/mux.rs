//! A multiplexer on a Unix socket, written by hand: the one that `pm bench` holds pm against. Its frames have a fixed length, so it
//! carries 64 bytes only.

use pm_cli::bench::limits::{Echo, FRAME};

use crate::cli::Args;
use crate::error::{PeerError, Step};
use crate::measure::{alone_and_crowd, runtime};
use crate::row::Row;

/// 64 bytes, with a header as long as pm's.
pub(crate) fn measure(args: &Args) -> Result<Vec<Row>, PeerError> {
    let (place, time) = (args.placement, args.seconds);
    let runtime = runtime(place)?;
    let work = async move {
        let (mux, peer) = Echo::mux(place);
        let call = move || {
            let mux = mux.clone();
            async move { round_trip(&mux).await }
        };
        let (alone, crowd) = alone_and_crowd(time, Some(peer), call).await;
        Row::with_cpu(64, alone, crowd)
    };
    let row = runtime.block_on(async { tokio::spawn(work).await }).step("measure the mux")?;
    Ok(vec![row])
}

async fn round_trip(mux: &Echo) {
    assert_eq!(mux.round_trip(std::hint::black_box([7; FRAME])).await, [7; FRAME]);
}
