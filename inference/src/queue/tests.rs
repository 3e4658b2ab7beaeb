use super::*;
use std::sync::mpsc;

/// Entries of a row each; those of the same hundred go together, the first hundred goes with nobody.
impl Entry for u32 {
    fn joins(&self, other: &Self) -> bool {
        self / 100 == other / 100 && *self >= 100
    }

    fn rows(&self) -> usize {
        1
    }

    fn class(&self) -> Class {
        Class::ALL[*self as usize / 1000 % Class::ALL.len()]
    }
}

fn pop(reader: &mut Reader<'_, u32>) -> Option<u32> {
    let mut batch = Vec::new();
    reader.pop(&mut batch, |_| 1).then(|| batch[0])
}

fn waiting(reader: &mut Reader<'_, u32>, rows_max: usize) -> Vec<u32> {
    let mut batch = Vec::new();
    reader.pop(&mut batch, |_| rows_max);
    batch
}

#[test]
fn what_goes_together_is_handed_out_together() {
    let queue = Queue::new(64);
    let mut reader = queue.reader();
    for entry in [100, 200, 101, 1, 102, 103, 201, 2] {
        queue.push(entry).unwrap();
    }
    assert_eq!(waiting(&mut reader, 3), [100, 101, 102], "as many rows as a run may have");
    assert_eq!(waiting(&mut reader, 8), [200, 201]);
    assert_eq!(waiting(&mut reader, 8), [1], "some go with nobody");
    queue.put_back([110, 111].into_iter());
    assert_eq!(waiting(&mut reader, 8), [110, 111, 103], "back to the front, in order");
    assert_eq!(waiting(&mut reader, 8), [2]);
    queue.close();
    assert_eq!(waiting(&mut reader, 8), [0; 0]);
}

#[test]
fn critical_goes_first_and_the_others_now_and_then() {
    let queue = Queue::new(256);
    let mut reader = queue.reader();
    for round in 0..30 {
        for class in [3000, 1000, 0] {
            queue.push(class + round).unwrap();
        }
    }
    let order: Vec<u32> = (0..30).map(|_| waiting(&mut reader, 1)[0] / 1000).collect();
    assert_eq!(order.iter().filter(|class| **class == 0).count(), 29, "{order:?}");
    assert_ne!(order[19], 0, "{order:?}");
    let rest: Vec<u32> = (0..60).map(|_| waiting(&mut reader, 1)[0]).collect();
    assert_eq!(rest.len(), 60, "nothing is lost");
    assert!(rest.iter().position(|entry| *entry >= 3000) < Some(40));
}

#[test]
fn a_queue_stands_since_it_was_empty() {
    let queue = Queue::new(8);
    let mut reader = queue.reader();
    let later = Instant::now() + Duration::from_secs(1);
    assert_eq!(queue.standing(later), Duration::ZERO);
    queue.push(1).unwrap();
    queue.push(2).unwrap();
    let standing = queue.standing(later);
    assert!(standing > Duration::from_millis(900) && standing <= Duration::from_secs(1));
    waiting(&mut reader, 1);
    assert!(queue.standing(later) >= standing, "one is left");
    waiting(&mut reader, 1);
    assert_eq!(queue.standing(later), Duration::ZERO);
}

#[test]
fn lanes_that_sleep_get_their_part_of_long_runs() {
    for (run, expected) in [(Duration::from_millis(5), 3), (Duration::from_nanos(100), 9)] {
        let queue = Queue::new(64);
        queue.learn(run);
        let mut reader = queue.reader();
        for entry in 100..109 {
            queue.push(entry).unwrap();
        }
        // Two others are on their way.
        queue.state.lock().waking = 2;
        assert_eq!(waiting(&mut reader, 64).len(), expected, "{run:?}");
    }
}

#[test]
fn lingering_ends_when_the_run_is_full_or_the_time_is_over() {
    let queue = Arc::new(Queue::new(64));
    let long = Duration::from_secs(20);
    for (learned, late) in [(Duration::ZERO, true), (long, true), (long, false)] {
        queue.learn(learned);
        queue.push(100).unwrap();
        let mut reader = queue.reader();
        let mut batch = waiting(&mut reader, 3);
        let pusher = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                for entry in (101..=102).filter(|_| late) {
                    queue.push(entry).unwrap();
                    queue.wake_for_burst();
                }
            }
        });
        let limit = if late { long } else { Duration::from_millis(5) };
        let begun = Instant::now();
        reader.linger(&mut batch, 3, begun + limit);
        pusher.join().unwrap();
        assert_eq!(batch.len(), if late { 3 } else { 1 });
        assert_eq!(begun.elapsed() < limit, late);
        let state = queue.state.lock();
        assert_eq!((state.busy, state.waking, state.idle.len()), (1, 0, 0));
        drop(state);
        drop(reader);
    }
}

#[test]
fn is_bounded_and_first_in_first_out() {
    let queue = Queue::new(2);
    let mut reader = queue.reader();
    assert_eq!(queue.push(1), Ok(()));
    assert_eq!(queue.push(2), Ok(()));
    assert_eq!(queue.push(3), Err(Refused::Full(3)));
    assert_eq!(pop(&mut reader), Some(1));
    queue.close();
    assert_eq!(queue.push(4), Err(Refused::Closed(4)));
    assert_eq!(pop(&mut reader), Some(2), "what waited is still handed out");
    assert_eq!(pop(&mut reader), None);
}

#[test]
fn no_entry_is_lost_between_threads() {
    for run in [Duration::ZERO, Duration::from_secs(1)] {
        let queue = Arc::new(Queue::new(64));
        queue.learn(run);
        let sum = Arc::new(AtomicU64::new(0));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (queue, sum) = (Arc::clone(&queue), Arc::clone(&sum));
                std::thread::spawn(move || {
                    let mut reader = queue.reader();
                    let mut batch = Vec::new();
                    while reader.pop(&mut batch, |_| 8) {
                        let taken: u32 = batch.drain(..).sum();
                        sum.fetch_add(taken.into(), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut expected = 0;
        for entry in 0..20_000u32 {
            let mut entry = entry;
            while let Err(Refused::Full(back)) = queue.push(entry) {
                entry = back;
                queue.wake_for_burst();
                std::thread::yield_now();
            }
            expected += u64::from(entry);
        }
        queue.close();
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(sum.load(Ordering::Relaxed), expected);
    }
}

/// A reader thread that announces what it takes and goes on when it is told to.
fn reader(queue: &Arc<Queue<u32>>, taken: &mpsc::SyncSender<u32>) -> mpsc::SyncSender<()> {
    let (go, gone) = mpsc::sync_channel(64);
    let (queue, taken) = (Arc::clone(queue), taken.clone());
    std::thread::spawn(move || {
        let mut reader = queue.reader();
        while let Some(entry) = pop(&mut reader) {
            taken.send(entry).unwrap();
            let _ = gone.recv();
        }
    });
    go
}

fn until_idle(queue: &Queue<u32>, readers: usize) {
    while queue.state.lock().idle.len() < readers {
        std::thread::yield_now();
    }
}

#[test]
fn short_runs_wake_nobody_while_a_lane_is_awake_and_a_nudge_does() {
    let queue = Arc::new(Queue::new(64));
    queue.learn(Duration::from_micros(5));
    let (sender, taken) = mpsc::sync_channel(64);
    let goes = [reader(&queue, &sender), reader(&queue, &sender)];
    until_idle(&queue, 2);
    queue.push(0).unwrap();
    queue.push(1).unwrap();
    assert_eq!(queue.state.lock().idle.len(), 2, "nobody is woken in the middle of a burst");
    queue.wake_for_burst();
    queue.wake_for_burst();
    assert_eq!(taken.recv(), Ok(0));
    queue.push(2).unwrap();
    queue.wake_for_burst();
    assert_eq!(queue.state.lock().idle.len(), 1, "the other lane sleeps on");
    goes[0].send(()).unwrap();
    goes[1].send(()).unwrap();
    assert_eq!(taken.recv(), Ok(1));
    queue.nudge();
    assert_eq!(taken.recv(), Ok(2), "until somebody has waited too long");
    queue.close();
}

#[test]
fn long_runs_wake_a_lane_for_each() {
    let queue = Arc::new(Queue::new(64));
    queue.learn(Duration::from_millis(10));
    let (sender, taken) = mpsc::sync_channel(64);
    let _goes = [reader(&queue, &sender), reader(&queue, &sender)];
    until_idle(&queue, 2);
    queue.push(1).unwrap();
    queue.push(2).unwrap();
    let mut both = [taken.recv().unwrap(), taken.recv().unwrap()];
    both.sort_unstable();
    assert_eq!(both, [1, 2]);
    queue.close();
}

#[test]
fn a_lane_that_dies_hands_on_what_was_left_to_it() {
    let queue = Arc::new(Queue::new(64));
    queue.learn(Duration::from_micros(5));
    let (sender, taken) = mpsc::sync_channel(64);
    let go = reader(&queue, &sender);
    until_idle(&queue, 1);
    let mut dying = queue.reader();
    queue.push(1).unwrap();
    queue.wake_for_burst();
    assert_eq!(taken.recv(), Ok(1), "the sleeper was woken: nobody was awake");
    drop(go);
    until_idle(&queue, 1);
    // This thread takes the second before the sleeper can be told, then leaves with a third left to it.
    queue.state.lock().busy = 0;
    queue.state.lock().waiting.push_back(2);
    assert_eq!(pop(&mut dying), Some(2));
    queue.push(3).unwrap();
    queue.wake_for_burst();
    assert_eq!(queue.state.lock().idle.len(), 1, "left to the lane that is awake");
    drop(dying);
    assert_eq!(taken.recv(), Ok(3));
    queue.close();
}
