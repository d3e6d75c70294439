//! The flags of `bench layer`.

use std::path::PathBuf;

use clap::ArgAction;
use clap::builder::BoolishValueParser;

use super::model::Model;
use crate::bench::arguments::{Choices, NcclArgs, RunArgs, launches};
use crate::bench::timing::Launch;

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
    pub(super) model: Vec<Model>,
    /// The number of ranks, which are threads of one process. If there are fewer GPUs, the ranks
    /// share them and NCCL is not measured [default: one rank per GPU, of 2, 4 or 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8))]
    pub(super) world_size: Option<u32>,
    /// Rows: the tokens of a step.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,8,32",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub(super) rows: Vec<u32>,
    /// All layers in one graph, launched one after the other, or both.
    #[arg(
        long,
        value_name = "graph|eager|both",
        default_value = "graph",
        value_parser = launches()
    )]
    pub(super) method: Choices<Launch>,
    /// Layers of a step. Each has its own weights: with few layers all of them may fit in the
    /// cache [default: all of the model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=80))]
    pub(super) layers: Option<u32>,
    /// Programmatic dependent launch of peersum's kernels.
    #[arg(
        long,
        value_name = "on|off",
        action = ArgAction::Set,
        default_value = "on",
        value_parser = BoolishValueParser::new()
    )]
    pub(super) pdl: bool,
    /// Write the report.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    #[command(flatten)]
    pub(super) nccl: NcclArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,
}
