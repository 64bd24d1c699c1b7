//! The task that keeps all services of an orchestrator.
//!
//! | module | does |
//! |---|---|
//! | `effects` | carries out what the machine says |
//! | `member` | has what belongs to one process of a service |
//! | `waiting` | tells those who wait for something to come about |
//! | `info` | tells those who ask |
//! | `outliving` | takes over what has outlived an earlier orchestrator, and leaves what is to outlive this one |

mod effects;
mod info;
mod member;
mod outliving;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

use super::keep::{Keep, Left};
use super::listening::Listening;
use super::output::{Output, OutputThread};
use super::port::Living;
use super::process::{News, Order};
use crate::driver::clock;
use crate::face::service::{
    AttachError, Attached, BadService, Definition, Happening, Info, LeftBehind, MOST_REPLICAS, NoService, RemoveError,
    StartError, Stopped, WaitError,
};
use crate::machine::exit::Signal;
use crate::machine::service::{Condition, Event, ServiceId};
use crate::machine::supervisor::{Input, Replaced, Replacement, Supervisor};
use member::Member;
use waiting::{StopAnswer, Waiter};

/// So many events and pieces of output wait for one who listens and is slow. What is older is lost to that one, and counted.
const LISTENERS: usize = 1024;

/// News of processes that wait for this task.
const NEWS: usize = 256;

/// So many of them are not for signals, so that the end of a service, which is one or two orders, always finds room.
const ORDERS_TO_END: usize = 4;

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

pub(crate) struct Task {
    machine: Supervisor,
    definitions: BTreeMap<String, Arc<Definition>>,
    /// Of each service that has listeners and was started once.
    listening: BTreeMap<String, Listening>,
    /// The processes of all of them.
    living: Living,
    members: BTreeMap<ServiceId, Member>,
    waiters: Vec<Waiter>,
    /// The tasks of processes, which die with this one.
    processes: JoinSet<()>,
    output_thread: Arc<OutputThread>,
    /// What samples take of while they are taken.
    samples: Arc<Semaphore>,
    events: broadcast::Sender<Happening>,
    output: broadcast::Sender<Output>,
    /// The one who reads all output, and for whom everything waits.
    subscriber: Option<mpsc::Sender<Output>>,
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
        subscriber: Option<mpsc::Sender<Output>>,
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
            members: BTreeMap::new(),
            waiters: Vec::new(),
            processes: JoinSet::new(),
            output_thread: Arc::new(OutputThread::start()?),
            samples: Arc::new(Semaphore::new(MOST_SAMPLES)),
            events: events.clone(),
            output: output.clone(),
            subscriber,
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
                if let Some(member) = self.members.get_mut(&id) {
                    member.not_started = Some(error);
                }
            }
            News::PortTaken(id, taken) => {
                let Some(member) = self.members.get_mut(&id) else { return };
                member.port = Some(taken.clone());
                // Where it has ended it is said with how that is taken.
                if taken.before_start {
                    self.say(id, Event::PortTaken(taken));
                }
            }
            News::Ended(id, exit) => {
                let swept = exit.strays.clone();
                if let Some(member) = self.members.get_mut(&id) {
                    member.exit = Some(exit);
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
                if let Some(member) = self.members.get_mut(&id) {
                    member.status = Some(text.clone());
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
                    let ids = self.that_are_not_over(&names);
                    self.machine.handle(clock::now(), Input::Stop { names, limit });
                    self.waiters.push(Waiter::Stop { ids, stopped: Vec::new(), answer: StopAnswer::Some(answer) });
                }
                Err(error) => drop(answer.send(Err(error))),
            },
            Request::StopAll { deadline, answer } => {
                let now = clock::now();
                let mut names: Vec<String> = self.machine.names().map(Into::into).collect();
                names.reverse();
                let ids = self.that_are_not_over(&names);
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
                    let is_up = has_none || !self.that_are_not_over(std::slice::from_ref(&name)).is_empty();
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
                    keep.keep_nothing();
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
    fn that_are_not_over(&self, names: &[String]) -> Vec<ServiceId> {
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

    fn remove(&mut self, name: String, answer: oneshot::Sender<Result<Vec<Stopped>, RemoveError>>) {
        if let Err(error) = self.find(std::slice::from_ref(&name)) {
            return drop(answer.send(Err(error.into())));
        }
        let by: Vec<String> = self.machine.needed_by(&name).into_iter().map(Into::into).collect();
        if !by.is_empty() {
            return drop(answer.send(Err(RemoveError::Needed { service: name, by })));
        }
        let ids = self.that_are_not_over(std::slice::from_ref(&name));
        self.overtake(&name);
        self.machine.handle(clock::now(), Input::Remove { name: name.clone() });
        self.forget_definitions();
        self.waiters.push(Waiter::Stop { ids, stopped: Vec::new(), answer: StopAnswer::Removed(answer) });
    }

    /// To so many processes.
    fn signal(&self, name: &str, signal: Signal) -> u32 {
        let orders = self.machine.replicas(name).iter().filter_map(|id| self.members.get(id)?.orders.as_ref());
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
}
