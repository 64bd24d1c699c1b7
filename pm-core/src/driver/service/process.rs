//! One incarnation of a service: its launch, its streams, what it is told, and its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::keep::{Held, Keep, Left, Note};
use super::listening::{self, Listening, NotStarted};
use super::notify::{Message, NotifySocket};
use super::output::{Reader, Sink};
use super::port::{self, Living};
use crate::driver::command;
use crate::driver::exec::{self, OutputStream};
use crate::driver::launch::{self, Child, Command, Exit, LaunchError};
use crate::face::service::{Definition, Stdin, StopBy};
use crate::machine::exit::Signal;
use crate::machine::id::Incarnation;
use crate::machine::life;
use crate::machine::service::{PortHolder, PortTaken, ServiceId};

/// A stop command may print so much to each of its streams.
const MOST_PRINTED: usize = 1 << 20;

/// What the task of an incarnation is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Ask it to end, as its definition says. Who asks for that on purpose needs no reason for it.
    Terminate { on_purpose: bool },
    /// Kill the whole tree.
    Kill,
    /// Send it this signal.
    Signal(Signal),
    /// Note for the next orchestrator that it is ready.
    NoteReady,
}

/// What the task of an incarnation tells.
#[derive(Debug)]
pub(super) enum News {
    /// For the machine.
    Life(ServiceId, life::Input),
    /// It could not be started, and this is the typed reason.
    NotStarted(ServiceId, NotStarted),
    /// How it ended, and what ended with it; before the machine hears of it.
    Ended(ServiceId, Exit),
    /// The command that asks it to end could not be started.
    StopFailed(ServiceId, String),
    /// What it says that it is doing.
    Status(ServiceId, String),
    /// Somebody else holds the port that its probe asks: before it starts, or before the machine hears of its end.
    PortTaken(ServiceId, PortTaken),
}

/// One incarnation of a process of a service.
pub(super) struct Process {
    pub(super) definition: Arc<Definition>,
    pub(super) id: ServiceId,
    pub(super) label: Arc<str>,
    pub(super) replica: u32,
    pub(super) incarnation: Incarnation,
    pub(super) sink: Arc<Sink>,
    pub(super) reader: Arc<Reader>,
    pub(super) listening: Listening,
    pub(super) living: Living,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) news: mpsc::Sender<News>,
    /// Where it is kept for the next orchestrator.
    pub(super) keep: Option<Arc<Keep>>,
    /// Its process, where an earlier orchestrator has started that.
    pub(super) left: Option<Left>,
}

/// What is read of a process, and how it speaks.
struct Streams {
    stdout: OwnedFd,
    stderr: OwnedFd,
    notify: Option<NotifySocket>,
}

impl Streams {
    fn held(&self) -> Held<BorrowedFd<'_>> {
        let notify = self.notify.as_ref().map(|socket| (socket.as_fd(), socket.uid()));
        Held { stdout: self.stdout.as_fd(), stderr: self.stderr.as_fd(), notify }
    }
}

/// A task that ends where this is dropped.
#[derive(Debug)]
pub(super) struct AbortOnDrop(AbortHandle);

impl AbortOnDrop {
    pub(super) fn of<T>(task: &JoinHandle<T>) -> Self {
        AbortOnDrop(task.abort_handle())
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Process {
    /// Lives through the incarnation. Dropping it kills the process and all that it has started.
    pub(super) async fn run(mut self) {
        let running = match self.left.take() {
            Some(left) => self.take_over(left),
            None => {
                self.look_at_port(true).await;
                self.start().await
            }
        };
        match running {
            Ok((child, streams, note)) => {
                self.living.has_started(child.pid(), self.label.clone());
                self.live(child, streams, note).await;
            }
            Err(error) => {
                let reason = error.reason();
                self.tell(News::NotStarted(self.id, error)).await;
                self.tell(News::Life(self.id, life::Input::NotSpawned(self.incarnation, reason))).await;
            }
        }
    }

    async fn start(&self) -> Result<(Child, Streams, Note), NotStarted> {
        let spec = &self.definition.spec;
        let mut command = command::of_spec(spec, "service", format!("service:{}", self.label))?;
        let streams =
            self.streams(&mut command).map_err(|source| LaunchError::here(&command, "making pipes", source))?;
        if !spec.listeners().is_empty() {
            match self.listening.open(spec) {
                Ok(listeners) => listeners.pass_to(&mut command),
                Err(error) => {
                    let living = self.living.clone();
                    let error = tokio::task::spawn_blocking(move || NotStarted::listen(error, &living)).await;
                    return Err(error.map_err(|error| LaunchError::here(&command, "listening", error.into()))?);
                }
            }
        }
        let mut note = Note::new(&self.definition, self.replica);
        let child = launch::launch(spec.guard(), command).await?;
        if let Some(keep) = &self.keep {
            keep.keep(&child, &mut note, &streams.held());
        }
        // Before anything that it says can be heard.
        self.tell(News::Life(self.id, life::Input::Spawned(self.incarnation, child.pid()))).await;
        Ok((child, streams, note))
    }

    /// The process goes on, and what it says is heard here.
    fn take_over(&self, left: Left) -> Result<(Child, Streams, Note), NotStarted> {
        let Left { child, note, held } = left;
        let failed = |source| LaunchError::here(&Command::new(&*note.name, ""), "taking over its streams", source);
        let notify = held.notify.map(|(socket, uid)| NotifySocket::adopt(socket, uid)).transpose().map_err(failed)?;
        Ok((child, Streams { stdout: held.stdout, stderr: held.stderr, notify }, note))
    }

    /// Says who else holds the port that its probe asks, where somebody does.
    async fn look_at_port(&self, before_start: bool) {
        let definition = &*self.definition;
        let targets = [&definition.health, &definition.liveness];
        let Some(port) = targets.into_iter().flatten().find_map(port::asked_by) else { return };
        // What this program itself holds for it.
        if listening::is_on(&definition.spec, port) {
            return;
        }
        let living = self.living.clone();
        let look = move || -> Option<PortHolder> {
            if before_start { port::stranger_at(port, &living) } else { port::holder_of(port, &living, |_| true) }
        };
        if let Ok(Some(by)) = tokio::task::spawn_blocking(look).await {
            self.tell(News::PortTaken(self.id, PortTaken { port, by, before_start })).await;
        }
    }

    /// Gives `command` its streams, and its name.
    fn streams(&self, command: &mut Command) -> io::Result<Streams> {
        let definition = &*self.definition;
        let (stdout, theirs) = io::pipe()?;
        command.fds.push((1, Arc::new(theirs.into())));
        let (stderr, theirs) = io::pipe()?;
        command.fds.push((2, Arc::new(theirs.into())));
        if definition.stdin == Stdin::Inherit {
            command.fds.push((0, Arc::new(io::stdin().as_fd().try_clone_to_owned()?)));
        }
        let mut variables = vec![("PM_SERVICE", self.label.to_string()), ("PM_REPLICA", self.replica.to_string())];
        if let Some(limit) = definition.rules.watchdog {
            variables.push(("WATCHDOG_USEC", limit.as_micros().to_string()));
        }
        let notify = if definition.is_notified() {
            let (uid, _) = definition.spec.user();
            Some(NotifySocket::new(uid.unwrap_or_else(|| rustix::process::getuid().as_raw()))?)
        } else {
            None
        };
        command.env.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        command.env.extend(notify.iter().map(|socket| ("NOTIFY_SOCKET".into(), socket.address().clone())));
        Ok(Streams { stdout: stdout.into(), stderr: stderr.into(), notify })
    }

    async fn live(&mut self, mut child: Child, streams: Streams, mut note: Note) {
        let Streams { stdout, stderr, notify } = streams;
        self.sink.begin(self.definition.ready_line.clone(), self.incarnation);
        let (ended, has_ended) = watch::channel(false);
        let follow = |pipe, stream| self.reader.follow(pipe, stream, self.sink.clone(), has_ended.clone());
        let printed = [follow(stdout, OutputStream::Stdout), follow(stderr, OutputStream::Stderr)];
        // Dropped, and with that killed, where the process ends before it.
        let stop_failed = Arc::new(tokio::sync::Notify::new());
        let mut farewell = None;
        // Nobody is left to say anything else.
        let mut is_left = false;
        // Whether it was asked to end on purpose; nothing where it was not asked.
        let mut asked = None;
        let exit = loop {
            let heard = async {
                match &notify {
                    Some(socket) => socket.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                exit = child.exited() => break exit,
                order = self.orders.recv(), if !is_left => match order {
                    Some(Order::Terminate { on_purpose }) => {
                        asked = Some(on_purpose);
                        if let StopBy::Command(spec) = &self.definition.stop_by {
                            child.let_tree_end(Signal::TERM);
                            let spec = spec.with_variables(vec![("PM_PID".into(), child.pid().to_string().into())]);
                            let (id, news, failed) = (self.id, self.news.clone(), stop_failed.clone());
                            farewell = Some(AbortOnDrop::of(&tokio::spawn(async move {
                                match exec::start(&spec, None, MOST_PRINTED).await {
                                    Ok(mut running) => drop(running.ended().await),
                                    Err(error) => {
                                        let error = crate::driver::worker::chain(&error);
                                        let _ = news.send(News::StopFailed(id, error)).await;
                                        failed.notify_one();
                                    }
                                }
                            })));
                        }
                        if let StopBy::Signal(signal) = self.definition.stop_by {
                            // Where it has ended meanwhile its exit says so.
                            let _ = child.ask_tree(signal);
                            // One that is stopped would not hear it.
                            let _ = child.signal(Signal::CONT);
                        }
                    }
                    Some(Order::Signal(signal)) => drop(child.signal(signal)),
                    Some(Order::NoteReady) => note.is_ready(&child),
                    Some(Order::Kill) => {
                        asked.get_or_insert(true);
                        child.kill_tree();
                    }
                    None => {
                        is_left = true;
                        child.kill_tree();
                    }
                },
                // Nobody has told it that it should end, so the signal does.
                () = stop_failed.notified() => drop(child.ask_tree(Signal::TERM)),
                message = heard => match message {
                    Ok(message) => self.heard(message).await,
                    // The socket is this process's own: it does not fail.
                    Err(_) => child.kill_tree(),
                },
            }
        };
        drop(farewell);
        let _ = ended.send(true);
        for one in printed {
            // Its last words come before its end.
            let _ = one.await;
        }
        let status = exit.status;
        self.living.has_ended(child.pid());
        if !asked.unwrap_or(is_left) {
            self.look_at_port(false).await;
        }
        self.tell(News::Ended(self.id, exit)).await;
        self.tell(News::Life(self.id, life::Input::Exited(self.incarnation, status))).await;
    }

    async fn heard(&self, message: Message) {
        if message.is_alive {
            self.tell(News::Life(self.id, life::Input::Alive(self.incarnation))).await;
        }
        if let Some(text) = message.status {
            self.tell(News::Status(self.id, text)).await;
        }
        if message.is_ready {
            self.tell(News::Life(self.id, life::Input::Ready(self.incarnation))).await;
        }
    }

    async fn tell(&self, news: News) {
        // Where nobody hears it, all is being dropped.
        let _ = self.news.send(news).await;
    }
}
