//! `cargo xtask test` and `cargo xtask ci`: thin sequences of cargo and xtask steps.

use crate::cargo::cargo;
use crate::precompile::stock_headers;
use crate::toolchain;
use crate::workspace;
use anyhow::{Context as _, ensure};
use clap::Args;
use peersum_artifact::{Manifest, RELEASE_SET};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Precompile, then run the tests of the whole workspace and the smoke grid on the emulator
///
/// The tests that need compiled modules or NVRTC get the ones of this checkout; both are installed or made on first use.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Arguments for `cargo test`, such as `-p peersum-artifact` or `-- --nocapture` [default: --workspace]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    cargo_test_args: Vec<String>,
}

/// Run everything that a change must pass
///
/// Format, lints, licences, the bindings of abi.h, the whole kernel matrix with the pinned compiler, the same with nvcc's stock
/// headers (the bytes must agree), the tests, and a release with a program built from it alone.
#[derive(Debug, Args)]
pub(crate) struct CiArgs {}

/// Runs `cargo test` over the workspace.
///
/// # Errors
/// A step cannot be started or fails.
pub(crate) fn test(args: &TestArgs) -> anyhow::Result<ExitCode> {
    step(xtask().args(["precompile", "--toolkit", "pinned"]))?;
    let nvrtc = toolchain::resolve_nvrtc(&mut |note| eprintln!("note: {note}"))?;
    let mut cargo = cargo(&workspace::root());
    cargo.args(["test", "--locked"]);
    if !args
        .cargo_test_args
        .iter()
        .any(|argument| argument == "-p" || argument.starts_with("--package"))
    {
        // With the protocols that are broken on purpose, which the tests must see, and what xtask builds only when asked.
        cargo.args([
            "--workspace",
            "--features",
            "peersum-harness/negative-controls,xtask/dist",
        ]);
    }
    cargo.args(&args.cargo_test_args);
    cargo
        .env(
            "PEERSUM_TEST_CUBINS",
            workspace::root().join("target/cubins"),
        )
        .env("PEERSUM_TEST_NVRTC", nvrtc);
    step(&mut cargo)?;
    if args.cargo_test_args.is_empty() {
        for ranks in ["threads", "processes"] {
            step(xtask().args([
                "test-allreduce",
                "--device",
                "emulator",
                "--grid",
                "smoke",
                "--ranks",
                ranks,
            ]))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs every check of CI in turn and stops at the first that fails.
///
/// # Errors
/// A step cannot be started or fails.
pub(crate) fn ci(_args: &CiArgs) -> anyhow::Result<ExitCode> {
    step(cargo(&workspace::root()).args(["fmt", "--all", "--check"]))?;
    step(cargo(&workspace::root()).args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--features",
        "xtask/dist",
        "--",
        "-D",
        "warnings",
    ]))?;
    step(xtask().arg("deny"))?;
    step(xtask().args(["bindings", "--check"]))?;
    step(xtask().args(["precompile", "--toolkit", "pinned"]))?;
    prelude_matches_stock_headers()?;
    test(&TestArgs {
        cargo_test_args: Vec::new(),
    })?;
    step(xtask().arg("dist"))?;
    step(xtask().args(["dist", "--verify", "target/dist"]))?;
    Ok(ExitCode::SUCCESS)
}

/// Compiles the whole matrix again without the prelude and compares the files: the prelude must not be able to change code.
///
/// Where the pinned compiler's headers do not compile with this machine's C library there is
/// nothing to compare with, which is said.
fn prelude_matches_stock_headers() -> anyhow::Result<()> {
    let nvcc = toolchain::resolve(&toolchain::ToolkitChoice::Pinned, &mut |note| {
        eprintln!("note: {note}");
    })?;
    if let Some(fault) = stock_headers::fault(&nvcc, RELEASE_SET[0])? {
        eprintln!("NOT CHECKED: that the prelude changes no code. {fault}");
        return Ok(());
    }
    let target = workspace::root().join("target");
    let (with_prelude, stock) = (target.join("cubins"), target.join("cubins-stock-headers"));
    step(
        xtask()
            .args([
                "precompile",
                "--toolkit",
                "pinned",
                "--stock-headers",
                "--out",
            ])
            .arg(&stock),
    )?;
    let modules = Manifest::read_dir(&stock)?.modules;
    for module in &modules {
        let read = |directory: &Path| {
            let path = directory.join(module.file_name());
            fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        ensure!(
            read(&stock)? == read(&with_prelude)?,
            "{} is not the same with xtask/prelude/cuda_runtime.h as with nvcc's own headers; mend the prelude",
            module.file_name()
        );
    }
    eprintln!(
        "{} files are the same with the prelude and with nvcc's own headers",
        modules.len()
    );
    Ok(())
}

/// Another command of xtask, through cargo: `bindings` builds this program with another feature in the same place, so the
/// file that runs here may be gone.
fn xtask() -> Command {
    let mut command = cargo(&workspace::root());
    command.arg("xtask");
    command
}

/// Runs one step with its output shown as it comes; a failure names the command.
fn step(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("$ {command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
