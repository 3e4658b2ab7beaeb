//! What runs cost, learned: nanoseconds per row, by the shape of a row and by how many rows ran together.
//!
//! Two questions are answered from it: how many rows a run should have ([`CostTable::rows_max`]), and what a request that comes
//! will take ([`CostTable::row_ns`]). Everything is a plain atomic that the next run overwrites: lanes that learn at the same time
//! may lose a lesson, never more.

use crate::tensor::Tensor;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Shapes that are told apart: by the power of two that the elements of a row come next to.
const SHAPES: usize = 24;
/// Numbers of rows that are told apart: 1, 2, 4 … 4096.
const SIZES: usize = 13;
/// A run's share in what was learned: 1/8.
const LEARNING_SHIFT: u32 = 3;
/// Nothing learned yet.
const UNKNOWN: u64 = 0;
/// Twice the rows must save this part of the cost of a row, or runs stay as small as they are: 1/40. It is only asked while more
/// rows wait than one run takes, and then a fortieth of a row's cost, for every row, is more than the wait for a longer run.
const WORTH: u64 = 40;
/// A size that did not pay is tried again after so many runs that could have been larger.
const TRY_AGAIN_AFTER: u32 = 512;

/// How large the rows of a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(u8);

impl Shape {
    /// The shape of requests with `rows` rows in `inputs`.
    pub(crate) fn of(inputs: &[Tensor], rows: usize) -> Self {
        let elements: usize = inputs.iter().map(Tensor::element_count).sum();
        Shape(u8::try_from(power(elements / rows.max(1), SHAPES)).unwrap_or(0))
    }
}

/// The power of two next below `count`, at most `limit` − 1.
fn power(count: usize, limit: usize) -> usize {
    (count.max(1).ilog2() as usize).min(limit - 1)
}

/// Costs of one model version.
#[derive(Debug)]
pub(crate) struct CostTable {
    shapes: Vec<ShapeCost>,
}

#[derive(Debug, Default)]
struct ShapeCost {
    /// Nanoseconds per row by number of rows.
    by_size: [AtomicU64; SIZES],
    /// Nanoseconds per row of late, whatever the number.
    row_ns: AtomicU64,
    /// Runs that were not larger because that had not paid.
    held: AtomicU32,
}

impl Default for CostTable {
    fn default() -> Self {
        CostTable { shapes: (0..SHAPES).map(|_| ShapeCost::default()).collect() }
    }
}

impl CostTable {
    /// A run with `rows` rows of `shape` took `run`.
    pub(crate) fn learn(&self, shape: Shape, rows: usize, run: Duration) {
        let rows = rows.max(1);
        let run = u64::try_from(run.as_nanos()).unwrap_or(u64::MAX);
        let row_ns = (run / rows as u64).max(1);
        let cost = &self.shapes[usize::from(shape.0)];
        average(&cost.by_size[power(rows, SIZES)], row_ns);
        average(&cost.row_ns, row_ns);
    }

    /// What a row of `shape` takes, nanoseconds. `None` before the first run with it.
    pub(crate) fn row_ns(&self, shape: Shape) -> Option<u64> {
        Some(self.shapes[usize::from(shape.0)].row_ns.load(Ordering::Relaxed))
            .filter(|ns| *ns != UNKNOWN)
    }

    /// How many rows of `shape` a run should have: `limit` at most, and no more than are computed within `longest`, for whoever
    /// comes next waits for the whole of it. Larger runs are tried one step at a time, and kept where a row became cheaper.
    pub(crate) fn rows_max(&self, shape: Shape, limit: usize, longest: Duration) -> usize {
        let in_time = self.row_ns(shape).map_or(usize::MAX, |row_ns| {
            usize::try_from(longest.as_nanos() / u128::from(row_ns)).unwrap_or(usize::MAX)
        });
        let limit = limit.min(in_time);
        let cost = &self.shapes[usize::from(shape.0)];
        let known: [u64; SIZES] =
            std::array::from_fn(|size| cost.by_size[size].load(Ordering::Relaxed));
        let size = best_size(&known);
        if size + 1 < SIZES
            && known[size + 1] != UNKNOWN
            && cost.held.fetch_add(1, Ordering::Relaxed) % TRY_AGAIN_AFTER == TRY_AGAIN_AFTER - 1
        {
            cost.by_size[size + 1].store(UNKNOWN, Ordering::Relaxed);
        }
        // All numbers of a step are told apart from the next step's, so the whole step is allowed.
        ((2usize << size) - 1).min(limit.max(1))
    }
}

fn average(cell: &AtomicU64, lesson: u64) {
    let before = cell.load(Ordering::Relaxed);
    let after = match before {
        UNKNOWN => lesson,
        known => known - (known >> LEARNING_SHIFT) + (lesson >> LEARNING_SHIFT),
    };
    cell.store(after.max(1), Ordering::Relaxed);
}

/// The step up to which each further one has paid, or is not known yet.
fn best_size(known: &[u64; SIZES]) -> usize {
    let mut size = 0;
    while size + 1 < SIZES {
        let (here, next) = (known[size], known[size + 1]);
        if here == UNKNOWN {
            // Larger runs are seen although smaller ones never were: requests bring many rows each.
            if known[size + 1..].iter().all(|later| *later == UNKNOWN) {
                return size;
            }
        } else if next == UNKNOWN {
            return size + 1;
        } else if next > here - here / WORTH {
            return size;
        }
        size += 1;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datatype::Datatype;

    const SHAPE: Shape = Shape(3);
    const LONG: Duration = Duration::from_secs(60);

    fn costs(known: &[u64]) -> [u64; SIZES] {
        std::array::from_fn(|size| known.get(size).copied().unwrap_or(UNKNOWN))
    }

    #[test]
    fn runs_grow_as_long_as_it_pays() {
        let table: [(&[u64], usize); 10] = [
            (&[], 0),
            (&[100], 1),
            (&[100, 60], 2),
            (&[100, 60, 60], 1),
            (&[100, 60, 58], 3),
            (&[100, 98], 2),
            (&[100, 99], 0),
            (&[100, 120], 0),
            (&[0, 0, 50], 3),
            (&[100, 90, 80, 70, 60, 50, 40, 30, 20, 10, 9, 8, 7], 12),
        ];
        for (known, expected) in table {
            assert_eq!(best_size(&costs(known)), expected, "{known:?}");
        }
    }

    /// Runs whose first row costs `fixed` and each one `each`, always as large as allowed.
    fn settle(table: &CostTable, fixed: u64, each: u64, runs: usize) -> usize {
        let mut rows = 0;
        for _ in 0..runs {
            rows = table.rows_max(SHAPE, 4096, LONG);
            table.learn(SHAPE, rows, Duration::from_nanos(fixed + each * rows as u64));
        }
        rows
    }

    #[test]
    fn cheap_rows_run_together_and_dear_ones_alone() {
        assert!(settle(&CostTable::default(), 5_000, 50, 200) >= 255, "a small model");
        assert!(settle(&CostTable::default(), 20_000, 5_000_000, 200) <= 3, "a large one");
        let table = CostTable::default();
        settle(&table, 5_000, 50, 200);
        assert_eq!(table.rows_max(SHAPE, 10, LONG), 10, "the limit holds");
        let short = Duration::from_micros(2);
        assert!((5..40).contains(&table.rows_max(SHAPE, 4096, short)), "some 100 ns a row");
        assert_eq!(table.rows_max(SHAPE, 4096, Duration::from_nanos(1)), 1, "one in any case");
        assert_eq!(table.rows_max(Shape(4), 4096, LONG), 1, "others are learned by themselves");
    }

    #[test]
    fn what_did_not_pay_is_tried_again() {
        let table = CostTable::default();
        settle(&table, 10, 1_000_000, 50);
        let sizes: Vec<usize> =
            (0..2 * TRY_AGAIN_AFTER).map(|_| settle(&table, 1_000_000, 1, 1)).collect();
        assert!(sizes.last() > sizes.first(), "{:?} → {:?}", sizes.first(), sizes.last());
    }

    #[test]
    fn a_row_costs_what_it_did_of_late() {
        let table = CostTable::default();
        assert_eq!(table.row_ns(SHAPE), None);
        table.learn(SHAPE, 4, Duration::from_micros(400));
        assert_eq!(table.row_ns(SHAPE), Some(100_000));
        for _ in 0..100 {
            table.learn(SHAPE, 4, Duration::from_millis(2));
        }
        let row = table.row_ns(SHAPE).unwrap();
        assert!((490_000..=500_000).contains(&row), "{row}");
    }

    #[test]
    fn shapes_are_those_of_a_row() {
        let tensor = |rows: usize, columns: usize| {
            let bytes = vec![0; rows * columns];
            Tensor::raw(Datatype::Uint8, vec![rows, columns], bytes.into()).unwrap()
        };
        let of = |rows, columns| Shape::of(&[tensor(rows, columns)], rows);
        assert_eq!(of(1, 30), of(64, 30));
        assert_ne!(of(1, 30), of(1, 64));
        assert_eq!(Shape::of(&[], 0), Shape(0));
    }
}
