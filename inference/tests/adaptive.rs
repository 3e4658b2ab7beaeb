//! Lanes that feed a device, scripted: as many run at once as do more work, whoever panics, leaves or closes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod scripted;

use balm_inference::predict::PredictError;
use scripted::{ECHO, HANG, House, PANIC, Script, add_version};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Runs are not shared: how many there are is what this is about.
const SETTINGS: &str =
    "adaptive_lanes = true\n[limits]\nmax_wait_ms = 20000\n[batching]\nenabled = false\n";
const LANES: usize = 6;

fn house(slots: u64) -> Arc<House> {
    let script = Script { slots: AtomicU64::new(slots), ..Script::default() };
    Arc::new(House::made(LANES, SETTINGS, script).settled(LANES))
}

fn limit(house: &House) -> u32 {
    house.models.model("m").unwrap().serving(None).unwrap().running_max()
}

/// Clients that ask again and again until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    limit_max: Arc<AtomicU32>,
    clients: Vec<JoinHandle<u64>>,
}

impl Load {
    fn on(house: &Arc<House>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let limit_max = Arc::new(AtomicU32::new(0));
        let clients = (0..16).map(|_| {
            let (house, stop, limit_max) =
                (Arc::clone(house), Arc::clone(&stop), Arc::clone(&limit_max));
            tokio::spawn(async move {
                let mut answers = 0;
                while !stop.load(Ordering::SeqCst) {
                    limit_max.fetch_max(limit(&house), Ordering::SeqCst);
                    house.ask(ECHO).await.unwrap();
                    answers += 1;
                }
                answers
            })
        });
        let clients = clients.collect();
        Load { stop, limit_max, clients }
    }

    /// How many answers there were in all, and the highest limit that was seen.
    async fn stop(self) -> (u64, u32) {
        self.stop.store(true, Ordering::SeqCst);
        let mut answers = 0;
        for client in self.clients {
            answers += client.await.unwrap();
        }
        (answers, self.limit_max.load(Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_grows_where_runs_do_more_and_falls_where_they_slow_each_other_down() {
    let house = house(4);
    assert_eq!(limit(&house), 1);
    let load = Load::on(&house);
    house.until("used as far as it goes", |house| limit(house) >= 3);
    house.script.slots.store(1, Ordering::SeqCst);
    house.until("crowded no more", |house| limit(house) == 1);
    house.script.slots.store(4, Ordering::SeqCst);
    house.until("used again", |house| limit(house) >= 3);
    let (answers, limit_max) = load.stop().await;
    assert_eq!(house.runs(), answers, "nothing is lost, nothing is run twice");
    let running_max = house.script.running_max.load(Ordering::SeqCst);
    assert!(
        running_max <= u64::from(limit_max),
        "{running_max} at once, the limit was {limit_max}"
    );
    house.until("idle", |house| house.idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_for_one_is_not_crowded() {
    let house = house(1);
    let load = Load::on(&house);
    house.until("some windows", |house| house.runs() > 300);
    let (_, limit_max) = load.stop().await;
    let running_max = house.script.running_max.load(Ordering::SeqCst);
    // Two are tried where the limit is one.
    assert!(running_max <= u64::from(limit_max.max(2)), "{running_max}, limit {limit_max}");
    assert!(limit_max <= 2, "{limit_max}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_gives_its_place_to_another_lane() {
    let house = house(4);
    for _ in 0..3 {
        assert_eq!(house.ask(PANIC).await.unwrap_err(), PredictError::LaneLost);
        assert!(house.ask(ECHO).await.is_ok(), "with a limit of one, another lane has the place");
    }
    house.until("lanes replaced", |house| house.healthy() as usize == LANES);
    assert_eq!(limit(&house), 1);
    house.until("idle", |house| house.idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_when_a_version_goes_is_answered() {
    let house = house(0);
    let hanging = house.submit(HANG, Duration::from_secs(20)).unwrap();
    house.until("running", |house| house.runs() == 1);
    let waiting: Vec<_> =
        (0..10).map(|_| house.submit(ECHO, Duration::from_secs(20)).unwrap()).collect();
    add_version(house.repository.path(), "m", 2, "digits");
    house.models.load("m").unwrap();
    assert_eq!(house.runs(), 1, "the one that hangs has the only place");
    drop(hanging);
    for pending in waiting {
        assert!(pending.wait().await.is_ok());
    }
    house.until("idle", |house| house.idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_cpu_all_lanes_run_unless_somebody_asks() {
    let script = Script { slots: AtomicU64::new(8), ..Script::default() };
    let settings = SETTINGS.replace("adaptive_lanes = true\n", "");
    let house = Arc::new(House::made(LANES, &settings, script).settled(LANES));
    assert_eq!(limit(&house) as usize, LANES);
    let load = Load::on(&house);
    house.until("all at once", |house| {
        house.script.running_max.load(Ordering::SeqCst) == LANES as u64
    });
    load.stop().await;
}

#[test]
fn where_the_first_provider_is_a_device_the_limit_is_learned() {
    let table = [
        ("providers = [\"cuda\", \"cpu\"]", 1),
        ("providers = [\"cuda\", \"cpu\"]\nadaptive_lanes = false", LANES),
        ("providers = [\"cpu\"]", LANES),
    ];
    for (settings, expected) in table {
        let house = House::made(LANES, settings, Script::default()).settled(LANES);
        assert_eq!(limit(&house) as usize, expected, "{settings}");
    }
}
