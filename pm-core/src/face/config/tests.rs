//! Configurations, good and bad.

use super::*;

fn read(json: &str) -> Result<PoolConfig, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn everything_can_be_said() {
    let config = read(
        r#"{ "workers": 3, "timeout": "1h30m", "cancel_grace": "250ms", "queue": 10, "start_timeout": 5, "stop_grace": 0.5, "retries": 2,
             "autoscale": { "min": 2, "max": 4, "up_above": 3, "down_below": 0.5, "cool_down": "5s", "window": "500ms" },
             "recycle": { "after_calls": 100, "after_age": "1d", "above_rss": "512M", "every": "12h", "drain": 0 },
             "budget": { "deaths": 7, "within": "10m", "counts": "every-crash", "backoff": "1s", "longest_backoff": "1m" } }"#,
    )
    .unwrap();
    let (milli, second) = (Duration::from_millis(1), Duration::from_secs(1));
    assert_eq!(config.workers, Some(Workers::Count(3)));
    assert_eq!(config.timeout, Some(Some(90 * 60 * second)));
    assert_eq!((config.cancel_grace, config.queue, config.retries), (Some(Some(250 * milli)), Some(10), Some(2)));
    assert_eq!((config.start_timeout, config.stop_grace), (Some(Some(5 * second)), Some(500 * milli)));
    let autoscale = Autoscale::new().between(2, 4).up_above(3.0).down_below(0.5).cool_down(5 * second);
    assert_eq!(config.autoscale.unwrap().change(Autoscale::new()), autoscale.window(500 * milli));
    let recycle =
        Recycle::new().after_calls(100).after_age(86_400 * second).above_rss(512 << 20).every(43_200 * second);
    assert_eq!(config.recycle.unwrap().change(Recycle::new().drain(second)), recycle, "0 is no limit");
    let budget = Budget::every_crash(7, 600 * second).backoff(second, 60 * second);
    assert_eq!(config.budget.unwrap().change(Budget::default()), budget);
}

/// As environments have it.
#[test]
fn numbers_may_be_texts() {
    let config =
        read(r#"{ "workers": "4", "retries": "2", "queue": "100", "autoscale": { "up_above": "2.5", "max": "8" } }"#);
    let config = config.unwrap();
    assert_eq!((config.workers, config.retries, config.queue), (Some(Workers::Count(4)), Some(2), Some(100)));
    let autoscale = config.autoscale.unwrap();
    assert_eq!((autoscale.up_above, autoscale.max), (Some(2.5), Some(8)));
}

#[test]
fn what_is_not_said_stays_as_it_is() {
    assert_eq!(read("{}").unwrap(), PoolConfig::default());
    assert_eq!(read(r#"{ "workers": null, "timeout": null, "autoscale": null }"#).unwrap(), PoolConfig::default());
    let code = Autoscale::new().between(3, 9).up_above(7.0);
    let config = read(r#"{ "autoscale": { "max": 5 }, "budget": { "deaths": 1 }, "recycle": {} }"#).unwrap();
    assert_eq!(config.autoscale.unwrap().change(code), code.between(3, 5));
    let budget = Budget::spare_calls(4, Duration::from_secs(9));
    assert_eq!(config.budget.unwrap().change(budget), Budget::spare_calls(1, Duration::from_secs(9)));
    let recycle = Recycle::new().after_calls(5).drain(Duration::from_secs(1));
    assert_eq!(config.recycle.unwrap().change(recycle), recycle);
}

#[test]
fn zero_is_no_limit() {
    let config = read(r#"{ "timeout": 0, "cancel_grace": "0s", "start_timeout": "0" }"#).unwrap();
    assert_eq!((config.timeout, config.cancel_grace, config.start_timeout), (Some(None), Some(None), Some(None)));
}

#[test]
fn bad_values_are_named_with_their_field() {
    for (json, told) in [
        (r#"{ "worker": 4 }"#, "unknown field `worker`, expected one of `workers`"),
        (r#"{ "autoscale": { "most": 4 } }"#, "unknown field `most`, expected one of `min`, `max`"),
        (r#"{ "recycle": { "calls": 4 } }"#, "unknown field `calls`"),
        (r#"{ "budget": { "limit": 4 } }"#, "unknown field `limit`"),
        (r#"{ "workers": "gpu" }"#, r#"workers is "gpu": write a number, cpu, io or memory"#),
        (r#"{ "workers": -1 }"#, "workers is -1: write a number"),
        (r#"{ "workers": 1.5 }"#, "workers is 1.5: write a number"),
        (r#"{ "workers": [4] }"#, "workers is a list: write a number"),
        (r#"{ "timeout": "15q" }"#, r#"timeout is "15q": write a number with a unit"#),
        (r#"{ "timeout": "" }"#, r#"timeout is "": write a number with a unit"#),
        (r#"{ "timeout": -3 }"#, "timeout is -3: write a time"),
        (r#"{ "timeout": -0.5 }"#, "timeout is -0.5: that is no time"),
        (r#"{ "timeout": true }"#, "timeout is true: write a time"),
        (r#"{ "timeout": { "seconds": 3 } }"#, "timeout is a table: write a time"),
        (r#"{ "queue": -1 }"#, "queue is -1: write a whole number"),
        (r#"{ "queue": "many" }"#, r#"queue is "many": write a whole number"#),
        (r#"{ "retries": "two" }"#, "retries is \"two\": write a whole number from 0 to 4294967295"),
        (r#"{ "autoscale": { "up_above": "high" } }"#, "autoscale.up_above is \"high\": write a number"),
        (r#"{ "retries": 4294967296 }"#, "retries is 4294967296: write a whole number from 0 to 4294967295"),
        (r#"{ "autoscale": { "min": 0.5 } }"#, "autoscale.min is 0.5: write a whole number"),
        (
            r#"{ "recycle": { "above_rss": "12 parsecs" } }"#,
            r#"recycle.above_rss is "12 parsecs": write a number with K"#,
        ),
        (r#"{ "budget": { "counts": "all" } }"#, r#"budget.counts is "all": write "crash-loops", "spare-calls" or"#),
        (r#"{ "autoscale": 5 }"#, "expected struct AutoscaleConfig"),
    ] {
        let error = read(json).expect_err(json);
        assert!(error.contains(told), "{json}: {error}");
    }
}

#[test]
fn presets_follow_the_machine() {
    let on = |workers: Workers| [1, 2, 3, 4, 8, 64].map(|processors| workers.on(processors));
    assert_eq!(on(Workers::Cpu), [1, 2, 3, 4, 8, 64]);
    assert_eq!(on(Workers::Io), [2, 4, 6, 8, 16, 128]);
    assert_eq!(on(Workers::Memory), [2, 2, 2, 2, 4, 32]);
    assert_eq!(on(Workers::Count(5)), [5; 6]);
    let here = std::thread::available_parallelism().unwrap().get() as u32;
    assert_eq!((Workers::Cpu.count(), Workers::Io.count()), (here, 2 * here));
    for workers in [Workers::Cpu, Workers::Io, Workers::Memory, Workers::Count(7)] {
        assert_eq!(workers.to_string().parse(), Ok(workers));
        assert_eq!(serde_json::from_str::<Workers>(&format!("\"{workers}\"")).unwrap(), workers);
    }
    assert!("gpu".parse::<Workers>().is_err() && "-1".parse::<Workers>().is_err());
}
