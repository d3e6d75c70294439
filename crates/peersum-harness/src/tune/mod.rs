//! `tune`: which algorithm and grid is the fastest on this machine, for each size and kind of
//! input, and which calls with RMSNorm are fused, as a dispatch table.

mod overlay;
mod sweep;
mod tables;
mod ways;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use peersum::dispatch::{
    DispatchTable, DispatchTables, Measurement, NormRow, Origin, Placement, Row, Topology,
};
use peersum_artifact::Dtype;

use crate::bench::arguments::{CallArgs, contents};
use crate::bench::build::{Build, toolkit};
use crate::bench::ranks::{GroupSettings, run_group};
use crate::bench::sizes::bytes_text;
use crate::bench::timing::{Launch, Timed};
use crate::machine::{DeviceKind, Emulators, Gpus, decide};
use crate::names::name_of;
use crate::operation::Operation;
use overlay::{MeasuredRow, TableRow, overlay};
use sweep::{Progress, Sweep, Tuned, geometric_mean};
use ways::{Shapes, Way};

/// How many candidates of one world size may fail before it is given up.
const MOST_FAILURES: usize = 8;

/// What `tune` sweeps.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TuneArgs {
    /// Which rows of the table. `rms-norm`: those for all-reduce, residual and RMSNorm in one call,
    /// which say up to which size such calls are fused, and in which shape. The other operations
    /// take the grids of the all-reduce and are refused.
    #[arg(long, value_enum, default_value = "all-reduce")]
    op: Operation,
    /// Hidden sizes for --op rms-norm: a row of the table is for all. A size of --bytes is measured
    /// with those of which it is whole rows.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "4096,8192",
        value_parser = clap::value_parser!(u32).range(4..=32768)
    )]
    hidden: Vec<u32>,
    /// World sizes. If there are fewer GPUs than ranks, the ranks share them. A size that does not
    /// fit is skipped.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "2,3,4,5,6,7,8",
        value_parser = clap::value_parser!(u32).range(2..=8)
    )]
    world_size: Vec<u32>,
    /// Element types. A row of the table is for all types: the plan with the least geometric mean
    /// over these.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16,f32"
    )]
    dtype: Vec<Dtype>,
    /// The time limit of the whole sweep. All sizes get an equal share; a size that was not reached
    /// keeps its row.
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    seconds: f64,
    /// The tables to start from [default: the shipped ones]
    #[arg(long, value_name = "FILE", value_parser = contents)]
    base: Option<String>,
    /// Where to write the tables: those of --base, with the measured rows in place of theirs.
    #[arg(long, value_name = "FILE", default_value = "target/tune/tables.json")]
    out: PathBuf,
    #[command(flatten)]
    call: CallArgs,
}

/// Runs the sweep and writes the tables after each world size.
///
/// # Errors
/// A flag is invalid, there is no device, or no world size could be measured.
pub(crate) fn run(args: &TuneArgs) -> Result<()> {
    if !(args.seconds.is_finite() && args.seconds > 0.0 && args.seconds <= 86_400.0) {
        bail!("--seconds {}: more than 0 and at most 86400", args.seconds);
    }
    if !args.op.all_reduces() {
        bail!("{} takes the grids of the all-reduce", name_of(&args.op));
    }
    match decide(args.call.device, 1)?.kind {
        DeviceKind::Cuda => run_on(args, &Gpus::open(u32::MAX)?),
        DeviceKind::Emulator => {
            println!("# the emulator: these times say nothing about any GPU");
            run_on(args, &Emulators::default())
        }
    }
}

fn run_on<M: Timed>(args: &TuneArgs, machine: &M) -> Result<()> {
    let mut tables = match &args.base {
        Some(text) => DispatchTables::parse(text).context("the tables of --base")?,
        None => DispatchTables::shipped()?,
    };
    let cubins = &args.call.run.cubins;
    let toolkit = toolkit(machine.kind(), cubins)?;
    println!(
        "# {} x {}, {toolkit}, at most {} s, microseconds a call",
        machine.device_name(),
        machine.devices(),
        args.seconds
    );
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(args.seconds);
    let world_sizes: BTreeSet<u32> = args.world_size.iter().copied().collect();
    let mut is_written = false;
    for (index, &world_size) in world_sizes.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            println!("W{world_size}: not tried, the time is up");
            continue;
        }
        let link = machine.link(world_size);
        let group = Group {
            args,
            machine,
            link,
            toolkit: &toolkit,
            base: &tables,
            settings: GroupSettings {
                world_size,
                largest_bytes: args.call.largest_bytes(),
                normalises: args.op == Operation::RmsNorm,
                pdl: true,
                load_policy: Build::Shipped.load_policy(machine.kind(), cubins)?,
                max_blocks: Shapes::of(link).max_blocks,
                tables: Some(tables::to_json(&tables)?),
            },
            deadline: Instant::now() + left / (world_sizes.len() - index) as u32,
        };
        match group.tune() {
            Ok(None) => {}
            Ok(Some(table)) => {
                tables::insert(&mut tables, table);
                write(&args.out, &tables::to_json(&tables)?)?;
                is_written = true;
            }
            Err(error) => println!("W{world_size}: skipped: {error:#}"),
        }
    }
    if !is_written {
        bail!("nothing was measured, and nothing was written");
    }
    println!(
        "# {:.0} s; wrote {}, for CommunicatorBuilder::dispatch_tables",
        started.elapsed().as_secs_f64(),
        args.out.display()
    );
    Ok(())
}

/// Replaces the file as a whole.
fn write(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("making {}", directory.display()))?;
    }
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// One world size.
struct Group<'a, M> {
    args: &'a TuneArgs,
    machine: &'a M,
    link: Topology,
    toolkit: &'a str,
    base: &'a DispatchTables,
    settings: GroupSettings,
    deadline: Instant,
}

impl<M: Timed> Group<'_, M> {
    /// The table with what was measured, if anything was.
    fn tune(&self) -> Result<Option<DispatchTable>> {
        let Progress { arch, tuned, .. } = self.sweep()?;
        let world_size = self.settings.world_size;
        let base = self.base.choose(arch, world_size, self.link)?;
        self.print(&tuned);
        let mut table = DispatchTable {
            arch: arch.map(|arch| format!("sm_{arch}")),
            world_sizes: vec![world_size],
            ..base.clone()
        };
        if self.args.op == Operation::RmsNorm {
            let rows = |placement| {
                let base = base.rms_norm.rows(placement);
                self.rows(&tuned, placement, base, |way, origin| {
                    Some(NormRow {
                        max_bytes: None,
                        fused: way.fused(),
                        origin,
                    })
                })
            };
            let norms = &mut table.rms_norm;
            [norms.ordinary, norms.symmetric, norms.symmetric_in_place] = Placement::ALL.map(rows);
        } else {
            let rows = |placement| {
                self.rows(&tuned, placement, base.rows(placement), |way, origin| {
                    let Way::Plan(plan) = way else {
                        return None;
                    };
                    Some(Row {
                        max_bytes: None,
                        route: plan.route,
                        blocks: plan.blocks,
                        threads: plan.threads,
                        origin,
                    })
                })
            };
            [table.ordinary, table.symmetric, table.symmetric_in_place] = Placement::ALL.map(rows);
        }
        Ok((!tuned.is_empty()).then_some(table))
    }

    /// The rows of one kind of input: those of the base with what was measured.
    fn rows<R: TableRow>(
        &self,
        tuned: &[Tuned],
        placement: Placement,
        base: &[R],
        row: impl Fn(Way, Origin) -> Option<R>,
    ) -> Vec<R> {
        let own = tuned.iter().filter(|tuned| tuned.placement == placement);
        let measured = own.filter_map(|tuned| {
            let Tuned { bytes, best, .. } = tuned;
            Some(MeasuredRow {
                bytes: *bytes,
                row: row(best.way, self.origin(*bytes, &best.us))?,
            })
        });
        overlay(base, &Vec::from_iter(measured))
    }

    /// Sweeps all sizes. A candidate that fails ends its group of ranks; another goes on without
    /// it.
    fn sweep(&self) -> Result<Progress> {
        let mut progress = Progress::default();
        loop {
            let is_done = |bytes| progress.tuned.iter().any(|tuned| tuned.bytes == bytes);
            let sizes = self.args.call.bytes.iter().map(|bytes| *bytes as u64);
            let todo: BTreeSet<u64> = sizes.filter(|bytes| !is_done(*bytes)).collect();
            let sweep = Sweep {
                shapes: Shapes::of(self.link),
                operation: self.args.op,
                dtypes: &self.args.dtype,
                hidden: &self.args.hidden,
                sizes: Vec::from_iter(todo),
                deadline: self.deadline,
                method: self.args.call.method(Launch::Graph),
                failed: progress.failed.clone(),
                progress: Mutex::new(progress),
            };
            let outcome = run_group(self.machine, &self.settings, |rank| sweep.run(rank));
            let written = sweep.progress.into_inner();
            progress = written.unwrap_or_else(PoisonError::into_inner);
            let Err(error) = outcome else {
                return Ok(progress);
            };
            let Some(candidate) = progress.trying.take() else {
                return Err(error);
            };
            let world_size = self.settings.world_size;
            println!(
                "W{world_size} {} {}: left out: {error:#}",
                bytes_text(candidate.bytes),
                candidate.way
            );
            progress.failed.push(candidate);
            if progress.failed.len() == MOST_FAILURES {
                println!("W{world_size}: given up after {MOST_FAILURES} failures");
                return Ok(progress);
            }
        }
    }

    fn origin(&self, bytes: u64, us: &[f64]) -> Origin {
        let slowest = us.iter().copied().fold(0.0, f64::max);
        let world_size = self.settings.world_size;
        Origin::Measured(Measurement {
            device: self.machine.device_name().to_owned(),
            devices: self.machine.devices().min(world_size),
            world_size,
            dtypes: self.args.dtype.clone(),
            bytes,
            us: Some((slowest * 100.0).round() / 100.0),
            peersum: env!("CARGO_PKG_VERSION").to_owned(),
            toolkit: self.toolkit.to_owned(),
        })
    }

    /// Prints a line for each size and kind of input: the geometric means of the times before and
    /// after, over the types and hidden sizes, and how the calls are carried out.
    fn print(&self, tuned: &[Tuned]) {
        let world_size = self.settings.world_size;
        let mut ratios = Vec::new();
        for tuned in tuned {
            let (base, best) = (&tuned.base, &tuned.best);
            let ratio = best.mean() / base.mean();
            let before = match best == base {
                true => "kept".to_owned(),
                false => base.way.to_string(),
            };
            println!(
                "W{world_size} {:>5} {:<18}  {:>8.2} -> {:>8.2}  {ratio:.3}  {}  ({before})",
                bytes_text(tuned.bytes),
                tuned.placement.name(),
                base.mean(),
                best.mean(),
                best.way,
            );
            ratios.push(ratio);
        }
        if !ratios.is_empty() {
            println!(
                "W{world_size}: geometric mean {:.3} of the tables before, over {} rows",
                geometric_mean(&ratios),
                ratios.len()
            );
        }
    }
}
