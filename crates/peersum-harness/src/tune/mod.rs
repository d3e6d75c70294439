//! `tune`: which algorithm and grid is the fastest on this machine, for each size and kind of
//! input, as a dispatch table.

mod sweep;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use peersum::dispatch::{
    DispatchTable, DispatchTables, MeasuredRow, Measurement, Origin, Placement, Row, Topology,
};
use peersum_artifact::{Arch, Dtype};

use crate::bench::arguments::{CallArgs, contents};
use crate::bench::build::{Build, Builds};
use crate::bench::ranks::{GroupSettings, run_group};
use crate::bench::sizes::bytes_text;
use crate::bench::timing::{Launch, Timed};
use crate::machine::{DeviceKind, Emulators, Gpus, decide};
use sweep::{Progress, Shapes, Sweep, Tuned, geometric_mean};

/// How many candidates of one world size may fail before it is given up.
const MOST_FAILURES: usize = 8;

/// What `tune` sweeps.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TuneArgs {
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
    let builds = Builds::new(machine.kind(), &args.call.run.cubins);
    let toolkit = builds.toolkit()?;
    println!(
        "# {} x {}, {toolkit}, at most {} s, microseconds a call",
        machine.device_name(),
        machine.devices(),
        args.seconds
    );
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(args.seconds);
    let mut world_sizes = args.world_size.clone();
    world_sizes.sort_unstable();
    world_sizes.dedup();
    let mut tuned_sizes = 0;
    for (index, &world_size) in world_sizes.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            println!("W{world_size}: not tried, the time is up");
            continue;
        }
        let group = Group {
            args,
            world_size,
            link: machine.link(world_size),
            builds: &builds,
            base: &tables,
            tables: tables.to_json()?,
            deadline: Instant::now() + left / (world_sizes.len() - index) as u32,
        };
        match group.tune(machine) {
            Ok(outcome) => {
                if let Some(table) = outcome.table(machine, &toolkit) {
                    tables.insert(table);
                    write(&args.out, &tables.to_json()?)?;
                    tuned_sizes += 1;
                }
            }
            Err(error) => println!("W{world_size}: skipped: {error:#}"),
        }
    }
    if tuned_sizes == 0 {
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
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory)
        .with_context(|| format!("making {}", directory.display()))?;
    // A temporary file is readable by its owner only; this file is for everyone.
    let file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(|| format!("making a file in {}", directory.display()))?;
    std::fs::write(file.path(), text)?;
    file.persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// One world size.
struct Group<'a> {
    args: &'a TuneArgs,
    world_size: u32,
    link: Topology,
    builds: &'a Builds,
    base: &'a DispatchTables,
    /// The base tables as text, for the ranks.
    tables: String,
    deadline: Instant,
}

/// The result for one world size.
struct Outcome<'a> {
    group: &'a Group<'a>,
    arch: Option<Arch>,
    base: DispatchTable,
    tuned: Vec<Tuned>,
}

impl<'a> Group<'a> {
    /// Sweeps all sizes. A candidate that fails ends its group of ranks; another goes on without
    /// it.
    fn tune<M: Timed>(&'a self, machine: &M) -> Result<Outcome<'a>> {
        let shapes = Shapes::of(self.link);
        let settings = GroupSettings {
            world_size: self.world_size,
            largest_bytes: self.args.call.largest_bytes(),
            pdl: true,
            load_policy: self.builds.load_policy(Build::Shipped)?,
            max_blocks: shapes.max_blocks,
            tables: Some(self.tables.clone()),
            push_half_bytes: self.args.call.push_half,
        };
        let progress = Mutex::new(Progress::default());
        let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (todo, failed) = {
                let progress = lock();
                let is_done = |bytes| progress.tuned.iter().any(|tuned| tuned.bytes == bytes);
                let sizes = self.args.call.bytes.iter().map(|bytes| *bytes as u64);
                let todo: BTreeSet<u64> = sizes.filter(|bytes| !is_done(*bytes)).collect();
                (Vec::from_iter(todo), progress.failed.clone())
            };
            let sweep = Sweep {
                shapes,
                dtypes: &self.args.dtype,
                sizes: &todo,
                deadline: self.deadline,
                method: self.args.call.method(Launch::Graph),
                failed: &failed,
                progress: &progress,
            };
            let error = match run_group(machine, &settings, |rank| sweep.run(rank)) {
                Ok(_) => break,
                Err(error) => error,
            };
            let mut progress = lock();
            let Some(candidate) = progress.trying.take() else {
                return Err(error);
            };
            println!(
                "W{} {} {} {} x {}: left out: {error:#}",
                self.world_size,
                bytes_text(candidate.bytes),
                candidate.plan.route.name(),
                candidate.plan.blocks,
                candidate.plan.threads
            );
            progress.failed.push(candidate);
            if progress.failed.len() == MOST_FAILURES {
                println!(
                    "W{}: given up after {MOST_FAILURES} failures",
                    self.world_size
                );
                break;
            }
        }
        let progress = progress
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let arch = progress.arch.flatten();
        let outcome = Outcome {
            group: self,
            base: self.base.choose(arch, self.world_size, self.link)?,
            arch,
            tuned: progress.tuned,
        };
        outcome.print();
        Ok(outcome)
    }
}

impl Outcome<'_> {
    /// The table with what was measured, if anything was.
    fn table<M: Timed>(&self, machine: &M, toolkit: &str) -> Option<DispatchTable> {
        if self.tuned.is_empty() {
            return None;
        }
        let rows = |placement: Placement| {
            let measured: Vec<MeasuredRow> = self
                .tuned
                .iter()
                .filter(|tuned| tuned.placement == placement)
                .map(|tuned| MeasuredRow {
                    bytes: tuned.bytes,
                    row: Row::new(tuned.plan, self.origin(tuned, machine, toolkit)),
                })
                .collect();
            DispatchTable::overlay(self.base.rows(placement), &measured)
        };
        Some(DispatchTable {
            arch: self.arch.map(|arch| format!("sm_{arch}")),
            world_sizes: vec![self.group.world_size],
            topology: self.group.link,
            ordinary: rows(Placement::Ordinary),
            symmetric: rows(Placement::Symmetric),
            symmetric_in_place: rows(Placement::SymmetricInPlace),
        })
    }

    fn origin<M: Timed>(&self, tuned: &Tuned, machine: &M, toolkit: &str) -> Origin {
        let slowest = tuned.us.iter().copied().fold(0.0, f64::max);
        Origin::Measured(Measurement {
            device: machine.device_name().to_owned(),
            devices: machine.devices().min(self.group.world_size),
            world_size: self.group.world_size,
            dtypes: self.group.args.dtype.clone(),
            bytes: tuned.bytes,
            us: Some((slowest * 100.0).round() / 100.0),
            peersum: env!("CARGO_PKG_VERSION").to_owned(),
            toolkit: toolkit.to_owned(),
        })
    }

    /// Prints a line for each size, kind of input and type: the times before and after, and the
    /// plan.
    fn print(&self) {
        for tuned in &self.tuned {
            for ((dtype, base_us), us) in self
                .group
                .args
                .dtype
                .iter()
                .zip(&tuned.base_us)
                .zip(&tuned.us)
            {
                let kept = if tuned.plan == tuned.base_plan {
                    "kept"
                } else {
                    tuned.base_plan.route.name()
                };
                println!(
                    "W{} {:>5} {:<18} {dtype:<4}  {base_us:>8.2} -> {us:>8.2}  {:.3}  \
                     {:<18} {:>3} x {:<3}  ({kept})",
                    self.group.world_size,
                    bytes_text(tuned.bytes),
                    tuned.placement.name(),
                    us / base_us,
                    tuned.plan.route.name(),
                    tuned.plan.blocks,
                    tuned.plan.threads,
                );
            }
        }
        let ratios: Vec<f64> = self
            .tuned
            .iter()
            .flat_map(|tuned| {
                tuned
                    .us
                    .iter()
                    .zip(&tuned.base_us)
                    .map(|(us, base)| us / base)
            })
            .collect();
        if !ratios.is_empty() {
            println!(
                "W{}: geometric mean {:.3} of the tables before, over {} cells",
                self.group.world_size,
                geometric_mean(&ratios),
                ratios.len()
            );
        }
    }
}
