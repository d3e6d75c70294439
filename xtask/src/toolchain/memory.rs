//! What an nvcc answered, remembered as long as its files stay the same.

use super::{sealed, wheels};
use peersum_artifact::Digest;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The form of a remembered answer.
const MEMORY_SCHEMA: u32 = 1;

/// Which compiler an nvcc is and what it compiles for. It is the same for every installation of one
/// release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// `13.0.88`.
    pub(crate) version: String,
    /// `cuda_13.0.r13.0/compiler.36424714_0`.
    pub(crate) build: String,
    /// What `--list-gpu-code` and `--list-gpu-arch` print: `sm_80`, ..., `compute_80`, ...
    pub(crate) gpu_codes: Vec<String>,
}

/// Where the parts of a toolkit are; `None` if unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) cicc: Option<PathBuf>,
    pub(crate) ptxas: Option<PathBuf>,
    /// Whether `cuda_runtime.h` and what it includes of `crt/` are there.
    pub(crate) stock_headers: bool,
}

/// An nvcc that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probed {
    pub(crate) identity: Identity,
    pub(crate) layout: Layout,
}

/// What distinguishes a file from one that replaced it. The times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprint {
    /// Every symbolic link resolved: `/usr/local/cuda` may point elsewhere tomorrow.
    path: PathBuf,
    bytes: u64,
    inode: u64,
    modified_ns: i128,
    /// Tools that copy a file can set the time of its modification, not this one.
    changed_ns: i128,
}

impl Fingerprint {
    /// `None` if there is no such file, or if its path is not UTF-8, which JSON cannot hold.
    fn of(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        path.to_str()?;
        let metadata = fs::metadata(&path).ok()?;
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Some(Self {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            path,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    schema: u32,
    nvcc: Fingerprint,
    /// Those of the parts in [`Layout`] that are known.
    parts: Vec<Fingerprint>,
    identity: Identity,
    layout: Layout,
}

/// What `program` is: from memory if none of its files has changed since it was asked last, else by
/// `ask`, which also says whether the answer will hold as long as these files stay the same.
pub(super) fn recall_or(
    program: &Path,
    ask: impl FnOnce() -> anyhow::Result<(Probed, bool)>,
) -> anyhow::Result<Probed> {
    let memory = memory_file(program);
    if let Some(probed) = memory.as_deref().and_then(|file| recall(file, program)) {
        return Ok(probed);
    }
    // Taken before the questions: if the program is replaced meanwhile, it does not match.
    let before = Fingerprint::of(program);
    let (probed, is_lasting) = ask()?;
    if let (Some(before), Some(memory), true) = (before, memory, is_lasting) {
        remember(&memory, before, &probed);
    }
    Ok(probed)
}

/// The file that remembers `program`, if the user has a cache directory.
fn memory_file(program: &Path) -> Option<PathBuf> {
    let name = Digest::of(program.as_os_str().as_encoded_bytes());
    Some(wheels::root()?.join("compilers").join(name.to_string()))
}

fn recall(file: &Path, program: &Path) -> Option<Probed> {
    let memory: Memory = sealed::read(file)?;
    let unchanged = memory.schema == MEMORY_SCHEMA
        && Fingerprint::of(program).as_ref() == Some(&memory.nvcc)
        && memory
            .parts
            .iter()
            .all(|part| Fingerprint::of(&part.path).as_ref() == Some(part));
    unchanged.then_some(Probed {
        identity: memory.identity,
        layout: memory.layout,
    })
}

/// Writes down what `probed` says. If that fails, the next run asks again.
fn remember(file: &Path, nvcc: Fingerprint, probed: &Probed) {
    let parts = [&probed.layout.cicc, &probed.layout.ptxas];
    let parts = parts
        .into_iter()
        .flatten()
        .map(|part| Fingerprint::of(part));
    let Some(parts) = parts.collect() else { return };
    let memory = Memory {
        schema: MEMORY_SCHEMA,
        nvcc,
        parts,
        identity: probed.identity.clone(),
        layout: probed.layout.clone(),
    };
    if let Some(dir) = file.parent() {
        let _ = fs::create_dir_all(dir);
        let _ = sealed::write(file, &memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_replaced_or_touched_has_another_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvcc");
        fs::write(&path, "one").unwrap();
        let first = Fingerprint::of(&path).unwrap();
        assert_eq!(Fingerprint::of(&path), Some(first.clone()));

        let other = dir.path().join("other");
        fs::write(&other, "two").unwrap();
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&other).unwrap();
        file.set_modified(times).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(Fingerprint::of(&path), Some(first));

        fs::remove_file(&path).unwrap();
        assert_eq!(Fingerprint::of(&path), None);
    }
}
