//! One incarnation of a service: its launch, its streams, what it is told, and its end.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::command as service_command;
use super::input::{End, Inlet};
use super::keep::{Keep, Left, Note, Stream};
use super::listening::{self, Listening, NotStarted};
use super::notify::{Message, NotifySocket};
use super::output::{OutputThread, Sink, Source};
use super::port::{self, Living};
use super::terminal::{Terminal, USUAL_TERM};
use crate::driver::command;
use crate::driver::exec::OutputStream;
use crate::driver::launch::{self, Child, Command, Exit, LaunchError};
use crate::face::service::{Definition, Stdin, StopBy};
use crate::machine::exit::Signal;
use crate::machine::id::Incarnation;
use crate::machine::life;
use crate::machine::service::{PortHolder, PortTaken, ServiceId};

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
    /// Keep it for the next one no more.
    Unkeep,
    /// Leave it to the next one.
    Leave,
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
    /// It will not outlive this program, for its keeper has no room for what that takes.
    NotKept(ServiceId),
    /// The command that asks it to end could not be started, or has failed.
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
    pub(super) inlet: Arc<Inlet>,
    pub(super) output_thread: Arc<OutputThread>,
    pub(super) listening: Listening,
    pub(super) living: Living,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) news: mpsc::Sender<News>,
    /// Where it is kept for the next orchestrator.
    pub(super) keep: Option<Arc<Keep>>,
    /// Its process, where an earlier orchestrator has started that.
    pub(super) left: Option<Left>,
}

/// What is read of a process, what is written to it, and how it speaks.
struct Streams {
    printed: Vec<Source>,
    input: Option<End>,
    /// The process's own end of its terminal. As long as it is open here, the terminal has no end that the process has not.
    terminal: Option<Arc<OwnedFd>>,
    notify: Option<NotifySocket>,
}

/// What it prints, what it reads, and its end of a terminal.
type Standard = (Vec<Source>, Option<End>, Option<Arc<OwnedFd>>);

/// A process that is there.
struct Running {
    child: Child,
    streams: Streams,
    /// Where it is kept for the next orchestrator, what that has to know of it.
    note: Option<Note>,
    /// Told where it cannot be kept.
    not_kept: Option<oneshot::Receiver<()>>,
}

impl Streams {
    /// What of them is to outlive this program.
    fn held(&self) -> Vec<(Stream, BorrowedFd<'_>)> {
        let printed = self.printed.iter().map(|source| (source.kept_as(), source.as_fd()));
        // Its input is that of the terminal. A pipe is not held elsewhere, for then nobody could close it.
        let terminal = self.terminal.as_ref().map(|slave| (Stream::Slave, slave.as_fd()));
        let notify = self.notify.as_ref().map(|socket| (Stream::Notify { uid: socket.uid() }, socket.as_fd()));
        printed.chain(terminal).chain(notify).collect()
    }

    /// Those of a process that has outlived the program that started it.
    fn of_kept(held: Vec<(Stream, OwnedFd)>) -> io::Result<Self> {
        let mut streams = Streams { printed: Vec::new(), input: None, terminal: None, notify: None };
        for (stream, fd) in held {
            match stream {
                Stream::Stdout => streams.printed.push(Source::of_pipe(fd, OutputStream::Stdout)?),
                Stream::Stderr => streams.printed.push(Source::of_pipe(fd, OutputStream::Stderr)?),
                Stream::Terminal => {
                    streams.input = Some(End::of_terminal(&fd)?);
                    streams.printed.push(Source::of_terminal(fd));
                }
                Stream::Slave => streams.terminal = Some(Arc::new(fd)),
                Stream::Notify { uid } => streams.notify = Some(NotifySocket::adopt(fd, uid)?),
            }
        }
        Ok(streams)
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
            Ok(running) => {
                self.living.has_started(running.child.pid(), self.label.clone());
                self.live(running).await;
            }
            Err(error) => {
                let reason = error.reason();
                self.tell(News::NotStarted(self.id, error)).await;
                self.tell(News::Life(self.id, life::Input::NotSpawned(self.incarnation, reason))).await;
            }
        }
    }

    async fn start(&self) -> Result<Running, NotStarted> {
        let spec = &self.definition.spec;
        let mut command = command::of_spec(spec, "service", format!("service:{}", self.label))?;
        let streams =
            self.streams(&mut command).map_err(|source| LaunchError::here(&command, "making its streams", source))?;
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
        let child = launch::launch(spec.guard(), command).await?;
        let (mut note, mut not_kept) = (None, None);
        if let Some(keep) = self.keep() {
            let note = note.insert(Note::new(&self.definition, self.replica));
            not_kept = keep.keep(&child, note, &streams.held());
        }
        // Before anything that it says can be heard.
        self.tell(News::Life(self.id, life::Input::Spawned(self.incarnation, child.pid()))).await;
        Ok(Running { child, streams, note, not_kept })
    }

    /// The process goes on, and what it says is heard here.
    fn take_over(&self, left: Left) -> Result<Running, NotStarted> {
        let Left { child, mut note, held, .. } = left;
        let failed = |source| LaunchError::here(&Command::new(&*note.name, ""), "taking over its streams", source);
        let streams = Streams::of_kept(held).map_err(failed)?;
        if self.keep().is_none() {
            child.unkeep();
            return Ok(Running { child, streams, note: None, not_kept: None });
        }
        // It goes on under other rules, perhaps, and has another log.
        note.renew(&self.definition, &child);
        Ok(Running { child, streams, note: Some(note), not_kept: None })
    }

    /// Where it is kept, if it is.
    fn keep(&self) -> Option<&Keep> {
        self.keep.as_deref().filter(|keep| keep.keeps(&self.definition))
    }

    /// Says who else holds the port that its probe asks, where somebody does.
    async fn look_at_port(&self, before_start: bool) {
        let definition = &*self.definition;
        let targets = [&definition.health, &definition.liveness];
        let Some(port) = targets.into_iter().flatten().find_map(port::asked_by) else { return };
        // What this program itself holds for it.
        if listening::is_on(&definition.spec, port) || !port::may_be_taken(port) {
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
        let (printed, input, terminal) =
            if definition.has_terminal { self.terminal(command)? } else { self.pipes(command)? };
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
        Ok(Streams { printed, input, terminal, notify })
    }

    fn pipes(&self, command: &mut Command) -> io::Result<Standard> {
        let mut printed = Vec::new();
        for (number, stream) in [(1, OutputStream::Stdout), (2, OutputStream::Stderr)] {
            let (ours, theirs) = io::pipe()?;
            command.fds.push((number, Arc::new(theirs.into())));
            printed.push(Source::of_pipe(ours.into(), stream)?);
        }
        let input = match self.definition.stdin {
            Stdin::Null => None,
            Stdin::Inherit => {
                command.fds.push((0, Arc::new(io::stdin().as_fd().try_clone_to_owned()?)));
                None
            }
            Stdin::Pipe => {
                let (theirs, ours) = io::pipe()?;
                command.fds.push((0, Arc::new(theirs.into())));
                Some(End::of_pipe(ours.into())?)
            }
        };
        Ok((printed, input, None))
    }

    fn terminal(&self, command: &mut Command) -> io::Result<Standard> {
        let Terminal { master, slave } = Terminal::open(self.inlet.size(), self.definition.spec.user())?;
        let slave = Arc::new(slave);
        command.fds.extend((0..3).map(|number| (number, slave.clone())));
        command.terminal = true;
        if !command.env.iter().any(|(name, _)| name == "TERM") {
            let own = std::env::var_os("TERM").filter(|term| !term.is_empty());
            command.env.push(("TERM".into(), own.unwrap_or_else(|| OsString::from(USUAL_TERM))));
        }
        let input = End::of_terminal(&master)?;
        Ok((vec![Source::of_terminal(master)], Some(input), Some(slave)))
    }

    async fn live(&mut self, running: Running) {
        let Running { mut child, streams, mut note, mut not_kept } = running;
        let Streams { printed, input, terminal, notify } = streams;
        self.sink.begin(self.definition.ready_line.clone(), self.incarnation);
        let (ended, has_ended) = watch::channel(false);
        let follow = |source| self.output_thread.follow(source, self.sink.clone(), has_ended.clone());
        let printed: Vec<_> = printed.into_iter().map(follow).collect();
        // Until it has ended: where nobody holds the master of a terminal any more, its processes are sent SIGHUP.
        let input = input.map(|end| self.inlet.open(end));
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
                                // A code is only told: it may have been asked all the same, and has its stop limit.
                                let error = match service_command::run(&spec).await {
                                    Ok(ended) if ended.status.code() == Some(0) => return,
                                    Ok(ended) => service_command::failure(&spec, ended.status, &ended.stderr),
                                    Err(error) => {
                                        failed.notify_one();
                                        error
                                    }
                                };
                                let _ = news.send(News::StopFailed(id, error)).await;
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
                    Some(Order::NoteReady) => {
                        if let Some(note) = &mut note {
                            note.is_ready(&child);
                        }
                    }
                    Some(Order::Unkeep) => child.unkeep(),
                    Some(Order::Leave) => {
                        child.leave();
                        return self.tell(News::Life(self.id, life::Input::Left(self.incarnation))).await;
                    }
                    Some(Order::Kill) => {
                        asked.get_or_insert(true);
                        child.kill_tree();
                    }
                    None => {
                        is_left = true;
                        child.kill_tree();
                    }
                },
                told = told(&mut not_kept), if not_kept.is_some() => {
                    not_kept = None;
                    if told {
                        self.tell(News::NotKept(self.id)).await;
                    }
                }
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
        drop((input, terminal));
        let status = exit.status;
        self.living.has_ended(child.pid());
        if !asked.unwrap_or(is_left) {
            self.look_at_port(false).await;
        }
        self.tell(News::Ended(self.id, exit)).await;
        self.tell(News::Life(self.id, life::Input::Exited(self.incarnation, status))).await;
        if note.is_some() {
            child.forget();
        }
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

/// Waits for a word, which may never come.
async fn told(heard: &mut Option<oneshot::Receiver<()>>) -> bool {
    match heard {
        Some(heard) => heard.await.is_ok(),
        None => std::future::pending().await,
    }
}
