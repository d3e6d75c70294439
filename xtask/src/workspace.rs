//! Where this checkout lies.

use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};

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
