//! Services of common sorts. Each gives a builder, which can be told more.

use std::time::Duration;

use super::probe::Probe;
use super::service::{Service, ServiceBuilder};
use crate::machine::restart::{Restart, When};
use crate::machine::spec::Spec;

/// A web server on a port of 127.0.0.1: healthy while a GET of `/health` is answered with 200, asked every 30 s.
///
/// Another path or interval is another probe: `.health(Probe::http("http://127.0.0.1:3000/ready"))`.
pub fn web_server(name: impl Into<String>, spec: Spec, port: u16) -> ServiceBuilder {
    let probe = Probe::http(format!("http://127.0.0.1:{port}/health")).interval(Duration::from_secs(30));
    Service::new(name, spec).health(probe)
}

/// A database on a port of 127.0.0.1: healthy while it takes connections. It has 10 s to start.
pub fn database(name: impl Into<String>, spec: Spec, port: u16) -> ServiceBuilder {
    Service::new(name, spec).health(Probe::tcp(port)).start_limit(Duration::from_secs(10))
}

/// A worker in the background: started again up to 5 times when it crashes.
pub fn worker(name: impl Into<String>, spec: Spec) -> ServiceBuilder {
    Service::new(name, spec).restart(Restart::when(When::OnFailure))
}

/// A node of a blockchain on a port of 127.0.0.1: healthy while it takes connections. It has 60 s to start.
pub fn blockchain_node(name: impl Into<String>, spec: Spec, port: u16) -> ServiceBuilder {
    Service::new(name, spec).health(Probe::tcp(port)).start_limit(Duration::from_secs(60))
}
