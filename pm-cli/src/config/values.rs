//! Times and sizes as they stand in a file: numbers, or numbers with a unit.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use pm::core::units;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A time: seconds as a number, or a text such as `"200ms"` or `"1h30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A size: bytes as a number, or a text such as `"64K"` or `"10M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor).map(Time)
    }
}

struct TimeVisitor;

impl Visitor<'_> for TimeVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time, as in 2, 0.5, \"200ms\", \"1h30m\"")
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
        let seconds = u64::try_from(seconds).map_err(|_| E::custom(format!("a time of {seconds} s is below zero")))?;
        Ok(Duration::from_secs(seconds))
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
        Ok(Duration::from_secs(seconds))
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| E::custom(format!("a time of {seconds} s is none that can be waited for")))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        units::duration(text).map_err(|right| E::custom(format!("{text:?} is no time: {right}")))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor).map(Size)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size, as in 4096, \"64K\", \"10M\"")
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
        u64::try_from(bytes).map_err(|_| E::custom(format!("a size of {bytes} bytes is below zero")))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
        Ok(bytes)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let size = units::size(text).map_err(|right| E::custom(format!("{text:?} is no size: {right}")))?;
        Ok(size as u64)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A time: seconds as a number, or a text such as \"200ms\", \"1.5s\" or \"1h30m\".",
            "anyOf": [{ "type": "number", "minimum": 0 }, { "type": "string", "examples": ["200ms", "1h30m"] }]
        })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: bytes as a number, or a text such as \"64K\" or \"10M\", in powers of 1,024.",
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "examples": ["64K", "10M"] }]
        })
    }
}
