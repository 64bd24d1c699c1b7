//! The side of a project that is up: answers what is asked at its socket.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pm::Signal;
use pm::service::{Condition, Orchestrator, Stopped, WaitError};
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::attach;
use super::output;
use super::reload::{self, Facts, NotReloaded, Told};
use super::watching::Watching;
use super::wire::{self, Answer, EventRow, LONGEST_QUESTION, Question};

/// So many are answered at the same time. Others wait.
const MOST_CLIENTS: usize = 256;

/// So many listen to what happens, beside those.
const MOST_LISTENERS: usize = 64;

/// So many are attached to its services, beside both.
pub const MOST_ATTACHED: usize = 64;

/// Who has asked nothing by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked of the project as a whole.
pub struct Down {
    /// How long its services may take, where it is not each its own time.
    pub limit: Option<Duration>,
    /// Told when all have stopped.
    pub done: oneshot::Sender<Vec<Stopped>>,
    /// Ends when whoever asked has the answer, or has gone.
    pub answered: oneshot::Receiver<()>,
}

/// What the server knows of the project.
pub struct Serving {
    /// What keeps the services.
    pub orchestrator: Orchestrator,
    /// What the file says.
    pub facts: watch::Sender<Arc<Facts>>,
    /// What it was told beside that.
    pub told: Told,
    /// Held by the one that reads the file again, until that is answered.
    pub reloads: Arc<tokio::sync::Mutex<()>>,
    /// What has services start anew when their files change.
    pub watching: Mutex<Option<Watching>>,
    /// Where the end of the project is asked for.
    pub down: mpsc::Sender<Down>,
    /// The project is going down: nothing is started any more.
    pub is_ending: AtomicBool,
    /// Each who is attached to a service holds one of [`MOST_ATTACHED`].
    pub attached: Semaphore,
}

impl Serving {
    /// What the file says, as it was used last.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.borrow().clone()
    }

    /// Has this watch in place of what did before.
    pub fn watch_with(&self, watching: Option<Watching>) {
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = watching;
    }
}

/// Those who are answered. They end with this, whatever they do: none of them is to keep the project alive.
pub type Clients = Mutex<JoinSet<()>>;

/// Takes clients until it is dropped. Those who were taken are in `clients`.
///
/// # Errors
/// The socket cannot be used.
pub async fn serve(listener: StdListener, serving: Arc<Serving>, clients: Arc<Clients>) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let own = rustix::process::geteuid().as_raw();
    let (room, stalls) = (Arc::new(Semaphore::new(MOST_CLIENTS)), Arc::new(Semaphore::new(MOST_LISTENERS)));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // No descriptor is left: it passes.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        // The socket is for its user alone; who could pass its directory all the same is turned away here.
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            let (serving, stalls) = (serving.clone(), stalls.clone());
            let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
            while clients.try_join_next().is_some() {}
            clients.spawn(async move {
                // Whoever goes away needs no answer.
                let _ = answer(stream, &serving, permit, &stalls).await;
            });
        }
    }
}

async fn answer(
    stream: UnixStream,
    serving: &Arc<Serving>,
    permit: OwnedSemaphorePermit,
    stalls: &Semaphore,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let asked = tokio::time::timeout(PATIENCE, wire::read::<Question>(&mut read, LONGEST_QUESTION)).await;
    let question = match asked {
        Ok(Ok(Some(question))) => question,
        Ok(Ok(None)) | Err(_) => return Ok(()),
        Ok(Err(error)) => {
            let message = format!("pm of another version? This is no question: {error}");
            return send(&mut write, &Answer::Failed { message }).await;
        }
    };
    if let Question::Down { limit_ms } = question {
        return take_down(&mut write, serving, limit_ms.map(Duration::from_millis)).await;
    }
    if let Question::Attach { label } = question {
        drop(permit);
        let Ok(_seat) = serving.attached.try_acquire() else {
            let message = format!("{MOST_ATTACHED} are attached to services of this project already");
            return send(&mut write, &Answer::Failed { message }).await;
        };
        return attach::serve::serve(&mut read, &mut write, serving, &label).await;
    }
    let gone = async {
        // A client says nothing more: what comes is its end.
        let mut rest = [0];
        let _ = tokio::io::AsyncReadExt::read(&mut read, &mut rest).await;
    };
    if let Question::Events = question {
        // Those who listen for long are not to stand in the way of those who have one question.
        drop(permit);
        let Ok(_stall) = stalls.try_acquire() else { return too_many(&mut write).await };
        return tokio::select! {
            ended = events(&mut write, serving) => ended,
            () = gone => Ok(()),
        };
    }
    if let Question::Output { last_bytes } = question {
        drop(permit);
        let Ok(_stall) = stalls.try_acquire() else { return too_many(&mut write).await };
        return tokio::select! {
            done = output::send(&mut write, serving, last_bytes) => done,
            () = gone => Ok(()),
        };
    }
    if let Question::Reload = question {
        return tokio::select! {
            done = read_again(&mut write, serving) => done,
            () = gone => Ok(()),
        };
    }
    tokio::select! {
        answer = reply(question, serving) => send(&mut write, &answer).await,
        () = gone => Ok(()),
    }
}

/// Says that there is no room for one more who listens.
async fn too_many(write: &mut (impl tokio::io::AsyncWrite + Unpin)) -> std::io::Result<()> {
    send(write, &Answer::Failed { message: format!("{MOST_LISTENERS} listen to this project already") }).await
}

/// Writes an answer. Who does not read it is not waited for.
async fn send(write: &mut (impl tokio::io::AsyncWrite + Unpin), answer: &Answer) -> std::io::Result<()> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    tokio::time::timeout(PATIENCE, wire::write(write, answer)).await.map_err(late)?
}

/// Whoever asked may go away: it ends all the same.
async fn take_down(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    serving: &Serving,
    limit: Option<Duration>,
) -> std::io::Result<()> {
    let ((done, stopped), (written, answered)) = (oneshot::channel(), oneshot::channel::<()>());
    // Where somebody else ends it already there is nothing more to say.
    let _ = serving.down.send(Down { limit, done, answered }).await;
    let stopped = stopped.await.unwrap_or_default().into_iter().map(Into::into).collect();
    let result = send(write, &Answer::Stopped { stopped }).await;
    drop(written);
    result
}

/// Whoever asked may go away: it is done as a whole all the same.
async fn read_again(write: &mut (impl tokio::io::AsyncWrite + Unpin), serving: &Arc<Serving>) -> std::io::Result<()> {
    let serving = serving.clone();
    let done = tokio::spawn(async move {
        let (reloaded, turn) = reload::reload(&serving).await;
        if let Ok(reloaded) = &reloaded
            && !reloaded.is_unchanged()
        {
            crate::error::say(format_args!("reloaded: {reloaded}"));
        }
        (reloaded, turn)
    });
    let (answer, turn) = match done.await {
        Ok((Ok(reloaded), turn)) => (Answer::Reloaded(reloaded), Some(turn)),
        Ok((Err(NotReloaded::Bad(message)), turn)) => (Answer::Refused { message }, Some(turn)),
        Ok((Err(NotReloaded::Failed(message)), turn)) => (Answer::Failed { message }, Some(turn)),
        Err(error) => (failed(error), None),
    };
    let sent = send(write, &answer).await;
    drop(turn);
    sent
}

async fn events(write: &mut (impl tokio::io::AsyncWrite + Unpin), serving: &Serving) -> std::io::Result<()> {
    use tokio::sync::broadcast::error::RecvError;

    let mut events = serving.orchestrator.events();
    loop {
        let row = match events.recv().await {
            Ok(happening) => EventRow::from(&happening),
            Err(RecvError::Lagged(missed)) => EventRow {
                time: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
                service: String::new(),
                event: "missed".into(),
                text: format!("{missed} events were missed here"),
                pid: None,
                metrics: None,
            },
            Err(RecvError::Closed) => return Ok(()),
        };
        send(write, &Answer::Event(row)).await?;
    }
}

async fn reply(question: Question, serving: &Serving) -> Answer {
    let orchestrator = &serving.orchestrator;
    let starts = matches!(question, Question::Start { .. } | Question::Restart { .. } | Question::Scale { .. });
    // Relaxed: who asks at the same moment may be served still.
    if starts && serving.is_ending.load(Ordering::Relaxed) {
        return Answer::Failed { message: "the project is going down: nothing is started any more".into() };
    }
    match question {
        Question::Ps => {
            let services = orchestrator.list().await.into_iter().map(Into::into).collect();
            Answer::Services { services }
        }
        Question::Start { names, no_deps } => {
            let names = if names.is_empty() { serving.facts().enabled.clone() } else { names };
            done(orchestrator.start_named(names, !no_deps).await)
        }
        Question::Stop { names, limit_ms } => {
            let names = if names.is_empty() { all(serving) } else { names };
            match orchestrator.stop_within(names, limit_ms.map(Duration::from_millis)).await {
                Ok(stopped) => Answer::Stopped { stopped: stopped.into_iter().map(Into::into).collect() },
                Err(error) => failed(error),
            }
        }
        Question::Restart { names } => {
            let names = if names.is_empty() { serving.facts().enabled.clone() } else { names };
            done(orchestrator.restart_named(names).await)
        }
        Question::Scale { name, replicas } => done(orchestrator.scale(&name, replicas).await),
        Question::Wait { names, condition } => {
            let names = if names.is_empty() { serving.facts().enabled.clone() } else { names };
            wait(serving, names, condition).await
        }
        Question::Signal { names, signal } => {
            for name in names {
                if let Err(error) = orchestrator.signal(&name, Signal(signal)).await {
                    return failed(error);
                }
            }
            Answer::Done
        }
        // These were answered before.
        Question::Down { .. }
        | Question::Events
        | Question::Output { .. }
        | Question::Attach { .. }
        | Question::Reload => Answer::Done,
    }
}

fn all(serving: &Serving) -> Vec<String> {
    serving.facts().says_when_ready.keys().cloned().collect()
}

async fn wait(serving: &Serving, names: Vec<String>, condition: Option<String>) -> Answer {
    let condition = match condition.map(|word| word.parse::<Condition>()).transpose() {
        Ok(condition) => condition,
        Err(error) => return failed(error),
    };
    let (mut waits, facts) = (JoinSet::new(), serving.facts());
    for name in names {
        let orchestrator = serving.orchestrator.clone();
        let usual = wire::usual(facts.says_when_ready.get(&name).copied().unwrap_or(false));
        waits.spawn(async move {
            let Some(condition) = condition else { return come_up(&orchestrator, &name, usual).await };
            orchestrator.wait(&name, condition).await
        });
    }
    // The first that cannot be ends the wait.
    while let Some(waited) = waits.join_next().await {
        if let Ok(Err(error)) = waited {
            return failed(error);
        }
    }
    Answer::Done
}

/// Waits until a service is what it usually comes to, or has completed with success.
pub async fn come_up(orchestrator: &Orchestrator, name: &str, usual: Condition) -> Result<(), WaitError> {
    match orchestrator.wait(name, usual).await {
        Err(WaitError::Never { .. }) if orchestrator.wait(name, Condition::CompletedSuccessfully).await.is_ok() => {
            Ok(())
        }
        waited => waited,
    }
}

fn done<E: std::error::Error>(result: Result<(), E>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(error) => failed(error),
    }
}

fn failed(error: impl std::error::Error) -> Answer {
    Answer::Failed { message: crate::error::chain(&error) }
}
