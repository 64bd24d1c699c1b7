//! How a thread that runs futures hears of what comes over its link.
//!
//! A link over a descriptor is one more thing that the runtime waits for. Over any other one the thread looks for itself, and spins there for as long as the link thinks
//! that worth while; before it sleeps it has another thread, the watcher, wait in its place. So in busy times nobody has to be woken to wake somebody else.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::desk::{Desk, Ended};
use super::error::ServeError;
use super::link::SHORT;
use crate::sys::inherited;

/// See the [module](self).
pub(super) struct Intake {
    desk: Arc<Desk>,
    ear: Ear,
}

enum Ear {
    Descriptor {
        fd: AsyncFd<OwnedFd>,
        /// It was readable and may not be any more: then nobody may receive, who would wait there.
        may_be_empty: bool,
    },
    Watcher {
        thread: Thread,
        watch: Arc<Watch>,
        is_watching: bool,
        /// Those who were ready to run have run.
        has_yielded: bool,
    },
}

/// What a watcher and the thread that it watches for share.
#[derive(Default)]
struct Watch {
    /// It is to wait.
    asked: AtomicBool,
    /// Something has come.
    came: Notify,
    over: AtomicBool,
}

impl Intake {
    /// For the runtime that this is called in.
    pub(super) fn new(desk: &Arc<Desk>) -> Result<Self, ServeError> {
        let ear = match desk.link.readable().and_then(|fd| inherited::watch(fd).ok()) {
            Some(fd) => Ear::Descriptor { fd, may_be_empty: false },
            None => {
                let watch = Arc::<Watch>::default();
                let (desk, shared) = (desk.clone(), watch.clone());
                let watcher = thread::Builder::new().name("pm-watcher".into()).stack_size(128 << 10);
                let watcher = watcher
                    .spawn(move || shared.wait(&desk))
                    .map_err(|source| ServeError::Resources { what: "the watcher's thread", source })?;
                Ear::Watcher { thread: watcher.thread().clone(), watch, is_watching: false, has_yielded: false }
            }
        };
        Ok(Intake { desk: desk.clone(), ear })
    }

    /// Waits until something has come, and takes it in. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<(), Ended> {
        match &mut self.ear {
            Ear::Descriptor { fd, may_be_empty } => loop {
                let mut ready = fd.readable().await.map_err(|_| Ended)?;
                let is_empty = *may_be_empty && !self.desk.link.wait(Some(Duration::ZERO)).map_err(|_| Ended)?;
                let is_emptied = is_empty || self.desk.take_in()? < SHORT;
                *may_be_empty = !is_emptied;
                if is_emptied {
                    // What comes from here on makes it readable again.
                    ready.clear_ready();
                }
                if !is_empty {
                    break;
                }
            },
            Ear::Watcher { thread, watch, is_watching, has_yielded } => {
                // First those run who are ready to: once, also where whoever waits here is called away again and again.
                if !std::mem::replace(has_yielded, true) {
                    tokio::task::yield_now().await;
                }
                *has_yielded = false;
                while *is_watching || !self.desk.link.wait(Some(Duration::ZERO)).map_err(|_| Ended)? {
                    if !*is_watching {
                        *is_watching = true;
                        watch.asked.store(true, Ordering::Release);
                        thread.unpark();
                    }
                    watch.came.notified().await;
                    *is_watching = false;
                }
                self.desk.take_in()?;
            }
        }
        Ok(())
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let Ear::Watcher { thread, watch, .. } = &self.ear {
            watch.over.store(true, Ordering::Release);
            thread.unpark();
        }
    }
}

impl Watch {
    fn wait(&self, desk: &Desk) {
        while !self.over.load(Ordering::Acquire) {
            if !self.asked.swap(false, Ordering::Acquire) {
                thread::park();
                continue;
            }
            // An error is met again by whoever looks.
            let _ = desk.link.wait(None);
            self.came.notify_one();
        }
    }
}
