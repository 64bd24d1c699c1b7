//! The same pool in this process: for tests and debuggers. `PM_IN_PROCESS=1` does the same to all roles of a program.

static PARSE: pm::Query<String, i64> = pm::Query::new("parse", &|text: String| text.trim().parse::<i64>());

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // No `pm::roles` here: a program that only serves in its own process needs none, and a test harness has none.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let pool = PARSE.pool().in_process().start().await?;
        assert_eq!(pool.query(&" 42 ".to_string()).await?, 42);
        let error = pool.query(&"many".to_string()).await.unwrap_err();
        assert_eq!(error.kind(), pm::QueryErrorKind::Handler);
        println!("the error that a caller gets: {error}");
        Ok(())
    })
}
