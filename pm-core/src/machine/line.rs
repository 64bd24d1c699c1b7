//! A line: whoever came first is served first, who has waited long enough goes, and anybody may leave from the middle.
//!
//! Each of these takes constant time on average, however long the line is; only the times are sorted, by a heap. Whoever stands in it knows the seat, so nobody has to look for anybody; a
//! seat that was left stays empty until so many are that the others close up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::time::Time;

/// So many seats, or times, may be out of date beyond those that are not.
const SLACK: usize = 64;

/// Seats that an empty line keeps the memory of.
const KEEP: usize = 4096;

/// What stands in a line.
pub trait Waits {
    /// The seat that [`sit`](Self::sit) gave; none outside of a line.
    fn seat(&self) -> Option<i64>;
    /// Takes a seat, or leaves the line.
    fn sit(&self, seat: Option<i64>);
    /// Until when it waits. It is asked for once, when it comes.
    fn until(&self) -> Option<Time>;
}

/// See the [module](self).
///
/// ```
/// use std::cell::Cell;
/// use pm_core::machine::line::{Line, Waits};
/// use pm_core::machine::time::Time;
///
/// #[derive(Default)]
/// struct Guest(Cell<Option<i64>>);
///
/// impl Waits for &Guest {
///     fn seat(&self) -> Option<i64> {
///         self.0.get()
///     }
///     fn sit(&self, seat: Option<i64>) {
///         self.0.set(seat);
///     }
///     fn until(&self) -> Option<Time> {
///         None
///     }
/// }
///
/// let [first, second, third] = [(); 3].map(|()| Guest::default());
/// let mut line = Line::default();
/// line.push_back(&second);
/// line.push_back(&third);
/// line.push_front(&first);
/// assert!(line.leave(&&second).is_some());
/// assert!(std::ptr::eq(line.pop_front().unwrap(), &first));
/// assert_eq!(line.len(), 1);
/// ```
#[derive(Debug)]
pub struct Line<T> {
    /// None where one has left.
    seats: VecDeque<Option<Seated<T>>>,
    /// The number of the first seat. The first seat is not empty.
    first: i64,
    len: usize,
    /// Who waits until when, with some who do no more.
    times: BinaryHeap<Reverse<(Time, i64)>>,
}

#[derive(Debug)]
struct Seated<T> {
    guest: T,
    until: Option<Time>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Line { seats: VecDeque::new(), first: 0, len: 0, times: BinaryHeap::new() }
    }
}

impl<T: Waits> Line<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Comes last.
    pub fn push_back(&mut self, guest: T) {
        let seat = self.first + self.seats.len() as i64;
        let seated = self.seat(guest, seat);
        self.seats.push_back(Some(seated));
        self.bound_times();
    }

    /// Comes first.
    pub fn push_front(&mut self, guest: T) {
        self.first -= 1;
        let seated = self.seat(guest, self.first);
        self.seats.push_front(Some(seated));
        self.bound_times();
    }

    /// Who is next.
    pub fn front(&self) -> Option<&T> {
        self.seats.front()?.as_ref().map(|seated| &seated.guest)
    }

    /// Takes who is next.
    pub fn pop_front(&mut self) -> Option<T> {
        let seat = self.front()?.seat()?;
        self.take(seat)
    }

    /// One leaves, from wherever it stands. None where it stands in no line.
    pub fn leave(&mut self, guest: &T) -> Option<T> {
        self.take(guest.seat()?)
    }

    /// When the next one will have waited long enough, or earlier.
    pub fn next_due(&self) -> Option<Time> {
        self.times.peek().map(|Reverse((until, _))| *until)
    }

    /// Takes one that has waited long enough by now.
    pub fn pop_due(&mut self, now: Time) -> Option<T> {
        while let Some(&Reverse((until, seat))) = self.times.peek()
            && until <= now
        {
            self.times.pop();
            // Another one may have the seat by now, which then has a time of its own.
            if self.at(seat).is_some_and(|seated| seated.until == Some(until)) {
                return self.take(seat);
            }
        }
        None
    }

    /// Takes all, those first who came first.
    pub fn take_all(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.pop_front()).collect()
    }

    fn at(&self, seat: i64) -> Option<&Seated<T>> {
        let index = usize::try_from(seat.checked_sub(self.first)?).ok()?;
        self.seats.get(index)?.as_ref()
    }

    fn seat(&mut self, guest: T, seat: i64) -> Seated<T> {
        self.len += 1;
        guest.sit(Some(seat));
        let until = guest.until();
        self.times.extend(until.map(|until| Reverse((until, seat))));
        Seated { guest, until }
    }

    fn take(&mut self, seat: i64) -> Option<T> {
        let index = usize::try_from(seat.checked_sub(self.first)?).ok()?;
        let guest = self.seats.get_mut(index)?.take()?.guest;
        guest.sit(None);
        self.len -= 1;
        while let Some(None) = self.seats.front() {
            self.seats.pop_front();
            self.first += 1;
        }
        if self.len == 0 {
            // A long line is no reason to keep its memory.
            self.times.clear();
            self.times.shrink_to(KEEP);
            self.seats.shrink_to(KEEP);
        } else if self.seats.len() > 2 * self.len + SLACK {
            self.close_up();
        } else {
            self.bound_times();
        }
        Some(guest)
    }

    /// Leaves no seat empty.
    fn close_up(&mut self) {
        self.seats.retain(Option::is_some);
        for (seated, seat) in self.seats.iter().flatten().zip(self.first..) {
            seated.guest.sit(Some(seat));
        }
        self.note_times();
    }

    /// Forgets the times of those who have left, where there are many.
    fn bound_times(&mut self) {
        if self.times.len() > 2 * self.len + SLACK {
            self.note_times();
        }
    }

    fn note_times(&mut self) {
        let seats = self.seats.iter().zip(self.first..);
        let times = seats.filter_map(|(seated, seat)| Some(Reverse((seated.as_ref()?.until?, seat))));
        self.times = times.collect();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::machine::budget::SplitMix;

    #[derive(Debug)]
    struct Guest {
        name: u32,
        seat: Cell<Option<i64>>,
        until: Option<Time>,
    }

    impl Waits for Rc<Guest> {
        fn seat(&self) -> Option<i64> {
            self.seat.get()
        }

        fn sit(&self, seat: Option<i64>) {
            self.seat.set(seat);
        }

        fn until(&self) -> Option<Time> {
            self.until
        }
    }

    /// Against a list that is searched each time. Of those who are due at the same time any may go first.
    #[test]
    fn agrees_with_a_list() {
        for seed in 0..300 {
            let mut random = SplitMix(seed);
            let (mut line, mut list) = (Line::default(), VecDeque::<Rc<Guest>>::new());
            let mut outside = Vec::new();
            // Some lines grow long, and some are left mostly from the middle.
            let (comes, leaves) = (1 + random.below(4), 1 + random.below(4));
            let mut now = Time::ZERO;
            for step in 0..2000 {
                let context = || format!("seed {seed} step {step}");
                now = now + Duration::from_nanos(random.below(3));
                let pick = random.below(10);
                if pick < comes {
                    let until = (random.below(3) > 0).then(|| now + Duration::from_nanos(random.below(200)));
                    let guest = Rc::new(Guest { name: step, seat: Cell::new(None), until });
                    // One that has left may come back.
                    let guest = if random.below(4) == 0 { outside.pop().unwrap_or(guest) } else { guest };
                    if random.below(4) == 0 {
                        line.push_front(guest.clone());
                        list.push_front(guest);
                    } else {
                        line.push_back(guest.clone());
                        list.push_back(guest);
                    }
                } else if pick < comes + leaves && !list.is_empty() {
                    let guest = list.remove(random.below(list.len() as u64) as usize).unwrap();
                    assert!(Rc::ptr_eq(&line.leave(&guest).unwrap(), &guest), "{}", context());
                    assert!(line.leave(&guest).is_none(), "{}", context());
                    outside.push(guest);
                } else if pick == 8 {
                    let popped = line.pop_front();
                    assert_eq!(popped.as_ref().map(|guest| guest.name), list.pop_front().map(|guest| guest.name));
                    outside.extend(popped);
                } else if pick == 9 {
                    while let Some(guest) = line.pop_due(now) {
                        assert!(guest.until.unwrap() <= now, "{}", context());
                        let place = list.iter().position(|other| Rc::ptr_eq(other, &guest)).unwrap();
                        list.remove(place);
                    }
                    assert!(list.iter().all(|guest| guest.until.is_none_or(|until| until > now)), "{}", context());
                }
                assert_eq!(line.len(), list.len(), "{}", context());
                assert_eq!(line.front().map(|guest| guest.name), list.front().map(|guest| guest.name));
                let due = list.iter().filter_map(|guest| guest.until).min();
                assert!(due.is_none_or(|due| line.next_due().is_some_and(|next| next <= due)), "{}", context());
                assert!(line.seats.len() <= 2 * line.len + SLACK && line.times.len() <= 2 * line.len + SLACK);
            }
            let names = |guests: Vec<Rc<Guest>>| guests.iter().map(|guest| guest.name).collect::<Vec<_>>();
            assert_eq!(names(line.take_all()), names(list.into()), "seed {seed}");
            assert!(line.is_empty() && line.next_due().is_none());
        }
    }
}
