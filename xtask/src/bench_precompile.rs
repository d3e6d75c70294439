//! `cargo xtask bench precompile`: the compile times of this project against the floor that the compiler sets.

use clap::Args;
use std::process::ExitCode;

/// Time precompile against cicc and ptxas called directly.
#[derive(Debug, Args)]
pub(crate) struct BenchPrecompileArgs {}

/// Runs the command.
pub(crate) fn run(_args: &BenchPrecompileArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("bench precompile is being written")
}
