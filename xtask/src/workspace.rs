//! Where this checkout lies.

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
