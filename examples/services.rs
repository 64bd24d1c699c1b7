//! Services that a program keeps: one that says when it is ready, one that needs it, and the end of all on Ctrl-C.

use std::error::Error;
use std::process::ExitCode;

use pm::Spec;
use pm::service::{Condition, Metrics, Orchestrator, Restart, Service, ServiceBuilder, Shutdown, When};

/// A service that is a line for the shell.
fn shell(name: &str, line: &str) -> Result<ServiceBuilder, Box<dyn Error>> {
    Ok(Service::new(name, Spec::program("sh").arg("-c").arg(line).build()?))
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    Ok(tokio::runtime::Runtime::new()?.block_on(app())?.into())
}

/// Keeps them until a signal comes.
pub async fn app() -> Result<Shutdown, Box<dyn Error>> {
    let orchestrator = Orchestrator::start()?;
    // From here on a signal ends nothing by itself.
    let told_to_end = orchestrator.shutdown_on_signals()?;
    let db = shell("db", "sleep 0.1; echo ready for clients; exec sleep 1000")?
        .ready_line("ready for clients")
        .metrics(Metrics { rss_above: Some(100 << 20), ..Metrics::default() })
        .restart(Restart::when(When::OnFailure));
    let api = shell("api", "exec sleep 1000")?.needs("db", Condition::Healthy);
    orchestrator.start_many([db.build()?, api.build()?]).await?;
    println!("all are up: Ctrl-C stops them in order, a second one kills what is left");
    let shutdown = told_to_end.await;
    for stopped in &shutdown.stopped {
        println!("{stopped}");
    }
    Ok(shutdown)
}
