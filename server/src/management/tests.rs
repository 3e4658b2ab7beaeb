use std::io::Read;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;

/// Nothing that is asked of the port may take longer than this, whatever else goes on.
const PROMPT: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Source {
    not_ready: AtomicBool,
    panics: AtomicBool,
    /// Held by a test to make gathering last.
    gate: Mutex<()>,
    begun: AtomicUsize,
    metrics_bytes: AtomicUsize,
}

impl ManagementSource for Source {
    fn startup(&self) -> ProbeAnswer {
        ProbeAnswer::startup(&Startup { started: true, reasons: Vec::new() })
    }

    fn live(&self) -> ProbeAnswer {
        assert!(!self.panics.load(Ordering::Relaxed), "as the test wants it");
        ProbeAnswer::live(&Liveness { live: true, reason: None })
    }

    fn ready(&self) -> ProbeAnswer {
        let ready = !self.not_ready.load(Ordering::Relaxed);
        let reasons = if ready { vec![] } else { vec!["model 'iris' has no version".to_owned()] };
        ProbeAnswer::ready(&Readiness { ready, reasons, notes: Vec::new() })
    }

    fn status(&self) -> Vec<u8> {
        assert!(!self.panics.load(Ordering::Relaxed), "as the test wants it");
        br#"{"server":"running"}"#.to_vec()
    }

    fn metrics(&self) -> Vec<u8> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let _open = self.gate.lock().unwrap();
        let mut text = b"# TYPE up gauge\nup 1\n".to_vec();
        text.resize(text.len().max(self.metrics_bytes.load(Ordering::Relaxed)), b'\n');
        text
    }
}

fn start() -> (Arc<Source>, ManagementHandle) {
    let source = Arc::new(Source::default());
    let port = Management::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let handle = port.start(Arc::clone(&source) as Arc<dyn ManagementSource>).unwrap();
    (source, handle)
}

fn connect(handle: &ManagementHandle) -> TcpStream {
    let stream = TcpStream::connect(handle.local_addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Sends the bytes and reads to the end.
fn exchange(handle: &ManagementHandle, bytes: &[u8]) -> String {
    let mut stream = connect(handle);
    stream.write_all(bytes).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn get(handle: &ManagementHandle, path: &str) -> (u16, String) {
    split(&exchange(handle, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()))
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.contains("\r\nConnection: close"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The slowest but one of twenty `/live`: a busy machine may hold up any thread for once.
fn slowest_live(handle: &ManagementHandle) -> Duration {
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(get(handle, "/live"), (200, r#"{"live":true}"#.to_owned()));
            start.elapsed()
        })
        .collect();
    times.sort();
    times[18]
}

#[test]
fn every_route() {
    let (source, handle) = start();
    let live = (200, r#"{"live":true}"#.to_owned());
    let ready = (200, r#"{"ready":true}"#.to_owned());
    for path in ["/live", "/healthz", "/v2/health/live", "/live?x=1"] {
        assert_eq!(get(&handle, path), live, "{path}");
    }
    for path in ["/ready", "/v2/health/ready"] {
        assert_eq!(get(&handle, path), ready, "{path}");
    }
    assert_eq!(get(&handle, "/startup"), (200, r#"{"started":true}"#.to_owned()));
    assert_eq!(get(&handle, "/status"), (200, r#"{"server":"running"}"#.to_owned()));
    assert_eq!(get(&handle, "/metrics"), (200, "# TYPE up gauge\nup 1\n".to_owned()));
    let metrics = exchange(&handle, b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(metrics.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    source.not_ready.store(true, Ordering::Relaxed);
    let (status, body) = get(&handle, "/ready");
    assert_eq!(
        (status, body.as_str()),
        (503, r#"{"ready":false,"reasons":["model 'iris' has no version"]}"#)
    );
    assert_eq!(get(&handle, "/live"), live);
}

#[test]
fn head_has_the_length_and_no_body() {
    let (_, handle) = start();
    for (path, length) in [("/live", 13), ("/metrics", 21), ("/status", 20)] {
        let answer = exchange(&handle, format!("HEAD {path} HTTP/1.1\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(&format!("\r\nContent-Length: {length}\r\n")), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    assert!(exchange(&handle, b"HEAD /nothing HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
}

#[test]
fn what_is_refused_and_how() {
    let (_, handle) = start();
    let large = format!("GET /live HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(60_000));
    let upload =
        format!("POST /live HTTP/1.1\r\nContent-Length: 50000\r\n\r\n{}", "x".repeat(50_000));
    let cases: [(&[u8], u16, &str); 7] = [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404, "not_found"),
        (b"DELETE /live HTTP/1.1\r\n\r\n", 405, "method_not_allowed"),
        (upload.as_bytes(), 405, "method_not_allowed"),
        (large.as_bytes(), 431, "too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed"),
        (b"GET /live HTTP/3.0\r\n\r\n", 505, "version"),
        (b"GET /li", 408, "too_slow"),
    ];
    for (bytes, status, code) in cases {
        let (found, body) = split(&exchange(&handle, bytes));
        assert_eq!(found, status, "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["code"], code);
        assert!(body["error"].is_string());
    }
}

#[test]
fn a_second_request_in_the_same_breath_is_not_answered() {
    let (_, handle) = start();
    let answer = exchange(
        &handle,
        b"GET /live HTTP/1.1\r\n\r\nGET /ready HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    );
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    assert!(answer.ends_with(r#"{"live":true}"#));
}

#[test]
fn a_request_in_pieces_is_put_together() {
    let (_, handle) = start();
    let mut stream = connect(&handle);
    for piece in ["GET /li", "ve HTTP/1.1\r", "\nHost: x\r\n\r", "\n"] {
        stream.write_all(piece.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(10));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a_client_that_drips_is_sent_away_and_delays_nobody() {
    let (_, handle) = start();
    let mut drips: Vec<TcpStream> = (0..50).map(|_| connect(&handle)).collect();
    for round in 0..4 {
        for drip in &mut drips {
            // After the deadline these fail, as they should.
            let _ = drip.write_all(&b"GET "[round..=round]);
        }
        assert!(slowest_live(&handle) < PROMPT);
        thread::sleep(Duration::from_millis(100));
    }
    for mut drip in drips {
        let mut answer = String::new();
        let end = drip.read_to_string(&mut answer);
        assert!(end.is_err() || answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let (source, handle) = start();
    source.metrics_bytes.store(64 << 20, Ordering::Relaxed);
    let mut stream = connect(&handle);
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    assert!(slowest_live(&handle) < PROMPT);
    thread::sleep(GATHER_DEADLINE + 2 * PROMPT);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.is_empty() && answer.len() < 64 << 20, "{}", answer.len());
}

#[test]
fn a_long_answer_arrives_whole() {
    let (source, handle) = start();
    source.metrics_bytes.store(8 << 20, Ordering::Relaxed);
    let (status, body) = get(&handle, "/metrics");
    assert_eq!((status, body.len()), (200, 8 << 20));
}

#[test]
fn a_flood_of_idle_connections_delays_no_probe() {
    let (_, handle) = start();
    let standing: Vec<TcpStream> = (0..500).map(|_| connect(&handle)).collect();
    assert!(slowest_live(&handle) < PROMPT);
    // And while the flood goes on.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut flood = std::collections::VecDeque::new();
            while !over.load(Ordering::Relaxed) {
                flood.push_back(connect(&handle));
                if flood.len() > 500 {
                    flood.pop_front();
                }
            }
        });
        let slowest = slowest_live(&handle);
        over.store(true, Ordering::Relaxed);
        assert!(slowest < PROMPT, "{slowest:?}");
    });
    drop(standing);
}

#[test]
fn slow_gathering_delays_no_probe_and_is_bounded() {
    let (source, handle) = start();
    let closed = source.gate.lock().unwrap();
    let ask = || {
        let mut stream = connect(&handle);
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        stream
    };
    let mut askers = vec![ask()];
    while source.begun.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    askers.extend((0..GATHER_QUEUE + 12).map(|_| ask()));
    assert!(slowest_live(&handle) < PROMPT);
    // The queue is full: the next one is told so at once.
    let start = Instant::now();
    assert_eq!(get(&handle, "/status").0, 503);
    assert!(start.elapsed() < GATHER_DEADLINE);
    for asker in &mut askers {
        let mut answer = String::new();
        asker.read_to_string(&mut answer).unwrap();
        assert_eq!(split(&answer).0, 503);
    }
    drop(closed);
    // Those who gave up are not gathered for, but for the one that was under way.
    while get(&handle, "/metrics").0 != 200 {}
    assert_eq!(source.begun.load(Ordering::Relaxed), 2);
}

#[test]
fn a_panic_costs_one_answer() {
    let (source, handle) = start();
    source.panics.store(true, Ordering::Relaxed);
    assert_eq!(get(&handle, "/live").0, 500);
    assert_eq!(get(&handle, "/status").0, 500);
    source.panics.store(false, Ordering::Relaxed);
    assert_eq!(get(&handle, "/live").0, 200);
    assert_eq!(get(&handle, "/status").0, 200);
}

#[test]
fn stopping_closes_the_port() {
    let (_, handle) = start();
    let addr = handle.local_addr();
    let mut idle = connect(&handle);
    assert_eq!(get(&handle, "/live").0, 200);
    let start = Instant::now();
    handle.stop();
    assert!(start.elapsed() < PROMPT);
    assert!(!matches!(idle.read(&mut [0; 1]), Ok(count) if count > 0));
    assert!(TcpStream::connect(addr).is_err());
    Management::bind(addr).unwrap();
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let (_, handle) = start();
    let error = Management::bind(handle.local_addr()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn bodies_of_probes() {
    let notes = vec!["model 'a' serves version 1, for version 2 is failed".to_owned()];
    let ready = Readiness { ready: true, reasons: Vec::new(), notes };
    assert_eq!(
        &*ProbeAnswer::ready(&ready).body,
        r#"{"ready":true,"notes":["model 'a' serves version 1, for version 2 is failed"]}"#
    );
    let dead = Liveness { live: false, reason: Some("no heartbeat".to_owned()) };
    let answer = ProbeAnswer::live(&dead);
    assert!(!answer.ok);
    assert_eq!(&*answer.body, r#"{"live":false,"reasons":["no heartbeat"]}"#);
    let waits = Startup { started: false, reasons: vec!["the server is starting".to_owned()] };
    assert_eq!(
        &*ProbeAnswer::startup(&waits).body,
        r#"{"started":false,"reasons":["the server is starting"]}"#
    );
}
