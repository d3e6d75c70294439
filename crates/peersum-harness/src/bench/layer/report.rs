//! What a run of `bench layer` has measured, as JSON and as tables.

use anyhow::Result;
use peersum::dispatch::Plan;
use serde::Serialize;

use super::heading::heading;
use crate::bench::report::{Run, System};
use crate::bench::sizes::bytes_text;
use crate::bench::table::{Row, Table, algorithm, grid, quartiles_text, ratio, us_text};
use crate::bench::timing::{Launch, Spread, rounded};

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) run: Run,
    pub(super) world_size: u32,
    /// Layers in one graph, or in one batch of eager ones.
    pub(super) layers: u32,
    /// Programmatic dependent launch of peersum's kernels.
    pub(super) pdl: bool,
    /// cuBLAS's version.
    pub(super) cublas: String,
    pub(super) cells: Vec<Cell>,
}

/// One layer with one all-reduce.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    pub(super) system: System,
    pub(super) hidden: u32,
    pub(super) rows: u32,
    /// What the all-reduce sums, in bytes.
    pub(super) bytes: u64,
    pub(super) launch: Launch,
    /// The dispatch table's algorithm, and the grid that was launched. `None` for NCCL.
    pub(super) plan: Option<Plan>,
    /// Microseconds a layer without an all-reduce, of the slowest rank, timed in turn with those
    /// that have one.
    pub(super) without_us: Spread,
    /// Microseconds a layer with it, of the rank that began last.
    pub(super) with_us: Spread,
    /// The difference of the medians.
    pub(super) adds_us: f64,
}

/// What an all-reduce adds to a layer.
pub(super) fn adds_us(without: Spread, with: Spread) -> f64 {
    rounded(with.median - without.median)
}

impl Report {
    /// Takes what a group has measured, or why it could not.
    pub(super) fn add(&mut self, what: &str, measured: Result<Vec<Cell>>) {
        self.cells
            .extend(self.run.take(what, measured).unwrap_or_default());
        self.cells
            .sort_by_key(|cell| (cell.launch, cell.hidden, cell.rows, cell.system));
    }

    /// The report as text: the machine, what was not measured, and a table for each way of
    /// launching.
    pub(super) fn to_text(&self) -> String {
        let run = &self.run;
        let mut text = heading(run, self.world_size, self.pdl, &self.cublas);
        for launch in [Launch::Graph, Launch::Eager] {
            let rows: Vec<Row> = self
                .cells
                .iter()
                .filter(|cell| cell.launch == launch)
                .map(|cell| self.row(cell))
                .collect();
            let how = match launch {
                Launch::Graph => format!("{} layers in a graph", self.layers),
                Launch::Eager => format!("{} layers launched one after the other", self.layers),
            };
            let title = format!("us a layer, {how}; medians of {} replays", run.replays);
            let Some(table) = Table::of(title, rows) else {
                continue;
            };
            text += &format!("\n{}", table.to_text());
        }
        text
    }

    fn row(&self, cell: &Cell) -> Row {
        let nccl = self.cells.iter().find(|other| {
            other.system == System::Nccl
                && (other.hidden, other.rows, other.launch) == (cell.hidden, cell.rows, cell.launch)
        });
        let nccl_adds_us = nccl
            .filter(|nccl| cell.system != System::Nccl && nccl.adds_us > 0.0)
            .map(|nccl| nccl.adds_us);
        let (with, without) = (cell.with_us, cell.without_us);
        let all_reduce = match cell.system {
            System::Peersum | System::BareLaunch => "peersum",
            System::Nccl | System::NcclSymmetric => "NCCL",
        };
        vec![
            ("all-reduce", all_reduce.to_owned()),
            ("hidden", cell.hidden.to_string()),
            ("rows", cell.rows.to_string()),
            ("message", bytes_text(cell.bytes)),
            ("none", us_text(without.median)),
            ("quartiles", quartiles_text(without)),
            ("with", us_text(with.median)),
            ("quartiles", quartiles_text(with)),
            ("adds", us_text(cell.adds_us)),
            ("with/none", ratio(with.median, without.median)),
            ("adds/NCCL's", ratio(cell.adds_us, nccl_adds_us)),
            algorithm(cell.plan),
            grid(cell.plan),
        ]
    }
}

#[cfg(test)]
mod tests {
    use peersum::dispatch::Route;

    use super::super::heading::made_up_run;
    use super::*;

    fn cell(system: System, launch: Launch, times: [f64; 3]) -> Cell {
        let without_us = Spread::of(&[10.0, 10.5, 9.5]);
        let with_us = Spread::of(&times);
        Cell {
            system,
            hidden: 4096,
            rows: 8,
            bytes: 65536,
            launch,
            plan: (system == System::Peersum).then_some(Plan {
                route: Route::PushOneShot,
                blocks: 8,
                threads: 512,
            }),
            without_us,
            with_us,
            adds_us: adds_us(without_us, with_us),
        }
    }

    #[test]
    fn a_table_sets_what_each_all_reduce_adds_beside_the_layer_without() {
        let mut report = Report {
            run: made_up_run(),
            world_size: 2,
            layers: 64,
            pdl: true,
            cublas: "13.0.2".to_owned(),
            cells: Vec::new(),
        };
        report.add(
            "NCCL",
            Ok(vec![cell(System::Nccl, Launch::Graph, [20.0, 20.5, 22.0])]),
        );
        report.add(
            "peersum",
            Ok(vec![
                cell(System::Peersum, Launch::Eager, [12.0, 12.1, 12.2]),
                cell(System::Peersum, Launch::Graph, [12.0, 12.1, 12.2]),
            ]),
        );
        assert_eq!(
            report.to_text(),
            "# a made up card x 2, 2 ranks, bf16, programmatic dependent launch on; \
             peersum 0.1.0, nvcc 13.0; cuBLAS 13.0.2, NCCL 2.28.9\n\
             \n\
             us a layer, 64 layers in a graph; medians of 3 replays\n\
             \x20\x20all-reduce  hidden  rows  message  none   quartiles  with   \
             quartiles  adds  with/none  adds/NCCL's  algorithm         grid\n\
             \x20\x20peersum       4096     8      64K  10.0  9.50..10.5  12.1  \
             12.0..12.2  2.10      1.210        0.200  push_one_shot  8 x 512\n\
             \x20\x20NCCL          4096     8      64K  10.0  9.50..10.5  20.5  \
             20.0..22.0  10.5      2.050            -  -                    -\n\
             \n\
             us a layer, 64 layers launched one after the other; medians of 3 \
             replays\n\
             \x20\x20all-reduce  hidden  rows  message  none   quartiles  with   \
             quartiles  adds  with/none  adds/NCCL's  algorithm         grid\n\
             \x20\x20peersum       4096     8      64K  10.0  9.50..10.5  12.1  \
             12.0..12.2  2.10      1.210            -  push_one_shot  8 x 512\n"
        );
    }
}
