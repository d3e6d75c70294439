//! Files of dispatch tables: reading and choosing.

use peersum_artifact::Arch;
use serde::{Deserialize, Serialize};

use super::error::{SCHEMA, TableError};
use super::plan::Topology;
use super::table::DispatchTable;

/// The tables that this version ships.
const SHIPPED: &str = include_str!("tables.json");

/// The largest table file that is read, in bytes.
const MAX_FILE_BYTES: usize = 4 << 20;

/// The tables of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DispatchTables {
    /// The version of the file's form: 1.
    pub schema: u32,
    /// The tables, in any order.
    pub tables: Vec<DispatchTable>,
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
        let tables: DispatchTables = serde_json::from_str(text)?;
        if tables.schema != SCHEMA {
            return Err(TableError::Schema {
                found: tables.schema,
            });
        }
        Ok(tables)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Origin, Placement, Route, Row};

    const SM_90: Arch = Arch::new(9, 0);

    #[test]
    fn every_measured_row_says_on_what() {
        for table in DispatchTables::shipped().unwrap().tables {
            for placement in Placement::ALL {
                for row in table.rows(placement) {
                    if let Origin::Measured(on) = &row.origin {
                        assert!(!on.device.is_empty() && !on.dtypes.is_empty());
                        assert!((2..=8).contains(&on.world_size));
                    }
                }
            }
        }
    }

    #[test]
    fn larger_groups_take_two_shot_from_where_the_model_says() {
        // docs/performance.md, "Model": what a small two-shot call takes beyond a one-shot one, in
        // seconds, and the rate of stores, in bytes a second, both measured of a pair.
        const MORE: f64 = 1.3e-6;
        const RATE: f64 = 366e9;
        let tables = DispatchTables::shipped().unwrap();
        for world_size in 3..=8 {
            let table = tables.choose(None, world_size, Topology::Peer).unwrap();
            let w = f64::from(world_size);
            let equal = MORE * RATE * w / ((w - 1.0) * (w - 2.0));
            for placement in Placement::ALL {
                let route = |bytes: f64| table.plan(placement, bytes as u64).route;
                assert_eq!(route(equal - 1024.0), Route::PushOneShot, "{world_size}");
                assert_eq!(route(equal), Route::PushTwoShot, "{world_size}");
                let rows = table.rows(placement).iter();
                assert!(rows.clone().all(|row| row.origin == Origin::Modelled));
            }
        }
    }

    #[test]
    fn a_call_that_reads_no_symmetric_buffer_is_that_of_an_ordinary_one() {
        for table in DispatchTables::shipped().unwrap().tables {
            for placement in Placement::ALL {
                for bytes in (0..30).map(|power| (3 << power) / 2) {
                    let plan = table.plan(placement, bytes);
                    let ordinary = table.plan(Placement::Ordinary, bytes);
                    assert!(plan.route.is_symmetric() || plan == ordinary, "{bytes}");
                }
            }
        }
    }

    #[test]
    fn an_architecture_s_own_table_comes_before_the_one_for_all() {
        let tables = DispatchTables::shipped().unwrap();
        let chosen = |arch| tables.choose(arch, 2, Topology::Peer).unwrap().arch;
        assert_eq!(chosen(Some(SM_90)).as_deref(), Some("sm_90"));
        assert_eq!(chosen(Some(Arch::new(99, 9))), None);
        assert_eq!(chosen(None), None);
    }

    #[test]
    fn every_architecture_world_size_and_topology_has_a_shipped_table() {
        let tables = DispatchTables::shipped().unwrap();
        let archs = [(8, 0), (9, 0), (10, 0), (12, 0), (99, 9)];
        let archs = archs.map(|(major, minor)| Some(Arch::new(major, minor)));
        for arch in archs.into_iter().chain([None]) {
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
        let (first, second) = (&table.ordinary[0], &table.ordinary[1]);
        let last = table.ordinary.last().unwrap();
        let bound = first.max_bytes.unwrap();
        let plans = [1, bound, bound + 1, u64::MAX].map(|it| table.plan(Placement::Ordinary, it));
        assert_eq!(plans, [first, first, second, last].map(Row::plan));
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
        // A warp on a GPU either handles units or carries signals. An emulated thread stands alone.
        let part_of_a_warp =
            r#"{"max_bytes":null,"route":"push_one_shot","blocks":4,"threads":40}"#;
        let emulated = file(1, part_of_a_warp).replace("peer", "emulator");
        assert!(choose(&emulated, Topology::Emulator).is_ok());
        let falling = ["64", "64", "null"].map(|max| row("push_one_shot", 4, max));
        let twice =
            r#"{"max_bytes":null,"route":"push_one_shot","blocks":4,"blocks":4,"threads":8}"#;
        for (ordinary, rule) in [
            ("", "no row"),
            (&row("push_one_shot", 4, "64"), "last row"),
            (&row("push_one_shot", 0, "null"), "0 blocks"),
            (&row("push_one_shot", 257, "null"), "257 blocks"),
            (&row("symmetric_two_shot", 4, "null"), "SymmetricTwoShot"),
            (part_of_a_warp, "40 threads a block"),
            (&falling.join(","), "rise"),
            (twice, "duplicate field `blocks`"),
        ] {
            let text = refusal(file(1, ordinary));
            assert!(text.contains(rule), "{text}");
        }
        // However deep: refused, and not by an exhausted stack.
        assert!(refusal("[".repeat(1 << 20)).contains("not valid"));
        let deep = format!(r#"{{"schema":1,"tables":{}"#, "[".repeat(1 << 20));
        assert!(refusal(deep).contains("not valid"));
    }
}
