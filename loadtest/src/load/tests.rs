use super::*;
use crate::arrivals::Shape;
use crate::client::tests::scripted;
use crate::oip;

fn plan(address: SocketAddr, rate: f64) -> Plan {
    let request =
        Request::post("/").header("host", "x").body(Full::new(Bytes::from_static(b"end"))).unwrap();
    Plan {
        address,
        protocol: Protocol::Http1,
        clients: vec![Client {
            requests: vec![request],
            judge: None,
            deadline: None,
            max_outstanding: 100,
            retries: 0,
            backoff: Duration::from_millis(1),
            abandon_after: None,
            timeout: Duration::from_secs(10),
        }],
        phases: vec![Phase {
            length: Duration::from_millis(200),
            arrivals: vec![(0, Pattern { shape: Shape::Constant(rate), random: false })],
            sampled: false,
        }],
        coalesce: Duration::ZERO,
        bucket: Duration::from_millis(50),
        seed: 1,
        enough: Rc::default(),
        each: None,
        give_up: Duration::from_secs(10),
        grace: Duration::from_secs(10),
    }
}

async fn ran(plan: Plan) -> Finished {
    run(plan, std::future::pending(), |_| {}).await.unwrap()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const FULL: &[u8] = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn every_arrival_is_sent_and_counted() {
    let address = scripted(OK.to_vec(), b"end", usize::MAX).await;
    let finished = ran(plan(address, 500.0)).await;
    let tally = &finished.recorder.tallies[0][0];
    assert_eq!((tally.offered, tally.sent, tally.accepted, tally.succeeded), (100, 100, 100, 100));
    assert!(finished.partial.is_none() && finished.seconds_busy[0] > 0.0);
}

#[tokio::test]
async fn arrivals_do_not_wait_for_answers_and_their_wait_is_counted() {
    // Answers nothing; the bound on what is in flight is the only thing that holds requests back.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plan = plan(listener.local_addr().unwrap(), 500.0);
    plan.clients[0].max_outstanding = 30;
    plan.clients[0].timeout = Duration::from_secs(1);
    plan.grace = Duration::from_secs(20);
    let finished = ran(plan).await;
    let tally = &finished.recorder.tallies[0][0];
    assert_eq!((tally.offered, tally.sent, tally.not_sent), (100, 30, 70));
    assert_eq!((tally.errors[TIMED_OUT], tally.failed), (30, 30));
}

#[tokio::test]
async fn retries_are_further_attempts_of_one_request() {
    let address = scripted(FULL.to_vec(), b"end", usize::MAX).await;
    let mut plan = plan(address, 50.0);
    plan.clients[0].retries = 2;
    let tally = ran(plan).await.recorder.tallies[0][0].clone();
    assert_eq!((tally.offered, tally.sent, tally.statuses[&503], tally.failed), (10, 30, 30, 10));
}

#[tokio::test]
async fn abandoned_requests_take_their_connection_along() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plan = plan(listener.local_addr().unwrap(), 50.0);
    plan.clients[0].abandon_after = Some(Duration::from_millis(5));
    let closed = tokio::spawn(async move {
        let mut closed = 0;
        while closed < 10 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            // To the end of the connection, which is the client's doing.
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all).await.unwrap();
            closed += 1;
        }
    });
    let tally = ran(plan).await.recorder.tallies[0][0].clone();
    assert_eq!((tally.abandoned, tally.sent, tally.failed), (10, 10, 10));
    closed.await.unwrap();
}

#[tokio::test]
async fn a_target_that_is_gone_ends_the_run_and_what_was_seen_is_kept() {
    let mut plan = plan("127.0.0.1:1".parse().unwrap(), 100.0);
    plan.phases[0].length = Duration::from_secs(600);
    plan.give_up = Duration::from_millis(300);
    let finished = ran(plan).await;
    let reason = finished.partial.unwrap();
    assert!(reason.contains("the target has answered nothing"), "{reason}");
    let tally = &finished.recorder.tallies[0][0];
    assert!(tally.errors["refused"] > 0 && tally.errors["down"] > 0);
}

#[tokio::test]
async fn a_run_can_be_stopped() {
    let address = scripted(OK.to_vec(), b"end", usize::MAX).await;
    let mut plan = plan(address, 100.0);
    plan.phases[0].length = Duration::from_secs(600);
    let stop = async {
        sleep(Duration::from_millis(100)).await;
        "interrupted".to_owned()
    };
    let finished = run(plan, stop, |_| {}).await.unwrap();
    assert_eq!(finished.partial.as_deref(), Some("interrupted"));
    assert!(finished.recorder.tallies[0][0].accepted > 0);
}

#[tokio::test]
async fn answers_of_another_size_are_wrong_and_late_ones_late() {
    let address = scripted(OK.to_vec(), b"end", usize::MAX).await;
    let mut plan = plan(address, 50.0);
    plan.clients[0].judge =
        Some(Rc::new(|reply| oip::judge_size(8, reply.header_length, &reply.body).is_ok()));
    plan.clients[0].deadline = Some(Duration::ZERO);
    let tally = ran(plan).await.recorder.tallies[0][0].clone();
    assert_eq!((tally.accepted, tally.wrong, tally.late, tally.good_within), (10, 10, 10, 0));
}

#[tokio::test]
async fn requests_that_go_out_together_are_none_the_fewer() {
    let address = scripted(OK.to_vec(), b"end", usize::MAX).await;
    let mut plan = plan(address, 500.0);
    plan.coalesce = Duration::from_millis(20);
    let finished = ran(plan).await;
    assert_eq!(finished.recorder.tallies[0][0].accepted, 100);
    // That they wait for each other is not hidden.
    assert!(finished.recorder.lags_us[0].value_at_quantile(0.5) > 5000);
}

#[test]
fn clients_are_merged_in_time() {
    let even = |rate| Pattern { shape: Shape::Constant(rate), random: false };
    let phase = Phase {
        length: Duration::from_secs(1),
        arrivals: vec![(3, even(4.0)), (5, even(2.0))],
        sampled: false,
    };
    let found: Vec<_> =
        Merged::new(&phase, 1, 0).map(|(at, client)| (at.as_millis(), client)).collect();
    assert_eq!(found, [(125, 3), (250, 5), (375, 3), (625, 3), (750, 5), (875, 3)]);
    // Random ones differ from phase to phase.
    let phase = Phase {
        arrivals: vec![(0, Pattern { shape: Shape::Constant(50.0), random: true })],
        ..phase
    };
    let draw = |index| Merged::new(&phase, 1, index).collect::<Vec<_>>();
    assert!(draw(0) == draw(0) && draw(0) != draw(1));
}
