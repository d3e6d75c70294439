//! Builds of the kernels, and where their cubins are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
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

    fn of_harness(self) -> Option<HarnessBuild> {
        match self {
            Build::Shipped => None,
            Build::UnsafeBaseline => Some(HarnessBuild::UnsafeBaseline),
            Build::StrictOrder => Some(HarnessBuild::StrictOrder),
        }
    }
}

/// The builds that are measured.
#[derive(Debug, Clone)]
pub(crate) struct Builds {
    device: DeviceKind,
    /// The directory of each, that of the shipped build first.
    directories: Vec<(Build, PathBuf)>,
}

impl Builds {
    /// The shipped build alone.
    pub(crate) fn new(device: DeviceKind, shipped: &Path) -> Builds {
        Builds {
            device,
            directories: vec![(Build::Shipped, shipped.to_owned())],
        }
    }

    /// Another build, if there is a directory for it.
    pub(crate) fn and(mut self, build: Build, directory: Option<&PathBuf>) -> Builds {
        let other = directory.map(|directory| (build, directory.clone()));
        self.directories.extend(other);
        self
    }

    /// The builds, the shipped one first.
    pub(crate) fn all(&self) -> Vec<Build> {
        self.directories.iter().map(|(build, _)| *build).collect()
    }

    /// Where the modules of a build are loaded from.
    ///
    /// # Errors
    /// There is no such build.
    pub(crate) fn load_policy(&self, build: Build) -> Result<LoadPolicy> {
        let policy = LoadPolicy::default()
            .jit(JitMode::Deny)
            .cubin_dir(self.directory(build)?);
        let Some(harness_build) = build.of_harness() else {
            return Ok(policy);
        };
        // Its own kernels are linked into this program.
        ensure!(
            self.device == DeviceKind::Cuda,
            "the emulator has no {} of the kernels",
            build.name()
        );
        Ok(policy.harness_build(harness_build))
    }

    fn directory(&self, build: Build) -> Result<&Path> {
        let found = self.directories.iter().find(|(other, _)| *other == build);
        let (_, directory) =
            found.with_context(|| format!("no directory of cubins for the {}", build.name()))?;
        Ok(directory)
    }

    /// The compiler of the kernels.
    ///
    /// # Errors
    /// The shipped build has no manifest.
    pub(crate) fn toolkit(&self) -> Result<String> {
        if self.device == DeviceKind::Emulator {
            return Ok("the host's C++ compiler".to_owned());
        }
        let toolkit = Manifest::read_dir(self.directory(Build::Shipped)?)?.toolkit;
        Ok(format!("{} {}", toolkit.kind, toolkit.version))
    }
}
