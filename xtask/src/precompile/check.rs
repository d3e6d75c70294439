//! `--check`: whether the output is complete and undamaged, without a compiler.

use super::inputs::Inputs;
use super::matrix::Artifact;
use crate::workers;
use peersum_artifact::{MANIFEST_FILE, Manifest, verify_file};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How many times a check starts again because a precompile replaced the directory meanwhile.
const ATTEMPTS: usize = 5;

/// Everything that is missing, damaged or stale among `artifacts`, one line each; empty if all is
/// well.
///
/// If a precompile replaces the directory while it is read, it looks damaged; then the check starts
/// again.
///
/// # Errors
/// The threads that read the files cannot be started.
pub(crate) fn problems(
    directory: &Path,
    artifacts: &[Artifact],
    inputs: &Inputs,
) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for _ in 0..ATTEMPTS {
        let before = identity(directory);
        problems = read_problems(directory, artifacts, inputs)?;
        if problems.is_empty() || before == identity(directory) {
            break;
        }
    }
    Ok(problems)
}

/// What changes when a directory is replaced, whole or file by file.
fn identity(directory: &Path) -> Option<[(u64, u64, i64); 2]> {
    let of = |path: &Path| {
        fs::metadata(path)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino(), metadata.mtime_nsec()))
    };
    Some([of(directory)?, of(&directory.join(MANIFEST_FILE))?])
}

fn read_problems(
    directory: &Path,
    artifacts: &[Artifact],
    inputs: &Inputs,
) -> anyhow::Result<Vec<String>> {
    let manifest = match Manifest::read_dir(directory) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let problems = workers::each(artifacts, 0, |_, (module, target)| {
        let file = target.file_name(module);
        let Some(entry) = manifest.find(*module, *target) else {
            return Some(format!("{file}: not in the manifest"));
        };
        if let Err(error) = verify_file(directory, entry) {
            return Some(error.to_string());
        }
        let closure = inputs.closure(module)?;
        (closure.digest != entry.closure_digest)
            .then(|| format!("{file}: compiled from other sources than the present ones"))
    })?;
    Ok(problems.into_iter().flatten().collect())
}
