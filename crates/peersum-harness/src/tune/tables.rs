//! The tables that a sweep writes, in one form only.

use std::fmt::Write as _;

use anyhow::Result;
use peersum::dispatch::{DispatchTable, DispatchTables, Placement};
use serde::Serialize;

/// Puts a table in the place of what served its architecture, topology and world sizes before.
pub(super) fn insert(tables: &mut DispatchTables, table: DispatchTable) {
    for other in &mut tables.tables {
        if (&other.arch, other.topology) == (&table.arch, table.topology) {
            other
                .world_sizes
                .retain(|size| !table.world_sizes.contains(size));
        }
    }
    tables.tables.retain(|other| !other.world_sizes.is_empty());
    tables.tables.push(table);
}

/// The text of a file: sorted, one row a line, so that equal tables are equal files and a change
/// shows row by row.
///
/// Tables for every architecture come first, then those of each architecture, by topology and world
/// size.
pub(super) fn to_json(tables: &DispatchTables) -> Result<String> {
    let mut sorted = tables.tables.clone();
    for table in &mut sorted {
        table.world_sizes.sort_unstable();
    }
    sorted.sort_by(|a, b| {
        (&a.arch, a.topology, &a.world_sizes).cmp(&(&b.arch, b.topology, &b.world_sizes))
    });
    let mut text = format!("{{\n  \"schema\": {},\n  \"tables\": [", tables.schema);
    for (index, table) in sorted.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(
            text,
            "{comma}\n    {{\n      \"arch\": {}, \"world_sizes\": {}, \"link\": {}",
            serde_json::to_string(&table.arch)?,
            serde_json::to_string(&table.world_sizes)?,
            serde_json::to_string(&table.topology)?
        )?;
        for (name, rows) in lists(|placement| table.rows(placement), 8)? {
            write!(text, ",\n      \"{name}\": {rows}")?;
        }
        if !table.rms_norm.is_empty() {
            let lists = lists(|placement| table.rms_norm.rows(placement), 10)?.into_iter();
            let lists: Vec<String> = lists
                .filter(|(_, rows)| rows.contains('{'))
                .map(|(name, rows)| format!("\n        \"{name}\": {rows}"))
                .collect();
            write!(
                text,
                ",\n      \"rms_norm\": {{{}\n      }}",
                lists.join(",")
            )?;
        }
        text += "\n    }";
    }
    text += "\n  ]\n}\n";
    Ok(text)
}

/// The names of the placements with their rows, one a line at this indent.
fn lists<'a, R: Serialize + 'a>(
    rows: impl Fn(Placement) -> &'a [R],
    indent: usize,
) -> Result<Vec<(&'static str, String)>> {
    let list = |placement: Placement| {
        let rows = rows(placement).iter();
        let lines: Vec<String> = rows
            .map(|row| Ok(format!("\n{:indent$}{}", "", serde_json::to_string(row)?)))
            .collect::<Result<_>>()?;
        let end = indent - 2;
        let text = format!("[{}\n{:end$}]", lines.join(","), "");
        Ok((placement.name(), text))
    };
    Placement::ALL.into_iter().map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use peersum::dispatch::Topology;
    use peersum_artifact::Arch;

    const SHIPPED: &str = include_str!("../../../peersum/src/dispatch/tables.json");
    const SM_90: Option<Arch> = Some(Arch::new(9, 0));

    #[test]
    fn the_shipped_file_has_the_form_that_is_written() {
        let written = to_json(&DispatchTables::shipped().unwrap()).unwrap();
        assert!(
            written == SHIPPED,
            "tables.json is not what tune would write; it should read:\n{written}"
        );
    }

    #[test]
    fn an_inserted_table_takes_its_world_sizes_from_the_others_and_leaves_them_the_rest() {
        let shipped = DispatchTables::shipped().unwrap();
        let chosen = |tables: &DispatchTables, arch, world_size| {
            tables.choose(arch, world_size, Topology::Shared).unwrap()
        };
        let mut own = chosen(&shipped, SM_90, 4);
        own.world_sizes = vec![4];
        own.ordinary[0].threads = 32;
        let mut tables = shipped.clone();
        insert(&mut tables, own.clone());
        assert_eq!(chosen(&tables, SM_90, 4), own);
        let mut left = chosen(&tables, SM_90, 3);
        assert!(!left.world_sizes.contains(&4));
        let before = chosen(&shipped, SM_90, 3);
        left.world_sizes = before.world_sizes.clone();
        assert_eq!(left, before);
        // Other architectures and topologies are not touched.
        let other = Some(Arch::new(8, 0));
        assert_eq!(chosen(&tables, other, 4), chosen(&shipped, other, 4));
    }

    #[test]
    fn the_order_in_which_tables_are_inserted_does_not_show_in_the_file() {
        let base = DispatchTables::shipped().unwrap();
        let written = |order: [u32; 3]| {
            let mut tables = base.clone();
            for world_size in order {
                let mut table = base.choose(SM_90, world_size, Topology::Peer).unwrap();
                table.arch = Some("sm_100".to_owned());
                table.world_sizes = vec![world_size];
                insert(&mut tables, table);
            }
            to_json(&tables).unwrap()
        };
        assert_eq!(written([2, 4, 8]), written([8, 2, 4]));
    }
}
