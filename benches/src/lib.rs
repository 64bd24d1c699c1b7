//! What the benches share: where processes run, the peers that are the limits, and tables.

#![forbid(unsafe_code)]

pub mod limits;
pub mod measure;
pub mod place;
