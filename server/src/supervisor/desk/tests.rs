use super::*;
use crate::http::Bound;
use crate::link::{Hello, PROTOCOL, SocketKind, hand_over};
use crate::worker::Worker;
use balm_probes::{LaneCounts, ModelReport, ModelState, VersionReport};
use std::net::TcpListener;

fn desk() -> Desk {
    let metrics = SupervisorMetrics::new().unwrap();
    Desk::new(ReadinessPolicy::All, Pulse::start().unwrap(), metrics)
}

fn pair() -> (UnixStream, UnixStream) {
    let (left, right) = UnixStream::pair().unwrap();
    left.set_nonblocking(true).unwrap();
    right.set_nonblocking(true).unwrap();
    (left, right)
}

fn serving() -> HealthReport {
    let mut version = VersionReport::new(1, ModelState::Ready);
    version.lanes = LaneCounts { wanted: 1, healthy: 1 };
    let model = ModelReport { name: "iris".to_owned(), declared: true, versions: vec![version] };
    HealthReport { server: ServerPhase::Running, models: vec![model], ..HealthReport::default() }
}

fn tell(stream: &UnixStream, message: &ToSupervisor) {
    let mut outgoing = Outgoing::default();
    outgoing.push(message).unwrap();
    outgoing.flush(stream).unwrap();
    assert_eq!(outgoing.waiting(), 0);
}

#[test]
fn a_probe_knows_what_was_said_before_it_came() {
    let desk = desk();
    let (ours, worker) = pair();
    desk.connect(Some(ours));
    assert!(!desk.ready().ok && !desk.startup().ok && desk.live().ok);
    tell(&worker, &ToSupervisor::Report { question: None, report: serving() });
    assert!(desk.ready().ok, "nobody else has read it");
    assert!(desk.startup().ok);
    let draining = HealthReport { server: ServerPhase::Draining, ..serving() };
    tell(&worker, &ToSupervisor::Report { question: None, report: draining });
    assert!(!desk.ready().ok);
    assert!(desk.startup().ok, "the start stays over");
    // What a worker said is forgotten with it.
    desk.connect(None);
    assert!(!desk.ready().ok && desk.startup().ok);
}

#[test]
fn what_the_supervisor_knows_outweighs_what_the_worker_said() {
    let desk = desk();
    let (ours, worker) = pair();
    desk.connect(Some(ours));
    tell(&worker, &ToSupervisor::Report { question: None, report: serving() });
    desk.stand(Standing { objection: Some("it hangs".to_owned()), ..Standing::default() });
    let ready = desk.ready();
    assert!(!ready.ok && ready.body.contains("[\"it hangs\"]"), "{}", ready.body);
    assert!(desk.live().ok);
    desk.stand(Standing { draining: true, ..Standing::default() });
    let ready = desk.ready();
    assert!(!ready.ok && ready.body.contains("draining"), "{}", ready.body);
    desk.stand(Standing { fatal: Some("over".to_owned()), ..Standing::default() });
    assert!(!desk.live().ok);
    desk.stand(Standing { parked: true, objection: Some("p".to_owned()), ..Standing::default() });
    assert!(desk.live().ok && desk.startup().ok && !desk.ready().ok);
}

#[test]
fn a_parked_sidecar_keeps_who_waits_for_it_waiting() {
    let desk = desk();
    let parked = Standing { parked: true, sidecar: true, ..Standing::default() };
    desk.stand(Standing { objection: Some("p".to_owned()), ..parked });
    assert!(!desk.startup().ok && desk.live().ok && !desk.ready().ok);
}

#[test]
fn a_parked_server_that_never_served_is_let_live() {
    let desk = desk();
    assert!(!desk.startup().ok);
    desk.stand(Standing { parked: true, objection: Some("p".to_owned()), ..Standing::default() });
    assert!(desk.startup().ok);
}

#[test]
fn a_worker_that_does_not_answer_costs_a_quarter_of_a_second() {
    let desk = desk();
    let (ours, worker) = pair();
    desk.connect(Some(ours));
    tell(&worker, &ToSupervisor::Report { question: None, report: serving() });
    let begun = Instant::now();
    let text = String::from_utf8(desk.metrics()).unwrap();
    assert!(text.contains("balm_worker_scrape_failures_total 1"), "{text}");
    let status: serde_json::Value = serde_json::from_slice(&desk.status()).unwrap();
    assert_eq!(status["models"][0]["name"], "iris", "what it said last");
    let took = begun.elapsed();
    assert!(took >= 2 * ANSWER_TIMEOUT && took < 8 * ANSWER_TIMEOUT, "{took:?}");
    // An answer that comes late is not taken for that of the next question.
    tell(&worker, &ToSupervisor::Metrics { question: 1, text: "late 1\n".to_owned() });
    assert!(!String::from_utf8(desk.metrics()).unwrap().contains("late"));
}

#[test]
fn nonsense_on_the_line_breaks_it_off() {
    use std::io::Write;
    let desk = desk();
    let (ours, mut worker) = pair();
    desk.connect(Some(ours));
    worker.write_all(b"\x02\0\0\0??").unwrap();
    assert!(desk.heard().broken);
    assert!(!desk.ready().ok);
}

/// The real other end, in this process.
#[test]
fn a_worker_ticks_and_asks_to_be_replaced() {
    let desk = desk();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let data = TcpListener::bind("127.0.0.1:0").unwrap();
    let data = Bound::tcp(data).unwrap();
    let hello = Hello {
        protocol: PROTOCOL,
        generation: 2,
        socket: SocketKind::Tcp,
        quarantine: Vec::new(),
    };
    hand_over(&ours, hello, data.as_fd(), None).unwrap();
    ours.set_nonblocking(true).unwrap();
    desk.connect(Some(ours));
    // It would leave the process when the line breaks, after so long.
    let (worker, handed) = Worker::begin_on(theirs, Duration::from_secs(3_600)).unwrap();
    assert_eq!(handed.listening().unwrap(), data.listening().unwrap());
    assert!(!worker.is_first());
    let mut ticks = Vec::new();
    let until = Instant::now() + Duration::from_secs(30);
    while ticks.len() < 3 && Instant::now() < until {
        ticks.extend(desk.heard().tick.map(|tick| tick.ticks));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(ticks.is_sorted() && ticks.len() == 3, "{ticks:?}");
    worker.closed();
    worker.replace_me(Cause::Gpu, "error 700".to_owned());
    let heard = desk.heard();
    assert!(heard.closed && !heard.broken);
    assert_eq!(heard.replace, Some((Cause::Gpu, "error 700".to_owned())));
    desk.say(&ToWorker::Drain);
    let mut told = worker.endings().hear();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(told.at_least(crate::ending::Ending::Drain));
    desk.connect(None);
    runtime.block_on(told.at_least(crate::ending::Ending::DrainNow));
}
