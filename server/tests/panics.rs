//! A panic is one line of the log, wherever it happens. Alone in its process, for hook and log are the process's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "it is what the test is about")]

use balm_server::panics;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_is_one_line_with_thread_place_and_words() {
    panics::log_them();
    let sink = Sink::default();
    let writer = sink.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
    let lane = std::thread::Builder::new().name("lane0-iris".to_owned());
    let ended = lane.spawn(|| panic!("the model is\non fire")).unwrap().join();
    assert!(ended.is_err());
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    let line = text.lines().next().unwrap();
    assert!(line.contains("ERROR") && line.contains("lane0-iris"), "{text}");
    assert!(line.contains("tests/panics.rs:"), "{text}");
    assert!(line.contains(r"the model is\non fire"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
