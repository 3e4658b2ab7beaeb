//! Panics as lines of the log.
//!
//! A panic of a lane, a handler or a probe is caught where it happens and answered there. What it said would be printed by
//! the standard library, past the log and in a form that no log collector reads.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::thread;

/// From now on a panic is one line of the log, or of standard error while there is no log.
pub fn log_them() {
    panic::set_hook(Box::new(report));
}

fn report(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = message(info.payload());
    if !tracing::dispatcher::has_been_set() {
        let _ = writeln!(io::stderr(), "balm: thread {thread} panicked at {location}: {message}");
        return;
    }
    // Taken only where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(thread, location, panic = message, backtrace, "panicked");
}

/// What the panic said, as far as it was text.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no text").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_text_are_read() {
        assert_eq!(message(&"plain"), "plain");
        assert_eq!(message(&"made".to_owned()), "made");
        assert_eq!(message(&7), "no text");
    }
}
