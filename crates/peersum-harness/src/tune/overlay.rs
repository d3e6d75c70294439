//! Putting measured rows over a table.

use peersum::dispatch::{Route, Row};

/// A measurement of at least this size serves every larger message too, and one of at most
/// [`SMALL_BYTES`] every smaller one.
pub(super) const LARGE_BYTES: u64 = 16 << 20;
/// See [`LARGE_BYTES`].
const SMALL_BYTES: u64 = 4 << 10;

/// The fastest plan for one size.
#[derive(Debug)]
pub(super) struct MeasuredRow {
    /// The message that was measured, in bytes; at least 1.
    pub(super) bytes: u64,
    /// The plan, and where it comes from. The row's own `max_bytes` does not count.
    pub(super) row: Row,
}

/// `base` with measured rows over it. Each serves messages from half to twice its size, and what
/// lies outside all of them keeps the base's rows. [`dividing_bytes`] says what divides
/// two of them.
pub(super) fn overlay(base: &[Row], measured: &[MeasuredRow]) -> Vec<Row> {
    let mut measured: Vec<&MeasuredRow> = measured.iter().filter(|row| row.bytes > 0).collect();
    measured.sort_by_key(|row| row.bytes);
    measured.dedup_by_key(|row| row.bytes);
    // (above, up to) of each; `u64::MAX` is no bound.
    let spans: Vec<(u64, u64)> = (0..measured.len())
        .map(|index| {
            let own = measured[index];
            let bytes = own.bytes;
            let above = match index.checked_sub(1).map(|index| measured[index]) {
                None if bytes <= SMALL_BYTES => 0,
                None => bytes / 2,
                Some(previous) => dividing_bytes(previous, own).1,
            };
            let up_to = match measured.get(index + 1) {
                None if bytes >= LARGE_BYTES => u64::MAX,
                None => bytes.saturating_mul(2),
                Some(next) => dividing_bytes(own, next).0,
            };
            (above, up_to)
        })
        .collect();
    let bound = |row: &Row| row.max_bytes.unwrap_or(u64::MAX);
    let mut bounds: Vec<u64> = base.iter().map(bound).collect();
    bounds.extend(spans.iter().flat_map(|(above, up_to)| [*above, *up_to]));
    bounds.sort_unstable();
    bounds.dedup();
    let mut rows: Vec<Row> = Vec::new();
    for up_to in bounds.into_iter().filter(|bound| *bound > 0) {
        let span = spans
            .iter()
            .position(|(above, last)| *above < up_to && up_to <= *last);
        let source = match span {
            Some(index) => &measured[index].row,
            None => match base.iter().find(|row| bound(row) >= up_to) {
                Some(row) => row,
                None => continue,
            },
        };
        let max_bytes = (up_to != u64::MAX).then_some(up_to);
        match rows.last_mut() {
            // One row of the base, or one measurement, that bounds of others had divided.
            Some(last) if (last.plan(), &last.origin) == (source.plan(), &source.origin) => {
                last.max_bytes = max_bytes;
            }
            _ => rows.push(Row {
                max_bytes,
                ..source.clone()
            }),
        }
    }
    rows
}

/// Up to which size the smaller of two measurements serves, and from which size on the larger one.
/// If both are pushes of one route and are close, the larger serves all that is between them: its
/// grid, without the blocks that have no unit, still has a thread for each unit that it had one
/// for. The smaller one's grid would give its threads a second unit, which takes another round
/// trip. Otherwise the geometric mean divides them.
fn dividing_bytes(smaller: &MeasuredRow, larger: &MeasuredRow) -> (u64, u64) {
    let (a, b) = (smaller.bytes, larger.bytes);
    let is_one_push = smaller.row.route == larger.row.route
        && matches!(larger.row.route, Route::PushOneShot | Route::PushTwoShot);
    if is_one_push && b <= a.saturating_mul(4) {
        return (a, a);
    }
    let mean = (a as f64 * b as f64).sqrt() as u64;
    (a.saturating_mul(2).min(mean), (b / 2).max(mean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peersum::dispatch::Origin;

    fn row(max_bytes: Option<u64>, blocks: u32) -> Row {
        Row {
            max_bytes,
            route: Route::PushOneShot,
            blocks,
            threads: 64,
            origin: Origin::Default,
        }
    }

    fn measured(bytes: u64, blocks: u32) -> MeasuredRow {
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
        let sweep: Vec<MeasuredRow> = (0..7)
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
    fn every_measured_size_takes_its_measurement() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let sweep: Vec<MeasuredRow> = (0..random.usize(0..5))
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
