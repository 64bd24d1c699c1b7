//! iceoryx2, request-response. Both processes poll: the manager for answers, the worker for requests.
//!
//! Its memory goes round: with room for 256 large requests, one at a time would find each of its slots cold, and take four times as long.
//! So each figure has a service and a worker of its own, with just the room that it needs.

use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::request_response::PortFactory as Factory;

use crate::cli::Args;
use crate::error::{PeerError, Step};
use crate::measure::{alone, check, payload, rate};
use crate::rival::Rival;
use crate::role::{Worker, address};
use crate::row::{CROWD, Row, SIZES};

/// Of many answers, after so many the clock is read: it would show beside answers that take less than a microsecond.
const CLOCK: u64 = 16;

/// The room for one request at a time: the worker may still hold the one before.
const ALONE: usize = 2;

type Bytes = [u8];
type Service = Factory<ipc::Service, Bytes, (), Bytes, ()>;
type Pending = PendingResponse<ipc::Service, Bytes, (), Bytes, ()>;

/// The manager of a figure, with its worker.
struct Manager {
    worker: Option<Worker>,
    client: Client<ipc::Service, Bytes, (), Bytes, ()>,
    payload: Vec<u8>,
    node: Node<ipc::Service>,
}

/// The manager.
pub(crate) fn measure(args: &Args) -> Result<Vec<Row>, PeerError> {
    let rows = SIZES.map(|bytes| {
        let manager = Manager::start(args, bytes, ALONE)?;
        let (p50, p99) = alone(args.seconds, || manager.receive(&manager.send()?))?;
        // Two workers that poll would be in each other's way.
        drop(manager);
        let manager = Manager::start(args, bytes, CROWD)?;
        let rate = rate(args.seconds, |time| manager.crowd(time))?;
        Ok(Row { bytes, p50, p99, rate, cpu: None })
    });
    rows.into_iter().collect()
}

impl Manager {
    fn start(args: &Args, bytes: usize, room: usize) -> Result<Self, PeerError> {
        let name = format!("pm-peers-{}-{bytes}-{room}", std::process::id());
        let (node, service) = open(&name, room)?;
        let client = service.client_builder().initial_max_slice_len(bytes).create().step("create a client")?;
        let address = format!("{name} {bytes} {room}");
        let mut worker = Worker::start(Rival::Iceoryx2, args.placement, &address, Stdio::null(), Stdio::piped())?;
        let ready = worker.0.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut String::new()));
        if !matches!(ready, Some(Ok(1..))) {
            return Err(PeerError::Step { step: "hear from the worker", problem: "it ended".to_string() });
        }
        Ok(Manager { worker: Some(worker), client, payload: payload(bytes), node })
    }

    fn send(&self) -> Result<Pending, PeerError> {
        let request = self.client.loan_slice_uninit(self.payload.len()).step("loan a request")?;
        request.write_from_slice(black_box(&self.payload)).send().step("send a request")
    }

    fn receive(&self, pending: &Pending) -> Result<(), PeerError> {
        loop {
            match pending.receive().step("receive an answer")? {
                Some(answer) => return check(&answer, &self.payload),
                None => spin_loop(),
            }
        }
    }

    /// Keeps many under way: the oldest is awaited, and another one sent for it.
    fn crowd(&self, time: Duration) -> Result<u64, PeerError> {
        let end = Instant::now() + time;
        let mut under_way = (0..CROWD).map(|_| self.send()).collect::<Result<VecDeque<_>, _>>()?;
        let (mut count, mut goes_on) = (0, true);
        while let Some(oldest) = under_way.pop_front() {
            self.receive(&oldest)?;
            drop(oldest);
            count += 1;
            if count % CLOCK == 0 {
                goes_on = Instant::now() < end;
            }
            if goes_on {
                under_way.push_back(self.send()?);
            }
        }
        Ok(count)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // The worker polls until it is killed. What it leaves in shared memory is removed here.
        drop(self.worker.take());
        self.node.try_cleanup_dead_nodes();
    }
}

/// The worker.
pub(crate) fn serve() -> Result<(), PeerError> {
    let address = address()?;
    let &[name, bytes, room] = address.split(' ').collect::<Vec<_>>().as_slice() else {
        return Err(PeerError::Step { step: "read the address of the manager", problem: address });
    };
    let (_node, service) = open(name, room.parse().step("read the room")?)?;
    let bytes = bytes.parse().step("read the size")?;
    let server = service.server_builder().initial_max_slice_len(bytes).create().step("create a server")?;
    writeln!(std::io::stdout(), "ready").step("greet the manager")?;
    loop {
        match server.receive().step("receive a request")? {
            Some(request) => {
                let answer = request.loan_slice_uninit(request.payload().len()).step("loan an answer")?;
                answer.write_from_slice(black_box(request.payload())).send().step("send an answer")?;
            }
            None => spin_loop(),
        }
    }
}

/// The same in both processes: one client, one server, and room for all that are under way.
fn open(name: &str, room: usize) -> Result<(Node<ipc::Service>, Service), PeerError> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().signal_handling_mode(SignalHandlingMode::Disabled).create().step("create a node")?;
    let name = ServiceName::new(name).step("name a service")?;
    let builder = node.service_builder(&name).request_response::<Bytes, Bytes>();
    let builder = builder.max_clients(1).max_servers(1).max_nodes(2).max_active_requests_per_client(room);
    let builder = builder.max_response_buffer_size(1).max_borrowed_responses_per_pending_response(1);
    let service = builder.open_or_create().step("open a service")?;
    Ok((node, service))
}
