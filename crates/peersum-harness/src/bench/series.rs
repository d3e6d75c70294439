//! The curves of one world size and type.

use std::collections::BTreeMap;

use peersum::dispatch::{Placement, Topology};
use peersum_artifact::Dtype;

use super::build::Build;
use super::report::{Cell, Report, System, fastest};
use super::timing::Launch;
use crate::names::name_of;
use crate::norm_output::NormOutput;
use crate::operation::Operation;
use crate::table::{grid_text, us_text};

/// One curve.
pub(crate) struct Series {
    pub(crate) name: String,
    /// How the calls were launched; `None` for the limit.
    pub(crate) launch: Option<Launch>,
    /// By rising size.
    pub(crate) points: Vec<Point>,
}

/// One size.
pub(crate) struct Point {
    pub(crate) bytes: u64,
    pub(crate) us: f64,
    /// How it came about, for the pointer.
    pub(crate) note: String,
}

/// The curves of a group, in the order in which they were measured.
pub(crate) fn of(report: &Report, group: (u32, Topology, Dtype)) -> Vec<Series> {
    let cells = || {
        let cells = report.cells.iter();
        cells.filter(|cell| {
            (cell.world_size, cell.link, cell.dtype) == group
                && cell.build == Build::Shipped
                // A row of the tables, no way to sum.
                && cell.system != System::BareLaunch
        })
    };
    let measured = |pdl| cells().any(|cell| cell.system == System::Peersum && cell.pdl == pdl);
    let names_pdl = measured(true) && measured(false);
    let mut curves: Vec<(String, Vec<&Cell>)> = Vec::new();
    for cell in cells() {
        let name = name(cell, names_pdl);
        match curves.iter_mut().find(|(other, _)| *other == name) {
            Some((_, cells)) => cells.push(cell),
            None => curves.push((name, vec![cell])),
        }
    }
    let curve = |(name, cells): (String, Vec<&Cell>)| Series {
        name,
        launch: Some(cells[0].launch),
        points: points(cells),
    };
    let mut all: Vec<Series> = curves.into_iter().map(curve).collect();
    let mut limits: BTreeMap<u64, f64> = BTreeMap::new();
    for cell in cells().filter(|cell| cell.pdl || !measured(true)) {
        if let Some(us) = cell.limit_us {
            limits.entry(cell.bytes).or_insert(us);
        }
    }
    if !limits.is_empty() {
        let point = |(bytes, us)| Point {
            bytes,
            us,
            note: "what launch, exchange and bytes need".to_owned(),
        };
        all.push(Series {
            name: "limit".to_owned(),
            launch: None,
            points: limits.into_iter().map(point).collect(),
        });
    }
    all
}

fn name(cell: &Cell, names_pdl: bool) -> String {
    let what = match (cell.system, cell.placement) {
        (System::Nccl, _) => "NCCL",
        (System::NcclSymmetric, _) => "NCCL, symmetric window",
        (_, Some(Placement::Symmetric)) => "peersum, symmetric input",
        (_, Some(Placement::SymmetricInPlace)) => "peersum, symmetric in place",
        _ => "peersum",
    };
    let without = match cell.system {
        System::Peersum if names_pdl && !cell.pdl => ", no PDL",
        _ => "",
    };
    let norm = cell.norm.map(|norm| {
        let how = norm.name();
        let output = match norm.output {
            NormOutput::Same => String::new(),
            output => format!(" {output}"),
        };
        format!(", RMSNorm{output} {how}, hidden {}", norm.hidden)
    });
    let norm = norm.unwrap_or_default();
    let what = match cell.operation {
        Operation::AllReduce => what.to_owned(),
        operation => format!("{what} {}", name_of(&operation)),
    };
    format!("{what}{norm}, {}{without}", cell.launch.name())
}

/// The fastest cell of each size.
fn points(cells: Vec<&Cell>) -> Vec<Point> {
    let mut best = fastest(cells.into_iter(), |cell| cell.bytes);
    best.sort_by_key(|cell| cell.bytes);
    let point = |cell: &Cell| {
        let mut note = format!(
            "{} to {} us, {:.1} GB/s on the bus",
            us_text(cell.us.min),
            us_text(cell.us.max),
            cell.bus_gb_s
        );
        if let Some(plan) = cell.plan {
            note += &format!(", {} on {}", plan.route.name(), grid_text(plan));
        }
        Point {
            bytes: cell.bytes,
            us: cell.us.median,
            note,
        }
    };
    best.into_iter().map(point).collect()
}
