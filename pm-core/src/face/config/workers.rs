//! How many workers, as a number or by what they do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::fields;

/// How many workers a pool starts with. A number, or as many as suit the machine: what counts are its processors, as far as this program may use them.
///
/// ```
/// use pm_core::face::config::Workers;
///
/// assert_eq!(Workers::from(4), Workers::Count(4));
/// assert_eq!("io".parse(), Ok(Workers::Io));
/// assert_eq!(Workers::Io.on(8), 16);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// So many.
    Count(u32),
    /// For work that computes: one for each processor.
    Cpu,
    /// For work that waits for others: two for each processor.
    Io,
    /// For work that takes much memory: one for two processors, and two at least.
    Memory,
}

impl Workers {
    /// How many these are on a machine with so many processors.
    pub const fn on(self, processors: u32) -> u32 {
        match self {
            Workers::Count(count) => count,
            Workers::Cpu => processors,
            Workers::Io => processors.saturating_mul(2),
            Workers::Memory if processors < 4 => 2,
            Workers::Memory => processors / 2,
        }
    }

    /// How many these are here.
    pub fn count(self) -> u32 {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.on(u32::try_from(processors).unwrap_or(u32::MAX))
    }
}

impl From<u32> for Workers {
    fn from(count: u32) -> Self {
        Workers::Count(count)
    }
}

impl FromStr for Workers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cpu" => Ok(Workers::Cpu),
            "io" => Ok(Workers::Io),
            "memory" => Ok(Workers::Memory),
            number => number.parse().map(Workers::Count).map_err(|_| "write a number, cpu, io or memory"),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workers::Count(count) => count.fmt(f),
            Workers::Cpu => f.write_str("cpu"),
            Workers::Io => f.write_str("io"),
            Workers::Memory => f.write_str("memory"),
        }
    }
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fields::workers(deserializer)?.ok_or_else(|| serde::de::Error::custom("workers are not said"))
    }
}
