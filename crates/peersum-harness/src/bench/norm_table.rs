//! The tables of calls with residual and RMSNorm.

use super::report::{Cell, Norm, System, fastest};
use super::sizes::bytes_text;
use super::table::{Row, Table, algorithm, bound, grid, quartiles_text, ratio, source, us_text};
use crate::norm_output::NormOutput;

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
            let how = cell.norm.map(|norm| (norm.output, norm.is_fused));
            let route = cell.plan.map(|plan| plan.route);
            (cell.placement, how, route)
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

/// One cell, beside the same without fusion and without FP8, and the all-reduce alone.
fn measurement(cell: &Cell, cells: &[&Cell]) -> Row {
    let median = |cell: &&Cell| cell.us.median;
    let is_same = |other: &&Cell| (other.placement, other.bytes) == (cell.placement, cell.bytes);
    let others = || cells.iter().copied().filter(is_same);
    let best = |norm| {
        let same = others().filter(|other| other.norm == Some(norm));
        same.map(|cell| median(&cell)).reduce(f64::min)
    };
    let unfused = cell.norm.map(|norm| Norm {
        is_fused: false,
        ..norm
    });
    let unfused = unfused.and_then(best);
    let without_fp8 = cell.norm.filter(|norm| norm.output.has_fp8());
    let without_fp8 = without_fp8.and_then(|norm| {
        best(Norm {
            output: NormOutput::Same,
            ..norm
        })
    });
    let alone = others().find(|other| other.norm.is_none() && other.system == System::Peersum);
    let alone = alone.map(|cell| median(&cell));
    let nccl = cells
        .iter()
        .filter(|other| other.is_of_nccl() && other.bytes == cell.bytes);
    let nccl = nccl.map(median).reduce(f64::min);
    let (hidden, rows) = shape(cell).unwrap_or_default();
    let how = cell.norm.map_or("-", |norm| match norm.is_fused {
        true => "fused",
        false => "unfused",
    });
    let output = cell
        .norm
        .map_or_else(String::new, |norm| norm.output.to_string());
    let (bound, bound_us) = bound(cell);
    let us = cell.us.median;
    vec![
        ("shape", format!("{rows} x {hidden}")),
        ("size", bytes_text(cell.bytes)),
        ("us", us_text(us)),
        ("quartiles", quartiles_text(cell.us)),
        ("norm", how.to_owned()),
        ("output", output),
        source(cell),
        algorithm(cell.plan),
        grid(cell.plan),
        (
            "by",
            if cell.from_table { "table" } else { "forced" }.to_owned(),
        ),
        ("unfused", us_text(unfused)),
        ("of unfused", ratio(us, unfused)),
        ("without FP8", us_text(without_fp8)),
        ("of that", ratio(us, without_fp8)),
        ("all-reduce", us_text(alone)),
        ("of all-reduce", ratio(us, alone)),
        (bound, us_text(bound_us)),
        ("ratio", ratio(us, bound_us)),
        ("NCCL all-reduce", us_text(nccl)),
    ]
}
