//! What keeps services.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use super::attach::{AttachError, Attached};
use super::error::{NoService, RemoveError, StartError, WaitError};
use super::info::{Happening, Info, Stopped};
use super::service::Service;
use crate::driver::service::output::Output;
use crate::driver::service::task::{Ends, Request, Task};
use crate::machine::exit::Signal;
use crate::machine::service::Condition;

/// The one that [`orchestrator`] gives.
static SHARED: Mutex<Option<Orchestrator>> = Mutex::new(None);

/// The orchestrator that all of this program shares. It belongs to the runtime on which it is first asked for; where that is gone, another
/// one begins.
///
/// # Errors
/// The thread that reads what services print cannot be started.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn orchestrator() -> io::Result<Orchestrator> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    match &*shared {
        Some(orchestrator) if !orchestrator.ends.requests.is_closed() => Ok(orchestrator.clone()),
        _ => Ok(shared.insert(Orchestrator::start()?).clone()),
    }
}

/// Keeps services: starts them in the order of their needs, watches them, stops them in reverse.
///
/// It is a handle, which can be cloned. When the last one is dropped, all services are killed, with all that they have started;
/// [`Orchestrator::stop_all`] lets them end. When the program itself is killed, its keeper does the same within a second.
///
/// All methods are cancel safe: what was asked for goes on, and only its answer is lost.
#[derive(Clone)]
pub struct Orchestrator {
    ends: Ends,
}

/// An [`Orchestrator`] in the making.
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct OrchestratorBuilder {
    output: Option<mpsc::Sender<Output>>,
}

impl OrchestratorBuilder {
    /// Sends all that services print there. Where it is full, services that print wait for up to a second, and then what they print is
    /// dropped for this reader, and counted in [`Output::missed`].
    pub fn output(mut self, sender: mpsc::Sender<Output>) -> Self {
        self.output = Some(sender);
        self
    }

    /// Starts it on this runtime.
    ///
    /// # Errors
    /// The thread that reads what services print cannot be started.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> io::Result<Orchestrator> {
        Ok(Orchestrator { ends: Task::start(self.output)? })
    }
}

impl Orchestrator {
    /// Starts one without services, on this runtime.
    ///
    /// # Errors
    /// The thread that reads what services print cannot be started.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start() -> io::Result<Self> {
        Orchestrator::builder().start()
    }

    /// The same, with more to say.
    pub fn builder() -> OrchestratorBuilder {
        OrchestratorBuilder::default()
    }

    /// Adds services without starting them. They may need each other and those that are there; where one cannot be added, none is.
    ///
    /// # Errors
    /// [`StartError::Bad`] for a name that is taken, a need of something that does not exist or is never ready, and a cycle, with its path.
    pub async fn add(&self, services: impl IntoIterator<Item = Service>) -> Result<(), StartError> {
        let definitions = services.into_iter().map(|service| service.0).collect();
        self.ask(|answer| Request::Add(definitions, answer)).await.ok_or(StartError::Gone)?.map_err(StartError::from)
    }

    /// Starts a service that was added, and all that it needs. Returns when it is up: healthy where something says when it is,
    /// otherwise as soon as its process exists; or when it has completed.
    ///
    /// # Errors
    /// [`StartError`]: a program that does not exist, a start that took too long, something that it needs and that failed, and so on.
    pub async fn start_service(&self, name: &str) -> Result<(), StartError> {
        self.start_named([name], true).await
    }

    /// Starts several at the same time, each as [`Orchestrator::start_service`] does. Without their needs they start at once, whatever they need.
    ///
    /// # Errors
    /// The first of them that cannot be up. The others go on.
    pub async fn start_named(
        &self,
        names: impl IntoIterator<Item = impl Into<String>>,
        with_needs: bool,
    ) -> Result<(), StartError> {
        let names = names.into_iter().map(Into::into).collect();
        self.ask(|answer| Request::Start { names, with_needs, answer }).await.unwrap_or(Err(StartError::Gone))
    }

    /// Adds services and starts them, with what they need.
    ///
    /// # Errors
    /// Those of [`Orchestrator::add`], and of [`Orchestrator::start_named`].
    pub async fn start_many(&self, services: impl IntoIterator<Item = Service>) -> Result<(), StartError> {
        let services: Vec<Service> = services.into_iter().collect();
        let names: Vec<String> = services.iter().map(|service| service.name().to_string()).collect();
        self.add(services).await?;
        self.start_named(names, true).await
    }

    /// Starts all that there are.
    ///
    /// # Errors
    /// The first of them that cannot be up. The others go on.
    pub async fn start_all(&self) -> Result<(), StartError> {
        let names: std::collections::BTreeSet<String> = self.list().await.into_iter().map(|info| info.name).collect();
        self.start_named(names, true).await
    }

    /// Stops a service, all its replicas: asks it to end, and kills it, with all that it has started, where it has not by its limit. Others that
    /// need it go on. Returns when it is gone, with what had to be killed.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn stop(&self, name: &str) -> Result<Vec<Stopped>, NoService> {
        self.stop_within([name], None).await
    }

    /// Stops several, those first that need others of them, each with this limit in place of its own; with a limit of zero they are killed.
    ///
    /// # Errors
    /// There is none of one of the names. Then none is stopped.
    pub async fn stop_within(
        &self,
        names: impl IntoIterator<Item = impl Into<String>>,
        limit: Option<Duration>,
    ) -> Result<Vec<Stopped>, NoService> {
        let names = names.into_iter().map(Into::into).collect();
        self.ask(|answer| Request::Stop { names, limit, answer }).await.unwrap_or(Ok(Vec::new()))
    }

    /// Stops all, those first that need others. What is still there when `limit` has passed is killed, whoever needs it; without one each has
    /// its own limit. Returns what had to be killed.
    pub async fn stop_all(&self, limit: Option<Duration>) -> Vec<Stopped> {
        self.ask(|answer| Request::StopAll { deadline: limit, answer }).await.unwrap_or_default()
    }

    /// Stops a service and those that are restarted with it, and starts them again. Returns when it is up.
    ///
    /// # Errors
    /// Those of [`Orchestrator::start_service`].
    pub async fn restart(&self, name: &str) -> Result<(), StartError> {
        self.restart_named([name]).await
    }

    /// The same for several.
    ///
    /// # Errors
    /// The first of them that cannot be up. The others go on.
    pub async fn restart_named(&self, names: impl IntoIterator<Item = impl Into<String>>) -> Result<(), StartError> {
        let names = names.into_iter().map(Into::into).collect();
        self.ask(|answer| Request::Restart { names, answer }).await.unwrap_or(Err(StartError::Gone))
    }

    /// Has so many processes of a service: starts further ones where it is up, and stops the last ones. Returns when those that there are to be are up, and the
    /// others gone.
    ///
    /// # Errors
    /// Those of [`Orchestrator::start_service`].
    pub async fn scale(&self, name: &str, replicas: u32) -> Result<(), StartError> {
        let name = name.into();
        self.ask(|answer| Request::Scale { name, replicas, answer }).await.unwrap_or(Err(StartError::Gone))
    }

    /// Stops a service and forgets it.
    ///
    /// # Errors
    /// [`RemoveError`]: there is none of that name, or others need it.
    pub async fn remove(&self, name: &str) -> Result<Vec<Stopped>, RemoveError> {
        let name = name.into();
        self.ask(|answer| Request::Remove { name, answer }).await.unwrap_or(Ok(Vec::new()))
    }

    /// Sends a signal to the process groups of a service. Returns to how many.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn signal(&self, name: &str, signal: Signal) -> Result<u32, NoService> {
        let name = name.into();
        self.ask(|answer| Request::Signal { name, signal, answer }).await.unwrap_or(Ok(0))
    }

    /// Waits until a service, all its replicas, is in a condition.
    ///
    /// # Errors
    /// [`WaitError`]: as soon as it cannot come to that any more, unless somebody intervenes.
    pub async fn wait(&self, name: &str, condition: Condition) -> Result<(), WaitError> {
        let name = name.into();
        self.ask(|answer| Request::Wait { name, condition, answer }).await.unwrap_or(Err(WaitError::Gone))
    }

    /// All processes of services, each after those that it needs.
    pub async fn list(&self) -> Vec<Info> {
        self.ask(Request::List).await.unwrap_or_default()
    }

    /// The processes of one service.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn info(&self, name: &str) -> Result<Vec<Info>, NoService> {
        let name = name.into();
        self.ask(|answer| Request::Info { name, answer }).await.unwrap_or(Ok(Vec::new()))
    }

    /// Whether a process of the service lives.
    pub async fn is_running(&self, name: &str) -> bool {
        self.list().await.iter().any(|info| info.name == name && info.pid.is_some())
    }

    /// The last lines that a service printed: up to so many of each replica, from its last 16 KiB, with control characters escaped.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn last_lines(&self, name: &str, lines: usize) -> Result<Vec<String>, NoService> {
        let name = name.into();
        self.ask(|answer| Request::Last { name, lines, answer }).await.unwrap_or(Ok(Vec::new()))
    }

    /// Both ends of a process of a service: what it reads ([`Stdin::Pipe`](super::Stdin::Pipe) or a [terminal](super::ServiceBuilder::terminal)), and from now on what it
    /// prints, byte for byte. It need not be running. Several may be attached at the same time; what they send goes to the same input. `label` is the name of the service, of
    /// further replicas with `#` and their number (`web#2`).
    ///
    /// # Errors
    /// [`AttachError`]: there is none of that name, or too many are attached to it.
    pub async fn attach(&self, label: &str) -> Result<Attached, AttachError> {
        let label = label.into();
        self.ask(|answer| Request::Attach { label, answer }).await.unwrap_or(Err(AttachError::Gone))
    }

    /// What happens from now on. A reader that falls 1024 events behind loses the oldest ones, and is told how many.
    pub fn events(&self) -> broadcast::Receiver<Happening> {
        self.ends.events.subscribe()
    }

    /// What services print from now on. A reader that falls 1024 pieces behind loses the oldest ones, and is told how many.
    pub fn output(&self) -> broadcast::Receiver<Output> {
        self.ends.output.subscribe()
    }

    /// Waits until what keeps the services has ended: the runtime on which it was started is gone. Its services are gone with it.
    pub async fn ended(&self) {
        self.ends.requests.closed().await;
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.ends.requests.send(request(answer)).await.ok()?;
        answered.await.ok()
    }
}

impl fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orchestrator").finish_non_exhaustive()
    }
}
