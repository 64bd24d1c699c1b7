//! The task of one incarnation of a worker: start, handshake, link, end.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::launch::ChildState;
use super::link::{LinkDriver, LinkEnd, LinkSettings, LinkShared, Yard};
use super::start::{Life, Started, Starter};
use super::stderr::{self, Tail};
use crate::face::error::StartError;
use crate::machine::cause::ExitCause;
use crate::machine::event::Event;
use crate::machine::frame::{Header, Kind, MAX_NOTICE, MAX_PAYLOAD, flag};
use crate::machine::handshake::{Hello, Mismatch, Ready, VERSION};
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::Aboard;
use crate::machine::unit;
use crate::sys::outbox;
use crate::transport::{Link, LinkError, LinkRx, LinkTx};

/// How long a start that was called off is waited for, so that its process is known to be gone.
const LAST_START: Duration = Duration::from_secs(1);

/// Once a worker has ended, what it left in its link is there already.
const REST: Duration = Duration::from_millis(100);

/// What a worker has left may be more than its readers have room for, who get this long to read it.
const REST_OF_READERS: Duration = Duration::from_secs(10);

/// The sending half of a starter's links.
pub(crate) type TxOf<S> = <<S as Starter>::Link as Link>::Tx;

/// What the pool tells the task of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send DRAIN; the link takes no more calls.
    Drain,
    /// Close the link.
    CloseLink,
    /// Send SIGTERM.
    Terminate,
    /// Kill the whole tree.
    Kill,
}

/// What the task of a worker tells the pool.
pub(crate) enum News<Tx> {
    /// For the machine.
    Unit(WorkerId, unit::Input, Aboard),
    /// The worker shook hands; here is its link.
    Linked(Arc<LinkShared<Tx>>),
    /// It could not be started, and this is the typed reason.
    StartFailed(StartError),
    /// For whom it may concern.
    Event(Event),
}

/// What all workers of a pool have in common.
pub(crate) struct Plan<S: Starter> {
    pub(crate) starter: S,
    pub(crate) pool: Arc<str>,
    pub(crate) codec: String,
    pub(crate) link: LinkSettings,
    pub(crate) yard: Arc<dyn Yard>,
    pub(crate) news: mpsc::Sender<News<TxOf<S>>>,
}

/// One incarnation of a worker.
pub(crate) struct Task<S: Starter> {
    pub(crate) plan: Arc<Plan<S>>,
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) tail: Tail,
    pub(crate) orders: mpsc::Receiver<Order>,
    /// The pool has let go of this task.
    pub(crate) deserted: bool,
}

impl<S: Starter> Task<S> {
    /// Lives through the incarnation. Dropping it kills the process.
    pub(crate) async fn run(mut self) {
        let plan = self.plan.clone();
        let mut start = pin!(plan.starter.start(self.worker, self.incarnation));
        let started = tokio::select! {
            started = &mut start => started.map_err(Some),
            () = self.killed() => {
                // A process that is just being made can be waited for only once it is. The machine knows why it is not wanted.
                if plan.starter.makes_something()
                    && let Ok(Ok(mut started)) = tokio::time::timeout(LAST_START, start).await
                {
                    started.life.kill();
                    started.life.ended().await;
                }
                Err(None)
            }
        };
        let Started { mut life, link, outbox, stderr, farewell } = match started {
            Ok(started) => started,
            Err(error) => {
                let reason = error.as_ref().map_or_else(|| "given up".to_string(), |error| chain(error));
                if let Some(error) = error {
                    self.tell(News::StartFailed(error)).await;
                }
                self.unit(unit::Input::NotSpawned(self.incarnation, reason), Aboard::default()).await;
                return;
            }
        };
        let pid = life.pid();
        self.unit(unit::Input::Spawned(self.incarnation), Aboard { pid: Some(pid), ..Aboard::default() }).await;
        let (ended, has_ended) = oneshot::channel::<()>();
        let (plan, tail) = (self.plan.clone(), self.tail.clone());
        let prefix = format!("[{}{} {pid}] ", plan.pool, self.worker);
        let (read, was_read) = oneshot::channel::<()>();
        let printed = async move {
            if let Some(pipe) = stderr {
                let ended = async { drop(has_ended.await) };
                stderr::follow(pipe, tail, plan.starter.stderr(), prefix, ended, read).await;
            }
        };
        let live = async {
            let aboard = self.live(&mut life, link, outbox, farewell).await;
            drop(ended);
            // The error of a lost call has the last words.
            let _ = was_read.await;
            let status = life.ended().await;
            self.unit(unit::Input::Exited(self.incarnation, status), Aboard { pid: Some(pid), ..aboard }).await;
        };
        tokio::join!(live, printed);
    }

    /// From the first frame to the end of the process.
    async fn live(
        &mut self,
        life: &mut Life,
        link: S::Link,
        outbox: Option<OwnedFd>,
        farewell: unit::Farewell,
    ) -> Aboard {
        let pid = life.pid();
        let (mut tx, mut rx) = link.split();
        let hello = Hello {
            version: VERSION,
            codec: self.plan.codec.clone(),
            role: self.plan.starter.role(),
            max_frame: (MAX_PAYLOAD + 12) as u32,
            streams: self.plan.link.streams,
        };
        let shaken = {
            // Workers in slow languages may have something to say while they load.
            let (yard, worker) = (self.plan.yard.clone(), self.worker);
            let notice = move |text: &[u8]| yard.notice(worker, &String::from_utf8_lossy(text));
            let mut shake = pin!(shake_hands(&mut tx, &mut rx, &hello, &notice));
            let limit = self.plan.starter.handshake_limit();
            let mut late = pin!(async move {
                match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }
            });
            loop {
                tokio::select! {
                    biased;
                    shaken = &mut shake => break Some(shaken),
                    // What it had said by then is still to be read: a program that prints and exits gets a telling error.
                    _ = life.ended() => break tokio::time::timeout(REST, &mut shake).await.ok(),
                    () = &mut late => {
                        let limit = limit.unwrap_or_default();
                        break Some(Err(Unready::Lost(format!("it did not say READY within {limit:?}"))));
                    }
                    order = next_order(&mut self.orders, &mut self.deserted) => match order {
                        Order::Drain => {}
                        Order::Terminate => life.terminate(),
                        Order::CloseLink => break None,
                        Order::Kill => life.kill(),
                    },
                }
            }
        };
        let ready = match shaken {
            Some(Ok(ready)) => ready,
            Some(Err(Unready::Mismatch(mismatch))) => {
                // What it printed tells more than what it failed to say.
                tokio::task::yield_now().await;
                let violation = mismatch.to_string();
                let error = StartError::Handshake { mismatch, stderr: self.tail.text() };
                self.tell(News::StartFailed(error)).await;
                self.fail(ExitCause::Protocol { violation }).await;
                self.until_ended(life).await;
                return Aboard::default();
            }
            Some(Err(Unready::Lost(reason))) => {
                self.unit(unit::Input::LinkLost(self.incarnation, reason), Aboard::default()).await;
                self.until_ended(life).await;
                return Aboard::default();
            }
            None => {
                self.until_ended(life).await;
                return Aboard::default();
            }
        };
        let shared =
            Arc::new(LinkShared::new(self.worker, self.incarnation, pid, tx, Box::new(rx), &ready, self.plan.link));
        self.tell(News::Linked(shared.clone())).await;
        let aboard = Aboard { pid: Some(pid), ..Aboard::default() };
        self.unit(unit::Input::Ready(self.incarnation), aboard).await;
        let driver = LinkDriver::new(shared.clone(), self.plan.yard.clone());
        self.serve(life, &shared, driver, outbox, farewell).await;
        shared.close_inbox();
        Aboard { pid: Some(pid), calls: shared.load() as usize, last_notice: shared.last_notice() }
    }

    /// Drives the link until the process has ended.
    async fn serve(
        &mut self,
        life: &mut Life,
        shared: &Arc<LinkShared<TxOf<S>>>,
        driver: LinkDriver<TxOf<S>>,
        outbox: Option<OwnedFd>,
        farewell: unit::Farewell,
    ) {
        let mut driver = driver;
        let mut open = true;
        let mut trusted = true;
        let mut states = life.states();
        let mut told_drained = false;
        let mut has_returned = false;
        let mut was_killed = false;
        loop {
            let is_drained = !told_drained && shared.is_drained();
            if is_drained {
                told_drained = true;
                let drained = unit::Input::Drained(self.incarnation, farewell);
                self.unit(drained, Aboard::default()).await;
            }
            if !has_returned && shared.has_returned() {
                has_returned = true;
                self.fail(ExitCause::Returned { error: shared.last_error() }).await;
            }
            let link = poll_fn(|cx| match open {
                true => match driver.poll(cx) {
                    Poll::Ready(end) => Poll::Ready(Some(end)),
                    // A drained link is news as well, and so is a conversation that is over.
                    Poll::Pending if !told_drained && shared.is_drained() => Poll::Ready(None),
                    Poll::Pending if !has_returned && shared.has_returned() => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                },
                false => Poll::Pending,
            });
            let changed = async {
                match &mut states {
                    Some(states) => states.changed().await.map(|()| states.borrow_and_update().clone()).ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                end = link => match end {
                    None => {}
                    Some(end) => {
                        open = false;
                        trusted = !matches!(end, LinkEnd::Violation(_));
                        shared.refuse();
                        let input = match end {
                            LinkEnd::Lost(reason) => unit::Input::LinkLost(self.incarnation, reason),
                            LinkEnd::Violation(violation) => {
                                unit::Input::Fail(self.incarnation, ExitCause::Protocol { violation })
                            }
                            LinkEnd::Stuck(grace) => unit::Input::Fail(self.incarnation, ExitCause::Stuck { grace }),
                            LinkEnd::Unresponsive(grace) => {
                                unit::Input::Fail(self.incarnation, ExitCause::Unresponsive { grace })
                            }
                        };
                        self.unit(input, Aboard::default()).await;
                    }
                },
                _ = life.ended() => break,
                state = changed => match state {
                    Some(ChildState::Stopped(_)) => {
                        self.tell(News::Event(Event::Stopped { worker: self.worker, pid: shared.pid })).await;
                    }
                    Some(_) => {}
                    None => states = None,
                },
                order = next_order(&mut self.orders, &mut self.deserted) => match order {
                    Order::Drain => shared.drain(),
                    Order::CloseLink => shared.close(),
                    Order::Terminate => life.terminate(),
                    Order::Kill => {
                        was_killed = true;
                        life.kill();
                    }
                },
            }
        }
        // Its end may be known before that of its link.
        shared.refuse();
        if !trusted {
            return;
        }
        // What it said before it ended counts, whether it lies in the link or in the outbox.
        if open && !was_killed {
            self.read_out(&mut driver, shared).await;
        }
        // A link that was lost by a write can still hold answers.
        let _ = tokio::time::timeout(REST, poll_fn(|cx| driver.poll_rest(cx))).await;
        if let Some(left) = outbox.and_then(|outbox| outbox::left_in(&outbox)) {
            driver.recover(&left.frames, left.begun, left.sent);
        }
    }

    /// Reads what a dead worker has left, as fast as those read for whom it is.
    async fn read_out(&mut self, driver: &mut LinkDriver<TxOf<S>>, shared: &LinkShared<TxOf<S>>) {
        let deadline = tokio::time::Instant::now() + REST_OF_READERS;
        let was_held_up = AtomicBool::new(false);
        let mut link = pin!(poll_fn(|cx| {
            let polled = driver.poll(cx);
            if polled.is_pending() && shared.is_held_up() {
                was_held_up.store(true, Ordering::Relaxed);
            }
            polled
        }));
        loop {
            let rest = (tokio::time::Instant::now() + REST).min(deadline);
            tokio::select! {
                _ = &mut link => return,
                () = tokio::time::sleep_until(rest) => {
                    // Who inherited its link may write on and on, but is none of those that somebody waits for.
                    if rest == deadline || !was_held_up.swap(false, Ordering::Relaxed) && !shared.is_held_up() {
                        return;
                    }
                }
                order = next_order(&mut self.orders, &mut self.deserted) => match order {
                    Order::Kill => return,
                    Order::CloseLink => shared.close(),
                    Order::Drain | Order::Terminate => {}
                },
            }
        }
    }

    /// Waits for the end of a worker whose link is of no use any more.
    async fn until_ended(&mut self, life: &mut Life) {
        loop {
            tokio::select! {
                _ = life.ended() => return,
                order = next_order(&mut self.orders, &mut self.deserted) => match order {
                    Order::Drain | Order::CloseLink => {}
                    Order::Terminate => life.terminate(),
                    Order::Kill => life.kill(),
                },
            }
        }
    }

    /// Waits for an order that ends a start.
    async fn killed(&mut self) {
        while let Some(order) = self.orders.recv().await {
            if order != Order::Drain {
                return;
            }
        }
    }

    async fn fail(&self, cause: ExitCause) {
        self.unit(unit::Input::Fail(self.incarnation, cause), Aboard::default()).await;
    }

    async fn unit(&self, input: unit::Input, aboard: Aboard) {
        self.tell(News::Unit(self.worker, input, aboard)).await;
    }

    /// A pool that is gone needs no news.
    async fn tell(&self, news: News<TxOf<S>>) {
        let _ = self.plan.news.send(news).await;
    }
}

/// The next order. A pool that has let go of a worker, which could not be killed before, wants it dead: once.
async fn next_order(orders: &mut mpsc::Receiver<Order>, deserted: &mut bool) -> Order {
    match orders.recv().await {
        Some(order) => order,
        None if !std::mem::replace(deserted, true) => Order::Kill,
        None => std::future::pending().await,
    }
}

enum Unready {
    Mismatch(Mismatch),
    Lost(String),
}

async fn shake_hands<Tx: LinkTx, Rx: LinkRx>(
    tx: &mut Tx,
    rx: &mut Rx,
    hello: &Hello,
    notice: &(dyn Fn(&[u8]) + Send + Sync),
) -> Result<Ready, Unready> {
    let lost = |error: LinkError| Unready::Lost(error.to_string());
    tx.push(Header::new(Kind::Hello), &hello.encode()).map_err(lost)?;
    // A worker that is gone cannot be written to; what it said before says more.
    let _ = poll_fn(|cx| tx.poll_flush(cx)).await;
    loop {
        match rx.next() {
            Ok(Some(frame)) if frame.header.kind == Kind::Ready as u8 => {
                let ready = Ready::decode(&frame.payload).map_err(Unready::Mismatch)?;
                hello.check(&ready).map_err(Unready::Mismatch)?;
                return Ok(ready);
            }
            Ok(Some(frame)) if frame.header.kind == Kind::Notice as u8 && frame.payload.len() <= MAX_NOTICE => {
                notice(&frame.payload);
            }
            // A newer worker may say something that only a newer manager understands.
            Ok(Some(frame))
                if Kind::from_wire(frame.header.kind).is_none() && frame.header.flags & flag::CRITICAL == 0 => {}
            Ok(Some(frame)) => {
                let what = format!("a frame of kind {} came before READY", frame.header.kind);
                return Err(Unready::Mismatch(Mismatch::not_ready(what, &frame.payload)));
            }
            Ok(None) => match poll_fn(|cx| rx.poll_fill(cx)).await {
                Ok(()) => {}
                Err(LinkError::BadFrame(what)) => {
                    return Err(Unready::Mismatch(Mismatch::not_ready(what, rx.unread())));
                }
                Err(error) => return Err(lost(error)),
            },
            Err(what) => return Err(Unready::Mismatch(Mismatch::not_ready(what, rx.unread()))),
        }
    }
}

/// An error with all that caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
