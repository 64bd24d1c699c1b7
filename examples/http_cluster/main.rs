//! A web server in two processes that accept from one listener, and that can be replaced under load without a request lost.
//!
//! ```sh
//! cargo run --release --example http_cluster -- 127.0.0.1:8080
//! curl http://127.0.0.1:8080/            # which process answered
//! kill -HUP PID                          # new processes: after a deployment, for example
//! ```

mod web;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How long the old workers have for the connections that they still serve.
const DRAIN: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    pm::roles([&web::WEB]);
    let done = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(app()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("http_cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn app() -> Result<(), Box<dyn Error>> {
    let address: pm::ListenAddress = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8080").parse()?;
    let pool = web::WEB.pool().raw().workers(2).spec(|spec| spec.listen(address)).start().await?;
    tokio::spawn(web::follow_loads(pool.subscribe()));
    println!("http://{}/ is served by {} processes", pool.addresses()[0], pool.workers().len());
    println!("kill -HUP {} replaces them", std::process::id());
    let mut hangup = signal(SignalKind::hangup())?;
    let mut ending = std::pin::pin!(pm::registry::shutdown_on_signal(DRAIN));
    loop {
        tokio::select! {
            _ = hangup.recv() => match pool.respawn_with(2, Some(DRAIN)).await {
                Ok(()) => println!("replaced"),
                Err(error) => eprintln!("the old ones serve on: {error}"),
            },
            signal = &mut ending => std::process::exit(128 + signal?.0),
        }
    }
}
