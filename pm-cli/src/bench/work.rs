//! The work that is measured: queries that echo, through the whole `QueryManager`, and the limits beside them.

use std::fmt::Debug;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use pm::{AnyTransport, Query, QueryManager, StartError, Transport};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::limits::{BarePipe, BareSocket, Echo, FRAME, Futex, Spin, hogs};
use super::measure::{Block, Measured, Recorder, many, many_threads};
use super::place::{self, Place};
use super::rows::{Mode, Row, SMALL, is_transfer};
use super::transfer;

/// Echoes 64 bytes, without any allocation.
pub static BLOCK: Query<Block, Block> = Query::new("bench-block", &|block: Block| black_box(block));

/// Echoes bytes.
pub static BYTES: Query<Bytes, Bytes> = Query::new("bench-bytes", &|bytes: Bytes| black_box(bytes));

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The transports.
    pub transports: Vec<AnyTransport>,
    /// Bytes of the payload.
    pub sizes: Vec<usize>,
    /// Queries under way at once.
    pub in_flight: Vec<usize>,
    /// Where the processes run.
    pub places: Vec<Place>,
    /// How the queries are made.
    pub modes: Vec<Mode>,
    /// The limits that are measured as well.
    pub limits: Vec<Mode>,
    /// How long each row is measured, after a warm-up of a tenth of that.
    pub time: Duration,
}

/// A bench came to no end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A pool cannot be started.
    #[error("the pool to be measured cannot be started")]
    Start(#[source] StartError),
    /// A query failed.
    #[error("a query failed while it was measured")]
    Lost,
}

/// Why nothing more is measured.
enum Stop {
    /// Nobody wants another row.
    Enough,
    Lost,
    Start(StartError),
}

/// The ways in which queries are made.
pub const MODES: [Mode; 3] = [Mode::Await, Mode::Blocking, Mode::Batch];

/// The limits.
pub const LIMITS: [Mode; 6] = [Mode::Spin, Mode::Futex, Mode::Socket, Mode::Pipe, Mode::Channel, Mode::Transfer];

/// How many queries a limit has under way that is not one after the other.
const CROWD: usize = 256;

impl Settings {
    /// How many rows they give.
    pub fn rows(&self) -> usize {
        let transports = self.transports.len() * self.sizes.len() * self.in_flight.len() * self.modes.len();
        self.places.iter().map(|place| transports + self.limits_in(*place).len()).sum()
    }

    /// The limits that there are in a place, each with its size, and with how many at once.
    fn limits_in(&self, place: Place) -> Vec<(Mode, usize, usize)> {
        let is_shared = self.transports.iter().any(|transport| transport.scheme() == "shm");
        let mut limits = Vec::new();
        for &limit in &self.limits {
            match limit {
                // Nobody spins for a thread that shares its processor.
                Mode::Spin | Mode::Transfer if place == Place::OneCore => {}
                Mode::Transfer if !is_shared => {}
                Mode::Transfer => {
                    for &size in &self.sizes {
                        for &count in &self.in_flight {
                            if matches!(count, 1 | CROWD) && is_transfer(size, count) {
                                limits.push((limit, size, count));
                            }
                        }
                    }
                }
                Mode::Channel | Mode::Mux => limits.push((limit, SMALL, CROWD)),
                _ => limits.push((limit, SMALL, 1)),
            }
        }
        limits
    }

    /// Measures everything, place by place, and hands each row out once it is there, for as long as somebody wants one.
    ///
    /// # Errors
    /// [`BenchError`] where a pool cannot be started or a worker is lost.
    pub fn measure(&self, mut each: impl FnMut(Row) -> ControlFlow<()> + Send) -> Result<(), BenchError> {
        for &place in &self.places {
            let _hogs = hogs(place);
            // A thread and a runtime of their own: the keeper, which is started from here, is pinned as the manager is, and the worker
            // pins itself.
            let here = || self.measure_in(place, &mut each);
            // What a worker was lost of has been printed.
            match std::thread::scope(|scope| scope.spawn(here).join()).unwrap_or(Err(Stop::Lost)) {
                Ok(()) => {}
                Err(Stop::Enough) => break,
                Err(Stop::Lost) => return Err(BenchError::Lost),
                Err(Stop::Start(error)) => return Err(BenchError::Start(error)),
            }
        }
        Ok(())
    }

    fn measure_in(&self, place: Place, each: &mut impl FnMut(Row) -> ControlFlow<()>) -> Result<(), Stop> {
        place.enter();
        let threads = if place == Place::Unpinned { 2 } else { 1 };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mut each = |row| match each(row) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stop::Enough),
        };
        for (mode, size, in_flight) in self.limits_in(place) {
            let measured = self.limit(&runtime, place, mode, size, in_flight);
            each(Row { transport: None, place, size, in_flight, mode, measured })?;
        }
        for transport in &self.transports {
            for &size in &self.sizes {
                let mut row = |in_flight, mode, measured| {
                    each(Row { transport: Some(transport.scheme()), place, size, in_flight, mode, measured })
                };
                if size == SMALL {
                    self.pool(&runtime, place, *transport, &BLOCK, Block([7; 64]), &mut row)?;
                } else {
                    self.pool(&runtime, place, *transport, &BYTES, Bytes::from(vec![7; size]), &mut row)?;
                }
            }
        }
        Ok(())
    }

    fn limit(
        &self,
        runtime: &tokio::runtime::Runtime,
        place: Place,
        mode: Mode,
        size: usize,
        in_flight: usize,
    ) -> Measured {
        let time = self.time;
        let mut frame = [7u8; FRAME];
        match mode {
            Mode::Spin => {
                let mut spin = Spin::new(place);
                timed(time, || {
                    black_box(spin.round_trip(black_box([7; 8])));
                })
            }
            Mode::Futex => {
                let mut futex = Futex::new(place);
                timed(time, || futex.round_trip())
            }
            // The work runs on a thread of the runtime, as a server's does, and not on the one that blocks for it.
            Mode::Socket => on(runtime, async move {
                let mut socket = BareSocket::new(place);
                let mut recorder = Recorder::new(time, Some(socket.peer.pid()));
                while recorder.goes_on() {
                    socket.round_trip(&mut frame).await;
                }
                recorder.finish()
            }),
            Mode::Pipe => on(runtime, async move {
                let mut pipe = BarePipe::new(place);
                let mut recorder = Recorder::new(time, Some(pipe.peer.pid()));
                while recorder.goes_on() {
                    pipe.round_trip(&mut frame).await;
                }
                recorder.finish()
            }),
            Mode::Mux => on(runtime, async move {
                let (mux, peer) = Echo::mux(place);
                crowd(mux, time, Some(peer)).await
            }),
            Mode::Transfer if in_flight == 1 => transfer::round_trips(place, size, time),
            Mode::Transfer => transfer::one_way(place, size, time),
            // The ways to make queries are no limits.
            Mode::Channel | Mode::Await | Mode::Blocking | Mode::Batch => {
                on(runtime, async move { crowd(Echo::channel(), time, None).await })
            }
        }
    }

    fn pool<P: Payload>(
        &self,
        runtime: &tokio::runtime::Runtime,
        place: Place,
        transport: AnyTransport,
        echo: &'static Query<P, P>,
        input: P,
        row: &mut impl FnMut(usize, Mode, Measured) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let pool = runtime.block_on(async {
            let pool = echo.pool().transport(transport).spec(|spec| spec.env(place::VARIABLE, place.variable()));
            pool.start().await.map_err(Stop::Start)
        })?;
        for &in_flight in &self.in_flight {
            for &mode in &self.modes {
                row(in_flight, mode, self.queries(runtime, &pool, &input, in_flight, mode))?;
            }
        }
        runtime.block_on(pool.shutdown());
        Ok(())
    }

    fn queries<P: Payload>(
        &self,
        runtime: &tokio::runtime::Runtime,
        pool: &QueryManager<P, P>,
        input: &P,
        in_flight: usize,
        mode: Mode,
    ) -> Measured {
        let time = self.time;
        let peer = pool.workers().first().map(|worker| worker.pid);
        let (pool, input) = (pool.clone(), input.clone());
        match mode {
            Mode::Blocking if in_flight == 1 => {
                let mut recorder = Recorder::new(time, peer);
                while recorder.goes_on() {
                    assert_eq!(pool.query_blocking(&input).expect("an answer"), input);
                }
                recorder.finish()
            }
            Mode::Blocking => many_threads(in_flight, time, peer, || {
                assert_eq!(pool.query_blocking(&input).expect("an answer"), input);
            }),
            Mode::Batch => on(runtime, async move {
                let inputs = vec![input.clone(); in_flight];
                let mut recorder = Recorder::new(time, peer);
                while recorder.goes_on() {
                    for answer in pool.query_batch(&inputs).await {
                        assert_eq!(answer.expect("an answer"), input);
                    }
                }
                let batch = recorder.finish();
                let each = in_flight as f64;
                let (cpu_manager, cpu_worker) = (batch.cpu_manager / each, batch.cpu_worker / each);
                Measured { rate: batch.rate * each, cpu_manager, cpu_worker, ..batch }
            }),
            _ if in_flight == 1 => on(runtime, async move {
                let mut recorder = Recorder::new(time, peer);
                while recorder.goes_on() {
                    assert_eq!(pool.query(&input).await.expect("an answer"), input);
                }
                recorder.finish()
            }),
            _ => on(runtime, async move {
                many(in_flight, time, peer, move || {
                    let (pool, input) = (pool.clone(), input.clone());
                    async move { assert_eq!(pool.query(&input).await.expect("an answer"), input) }
                })
                .await
            }),
        }
    }
}

/// What is echoed.
trait Payload: Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + Sync + 'static {}

impl<P: Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + Sync + 'static> Payload for P {}

/// Many that use a task at the same time.
async fn crowd(echo: Echo, time: Duration, peer: Option<u32>) -> Measured {
    many(CROWD, time, peer, move || {
        let echo = echo.clone();
        async move { assert_eq!(echo.round_trip(black_box([7; FRAME])).await, [7; FRAME]) }
    })
    .await
}

fn timed(time: Duration, mut call: impl FnMut()) -> Measured {
    let mut recorder = Recorder::new(time, None);
    while recorder.goes_on() {
        call();
    }
    recorder.finish()
}

fn on<T: Send + 'static>(runtime: &tokio::runtime::Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(work).await.expect("no bench panics") })
}
