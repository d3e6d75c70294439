//! What has to be compiled, and what can be reused.

use super::compile::Job;
use super::inputs::Inputs;
use super::matrix::Artifact;
use crate::workers;
use anyhow::{Context as _, bail};
use peersum_artifact::{
    Arch, CacheKeyInputs, CompilerId, Digest, MAX_MODULE_BYTES, Manifest, ManifestError,
    ManifestModule, SchemaError, Target, cache_key,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// How to reach the state that was asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Entries of the present manifest whose key and file are still right.
    pub(crate) reused: Vec<ManifestModule>,
    /// Those that take longest first.
    pub(crate) jobs: Vec<Job>,
}

impl Plan {
    /// Compares what is asked for with the present manifest and the present files.
    pub(crate) fn new(
        artifacts: &[Artifact],
        inputs: &Inputs,
        compiler: &CompilerId,
        present: Option<&Manifest>,
        files: &FileStates,
    ) -> anyhow::Result<Self> {
        let present: BTreeMap<_, _> = present
            .into_iter()
            .flat_map(|manifest| &manifest.modules)
            .map(|module| (module.sort_key(), module))
            .collect();
        let planned = workers::each(artifacts, 0, |_, artifact| {
            let key = artifact_key(artifact, inputs, compiler)?;
            let entry = present
                .get(artifact)
                .filter(|entry| entry.cache_key == key && holds(files, entry));
            anyhow::Ok((*artifact, key, entry.map(|&entry| entry.clone())))
        })?;

        let mut reused = Vec::new();
        let mut jobs = BTreeMap::new();
        for planned in planned {
            let (artifact, key, entry) = planned?;
            match entry {
                Some(entry) => reused.push(entry),
                None => {
                    let (module, target) = artifact;
                    let files: &mut Vec<_> = jobs.entry((module, ptx_arch(target))).or_default();
                    files.push((target, key));
                }
            }
        }
        let jobs = jobs.into_iter();
        let mut jobs: Vec<Job> = jobs
            .map(|((module, ptx_arch), files)| Job {
                module,
                ptx_arch,
                files,
            })
            .collect();
        jobs.sort_by_key(|job| Reverse(job.module.world_size));
        Ok(Self { reused, jobs })
    }
}

/// The architecture of the PTX that a target is, or is assembled from.
///
/// From sm_100 on the kernels' source and cicc's code are the same for every architecture, so
/// one run of cicc serves them all; ptxas then makes the same machine code. The test
/// `nvrtc_makes_the_machine_code_of_nvcc_for_every_module` compares it with code that was compiled
/// from the source for its own architecture.
fn ptx_arch(target: Target) -> Arch {
    const SHARED: Arch = Arch::new(10, 0);
    match target {
        Target::Cubin(arch) if arch >= SHARED => SHARED,
        Target::Cubin(arch) | Target::Ptx(arch) => arch,
    }
}

/// The key of one file: everything that decides its bytes.
fn artifact_key(
    &(module, target): &Artifact,
    inputs: &Inputs,
    compiler: &CompilerId,
) -> anyhow::Result<Digest> {
    let closure = inputs
        .closure(&module)
        .context("a module whose sources were not read")?;
    let mut flags = inputs.flags.clone();
    flags.extend(inputs.allow_spills.then(|| "--allow-spills".to_owned()));
    Ok(cache_key(&CacheKeyInputs {
        module,
        target,
        closure,
        prelude: inputs.prelude_digest(),
        flags: &flags,
        defines: &module.defines(),
        compiler,
        entry_points: &module.entry_points(),
    }))
}

/// The length and the digest of files by name.
pub(crate) type FileStates = HashMap<String, (u64, Digest)>;

/// Reads the files of the output. Leaves out what is not a regular file or is too long to be a
/// module.
///
/// All of them, because the manifest is read at the same time.
pub(crate) fn file_states(
    directory: &Path,
    names: &BTreeSet<String>,
) -> anyhow::Result<FileStates> {
    let names: Vec<&String> = names.iter().collect();
    let states = workers::each(&names, 0, |_, name| {
        let path = directory.join(name);
        let metadata = fs::symlink_metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() > MAX_MODULE_BYTES {
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        Some(((*name).clone(), (bytes.len() as u64, Digest::of(&bytes))))
    })?;
    Ok(states.into_iter().flatten().collect())
}

/// Whether the file of an entry is there, with the entry's length and digest.
fn holds(files: &FileStates, entry: &ManifestModule) -> bool {
    files.get(&entry.file_name()) == Some(&(entry.bytes, entry.sha256))
}

/// Reads the present manifest of the output. A damaged one counts as none, with a note: everything
/// is rebuilt.
///
/// # Errors
/// A newer peersum wrote it: this one must not replace what it does not understand.
pub(crate) fn present_manifest(
    directory: &Path,
    note: impl FnOnce(&str) + Send,
) -> anyhow::Result<Option<Manifest>> {
    match Manifest::read_dir(directory) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(ManifestError::NotFound { .. }) => Ok(None),
        Err(ManifestError::Schema {
            error: SchemaError::NewerSchema { found },
            ..
        }) => bail!(
            "`{}` was written by a newer peersum (manifest schema {found}) and is left as it is; \
             update this checkout, remove the directory, or give precompile another place with \
             --out",
            directory.display()
        ),
        Err(error) => {
            note(&format!("everything is rebuilt: {error}"));
            Ok(None)
        }
    }
}
