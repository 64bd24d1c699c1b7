//! What a transport is: a way to make a [`Link`] between the manager and one worker.
//!
//! A transport is data and two functions. [`Transport::offer`] makes the manager's half and says what the worker's process
//! must be given: variables of the environment and descriptors. A launcher carries the offer out. Then [`Accept::accept`]
//! waits until the worker has taken its half. The worker's half is a [`Connect`], which finds the link from the environment.
//!
//! Anything with `AsyncRead` and `AsyncWrite` becomes a link by [`FramedLink`](crate::driver::framed::FramedLink), so a
//! transport over a byte stream is a page of code; `examples/custom_transport.rs` is one over TCP. Each proves itself with
//! `testing::conformance` (feature `testing`).

use std::ffi::OsString;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::task::{Context, Poll};

use thiserror::Error;

use crate::machine::frame::{BadFrame, Frame, Header};
use crate::machine::unit::Farewell;
use crate::worker::link::WorkerLink;

/// The variable that names the transport of a worker's link.
pub const LINK_VARIABLE: &str = "PM_LINK";

/// The variable that holds the number of the descriptor of a worker's link.
pub const LINK_FD_VARIABLE: &str = "PM_LINK_FD";

/// All that tell a worker where its link is, and its outbox.
pub(crate) const LINK_VARIABLES: [&str; 4] = [LINK_VARIABLE, LINK_FD_VARIABLE, OUTBOX_FD_VARIABLE, SOCKET_VARIABLE];

/// The variable that holds the path of the socket of a pool that takes visitors. Whoever starts a worker by hand sets it in place of the other ones.
pub const SOCKET_VARIABLE: &str = "PM_SOCKET";

/// The variable that names the role that a worker should serve.
pub const ROLE_VARIABLE: &str = "PM_ROLE";

/// The variable that holds the number of a worker in its pool: it stays the same through all incarnations, and no other worker of the pool ever has it.
pub const WORKER_VARIABLE: &str = "PM_WORKER";

/// The variable that holds the number of the descriptor of a worker's outbox: a memfd that a worker may use for answers that it has
/// not written yet. The Rust worker does; others may leave it alone.
pub const OUTBOX_FD_VARIABLE: &str = "PM_OUTBOX_FD";

/// A way to make links.
///
/// # Contract
/// - [`offer`](Transport::offer) is called once for each start of a worker, before its process exists. It must not block.
/// - Two offers share nothing: a worker that misbehaves on its link cannot be noticed on another.
/// - An offer that is dropped, carried out or not, leaves nothing behind.
pub trait Transport: Debug + Send + Sync + 'static {
    /// The manager's half of a link.
    type Link: Link;
    /// Waits for the worker.
    type Accept: Accept<Self::Link>;

    /// The name of the transport, as it stands in `PM_LINK`: lower case, without blanks.
    fn scheme(&self) -> &'static str;

    /// Makes a link for one worker.
    ///
    /// # Errors
    /// [`TransportError`] where the operating system refuses what the link needs.
    fn offer(&self) -> Result<(Offer, Self::Accept), TransportError>;

    /// Makes a link over a socket that is connected already, to a worker that pm did not start. Called in a runtime; once before the first visitor comes, with a socket whose
    /// other end is closed soon after.
    ///
    /// # Errors
    /// [`TransportError::Unsupported`] where the transport needs more than a socket: that is the default.
    fn adopt(&self, socket: OwnedFd) -> Result<Self::Link, TransportError> {
        drop(socket);
        Err(TransportError::Unsupported { scheme: self.scheme(), what: "a link to workers that pm did not start" })
    }
}

/// What a worker's process must be given so that it finds its half of the link. It is data, so that any launcher can carry it out.
#[derive(Debug, Default)]
pub struct Offer {
    /// Variables of its environment. `PM_LINK` is set from the scheme.
    pub env: Vec<(String, OsString)>,
    /// Descriptors, and where the worker finds each.
    pub fds: Vec<(Place, OwnedFd)>,
    /// The program does not speak the protocol: it is another program, and is told neither of the link nor of a role.
    pub is_foreign: bool,
    /// How the program learns that it should leave.
    pub farewell: Farewell,
}

/// Where a worker finds a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Under this number, from 0 to 2: the standard streams.
    Standard(RawFd),
    /// Under a number from 3 on, which the launcher chooses. This variable of the worker's environment says which.
    Variable(&'static str),
}

/// Who the worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The process that was started. A transport on which strangers could connect refuses every other one.
    pub pid: u32,
}

/// Waits until a worker has taken its half of a link.
pub trait Accept<L>: Send + 'static {
    /// The manager's half, once the worker has its own.
    ///
    /// # Cancel safety
    /// The future may be dropped at any point; what was offered is then taken back.
    ///
    /// # Errors
    /// [`TransportError`], after which the worker cannot be reached.
    fn accept(self, peer: &Identity) -> impl Future<Output = Result<L, TransportError>> + Send;
}

/// An ordered, reliable, bounded, two-way channel of frames to one incarnation of a worker.
pub trait Link: Send + 'static {
    /// The sending half.
    type Tx: LinkTx;
    /// The receiving half.
    type Rx: LinkRx;

    /// The halves, which are used from different tasks.
    fn split(self) -> (Self::Tx, Self::Rx);
}

/// The sending half of a link.
///
/// # Contract
/// - [`push`](LinkTx::push) takes the whole frame or nothing of it. It does not block. It may send some of what it has taken, and then forget the waker of
///   the last [`poll_flush`](LinkTx::poll_flush): whoever waits there polls again after a push.
/// - Frames arrive whole, once, and in the order of their pushes.
/// - After an error both methods go on failing.
pub trait LinkTx: Send + 'static {
    /// Takes a frame into the link, or gives false where the link has no room now. A link that is empty has room for any
    /// frame within the limits.
    ///
    /// # Errors
    /// [`LinkError`] where the link has ended.
    fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError>;

    /// Moves what was pushed towards the peer. Ready once all of it is on its way.
    ///
    /// It may be polled with a waker that does nothing, to try at once; the one who wants to be woken polls again.
    ///
    /// # Errors
    /// [`LinkError`] where the link has ended.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>>;

    /// Takes a call back that was pushed, by its number: REQ frames are counted from 1. True where the worker has not begun with it, and never will;
    /// false where it has. None where only the worker can say, and has to be asked by a frame.
    fn reclaim(&mut self, number: u64) -> Option<bool> {
        let _ = number;
        None
    }
}

/// The receiving half of a link.
///
/// A link whose frames come without the help of the kernel can be *hot*: then a caller may take its answer out of the link itself,
/// with the last four methods, which links over descriptors leave alone.
///
/// # Contract
/// - [`poll_fill`](LinkRx::poll_fill) is ready when frames, or parts of one, have come since it was last ready. It takes in a
///   bounded amount at a time.
/// - After it was ready, [`next`](LinkRx::next) is called until it gives none.
/// - Everything that the peer sent before it ended is given out before [`LinkError::Closed`].
pub trait LinkRx: Send + 'static {
    /// Takes in what has come.
    ///
    /// # Errors
    /// [`LinkError`]; every frame that came before it has been given out.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>>;

    /// The next whole frame, if one has come.
    ///
    /// # Errors
    /// [`LinkError::BadFrame`] for bytes that are no frame.
    fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError>;

    /// The first bytes that could not be read as frames, for the error of a worker that printed on its link.
    fn unread(&self) -> &[u8] {
        &[]
    }

    /// Whether the last four methods do something.
    fn is_hot(&self) -> bool {
        false
    }

    /// Waits for something to come without giving up the processor, for as long as that pays: some microseconds. True where something has
    /// come. The peer need not wake anybody meanwhile.
    fn spin(&mut self) -> bool {
        false
    }

    /// Takes in what has come, as [`poll_fill`](LinkRx::poll_fill) does, but leaves the waker alone. False where nothing has.
    ///
    /// # Errors
    /// As [`poll_fill`](LinkRx::poll_fill).
    fn try_fill(&mut self) -> Result<bool, LinkError> {
        Ok(false)
    }

    /// Says that [`arm`](LinkRx::arm) follows soon, after what came last has been seen to, so that it takes less time then.
    fn expect_arm(&mut self) {}

    /// Undoes what [`spin`](LinkRx::spin) and [`try_fill`](LinkRx::try_fill) did to the waker of the last [`poll_fill`](LinkRx::poll_fill): it
    /// is called for all that comes from here on. True where something has come already.
    fn arm(&mut self) -> bool {
        false
    }
}

/// The worker's half of a transport.
pub trait Connect: Send + Sync {
    /// The scheme of the transport that this is the other half of.
    fn scheme(&self) -> &'static str;

    /// Finds the link that this process was given. Called once, before anything else of the process runs.
    ///
    /// # Errors
    /// What the operating system says where there is no such link.
    fn connect(&self) -> io::Result<Box<dyn WorkerLink>>;
}

/// A link could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The operating system refused something.
    #[error("{scheme}: cannot {action}: {source}")]
    Io {
        /// The transport.
        scheme: &'static str,
        /// What was refused.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Somebody else connected.
    #[error("{scheme}: process {found} connected where process {expected} was expected")]
    Stranger {
        /// The transport.
        scheme: &'static str,
        /// Who was expected.
        expected: u32,
        /// Who came.
        found: u32,
    },
    /// This system lacks something that the transport needs.
    #[error("{scheme}: {what} is not available here; choose another transport")]
    Unsupported {
        /// The transport.
        scheme: &'static str,
        /// What is missing.
        what: &'static str,
    },
}

/// A link has ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer ended it, between two frames.
    #[error("the worker closed its link")]
    Closed,
    /// The peer sent bytes that are no frame, or ended inside one.
    #[error(transparent)]
    BadFrame(#[from] BadFrame),
    /// A frame is too large for this link.
    #[error("a payload of {size} bytes; this link takes at most {limit}")]
    TooLarge {
        /// Bytes of the payload.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Shared state of the link makes no sense.
    #[error("the link is corrupt: {0}")]
    Corrupt(&'static str),
    /// The operating system says so.
    #[error("{0}")]
    Io(#[from] io::Error),
}
