//! Which worker a call goes to: the one on which it costs least.

/// What a worker is taken to cost to wake up, when it has nothing to do. Between the 2 µs on one core and the 50 µs across two.
const WAKE_UP_NANOS: u64 = 10_000;

/// What a further call costs on a worker, in nanoseconds: the time until those before it are answered. None where the worker has no
/// room.
///
/// `load` is how many calls the worker has not answered, `window` how many it may have at most, and `service` the nanoseconds it
/// takes for each answer.
///
/// ```
/// use pm_core::machine::dispatch::cost;
///
/// assert!(cost(1, 256, 1_000) < cost(0, 256, 1_000), "a busy worker whose calls are quick is not worth waking another for");
/// assert!(cost(0, 2, 5_000_000) < cost(1, 2, 5_000_000), "a slow one is");
/// assert_eq!(cost(2, 2, 1_000), None);
/// ```
pub const fn cost(load: u32, window: u32, service: u64) -> Option<u64> {
    match load {
        load if load >= window => None,
        0 => Some(WAKE_UP_NANOS),
        load => Some((load as u64).saturating_mul(service)),
    }
}

/// The place of the least of these costs, the first of equal ones; none where nobody has room.
pub fn best(costs: impl IntoIterator<Item = Option<u64>>) -> Option<usize> {
    let open = costs.into_iter().enumerate().filter_map(|(place, cost)| Some((cost?, place)));
    open.min().map(|(_, place)| place)
}
