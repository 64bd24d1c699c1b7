//! Links to programs that do not speak pm's protocol.
//!
//! | transport | the program | what passes |
//! |---|---|---|
//! | [`Silent`] | any, such as a server that accepts from the listeners of its Spec | nothing |
//! | [`Lines`] | reads and writes lines | each message is a line of its standard input or output |
//! | [`NodeChannel`] | was written for Node.js's `child_process.fork` | each message is a JSON value: `process.send` and `process.on('message')` |
//!
//! Such a program says nothing of READY: it counts as ready once it is executing, or has sent the message that [`Conversation::ready_on`] waits for. What its messages mean is for a [`Dialect`] to say. Unless another one is
//! named that is [`Conversation`], in which all messages belong to the one conversation of a raw worker. With a dialect of its own a program can answer queries
//! or serve streams, and its pool is one like any other, with deadlines, replacement and all.
//!
//! ```text
//!   link of the pool ⇄ frames ⇄ Translator ⊃ Dialect ⇄ messages ⇄ lines of a pipe or a socket ⇄ program
//! ```

#![forbid(unsafe_code)]

mod dialect;
mod link;
mod translator;

use std::io;
use std::os::fd::OwnedFd;

use pm_core::machine::unit::Farewell;
use pm_core::transport::{Accept, Identity, Offer, Place, Transport, TransportError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{Receiver, Sender};

pub use dialect::{Calls, Conversation, Dialect, Out, Said};
pub use link::{ForeignLink, ForeignRx, ForeignTx};

/// The variables by which Node.js finds its channel, and how messages are written there.
const NODE_FD: &str = "NODE_CHANNEL_FD";
const NODE_MODE: &str = "NODE_CHANNEL_SERIALIZATION_MODE";

/// Nothing passes between manager and program: what is sent to it is gone. It is told to leave by SIGTERM, as soon as its load is 0, and has left once it has ended.
///
/// ```
/// use pm_core::face::builder::PoolBuilder;
/// use pm_core::codec::Verbatim;
/// use pm_core::machine::spec::Spec;
/// use pm_transport_foreign::Silent;
///
/// let server = Spec::program("my-server").listen("127.0.0.1:8080".parse::<std::net::SocketAddr>()?);
/// let builder: PoolBuilder<String, String, _, _, _> = PoolBuilder::program("web", server, Silent, Verbatim("none")).raw().workers(2);
/// # drop(builder);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

/// Each message is a line: of the program's standard input, or of its standard output. What it prints to its standard error is passed on as that of any worker.
///
/// A message cannot hold a newline: one that does is not sent, and the reader of its stream has an error in its place, after which the stream goes on; a query fails. To end the conversation is to close the program's standard input.
#[derive(Clone, Debug)]
pub struct Lines<D = Conversation>(D);

/// The channel between Node.js and a process that its `child_process.fork` starts: one JSON value a line, over a socket. An unmodified worker of that kind
/// works. To end the conversation is to close the channel, which it hears as `disconnect`.
///
/// Payloads are JSON: the codec of its pool is `Json`, or `Verbatim("json")` for text that is JSON already. With another one a pool of conversations does not start; a dialect of your own may translate.
#[derive(Clone, Debug)]
pub struct NodeChannel<D = Conversation>(D);

/// Waits for nothing: what a link consists of is there from the start.
#[derive(Debug)]
pub struct Ready<D> {
    dialect: D,
    ends: Ends,
}

#[derive(Debug)]
enum Ends {
    None,
    Pipes { read: OwnedFd, write: OwnedFd },
    Socket(OwnedFd),
}

impl Default for Lines {
    fn default() -> Self {
        Lines::speaking(Conversation::default())
    }
}

impl Default for NodeChannel {
    fn default() -> Self {
        NodeChannel::speaking(Conversation::default())
    }
}

impl<D: Dialect> Lines<D> {
    /// Lines that mean what this dialect says.
    pub const fn speaking(dialect: D) -> Self {
        Lines(dialect)
    }
}

impl<D: Dialect> NodeChannel<D> {
    /// Messages that mean what this dialect says.
    pub const fn speaking(dialect: D) -> Self {
        NodeChannel(dialect)
    }
}

impl Transport for Silent {
    type Link = ForeignLink<Conversation>;
    type Accept = Ready<Conversation>;

    fn scheme(&self) -> &'static str {
        "silent"
    }

    fn offer(&self) -> Result<(Offer, Ready<Conversation>), TransportError> {
        let offer = Offer { is_foreign: true, farewell: Farewell::Signal, ..Offer::default() };
        Ok((offer, Ready { dialect: Conversation::default(), ends: Ends::None }))
    }
}

impl<D: Dialect> Transport for Lines<D> {
    type Link = ForeignLink<D>;
    type Accept = Ready<D>;

    fn scheme(&self) -> &'static str {
        "lines"
    }

    fn offer(&self) -> Result<(Offer, Ready<D>), TransportError> {
        let refused = |action| move |error: rustix::io::Errno| self.refused(action, error.into());
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(refused("make a pipe"));
        let ((stdin, write), (read, stdout)) = (pipe()?, pipe()?);
        for end in [&read, &write] {
            rustix::io::ioctl_fionbio(end, true).map_err(refused("make a pipe non-blocking"))?;
        }
        let fds = vec![(Place::Standard(0), stdin), (Place::Standard(1), stdout)];
        let offer = Offer { fds, is_foreign: true, ..Offer::default() };
        Ok((offer, Ready { dialect: self.0.clone(), ends: Ends::Pipes { read, write } }))
    }
}

impl<D: Dialect> Lines<D> {
    fn refused(&self, action: &'static str, source: io::Error) -> TransportError {
        TransportError::Io { scheme: self.scheme(), action, source }
    }
}

impl<D: Dialect> Transport for NodeChannel<D> {
    type Link = ForeignLink<D>;
    type Accept = Ready<D>;

    fn scheme(&self) -> &'static str {
        "node-channel"
    }

    fn offer(&self) -> Result<(Offer, Ready<D>), TransportError> {
        let refused = |action| {
            move |error: rustix::io::Errno| TransportError::Io { scheme: self.scheme(), action, source: error.into() }
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(refused("make a pair of sockets"))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(refused("make a socket non-blocking"))?;
        let offer = Offer {
            env: vec![(NODE_MODE.to_string(), "json".into())],
            fds: vec![(Place::Variable(NODE_FD), theirs)],
            is_foreign: true,
            farewell: Farewell::Link,
        };
        Ok((offer, Ready { dialect: self.0.clone(), ends: Ends::Socket(ours) }))
    }
}

impl<D: Dialect> Accept<ForeignLink<D>> for Ready<D> {
    async fn accept(self, _: &Identity) -> Result<ForeignLink<D>, TransportError> {
        let watch = |scheme| move |source| TransportError::Io { scheme, action: "watch a descriptor", source };
        Ok(match self.ends {
            Ends::None => ForeignLink::new(self.dialect, None, None, None),
            Ends::Pipes { read, write } => {
                let read = Receiver::from_owned_fd(read).map_err(watch("lines"))?;
                let write = Sender::from_owned_fd(write).map_err(watch("lines"))?;
                ForeignLink::new(self.dialect, None, Some(Box::new(read)), Some(Box::new(write)))
            }
            Ends::Socket(socket) => {
                let socket = UnixStream::from_std(socket.into()).map_err(watch("node-channel"))?;
                let (read, write) = socket.into_split();
                ForeignLink::new(self.dialect, Some("json"), Some(Box::new(read)), Some(Box::new(write)))
            }
        })
    }
}
