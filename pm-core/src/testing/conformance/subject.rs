//! The transport under test, and both halves of its links as the cases use them.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::machine::frame::{Decoder, Header, MAX_PAYLOAD};
use crate::transport::{Accept, Identity, Link, LinkError, LinkRx, LinkTx, Offer, Transport};
use crate::worker::link::WorkerLink;

/// How long one step may take that waits for the other half. Long, for a machine that is busy with other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How soon an end must be seen.
pub(super) const SOON: Duration = Duration::from_secs(1);

type Connect = dyn Fn(Offer) -> io::Result<Box<dyn WorkerLink>> + Send + Sync;

pub(super) type TxOf<T> = <<T as Transport>::Link as Link>::Tx;
pub(super) type RxOf<T> = <<T as Transport>::Link as Link>::Rx;

/// A transport and its other half.
pub(super) struct Subject<T> {
    transport: T,
    connect: Box<Connect>,
}

impl<T: Transport> Subject<T> {
    pub(super) fn new(
        transport: T,
        connect: impl Fn(Offer) -> io::Result<Box<dyn WorkerLink>> + Send + Sync + 'static,
    ) -> Self {
        Subject { transport, connect: Box::new(connect) }
    }

    pub(super) fn offer(&self) -> Result<(Offer, T::Accept), String> {
        self.transport.offer().map_err(|error| format!("no offer: {error}"))
    }

    /// A link, with both its halves.
    pub(super) async fn open(self: &Arc<Self>) -> Result<(TxOf<T>, RxOf<T>, Wire), String> {
        let (offer, accept) = self.offer()?;
        self.join(offer, accept).await
    }

    /// Takes both halves of what was offered.
    pub(super) async fn join(
        self: &Arc<Self>,
        offer: Offer,
        accept: T::Accept,
    ) -> Result<(TxOf<T>, RxOf<T>, Wire), String> {
        let subject = self.clone();
        let connected =
            aside(move || (subject.connect)(offer).map_err(|error| format!("the worker cannot connect: {error}")));
        let peer = Identity { pid: std::process::id() };
        let accepted =
            async { accept.accept(&peer).await.map_err(|error| format!("the manager cannot accept: {error}")) };
        let (link, half) = within("accept", async { tokio::try_join!(accepted, connected) }).await??;
        let (tx, rx) = link.split();
        Ok((tx, rx, Wire::new(half.into())))
    }

    /// Takes the worker's half alone.
    pub(super) async fn connect(self: &Arc<Self>, offer: Offer) -> Result<Wire, String> {
        let subject = self.clone();
        let half =
            aside(move || (subject.connect)(offer).map_err(|error| format!("the worker cannot connect: {error}")));
        Ok(Wire::new(within("connect", half).await??.into()))
    }
}

/// The worker's half, in whole frames.
pub(super) struct Wire {
    link: Arc<dyn WorkerLink>,
    decoder: Decoder,
    reads: u32,
}

impl Wire {
    fn new(link: Arc<dyn WorkerLink>) -> Self {
        Wire { link, decoder: Decoder::new(MAX_PAYLOAD), reads: 0 }
    }

    /// The same half, for the thread that sends while this one receives.
    pub(super) fn sender(&self) -> Arc<dyn WorkerLink> {
        self.link.clone()
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), String> {
        self.link.send(bytes).map_err(|error| format!("the worker cannot send: {error}"))
    }

    /// Waits for the next frame; none at the end.
    pub(super) fn recv(&mut self) -> Result<Option<(Header, Vec<u8>)>, String> {
        loop {
            if let Some(frame) = self.decoder.next().map_err(|error| format!("the worker received {error}"))? {
                return Ok(Some((frame.header, frame.payload.to_vec())));
            }
            self.reads += 1;
            // Workers do either: wait and then receive, or receive at once.
            while self.reads.is_multiple_of(2) && !self.wait(PATIENCE)? {}
            match self.link.recv(self.decoder.buffer()) {
                Ok(0) => {
                    self.decoder.finish().map_err(|error| format!("the worker received {error}"))?;
                    return Ok(None);
                }
                Ok(_) => {}
                Err(error) => return Err(format!("the worker cannot receive: {error}")),
            }
        }
    }

    pub(super) fn wait(&self, timeout: Duration) -> Result<bool, String> {
        self.link.wait(Some(timeout)).map_err(|error| format!("the worker cannot wait: {error}"))
    }
}

/// Runs `work`, which blocks, on a thread of its own. Nothing waits for that thread but the future.
pub(super) fn aside<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, String> + Send + 'static,
) -> impl Future<Output = Result<R, String>> {
    let (sender, result) = oneshot::channel();
    let started = thread::Builder::new().name("conformance".into()).spawn(move || {
        // Nobody listens where the case has failed already.
        let _ = sender.send(work());
    });
    async move {
        started.map_err(|error| format!("no thread: {error}"))?;
        result.await.unwrap_or_else(|_| Err("the worker's thread panicked".to_string()))
    }
}

/// Waits for one step. A future that is ready only because its timer polled it again was not woken, and is too late.
pub(super) async fn within<F: Future>(what: &str, future: F) -> Result<F::Output, String> {
    within_time(PATIENCE, what, future).await
}

/// The same for a step that has less time.
pub(super) async fn within_time<F: Future>(limit: Duration, what: &str, future: F) -> Result<F::Output, String> {
    let began = Instant::now();
    match tokio::time::timeout(limit, future).await {
        Ok(output) if began.elapsed() < limit => Ok(output),
        _ => Err(format!("{what}: not done within {limit:?}; was a wake-up lost, or what should have come?")),
    }
}

/// Sends a frame, however long the link has no room for it.
pub(super) async fn send(tx: &mut impl LinkTx, header: Header, payload: &[u8]) -> Result<(), String> {
    while !push(tx, header, payload)? {
        flush(tx).await?;
    }
    Ok(())
}

pub(super) fn push(tx: &mut impl LinkTx, header: Header, payload: &[u8]) -> Result<bool, String> {
    tx.push(header, payload).map_err(|error| format!("push: {error}"))
}

pub(super) async fn flush(tx: &mut impl LinkTx) -> Result<(), String> {
    within("flush", poll_fn(|cx| tx.poll_flush(cx))).await?.map_err(|error| format!("flush: {error}"))
}

/// Waits for the next frame. The outer error is that of the case, the inner one that of the link.
pub(super) async fn recv(rx: &mut impl LinkRx) -> Result<Result<(Header, Vec<u8>), LinkError>, String> {
    loop {
        match rx.next() {
            Ok(Some(frame)) => return Ok(Ok((frame.header, frame.payload.to_vec()))),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        if let Err(error) = within("receive", poll_fn(|cx| rx.poll_fill(cx))).await? {
            return Ok(Err(error));
        }
    }
}

/// The next frame, where the link must not have ended.
pub(super) async fn recv_frame(rx: &mut impl LinkRx) -> Result<(Header, Vec<u8>), String> {
    recv(rx).await?.map_err(|error| format!("the link ended too early: {error}"))
}

/// A waker that counts.
#[derive(Default)]
pub(super) struct Bell {
    rings: AtomicUsize,
    rung: Notify,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.rung.notify_one();
    }
}

impl Bell {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn poll<R>(self: &Arc<Self>, poll: impl FnOnce(&mut Context<'_>) -> Poll<R>) -> Poll<R> {
        let waker = Waker::from(self.clone());
        poll(&mut Context::from_waker(&waker))
    }

    /// Polls with this waker until it is ready, and waits for a ring before each further poll.
    pub(super) async fn until_ready<R>(
        self: &Arc<Self>,
        what: &str,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<R>,
    ) -> Result<R, String> {
        loop {
            self.rung(what).await?;
            if let Poll::Ready(ready) = self.poll(&mut poll) {
                return Ok(ready);
            }
        }
    }

    /// Waits for a ring.
    pub(super) async fn rung(&self, what: &str) -> Result<(), String> {
        within(what, self.rung.notified()).await
    }
}
