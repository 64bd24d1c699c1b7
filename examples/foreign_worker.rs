//! A worker in Python, called like an async function. `workers/python/pm_worker.py` is all that it needs.

use std::path::Path;

use pm::{Json, PoolBuilder, Spec, Uds};
use serde::{Deserialize, Serialize};

const WORKER: &str = r#"
import statistics, pm_worker

def describe(numbers):
    pm_worker.notice(f"{len(numbers)} numbers came")
    return {"mean": statistics.mean(numbers), "median": statistics.median(numbers)}

pm_worker.serve(describe)
"#;

#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    mean: f64,
    median: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Called for the keeper, which ends whatever a worker leaves behind.
    pm::roles([]);
    tokio::runtime::Runtime::new()?.block_on(app())
}

async fn app() -> Result<(), Box<dyn std::error::Error>> {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/python");
    let python = Spec::program("python3").arg("-c").arg(WORKER).env("PYTHONPATH", kit);
    let pool = PoolBuilder::<Vec<f64>, Summary, _, _>::program("statistics", python, Uds, Json)
        .workers(2)
        .on_notice(|worker, text| println!("worker {worker}: {text}"))
        .start()
        .await?;
    println!("{:?}", pool.query(&vec![1.0, 2.0, 6.0]).await?);
    // The error of another language reaches its caller with type, message and trace.
    println!("{}", pool.query(&vec![]).await.unwrap_err());
    pool.shutdown().await;
    Ok(())
}
