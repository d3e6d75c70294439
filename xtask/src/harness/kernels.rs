//! The harness's own kernels, which include the library's `platform.cuh`: compiled to
//! `{stem}.{architecture}.cubin`.

use crate::cargo::captured;
use crate::toolchain::{Nvcc, escaped};
use crate::workspace;
use anyhow::Context as _;
use fs_err as fs;
use std::path::Path;

/// The kernels that make and compare the grid's data.
pub(super) const CHECK: &str = "crates/peersum-harness/src/grid/check.cu";

/// The kernels that measure what the machine allows.
pub(super) const LIMITS: &str = "crates/peersum-harness/src/bench/limits.cu";

/// Compiles `source`, a path in the checkout, for each architecture into `directory`.
///
/// # Errors
/// nvcc does not start or fails, or the directory cannot be written.
pub(super) fn compile(
    nvcc: &Nvcc,
    source: &str,
    architectures: &[String],
    directory: &Path,
) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let source = workspace::root().join(source);
    let stem = source.file_stem().context("a source without a name")?;
    for architecture in architectures {
        let name = format!("{}.{architecture}.cubin", stem.to_string_lossy());
        let temporary =
            tempfile::tempdir_in(directory).context("cannot make a temporary directory")?;
        let cubin = temporary.path().join(&name);
        let mut command = nvcc.command(temporary.path())?;
        command
            .args(["-cubin", "-std=c++17", "-O3"])
            .arg(format!("-arch={architecture}"));
        for include in [workspace::prelude(), workspace::kernels()] {
            command.arg("-I").arg(escaped(&include));
        }
        captured(command.args(["-o", &name]).arg(escaped(&source)))?;
        // In one step, because another run may read it at the same time.
        fs::rename(&cubin, directory.join(&name))?;
    }
    Ok(())
}
