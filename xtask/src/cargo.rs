//! Running cargo, and commands whose output matters only if they fail.

use crate::workspace;
use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::ffi::OsString;
#[cfg(not(all(feature = "bindings", feature = "dist")))]
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
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

/// What cargo says about something that it built.
#[derive(Debug, Deserialize)]
pub(crate) struct Artifact {
    pub(crate) executable: Option<PathBuf>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) target: Target,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Profile {
    pub(crate) test: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
}

/// What a cargo command builds in this checkout.
///
/// # Errors
/// Something does not build, which cargo has explained.
pub(crate) fn artifacts(arguments: &[&str]) -> anyhow::Result<Vec<Artifact>> {
    let output = cargo(&workspace::root())
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo {} failed",
        arguments.join(" ")
    );
    let text = String::from_utf8_lossy(&output.stdout);
    // Other messages have another form.
    let artifacts = text
        .lines()
        .map(serde_json::from_str)
        .filter_map(Result::ok);
    Ok(artifacts.collect())
}

/// The path of an executable that is not a test program.
pub(crate) fn executable<'a>(artifacts: &'a [Artifact], name: &str) -> Option<&'a Path> {
    let is_it = |artifact: &&Artifact| !artifact.profile.test && artifact.target.name == name;
    let mut found = artifacts.iter().filter(is_it);
    found.find_map(|artifact| artifact.executable.as_deref())
}

/// Builds xtask with one more feature and runs this very command line with it, in this process's
/// place.
///
/// # Errors
/// Cargo cannot be started.
#[cfg(not(all(feature = "bindings", feature = "dist")))]
pub(crate) fn run_again_with_feature(feature: &str) -> anyhow::Result<()> {
    // In the present directory: paths on the command line are relative to it.
    let mut cargo = cargo(Path::new("."));
    cargo
        .args(["run", "--locked", "--quiet", "--package=xtask"])
        .arg(format!("--features={feature}"))
        .arg("--manifest-path")
        .arg(workspace::root().join("Cargo.toml"))
        .arg("--")
        .args(std::env::args_os().skip(1));
    Err(cargo.exec()).with_context(|| format!("cannot start {cargo:?}"))
}
