//! Patterns of users, run where they can do no harm: a pattern that backtracks for ever costs its caller an error and nobody else anything.

use std::time::{Duration, Instant};

use fancy_regex::RegexBuilder;
use pm::QueryErrorKind;

/// A pattern and a text; the answer is where the pattern matches first.
static FIND: pm::Query<(String, String), Option<(usize, usize)>> = pm::Query::new("find", &find);

fn find((pattern, text): (String, String)) -> Result<Option<(usize, usize)>, fancy_regex::Error> {
    // The engine has a limit of its own; without it this is what most languages have.
    let regex = RegexBuilder::new(&pattern).backtrack_limit(usize::MAX).build()?;
    Ok(regex.find(&text)?.map(|found| (found.start(), found.end())))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pm::roles([&FIND]);
    tokio::runtime::Runtime::new()?.block_on(app())
}

async fn app() -> Result<(), Box<dyn std::error::Error>> {
    let limit = Duration::from_millis(200);
    let pool = FIND.pool().workers(2).timeout(limit).cancel_grace(Duration::from_millis(50)).start().await?;
    let catastrophe = (r"^(?:(a+)+\1)+$".to_string(), format!("{}b", "a".repeat(40)));
    let harmless = (r"[0-9]+".to_string(), "the year 2026".to_string());

    // One user is stuck, the others are not.
    let stuck = tokio::spawn(pool.query(&catastrophe));
    let began = Instant::now();
    for _ in 0..1000 {
        assert_eq!(pool.query(&harmless).await?, Some((9, 13)));
    }
    println!("1,000 harmless patterns in {:?} beside one that never ends", began.elapsed());

    let error = stuck.await?.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::TimedOut);
    println!("the one that never ends: {error}");
    println!("a pattern that is none: {}", pool.query(&("(".to_string(), String::new())).await.unwrap_err());

    // The worker that was stuck is replaced, and the pool is what it was.
    while pool.workers().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.query(&harmless).await?, Some((9, 13)));
    pool.shutdown().await;
    Ok(())
}
