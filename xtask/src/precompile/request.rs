//! What to compile, and with which compiler: the flags of `precompile`, and what other commands
//! ask it to do.

use super::matrix::{ArchChoice, WorldSizes};
use super::progress::MessageFormat;
use crate::toolchain::ToolkitChoice;
use anyhow::ensure;
use clap::Args;
use peersum_artifact::{Dtype, Family, ModuleKey};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// Compile the kernel matrix to cubins and a manifest
///
/// Makes one file for each module and architecture, and a manifest.json that describes them. The
/// modules: {push, pull, norm} x {f16, bf16, f32} x world size 2 to 8, norm for world size 1 too,
/// and move (u8, for every type) for world size 2 to 8. Compiles only what has changed. Replaces
/// the output directory as a whole, so it is complete at any moment.
#[derive(Debug, Clone, Default, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Request {
    /// What to compile for, a list: sm_90 (a cubin), compute_80 (PTX), native (this machine's GPUs)
    /// [default: sm_80,sm_90,sm_100,sm_120,compute_80]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = trimmed::<ArchChoice>)]
    pub(crate) arch: Vec<ArchChoice>,

    /// Element types, a list: f16, bf16, f32, u8 (the family move) [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = trimmed::<Dtype>)]
    pub(crate) dtype: Vec<Dtype>,

    /// World sizes, a list of numbers and ranges such as 2..8 (includes 8) [default: 1..8]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = trimmed::<WorldSizes>)]
    pub(crate) world_size: Vec<WorldSizes>,

    /// Kernel families, a list: push, pull, norm, move [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = trimmed::<Family>)]
    pub(crate) family: Vec<Family>,

    /// The output directory; its contents are replaced by exactly what is asked for
    /// [default: target/cubins]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// Compiler processes at a time [default: the number of cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,

    /// The CUDA toolkit: `pinned`, or the path of a toolkit or an nvcc
    /// [default: $NVCC, $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda, else the pinned one]
    #[arg(
        long,
        value_name = "pinned|PATH",
        default_value = "auto",
        hide_default_value = true
    )]
    pub(crate) toolkit: ToolkitChoice,

    /// Use nvcc's own implicit header instead of the short prelude: same code, twice the time. Use
    /// it if a new toolkit rejects the prelude. It cannot work if the toolkit's headers contradict
    /// those of the C library, as CUDA 13.0's do with glibc 2.42 or newer (rsqrt)
    #[arg(long)]
    pub(crate) stock_headers: bool,

    /// Read the kernels from another directory
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) kernels: Option<PathBuf>,

    /// Keep modules whose registers spill to memory, with a warning. Only for kernels that
    /// are measured: those of a release must not spill
    #[arg(long, hide = true, requires = "kernels")]
    pub(crate) allow_spills: bool,

    /// Verify the output without compiling: exit 0 if all that is asked for is there, undamaged and
    /// up to date, else list what is not and exit 1
    #[arg(long, conflicts_with_all = ["timings", "jobs", "toolkit", "stock_headers"])]
    pub(crate) check: bool,

    /// Write a timeline of the compiler processes beside the output: {out}-timings.svg
    #[arg(long)]
    pub(crate) timings: bool,

    /// Print nothing unless something fails
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Text for people on stderr, or one JSON object a line on stdout
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub(crate) message_format: MessageFormat,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask precompile                                 the release set, into target/cubins
  cargo xtask precompile --arch native                   only for the GPUs of this machine
  cargo xtask precompile --arch sm_90 --world-size 1,2,4,8
  cargo xtask precompile --check                         is target/cubins complete and up to date?
  cargo xtask precompile --toolkit /usr/local/cuda-12.8  another toolkit, CUDA 12.4 to 13.x

Environment:
  NVCC, CUDA_HOME, CUDA_PATH   where to find nvcc (the latter two: absolute paths); if none leads
                               to one, the pinned CUDA 13.0 compiler is installed on first use
  PEERSUM_TOOLCHAIN_DIR        where that is installed [default: the user's cache directory]
  NVCC_CCBIN, CXX              the host C++ compiler that nvcc calls

Exit status: 0 if all is there, 1 if anything failed; the earlier output is then untouched.";

impl Request {
    /// The modules that it selects, in the manifest's order.
    ///
    /// # Errors
    /// There is none: an output without modules would replace one with them, and pass `--check`.
    pub(super) fn modules(&self) -> anyhow::Result<Vec<ModuleKey>> {
        fn selects<T: PartialEq>(list: &[T], item: &T) -> bool {
            list.is_empty() || list.contains(item)
        }
        let selects_size = |key: &ModuleKey| {
            let mut ranges = self.world_size.iter();
            self.world_size.is_empty() || ranges.any(|range| range.contains(key.world_size))
        };
        let modules: Vec<ModuleKey> = ModuleKey::all()
            .filter(|key| selects(&self.family, &key.family) && selects(&self.dtype, &key.dtype))
            .filter(selects_size)
            .collect();
        ensure!(
            !modules.is_empty(),
            "no module has what --family, --dtype and --world-size ask for together; there are: {}",
            existing_modules()
        );
        Ok(modules)
    }
}

/// What there is of each family, as in `push: f16, bf16, f32 for world sizes 2 to 8`.
fn existing_modules() -> String {
    let of_family = |family: Family| {
        let dtypes: Vec<String> = family.dtypes().iter().map(Dtype::to_string).collect();
        let keys = ModuleKey::all().filter(|key| key.family == family);
        let sizes: BTreeSet<u32> = keys.map(|key| key.world_size.get()).collect();
        let sizes = match (sizes.first(), sizes.last()) {
            (Some(first), Some(last)) if first < last => format!("sizes {first} to {last}"),
            (first, _) => format!("size {}", first.copied().unwrap_or_default()),
        };
        format!("{family}: {} for world {sizes}", dtypes.join(", "))
    };
    let families = Family::ALL.iter().copied().map(of_family);
    families.collect::<Vec<_>>().join("; ")
}

/// Reads an item of a list, which may have spaces around it.
fn trimmed<T: FromStr>(item: &str) -> Result<T, T::Err> {
    item.trim().parse()
}
