//! What waits, by class, and what of it goes together in a run. Pure.

use super::Entry;
use crate::admission::Class;
use std::collections::VecDeque;

/// How far down the queue a lane looks for entries that go with the first one. Those in between are not overtaken by much:
/// they are next.
const LOOK_MAX: usize = 256;

/// Every so many runs begin with an entry of another class than the most critical that waits.
const OTHERS_EVERY: u32 = 20;

/// Entries by class, the most critical first.
pub(super) struct Waiting<T> {
    lines: [VecDeque<T>; Class::ALL.len()],
    pub(super) len: usize,
    taken: u32,
}

impl<T> Waiting<T> {
    pub(super) fn new() -> Self {
        Waiting { lines: Class::ALL.map(|_| VecDeque::new()), len: 0, taken: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn drain(&mut self) -> Vec<T> {
        self.len = 0;
        self.lines.iter_mut().flat_map(|line| line.drain(..)).collect()
    }
}

impl<T: Entry> Waiting<T> {
    pub(super) fn push_back(&mut self, entry: T) {
        self.len += 1;
        self.lines[entry.class().index()].push_back(entry);
    }

    pub(super) fn push_front(&mut self, entry: T) {
        self.len += 1;
        self.lines[entry.class().index()].push_front(entry);
    }

    /// The entry whose turn it is.
    pub(super) fn pop_front(&mut self) -> Option<T> {
        let mut busy = (0..self.lines.len()).filter(|line| !self.lines[*line].is_empty());
        let first = busy.next()?;
        let mut turn = first;
        if let Some(second) = busy.next() {
            self.taken = self.taken.wrapping_add(1);
            if self.taken.is_multiple_of(OTHERS_EVERY) {
                // Each of the others has its turn in time.
                let others: Vec<usize> = std::iter::once(second).chain(busy).collect();
                turn = others[(self.taken / OTHERS_EVERY) as usize % others.len()];
            }
        }
        self.len -= 1;
        self.lines[turn].pop_front()
    }
}

/// Moves entries that go with the first of `batch` out of `waiting`: at most `count`, and no more than `rows_max` rows in all.
pub(super) fn gather<T: Entry>(
    waiting: &mut Waiting<T>,
    batch: &mut Vec<T>,
    rows_max: usize,
    count: usize,
) {
    let mut rows: usize = batch.iter().map(Entry::rows).sum();
    let end = batch.len().saturating_add(count);
    let mut looked = 0;
    let Waiting { lines, len, .. } = waiting;
    for line in lines {
        let mut index = 0;
        while index < line.len() && looked < LOOK_MAX && batch.len() < end && rows < rows_max {
            looked += 1;
            let fits = line[index].rows().saturating_add(rows) <= rows_max;
            if !fits || !batch[0].joins(&line[index]) {
                index += 1;
                continue;
            }
            // At the front, where it is nearly always, this moves nothing.
            let Some(entry) = line.remove(index) else { return };
            *len -= 1;
            rows += entry.rows();
            batch.push(entry);
        }
    }
}
