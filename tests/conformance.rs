//! Every transport keeps the promises of `pm_core::transport`: the shipped ones, and the one that people are shown.

use std::io;

use pm_core::testing::conformance::{self, Case, over_descriptors};
use pm_core::testing::memory::Memory;
use pm_core::worker::link::WorkerLink;

use self::custom_transport::{Tcp, dial};

#[path = "../examples/custom_transport.rs"]
#[expect(dead_code, reason = "the program around the transport is not used here")]
mod custom_transport;

type Outcome = Result<(), String>;

/// TCP resets a connection that is closed with unread input, and what has not left yet is gone.
const NOT_OVER_TCP: &str = "conformance::tcp::ending::unread_input_costs_no_answers";

/// All tests, by name.
pub fn tests() -> Vec<(String, Box<dyn Fn() -> Outcome + Send>)> {
    let in_memory = |offer| -> io::Result<Box<dyn WorkerLink>> {
        Ok(Box::new(Memory::take(&offer).ok_or(io::ErrorKind::NotFound)?))
    };
    let over_tcp = |offer: pm_core::transport::Offer| {
        let [(_, ticket)] = offer.env.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        dial(&ticket.to_string_lossy())
    };
    let over_memory = |offer: pm_core::transport::Offer| {
        let (_, socket) = offer.fds.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?;
        pm_transport_shm::connect_over(socket)
    };
    [
        ("memory", conformance::cases(Memory, in_memory)),
        ("stdio", conformance::cases(pm::Stdio, over_descriptors)),
        ("uds", conformance::cases(pm::Uds, over_descriptors)),
        ("shm", conformance::cases(pm::Shm::new(), over_memory)),
        ("shm_park", conformance::cases(pm::Shm::new().wake(pm::Wake::Park), over_memory)),
        ("shm_busy", conformance::cases(pm::Shm::new().wake(pm::Wake::Busy), over_memory)),
        ("tcp", conformance::cases(Tcp, over_tcp)),
    ]
    .into_iter()
    .flat_map(|(transport, cases)| cases.into_iter().map(move |case| named(transport, case)))
    .filter(|(name, _)| name != NOT_OVER_TCP)
    .collect()
}

fn named(transport: &str, (name, check): Case) -> (String, Box<dyn Fn() -> Outcome + Send>) {
    (format!("conformance::{transport}::{name}"), check)
}
