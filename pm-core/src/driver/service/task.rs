//! The task that keeps all services of an orchestrator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

use super::hook::{MOST_AT_A_TIME, Moment, Occasion};
use super::input::Inlet;
use super::keep::{self, Keep, Left};
use super::listening::{Listening, NotStarted};
use super::log::Log;
use super::output::{Output, Reader, Said, Sink};
use super::port::Living;
use super::probe;
use super::process::{AbortOnDrop, News, Order, Process};
use crate::driver::clock;
use crate::driver::launch::Exit;
use crate::driver::usage;
use crate::face::service::MOST_REPLICAS;
use crate::face::service::{
    Answered, AttachError, Attached, AttachedInput, AttachedOutput, BadService, Definition, Happening, Info,
    LeftBehind, Measured, NoService, ProbeInfo, RemoveError, StartError, Stopped, WaitError,
};
use crate::machine::cause::ExitCause;
use crate::machine::exit::{ExitStatus, Signal};
use crate::machine::id::Incarnation;
use crate::machine::life::{self, Check, Life};
use crate::machine::metrics::Watch;
use crate::machine::service::{Condition, Event, PortTaken, Readiness, ServiceId, State, Verdict};
use crate::machine::supervisor::{Effect, Input, Replaced, Replacement, Supervisor};
use crate::machine::time::Time;

/// So many events and pieces of output wait for one who listens and is slow. What is older is lost to that one, and counted.
const LISTENERS: usize = 1024;

/// News of processes that wait for this task.
const NEWS: usize = 256;

/// Orders to one process that wait for its task: it is being made, and takes none.
const ORDERS: usize = 16;

/// So many of them are not for signals, so that the end of a service, which is one or two orders, always finds room.
const ORDERS_TO_END: usize = 4;

/// So many lines are told of a service that failed.
const LAST_LINES: usize = 20;

/// So many samples are taken at the same time. A tree of thousands takes a moment, and threads of the runtime are for others as well.
const MOST_SAMPLES: usize = 2;

/// How many services are spoken of where one does not exist.
const NAMED: usize = 20;

/// What is asked of the task, with where the answer goes.
pub(crate) enum Request {
    Add(Vec<Arc<Definition>>, oneshot::Sender<Result<(), BadService>>),
    Replace {
        definitions: Vec<Arc<Definition>>,
        /// Those of them are started that were added or changed.
        start: Vec<String>,
        with_needs: bool,
        answer: oneshot::Sender<Result<Replaced, BadService>>,
    },
    Start {
        names: Vec<String>,
        with_needs: bool,
        answer: oneshot::Sender<Result<(), StartError>>,
    },
    Stop {
        names: Vec<String>,
        limit: Option<Duration>,
        answer: oneshot::Sender<Result<Vec<Stopped>, NoService>>,
    },
    StopAll {
        deadline: Option<Duration>,
        answer: oneshot::Sender<Vec<Stopped>>,
    },
    Restart {
        names: Vec<String>,
        answer: oneshot::Sender<Result<(), StartError>>,
    },
    Changed {
        name: String,
        what: String,
        answer: oneshot::Sender<Result<bool, NoService>>,
    },
    Note {
        name: String,
        text: String,
        answer: oneshot::Sender<Result<(), NoService>>,
    },
    Scale {
        name: String,
        replicas: u32,
        answer: oneshot::Sender<Result<(), StartError>>,
    },
    Remove {
        name: String,
        answer: oneshot::Sender<Result<Vec<Stopped>, RemoveError>>,
    },
    Signal {
        name: String,
        signal: Signal,
        answer: oneshot::Sender<Result<u32, NoService>>,
    },
    Wait {
        name: String,
        condition: Condition,
        answer: oneshot::Sender<Result<(), WaitError>>,
    },
    List(oneshot::Sender<Vec<Info>>),
    Info {
        name: String,
        answer: oneshot::Sender<Result<Vec<Info>, NoService>>,
    },
    Attach {
        label: String,
        answer: oneshot::Sender<Result<Attached, AttachError>>,
    },
    Last {
        name: String,
        lines: usize,
        answer: oneshot::Sender<Result<Vec<String>, NoService>>,
    },
    LeftBehind(oneshot::Sender<Vec<LeftBehind>>),
    EndLeftBehind {
        limit: Option<Duration>,
        answer: oneshot::Sender<Vec<Stopped>>,
    },
    KeepNoMore(oneshot::Sender<()>),
    LeaveDetached(oneshot::Sender<Vec<LeftBehind>>),
}

/// Where an orchestrator is spoken to, and heard.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) events: broadcast::Sender<Happening>,
    pub(crate) output: broadcast::Sender<Output>,
}

/// Somebody who waits for something to come about.
enum Waiter {
    Start { names: Vec<String>, answer: oneshot::Sender<Result<(), StartError>> },
    Scale { name: String, answer: oneshot::Sender<Result<(), StartError>> },
    Stop { ids: Vec<ServiceId>, stopped: Vec<Stopped>, answer: StopAnswer },
    Condition { name: String, condition: Condition, answer: oneshot::Sender<Result<(), WaitError>> },
}

enum StopAnswer {
    Some(oneshot::Sender<Result<Vec<Stopped>, NoService>>),
    All(oneshot::Sender<Vec<Stopped>>),
    Removed(oneshot::Sender<Result<Vec<Stopped>, RemoveError>>),
}

/// What belongs to one process of a service.
struct Kept {
    definition: Arc<Definition>,
    label: Arc<str>,
    replica: u32,
    sink: Arc<Sink>,
    inlet: Arc<Inlet>,
    /// To the task of its incarnation.
    orders: Option<mpsc::Sender<Order>>,
    probes: BTreeMap<Check, AbortOnDrop>,
    /// What its hooks take of while they run.
    hooks: Arc<Semaphore>,
    /// It was said that there is no log.
    has_lost_log: bool,
    /// Why it could not be started.
    not_started: Option<NotStarted>,
    /// Somebody else holds the port that its probe asks, or did when it had ended.
    port: Option<PortTaken>,
    /// It was killed at its limit; and what was left when it had ended.
    was_killed: bool,
    exit: Option<Exit>,
    /// It could not even be killed.
    is_unkillable: bool,
    status: Option<String>,
    last_pid: Option<u32>,
}

pub(crate) struct Task {
    machine: Supervisor,
    definitions: BTreeMap<String, Arc<Definition>>,
    /// Of each service that has listeners and was started once.
    listening: BTreeMap<String, Listening>,
    /// The processes of all of them.
    living: Living,
    kept: BTreeMap<ServiceId, Kept>,
    waiters: Vec<Waiter>,
    /// The tasks of processes, which die with this one.
    processes: JoinSet<()>,
    reader: Arc<Reader>,
    /// What samples take of while they are taken.
    samples: Arc<Semaphore>,
    events: broadcast::Sender<Happening>,
    output: broadcast::Sender<Output>,
    /// The one reader of output that everything waits for.
    sink: Option<mpsc::Sender<Output>>,
    news: mpsc::Sender<News>,
    heard: mpsc::Receiver<News>,
    asides: mpsc::Sender<(ServiceId, Event)>,
    aside: mpsc::Receiver<(ServiceId, Event)>,
    /// Where processes are kept for the next orchestrator.
    keep: Option<Arc<Keep>>,
    /// Those of an earlier one that are nobody's yet.
    left: Vec<Left>,
}

impl Task {
    /// Starts the task on this runtime. It ends, and kills all services, when the last of the senders of requests is gone.
    pub(crate) fn start(
        sink: Option<mpsc::Sender<Output>>,
        keep: Option<Keep>,
        left: Vec<Left>,
    ) -> std::io::Result<Ends> {
        let (requests, asked) = mpsc::channel(64);
        let (events, _) = broadcast::channel(LISTENERS);
        let (output, _) = broadcast::channel(LISTENERS);
        let (news, heard) = mpsc::channel(NEWS);
        let (asides, aside) = mpsc::channel(NEWS);
        let task = Task {
            machine: Supervisor::new(clock::now().as_nanos()),
            definitions: BTreeMap::new(),
            listening: BTreeMap::new(),
            living: Living::default(),
            kept: BTreeMap::new(),
            waiters: Vec::new(),
            processes: JoinSet::new(),
            reader: Arc::new(Reader::start()?),
            samples: Arc::new(Semaphore::new(MOST_SAMPLES)),
            events: events.clone(),
            output: output.clone(),
            sink,
            news,
            heard,
            asides,
            aside,
            keep: keep.map(Arc::new),
            left,
        };
        tokio::spawn(task.run(asked));
        Ok(Ends { requests, events, output })
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Request>) {
        loop {
            let due = self.machine.poll_timeout();
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(clock::instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            // None of these goes before the others: a service may have news without end.
            tokio::select! {
                news = self.heard.recv() => if let Some(news) = news { self.hear(news) },
                aside = self.aside.recv() => if let Some((id, event)) = aside { self.say(id, event) },
                request = asked.recv() => match request {
                    Some(request) => self.asked(request),
                    None => break,
                },
                () = timer => self.machine.handle_timeout(clock::now()),
                Some(_) = self.processes.join_next() => {}
            }
            self.carry_out();
            self.look_after_waiters();
        }
        // Dropped with this task, each kills what it has.
        self.processes.abort_all();
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Life(id, input) => self.machine.handle(clock::now(), Input::Life(id, input)),
            News::NotStarted(id, error) => {
                if let Some(kept) = self.kept.get_mut(&id) {
                    kept.not_started = Some(error);
                }
            }
            News::PortTaken(id, taken) => {
                let Some(kept) = self.kept.get_mut(&id) else { return };
                kept.port = Some(taken.clone());
                // Where it has ended it is said with how that is taken.
                if taken.before_start {
                    self.say(id, Event::PortTaken(taken));
                }
            }
            News::Ended(id, exit) => {
                let swept = exit.strays.clone();
                if let Some(kept) = self.kept.get_mut(&id) {
                    kept.exit = Some(exit);
                }
                if !swept.is_empty() {
                    self.say(id, Event::Swept { pids: swept });
                }
            }
            News::NotKept(id) => {
                let text =
                    "it will not outlive this program: its keeper has no room for it; raise the limit of open files";
                self.say(id, Event::Note { text: text.into() });
            }
            News::StopFailed(id, error) => self.say(id, Event::HookFailed { hook: "stop.command", error }),
            News::Status(id, text) => {
                if let Some(kept) = self.kept.get_mut(&id) {
                    kept.status = Some(text.clone());
                }
                self.say(id, Event::Status { text });
            }
        }
    }

    fn asked(&mut self, request: Request) {
        match request {
            Request::Add(definitions, answer) => drop(answer.send(self.add(definitions))),
            Request::Replace { definitions, start, with_needs, answer } => {
                let replaced = self.replace(definitions);
                if let Ok(replaced) = &replaced {
                    let is_new = |name: &String| replaced.added.contains(name) || replaced.changed.contains(name);
                    let names = start.into_iter().filter(is_new).collect();
                    self.machine.handle(clock::now(), Input::Start { names, with_needs });
                }
                let _ = answer.send(replaced);
            }
            Request::Start { names, with_needs, answer } => match self.find(&names) {
                Ok(()) => {
                    self.machine.handle(clock::now(), Input::Start { names: names.clone(), with_needs });
                    self.waiters.push(Waiter::Start { names, answer });
                }
                Err(error) => drop(answer.send(Err(error.into()))),
            },
            Request::Stop { names, limit, answer } => match self.find(&names) {
                Ok(()) => {
                    let ids = self.that_are_up(&names);
                    self.machine.handle(clock::now(), Input::Stop { names, limit });
                    self.waiters.push(Waiter::Stop { ids, stopped: Vec::new(), answer: StopAnswer::Some(answer) });
                }
                Err(error) => drop(answer.send(Err(error))),
            },
            Request::StopAll { deadline, answer } => {
                let now = clock::now();
                let mut names: Vec<String> = self.machine.names().map(Into::into).collect();
                names.reverse();
                let ids = self.that_are_up(&names);
                self.machine.handle(now, Input::StopAll { deadline: deadline.map(|limit| now + limit) });
                self.waiters.push(Waiter::Stop { ids, stopped: Vec::new(), answer: StopAnswer::All(answer) });
            }
            Request::Restart { names, answer } => match self.find(&names) {
                Ok(()) => {
                    self.machine.handle(clock::now(), Input::Restart { names: names.clone() });
                    self.waiters.push(Waiter::Start { names, answer });
                }
                Err(error) => drop(answer.send(Err(error.into()))),
            },
            Request::Changed { name, what, answer } => {
                let restarted = self.find(std::slice::from_ref(&name)).map(|()| self.has_changed(name, what));
                let _ = answer.send(restarted);
            }
            Request::Note { name, text, answer } => {
                let said = self.find(std::slice::from_ref(&name)).map(|()| {
                    if let Some(id) = self.machine.replicas(&name).first() {
                        self.say(*id, Event::Note { text });
                    }
                });
                let _ = answer.send(said);
            }
            Request::Scale { replicas, answer, .. } if replicas > MOST_REPLICAS => {
                let _ = answer.send(Err(BadService::Replicas(replicas).into()));
            }
            Request::Scale { name, replicas, answer } => match self.find(std::slice::from_ref(&name)) {
                Ok(()) => {
                    let has_none = self.machine.replicas(&name).is_empty();
                    let is_up = has_none || !self.that_are_up(std::slice::from_ref(&name)).is_empty();
                    self.overtake(&name);
                    self.machine.handle(clock::now(), Input::Scale { name: name.clone(), replicas });
                    // Of a service that is down there is nothing to wait for.
                    if is_up {
                        self.waiters.push(Waiter::Scale { name, answer });
                    } else {
                        let _ = answer.send(Ok(()));
                    }
                }
                Err(error) => drop(answer.send(Err(error.into()))),
            },
            Request::Remove { name, answer } => self.remove(name, answer),
            Request::Signal { name, signal, answer } => {
                let sent = self.find(std::slice::from_ref(&name)).map(|()| self.signal(&name, signal));
                let _ = answer.send(sent);
            }
            Request::Wait { name, condition, answer } => match self.find(std::slice::from_ref(&name)) {
                Ok(()) => self.waiters.push(Waiter::Condition { name, condition, answer }),
                Err(error) => drop(answer.send(Err(error.into()))),
            },
            Request::List(answer) => {
                let names: Vec<&str> = self.machine.names().collect();
                let _ = answer.send(self.info(&names));
            }
            Request::Info { name, answer } => {
                let info = self.find(std::slice::from_ref(&name)).map(|()| self.info(&[&name]));
                let _ = answer.send(info);
            }
            Request::Attach { label, answer } => drop(answer.send(self.attach(label))),
            Request::Last { name, lines, answer } => {
                let last = self.find(std::slice::from_ref(&name)).map(|()| self.last(&name, lines));
                let _ = answer.send(last);
            }
            Request::LeftBehind(answer) => drop(answer.send(self.left.iter().map(Left::info).collect())),
            Request::EndLeftBehind { limit, answer } => self.end_left_behind(limit, answer),
            Request::KeepNoMore(answer) => {
                if let Some(keep) = self.keep.take() {
                    keep.leave();
                }
                let _ = answer.send(());
            }
            Request::LeaveDetached(answer) => drop(answer.send(self.leave_detached())),
        }
    }

    fn find(&self, names: &[String]) -> Result<(), NoService> {
        match names.iter().find(|name| !self.machine.contains(name)) {
            None => Ok(()),
            Some(name) => {
                Err(NoService { name: name.clone(), known: self.machine.names().take(NAMED).map(Into::into).collect() })
            }
        }
    }

    /// The processes of these services that are there, or are to be.
    fn that_are_up(&self, names: &[String]) -> Vec<ServiceId> {
        let is_up = |id: &ServiceId| self.machine.state(*id).is_some_and(|state| !state.is_over());
        names.iter().flat_map(|name| self.machine.replicas(name)).copied().filter(is_up).collect()
    }

    fn add(&mut self, definitions: Vec<Arc<Definition>>) -> Result<(), BadService> {
        // As many as there are already, where somebody has scaled it in an earlier orchestrator, and nobody has said another number since.
        let replicas = |one: &Definition| {
            let left = self.left.iter().map(|left| &left.note).filter(|note| note.name == one.name);
            let asked_for = left.filter(|note| note.declared == one.replicas).map(|note| note.replica).max();
            asked_for.unwrap_or(0).max(one.replicas)
        };
        let rules = |one: &Arc<Definition>| (one.name.clone(), one.rules.clone(), replicas(one));
        self.machine.add(definitions.iter().map(rules).collect())?;
        let names: Vec<String> = definitions.iter().map(|one| one.name.clone()).collect();
        self.definitions.extend(definitions.into_iter().map(|one| (one.name.clone(), one)));
        self.carry_out();
        self.take_over(&names);
        Ok(())
    }

    /// Takes over what an earlier orchestrator has left behind of these services. Where something else is to run now, it is started anew.
    fn take_over(&mut self, names: &[String]) {
        let (mine, others): (Vec<Left>, Vec<Left>) =
            std::mem::take(&mut self.left).into_iter().partition(|left| names.contains(&left.note.name));
        self.left = others;
        let mut changed = Vec::new();
        for left in mine {
            let is_it =
                |id: &&ServiceId| self.machine.name_of(**id).is_some_and(|(_, replica)| replica == left.note.replica);
            let Some(&id) = self.machine.replicas(&left.note.name).iter().find(is_it) else {
                self.left.push(left);
                continue;
            };
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            let (pid, lived) = (left.child.pid(), left.lived());
            if let Some((exit, _)) = &left.ended {
                let status = exit.status;
                kept.exit = Some(exit.clone());
                kept.last_pid = Some(pid);
                self.machine.handle(clock::now(), Input::Life(id, life::Input::EndedMeanwhile { pid, lived, status }));
                left.child.forget();
            } else {
                if left.note.what != keep::what_runs(&kept.definition) && !changed.contains(&left.note.name) {
                    changed.push(left.note.name.clone());
                }
                let was_ready = left.note.was_ready;
                self.machine.handle(clock::now(), Input::Life(id, life::Input::Adopted { pid, lived, was_ready }));
                let incarnation = self.machine.life(id).map_or_else(Default::default, Life::incarnation);
                self.live(id, incarnation, Some(left));
            }
            self.carry_out();
        }
        if !changed.is_empty() {
            self.machine.handle(clock::now(), Input::Restart { names: changed });
        }
    }

    fn end_left_behind(&mut self, limit: Option<Duration>, answer: oneshot::Sender<Vec<Stopped>>) {
        let mut ending = JoinSet::new();
        for left in std::mem::take(&mut self.left) {
            ending.spawn(left.end(limit));
        }
        tokio::spawn(async move {
            let mut stopped = ending.join_all().await;
            stopped.sort_by(|one, other| one.label.cmp(&other.label));
            let _ = answer.send(stopped);
        });
    }

    /// What a process is of stays as it was until it is said to be renewed.
    fn replace(&mut self, definitions: Vec<Arc<Definition>>) -> Result<Replaced, BadService> {
        let replacement = |one: &Arc<Definition>| Replacement {
            name: one.name.clone(),
            rules: one.rules.clone(),
            replicas: one.replicas,
            is_changed: self.definitions.get(&one.name).is_some_and(|old| !old.is_same(one)),
        };
        let services = definitions.iter().map(replacement).collect();
        let replaced = self.machine.replace(clock::now(), services)?;
        let new: BTreeMap<String, Arc<Definition>> =
            definitions.into_iter().map(|one| (one.name.clone(), one)).collect();
        let replicas = |of: &BTreeMap<String, Arc<Definition>>, name: &String| of.get(name).map(|one| one.replicas);
        let of_another_number = |name: &&String| replicas(&self.definitions, name) != replicas(&new, name);
        let scaled: Vec<String> = self.definitions.keys().filter(of_another_number).cloned().collect();
        scaled.iter().for_each(|name| self.overtake(name));
        self.definitions.extend(new);
        self.forget_definitions();
        Ok(replaced)
    }

    /// Those of services that do not exist any more.
    fn forget_definitions(&mut self) {
        self.definitions.retain(|name, _| self.machine.contains(name));
        self.listening.retain(|name, _| self.machine.contains(name));
    }

    /// Leaves the processes of detached services to the next orchestrator. All others are kept no more.
    fn leave_detached(&mut self) -> Vec<LeftBehind> {
        let Some(keep) = self.keep.take() else { return Vec::new() };
        let mut left = Vec::new();
        for (id, kept) in &self.kept {
            let Some(life) = self.machine.life(*id) else { continue };
            // One that is being stopped is to end.
            let is_left = kept.definition.is_detached && !self.machine.is_stopping(*id);
            match life.pid() {
                Some(pid) if is_left => {
                    kept.order(Order::Leave);
                    left.push(LeftBehind { label: kept.label.clone(), pid, lived: life.lived(clock::now()) });
                }
                _ => kept.order(Order::KeepNoMore),
            }
        }
        if left.is_empty() {
            keep.leave()
        } else {
            keep.close()
        }
        left
    }

    /// Whoever waits for a number of replicas that is not wanted any more is told so.
    fn overtake(&mut self, name: &str) {
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter {
                Waiter::Scale { name: of, answer, .. } if of == name => {
                    let _ = answer.send(Err(StartError::Overtaken { service: of }));
                }
                other => self.waiters.push(other),
            }
        }
    }

    fn remove(&mut self, name: String, answer: oneshot::Sender<Result<Vec<Stopped>, RemoveError>>) {
        if let Err(error) = self.find(std::slice::from_ref(&name)) {
            return drop(answer.send(Err(error.into())));
        }
        let by: Vec<String> = self.machine.needed_by(&name).into_iter().map(Into::into).collect();
        if !by.is_empty() {
            return drop(answer.send(Err(RemoveError::Needed { service: name, by })));
        }
        let ids = self.that_are_up(std::slice::from_ref(&name));
        self.overtake(&name);
        self.machine.handle(clock::now(), Input::Remove { name: name.clone() });
        self.forget_definitions();
        self.waiters.push(Waiter::Stop { ids, stopped: Vec::new(), answer: StopAnswer::Removed(answer) });
    }

    /// To so many processes.
    fn signal(&self, name: &str, signal: Signal) -> u32 {
        let orders = self.machine.replicas(name).iter().filter_map(|id| self.kept.get(id)?.orders.as_ref());
        let with_room = orders.filter(|orders| orders.capacity() > ORDERS_TO_END);
        with_room.filter(|orders| orders.try_send(Order::Signal(signal)).is_ok()).count() as u32
    }

    /// Starts a service anew that may not have seen what has changed. Whether there is one.
    fn has_changed(&mut self, name: String, what: String) -> bool {
        let missed = self.machine.replicas(&name).iter().copied().find(|id| self.machine.may_have_missed(*id));
        let Some(id) = missed else { return false };
        self.say(id, Event::Changed { what });
        self.machine.handle(clock::now(), Input::Restart { names: vec![name] });
        true
    }

    fn last(&self, name: &str, lines: usize) -> Vec<String> {
        self.machine
            .replicas(name)
            .iter()
            .filter_map(|id| self.kept.get(id))
            .flat_map(|kept| kept.sink.last(lines))
            .collect()
    }

    fn attach(&self, label: String) -> Result<Attached, AttachError> {
        let Some(kept) = self.kept.values().find(|kept| *kept.label == *label) else {
            let known = self.kept.values().map(|kept| kept.label.to_string()).take(NAMED).collect();
            return Err(NoService { name: label, known }.into());
        };
        let Some(tap) = kept.sink.tap() else { return Err(AttachError::TooMany { label }) };
        let input = kept.definition.takes_input().then(|| AttachedInput(kept.inlet.writer()));
        Ok(Attached { input, output: AttachedOutput(tap), is_terminal: kept.definition.has_terminal })
    }

    /// What a service printed last in its last life, for an error.
    fn last_words(&self, name: &str) -> Vec<String> {
        let kept = self.machine.replicas(name).iter().filter_map(|id| self.kept.get(id));
        kept.flat_map(|kept| kept.sink.last_of_this_life(LAST_LINES)).collect()
    }

    /// What there is to know of all processes of these services.
    fn info(&self, names: &[&str]) -> Vec<Info> {
        let now = clock::now();
        names.iter().flat_map(|name| self.machine.replicas(name)).filter_map(|id| self.info_of(now, *id)).collect()
    }

    fn info_of(&self, now: Time, id: ServiceId) -> Option<Info> {
        let (kept, life) = (self.kept.get(&id)?, self.machine.life(id)?);
        let (name, replica) = self.machine.name_of(id)?;
        let state = self.machine.state(id)?;
        let why = self.machine.why(now, id);
        let why =
            if state.is_up() || matches!(state, State::Failed | State::GaveUp) { kept.with_port(why) } else { why };
        Some(Info {
            id,
            name: name.into(),
            label: kept.label.clone(),
            replica,
            state,
            why,
            pid: life.pid(),
            incarnation: life.incarnation(),
            restarts: life.restarts(),
            lived: life.lived(now),
            exit: life.status(),
            status: kept.status.clone().filter(|_| life.pid().is_some()),
            readiness: probe_info(now, life, Check::Readiness),
            liveness: probe_info(now, life, Check::Liveness),
            metrics: life.metrics().and_then(Watch::last).map(|(at, sample)| Measured { sample, ago: now.since(at) }),
        })
    }

    /// Does what the machine says.
    fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Added(id) => self.added(id),
                Effect::Renewed(id) => self.renewed(id),
                Effect::Removed(id) => {
                    self.kept.remove(&id);
                    self.forget_definitions();
                }
                Effect::Life(id, life::Effect::Event(event)) => self.happened(id, event),
                Effect::Life(id, effect) => self.carry_out_for(id, effect),
            }
        }
    }

    fn added(&mut self, id: ServiceId) {
        let Some((name, replica)) = self.machine.name_of(id) else { return };
        let Some(definition) = self.definitions.get(name).cloned() else { return };
        let label: Arc<str> = if replica == 1 { name.into() } else { format!("{name}#{replica}").into() };
        let (news, asides) = (self.news.downgrade(), self.asides.clone());
        let said = move |said| match said {
            Said::Ready(incarnation) => {
                // Never full for long; whoever is ready must not be overheard, so another thread waits for it.
                let Some(news) = news.upgrade() else { return };
                let ready = News::Life(id, life::Input::Ready(incarnation));
                if let Err(mpsc::error::TrySendError::Full(ready)) = news.try_send(ready) {
                    tokio::spawn(async move { drop(news.send(ready).await) });
                }
            }
            // An event, which may be lost.
            Said::LogLost(error) => drop(asides.try_send((id, Event::LogLost { error: error.to_string() }))),
        };
        let (listeners, reader) = (self.output.clone(), self.sink.clone());
        let sink = Sink::new(id, label.clone(), listeners, reader, Box::new(said));
        let kept = Kept {
            definition,
            label,
            replica,
            sink: Arc::new(sink),
            inlet: Arc::new(Inlet::new()),
            orders: None,
            probes: BTreeMap::new(),
            hooks: Arc::new(Semaphore::new(MOST_AT_A_TIME)),
            has_lost_log: false,
            not_started: None,
            port: None,
            was_killed: false,
            exit: None,
            is_unkillable: false,
            status: None,
            last_pid: None,
        };
        self.kept.insert(id, kept);
        self.open_log(id);
    }

    /// From its next process on it is as its service is now. Its log is opened anew where that is another one.
    fn renewed(&mut self, id: ServiceId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let Some(definition) = self.definitions.get(&kept.definition.name).cloned() else { return };
        let old = std::mem::replace(&mut kept.definition, definition);
        if old.log != kept.definition.log {
            kept.sink.close_log();
            kept.has_lost_log = false;
        }
    }

    /// Opens the log of a process of a service, unless it is open. Where that fails it is said once, and tried again at the next start.
    fn open_log(&mut self, id: ServiceId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let Some(settings) = kept.definition.log.as_ref().filter(|_| !kept.sink.has_log()) else { return };
        match Log::open(settings.of_replica(kept.replica)) {
            Ok(log) => kept.sink.log_to(log),
            Err(error) => {
                if !std::mem::replace(&mut kept.has_lost_log, true) {
                    self.say(id, Event::LogLost { error: error.to_string() });
                }
            }
        }
    }

    fn carry_out_for(&mut self, id: ServiceId, effect: life::Effect) {
        if let life::Effect::Spawn(_) = effect {
            self.open_log(id);
        }
        let Some(kept) = self.kept.get_mut(&id) else { return };
        match effect {
            life::Effect::Spawn(incarnation) => self.live(id, incarnation, None),
            life::Effect::Ask(incarnation, check) => {
                let definition = kept.definition.clone();
                let timing = match (check, definition.rules.readiness) {
                    (Check::Readiness, Readiness::Asked(timing)) => Some(timing),
                    (Check::Readiness, _) => None,
                    (Check::Liveness, _) => definition.rules.liveness,
                };
                let Some(timing) = timing else { return };
                let news = self.news.clone();
                let asked = tokio::spawn(async move {
                    let target = if check == Check::Readiness {
                        definition.health.as_ref()
                    } else {
                        definition.liveness.as_ref()
                    };
                    let answer = match target {
                        Some(target) => probe::ask(target, timing.timeout).await,
                        None => Ok(()),
                    };
                    // Where nobody hears it, all is being dropped.
                    let _ = news.send(News::Life(id, life::Input::Answered(incarnation, check, answer))).await;
                });
                // An earlier one that is still under way ends with that.
                kept.probes.insert(check, AbortOnDrop::of(&asked));
            }
            life::Effect::Measure(incarnation, pid) => {
                let (samples, news) = (self.samples.clone(), self.news.clone());
                tokio::spawn(async move {
                    let Ok(_room) = samples.acquire_owned().await else { return };
                    let taken = tokio::task::spawn_blocking(move || (clock::now(), usage::tree(pid))).await;
                    // A runtime that ends takes no more samples.
                    let Ok((at, usage)) = taken else { return };
                    let _ = news.send(News::Life(id, life::Input::Measured(incarnation, at, usage))).await;
                });
            }
            life::Effect::Terminate(_) => {
                let on_purpose = !self.machine.life(id).is_some_and(Life::is_wanted);
                kept.order(Order::Terminate { on_purpose });
            }
            life::Effect::Kill(_) => {
                kept.was_killed = true;
                kept.order(Order::Kill);
            }
            life::Effect::Event(event) => self.happened(id, event),
        }
    }

    /// Has a process of a service live, from its start on or from where it is.
    fn live(&mut self, id: ServiceId, incarnation: Incarnation, left: Option<Left>) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let (orders, received) = mpsc::channel(ORDERS);
        kept.orders = Some(orders);
        kept.not_started = None;
        kept.port = None;
        kept.was_killed = false;
        kept.exit = None;
        kept.is_unkillable = false;
        kept.status = None;
        let process = Process {
            definition: kept.definition.clone(),
            id,
            label: kept.label.clone(),
            replica: kept.replica,
            incarnation,
            sink: kept.sink.clone(),
            inlet: kept.inlet.clone(),
            reader: self.reader.clone(),
            listening: self.listening.entry(kept.definition.name.clone()).or_default().clone(),
            living: self.living.clone(),
            orders: received,
            news: self.news.clone(),
            keep: self.keep.clone(),
            left,
        };
        self.processes.spawn(process.run());
    }

    fn happened(&mut self, id: ServiceId, event: Event) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let moment = match &event {
            Event::Started { pid, .. } => {
                kept.last_pid = Some(*pid);
                Some((Moment::Start, None))
            }
            // Its hook has run when it was started.
            Event::Adopted { pid, .. } => {
                kept.last_pid = Some(*pid);
                None
            }
            Event::Left { .. } => {
                kept.probes.clear();
                kept.orders = None;
                None
            }
            Event::Healthy { .. } if self.keep.is_some() => {
                kept.order(Order::NoteReady);
                None
            }
            Event::Restarted { .. } => Some((Moment::Restart, None)),
            // One that had no process has not ended.
            Event::Stopped { status } => status.map(|status| (Moment::Stop, Some(status.to_string()))),
            Event::Crashed { cause, .. } => Some((Moment::Crash, Some(cause.to_string()))),
            Event::Unkillable { .. } => {
                kept.is_unkillable = true;
                None
            }
            _ => None,
        };
        if matches!(event, Event::Stopped { .. } | Event::Crashed { .. } | Event::Completed { .. }) {
            kept.probes.clear();
            kept.orders = None;
        }
        if let Event::Crashed { .. } = event
            && let Some(taken) = kept.port.clone().filter(|taken| !taken.before_start)
        {
            self.say(id, Event::PortTaken(taken));
        }
        if let Event::Stopped { status } = event {
            self.has_stopped(id, status);
        }
        if let Some((moment, cause)) = moment {
            self.run_hooks(id, moment, cause);
        }
        self.say(id, event);
    }

    /// Notes how a process ended on request, for all that wait for that: it may be started again before they are looked after.
    fn has_stopped(&mut self, id: ServiceId, status: Option<ExitStatus>) {
        let Some(kept) = self.kept.get(&id) else { return };
        let stopped = kept.stopped(status);
        for waiter in &mut self.waiters {
            if let Waiter::Stop { ids, stopped: all, .. } = waiter
                && ids.contains(&id)
            {
                ids.retain(|other| *other != id);
                all.push(stopped.clone());
            }
        }
    }

    fn run_hooks(&self, id: ServiceId, moment: Moment, cause: Option<String>) {
        let Some(kept) = self.kept.get(&id) else { return };
        for (_, hook) in kept.definition.hooks.iter().filter(|(of, _)| *of == moment) {
            let Ok(room) = kept.hooks.clone().try_acquire_owned() else {
                let error = format!("it was not run: {MOST_AT_A_TIME} that began before it have not ended");
                self.say(id, Event::HookFailed { hook: moment.name(), error });
                continue;
            };
            let (hook, asides) = (hook.clone(), self.asides.clone());
            let occasion = Occasion { service: kept.label.clone(), moment, pid: kept.last_pid, cause: cause.clone() };
            tokio::spawn(async move {
                let result = hook.run(occasion).await;
                drop(room);
                if let Err(error) = result {
                    let _ = asides.send((id, Event::HookFailed { hook: moment.name(), error })).await;
                }
            });
        }
    }

    fn say(&self, id: ServiceId, event: Event) {
        let Some(kept) = self.kept.get(&id) else { return };
        tracing::debug!(target: "pm::service", service = %kept.label, ?event);
        // Nobody may listen.
        let _ = self.events.send(Happening { at: SystemTime::now(), id, label: kept.label.clone(), event });
    }

    fn look_after_waiters(&mut self) {
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter {
                Waiter::Start { names, answer } => match self.are_up(&names) {
                    None if answer.is_closed() => {}
                    None => self.waiters.push(Waiter::Start { names, answer }),
                    Some(result) => drop(answer.send(result)),
                },
                Waiter::Scale { name, answer } => {
                    // Those that are too many must have gone. How many there are then may be for somebody else to say, who has asked since.
                    let is_whole = !self.machine.replicas(&name).iter().any(|id| self.machine.is_going(*id));
                    match is_whole.then(|| self.are_up(std::slice::from_ref(&name))).flatten() {
                        None if answer.is_closed() => {}
                        None => self.waiters.push(Waiter::Scale { name, answer }),
                        Some(result) => drop(answer.send(result)),
                    }
                }
                Waiter::Condition { name, condition, answer } => match self.machine.verdict(&name, condition) {
                    Verdict::NotYet(_) if answer.is_closed() => {}
                    Verdict::NotYet(_) => self.waiters.push(Waiter::Condition { name, condition, answer }),
                    Verdict::Holds => drop(answer.send(Ok(()))),
                    Verdict::Never(why) => {
                        let path = self.machine.path_to_failure(&name);
                        let output = self.last_words(path.last().unwrap_or(&name));
                        let why = self.with_port(path.last().unwrap_or(&name), why);
                        drop(answer.send(Err(WaitError::Never { service: name, condition, why, path, output })));
                    }
                },
                Waiter::Stop { mut ids, stopped, answer } => {
                    // One that somebody wants up again before it was told to end does not stop.
                    ids.retain(|id| self.machine.is_stopping(*id));
                    if !ids.is_empty() {
                        self.waiters.push(Waiter::Stop { ids, stopped, answer });
                        continue;
                    }
                    match answer {
                        StopAnswer::Some(answer) => drop(answer.send(Ok(stopped))),
                        StopAnswer::All(answer) => drop(answer.send(stopped)),
                        StopAnswer::Removed(answer) => drop(answer.send(Ok(stopped))),
                    }
                }
            }
        }
    }

    /// Whether all of them are up: ready, where something says that they are. None where that is not known yet.
    fn are_up(&self, names: &[String]) -> Option<Result<(), StartError>> {
        let mut all = Some(Ok(()));
        for name in names {
            if !self.machine.contains(name) {
                // Somebody has removed it meanwhile.
                return Some(Err(StartError::Stopped { service: name.clone() }));
            }
            let readiness = self.definitions.get(name).map_or(Readiness::Spawned, |one| one.rules.readiness);
            let condition = if readiness == Readiness::Spawned { Condition::Started } else { Condition::Healthy };
            let has_completed = self.machine.verdict(name, Condition::CompletedSuccessfully) == Verdict::Holds;
            match self.machine.verdict(name, condition) {
                _ if has_completed || self.machine.replicas(name).is_empty() => {}
                Verdict::Holds => {}
                Verdict::NotYet(_) => all = None,
                Verdict::Never(why) => return Some(Err(self.why_not(name, why))),
            }
        }
        all
    }

    fn why_not(&self, name: &str, why: String) -> StartError {
        let path = self.machine.path_to_failure(name);
        let service = path.last().map_or(name, String::as_str).to_string();
        let output = self.last_words(&service);
        let ids = self.machine.replicas(&service);
        if path.len() > 1 {
            let why =
                self.machine.replicas(name).iter().find_map(|id| self.machine.why(clock::now(), *id)).unwrap_or(why);
            return StartError::DependencyFailed { path, why, output };
        }
        if let Some(error) = ids.iter().find_map(|id| self.kept.get(id)?.not_started.as_ref()) {
            return error.error(service);
        }
        if ids.iter().any(|id| self.machine.state(*id) == Some(State::Stopped)) {
            return StartError::Stopped { service };
        }
        let failed = ids.iter().find_map(|id| self.machine.life(*id).filter(|life| life.cause().is_some()));
        match failed.and_then(|life| life.cause()) {
            Some(ExitCause::NotReady { limit }) => {
                let last = failed.and_then(|life| life.schedule(Check::Readiness)?.last()?.as_ref().err().cloned());
                let port = ids.iter().find_map(|id| self.kept.get(id)?.port.clone());
                StartError::Timeout { service, limit: *limit, said: last, port, output }
            }
            cause => {
                let words = ids.iter().find_map(|id| self.machine.why(clock::now(), *id));
                let why = self.with_port(&service, words.unwrap_or(why));
                StartError::Failed { service, cause: cause.cloned(), why, output }
            }
        }
    }

    /// Why a service is not up, with who else holds its port.
    fn with_port(&self, name: &str, why: String) -> String {
        let has_one = |id: &ServiceId| self.kept.get(id).filter(|kept| kept.port.is_some());
        match self.machine.replicas(name).iter().find_map(has_one) {
            Some(kept) => kept.with_port(Some(why)).unwrap_or_default(),
            None => why,
        }
    }
}

/// What there is to know of a probe; none where it was not asked in this life.
fn probe_info(now: Time, life: &Life, check: Check) -> Option<ProbeInfo> {
    let schedule = life.schedule(check)?;
    let last = schedule.last().zip(schedule.answered_at());
    Some(ProbeInfo {
        last: last.map(|(result, at)| Answered { result: result.clone(), ago: now.since(at) }),
        failures: schedule.failures(),
        next_in: life.asks_at(check).map(|at| at.since(now)),
    })
}

impl Kept {
    /// How it ended on request. No status is no process, or one that is still there.
    fn stopped(&self, status: Option<ExitStatus>) -> Stopped {
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
    fn with_port(&self, why: Option<String>) -> Option<String> {
        match (why, &self.port) {
            (Some(why), Some(taken)) => Some(format!("{why}; {taken}")),
            (None, Some(taken)) => Some(taken.to_string()),
            (why, None) => why,
        }
    }

    fn order(&self, order: Order) {
        // There is room for more orders than a life has; and one whose task has ended needs none.
        if let Some(orders) = &self.orders {
            let _ = orders.try_send(order);
        }
    }
}
