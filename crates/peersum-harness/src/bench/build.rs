//! Builds of the kernels, and where their cubins are.

use std::path::Path;

use anyhow::{Result, ensure};
use peersum::loader::{JitMode, LoadPolicy};
use peersum_artifact::Manifest;
use peersum_kernels::HarnessBuild;
use serde::{Deserialize, Serialize};

use crate::machine::DeviceKind;

/// How the kernels were compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Build {
    /// As they are shipped.
    Shipped,
    /// Without header, bounds and poison.
    UnsafeBaseline,
    /// With the formal chain from a re-arm to the next store.
    StrictOrder,
}

impl Build {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Build::Shipped => "shipped",
            Build::UnsafeBaseline => "unsafe baseline",
            Build::StrictOrder => "strict order",
        }
    }

    /// Loads its modules from a directory of cubins.
    ///
    /// # Errors
    /// The emulator has the shipped kernels only.
    pub(crate) fn load_policy(self, device: DeviceKind, cubins: &Path) -> Result<LoadPolicy> {
        let policy = LoadPolicy::default().jit(JitMode::Deny).cubin_dir(cubins);
        let build = match self {
            Build::Shipped => return Ok(policy),
            Build::UnsafeBaseline => HarnessBuild::UnsafeBaseline,
            Build::StrictOrder => HarnessBuild::StrictOrder,
        };
        // Its own kernels are linked into this program.
        ensure!(
            device == DeviceKind::Cuda,
            "the emulator has no {} of the kernels",
            self.name()
        );
        Ok(policy.harness_build(build))
    }
}

/// The compiler of the shipped kernels.
///
/// # Errors
/// The directory of cubins has no manifest.
pub(crate) fn toolkit(device: DeviceKind, cubins: &Path) -> Result<String> {
    if device == DeviceKind::Emulator {
        return Ok("the host's C++ compiler".to_owned());
    }
    let toolkit = Manifest::read_dir(cubins)?.toolkit;
    Ok(format!("{} {}", toolkit.kind, toolkit.version))
}
