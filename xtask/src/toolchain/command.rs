//! `cargo xtask toolchain`: the pinned toolchain by itself, and which compiler would be used.

use super::{
    COMPILER, Identity, NVRTC, Nvcc, ToolkitChoice, WheelSet, discovery, find, install_compiler,
    install_nvrtc, pinned,
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Install the pinned CUDA compiler, or say where a compiler is.
#[derive(Debug, Args)]
pub(crate) struct ToolchainArgs {
    #[command(subcommand)]
    command: ToolchainCommand,
}

#[derive(Debug, Subcommand)]
enum ToolchainCommand {
    /// Install the pinned toolchain unless it is there, and print its directory
    ///
    /// `precompile` does this by itself where the machine has no nvcc of its own. The wheels come from PyPI, or from the
    /// index that pip is configured to use; every hash is checked. PEERSUM_TOOLCHAIN_DIR names a directory to hold them,
    /// in place of peersum/toolchain in the user's cache directory.
    Install(SetArgs),
    /// Print the directory of the pinned toolchain; fail if it is not installed
    Path(SetArgs),
    /// Say which nvcc and host compiler `precompile` would use; installs nothing
    Which {
        /// `pinned`, an nvcc or a toolkit's directory [default: $NVCC, $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda,
        /// else the pinned one]
        #[arg(long, value_name = "pinned|PATH")]
        toolkit: Option<ToolkitChoice>,
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
pub(crate) fn run(args: &ToolchainArgs) -> anyhow::Result<ExitCode> {
    let mut notes = |note: String| eprintln!("note: {note}");
    match &args.command {
        ToolchainCommand::Install(args) => {
            let dir = with_set(args, |set| {
                Ok(if args.nvrtc {
                    install_nvrtc(set, &mut notes)?.dir
                } else {
                    install_compiler(set, &mut notes)?.dir
                })
            })?;
            println!("{}", dir.display());
        }
        ToolchainCommand::Path(args) => {
            let dir = with_set(args, |set| {
                let dir = if args.nvrtc {
                    set.installed::<PathBuf>()?.map(|installed| installed.dir)
                } else {
                    set.installed::<Identity>()?.map(|installed| installed.dir)
                };
                let command = if args.nvrtc {
                    "install --nvrtc"
                } else {
                    "install"
                };
                dir.with_context(|| {
                    format!(
                        "{} is not installed; run `cargo xtask toolchain {command}`",
                        set.name
                    )
                })
            })?;
            println!("{}", dir.display());
        }
        ToolchainCommand::Which { toolkit } => {
            let choice = toolkit.clone().unwrap_or_default();
            let nvcc = match find(&choice, &mut notes)? {
                Some(nvcc) => nvcc,
                None => match COMPILER.installed()? {
                    Some(installed) => pinned(installed, discovery::host_compiler()?),
                    None => {
                        println!(
                            "the pinned toolchain, which is not installed yet: `cargo xtask toolchain install`"
                        );
                        return Ok(ExitCode::SUCCESS);
                    }
                },
            };
            print_nvcc(&nvcc);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Calls `act` with the set that the flags name.
fn with_set<T>(
    args: &SetArgs,
    act: impl FnOnce(&WheelSet<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let set = if args.nvrtc { NVRTC } else { COMPILER };
    match &args.requirements {
        None => act(&set),
        Some(file) => {
            let requirements = read(file)?;
            act(&WheelSet {
                requirements: &requirements,
                ..set
            })
        }
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn print_nvcc(nvcc: &Nvcc) {
    println!(
        "nvcc           {} (of {})",
        nvcc.program.display(),
        nvcc.origin
    );
    println!("version        {}", nvcc.compiler.version);
    println!("build          {}", nvcc.compiler.build);
    println!("host compiler  {}", nvcc.host_compiler.display());
    println!("targets        {}", nvcc.gpu_codes.join(" "));
    println!(
        "stock headers  {}",
        if nvcc.stock_headers { "yes" } else { "no" }
    );
}
