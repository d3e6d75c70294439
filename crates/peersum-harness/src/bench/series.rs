//! The curves of one world size and type.

use peersum::dispatch::{Placement, Topology};
use peersum_artifact::Dtype;

use super::build::Build;
use super::report::{Cell, Report, System, fastest};
use super::table::{grid_text, us_text};
use super::timing::Launch;

/// One curve.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// By rising size.
    pub(crate) points: Vec<Point>,
}

/// How it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Graph,
    Eager,
    Limit,
}

/// One size.
pub(crate) struct Point {
    pub(crate) bytes: u64,
    pub(crate) us: f64,
    /// How it came about, for the pointer.
    pub(crate) note: String,
}

/// The curves of a group, in an order that depends on nothing but what was measured.
pub(crate) fn of(report: &Report, group: (u32, Topology, Dtype)) -> Vec<Series> {
    let cells: Vec<&Cell> = report
        .cells
        .iter()
        .filter(|cell| {
            (cell.world_size, cell.link, cell.dtype) == group
                && cell.build == Build::Shipped
                // A row of the tables, no way to sum.
                && cell.system != System::BareLaunch
        })
        .collect();
    let both_pdl = |pdl| {
        let own = |cell: &&Cell| cell.system == System::Peersum && cell.pdl == pdl;
        cells.iter().copied().any(|cell| own(&cell))
    };
    let names_pdl = both_pdl(true) && both_pdl(false);
    let mut keys: Vec<(Launch, System, Option<Placement>, bool)> = Vec::new();
    for cell in &cells {
        let key = key(cell);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|(launch, system, placement, pdl)| {
        let placement = placement.map(|placement| placement as u8);
        (*launch, *system, placement, !*pdl)
    });
    let mut all: Vec<Series> = keys
        .into_iter()
        .map(|wanted| {
            let (launch, system, placement, pdl) = wanted;
            let what = match (system, placement) {
                (System::Nccl, _) => "NCCL",
                (System::NcclSymmetric, _) => "NCCL, symmetric window",
                (System::Peersum, Some(Placement::Symmetric)) => "peersum, symmetric input",
                (System::Peersum, Some(Placement::SymmetricInPlace)) => {
                    "peersum, symmetric in place"
                }
                (System::Peersum | System::BareLaunch, _) => "peersum",
            };
            let without = match (system, names_pdl && !pdl) {
                (System::Peersum, true) => ", no PDL",
                _ => "",
            };
            Series {
                name: format!("{what}, {}{without}", launch.name()),
                kind: match launch {
                    Launch::Graph => Kind::Graph,
                    Launch::Eager => Kind::Eager,
                },
                points: points(cells.iter().copied().filter(|cell| key(cell) == wanted)),
            }
        })
        .collect();
    let limits: Vec<(u64, f64)> = cells
        .iter()
        .filter(|cell| cell.pdl || !both_pdl(true))
        .filter_map(|cell| Some((cell.bytes, cell.limit_us?)))
        .collect();
    if !limits.is_empty() {
        let mut points: Vec<Point> = Vec::new();
        for (bytes, us) in limits {
            if points.iter().all(|point| point.bytes != bytes) {
                let note = "what launch, exchange and bytes need".to_owned();
                points.push(Point { bytes, us, note });
            }
        }
        points.sort_by_key(|point| point.bytes);
        all.push(Series {
            name: "limit".to_owned(),
            kind: Kind::Limit,
            points,
        });
    }
    all
}

fn key(cell: &Cell) -> (Launch, System, Option<Placement>, bool) {
    // The switch means nothing to NCCL.
    let pdl = cell.pdl || cell.system != System::Peersum;
    (cell.launch, cell.system, cell.placement, pdl)
}

/// The fastest cell of each size.
fn points<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<Point> {
    let mut best = fastest(cells, |cell| cell.bytes);
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
