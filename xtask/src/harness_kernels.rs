//! The harness's own kernels, each a file that includes nothing: compiled to `{stem}.{architecture}.cubin`.

use crate::cargo::captured;
use crate::toolchain::Nvcc;
use crate::workspace;
use anyhow::Context as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Compiles `source`, a path within the checkout, for one architecture into `directory`.
///
/// # Errors
/// nvcc does not start or fails, or the directory cannot be written.
pub(crate) fn compile(
    nvcc: &Nvcc,
    source: &str,
    architecture: &str,
    directory: &Path,
) -> anyhow::Result<()> {
    let root = workspace::root();
    let source = root.join(source);
    let stem = source.file_stem().context("a source without a name")?;
    let name = format!("{}.{architecture}.cubin", stem.to_string_lossy());
    let temporary = tempfile::tempdir_in(directory).context("cannot make a temporary directory")?;
    let mut command = Command::new(&nvcc.program);
    command
        .args(["-cubin", "-std=c++17", "-O3"])
        .arg(format!("-arch={architecture}"))
        .arg("-ccbin")
        .arg(&nvcc.host_compiler)
        .arg("-I")
        .arg(root.join("xtask/prelude"))
        .arg("-o")
        .arg(temporary.path().join(&name))
        .arg(source)
        .env("TMPDIR", temporary.path())
        .env_remove("NVCC_PREPEND_FLAGS")
        .env_remove("NVCC_APPEND_FLAGS");
    captured(&mut command)?;
    // In one step, for a run beside this one.
    fs::rename(temporary.path().join(&name), directory.join(&name))
        .context("cannot put the cubin in its place")
}
