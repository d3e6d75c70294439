//! The harness: built in release mode, asked what it runs on, and started in this process's place.

use crate::cargo::cargo;
use crate::workspace;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What the harness says of `--device`.
#[derive(Debug, Deserialize)]
pub(crate) struct Device {
    pub(crate) kind: String,
    pub(crate) architectures: Vec<String>,
}

/// Builds the harness in release mode and returns its path, as cargo says it.
pub(crate) fn build_harness() -> anyhow::Result<PathBuf> {
    let output = cargo(&workspace::root())
        .args([
            "build",
            "--locked",
            "--release",
            "--package=peersum-harness",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the harness does not build");
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name == "peersum-harness")
        })
        .context("cargo names no executable of the harness")
}

/// Asks what `--device choice` comes to on this machine.
pub(crate) fn ask_device(harness: &Path, choice: &str) -> anyhow::Result<Device> {
    let output = Command::new(harness)
        .args(["device", "--device", choice])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", harness.display()))?;
    if !output.status.success() {
        bail!("--device {choice} cannot be had on this machine");
    }
    serde_json::from_slice(&output.stdout).context("the harness does not say what device it has")
}

/// Replaces this process, so that signals and the exit status are the harness's own.
pub(crate) fn become_harness(command: &mut Command) -> anyhow::Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("cannot start {command:?}"))
}
