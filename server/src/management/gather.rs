//! The gather thread: renders `/status` and `/metrics`, one question after the other.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use super::{GATHER_DEADLINE, ManagementSource, response, wake};

/// What is to be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Status,
    Metrics,
}

/// A question on behalf of a connection.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) connection: u64,
    pub(super) topic: Topic,
    pub(super) head_only: bool,
    pub(super) asked: Instant,
}

/// The whole answer, ready to be written.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) connection: u64,
    pub(super) bytes: Vec<u8>,
}

/// Answers until the probe thread is gone.
pub(super) fn run(
    source: &dyn ManagementSource,
    questions: &Receiver<Question>,
    answers: &SyncSender<Answer>,
    waker: &UnixStream,
) {
    for Question { connection, topic, head_only, asked } in questions {
        // After a long answer, those who have given up in the meantime are skipped.
        if asked.elapsed() >= GATHER_DEADLINE {
            continue;
        }
        let gathered = catch_unwind(AssertUnwindSafe(|| match topic {
            Topic::Status => response::status(&source.status(), head_only),
            Topic::Metrics => response::metrics(&source.metrics(), head_only),
        }));
        let bytes = gathered.unwrap_or_else(|_| {
            tracing::error!(?topic, "gathering for the management port panicked");
            response::panicked(head_only)
        });
        if answers.send(Answer { connection, bytes }).is_err() {
            return;
        }
        wake(waker);
    }
}
