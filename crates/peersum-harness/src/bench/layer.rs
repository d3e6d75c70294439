//! `bench layer`: a row-parallel layer as an engine runs it, without an all-reduce, with peersum's
//! and with NCCL's; or a decode step of a model.

mod heading;
mod measure;
mod report;
mod stack;
mod step;
mod weights;

use std::path::PathBuf;

use anyhow::Result;
use clap::ArgAction;
use clap::builder::BoolishValueParser;

use self::measure::{Group, measure_group};
use self::report::Report;
use self::stack::Shape;
use self::step::{Model, Steps};
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
/// The square layers, unless set otherwise.
const DEFAULT_LAYERS: u32 = 64;

/// What `bench layer` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LayerArgs {
    /// Measure a decode step of a Llama in place of square layers: the products of QKV, output,
    /// gate and up, and down, each rank with its share, and behind output and down a sum over the
    /// ranks with residual and RMSNorm. There is no attention and no activation.
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        conflicts_with = "hidden"
    )]
    model: Vec<Model>,
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
    /// Rows: the tokens of a step [default: 1,8,64, or 1,8,32 with --model]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    rows: Vec<u32>,
    /// Replays of a graph, layers launched one after the other, or both [default: both, or graph
    /// with --model]
    #[arg(long, value_name = "graph|eager|both", value_parser = launches())]
    method: Option<Choices<Launch>>,
    /// Layers in one graph, or in one batch of eager layers. Each has its own weights: with few
    /// layers all of them may fit in the cache [default: 64, or all of --model]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=MAX_LAYERS)
    )]
    layers: Option<u32>,
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

impl LayerArgs {
    fn rows(&self) -> Vec<u32> {
        match (self.rows.is_empty(), self.model.is_empty()) {
            (false, _) => self.rows.clone(),
            (true, true) => vec![1, 8, 64],
            (true, false) => vec![1, 8, 32],
        }
    }

    fn launches(&self) -> Choices<Launch> {
        match (&self.method, self.model.is_empty()) {
            (Some(launches), _) => launches.clone(),
            (None, true) => vec![Launch::Graph, Launch::Eager],
            (None, false) => vec![Launch::Graph],
        }
    }
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
    let (rows, launches) = (args.rows(), args.launches());
    if !args.model.is_empty() {
        cublas::load()?;
        let steps = Steps {
            models: &args.model,
            world_size,
            layers: args.layers,
            rows: &rows,
            launches: &launches,
            pdl: args.pdl,
            run: &args.run,
            nccl: &args.nccl,
            json: args.json.as_deref(),
        };
        return step::run(&steps, &gpus);
    }
    let layers = args.layers.unwrap_or(DEFAULT_LAYERS);
    let shapes = args
        .hidden
        .iter()
        .map(|&hidden| Shape::new(hidden, world_size, layers))
        .collect::<Result<Vec<Shape>>>()?;
    cublas::load()?;
    let mut report = Report {
        run: Run::new(&gpus, &args.run.cubins, args.run.replays)?,
        world_size,
        layers,
        pdl: args.pdl,
        cublas: Cublas::new(&gpus.stream(0)?)?.version()?,
        cells: Vec::new(),
    };
    let load_policy = Build::Shipped.load_policy(DeviceKind::Cuda, &args.run.cubins)?;
    let method = |&launch| args.run.method(launch, layers);
    let methods: Vec<Method> = launches.iter().map(method).collect();
    let measure = |report: &mut Report, system, nccl: Option<&Nccl>| {
        for &shape in &shapes {
            let what = format!("{system} at hidden {}", shape.hidden);
            eprintln!("{what}, {world_size} ranks");
            let group = Group {
                load_policy: &load_policy,
                shape,
                rows: &rows,
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
        assert_eq!((args.rows(), args.launches().len()), (vec![1, 8, 64], 2));
        assert_eq!((args.hidden, args.model.len()), (vec![4096, 8192], 0));
        assert_eq!((args.layers, args.run.replays), (None, 9));
        assert_eq!((args.pdl, args.world_size), (true, None));
    }

    #[test]
    fn a_step_of_a_model_is_one_graph_of_all_its_layers_unless_said_otherwise() {
        let args = parse("--model 8b,70b").unwrap();
        assert_eq!(args.model, [Model::Llama8b, Model::Llama70b]);
        assert_eq!(
            (args.rows(), args.launches()),
            (vec![1, 8, 32], vec![Launch::Graph])
        );
        let args = parse("--model 8b --rows 4 --method eager --layers 2").unwrap();
        assert_eq!(
            (args.rows(), args.launches()),
            (vec![4], vec![Launch::Eager])
        );
        assert_eq!(args.layers, Some(2));
        assert!(parse("--model 8b --hidden 4096").is_err());
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
