//! The atomics of the ring and the bell. `models/` puts loom's in their place.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
