//! What belongs to one process of a service, through all its lives.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::super::input::Inlet;
use super::super::listening::NotStarted;
use super::super::output::Sink;
use super::super::process::{AbortOnDrop, Order};
use crate::driver::launch::Exit;
use crate::face::service::{Definition, Stopped};
use crate::machine::exit::ExitStatus;
use crate::machine::life::Check;
use crate::machine::service::PortTaken;

/// What belongs to one process of a service.
pub(super) struct Member {
    pub(super) definition: Arc<Definition>,
    pub(super) label: Arc<str>,
    pub(super) replica: u32,
    pub(super) sink: Arc<Sink>,
    pub(super) inlet: Arc<Inlet>,
    /// To the task of its incarnation.
    pub(super) orders: Option<mpsc::Sender<Order>>,
    pub(super) probes: BTreeMap<Check, AbortOnDrop>,
    /// What its hooks take of while they run.
    pub(super) hooks: Arc<Semaphore>,
    /// It was said that there is no log.
    pub(super) has_lost_log: bool,
    /// Why it could not be started.
    pub(super) not_started: Option<NotStarted>,
    /// Somebody else holds the port that its probe asks, or did when it had ended.
    pub(super) port: Option<PortTaken>,
    /// It was killed at its limit; and what was left when it had ended.
    pub(super) was_killed: bool,
    pub(super) exit: Option<Exit>,
    /// It could not even be killed.
    pub(super) is_unkillable: bool,
    pub(super) status: Option<String>,
    pub(super) last_pid: Option<u32>,
}

impl Member {
    /// How it ended on request. No status is no process, or one that is still there.
    pub(super) fn stopped(&self, status: Option<ExitStatus>) -> Stopped {
        let exit = self.exit.as_ref().filter(|_| status.is_some());
        let mut survivors = exit.map(|exit| exit.survivors.clone()).unwrap_or_default();
        survivors.extend(self.last_pid.filter(|_| self.is_unkillable));
        Stopped {
            label: self.label.clone(),
            exit: status,
            was_killed: self.was_killed && (status.is_some() || self.is_unkillable),
            swept: exit.map(|exit| exit.strays.clone()).unwrap_or_default(),
            survivors,
        }
    }

    /// A reason, with who else holds the port that its probe asks.
    pub(super) fn with_port(&self, why: Option<String>) -> Option<String> {
        match (why, &self.port) {
            (Some(why), Some(taken)) => Some(format!("{why}; {taken}")),
            (None, Some(taken)) => Some(taken.to_string()),
            (why, None) => why,
        }
    }

    pub(super) fn order(&self, order: Order) {
        // There is room for more orders than a life has; and one whose task has ended needs none.
        if let Some(orders) = &self.orders {
            let _ = orders.try_send(order);
        }
    }
}
