//! The bounded queue between the requests of a model version and its lanes.
//!
//! Lanes pull. One wake-up per job, and none when every lane is busy: a busy lane looks again by itself.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// A bounded first-in, first-out queue with blocking readers.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    capacity: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    idle_readers: usize,
    closed: bool,
}

/// The entry was not taken; it comes back with the reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<T> {
    Full(T),
    Closed(T),
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Queue {
            state: Mutex::new(State { waiting: VecDeque::new(), idle_readers: 0, closed: false }),
            arrived: Condvar::new(),
            capacity,
        }
    }

    pub(crate) fn push(&self, entry: T) -> Result<(), Refused<T>> {
        let wake = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Refused::Closed(entry));
            }
            if state.waiting.len() >= self.capacity {
                return Err(Refused::Full(entry));
            }
            state.waiting.push_back(entry);
            state.idle_readers > 0
        };
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// The oldest entry; waits for one. `None` once the queue is closed and empty.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(entry) = state.waiting.pop_front() {
                return Some(entry);
            }
            if state.closed {
                return None;
            }
            state.idle_readers += 1;
            self.arrived.wait(&mut state);
            state.idle_readers -= 1;
        }
    }

    /// Takes no more entries. What waits is still handed out.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Closes, and takes out everything that waits, for its owner to answer.
    pub(crate) fn close_and_drain(&self) -> Vec<T> {
        let drained = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waiting.drain(..).collect()
        };
        self.arrived.notify_all();
        drained
    }

    /// Whether entries are taken no more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Entries that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn is_bounded_and_first_in_first_out() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(queue.push(3), Err(Refused::Full(3)));
        assert_eq!(queue.pop(), Some(1));
        queue.close();
        assert_eq!(queue.push(4), Err(Refused::Closed(4)));
        assert_eq!(queue.pop(), Some(2), "what waited is still handed out");
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn no_entry_is_lost_between_threads() {
        let queue = Arc::new(Queue::new(64));
        let sum = Arc::new(AtomicU64::new(0));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (queue, sum) = (Arc::clone(&queue), Arc::clone(&sum));
                std::thread::spawn(move || {
                    while let Some(entry) = queue.pop() {
                        sum.fetch_add(entry, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut expected = 0;
        for entry in 0..20_000u64 {
            let mut entry = entry;
            while let Err(Refused::Full(back)) = queue.push(entry) {
                entry = back;
                std::thread::yield_now();
            }
            expected += entry;
        }
        queue.close();
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(sum.load(Ordering::Relaxed), expected);
    }
}
