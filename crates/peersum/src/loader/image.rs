//! What the loader is asked for, and what it gives.

use std::sync::Arc;

use peersum_artifact::{Arch, CudaVersion, EntryPoint, Target};

use super::report::LoadReport;

/// What a module must run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTarget {
    /// The device's compute capability.
    pub arch: Arch,
    /// The newest CUDA that its driver supports (`cuDriverGetVersion`). `None` if it is not known:
    /// the driver then counts as new enough.
    pub driver_version: Option<CudaVersion>,
}

/// The kernels to load: what compiled modules must have been made from, what NVRTC compiles, and
/// the embedded cubins.
#[derive(Debug, Clone)]
pub struct KernelSet<'a> {
    /// The source files, pairs of path and text.
    pub sources: Vec<(&'a str, &'a str)>,
    /// The pack of cubins and PTX; empty if there is none. See [`peersum_artifact::pack`].
    pub pack: &'a [u8],
}

impl KernelSet<'static> {
    /// The kernels of this build of peersum.
    #[must_use]
    pub fn embedded() -> Self {
        Self {
            sources: peersum_kernels::SOURCES
                .iter()
                .map(|source| (source.path, source.text))
                .collect(),
            pack: peersum_kernels::PACK,
        }
    }
}

/// A module's bytes, verified, and what a launch must know of its kernels.
#[derive(Debug)]
pub struct LoadedImage {
    /// The image as `cuModuleLoadData` takes it. PTX ends in a NUL, which that function needs.
    pub bytes: Arc<[u8]>,
    /// The target it was compiled for: machine code, or PTX that the driver compiles. It serves the
    /// device and need not be the device's own.
    pub target: Target,
    /// The kernels, in the order of
    /// [`ModuleKey::algorithms`](peersum_artifact::ModuleKey::algorithms).
    pub entry_points: Vec<EntryPoint>,
    /// Where it came from.
    pub report: LoadReport,
}
