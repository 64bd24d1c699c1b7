//! What a manager measures, and how it tells.

use pm_cli::bench::measure::Measured;
use serde::{Deserialize, Serialize};

use crate::measure::micros;

/// Bytes of the payloads.
pub(crate) const SIZES: [usize; 2] = [64, 64 << 10];

/// How many queries are under way at once where there are many.
pub(crate) const CROWD: usize = 256;

/// The figures of one size. A manager prints it as JSON, on a line of its own.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Bytes of the payload.
    pub(crate) bytes: usize,
    /// Microseconds of a round trip, made one at a time.
    pub(crate) p50: f64,
    /// The same.
    pub(crate) p99: f64,
    /// Queries a second with [`CROWD`] under way.
    pub(crate) rate: f64,
    /// Microseconds of processor time that the manager takes for a query, where that is known.
    #[serde(flatten)]
    pub(crate) cpu: Option<Cpu>,
}

/// Microseconds of processor time that a manager takes for a query.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// One at a time.
    pub(crate) cpu_alone: f64,
    /// With [`CROWD`] under way.
    pub(crate) cpu_crowd: f64,
}

impl Row {
    /// What queries took that were made one at a time, and many at once.
    pub(crate) fn new(bytes: usize, alone: Measured, crowd: Measured) -> Self {
        Row { bytes, p50: micros(alone.p50), p99: micros(alone.p99), rate: crowd.rate, cpu: None }
    }

    /// The same where processor time was measured of two processes.
    pub(crate) fn with_cpu(bytes: usize, alone: Measured, crowd: Measured) -> Self {
        let [cpu_alone, cpu_crowd] = [alone, crowd].map(|measured| measured.cpu_manager / 1000.0);
        Row { cpu: Some(Cpu { cpu_alone, cpu_crowd }), ..Row::new(bytes, alone, crowd) }
    }

    /// Tells whoever started this manager.
    pub(crate) fn print(&self) {
        // Numbers and names of fields: there is nothing that JSON could not hold.
        println!("{}", serde_json::json!(self));
    }

    /// Reads what a manager printed.
    pub(crate) fn parse(text: &str) -> Result<Vec<Row>, serde_json::Error> {
        text.lines().map(serde_json::from_str).collect()
    }
}
