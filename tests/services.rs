//! Services with real processes: how they start, are watched, and end. Rows P1 to P13, and P20.
//!
//! One module for each behaviour. What they have in common is here: services that are a line of shell, and the wait for an event.

mod crowds;
mod health;
mod hooks;
mod keep;
mod listeners;
mod metrics;
mod needs;
mod output;
mod ports;
mod replace;
mod restart;
mod shutdown;
mod start;
mod stop;
mod terminal;

use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{
    Condition, Event, Happening, Info, Orchestrator, Probe, Restart, Service, ServiceBuilder, State, When,
};
use pm::{ExitCause, Spec};
use tokio::sync::broadcast;

use crate::kits::Kit;
use crate::support::within;

pub use crowds::to_be_killed;
pub use shutdown::helper;

pub fn tests() -> Vec<Trial> {
    [
        start::tests(),
        health::tests(),
        restart::tests(),
        stop::tests(),
        needs::tests(),
        output::tests(),
        hooks::tests(),
        keep::tests(),
        metrics::tests(),
        shutdown::tests(),
        listeners::tests(),
        ports::tests(),
        terminal::tests(),
        crowds::tests(),
        replace::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What does nothing, for longer than any test takes.
const RESTS: &str = "exec sleep 1000";

/// What does not hear SIGTERM, and says `deaf` once it does not.
const DEAF: &str = "trap '' TERM; echo deaf; while :; do sleep 1000; done";

/// A Spec that is a line of shell.
fn sh(script: &str) -> Spec {
    Spec::program("sh").arg("-c").arg(script).build().expect("a Spec")
}

/// A service that is a line of shell.
fn shell(name: &str, script: &str) -> ServiceBuilder {
    Service::new(name, sh(script))
}

/// A service that is a text in Python. None, and said so, where nothing runs that.
fn python(name: &str, script: &str) -> Option<ServiceBuilder> {
    let interpreter = Kit::Python.is_installed().then(|| Kit::Python.interpreter())??;
    let spec = Spec::program(interpreter).arg("-u").arg("-c").arg(script);
    Some(Service::new(name, spec.build().expect("a Spec")))
}

/// A probe that passes while this file is there, and is repeated soon.
fn while_there(path: &Path) -> Probe {
    let spec = Spec::program("test").arg("-e").arg(path).build().expect("a Spec");
    Probe::command(spec).interval(Duration::from_millis(20)).retries(2)
}

/// Without a delay, so that no test waits for one.
fn at_once(when: When) -> Restart {
    Restart { delay: Duration::ZERO, ..Restart::when(when) }
}

fn orchestrator() -> Orchestrator {
    Orchestrator::start().expect("an orchestrator")
}

/// What there is to know of the first replica.
async fn info(orchestrator: &Orchestrator, name: &str) -> Info {
    orchestrator.info(name).await.expect("a service").swap_remove(0)
}

async fn state(orchestrator: &Orchestrator, name: &str) -> State {
    info(orchestrator, name).await.state
}

async fn pid(orchestrator: &Orchestrator, name: &str) -> u32 {
    info(orchestrator, name).await.pid.expect("it has a process")
}

async fn wait(orchestrator: &Orchestrator, name: &str, condition: Condition) {
    within(orchestrator.wait(name, condition)).await.expect("it comes to that");
}

/// What happens, as it is told.
struct Events(broadcast::Receiver<Happening>);

impl Events {
    fn of(orchestrator: &Orchestrator) -> Self {
        Events(orchestrator.events())
    }

    /// Waits for what `want` makes something of. What came before it is passed over.
    #[track_caller]
    fn next<T>(&mut self, label: &str, mut want: impl FnMut(&Event) -> Option<T>) -> impl Future<Output = T> {
        within(async move {
            loop {
                let happening = self.0.recv().await.expect("more events, and none lost");
                if *happening.label == *label
                    && let Some(found) = want(&happening.event)
                {
                    return found;
                }
            }
        })
    }

    /// Waits until a process was made, and gives its number.
    #[track_caller]
    fn started(&mut self, label: &str) -> impl Future<Output = u32> {
        self.next(label, |event| match event {
            Event::Started { pid, .. } => Some(*pid),
            _ => None,
        })
    }

    /// Waits until it has ended otherwise than on request, and gives why, and whether it returns.
    #[track_caller]
    fn crashed(&mut self, label: &str) -> impl Future<Output = (ExitCause, bool)> {
        self.next(label, |event| match event {
            Event::Crashed { cause, restart, .. } => Some((cause.clone(), restart.is_some())),
            _ => None,
        })
    }

    #[track_caller]
    fn healthy(&mut self, label: &str) -> impl Future<Output = Duration> {
        self.next(label, |event| match event {
            Event::Healthy { after } => Some(*after),
            _ => None,
        })
    }

    /// All that have come by now and that `want` makes something of.
    fn all<T>(&mut self, mut want: impl FnMut(&Happening) -> Option<T>) -> Vec<T> {
        let mut found = Vec::new();
        loop {
            match self.0.try_recv() {
                Ok(happening) => found.extend(want(&happening)),
                Err(broadcast::error::TryRecvError::Lagged(count)) => panic!("{count} events were lost"),
                Err(_) => return found,
            }
        }
    }

    /// The words for all that have come by now: who, and what.
    fn words(&mut self) -> Vec<String> {
        self.all(|happening| {
            let word = format!("{:?}", happening.event);
            let end = word.find([' ', '{']).unwrap_or(word.len());
            Some(format!("{} {}", happening.label, &word[..end]))
        })
    }
}

/// The last lines that a service printed, once there are so many.
async fn printed(orchestrator: &Orchestrator, name: &str, lines: usize) -> Vec<String> {
    within(async {
        loop {
            let last = orchestrator.last_lines(name, 100).await.expect("a service");
            if last.len() >= lines {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// Number by number, as services print the pids of what they start.
fn numbers(lines: &[String]) -> Vec<u32> {
    lines.iter().filter_map(|line| line.trim().parse().ok()).collect()
}
