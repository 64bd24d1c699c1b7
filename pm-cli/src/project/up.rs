//! `pm up`: starts the services of a project, shows what they print, and stays until they have ended or somebody ends it.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pm::service::{Event, Happening, Info, Orchestrator, State, Stopped};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, broadcast, mpsc};

use super::meeting::{self, Held};
use super::screen::{Screen, Style};
use super::server::{self, Clients, Down, Serving};
use super::wire;
use crate::config::native::says_when_ready;
use crate::config::{Ends, Project};
use crate::error::{CliError, code, say};

/// So many pieces of output wait for a slow terminal, 64 KiB at most each.
const MOST_WAITING: usize = 64;

/// How long the answer to `pm down` may take to be written.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// So many lines are shown of a service that failed.
const LAST_LINES: usize = 20;

/// What `pm up` is to do.
#[derive(Debug)]
pub struct Plan {
    /// What it is about.
    pub project: Project,
    /// The services that are to start; all that are not disabled where none is named.
    pub names: Vec<String>,
    /// What they need does not matter.
    pub no_deps: bool,
    /// Stop when this one has ended, with its exit code.
    pub exit_code_from: Option<String>,
    /// How it is shown.
    pub style: Style,
    /// Nobody watches; and where it is said that the project is up.
    pub is_detached: bool,
}

impl Plan {
    /// The services that are to start.
    ///
    /// # Errors
    /// One that is named does not exist.
    pub fn wanted(&self) -> Result<Vec<String>, CliError> {
        let known: Vec<&str> = self.project.services.iter().map(|one| one.name()).collect();
        let named = self.names.iter().chain(&self.exit_code_from);
        if let Some(name) = named.clone().find(|name| !known.contains(&name.as_str())) {
            let known = known.join(", ");
            return Err(CliError::Service(format!("there is no service {name:?}; there are {known}")));
        }
        let mut wanted = if self.names.is_empty() { self.project.enabled() } else { self.names.clone() };
        if wanted.is_empty() && self.exit_code_from.is_none() {
            let problem = "all services of the file are disabled: name those that are to start";
            return Err(CliError::Service(problem.into()));
        }
        wanted.extend(self.exit_code_from.iter().filter(|name| !wanted.contains(name)).cloned().collect::<Vec<_>>());
        Ok(wanted)
    }
}

/// Why it ends.
enum End {
    /// All services have.
    Over,
    /// The one whose exit code counts has.
    ExitCode(u8),
    /// By a signal, of which this is the exit code.
    Signal(u8),
    /// Somebody said `pm down`.
    Down(Down),
    /// Nobody reads standard output any more.
    Closed,
    /// What keeps the services is gone.
    Broken,
}

/// Carries it out.
///
/// # Errors
/// The project is up already, or cannot be.
pub fn run(plan: Plan) -> Result<ExitCode, CliError> {
    let wanted = plan.wanted()?;
    let (listener, held) = meeting::take(&meeting::file(Some(&plan.project.file))?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let done = runtime.block_on(bring_up(plan, wanted, listener, held));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn bring_up(
    plan: Plan,
    wanted: Vec<String>,
    listener: std::os::unix::net::UnixListener,
    held: Held,
) -> Result<ExitCode, CliError> {
    let (sender, output) = mpsc::channel(MOST_WAITING);
    let builder = match plan.is_detached {
        true => {
            // Nobody reads, and the screen is to see the end of it.
            drop(sender);
            Orchestrator::builder()
        }
        false => Orchestrator::builder().output(sender),
    };
    let orchestrator = builder.start().map_err(CliError::Runtime)?;
    let width = plan.project.services.iter().map(|one| one.name().len()).max().unwrap_or(0);
    let mut screen = Screen::start(plan.style, width, output, orchestrator.events()).map_err(CliError::Runtime)?;
    let mut events = orchestrator.events();
    let signals = Signals::new().map_err(CliError::Runtime)?;
    let ready: BTreeMap<String, bool> =
        plan.project.services.iter().map(|one| (one.name().to_string(), says_when_ready(one))).collect();
    let with_log = plan.project.services.iter().filter_map(|one| Some((one.name().to_string(), one.log()?.clone())));
    let logs = with_log.collect();
    let ends = plan.project.ends;
    orchestrator.add(plan.project.services).await.map_err(|error| CliError::Service(error.to_string()))?;
    let (down, asked_down) = mpsc::channel(1);
    let serving = Arc::new(Serving {
        orchestrator: orchestrator.clone(),
        enabled: wanted.clone(),
        says_when_ready: ready,
        logs,
        down,
        is_ending: AtomicBool::new(false),
        attached: Semaphore::new(server::MOST_ATTACHED),
    });
    // Asked for before anybody else can ask for something: whoever waits for a service finds it started. What goes wrong is an event, and shown as one.
    let mut starting = Box::pin({
        let (orchestrator, with_needs) = (orchestrator.clone(), !plan.no_deps);
        async move { drop(orchestrator.start_named(wanted, with_needs).await) }
    });
    tokio::select! {
        biased;
        () = &mut starting => {}
        () = std::future::ready(()) => drop(tokio::spawn(starting)),
    }
    let clients = Arc::new(Clients::default());
    let server = tokio::spawn(server::serve(listener, serving.clone(), clients.clone()));
    if plan.is_detached {
        super::detach::told_up();
    }
    let mut watch =
        Watch { orchestrator: orchestrator.clone(), signals, asked_down, exit_code_from: plan.exit_code_from, ends };
    let end = watch.until_end(&mut events, &mut screen, plan.is_detached).await;
    let before = orchestrator.list().await;
    let (code, down) = match end {
        End::Over => (code_of_all(&before), None),
        End::ExitCode(code) => (code, None),
        End::Signal(code) => (code, None),
        End::Closed => (code::CLOSED, None),
        End::Down(down) => (code_of_all(&before), Some(down)),
        End::Broken => {
            say("what keeps the services has ended unexpectedly, and they with it; this is a bug of pm");
            (code::FAILED, None)
        }
    };
    serving.is_ending.store(true, Ordering::Relaxed);
    let (stopped, downs) = watch.stop(down).await;
    let is_left = stopped.iter().any(|one| !one.survivors.is_empty());
    tell_failures(&orchestrator, &before).await;
    for one in stopped.iter().filter(|one| !one.is_clean()) {
        say(one);
    }
    // Whoever hears that it is down finds its place free.
    server.abort();
    let _ = server.await;
    drop(held);
    for down in downs {
        // Whoever asked may have gone.
        let _ = down.done.send(stopped.clone());
        // The answer is written by the server, which ends with this program.
        let _ = tokio::time::timeout(LAST_ANSWER, down.answered).await;
    }
    // Those who are attached are told how their service ended, as long as they listen.
    let _ = tokio::time::timeout(LAST_ANSWER, serving.attached.acquire_many(server::MOST_ATTACHED as u32)).await;
    clients.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    tokio::select! {
        () = screen.finish() => {}
        // A terminal that stands still is not waited for by those who are in a hurry.
        code = watch.signals.next() => std::process::exit(code.into()),
    }
    Ok(ExitCode::from(if is_left && code == 0 { code::FAILED } else { code }))
}

/// 0 where all that has ended did so well.
fn code_of_all(services: &[Info]) -> u8 {
    if services.iter().any(|info| wire::is_bad_end(info.state)) { code::FAILED } else { 0 }
}

/// The last lines of what failed, and what did not start because of it.
async fn tell_failures(orchestrator: &Orchestrator, services: &[Info]) {
    for info in services.iter().filter(|info| wire::is_bad_end(info.state)) {
        say(format_args!("{} {}: {}", info.label, info.state, info.why.as_deref().unwrap_or_default()));
        if info.state != State::Skipped {
            for line in orchestrator.last_lines(&info.name, LAST_LINES).await.unwrap_or_default() {
                say(format_args!("  {} | {line}", info.label));
            }
        }
    }
}

struct Watch {
    orchestrator: Orchestrator,
    signals: Signals,
    asked_down: mpsc::Receiver<Down>,
    exit_code_from: Option<String>,
    /// Services that take all others along when they end.
    ends: BTreeMap<String, Ends>,
}

impl Watch {
    async fn until_end(
        &mut self,
        events: &mut broadcast::Receiver<Happening>,
        screen: &mut Screen,
        is_detached: bool,
    ) -> End {
        let mut is_closed = false;
        let orchestrator = self.orchestrator.clone();
        loop {
            tokio::select! {
                () = orchestrator.ended() => return End::Broken,
                code = self.signals.next() => return End::Signal(code),
                Some(down) = self.asked_down.recv() => return End::Down(down),
                _ = &mut screen.closed, if !is_closed => {
                    is_closed = true;
                    if !is_detached {
                        return End::Closed;
                    }
                }
                happening = events.recv() => {
                    let may_be_over = match &happening {
                        Ok(happening) => is_an_end(&happening.event),
                        // Some may have been missed.
                        Err(_) => true,
                    };
                    if !may_be_over {
                        continue;
                    }
                    tokio::select! {
                        code = self.signals.next() => return End::Signal(code),
                        end = end(&orchestrator, &self.ends, self.exit_code_from.as_deref(), is_detached) => {
                            if let Some(end) = end {
                                return end;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Stops all. The second signal kills, the third does not wait for that; another `pm down` may say that it is to be quicker.
    async fn stop(&mut self, down: Option<Down>) -> (Vec<Stopped>, Vec<Down>) {
        let stop = |limit| {
            let orchestrator = self.orchestrator.clone();
            tokio::spawn(async move { orchestrator.stop_all(limit).await })
        };
        let mut stopped = stop(down.as_ref().and_then(|down| down.limit));
        let mut downs: Vec<Down> = down.into_iter().collect();
        let mut is_killing = false;
        loop {
            tokio::select! {
                stopped = &mut stopped => return (stopped.unwrap_or_default(), downs),
                Some(down) = self.asked_down.recv() => {
                    // The first answer knows what had to be killed, for both.
                    if let Some(limit) = down.limit {
                        drop(stop(Some(limit)));
                    }
                    downs.push(down);
                }
                // The keeper kills what is left when this program has gone.
                code = self.signals.next() => match is_killing {
                    true => std::process::exit(code.into()),
                    false => {
                        say("killing what has not stopped");
                        is_killing = true;
                        drop(stop(Some(Duration::ZERO)));
                    }
                },
            }
        }
    }
}

/// Whether nothing is left to wait for.
async fn end(
    orchestrator: &Orchestrator,
    ends: &BTreeMap<String, Ends>,
    exit_code_from: Option<&str>,
    is_detached: bool,
) -> Option<End> {
    let services = orchestrator.list().await;
    let takes_all_along = |info: &&Info| ends.get(&info.name).is_some_and(|ends| ends.holds(info.state));
    if let Some(ended) = services.iter().find(takes_all_along) {
        // What is a success is one whatever its exit code.
        return Some(End::ExitCode(if wire::is_bad_end(ended.state) { exit_code(ended) } else { 0 }));
    }
    if let Some(name) = exit_code_from {
        let mut of_it = services.iter().filter(|info| info.name == *name);
        let ended = of_it.find(|info| info.state.is_over() && info.state != State::Idle)?;
        return Some(End::ExitCode(exit_code(ended)));
    }
    // In the background somebody may start one again.
    let is_over = services.iter().all(|info| info.state.is_over()) && !is_detached;
    is_over.then_some(End::Over)
}

/// Whether a service may be over after this.
fn is_an_end(event: &Event) -> bool {
    matches!(
        event,
        Event::Completed { restart: None, .. }
            | Event::Crashed { restart: None, .. }
            | Event::Stopped { .. }
            | Event::Skipped { .. }
            | Event::GaveUp { .. }
            | Event::Removed
    )
}

/// The exit code of a service, as a shell has it; 1 where it has none and that is bad.
pub(super) fn exit_code(info: &Info) -> u8 {
    let by_signal = |signal: pm::Signal| 128_i32.saturating_add(signal.0);
    let code = info.exit.and_then(|exit| exit.code().or_else(|| exit.signal().map(by_signal)));
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(0) | None if wire::is_bad_end(info.state) => code::FAILED,
        Some(code) => code,
        None => 0,
    }
}

/// The signals that end a project. Those that were ignored when it began are left alone: nohup(1) and shells without job control mean that.
struct Signals {
    interrupt: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let ignored = ignored();
        let heard = |kind: SignalKind| {
            let is_ignored = ignored & 1 << (kind.as_raw_value() - 1) != 0;
            (!is_ignored).then(|| signal(kind)).transpose()
        };
        Ok(Signals {
            interrupt: heard(SignalKind::interrupt())?,
            terminate: heard(SignalKind::terminate())?,
            hang_up: heard(SignalKind::hangup())?,
        })
    }

    /// The exit code of the next one. Cancel safe.
    async fn next(&mut self) -> u8 {
        async fn heard(signal: &mut Option<tokio::signal::unix::Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = heard(&mut self.interrupt) => code::INTERRUPTED,
            () = heard(&mut self.terminate) => code::TERMINATED,
            () = heard(&mut self.hang_up) => code::HUNG_UP,
        }
    }
}

/// The signals that this process ignores, a bit each.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
