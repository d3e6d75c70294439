//! Why a place did not serve.

use std::path::PathBuf;

use peersum_artifact::pack::PackError;
use peersum_artifact::{
    Arch, ClosureError, CudaVersion, Digest, ManifestError, ModuleKey, PtxVersion, VerifyError,
    driver_branch_floor,
};

use super::jit_cache::CacheError;
use super::nvrtc::NvrtcError;
use super::policy::JitMode;

/// Why a place did not serve.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Nothing names this place.
    #[error("not set")]
    NotSet,
    /// The process gained rights when it was executed, so its environment is not followed.
    #[error("the environment is ignored in a set-uid process")]
    EnvironmentIgnored,
    /// The JIT mode excludes it.
    #[error("not used: JIT is set to {0}")]
    JitMode(JitMode),
    /// `peersum-kernels` was built without cubins, as in a checkout.
    #[error("none: this build of peersum carries no cubins")]
    EmptyPack,
    /// The embedded pack cannot be read.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The directory's manifest is missing or cannot be trusted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest lists nothing for this module and device.
    #[error(
        "has {} for {module} on sm_{device}{}",
        if *ptx { "no PTX" } else { "no cubin" },
        having(listed)
    )]
    NoEntry {
        /// The module.
        module: ModuleKey,
        /// The device's architecture.
        device: Arch,
        /// Whether PTX was looked for, and not a cubin.
        ptx: bool,
        /// What the manifest has of this module.
        listed: Vec<String>,
    },
    /// It was compiled from other sources than this build's.
    #[error(
        "{file} was compiled from other kernel sources (closure {found}) than this build of \
         peersum has ({expected}): run `cargo xtask precompile` again, or install the cubins of \
         this version"
    )]
    StaleSources {
        /// The file.
        file: String,
        /// The closure digest of this build's sources.
        expected: Digest,
        /// The closure digest in the manifest.
        found: Digest,
    },
    /// The file is not what its manifest says, or not what its name says.
    #[error("{0}")]
    File(VerifyError),
    /// The driver is older than the toolkit that made the cubin.
    #[error(
        "{file} was made by CUDA {toolkit} and the driver's CUDA is {driver}: {}",
        update_hint(toolkit.major)
    )]
    DriverTooOld {
        /// The file.
        file: String,
        /// The toolkit.
        toolkit: CudaVersion,
        /// The newest CUDA that the driver supports.
        driver: CudaVersion,
    },
    /// The driver is older than the PTX.
    #[error(
        "{file} is PTX {ptx}, newer than the driver's CUDA {driver} can compile: update the driver"
    )]
    PtxTooNew {
        /// The file.
        file: String,
        /// The PTX version.
        ptx: PtxVersion,
        /// The newest CUDA that the driver supports.
        driver: CudaVersion,
    },
    /// An include of the kernels' sources cannot be resolved.
    #[error(transparent)]
    Sources(#[from] ClosureError),
    /// The JIT cache's directory, or its entry, cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The JIT cache has no entry for this module, device and NVRTC.
    #[error("no entry")]
    CacheMiss,
    /// The NVRTC that was found has no build id, so the cache could not tell its modules from those
    /// of another NVRTC.
    #[error("not used: {} has no build id to tell it from other builds", library.display())]
    NoBuildId {
        /// The library's file.
        library: PathBuf,
    },
    /// NVRTC made no cubin.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// What NVRTC made is not what was asked for.
    #[error("NVRTC's result cannot be used: {0}")]
    Compiled(VerifyError),
}

impl Reason {
    /// Whether there simply is nothing, by choice or by default, as opposed to something that
    /// cannot be used.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Reason::NotSet
                | Reason::EnvironmentIgnored
                | Reason::JitMode(_)
                | Reason::EmptyPack
                | Reason::CacheMiss
        )
    }
}

/// ` (it has a, b)`, or nothing.
fn having(listed: &[String]) -> String {
    if listed.is_empty() {
        String::new()
    } else {
        format!(" (it has {})", listed.join(", "))
    }
}

/// What to do about a driver that is too old for cubins of this toolkit.
pub fn update_hint(toolkit_major: u32) -> String {
    match driver_branch_floor(toolkit_major) {
        Some(branch) => format!("update NVIDIA's driver to branch {branch} or newer"),
        None => "update NVIDIA's driver".to_owned(),
    }
}
