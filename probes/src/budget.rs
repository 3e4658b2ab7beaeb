//! A budget for repairs: so many within a window, then no more until the oldest has aged.
//!
//! The rule is the restart intensity of an OTP supervisor: what must be repaired too often is not repaired but
//! reported upward.

use std::collections::VecDeque;

/// At most `limit` repairs within any `window_ms`.
#[derive(Clone, Debug)]
pub struct RepairBudget {
    limit: usize,
    window_ms: u64,
    spent_at_ms: VecDeque<u64>,
}

impl RepairBudget {
    /// A budget of `limit` repairs per `window_ms` milliseconds. A limit of zero allows none.
    pub fn new(limit: usize, window_ms: u64) -> Self {
        RepairBudget { limit, window_ms, spent_at_ms: VecDeque::with_capacity(limit) }
    }

    /// Spends one repair at `now_ms`, a monotonic clock's milliseconds. False when the budget is used up.
    pub fn try_spend(&mut self, now_ms: u64) -> bool {
        if self.spent(now_ms) >= self.limit {
            return false;
        }
        self.spent_at_ms.push_back(now_ms);
        true
    }

    /// Repairs of the window that ends at `now_ms`.
    pub fn spent(&mut self, now_ms: u64) -> usize {
        while self
            .spent_at_ms
            .front()
            .is_some_and(|spent| now_ms.saturating_sub(*spent) >= self.window_ms)
        {
            self.spent_at_ms.pop_front();
        }
        self.spent_at_ms.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn is_used_up_and_comes_back_with_time() {
        let mut budget = RepairBudget::new(2, 1_000);
        assert!(budget.try_spend(0));
        assert!(budget.try_spend(10));
        assert!(!budget.try_spend(999));
        assert!(budget.try_spend(1_000), "the first has aged");
        assert!(!budget.try_spend(1_009));
        assert!(budget.try_spend(1_010));
        assert_eq!((budget.spent(1_010), budget.spent(1_999), budget.spent(2_000)), (2, 2, 1));
        assert!(!RepairBudget::new(0, 1).try_spend(5));
    }

    proptest! {
        /// In no window of the given width are there more repairs than allowed.
        #[test]
        fn never_more_than_the_limit_in_a_window(
            gaps in proptest::collection::vec(0u64..50, 1..300),
            limit in 1usize..6,
        ) {
            let window = 100;
            let mut budget = RepairBudget::new(limit, window);
            let mut now = 0;
            let mut granted: Vec<u64> = Vec::new();
            for gap in gaps {
                now += gap;
                if budget.try_spend(now) {
                    granted.push(now);
                }
            }
            for start in &granted {
                let inside = granted.iter().filter(|at| **at >= *start && **at < start + window);
                prop_assert!(inside.count() <= limit);
            }
        }
    }
}
