//! Lets as many lanes run at once as [`Adaptive`] says; the others sleep.
//!
//! A lane takes a place before it looks into the queue, so that those without one are in nobody's way, and keeps it from run
//! to run. The limit may shrink while lanes with a place wait for requests, so each run is let in by itself, too.

use crate::adaptive::{Adaptive, Ran};
use parking_lot::{Condvar, Mutex};
use std::time::Instant;

/// Between the lanes of one model version and their device.
pub(super) struct Turnstile {
    state: Mutex<State>,
    /// Lanes without a place wait for one.
    place: Condvar,
    /// Lanes with a place and something to run wait for others to end.
    turn: Condvar,
}

struct State {
    adaptive: Adaptive,
    places: u32,
    closed: bool,
}

impl Turnstile {
    pub(super) fn new(lanes: u32) -> Self {
        let adaptive = Adaptive::new(lanes, Instant::now());
        Turnstile {
            state: Mutex::new(State { adaptive, places: 0, closed: false }),
            place: Condvar::new(),
            turn: Condvar::new(),
        }
    }

    /// Runs that may be in progress at once.
    pub(super) fn limit(&self) -> u32 {
        self.state.lock().adaptive.limit()
    }

    /// A run brought answers. The limit, if it may be another now.
    pub(super) fn ran(&self, ran: &Ran) -> Option<u32> {
        let limit = {
            let mut state = self.state.lock();
            state.adaptive.ran(ran, Instant::now()).then(|| state.adaptive.limit())
        };
        if limit.is_some() {
            // Rare, and some of them may go on now.
            self.place.notify_all();
            self.turn.notify_all();
        }
        limit
    }

    /// A lane that has a place and runs does not come back: makes room for another in its place.
    pub(super) fn lost(&self) {
        {
            let mut state = self.state.lock();
            state.places -= 1;
            state.adaptive.end(Instant::now());
        }
        self.place.notify_one();
        self.turn.notify_one();
    }

    /// Nobody waits for a place any more: there is nothing to come, or nobody to hold back for.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.place.notify_all();
    }
}

/// What a lane holds while it waits for requests and runs them. Dropping it makes room for another lane, also by a panic.
pub(super) struct Place<'a> {
    turnstile: &'a Turnstile,
    held: bool,
}

impl<'a> Place<'a> {
    /// None yet.
    pub(super) fn at(turnstile: &'a Turnstile) -> Self {
        Place { turnstile, held: false }
    }

    /// Whether the lane has a place and may go on with it. If there are too many, it has none any more.
    pub(super) fn keeps(&mut self) -> bool {
        let mut state = self.turnstile.state.lock();
        if self.held && state.places > state.adaptive.allowed() && !state.closed {
            state.places -= 1;
            self.held = false;
        }
        self.held
    }

    /// Sleeps until the lane, which has none, has a place.
    pub(super) fn take(&mut self) {
        let mut state = self.turnstile.state.lock();
        while state.places >= state.adaptive.allowed() && !state.closed {
            self.turnstile.place.wait(&mut state);
        }
        state.places += 1;
        self.held = true;
    }

    /// Sleeps until a run may begin; it ends when the turn is dropped. Somebody else runs meanwhile, who ends it.
    pub(super) fn turn(&self) -> Turn<'a> {
        let mut state = self.turnstile.state.lock();
        while !state.adaptive.begin(Instant::now()) {
            self.turnstile.turn.wait(&mut state);
        }
        Turn(self.turnstile)
    }
}

impl Place<'_> {
    /// The place was given to another: see [`Turnstile::lost`].
    pub(super) fn was_lost(&mut self) {
        self.held = false;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.held {
            self.turnstile.state.lock().places -= 1;
            self.turnstile.place.notify_one();
        }
    }
}

/// A run in progress.
pub(super) struct Turn<'a>(&'a Turnstile);

impl Turn<'_> {
    /// The run was counted as ended by another: see [`Turnstile::lost`].
    pub(super) fn was_lost(self) {
        std::mem::forget(self);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().adaptive.end(Instant::now());
        self.0.turn.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    fn until(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn one_lane_has_the_place_and_the_others_sleep_until_it_goes() {
        let turnstile = Arc::new(Turnstile::new(4));
        let inside = Arc::new(AtomicU32::new(0));
        let mut first = Place::at(&turnstile);
        first.take();
        assert!(first.keeps());
        drop(first.turn());
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (turnstile, inside) = (Arc::clone(&turnstile), Arc::clone(&inside));
                thread::spawn(move || {
                    let mut place = Place::at(&turnstile);
                    place.take();
                    let turn = place.turn();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                    thread::sleep(Duration::from_millis(2));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(turn);
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(20));
        assert_eq!((turnstile.state.lock().places, inside.load(Ordering::SeqCst)), (1, 0));
        drop(first);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(turnstile.state.lock().places, 0);
    }

    #[test]
    fn closing_wakes_who_waits_for_a_place_and_still_holds_back_runs() {
        let turnstile = Arc::new(Turnstile::new(4));
        let mut first = Place::at(&turnstile);
        first.take();
        let turn = first.turn();
        let running = Arc::new(AtomicU32::new(0));
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (turnstile, running) = (Arc::clone(&turnstile), Arc::clone(&running));
                thread::spawn(move || {
                    let mut place = Place::at(&turnstile);
                    place.take();
                    let _turn = place.turn();
                    running.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        turnstile.close();
        until(|| turnstile.state.lock().places == 4);
        assert_eq!(running.load(Ordering::SeqCst), 0);
        drop(turn);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(running.load(Ordering::SeqCst), 3);
    }
}
