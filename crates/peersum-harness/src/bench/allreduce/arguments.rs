//! The flags of `bench allreduce`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;
use peersum_kernels::abi::PEERSUM_MAX_WORLD_SIZE;

use crate::bench::arguments::{CallArgs, Choices, NcclArgs, contents, launches, one_or_both};
use crate::bench::build::Build;
use crate::bench::call::MeasuredCall;
use crate::bench::sizes::parse_shape;
use crate::bench::timing::Launch;
use crate::norm_output::NormOutput;
use crate::operation::Operation;

/// What `bench allreduce` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// What is measured. `rms-norm`: all-reduce, residual and RMSNorm in one call, by the fused
    /// kernel and as an all-reduce with a kernel behind it that normalises; beside them the
    /// all-reduce alone. --rows and --hidden then take the place of --bytes. `all-gather`,
    /// `reduce-scatter`, `broadcast`: those calls, and beside them the all-reduce that sends as
    /// much to each peer (all-gather) or has the same input. --bytes are then those of the output
    /// of an all-gather and of the input of a reduce-scatter.
    #[arg(long, value_enum, default_value = "all-reduce")]
    pub(super) op: Operation,
    /// Rows of a call of --op rms-norm.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,4,16,32,64,128",
        conflicts_with = "bytes",
        value_parser = clap::value_parser!(u32).range(1..=65536)
    )]
    pub(super) rows: Vec<u32>,
    /// Elements of a row of --op rms-norm.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "4096,8192",
        conflicts_with = "bytes",
        value_parser = clap::value_parser!(u32).range(4..=32768)
    )]
    pub(super) hidden: Vec<u32>,
    /// What the calls of --op rms-norm write. With FP8 they work in place, so there are none with
    /// a symmetric input out of place. The table compares them with those without FP8 if `same`
    /// is measured too.
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "same",
        conflicts_with = "bytes"
    )]
    pub(super) output: Vec<NormOutput>,
    /// World sizes. If there are fewer GPUs than ranks, the ranks share them.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "2,4,8",
        value_parser = clap::value_parser!(u32).range(2..=8)
    )]
    pub(super) world_size: Vec<u32>,
    /// Element types.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16"
    )]
    pub(super) dtype: Vec<Dtype>,
    /// `best`: the plan of the dispatch table for each kind of input. `all`: every algorithm with
    /// the grids of --shapes. Or names such as push_one_shot. With `--op rms-norm` `best` is the
    /// fused kernel and the one behind the all-reduce of the table, and an algorithm is the
    /// all-reduce; the fused kernel, with the same grids, belongs to push_one_shot.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "best",
        value_parser = algorithms()
    )]
    pub(super) algo: Vec<String>,
    /// Grids to try for a named algorithm, as BLOCKSxTHREADS.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = parse_shape,
        default_value = "1x256,2x128,8x64,16x128,16x256,16x512,33x256,33x512,66x256,66x512,132x512"
    )]
    pub(super) shapes: Vec<(u32, u32)>,
    /// Replays of a graph, calls one after the other, or both.
    #[arg(long, default_value = "graph", value_parser = launches())]
    pub(super) method: Choices<Launch>,
    /// Programmatic dependent launch.
    #[arg(long, default_value = "on", value_parser = one_or_both([("on", true), ("off", false)]))]
    pub(super) pdl: Choices<bool>,
    /// Dispatch tables instead of the shipped ones, as `tune` writes them.
    #[arg(long, value_name = "FILE", value_parser = contents)]
    pub(super) tables: Option<String>,
    /// The largest grid, see `CommunicatorBuilder::max_blocks` [default: that of the library]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) max_blocks: Option<u32>,
    /// The directory with the cubin of the kernels that measure the machine's limits. Without it
    /// the limits are not measured.
    #[arg(long, value_name = "DIR")]
    pub(super) limits: Option<PathBuf>,
    /// Also measure kernels without header, bounds and poison, alternating with the shipped ones.
    /// The difference is the cost of safety.
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        default_missing_value = "target/bench/cubins-unsafe-baseline"
    )]
    pub(super) unsafe_baseline: Option<PathBuf>,
    /// Also measure kernels that formally order a re-arm before the peer's next store.
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        default_missing_value = "target/bench/cubins-strict-order"
    )]
    pub(super) strict_order: Option<PathBuf>,
    /// How often each build is measured, alternating [default: 1, or 3 if builds are compared]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: Option<u32>,
    /// Write the report, which --from-json reads.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write a self-contained page with curves and tables.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Write the curves as a picture.
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// Measure nothing; print and write the contents of this report.
    #[arg(long, value_name = "FILE")]
    pub(super) from_json: Option<PathBuf>,
    #[command(flatten)]
    pub(super) call: CallArgs,
    #[command(flatten)]
    pub(super) nccl: NcclArgs,
}

fn algorithms() -> PossibleValuesParser {
    let names = ["best", "all"]
        .into_iter()
        .chain(Route::ALL.map(Route::name));
    PossibleValuesParser::new(names)
}

impl BenchArgs {
    /// Whether the plans of the dispatch table are measured.
    pub(super) fn measures_best(&self) -> bool {
        self.algo.iter().any(|name| name == "best")
    }

    /// The calls with RMSNorm of a type whose elements have so many bytes.
    pub(super) fn rows_calls(&self, element_bytes: usize) -> impl Iterator<Item = MeasuredCall> {
        self.hidden.iter().flat_map(move |&hidden| {
            self.rows.iter().flat_map(move |&rows| {
                let call = MeasuredCall::of_rows(rows, hidden, element_bytes);
                let outputs = self.output.iter();
                outputs.map(move |&output| MeasuredCall { output, ..call })
            })
        })
    }

    /// The messages of a type, in bytes.
    pub(super) fn bytes(&self, dtype: Dtype) -> Vec<usize> {
        if self.op != Operation::RmsNorm {
            return self.call.bytes.clone();
        }
        let calls = self.rows_calls(dtype.size_bytes());
        // Different shapes may have the same bytes.
        Vec::from_iter(calls.map(|call| call.bytes).collect::<BTreeSet<usize>>())
    }

    /// Those of every type.
    pub(super) fn all_bytes(&self) -> Vec<usize> {
        let all = self.dtype.iter().flat_map(|&dtype| self.bytes(dtype));
        Vec::from_iter(all.collect::<BTreeSet<usize>>())
    }

    /// Of the messages, of which a chunk has at least one unit.
    pub(super) fn largest_bytes(&self) -> usize {
        let chunks = PEERSUM_MAX_WORLD_SIZE as usize * 16;
        self.all_bytes().into_iter().max().unwrap_or(0).max(chunks)
    }

    /// The algorithms that `--algo` names.
    pub(super) fn routes(&self) -> impl Iterator<Item = Route> {
        let is_named = |route: &Route| {
            let mut names = self.algo.iter();
            names.any(|name| name == "all" || name == route.name())
        };
        Route::ALL.into_iter().filter(is_named)
    }

    /// The builds of the kernels, the shipped one first, and the directory of each.
    pub(super) fn builds(&self) -> Vec<(Build, &Path)> {
        let directories = [
            (Build::Shipped, Some(&self.call.run.cubins)),
            (Build::UnsafeBaseline, self.unsafe_baseline.as_ref()),
            (Build::StrictOrder, self.strict_order.as_ref()),
        ];
        let given = directories.into_iter();
        let given = given.filter_map(|(build, directory)| Some((build, directory?.as_path())));
        given.collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn routes(algo: &str) -> Vec<Route> {
        let flags = Flags::parse_from(["bench-allreduce", "--algo", algo]);
        flags.args.routes().collect()
    }

    #[test]
    fn all_names_every_algorithm_and_best_none() {
        assert_eq!(routes("best,all"), Route::ALL);
        assert_eq!(routes("best"), []);
        let two = [Route::PushOneShot, Route::PullOneShot];
        assert_eq!(routes("push_one_shot,pull_one_shot"), two);
    }
}
