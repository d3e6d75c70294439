//! A driver without a GPU, compiled from `fakes/cuda.c`, which says what can be asked of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// By the path from any crate of this workspace: the library's tests use this file too.
const SOURCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../peersum-harness/tests/fakes/cuda.c"
);

/// Compiles the fake and returns the directory to look for it in.
pub(crate) fn fake(name: &str, define: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    // Another run may be at it in the same place: each renames a whole file.
    let fresh = tempfile::NamedTempFile::new_in(&directory).unwrap();
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-pthread", define, "-o"])
        .arg(fresh.path())
        .arg(SOURCE)
        .status()
        .unwrap();
    assert!(status.success(), "the fake driver does not compile");
    // Both names, so that nobody finds a real driver under the other.
    for library in ["libcuda.so.1", "libcuda.so"] {
        let link = tempfile::Builder::new()
            .make_in(&directory, |path| fs::hard_link(fresh.path(), path))
            .unwrap();
        link.persist(directory.join(library)).unwrap();
    }
    directory
}

pub(crate) fn whole_driver() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| fake("fake-cuda", "-DWHOLE"))
}
