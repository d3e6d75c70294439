//! Where this checkout is, and the directories in it that several commands use.

use std::path::{Path, PathBuf};

/// The workspace's root directory.
///
/// Cargo tells it when it runs the binary, so that a checkout that was moved after the build is
/// still found; a binary started by hand falls back to where it was built.
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

/// The kernels' sources.
pub(crate) fn kernels() -> PathBuf {
    root().join("kernels")
}

/// The directory of the header that replaces nvcc's implicit one.
pub(crate) fn prelude() -> PathBuf {
    root().join("xtask/prelude")
}

/// What the project's commands make.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The release set's cubins, unless a command line says otherwise.
pub(crate) fn cubins() -> PathBuf {
    target().join("cubins")
}
