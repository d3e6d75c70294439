//! All tables of a report.

use super::build::Build;
use super::norm_table;
use super::report::{Cell, Report};
use super::table::{self, Table};
use super::timing::Launch;

/// Everything that a report says, except for the notes.
pub(crate) fn tables(report: &Report) -> Vec<Table> {
    let mut tables = Vec::new();
    for (world_size, link, dtype) in report.groups() {
        for launch in [Launch::Graph, Launch::Eager] {
            for pdl in [true, false] {
                let cells: Vec<&Cell> = report
                    .cells
                    .iter()
                    .filter(|cell| {
                        (cell.world_size, cell.link, cell.dtype) == (world_size, link, dtype)
                            && cell.launch == launch
                            && cell.build == Build::Shipped
                            && (cell.pdl == pdl || cell.is_of_nccl())
                    })
                    .collect();
                let title = format!(
                    "{world_size} ranks, {dtype}, {}, programmatic dependent launch {}",
                    launch.name(),
                    if pdl { "on" } else { "off" }
                );
                tables.extend(norm_table::measurements(&title, &cells));
                for operation in report.operations() {
                    tables.extend(table::measurements(operation, &title, &cells));
                }
            }
        }
    }
    tables.extend(table::limits(report));
    tables.extend(table::builds(report));
    tables
}
