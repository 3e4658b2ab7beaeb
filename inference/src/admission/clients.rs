//! Fair shares: what each client has in the queue, so that one cannot fill it.
//!
//! A table of fixed size, indexed by a hash of the client's key. Two clients that fall on one place share one share; with as
//! many places as there are, that is rare, and harms nobody but the two.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PLACES: usize = if cfg!(feature = "loom") { 2 } else { 1024 };
/// Whoever asked within this time counts as a client that is here.
const HERE_FOR_MS: u64 = 10_000;
/// Who is here is counted anew this often.
const COUNT_EVERY_MS: u64 = 250;
/// Asked never.
const NEVER: u64 = 0;

/// A client's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client(u16);

impl Client {
    /// The place of the client whose key has this hash.
    pub(super) fn of(hash: u64) -> Self {
        // The upper half is as good as the lower, whatever the hash.
        let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        Client(u16::try_from(mixed % PLACES as u64).unwrap_or(0))
    }
}

#[derive(Debug, Default)]
struct Place {
    /// What its requests between admission and end are going to take, nanoseconds.
    backlog_ns: AtomicU64,
    /// When it last asked, milliseconds since the start, plus one.
    asked_ms: AtomicU64,
}

/// The clients of one queue.
#[derive(Debug)]
pub(super) struct Clients {
    places: Vec<Place>,
    here: AtomicU32,
    counted_ms: AtomicU64,
}

impl Default for Clients {
    fn default() -> Self {
        Clients {
            places: (0..PLACES).map(|_| Place::default()).collect(),
            here: AtomicU32::new(1),
            counted_ms: AtomicU64::new(NEVER),
        }
    }
}

impl Clients {
    /// The client asks. How many are here, itself included.
    pub(super) fn asks(&self, client: Client, now_ms: u64) -> u32 {
        let now = now_ms + 1;
        self.places[usize::from(client.0)].asked_ms.store(now, Ordering::Relaxed);
        let counted = self.counted_ms.load(Ordering::Relaxed);
        let due = counted == NEVER || now >= counted + COUNT_EVERY_MS;
        // Whoever is first counts for all.
        if due
            && self
                .counted_ms
                .compare_exchange(counted, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let here = self.places.iter().filter(|place| {
                let asked = place.asked_ms.load(Ordering::Relaxed);
                asked != NEVER && asked + HERE_FOR_MS >= now
            });
            self.here.store(u32::try_from(here.count()).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        self.here.load(Ordering::Relaxed).max(1)
    }

    /// What the client has in the queue, nanoseconds.
    pub(super) fn backlog_ns(&self, client: Client) -> u64 {
        self.places[usize::from(client.0)].backlog_ns.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, client: Client, ns: u64) {
        self.places[usize::from(client.0)].backlog_ns.fetch_add(ns, Ordering::AcqRel);
    }

    pub(super) fn take_off(&self, client: Client, ns: u64) {
        let before = self.places[usize::from(client.0)].backlog_ns.fetch_sub(ns, Ordering::AcqRel);
        debug_assert!(before >= ns, "a client's request was taken off twice");
    }
}

/// What one of `here` clients may have of a queue as long as `bound_ns`: twice its equal part, for they are not all here at once.
pub(super) fn share_ns(bound_ns: u64, here: u32) -> u64 {
    bound_ns.saturating_mul(2).checked_div(u64::from(here.max(2))).unwrap_or(bound_ns)
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let shares: Vec<u64> = [0, 1, 2, 3, 11, 1000].map(|here| share_ns(110, here)).to_vec();
        assert_eq!(shares, [110, 110, 110, 73, 20, 0]);
    }

    #[test]
    fn who_is_here_is_counted_now_and_then() {
        let clients = Clients::default();
        assert_eq!(clients.asks(Client(1), 0), 1);
        assert_eq!(clients.asks(Client(2), 10), 1, "not counted yet");
        assert_eq!(clients.asks(Client(3), 260), 3);
        assert_eq!(clients.asks(Client(3), 10_005), 2, "the first has gone");
        assert_eq!(clients.asks(Client(3), 30_000), 1);
    }

    #[test]
    fn keys_spread_over_the_table() {
        let mut places: Vec<u16> = (0..500u64).map(|key| Client::of(key).0).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 350, "{}", places.len());
    }
}
