//! `bench layer`: a row-parallel layer as an engine runs it, without an all-reduce, with peersum's
//! and with NCCL's.

mod measure;
mod report;
mod stack;

use std::path::PathBuf;

use anyhow::Result;
use clap::ArgAction;
use clap::builder::BoolishValueParser;

use self::measure::{Group, measure_group};
use self::report::Report;
use self::stack::Shape;
use super::arguments::{Choices, NcclArgs, RunArgs, launches};
use super::build::Build;
use super::cublas::{self, Cublas};
use super::nccl::Nccl;
use super::report::{Run, write_json};
use super::timing::{Launch, Method};
use crate::machine::{DeviceKind, Gpus, Machine};

/// The maximum number of layers. Without an all-reduce, each layer divides the values by the square
/// root of the world size; after so many layers they are still normal numbers.
const MAX_LAYERS: i64 = 80;

/// What `bench layer` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LayerArgs {
    /// The number of ranks, which are threads of one process. If there are fewer GPUs, the ranks
    /// share them and NCCL is not measured [default: one rank per GPU, of 2, 4 or 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8))]
    world_size: Option<u32>,
    /// Hidden sizes: the width of the layer's output, and of its input over all ranks.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "4096,8192",
        value_parser = clap::value_parser!(u32).range(16..=65536)
    )]
    hidden: Vec<u32>,
    /// Rows: the tokens of a step.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,8,64",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    rows: Vec<u32>,
    /// Replays of a graph, layers launched one after the other, or both.
    #[arg(long, default_value = "both", value_parser = launches())]
    method: Choices<Launch>,
    /// Layers in one graph, or in one batch of eager layers. Each has its own weights: with few
    /// layers all of them may fit in the cache.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=MAX_LAYERS)
    )]
    layers: u32,
    /// Programmatic dependent launch of peersum's kernels.
    #[arg(
        long,
        value_name = "on|off",
        action = ArgAction::Set,
        default_value = "on",
        value_parser = BoolishValueParser::new()
    )]
    pdl: bool,
    /// Write the report.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    nccl: NcclArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs the benchmark, prints its tables and writes the report if that is asked for.
///
/// # Errors
/// There is no GPU or no cuBLAS, a hidden size does not divide into shards, or something could not
/// be measured. Everything else was measured and written.
pub(crate) fn run(args: &LayerArgs) -> Result<()> {
    let gpus = Gpus::open(u32::MAX)?;
    let world_size = args
        .world_size
        .unwrap_or_else(|| default_world_size(gpus.devices()));
    let shapes = args
        .hidden
        .iter()
        .map(|&hidden| Shape::new(hidden, world_size, args.layers))
        .collect::<Result<Vec<Shape>>>()?;
    cublas::load()?;
    let mut report = Report {
        run: Run::new(&gpus, &args.run.cubins, args.run.replays)?,
        world_size,
        layers: args.layers,
        pdl: args.pdl,
        cublas: Cublas::new(&gpus.stream(0)?)?.version()?,
        cells: Vec::new(),
    };
    let load_policy = Build::Shipped.load_policy(DeviceKind::Cuda, &args.run.cubins)?;
    let method = |&launch| args.run.method(launch, args.layers);
    let methods: Vec<Method> = args.method.iter().map(method).collect();
    let measure = |report: &mut Report, system, nccl: Option<&Nccl>| {
        for &shape in &shapes {
            let what = format!("{system} at hidden {}", shape.hidden);
            eprintln!("{what}, {world_size} ranks");
            let group = Group {
                load_policy: &load_policy,
                shape,
                rows: &args.rows,
                methods: &methods,
                pdl: args.pdl,
            };
            report.add(&what, measure_group(&gpus, &group, nccl));
        }
    };
    measure(&mut report, "peersum", None);
    // Write now, in case NCCL hangs.
    write_json(args.json.as_deref(), &report)?;
    let nccl = args.nccl.open(world_size, gpus.devices(), &mut report.run);
    if let Some(nccl) = &nccl {
        measure(&mut report, "NCCL", Some(nccl));
    }
    write_json(args.json.as_deref(), &report)?;
    print!("{}", report.to_text());
    report.run.ensure_all_was_measured()
}

/// One rank per GPU, limited to the sizes that divide hidden sizes: 2, 4 or 8.
fn default_world_size(gpus: u32) -> u32 {
    let power = gpus.checked_ilog2().unwrap_or(0).clamp(1, 3);
    1 << power
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: LayerArgs,
    }

    fn parse(flags: &str) -> Result<LayerArgs, clap::Error> {
        let all = std::iter::once("bench-layer").chain(flags.split_whitespace());
        Flags::try_parse_from(all).map(|flags| flags.args)
    }

    #[test]
    fn without_flags_both_hidden_sizes_of_common_models_are_measured_both_ways() {
        let args = parse("").unwrap();
        assert_eq!((args.hidden, args.rows), (vec![4096, 8192], vec![1, 8, 64]));
        assert_eq!((args.layers, args.run.replays), (64, 9));
        assert_eq!(args.method.len(), 2);
        assert_eq!((args.pdl, args.world_size), (true, None));
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused() {
        let args = parse("--rows=3,5 --pdl off").unwrap();
        assert_eq!((args.rows, args.pdl), (vec![3, 5], false));
        for bad in [
            "--world-size 1",
            "--world-size 9",
            "--rows 0",
            "--rows 1,",
            "--hidden 8",
            "--layers 0",
            "--layers 81",
            "--replays 0",
            "--pdl both",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn there_is_a_rank_a_gpu_but_never_fewer_than_two() {
        let by_gpus = [0, 1, 2, 3, 4, 6, 8, 16].map(default_world_size);
        assert_eq!(by_gpus, [2, 2, 2, 2, 4, 4, 8, 8]);
    }
}
