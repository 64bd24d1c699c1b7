//! Which worker a call goes to: the one on which it costs least.

/// What a worker is taken to cost to wake up, when it has nothing to do. Between the 2 µs on one core and the 50 µs across two.
const WAKE_UP_NANOS: u64 = 10_000;

/// What a further call costs on a worker, in nanoseconds: the time until those before it are answered. None where the worker has no
/// room.
///
/// `load` is how many calls the worker has not answered, `window` how many it may have at most, and `service` the nanoseconds it
/// takes for each answer. A call that `waited` in the queue goes to an idle worker first, whatever it costs to wake it: it may have
/// been asked back from a worker whose calls used to be quick, and should not end up behind the next such one.
///
/// ```
/// use pm_core::machine::dispatch::cost;
///
/// assert!(cost(1, 256, 1_000, false) < cost(0, 256, 1_000, false), "quick calls are not worth waking another worker for");
/// assert!(cost(0, 2, 5_000_000, false) < cost(1, 2, 5_000_000, false), "slow ones are");
/// assert!(cost(0, 256, 1_000, true) < cost(1, 256, 1_000, true), "and so is a call that waited");
/// assert_eq!(cost(2, 2, 1_000, false), None);
/// ```
pub const fn cost(load: u32, window: u32, service: u64, waited: bool) -> Option<u64> {
    match load {
        load if load >= window => None,
        0 if waited => Some(0),
        0 => Some(WAKE_UP_NANOS),
        load => Some((load as u64).saturating_mul(service)),
    }
}

/// The least of these costs and its place, the first of equal ones; none where nobody has room.
pub fn best<Cost: Ord>(costs: impl IntoIterator<Item = Option<Cost>>) -> Option<(Cost, usize)> {
    let open = costs.into_iter().enumerate().filter_map(|(place, cost)| Some((cost?, place)));
    open.min()
}
