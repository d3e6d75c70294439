//! The rows of a table that a sweep of calls with RMSNorm gives.

use peersum::dispatch::NormRow;

use super::overlay::LARGE_BYTES;

/// What was found for a size.
#[derive(Debug, Clone)]
pub(super) struct MeasuredNorm {
    /// The input that was measured, in bytes.
    pub(super) bytes: u64,
    /// How such calls are carried out, and where that comes from. Its own `max_bytes` does not
    /// count.
    pub(super) row: NormRow,
}

/// The rows for what was measured, by rising size: the geometric mean divides two sizes, the first
/// serves all smaller ones, and the last serves up to twice its size. Beyond that the base's rows
/// stay.
pub(super) fn norm_rows(base: &[NormRow], measured: &[MeasuredNorm]) -> Vec<NormRow> {
    let Some(last) = measured.last() else {
        return base.to_vec();
    };
    let end = (last.bytes < LARGE_BYTES).then_some(last.bytes.saturating_mul(2));
    let between = |a: u64, b: u64| (a as f64 * b as f64).sqrt() as u64;
    let nexts = measured.iter().skip(1).map(|next| Some(next.bytes));
    let own = measured.iter().zip(nexts.chain([None]));
    let own = own.map(|(measured, next)| NormRow {
        max_bytes: match next {
            Some(next) => Some(between(measured.bytes, next)),
            None => end,
        },
        ..measured.row.clone()
    });
    let bound = |row: &NormRow| row.max_bytes.unwrap_or(u64::MAX);
    let beyond = base
        .iter()
        .filter(|row| end.is_some_and(|end| bound(row) > end));
    own.chain(beyond.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use peersum::dispatch::{FusedShape, Origin};

    fn row(max_bytes: Option<u64>, blocks: u32) -> NormRow {
        NormRow {
            max_bytes,
            fused: (blocks != 0).then_some(FusedShape {
                blocks,
                threads: 64,
            }),
            origin: Origin::Default,
        }
    }

    fn measured(bytes: u64, blocks: u32) -> MeasuredNorm {
        let row = row(None, blocks);
        MeasuredNorm { bytes, row }
    }

    #[test]
    fn sizes_are_divided_by_their_geometric_mean_and_what_lies_beyond_all_keeps_its_rows() {
        let base = [row(Some(1000), 9), row(Some(1 << 20), 8), row(None, 0)];
        let found = norm_rows(&base, &[measured(1000, 1), measured(4000, 2)]);
        let expected = [
            row(Some(2000), 1),
            row(Some(8000), 2),
            row(Some(1 << 20), 8),
            row(None, 0),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_large_measurement_serves_every_larger_call_and_none_leaves_the_base() {
        let base = [row(None, 9)];
        let found = norm_rows(&base, &[measured(LARGE_BYTES, 0)]);
        assert_eq!(found, [row(None, 0)]);
        assert_eq!(norm_rows(&base, &[]), base);
        // Without rows before, calls beyond twice the last size are as they were: no row says.
        assert_eq!(norm_rows(&[], &[measured(8, 1)]), [row(Some(16), 1)]);
    }
}
