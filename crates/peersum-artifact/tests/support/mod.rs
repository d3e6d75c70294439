//! Test data and a directory of it, shared by the tests.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::path::{Path, PathBuf};

use peersum_artifact::{
    CompilerId, CompilerKind, Digest, Dtype, EntryPoint, Family, KernelResources, MANIFEST_FILE,
    Manifest, ManifestModule, ModuleKey, SourceEntry, Target, WorldSize,
};
use tempfile::TempDir;

/// The module that the cubins in `tests/data` hold, for `family`.
pub(crate) fn key(family: Family) -> ModuleKey {
    ModuleKey {
        family,
        dtype: Dtype::Bf16,
        world_size: WorldSize::MAX,
    }
}

pub(crate) fn target(name: &str) -> Target {
    name.parse().unwrap()
}

pub(crate) fn data_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

pub(crate) fn data(name: &str) -> Vec<u8> {
    let path = data_path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn compiler() -> CompilerId {
    CompilerId {
        kind: CompilerKind::Nvcc,
        version: "13.0.88".to_owned(),
        build: "cuda_13.0.r13.0/compiler.36424714_0".to_owned(),
    }
}

/// The entry that describes `bytes` truly.
pub(crate) fn entry(family: Family, target: Target, bytes: &[u8]) -> ManifestModule {
    let is_cubin = matches!(target, Target::Cubin(_));
    let key = key(family);
    let entry_point = |name| EntryPoint {
        name,
        resources: is_cubin.then_some(KernelResources {
            registers: 8,
            spill_bytes: 0,
            shared_bytes: 0,
        }),
        max_threads: 512,
        pdl: target.arch().major >= 9,
    };
    ManifestModule {
        key,
        target,
        ptx_version: (!is_cubin).then(|| "9.0".parse().unwrap()),
        bytes: bytes.len() as u64,
        sha256: Digest::of(bytes),
        closure_digest: Digest::of(b"closure"),
        cache_key: Digest::of(target.to_string().as_bytes()),
        entry_points: key.entry_points().into_iter().map(entry_point).collect(),
    }
}

pub(crate) fn manifest(modules: Vec<ManifestModule>) -> Manifest {
    let source = |path: &str| SourceEntry {
        path: path.to_owned(),
        sha256: Digest::of(path.as_bytes()),
    };
    Manifest {
        peersum_version: "0.1.0".to_owned(),
        toolkit: compiler(),
        flags: vec!["-std=c++17".to_owned(), "-O3".to_owned()],
        sources: vec![source("abi.h"), source("push.cu")],
        modules,
    }
}

/// A manifest of one PTX file and one cubin, in the order in which they are written.
pub(crate) fn sample_manifest() -> Manifest {
    manifest(vec![
        entry(
            Family::Push,
            target("compute_80"),
            &data("push.compute_80.ptx"),
        ),
        entry(Family::Push, target("sm_90"), &data("push.sm_90.cubin")),
    ])
}

/// A directory with the files of `manifest`, taken from `files` in the order of its modules.
pub(crate) fn directory(manifest: &Manifest, files: &[&[u8]]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join(MANIFEST_FILE),
        manifest.to_json_string(),
    )
    .unwrap();
    for (module, bytes) in manifest.modules.iter().zip(files) {
        std::fs::write(directory.path().join(module.file_name()), bytes).unwrap();
    }
    directory
}

/// The seed of a randomised test: `PEERSUM_TEST_SEED`, else another one each time. Printed, so that
/// a failure repeats.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("PEERSUM_TEST_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("PEERSUM_TEST_SEED={seed}");
    seed
}
