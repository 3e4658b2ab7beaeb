use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn the_limit_follows_what_was_seen() {
    let seen = |running, slowness, gain| Seen { running, slowness, gain };
    let table = [
        // limit, seen → next
        (4.0, seen(1.9, 9.0, Some(1.0)), 4.0, "not used up"),
        (4.0, seen(4.0, 1.0, None), 4.0, "nothing to compare: no growth"),
        (4.0, seen(4.0, 1.0, Some(0.5)), 4.0, "more does little more: no growth"),
        (4.0, seen(4.0, 1.0, Some(0.9)), 4.2, "more does more"),
        (1.0, seen(1.0, 1.0, Some(0.9)), 1.2, "from the beginning"),
        (4.0, seen(4.0, 9.0, Some(0.9)), 4.2, "slower, but not by waiting for each other"),
        (4.0, seen(4.0, 1.5, None), 4.0, "within the tolerance"),
        (4.0, seen(4.0, 2.0, None), 3.8, "slower: by the gradient"),
        (4.0, seen(4.0, 9.0, None), 3.6, "much slower: by half at most"),
        (4.0, seen(4.0, 1.0, Some(0.0)), 3.8, "in each other's way: one less"),
        (4.0, seen(4.0, 1.0, Some(-1.0)), 3.8, "in each other's way: one less"),
        (8.0, seen(8.0, 1.0, Some(1.0)), 8.0, "no more than lanes"),
        (1.0, seen(1.0, 9.0, Some(0.0)), 1.0, "no fewer than one"),
    ];
    for (limit, seen, expected, why) in table {
        let found = next(limit, 8.0, &seen);
        assert!((found - expected).abs() < 1e-9, "{why}: {found}, expected {expected}");
    }
}

#[test]
fn gain_is_the_growth_of_work_in_parts_of_the_growth_of_runs() {
    let points = |of: &[(f64, f64)]| {
        of.iter().map(|(running, work)| Point { running: *running, work: *work }).collect()
    };
    let repeated = |few: &[(f64, f64)]| points(&few.repeat(3));
    assert_eq!(gain(&points(&[(1.0, 1.0), (2.0, 2.0)])), None, "too few");
    assert_eq!(gain(&repeated(&[(4.0, 1.0), (4.1, 2.0)])), None, "too much alike");
    let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-9;
    assert!(near(gain(&repeated(&[(4.0, 40.0), (5.0, 50.0)])), 1.0));
    assert!(near(gain(&repeated(&[(4.0, 40.0), (5.0, 40.0)])), 0.0));
    assert!(gain(&repeated(&[(4.0, 40.0), (5.0, 30.0)])).unwrap() < 0.0);
}

/// A device that does `slots` runs at once in `base` each, and more of them in proportion longer, under more load than it can
/// carry. Time is made up; what varies is drawn from a fixed seed.
struct Device {
    adaptive: Adaptive,
    now: Instant,
    slots: u32,
    base: Duration,
    /// When those in progress end, and what they take.
    running: Vec<(Instant, Duration)>,
    seed: u64,
    shedding: bool,
    /// Runs that wait besides, at most: less than all lanes can take is little load.
    offered: usize,
}

impl Device {
    fn new(lanes: u32, slots: u32) -> Self {
        let now = Instant::now();
        Device {
            adaptive: Adaptive::new(lanes, now),
            now,
            slots,
            base: Duration::from_millis(5),
            running: Vec::new(),
            seed: 42,
            shedding: false,
            offered: usize::MAX,
        }
    }

    /// Between 0.9 and 1.1.
    fn noise(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        0.9 + 0.2 * ((self.seed >> 33) as f64 / f64::from(1u32 << 31))
    }

    fn run(&mut self, runs: usize) {
        for _ in 0..runs {
            while self.running.len() < self.offered && self.adaptive.begin(self.now) {
                let crowd = (self.running.len() + 1) as f64 / f64::from(self.slots);
                let takes = self.base.mul_f64(crowd.max(1.0) * self.noise());
                self.running.push((self.now + takes, takes));
            }
            assert!(self.running.len() <= self.adaptive.lanes as usize);
            let first = (0..self.running.len()).min_by_key(|at| self.running[*at].0).unwrap();
            let (end, time) = self.running.swap_remove(first);
            self.now = end;
            let ran = Ran { time, rows: 1, elements: 8, shedding: self.shedding };
            self.adaptive.ran(&ran, self.now);
            self.adaptive.end(self.now);
        }
    }

    /// How often the limit is so much, of 500 times.
    fn settled(&mut self) -> BTreeMap<u32, u32> {
        self.run(20_000);
        let mut limits = BTreeMap::new();
        for _ in 0..500 {
            self.run(40);
            *limits.entry(self.adaptive.limit()).or_insert(0) += 1;
        }
        limits
    }

    /// Nearly always within one of the slots, and never far from it.
    fn settles(&mut self, slots: u32) {
        self.slots = slots;
        let limits = self.settled();
        let near = |by: u32| limits.iter().filter(move |(limit, _)| limit.abs_diff(slots) <= by);
        let often: u32 = near(1).map(|(_, times)| times).sum();
        assert!(often >= 450 && near(2).count() == limits.len(), "{slots} slots: {limits:?}");
    }
}

#[test]
fn it_settles_where_the_device_is_full_and_follows_it() {
    for seed in 0..5 {
        for slots in [1, 2, 3, 4, 6, 8, 12] {
            let mut device = Device::new(16, slots);
            device.seed = seed;
            device.settles(slots);
            device.settles(13 - slots);
            device.settles(slots);
        }
    }
}

#[test]
fn what_is_not_elastic_gets_no_more_than_its_lanes() {
    let mut device = Device::new(4, 64);
    let limits = device.settled();
    assert!(limits.keys().all(|limit| (3..=4).contains(limit)), "{limits:?}");
}

#[test]
fn little_load_says_nothing_of_the_limit() {
    let mut device = Device::new(16, 8);
    device.settled();
    device.offered = 2;
    // The window that is open has both loads in it.
    device.run(200);
    let before = device.adaptive.limit;
    device.run(20_000);
    assert_eq!(device.adaptive.limit, before);
}

#[test]
fn overload_does_not_become_the_baseline() {
    let baseline = |device: &Device| device.adaptive.baselines[3].seconds;
    for shedding in [true, false] {
        let mut device = Device::new(16, 4);
        device.run(400);
        let before = baseline(&device);
        // Everything takes three times as long, for long.
        (device.shedding, device.base) = (shedding, Duration::from_millis(15));
        device.run(20_000);
        let drifted = baseline(&device) > 2.0 * before;
        assert_eq!(drifted, !shedding, "{before} became {}", baseline(&device));
        let limit = device.adaptive.limit();
        assert!(
            (3..=5).contains(&limit),
            "a device that is slow, not crowded, is used as before: {limit}"
        );
    }
}

#[test]
fn a_faster_device_has_a_new_baseline_soon() {
    let mut device = Device::new(1, 1);
    device.run(1000);
    device.base = Duration::from_millis(1);
    device.run(500);
    assert!(device.adaptive.baselines[3].seconds < 0.003);
}

proptest! {
    /// Whatever happens, no more run than are allowed, and allowed is between one and the lanes.
    #[test]
    fn it_stays_within_bounds(
        lanes in 1u32..20,
        steps in proptest::collection::vec((0..3u8, 0..200_000u64, 1..5_000usize), 0..2_000),
    ) {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new(lanes, now);
        let mut running = 0;
        for (step, micros, rows) in steps {
            now += Duration::from_micros(micros);
            match step {
                0 if adaptive.begin(now) => {
                    running += 1;
                    prop_assert!(running <= adaptive.allowed());
                }
                1 if running > 0 => {
                    adaptive.end(now);
                    running -= 1;
                }
                _ => {
                    let time = Duration::from_micros(micros);
                    adaptive.ran(&Ran { time, rows, elements: rows, shedding: rows % 2 == 0 }, now);
                }
            }
            prop_assert_eq!(adaptive.running, running);
            prop_assert!((1..=lanes).contains(&adaptive.limit()) && (1..=lanes).contains(&adaptive.allowed()));
        }
    }
}
