//! What all processes of a service accept from: bound before its first start, and open until it is removed.

use std::sync::{Arc, Mutex, PoisonError};

use super::port::{self, Living};
use crate::driver::launch::LaunchError;
use crate::driver::listeners::{Listeners, NotBound};
use crate::face::service::StartError;
use crate::machine::service::PortHolder;
use crate::machine::spec::{ListenAddress, Spec};

/// The listeners of one service, once they are bound. Shared by all its replicas, in all their lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Listening(Arc<Mutex<Option<Arc<Listeners>>>>);

impl Listening {
    /// Binds them, unless they are. Where one cannot be bound, none is, and the next start tries again.
    pub(super) fn open(&self, spec: &Spec) -> Result<Arc<Listeners>, NotBound> {
        let mut bound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listeners) = &*bound {
            return Ok(listeners.clone());
        }
        Ok(bound.insert(Arc::new(Listeners::bind(spec.listeners())?)).clone())
    }
}

/// Whether a Spec listens on a port, so that this program holds it for the service.
pub(super) fn is_on(spec: &Spec, port: u16) -> bool {
    let is_it = |on: &ListenAddress| matches!(on, ListenAddress::Tcp(address) if address.port() == port);
    spec.listeners().iter().any(|(_, on)| is_it(on))
}

/// Why a process of a service was not started.
#[derive(Debug)]
pub(super) enum NotStarted {
    /// Its process could not be made.
    Launch(Arc<LaunchError>),
    /// An address of it cannot be listened on, and who has it.
    Listen(NotBound, Option<PortHolder>),
}

impl From<LaunchError> for NotStarted {
    fn from(error: LaunchError) -> Self {
        NotStarted::Launch(Arc::new(error))
    }
}

impl NotStarted {
    /// With who holds the port, where that is the reason.
    pub(super) fn listen(error: NotBound, living: &Living) -> Self {
        let holder = match &error.address {
            ListenAddress::Tcp(address) if error.source.kind() == std::io::ErrorKind::AddrInUse => {
                port::holder_of(address.port(), living, |held| port::collides(held, &address.ip()))
            }
            _ => None,
        };
        NotStarted::Listen(error, holder)
    }

    /// The error of a start.
    pub(super) fn error(&self, service: String) -> StartError {
        match self {
            NotStarted::Launch(error) => StartError::Launch { service, error: error.clone() },
            NotStarted::Listen(NotBound { address, source }, holder) => {
                StartError::Listen { service, address: address.clone(), source: source.clone(), holder: holder.clone() }
            }
        }
    }

    /// In words, without the service.
    pub(super) fn reason(&self) -> String {
        match self {
            NotStarted::Launch(error) => crate::driver::worker::chain(&**error),
            NotStarted::Listen(NotBound { address, source }, holder) => {
                let by = holder.as_ref().map(|holder| format!(", by {holder}")).unwrap_or_default();
                format!("cannot listen on {address}: {source}{by}")
            }
        }
    }
}
