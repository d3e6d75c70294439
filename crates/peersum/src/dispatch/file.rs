//! Files of dispatch tables: reading, choosing, and writing in one form only.

use std::fmt::Write as _;

use peersum_artifact::Arch;
use serde::{Deserialize, Serialize};

use super::error::{SCHEMA, TableError};
use super::plan::{Placement, Topology};
use super::table::DispatchTable;

/// The tables that this version ships.
const SHIPPED: &str = include_str!("tables.json");

/// The largest table file that is read, in bytes.
const MAX_FILE_BYTES: usize = 4 << 20;

/// The tables of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchTables {
    tables: Vec<DispatchTable>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TableFile {
    schema: u32,
    tables: Vec<DispatchTable>,
}

impl DispatchTables {
    /// The tables that this version ships.
    ///
    /// # Errors
    /// [`TableError`] if the shipped text is damaged; it is parsed here and not trusted.
    pub fn shipped() -> Result<Self, TableError> {
        Self::parse(SHIPPED)
    }

    /// Reads a file's text. A table's rows are checked when it is chosen.
    ///
    /// # Errors
    /// [`TableError`] names what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, TableError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(TableError::TooLarge(text.len()));
        }
        let file: TableFile = serde_json::from_str(text)?;
        if file.schema != SCHEMA {
            return Err(TableError::Schema { found: file.schema });
        }
        Ok(DispatchTables {
            tables: file.tables,
        })
    }

    /// The table that fits best: that of the ranks' architecture, else the one for every
    /// architecture. `arch` is `None` if the ranks differ in it or are emulated.
    ///
    /// # Errors
    /// [`TableError::Row`] if there is none, or if it breaks a rule.
    pub fn choose(
        &self,
        arch: Option<Arch>,
        world_size: u32,
        topology: Topology,
    ) -> Result<DispatchTable, TableError> {
        let arch = arch.map(|arch| format!("sm_{arch}"));
        let serves = |table: &&DispatchTable| {
            table.topology == topology && table.world_sizes.contains(&world_size)
        };
        let candidates = || self.tables.iter().filter(serves);
        let table = candidates()
            .find(|table| table.arch.is_some() && table.arch == arch)
            .or_else(|| candidates().find(|table| table.arch.is_none()))
            .ok_or_else(|| TableError::Row {
                table: format!(
                    "{} x {world_size} over {topology:?}",
                    arch.as_deref().unwrap_or("any architecture")
                ),
                reason: "there is no such table and none for every architecture".to_owned(),
            })?;
        table.check()?;
        Ok(table.clone())
    }

    /// Puts a table in the place of what served its architecture, topology and world sizes before.
    pub fn insert(&mut self, table: DispatchTable) {
        for other in &mut self.tables {
            if (&other.arch, other.topology) == (&table.arch, table.topology) {
                other
                    .world_sizes
                    .retain(|size| !table.world_sizes.contains(size));
            }
        }
        self.tables.retain(|other| !other.world_sizes.is_empty());
        self.tables.push(table);
        self.sort();
    }

    /// Tables for every architecture first, then by architecture, topology and world size.
    fn sort(&mut self) {
        for table in &mut self.tables {
            table.world_sizes.sort_unstable();
        }
        self.tables.sort_by(|a, b| {
            (&a.arch, a.topology, &a.world_sizes).cmp(&(&b.arch, b.topology, &b.world_sizes))
        });
    }

    /// The text of a file: sorted, one row a line, so that equal tables are equal files and a
    /// change shows row by row.
    ///
    /// # Errors
    /// [`TableError::Parse`] if a row cannot be written as JSON, which no row of numbers and names
    /// does.
    pub fn to_json(&self) -> Result<String, TableError> {
        let mut sorted = self.clone();
        sorted.sort();
        let mut text = format!("{{\n  \"schema\": {SCHEMA},\n  \"tables\": [");
        for (index, table) in sorted.tables.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let head = (
                serde_json::to_string(&table.arch)?,
                serde_json::to_string(&table.world_sizes)?,
                serde_json::to_string(&table.topology)?,
            );
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "{comma}\n    {{\n      \"arch\": {}, \"world_sizes\": {}, \"link\": {}",
                head.0, head.1, head.2
            );
            for placement in Placement::ALL {
                let _ = write!(text, ",\n      \"{}\": [", placement.name());
                for (index, row) in table.rows(placement).iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    let _ = write!(text, "{comma}\n        {}", serde_json::to_string(row)?);
                }
                text += "\n      ]";
            }
            text += "\n    }";
        }
        text += "\n  ]\n}\n";
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Measurement, Origin};

    const SM_90: Arch = Arch::plain(9, 0);

    #[test]
    fn the_shipped_file_has_the_form_that_is_written() {
        let written = DispatchTables::shipped().unwrap().to_json().unwrap();
        assert!(
            written == SHIPPED,
            "tables.json is not what tune would write; it should read:\n{written}"
        );
    }

    #[test]
    fn every_measured_row_says_on_what() {
        for table in DispatchTables::shipped().unwrap().tables {
            for placement in Placement::ALL {
                for row in table.rows(placement) {
                    match &row.origin {
                        Origin::Default => {}
                        Origin::Measured(Measurement {
                            device,
                            dtypes,
                            world_size,
                            ..
                        }) => {
                            assert!(!device.is_empty() && !dtypes.is_empty());
                            assert!((2..=8).contains(world_size));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_inserted_table_takes_its_world_sizes_from_the_others_and_leaves_them_the_rest() {
        let mut tables = DispatchTables::shipped().unwrap();
        let before = tables.choose(Some(SM_90), 3, Topology::Shared).unwrap();
        let mut own = tables.choose(Some(SM_90), 4, Topology::Shared).unwrap();
        own.world_sizes = vec![4];
        own.ordinary[0].plan.threads = 32;
        tables.insert(own.clone());
        assert_eq!(
            tables.choose(Some(SM_90), 4, Topology::Shared).unwrap(),
            own
        );
        let mut left = tables.choose(Some(SM_90), 3, Topology::Shared).unwrap();
        assert!(!left.world_sizes.contains(&4));
        left.world_sizes = before.world_sizes.clone();
        assert_eq!(left, before);
        // Other architectures and topologies are not touched.
        assert_eq!(
            tables
                .choose(Some(Arch::plain(8, 0)), 4, Topology::Shared)
                .unwrap(),
            DispatchTables::shipped()
                .unwrap()
                .choose(Some(Arch::plain(8, 0)), 4, Topology::Shared)
                .unwrap()
        );
    }

    #[test]
    fn the_order_in_which_tables_are_inserted_does_not_show_in_the_file() {
        let base = DispatchTables::shipped().unwrap();
        let table = |world_size| {
            let mut table = base
                .choose(Some(SM_90), world_size, Topology::Peer)
                .unwrap();
            table.arch = Some("sm_100".to_owned());
            table.world_sizes = vec![world_size];
            table
        };
        let written = |order: [u32; 3]| {
            let mut tables = base.clone();
            for world_size in order {
                tables.insert(table(world_size));
            }
            tables.to_json().unwrap()
        };
        assert_eq!(written([2, 4, 8]), written([8, 2, 4]));
    }

    #[test]
    fn an_architecture_s_own_table_comes_before_the_one_for_all() {
        let tables = DispatchTables::shipped().unwrap();
        let chosen = |arch| tables.choose(arch, 2, Topology::Peer).unwrap().arch;
        assert_eq!(chosen(Some(SM_90)).as_deref(), Some("sm_90"));
        assert_eq!(chosen(Some(Arch::plain(99, 9))), None);
        assert_eq!(chosen(None), None);
    }

    #[test]
    fn every_architecture_world_size_and_topology_has_a_shipped_table() {
        let tables = DispatchTables::shipped().unwrap();
        for arch in [
            None,
            Some(Arch::plain(8, 0)),
            Some(SM_90),
            Some(Arch::plain(10, 0)),
            Some(Arch::plain(12, 0)),
            Some(Arch::plain(99, 9)),
        ] {
            for world_size in 2..=8 {
                for topology in [Topology::Shared, Topology::Peer, Topology::Emulator] {
                    tables.choose(arch, world_size, topology).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_message_takes_the_first_row_that_it_fits() {
        let tables = DispatchTables::shipped().unwrap();
        let table = tables.choose(None, 2, Topology::Peer).unwrap();
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
                r#"{{"schema":{schema},"tables":[{{
                    "arch":null,"world_sizes":[2],"link":"peer","ordinary":[{ordinary}],
                    "symmetric":[{good}],"symmetric_in_place":[{good}]
                }}]}}"#
            )
        };
        let choose = |text: &str, topology| DispatchTables::parse(text)?.choose(None, 2, topology);
        let refusal = |text: String| choose(&text, Topology::Peer).unwrap_err().to_string();
        let good = file(1, &row("push_one_shot", 4, "null"));
        assert!(choose(&good, Topology::Peer).is_ok());
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
        assert!(choose(&emulated, Topology::Emulator).is_ok());
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
