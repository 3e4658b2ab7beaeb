//! How long a thread was on a processor, as Linux counts it.

use std::fs;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;

/// Number of the calling thread in the system.
pub(super) fn current() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Time that the thread `number` of this process was on a processor, milliseconds. `None` where the system does not say.
///
/// `schedstat` counts nanoseconds; kernels without scheduling statistics have only `stat`, in ticks of 10 ms.
pub(super) fn spent_ms(number: i32) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/task/{number}/{file}")).ok();
    if let Some(ms) = read("schedstat").and_then(|text| of_schedstat(&text)) {
        return Some(ms);
    }
    of_stat(&read("stat")?, rustix::param::clock_ticks_per_second())
}

/// The first number: nanoseconds on a processor.
fn of_schedstat(text: &str) -> Option<u64> {
    let ns: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(ns / MS)
}

/// The times in user and kernel mode, the 14th and 15th field. The second is a name in brackets, which may hold anything.
fn of_stat(text: &str, ticks_per_second: u64) -> Option<u64> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let both = ticks()?.checked_add(ticks()?)?;
    both.checked_mul(1_000)?.checked_div(ticks_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    #[test]
    fn both_files_are_read() {
        assert_eq!(of_schedstat("2345678901 17 9\n"), Some(2_345));
        assert_eq!(of_schedstat("\n"), None);
        let stat = "4711 (lane0-a) b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0";
        assert_eq!(of_stat(stat, 100), Some(2_000));
        assert_eq!(of_stat(stat, 0), None);
        assert_eq!(of_stat("4711 (lane0) S 1 2", 100), None);
        assert_eq!(of_stat("", 100), None);
    }

    #[test]
    fn a_thread_that_computes_is_told_from_one_that_sleeps() {
        let (me, end) = (current(), Instant::now() + Duration::from_secs(20));
        let before = spent_ms(me).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let slept = spent_ms(me).unwrap() - before;
        assert!(slept <= 25, "{slept}");
        while spent_ms(me).unwrap() - before < 40 {
            black_box((0..100_000u64).sum::<u64>());
            assert!(Instant::now() < end, "it computes and is not seen to");
        }
        assert_eq!(spent_ms(-1), None);
    }
}
