//! Managers in a row. Row Q17.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use libtest_mimic::Trial;
use pm::{AnyTransport, ExitCause, ExitStatus, Pipeline, PoolBuilder, Postcard, QueryError, QueryErrorKind};

use crate::support::{LONG, contains, eventually, kill, one, over_all, pids, pool_of, within};

pub static ANALYSE: pm::Query<String, Vec<String>> = pm::Query::new("analyse", &analyse);
pub static GENERATE: pm::Query<Vec<String>, u64> = pm::Query::new("generate", &generate);
pub static FORMAT: pm::Query<(u64, bool), String> = pm::Query::new("format", &format);

/// Words, each on its own.
fn analyse(text: String) -> Result<Vec<String>, String> {
    match text.as_str() {
        "" => Err("there is nothing to analyse".to_string()),
        text => Ok(text.split(' ').map(str::to_string).collect()),
    }
}

/// Their letters, counted; some words are too much for it.
fn generate(words: Vec<String>) -> u64 {
    for word in &words {
        match word.as_str() {
            "abort" => std::process::abort(),
            "hang" => std::thread::sleep(LONG),
            "panic" => panic!("this word again"),
            _ => {}
        }
    }
    words.iter().map(|word| word.len() as u64).sum()
}

fn format((letters, shouts): (u64, bool)) -> String {
    format!("{letters} letters{}", if shouts { "!" } else { "" })
}

type Letters = Pipeline<String, String>;

pub fn tests() -> Vec<Trial> {
    [
        over_all("pipeline::items_go_through_all_stages", items_go_through_all_stages),
        over_all("pipeline::an_error_names_its_stage", an_error_names_its_stage),
        over_all("pipeline::a_slow_reader_holds_up_the_source", a_slow_reader_holds_up_the_source),
        over_all("pipeline::an_item_that_is_dropped_is_cancelled", an_item_that_is_dropped_is_cancelled),
        over_all("pipeline::a_shutdown_lets_items_come_through", a_shutdown_lets_items_come_through),
        one("pipeline::stages_tell_how_they_are", stages_tell_how_they_are),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn letters(transport: AnyTransport) -> Letters {
    let analyse: PoolBuilder<String, Vec<String>, Postcard, _> = pool_of(&ANALYSE, transport);
    let generate: PoolBuilder<Vec<String>, u64, Postcard, _> = pool_of(&GENERATE, transport);
    let format: PoolBuilder<(u64, bool), String, Postcard, _> = pool_of(&FORMAT, transport);
    let generate = generate.workers(2).timeout(crate::support::LIMIT);
    Pipeline::new("analyse", analyse.start().await.unwrap())
        .then("generate", generate.start().await.unwrap())
        .map(|letters| (letters, letters > 9))
        .then("format", format.start().await.unwrap())
}

async fn items_go_through_all_stages(transport: AnyTransport) {
    let pipeline = letters(transport).await;
    assert_eq!(within(pipeline.run("one two".to_string())).await.unwrap(), "6 letters");
    let texts: Vec<_> = (0..300).map(|n| "word ".repeat(n % 7) + &"x".repeat(n)).collect();
    let expected: Vec<_> = texts.iter().map(|text| text.replace(' ', "").len() as u64).collect();
    let mut outputs = pipeline.run_all(stream::iter(texts), 16);
    for (n, letters) in expected.into_iter().enumerate() {
        let output = within(outputs.next()).await.unwrap();
        // The first text is empty.
        if n == 0 {
            contains(output.unwrap_err().to_string(), "nothing to analyse");
        } else {
            assert_eq!(output.unwrap(), format((letters, letters > 9)));
        }
    }
    assert!(within(outputs.next()).await.is_none());
    within(pipeline.shutdown()).await;
}

async fn an_error_names_its_stage(transport: AnyTransport) {
    let pipeline = letters(transport).await;
    let error = within(pipeline.run(String::new())).await.unwrap_err();
    assert_eq!((&*error.stage, error.place, error.stages), ("analyse", 1, 3));
    assert_eq!(error.to_string(), "stage \"analyse\" (1 of 3): there is nothing to analyse");
    let error = within(pipeline.run("do not panic".to_string())).await.unwrap_err();
    assert_eq!((&*error.stage, error.place, error.error.kind()), ("generate", 2, QueryErrorKind::Handler));
    contains(error.to_string(), "this word again");
    let error = within(pipeline.run("please abort".to_string())).await.unwrap_err();
    let QueryError::WorkerLost(lost) = &error.error else { panic!("{error}") };
    assert!(matches!(lost.cause, ExitCause::Exited(ExitStatus::Signal { signal: 6, .. })));
    // The stage is there again, and the others never noticed.
    assert_eq!(within(pipeline.run("fine".to_string())).await.unwrap(), "4 letters");
    within(pipeline.stage("format").unwrap().shutdown()).await;
    let error = within(pipeline.run("fine".to_string())).await.unwrap_err();
    assert_eq!((&*error.stage, error.error.kind()), ("format", QueryErrorKind::ShuttingDown));
    within(pipeline.shutdown()).await;
}

/// Counts what is taken.
fn counted(items: usize, taken: Arc<AtomicUsize>) -> impl Stream<Item = String> + Unpin {
    stream::iter(0..items).map(move |n| {
        taken.fetch_add(1, Ordering::Relaxed);
        "x".repeat(n + 1)
    })
}

async fn a_slow_reader_holds_up_the_source(transport: AnyTransport) {
    let pipeline = letters(transport).await;
    let taken = Arc::<AtomicUsize>::default();
    let mut outputs = pipeline.run_all(counted(1000, taken.clone()), 8);
    assert_eq!(taken.load(Ordering::Relaxed), 0, "nothing is taken before somebody asks");
    for n in 1..=100 {
        assert_eq!(within(outputs.next()).await.unwrap().unwrap(), format((n, n > 9)));
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken <= n as usize + 8, "{taken} were taken for {n} results");
    }
    // A stage that stands still does the same.
    let stuck = stream::iter(["hang", "hang"]).chain(stream::repeat("fine")).map(str::to_string);
    let taken = Arc::<AtomicUsize>::default();
    let counter = taken.clone();
    let stuck = stuck.inspect(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let mut outputs = pipeline.run_all(stuck, 8);
    let generate = pipeline.stage("generate").unwrap().clone();
    let hanging = eventually("both workers hang", || generate.workers().iter().all(|worker| worker.load > 0));
    tokio::select! {
        output = outputs.next() => panic!("{output:?}"),
        () = hanging => {}
    }
    assert!(taken.load(Ordering::Relaxed) <= 8);
    drop(outputs);
    within(pipeline.shutdown_within(Some(Duration::ZERO))).await;
}

async fn an_item_that_is_dropped_is_cancelled(transport: AnyTransport) {
    let pipeline = letters(transport).await;
    let generate = pipeline.stage("generate").unwrap().clone();
    let item = tokio::spawn(pipeline.run("hang".to_string()));
    eventually("it hangs", || generate.info().load == 1).await;
    item.abort();
    // Its worker does not yield, and is replaced.
    eventually("its worker is free again", || generate.info().load == 0).await;
    assert_eq!(within(pipeline.run("fine".to_string())).await.unwrap(), "4 letters");
    within(pipeline.shutdown()).await;
}

async fn a_shutdown_lets_items_come_through(transport: AnyTransport) {
    let pipeline = letters(transport).await;
    let items: Vec<_> = (1..200).map(|n| tokio::spawn(pipeline.run("x".repeat(n)))).collect();
    eventually("some are through the first stage", || pipeline.info()[0].pool.answered > 50).await;
    within(pipeline.shutdown()).await;
    let mut through = 0;
    for (n, item) in (1..).zip(items) {
        match item.await.unwrap() {
            Ok(output) => {
                assert_eq!(output, format((n, n > 9)));
                through += 1;
            }
            // It came when the first stage was closed already. None is refused later on.
            Err(error) => assert_eq!((&*error.stage, error.error.kind()), ("analyse", QueryErrorKind::ShuttingDown)),
        }
    }
    assert!(through > 50, "{through} came through");
    let refused = within(pipeline.run("late".to_string())).await.unwrap_err();
    assert_eq!((&*refused.stage, refused.error.kind()), ("analyse", QueryErrorKind::ShuttingDown));
}

async fn stages_tell_how_they_are() {
    let pipeline = letters(crate::support::TRANSPORTS[1]).await;
    assert_eq!(within(pipeline.run("fine".to_string())).await.unwrap(), "4 letters");
    let info = pipeline.info();
    let names: Vec<_> = info.iter().map(|stage| (&*stage.name, stage.pool.answered)).collect();
    assert_eq!(names, [("analyse", 1), ("generate", 1), ("format", 1)]);
    kill(pids(pipeline.stage("generate").unwrap())[0], rustix::process::Signal::KILL);
    eventually("its stage shows the crash", || pipeline.info()[1].pool.crashes == 1).await;
    assert_eq!(pipeline.info()[0].pool.crashes, 0);
    assert!(pipeline.stage("compile").is_none());
    within(pipeline.shutdown()).await;
}
