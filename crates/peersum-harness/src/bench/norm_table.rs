//! The tables of calls with residual and RMSNorm.

use super::report::{Cell, System, fastest};
use super::sizes::bytes_text;
use super::table::{Row, Table, algorithm, bound, grid, quartiles_text, ratio, source, us_text};

/// For each shape the best grid of each algorithm and placement, fused and not, the fastest first.
pub(super) fn measurements(title: &str, cells: &[&Cell]) -> Option<Table> {
    let mut shapes: Vec<(u32, u32)> = cells.iter().filter_map(|cell| shape(cell)).collect();
    shapes.sort_unstable();
    shapes.dedup();
    let mut rows = Vec::new();
    for own in shapes {
        let of_shape = cells
            .iter()
            .copied()
            .filter(|cell| shape(cell) == Some(own));
        let mut best = fastest(of_shape, |cell| {
            let is_fused = cell.norm.map(|norm| norm.is_fused);
            let route = cell.plan.map(|plan| plan.route);
            (cell.placement, is_fused, route)
        });
        best.sort_by(|a, b| a.us.median.total_cmp(&b.us.median));
        rows.extend(best.into_iter().map(|cell| measurement(cell, cells)));
    }
    Table::of(format!("{title}: all-reduce, residual and RMSNorm"), rows)
}

/// Hidden size and rows.
fn shape(cell: &Cell) -> Option<(u32, u32)> {
    cell.norm.map(|norm| (norm.hidden, norm.rows))
}

/// One cell, beside the same without fusion, and the all-reduce alone.
fn measurement(cell: &Cell, cells: &[&Cell]) -> Row {
    let median = |cell: &&Cell| cell.us.median;
    let is_same = |other: &&Cell| (other.placement, other.bytes) == (cell.placement, cell.bytes);
    let others = || cells.iter().copied().filter(is_same);
    let unfused = others().filter(|other| {
        shape(other) == shape(cell) && other.norm.is_some_and(|norm| !norm.is_fused)
    });
    let unfused = unfused.map(|cell| median(&cell)).reduce(f64::min);
    let alone = others().find(|other| other.norm.is_none() && other.system == System::Peersum);
    let alone = alone.map(|cell| median(&cell));
    let nccl = cells
        .iter()
        .filter(|other| other.is_of_nccl() && other.bytes == cell.bytes);
    let nccl = nccl.map(median).reduce(f64::min);
    let (rows, hidden, how) = cell.norm.map_or((0, 0, "-"), |norm| {
        let how = if norm.is_fused { "fused" } else { "unfused" };
        (norm.rows, norm.hidden, how)
    });
    let (bound, bound_us) = bound(cell);
    let us = cell.us.median;
    vec![
        ("shape", format!("{rows} x {hidden}")),
        ("size", bytes_text(cell.bytes)),
        ("us", us_text(us)),
        ("quartiles", quartiles_text(cell.us)),
        ("norm", how.to_owned()),
        source(cell),
        algorithm(cell.plan),
        grid(cell.plan),
        (
            "by",
            if cell.from_table { "table" } else { "forced" }.to_owned(),
        ),
        ("unfused", us_text(unfused)),
        ("of unfused", ratio(us, unfused)),
        ("all-reduce", us_text(alone)),
        ("of all-reduce", ratio(us, alone)),
        (bound, us_text(bound_us)),
        ("ratio", ratio(us, bound_us)),
        ("NCCL all-reduce", us_text(nccl)),
    ]
}
