//! Flags that several commands have.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::nccl::Nccl;
use super::report::Run;
use super::sizes::parse_bytes;
use super::timing::{Launch, Method};
use crate::machine::DeviceChoice;

/// What is measured, and how often.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RunArgs {
    /// The directory of cubins.
    #[arg(long, value_name = "DIR", default_value = "target/cubins")]
    pub(crate) cubins: PathBuf,
    /// Replays that are counted.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 9,
        value_parser = clap::value_parser!(u32).range(1..=10000)
    )]
    pub(crate) replays: u32,
}

impl RunArgs {
    pub(crate) fn method(&self, launch: Launch, calls: u32) -> Method {
        Method {
            launch,
            calls,
            warm_up: 2,
            replays: self.replays,
        }
    }
}

/// Calls with messages of several sizes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CallArgs {
    /// Message sizes in bytes; K and M are powers of 1024.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "4K,16K,64K,256K,1M,4M,16M",
        value_parser = parse_bytes
    )]
    pub(crate) bytes: Vec<usize>,
    /// What the ranks run on.
    #[arg(long, value_enum, default_value = "cuda")]
    pub(crate) device: DeviceChoice,
    /// Calls in one graph, or in one batch of eager calls.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub(crate) calls: u32,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

impl CallArgs {
    pub(crate) fn method(&self, launch: Launch) -> Method {
        self.run.method(launch, self.calls)
    }

    pub(crate) fn largest_bytes(&self) -> usize {
        self.bytes.iter().copied().max().unwrap_or(0)
    }
}

/// One of two values, or both.
pub(crate) type Choices<T> = Vec<T>;

/// Parses a choice among two values by their names, or `both`.
pub(crate) fn one_or_both<T: Copy + Send + Sync + 'static>(
    choices: [(&'static str, T); 2],
) -> impl TypedValueParser<Value = Choices<T>> {
    let names = choices.map(|(name, _)| name).into_iter().chain(["both"]);
    PossibleValuesParser::new(names).map(move |chosen| {
        let is_chosen = |(name, _): &(&str, T)| chosen == "both" || chosen == *name;
        let chosen = choices.into_iter().filter(is_chosen);
        chosen.map(|(_, value)| value).collect()
    })
}

/// The choices of `--method`.
pub(crate) fn launches() -> impl TypedValueParser<Value = Choices<Launch>> {
    one_or_both([Launch::Graph, Launch::Eager].map(|launch| (launch.name(), launch)))
}

/// Whether NCCL is measured too.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NcclArgs {
    /// The library of NCCL, or `off`. NCCL is measured if every rank has its own GPU [default: the
    /// library that the loader finds]
    #[arg(long, value_name = "PATH|off")]
    nccl: Option<String>,
}

impl NcclArgs {
    /// NCCL for a group of `world_size` ranks on `gpus` GPUs. `None` if it is switched off or
    /// cannot be measured; then a note says why not.
    pub(crate) fn open(&self, world_size: u32, gpus: u32, run: &mut Run) -> Option<Nccl> {
        let path = self.nccl.as_deref();
        if path == Some("off") {
            return None;
        }
        let nccl = if world_size > gpus {
            Err(anyhow!(
                "it needs a GPU for each rank, and {world_size} ranks share {gpus}"
            ))
        } else {
            Nccl::open(path.map(Path::new))
        };
        match nccl {
            Ok(nccl) => {
                run.nccl = Some(nccl.version());
                Some(nccl)
            }
            Err(error) => {
                run.notes.push(format!("NCCL was not measured: {error:#}"));
                None
            }
        }
    }
}

/// The contents of the file that a flag names. clap names the flag and the file in its error.
pub(crate) fn contents(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}
