//! The GPUs of this machine, as the driver's tools list them.

use anyhow::bail;
use peersum_artifact::Arch;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Asks for the architectures of this machine's GPUs: nvidia-smi, else the query tool beside nvcc.
///
/// # Errors
/// Neither tool lists a GPU.
pub(crate) fn native_archs(compiler_dir: Option<&Path>) -> anyhow::Result<BTreeSet<Arch>> {
    let mut smi = Command::new("nvidia-smi");
    smi.args(["--query-gpu=compute_cap", "--format=csv,noheader"]);
    let beside_nvcc = compiler_dir.map(|dir| Command::new(dir.join("__nvcc_device_query")));
    let mut tried = Vec::new();
    for mut query in std::iter::once(smi).chain(beside_nvcc) {
        let name = query.get_program().display().to_string();
        match query.output() {
            Ok(output) if output.status.success() => {
                let archs = parse_compute_capabilities(&String::from_utf8_lossy(&output.stdout));
                if !archs.is_empty() {
                    return Ok(archs);
                }
                tried.push(format!("`{name}` listed no GPU"));
            }
            Ok(output) => tried.push(format!("`{name}` ended with {}", output.status)),
            Err(error) => tried.push(format!("`{name}`: {error}")),
        }
    }
    bail!(
        "--arch native found no NVIDIA GPU on this machine ({}); name the architecture instead, \
         such as --arch sm_90",
        tried.join("; ")
    )
}

/// Reads one capability a line, `9.0` as nvidia-smi writes it or `90` as nvcc's query does.
fn parse_compute_capabilities(text: &str) -> BTreeSet<Arch> {
    text.split([',', '\n', ' '])
        .filter_map(|item| item.trim().replace('.', "").parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_either_query() {
        let expected = BTreeSet::from([Arch::plain(8, 9), Arch::plain(9, 0)]);
        assert_eq!(parse_compute_capabilities("9.0\n9.0\n8.9\n"), expected);
        assert_eq!(parse_compute_capabilities("90,89\n"), expected);
        assert!(parse_compute_capabilities("No devices were found\n").is_empty());
    }
}
