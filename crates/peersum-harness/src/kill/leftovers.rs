//! What a run leaves behind.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peersum::Rendezvous;

use super::scenario::{Blow, Phase, Scenario};
use crate::ranks::run_threads;

/// Checks that no socket, lock, process or named shared memory is left. Returns true if files were
/// left that the next run with the same name removed.
pub(super) fn judge_leftovers(
    scenario: &Scenario,
    directory: &Path,
    patience: Duration,
) -> Result<bool> {
    let files = || -> Result<Vec<String>> {
        let entries = std::fs::read_dir(directory).context("listing the rendezvous directory")?;
        Ok(entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    };
    let mut swept = false;
    let mut left = files()?;
    // If rank 0 is killed after all others have left, only the next run can remove its files.
    if !left.is_empty()
        && scenario.phase == Phase::Teardown
        && scenario.blow == Blow::Kill
        && scenario.victim == 0
    {
        run_threads(2, 0, |member| {
            let rank = member.peers.rank();
            let rendezvous = Rendezvous::unix(directory, "disturbed", rank, 2);
            Ok(rendezvous.join(patience).map(drop)?)
        })
        .context("the next run behind a killed rank 0")?;
        swept = true;
        left = files()?;
    }
    ensure!(left.is_empty(), "files are left: {}", left.join(", "));
    let needle = directory.as_os_str().as_encoded_bytes();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // Empty for a process that has ended.
        let command_line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        ensure!(
            !command_line
                .windows(needle.len())
                .any(|window| window == needle),
            "process {} is left",
            entry.file_name().to_string_lossy()
        );
    }
    if let Ok(shared) = std::fs::read_dir("/dev/shm") {
        for entry in shared.flatten() {
            let name = entry.file_name();
            ensure!(
                !name.to_string_lossy().contains("peersum"),
                "/dev/shm/{} is left",
                name.to_string_lossy()
            );
        }
    }
    Ok(swept)
}
