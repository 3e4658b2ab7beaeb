//! Suspects run one at a time, so that a crash tells which one it was, and as far as that takes no time beside nobody.
//!
//! All other runs are held up for [`HOLD`] at most for each suspect: a run that takes longer than that is not waited for, and a
//! suspect that takes longer is not either. What is given to whoever runs is given back by dropping it, by the lane or by whoever
//! gave the lane up.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all other runs are held up for a suspect.
const HOLD: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub(super) struct Isolation {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    running: usize,
    /// Since when a suspect runs, or is about to.
    suspect: Option<Instant>,
}

/// Somebody runs. Dropping it says that it does not any more.
pub(crate) struct Place {
    isolation: Arc<Isolation>,
    is_suspect: bool,
}

impl Isolation {
    /// For a run of requests that are clear.
    pub(super) fn beside_others(self: &Arc<Self>) -> Place {
        let mut inside = self.inside.lock();
        while let Some(since) = inside.suspect {
            if self.changed.wait_until(&mut inside, since + HOLD).timed_out() {
                break;
            }
        }
        inside.running += 1;
        Place { isolation: Arc::clone(self), is_suspect: false }
    }

    /// For the run of a suspect. `None` when another one was there until `end`.
    pub(super) fn alone(self: &Arc<Self>, end: Instant) -> Option<Place> {
        let mut inside = self.inside.lock();
        let other = |inside: &mut Inside| inside.suspect.is_some();
        if self.changed.wait_while_until(&mut inside, other, end).timed_out() {
            return None;
        }
        inside.suspect = Some(Instant::now());
        let others = |inside: &mut Inside| inside.running > 0;
        let _not_longer = self.changed.wait_while_for(&mut inside, others, HOLD);
        inside.running += 1;
        Some(Place { isolation: Arc::clone(self), is_suspect: true })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut inside = self.isolation.inside.lock();
            inside.running -= 1;
            if self.is_suspect {
                inside.suspect = None;
            }
        }
        self.isolation.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn suspects_run_one_at_a_time() {
        let isolation = Arc::<Isolation>::default();
        let suspects = AtomicUsize::new(0);
        thread::scope(|scope| {
            for index in 0..4 {
                let (isolation, suspects) = (&isolation, &suspects);
                scope.spawn(move || {
                    for turn in 0..100 {
                        if (index + turn) % 4 == 0 {
                            let place = isolation.alone(Instant::now() + SOON).unwrap();
                            assert_eq!(suspects.fetch_add(1, Ordering::SeqCst), 0);
                            suspects.fetch_sub(1, Ordering::SeqCst);
                            drop(place);
                        } else {
                            drop(isolation.beside_others());
                        }
                    }
                });
            }
        });
        let inside = isolation.inside.lock();
        assert_eq!((inside.running, inside.suspect), (0, None));
    }

    #[test]
    fn nobody_waits_for_long_but_suspects_for_suspects() {
        let isolation = Arc::<Isolation>::default();
        // A run that takes for ever is not waited for by a suspect, nor a suspect by a run.
        let long = isolation.beside_others();
        let suspect = isolation.alone(Instant::now() + SOON).unwrap();
        let other = isolation.beside_others();
        assert!(isolation.alone(Instant::now()).is_none(), "its time is over");
        let (sender, receiver) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let place = isolation.alone(Instant::now() + SOON);
                sender.send(place.is_some()).unwrap();
            });
            assert!(receiver.recv_timeout(HOLD).is_err(), "it waits for the first one");
            drop(suspect);
            assert!(receiver.recv().unwrap());
        });
        drop((long, other));
        assert_eq!(isolation.inside.lock().running, 0);
    }
}
