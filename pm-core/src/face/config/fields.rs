//! The fields of a configuration: each error names its field, the value that stands there, and what may.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::workers::Workers;
use crate::machine::budget::Scope;
use crate::units;

/// A value as it stands in a configuration, whatever its format.
#[derive(Clone, Debug)]
enum Value {
    Nothing,
    Whole(u64),
    Number(f64),
    Text(String),
    /// Something that no field takes, in words.
    Other(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nothing => f.write_str("nothing"),
            Value::Whole(number) => number.fmt(f),
            Value::Number(number) => number.fmt(f),
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Other(what) => f.write_str(what),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

/// Takes every value.
struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Any)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Other(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Other(value.to_string()), Value::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        while values.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Value::Other("a list".to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        while entries.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
        Ok(Value::Other("a table".to_string()))
    }
}

/// Functions that read a field each: its function, its name, and how its value is read.
macro_rules! fields {
    ($($function:ident $name:literal: $type:ty = $read:expr;)*) => {
        $(pub(super) fn $function<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<$type>, D::Error> {
            read(deserializer, $name, $read)
        })*
    };
}

fields! {
    workers "workers": Workers = as_workers;
    timeout "timeout": Option<Duration> = as_limit;
    cancel_grace "cancel_grace": Option<Duration> = as_limit;
    queue "queue": usize = as_count;
    start_timeout "start_timeout": Option<Duration> = as_limit;
    stop_grace "stop_grace": Duration = as_time;
    retries "retries": u32 = as_count;
    min "autoscale.min": u32 = as_count;
    max "autoscale.max": u32 = as_count;
    up_above "autoscale.up_above": f64 = as_number;
    down_below "autoscale.down_below": f64 = as_number;
    cool_down "autoscale.cool_down": Duration = as_time;
    window "autoscale.window": Duration = as_time;
    after_calls "recycle.after_calls": u64 = as_count;
    after_age "recycle.after_age": Duration = as_time;
    above_rss "recycle.above_rss": u64 = as_size;
    every "recycle.every": Duration = as_time;
    drain "recycle.drain": Option<Duration> = as_limit;
    deaths "budget.deaths": u32 = as_count;
    within "budget.within": Duration = as_time;
    counts "budget.counts": Scope = as_scope;
    backoff "budget.backoff": Duration = as_time;
    longest_backoff "budget.longest_backoff": Duration = as_time;
}

/// Reads the field of this name; none where nothing stands there.
fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    name: &str,
    as_type: impl FnOnce(&Value) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if let Value::Nothing = value {
        return Ok(None);
    }
    as_type(&value).map(Some).map_err(|allowed| D::Error::custom(format!("{name} is {value}: {allowed}")))
}

fn as_workers(value: &Value) -> Result<Workers, String> {
    match value {
        Value::Whole(count) => Ok(Workers::Count(u32::try_from(*count).unwrap_or(u32::MAX))),
        Value::Text(text) => text.parse().map_err(str::to_string),
        _ => Err("write a number, \"cpu\", \"io\" or \"memory\"".to_string()),
    }
}

fn as_count<T: TryFrom<u64>>(value: &Value) -> Result<T, String> {
    let count = match value {
        Value::Whole(count) => T::try_from(*count).ok(),
        // The environment has nothing but texts.
        Value::Text(text) => text.parse().ok().and_then(|count: u64| T::try_from(count).ok()),
        _ => None,
    };
    let largest = u64::MAX >> (64 - 8 * size_of::<T>());
    count.ok_or_else(|| format!("write a whole number from 0 to {largest}"))
}

fn as_number(value: &Value) -> Result<f64, String> {
    match value {
        Value::Whole(number) => Ok(*number as f64),
        Value::Number(number) => Ok(*number),
        Value::Text(text) => text.parse().map_err(|_| "write a number".to_string()),
        _ => Err("write a number".to_string()),
    }
}

fn as_time(value: &Value) -> Result<Duration, String> {
    match value {
        Value::Whole(seconds) => Ok(Duration::from_secs(*seconds)),
        Value::Number(seconds) => {
            Duration::try_from_secs_f64(*seconds).map_err(|_| "that is no time that can be waited for".to_string())
        }
        Value::Text(text) => units::duration(text),
        _ => Err("write a time, as in \"250ms\", \"15m\" or \"1h30m\", or a number of seconds".to_string()),
    }
}

/// Zero is no limit.
fn as_limit(value: &Value) -> Result<Option<Duration>, String> {
    as_time(value).map(|time| Some(time).filter(|time| !time.is_zero()))
}

fn as_size(value: &Value) -> Result<u64, String> {
    match value {
        Value::Whole(bytes) => Ok(*bytes),
        Value::Text(text) => units::size(text).map(|bytes| bytes as u64),
        _ => Err("write a size, as in \"512M\" or \"2G\", or a number of bytes".to_string()),
    }
}

fn as_scope(value: &Value) -> Result<Scope, String> {
    match value {
        Value::Text(text) if text == "crash-loops" => Ok(Scope::CrashLoops),
        Value::Text(text) if text == "spare-calls" => Ok(Scope::SpareCalls),
        Value::Text(text) if text == "every-crash" => Ok(Scope::EveryCrash),
        _ => Err("write \"crash-loops\", \"spare-calls\" or \"every-crash\"".to_string()),
    }
}
