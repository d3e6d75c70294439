//! The GPUs of this machine, as nvidia-smi lists them.

use anyhow::bail;
use peersum_artifact::Arch;
use std::collections::BTreeSet;
use std::process::Command;

/// The architectures of this machine's GPUs.
///
/// # Errors
/// nvidia-smi lists no GPU.
pub(crate) fn native_archs() -> anyhow::Result<BTreeSet<Arch>> {
    let query = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .output();
    let reason = match query {
        Ok(output) if output.status.success() => {
            let archs = parse_compute_capabilities(&String::from_utf8_lossy(&output.stdout));
            if !archs.is_empty() {
                return Ok(archs);
            }
            "listed no GPU".to_owned()
        }
        Ok(output) => format!("ended with {}", output.status),
        Err(error) => format!("cannot be started: {error}"),
    };
    bail!(
        "--arch native found no NVIDIA GPU on this machine (`nvidia-smi` {reason}); name the \
         architecture instead, such as --arch sm_90"
    )
}

/// Reads one capability a line, as in `9.0`.
fn parse_compute_capabilities(text: &str) -> BTreeSet<Arch> {
    text.lines()
        .filter_map(|line| line.trim().replace('.', "").parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_and_other_text_is_not() {
        let expected = BTreeSet::from([Arch::plain(8, 9), Arch::plain(9, 0)]);
        assert_eq!(parse_compute_capabilities("9.0\n9.0\n8.9\n"), expected);
        assert!(parse_compute_capabilities("No devices were found\n").is_empty());
    }
}
