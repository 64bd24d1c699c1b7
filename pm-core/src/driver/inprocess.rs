//! In-process mode: a worker that is a thread of the manager. The same role, codec, calls and errors; a panic is an error and
//! not a crash; but a handler that never returns cannot be killed, only abandoned.

use std::sync::Arc;

use tokio::sync::watch;

use super::memory::{self, MemoryLink, MemoryWorker};
use super::start::{Life, Started, Starter};
use crate::face::error::StartError;
use crate::machine::exit::ExitStatus;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::spec::Stderr;
use crate::machine::unit::{Farewell, Times};
use crate::transport::TransportError;
use crate::worker::link::WorkerLink;
use crate::worker::role::Role;

/// Starts threads that serve a role.
pub(crate) struct ThreadStarter {
    pub(crate) role: &'static dyn Role,
    pub(crate) times: Times,
}

/// A thread that serves.
pub(crate) struct Thread {
    ended: watch::Receiver<Option<ExitStatus>>,
    abandoned: Arc<watch::Sender<Option<ExitStatus>>>,
}

impl Starter for ThreadStarter {
    type Link = MemoryLink;

    async fn start(&self, worker: WorkerId, _: Incarnation) -> Result<Started<MemoryLink>, StartError> {
        let (link, half) = memory::pair();
        let (sender, ended) = watch::channel(None);
        let abandoned = Arc::new(sender);
        let (role, report) = (self.role, abandoned.clone());
        std::thread::Builder::new()
            .name(format!("pm-{}{worker}", role.name()))
            .spawn(move || {
                let status = serve(half, role);
                report.send_if_modified(|known| {
                    known.is_none() && {
                        *known = Some(status);
                        true
                    }
                });
            })
            .map_err(|source| TransportError::Io { scheme: "memory", action: "start a thread", source })?;
        let life = Life::Thread(Thread { ended, abandoned });
        Ok(Started { life, link, outbox: None, stderr: None, farewell: Farewell::Link })
    }

    fn times(&self) -> Times {
        self.times
    }

    fn stderr(&self) -> Stderr {
        Stderr::Quiet
    }

    fn role(&self) -> Option<String> {
        Some(self.role.name().to_string())
    }
}

fn serve(half: MemoryWorker, role: &'static dyn Role) -> ExitStatus {
    let link: Box<dyn WorkerLink> = Box::new(half);
    match crate::worker::serve_in_thread(link, role) {
        Ok(()) => ExitStatus::Code(0),
        Err(why) => {
            tracing::warn!(target: "pm::worker", role = role.name(), %why);
            ExitStatus::Code(crate::worker::CANNOT_SERVE)
        }
    }
}

impl Thread {
    /// Lets go of the thread. It ends once its handler returns; its link is closed by its owner.
    pub(crate) fn abandon(&self) {
        self.abandoned.send_if_modified(|known| {
            known.is_none() && {
                *known = Some(ExitStatus::Lost);
                true
            }
        });
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        match self.ended.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(ExitStatus::Lost),
            Err(_) => ExitStatus::Lost,
        }
    }
}
