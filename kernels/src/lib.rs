//! The CUDA C++ kernels of peersum as text, the bindings of their ABI, and the pack of compiled cubins.
//!
//! This crate compiles nothing: `cargo xtask precompile` turns [`SOURCES`] into cubins ahead of time, the runtime's
//! NVRTC fallback compiles the same text in memory, and the emulator compiles it for the CPU.

#[rustfmt::skip]
pub mod abi;

/// One source file of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The path relative to the kernels' directory, as an `#include "..."` line names it.
    pub path: &'static str,
    /// The file's text.
    pub text: &'static str,
}

macro_rules! sources {
    ($($path:literal),+ $(,)?) => {
        &[$(Source { path: $path, text: include_str!(concat!("../", $path)) }),+]
    };
}

/// Every source file, in alphabetical order. They include nothing but each other.
pub const SOURCES: &[Source] = sources![
    "abi.h",
    "element.cuh",
    "platform.cuh",
    "protocol.cuh",
    "pull.cu",
    "push.cu"
];

/// The packed cubins of a release. Empty in a checkout: only a packaged crate carries them.
pub const PACK: &[u8] = include_bytes!("../pack/cubins.bin");
