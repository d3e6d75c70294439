//! What a run has measured, as it is saved and read again.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use peersum::dispatch::{Placement, Plan, Topology};
use peersum_artifact::Dtype;
use serde::{Deserialize, Serialize};

use super::bandwidth::{algorithm_gb_s, bus_gb_s};
use super::build::{Build, toolkit};
use super::measured_limits::Limits;
use super::timing::{Launch, Spread, Times, median, rounded};
use crate::machine::Machine;
use crate::norm_output::NormOutput;
use crate::operation::Operation;

/// What every report says of its run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The version of the file's layout.
    pub(crate) schema: u32,
    /// peersum's version.
    pub(crate) peersum: String,
    /// The compiler of the kernels.
    pub(crate) toolkit: String,
    /// The device's name.
    pub(crate) device: String,
    /// How many there are.
    pub(crate) devices: u32,
    /// Replays or batches that count.
    pub(crate) replays: u32,
    /// NCCL's version, where it was measured.
    pub(crate) nccl: Option<String>,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
    /// What was to be measured and could not be.
    pub(crate) failures: Vec<String>,
}

impl Run {
    const SCHEMA: u32 = 1;

    /// # Errors
    /// The shipped build has no manifest.
    pub(crate) fn new(machine: &impl Machine, cubins: &Path, replays: u32) -> Result<Run> {
        Ok(Run {
            schema: Run::SCHEMA,
            peersum: env!("CARGO_PKG_VERSION").to_owned(),
            toolkit: toolkit(machine.kind(), cubins)?,
            device: machine.device_name().to_owned(),
            devices: machine.devices(),
            replays,
            nccl: None,
            notes: Vec::new(),
            failures: Vec::new(),
        })
    }

    /// What was measured; `None` if it could not be, which becomes one of the failures.
    pub(crate) fn take<T>(&mut self, what: &str, measured: Result<T>) -> Option<T> {
        let failed = |error| self.failures.push(format!("{what}: {error:#}"));
        measured.map_err(failed).ok()
    }

    /// Notes and failures, a line each.
    pub(crate) fn remarks(&self) -> String {
        let notes = self.notes.iter().map(|note| format!("note: {note}\n"));
        let failures = self
            .failures
            .iter()
            .map(|failure| format!("failed: {failure}\n"));
        notes.chain(failures).collect()
    }

    /// # Errors
    /// Something could not be measured.
    pub(crate) fn ensure_all_was_measured(&self) -> Result<()> {
        let failures = self.failures.join("; ");
        ensure!(failures.is_empty(), "not all was measured: {failures}");
        Ok(())
    }
}

/// One run of `bench allreduce`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) run: Run,
    /// The emulator's times mean nothing.
    pub(crate) emulated: bool,
    /// Calls in one graph, or in one batch of eager calls.
    pub(crate) calls: u32,
    pub(crate) limits: Vec<Limits>,
    pub(crate) cells: Vec<Cell>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum System {
    Peersum,
    /// The launch of peersum's kernel alone: what a call adds to it is the difference.
    BareLaunch,
    Nccl,
    /// NCCL with buffers in a symmetric window.
    NcclSymmetric,
}

/// What is measured: a call, and what makes it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) system: System,
    pub(crate) build: Build,
    pub(crate) world_size: u32,
    pub(crate) link: Topology,
    /// What the call does; an all-reduce also in a call with RMSNorm.
    #[serde(default, skip_serializing_if = "Operation::all_reduces")]
    pub(crate) operation: Operation,
    pub(crate) dtype: Dtype,
    /// The message, in bytes: the output of an all-gather, the input of a reduce-scatter.
    pub(crate) bytes: u64,
    pub(crate) launch: Launch,
    /// Programmatic dependent launch. Of no meaning for NCCL.
    pub(crate) pdl: bool,
    /// `None` for NCCL.
    pub(crate) placement: Option<Placement>,
    /// The algorithm, and the grid that was launched. `None` for NCCL.
    pub(crate) plan: Option<Plan>,
    /// Whether the dispatch table chose the plan.
    pub(crate) from_table: bool,
    /// The rows of a call with residual and RMSNorm; `None` for the all-reduce alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) norm: Option<Norm>,
}

impl Call {
    /// A call of the shipped build without what peersum's calls have beyond NCCL's.
    pub(crate) fn new(
        (system, world_size, link): (System, u32, Topology),
        (operation, dtype, bytes): (Operation, Dtype, usize),
        launch: Launch,
    ) -> Call {
        Call {
            system,
            build: Build::Shipped,
            world_size,
            link,
            operation: match operation {
                Operation::RmsNorm => Operation::AllReduce,
                operation => operation,
            },
            dtype,
            bytes: bytes as u64,
            launch,
            pdl: false,
            placement: None,
            plan: None,
            from_table: false,
            norm: None,
        }
    }
}

/// The rows of a call with residual and RMSNorm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Norm {
    pub(crate) rows: u32,
    /// Elements of a row.
    pub(crate) hidden: u32,
    /// What the call writes. Reports had none before there was FP8.
    #[serde(default, skip_serializing_if = "NormOutput::is_same")]
    pub(crate) output: NormOutput,
    /// By the fused kernel; else a kernel that normalises follows the all-reduce.
    pub(crate) is_fused: bool,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    #[serde(flatten)]
    pub(crate) call: Call,
    /// Microseconds a call.
    pub(crate) us: Spread,
    /// The host's microseconds a call until the launch has returned; eager calls only.
    pub(crate) host_us: Option<f64>,
    pub(crate) algorithm_gb_s: f64,
    pub(crate) bus_gb_s: f64,
    /// What the machine allows, in microseconds; where it was measured, for graphs.
    pub(crate) limit_us: Option<f64>,
}

/// A cell reads as its call with figures.
impl std::ops::Deref for Cell {
    type Target = Call;

    fn deref(&self) -> &Call {
        &self.call
    }
}

/// A call with its times, to which more rounds may add.
#[derive(Clone)]
pub(crate) struct Sample {
    call: Call,
    /// Microseconds a call of each replay.
    us: Vec<f64>,
    /// The host's likewise, of eager calls.
    host_us: Vec<f64>,
}

impl Sample {
    pub(crate) fn new(call: Call, times: Times) -> Sample {
        Sample {
            call,
            us: times.shortest(),
            host_us: times.host,
        }
    }

    /// Adds the times of another round to those of the same calls.
    pub(crate) fn add_round(samples: &mut Vec<Sample>, round: Vec<Sample>) {
        for sample in round {
            match samples.iter_mut().find(|other| other.call == sample.call) {
                Some(other) => {
                    other.us.extend(sample.us);
                    other.host_us.extend(sample.host_us);
                }
                None => samples.push(sample),
            }
        }
    }

    /// The cell, with the limit of its call if that was measured.
    pub(crate) fn cell(&self, limits: &[Limits]) -> Cell {
        let call = self.call;
        let two = |value: f64| (value * 100.0).round() / 100.0;
        let us = Spread::of(&self.us);
        let own = limits
            .iter()
            .find(|limits| (limits.world_size, limits.link) == (call.world_size, call.link))
            .filter(|_| call.launch == Launch::Graph);
        Cell {
            us,
            host_us: (!self.host_us.is_empty()).then(|| rounded(median(&self.host_us))),
            algorithm_gb_s: two(algorithm_gb_s(call.bytes, us.median)),
            bus_gb_s: two(bus_gb_s(
                call.operation,
                call.bytes,
                call.world_size,
                us.median,
            )),
            limit_us: own.and_then(|limits| limits.call_us(call.operation, call.bytes, call.pdl)),
            call,
        }
    }
}

impl Norm {
    pub(crate) fn name(&self) -> &'static str {
        if self.is_fused { "fused" } else { "unfused" }
    }
}

impl Cell {
    /// As flags name it.
    pub(crate) fn measured_operation(&self) -> Operation {
        match self.norm {
            Some(_) => Operation::RmsNorm,
            None => self.operation,
        }
    }

    pub(crate) fn is_of_nccl(&self) -> bool {
        matches!(self.system, System::Nccl | System::NcclSymmetric)
    }
}

/// Of the cells with the same key the fastest one.
pub(crate) fn fastest<'a, K: PartialEq>(
    cells: impl Iterator<Item = &'a Cell>,
    key: impl Fn(&Cell) -> K,
) -> Vec<&'a Cell> {
    let mut best: Vec<&Cell> = Vec::new();
    for cell in cells {
        match best.iter_mut().find(|other| key(other) == key(cell)) {
            Some(other) if cell.us.median < other.us.median => *other = cell,
            Some(_) => {}
            None => best.push(cell),
        }
    }
    best
}

impl Report {
    pub(crate) fn read(path: &Path) -> Result<Report> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let report: Report = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a report of bench allreduce", path.display()))?;
        ensure!(
            report.run.schema == Run::SCHEMA,
            "{} has schema {}, this version reads {}",
            path.display(),
            report.run.schema,
            Run::SCHEMA
        );
        Ok(report)
    }

    /// What was measured on, in one line.
    pub(crate) fn title(&self) -> String {
        let run = &self.run;
        let devices = match run.devices {
            _ if self.emulated => "the emulator: these times say nothing about any GPU".to_owned(),
            1 => run.device.clone(),
            count => format!("{} x {count}", run.device),
        };
        format!("{devices}, peersum {}, {}", run.peersum, run.toolkit)
    }

    /// What the calls do.
    pub(crate) fn operations(&self) -> BTreeSet<Operation> {
        self.cells.iter().map(Cell::measured_operation).collect()
    }

    /// World sizes and types.
    pub(crate) fn groups(&self) -> BTreeSet<(u32, Topology, Dtype)> {
        let group = |cell: &Cell| (cell.world_size, cell.link, cell.dtype);
        self.cells.iter().map(group).collect()
    }
}

/// Writes a report for programs, if a file is named.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_json(path: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    write_text(path, || json + "\n")
}

/// Writes a file, if one is named.
///
/// # Errors
/// As [`write_json`].
pub(crate) fn write_text(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    std::fs::write(path, text()).with_context(|| format!("writing {}", path.display()))
}
