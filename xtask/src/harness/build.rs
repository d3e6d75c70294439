//! The harness's executable, and what it says about this machine.

use crate::cargo::cargo;
use crate::workspace;
use anyhow::{Context as _, bail, ensure};
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
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let output = cargo(&workspace::root())
        .args([
            "build",
            "--locked",
            "--release",
            "--package=peersum-harness",
        ])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the harness does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .find(|path| path.ends_with("peersum-harness"))
        .context("cargo names no executable of the harness")
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
