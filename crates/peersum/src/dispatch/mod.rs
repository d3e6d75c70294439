//! Which algorithm, grid and block a call of so many bytes takes.
//!
//! The choice depends on nothing but the bytes, the [`Placement`], and a table that all ranks agree
//! on at set-up: never on alignment or capture. Whether a call is in place counts for symmetric
//! buffers alone: where the peers' memory is read directly, a call in place is a two-shot, which
//! writes into every rank's buffer, and any other is a one-shot. So either every rank uses a
//! symmetric buffer in place or none does; for ordinary input each rank may choose. The choice
//! never changes a result's bits.

mod file;
mod limits;
mod merge;
mod origin;

use peersum_artifact::{Algorithm, Digest, Family};
use peersum_kernels::abi;
use serde::{Deserialize, Serialize};

pub use file::DispatchTables;
pub use limits::LaunchLimits;
pub use merge::MeasuredRow;
pub use origin::{Measurement, Origin};

use file::SCHEMA;

/// Why a dispatch table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The text is not a table of this schema.
    #[error("the dispatch table is not valid: {0}")]
    Parse(#[from] serde_json::Error),
    /// The file is larger than any table can be.
    #[error("the dispatch table has {0} bytes, more than the 4 MiB that are read")]
    TooLarge(usize),
    /// The file has another schema.
    #[error("the dispatch table has schema {found}, this version of peersum reads schema {SCHEMA}")]
    Schema {
        /// The file's schema.
        found: u32,
    },
    /// A row breaks a rule.
    #[error("the dispatch table for {table} is not valid: {reason}")]
    Row {
        /// Which table: architecture, world size, link.
        table: String,
        /// The rule that is broken.
        reason: String,
    },
}

/// How a call is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// One-shot push: every rank stores all its data to every peer.
    PushOneShot,
    /// Two-shot push: to the owner of each chunk, who reduces and sends to all.
    PushTwoShot,
    /// One-shot pull of a staged copy.
    PullOneShot,
    /// Two-shot pull of a staged copy.
    PullTwoShot,
    /// One-shot pull of symmetric buffers, out of place.
    SymmetricOneShot,
    /// Two-shot pull of symmetric buffers, in place.
    SymmetricTwoShot,
}

impl Route {
    /// Every route.
    pub const ALL: [Route; 6] = [
        Route::PushOneShot,
        Route::PushTwoShot,
        Route::PullOneShot,
        Route::PullTwoShot,
        Route::SymmetricOneShot,
        Route::SymmetricTwoShot,
    ];

    /// Its name in tables, flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Route::PushOneShot => "push_one_shot",
            Route::PushTwoShot => "push_two_shot",
            Route::PullOneShot => "pull_one_shot",
            Route::PullTwoShot => "pull_two_shot",
            Route::SymmetricOneShot => "symmetric_one_shot",
            Route::SymmetricTwoShot => "symmetric_two_shot",
        }
    }

    /// The kernel family.
    pub fn family(self) -> Family {
        match self {
            Route::PushOneShot | Route::PushTwoShot => Family::Push,
            _ => Family::Pull,
        }
    }

    /// The algorithm within the family.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Route::PushOneShot | Route::PullOneShot | Route::SymmetricOneShot => Algorithm::OneShot,
            _ => Algorithm::TwoShot,
        }
    }

    /// Whether a call with this placement can take the route.
    pub fn serves(self, placement: Placement) -> bool {
        match self {
            Route::SymmetricOneShot => placement == Placement::Symmetric,
            Route::SymmetricTwoShot => placement == Placement::SymmetricInPlace,
            _ => true,
        }
    }

    /// Whether peers read the caller's symmetric buffer itself.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Route::SymmetricOneShot | Route::SymmetricTwoShot)
    }
}

/// Route and shape of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plan {
    /// The route.
    pub route: Route,
    /// The grid. A communicator launches no more than its [`LaunchLimits`] allow.
    pub blocks: u32,
    /// Threads a block that handle units; likewise limited.
    pub threads: u32,
}

impl Plan {
    /// What keeps the kernels from running in this shape.
    pub(crate) fn check_shape(self, link: Link) -> Result<(), String> {
        let Plan {
            blocks, threads, ..
        } = self;
        if !(1..=abi::PEERSUM_MAX_BLOCKS).contains(&blocks)
            || !(abi::PEERSUM_MIN_THREADS..=abi::PEERSUM_MAX_THREADS).contains(&threads)
        {
            return Err(format!(
                "{blocks} blocks of {threads} threads are outside 1..={} and {}..={}",
                abi::PEERSUM_MAX_BLOCKS,
                abi::PEERSUM_MIN_THREADS,
                abi::PEERSUM_MAX_THREADS
            ));
        }
        // An emulated thread is a warp of its own.
        if link != Link::Emulator && !threads.is_multiple_of(abi::PEERSUM_WARP_THREADS) {
            return Err(format!(
                "{threads} threads a block are no multiple of {}",
                abi::PEERSUM_WARP_THREADS
            ));
        }
        Ok(())
    }
}

/// One row: what calls of at most `max_bytes` take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "FlatRow")]
pub struct Row {
    /// The largest message, in bytes; `None` in the last row.
    pub max_bytes: Option<u64>,
    /// What it takes.
    #[serde(flatten)]
    pub plan: Plan,
    /// Where the row comes from. Ranks need not agree on it.
    pub origin: Origin,
}

/// A row as it is read. A flattened plan would keep all unknown fields of a row in memory, at many times their size.
#[derive(Deserialize)]
struct FlatRow {
    max_bytes: Option<u64>,
    route: Route,
    blocks: u32,
    threads: u32,
    #[serde(default)]
    origin: Origin,
}

impl From<FlatRow> for Row {
    fn from(row: FlatRow) -> Self {
        Row {
            max_bytes: row.max_bytes,
            plan: Plan {
                route: row.route,
                blocks: row.blocks,
                threads: row.threads,
            },
            origin: row.origin,
        }
    }
}

/// How the ranks are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// At least two ranks share a device.
    Shared,
    /// Every rank has a device of its own.
    Peer,
    /// The ranks are emulated.
    Emulator,
}

/// The rows for one architecture, world size and link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DispatchTable {
    /// The architecture, for instance `sm_90`; `None` serves every one without a table of its own.
    pub arch: Option<String>,
    /// World sizes that the table serves.
    pub world_sizes: Vec<u32>,
    /// The link that it serves.
    pub link: Link,
    /// Ordinary input, in place or not: each rank may choose.
    pub ordinary: Vec<Row>,
    /// Symmetric input, another output.
    pub symmetric: Vec<Row>,
    /// A symmetric buffer, in place. Every rank must do the same, else it is a
    /// [`Failure::Disagreement`](crate::Failure::Disagreement).
    pub symmetric_in_place: Vec<Row>,
}

/// The kind of source and destination that a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Memory that peers do not map.
    Ordinary,
    /// The input is symmetric, the output is other memory.
    Symmetric,
    /// Input and output are the same symmetric memory.
    SymmetricInPlace,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Placement; 3] = [
        Placement::Ordinary,
        Placement::Symmetric,
        Placement::SymmetricInPlace,
    ];

    /// Its name in a table file.
    pub fn name(self) -> &'static str {
        match self {
            Placement::Ordinary => "ordinary",
            Placement::Symmetric => "symmetric",
            Placement::SymmetricInPlace => "symmetric_in_place",
        }
    }
}

impl DispatchTable {
    /// The shipped table that fits best: the architecture's own, else the one for every architecture.
    ///
    /// # Errors
    /// [`TableError`] if the shipped text is damaged; it is parsed here and not trusted.
    pub fn shipped(
        arch: Option<&str>,
        world_size: u32,
        link: Link,
    ) -> Result<DispatchTable, TableError> {
        DispatchTables::shipped()?.choose(arch, world_size, link)
    }

    /// As [`DispatchTable::shipped`], from the text of a table file.
    ///
    /// # Errors
    /// [`TableError`] names what is wrong with the text.
    pub fn choose(
        text: &str,
        arch: Option<&str>,
        world_size: u32,
        link: Link,
    ) -> Result<DispatchTable, TableError> {
        DispatchTables::parse(text)?.choose(arch, world_size, link)
    }

    fn check(&self) -> Result<(), TableError> {
        let broken = |reason: String| TableError::Row {
            table: format!(
                "{} x {:?} over {:?}",
                self.arch.as_deref().unwrap_or("any architecture"),
                self.world_sizes,
                self.link
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
                let route = row.plan.route;
                if !route.serves(placement) {
                    return Err(broken(format!("{name} cannot take the route {route:?}")));
                }
                row.plan.check_shape(self.link).map_err(broken)?;
            }
        }
        Ok(())
    }

    /// The rows for one placement, by rising `max_bytes`.
    pub fn rows(&self, placement: Placement) -> &[Row] {
        match placement {
            Placement::Ordinary => &self.ordinary,
            Placement::Symmetric => &self.symmetric,
            Placement::SymmetricInPlace => &self.symmetric_in_place,
        }
    }

    /// The row that decides for a message of `bytes` bytes: the first that it fits. `None` only for a table that was not read from a file.
    pub fn row(&self, placement: Placement, bytes: u64) -> Option<&Row> {
        let rows = self.rows(placement);
        let index =
            rows.partition_point(|row| row.max_bytes.is_some_and(|max_bytes| max_bytes < bytes));
        rows.get(index).or(rows.last())
    }

    /// The plan for a message of `bytes` bytes.
    pub fn plan(&self, placement: Placement, bytes: u64) -> Plan {
        // `check` made sure of a last row without a bound, and plans are made from checked tables only.
        self.row(placement, bytes).map_or(
            Plan {
                route: Route::PullTwoShot,
                blocks: 1,
                threads: abi::PEERSUM_MIN_THREADS,
            },
            |row| row.plan,
        )
    }

    /// The largest grid of any row.
    pub fn max_blocks(&self) -> u32 {
        let blocks = self.all_rows().map(|row| row.plan.blocks);
        blocks.max().unwrap_or(1)
    }

    /// The largest block of any row, in threads.
    pub fn max_threads(&self) -> u32 {
        let threads = self.all_rows().map(|row| row.plan.threads);
        threads.max().unwrap_or(abi::PEERSUM_MIN_THREADS)
    }

    /// The largest grid of any row within the limits.
    pub(crate) fn largest_grid(&self, limits: &LaunchLimits) -> u32 {
        let blocks = self.all_rows().map(|row| limits.apply(row.plan).blocks);
        blocks.max().unwrap_or(1)
    }

    fn all_rows(&self) -> impl Iterator<Item = &Row> {
        Placement::ALL
            .into_iter()
            .flat_map(|placement| self.rows(placement))
    }

    /// A digest of everything that ranks must agree on: what each size takes, not where that comes from.
    pub fn digest(&self) -> Digest {
        let rows = Placement::ALL.map(|placement| {
            let rows = self.rows(placement).iter();
            rows.map(|row| (row.max_bytes, row.plan))
                .collect::<Vec<_>>()
        });
        Digest::of(serde_json::to_string(&rows).unwrap_or_default().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_world_size_and_link_has_a_shipped_table() {
        for arch in [
            None,
            Some("sm_80"),
            Some("sm_90"),
            Some("sm_100"),
            Some("sm_120"),
            Some("sm_999"),
        ] {
            for world_size in 2..=8 {
                for link in [Link::Shared, Link::Peer, Link::Emulator] {
                    DispatchTable::shipped(arch, world_size, link).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_message_takes_the_first_row_that_it_fits() {
        let table = DispatchTable::shipped(None, 2, Link::Peer).unwrap();
        let bound = table.ordinary[0].max_bytes.unwrap();
        assert_eq!(table.plan(Placement::Ordinary, 1), table.ordinary[0].plan);
        assert_eq!(
            table.plan(Placement::Ordinary, bound),
            table.ordinary[0].plan
        );
        assert_eq!(
            table.plan(Placement::Ordinary, bound + 1),
            table.ordinary[1].plan
        );
        assert_eq!(
            table.plan(Placement::Ordinary, u64::MAX),
            table.ordinary.last().unwrap().plan
        );
    }

    #[test]
    fn a_table_that_breaks_a_rule_is_refused_with_the_rule() {
        let row = |route: &str, blocks: u32, max: &str| {
            format!(r#"{{"max_bytes":{max},"route":"{route}","blocks":{blocks},"threads":256}}"#)
        };
        let file = |schema: u32, ordinary: &str| {
            let good = row("pull_one_shot", 4, "null");
            format!(
                r#"{{"schema":{schema},"tables":[{{"arch":null,"world_sizes":[2],"link":"peer",
                    "ordinary":[{ordinary}],"symmetric":[{good}],"symmetric_in_place":[{good}]}}]}}"#
            )
        };
        let refusal = |text: String| {
            DispatchTable::choose(&text, None, 2, Link::Peer)
                .unwrap_err()
                .to_string()
        };
        assert!(
            DispatchTable::choose(
                &file(1, &row("push_one_shot", 4, "null")),
                None,
                2,
                Link::Peer
            )
            .is_ok()
        );
        assert!(refusal(file(2, &row("push_one_shot", 4, "null"))).contains("schema 2"));
        assert!(refusal(file(1, "")).contains("no row"));
        assert!(refusal(file(1, &row("push_one_shot", 4, "64"))).contains("last row"));
        assert!(refusal(file(1, &row("push_one_shot", 0, "null"))).contains("0 blocks"));
        assert!(refusal(file(1, &row("push_one_shot", 257, "null"))).contains("257 blocks"));
        assert!(
            refusal(file(1, &row("symmetric_two_shot", 4, "null"))).contains("SymmetricTwoShot")
        );
        // A warp on a GPU either handles units or carries signals. An emulated thread stands alone.
        let part_of_a_warp =
            r#"{"max_bytes":null,"route":"push_one_shot","blocks":4,"threads":40}"#;
        assert!(refusal(file(1, part_of_a_warp)).contains("40 threads a block"));
        let emulated = file(1, part_of_a_warp).replace("peer", "emulator");
        assert!(DispatchTable::choose(&emulated, None, 2, Link::Emulator).is_ok());
        let falling = [
            row("push_one_shot", 4, "64"),
            row("push_one_shot", 4, "64"),
            row("push_one_shot", 4, "null"),
        ]
        .join(",");
        assert!(refusal(file(1, &falling)).contains("rise"));
        let twice =
            r#"{"max_bytes":null,"route":"push_one_shot","blocks":4,"blocks":4,"threads":8}"#;
        assert!(refusal(file(1, twice)).contains("duplicate field `blocks`"));
        // However deep: refused, and not by an exhausted stack.
        assert!(refusal("[".repeat(1 << 20)).contains("not valid"));
        let deep = format!(r#"{{"schema":1,"tables":{}"#, "[".repeat(1 << 20));
        assert!(refusal(deep).contains("not valid"));
    }
}
