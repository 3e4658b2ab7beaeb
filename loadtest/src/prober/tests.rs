use super::*;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A management port that answers each connection as `answer` says, by its number and its request.
fn server(
    answer: impl Fn(usize, &str) -> Option<String> + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..read]).into_owned();
            match answer(counted.fetch_add(1, Ordering::SeqCst), &text) {
                Some(answer) => {
                    let _ = stream.write_all(answer.as_bytes());
                }
                // Left open, and left without an answer.
                None => kept.push(stream),
            }
        }
    });
    (address, count)
}

fn status(status: u16) -> Option<String> {
    Some(format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok"))
}

fn settings(kind: Kind) -> Settings {
    Settings {
        period: Duration::from_millis(10),
        timeout: Duration::from_millis(500),
        failure_threshold: 2,
        ..Settings::new(kind)
    }
}

/// Waits until the condition holds; a machine that is busy needs longer.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn answers_are_judged_as_a_kubelet_judges_them() {
    let second = Duration::from_secs(5);
    for (answered, expected) in [
        (status(200), Ok(())),
        (status(399), Ok(())),
        (status(302), Ok(())),
        (status(400), Err("status 400".to_owned())),
        (status(503), Err("status 503".to_owned())),
        (Some("hello".to_owned()), Err("the answer is no HTTP".to_owned())),
        (Some("HTTP/1.1 200 OK\r\n\r\n".to_owned()), Ok(())),
    ] {
        let (address, _) = server(move |_, _| answered.clone());
        assert_eq!(poll::poll(address, "/live", second), expected);
    }
    let (silent, _) = server(|_, _| None);
    let late = poll::poll(silent, "/live", Duration::from_millis(30));
    assert_eq!(late, Err("no answer within 30 ms".to_owned()));
    let refused = poll::poll("127.0.0.1:1".parse().unwrap(), "/live", second).unwrap_err();
    assert!(refused.contains("refused"), "{refused}");
}

#[test]
fn every_poll_has_a_connection_of_its_own() {
    let (address, connections) = server(|_, request| {
        assert!(request.starts_with("GET /ready HTTP/1.1\r\n"));
        assert!(request.contains("Connection: close\r\n"));
        status(200)
    });
    let prober = Prober::start(address, &[settings(Kind::Ready)]).unwrap();
    wait_until("polls", || connections.load(Ordering::SeqCst) >= 5);
    let probes = prober.finish(Instant::now());
    let probe = &probes.probes[0];
    assert_eq!(probe.polls as usize, connections.load(Ordering::SeqCst));
    assert!(probes.ready && probes.restarts == 0 && probe.failures == 0);
    assert_eq!(probes.events[0].event, Event::BecameReady);
    assert!(probes.events[0].at_s < 0.0 && probe.points.len() == probe.polls as usize);
}

#[test]
fn a_dead_container_is_restarted_once_and_left_on_hold() {
    let (address, connections) = server(|count, _| status(if count < 2 { 200 } else { 500 }));
    let prober = Prober::start(address, &[settings(Kind::Live)]).unwrap();
    wait_until("the verdict", || prober.shared.lock().kubelet.restarts() == 1);
    let polled = connections.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(50));
    let probes = prober.finish(Instant::now());
    assert_eq!((connections.load(Ordering::SeqCst), polled), (4, 4));
    assert_eq!((probes.restarts, probes.probes[0].failures), (1, 2));
    assert_eq!(probes.probes[0].failed[0].why, "status 500");
}

#[test]
fn readiness_is_polled_as_soon_as_startup_has_succeeded() {
    let (address, _) = server(|count, _| status(if count < 3 { 503 } else { 200 }));
    // Ready would not be polled a second time within this test.
    let ready = Settings { period: Duration::from_secs(600), ..settings(Kind::Ready) };
    let startup = Settings { failure_threshold: 100, ..settings(Kind::Startup) };
    let prober = Prober::start(address, &[ready, startup]).unwrap();
    wait_until("readiness", || prober.shared.lock().kubelet.is_ready());
    let probes = prober.finish(Instant::now());
    let events: Vec<_> = probes.events.iter().map(|event| event.event).collect();
    assert_eq!(events, [Event::Started, Event::BecameReady]);
    assert_eq!((probes.probes[0].polls, probes.probes[1].polls), (1, 4));
}

#[test]
fn points_are_thinned_out() {
    let mut seen = Seen {
        settings: settings(Kind::Live),
        polls: 0,
        failures: 0,
        failed: Vec::new(),
        times_us: Histogram::new(3).unwrap(),
        points: Vec::new(),
        stride: 1,
    };
    let now = Instant::now();
    for _ in 0..5 * POINTS_MAX {
        seen.note(now, Duration::from_millis(1), Ok(()));
    }
    assert_eq!(seen.polls as usize, 5 * POINTS_MAX);
    assert!(seen.points.len() < POINTS_MAX && seen.points.len() > POINTS_MAX / 4);
}
