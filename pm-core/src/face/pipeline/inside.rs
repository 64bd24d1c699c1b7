//! The items that have begun and not ended. Those that begin after the shutdown has do not count: they get nowhere.

use std::sync::Arc;

use tokio::sync::watch;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Inside(watch::Sender<Count>);

#[derive(Default)]
struct Count {
    items: usize,
    is_closed: bool,
}

/// An item that counts, until this is dropped.
pub(super) struct Entered(Arc<Inside>);

impl Inside {
    /// None once this is closed.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Entered> {
        let mut has_entered = false;
        self.0.send_if_modified(|count| {
            has_entered = !count.is_closed;
            count.items += usize::from(has_entered);
            false
        });
        has_entered.then(|| Entered(self.clone()))
    }

    /// What begins from here on does not count.
    pub(super) fn close(&self) {
        self.0.send_modify(|count| count.is_closed = true);
    }

    /// Waits until none is left.
    pub(super) async fn emptied(&self) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|count| count.items == 0).await;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|count| {
            count.items -= 1;
            count.items == 0 && count.is_closed
        });
    }
}
