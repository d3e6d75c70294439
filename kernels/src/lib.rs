//! The CUDA C++ kernels of peersum as text, the bindings of their ABI, and the pack of compiled
//! cubins.
//!
//! This crate compiles nothing: `cargo xtask precompile` turns [`SOURCES`] into cubins ahead of
//! time, the runtime's NVRTC fallback compiles the same text in memory, and the emulator compiles
//! it for the CPU.

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
    "call.cuh",
    "element.cuh",
    "failure.cuh",
    "fp8.cuh",
    "headers.cuh",
    "move.cu",
    "narrow.cuh",
    "norm.cu",
    "norm_words.cuh",
    "normalise.cuh",
    "platform.cuh",
    "pull.cu",
    "push.cu",
    "push_call.cuh",
    "push_rest.cuh",
    "pushed_rows.cuh",
    "reduce_scatter.cuh",
    "rms.cuh",
    "slots.cuh",
    "sum.cuh",
    "units.cuh"
];

/// The packed cubins of a release. Empty in a checkout: only a packaged crate carries them.
pub const PACK: &[u8] = include_bytes!("../pack/cubins.bin");

/// A build of the kernels that only the harness runs, as a baseline for measurements or under
/// tools.
///
/// Its sources differ from [`SOURCES`], so its modules have other digests. A loader refuses them
/// unless it was asked for them by name.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HarnessBuild {
    /// Without headers, bounded waits and poison: it shows what safety costs.
    UnsafeBaseline,
    /// With a formal happens-before chain from a re-arm to the peer's next store.
    StrictOrder,
    /// The ranks of a group are the rows of one grid, for tools that allow only one kernel to run
    /// at a time.
    OneLaunch,
}

impl HarnessBuild {
    /// All harness builds.
    pub const ALL: [HarnessBuild; 3] = [
        HarnessBuild::UnsafeBaseline,
        HarnessBuild::StrictOrder,
        HarnessBuild::OneLaunch,
    ];

    /// The build's name in flags and directory names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HarnessBuild::UnsafeBaseline => "unsafe-baseline",
            HarnessBuild::StrictOrder => "strict-order",
            HarnessBuild::OneLaunch => "one-launch",
        }
    }

    /// Path and text of every source file. The switch is in the text, not a compiler flag, so that
    /// the digests of the build's modules cover it.
    #[must_use]
    pub fn sources(self) -> Vec<(&'static str, String)> {
        let switch = match self {
            HarnessBuild::UnsafeBaseline => "PEERSUM_UNSAFE_BASELINE",
            HarnessBuild::StrictOrder => "PEERSUM_STRICT_ORDER",
            HarnessBuild::OneLaunch => "PEERSUM_ONE_LAUNCH",
        };
        SOURCES
            .iter()
            .map(|source| {
                let text = match source.path {
                    "call.cuh" => format!("#define {switch}\n{}", source.text),
                    _ => source.text.to_owned(),
                };
                (source.path, text)
            })
            .collect()
    }
}

/// The names of all `extern "C" __device__` functions of the kernels. A program that compiles
/// several modules for the CPU has to tell these functions apart.
#[doc(hidden)]
pub fn exported_device_functions() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().flat_map(|source| {
        source
            .text
            .split("extern \"C\" __device__")
            .skip(1)
            .filter_map(|rest| rest.split('(').next()?.split_whitespace().last())
    })
}
