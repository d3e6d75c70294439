//! `cargo xtask precompile`: the whole kernel matrix to cubins and a manifest.

use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compile the kernel matrix to cubins and a manifest.
#[derive(Debug, Args)]
pub(crate) struct PrecompileArgs {
    /// Where the cubins and `manifest.json` go
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(_args: &PrecompileArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("precompile is being written")
}
