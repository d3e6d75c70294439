//! What a run of `bench layer` has measured, as JSON and as tables.

use anyhow::Result;
use peersum::dispatch::Plan;
use serde::Serialize;

use super::model::Model;
use crate::bench::report::Run;
use crate::bench::sizes::bytes_text;
use crate::bench::timing::{Launch, Spread};
use crate::table::{Row, Table, algorithm, grid, quartiles_text, ratio, us_text};

/// What sums and normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// NCCL, and a kernel that adds the residual and normalises.
    NcclAndNorm,
    /// peersum's all-reduce, and the same kernel.
    PeersumUnfused,
    /// peersum's fused kernel.
    PeersumFused,
}

impl Way {
    /// Whether peersum fuses; `None` where it does not sum.
    pub(super) fn fuses(self) -> Option<bool> {
        match self {
            Way::NcclAndNorm => None,
            Way::PeersumUnfused => Some(false),
            Way::PeersumFused => Some(true),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::NcclAndNorm => "NCCL, norm",
            Way::PeersumUnfused => "peersum unfused",
            Way::PeersumFused => "peersum fused",
        }
    }
}

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) run: Run,
    pub(super) world_size: u32,
    /// Programmatic dependent launch of peersum's kernels.
    pub(super) pdl: bool,
    /// cuBLAS's version.
    pub(super) cublas: String,
    pub(super) cells: Vec<Cell>,
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    pub(super) model: Model,
    pub(super) way: Way,
    /// The tokens of a step.
    pub(super) rows: u32,
    /// What each sum has, in bytes.
    pub(super) bytes: u64,
    pub(super) launch: Launch,
    /// What is launched of the fused kernel, or else of the all-reduce; `None` for NCCL.
    pub(super) plan: Option<Plan>,
    pub(super) is_fused: bool,
    /// Whether the library does so by itself.
    pub(super) from_table: bool,
    /// Microseconds of the products alone, of the slowest rank.
    pub(super) products_us: Spread,
    /// Microseconds of a step, of the rank that began last.
    pub(super) step_us: Spread,
}

impl Cell {
    fn tokens_a_second(&self) -> f64 {
        f64::from(self.rows) * 1e6 / self.step_us.median
    }

    /// What is measured, apart from the way.
    fn step(&self) -> (Launch, Model, u32) {
        (self.launch, self.model, self.rows)
    }
}

impl Report {
    /// Takes what a group has measured, or why it could not.
    pub(super) fn add(&mut self, what: &str, measured: Result<Vec<Cell>>) {
        let measured = self.run.take(what, measured);
        self.cells.extend(measured.unwrap_or_default());
        self.cells.sort_by_key(|cell| (cell.step(), cell.way));
    }

    /// The report as text: the machine, what was not measured, and a table for each way of
    /// launching.
    pub(super) fn to_text(&self) -> String {
        let run = &self.run;
        let mut text = format!(
            "# {} x {}, {} ranks, bf16, programmatic dependent launch {}; peersum {}, {}; cuBLAS \
             {}, NCCL {}\n{}",
            run.device,
            run.devices,
            self.world_size,
            if self.pdl { "on" } else { "off" },
            run.peersum,
            run.toolkit,
            self.cublas,
            run.nccl.as_deref().unwrap_or("not measured"),
            run.remarks(),
        );
        for launch in [Launch::Graph, Launch::Eager] {
            let own = self.cells.iter().filter(|cell| cell.launch == launch);
            let rows: Vec<Row> = own.map(|cell| self.row(cell)).collect();
            let how = match launch {
                Launch::Graph => "in one graph",
                Launch::Eager => "launched one after the other",
            };
            let replays = run.replays;
            let title = format!("us a decode step, {how}; medians of {replays} replays");
            if let Some(table) = Table::of(title, rows) {
                text += &format!("\n{}", table.to_text());
            }
        }
        text
    }

    fn row(&self, cell: &Cell) -> Row {
        let other = |way| {
            let mut cells = self.cells.iter();
            let found = cells.find(|other| other.way == way && other.step() == cell.step());
            found.map(|other| other.step_us.median)
        };
        let us = cell.step_us.median;
        let by = match (cell.way, cell.from_table) {
            (Way::NcclAndNorm, _) => "-",
            (_, true) => "table",
            (_, false) => "forced",
        };
        vec![
            ("sum and norm", cell.way.name().to_owned()),
            ("model", cell.model.name().to_owned()),
            ("rows", cell.rows.to_string()),
            ("message", bytes_text(cell.bytes)),
            ("products", us_text(cell.products_us.median)),
            ("step", us_text(us)),
            ("quartiles", quartiles_text(cell.step_us)),
            ("tokens/s", format!("{:.0}", cell.tokens_a_second())),
            ("of NCCL", ratio(us, other(Way::NcclAndNorm))),
            ("of unfused", ratio(us, other(Way::PeersumUnfused))),
            algorithm(cell.plan),
            grid(cell.plan),
            ("by", by.to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_sets_each_way_beside_nccl_and_the_unfused_step() {
        let mut report = Report {
            run: Run {
                schema: 1,
                peersum: "0.1.0".to_owned(),
                toolkit: "nvcc 13.0".to_owned(),
                device: "a made up card".to_owned(),
                devices: 2,
                replays: 3,
                nccl: Some("2.28.9".to_owned()),
                notes: Vec::new(),
                failures: Vec::new(),
            },
            world_size: 2,
            pdl: true,
            cublas: "13.0.2".to_owned(),
            cells: Vec::new(),
        };
        let cell = |way, us| Cell {
            model: Model::Llama8b,
            way,
            rows: 8,
            bytes: 65536,
            launch: Launch::Graph,
            plan: None,
            is_fused: false,
            from_table: false,
            products_us: Spread::of(&[3000.0]),
            step_us: Spread::of(&[us]),
        };
        let peersum = vec![
            cell(Way::PeersumFused, 3200.0),
            cell(Way::PeersumUnfused, 3400.0),
        ];
        report.add("peersum", Ok(peersum));
        report.add("NCCL", Ok(vec![cell(Way::NcclAndNorm, 4000.0)]));
        let eager = Cell {
            launch: Launch::Eager,
            ..cell(Way::PeersumFused, 5000.0)
        };
        report.add("peersum, eager", Ok(vec![eager]));
        let text = report.to_text();
        let line = |way: &str| {
            let line = text.lines().find(|line| line.contains(way)).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert!(
            text.starts_with(
                "# a made up card x 2, 2 ranks, bf16, programmatic dependent launch on; peersum \
                 0.1.0, nvcc 13.0; cuBLAS 13.0.2, NCCL 2.28.9\n\nus a decode step, in one graph; \
                 medians of 3 replays\n"
            ),
            "{text}"
        );
        assert_eq!(
            line("peersum fused"),
            "peersum fused 8b 8 64K 3000 3200 3200..3200 2500 0.800 0.941 - - forced"
        );
        let (graph, eager) = text.split_once("launched one after the other").unwrap();
        assert_eq!(graph.matches("peersum fused").count(), 1);
        assert!(eager.contains("peersum fused") && eager.contains("5000"));
        assert_eq!(
            line("NCCL, norm"),
            "NCCL, norm 8b 8 64K 3000 4000 4000..4000 2000 1.000 1.176 - - -"
        );
    }
}
