//! The harness's own kernels, which include the library's `platform.cuh`: compiled to
//! `{stem}.{architecture}.cubin`.

use crate::cargo::captured;
use crate::precompile::escaped;
use crate::toolchain::{Nvcc, confine};
use crate::workspace;
use anyhow::Context as _;
use fs_err as fs;
use std::path::Path;
use std::process::Command;

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
        let mut command = Command::new(&nvcc.program);
        command
            .args(["-cubin", "-std=c++17", "-O3"])
            .arg(format!("-arch={architecture}"))
            .arg("-ccbin")
            .arg(escaped(&nvcc.host_compiler))
            .arg("-I")
            .arg(escaped(&workspace::prelude()))
            .arg("-I")
            .arg(escaped(&workspace::kernels()))
            .arg("-o")
            .arg(&name)
            .arg(escaped(&source));
        confine(&mut command, temporary.path());
        captured(&mut command)?;
        // In one step, because another run may read it at the same time.
        fs::rename(&cubin, directory.join(&name))?;
    }
    Ok(())
}
