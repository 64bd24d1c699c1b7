//! What keeps services.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use super::attach::{AttachError, Attached};
use super::error::{NoService, RemoveError, ReplaceError, StartError, WaitError};
use super::info::{Happening, Info, LeftBehind, Stopped};
use super::service::Service;
use crate::driver::launch::{self, KeepError};
use crate::driver::service::keep::{Keep, Left};
use crate::driver::service::output::Output;
use crate::driver::service::task::{Ends, Request, Task};
use crate::machine::exit::Signal;
use crate::machine::service::Condition;
use crate::machine::supervisor::Replaced;

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
#[derive(Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct OrchestratorBuilder {
    output: Option<mpsc::Sender<Output>>,
    keep: Option<Keep>,
    left: Vec<Left>,
}

impl OrchestratorBuilder {
    /// Sends all that services print there. Where it is full, services that print wait for up to a second, and then what they print is
    /// dropped for this reader, and counted in [`Output::missed`].
    pub fn output(mut self, sender: mpsc::Sender<Output>) -> Self {
        self.output = Some(sender);
        self
    }

    /// Takes over the processes that an earlier orchestrator has [kept](Self::keep) at this path. From then on they are kept no more. Waits for their keeper, 10 s at most.
    ///
    /// # Errors
    /// [`KeepError`]: another program has what is kept there, or their keeper is of another version.
    pub fn adopt(mut self, path: impl AsRef<Path>) -> Result<Self, KeepError> {
        let kept = launch::meeting::adopt(path.as_ref())?;
        self.left.extend(kept.into_iter().filter_map(Left::new));
        Ok(self)
    }

    /// Has services outlive this program where it is killed, or ends without dropping the orchestrator. Without this they are killed within a second.
    ///
    /// Their keeper holds their streams then and goes on writing their logs; what has no log loses what it prints, and nobody gets SIGPIPE. It waits at a Unix
    /// socket at this path, for this user alone, for the next orchestrator that is given the same path, which takes over what is there, as with [`adopt`](Self::adopt). When that one
    /// [adds](Orchestrator::add) services of the same names, they have their processes again: with the exit codes of those that have ended meanwhile, and without any doubt about
    /// pids, for the keeper is their parent, and signals go through it. A process of which something else is to run now (its Spec has changed) is started anew. What no
    /// service takes over is told by [`Orchestrator::left_behind`]. When nothing of them lives, their ends are remembered for an hour.
    ///
    /// Services without a [keeper](crate::machine::spec::Guard) cannot be kept.
    ///
    /// # Errors
    /// [`KeepError`], as with [`adopt`](Self::adopt); or no socket can be made there.
    pub fn keep(self, path: impl AsRef<Path>) -> Result<Self, KeepError> {
        self.keep_at(path.as_ref(), true)
    }

    /// The same for services that are [detached](super::ServiceBuilder::detached), and for no others.
    ///
    /// # Errors
    /// Those of [`keep`](Self::keep).
    pub fn keep_detached(self, path: impl AsRef<Path>) -> Result<Self, KeepError> {
        self.keep_at(path.as_ref(), false)
    }

    fn keep_at(mut self, path: &Path, all: bool) -> Result<Self, KeepError> {
        let (meeting, kept) = launch::meeting::meet(path)?;
        self.left.extend(kept.into_iter().filter_map(Left::new));
        self.keep = Some(Keep::new(meeting, all));
        Ok(self)
    }

    /// Starts it on this runtime.
    ///
    /// # Errors
    /// The thread that reads what services print cannot be started.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> io::Result<Orchestrator> {
        Ok(Orchestrator { ends: Task::start(self.output, self.keep, self.left)? })
    }
}

impl fmt::Debug for OrchestratorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.left.len();
        f.debug_struct("OrchestratorBuilder")
            .field("keeps", &self.keep.is_some())
            .field("left", &left)
            .finish_non_exhaustive()
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

    /// Starts a service anew because something that it is made of has changed: `what`, which its event [`Event::Changed`] says. One that was never started
    /// is left alone, and so is one that was asked to stop, or that is about to start and will see the change. Returns whether it is started anew,
    /// without waiting for that.
    ///
    /// [`Event::Changed`]: crate::machine::service::Event::Changed
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn restart_changed(&self, name: &str, what: impl Into<String>) -> Result<bool, NoService> {
        let (name, what) = (name.into(), what.into());
        self.ask(|answer| Request::Changed { name, what, answer }).await.unwrap_or(Ok(false))
    }

    /// Tells whoever listens something about a service, as an event ([`Event::Note`]).
    ///
    /// [`Event::Note`]: crate::machine::service::Event::Note
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn note(&self, name: &str, text: impl Into<String>) -> Result<(), NoService> {
        let (name, text) = (name.into(), text.into());
        self.ask(|answer| Request::Note { name, text, answer }).await.unwrap_or(Ok(()))
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

    /// Has these services in place of all that there are, which belong together and are checked together: where one cannot be, nothing changes.
    ///
    /// Those that are not among them are stopped, those first that need others, and forgotten. Those that are new are added, and not started. Where one is
    /// changed, its processes that are up are stopped as they were, and started as they are to be: with what they need that was never started, and those that
    /// are restarted with them. One that is down is as it is to be from its next start on. What is the same is not touched: it goes on with its process,
    /// and with the number of processes that it was scaled to.
    ///
    /// A service is changed where anything was said otherwise when it was built, but for its title. A hook in code is the same only where it is the very same,
    /// as in a clone of the service.
    ///
    /// Returns what is added, changed and removed as soon as that is decided; [`Orchestrator::wait`] and [`Orchestrator::events`] say what comes of it.
    /// Cancel safe as all methods: what was asked for is done as a whole.
    ///
    /// # Errors
    /// [`ReplaceError::Bad`] for a name that stands twice, a need of something that is not among them or is never ready, and a cycle, with its path.
    ///
    /// ```no_run
    /// use pm_core::face::service::{Orchestrator, Service};
    /// use pm_core::machine::spec::Spec;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let db = Service::new("db", Spec::program("redis-server").build()?).build()?;
    /// let node = |port: &str| Spec::program("node").args(["api.js", port]).build();
    /// let orchestrator = Orchestrator::start()?;
    /// orchestrator.start_many([db.clone(), Service::new("api", node("3000")?).build()?]).await?;
    /// let replaced = orchestrator.replace([db, Service::new("api", node("3001")?).build()?]).await?;
    /// assert_eq!(replaced.changed, ["api"]); // it begins anew, and db goes on
    /// # Ok(())
    /// # }
    /// ```
    pub async fn replace(&self, services: impl IntoIterator<Item = Service>) -> Result<Replaced, ReplaceError> {
        self.replace_and_start(services, [""; 0], true).await
    }

    /// The same, and starts those of `names` that were added or changed, at once: nobody sees them added and down. Without their needs they start whatever
    /// they need.
    ///
    /// # Errors
    /// Those of [`Orchestrator::replace`]. That one of them does not come up is none.
    pub async fn replace_and_start(
        &self,
        services: impl IntoIterator<Item = Service>,
        names: impl IntoIterator<Item = impl Into<String>>,
        with_needs: bool,
    ) -> Result<Replaced, ReplaceError> {
        let definitions = services.into_iter().map(|service| service.0).collect();
        let start = names.into_iter().map(Into::into).collect();
        let request = |answer| Request::Replace { definitions, start, with_needs, answer };
        self.ask(request).await.ok_or(ReplaceError::Gone)?.map_err(ReplaceError::from)
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

    /// Processes of an earlier orchestrator that were taken over by the [builder](OrchestratorBuilder::adopt), and whose services were not added here.
    pub async fn left_behind(&self) -> Vec<LeftBehind> {
        self.ask(Request::LeftBehind).await.unwrap_or_default()
    }

    /// Has those end that are [left behind](Self::left_behind), all at once, by the signals that their services had, and kills what has not ended after `limit`: after their own
    /// limits where there is none. Commands that ask a service to end are not run. What they print goes to their logs.
    pub async fn end_left_behind(&self, limit: Option<Duration>) -> Vec<Stopped> {
        self.ask(|answer| Request::EndLeftBehind { limit, answer }).await.unwrap_or_default()
    }

    /// Leaves the processes of [detached](super::ServiceBuilder::detached) services to the next orchestrator, and tells which those are. They are not this one's any more: they are
    /// stopped for it, and live on when the program has ended. From now on nothing else outlives it. Without a place to keep them nothing is left.
    pub async fn leave_detached(&self) -> Vec<LeftBehind> {
        self.ask(Request::LeaveDetached).await.unwrap_or_default()
    }

    /// From now on nothing outlives this program, whatever [`OrchestratorBuilder::keep`] said.
    pub async fn keep_no_more(&self) {
        self.ask(Request::KeepNoMore).await;
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
