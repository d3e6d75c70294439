//! Putting measured rows over a table.

use peersum::dispatch::{NormRow, Route, Row};

/// A measurement of at least this size serves every larger message too, and one of at most
/// [`SMALL_BYTES`] every smaller one.
const LARGE_BYTES: u64 = 16 << 20;
/// See [`LARGE_BYTES`].
const SMALL_BYTES: u64 = 4 << 10;

/// A row of a table.
pub(super) trait TableRow {
    fn max_bytes(&self) -> Option<u64>;

    /// The same with another bound.
    fn bounded(&self, max_bytes: Option<u64>) -> Self;

    /// Whether its plan suits all messages down to one for which `smaller` was measured, if they
    /// are close.
    fn suits_down_to(&self, smaller: &Self) -> bool;
}

impl TableRow for Row {
    fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    fn bounded(&self, max_bytes: Option<u64>) -> Self {
        Row {
            max_bytes,
            ..self.clone()
        }
    }

    /// A push of one route: its grid, without the blocks that have no unit, still has a thread for
    /// each unit that it had one for. The smaller one's grid would give its threads a second unit,
    /// which takes another round trip.
    fn suits_down_to(&self, smaller: &Self) -> bool {
        self.route == smaller.route && matches!(self.route, Route::PushOneShot | Route::PushTwoShot)
    }
}

impl TableRow for NormRow {
    fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    fn bounded(&self, max_bytes: Option<u64>) -> Self {
        NormRow {
            max_bytes,
            ..self.clone()
        }
    }

    fn suits_down_to(&self, _: &Self) -> bool {
        false
    }
}

/// The fastest way for one size.
#[derive(Debug)]
pub(super) struct MeasuredRow<R> {
    /// The message that was measured, in bytes; at least 1.
    pub(super) bytes: u64,
    /// The way, and where it comes from. The row's own `max_bytes` does not count.
    pub(super) row: R,
}

/// `base` with measured rows over it. Each serves messages from half to twice its size, and what
/// lies outside all of them keeps the base's rows. [`dividing_bytes`] says what divides
/// two of them.
pub(super) fn overlay<R: TableRow>(base: &[R], measured: &[MeasuredRow<R>]) -> Vec<R> {
    let mut measured: Vec<&MeasuredRow<R>> = measured.iter().filter(|row| row.bytes > 0).collect();
    measured.sort_by_key(|row| row.bytes);
    measured.dedup_by_key(|row| row.bytes);
    let mut rows = Vec::new();
    // What every message up to here takes is in `rows`.
    let mut done = 0;
    for (index, own) in measured.iter().enumerate() {
        let above = match index.checked_sub(1) {
            None if own.bytes <= SMALL_BYTES => 0,
            None => own.bytes / 2,
            Some(previous) => dividing_bytes(measured[previous], own).1,
        };
        let up_to = match measured.get(index + 1) {
            None if own.bytes >= LARGE_BYTES => u64::MAX,
            None => own.bytes.saturating_mul(2),
            Some(next) => dividing_bytes(own, next).0,
        };
        rows.extend(part_of(base, done, above));
        rows.push(bounded(&own.row, up_to));
        done = up_to;
    }
    rows.extend(part_of(base, done, u64::MAX));
    rows
}

/// The rows for messages of more than `above` and at most `up_to` bytes.
fn part_of<R: TableRow>(base: &[R], above: u64, up_to: u64) -> impl Iterator<Item = R> {
    let mut lower = 0;
    base.iter().filter_map(move |row| {
        let bound = row.max_bytes().unwrap_or(u64::MAX);
        let (first, last) = (lower.max(above), bound.min(up_to));
        lower = bound;
        (first < last).then(|| bounded(row, last))
    })
}

/// The row for messages of at most `up_to` bytes; `u64::MAX` is no bound.
fn bounded<R: TableRow>(row: &R, up_to: u64) -> R {
    row.bounded((up_to != u64::MAX).then_some(up_to))
}

/// Up to which size the smaller of two measurements serves, and from which size on the larger one.
/// If they are close and the larger one suits all that is between them, it serves that. Otherwise
/// the geometric mean divides them.
fn dividing_bytes<R: TableRow>(smaller: &MeasuredRow<R>, larger: &MeasuredRow<R>) -> (u64, u64) {
    let (a, b) = (smaller.bytes, larger.bytes);
    if larger.row.suits_down_to(&smaller.row) && b <= a.saturating_mul(4) {
        return (a, a);
    }
    let mean = (a as f64 * b as f64).sqrt() as u64;
    (a.saturating_mul(2).min(mean), (b / 2).max(mean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peersum::dispatch::{FusedShape, Origin};

    fn row(max_bytes: Option<u64>, blocks: u32) -> Row {
        Row {
            max_bytes,
            route: Route::PushOneShot,
            blocks,
            threads: 64,
            origin: Origin::Default,
        }
    }

    fn measured(bytes: u64, blocks: u32) -> MeasuredRow<Row> {
        let row = row(None, blocks);
        MeasuredRow { bytes, row }
    }

    fn base() -> [Row; 3] {
        [(Some(1000), 1), (Some(1 << 20), 2), (None, 3)]
            .map(|(max_bytes, blocks)| row(max_bytes, blocks))
    }

    fn bounds(rows: &[Row]) -> Vec<(Option<u64>, u32)> {
        let bound = |row: &Row| (row.max_bytes, row.blocks);
        rows.iter().map(bound).collect()
    }

    #[test]
    fn a_measurement_serves_from_half_to_twice_its_size_and_the_base_the_rest() {
        let rows = overlay(&base(), &[measured(64 << 10, 9)]);
        assert_eq!(
            bounds(&rows),
            [
                (Some(1000), 1),
                (Some(32 << 10), 2),
                (Some(128 << 10), 9),
                (Some(1 << 20), 2),
                (None, 3)
            ]
        );
    }

    #[test]
    fn a_sweep_from_4_kib_to_16_mib_replaces_every_row() {
        let sweep: Vec<MeasuredRow<Row>> = (0..7)
            .map(|step| measured(4096 << (2 * step), 10 + step))
            .collect();
        let rows = overlay(&base(), &sweep);
        let expected: Vec<(Option<u64>, u32)> = (0..7)
            .map(|step| ((step < 6).then(|| 4096 << (2 * step)), 10 + step))
            .collect();
        assert_eq!(bounds(&rows), expected);
    }

    #[test]
    fn the_mean_divides_measurements_of_two_routes() {
        let mut sweep = [measured(4096, 10), measured(16384, 11)];
        sweep[1].row.route = Route::PullOneShot;
        let rows = overlay(&base(), &sweep);
        assert_eq!(bounds(&rows)[..2], [(Some(8192), 10), (Some(32768), 11)]);
    }

    #[test]
    fn the_mean_divides_norms_and_no_row_may_lie_below_or_beyond_them() {
        let norm = |max_bytes, blocks: u32| NormRow {
            max_bytes,
            fused: (blocks != 0).then_some(FusedShape {
                blocks,
                threads: 64,
            }),
            origin: Origin::Default,
        };
        let measured = |bytes, blocks| MeasuredRow {
            bytes,
            row: norm(None, blocks),
        };
        let base = [norm(Some(1 << 20), 8), norm(None, 0)];
        let found = overlay(&base, &[measured(1000, 1), measured(4000, 2)]);
        let expected = [norm(Some(2000), 1), norm(Some(8000), 2)];
        assert_eq!(found, [&expected[..], &base].concat());
        // Calls beyond twice the last size are as they were: no row says.
        assert_eq!(overlay(&[], &[measured(8, 1)]), [norm(Some(16), 1)]);
        let found = overlay(&[], &[measured(LARGE_BYTES, 0)]);
        assert_eq!(found, [norm(None, 0)]);
    }

    #[test]
    fn every_measured_size_takes_its_measurement() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let sweep: Vec<MeasuredRow<Row>> = (0..random.usize(0..5))
                .map(|index| measured(1 << random.u32(0..30), 100 + index as u32))
                .collect();
            let rows = overlay(&base(), &sweep);
            assert_eq!(rows.last().unwrap().max_bytes, None);
            assert!(rows.is_sorted_by(|a, b| {
                a.max_bytes.unwrap_or(u64::MAX) < b.max_bytes.unwrap_or(u64::MAX)
            }));
            for row in &sweep {
                // Of equal sizes the first counts.
                let first = sweep.iter().find(|other| other.bytes == row.bytes).unwrap();
                let serving = rows
                    .iter()
                    .find(|other| other.max_bytes.is_none_or(|bound| bound >= row.bytes))
                    .unwrap();
                assert_eq!(serving.plan(), first.row.plan(), "{sweep:?} gave {rows:?}");
            }
        }
    }

    #[test]
    fn nothing_measured_leaves_the_base() {
        assert_eq!(overlay(&base(), &[]), base());
    }
}
