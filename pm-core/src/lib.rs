//! The core of pm.

pub mod machine;
