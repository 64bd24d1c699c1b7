//! What one holds who is attached to a service: what it reads, and what it prints.

use std::fmt;

use thiserror::Error;

use super::error::NoService;
use crate::driver::service::input::Input;
use crate::driver::service::tap::{MOST_ATTACHED, Printed, TapReader};
use crate::driver::service::terminal::WindowSize;

/// Both ends of a process of a service, through all its lives: who is attached stays so when it is started again.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attached {
    /// What it reads. None where that is nobody's to write: its standard input is `/dev/null`, or that of this program.
    pub input: Option<AttachedInput>,
    /// What it prints.
    pub output: AttachedOutput,
    /// Whether it has a terminal.
    pub is_terminal: bool,
}

/// Writes what a service reads. It can be cloned; what several send does not mix within one [`send`](Self::send).
#[derive(Clone)]
pub struct AttachedInput(pub(crate) Input);

/// What a service prints from the moment on at which one was attached, byte for byte.
#[derive(Debug)]
pub struct AttachedOutput(pub(crate) TapReader);

/// Nobody could be attached.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is none of that name.
    #[error(transparent)]
    NotFound(#[from] NoService),
    /// Each has a queue of its own.
    #[error("{MOST_ATTACHED} are attached to {label} already; one of them must leave first")]
    TooMany {
        /// The service, with the number of the replica where it is not the first.
        label: String,
    },
    /// The orchestrator is gone.
    #[error("the orchestrator has ended, and its services with it")]
    Gone,
}

/// A service did not take what was sent. A part of it may have been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InputError {
    /// The process reads no more, or somebody has sent the end of its input. Its next life takes input again.
    #[error("it does not read its standard input any more; once it is started again it does")]
    Closed,
    /// The process ended before it had taken all of it.
    #[error("it ended before it had read that")]
    Ended,
    /// The service, or the orchestrator, is gone.
    #[error("there is no such service any more")]
    Gone,
}

impl AttachedInput {
    /// Sends these bytes. Returns when the kernel has taken all of them for the service, and so waits for a service that does not read, and for one that is
    /// not running until it is.
    ///
    /// Not cancel safe: what was dropped may have sent a part.
    ///
    /// # Errors
    /// [`InputError`]. What it is that was not read is lost; the next that is sent is for whichever life there is then.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), InputError> {
        self.0.send(bytes).await
    }

    /// Sends the end of the input, behind all that was sent before. A pipe is closed, for this life of the service. A terminal has no end: it is sent what the
    /// service takes for one (Ctrl-D), and goes on.
    ///
    /// # Errors
    /// Those of [`AttachedInput::send`].
    pub async fn close(&self) -> Result<(), InputError> {
        self.0.close().await
    }

    /// The terminal of the service is this large from now on, in its further lives as well: 24 lines of 80 characters at first. It is told by SIGWINCH. Of
    /// several who are attached the last one to say so counts. Without a terminal nothing happens.
    pub fn resize(&self, size: WindowSize) {
        self.0.resize(size);
    }
}

impl AttachedOutput {
    /// What comes next. None once the service was removed, or the orchestrator is gone, and all was read. Cancel safe.
    ///
    /// Nobody waits for this reader: beyond 512 KiB the oldest is dropped, and counted in [`Printed::missed`].
    pub async fn next(&mut self) -> Option<Printed> {
        self.0.next().await
    }

    /// What has come by now. None where nothing has.
    pub fn take(&mut self) -> Option<Printed> {
        self.0.take()
    }
}

impl fmt::Debug for AttachedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedInput").finish_non_exhaustive()
    }
}
