//! The pool: a queue of calls, the links that serve them, and the task that keeps the workers alive.
//!
//! A query goes straight to a link that has room ([`Pool::submit`]); where none has, it waits in the [`Backlog`] until a link does
//! ([`Pool::dispatch`]). The [`PoolTask`] feeds the [machine](crate::machine::pool) and carries out what it decides.

mod backlog;
mod health;
mod info;
mod replace;
mod settings;
mod size;
mod task;
mod yard;

use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use super::call::Call;
use super::clock;
use super::flow::Flow;
use super::link::{Admission, Exchange, LinkShared, Submit, Yard};
use super::meter::Meter;
use super::start::Starter;
use super::worker::{Plan, TxOf};
use crate::face::error::{QueryError, QueryErrorKind, StartError};
use crate::machine::dispatch;
use crate::machine::event::Event;
use crate::machine::id::{Incarnation, WorkerId};
use crate::machine::payload::Payload;
use crate::machine::pool::{self as machine, Counts, Input, Phase};
use crate::machine::scaling::Scaling;
use crate::machine::time::Time;
use crate::transport::LinkTx;
use backlog::Backlog;
pub use health::{Health, WorkerHealth};
pub use info::{PoolInfo, WorkerInfo};
pub use settings::SlowQuery;
pub(crate) use settings::{Follower, Hooks, Policies, Settings};
use task::PoolTask;

/// News and commands that wait for the task of a pool.
const MAILBOX: usize = 256;

/// How long the end of a pool waits for its workers' last lines to be written.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Events that a slow subscriber may be behind before it loses some.
const EVENTS: usize = 1024;

/// A pool without its workers' types: what faces hold.
pub(crate) trait AnyPool: Send + Sync {
    fn name(&self) -> &Arc<str>;
    /// Takes a call that nobody else has yet to a worker or into the queue; its caller sleeps then, until this waker is called. Or takes its
    /// answer out of a link at once and in this thread, where that pays.
    fn send(&self, now: Time, call: Arc<Call>, how: Sending, waker: &Waker) -> Sent;
    /// Takes a call to a worker or into the queue.
    fn submit(&self, now: Time, call: &Arc<Call>);
    /// Takes the first of these calls to a worker, as many as it has room for now, and says how many that were.
    fn submit_many(&self, now: Time, calls: &mut dyn Iterator<Item = &Arc<Call>>) -> usize;
    /// Takes a call to this worker.
    fn submit_to(&self, worker: WorkerId, call: &Arc<Call>) -> Result<(), QueryError>;
    /// The caller of this call has gone.
    fn abandon(&self, call: &Arc<Call>);
    /// The streams that workers have.
    fn streams(&self) -> Vec<Arc<Flow>>;
    /// The runtime of its tasks.
    fn runtime(&self) -> &tokio::runtime::Handle;
    fn workers(&self) -> Vec<WorkerInfo>;
    /// Says the load of a raw worker.
    fn set_load(&self, worker: WorkerId, incarnation: Incarnation, load: u32);
    fn info(&self) -> PoolInfo;
    fn health(&self) -> Health;
    fn events(&self) -> broadcast::Receiver<Event>;
    /// The fewest and the most workers that it may have; none where nothing but the limit of all pools bounds them.
    fn bounds(&self) -> Option<(u32, u32)>;
    /// Where commands go. A handle that cannot wait leaves out what does not matter.
    fn commands(&self) -> &mpsc::Sender<Command>;
    /// Kills all workers, for good. Never waits.
    fn kill(&self);
}

/// How a call is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    /// Only if the queue has room for it, where no worker has.
    pub(crate) if_room: bool,
    /// It comes again after [`Sent::Yield`].
    pub(crate) gave_way: bool,
}

/// What became of a call that was sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It has its output.
    Answered(Arc<Call>, Payload),
    /// It may have its outcome already, whatever it is: its caller looks.
    Look(Arc<Call>),
    /// Its caller sleeps.
    Asleep(Arc<Call>),
    /// It was not sent. Its caller lets the other tasks of this thread run, and comes again.
    Yield(Arc<Call>),
    /// It was not sent: neither a worker nor the queue has room.
    Full,
}

/// What a handle asks of the task.
pub(crate) enum Command {
    /// For the machine.
    Input(Input),
    /// The same, and the answer once nothing is under way any more.
    Settle(Input, oneshot::Sender<Result<(), StartError>>),
    /// The same, for a start: the first failure is the answer.
    Start(Input, oneshot::Sender<Result<(), StartError>>),
    /// Replace all workers that serve, one after the other, and the answer once that is done, or at the first failure.
    Recycle(oneshot::Sender<Result<(), StartError>>),
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
    bounds: Option<(u32, u32)>,
    /// Nobody looks at the load before a call comes.
    unwatched: AtomicBool,
    /// A worker may have answered as many calls as wear one out.
    worn: AtomicBool,
    meter: Meter,
    /// When it was started.
    born: Time,
    /// Its number among the pools of this program.
    number: u64,
    dropped_frames: AtomicU64,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct State {
    counts: Counts,
    /// How many workers there should be.
    size: u32,
    crashes: u64,
    last_crash: Option<Time>,
}

/// A pool over links of one type.
pub(crate) struct Pool<Tx> {
    shared: Shared,
    /// The links that serve the queue.
    links: ArcSwap<Vec<Arc<LinkShared<Tx>>>>,
    /// Links of workers that finish what they have.
    leaving: Mutex<Vec<Arc<LinkShared<Tx>>>>,
}

/// Where a call went.
enum Placed<'a, Tx> {
    /// To this link, and on to its worker.
    Sent(&'a Arc<LinkShared<Tx>>),
    /// To a link, from where it goes to the worker with others.
    Aboard,
    /// It was over.
    Over,
    /// No link has room.
    Nowhere,
}

/// How a call comes into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// Behind all others.
    Last,
    /// The same, if there is room.
    IfRoom,
    /// In front of all others: it was there before.
    Again,
}

/// What the queue did with a call.
enum Queued {
    /// It waits there.
    Waits,
    /// It is over: nobody will ever serve it.
    Over,
    /// There is no room.
    Full,
}

/// Starts the task of a pool on the current runtime.
pub(crate) fn spawn<S: Starter>(starter: S, settings: Settings) -> Arc<Pool<TxOf<S>>> {
    let (news, inbox) = mpsc::channel(MAILBOX);
    let (commands, orders) = mpsc::channel(MAILBOX);
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let times = starter.times();
    let pool = Arc::new(Pool {
        shared: Shared {
            name: settings.name.clone(),
            hooks: settings.hooks,
            backlog: Mutex::new(Backlog::new()),
            queued: AtomicUsize::new(0),
            queue_limit: settings.queue,
            commands,
            refusing: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            events: broadcast::channel(EVENTS).0,
            wake: Notify::new(),
            state: Mutex::new(State::default()),
            bounds: settings.policies.scaling.as_ref().map(Scaling::bounds),
            unwatched: AtomicBool::new(false),
            worn: AtomicBool::new(false),
            meter: Meter::new(),
            born: clock::now(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            dropped_frames: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
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
    let Policies { budget, scaling, recycling } = settings.policies;
    let machine = machine::Pool::new(times, budget, seed());
    let task = PoolTask::new(machine, scaling, recycling, pool.clone(), plan);
    tokio::spawn(task.run(inbox, orders));
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

/// Where the jitter of restarts and ages comes from: managers that start together should not restart together.
pub(crate) fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl<Tx: LinkTx> Pool<Tx> {
    /// The link on which a further call costs least, and what it is wanted for. `waited` says that the call has been in the queue.
    fn best(links: &[Arc<LinkShared<Tx>>], waited: bool) -> Option<(&Arc<LinkShared<Tx>>, Admission)> {
        match links {
            [only] => only.cost(waited).map(|_| (only, Admission::IfRoom)),
            _ => {
                let ((_, load), place) = dispatch::best(links.iter().map(|link| link.cost(waited)))?;
                Some((&links[place], if load == 0 { Admission::IfIdle } else { Admission::IfRoom }))
            }
        }
    }

    /// Puts the call on one of these links, if one has room. Where one takes it, `sleeper` is taken too.
    fn place<'a>(
        links: &'a [Arc<LinkShared<Tx>>],
        now: Time,
        call: &Arc<Call>,
        waited: bool,
        sleeper: &mut Option<Waker>,
    ) -> Placed<'a, Tx> {
        // Each caller that was faster takes one idle worker out of the choice.
        for _ in 0..links.len() {
            let Some((best, admission)) = Self::best(links, waited) else { return Placed::Nowhere };
            match best.submit(now, call, admission, sleeper) {
                Submit::Sent => return Placed::Sent(best),
                Submit::Taken => return Placed::Aboard,
                Submit::Over => return Placed::Over,
                Submit::Busy => {}
                Submit::Full | Submit::Closed => break,
            }
        }
        // What the link said of its room was out of date, or its buffer is full. Others may have some.
        for link in links {
            match link.submit(now, call, Admission::IfRoom, sleeper) {
                Submit::Sent => return Placed::Sent(link),
                Submit::Taken => return Placed::Aboard,
                Submit::Over => return Placed::Over,
                Submit::Busy | Submit::Full | Submit::Closed => {}
            }
        }
        Placed::Nowhere
    }

    /// Whether a new call may go to a link, ahead of nobody.
    fn is_open(&self) -> bool {
        !self.shared.refusing.load(Ordering::Relaxed) && self.shared.queued.load(Ordering::SeqCst) == 0
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        lock(&self.shared.backlog)
    }

    /// Puts a call into the queue, or resolves it where nobody will ever serve it.
    fn enqueue(&self, call: &Arc<Call>, entry: Entry) -> Queued {
        let again = entry == Entry::Again;
        let mut backlog = self.backlog();
        if let Some(error) = backlog.refusal(&self.shared.name, again) {
            drop(backlog);
            self.shared.fail(call, error);
            return Queued::Over;
        }
        if entry == Entry::IfRoom && backlog.line.len() >= self.shared.queue_limit {
            return Queued::Full;
        }
        // Whoever drops a call notes that first, and then looks for it here.
        if call.is_over() {
            return Queued::Over;
        }
        if again {
            backlog.line.push_front(call.clone());
        } else {
            backlog.line.push_back(call.clone());
        }
        let due = backlog.line.next_due();
        let sooner = due.is_some_and(|due| backlog.armed.is_none_or(|armed| due < armed));
        if sooner {
            backlog.armed = due;
        }
        let demand = backlog.phase == Phase::Idle && !std::mem::replace(&mut backlog.demanded, true);
        self.shared.leave(backlog);
        if demand || sooner {
            self.shared.wake.notify_one();
        }
        Queued::Waits
    }

    /// Puts a new call into the queue.
    fn wait_in_line(&self, call: &Arc<Call>, entry: Entry) -> Queued {
        let queued = self.enqueue(call, entry);
        if let Queued::Waits = queued {
            // A link may have got room, or come, between the look at it and the entry into the queue. Pairs with the fence in `dispatch`.
            fence(Ordering::SeqCst);
            if Self::best(&self.links.load(), true).is_some() {
                self.dispatch();
            }
        }
        queued
    }

    /// Takes a call that nobody waits for any more out of the queue: the next one has its place.
    fn take_out(&self, call: &Arc<Call>) {
        let mut backlog = self.backlog();
        if backlog.line.leave(call).is_none() {
            backlog.delayed.retain(|Reverse(delayed)| !Arc::ptr_eq(&delayed.call, call));
        }
        self.shared.leave(backlog);
        self.idle();
    }

    /// The link of this incarnation, if it is not gone.
    fn link(&self, worker: WorkerId, incarnation: Incarnation) -> Option<Arc<LinkShared<Tx>>> {
        let links = self.links.load();
        let is_it = |link: &&Arc<LinkShared<Tx>>| link.worker == worker && link.incarnation == incarnation;
        links.iter().find(is_it).cloned().or_else(|| lock(&self.leaving).iter().find(is_it).cloned())
    }

    /// Calls that workers have.
    fn load(&self) -> usize {
        let load = |links: &[Arc<LinkShared<Tx>>]| links.iter().map(|link| link.load() as usize).sum::<usize>();
        // In this order, so that a link that moves from here to there is not missed.
        load(&self.links.load()) + load(&lock(&self.leaving))
    }
}

impl<Tx: LinkTx> AnyPool for Pool<Tx> {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    fn send(&self, now: Time, mut call: Arc<Call>, how: Sending, waker: &Waker) -> Sent {
        let links = self.links.load();
        if how.gave_way {
            links.iter().for_each(|link| link.came_back());
        }
        let best = if self.is_open() { Self::best(&links, false) } else { None };
        let mut placed = Placed::Nowhere;
        let mut sleeper = None;
        let mut gathers = false;
        if let Some((best, _)) = best {
            call = match best.exchange(now, call, self) {
                Exchange::No(call) => call,
                Exchange::Gather(call) => {
                    gathers = true;
                    call
                }
                Exchange::Yield(call) => return Sent::Yield(call),
                Exchange::Answered(call, output) => {
                    self.shared.stir();
                    return Sent::Answered(call, output);
                }
                Exchange::Aboard(call) => {
                    self.shared.stir();
                    return Sent::Look(call);
                }
            };
            sleeper = Some(waker.clone());
            placed = Self::place(&links, now, &call, false, &mut sleeper);
        }
        let sent = match placed {
            Placed::Sent(link) if !gathers && link.assist(&call, self) => Sent::Look(call),
            Placed::Sent(_) | Placed::Aboard => Sent::Asleep(call),
            Placed::Over => Sent::Look(call),
            Placed::Nowhere => {
                let _ = call.sleep(sleeper.unwrap_or_else(|| waker.clone()));
                match self.wait_in_line(&call, if how.if_room { Entry::IfRoom } else { Entry::Last }) {
                    Queued::Waits => Sent::Asleep(call),
                    Queued::Over => Sent::Look(call),
                    Queued::Full => Sent::Full,
                }
            }
        };
        self.shared.stir();
        sent
    }

    fn submit(&self, now: Time, call: &Arc<Call>) {
        let links = self.links.load();
        if !self.is_open() || matches!(Self::place(&links, now, call, false, &mut None), Placed::Nowhere) {
            self.wait_in_line(call, Entry::Last);
        }
        self.shared.stir();
    }

    fn submit_many(&self, now: Time, calls: &mut dyn Iterator<Item = &Arc<Call>>) -> usize {
        let links = self.links.load();
        let best = if self.is_open() { Self::best(&links, false) } else { None };
        let count = best.map_or(0, |(best, _)| best.submit_many(now, calls));
        self.shared.stir();
        count
    }

    fn submit_to(&self, worker: WorkerId, call: &Arc<Call>) -> Result<(), QueryError> {
        let links = self.links.load();
        let leaving = lock(&self.leaving);
        let link = links.iter().chain(leaving.iter()).find(|link| link.worker == worker).cloned();
        drop(leaving);
        if self.shared.refusing.load(Ordering::Relaxed)
            && let Some(error) = self.backlog().refusal(&self.shared.name, false)
        {
            self.shared.meter.failed(error.kind());
            return Err(error);
        }
        let gone = || {
            self.shared.meter.failed(QueryErrorKind::NoWorkers);
            QueryError::NoWorkers { pool: self.shared.name.clone() }
        };
        let link = link.ok_or_else(gone)?;
        let submitted = link.submit(call.made(), call, Admission::Always, &mut None);
        self.shared.stir();
        match submitted {
            Submit::Sent => {
                link.assist(call, self);
                Ok(())
            }
            Submit::Taken | Submit::Over => Ok(()),
            Submit::Busy | Submit::Full | Submit::Closed => Err(gone()),
        }
    }

    fn abandon(&self, call: &Arc<Call>) {
        self.shared.meter.cancelled();
        let Some((worker, incarnation, id)) = call.abandon() else { return self.take_out(call) };
        if let Some(link) = self.link(worker, incarnation) {
            link.cancel(id);
        }
    }

    fn streams(&self) -> Vec<Arc<Flow>> {
        // In this order, so that a link that moves from here to there is not missed.
        let serving = self.links.load_full();
        let leaving = lock(&self.leaving).clone();
        let is_new = |link: &&Arc<LinkShared<Tx>>| !serving.iter().any(|known| Arc::ptr_eq(known, link));
        serving.iter().chain(leaving.iter().filter(is_new)).flat_map(|link| link.streams()).collect()
    }

    fn runtime(&self) -> &tokio::runtime::Handle {
        &self.shared.runtime
    }

    fn set_load(&self, worker: WorkerId, incarnation: Incarnation, load: u32) {
        if let Some(link) = self.link(worker, incarnation) {
            link.set_load(load);
        }
        self.shared.stir();
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        let mut workers: Vec<_> = self.links.load().iter().map(|link| WorkerInfo::of(link)).collect();
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
            answered: self.shared.meter.answers(),
            dropped_frames: self.shared.dropped_frames.load(Ordering::Relaxed),
        }
    }

    fn health(&self) -> Health {
        self.examine()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    fn bounds(&self) -> Option<(u32, u32)> {
        self.shared.bounds
    }

    fn commands(&self) -> &mpsc::Sender<Command> {
        &self.shared.commands
    }

    fn kill(&self) {
        self.shared.killed.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Lets go of the backlog, whose line may have changed.
    fn leave(&self, backlog: MutexGuard<'_, Backlog>) {
        self.queued.store(backlog.line.len(), Ordering::SeqCst);
    }

    /// Ends a call that no worker has with this error.
    fn fail(&self, call: &Call, error: QueryError) {
        self.meter.failed(error.kind());
        call.fail(error);
    }

    /// A call has come: where nobody looks at the load, somebody does from now on. After the call counts, so that whoever looks finds it.
    fn stir(&self) {
        // It hardly ever changes, so most callers only read it.
        if self.unwatched.load(Ordering::Relaxed) && self.unwatched.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

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
