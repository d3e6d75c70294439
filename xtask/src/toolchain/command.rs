//! `cargo xtask toolchain`: the pinned toolchain by itself, and which compiler would be used.

use super::resolve::{COMPILER, NVRTC, Nvcc, ToolkitChoice, find, pinned};
use super::wheels::WheelSet;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use fs_err as fs;
use std::path::PathBuf;

/// Install the pinned CUDA compiler, or print where a compiler is
#[derive(Debug, Args)]
pub(crate) struct ToolchainArgs {
    #[command(subcommand)]
    command: ToolchainCommand,
}

#[derive(Debug, Subcommand)]
enum ToolchainCommand {
    /// Install the pinned toolchain unless it is there, and print its directory
    ///
    /// `precompile` does this by itself if the machine has no nvcc. The wheels come from PyPI, or
    /// from the index that pip is configured to use; every hash is checked. They are installed in
    /// PEERSUM_TOOLCHAIN_DIR [default: peersum/toolchain in the user's cache directory].
    Install(SetArgs),
    /// Print the directory of the pinned toolchain; fail if it is not installed
    Path(SetArgs),
    /// Print which nvcc and host compiler `precompile` would use; install nothing
    Which {
        /// `pinned`, an nvcc or a toolkit's directory
        /// [default: $NVCC, $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda, else the pinned one]
        #[arg(
            long,
            value_name = "pinned|PATH",
            default_value = "auto",
            hide_default_value = true
        )]
        toolkit: ToolkitChoice,
    },
}

#[derive(Debug, Args)]
struct SetArgs {
    /// NVRTC instead of the compiler
    #[arg(long)]
    nvrtc: bool,

    /// Other requirements than the pinned ones
    #[arg(long, value_name = "FILE", hide = true)]
    requirements: Option<PathBuf>,
}

/// Runs `cargo xtask toolchain`. The answer goes to standard output, notes to standard error.
///
/// # Errors
/// One message that says what to do.
pub(crate) fn run(args: &ToolchainArgs) -> anyhow::Result<()> {
    match &args.command {
        ToolchainCommand::Install(args) => {
            let dir = args.set()?.install()?;
            println!("{}", dir.display());
        }
        ToolchainCommand::Path(args) => {
            let set = args.set()?;
            let dir = set.installed()?.with_context(|| {
                let (name, flag) = (set.name, if args.nvrtc { " --nvrtc" } else { "" });
                format!("{name} is not installed; run `cargo xtask toolchain install{flag}`")
            })?;
            println!("{}", dir.display());
        }
        ToolchainCommand::Which { toolkit } => {
            let found = find(toolkit)?;
            let nvcc = if let Some(nvcc) = found {
                nvcc
            } else if let Some(dir) = COMPILER.installed()? {
                pinned(&dir)?
            } else {
                println!(
                    "the pinned toolchain, which is not installed yet: \
                     `cargo xtask toolchain install`"
                );
                return Ok(());
            };
            print_nvcc(&nvcc);
        }
    }
    Ok(())
}

impl SetArgs {
    fn set(&self) -> anyhow::Result<WheelSet> {
        let mut set = if self.nvrtc { NVRTC } else { COMPILER };
        if let Some(file) = &self.requirements {
            set.requirements = fs::read_to_string(file)?.into();
        }
        Ok(set)
    }
}

fn print_nvcc(nvcc: &Nvcc) {
    let toolkit = &nvcc.toolkit;
    println!(
        "nvcc           {} (of {})",
        nvcc.program.display(),
        nvcc.origin
    );
    println!("version        {}", toolkit.compiler.version);
    println!("build          {}", toolkit.compiler.build);
    println!("host compiler  {}", nvcc.host_compiler.display());
    println!("targets        {}", toolkit.gpu_codes.join(" "));
}
