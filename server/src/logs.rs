//! The log: lines on standard error, text or JSON, that never make the server wait.
//!
//! Whoever reads standard error may stop reading, and a write to a full pipe blocks. So lines go through a
//! bounded queue to a thread of their own; when the queue is full they are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogConfig, LogFormat};

/// Lines that may wait for the reader of standard error.
const LINES_MAX: usize = 4096;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse; [`crate::config::Config::resolve`] would have said so.
    #[error("log.level is no filter")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The thread that writes could not be started.
    #[error("the thread that writes the log could not be started")]
    Thread(#[source] io::Error),
    /// Some other log was set up before.
    #[error("a log is set up already")]
    AlreadySet,
}

/// Keeps the log going. When dropped, the last lines are written, or given up after half a second.
#[derive(Debug)]
#[must_use = "the log ends with it"]
pub struct LogGuard {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// Who speaks, where two processes share a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The one that starts and judges the other.
    Supervisor,
    /// The one that serves.
    Worker,
}

/// Sets up the log of the whole process. Each line says which `process` it is from, if one is named.
///
/// # Errors
/// When the filter does not parse, the thread cannot be started, or there is a log already.
pub fn init(config: &LogConfig, process: Option<Process>) -> Result<LogGuard, LogError> {
    let filter = EnvFilter::builder().parse(&config.level).map_err(LogError::Filter)?;
    let (writer, guard) =
        queue(io::stderr(), LINES_MAX, config.format, process).map_err(LogError::Thread)?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let set = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map(|()| guard).map_err(|_| LogError::AlreadySet)
}

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// A queue of lines before `sink`, and the thread that empties it.
fn queue(
    sink: impl Write + Send + 'static,
    lines_max: usize,
    format: LogFormat,
    process: Option<Process>,
) -> io::Result<(Lines, LogGuard)> {
    let (sender, receiver) = sync_channel(lines_max);
    let dropped = Arc::new(AtomicU64::new(0));
    thread::Builder::new().name("balm-log".to_owned()).spawn({
        let dropped = Arc::clone(&dropped);
        move || drain(&receiver, sink, &dropped, format)
    })?;
    let mark = process.map(|process| (process, format));
    let lines = Lines { sender: sender.clone(), dropped: Arc::clone(&dropped), mark };
    Ok((lines, LogGuard { sender, dropped }))
}

fn drain(
    receiver: &Receiver<Message>,
    mut sink: impl Write,
    dropped: &AtomicU64,
    format: LogFormat,
) {
    let mut told = 0;
    // A sink that fails is a reader that went away: the lines are lost, the server goes on.
    for message in receiver {
        match message {
            Message::Line(line) => {
                let _ = sink.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = sink.flush();
                let _ = done.try_send(());
            }
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            let lines = lost - told;
            let _ = match format {
                LogFormat::Text => writeln!(sink, "log lines dropped: {lines}"),
                LogFormat::Json => {
                    writeln!(sink, r#"{{"message":"log lines dropped","lines":{lines}}}"#)
                }
            };
            told = lost;
        }
    }
}

// ===== impl LogGuard =====

impl LogGuard {
    /// Lines dropped since the start because the reader of standard error was too slow.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        // The queue may be full of lines that are just being written.
        let step = FLUSH_TIMEOUT / 50;
        for _ in 0..50 {
            match self.sender.try_send(message) {
                Ok(()) => {
                    let _ = wait.recv_timeout(FLUSH_TIMEOUT);
                    return;
                }
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            thread::sleep(step);
        }
    }
}

// ===== impl Process =====

impl Process {
    const fn as_str(self) -> &'static str {
        match self {
            Process::Supervisor => "supervisor",
            Process::Worker => "worker",
        }
    }

    /// The line with the process as one more field. A span could not do it: it would have to be entered on every thread,
    /// those of libraries, too.
    fn sign(self, line: &[u8], format: LogFormat) -> Vec<u8> {
        let name = self.as_str();
        match (format, line) {
            (LogFormat::Json, [b'{', rest @ ..]) => {
                [format!("{{\"process\":\"{name}\",").as_bytes(), rest].concat()
            }
            (LogFormat::Text, [text @ .., b'\n']) => {
                [text, format!(" process={name}\n").as_bytes()].concat()
            }
            _ => line.to_vec(),
        }
    }
}

// ===== impl Lines =====

/// The queue, as `tracing-subscriber` wants it.
struct Lines {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    mark: Option<(Process, LogFormat)>,
}

/// One line. `tracing-subscriber` writes an event with a single `write_all`.
struct Line<'a>(&'a Lines);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = match self.0.mark {
            Some((process, format)) => process.sign(bytes, format),
            None => bytes.to_vec(),
        };
        if self.0.sender.try_send(Message::Line(line)).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink {
        bytes: Arc<Mutex<Vec<u8>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            self.bytes.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_in_order_and_before_the_end() {
        let sink = Sink::default();
        let (lines, guard) = queue(sink.clone(), 1000, LogFormat::Json, None).unwrap();
        for number in 0..100 {
            writeln!(lines.make_writer(), "line {number}").unwrap();
        }
        drop(guard);
        let text = String::from_utf8(sink.bytes.lock().unwrap().clone()).unwrap();
        let expected: String = (0..100).map(|number| format!("line {number}\n")).collect();
        assert_eq!(text, expected);
    }

    #[test]
    fn a_reader_that_stops_makes_nobody_wait() {
        let sink = Sink::default();
        let (lines, guard) = queue(sink.clone(), 10, LogFormat::Json, None).unwrap();
        let closed = sink.gate.lock().unwrap();
        let start = Instant::now();
        for _ in 0..1000 {
            lines.make_writer().write_all(b"x\n").unwrap();
        }
        assert!(start.elapsed() < FLUSH_TIMEOUT);
        let lost = guard.dropped().load(Ordering::Relaxed);
        assert!((985..=990).contains(&lost), "{lost}");
        drop(closed);
        drop(guard);
        let text = String::from_utf8(sink.bytes.lock().unwrap().clone()).unwrap();
        assert!(text.contains(&format!("\"lines\":{lost}}}")), "{text}");
    }

    #[test]
    fn a_reader_that_never_comes_back_does_not_hold_up_the_end() {
        let sink = Sink::default();
        let (lines, guard) = queue(sink.clone(), 4, LogFormat::Json, None).unwrap();
        let _closed = sink.gate.lock().unwrap();
        for _ in 0..10 {
            lines.make_writer().write_all(b"x\n").unwrap();
        }
        let start = Instant::now();
        drop(guard);
        assert!(start.elapsed() < 4 * FLUSH_TIMEOUT);
    }

    #[test]
    fn lines_say_which_process_they_are_from() {
        let cases = [
            (LogFormat::Text, "1 INFO x a=1\n", "1 INFO x a=1 process=worker\n"),
            (LogFormat::Json, "{\"a\":1}\n", "{\"process\":\"worker\",\"a\":1}\n"),
            (LogFormat::Json, "odd\n", "odd\n"),
        ];
        for (format, line, signed) in cases {
            let found = Process::Worker.sign(line.as_bytes(), format);
            assert_eq!(String::from_utf8(found).unwrap(), signed);
        }
    }

    #[test]
    fn there_is_one_log_per_process() {
        let config = LogConfig { format: LogFormat::Json, level: "off".to_owned() };
        let _guard = init(&config, None).unwrap();
        assert!(matches!(init(&config, None), Err(LogError::AlreadySet)));
        let config = LogConfig { format: LogFormat::Text, level: "a=b=c=d".to_owned() };
        assert!(matches!(init(&config, None), Err(LogError::Filter(_))));
    }
}
