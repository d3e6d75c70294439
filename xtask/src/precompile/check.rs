//! `--check`: whether the output is complete and undamaged, without a compiler.

use super::inputs::Inputs;
use super::matrix::Artifact;
use peersum_artifact::{MANIFEST_FILE, Manifest, verify_file};
use rayon::prelude::*;
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
pub(crate) fn problems(directory: &Path, artifacts: &[Artifact], inputs: &Inputs) -> Vec<String> {
    let mut problems = Vec::new();
    for _ in 0..ATTEMPTS {
        let before = identity(directory);
        problems = read_problems(directory, artifacts, inputs);
        if problems.is_empty() || before == identity(directory) {
            break;
        }
    }
    problems
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

fn read_problems(directory: &Path, artifacts: &[Artifact], inputs: &Inputs) -> Vec<String> {
    let manifest = match Manifest::read_dir(directory) {
        Ok(manifest) => manifest,
        Err(error) => return vec![error.to_string()],
    };
    artifacts
        .par_iter()
        .filter_map(|artifact| {
            let Some(entry) = manifest.find(artifact.module, artifact.target) else {
                return Some(format!("{}: not in the manifest", artifact.file_name()));
            };
            if let Err(error) = verify_file(directory, entry) {
                return Some(error.to_string());
            }
            let closure = inputs.closure(&artifact.module);
            if closure.is_some_and(|closure| closure.digest != entry.closure_digest) {
                return Some(format!(
                    "{}: compiled from other sources than the present ones",
                    artifact.file_name()
                ));
            }
            None
        })
        .collect()
}
