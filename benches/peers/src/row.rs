//! What a manager measures, and how it tells.

use serde::{Deserialize, Serialize};

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
}

impl Row {
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
