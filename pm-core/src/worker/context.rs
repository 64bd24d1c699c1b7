//! What a handler can ask and say while it runs.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};
use std::time::Duration;

use super::desk::Desk;
use crate::face::error::{HandlerError, HandlerErrorKind};
use crate::machine::frame::MAX_NOTICE;
use crate::sys::clock;

/// One call in the hands of a handler.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) desk: Arc<Desk>,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) cancel: Arc<CancelFlag>,
}

/// When the time of a call is over, as coarse as the field of the frame that said so: to some milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(u64);

impl Deadline {
    /// So long after now.
    pub(super) fn after(left: Duration) -> Self {
        Deadline(clock::coarse_nanos().saturating_add(left.as_nanos() as u64))
    }

    fn left(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(clock::nanos()))
    }
}

/// Whether a call was cancelled, and what is to be done then.
#[derive(Default)]
pub(crate) struct CancelFlag {
    cancelled: AtomicBool,
    /// There is or was something in `hooks`.
    hooked: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

/// What is to be done when a call is cancelled.
pub(super) type Hook = Box<dyn FnOnce() + Send>;

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// The desk of the worker that this process is.
static PROCESS: OnceLock<Arc<Desk>> = OnceLock::new();

/// Sends a line to the manager: to its notice callback, its log, and the error of the call should this worker die. From any thread of
/// a worker. Cut at 64 KiB; without effect where this is no worker.
pub fn notice(text: impl AsRef<str>) {
    let text = text.as_ref();
    let mut end = text.len().min(MAX_NOTICE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if let Some(desk) = desk() {
        desk.notice(&text[..end]);
    }
}

/// Ready once the manager wants this worker to leave: it is released, replaced or shut down. From then on nothing new comes to it; it should take on nothing
/// new itself, for example accept no further connection, and end what it has. In a handler, or any thread of a worker; elsewhere never ready.
///
/// # Cancel safety
/// Nothing is lost.
pub fn draining() -> impl Future<Output = ()> + Send + 'static {
    let leaving = desk().map(|desk| desk.leaving.subscribe());
    async move {
        if let Some(mut leaving) = leaving
            && leaving.wait_for(|is_leaving| *is_leaving).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// Whether [`draining`] is ready.
pub fn is_draining() -> bool {
    desk().is_some_and(|desk| *desk.leaving.borrow())
}

/// The desk that this thread works at, or this process does.
fn desk() -> Option<Arc<Desk>> {
    let current = CURRENT.with_borrow(|current| current.as_ref().map(|current| current.desk.clone()));
    current.or_else(|| PROCESS.get().cloned())
}

/// Whether the caller of the call that this thread runs has gone, or its time is over. A blocking handler that looks at it now and then can
/// stop early; one that does not is killed after the cancel grace.
pub fn cancelled() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|current| current.cancel.is_cancelled()))
}

/// The time that the call that this thread runs has left; none where it has no limit.
pub fn time_left() -> Option<Duration> {
    let deadline = CURRENT.with_borrow(|current| current.as_ref()?.deadline);
    deadline.map(Deadline::left)
}

/// Runs `hook` on another thread when the call that this thread runs is cancelled; at once, where it is already. For handlers that wait for
/// something that can be ended from outside, such as a child process. Forgotten when the call ends.
pub fn on_cancel(hook: impl FnOnce() + Send + 'static) {
    let cancel = CURRENT.with_borrow(|current| current.as_ref().map(|current| current.cancel.clone()));
    if let Some(cancel) = cancel {
        cancel.add(Box::new(hook));
    }
}

impl CancelFlag {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether it can serve another call: nothing of the last one is left in it.
    pub(super) fn is_fresh(&self) -> bool {
        // A hook is added by the call itself, in its own thread.
        !self.is_cancelled() && !self.hooked.load(Ordering::Relaxed)
    }

    /// Gives the hooks, to be run where no lock is held.
    pub(crate) fn cancel(&self) -> Vec<Hook> {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        self.cancelled.store(true, Ordering::Relaxed);
        std::mem::take(&mut hooks)
    }

    pub(crate) fn add(&self, hook: Hook) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            drop(hooks);
            hook();
        } else {
            self.hooked.store(true, Ordering::Relaxed);
            hooks.push(hook);
        }
    }
}

/// A thread that runs one call after another.
pub(super) struct Seat {
    cancel: Arc<CancelFlag>,
}

impl Seat {
    /// Makes this thread one that runs calls of this desk.
    pub(super) fn take(desk: Arc<Desk>) -> Self {
        note_panics();
        let cancel = Arc::<CancelFlag>::default();
        CURRENT.set(Some(Current { desk, deadline: None, cancel: cancel.clone() }));
        Seat { cancel }
    }

    /// The flag of the next call.
    pub(super) fn cancel(&mut self) -> &Arc<CancelFlag> {
        if !self.cancel.is_fresh() {
            // Here, where no lock is held: a hook may do anything when it is dropped.
            self.cancel.cancel();
            self.cancel = Arc::default();
            CURRENT.with_borrow_mut(|current| {
                if let Some(current) = current {
                    current.cancel = self.cancel.clone();
                }
            });
        }
        &self.cancel
    }

    /// Runs a handler. A panic becomes an error with its message and location.
    pub(super) fn run<T>(
        &self,
        deadline: Option<Deadline>,
        handler: impl FnOnce() -> Result<T, HandlerError>,
    ) -> Result<T, HandlerError> {
        CURRENT.with_borrow_mut(|current| {
            if let Some(current) = current {
                current.deadline = deadline;
            }
        });
        caught(handler)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// This process is a worker with this desk.
pub(super) fn set_process(desk: &Arc<Desk>) {
    let _ = PROCESS.set(desk.clone());
}

/// Runs a handler as the current call of this thread. A panic becomes an error with its message and location.
pub(super) fn run<T>(current: Current, handler: impl FnOnce() -> Result<T, HandlerError>) -> Result<T, HandlerError> {
    note_panics();
    let before = CURRENT.replace(Some(current));
    let result = caught(handler);
    CURRENT.replace(before);
    result
}

fn caught<T>(handler: impl FnOnce() -> Result<T, HandlerError>) -> Result<T, HandlerError> {
    catch_unwind(AssertUnwindSafe(handler)).unwrap_or_else(|_| Err(panic_error()))
}

/// The error of the panic that this thread caught last.
pub(super) fn panic_error() -> HandlerError {
    let (message, trace) = PANIC.take().unwrap_or_default();
    HandlerError { kind: HandlerErrorKind::Panic, type_name: "panic".to_string(), message, trace, tries: 0 }
}

/// The hook still prints as it did; it also remembers message and place for the caller.
fn note_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let message = info.payload_as_str().unwrap_or("a panic without text").to_string();
            let place = info.location().map(|place| format!("at {place}")).unwrap_or_default();
            PANIC.set(Some((message, place)));
            print(info);
        }));
    });
}
