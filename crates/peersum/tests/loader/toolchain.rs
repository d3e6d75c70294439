//! The compilers' products that these tests need. `cargo xtask test` provides them and names their
//! places; a test that cannot find them fails and says so.

use std::env;
use std::path::PathBuf;

/// NVRTC: `PEERSUM_TEST_NVRTC`, else the one in the cache of pinned toolchains.
pub(crate) fn nvrtc() -> PathBuf {
    if let Some(library) = variable("PEERSUM_TEST_NVRTC") {
        assert!(
            library.is_file(),
            "PEERSUM_TEST_NVRTC={}: no such file",
            library.display()
        );
        return library;
    }
    let user_cache =
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let toolchains = variable("PEERSUM_TOOLCHAIN_DIR")
        .or_else(|| user_cache.map(|cache| cache.join("peersum/toolchain")));
    let installed = toolchains
        .iter()
        .flat_map(std::fs::read_dir)
        .flatten()
        .flatten();
    installed
        .map(|install| install.path().join("nvidia/cu13/lib/libnvrtc.so.13"))
        .find(|library| library.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no NVRTC for the tests: run `cargo xtask test`, or name one with \
                 PEERSUM_TEST_NVRTC"
            )
        })
}

/// Directories of compiled modules: those of `PEERSUM_TEST_CUBINS`, a list as PATH is one, else the
/// one that `cargo xtask precompile` writes.
#[allow(
    dead_code,
    reason = "each test program uses what it needs of this file"
)]
pub(crate) fn cubins() -> Vec<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let directories = variable("PEERSUM_TEST_CUBINS").map_or_else(
        || vec![here.join("../../target/cubins")],
        |list| env::split_paths(&list).collect(),
    );
    for directory in &directories {
        assert!(
            directory.join("manifest.json").is_file(),
            "no compiled modules in {}: run `cargo xtask test`, or `cargo xtask precompile`, or \
             name directories with PEERSUM_TEST_CUBINS",
            directory.display()
        );
    }
    directories
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
