//! Pools that a configuration sets up. Row Q22.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Event, PoolConfig, QueryError, QueryOptions, RecycleReason, StartError, Workers};

use crate::roles::{Job, Said};
use crate::streams::{Heard, Say, TALK};
use crate::support::{LONG, TRANSPORTS, contains, error, event, jobs, lost, one, over_all, pids, pool_of, within};

pub fn tests() -> Vec<Trial> {
    [
        over_all("config::what_it_says_is_done", what_it_says_is_done),
        one("config::the_last_word_counts", the_last_word_counts),
        one("config::presets", presets),
        one("config::what_makes_no_sense_is_refused", what_makes_no_sense_is_refused),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn config(json: &str) -> PoolConfig {
    serde_json::from_str(json).unwrap()
}

async fn what_it_says_is_done(transport: AnyTransport) {
    let said = config(
        r#"{ "workers": 2, "timeout": "100ms", "cancel_grace": "10s", "retries": 1, "start_timeout": 0, "recycle": { "after_calls": 3 } }"#,
    );
    let pool = jobs(transport).workers(5).timeout(LONG).configure(&said).start().await.unwrap();
    let mut events = pool.events();
    assert_eq!(pids(&pool).len(), 2);
    let late = error(within(pool.query(&Job::Nap(LONG))).await);
    assert!(matches!(late, QueryError::TimedOut { limit, .. } if limit == Duration::from_millis(100)), "{late:?}");
    // A try that waits for a new worker may take longer.
    let patient = QueryOptions::new().timeout(None);
    assert_eq!(lost(within(pool.query_with(&Job::Exit(1), patient)).await).tries, 2);
    let recycled = event(&mut events, |event| match event {
        Event::Recycled { reason, .. } => Some(*reason),
        _ => None,
    });
    let load = async {
        loop {
            // Whether a busy machine answers in time does not matter here.
            drop(pool.query(&Job::Pid).await);
        }
    };
    tokio::select! {
        reason = recycled => assert_eq!(reason, RecycleReason::Calls),
        () = load => {}
    }
}

async fn the_last_word_counts() {
    let said = config(r#"{ "workers": 2, "timeout": "1ms", "budget": { "deaths": 0 } }"#);
    let pool = jobs(TRANSPORTS[1]).configure(&said).timeout(None).workers(1).start().await.unwrap();
    assert_eq!(pids(&pool).len(), 1);
    assert_eq!(pool.query(&Job::Sleep(Duration::from_millis(20))).await.unwrap(), Said::Done);
    // What only one of them says stays.
    let pool = jobs(TRANSPORTS[1]).workers(3).configure(&config(r#"{ "queue": 1 }"#)).start().await.unwrap();
    assert_eq!(pids(&pool).len(), 3);
}

async fn presets() {
    for (json, preset) in [("cpu", Workers::Cpu), ("io", Workers::Io), ("memory", Workers::Memory)] {
        let expected = preset.count() as usize;
        let said = config(&format!(r#"{{ "workers": "{json}" }}"#));
        let pool = jobs(TRANSPORTS[1]).in_process().configure(&said).start().await.unwrap();
        assert_eq!(pool.workers().len(), expected);
        let pool = jobs(TRANSPORTS[1]).in_process().workers(preset).start().await.unwrap();
        assert_eq!(pool.workers().len(), expected);
    }
}

async fn what_makes_no_sense_is_refused() {
    for (json, told) in [
        (r#"{ "workers": 5000 }"#, "workers is 5000: a pool has at most 4096"),
        (r#"{ "queue": 0 }"#, "queue is 0"),
        (r#"{ "autoscale": { "min": 9 } }"#, "autoscaling from 9 to 8 workers"),
        (r#"{ "workers": 9, "autoscale": {} }"#, "workers is 9, not from 1 to 8"),
        (r#"{ "recycle": { "every": 0 } }"#, "recycling every 0ns"),
    ] {
        let refused = jobs(TRANSPORTS[1]).configure(&config(json)).start().await.unwrap_err();
        contains(refused.to_string(), told);
    }
    let said = config(r#"{ "workers": 2, "timeout": "15m" }"#);
    let refused = pool_of::<Say, Heard>(&TALK, TRANSPORTS[1]).streams().configure(&said).start().await.unwrap_err();
    contains(refused.to_string(), "timeout is 900s: it is for queries");
    assert!(matches!(refused, StartError::Setting { setting: "timeout", .. }));
    let said = config(r#"{ "workers": 2, "stop_grace": "1s" }"#);
    let pool = pool_of::<Say, Heard>(&TALK, TRANSPORTS[1]).streams().configure(&said).start().await.unwrap();
    assert_eq!(pids(&pool).len(), 2);
}
