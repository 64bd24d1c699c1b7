//! A program that stops its services when it is told to end.

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use super::info::Stopped;
use super::orchestrator::Orchestrator;
use crate::driver::signal::{ENDINGS, Heard};
use crate::machine::exit::Signal;

/// How services were stopped because a signal came.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Shutdown {
    /// The first signal: SIGINT or SIGTERM.
    pub signal: Signal,
    /// How each ended, as [`Orchestrator::stop_all`] says it. Empty where `was_given_up`.
    pub stopped: Vec<Stopped>,
    /// A third signal came before all had ended. What is left is killed when the program ends.
    pub was_given_up: bool,
}

impl Shutdown {
    /// What the program should end with, as a shell says that a signal ended it: 128 and its number.
    pub fn exit_code(&self) -> u8 {
        // Signals go up to 64.
        u8::try_from(self.signal.0).unwrap_or(0).saturating_add(128)
    }
}

impl From<Shutdown> for ExitCode {
    fn from(shutdown: Shutdown) -> Self {
        ExitCode::from(shutdown.exit_code())
    }
}

impl Orchestrator {
    /// Waits for SIGINT or SIGTERM and then stops all services in order, each within its own time. A second signal kills what is left, and with a
    /// third one nothing is waited for any more. Two that come at once may count as one.
    ///
    /// From this call on, and for the rest of the program, these signals end nothing by themselves: also where the future is dropped, which
    /// leaves all services as they are, or, once a signal has come, leaves them being stopped. A signal that is ignored at the time of the call goes on being
    /// ignored, for nohup(1) and shells without job control mean that. Nothing should be started any more once a signal has come: it would be left.
    ///
    /// ```no_run
    /// # use std::process::ExitCode;
    /// # async fn example(orchestrator: pm_core::face::service::Orchestrator) -> std::io::Result<ExitCode> {
    /// let told_to_end = orchestrator.shutdown_on_signals()?;
    /// // … services are started here …
    /// let shutdown = told_to_end.await;
    /// for stopped in shutdown.stopped.iter().filter(|one| !one.is_clean()) {
    ///     eprintln!("{stopped}");
    /// }
    /// Ok(shutdown.into())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The kernel or the runtime takes no handler for a signal.
    ///
    /// # Panics
    /// Outside of a tokio runtime, and in one without I/O (`enable_io`).
    pub fn shutdown_on_signals(&self) -> io::Result<impl Future<Output = Shutdown> + Send + use<>> {
        let mut signals = Heard::unless_ignored(&ENDINGS)?;
        let orchestrator = self.clone();
        Ok(async move {
            let signal = signals.next().await;
            let stop = |limit| {
                let orchestrator = orchestrator.clone();
                tokio::spawn(async move { orchestrator.stop_all(limit).await })
            };
            let mut stopping = stop(None);
            let mut is_killing = false;
            loop {
                tokio::select! {
                    stopped = &mut stopping => {
                        return Shutdown { signal, stopped: stopped.unwrap_or_default(), was_given_up: false };
                    }
                    _ = signals.next() => match is_killing {
                        true => return Shutdown { signal, stopped: Vec::new(), was_given_up: true },
                        false => {
                            is_killing = true;
                            // The first answer knows what had to be killed.
                            drop(stop(Some(Duration::ZERO)));
                        }
                    },
                }
            }
        })
    }
}
