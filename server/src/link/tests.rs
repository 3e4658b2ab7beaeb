use super::*;
use balm_probes::quarantine::{QUARANTINED_MAX, REASON_CHARS_MAX};
use balm_probes::{Cause, HealthReport, Quarantined};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

fn pair() -> (UnixStream, UnixStream) {
    let (left, right) = UnixStream::pair().unwrap();
    left.set_nonblocking(true).unwrap();
    right.set_nonblocking(true).unwrap();
    (left, right)
}

fn hello() -> Hello {
    Hello { protocol: PROTOCOL, generation: 3, socket: SocketKind::Tcp, quarantine: Vec::new() }
}

#[test]
fn a_listener_travels_and_goes_on_listening() {
    let (supervisor, worker) = pair();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    hand_over(&supervisor, hello(), listener.as_fd(), None).unwrap();
    // What is said before the worker is there waits for it.
    let mut outgoing = Outgoing::default();
    outgoing.push(&ToWorker::Drain).unwrap();
    outgoing.flush(&supervisor).unwrap();
    drop(listener);
    let mut early = TcpStream::connect(address).unwrap();
    let mut received = receive(&worker).unwrap();
    assert_eq!(received.hello, hello());
    let (mut accepted, _) = TcpListener::from(received.socket).accept().unwrap();
    early.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    received.incoming.read(&worker).unwrap();
    assert_eq!(received.incoming.next::<ToWorker>().unwrap(), Some(ToWorker::Drain));
}

#[test]
fn a_greeting_may_be_as_long_as_anything_that_is_remembered() {
    let (supervisor, worker) = pair();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let longest = Quarantined {
        model: "m".repeat(255),
        version: u64::MAX,
        digest: "d".repeat(64),
        reason: "\u{1F525}".repeat(REASON_CHARS_MAX),
        at_ms: u64::MAX,
    };
    let hello = Hello { quarantine: vec![longest; QUARANTINED_MAX], ..hello() };
    hand_over(&supervisor, hello.clone(), listener.as_fd(), None).unwrap();
    assert_eq!(receive(&worker).unwrap().hello, hello);
}

#[test]
fn memory_travels_with_it_and_is_the_same_at_both_ends() {
    let (supervisor, worker) = pair();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let memory = tempfile::tempfile().unwrap();
    hand_over(&supervisor, hello(), listener.as_fd(), Some(memory.as_fd())).unwrap();
    let theirs = std::fs::File::from(receive(&worker).unwrap().memory.unwrap());
    theirs.write_all_at(b"x", 0).unwrap();
    drop((theirs, worker));
    let mut byte = [0];
    memory.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, *b"x");
}

#[test]
fn what_is_no_supervisor_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (supervisor, worker) = pair();
    assert!(matches!(receive(&worker), Err(HandoverError::Io(_))), "nothing there");
    let stranger = Hello { protocol: PROTOCOL + 1, ..hello() };
    hand_over(&supervisor, stranger, listener.as_fd(), None).unwrap();
    assert!(matches!(receive(&worker), Err(HandoverError::Protocol(_))));
    for bytes in [&b"\x02\0\0\0{}"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x01"] {
        let (mut supervisor, worker) = pair();
        supervisor.write_all(bytes).unwrap();
        assert!(receive(&worker).is_err(), "{bytes:?}");
    }
    let (supervisor, worker) = pair();
    let mut outgoing = Outgoing::default();
    outgoing.push(&ToWorker::Hello(hello())).unwrap();
    outgoing.flush(&supervisor).unwrap();
    assert!(matches!(receive(&worker), Err(HandoverError::NoSocket)));
}

#[test]
fn a_peer_that_does_not_read_costs_a_bounded_amount_of_memory() {
    let (worker, _supervisor) = pair();
    let mut outgoing = Outgoing::default();
    let text = "x".repeat(1 << 20);
    let mut kept = 0;
    for question in 0..100 {
        let message = ToSupervisor::Metrics { question, text: text.clone() };
        kept += usize::from(outgoing.push(&message).is_ok());
        outgoing.flush(&worker).unwrap();
    }
    assert!((30..=33).contains(&kept), "{kept}");
    let huge = ToSupervisor::Metrics { question: 0, text: "x".repeat(17 << 20) };
    assert!(matches!(Outgoing::default().push(&huge), Err(FrameError::TooLarge(_))));
}

#[test]
fn a_length_that_is_a_lie_is_not_believed() {
    let mut incoming = Incoming::default();
    incoming.push(&u32::MAX.to_le_bytes());
    assert!(matches!(incoming.next::<ToWorker>(), Err(FrameError::TooLarge(_))));
}

#[test]
fn a_peer_that_is_gone_is_seen_after_what_it_said() {
    let (worker, supervisor) = pair();
    let mut outgoing = Outgoing::default();
    outgoing.push(&ToSupervisor::Closed).unwrap();
    outgoing.flush(&worker).unwrap();
    drop(worker);
    let mut incoming = Incoming::default();
    assert!(!incoming.read(&supervisor).unwrap());
    assert_eq!(incoming.next().unwrap(), Some(ToSupervisor::Closed));
    assert_eq!(incoming.next::<ToSupervisor>().unwrap(), None);
}

fn any_message() -> impl Strategy<Value = ToSupervisor> {
    prop_oneof![
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(ticks, lag_ticks, in_flight)| {
            ToSupervisor::Tick(Tick { ticks, lag_ticks, in_flight })
        }),
        any::<Option<u64>>().prop_map(|question| ToSupervisor::Report {
            question,
            report: HealthReport { at_ms: 7, ..HealthReport::default() },
        }),
        (any::<u64>(), ".*").prop_map(|(question, text)| ToSupervisor::Metrics { question, text }),
        Just(ToSupervisor::Closed),
        any::<u64>().prop_map(|hash| ToSupervisor::Survived { hash }),
        ".*".prop_map(|detail| ToSupervisor::Replace { cause: Cause::Gpu, detail }),
    ]
}

proptest! {
    #[test]
    fn messages_arrive_whole_and_in_order(
        messages in proptest::collection::vec(any_message(), 0..20),
        piece in 1usize..50,
    ) {
        let mut outgoing = Outgoing::default();
        for message in &messages {
            outgoing.push(message).unwrap();
        }
        let mut incoming = Incoming::default();
        let mut found = Vec::new();
        for piece in outgoing.bytes().chunks(piece) {
            incoming.push(piece);
            while let Some(message) = incoming.next::<ToSupervisor>().unwrap() {
                found.push(message);
            }
        }
        prop_assert_eq!(found, messages);
    }

    /// Whatever bytes come: an error or a message, and no panic.
    #[test]
    fn noise_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut incoming = Incoming::default();
        incoming.push(&bytes);
        while let Ok(Some(_)) = incoming.next::<ToSupervisor>() {}
    }
}
