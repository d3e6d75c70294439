//! `bench allreduce`: microseconds a call by world size, size, type, algorithm and grid, against the machine's limits and NCCL.

mod samples;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use self::samples::measure_group;
use super::build::{Build, Builds};
use super::nccl::{self, Nccl};
use super::ranks::GroupSettings;
use super::report::{Launch, Limits, Report, System};
use super::sample::{Sample, add_round};
use super::sizes::{parse_bytes, parse_shape};
use super::timing::{Method, Timed};
use super::{chart, limits, page, table};
use crate::machine::{DeviceChoice, DeviceKind, Emulators, Gpus, Machine, decide};

/// What `bench allreduce` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// World sizes; ranks share the cards if there are fewer.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,4,8", value_parser = clap::value_parser!(u32).range(2..=8))]
    world_size: Vec<u32>,
    /// Message sizes in bytes; K and M are powers of 1024.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4K,16K,64K,256K,1M,4M,16M", value_parser = parse_bytes)]
    bytes: Vec<usize>,
    /// Element types.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16"
    )]
    dtype: Vec<Dtype>,
    /// `best` takes the dispatch table's plan for each kind of input, `all` every algorithm with the grids of --shapes, or names like
    /// push_one_shot.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "best"
    )]
    algo: Vec<String>,
    /// Grids to try for a named algorithm, as BLOCKSxTHREADS.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_shape, default_value = "1x256,2x128,8x64,16x128,16x256,16x512,33x256,33x512,66x256,66x512,132x512")]
    shapes: Vec<(u32, u32)>,
    /// Replays of a graph, calls one after the other, or both.
    #[arg(long, value_enum, default_value = "graph")]
    method: MethodChoice,
    /// Programmatic dependent launch.
    #[arg(long, value_enum, default_value = "on")]
    pdl: Switch,
    /// What the ranks run on.
    #[arg(long, value_enum, default_value = "cuda")]
    device: DeviceChoice,
    /// The directory of cubins.
    #[arg(long, value_name = "DIR", default_value = "target/cubins")]
    cubins: PathBuf,
    /// Dispatch tables instead of the shipped ones, as `tune` writes them.
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    /// One half of the push slots; what does not fit goes in pieces. [default: as in a program that does not set it]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    push_half: Option<usize>,
    /// The largest grid, as `CommunicatorBuilder::max_blocks` sets it. [default: as in a program
    /// that does not set it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    max_blocks: Option<u32>,
    /// The directory with the cubin of the kernels that measure the machine's limits; without it there are none.
    #[arg(long, value_name = "DIR")]
    limits: Option<PathBuf>,
    /// NCCL's library, or `off`. Measured where there is a GPU for each rank. [default: the one that the loader finds]
    #[arg(long, value_name = "PATH|off")]
    nccl: Option<String>,
    /// Measure, in turn with the shipped kernels, those without header, bounds and poison: what safety costs.
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "target/bench/cubins-unsafe-baseline")]
    unsafe_baseline: Option<PathBuf>,
    /// Likewise those with the formal order of a re-arm before the peer's next store.
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "target/bench/cubins-strict-order")]
    strict_order: Option<PathBuf>,
    /// How often each build is measured, in turn [default: 1, or 3 where builds are compared]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Calls in one graph, or in one batch of eager calls.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    calls: u32,
    /// Replays that are counted.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10000))]
    replays: u32,
    /// Write the report, which --from-json reads.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with curves and tables that needs no other file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the curves as a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing: print and write what this report says.
    #[arg(long, value_name = "FILE")]
    from_json: Option<PathBuf>,
}

/// How calls are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MethodChoice {
    Graph,
    Eager,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
    Both,
}

impl Switch {
    fn values(self) -> &'static [bool] {
        match self {
            Switch::On => &[true],
            Switch::Off => &[false],
            Switch::Both => &[true, false],
        }
    }
}

impl MethodChoice {
    pub(super) fn launches(self) -> &'static [Launch] {
        match self {
            MethodChoice::Graph => &[Launch::Graph],
            MethodChoice::Eager => &[Launch::Eager],
            MethodChoice::Both => &[Launch::Graph, Launch::Eager],
        }
    }
}

/// Runs the benchmark, or reads one, and writes what is asked for.
///
/// # Errors
/// The flags mean nothing, a file cannot be read or written, or something could not be measured; all else was, and was written.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if let Some(path) = &args.from_json {
        let report = Report::read(path)?;
        write(args, &report)?;
        print(&report);
        return Ok(());
    }
    let routes = parse_routes(&args.algo)?;
    let kind = decide(args.device, 1)?.kind;
    let builds = Builds::new(kind, &args.cubins)
        .and(Build::UnsafeBaseline, args.unsafe_baseline.as_ref())
        .and(Build::StrictOrder, args.strict_order.as_ref());
    let report = match kind {
        DeviceKind::Emulator => {
            let emulators = Emulators::default();
            measure_ranks(
                args,
                &emulators,
                &builds,
                &routes,
                MeasuredLimits::default(),
            )?
        }
        DeviceKind::Cuda => {
            let gpus = Gpus::open(u32::MAX)?;
            let limits = measure_limits(args, &gpus);
            let mut report = measure_ranks(args, &gpus, &builds, &routes, limits)?;
            // Before NCCL has a chance to hang.
            write(args, &report)?;
            measure_nccl(args, &gpus, &mut report);
            report
        }
    };
    write(args, &report)?;
    print(&report);
    if !report.failures.is_empty() {
        bail!("not all was measured: {}", report.failures.join("; "));
    }
    Ok(())
}

impl BenchArgs {
    fn method(&self) -> Method {
        Method {
            calls: self.calls,
            warm_up: 2,
            replays: self.replays,
        }
    }
}

fn parse_routes(names: &[String]) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => routes.extend(Route::ALL),
            "best" => {}
            name => {
                let route = Route::ALL.into_iter().find(|route| route.name() == name);
                let known = || Route::ALL.map(Route::name).join(", ");
                routes.push(
                    route.with_context(|| {
                        format!("--algo {name}: there are best, all, {}", known())
                    })?,
                );
            }
        }
    }
    routes.dedup();
    Ok(routes)
}

fn print(report: &Report) {
    println!("# {}", report.title());
    for note in &report.notes {
        println!("note: {note}");
    }
    for failure in &report.failures {
        println!("failed: {failure}");
    }
    for table in table::tables(report) {
        println!("\n{}", table.to_text());
    }
}

fn write(args: &BenchArgs, report: &Report) -> Result<()> {
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    for (path, text) in [
        (&args.html, page::page as fn(&Report) -> String),
        (&args.svg, chart::picture),
    ] {
        if let Some(path) = path {
            std::fs::write(path, text(report))
                .with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

/// The limits, and what went wrong.
#[derive(Default)]
struct MeasuredLimits {
    limits: Vec<Limits>,
    notes: Vec<String>,
    failures: Vec<String>,
}

fn measure_limits(args: &BenchArgs, gpus: &Gpus) -> MeasuredLimits {
    let mut measured = MeasuredLimits::default();
    let Some(directory) = &args.limits else {
        let note = "the machine's limits were not measured: --limits was not given";
        measured.notes.push(note.to_owned());
        return measured;
    };
    for &world_size in &args.world_size {
        eprintln!("limits of {world_size} ranks");
        match limits::measure(gpus, directory, world_size, &args.bytes, args.method()) {
            Ok(limits) => measured.limits.push(limits),
            Err(error) => measured
                .failures
                .push(format!("limits of {world_size} ranks: {error:#}")),
        }
    }
    measured
}

fn measure_ranks<M: Timed>(
    args: &BenchArgs,
    machine: &M,
    builds: &Builds,
    routes: &[Route],
    measured: MeasuredLimits,
) -> Result<Report> {
    let all = builds.all();
    let rounds = args.rounds.unwrap_or(if all.len() > 1 { 3 } else { 1 });
    let largest_bytes = args.bytes.iter().copied().max().unwrap_or(0);
    let tables = args
        .tables
        .as_ref()
        .map(|path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        })
        .transpose()?;
    let MeasuredLimits {
        limits,
        notes,
        mut failures,
    } = measured;
    let mut samples: Vec<Sample> = Vec::new();
    for &world_size in &args.world_size {
        for &pdl in args.pdl.values() {
            // The builds take turns, so that what drifts drifts for all.
            for round in 0..rounds {
                for &build in &all {
                    eprintln!(
                        "{world_size} ranks, PDL {}, {}, round {} of {rounds}",
                        if pdl { "on" } else { "off" },
                        build.name(),
                        round + 1
                    );
                    let measured = builds.load_policy(build).and_then(|load_policy| {
                        let settings = GroupSettings {
                            world_size,
                            largest_bytes,
                            pdl,
                            load_policy,
                            max_blocks: args.max_blocks,
                            tables: tables.clone(),
                            push_half_bytes: args.push_half,
                        };
                        measure_group(args, machine, build, routes, &settings)
                    });
                    match measured {
                        Ok(measured) => add_round(&mut samples, measured),
                        Err(error) => failures.push(format!(
                            "{world_size} ranks with the {} build: {error:#}",
                            build.name()
                        )),
                    }
                }
            }
        }
    }
    failures.dedup();
    let cells = samples.iter().map(|sample| sample.cell(&limits)).collect();
    Ok(Report {
        schema: Report::SCHEMA,
        peersum: env!("CARGO_PKG_VERSION").to_owned(),
        toolkit: builds.toolkit()?,
        device: machine.device_name().to_owned(),
        devices: machine.devices(),
        emulated: machine.kind() == DeviceKind::Emulator,
        calls: args.calls,
        replays: args.replays,
        nccl: None,
        notes,
        failures,
        limits,
        cells,
    })
}

/// NCCL by the same method, where there is a GPU for each rank.
fn measure_nccl(args: &BenchArgs, gpus: &Gpus, report: &mut Report) {
    if args.nccl.as_deref() == Some("off") {
        return;
    }
    let world_sizes: Vec<u32> = args
        .world_size
        .iter()
        .copied()
        .filter(|size| *size <= gpus.devices())
        .collect();
    if world_sizes.is_empty() {
        report.notes.push(
            "NCCL was not measured: it wants a GPU a rank, and the ranks share theirs".to_owned(),
        );
        return;
    }
    let nccl = match Nccl::open(args.nccl.as_deref().map(std::path::Path::new)) {
        Ok(nccl) => nccl,
        Err(error) => {
            report
                .notes
                .push(format!("NCCL was not measured: {error:#}"));
            return;
        }
    };
    report.nccl = Some(nccl.version().to_owned());
    for world_size in world_sizes {
        for system in [System::Nccl, System::NcclSymmetric] {
            eprintln!("NCCL {}, {world_size} ranks, {system:?}", nccl.version());
            let work = nccl::Work {
                world_size,
                dtypes: &args.dtype,
                bytes: &args.bytes,
                launches: args.method.launches(),
                method: args.method(),
            };
            match nccl.measure(gpus, system, &work) {
                Ok(measured) => {
                    let cells = measured.iter().map(|sample| sample.cell(&report.limits));
                    report.cells.extend(cells);
                }
                Err(error) if nccl.lacks(system) => report.notes.push(format!("{error:#}")),
                Err(error) => report
                    .failures
                    .push(format!("{system:?} with {world_size} ranks: {error:#}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_that_is_not_there_is_answered_with_those_that_are() {
        let error = parse_routes(&["ring".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("ring") && error.contains("pull_two_shot"),
            "{error}"
        );
        assert_eq!(parse_routes(&["all".to_owned()]).unwrap(), Route::ALL);
    }
}
