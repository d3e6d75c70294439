//! Which calls with RMSNorm are fused.

use serde::{Deserialize, Serialize};

use super::origin::Origin;
use super::plan::{Placement, Plan, Route, Topology};

/// What calls with RMSNorm of at most `max_bytes` take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NormRow {
    /// The largest input, in bytes; `None` for any, in the last row only.
    pub max_bytes: Option<u64>,
    /// The shape of the fused kernel; `None`: the kernel that normalises follows an all-reduce.
    pub fused: Option<FusedShape>,
    /// Where the row comes from. Ranks need not agree on it.
    #[serde(default)]
    pub origin: Origin,
}

/// The largest launch of the fused kernel: a call has no block without a row, and no more threads
/// than a row needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FusedShape {
    /// The most blocks.
    pub blocks: u32,
    /// The most threads of a block that handle units.
    pub threads: u32,
}

impl FusedShape {
    /// As a plan of the route whose slots the fused kernel uses.
    pub(crate) fn plan(self) -> Plan {
        Plan {
            route: Route::PushOneShot,
            blocks: self.blocks,
            threads: self.threads,
        }
    }
}

/// The rows for calls with RMSNorm, by placement and rising `max_bytes`. A call beyond the last row
/// is fused if its all-reduce would be a one-shot push and a row fits the registers of the threads
/// of its block or cluster. The same holds for all calls of a table without rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NormRows {
    /// Ordinary input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ordinary: Vec<NormRow>,
    /// Symmetric input, another output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symmetric: Vec<NormRow>,
    /// A symmetric buffer, in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symmetric_in_place: Vec<NormRow>,
}

impl NormRows {
    /// The rows for one placement.
    pub fn rows(&self, placement: Placement) -> &[NormRow] {
        match placement {
            Placement::Ordinary => &self.ordinary,
            Placement::Symmetric => &self.symmetric,
            Placement::SymmetricInPlace => &self.symmetric_in_place,
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        let mut placements = Placement::ALL.iter();
        placements.all(|&placement| self.rows(placement).is_empty())
    }

    /// The row that decides for an input of `bytes` bytes: the first that it fits, if there is one.
    pub fn row(&self, placement: Placement, bytes: u64) -> Option<&NormRow> {
        let mut rows = self.rows(placement).iter();
        rows.find(|row| row.max_bytes.is_none_or(|max_bytes| bytes <= max_bytes))
    }

    /// The largest grid of any row.
    pub(super) fn largest_grid(&self) -> u32 {
        let rows = Placement::ALL.iter().flat_map(|it| self.rows(*it));
        let blocks = rows.filter_map(|row| Some(row.fused?.blocks));
        blocks.max().unwrap_or(1)
    }

    /// What ranks must agree on.
    pub(super) fn agreed(&self) -> [Vec<(Option<u64>, Option<FusedShape>)>; 3] {
        Placement::ALL.map(|placement| {
            let rows = self.rows(placement).iter();
            rows.map(|row| (row.max_bytes, row.fused)).collect()
        })
    }

    /// The rule that a row breaks, if any does.
    pub(super) fn check(&self, topology: Topology) -> Result<(), String> {
        for placement in Placement::ALL {
            let (name, rows) = (placement.name(), self.rows(placement));
            let bound = |row: &NormRow| row.max_bytes.unwrap_or(u64::MAX);
            if !rows.is_sorted_by(|a, b| bound(a) < bound(b)) {
                return Err(format!(
                    "in rms_norm, {name}, max_bytes does not rise from row to row"
                ));
            }
            for shape in rows.iter().filter_map(|row| row.fused) {
                shape.plan().check_shape(topology)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::DispatchTables;

    fn rows(text: &str) -> NormRows {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_call_takes_the_first_row_that_it_fits_and_beyond_the_last_none() {
        let rows = rows(
            r#"{"ordinary": [
                {"max_bytes": 100, "fused": {"blocks": 2, "threads": 64}},
                {"max_bytes": 200, "fused": null}
            ]}"#,
        );
        let fused = |bytes| {
            let row = rows.row(Placement::Ordinary, bytes);
            row.map(|row| row.fused.map(|shape| shape.blocks))
        };
        assert_eq!(
            [100, 101, 200].map(fused),
            [Some(Some(2)), Some(None), Some(None)]
        );
        assert_eq!(fused(201), None);
        assert_eq!(rows.row(Placement::Symmetric, 1), None);
        assert_eq!((rows.largest_grid(), rows.is_empty()), (2, false));
    }

    #[test]
    fn rows_that_break_a_rule_are_refused_with_the_rule() {
        let refusal = |text: &str| rows(text).check(Topology::Peer).unwrap_err();
        let falling = r#"{"symmetric": [{"max_bytes": 8}, {"max_bytes": 8}]}"#;
        assert!(refusal(falling).contains("symmetric, max_bytes"));
        let behind_the_last = r#"{"ordinary": [{"max_bytes": null}, {"max_bytes": 8}]}"#;
        assert!(refusal(behind_the_last).contains("rise"));
        let no_warp = r#"{"ordinary": [{"max_bytes": 8, "fused": {"blocks": 1, "threads": 40}}]}"#;
        assert!(refusal(no_warp).contains("40 threads"));
    }

    #[test]
    fn ranks_must_agree_on_the_rows_and_not_on_where_they_come_from() {
        let shipped = DispatchTables::shipped().unwrap();
        let mut table = shipped.choose(None, 2, Topology::Peer).unwrap();
        let plain = table.digest();
        table.rms_norm = rows(r#"{"ordinary": [{"max_bytes": 8, "origin": "default"}]}"#);
        let with_row = table.digest();
        assert_ne!(plain, with_row);
        table.rms_norm = rows(r#"{"symmetric": [{"max_bytes": 8}]}"#);
        assert_ne!(table.digest(), with_row);
        table.rms_norm = rows(r#"{"ordinary": [{"max_bytes": 8}]}"#);
        assert_eq!(table.digest(), with_row);
    }
}
