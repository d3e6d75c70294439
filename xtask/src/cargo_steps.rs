//! `cargo xtask test` and `cargo xtask ci`: thin sequences of cargo and xtask steps.

use crate::workspace;
use anyhow::Context as _;
use clap::Args;
use std::process::{Command, ExitCode};

/// Run the tests of the whole workspace.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Arguments for `cargo test`, such as `-p peersum-artifact` or `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test_args: Vec<String>,
}

/// Run everything that a change must pass: format, lints, bindings, precompile, tests.
#[derive(Debug, Args)]
pub(crate) struct CiArgs {}

/// Runs `cargo test` over the workspace.
pub(crate) fn test(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let mut cargo = cargo();
    cargo
        .args(["test", "--locked", "--workspace"])
        .args(&args.cargo_test_args);
    step(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs every check of CI in turn and stops at the first that fails.
pub(crate) fn ci(_args: &CiArgs) -> anyhow::Result<ExitCode> {
    step(cargo().args(["fmt", "--all", "--check"]))?;
    step(cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step(cargo().args(["test", "--locked", "--workspace"]))?;
    Ok(ExitCode::SUCCESS)
}

/// The cargo that runs us, in the workspace's root.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    cargo
}

/// Runs one step with its output shown as it comes; a failure names the command.
fn step(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("$ {command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
