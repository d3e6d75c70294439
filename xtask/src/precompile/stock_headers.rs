//! Whether nvcc's own headers compile on this machine.
//!
//! They declare some functions of the C library again. If a newer C library declares one of them
//! `noexcept`, the two declarations contradict each other, and no file compiles: `rsqrt` of CUDA
//! 13.0 with glibc 2.42, `sinpi` and `cospi` of CUDA 12.8 with glibc 2.41. The prelude includes
//! neither.

use crate::toolchain::Nvcc;
use anyhow::Context as _;
use fs_err as fs;
use peersum_artifact::Target;

/// What nvcc prints about two contradicting declarations of one function.
const CONTRADICTION: &str = "exception specification is incompatible";

/// Compiles an empty file with nvcc's own headers. Returns why they cannot be used, if so.
///
/// # Errors
/// nvcc does not start, or there is no place for a temporary file.
pub(crate) fn fault(nvcc: &Nvcc, target: Target) -> anyhow::Result<Option<String>> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    fs::write(directory.path().join("empty.cu"), "\n")?;
    let output = nvcc
        .command(directory.path())?
        .args(["-ptx", "-std=c++17", &format!("-arch={target}")])
        .args(["-o", "empty.ptx", "empty.cu"])
        .output()
        .with_context(|| format!("cannot start {}", nvcc.program.display()))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let reason = if said.contains(CONTRADICTION) {
        "they and the headers of this machine's C library declare the same functions in different \
         ways (known of CUDA 13.0 with glibc 2.42 or newer, and of CUDA 12.8 with glibc 2.41 or \
         newer)"
    } else {
        "nvcc cannot compile an empty file with them"
    };
    Ok(Some(format!(
        "--stock-headers cannot work here: the headers of {} do not compile on this machine, \
         because {reason}.\n\
         Leave the flag out: the prelude gives the same code and includes none of these headers. \
         Otherwise name a toolkit whose headers know this C library with --toolkit, or compile on \
         a system with an older C library.\n\
         nvcc said:\n{}",
        nvcc.program.display(),
        said.trim_end()
    )))
}
