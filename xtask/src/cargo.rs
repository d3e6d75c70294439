//! The cargo that runs us, and the way in which commands are run whose output matters only if they fail.

#[cfg(not(all(feature = "bindings", feature = "dist")))]
use crate::workspace;
use anyhow::{Context as _, ensure};
use std::ffi::OsString;
use std::path::Path;
#[cfg(not(all(feature = "bindings", feature = "dist")))]
use std::process::ExitCode;
use std::process::{Command, Stdio};

fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The cargo that runs us, in `directory`.
pub(crate) fn cargo(directory: &Path) -> Command {
    let mut cargo = Command::new(program());
    cargo.current_dir(directory);
    cargo
}

/// Runs a command to its end and returns its standard output; what it says otherwise is shown only if it fails.
///
/// # Errors
/// It cannot be started, or fails.
pub(crate) fn captured(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Builds xtask with one more feature and runs this very command line with that.
///
/// # Errors
/// Cargo cannot be started.
#[cfg(not(all(feature = "bindings", feature = "dist")))]
pub(crate) fn run_again_with_feature(feature: &str) -> anyhow::Result<ExitCode> {
    let root = workspace::root();
    let mut cargo = Command::new(program());
    cargo
        .args(["run", "--locked", "--quiet", "--package=xtask"])
        .arg(format!("--features={feature}"))
        // Not from the workspace's root: paths on the command line are relative to where it was given.
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .arg("--")
        .args(std::env::args_os().skip(1));
    let status = cargo
        .status()
        .with_context(|| format!("cannot start {cargo:?}"))?;
    // The inner run has said what went wrong.
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
