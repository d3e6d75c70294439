//! The GPUs of this machine, as nvidia-smi lists them.

use anyhow::ensure;
use peersum_artifact::Arch;
use std::collections::BTreeSet;
use std::process::Command;

/// The architectures of this machine's GPUs that can run the kernels.
///
/// # Errors
/// nvidia-smi lists no GPU, or no such one.
pub(crate) fn native_archs() -> anyhow::Result<Vec<Arch>> {
    let query = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .output();
    let (archs, reason) = match query {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let archs = parse_compute_capabilities(&text);
            (archs, "listed no GPU".to_owned())
        }
        Ok(output) => (BTreeSet::new(), format!("ended with {}", output.status)),
        Err(error) => (BTreeSet::new(), format!("cannot be started: {error}")),
    };
    ensure!(
        !archs.is_empty(),
        "--arch native found no NVIDIA GPU on this machine (`nvidia-smi` {reason}); name the \
         architecture instead, such as --arch sm_90"
    );
    let (usable, old): (Vec<Arch>, Vec<Arch>) =
        archs.into_iter().partition(|arch| arch.runs_kernels());
    let old: Vec<String> = old.iter().map(|arch| format!("sm_{arch}")).collect();
    ensure!(
        !usable.is_empty(),
        "--arch native: the GPUs of this machine are {}, and the kernels need sm_{} and newer",
        old.join(", "),
        Arch::OLDEST
    );
    Ok(usable)
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
        let expected = BTreeSet::from([Arch::new(8, 9), Arch::new(9, 0)]);
        assert_eq!(parse_compute_capabilities("9.0\n9.0\n8.9\n"), expected);
        assert!(parse_compute_capabilities("No devices were found\n").is_empty());
    }
}
