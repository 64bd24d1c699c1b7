//! Which keys have streams, which wait for one, and which streams end so that those begin. No I/O and no clock.
//!
//! A key is known from its first line until its task leaves: as long as that is there, its lines go to it, in order, through one inbox. A stream of it needs a
//! place, of which there are so many. Where somebody waits for a place, or for room in a worker, a stream ends that is *idle*: open, and all that came for it is
//! on it. The one that has been idle longest goes first, and no more are ended than are waited for. Its key stays, and what comes for it meanwhile waits for the
//! end: then the key wants a place again, like any other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

/// What the task of a key is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order<M> {
    /// A message for its stream.
    Take(M),
    /// Its stream is to end, for others wait. Nothing was waiting in the inbox when this was said.
    End,
}

/// What the task of a key reads. It is over once no message follows.
pub(super) type Inbox<M> = mpsc::UnboundedReceiver<Order<M>>;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Keys<M> {
    entries: HashMap<Arc<str>, Entry<M>>,
    /// Those that are idle, by when they became so.
    idle: BTreeMap<u64, Arc<str>>,
    next_idle: u64,
    places: usize,
    /// Those that wait for a place.
    queue: VecDeque<oneshot::Sender<()>>,
    /// Those that have a place, and find no room in a worker.
    crowded: usize,
    /// Streams that were told to end and have not.
    ending: usize,
    /// No message follows for any.
    is_closed: bool,
}

#[derive(Debug)]
struct Entry<M> {
    /// None once no message follows.
    orders: Option<mpsc::UnboundedSender<Order<M>>>,
    /// Messages that came and are not on a stream.
    waiting: usize,
    stream: Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    None,
    Open,
    /// Open, and nothing waits for it. Its number in `idle`.
    Idle(u64),
    /// It was told to end.
    Ending,
}

impl<M> Keys<M> {
    /// So many streams are open at the same time at most.
    pub(super) fn new(places: usize) -> Self {
        Keys {
            entries: HashMap::new(),
            idle: BTreeMap::new(),
            next_idle: 0,
            places,
            queue: VecDeque::new(),
            crowded: 0,
            ending: 0,
            is_closed: false,
        }
    }

    /// Brings a message to its key. Where that is new, its task is to be started with this. Once they are closed, messages are dropped.
    pub(super) fn deliver(&mut self, key: &str, message: M) -> Option<(Arc<str>, Inbox<M>)> {
        if self.is_closed {
            return None;
        }
        if let Some(entry) = self.entries.get_mut(key) {
            if let Stream::Idle(number) = entry.stream {
                self.idle.remove(&number);
                entry.stream = Stream::Open;
            }
            entry.waiting += 1;
            if let Some(orders) = &entry.orders {
                // Where its task has failed the run is about to end.
                let _ = orders.send(Order::Take(message));
            }
            return None;
        }
        let (orders, inbox) = mpsc::unbounded_channel();
        // The receiver is here.
        let _ = orders.send(Order::Take(message));
        let key: Arc<str> = key.into();
        self.entries.insert(key.clone(), Entry { orders: Some(orders), waiting: 1, stream: Stream::None });
        Some((key, inbox))
    }

    /// A message of this key is on its stream, or was given up.
    pub(super) fn took(&mut self, key: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.waiting -= 1;
            self.rest(key);
        }
    }

    /// Takes a place. Where there is none, one is free once this is ready, and then it is taken.
    pub(super) fn place(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.places > 0 {
            self.places -= 1;
            return None;
        }
        let (given, place) = oneshot::channel();
        self.queue.push_back(given);
        self.make_room();
        Some(place)
    }

    /// Somebody who has a place finds no room in a worker.
    pub(super) fn find_no_room(&mut self) {
        self.crowded += 1;
        self.make_room();
    }

    /// They found some, or need none any more.
    pub(super) fn need_no_room(&mut self) {
        self.crowded -= 1;
    }

    /// The stream of this key has begun.
    pub(super) fn opened(&mut self, key: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.stream = Stream::Open;
            self.rest(key);
        }
    }

    /// The stream of this key is over, or has not begun: its place is free.
    pub(super) fn ended(&mut self, key: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            match std::mem::replace(&mut entry.stream, Stream::None) {
                Stream::Ending => self.ending -= 1,
                Stream::Idle(number) => {
                    self.idle.remove(&number);
                }
                Stream::None | Stream::Open => {}
            }
        }
        while let Some(next) = self.queue.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        self.places += 1;
    }

    /// No stream could be opened for a message of this key, which is given up.
    pub(super) fn fail(&mut self, key: &str) {
        self.took(key);
        self.ended(key);
    }

    /// Whether nothing waits for this key, which has no stream: then it is forgotten, and its task ends.
    pub(super) fn leave(&mut self, key: &str) -> bool {
        let leaves = self.entries.get(key).is_none_or(|entry| entry.waiting == 0);
        if leaves {
            self.entries.remove(key);
        }
        leaves
    }

    /// No message follows for any key: streams end as soon as all is on them.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        for entry in self.entries.values_mut() {
            entry.orders = None;
        }
    }

    /// Sees whether a stream has become idle.
    fn rest(&mut self, key: &str) {
        let Some((key, entry)) = self.entries.get_key_value(key) else { return };
        if entry.stream != Stream::Open || entry.waiting > 0 {
            return;
        }
        let (key, number) = (key.clone(), self.next_idle);
        self.next_idle += 1;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.stream = Stream::Idle(number);
        }
        self.idle.insert(number, key);
        self.make_room();
    }

    /// Ends as many idle streams as are waited for.
    fn make_room(&mut self) {
        while self.queue.len() + self.crowded > self.ending
            && let Some((_, key)) = self.idle.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.stream = Stream::Ending;
                self.ending += 1;
                if let Some(orders) = &entry.orders {
                    // Where its task has failed the run is about to end.
                    let _ = orders.send(Order::End);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brings a message to a key, and has it on an open stream.
    fn open(keys: &mut Keys<u32>, key: &str) -> Inbox<u32> {
        let (_, mut inbox) = keys.deliver(key, 0).unwrap();
        assert!(keys.place().is_none());
        keys.opened(key);
        assert_eq!(inbox.try_recv(), Ok(Order::Take(0)));
        keys.took(key);
        inbox
    }

    #[test]
    fn who_has_been_idle_longest_ends_and_no_other() {
        let mut keys = Keys::new(3);
        let mut inboxes = ["a", "b", "c"].map(|key| open(&mut keys, key));
        // It has something to say since.
        assert!(keys.deliver("a", 1).is_none());
        assert_eq!(inboxes[0].try_recv(), Ok(Order::Take(1)));
        keys.took("a");
        let mut place = keys.place().unwrap();
        assert_eq!(inboxes[1].try_recv(), Ok(Order::End));
        assert!(inboxes[0].try_recv().is_err() && inboxes[2].try_recv().is_err());
        assert!(place.try_recv().is_err());
        keys.ended("b");
        assert!(place.try_recv().is_ok() && keys.leave("b"));
    }

    #[test]
    fn what_comes_for_one_that_ends_waits_for_its_end() {
        let mut keys = Keys::new(1);
        let mut inbox = open(&mut keys, "a");
        let mut place = keys.place().unwrap();
        assert_eq!(inbox.try_recv(), Ok(Order::End));
        // No second task, and no second end.
        assert!(keys.deliver("a", 1).is_none());
        keys.ended("a");
        assert!(place.try_recv().is_ok() && !keys.leave("a"));
        assert_eq!(inbox.try_recv(), Ok(Order::Take(1)));
        // Now this one waits, and the place comes back as soon as the other stream rests.
        let (_, _other) = keys.deliver("b", 0).unwrap();
        keys.opened("b");
        let mut again = keys.place().unwrap();
        assert!(again.try_recv().is_err());
        keys.took("b");
        keys.ended("b");
        assert!(again.try_recv().is_ok());
    }

    #[test]
    fn whoever_has_something_waiting_is_left_alone() {
        let mut keys = Keys::new(1);
        let mut inbox = open(&mut keys, "a");
        assert!(keys.deliver("a", 1).is_none());
        keys.find_no_room();
        assert_eq!(inbox.try_recv(), Ok(Order::Take(1)));
        assert!(inbox.try_recv().is_err());
        keys.took("a");
        assert_eq!(inbox.try_recv(), Ok(Order::End));
    }

    #[test]
    fn room_that_is_not_needed_any_more_ends_nobody() {
        let mut keys = Keys::new(2);
        let mut inbox = open(&mut keys, "a");
        assert!(keys.deliver("a", 1).is_none());
        keys.find_no_room();
        keys.need_no_room();
        keys.took("a");
        assert_eq!(inbox.try_recv(), Ok(Order::Take(1)));
        assert!(inbox.try_recv().is_err());
    }

    #[test]
    fn nobody_waits_for_a_place_any_more() {
        let mut keys = Keys::new(1);
        let _inbox = open(&mut keys, "a");
        drop(keys.place());
        keys.ended("a");
        assert!(keys.place().is_none());
    }

    #[test]
    fn after_the_close_inboxes_run_dry() {
        let mut keys = Keys::new(1);
        let mut inbox = open(&mut keys, "a");
        assert!(keys.deliver("a", 1).is_none());
        keys.close();
        assert!(keys.deliver("a", 2).is_none() && keys.deliver("b", 2).is_none());
        assert_eq!(inbox.try_recv(), Ok(Order::Take(1)));
        assert_eq!(inbox.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
