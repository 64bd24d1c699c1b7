//! The pool: a queue of calls, the links that serve them, and the task that keeps the workers alive.
//!
//! A query goes straight to a link that has room ([`Pool::submit`]); where none has, it waits in the [`Backlog`] until a link does
//! ([`Pool::dispatch`]). The task ([`run`]) feeds the [machine](crate::machine::pool) and carries out what it decides.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::call::{Call, TimeoutFrom};
use super::clock;
use super::forward;
use super::link::{Claim, LinkSettings, LinkShared, Submit, Yard};
use super::start::Starter;
use super::stderr::Tail;
use super::worker::{News, Order, Plan, Task, TxOf};
use crate::face::error::{QueryError, StartError};
use crate::machine::budget::Budget;
use crate::machine::cause::ExitCause;
use crate::machine::dispatch;
use crate::machine::event::Event;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::pool::{self as machine, Counts, Input, Phase};
use crate::machine::retry::Failure;
use crate::machine::spec::Stderr;
use crate::machine::time::Time;
use crate::machine::unit;
use crate::transport::LinkTx;

/// News and commands that wait for the task of a pool.
const MAILBOX: usize = 256;

/// How long the end of a pool waits for its workers' last lines to be written.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Events that a slow subscriber may be behind before it loses some.
const EVENTS: usize = 1024;

pub(crate) type NoticeHook = Box<dyn Fn(WorkerId, &str) + Send + Sync>;
pub(crate) type SlowHook = Box<dyn Fn(SlowQuery) + Send + Sync>;
pub(crate) type DescribeHook = Box<dyn Fn(&[u8]) -> String + Send + Sync>;

/// What people want to be told of.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) notice: Option<NoticeHook>,
    pub(crate) slow: Option<(Duration, SlowHook)>,
    /// What the input of a call says, in short.
    pub(crate) describe: Option<DescribeHook>,
}

/// A query that took longer than it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowQuery {
    /// The worker that answered.
    pub worker: WorkerId,
    /// From the query to its answer.
    pub took: Duration,
    /// What the query was about.
    pub input: String,
}

/// A worker as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its number in the pool.
    pub id: WorkerId,
    /// Which life of it this is.
    pub incarnation: Incarnation,
    /// Its process.
    pub pid: u32,
    /// Calls that it has not answered.
    pub load: u32,
}

/// What the registry shows of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its name.
    pub name: Arc<str>,
    /// How many workers there are of each sort.
    pub workers: Counts,
    /// How many ended so far without having been told to: they died, or pm had to kill them.
    pub crashes: u64,
    /// How long ago the last one did.
    pub last_crash: Option<Duration>,
    /// Queries that wait for a worker.
    pub queued: usize,
    /// Queries that workers have.
    pub load: usize,
    /// Queries that workers have answered so far, with a result or an error of their own.
    pub answered: u64,
    /// Frames of workers that were dropped so far: of kinds that pm does not know, and of queries that had ended.
    pub dropped_frames: u64,
}

pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) codec: String,
    pub(crate) queue: usize,
    pub(crate) budget: Budget,
    pub(crate) link: LinkSettings,
    pub(crate) hooks: Hooks,
}

/// A pool without its workers' types: what faces hold.
pub(crate) trait AnyPool: Send + Sync {
    fn name(&self) -> &Arc<str>;
    /// Takes a call to a worker or into the queue; false where neither has room, see [`AnyPool::room`].
    fn submit(&self, now: Time, call: &Arc<Call>) -> bool;
    /// Takes a call to this worker.
    fn submit_to(&self, worker: WorkerId, call: &Arc<Call>) -> Result<(), QueryError>;
    /// The caller of this call has gone.
    fn abandon(&self, call: &Call);
    /// Told when the queue gets room.
    fn room(&self) -> &Notify;
    fn workers(&self) -> Vec<WorkerInfo>;
    fn info(&self) -> PoolInfo;
    fn events(&self) -> broadcast::Receiver<Event>;
    /// Where commands go. A handle that cannot wait leaves out what does not matter.
    fn commands(&self) -> &mpsc::Sender<Command>;
    /// Kills all workers, for good. Never waits.
    fn kill(&self);
}

/// What a handle asks of the task.
pub(crate) enum Command {
    /// For the machine.
    Input(Input),
    /// The same, and the answer once nothing is under way any more.
    Settle(Input, oneshot::Sender<Result<(), StartError>>),
    /// The same, for a start: the first failure is the answer.
    Start(Input, oneshot::Sender<Result<(), StartError>>),
    /// The answer once the pool is closed.
    Closed(oneshot::Sender<()>),
    /// Take no more queries, serve those that were taken until the deadline, then end all workers.
    Shutdown(Option<Time>),
    /// Kill a worker, and see what happens.
    Chaos(u64),
}

/// The part of a pool that does not depend on the type of its links.
struct Shared {
    name: Arc<str>,
    hooks: Hooks,
    backlog: Mutex<Backlog>,
    queued: AtomicUsize,
    room: Notify,
    queue_limit: usize,
    commands: mpsc::Sender<Command>,
    /// New queries are refused, for the reason that the backlog knows.
    refusing: AtomicBool,
    /// The last handle has gone.
    killed: AtomicBool,
    events: broadcast::Sender<Event>,
    /// The task should look at the backlog's timers, or at a queue that nobody serves.
    wake: Notify,
    state: Mutex<State>,
    answered: AtomicU64,
    dropped_frames: AtomicU64,
}

#[derive(Default)]
struct State {
    counts: Counts,
    crashes: u64,
    last_crash: Option<Time>,
}

struct Backlog {
    queue: VecDeque<Arc<Call>>,
    /// Calls that wait for their next try.
    delayed: BinaryHeap<Reverse<Delayed>>,
    next: u64,
    phase: Phase,
    /// A query came before there was any worker.
    demanded: bool,
    /// No further query is taken.
    closing: bool,
    last_stderr: String,
    /// When the first of the queue times out, at the earliest.
    earliest: Option<Time>,
}

struct Delayed {
    due: Time,
    order: u64,
    call: Arc<Call>,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}
impl Eq for Delayed {}
impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// A pool over links of one type.
pub(crate) struct Pool<Tx> {
    shared: Shared,
    /// The links that serve the queue.
    links: ArcSwap<Vec<Arc<LinkShared<Tx>>>>,
    /// Links of workers that finish what they have.
    leaving: Mutex<Vec<Arc<LinkShared<Tx>>>>,
}

/// Starts the task of a pool on the current runtime.
pub(crate) fn spawn<S: Starter>(starter: S, settings: Settings) -> Arc<Pool<TxOf<S>>> {
    let (news, inbox) = mpsc::channel(MAILBOX);
    let (commands, orders) = mpsc::channel(MAILBOX);
    let times = starter.times();
    let pool = Arc::new(Pool {
        shared: Shared {
            name: settings.name.clone(),
            hooks: settings.hooks,
            backlog: Mutex::new(Backlog::new()),
            queued: AtomicUsize::new(0),
            room: Notify::new(),
            queue_limit: settings.queue,
            commands,
            refusing: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            events: broadcast::channel(EVENTS).0,
            wake: Notify::new(),
            state: Mutex::new(State::default()),
            answered: AtomicU64::new(0),
            dropped_frames: AtomicU64::new(0),
        },
        links: ArcSwap::default(),
        leaving: Mutex::default(),
    });
    let plan = Arc::new(Plan {
        starter,
        pool: settings.name,
        codec: settings.codec,
        link: settings.link,
        yard: pool.clone() as Arc<dyn Yard>,
        news,
    });
    let keeper = TaskOf {
        machine: machine::Pool::new(times, settings.budget, seed()),
        pool: pool.clone(),
        plan,
        lives: BTreeMap::new(),
        waiting: Vec::new(),
        closed: Vec::new(),
        last_failure: None,
        shutdown: None,
    };
    tokio::spawn(keeper.run(inbox, orders));
    pool
}

/// Runs a hook of the program. A hook that panics must not take the task of a worker with it, and with that the calls that it has.
fn guarded<T>(hook: &str, run: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(run));
    if result.is_err() {
        tracing::error!(target: "pm::pool", hook, "a hook panicked");
    }
    result.ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the jitter of restarts comes from: managers that start together should not restart together.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl<Tx: LinkTx> Pool<Tx> {
    /// The link on which a further call costs least, and what it is wanted for. `waited` says that the call has been in the queue.
    fn best(links: &[Arc<LinkShared<Tx>>], waited: bool) -> Option<(&Arc<LinkShared<Tx>>, Claim)> {
        match links {
            [only] => only.cost(waited).map(|_| (only, Claim::Room)),
            _ => {
                let ((_, load), place) = dispatch::best(links.iter().map(|link| link.cost(waited)))?;
                Some((&links[place], if load == 0 { Claim::Idle } else { Claim::Room }))
            }
        }
    }

    /// Puts the call on a link, if one has room.
    fn board(&self, now: Time, call: &Arc<Call>) -> bool {
        let links = self.links.load();
        Self::place(&links, now, call, false)
    }

    /// The same, with the links at hand.
    fn place(links: &[Arc<LinkShared<Tx>>], now: Time, call: &Arc<Call>, waited: bool) -> bool {
        // Each caller that was faster takes one idle worker out of the choice.
        for _ in 0..links.len() {
            let Some((best, claim)) = Self::best(links, waited) else { return false };
            match best.submit(now, call, claim) {
                Submit::Taken | Submit::Over => return true,
                Submit::Busy => {}
                Submit::Full | Submit::Closed => break,
            }
        }
        // What the link said of its room was out of date, or its buffer is full. Others may have some.
        links.iter().any(|link| matches!(link.submit(now, call, Claim::Room), Submit::Taken | Submit::Over))
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        lock(&self.shared.backlog)
    }

    /// Puts a call into the queue, or resolves it where nobody will ever serve it. False where the queue is full; a call that was
    /// in it before is always taken back.
    fn enqueue(&self, call: &Arc<Call>, again: bool) -> bool {
        let mut backlog = self.backlog();
        if let Some(error) = backlog.refusal(&self.shared.name, again) {
            drop(backlog);
            if let Some(waker) = call.resolve(Err(error)) {
                waker.wake();
            }
            return true;
        }
        if !again && backlog.queue.len() >= self.shared.queue_limit {
            return false;
        }
        let until = call.until();
        if again {
            backlog.queue.push_front(call.clone());
        } else {
            backlog.queue.push_back(call.clone());
        }
        let sooner = until.is_some_and(|until| backlog.earliest.is_none_or(|earliest| until < earliest));
        backlog.earliest = Time::earliest(backlog.earliest, until);
        let demand = backlog.phase == Phase::Idle && !std::mem::replace(&mut backlog.demanded, true);
        self.shared.queued.store(backlog.queue.len(), Ordering::SeqCst);
        drop(backlog);
        if demand || sooner {
            self.shared.wake.notify_one();
        }
        true
    }

    /// Takes a call that nobody waits for any more out of the queue: the next one has its place.
    fn take_out(&self, call: &Call) {
        let mut backlog = self.backlog();
        let place = backlog.queue.iter().position(|waiting| std::ptr::eq(&**waiting, call));
        let taken = place.and_then(|place| backlog.queue.remove(place));
        backlog.delayed.retain(|Reverse(delayed)| !std::ptr::eq(&*delayed.call, call));
        self.shared.queued.store(backlog.queue.len(), Ordering::SeqCst);
        drop(backlog);
        if taken.is_some() {
            self.shared.room.notify_one();
        }
        self.idle();
    }

    /// Calls that workers have.
    fn load(&self) -> usize {
        let load = |links: &[Arc<LinkShared<Tx>>]| links.iter().map(|link| link.load() as usize).sum::<usize>();
        // In this order, so that a link that moves from here to there is not missed.
        load(&self.links.load()) + load(&lock(&self.leaving))
    }
}

impl Backlog {
    fn new() -> Self {
        Backlog {
            queue: VecDeque::new(),
            delayed: BinaryHeap::new(),
            next: 0,
            phase: Phase::Idle,
            demanded: false,
            closing: false,
            last_stderr: String::new(),
            earliest: None,
        }
    }

    /// The error of a query that no worker will ever serve. While a pool closes, queries that it has taken go on.
    fn refusal(&self, pool: &Arc<str>, taken: bool) -> Option<QueryError> {
        let pool = pool.clone();
        match &self.phase {
            Phase::Idle | Phase::Serving if self.closing && !taken => Some(QueryError::ShuttingDown { pool }),
            Phase::Idle | Phase::Serving => None,
            Phase::Unspawned => Some(QueryError::NoWorkers { pool }),
            Phase::Closing | Phase::Closed => Some(QueryError::ShuttingDown { pool }),
            Phase::GaveUp(cause) => {
                Some(QueryError::GaveUp { pool, cause: cause.clone(), stderr: self.last_stderr.clone() })
            }
        }
    }
}

impl<Tx: LinkTx> AnyPool for Pool<Tx> {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    fn submit(&self, now: Time, call: &Arc<Call>) -> bool {
        let is_open = !self.shared.refusing.load(Ordering::Relaxed);
        if is_open && self.shared.queued.load(Ordering::SeqCst) == 0 && self.board(now, call) {
            return true;
        }
        if !self.enqueue(call, false) {
            return false;
        }
        // A link may have got room between the look at it and the entry into the queue.
        self.dispatch();
        true
    }

    fn submit_to(&self, worker: WorkerId, call: &Arc<Call>) -> Result<(), QueryError> {
        let links = self.links.load();
        let leaving = lock(&self.leaving);
        let link = links.iter().chain(leaving.iter()).find(|link| link.worker == worker).cloned();
        drop(leaving);
        let gone = || QueryError::NoWorkers { pool: self.shared.name.clone() };
        if self.shared.refusing.load(Ordering::Relaxed)
            && let Some(error) = self.backlog().refusal(&self.shared.name, false)
        {
            return Err(error);
        }
        match link.ok_or_else(gone)?.submit(clock::now(), call, Claim::Named) {
            Submit::Taken | Submit::Over => Ok(()),
            Submit::Busy | Submit::Full | Submit::Closed => Err(gone()),
        }
    }

    fn abandon(&self, call: &Call) {
        let Some((worker, incarnation, id)) = call.abandon() else { return self.take_out(call) };
        let links = self.links.load();
        let is_it = |link: &&Arc<LinkShared<Tx>>| link.worker == worker && link.incarnation == incarnation;
        let link = links.iter().find(is_it).cloned().or_else(|| lock(&self.leaving).iter().find(is_it).cloned());
        if let Some(link) = link {
            link.cancel(id);
        }
    }

    fn room(&self) -> &Notify {
        &self.shared.room
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        let info = |link: &Arc<LinkShared<Tx>>| WorkerInfo {
            id: link.worker,
            incarnation: link.incarnation,
            pid: link.pid,
            load: link.load(),
        };
        let mut workers: Vec<_> = self.links.load().iter().map(info).collect();
        workers.sort_unstable_by_key(|worker| worker.id);
        workers
    }

    fn info(&self) -> PoolInfo {
        let load = self.load();
        let state = lock(&self.shared.state);
        PoolInfo {
            name: self.shared.name.clone(),
            workers: state.counts,
            crashes: state.crashes,
            last_crash: state.last_crash.map(|at| clock::now().since(at)),
            queued: self.shared.queued.load(Ordering::SeqCst),
            load,
            answered: self.shared.answered.load(Ordering::Relaxed),
            dropped_frames: self.shared.dropped_frames.load(Ordering::Relaxed),
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    fn commands(&self) -> &mpsc::Sender<Command> {
        &self.shared.commands
    }

    fn kill(&self) {
        self.shared.killed.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

impl<Tx: LinkTx> Yard for Pool<Tx> {
    fn notice(&self, worker: WorkerId, text: &str) {
        tracing::debug!(target: "pm::pool", pool = &*self.shared.name, %worker, notice = text);
        if let Some(notice) = &self.shared.hooks.notice {
            guarded("on_notice", || notice(worker, text));
        }
    }

    fn answered(&self, worker: WorkerId, call: &Call, now: Time) {
        self.shared.answered.fetch_add(1, Ordering::Relaxed);
        if let Some((threshold, slow)) = &self.shared.hooks.slow {
            let took = now.since(call.made);
            if took >= *threshold {
                let slow_query = SlowQuery { worker, took, input: self.describe(&call.input) };
                guarded("on_slow", || slow(slow_query));
            }
        }
    }

    fn dropped(&self, frames: u64) {
        self.shared.dropped_frames.fetch_add(frames, Ordering::Relaxed);
    }

    fn requeue(&self, call: Arc<Call>, delay: Duration) {
        if call.is_named {
            let error = QueryError::NoWorkers { pool: self.shared.name.clone() };
            if let Some(waker) = call.resolve(Err(error)) {
                waker.wake();
            }
            return;
        }
        if delay.is_zero() {
            self.enqueue(&call, true);
            return;
        }
        let mut backlog = self.backlog();
        if let Some(error) = backlog.refusal(&self.shared.name, true) {
            drop(backlog);
            if let Some(waker) = call.resolve(Err(error)) {
                waker.wake();
            }
            return;
        }
        backlog.next += 1;
        let delayed = Delayed { due: clock::now() + delay, order: backlog.next, call };
        backlog.delayed.push(Reverse(delayed));
        drop(backlog);
        self.shared.wake.notify_one();
    }

    fn poisoned(&self, summary: &str) {
        self.shared.report(Event::Poisoned { input: summary.to_string() });
    }

    fn describe(&self, input: &[u8]) -> String {
        let described =
            self.shared.hooks.describe.as_ref().and_then(|describe| guarded("describe", || describe(input)));
        described.unwrap_or_else(|| format!("{} bytes", input.len()))
    }

    fn dispatch(&self) {
        // Whoever queues a call then looks for room, and whoever makes room then looks for calls. With this fence between the
        // two steps of each, one of them sees the other's.
        fence(Ordering::SeqCst);
        while self.shared.queued.load(Ordering::SeqCst) > 0 {
            let now = clock::now();
            let mut over = Vec::new();
            let mut moved = 0;
            let mut backlog = self.backlog();
            let links = self.links.load();
            while let Some(call) = backlog.queue.front() {
                if !call.is_over() && !Self::place(&links, now, call, true) {
                    break;
                }
                over.extend(backlog.queue.pop_front());
                moved += 1;
            }
            self.shared.queued.store(backlog.queue.len(), Ordering::SeqCst);
            drop(backlog);
            drop(over);
            for _ in 0..moved {
                self.shared.room.notify_one();
            }
            if moved > 0 {
                // Those that were over may have been the last that a shutdown waited for.
                self.idle();
            }
            // Room that appears after this look brings its own: whoever makes room dispatches.
            if moved == 0 || Self::best(&links, true).is_none() {
                break;
            }
        }
    }

    fn first_answer(&self, worker: WorkerId, incarnation: Incarnation) {
        // Where the task is far behind, one of the next incarnations brings the same news.
        let _ = self.shared.commands.try_send(Command::Input(Input::Progress(worker, incarnation)));
    }

    fn idle(&self) {
        if self.shared.refusing.load(Ordering::SeqCst) {
            self.shared.wake.notify_one();
        }
    }

    fn has_others(&self) -> bool {
        self.links.load().len() > 1
    }

    fn has_idle(&self, but: WorkerId) -> bool {
        self.links.load().iter().any(|link| link.worker != but && link.load() == 0)
    }
}

impl Shared {
    pub(crate) fn report(&self, event: Event) {
        let pool = &*self.name;
        match &event {
            Event::Crashed { worker, cause, .. } => {
                tracing::warn!(target: "pm::pool", pool, %worker, %cause, ?event);
            }
            Event::GaveUp { crashes, cause } => {
                tracing::error!(target: "pm::pool", pool, crashes, %cause, ?event);
            }
            _ => tracing::debug!(target: "pm::pool", pool, ?event),
        }
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// The live part of one worker, as the task knows it.
struct Live<Tx> {
    incarnation: Incarnation,
    pid: Option<u32>,
    orders: mpsc::Sender<Order>,
    tail: Tail,
    link: Option<Arc<LinkShared<Tx>>>,
    task: AbortHandle,
}

struct Waiting {
    answer: oneshot::Sender<Result<(), StartError>>,
    /// The first failure of a worker is the answer.
    is_start: bool,
}

/// The task of a pool.
struct TaskOf<S: Starter> {
    machine: machine::Pool,
    pool: Arc<Pool<TxOf<S>>>,
    plan: Arc<Plan<S>>,
    lives: BTreeMap<WorkerId, Live<TxOf<S>>>,
    waiting: Vec<Waiting>,
    closed: Vec<oneshot::Sender<()>>,
    last_failure: Option<StartError>,
    /// The deadline of a shutdown that waits until the queue is served.
    shutdown: Option<Option<Time>>,
}

impl<S: Starter> TaskOf<S> {
    async fn run(mut self, mut inbox: mpsc::Receiver<News<TxOf<S>>>, mut commands: mpsc::Receiver<Command>) {
        let guard = Leftovers(Arc::downgrade(&self.pool));
        loop {
            self.carry_out();
            if *self.machine.phase() == Phase::Closed && self.lives.is_empty() {
                break;
            }
            let due = Time::earliest(self.machine.poll_timeout(), self.next_due());
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(clock::instant(due)).await,
                    None => std::future::pending().await,
                }
            };
            let pool = self.pool.clone();
            tokio::select! {
                news = inbox.recv() => if let Some(news) = news { self.hear(news) },
                command = commands.recv() => if let Some(command) = command { self.obey(command) },
                () = pool.shared.wake.notified() => {}
                () = sleep => {
                    self.machine.handle_timeout(clock::now());
                }
            }
            self.tend_backlog();
        }
        if self.plan.starter.stderr() == Stderr::Forward {
            forward::flush(LAST_WRITE).await;
        }
        // The registry knows no pool that takes no commands, and whoever waits for the end may look there.
        commands.close();
        while let Some(command) = commands.recv().await {
            self.obey(command);
            self.carry_out();
        }
        for closed in self.closed.drain(..) {
            let _ = closed.send(());
        }
        drop(guard);
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(clock::now(), input);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Input(input) => self.input(self.with_loads(input)),
            Command::Settle(input, answer) => {
                self.waiting.push(Waiting { answer, is_start: false });
                self.input(self.with_loads(input));
            }
            Command::Start(input, answer) => {
                self.waiting.push(Waiting { answer, is_start: true });
                self.input(self.with_loads(input));
            }
            Command::Closed(answer) => {
                if *self.machine.phase() == Phase::Closed && self.lives.is_empty() {
                    let _ = answer.send(());
                } else {
                    self.closed.push(answer);
                }
            }
            Command::Shutdown(deadline) => {
                self.pool.shared.refusing.store(true, Ordering::SeqCst);
                lock(&self.pool.shared.backlog).closing = true;
                self.shutdown = Some(Time::earliest(self.shutdown.flatten(), deadline));
            }
            Command::Chaos(random) => {
                let links = self.pool.links.load();
                if !links.is_empty() {
                    let link = &links[(random % links.len() as u64) as usize];
                    let input = Input::KillWorker(link.worker, ExitCause::Chaos);
                    self.machine.handle(clock::now(), input);
                }
            }
        }
    }

    /// A scale down sends the idlest workers away, and only the links know which those are.
    fn with_loads(&self, input: Input) -> Input {
        match input {
            Input::Scale { workers, idlest } if idlest.is_empty() => {
                let mut loads: Vec<_> = self.pool.workers().into_iter().map(|w| (w.load, Reverse(w.id))).collect();
                loads.sort_unstable();
                Input::Scale { workers, idlest: loads.into_iter().map(|(_, Reverse(id))| id).collect() }
            }
            input => input,
        }
    }

    fn hear(&mut self, news: News<TxOf<S>>) {
        match news {
            News::Linked(link) => {
                if let Some(live) = self.lives.get_mut(&link.worker)
                    && live.incarnation == link.incarnation
                {
                    live.link = Some(link);
                }
            }
            News::StartFailed(error) => self.start_failed(error),
            News::Event(event) => self.pool.shared.report(event),
            News::Unit(worker, input, aboard) => {
                if let Some(live) = self.lives.get_mut(&worker) {
                    live.pid = live.pid.or(aboard.pid);
                }
                let became_ready = matches!(input, unit::Input::Ready(_));
                self.input(Input::Unit(worker, input, aboard));
                if became_ready && self.machine.worker(worker) == Some(unit::Phase::Ready) {
                    self.open(worker);
                }
            }
        }
    }

    fn start_failed(&mut self, error: StartError) {
        self.last_failure = Some(error.clone());
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.is_start {
                drop(waiting.answer.send(Err(error.clone())));
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    /// A worker serves: its link draws from the queue.
    fn open(&mut self, worker: WorkerId) {
        let Some(link) = self.lives.get(&worker).and_then(|live| live.link.clone()) else { return };
        self.pool.links.rcu(|links| links.iter().cloned().chain([link.clone()]).collect::<Vec<_>>());
        self.pool.dispatch();
    }

    /// A link serves the queue no more.
    fn shut(&mut self, worker: WorkerId, incarnation: Incarnation, keep: bool) {
        let is_it = |link: &Arc<LinkShared<TxOf<S>>>| link.worker == worker && link.incarnation == incarnation;
        // Whoever misses it among the links waits for this lock, and finds it here.
        let mut leaving = lock(&self.pool.leaving);
        let before = self.pool.links.load_full();
        self.pool.links.rcu(|links| links.iter().filter(|link| !is_it(link)).cloned().collect::<Vec<_>>());
        if !keep {
            leaving.retain(|link| !is_it(link));
        } else if !leaving.iter().any(is_it) {
            leaving.extend(before.iter().find(|link| is_it(link)).cloned());
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                machine::Effect::Report(event) => self.pool.shared.report(event),
                machine::Effect::Phase(phase) => self.enter(phase),
                machine::Effect::Forget(worker) => drop(self.lives.remove(&worker)),
                machine::Effect::Unit(worker, effect) => self.unit(worker, effect),
            }
        }
        let mut state = lock(&self.pool.shared.state);
        state.counts = self.machine.counts();
        state.crashes = self.machine.crashes();
        state.last_crash = self.machine.last_crash();
        drop(state);
        self.answer_waiting();
    }

    fn unit(&mut self, worker: WorkerId, effect: unit::Effect) {
        let order = match effect {
            unit::Effect::Spawn(incarnation) => return self.spawn(worker, incarnation),
            unit::Effect::Down { incarnation, cause, was_ready } => {
                return self.down(worker, incarnation, cause, was_ready);
            }
            unit::Effect::Unkillable(_) => return,
            unit::Effect::SendDrain(incarnation) => {
                self.shut(worker, incarnation, true);
                Order::Drain
            }
            unit::Effect::CloseLink(_) => Order::CloseLink,
            unit::Effect::Terminate(_) => Order::Terminate,
            unit::Effect::Kill(incarnation) => {
                self.shut(worker, incarnation, true);
                Order::Kill
            }
        };
        if let Some(live) = self.lives.get(&worker) {
            // A unit gets a handful of orders in its life, and the channel holds them all.
            let _ = live.orders.try_send(order);
        }
    }

    fn spawn(&mut self, worker: WorkerId, incarnation: Incarnation) {
        let (orders, inbox) = mpsc::channel(16);
        let tail = Tail::default();
        let task =
            Task { plan: self.plan.clone(), worker, incarnation, tail: tail.clone(), orders: inbox, deserted: false };
        let task = tokio::spawn(task.run()).abort_handle();
        self.lives.insert(worker, Live { incarnation, pid: None, orders, tail, link: None, task });
    }

    fn down(&mut self, worker: WorkerId, incarnation: Incarnation, cause: ExitCause, was_ready: bool) {
        self.shut(worker, incarnation, false);
        let Some(live) = self.lives.get_mut(&worker) else { return };
        let stderr = live.tail.text();
        if let Some(link) = live.link.take() {
            link.settle(&cause, &stderr, &*self.pool);
        }
        lock(&self.pool.shared.backlog).last_stderr = stderr.clone();
        if !was_ready && cause != ExitCause::Requested {
            let known = matches!(cause, ExitCause::NotStarted { .. } | ExitCause::Protocol { .. });
            if !known {
                self.start_failed(StartError::Died { cause, stderr });
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        let mut backlog = lock(&self.pool.shared.backlog);
        backlog.phase = phase;
        let refuses = backlog.refusal(&self.pool.shared.name, false).is_some();
        self.pool.shared.refusing.store(refuses, Ordering::SeqCst);
        let mut refused = Vec::new();
        if let Some(error) = backlog.refusal(&self.pool.shared.name, true) {
            refused.extend(backlog.queue.drain(..).map(|call| (call, error.clone())));
            refused.extend(backlog.delayed.drain().map(|Reverse(delayed)| (delayed.call, error.clone())));
            self.pool.shared.queued.store(0, Ordering::SeqCst);
        }
        drop(backlog);
        self.pool.shared.room.notify_waiters();
        for (call, error) in refused {
            if let Some(waker) = call.resolve(Err(error)) {
                waker.wake();
            }
        }
    }

    fn answer_waiting(&mut self) {
        let answer = match self.machine.phase() {
            Phase::GaveUp(cause) => {
                let stderr = lock(&self.pool.shared.backlog).last_stderr.clone();
                let died = StartError::Died { cause: cause.clone(), stderr };
                Err(self.last_failure.clone().unwrap_or(died))
            }
            Phase::Closing | Phase::Closed => Err(StartError::ShuttingDown),
            _ if self.machine.settled() => Ok(()),
            _ => return,
        };
        for waiting in self.waiting.drain(..) {
            drop(waiting.answer.send(answer.clone()));
        }
    }

    fn next_due(&self) -> Option<Time> {
        let backlog = lock(&self.pool.shared.backlog);
        let waiting = Time::earliest(self.shutdown.flatten(), backlog.earliest);
        Time::earliest(backlog.delayed.peek().map(|Reverse(delayed)| delayed.due), waiting)
    }

    /// Queues calls whose delay is over, and ends those that timed out in the queue.
    fn tend_backlog(&mut self) {
        let now = clock::now();
        let mut again = Vec::new();
        let mut expired = Vec::new();
        if self.pool.shared.killed.load(Ordering::SeqCst) {
            self.input(Input::Kill);
        }
        let mut backlog = lock(&self.pool.shared.backlog);
        let demanded = std::mem::take(&mut backlog.demanded);
        while backlog.delayed.peek().is_some_and(|Reverse(delayed)| delayed.due <= now) {
            again.extend(backlog.delayed.pop().map(|Reverse(delayed)| delayed.call));
        }
        if backlog.earliest.is_some_and(|earliest| earliest <= now) {
            let is_due = |call: &Arc<Call>| call.until().is_some_and(|until| until <= now);
            let (due, rest) = backlog.queue.drain(..).partition::<VecDeque<_>, _>(is_due);
            backlog.earliest = rest.iter().filter_map(|call| call.until()).min();
            backlog.queue = rest;
            expired = due.into();
            self.pool.shared.queued.store(backlog.queue.len(), Ordering::SeqCst);
        }
        let is_served = backlog.queue.is_empty() && backlog.delayed.is_empty() && again.is_empty();
        // With the queue locked, no call is on its way between it and a link: a link counts a call until the queue has it.
        let is_served = is_served && self.shutdown.is_some() && self.pool.load() == 0;
        drop(backlog);
        if demanded {
            self.input(Input::Demand);
        }
        if let Some(deadline) = self.shutdown
            && (is_served || deadline.is_some_and(|at| at <= now) || *self.machine.phase() != Phase::Serving)
        {
            self.shutdown = None;
            self.input(Input::Shutdown { deadline });
        }
        for call in expired {
            self.pool.shared.room.notify_one();
            let (_, tries) = call.failed(now, Failure::TimedOut);
            let limit = call.terms.timeout.unwrap_or_default();
            debug_assert_eq!(call.terms.timeout_from, TimeoutFrom::Query);
            if let Some(waker) = call.resolve(Err(QueryError::TimedOut { limit, worker: None, tries })) {
                waker.wake();
            }
        }
        for call in again {
            self.pool.enqueue(&call, true);
        }
        self.pool.dispatch();
    }
}

/// A runtime that shuts down drops the task; those who wait elsewhere still get their answers.
impl<S: Starter> Drop for TaskOf<S> {
    fn drop(&mut self) {
        for live in std::mem::take(&mut self.lives).into_values() {
            live.task.abort();
            if let Some(link) = live.link {
                link.settle(&ExitCause::Requested, "", &*self.pool);
            }
        }
    }
}

/// Resolves what waits when the task ends, however it does.
struct Leftovers<Tx: LinkTx>(Weak<Pool<Tx>>);

impl<Tx: LinkTx> Drop for Leftovers<Tx> {
    fn drop(&mut self) {
        let Some(pool) = self.0.upgrade() else { return };
        let mut backlog = pool.backlog();
        backlog.phase = Phase::Closed;
        let waiting: Vec<_> = backlog.queue.drain(..).collect();
        let delayed: Vec<_> = backlog.delayed.drain().map(|Reverse(delayed)| delayed.call).collect();
        drop(backlog);
        pool.shared.queued.store(0, Ordering::SeqCst);
        pool.shared.room.notify_waiters();
        for call in waiting.into_iter().chain(delayed) {
            let error = QueryError::ShuttingDown { pool: pool.shared.name.clone() };
            if let Some(waker) = call.resolve(Err(error)) {
                waker.wake();
            }
        }
    }
}
