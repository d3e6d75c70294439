//! The harness's executable, and what it says about this machine.

use crate::cargo::{self, captured};
use anyhow::Context as _;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the harness says about `--device`.
#[derive(Debug, Deserialize)]
struct Device {
    architectures: Vec<String>,
}

/// Builds the harness in release mode and returns its path, as cargo tells it.
pub(super) fn release_binary() -> anyhow::Result<PathBuf> {
    let arguments = [
        "build",
        "--locked",
        "--release",
        "--package=peersum-harness",
    ];
    let artifacts = cargo::artifacts(&arguments).context("the harness does not build")?;
    let harness = cargo::executable(&artifacts, "peersum-harness");
    let harness = harness.context("cargo names no executable of the harness")?;
    Ok(harness.to_owned())
}

/// Asks which architectures the GPUs of `--device choice` have; none on the emulator.
pub(super) fn ask_architectures(harness: &Path, choice: &str) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new(harness);
    let output = captured(command.args(["device", "--device", choice]))
        .with_context(|| format!("--device {choice} is not possible on this machine"))?;
    let device: Device =
        serde_json::from_slice(&output).context("the harness does not say what device it has")?;
    Ok(device.architectures)
}
