//! One dispatch table: the rows for one architecture and topology.

use peersum_artifact::Digest;
use peersum_kernels::abi;
use serde::{Deserialize, Serialize};

use super::error::TableError;
use super::limits::LaunchLimits;
use super::norm::NormRows;
use super::origin::Origin;
use super::plan::{Placement, Plan, Route, Topology};

/// One row: what calls of at most `max_bytes` take.
///
/// The plan's fields are the row's own: a flattened [`Plan`] would keep all unknown fields of a row
/// in memory while it is read, at many times their size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The largest message, in bytes; `None` in the last row.
    pub max_bytes: Option<u64>,
    /// The plan's route.
    pub route: Route,
    /// The plan's grid.
    pub blocks: u32,
    /// The plan's threads of a block.
    pub threads: u32,
    /// Where the row comes from. Ranks need not agree on it.
    #[serde(default)]
    pub origin: Origin,
}

impl Row {
    /// What a message of this row takes.
    pub fn plan(&self) -> Plan {
        Plan {
            route: self.route,
            blocks: self.blocks,
            threads: self.threads,
        }
    }
}

/// The rows for one architecture, world size and topology.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DispatchTable {
    /// The architecture, for instance `sm_90`; `None` serves every one without a table of its own.
    pub arch: Option<String>,
    /// World sizes that the table serves.
    pub world_sizes: Vec<u32>,
    /// The topology that it serves; `link` in a file.
    #[serde(rename = "link")]
    pub topology: Topology,
    /// Ordinary input, in place or not: each rank may choose.
    pub ordinary: Vec<Row>,
    /// Symmetric input, another output.
    pub symmetric: Vec<Row>,
    /// A symmetric buffer, in place. Every rank must do the same, else it is a
    /// [`Failure::Disagreement`](crate::Failure::Disagreement).
    pub symmetric_in_place: Vec<Row>,
    /// Which calls with RMSNorm are fused.
    #[serde(default, skip_serializing_if = "NormRows::is_empty")]
    pub rms_norm: NormRows,
}

impl DispatchTable {
    /// Whether every row keeps the rules.
    pub(super) fn check(&self) -> Result<(), TableError> {
        let broken = |reason: String| TableError::Row {
            table: format!(
                "{} x {:?} over {:?}",
                self.arch.as_deref().unwrap_or("any architecture"),
                self.world_sizes,
                self.topology
            ),
            reason,
        };
        for placement in Placement::ALL {
            let (name, rows) = (placement.name(), self.rows(placement));
            let Some((last, others)) = rows.split_last() else {
                return Err(broken(format!("{name} has no row")));
            };
            if last.max_bytes.is_some() || others.iter().any(|row| row.max_bytes.is_none()) {
                return Err(broken(format!(
                    "in {name} exactly the last row has no max_bytes"
                )));
            }
            if !others.is_sorted_by(|a, b| a.max_bytes < b.max_bytes) {
                return Err(broken(format!(
                    "in {name} max_bytes does not rise from row to row"
                )));
            }
            for row in rows {
                let route = row.route;
                if !route.serves(placement) {
                    return Err(broken(format!("{name} cannot take the route {route:?}")));
                }
                row.plan().check_shape(self.topology).map_err(broken)?;
            }
        }
        self.rms_norm.check(self.topology).map_err(broken)
    }

    /// The rows for one placement, by rising `max_bytes`.
    pub fn rows(&self, placement: Placement) -> &[Row] {
        match placement {
            Placement::Ordinary => &self.ordinary,
            Placement::Symmetric => &self.symmetric,
            Placement::SymmetricInPlace => &self.symmetric_in_place,
        }
    }

    /// The row that decides for a message of `bytes` bytes: the first that it fits. `None` only for
    /// a table that was not read from a file.
    pub fn row(&self, placement: Placement, bytes: u64) -> Option<&Row> {
        let rows = self.rows(placement);
        let index =
            rows.partition_point(|row| row.max_bytes.is_some_and(|max_bytes| max_bytes < bytes));
        rows.get(index).or(rows.last())
    }

    /// The plan for a message of `bytes` bytes.
    ///
    /// A row for symmetric buffers counts only if its route reads them. Any other call takes the
    /// row of ordinary ones: its header does not say where its input is, and ranks whose grids
    /// differ cannot meet.
    pub fn plan(&self, placement: Placement, bytes: u64) -> Plan {
        let plan = self.plan_of_row(placement, bytes);
        match plan.route.is_symmetric() {
            true => plan,
            false => self.plan_of_row(Placement::Ordinary, bytes),
        }
    }

    fn plan_of_row(&self, placement: Placement, bytes: u64) -> Plan {
        // `check` made sure of a last row without a bound, and plans are made from checked tables
        // only.
        self.row(placement, bytes).map_or(
            Plan {
                route: Route::PullTwoShot,
                blocks: 1,
                threads: abi::PEERSUM_MIN_THREADS,
            },
            Row::plan,
        )
    }

    /// The largest grid of any row within the limits.
    pub(crate) fn largest_grid(&self, limits: &LaunchLimits) -> u32 {
        let rows = Placement::ALL.iter().flat_map(|it| self.rows(*it));
        let blocks = rows.map(|row| limits.apply(row.plan()).blocks);
        let most = self.rms_norm.largest_grid();
        blocks.max().unwrap_or(1).max(most.min(limits.blocks()))
    }

    /// A digest of everything that ranks must agree on: what each size takes, not where that comes
    /// from.
    pub fn digest(&self) -> Digest {
        let rows = Placement::ALL.map(|placement| {
            let rows = self.rows(placement).iter();
            rows.map(|row| (row.max_bytes, row.plan()))
                .collect::<Vec<_>>()
        });
        let agreed = (rows, self.rms_norm.agreed());
        Digest::of(
            serde_json::to_string(&agreed)
                .unwrap_or_default()
                .as_bytes(),
        )
    }
}
