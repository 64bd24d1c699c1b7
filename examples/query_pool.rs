//! The first program: a function that runs in other processes.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Team {
    name: String,
    members: Vec<String>,
}

static CHECK: pm::Query<Team, String> = pm::Query::new("check-team", &check);

/// Runs in a worker.
fn check(team: Team) -> Result<String, String> {
    match team.members.len() {
        0 => Err(format!("the team {} has nobody", team.name)),
        n => Ok(format!("{} has {n} members, says process {}", team.name, std::process::id())),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pm::roles([&CHECK]);
    tokio::runtime::Runtime::new()?.block_on(app())
}

async fn app() -> Result<(), Box<dyn std::error::Error>> {
    let pool = CHECK.pool().workers(2).start().await?;
    let team = Team { name: "red".into(), members: vec!["a".into(), "b".into()] };
    println!("{}", pool.query(&team).await?);
    let nobody = Team { name: "blue".into(), members: vec![] };
    if let Err(error) = pool.query(&nobody).await {
        println!("error: {error}");
    }
    pool.shutdown().await;
    Ok(())
}
