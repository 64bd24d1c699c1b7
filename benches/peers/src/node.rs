//! pm with a worker in Node.js, over a Unix socket: what Node's own managers do, done by another manager.

use std::path::Path;

use pm::{Json, PoolBuilder, Spec, Uds};
use pm_cli::bench::place::Place;

use crate::cli::Args;
use crate::error::{PeerError, Step};
use crate::measure::{alone_and_crowd, runtime};
use crate::row::{Row, SIZES};

/// Texts, one at a time and many at once.
pub(crate) fn measure(args: &Args) -> Result<Vec<Row>, PeerError> {
    let runtime = runtime(args.placement)?;
    let (place, time) = (args.placement, args.seconds);
    let work = async move {
        let builder = PoolBuilder::<String, String, _, _>::program("node", worker(place), Uds, Json);
        let pool = builder.start().await.step("start a pool")?;
        let peer = pool.workers().first().map(|worker| worker.pid);
        let mut rows = Vec::new();
        for bytes in SIZES {
            let text = "x".repeat(bytes);
            let callers = pool.clone();
            let call = move || {
                let (pool, text) = (callers.clone(), text.clone());
                async move { assert_eq!(pool.query(&text).await.expect("an answer"), text) }
            };
            let (alone, crowd) = alone_and_crowd(time, peer, call).await;
            rows.push(Row::with_cpu(bytes, alone, crowd));
        }
        pool.shutdown().await;
        Ok(rows)
    };
    runtime.block_on(async { tokio::spawn(work).await }).step("measure pm with Node.js")?
}

/// On the processor of the worker, with all its threads.
fn worker(place: Place) -> pm::SpecBuilder {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workers/node/pm_worker.js");
    let node = ["node".to_string(), "-e".to_string(), format!("require({kit:?}).serve((text) => text)")];
    match place.variable().as_str() {
        "any" => Spec::program("node").args(&node[1..]),
        cpu => Spec::program("taskset").args(["-c", cpu]).args(&node),
    }
}
