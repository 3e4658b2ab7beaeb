//! What the service manager is told, where there is one (`sd_notify(3)`).

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// Tells systemd when the start is over, that it goes on, and when the end begins. Nothing where nobody listens.
#[derive(Debug)]
pub(super) struct Notify {
    ready: bool,
    stopping: bool,
    /// How often the watchdog is told that all is well.
    every: Option<Duration>,
    next: Instant,
}

impl Notify {
    pub(super) fn new(now: Instant) -> Self {
        // Half the interval, as its manual asks for.
        let every = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        Notify { ready: false, stopping: false, every, next: now }
    }

    /// The end begins.
    pub(super) fn stopping(&mut self) {
        if !self.stopping {
            self.stopping = true;
            tell(NotifyState::Stopping);
        }
    }

    /// To be called with every tick.
    pub(super) fn turn(&mut self, now: Instant, started: bool, live: bool) {
        if started && !self.ready {
            self.ready = true;
            tell(NotifyState::Ready);
        }
        // Beyond repair is what the manager's own restart is for.
        if let Some(every) = self.every
            && live
            && now >= self.next
        {
            self.next = now + every;
            tell(NotifyState::Watchdog);
        }
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
