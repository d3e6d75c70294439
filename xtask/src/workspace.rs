//! Where this checkout lies.

use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(not(feature = "dist"))]
use std::process::{Command, ExitCode};

/// The workspace's root directory.
///
/// Cargo says it when it runs the binary, so that a checkout that was moved after the build is still found; a binary
/// started by hand falls back to where it was built.
pub(crate) fn root() -> PathBuf {
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.ends_with("xtask") && dir.join("prelude").is_dir())
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest_dir
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or(manifest_dir)
}

/// The directories of all workspaces that crates are published from: the root, and each of `crates/` that is a workspace of its
/// own, so that no other build waits for its dependencies.
///
/// # Errors
/// The directory or a manifest cannot be read.
pub(crate) fn workspaces() -> anyhow::Result<Vec<PathBuf>> {
    let root = root();
    let crates = root.join("crates");
    let unreadable = |path: &Path| format!("cannot read `{}`", path.display());
    let mut own = Vec::new();
    for entry in fs::read_dir(&crates).with_context(|| unreadable(&crates))? {
        let directory = entry.with_context(|| unreadable(&crates))?.path();
        let manifest = directory.join("Cargo.toml");
        if manifest.is_file() {
            let text = fs::read_to_string(&manifest).with_context(|| unreadable(&manifest))?;
            if text.lines().any(|line| line == "[workspace]") {
                own.push(directory);
            }
        }
    }
    own.sort();
    Ok(std::iter::once(root).chain(own).collect())
}

/// Builds xtask with one more feature and runs this very command line with that.
///
/// # Errors
/// Cargo cannot be started.
#[cfg(not(feature = "dist"))]
pub(crate) fn run_again_with_feature(feature: &str) -> anyhow::Result<ExitCode> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["run", "--locked", "--quiet", "--package=xtask"])
        .arg(format!("--features={feature}"))
        // Not from the workspace's root: paths on the command line are relative to where it was given.
        .arg("--manifest-path")
        .arg(root().join("Cargo.toml"))
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
