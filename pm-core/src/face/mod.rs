//! What programs hold: managers and what they return.

pub mod error;
pub mod query;
pub mod registry;
pub mod spawning;
pub mod worker;
