//! What a run is at, for whoever waits; nothing where stderr is no terminal.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::sleep;

const REDRAW: Duration = Duration::from_millis(500);

/// A line on stderr that is drawn over.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(4)
        };
        Progress { bar: ProgressBar::with_draw_target(None, target) }
    }

    /// What is done now, of unknown length.
    pub(crate) fn step(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.bar.tick();
    }

    /// Draws how far the phases are until it is dropped.
    pub(crate) async fn follow(
        &self,
        begun: Instant,
        length: Duration,
        phase: &RefCell<String>,
    ) -> Infallible {
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos:>4}/{len} s  {msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_length(length.as_secs());
        loop {
            self.bar.set_message(phase.borrow().clone());
            self.bar.set_position(begun.elapsed().as_secs());
            sleep(REDRAW).await;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
