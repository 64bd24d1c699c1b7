//! `pm up`: starts the services of a project, shows what they print, and stays until they have ended or somebody ends it.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pm::Signal;
use pm::core::driver::signal::Heard;
use pm::service::{Event, Happening, Info, Orchestrator, Output, State, Stopped};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use super::meeting::{self, Held};
use super::reload::{self, Facts, Told};
use super::screen::{Screen, Style};
use super::server::{self, Clients, Down, Serving};
use super::watching;
use super::wire;
use crate::config::Project;
use crate::error::{CliError, chain, code, say};

/// So many pieces of output wait for a slow terminal, 64 KiB at most each.
const MOST_WAITING: usize = 64;

/// How long the answer to `pm down`, or to `pm reload`, may take to be written at the end.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Signals that come within this time of the first one are the same wish.
const ONE_WISH: Duration = Duration::from_millis(200);

/// So many of those that are waited for are named.
const MOST_NAMED: usize = 10;

/// A stop that takes longer is spoken of.
const SILENCE: Duration = Duration::from_secs(1);

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
    pub is_in_background: bool,
    /// Its services are to outlive it where it is killed.
    pub is_kept: bool,
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
        let wanted = self.told().wanted(&self.project)?;
        if wanted.is_empty() {
            let problem = "all services of the file are disabled: name those that are to start";
            return Err(CliError::Service(problem.into()));
        }
        Ok(wanted)
    }

    fn told(&self) -> Told {
        Told {
            file: self.project.file.clone(),
            names: self.names.clone(),
            no_deps: self.no_deps,
            exit_code_from: self.exit_code_from.clone(),
        }
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
    let file = meeting::file(Some(&plan.project.file))?;
    let (listener, held) = match meeting::take(&file) {
        // Who has started this one says so.
        Err(error @ CliError::AlreadyUp) if plan.is_in_background => return Ok(error.exit_code().into()),
        taken => taken?,
    };
    if plan.is_in_background {
        super::background::begin_log();
    }
    let kept = meeting::kept(&file);
    if plan.is_kept {
        abort_on_panic();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let done = runtime.block_on(bring_up(plan, wanted, listener, held, &kept));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn bring_up(
    plan: Plan,
    wanted: Vec<String>,
    listener: StdListener,
    held: Held,
    kept: &Path,
) -> Result<ExitCode, CliError> {
    let (sender, output) = mpsc::channel(MOST_WAITING);
    let builder = match plan.is_in_background {
        true => {
            // Nobody reads, and the screen is to see the end of it.
            drop(sender);
            Orchestrator::builder()
        }
        false => Orchestrator::builder().output(sender),
    };
    let has_detached = plan.project.services.iter().any(pm::service::Service::is_detached);
    let builder = match plan.is_kept {
        true => builder.keep(kept),
        false if has_detached => builder.keep_detached(kept),
        false => builder.adopt(kept),
    };
    let orchestrator = builder.map_err(CliError::Keep)?.start().map_err(CliError::Runtime)?;
    let is_kept = plan.is_kept;
    match Up::start(plan, wanted, listener, held, orchestrator.clone(), output).await {
        Ok(up) => Ok(up.stay().await),
        Err(error) if is_kept => {
            // To drop what keeps the services would end them. Their keeper goes on.
            say(format_args!("error: {}", chain(&error)));
            std::process::exit(error.exit_code().into());
        }
        Err(error) => Err(error),
    }
}

/// A project that is up.
struct Up {
    orchestrator: Orchestrator,
    serving: Arc<Serving>,
    server: JoinHandle<io::Result<()>>,
    clients: Arc<Clients>,
    screen: Screen,
    watch: Watch,
    events: broadcast::Receiver<Happening>,
    held: Held,
    is_in_background: bool,
}

impl Up {
    /// Starts what is wanted, and answers whoever asks.
    async fn start(
        plan: Plan,
        wanted: Vec<String>,
        listener: StdListener,
        held: Held,
        orchestrator: Orchestrator,
        output: mpsc::Receiver<Output>,
    ) -> Result<Self, CliError> {
        let told = plan.told();
        let (facts, known) = watch::channel(Arc::new(Facts::of(&plan.project, wanted.clone())));
        let screen =
            Screen::start(plan.style, known.clone(), output, orchestrator.events()).map_err(CliError::Runtime)?;
        let events = orchestrator.events();
        let (reload, asked_reload) = mpsc::channel(1);
        let signals = Signals::new(reload, plan.is_in_background).map_err(CliError::Runtime)?;
        let directory = plan.project.directory;
        orchestrator.add(plan.project.services).await.map_err(|error| CliError::Service(error.to_string()))?;
        end_left_behind(&orchestrator).await;
        let wanted = if plan.names.is_empty() { without_ended(&orchestrator, wanted).await } else { wanted };
        // Before they start, so that no change is missed that they have not seen.
        let watching = watching::start(&orchestrator, &known.borrow(), &directory).map_err(CliError::Watch)?;
        let (down, asked_down) = mpsc::channel(1);
        let serving = Arc::new(Serving {
            orchestrator: orchestrator.clone(),
            facts,
            told,
            reloads: Arc::default(),
            watching: Mutex::new(watching),
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
        tokio::spawn(reload::on_request(serving.clone(), asked_reload));
        let clients = Arc::new(Clients::default());
        let server = tokio::spawn(server::serve(listener, serving.clone(), clients.clone()));
        if plan.is_in_background {
            super::background::told_up();
        }
        let endings = Endings { exit_code_from: plan.exit_code_from, known };
        let watch = Watch { orchestrator: orchestrator.clone(), signals, asked_down, endings };
        let is_in_background = plan.is_in_background;
        Ok(Up { orchestrator, serving, server, clients, screen, watch, events, held, is_in_background })
    }

    /// Stays until something ends it, and takes it down.
    async fn stay(mut self) -> ExitCode {
        let end = self.watch.until_end(&mut self.events, &mut self.screen, self.is_in_background).await;
        let before = self.orchestrator.list().await;
        let (code, down) = match end {
            End::Over => (code_of_all(&before), None),
            End::ExitCode(code) | End::Signal(code) => (code, None),
            End::Closed => (code::CLOSED, None),
            End::Down(down) => (code_of_all(&before), Some(down)),
            End::Broken => {
                say("what keeps the services has ended unexpectedly, and they with it; this is a bug of pm");
                (code::FAILED, None)
            }
        };
        self.serving.is_ending.store(true, Ordering::Relaxed);
        // Who ends it wants it ended, however that goes on.
        match down {
            Some(_) => self.orchestrator.keep_no_more().await,
            None => drop(self.orchestrator.leave_detached().await),
        }
        self.serving.watch_with(None);
        let (stopped, downs) = self.watch.stop(down).await;
        tell_failures(&self.orchestrator, &before).await;
        for one in stopped.iter().filter(|one| !one.is_clean()) {
            say(one);
        }
        let is_left = stopped.iter().any(|one| !one.survivors.is_empty());
        self.close(stopped, downs).await;
        ExitCode::from(if is_left && code == 0 { code::FAILED } else { code })
    }

    /// Answers those who are still to be answered, and shows what is still to be shown.
    async fn close(mut self, stopped: Vec<Stopped>, downs: Vec<Down>) {
        // Whoever hears that it is down finds its place free.
        self.server.abort();
        let _ = self.server.await;
        drop(self.held);
        for down in downs {
            // Whoever asked may have gone.
            let _ = down.done.send(stopped.clone());
            // The answer is written by the server, which ends with this program.
            let _ = tokio::time::timeout(LAST_ANSWER, down.answered).await;
        }
        // One that has made this the end is answered; one that waits for a file is not waited for.
        let _ = tokio::time::timeout(LAST_ANSWER, self.serving.reloads.lock()).await;
        // Those who are attached are told how their service ended, as long as they listen.
        let all = self.serving.attached.acquire_many(server::MOST_ATTACHED as u32);
        let _ = tokio::time::timeout(LAST_ANSWER, all).await;
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        tokio::select! {
            () = self.screen.finish() => {}
            // A terminal that stands still is not waited for by those who are in a hurry.
            code = self.watch.signals.next() => std::process::exit(code.into()),
        }
    }
}

/// Whoever keeps services ends at once where it panics: to unwind would end them.
fn abort_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        told(info);
        std::process::abort();
    }));
}

/// Ends what an earlier pm of this project has left, and is not of it any more: the file has changed. Nobody waits for that.
async fn end_left_behind(orchestrator: &Orchestrator) {
    let left = orchestrator.left_behind().await;
    for left in &left {
        say(format_args!(
            "{} (pid {}), which has outlived its pm, is not in the file any more: stopping it",
            left.label, left.pid
        ));
    }
    if !left.is_empty() {
        let orchestrator = orchestrator.clone();
        tokio::spawn(async move {
            for stopped in orchestrator.end_left_behind(None).await.iter().filter(|stopped| !stopped.is_clean()) {
                say(stopped);
            }
        });
    }
}

/// Without those that have ended while there was no pm, and that their rules do not start again: as it would be had there been one.
async fn without_ended(orchestrator: &Orchestrator, mut wanted: Vec<String>) -> Vec<String> {
    let services = orchestrator.list().await;
    let has_ended = |info: &Info| matches!(info.state, State::Completed | State::Failed | State::GaveUp);
    wanted.retain(|name| !services.iter().any(|info| info.name == *name && has_ended(info)));
    wanted
}

/// Says for whom a stop waits, and how it would be quicker.
async fn say_who_is_awaited(orchestrator: &Orchestrator) {
    let services = orchestrator.list().await;
    let awaited: Vec<&str> = services
        .iter()
        .filter(|info| info.state == State::Stopping)
        .map(|info| &*info.label)
        .take(MOST_NAMED)
        .collect();
    if !awaited.is_empty() {
        say(format_args!("waiting for {} to end; another Ctrl-C kills what has not", awaited.join(", ")));
    }
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
    endings: Endings,
}

/// What the end of a service means for the project.
struct Endings {
    /// The one that ends it, with its exit code.
    exit_code_from: Option<String>,
    /// What the file says.
    known: watch::Receiver<Arc<Facts>>,
}

impl Watch {
    async fn until_end(
        &mut self,
        events: &mut broadcast::Receiver<Happening>,
        screen: &mut Screen,
        is_in_background: bool,
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
                    if !is_in_background {
                        return End::Closed;
                    }
                    continue;
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
                }
                // What has ended may be the end of the project now.
                Ok(()) = self.endings.known.changed() => {}
            }
            let facts = self.endings.known.borrow_and_update().clone();
            tokio::select! {
                code = self.signals.next() => return End::Signal(code),
                end = end(&orchestrator, &facts, self.endings.exit_code_from.as_deref(), is_in_background) => {
                    if let Some(end) = end {
                        return end;
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
        let began = Instant::now();
        let mut patience = Box::pin(tokio::time::sleep(SILENCE));
        let mut is_told = false;
        loop {
            tokio::select! {
                () = &mut patience, if !is_told => {
                    is_told = true;
                    say_who_is_awaited(&self.orchestrator).await;
                }
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
                    // timeout(1) and shells send it to the process and to its group: one wish that arrives twice.
                    _ if began.elapsed() < ONE_WISH => {}
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
    facts: &Facts,
    exit_code_from: Option<&str>,
    is_in_background: bool,
) -> Option<End> {
    let services = orchestrator.list().await;
    let takes_all_along = |info: &&Info| facts.ends.get(&info.name).is_some_and(|ends| ends.holds(info.state));
    if let Some(ended) = services.iter().find(takes_all_along) {
        // What is a success is one whatever its exit code.
        return Some(End::ExitCode(if wire::is_bad_end(ended.state) { exit_code(ended) } else { 0 }));
    }
    if let Some(name) = exit_code_from {
        let mut of_it = services.iter().filter(|info| info.name == *name);
        let ended = of_it.find(|info| info.state.is_over() && info.state != State::Idle)?;
        return Some(End::ExitCode(exit_code(ended)));
    }
    // A change starts it again.
    let may_return = |info: &Info| {
        let has_ended = matches!(info.state, State::Completed | State::Failed | State::GaveUp);
        has_ended && facts.watched.contains_key(&info.name)
    };
    // In the background somebody may start one again.
    let is_over = services.iter().all(|info| info.state.is_over() && !may_return(info)) && !is_in_background;
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
    let by_signal = |signal: Signal| 128_i32.saturating_add(signal.0);
    let code = info.exit.and_then(|exit| exit.code().or_else(|| exit.signal().map(by_signal)));
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(0) | None if wire::is_bad_end(info.state) => code::FAILED,
        Some(code) => code,
        None => 0,
    }
}

/// The signals that end a project, and the one that has it read its file again. Those that were ignored when it began are left alone.
///
/// SIGHUP says that the terminal has gone, and for programs that have none that their configuration is another one. So it ends a project that had a
/// terminal and has none any more.
struct Signals {
    heard: Heard,
    had_terminal: bool,
    /// Where it is asked for that the file is read again.
    reload: mpsc::Sender<()>,
}

impl Signals {
    fn new(reload: mpsc::Sender<()>, is_in_background: bool) -> io::Result<Self> {
        let heard = Heard::unless_ignored(&[Signal::INT, Signal::TERM, Signal::HUP])?;
        Ok(Signals { heard, had_terminal: !is_in_background && has_terminal(), reload })
    }

    /// The exit code of the next one that is the end. Cancel safe.
    async fn next(&mut self) -> u8 {
        loop {
            match self.heard.next().await {
                Signal::HUP if !self.had_terminal || has_terminal() => {
                    // Where there is no room one waits already, which reads the file later than now.
                    let _ = self.reload.try_send(());
                }
                signal => return code::by(signal),
            }
        }
    }
}

/// Whether this process has a controlling terminal. The kernel takes it away before it sends the signal that says so.
fn has_terminal() -> bool {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, rustix::fs::Mode::empty()).is_ok()
}
