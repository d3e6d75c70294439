//! The harness's executable, and what it says about this machine.

use crate::cargo;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the harness says about `--device`.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    pub(super) kind: String,
    pub(super) architectures: Vec<String>,
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

/// Asks what `--device choice` means on this machine.
pub(super) fn ask_device(harness: &Path, choice: &str) -> anyhow::Result<Device> {
    let output = Command::new(harness)
        .args(["device", "--device", choice])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", harness.display()))?;
    if !output.status.success() {
        bail!("--device {choice} is not possible on this machine");
    }
    serde_json::from_slice(&output.stdout).context("the harness does not say what device it has")
}
