//! `bench layer`: a decode step of a Llama, with NCCL and a norm kernel, with peersum unfused, and
//! with peersum fused.

mod decoder;
mod measure;
mod model;
mod report;
mod weights;

use std::path::PathBuf;

use anyhow::Result;
use clap::ArgAction;
use clap::builder::BoolishValueParser;

use self::measure::{Group, measure_group};
use self::model::{Model, Shape};
use self::report::Report;
use super::arguments::{Choices, NcclArgs, RunArgs, launches};
use super::build::Build;
use super::cublas::{self, Cublas};
use super::nccl::Nccl;
use super::report::{Run, write_json};
use super::timing::Launch;
use crate::machine::{DeviceKind, Gpus, Machine};

/// What `bench layer` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LayerArgs {
    /// The Llamas whose decode step is measured: the products of QKV, output, gate and up, and
    /// down, of which each rank has its share. After output and after down, the ranks' results
    /// are summed with residual and RMSNorm. There is no attention and no activation.
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "8b"
    )]
    model: Vec<Model>,
    /// The number of ranks, which are threads of one process. If there are fewer GPUs, the ranks
    /// share them and NCCL is not measured [default: one rank per GPU, of 2, 4 or 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8))]
    world_size: Option<u32>,
    /// Rows: the tokens of a step.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,8,32",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    rows: Vec<u32>,
    /// All layers in one graph, launched one after the other, or both.
    #[arg(
        long,
        value_name = "graph|eager|both",
        default_value = "graph",
        value_parser = launches()
    )]
    method: Choices<Launch>,
    /// Layers of a step. Each has its own weights: with few layers all of them may fit in the
    /// cache [default: all of the model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=80))]
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

/// Runs the benchmark, prints its tables and writes the report if that is asked for.
///
/// # Errors
/// There is no GPU or no cuBLAS, a model does not divide into the ranks, or something could not be
/// measured. Everything else was measured and written.
pub(crate) fn run(args: &LayerArgs) -> Result<()> {
    let gpus = Gpus::open(u32::MAX)?;
    let world_size = args
        .world_size
        .unwrap_or_else(|| default_world_size(gpus.devices()));
    let shapes = args.model.iter().map(|&model| {
        let shape = Shape::new(model, world_size, args.layers)?;
        Ok((model, shape))
    });
    let shapes = shapes.collect::<Result<Vec<(Model, Shape)>>>()?;
    cublas::load()?;
    let mut report = Report {
        run: Run::new(&gpus, &args.run.cubins, args.run.replays)?,
        world_size,
        pdl: args.pdl,
        cublas: Cublas::new(&gpus.stream(0)?)?.version()?,
        cells: Vec::new(),
    };
    let load_policy = Build::Shipped.load_policy(DeviceKind::Cuda, &args.run.cubins)?;
    let measure = |report: &mut Report, system, nccl: Option<&Nccl>| {
        for &(model, shape) in &shapes {
            let what = format!("{system}, a step of {}", model.name());
            eprintln!("{what}, {world_size} ranks");
            let group = Group {
                args,
                load_policy: &load_policy,
                model,
                shape,
                world_size,
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

/// One rank per GPU, limited to the sizes that divide a model: 2, 4 or 8.
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
    fn a_step_of_the_smaller_model_is_one_graph_of_all_its_layers_unless_said_otherwise() {
        let args = parse("").unwrap();
        assert_eq!(
            (args.model, args.rows, args.method),
            (vec![Model::Llama8b], vec![1, 8, 32], vec![Launch::Graph])
        );
        assert_eq!((args.layers, args.run.replays), (None, 9));
        assert_eq!((args.pdl, args.world_size), (true, None));
        let args = parse("--model 8b,70b --rows 3,4 --method eager --layers 2 --pdl off").unwrap();
        assert_eq!(args.model, [Model::Llama8b, Model::Llama70b]);
        assert_eq!((args.rows, args.method), (vec![3, 4], vec![Launch::Eager]));
        assert_eq!((args.layers, args.pdl), (Some(2), false));
    }

    #[test]
    fn there_is_a_rank_a_gpu_but_never_fewer_than_two() {
        let by_gpus = [0, 1, 2, 3, 4, 6, 8, 16].map(default_world_size);
        assert_eq!(by_gpus, [2, 2, 2, 2, 4, 4, 8, 8]);
    }
}
