//! Running cargo, and commands whose output matters only if they fail.

#[cfg(not(all(feature = "bindings", feature = "dist")))]
use crate::workspace;
use anyhow::{Context as _, ensure};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// The cargo that runs us.
pub(crate) fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The cargo that runs us, in `directory`.
pub(crate) fn cargo(directory: &Path) -> Command {
    let mut cargo = Command::new(program());
    cargo.current_dir(directory);
    cargo
}

/// Runs a command to its end and returns its standard output; shows what else it printed only if it
/// fails.
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

/// Builds xtask with one more feature and runs this very command line with it.
///
/// # Errors
/// Cargo cannot be started.
#[cfg(not(all(feature = "bindings", feature = "dist")))]
pub(crate) fn run_again_with_feature(feature: &str) -> anyhow::Result<bool> {
    // In the present directory: paths on the command line are relative to it.
    let mut cargo = cargo(Path::new("."));
    cargo
        .args(["run", "--locked", "--quiet", "--package=xtask"])
        .arg(format!("--features={feature}"))
        .arg("--manifest-path")
        .arg(workspace::root().join("Cargo.toml"))
        .arg("--")
        .args(std::env::args_os().skip(1));
    let status = cargo
        .status()
        .with_context(|| format!("cannot start {cargo:?}"))?;
    // The inner run has reported what went wrong.
    Ok(status.success())
}
